//! Agreement: raft-rs over a log in memory, with a disk that answers later.
//!
//! raft-rs decides what has to be durable and what is committed; this moves its `Ready`s out as `Persist`s and takes
//! the answers back in. What depends on a `Persist` waits here until its ticket returns. Today a group has one voter,
//! itself, so no message ever leaves; what is committed is what its own disk holds.

mod log;

use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState};
use raft::prelude::RawNode;
use raft::{Config as RaftConfig, ReadOnlyOption, StateRole};
use wire::NodeId;
use wire::limit::MIB;

pub use log::{Log, LogError};

/// Ticks of silence after which a follower may campaign; raft-rs draws up to twice that.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// What has to be durable before `Event::Persisted` with this ticket, in the order of the tickets.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Persist {
    pub ticket: Ticket,
    /// Entries to append; they replace whatever the disk has from the first one's index on.
    pub entries: Vec<Entry>,
    /// Replaces the one before.
    pub hard_state: HardState,
}

/// Names a `Persist` or a `SaveSnapshot` until it is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticket(pub u64);

/// One member of the group.
pub struct Raft {
    node: RawNode<Log>,
    seed: u64,
    /// The numbers of raft's `Ready`s that wait for the disk, oldest first, with their tickets; `None` = nothing in it
    /// had to be durable, but raft wants to hear of them in order.
    unpersisted: VecDeque<(u64, Option<Ticket>)>,
}

impl Raft {
    /// A member whose state machine holds everything up to the start of `log`.
    pub fn new(id: NodeId, log: Log, seed: u64) -> Self {
        let config = RaftConfig {
            id: raft_id(id),
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            // What the snapshot holds, and never the commit index: the entries above it are applied anew.
            applied: log.compacted_index(),
            max_size_per_msg: MIB as u64,
            max_inflight_msgs: 64,
            max_uncommitted_size: 64 * MIB as u64,
            max_committed_size_per_ready: 4 * MIB as u64,
            pre_vote: true,
            check_quorum: true,
            read_only_option: ReadOnlyOption::Safe,
            ..RaftConfig::default()
        };
        // A core does no output, so raft's own log lines go nowhere.
        let silent = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &silent).expect("the settings above are valid and the log is whole");
        Self { node, seed, unpersisted: VecDeque::new() }
    }

    pub fn log(&self) -> &Log {
        self.node.store()
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// True when everything that earlier leaders committed has been applied here: from then on reads are current.
    pub fn is_current(&self) -> bool {
        self.is_leader() && self.node.raft.apply_to_current_term()
    }

    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Runs for leader at once. A lone voter wins by its own vote.
    pub fn campaign(&mut self) {
        self.node.campaign().expect("campaigning is a local step");
    }

    pub fn tick(&mut self) {
        // raft-rs draws timeouts from a thread's random numbers; a replay needs ours instead.
        let drawn = mix(self.seed ^ mix(self.node.raft.id) ^ mix(self.term().wrapping_add(1)));
        let timeout = ELECTION_TICKS + (drawn % ELECTION_TICKS as u64) as usize;
        self.node.raft.set_randomized_election_timeout(timeout);
        self.node.tick();
    }

    /// Appends an entry as leader and gives its index; `None` = raft takes no more now.
    pub fn propose(&mut self, data: Vec<u8>) -> Option<u64> {
        assert!(self.is_leader(), "only a leader proposes");
        self.node.propose(Vec::new(), data).ok()?;
        Some(self.node.raft.raft_log.last_index())
    }

    /// Takes what raft has ready: entries that are now committed, in order. What must be durable is appended to
    /// `persists`, with tickets from `next_ticket` on.
    pub fn take_ready(&mut self, next_ticket: &mut u64, persists: &mut Vec<Persist>) -> Vec<Entry> {
        let mut committed = Vec::new();
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let lone = "a lone voter has nobody to write to";
            assert!(ready.messages().is_empty() && ready.persisted_messages().is_empty(), "{lone}");
            committed.extend(ready.take_committed_entries());
            let entries = ready.take_entries();
            if let Some(hard_state) = ready.hs() {
                self.node.mut_store().set_hard_state(hard_state.clone());
            }
            self.node.mut_store().append(&entries);
            let ticket = (ready.must_sync() || !entries.is_empty()).then(|| {
                *next_ticket += 1;
                Ticket(*next_ticket)
            });
            let number = ready.number();
            self.node.advance_append_async(ready);
            self.unpersisted.push_back((number, ticket));
            if let Some(ticket) = ticket {
                let hard_state = self.node.store().hard_state().clone();
                persists.push(Persist { ticket, entries, hard_state });
            }
            self.release();
        }
        committed
    }

    /// The disk holds everything up to what the ticket names.
    pub fn on_persisted(&mut self, ticket: Ticket) {
        for (_, waiting) in &mut self.unpersisted {
            *waiting = waiting.filter(|waiting| *waiting > ticket);
        }
        self.release();
    }

    /// True while the disk has something to write for us.
    pub fn is_persisting(&self) -> bool {
        self.unpersisted.iter().any(|(_, ticket)| ticket.is_some())
    }

    /// The state machine has applied everything up to `index`.
    pub fn on_applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    /// Drops entries that a durable snapshot holds, but for the last `kept`.
    pub fn compact(&mut self, snapshot_index: u64, kept: u64) {
        self.node.mut_store().compact(snapshot_index.saturating_sub(kept));
    }

    /// Tells raft of every ready, oldest first, that waits for nothing any more.
    fn release(&mut self) {
        while let Some((number, None)) = self.unpersisted.front() {
            self.node.on_persist_ready(*number);
            self.unpersisted.pop_front();
        }
    }
}

/// The number by which raft knows a node.
pub fn raft_id(node: NodeId) -> u64 {
    let (upper, lower) = node.halves();
    (upper ^ lower).max(1)
}

/// Spreads the bits of a number (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
