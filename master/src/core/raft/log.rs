//! The log in memory: what raft reads. It holds entries before the disk does; raft knows how far the disk is.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::util::limit_size;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use wire::NodeId;

use super::raft_id;

/// Entries from `compacted.0 + 1` on.
#[derive(Clone, Debug, Default)]
pub struct Log {
    voters: Vec<u64>,
    hard_state: HardState,
    /// Index and term of the last entry that is no longer here.
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
}

/// Says why what a disk gave back is not a log. The disk is damaged: nothing of it may be skipped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    #[error("entry {found} of the log follows entry {before}: entries between them are missing")]
    Gap { before: u64, found: u64 },
    #[error("the log ends at entry {last}, but entry {commit} was committed: its end is missing")]
    EndMissing { last: u64, commit: u64 },
    #[error("entry {index} has term {found} in the log and {expected} in the snapshot")]
    OtherTerm { index: u64, found: u64, expected: u64 },
}

impl Log {
    /// The log of a member that comes back with a snapshot as of `snapshot` (index and term; zeros = none), and what
    /// its disk has of entries and hard state.
    pub fn recover(
        members: &[NodeId],
        snapshot: (u64, u64),
        entries: Vec<Entry>,
        mut hard_state: HardState,
    ) -> Result<Self, LogError> {
        let (index, term) = snapshot;
        // Older entries may still be there: the log is cut after the snapshot is durable, not with it.
        if let Some(same) = entries.iter().find(|entry| entry.index == index && entry.term != term) {
            return Err(LogError::OtherTerm { index, found: same.term, expected: term });
        }
        let newer: VecDeque<Entry> = entries.into_iter().filter(|entry| entry.index > index).collect();
        for (expected, entry) in (index + 1..).zip(&newer) {
            if entry.index != expected {
                return Err(LogError::Gap { before: expected - 1, found: entry.index });
            }
        }
        let last = newer.back().map_or(index, |entry| entry.index);
        if hard_state.commit > last {
            return Err(LogError::EndMissing { last, commit: hard_state.commit });
        }
        // A rise of the commit index alone is not made durable; what the snapshot holds was committed.
        hard_state.commit = hard_state.commit.max(index);
        hard_state.term = hard_state.term.max(term);
        let voters = members.iter().map(|member| raft_id(*member)).collect();
        Ok(Self { voters, hard_state, compacted: snapshot, entries: newer })
    }

    pub fn compacted_index(&self) -> u64 {
        self.compacted.0
    }

    pub fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The term of an entry that is here or was the last to be dropped.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        let position = usize::try_from(index.checked_sub(self.compacted.0 + 1)?).ok()?;
        self.entries.get(position).map(|entry| entry.term)
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Appends entries in place of those from the first one's index on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.compacted.0 && first.index <= self.last() + 1, "raft appends without gaps");
        self.entries.truncate((first.index - self.compacted.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Drops the entries up to `index`.
    pub(super) fn compact(&mut self, index: u64) {
        if index <= self.compacted.0 {
            return;
        }
        let term = self.term_of(index).expect("only applied entries are dropped");
        self.entries.drain(..(index - self.compacted.0) as usize);
        self.compacted = (index, term);
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState { voters: self.voters.clone(), ..ConfState::default() };
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (start, end) = ((low - self.compacted.0 - 1) as usize, (high - self.compacted.0 - 1) as usize);
        let mut entries: Vec<Entry> = self.entries.range(start..end).cloned().collect();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        self.term_of(index).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Snapshots travel as files, never inside raft's messages; anything but this error would stop the process.
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    fn recover(snapshot: (u64, u64), entries: &[u64], commit: u64) -> Result<Log, LogError> {
        let entries = entries.iter().map(|index| entry(*index, 1)).collect();
        Log::recover(&[NodeId([1; 16])], snapshot, entries, HardState { commit, term: 1, ..HardState::default() })
    }

    #[test]
    fn a_log_that_lacks_entries_is_refused() {
        assert_eq!(recover((0, 0), &[1, 3], 1).unwrap_err(), LogError::Gap { before: 1, found: 3 });
        assert_eq!(recover((5, 1), &[7], 5).unwrap_err(), LogError::Gap { before: 5, found: 7 });
        assert_eq!(recover((5, 1), &[4, 5, 6], 7).unwrap_err(), LogError::EndMissing { last: 6, commit: 7 });
        let other = LogError::OtherTerm { index: 5, found: 1, expected: 2 };
        assert_eq!(recover((5, 2), &[5, 6], 5).unwrap_err(), other);
    }

    #[test]
    fn a_snapshot_stands_for_the_entries_that_it_holds() {
        let log = recover((5, 1), &[3, 4, 5, 6, 7], 2).unwrap();
        assert_eq!((log.compacted_index(), log.last(), log.hard_state().commit), (5, 7, 5));
        assert_eq!((log.term_of(4), log.term_of(5), log.term_of(7), log.term_of(8)), (None, Some(1), Some(1), None));
    }

    #[test]
    fn an_append_replaces_the_end() {
        let mut log = recover((5, 1), &[6, 7], 5).unwrap();
        log.append(&[entry(7, 2), entry(8, 2)]);
        assert_eq!((log.last(), log.term_of(7)), (8, Some(2)));
        log.compact(7);
        assert_eq!((log.compacted_index(), log.term_of(7), log.term_of(8)), (7, Some(2), Some(2)));
    }
}
