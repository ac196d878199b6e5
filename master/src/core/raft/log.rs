//! The log in memory: what raft reads. It holds entries before the disk does; raft knows how far the disk is.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::util::limit_size;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use wire::NodeId;

use super::frame::SnapshotFile;
use super::raft_id;

/// Entries from `compacted.0 + 1` on.
#[derive(Clone, Debug, Default)]
pub struct Log {
    members: ConfState,
    hard_state: HardState,
    /// Index and term of the last entry that is no longer here.
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
    /// Bytes of their data.
    size: usize,
    /// What members are told of that need entries which are no longer here.
    offered: Option<SnapshotFile>,
}

/// Says why what a disk gave back is not a log. The disk is damaged: nothing of it may be skipped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    #[error("entry {found} of the log follows entry {before}: entries between them are missing")]
    Gap { before: u64, found: u64 },
    #[error("the log ends at entry {last}, but entry {commit} was committed: its end is missing")]
    EndMissing { last: u64, commit: u64 },
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
        // Older entries may still be there: the log is cut after the snapshot is durable, not with it. And a log that has
        // another entry in the snapshot's place was to be replaced by it: what follows was never committed.
        let is_replaced = entries.iter().any(|entry| entry.index == index && entry.term != term);
        let newer: VecDeque<Entry> = entries.into_iter().filter(|entry| entry.index > index && !is_replaced).collect();
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
        let members = ConfState { voters, ..ConfState::default() };
        let size = newer.iter().map(|entry| entry.data.len()).sum();
        Ok(Self { members, hard_state, compacted: snapshot, entries: newer, size, offered: None })
    }

    pub fn compacted_index(&self) -> u64 {
        self.compacted.0
    }

    pub fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    /// Bytes of what the entries hold.
    pub fn size(&self) -> usize {
        self.size
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
        for replaced in self.entries.drain((first.index - self.compacted.0 - 1) as usize..) {
            self.size -= replaced.data.len();
        }
        self.size += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Holds nothing but a snapshot.
    pub(super) fn restart(&mut self, snapshot: (u64, u64), members: ConfState) {
        self.entries.clear();
        self.size = 0;
        (self.compacted, self.members) = (snapshot, members);
    }

    pub(super) fn offer(&mut self, file: SnapshotFile) {
        self.offered = Some(file);
    }

    /// Drops the entries up to `index`.
    pub(super) fn compact(&mut self, index: u64) {
        if index <= self.compacted.0 {
            return;
        }
        let term = self.term_of(index).expect("only applied entries are dropped");
        for dropped in self.entries.drain(..(index - self.compacted.0) as usize) {
            self.size -= dropped.data.len();
        }
        self.compacted = (index, term);
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.members.clone() })
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

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Anything but this error would stop the process.
        let unavailable = StorageError::SnapshotTemporarilyUnavailable;
        let file = self.offered.filter(|file| file.index >= request_index).ok_or(unavailable)?;
        let mut snapshot = Snapshot { data: file.data().into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (file.index, file.term);
        metadata.set_conf_state(self.members.clone());
        Ok(snapshot)
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
    }

    #[test]
    fn a_log_with_another_entry_in_the_snapshots_place_is_replaced_by_it() {
        let log = recover((5, 2), &[4, 5, 6], 3).unwrap();
        assert_eq!((log.compacted_index(), log.last(), log.term_of(5), log.term_of(6)), (5, 5, Some(2), None));
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
