//! What a cache gives up when it has grown too large: what was used longest ago and nobody needs.
//!
//! Like a shelf of a reading room: when it is full, those books go back to the stacks that nobody has asked for lately,
//! several at once so that not every new one costs an errand, and never one that lies open on somebody's desk.

use std::collections::{BTreeMap, BTreeSet};

use wire::FileId;

/// The files of a cache, their sizes, and who needs them.
#[derive(Debug)]
pub struct Quota {
    high: u64,
    low: u64,
    used: u64,
    files: BTreeMap<FileId, Entry>,
    /// Those without pins, used longest ago first.
    idle: BTreeSet<(u64, FileId)>,
    /// Counts uses: a clock that never goes back.
    uses: u64,
}

#[derive(Debug, Default)]
struct Entry {
    bytes: u64,
    used_at: u64,
    pins: u32,
}

impl Quota {
    /// A cache that has grown above `high` bytes is cut down to `low`.
    pub fn new(high: u64, low: u64) -> Self {
        assert!(low <= high, "a cache is cut down to less than its limit");
        Self { high, low, used: 0, files: BTreeMap::new(), idle: BTreeSet::new(), uses: 0 }
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Whether the cache is above its limit: then everything in it is needed.
    pub fn is_full(&self) -> bool {
        self.high < self.used
    }

    /// Notes that a file is in use, and has this size on the disk now.
    pub fn set(&mut self, file: FileId, bytes: u64) {
        self.uses += 1;
        let entry = self.files.entry(file).or_default();
        self.idle.remove(&(entry.used_at, file));
        self.used = self.used - entry.bytes + bytes;
        (entry.bytes, entry.used_at) = (bytes, self.uses);
        if entry.pins == 0 {
            self.idle.insert((entry.used_at, file));
        }
    }

    /// Keeps a file, which may not be here yet, until as many `unpin`s.
    pub fn pin(&mut self, file: FileId) {
        self.uses += 1;
        let entry = self.files.entry(file).or_default();
        self.idle.remove(&(entry.used_at, file));
        entry.used_at = self.uses;
        entry.pins += 1;
    }

    pub fn unpin(&mut self, file: FileId) {
        let entry = self.files.get_mut(&file).filter(|entry| entry.pins > 0).expect("what is unpinned was pinned");
        entry.pins -= 1;
        if entry.pins == 0 {
            self.idle.insert((entry.used_at, file));
        }
    }

    /// Notes that a file is gone from the disk. Its pins stay.
    pub fn remove(&mut self, file: FileId) {
        let Some(entry) = self.files.get_mut(&file) else { return };
        self.used -= std::mem::take(&mut entry.bytes);
        if entry.pins == 0 {
            self.idle.remove(&(entry.used_at, file));
            self.files.remove(&file);
        }
    }

    /// What is to be removed now; it counts as gone.
    pub fn evict(&mut self) -> Vec<FileId> {
        if self.is_full() { self.cut_down_to(self.low) } else { Vec::new() }
    }

    /// What is to be removed so that the disk has room for so many bytes more, as far as pins allow; it counts as gone.
    pub fn make_room(&mut self, bytes: u64) -> Vec<FileId> {
        self.cut_down_to(self.used.saturating_sub(bytes))
    }

    fn cut_down_to(&mut self, bytes: u64) -> Vec<FileId> {
        let mut evicted = Vec::new();
        while bytes < self.used
            && let Some((_, file)) = self.idle.pop_first()
        {
            let entry = self.files.remove(&file).expect("what is idle is known");
            self.used -= entry.bytes;
            evicted.push(file);
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(number: u8) -> FileId {
        FileId([number; 16])
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_until_there_is_some_room() {
        let mut quota = Quota::new(100, 80);
        (1..=5).for_each(|number| quota.set(file(number), 20));
        assert_eq!(quota.evict(), [], "it is as large as it may be");
        quota.set(file(1), 20);
        quota.set(file(6), 10);
        assert_eq!(quota.evict(), [file(2), file(3)]);
        assert_eq!((quota.used(), quota.is_full()), (70, false));
    }

    #[test]
    fn what_somebody_needs_stays_and_a_cache_of_such_files_is_full() {
        let mut quota = Quota::new(100, 50);
        quota.pin(file(1));
        quota.pin(file(1));
        quota.set(file(1), 90);
        quota.set(file(2), 20);
        assert_eq!(quota.evict(), [file(2)]);
        quota.set(file(1), 110);
        assert!(quota.evict().is_empty() && quota.is_full());
        quota.unpin(file(1));
        assert!(quota.evict().is_empty() && quota.is_full());
        quota.unpin(file(1));
        assert_eq!(quota.evict(), [file(1)]);
        assert_eq!(quota.used(), 0);
    }

    #[test]
    fn room_on_the_disk_is_made_of_what_nobody_needs() {
        let mut quota = Quota::new(1_000, 800);
        quota.pin(file(1));
        (1..=4).for_each(|number| quota.set(file(number), 20));
        assert_eq!(quota.make_room(0), []);
        assert_eq!(quota.make_room(21), [file(2), file(3)]);
        assert_eq!(quota.make_room(100), [file(4)], "and no more");
        assert_eq!((quota.make_room(100), quota.used()), (vec![], 20));
    }

    #[test]
    fn a_pinned_file_that_is_gone_may_come_again() {
        let mut quota = Quota::new(100, 50);
        quota.pin(file(1));
        quota.set(file(1), 90);
        quota.remove(file(1));
        quota.remove(file(2));
        assert_eq!(quota.used(), 0);
        quota.set(file(1), 120);
        assert!(quota.evict().is_empty(), "its pin has stayed");
        quota.unpin(file(1));
        assert_eq!(quota.evict(), [file(1)]);
    }

    proptest! {
        #[test]
        fn a_cache_is_cut_down_as_far_as_pins_allow(steps in proptest::collection::vec((0u8..5, 0u8..6, 0u64..60), 0..200)) {
            let mut quota = Quota::new(100, 60);
            let mut sizes: BTreeMap<u8, u64> = BTreeMap::new();
            let mut pins: BTreeMap<u8, u32> = BTreeMap::new();
            for (step, number, bytes) in steps {
                match step {
                    0 | 1 => {
                        quota.set(file(number), bytes);
                        sizes.insert(number, bytes);
                    }
                    2 => {
                        quota.pin(file(number));
                        *pins.entry(number).or_default() += 1;
                    }
                    3 => {
                        if let Some(pin) = pins.get_mut(&number).filter(|pin| **pin > 0) {
                            quota.unpin(file(number));
                            *pin -= 1;
                        }
                    }
                    _ => {
                        quota.remove(file(number));
                        sizes.remove(&number);
                    }
                }
                let was_full = 100 < quota.used();
                let evicted = quota.evict();
                assert!(was_full || evicted.is_empty());
                for file in evicted {
                    assert_eq!(pins.get(&file.0[0]).copied().unwrap_or(0), 0);
                    sizes.remove(&file.0[0]);
                }
                assert_eq!(quota.used(), sizes.values().sum::<u64>());
                let could_go = sizes.iter().any(|(number, bytes)| *bytes > 0 && pins.get(number).copied().unwrap_or(0) == 0);
                assert!(!quota.is_full() || !could_go);
            }
        }
    }
}
