//! A small world around one load balancer: a master with the apply table, workers that keep the protocol's rules, and a
//! network that delays, reorders, loses and repeats. One seed, one history.

use std::collections::{BTreeMap, BTreeSet};

use loadbalancer::core::{Action, Config, Event, LoadBalancer, Timings};
use wire::event::LogEvent;
use wire::job::JobSpec;
use wire::record::{ChunkItem, records_of};
use wire::*;

use super::fake_worker::{FakeWorker, Run};
use super::{MASTER, US, ms, submit};

/// What may go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Of a thousand messages.
    pub losses: u64,
    pub repeats: u64,
    /// Of a thousand runs.
    pub failures: u64,
    pub worker_crashes: u32,
    pub load_balancer_restarts: u32,
    /// Times that a worker is cut from the load balancer, for longer than the grace period.
    pub cuts: u32,
    pub cancels: u32,
}

/// Something on its way.
enum Packet {
    ToLoadBalancer {
        from: PeerId,
        frame: Vec<u8>,
    },
    /// From the load balancer to worker `usize`.
    ToWorker(usize, Vec<u8>),
    ToMaster(Vec<u8>),
    Result {
        worker: usize,
        boot: BootNonce,
        chunk: (JobId, u32),
        attempt: u32,
        is_good: bool,
    },
    Confirmed {
        worker: usize,
        boot: BootNonce,
        chunk: (JobId, u32),
        attempt: u32,
        index: u64,
    },
}

/// A chunk as the log has it.
#[derive(Clone, Copy)]
struct Chunk {
    ended: Option<ChunkState>,
    attempt: u32,
    crashes: u32,
    failures: u32,
}

const RETRIES: u32 = 2;
const CRASH_LIMIT: u32 = 3;
const DELAY_MAX_MS: u64 = 300;

pub struct World {
    pub seed: u64,
    chance: u64,
    pub now: Instant,
    faults: Faults,
    core: LoadBalancer,
    boot: u64,
    packets: BTreeMap<(Instant, u64), Packet>,
    packet_number: u64,
    pub workers: Vec<FakeWorker>,
    restart_at: Vec<Option<Instant>>,
    cut_until: Vec<Instant>,
    log: Vec<(u32, Vec<u8>)>,
    epoch: u64,
    granted_boot: u64,
    watch: Option<(u64, u64)>,
    jobs: BTreeMap<JobId, (Vec<u8>, Vec<Chunk>)>,
    registered: BTreeMap<NodeId, (BootNonce, Vec<u8>)>,
    /// Chunks to which a rerun has happened that the protocol admits.
    tainted: BTreeSet<(JobId, u32)>,
    pub starts: u64,
}

impl World {
    pub fn new(seed: u64, workers: usize, faults: Faults) -> World {
        let now = Instant(1_000_000);
        let mut world = World {
            seed,
            chance: seed ^ 0x9e37_79b9_7f4a_7c15,
            now,
            faults,
            core: LoadBalancer::new(config(1), now),
            boot: 1,
            packets: BTreeMap::new(),
            packet_number: 0,
            workers: (0..workers).map(|n| FakeWorker::new(n as u8 + 1, BootNonce(1))).collect(),
            restart_at: vec![None; workers],
            cut_until: vec![now; workers],
            log: Vec::new(),
            epoch: 0,
            granted_boot: 0,
            watch: None,
            jobs: BTreeMap::new(),
            registered: BTreeMap::new(),
            tainted: BTreeSet::new(),
            starts: 0,
        };
        (0..workers).for_each(|worker| world.register(worker));
        world
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % below.max(1)
    }

    pub fn submit(&mut self, job: JobId, chunk_count: u32) {
        let frame = submit(job, chunk_count, &JobSpec::default());
        let chunk = Chunk { ended: None, attempt: 1, crashes: 0, failures: 0 };
        self.jobs.insert(job, (frame.clone(), vec![chunk; chunk_count as usize]));
        self.append(&[LogEvent::JobAccepted { number: 1, submitted_at: WallTime(0), frame: &frame }]);
    }

    /// Goes on until `until`, with the faults that are left.
    pub fn run(&mut self, until: Instant) {
        while self.now < until {
            self.one_moment();
        }
    }

    /// From here on nothing goes wrong any more.
    pub fn heal(&mut self) {
        self.faults = Faults::default();
        self.cut_until.fill(self.now);
    }

    /// Every chunk has ended, every worker has forgotten it, and the load balancer counts nothing as held.
    pub fn is_settled(&self) -> bool {
        self.what_is_left().is_empty()
    }

    pub fn what_is_left(&self) -> String {
        let mut left = Vec::new();
        for (job, (_, chunks)) in &self.jobs {
            let open: Vec<_> = (0u32..).zip(chunks).filter(|(_, chunk)| chunk.ended.is_none()).collect();
            if let Some((number, chunk)) = open.first() {
                left.push(format!("{} of {job} are open, as {number} at attempt {}", open.len(), chunk.attempt));
            }
            for worker in &self.workers {
                let held = self.core.held_by(worker.node, *job);
                if !held.is_empty() {
                    left.push(format!("{} counts as holding {held:?} of {job}", worker.node));
                }
            }
        }
        for worker in self.workers.iter().filter(|worker| !worker.chunks.is_empty()) {
            left.push(format!("{} has {:?}", worker.node, worker.chunks));
        }
        left.join("; ")
    }

    fn one_moment(&mut self) {
        let worker_deadline = |worker: &FakeWorker| worker.next_deadline();
        let deadlines = [
            self.core.next_deadline(),
            self.packets.keys().next().map(|(at, _)| *at),
            self.workers.iter().filter(|worker| worker.is_up).map(worker_deadline).min(),
            self.restart_at.iter().flatten().min().copied(),
        ];
        let next = deadlines.into_iter().flatten().min().expect("heartbeats never end");
        self.now = next.max(self.now + Duration::from_micros(1));
        self.maybe_break_something();
        for worker in 0..self.workers.len() {
            if self.restart_at[worker].is_some_and(|at| at <= self.now) {
                self.restart_at[worker] = None;
                let boot = BootNonce(self.workers[worker].boot.0 + 1);
                self.workers[worker] = FakeWorker::new(worker as u8 + 1, boot);
                self.register(worker);
            }
            self.worker_moment(worker);
        }
        while let Some(entry) = self.packets.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let packet = entry.remove();
            self.deliver(packet);
        }
        self.step(Event::Tick);
    }

    fn maybe_break_something(&mut self) {
        if self.faults.worker_crashes > 0 && self.draw(400) == 0 {
            self.faults.worker_crashes -= 1;
            let worker = self.draw(self.workers.len() as u64) as usize;
            if self.workers[worker].is_up {
                self.workers[worker].is_up = false;
                self.workers[worker].chunks.clear();
                self.restart_at[worker] = Some(self.now + ms(100 + self.draw(8_000)));
            }
        }
        if self.faults.load_balancer_restarts > 0 && self.draw(800) == 0 {
            self.faults.load_balancer_restarts -= 1;
            self.boot += 1;
            self.core = LoadBalancer::new(config(self.boot), self.now);
            self.watch = None;
        }
        if self.faults.cuts > 0 && self.draw(500) == 0 {
            self.faults.cuts -= 1;
            let worker = self.draw(self.workers.len() as u64) as usize;
            self.cut_until[worker] = self.now + ms(1_000 + self.draw(9_000));
        }
        if self.faults.cancels > 0 && self.draw(600) == 0 {
            self.faults.cancels -= 1;
            let job = *self.jobs.keys().next().expect("a job was submitted");
            self.cancel(job, 3, 5);
        }
    }

    fn worker_moment(&mut self, worker: usize) {
        let (now, failures) = (self.now, self.faults.failures);
        let lot = self.draw(1_000);
        let duration = ms(20 + self.draw(200));
        if !self.workers[worker].is_up {
            return;
        }
        let words = self.workers[worker].moment(now, duration, lot < failures);
        let (boot, from) = (self.workers[worker].boot, peer(worker));
        self.starts += words.starts;
        for frame in words.frames {
            self.send(Packet::ToLoadBalancer { from, frame });
        }
        for (chunk, attempt, is_good) in words.results {
            self.send(Packet::Result { worker, boot, chunk, attempt, is_good });
        }
    }

    fn send(&mut self, packet: Packet) {
        let is_cut = match &packet {
            Packet::ToLoadBalancer { from, .. } if *from != MASTER => self.is_cut((from.0 - 101) as usize),
            Packet::ToWorker(worker, _) => self.is_cut(*worker),
            Packet::ToLoadBalancer { .. } | Packet::ToMaster(_) | Packet::Result { .. } | Packet::Confirmed { .. } => {
                false
            }
        };
        if is_cut || self.draw(1_000) < self.faults.losses {
            return;
        }
        if self.draw(1_000) < self.faults.repeats {
            match &packet {
                Packet::ToLoadBalancer { from, frame } => {
                    self.post(Packet::ToLoadBalancer { from: *from, frame: frame.clone() });
                }
                Packet::ToWorker(worker, frame) => self.post(Packet::ToWorker(*worker, frame.clone())),
                Packet::ToMaster(frame) => self.post(Packet::ToMaster(frame.clone())),
                Packet::Result { .. } | Packet::Confirmed { .. } => {}
            }
        }
        self.post(packet);
    }

    fn is_cut(&self, worker: usize) -> bool {
        self.cut_until[worker] > self.now
    }

    fn post(&mut self, packet: Packet) {
        let at = self.now + Duration::from_micros(100 + self.draw(DELAY_MAX_MS * 1_000));
        self.packet_number += 1;
        self.packets.insert((at, self.packet_number), packet);
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::ToLoadBalancer { from, frame } => self.step(Event::Received { from, frame: &frame }),
            Packet::ToWorker(worker, frame) => self.worker_hears(worker, &frame),
            Packet::ToMaster(frame) => self.master_hears(&frame),
            Packet::Result { worker, boot, chunk, attempt, is_good } => {
                self.apply_result(worker, boot, chunk, attempt, is_good);
                let index = self.log.len() as u64;
                self.send(Packet::Confirmed { worker, boot, chunk, attempt, index });
            }
            Packet::Confirmed { worker, boot, chunk, attempt, index } => {
                let worker = &mut self.workers[worker];
                if worker.is_up && worker.boot == boot {
                    worker.confirmed(chunk, attempt, index);
                }
            }
        }
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, self.now, &mut actions);
        self.core.check_invariants();
        for action in actions {
            match action {
                Action::Send { to, frame } if to == MASTER => self.send(Packet::ToMaster(frame)),
                Action::Send { to, frame } => self.send(Packet::ToWorker((to.0 - 101) as usize, frame)),
                Action::Note(_) => {}
            }
        }
    }

    fn worker_hears(&mut self, number: usize, frame: &[u8]) {
        if !self.workers[number].is_up {
            return;
        }
        let (answers, started) = self.workers[number].hears(frame, self.now);
        for (chunk, attempt) in started {
            self.check_start(number, chunk, attempt);
        }
        for frame in answers {
            self.send(Packet::ToLoadBalancer { from: peer(number), frame });
        }
    }

    /// S3: nobody is given what another still holds, or what is finished.
    fn check_start(&self, number: usize, chunk: (JobId, u32), attempt: u32) {
        if self.tainted.contains(&chunk) {
            return;
        }
        let known = &self.jobs[&chunk.0].1[chunk.1 as usize];
        assert_ne!(known.ended, Some(ChunkState::Finished), "seed {}: {chunk:?} is run again", self.seed);
        for (other, worker) in
            self.workers.iter().enumerate().filter(|(other, worker)| *other != number && worker.is_up)
        {
            let holds = match worker.chunks.get(&chunk) {
                None => false,
                Some(held) => held.run != Run::EndedBadly || held.attempt >= known.attempt,
            };
            assert!(
                !holds,
                "seed {}: {chunk:?}, attempt {attempt}, is given to {number} and held by {other}",
                self.seed
            );
        }
    }

    fn append(&mut self, events: &[LogEvent<'_>]) {
        let mut body = Writer::new();
        events.iter().for_each(|event| event.encode(&mut body));
        self.log.push((events.len() as u32, body.bytes));
        if let Some((request, after)) = self.watch.take() {
            self.answer_watch(request, after, false);
        }
    }

    fn answer_watch(&mut self, request: u64, after: u64, is_fresh: bool) {
        let index = self.log.len() as u64;
        let (num_events, body) = if is_fresh {
            self.snapshot()
        } else {
            let entries = &self.log[(after.min(index)) as usize..];
            (
                entries.iter().map(|(count, _)| count).sum(),
                entries.iter().flat_map(|(_, bytes)| bytes.clone()).collect(),
            )
        };
        let batch = WatchBatch {
            request: U64::new(request),
            after: U64::new(after),
            index: U64::new(index),
            flags: U32::new(if is_fresh { BATCH_SNAPSHOT } else { 0 }),
            num_events: U32::new(num_events),
            ..WatchBatch::DEFAULT
        };
        self.send(Packet::ToLoadBalancer { from: MASTER, frame: batch.frame(NodeId([9; 16]), &body) });
    }

    fn snapshot(&self) -> (u32, Vec<u8>) {
        let (mut count, mut body) = (1, Writer::new());
        let boot = BootNonce(self.granted_boot);
        LogEvent::EpochGranted { load_balancer: US, boot, epoch: self.epoch }.encode(&mut body);
        for (_, record) in self.registered.values() {
            body.raw(record);
            count += 1;
        }
        for (frame, chunks) in self.jobs.values().filter(|(_, chunks)| chunks.iter().any(|chunk| chunk.ended.is_none()))
        {
            let numbered = || (0u32..).zip(chunks);
            let states = [ChunkState::Finished, ChunkState::Failed, ChunkState::Canceled].map(|state| {
                let of_state = numbered().filter(|(_, chunk)| chunk.ended == Some(state));
                (state, of_state.map(|(number, _)| ChunkRange::one(number)).collect::<ChunkSet>().to_bytes())
            });
            let raised = numbered().filter(|(_, chunk)| chunk.attempt > 1);
            let attempts = raised.map(|(number, chunk)| (ChunkRange::one(number), chunk.attempt)).collect();
            let (number, submitted_at) = (1, WallTime(0));
            LogEvent::JobSnapshot { number, submitted_at, frame, ended: states.to_vec(), attempts }.encode(&mut body);
            count += 1;
        }
        (count, body.bytes)
    }

    /// A worker's boot is in the log, and the worker knows the index.
    fn register(&mut self, worker: usize) {
        let record = self.workers[worker].record();
        let event = LogEvent::NodeRegistered { node: record.clone() };
        let mut bytes = Writer::new();
        event.encode(&mut bytes);
        self.registered.insert(record.node, (record.boot, bytes.bytes));
        self.append(&[event]);
        self.workers[worker].confirmed_index = self.log.len() as u64;
    }

    fn master_hears(&mut self, frame: &[u8]) {
        match Message::decode(frame).expect("it sends messages") {
            Message::NodeHello(hello, _) => {
                let boot = hello.boot.get();
                if boot > self.granted_boot {
                    self.granted_boot = boot;
                    self.epoch += 1;
                    let epoch = self.epoch;
                    self.append(&[LogEvent::EpochGranted { load_balancer: US, boot: BootNonce(boot), epoch }]);
                }
                let index = U64::new(self.log.len() as u64);
                let welcome = NodeWelcome { request: hello.request, index, ..NodeWelcome::DEFAULT };
                let frame = welcome.frame(NodeId([9; 16]), &[]);
                self.send(Packet::ToLoadBalancer { from: MASTER, frame });
            }
            Message::Watch(watch, _) => {
                let (request, after) = (watch.request.get(), watch.after.get());
                let is_fresh = watch.flags.get() & WATCH_FRESH != 0;
                if is_fresh || after < self.log.len() as u64 {
                    self.answer_watch(request, after, is_fresh);
                } else {
                    self.watch = Some((request, after));
                }
            }
            Message::Lost(lost, body) => {
                let items = records_of::<ChunkItem>(body, lost.num_items.get()).expect("whole items").to_vec();
                let is_current = lost.epoch.get() == self.epoch && lost.boot.get() == self.granted_boot;
                if is_current {
                    self.apply_lost(lost.worker_uuid.node(), BootNonce(lost.worker_boot.get()), &items);
                }
            }
            Message::Query(query, _) => {
                let index = U64::new(self.log.len() as u64);
                let answer = Answer { request: query.request, index, ..Answer::DEFAULT };
                self.send(Packet::ToLoadBalancer { from: MASTER, frame: answer.frame(NodeId([9; 16]), &[]) });
            }
            Message::LoadBalancerHeartbeat(..) => {}
            other => panic!("a master does not expect {:?}", other.kind()),
        }
    }

    fn apply_lost(&mut self, node: NodeId, boot: BootNonce, items: &[ChunkItem]) {
        let worker = self.workers.iter().find(|worker| worker.node == node).expect("a worker of this world");
        // The leader hears every worker that is up.
        if worker.is_up && worker.boot == boot {
            return;
        }
        let mut events = Vec::new();
        for item in items {
            let (job, range, attempt_max) = (item.job(), item.range(), item.attempt);
            events.push(LogEvent::HolderFreed { job, worker: node, boot, attempt_max, ranges: vec![range] });
            for number in range.chunks() {
                let chunk = &mut self.jobs.get_mut(&job).expect("a known job").1[number as usize];
                if chunk.ended.is_some() || chunk.attempt != item.attempt {
                    continue;
                }
                chunk.attempt += 1;
                chunk.crashes += 1;
                let ranges = vec![ChunkRange::one(number)];
                if chunk.crashes == CRASH_LIMIT {
                    chunk.ended = Some(ChunkState::Failed);
                    events.push(LogEvent::ChunksEnded { job, state: ChunkState::Failed, ranges });
                } else {
                    events.push(LogEvent::ChunksWaiting { job, attempt: chunk.attempt, ranges });
                }
            }
        }
        self.append_with_ends(events);
    }

    fn apply_result(
        &mut self,
        worker: usize,
        boot: BootNonce,
        (job, number): (JobId, u32),
        attempt: u32,
        is_good: bool,
    ) {
        let chunk = &mut self.jobs.get_mut(&job).expect("a known job").1[number as usize];
        if chunk.ended.is_some() {
            return;
        }
        let ranges = vec![ChunkRange::one(number)];
        let node = self.workers[worker].node;
        let mut events = Vec::new();
        if is_good {
            chunk.ended = Some(ChunkState::Finished);
            events.push(LogEvent::ChunksEnded { job, state: ChunkState::Finished, ranges });
            // The protocol admits a rerun of what ended on a boot that has died since.
            if !self.workers[worker].is_up || self.workers[worker].boot != boot {
                self.tainted.insert((job, number));
            }
        } else {
            events.push(LogEvent::HolderFreed {
                job,
                worker: node,
                boot,
                attempt_max: attempt,
                ranges: ranges.clone(),
            });
            if attempt == chunk.attempt {
                chunk.failures += 1;
                if chunk.failures > RETRIES {
                    chunk.ended = Some(ChunkState::Failed);
                    events.push(LogEvent::ChunksEnded { job, state: ChunkState::Failed, ranges });
                } else {
                    chunk.attempt += 1;
                    events.push(LogEvent::ChunksWaiting { job, attempt: chunk.attempt, ranges });
                }
            }
        }
        self.append_with_ends(events);
    }

    fn cancel(&mut self, job: JobId, first: u32, count: u32) {
        let chunks = &mut self.jobs.get_mut(&job).expect("a known job").1;
        let mut ranges = Vec::new();
        for number in first..first + count {
            let chunk = &mut chunks[number as usize];
            if chunk.ended.is_none() {
                chunk.ended = Some(ChunkState::Canceled);
                ranges.push(ChunkRange::one(number));
            }
        }
        self.append_with_ends(vec![LogEvent::ChunksEnded { job, state: ChunkState::Canceled, ranges }]);
    }

    /// Adds the end of every job whose last chunk has just ended.
    fn append_with_ends(&mut self, mut events: Vec<LogEvent<'static>>) {
        let changed: BTreeSet<JobId> = events
            .iter()
            .filter_map(|event| if let LogEvent::ChunksEnded { job, .. } = event { Some(*job) } else { None })
            .collect();
        for job in changed {
            if self.jobs[&job].1.iter().all(|chunk| chunk.ended.is_some()) {
                events.push(LogEvent::JobEnded { job, state: JobState::Finished, at: WallTime(0) });
            }
        }
        self.append(&events);
    }
}

fn peer(worker: usize) -> PeerId {
    PeerId(101 + worker as u64)
}

fn config(boot: u64) -> Config {
    Config {
        node: US,
        boot: BootNonce(boot),
        name: "l1".into(),
        endpoint: "tcp://l1".into(),
        public_key: ClientKey([9; 32]),
        pid: 5,
        masters: vec![MASTER],
        timings: Timings::default(),
    }
}
