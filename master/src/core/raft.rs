//! Agreement: raft-rs over a log in memory, with a disk that answers later.
//!
//! raft-rs decides what has to be durable, what others are told and what is committed; this moves its `Ready`s out as
//! `Persist`s and steps, and takes the answers back in. What depends on a `Persist` waits here until its ticket returns:
//! a vote or an acknowledgement that leaves before the disk has it is a lie after the next crash.

pub(super) mod frame;
mod log;

use std::collections::VecDeque;

use planted::Bug;
use raft::eraftpb::{Entry, HardState, Message as Step, MessageType};
use raft::prelude::RawNode;
use raft::{Config as RaftConfig, ReadOnlyOption, SnapshotStatus, StateRole};
use wire::NodeId;
use wire::limit::MIB;

use frame::SnapshotFile;
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
    /// Index and term of a snapshot, durable already, that stands for the whole log: what the log holds is no part of it.
    pub snapshot: Option<(u64, u64)>,
}

/// Names a `Persist` or a `SaveSnapshot` until it is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticket(pub u64);

/// What one `Ready` waits for.
struct Unpersisted {
    number: u64,
    /// `None` = nothing in it had to be durable, or it is; raft wants to hear of them in order all the same.
    ticket: Option<Ticket>,
    /// For others, once it is durable.
    steps: Vec<Step>,
    /// A snapshot that the state machine goes on from; raft takes it for applied once it is durable.
    snapshot: Option<u64>,
}

/// What raft has ready.
#[derive(Default)]
pub struct Output {
    pub persists: Vec<Persist>,
    /// For others, now.
    pub steps: Vec<Step>,
    /// In order.
    pub committed: Vec<Entry>,
    /// The state machine goes on from the snapshot as of this index, before what is committed.
    pub snapshot: Option<u64>,
    /// Numbers of `read_index` that have been confirmed, each with the index from which on its answer is current.
    pub reads: Vec<(u64, u64)>,
}

/// A step that no honest master could take or send: it would make raft-rs panic.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepError {
    #[error(
        "a majority counts on entry {acknowledged} as durable here, and the log ends at {last}: this master has forgotten \
         what it acknowledged"
    )]
    Forgotten { acknowledged: u64, last: u64 },
    #[error("entry {index} was committed here in term {committed}, and the leader of term {term} has another")]
    OtherCommitted { index: u64, committed: u64, term: u64 },
    #[error("its entries do not follow each other")]
    Gap,
    #[error("it is none that one master tells another")]
    Local,
}

/// One member of the group.
pub struct Raft {
    node: RawNode<Log>,
    seed: u64,
    /// Raft's `Ready`s that wait for the disk, oldest first.
    unpersisted: VecDeque<Unpersisted>,
    /// Steps whose `Ready` has become durable.
    released: Vec<Step>,
    last_read: u64,
}

impl Raft {
    /// A member whose state machine holds everything up to the start of `log`.
    pub fn new(id: NodeId, log: Log, seed: u64) -> Self {
        let applied =
            if planted::is(Bug::CommittedTakenForApplied) { log.hard_state().commit } else { log.compacted_index() };
        let config = RaftConfig {
            id: raft_id(id),
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            // What the snapshot holds, and never the commit index: the entries above it are applied anew.
            applied,
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
        Self { node, seed, unpersisted: VecDeque::new(), released: Vec::new(), last_read: 0 }
    }

    pub fn log(&self) -> &Log {
        self.node.store()
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// True when everything that earlier leaders committed has been applied here: from then on reads are current.
    pub fn is_current(&self) -> bool {
        self.is_leader() && (self.node.raft.apply_to_current_term() || planted::is(Bug::LeadsBeforeCurrent))
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

    /// Takes a step of another master.
    pub fn step(&mut self, step: Step) -> Result<(), StepError> {
        self.check_step(&step)?;
        // What raft refuses comes from a member that is gone; it says nothing.
        let _ = self.node.step(step);
        Ok(())
    }

    /// raft-rs ends the process where a step contradicts what it knows. Here that is an error with words.
    fn check_step(&self, step: &Step) -> Result<(), StepError> {
        if raft::raw_node::is_local_msg(step.msg_type) {
            return Err(StepError::Local);
        }
        let last = self.node.raft.raft_log.last_index();
        let is_current = step.term >= self.term();
        if step.msg_type == MessageType::MsgHeartbeat && is_current && step.commit > last {
            return Err(StepError::Forgotten { acknowledged: step.commit, last });
        }
        let mut before = (step.index, step.log_term);
        for entry in &step.entries {
            if entry.index != before.0 + 1 || entry.term < before.1 {
                return Err(StepError::Gap);
            }
            before = (entry.index, entry.term);
            let here = self.log().term_of(entry.index).filter(|_| entry.index <= self.commit_index());
            if let Some(committed) = here.filter(|here| is_current && *here != entry.term) {
                return Err(StepError::OtherCommitted { index: entry.index, committed, term: step.term });
            }
        }
        Ok(())
    }

    /// The leader's number; 0 = none is known.
    pub fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    /// Asks the others whether this is still the leader; the number comes back with `Output::reads`, or never does.
    pub fn read_index(&mut self) -> u64 {
        self.last_read += 1;
        self.node.read_index(self.last_read.to_le_bytes().to_vec());
        self.last_read
    }

    /// A step did not reach this member.
    pub fn on_unreachable(&mut self, member: u64) {
        self.node.report_unreachable(member);
    }

    /// A member has not fetched the snapshot that it was told of.
    pub fn on_snapshot_failed(&mut self, member: u64) {
        self.node.report_snapshot(member, SnapshotStatus::Failure);
    }

    /// Members that have been told of a snapshot and have not come back from it.
    pub fn snapshotting(&self) -> Vec<u64> {
        if !self.is_leader() {
            return Vec::new();
        }
        let members = self.node.raft.prs().iter();
        members.filter(|(_, progress)| progress.state == raft::ProgressState::Snapshot).map(|(id, _)| *id).collect()
    }

    /// Of a leader: the last entry that each of the others that are heard is known to have; the largest number without any.
    pub fn matched_by_others(&self) -> u64 {
        let me = self.node.raft.id;
        let heard = self.node.raft.prs().iter().filter(|(id, progress)| **id != me && progress.recent_active);
        heard.map(|(_, progress)| progress.matched).min().unwrap_or(u64::MAX)
    }

    /// A leader hands over to the member that has most of the log, if one is heard.
    pub fn transfer_leader(&mut self) {
        if !self.is_leader() {
            return;
        }
        let me = self.node.raft.id;
        let others = self.node.raft.prs().iter().filter(|(id, progress)| **id != me && progress.recent_active);
        if let Some((id, _)) = others.max_by_key(|(_, progress)| progress.matched) {
            let id = *id;
            self.node.transfer_leader(id);
        }
    }

    /// Takes what raft has ready. What must be durable gets tickets from `next_ticket` on.
    pub fn take_ready(&mut self, next_ticket: &mut u64) -> Output {
        let mut output = Output::default();
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            output.steps.extend(ready.take_messages());
            output.committed.extend(ready.take_committed_entries());
            for read in ready.take_read_states() {
                let number = read.request_ctx.as_slice().try_into().map(u64::from_le_bytes);
                output.reads.extend(number.ok().map(|number| (number, read.index)));
            }
            let log = self.node.mut_store();
            let metadata = ready.snapshot().get_metadata();
            let snapshot = (metadata.index > 0).then_some((metadata.index, metadata.term));
            if let Some(snapshot) = snapshot {
                log.restart(snapshot, metadata.get_conf_state().clone());
                output.snapshot = Some(snapshot.0);
            }
            let mut steps = ready.take_persisted_messages();
            output.steps.extend(steps.extract_if(.., |step| is_hurried(step)));
            let entries = ready.take_entries();
            if let Some(hard_state) = ready.hs() {
                log.set_hard_state(hard_state.clone());
            }
            log.append(&entries);
            let ticket = (ready.must_sync() || !entries.is_empty() || snapshot.is_some()).then(|| {
                *next_ticket += 1;
                Ticket(*next_ticket)
            });
            let number = ready.number();
            self.node.advance_append_async(ready);
            self.unpersisted.push_back(Unpersisted {
                number,
                ticket: ticket.filter(|_| !(planted::is(Bug::LeaderCountsUnwritten) && self.is_leader())),
                steps,
                snapshot: snapshot.map(|(index, _)| index),
            });
            if let Some(ticket) = ticket {
                let mut hard_state = self.node.store().hard_state().clone();
                if planted::is(Bug::VoteNotPersisted) {
                    hard_state.vote = 0;
                }
                output.persists.push(Persist { ticket, entries, hard_state, snapshot });
            }
            self.release();
        }
        output.steps.append(&mut self.released);
        output
    }

    /// The disk holds everything up to what the ticket names.
    pub fn on_persisted(&mut self, ticket: Ticket) {
        for waiting in &mut self.unpersisted {
            waiting.ticket = waiting.ticket.filter(|waiting| *waiting > ticket);
        }
        self.release();
    }

    /// True while the disk has something to write for us.
    pub fn is_persisting(&self) -> bool {
        self.unpersisted.iter().any(|waiting| waiting.ticket.is_some())
    }

    /// The state machine has applied everything up to `index`.
    pub fn on_applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
    }

    /// Drops the entries up to `index`, which a durable snapshot holds.
    pub fn compact(&mut self, index: u64) {
        self.node.mut_store().compact(index);
    }

    /// Members that need entries which are no longer here are told of this snapshot.
    pub fn offer_snapshot(&mut self, file: SnapshotFile) {
        self.node.mut_store().offer(file);
    }

    /// Tells raft of every ready, oldest first, that waits for nothing any more.
    fn release(&mut self) {
        while let Some(ready) = self.unpersisted.pop_front_if(|ready| ready.ticket.is_none()) {
            self.node.on_persist_ready(ready.number);
            if let Some(index) = ready.snapshot {
                self.node.advance_apply_to(index);
            }
            self.released.extend(ready.steps);
        }
    }
}

/// True for what leaves before it is durable, where such a bug is planted.
fn is_hurried(step: &Step) -> bool {
    (step.msg_type == MessageType::MsgAppendResponse && planted::is(Bug::AppendedBeforeDurable))
        || (step.msg_type == MessageType::MsgRequestVoteResponse && planted::is(Bug::VotedBeforeDurable))
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
