//! What a master decides. No sockets, clocks, threads, files or chance.
//!
//! A request goes through here like a letter through a notary's office: it is read and refused at once if it is wrong
//! (`accept`); else it is put with all others of the turn into one entry of the log (`leader`), agreed upon (`raft`),
//! and, once it is on disk, applied to what everybody knows (`state`); only then is it answered, and whoever watches
//! is told (`watch`). Questions are answered from the state (`query`); who is alive is only believed (`presence`).
#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

mod accept;
mod compare;
mod decision;
pub mod entry;
mod group;
mod leader;
mod presence;
mod query;
mod raft;
mod reads;
mod recovery;
pub mod state;
mod watch;

use std::collections::BTreeSet;

use planted::Bug;
use wire::record::NodeRecord;
use wire::{ErrorCode, Instant, JobId, Kind, Message, NodeId, NodeState, PeerId, Role, TimerTable, WallTime};

use crate::config::CoreConfig;

pub use ::raft::eraftpb::Entry;
pub use decision::Decision;
pub use raft::{LogError, Persist, Ticket, raft_id};
pub use recovery::{RecoverError, Recovered};

use compare::Compared;
use group::Group;
use leader::{Backlog, Form};
use presence::Presence;
use raft::Raft;
use reads::Reads;
use state::State;
use watch::Watchers;

/// What happens to a master.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A message that admission let in. `role` is that of the sender's certificate; `None` = a local socket, trusted.
    Received { from: PeerId, role: Option<Role>, frame: &'a [u8] },
    /// Another master said something: `frame`, and bytes of a snapshot that go with it.
    FromMaster { from: NodeId, frame: &'a [u8], payload: &'a [u8] },
    /// Something for another master did not leave.
    MasterUnreachable { node: NodeId },
    /// Everything up to the `Persist` with this ticket is durable.
    Persisted { ticket: Ticket },
    /// The snapshot of this ticket is durable.
    SnapshotSaved { ticket: Ticket },
    /// The disk has no room for a `Persist`; the shell tries it again. Ends with the next `Persisted`.
    DiskFull,
    /// Whether the disk has come down to its reserve. That is for what ends or frees something.
    DiskLow { is_low: bool },
    /// The connection is gone, and its number is never used again.
    PeerGone { peer: PeerId },
    /// The process is about to end: a leader hands over to whoever has most of the log.
    Stop,
    /// Time has passed, or the turn ends: what came in this turn is proposed now.
    Tick,
}

/// What a master wants done, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    Send {
        to: PeerId,
        frame: Vec<u8>,
    },
    ToMaster {
        to: NodeId,
        frame: Vec<u8>,
        payload: Vec<u8>,
    },
    /// Make durable, then give the ticket back.
    Persist(Persist),
    /// Make durable beside the snapshot before, then give the ticket back. It begins a restart: see `Recovered`.
    SaveSnapshot {
        ticket: Ticket,
        index: u64,
        term: u64,
        bytes: Vec<u8>,
    },
    /// Entries up to `index` are needed no more.
    Compact {
        index: u64,
    },
    /// End the process: this master contradicts the others, and must not go on.
    Halt {
        why: String,
    },
    /// For the log lines: nothing is to be done.
    Decided(Decision),
}

/// The timers of a master.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// At once after the start: a lone voter need not wait for silence before it campaigns.
    Campaign,
    /// A tick of raft; at most one in a turn. Who is silent is looked at with it.
    RaftTick,
    /// Requests have come in and wait for the end of the turn, or for more of their kind.
    Flush,
    /// The longest waiting watch is answered, even with nothing.
    WatchHold,
}

/// A snapshot of our own that the disk is writing.
#[derive(Clone, Debug)]
struct Saving {
    ticket: Ticket,
    index: u64,
    term: u64,
    /// For followers that need it; `None` in a group of one.
    bytes: Option<Vec<u8>>,
}

/// The core of a master.
pub struct Core {
    config: CoreConfig,
    raft: Raft,
    group: Group,
    compared: Compared,
    reads: Reads,
    state: State,
    backlog: Backlog,
    presence: Presence,
    watchers: Watchers,
    timers: TimerTable<Timer>,
    last_ticket: u64,
    /// When this master began to lead; a silence is counted from here at the earliest.
    leading_since: Option<Instant>,
    /// The term in which it leads.
    leading_term: u64,
    is_disk_full: bool,
    is_disk_low: bool,
    saving: Option<Saving>,
    snapshot_index: u64,
    /// Bytes of the entries applied since the last snapshot was begun.
    log_bytes: usize,
}

impl Core {
    /// A master that comes back with what its disk has; nothing at its first start.
    pub fn new(config: CoreConfig, recovered: Recovered, now: Instant) -> Result<Self, RecoverError> {
        if !config.members.contains(&config.node) {
            return Err(RecoverError::NoMember { members: config.members.len() });
        }
        let snapshot = recovered.snapshot.clone();
        let (state, log) = recovered.restore(&config.members)?;
        let mut timers = TimerTable::default();
        let group = Group::new(&config.members);
        if group.is_lone() {
            timers.set(Timer::Campaign, now);
        }
        timers.set(Timer::RaftTick, now + config.timings.tick_ms);
        let (index, term) = (state.index, log.term_of(state.index).unwrap_or(0));
        let mut core = Self {
            raft: Raft::new(config.node, log, config.seed),
            group,
            compared: Compared::default(),
            reads: Reads::default(),
            backlog: Backlog::default(),
            presence: Presence::default(),
            watchers: Watchers::new(state.index, config.limits.event_bytes_max, config.limits.watches_max),
            timers,
            last_ticket: 0,
            leading_since: None,
            leading_term: 0,
            is_disk_full: false,
            is_disk_low: false,
            saving: None,
            snapshot_index: state.index,
            log_bytes: 0,
            state,
            config,
        };
        if let Some(bytes) = snapshot {
            core.offer(index, term, bytes);
        }
        Ok(core)
    }

    /// Takes one event, changes the state, and appends what is to be done about it, in order. `wall` stamps entries.
    pub fn step(&mut self, event: Event<'_>, now: Instant, wall: WallTime, actions: &mut Vec<Action>) {
        match event {
            Event::Received { from, role, frame } => {
                self.on_received(from, role, frame, now, wall, actions);
                if self.backlog.is_full_entry(self.config.limits.entry_bytes_max) {
                    self.flush(now, wall, actions);
                }
            }
            Event::FromMaster { from, frame, payload } => self.on_master(from, frame, payload, now, actions),
            Event::MasterUnreachable { node } => self.raft.on_unreachable(raft_id(node)),
            Event::Persisted { ticket } => {
                self.is_disk_full = false;
                self.raft.on_persisted(ticket);
            }
            Event::SnapshotSaved { ticket } => self.on_snapshot_saved(ticket, actions),
            Event::DiskFull => {
                self.is_disk_full = true;
                self.step_down(actions);
            }
            Event::DiskLow { is_low } => {
                self.is_disk_low = is_low;
                if is_low {
                    self.step_down(actions);
                }
            }
            Event::Stop => self.raft.transfer_leader(),
            Event::PeerGone { peer } => self.watchers.forget(peer),
            Event::Tick => self.on_tick(now, wall, actions),
        }
        self.advance(now, actions);
        self.begin_reads(now);
        self.advance(now, actions);
        match self.flush_deadline(now) {
            Some(deadline) => self.timers.set(Timer::Flush, deadline),
            None => self.timers.stop(Timer::Flush),
        }
        match self.watchers.next_deadline() {
            Some(deadline) => self.timers.set(Timer::WatchHold, deadline),
            None => self.timers.stop(Timer::WatchHold),
        }
    }

    /// When `step` wants a `Tick`, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// The replicated state, for tests and the simulator's checkers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// True when this master leads and has applied all that was committed before.
    pub fn is_ready(&self) -> bool {
        self.leading_since.is_some()
    }

    /// The term that this master knows.
    pub fn term(&self) -> u64 {
        self.raft.term()
    }

    /// True when another master is known to lead.
    pub fn follows(&self) -> bool {
        self.raft.leader() != 0 && !self.raft.is_leader()
    }

    /// What must hold after every step.
    pub fn check_invariants(&self) {
        self.state.check_invariants();
        self.backlog.check_invariants();
        self.watchers.check_invariants();
        self.reads.check_invariants();
        assert!(self.state.index <= self.raft.commit_index(), "only what is committed is applied");
        assert!(self.snapshot_index <= self.state.index, "a snapshot holds only what was applied");
    }

    fn on_tick(&mut self, now: Instant, wall: WallTime, actions: &mut Vec<Action>) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Campaign => {
                    // What was committed before is applied first.
                    self.advance(now, actions);
                    self.raft.campaign();
                }
                Timer::RaftTick => {
                    // One tick however late: after a pause a burst of them would only cause elections.
                    self.timers.set(Timer::RaftTick, now + self.config.timings.tick_ms);
                    self.raft.tick();
                    self.tick_group(now, actions);
                    self.repeat_hash(now, actions);
                    self.consider_epoch(now);
                }
                Timer::Flush => {}
                Timer::WatchHold => self.answer_due_watches(now, actions),
            }
        }
        self.flush(now, wall, actions);
    }

    /// Moves what raft has ready: to the disk what must be durable, into the state what is committed.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut told = BTreeSet::new();
        loop {
            // Before anything is applied: an entry of another leader in the place of ours answers nobody.
            if self.leading_since.is_some() && !(self.raft.is_leader() && self.raft.term() == self.leading_term) {
                self.resign(actions);
            }
            let output = self.raft.take_ready(&mut self.last_ticket);
            actions.extend(output.persists.into_iter().map(Action::Persist));
            self.send_steps(output.steps, now, actions);
            for (number, index) in output.reads {
                self.reads.on_confirmed(number, index);
            }
            if let Some(index) = output.snapshot {
                self.restore(index, actions);
            }
            if output.committed.is_empty() {
                break;
            }
            let mut committed = output.committed;
            if planted::is(Bug::LastOfBatchSkipped) && committed.len() > 1 {
                committed.pop();
            }
            for entry in committed {
                self.apply(&entry.data, entry.index, now, &mut told, actions);
            }
            self.consider_epoch(now);
        }
        if self.raft.is_current() && self.leading_since.is_none() {
            (self.leading_since, self.leading_term) = (Some(now), self.raft.term());
            actions.push(Action::Decided(Decision::Leading { term: self.raft.term(), index: self.state.index }));
            self.register_self();
            self.consider_epoch(now);
        }
        self.answer_reads(now, actions);
        self.answer_told_watches(&told, actions);
        self.consider_snapshot(actions);
    }

    fn apply(
        &mut self,
        data: &[u8],
        index: u64,
        now: Instant,
        told: &mut BTreeSet<watch::Topic>,
        actions: &mut Vec<Action>,
    ) {
        let applied = self.state.apply(index, data);
        if planted::is(Bug::LocalTimeInState) {
            self.state.stamp.0 += now.0 % 2;
        }
        self.raft.on_applied(index);
        self.publish_hash(actions);
        self.log_bytes += data.len();
        actions.extend(applied.events.iter().filter_map(Decision::of_event).map(Action::Decided));
        self.watchers.push(index, &applied.events, told);
        for (position, waiter) in self.backlog.take(index).into_iter().enumerate() {
            if let Form::Welcome { node, boot } = waiter.form {
                // Who says a first hello was not known when it came.
                self.presence.hear(&self.state, node, boot, now);
            }
            self.answer_applied(waiter, applied.outcomes.get(position), index, actions);
        }
    }

    /// Saves the state when enough entries have come since the last time.
    fn consider_snapshot(&mut self, actions: &mut Vec<Action>) {
        let entries = self.state.index - self.snapshot_index;
        let is_due = entries >= self.config.timings.snapshot_entries.max(1)
            || self.log_bytes >= self.config.limits.snapshot_log_bytes_max;
        if !is_due || self.saving.is_some() {
            return;
        }
        let index = self.state.index;
        let term = self.raft.log().term_of(index).expect("the last applied entry is still in the log");
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let bytes = recovery::encode_snapshot(term, &self.state);
        let kept = (!self.group.is_lone()).then(|| bytes.clone());
        actions.push(Action::Decided(Decision::Snapshot { index, bytes: bytes.len() }));
        actions.push(Action::SaveSnapshot { ticket, index, term, bytes });
        self.saving = Some(Saving { ticket, index, term, bytes: kept });
        self.snapshot_index = index;
        self.log_bytes = 0;
    }

    fn on_snapshot_saved(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        if self.on_fetched_saved(ticket) {
            return;
        }
        let Some(saved) = self.saving.take_if(|saving| saving.ticket == ticket) else { return };
        if let Some(bytes) = saved.bytes {
            self.offer(saved.index, saved.term, bytes);
        }
        let behind = saved.index.saturating_sub(self.config.limits.log_entries_kept);
        // Who is heard and a little late goes on from the log; who is very late takes the snapshot.
        let is_small = self.raft.log().size() <= self.config.limits.log_bytes_kept_max;
        let index = if self.raft.is_leader() && is_small { behind.min(self.raft.matched_by_others()) } else { behind };
        self.raft.compact(index);
        let log = self.raft.log();
        let index = if planted::is(Bug::CompactedTooFar) { log.last() } else { log.compacted_index() };
        actions.push(Action::Compact { index });
    }

    fn on_received(
        &mut self,
        from: PeerId,
        role: Option<Role>,
        frame: &[u8],
        now: Instant,
        wall: WallTime,
        actions: &mut Vec<Action>,
    ) {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                return self.refuse(from, None, 0, JobId::NIL, ErrorCode::Malformed, &error.to_string(), actions);
            }
        };
        if self.leading_since.is_none() {
            return self.send_to_leader(from, &message, actions);
        }
        match message {
            Message::SubmitJob(..)
            | Message::CancelJob(..)
            | Message::RecordFile(..)
            | Message::NodeHello(..)
            | Message::Lost(..) => self.on_request(from, role, &message, frame, false, now, actions),
            Message::WorkerStatus(ref fixed, _) if fixed.num_runs.get() > 0 => {
                self.on_request(from, role, &message, frame, false, now, actions)
            }
            Message::WorkerStatus(fixed, body) => self.on_heartbeat(from, &fixed, body, now, wall, actions),
            Message::LoadBalancerHeartbeat(fixed, body) => self.on_balancer_heartbeat(from, &fixed, body, now, actions),
            Message::Query(fixed, body) if planted::is(Bug::ReadWithoutAsking) => {
                self.on_query(from, &fixed, body, now, actions);
            }
            Message::Query(..) => self.ask(from, role, &message, frame, actions),
            // That there is no such job must be current too, and nobody's view goes back; all else about a watch has an index.
            Message::Watch(fixed, _) if self.is_watch_ahead(&fixed) => {
                self.ask(from, role, &message, frame, actions);
            }
            Message::Watch(fixed, _) => self.on_watch(from, &fixed, now, actions),
            // An error answers something of ours, and nothing that a master sends waits for an answer.
            Message::Error(..) => {}
            Message::FileRequest(fixed, _) => {
                let (kind, request) = (Some(Kind::FileRequest), fixed.request.get());
                let detail = "masters hold no files; ask a storage node";
                self.refuse(from, kind, request, JobId::NIL, ErrorCode::FileUnknown, detail, actions)
            }
            Message::WorkerRequest(..)
            | Message::FileResponse(..)
            | Message::NodeWelcome(..)
            | Message::Inventory(..)
            | Message::InventoryRequest(..)
            | Message::Retract(..)
            | Message::RetractAnswer(..)
            | Message::Kill(..)
            | Message::Killed(..)
            | Message::ResultConfirmed(..)
            | Message::LeaderHeartbeat(..)
            | Message::JobAccepted(..)
            | Message::Committed(..)
            | Message::Answer(..)
            | Message::WatchBatch(..)
            | Message::PutBegin(..)
            | Message::PutGrant(..)
            | Message::PutBlock(..)
            | Message::PutAck(..)
            | Message::PutCommit(..)
            | Message::PutDone(..)
            | Message::HaveRequest(..)
            | Message::HaveResponse(..)
            | Message::RaftMessage(..)
            | Message::StateHash(..) => {
                let detail = format!("a master does not take {:?}", message.kind());
                self.refuse(from, Some(message.kind()), 0, JobId::NIL, ErrorCode::NotAllowed, &detail, actions)
            }
        }
    }

    fn refuse(
        &self,
        to: PeerId,
        regarding: Option<Kind>,
        request: u64,
        job: JobId,
        code: ErrorCode,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let frame = wire::error_frame(self.config.node, code, regarding, request, job, detail);
        actions.push(Action::Send { to, frame });
    }

    /// How this master is listed.
    fn own_record(&self) -> NodeRecord {
        NodeRecord {
            node: self.config.node,
            role: Role::Master,
            state: NodeState::Up,
            boot: self.config.boot,
            public_key: self.config.public_key,
            pid: self.config.pid,
            cpus_milli: 0,
            memory: 0,
            is_leader: false,
            is_primary: false,
            name: self.config.name.clone(),
            endpoint: self.config.endpoint.clone(),
            bulk_endpoint: String::new(),
        }
    }

    /// The node whose certificate or first words the frame bears.
    fn sender(message: &Message<'_>) -> NodeId {
        message.header().node_uuid.node()
    }
}

/// The number that the sender gave a request, for the error that answers it.
fn request_of(message: &Message<'_>) -> u64 {
    match message {
        Message::SubmitJob(fixed, _) => fixed.request.get(),
        Message::CancelJob(fixed, _) => fixed.request.get(),
        Message::RecordFile(fixed, _) => fixed.request.get(),
        Message::NodeHello(fixed, _) => fixed.request.get(),
        Message::Lost(fixed, _) => fixed.request.get(),
        Message::WorkerStatus(fixed, _) => fixed.batch.get(),
        Message::Query(fixed, _) => fixed.request.get(),
        Message::Watch(fixed, _) => fixed.request.get(),
        Message::FileRequest(fixed, _) => fixed.request.get(),
        Message::WorkerRequest(..)
        | Message::FileResponse(..)
        | Message::Error(..)
        | Message::NodeWelcome(..)
        | Message::Inventory(..)
        | Message::InventoryRequest(..)
        | Message::Retract(..)
        | Message::RetractAnswer(..)
        | Message::Kill(..)
        | Message::Killed(..)
        | Message::ResultConfirmed(..)
        | Message::LoadBalancerHeartbeat(..)
        | Message::LeaderHeartbeat(..)
        | Message::JobAccepted(..)
        | Message::Committed(..)
        | Message::Answer(..)
        | Message::WatchBatch(..)
        | Message::PutBegin(..)
        | Message::PutGrant(..)
        | Message::PutBlock(..)
        | Message::PutAck(..)
        | Message::PutCommit(..)
        | Message::PutDone(..)
        | Message::HaveRequest(..)
        | Message::HaveResponse(..)
        | Message::RaftMessage(..)
        | Message::StateHash(..) => 0,
    }
}
