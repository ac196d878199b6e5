//! Watches the disk: whoever holds most of one that is almost full has to end, before it has none left.
//!
//! A program may write anywhere and by any number of files, and what limits a file (`RLIMIT_FSIZE`) would limit those on
//! other disks too. So the room that is left is looked at, the more often the less there is; a look costs a microsecond.

use std::path::PathBuf;

use node::disk::free_bytes;
use wire::{Duration, Instant};

/// What programs write at most, as far as the next look is concerned, in bytes a second.
const FILL_RATE: u64 = 2 << 30;
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(20);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

pub(super) struct DiskWatch {
    root: PathBuf,
    pub(super) free_bytes_min: u64,
    /// As of the last look.
    pub(super) free_bytes: u64,
    /// When the next look is due.
    pub(super) due: Instant,
}

impl DiskWatch {
    pub(super) fn new(root: PathBuf, free_bytes_min: u64) -> Self {
        Self { root, free_bytes_min, free_bytes: u64::MAX, due: Instant::default() }
    }

    pub(super) fn is_low(&self) -> bool {
        self.free_bytes < self.free_bytes_min
    }

    /// What a run holds at least if it is to end for that, in bytes. With less it is hardly what fills the disk, it may be a
    /// neighbour of ours; but the less room there is, the less we ask.
    pub(super) fn blame_min(&self) -> u64 {
        (self.free_bytes / 8).max(1 << 20)
    }

    pub(super) fn look(&mut self, now: Instant) {
        self.free_bytes = free_bytes(&self.root);
        self.due = now + until_next_look(self.free_bytes.saturating_sub(self.free_bytes_min));
    }
}

/// For how long so many bytes last.
fn until_next_look(bytes: u64) -> Duration {
    let millis = bytes / (FILL_RATE / 1000);
    Duration::from_millis(millis).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)
}

/// A size as people read it: `12.5 MiB`.
pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes / ((1 << 20) / 10);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_room_there_is_the_sooner_it_is_looked_at_again() {
        let millis = [0, 1 << 20, 1 << 30, 1 << 40].map(|bytes| until_next_look(bytes).as_millis());
        assert_eq!(millis, [20, 20, 500, 1000]);
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!([0, 1 << 19, 128 << 20].map(mebibytes), ["0.0 MiB", "0.5 MiB", "128.0 MiB"]);
    }
}
