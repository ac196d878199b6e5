//! Builders, and a master whose disk answers at once or when told.

pub mod frames;

use std::collections::VecDeque;

use frames::*;
use master::core::{Action, Core, Decision, Event, Recovered, Ticket};
use master::{CoreConfig, Limits};
use wire::event::LogEvent;
use wire::record::{NodeRecord, RunningItem};
use wire::{
    BATCH_SNAPSHOT, Duration, ErrorCode, Instant, JobId, Message, NodeId, PeerId, Reader, Role, WallTime, WatchBatch,
};

pub const MASTER: NodeId = NodeId([0xA1; 16]);
/// Wall time when the masters' clocks begin.
pub const WALL: u64 = 1_795_513_666_000_000;
/// Connections.
pub const CLIENT_PEER: PeerId = PeerId(1);
pub const BALANCER_PEER: PeerId = PeerId(2);
pub const W1_PEER: PeerId = PeerId(3);
pub const W2_PEER: PeerId = PeerId(4);

/// Starts a master that has no disk yet.
pub fn a_master() -> Builder {
    let mut config = CoreConfig::new(MASTER, boot(1), RECEIPT_KEY);
    config.name = "m1".into();
    // Each result is its own story, except where a test says otherwise.
    config.timings.results_interval_ms = Duration::ZERO;
    Builder { config, disk: Recovered::default(), waits_for_disk: false }
}

pub struct Builder {
    config: CoreConfig,
    disk: Recovered,
    waits_for_disk: bool,
}

impl Builder {
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.config.limits);
        self
    }

    pub fn snapshot_entries(mut self, entries: u64) -> Self {
        self.config.timings.snapshot_entries = entries;
        self
    }

    pub fn results_interval(mut self, interval: Duration) -> Self {
        self.config.timings.results_interval_ms = interval;
        self
    }

    /// The disk answers only when told (`persist_one`).
    pub fn slow_disk(mut self) -> Self {
        self.waits_for_disk = true;
        self
    }

    pub fn build(self) -> MasterUnderTest {
        let now = Instant(1_000_000);
        let core = Core::new(self.config.clone(), self.disk.clone(), now).expect("the disk is whole");
        let mut master = MasterUnderTest {
            core,
            config: self.config,
            disk: self.disk,
            now,
            waits_for_disk: self.waits_for_disk,
            unwritten: VecDeque::new(),
            decisions: Vec::new(),
            checks_invariants: true,
        };
        master.tick();
        master
    }
}

pub struct MasterUnderTest {
    pub core: Core,
    config: CoreConfig,
    /// What would survive a crash.
    pub disk: Recovered,
    pub now: Instant,
    waits_for_disk: bool,
    unwritten: VecDeque<Action>,
    pub decisions: Vec<Decision>,
    /// Off where a state is so large that checking it at each step would take all the time.
    pub checks_invariants: bool,
}

impl MasterUnderTest {
    /// One turn in which this message came; what was said because of it, in words.
    pub fn receives(&mut self, from: PeerId, frame: Vec<u8>) -> Vec<String> {
        self.receives_all(&[(from, frame)])
    }

    /// One turn in which these messages came.
    pub fn receives_all(&mut self, messages: &[(PeerId, Vec<u8>)]) -> Vec<String> {
        self.receives_frames(messages).iter().map(|(to, frame)| said(*to, frame)).collect()
    }

    /// One turn in which these messages came; what was sent because of it.
    pub fn receives_frames(&mut self, messages: &[(PeerId, Vec<u8>)]) -> Vec<(PeerId, Vec<u8>)> {
        let mut sent = Vec::new();
        for (from, frame) in messages {
            sent.extend(self.step(Event::Received { from: *from, role: None, frame }));
        }
        sent.extend(self.tick_frames());
        sent
    }

    pub fn tick(&mut self) -> Vec<String> {
        self.tick_frames().iter().map(|(to, frame)| said(*to, frame)).collect()
    }

    fn tick_frames(&mut self) -> Vec<(PeerId, Vec<u8>)> {
        let mut sent = self.step(Event::Tick);
        while !self.waits_for_disk && !self.unwritten.is_empty() {
            sent.extend(self.write_one());
            sent.extend(self.step(Event::Tick));
        }
        sent
    }

    /// Time passes, with a tick whenever the core wants one.
    pub fn wait(&mut self, duration: Duration) -> Vec<String> {
        let end = self.now + duration;
        let mut all = Vec::new();
        while let Some(deadline) = self.core.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline.max(self.now);
            all.extend(self.tick());
        }
        self.now = end;
        all
    }

    /// The disk finishes the oldest thing that it was given.
    pub fn persist_one(&mut self) -> Vec<String> {
        let sent = self.write_one();
        sent.iter().map(|(to, frame)| said(*to, frame)).collect()
    }

    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    fn write_one(&mut self) -> Vec<(PeerId, Vec<u8>)> {
        match self.unwritten.pop_front().expect("the disk has something to do") {
            Action::Persist(persist) => {
                self.disk.persist(&persist);
                self.step(Event::Persisted { ticket: persist.ticket })
            }
            Action::SaveSnapshot { ticket, bytes, .. } => {
                self.disk.snapshot = Some(bytes);
                self.step(Event::SnapshotSaved { ticket })
            }
            Action::Send { .. }
            | Action::ToMaster { .. }
            | Action::Compact { .. }
            | Action::Halt { .. }
            | Action::Decided(_) => unreachable!("not for the disk"),
        }
    }

    pub fn step(&mut self, event: Event<'_>) -> Vec<(PeerId, Vec<u8>)> {
        let mut actions = Vec::new();
        let wall = WallTime(WALL + self.now.0);
        self.core.step(event, self.now, wall, &mut actions);
        if self.checks_invariants {
            self.core.check_invariants();
        }
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Send { to, frame } => sent.push((to, frame)),
                Action::Persist(_) | Action::SaveSnapshot { .. } => self.unwritten.push_back(action),
                Action::ToMaster { .. } | Action::Halt { .. } => panic!("a lone master has nobody to talk to"),
                Action::Compact { index } => self.disk.compact(index),
                Action::Decided(decision) => self.decisions.push(decision),
            }
        }
        sent
    }

    /// The process dies; what the disk holds comes back.
    pub fn crash_and_restart(self) -> MasterUnderTest {
        let mut config = self.config;
        config.boot = wire::BootNonce(config.boot.0 + (1 << 32));
        Builder { config, disk: self.disk, waits_for_disk: self.waits_for_disk }.build()
    }

    pub fn registers(&mut self, from: PeerId, record: &NodeRecord) -> &mut Self {
        let said = self.receives(from, hello(1, record));
        assert!(said.iter().any(|words| words.contains("welcome #1")), "{said:?}");
        self
    }

    /// Registers the load balancer's n-th boot and lets it be heard until it reigns; gives its epoch.
    pub fn enthrones(&mut self, start_counter: u32) -> u64 {
        self.registers(BALANCER_PEER, &a_node(BALANCER, Role::LoadBalancer, start_counter));
        self.receives(BALANCER_PEER, balancer_heartbeat(boot(start_counter), 0, &[]));
        let epoch = self.core.state().epoch;
        assert_eq!((epoch.load_balancer, epoch.boot), (BALANCER, boot(start_counter)));
        epoch.number
    }

    pub fn runs(&mut self, job: JobId, first: u32, count: u32, worker: NodeId) {
        self.runs_all(&[(job, first, count, worker)]);
    }

    pub fn runs_all(&mut self, runs: &[(JobId, u32, u32, NodeId)]) {
        let epoch = self.core.state().epoch;
        let item = |(job, first, count, worker): &(JobId, u32, u32, NodeId)| RunningItem {
            job_uuid: job.0,
            first: *first,
            count: *count,
            attempt: 1,
            worker_uuid: worker.0,
        };
        let items: Vec<_> = runs.iter().map(item).collect();
        self.receives(BALANCER_PEER, balancer_heartbeat(epoch.boot, epoch.number, &items));
    }
}

/// A message of a master in words.
pub fn said(to: PeerId, frame: &[u8]) -> String {
    let to = to.0;
    match Message::decode(frame).expect("a master sends what can be read") {
        Message::JobAccepted(fixed, _) => format!("{to}: job_accepted #{} number {}", fixed.request, fixed.number),
        Message::Committed(fixed, _) => format!("{to}: committed #{} changed {}", fixed.request, fixed.changed),
        Message::ResultConfirmed(fixed, _) => format!("{to}: confirmed {}", fixed.batch),
        Message::LeaderHeartbeat(fixed, _) => format!("{to}: heartbeat epoch {}", fixed.epoch),
        Message::NodeWelcome(fixed, body) => {
            let mut from = Reader::new(body);
            let mut names = Vec::new();
            while !from.is_empty() {
                names.push(NodeRecord::decode(&mut from).expect("a record").name);
            }
            format!("{to}: welcome #{} {names:?}", fixed.request)
        }
        Message::Error(fixed, detail) => {
            let code = ErrorCode::from_number(fixed.code.get()).expect("a known code");
            format!("{to}: error {code} #{}: {}", fixed.request, String::from_utf8_lossy(detail))
        }
        Message::WatchBatch(fixed, body) => {
            let events: Vec<String> = events(&fixed, body).iter().map(event_word).collect();
            let kind = if fixed.flags.get() & BATCH_SNAPSHOT != 0 { "snapshot" } else { "batch" };
            format!("{to}: {kind} #{} ({}, {}] {}", fixed.request, fixed.after, fixed.index, events.join("; "))
        }
        Message::Answer(fixed, _) => format!("{to}: answer #{} of {}", fixed.request, fixed.num_records),
        other => panic!("a master does not send {:?}", other.kind()),
    }
}

pub fn events<'a>(fixed: &WatchBatch, body: &'a [u8]) -> Vec<LogEvent<'a>> {
    let mut from = Reader::new(body);
    let read = (0..fixed.num_events.get())
        .map(|_| LogEvent::decode(&mut from).expect("an event").expect("of a known kind"))
        .collect();
    assert!(from.is_empty());
    read
}

pub fn event_word(event: &LogEvent<'_>) -> String {
    match event {
        LogEvent::JobAccepted { number, .. } => format!("accepted {number}"),
        LogEvent::ChunksEnded { state, ranges, .. } => format!("{state} {}", ranges[0].first),
        LogEvent::HolderFreed { ranges, .. } => format!("freed {}", ranges[0].first),
        LogEvent::ChunksWaiting { attempt, ranges, .. } => format!("waiting {} for {attempt}", ranges[0].first),
        LogEvent::JobEnded { state, .. } => format!("job {state}"),
        LogEvent::EpochGranted { epoch, .. } => format!("epoch {epoch}"),
        LogEvent::NodeRegistered { node } => format!("node {}", node.name),
        LogEvent::JobSnapshot { number, ended, attempts, .. } => {
            format!("job {number} with {} sets, {} attempts", ended.len(), attempts.len())
        }
    }
}

/// Names nothing that a master ever gave out.
pub const NO_TICKET: Ticket = Ticket(0);
