//! A master's disk: writes are done later, in order; a crash loses those that are not done, or only their answers.

use std::collections::VecDeque;

use master::core::{Entry, Persist, Recovered, Ticket};
use wire::{Duration, Instant};

use crate::chance::Chance;

/// What a master asked to be written. Each is written whole or not at all.
#[derive(Debug)]
pub enum Write {
    Persist(Persist),
    Snapshot { ticket: Ticket, index: u64, bytes: Vec<u8> },
    Compact { index: u64 },
}

/// What has become durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    Persist(Ticket),
    Snapshot(Ticket),
    Compact,
}

#[derive(Debug, Default)]
pub struct MasterDisk {
    /// What a restart finds.
    pub durable: Recovered,
    pending: VecDeque<Write>,
    /// When the last write is done: the disk does one after the other.
    busy_until: Instant,
    /// What the snapshot holds.
    pub snapshot_index: u64,
    /// The highest index that was dropped behind a snapshot.
    pub compacted: u64,
}

impl MasterDisk {
    /// Takes a write that lasts so long; it is done, as the oldest of all, at the returned time.
    pub fn write(&mut self, write: Write, now: Instant, takes: Duration) -> Instant {
        self.pending.push_back(write);
        self.busy_until = self.busy_until.max(now) + takes;
        self.busy_until
    }

    /// True when the oldest write is one that the core is told of when it finds no room.
    pub fn persists_next(&self) -> bool {
        matches!(self.pending.front(), Some(Write::Persist(_)))
    }

    /// True when the oldest write is a snapshot.
    pub fn saves_next(&self) -> bool {
        matches!(self.pending.front(), Some(Write::Snapshot { .. }))
    }

    /// The oldest write is done.
    pub fn perform(&mut self) -> Written {
        match self.pending.pop_front().expect("what is due was asked for") {
            Write::Persist(persist) => {
                self.durable.persist(&persist);
                Written::Persist(persist.ticket)
            }
            Write::Snapshot { ticket, index, bytes } => {
                // A restart begins with the newest, whichever was written last: a fetched one may overtake one of its own.
                if index >= self.snapshot_index {
                    self.durable.snapshot = Some(bytes);
                    self.snapshot_index = index;
                }
                Written::Snapshot(ticket)
            }
            Write::Compact { index } => {
                self.durable.compact(index);
                self.compacted = self.compacted.max(index);
                Written::Compact
            }
        }
    }

    /// A durable entry.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let first = self.durable.entries.first()?.index;
        let entry = self.durable.entries.get(usize::try_from(index.checked_sub(first)?).ok()?)?;
        assert_eq!(entry.index, index, "the log on disk has no gaps");
        Some(entry)
    }

    /// Any number of the writes under way are done, in order, and nobody learns of it.
    pub fn crash(&mut self, chance: &mut Chance) {
        for _ in 0..chance.between(0, self.pending.len() as u64 + 1) {
            self.perform();
        }
        self.pending.clear();
        self.busy_until = Instant::default();
    }
}
