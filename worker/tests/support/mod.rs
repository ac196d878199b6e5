//! A worker on a bench: messages of load balancers and masters in, what it does in words out.

#![allow(unused, reason = "each test file uses its part of the vocabulary")]

use std::collections::BTreeMap;

use wire::job::{JobBody, JobSpec};
use wire::record::{Bundle, ChunkItem, NodeRecord, Receipt, StoredFile, holding, records, records_bytes, records_of};
use wire::run::decode_results;
use wire::running::decode_running;
use wire::{
    ArraySpec, BootNonce, ChunkRange, ClientKey, Duration, ErrorCode, FileId, FixedPart, Hash, Instant,
    InventoryRequest, JobId, Kill, Kind, LeaderHeartbeat, Message, NodeId, NodeState, NodeWelcome, PeerId,
    ResultConfirmed, Retract, Role, StatusState, U32, U64, WallTime, WorkerRequest, Writer,
};
use worker::core::{Action, Event, Parcel, RunEnd, Server, Settings, Take, Usage, Worker};

pub const ME: NodeId = NodeId([0xee; 16]);
pub const BOOT: u64 = 7 << 32;
pub const MASTER: PeerId = PeerId(1);
pub const MASTER2: PeerId = PeerId(2);
pub const LB1: PeerId = PeerId(11);
pub const LB2: PeerId = PeerId(12);
const THEM: NodeId = NodeId([0xaa; 16]);

pub fn job(number: u8) -> JobId {
    JobId([number; 16])
}

pub struct Builder {
    settings: Settings,
    welcome_index: Option<u64>,
    chunk_count: u32,
}

/// A worker with two slots, registered at log index 5, with two load balancers.
pub fn a_worker() -> Builder {
    let mut settings = Settings::new(ME, BootNonce(BOOT), 2);
    settings.masters = vec![server("master"), server("master2")];
    settings.load_balancers = vec![server("lb1"), server("lb2")];
    Builder { settings, welcome_index: Some(5), chunk_count: 1_000_000 }
}

fn server(endpoint: &str) -> Server {
    Server { endpoint: endpoint.into(), key: None }
}

impl Builder {
    pub fn slots(mut self, slots: u32) -> Self {
        self.settings.slots = slots;
        self
    }

    pub fn with_result_delay(mut self, result_delay: Duration) -> Self {
        self.settings.result_delay = result_delay;
        self
    }

    pub fn without_masters(mut self) -> Self {
        self.settings.masters.clear();
        self.welcome_index = None;
        self
    }

    pub fn not_welcome_yet(mut self) -> Self {
        self.welcome_index = None;
        self
    }

    pub fn with_one_load_balancer(mut self) -> Self {
        self.settings.load_balancers.truncate(1);
        self
    }

    pub fn build(self) -> Bench {
        let worker = Worker::new(self.settings.clone(), Instant(0));
        let mut bench = Bench {
            worker,
            now: Instant(0),
            chunk_count: self.chunk_count,
            spec: JobSpec { arguments: vec![b"true".to_vec()], ..JobSpec::default() },
            frames: Vec::new(),
            runs: BTreeMap::new(),
        };
        bench.tick();
        for (servers, peers, role) in [
            (&self.settings.masters, [MASTER, MASTER2], Role::Master),
            (&self.settings.load_balancers, [LB1, LB2], Role::LoadBalancer),
        ] {
            for (server, peer) in servers.iter().zip(peers) {
                bench.step(Event::Connected { peer, role, endpoint: &server.endpoint });
            }
        }
        if let Some(index) = self.welcome_index {
            bench.welcome(index, &[]);
        }
        bench
    }
}

pub struct Bench {
    pub worker: Worker,
    pub now: Instant,
    pub chunk_count: u32,
    /// Of the jobs that are told from now on.
    pub spec: JobSpec,
    /// What the last step sent.
    pub frames: Vec<(PeerId, Vec<u8>)>,
    /// The run of each chunk that was started.
    pub runs: BTreeMap<(JobId, u32), (u32, u64)>,
}

impl Bench {
    /// One event; what is done about it, in words.
    pub fn step(&mut self, event: Event<'_>) -> Vec<String> {
        let mut actions = Vec::new();
        self.worker.step(event, self.now, &mut actions);
        self.worker.check_invariants();
        self.frames.clear();
        for action in &actions {
            match action {
                Action::Send { to, frame } => self.frames.push((*to, frame.clone())),
                Action::Start { slot, run, job, chunk, .. } => {
                    self.runs.insert((*job, *chunk), (*slot, *run));
                }
                _ => {}
            }
        }
        actions.iter().map(|action| self.words(action)).collect()
    }

    pub fn tick(&mut self) -> Vec<String> {
        self.step(Event::Tick)
    }

    /// Lets time pass, with a tick whenever one is wanted.
    pub fn wait(&mut self, duration: Duration) -> Vec<String> {
        let until = self.now + duration;
        let mut done = Vec::new();
        while let Some(deadline) = self.worker.next_deadline().filter(|deadline| *deadline <= until) {
            self.now = self.now.max(deadline);
            done.extend(self.tick());
        }
        self.now = until;
        done
    }

    /// As `wait`, without heartbeats and hellos.
    pub fn wait_quietly(&mut self, duration: Duration) -> Vec<String> {
        let mut done = self.wait(duration);
        done.retain(|word| !word.contains("idle") && !word.contains("hello"));
        done
    }

    pub fn receives(&mut self, from: PeerId, frame: Vec<u8>) -> Vec<String> {
        self.step(Event::Received { from, frame: &frame })
    }

    pub fn body(&self) -> Vec<u8> {
        let inputs = vec![FileId([9; 16]); self.spec.inputs.len()];
        let spec = JobSpec { array: ArraySpec::plain(self.chunk_count), ..self.spec.clone() };
        JobBody::encode(b"", &inputs, &spec)
    }

    pub fn request(&self, job: JobId, first: u32, count: u32) -> WorkerRequest {
        WorkerRequest {
            job_uuid: job.into(),
            num_input_files: U64::new(self.spec.inputs.len() as u64),
            first: U32::new(first),
            count: U32::new(count),
            chunk_count: U32::new(self.chunk_count),
            epoch: U64::new(1),
            worker_boot: U64::new(BOOT),
            job_number: U64::new(3),
            ..WorkerRequest::DEFAULT
        }
    }

    /// Assigns a range with its body, attempt 1, epoch 1.
    pub fn assign(&mut self, sequence: u64, job: JobId, first: u32, count: u32) -> Vec<String> {
        self.assign_as(LB1, 1, sequence, job, first, count, 1)
    }

    pub fn assign_as(
        &mut self,
        from: PeerId,
        epoch: u64,
        sequence: u64,
        job: JobId,
        first: u32,
        count: u32,
        attempt: u32,
    ) -> Vec<String> {
        let request = WorkerRequest {
            epoch: U64::new(epoch),
            sequence: U64::new(sequence),
            attempt: U32::new(attempt),
            ..self.request(job, first, count)
        };
        let body = self.body();
        self.receives(from, request.frame(THEM, &body))
    }

    pub fn retract(&mut self, sequence: u64, job: JobId, first: u32, count: u32) -> Vec<String> {
        let retract = Retract {
            job_uuid: job.into(),
            first: U32::new(first),
            count: U32::new(count),
            epoch: U64::new(1),
            sequence: U64::new(sequence),
            worker_boot: U64::new(BOOT),
            ..Retract::DEFAULT
        };
        self.receives(LB1, retract.frame(THEM, &[]))
    }

    pub fn kill(&mut self, request: u64, job: JobId, first: u32, count: u32, index: u64) -> Vec<String> {
        let kill = Kill {
            request: U64::new(request),
            job_uuid: job.into(),
            first: U32::new(first),
            count: U32::new(count),
            epoch: U64::new(1),
            index: U64::new(index),
            ..Kill::DEFAULT
        };
        self.receives(LB1, kill.frame(THEM, &[]))
    }

    pub fn ask_inventory(&mut self, from: PeerId, epoch: u64) -> Vec<String> {
        let request = InventoryRequest { epoch: U64::new(epoch), ..InventoryRequest::DEFAULT };
        self.receives(from, request.frame(THEM, &[]))
    }

    pub fn welcome(&mut self, index: u64, nodes: &[NodeRecord]) -> Vec<String> {
        self.welcome_to(1, index, nodes)
    }

    pub fn welcome_to(&mut self, request: u64, index: u64, nodes: &[NodeRecord]) -> Vec<String> {
        let welcome = NodeWelcome {
            request: U64::new(request),
            index: U64::new(index),
            term: U64::new(1),
            nodes_version: U64::new(1),
            ..NodeWelcome::DEFAULT
        };
        let mut body = Writer::new();
        nodes.iter().for_each(|node| node.encode(&mut body));
        self.receives(MASTER, welcome.frame(THEM, &body.bytes))
    }

    pub fn leads(&mut self, master: PeerId, term: u64) -> Vec<String> {
        let heartbeat = LeaderHeartbeat {
            term: U64::new(term),
            flags: U32::new(wire::HEARTBEAT_LEADER),
            nodes_version: U64::new(1),
            ..LeaderHeartbeat::DEFAULT
        };
        self.receives(master, heartbeat.frame(THEM, &[]))
    }

    pub fn confirm(&mut self, batch: u64, index: u64) -> Vec<String> {
        let confirmed = ResultConfirmed { batch: U64::new(batch), index: U64::new(index), ..ResultConfirmed::DEFAULT };
        self.receives(MASTER, confirmed.frame(THEM, &[]))
    }

    pub fn master_refuses(&mut self, batch: u64, code: ErrorCode) -> Vec<String> {
        self.receives(MASTER, wire::error_frame(THEM, code, Some(Kind::WorkerStatus), batch, JobId::NIL, ""))
    }

    /// The chunk's program ends, a tenth of a second later: so slow that credit stays at its least.
    pub fn exits(&mut self, job: JobId, chunk: u32, end: RunEnd) -> Vec<String> {
        self.now = self.now + Duration::from_millis(100);
        let (_, run) = self.runs[&(job, chunk)];
        let usage = Usage { duration_us: 1_000, cpu_us: 800, max_rss_kib: 1_500 };
        self.step(Event::Exited { run, end, usage, at: WallTime(10_000_000) })
    }

    pub fn collected(&mut self, job: JobId, chunk: u32, is_kept: bool) -> Vec<String> {
        let (_, run) = self.runs[&(job, chunk)];
        self.step(Event::Collected { run, is_kept })
    }

    /// The chunk's program ends, having written nothing, and the slot is clean again.
    pub fn ends(&mut self, job: JobId, chunk: u32, end: RunEnd) -> Vec<String> {
        let mut done = self.exits(job, chunk, end);
        done.extend(self.collected(job, chunk, false));
        done
    }

    /// The outputs of these chunks are stored in one file.
    pub fn uploaded(&mut self, job: JobId, chunks: &[u32]) -> Vec<String> {
        let file = a_file();
        let parcels: Vec<Parcel> = chunks
            .iter()
            .map(|chunk| Parcel { run: self.runs[&(job, *chunk)].1, bundle: Some(a_bundle(*chunk)), is_refused: false })
            .collect();
        self.step(Event::Uploaded { file: Some(&file), parcels: &parcels })
    }

    fn words(&self, action: &Action) -> String {
        match action {
            Action::Send { to, frame } => format!("{}: {}", who(*to), said(frame)),
            Action::Connect { role, server } => format!("connect {role} {}", server.endpoint),
            Action::Disconnect { peer } => format!("disconnect {}", who(*peer)),
            Action::UseStorage { nodes } => format!("{} storage nodes", nodes.len()),
            Action::Learn { order } => format!("learn {}", name(order.job)),
            Action::Stage { job } => format!("stage {}", name(*job)),
            Action::Forget { job } => format!("forget {}", name(*job)),
            Action::Start { slot, job, chunk, attempt, .. } => {
                format!("start {}.{chunk} attempt {attempt} in {slot}", name(*job))
            }
            Action::Terminate { slot, .. } => format!("terminate {slot}"),
            Action::Kill { slot, .. } => format!("kill {slot}"),
            Action::Collect { slot, take, .. } => format!("collect {slot} {take:?}"),
            Action::Upload { run, .. } => format!("upload {}", self.chunk_of(*run)),
            Action::Release { run } => format!("release {}", self.chunk_of(*run)),
        }
    }

    fn chunk_of(&self, run: u64) -> String {
        let found = self.runs.iter().find(|(_, (_, number))| *number == run);
        found.map_or_else(|| format!("run {run}"), |((job, chunk), _)| format!("{}.{chunk}", name(*job)))
    }
}

pub fn a_file() -> StoredFile {
    StoredFile {
        file: FileId([5; 16]),
        hash: Hash([6; 32]),
        length: 100,
        class: 1,
        receipts: vec![Receipt { node: THEM, mac: [8; 32] }],
    }
}

pub fn a_bundle(chunk: u32) -> Bundle {
    Bundle {
        file: FileId([5; 16]),
        file_index: 0,
        offset: u64::from(chunk) * 10,
        index_length: 0,
        stdout_length: 10,
        stderr_length: 0,
        outputs_length: 0,
    }
}

pub fn a_node(role: Role, endpoint: &str) -> NodeRecord {
    NodeRecord {
        node: NodeId([0xbb; 16]),
        role,
        state: NodeState::Up,
        boot: BootNonce(1),
        public_key: ClientKey([endpoint.len() as u8; 32]),
        pid: 1,
        cpus_milli: 0,
        memory: 0,
        is_leader: false,
        is_primary: false,
        name: "n".into(),
        endpoint: endpoint.into(),
        bulk_endpoint: String::new(),
    }
}

fn who(peer: PeerId) -> String {
    match peer {
        MASTER => "master".into(),
        MASTER2 => "master2".into(),
        LB1 => "lb1".into(),
        LB2 => "lb2".into(),
        PeerId(other) => format!("peer {other}"),
    }
}

fn name(job: JobId) -> String {
    format!("j{}", job.0[0])
}

/// A message in words, with what the tests look at.
fn said(frame: &[u8]) -> String {
    match Message::decode(frame).expect("a worker's own message") {
        Message::WorkerStatus(status, body) if status.num_runs.get() > 0 => {
            let (files, runs) =
                decode_results(body, status.num_files.get(), status.num_runs.get()).expect("a worker's own results");
            let runs: Vec<String> = runs
                .iter()
                .map(|run| format!("{}+{} {}", run.first, run.results.len(), run.results[0].cause))
                .collect();
            format!(
                "batch {} {} attempt {}: {} with {} files",
                status.batch.get(),
                name(status.job_uuid.job()),
                status.attempt.get(),
                runs.join(", "),
                files.len()
            )
        }
        Message::WorkerStatus(status, body) => {
            let state = StatusState::from_number(status.state).expect("a state");
            match state {
                StatusState::Idle => {
                    format!("idle credit {}{}", status.credit.get(), runs(body, status.num_items.get()))
                }
                StatusState::Accepted if status.boot.get() != 0 => format!(
                    "accepted {}+{} epoch {} seen {} credit {}",
                    status.first.get(),
                    status.count.get(),
                    status.epoch.get(),
                    status.seen_sequence.get(),
                    status.credit.get()
                ),
                other => format!("{} {} ({} bytes)", name(status.job_uuid.job()), other, frame.len()),
            }
        }
        Message::Error(error, detail) => format!(
            "error {} about {}: {}",
            ErrorCode::from_number(error.code.get()).expect("a code"),
            error.request.get(),
            String::from_utf8_lossy(detail)
        ),
        Message::Inventory(inventory, body) => format!(
            "inventory epoch {} seen {} confirmed {} credit {}{}",
            inventory.epoch.get(),
            inventory.seen_sequence.get(),
            inventory.confirmed_index.get(),
            inventory.credit.get(),
            holds(body)
        ),
        Message::RetractAnswer(answer, body) => format!(
            "gave {}+{} seen {} confirmed {}{}",
            answer.first.get(),
            answer.count.get(),
            answer.seen_sequence.get(),
            answer.confirmed_index.get(),
            holds(body)
        ),
        Message::Killed(killed, _) => format!("killed {}", killed.request.get()),
        Message::NodeHello(hello, _) => format!("hello {}", hello.request.get()),
        other => format!("{other:?}"),
    }
}

/// `, q 3+2 r 1+1`: what is queued, runs, ended well and ended badly, with attempts above 1.
/// What runs, and for how many milliseconds each chunk has.
fn runs(body: &[u8], num_items: u32) -> String {
    let items = records_of::<ChunkItem>(body, num_items).expect("whole items");
    let ages = decode_running(body, num_items).expect("whole items").map(|run| format!(" {}", run.age.as_millis()));
    let ages: String = ages.collect();
    let ages = if ages.is_empty() { ages } else { format!(" for{ages} ms") };
    format!("{}{ages}", holds(records_bytes(items)))
}

fn holds(items: &[u8]) -> String {
    let words = records::<ChunkItem>(items).expect("whole items").iter().map(|item| {
        let state = match item.state {
            holding::QUEUED => "q",
            holding::RUNNING => "r",
            holding::ENDED_WELL => "well",
            _ => "badly",
        };
        let attempt = if { item.attempt } == 1 { String::new() } else { format!("@{}", { item.attempt }) };
        format!(" {state} {}+{}{attempt}", { item.first }, { item.count })
    });
    let words: String = words.collect();
    if words.is_empty() { words } else { format!(",{words}") }
}
