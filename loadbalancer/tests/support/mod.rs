//! A stage for one load balancer: a master that is only a log, workers whose every word the scenario chooses, and what
//! the load balancer said, in a form that can be compared.

pub mod fake_worker;
pub mod world;

use loadbalancer::core::{Action, Config, Event, LoadBalancer, Note, Timings};
use wire::event::LogEvent;
use wire::job::{JobBody, JobSpec};
use wire::record::{ChunkItem, NodeRecord, holding, records_bytes, records_of};
use wire::*;

pub const US: NodeId = NodeId([1; 16]);
pub const OUR_BOOT: BootNonce = BootNonce(7);
pub const MASTER: PeerId = PeerId(1);
pub const OTHER_LOAD_BALANCER: NodeId = NodeId([2; 16]);

/// Worker number `n`.
pub fn w(n: u8) -> NodeId {
    NodeId([0x10 + n; 16])
}

/// Job number `n`.
pub fn j(n: u8) -> JobId {
    JobId([0x80 + n; 16])
}

pub fn r(first: u32, count: u32) -> ChunkRange {
    ChunkRange::new(first, count)
}

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A `submit_job` as it stands in the log.
pub fn submit(job: JobId, chunk_count: u32, spec: &JobSpec) -> Vec<u8> {
    let spec = JobSpec { arguments: vec![b"true".to_vec()], ..spec.clone() };
    let body = JobBody::encode(b"", &[], &spec);
    SubmitJob { job_uuid: job.into(), chunk_count: U32::new(chunk_count), ..SubmitJob::DEFAULT }.frame(US, &body)
}

/// What the load balancer said, as far as it decides something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// `body`: the job's body came with it.
    Request {
        to: NodeId,
        sequence: u64,
        job: JobId,
        range: ChunkRange,
        attempt: u32,
        body: bool,
    },
    Void {
        to: NodeId,
        sequence: u64,
    },
    Retract {
        to: NodeId,
        sequence: u64,
        job: JobId,
        range: ChunkRange,
    },
    Kill {
        to: NodeId,
        request: u64,
        job: JobId,
        range: ChunkRange,
        index: u64,
    },
    AskInventory {
        to: NodeId,
        epoch: u64,
    },
    Lost {
        worker: NodeId,
        boot: BootNonce,
        newer_boot: bool,
        items: Vec<(JobId, ChunkRange, u32)>,
    },
    AskStatus {
        request: u64,
    },
    Hello {
        boot: BootNonce,
        name: String,
    },
    Heartbeat {
        epoch: u64,
        index: u64,
        workers_seen: u32,
        running: u32,
    },
    Watch {
        after: u64,
        fresh: bool,
    },
    Refused {
        to: PeerId,
        code: u16,
    },
}

/// A request that brings no body.
pub fn request(to: NodeId, sequence: u64, job: JobId, range: ChunkRange, attempt: u32) -> Said {
    Said::Request { to, sequence, job, range, attempt, body: false }
}

/// The first request for a job of a worker.
pub fn first_request(to: NodeId, sequence: u64, job: JobId, range: ChunkRange, attempt: u32) -> Said {
    Said::Request { to, sequence, job, range, attempt, body: true }
}

/// A worker as far as its words go.
#[derive(Clone, Debug)]
pub struct Worker {
    pub node: NodeId,
    pub peer: PeerId,
    pub boot: BootNonce,
    pub epoch: u64,
    pub seen: u64,
    pub confirmed_index: u64,
    pub credit: u32,
    pub cpus_milli: u32,
}

impl Worker {
    pub fn number(n: u8) -> Worker {
        let (boot, peer) = (BootNonce(1), PeerId(100 + u64::from(n)));
        Worker { node: w(n), peer, boot, epoch: 0, seen: 0, confirmed_index: 0, credit: 4, cpus_milli: 2_000 }
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            boot: U64::new(self.boot.0),
            epoch: U64::new(self.epoch),
            seen_sequence: U64::new(self.seen),
            confirmed_index: U64::new(self.confirmed_index),
            credit: U32::new(self.credit),
            ..WorkerStatus::DEFAULT
        }
    }

    pub fn heartbeat(&self) -> Vec<u8> {
        self.status().frame(self.node, &[])
    }

    pub fn heartbeat_running(&self, items: &[ChunkItem]) -> Vec<u8> {
        let num_items = U32::new(items.len() as u32);
        WorkerStatus { num_items, ..self.status() }.frame(self.node, records_bytes(items))
    }

    pub fn accepted(&self, job: JobId, range: ChunkRange, attempt: u32) -> Vec<u8> {
        let status = WorkerStatus {
            job_uuid: job.into(),
            state: StatusState::Accepted as u8,
            first: U32::new(range.first),
            count: U32::new(range.count),
            attempt: U32::new(attempt),
            ..self.status()
        };
        status.frame(self.node, &[])
    }

    pub fn inventory(&self, items: &[ChunkItem]) -> Vec<u8> {
        let inventory = Inventory {
            boot: U64::new(self.boot.0),
            epoch: U64::new(self.epoch),
            seen_sequence: U64::new(self.seen),
            confirmed_index: U64::new(self.confirmed_index),
            credit: U32::new(self.credit),
            cpus_milli: U32::new(self.cpus_milli),
            memory: U64::new(1 << 30),
            num_items: U32::new(items.len() as u32),
            ..Inventory::DEFAULT
        };
        inventory.frame(self.node, records_bytes(items))
    }

    pub fn retract_answer(&self, sequence: u64, job: JobId, range: ChunkRange, items: &[ChunkItem]) -> Vec<u8> {
        let answer = RetractAnswer {
            job_uuid: job.into(),
            first: U32::new(range.first),
            count: U32::new(range.count),
            boot: U64::new(self.boot.0),
            epoch: U64::new(self.epoch),
            sequence: U64::new(sequence),
            seen_sequence: U64::new(self.seen),
            confirmed_index: U64::new(self.confirmed_index),
            credit: U32::new(self.credit),
            ..RetractAnswer::DEFAULT
        };
        answer.frame(self.node, records_bytes(items))
    }

    pub fn killed(&self, request: u64) -> Vec<u8> {
        let (request, boot, credit) = (U64::new(request), U64::new(self.boot.0), U32::new(self.credit));
        Killed { request, boot, credit, ..Killed::DEFAULT }.frame(self.node, &[])
    }

    pub fn wants_body(&self, sequence: u64, job: JobId) -> Vec<u8> {
        error_frame(self.node, ErrorCode::UnknownJob, Some(Kind::WorkerRequest), sequence, job, "no body")
    }
}

pub fn queued(job: JobId, range: ChunkRange, attempt: u32) -> ChunkItem {
    ChunkItem::new(job, range, attempt, holding::QUEUED)
}

pub fn running(job: JobId, range: ChunkRange, attempt: u32) -> ChunkItem {
    ChunkItem::new(job, range, attempt, holding::RUNNING)
}

pub fn ended_badly(job: JobId, range: ChunkRange, attempt: u32) -> ChunkItem {
    ChunkItem::new(job, range, attempt, holding::ENDED_BADLY)
}

pub fn record_of(worker: &Worker) -> NodeRecord {
    NodeRecord {
        node: worker.node,
        role: Role::Worker,
        state: NodeState::Up,
        boot: worker.boot,
        public_key: ClientKey([0; 32]),
        pid: 1,
        cpus_milli: worker.cpus_milli,
        memory: 1 << 30,
        is_leader: false,
        is_primary: false,
        name: "w".into(),
        endpoint: String::new(),
        bulk_endpoint: String::new(),
    }
}

/// A load balancer and its surroundings.
pub struct Stage {
    pub core: LoadBalancer,
    pub now: Instant,
    /// The master's log: entries from 1, each with its events as they travel.
    log: Vec<(u32, Vec<u8>)>,
    watch: Option<Watch>,
    /// While false, entries are not told to the load balancer.
    pub is_telling: bool,
    said: Vec<Said>,
    pub notes: Vec<Note>,
    pub epoch: u64,
}

/// A load balancer that has the epoch 1 and an empty log view up to it.
pub fn a_load_balancer() -> Stage {
    let mut stage = a_fresh_load_balancer();
    stage.snapshot(&[]);
    stage.grant(1);
    stage.said.clear();
    stage
}

/// A load balancer that knows nothing.
pub fn a_fresh_load_balancer() -> Stage {
    let config = Config {
        node: US,
        boot: OUR_BOOT,
        name: "l1".into(),
        endpoint: "tcp://l1".into(),
        public_key: ClientKey([9; 32]),
        pid: 5,
        masters: vec![MASTER],
        timings: Timings::default(),
    };
    let now = Instant(1_000_000);
    let core = LoadBalancer::new(config, now);
    let mut stage = Stage {
        core,
        now,
        log: Vec::new(),
        watch: None,
        is_telling: true,
        said: Vec::new(),
        notes: Vec::new(),
        epoch: 0,
    };
    stage.tick();
    stage
}

impl Stage {
    fn step(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, self.now, &mut actions);
        self.core.check_invariants();
        for action in actions {
            match action {
                Action::Send { to, frame } => self.note_said(to, &frame),
                Action::Note(note) => self.notes.push(note),
            }
        }
    }

    pub fn tick(&mut self) {
        self.step(Event::Tick);
    }

    /// One turn of the loop with one message.
    pub fn hears(&mut self, from: PeerId, frame: &[u8]) {
        self.step(Event::Received { from, frame });
        self.tick();
    }

    pub fn peer_gone(&mut self, peer: PeerId) {
        self.step(Event::PeerGone { peer });
    }

    fn note_said(&mut self, to: PeerId, frame: &[u8]) {
        let node = || NodeId([(to.0 - 100) as u8 + 0x10; 16]);
        let said = match Message::decode(frame).expect("it sends messages") {
            Message::WorkerRequest(request, body) => {
                let (job, sequence, to) = (request.job_uuid.job(), request.sequence.get(), node());
                if request.count.get() == 0 {
                    assert!(body.is_empty());
                    Said::Void { to, sequence }
                } else {
                    let range = r(request.first.get(), request.count.get());
                    let (attempt, is_known) = (request.attempt.get(), request.flags.get() & REQUEST_KNOWN != 0);
                    assert_eq!(is_known, body.is_empty());
                    Said::Request { to, sequence, job, range, attempt, body: !is_known }
                }
            }
            Message::Retract(retract, _) => Said::Retract {
                to: node(),
                sequence: retract.sequence.get(),
                job: retract.job_uuid.job(),
                range: r(retract.first.get(), retract.count.get()),
            },
            Message::Kill(kill, _) => Said::Kill {
                to: node(),
                request: kill.request.get(),
                job: kill.job_uuid.job(),
                range: r(kill.first.get(), kill.count.get()),
                index: kill.index.get(),
            },
            Message::InventoryRequest(request, _) => Said::AskInventory { to: node(), epoch: request.epoch.get() },
            Message::Lost(lost, body) => {
                assert_eq!(to, MASTER);
                let items = records_of::<ChunkItem>(body, lost.num_items.get()).expect("whole items");
                Said::Lost {
                    worker: lost.worker_uuid.node(),
                    boot: BootNonce(lost.worker_boot.get()),
                    newer_boot: lost.flags.get() & LOST_NEWER_BOOT != 0,
                    items: items.iter().map(|item| (item.job(), item.range(), item.attempt)).collect(),
                }
            }
            Message::Query(query, _) => Said::AskStatus { request: query.request.get() },
            Message::NodeHello(hello, body) => {
                let name = Reader::new(body).string().expect("a name").to_vec();
                Said::Hello { boot: BootNonce(hello.boot.get()), name: String::from_utf8(name).expect("text") }
            }
            Message::LoadBalancerHeartbeat(heartbeat, _) => Said::Heartbeat {
                epoch: heartbeat.epoch.get(),
                index: heartbeat.index.get(),
                workers_seen: heartbeat.workers_seen.get(),
                running: heartbeat.num_items.get(),
            },
            Message::Watch(watch, _) => {
                self.watch = Some(*watch);
                Said::Watch { after: watch.after.get(), fresh: watch.flags.get() & WATCH_FRESH != 0 }
            }
            Message::Error(error, _) => Said::Refused { to, code: error.code.get() },
            other => panic!("a load balancer does not say {:?}", other.kind()),
        };
        self.said.push(said);
    }

    /// All that was said since the last call.
    pub fn all_said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// What was said since the last call, without the routine towards the master.
    pub fn said(&mut self) -> Vec<Said> {
        let mut said = self.all_said();
        let is_routine = |said: &Said| matches!(said, Said::Hello { .. } | Said::Heartbeat { .. } | Said::Watch { .. });
        said.retain(|said| !is_routine(said));
        said
    }

    /// Lets time pass, with a tick at every deadline, and the given workers' heartbeats each second.
    pub fn pass(&mut self, duration: Duration, alive: &[&Worker]) {
        let end = self.now + duration;
        let mut beat = self.now + ms(1000);
        loop {
            let next = self.core.next_deadline().unwrap_or(end).max(self.now).min(beat).min(end);
            self.now = next;
            self.tick();
            if next == beat {
                alive.iter().for_each(|worker| self.hears(worker.peer, &worker.heartbeat()));
                beat = beat + ms(1000);
            }
            // A master answers a parked watch with nothing.
            self.tell();
            if next == end {
                return;
            }
            // Deadlines that are set to now are due in the same instant; step past it.
            if self.core.next_deadline().is_some_and(|deadline| deadline <= self.now) {
                self.now = self.now + Duration::from_micros(1);
            }
        }
    }

    pub fn index(&self) -> u64 {
        self.log.len() as u64
    }

    /// The number of the watch that is out.
    pub fn watch_request(&self) -> u64 {
        self.watch.expect("a watch is out").request.get()
    }

    /// Adds an entry to the log, and tells it.
    pub fn log(&mut self, events: &[LogEvent<'_>]) {
        let mut body = Writer::new();
        events.iter().for_each(|event| event.encode(&mut body));
        self.log.push((events.len() as u32, body.bytes));
        self.tell();
    }

    /// Answers the watch that is out, if there is something new.
    pub fn tell(&mut self) {
        let Some(watch) = self.watch.filter(|_| self.is_telling) else { return };
        let after = watch.after.get();
        if watch.flags.get() & WATCH_FRESH != 0 || after >= self.index() {
            return;
        }
        let entries = &self.log[after as usize..];
        let num_events = entries.iter().map(|(count, _)| count).sum();
        let body: Vec<u8> = entries.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let batch = WatchBatch {
            request: watch.request,
            after: watch.after,
            index: U64::new(self.index()),
            num_events: U32::new(num_events),
            ..WatchBatch::DEFAULT
        };
        self.watch = None;
        self.hears(MASTER, &batch.frame(NodeId([9; 16]), &body));
    }

    /// Answers the watch that is out with a snapshot as of now.
    pub fn snapshot(&mut self, events: &[LogEvent<'_>]) {
        let watch = self.watch.take().expect("a watch is out");
        let mut body = Writer::new();
        events.iter().for_each(|event| event.encode(&mut body));
        let batch = WatchBatch {
            request: watch.request,
            after: watch.after,
            index: U64::new(self.index()),
            flags: U32::new(BATCH_SNAPSHOT),
            num_events: U32::new(events.len() as u32),
            ..WatchBatch::DEFAULT
        };
        self.hears(MASTER, &batch.frame(NodeId([9; 16]), &body.bytes));
    }

    /// The next epoch is this load balancer's.
    pub fn grant(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.log(&[LogEvent::EpochGranted { load_balancer: US, boot: OUR_BOOT, epoch }]);
    }

    pub fn submit(&mut self, job: JobId, chunk_count: u32) {
        self.submit_with(job, chunk_count, &JobSpec::default());
    }

    pub fn submit_with(&mut self, job: JobId, chunk_count: u32, spec: &JobSpec) {
        let (number, frame) = (self.index(), submit(job, chunk_count, spec));
        self.log(&[LogEvent::JobAccepted { number, submitted_at: WallTime(0), frame: &frame }]);
    }

    pub fn ended(&mut self, job: JobId, range: ChunkRange, state: ChunkState) {
        self.log(&[LogEvent::ChunksEnded { job, state, ranges: vec![range] }]);
    }

    /// The worker's failure or loss is in the log, and the chunks wait for the next attempt.
    pub fn failed_once(&mut self, job: JobId, range: ChunkRange, worker: &Worker, attempt: u32) {
        let (worker, boot, ranges) = (worker.node, worker.boot, vec![range]);
        self.log(&[
            LogEvent::HolderFreed { job, worker, boot, attempt_max: attempt, ranges: ranges.clone() },
            LogEvent::ChunksWaiting { job, attempt: attempt + 1, ranges },
        ]);
    }

    /// The worker registers, connects, and is known with an empty inventory.
    pub fn joins(&mut self, worker: &mut Worker) {
        self.registers(worker);
        worker.epoch = self.epoch;
        self.hears(worker.peer, &worker.inventory(&[]));
        self.said.clear();
    }

    /// A welcome's index is where a worker's confirmed index starts.
    pub fn registers(&mut self, worker: &mut Worker) {
        self.log(&[LogEvent::NodeRegistered { node: record_of(worker) }]);
        worker.confirmed_index = self.index();
        self.hears(worker.peer, &worker.heartbeat());
    }

    /// The worker has read up to `sequence` and has room for `credit` more.
    pub fn accepts(&mut self, worker: &mut Worker, sequence: u64, credit: u32, job: JobId, range: ChunkRange) {
        (worker.seen, worker.credit) = (sequence, credit);
        self.hears(worker.peer, &worker.accepted(job, range, 1));
    }

    pub fn held(&self, worker: &Worker, job: JobId) -> Vec<ChunkRange> {
        self.core.held_by(worker.node, job).ranges().collect()
    }
}
