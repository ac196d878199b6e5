//! How a file is opened: past us, straight from the cache file, or through us and the kernel's pages.
//!
//! The kernel takes either way for a file, and refuses the other as long as anybody has the file open the first way: then
//! `open` fails. So for each file it is counted who has it open, and a file that came in while it was being read goes on
//! through the pages until its last reader has closed it.

use std::collections::BTreeMap;

use wire::limit::MIB;

/// Up to this a file is read through the kernel's pages: to open it past us takes longer than to read it.
pub const SMALL_SIZE_MAX: u64 = 64 * 1024;
/// Up to this whoever opens a file that is on its way waits for it, and reads it past us then.
pub const AWAITED_SIZE_MAX: u64 = 8 * MIB as u64;

/// What is to be known of a file that is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Bytes that are shown.
    pub length: u64,
    /// The cache file is larger than what is shown of it.
    pub is_piece: bool,
    /// The cache file is whole, and every byte of it has been checked.
    pub is_sealed: bool,
    /// The kernel and our rights allow the way past us.
    pub may_pass: bool,
    /// Whoever opens it has waited for it already.
    pub has_waited: bool,
}

impl Facts {
    /// Whether the file is one that is read past us, once it is here and nobody has it open in the other way.
    pub fn may_ever_pass(&self) -> bool {
        self.may_pass && !self.is_piece && self.length > SMALL_SIZE_MAX
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Passthrough,
    Cached,
    /// Decide again when the file is here, or when it has taken too long.
    Wait,
}

/// Who has one file open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Handles {
    pub passthrough: u32,
    pub cached: u32,
}

impl Handles {
    pub fn decide(&self, facts: Facts) -> Way {
        if self.passthrough > 0 {
            return Way::Passthrough;
        }
        let passes = facts.may_ever_pass() && self.cached == 0;
        match facts.is_sealed {
            true if passes => Way::Passthrough,
            false if passes && facts.length <= AWAITED_SIZE_MAX && !facts.has_waited => Way::Wait,
            true | false => Way::Cached,
        }
    }

    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// Which of the files that nobody has open was used least recently.
#[derive(Debug, Default)]
pub struct Recency {
    clock: u64,
    by_time: BTreeMap<u64, u64>,
    times: BTreeMap<u64, u64>,
}

impl Recency {
    pub fn touch(&mut self, inode: u64) {
        self.remove(inode);
        self.clock += 1;
        self.by_time.insert(self.clock, inode);
        self.times.insert(inode, self.clock);
    }

    pub fn remove(&mut self, inode: u64) {
        if let Some(time) = self.times.remove(&inode) {
            self.by_time.remove(&time);
        }
    }

    /// Takes the one used least recently while there are more than `kept_max`.
    pub fn pop_over(&mut self, kept_max: usize) -> Option<u64> {
        if self.times.len() <= kept_max {
            return None;
        }
        let (_, inode) = self.by_time.pop_first()?;
        self.times.remove(&inode);
        Some(inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEALED: Facts =
        Facts { length: 10 * AWAITED_SIZE_MAX, is_piece: false, is_sealed: true, may_pass: true, has_waited: false };

    #[test]
    fn a_whole_file_that_has_been_checked_is_read_past_us() {
        let nobody = Handles::default();
        assert_eq!(nobody.decide(SEALED), Way::Passthrough);
        assert_eq!(nobody.decide(Facts { length: SMALL_SIZE_MAX + 1, ..SEALED }), Way::Passthrough);
        assert_eq!(nobody.decide(Facts { length: SMALL_SIZE_MAX, ..SEALED }), Way::Cached);
        assert_eq!(nobody.decide(Facts { is_piece: true, ..SEALED }), Way::Cached);
        assert_eq!(nobody.decide(Facts { may_pass: false, ..SEALED }), Way::Cached);
        assert_eq!(Handles { cached: 1, passthrough: 0 }.decide(SEALED), Way::Cached);
    }

    #[test]
    fn only_what_comes_soon_and_is_worth_it_is_waited_for_and_only_once() {
        let absent = Facts { is_sealed: false, ..SEALED };
        let soon = Facts { length: AWAITED_SIZE_MAX, ..absent };
        let nobody = Handles::default();
        assert_eq!(nobody.decide(absent), Way::Cached);
        assert_eq!(nobody.decide(soon), Way::Wait);
        assert_eq!(nobody.decide(Facts { has_waited: true, ..soon }), Way::Cached);
        assert_eq!(nobody.decide(Facts { length: SMALL_SIZE_MAX, ..soon }), Way::Cached);
        assert_eq!(nobody.decide(Facts { may_pass: false, ..soon }), Way::Cached);
        assert_eq!(nobody.decide(Facts { is_piece: true, ..soon }), Way::Cached);
        assert_eq!(Handles { cached: 1, passthrough: 0 }.decide(soon), Way::Cached);
    }

    proptest! {
        /// What the kernel does with the two ways, as it was seen to.
        #[test]
        fn the_kernel_is_never_given_both_ways_of_one_file(
            steps in prop::collection::vec((0..4u8, any::<bool>(), 0..2 * AWAITED_SIZE_MAX), 0..200)
        ) {
            let mut handles = Handles::default();
            let mut open: Vec<Way> = Vec::new();
            let mut is_sealed = false;
            for (step, has_waited, length) in steps {
                match step {
                    0 => is_sealed = !is_sealed,
                    1 if !open.is_empty() => match open.swap_remove(length as usize % open.len()) {
                        Way::Passthrough => handles.passthrough -= 1,
                        Way::Cached => handles.cached -= 1,
                        Way::Wait => unreachable!("nobody has it open while it waits"),
                    },
                    _ => {
                        let way = handles.decide(Facts { length, is_sealed, has_waited, ..SEALED });
                        match way {
                            Way::Passthrough => handles.passthrough += 1,
                            Way::Cached => handles.cached += 1,
                            Way::Wait => continue,
                        }
                        prop_assert!(open.iter().all(|other| *other == way), "it fails with EIO");
                        open.push(way);
                    }
                }
                prop_assert_eq!(handles.is_idle(), open.is_empty());
            }
        }
    }

    #[test]
    fn the_one_used_least_recently_goes_first() {
        let mut recency = Recency::default();
        [1, 2, 3, 1].into_iter().for_each(|inode| recency.touch(inode));
        recency.remove(3);
        assert_eq!(recency.pop_over(2), None);
        assert_eq!(recency.pop_over(1), Some(2));
        assert_eq!((recency.pop_over(0), recency.pop_over(0)), (Some(1), None));
    }
}
