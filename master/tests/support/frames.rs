//! Builders of the messages that masters take.

use master::core::entry::RunningRange;
use wire::job::{JobBody, JobSpec};
use wire::record::{
    ChunkItem, ChunkResult, InputCounts, NodeRecord, Receipt, RunningItem, StoredFile, holding, records_bytes,
};
use wire::run::{Run, encode_results};
use wire::running::encode_running;
use wire::{
    ArraySpec, BootNonce, CancelJob, Cause, ChunkRange, ClientKey, Duration, FileId, FixedPart, Hash, JobId,
    LoadBalancerHeartbeat, Lost, NodeHello, NodeId, NodeState, Query, RecordFile, Role, Subject, SubmitJob, U16, U32,
    U64, WallTime, Watch, WorkerStatus, Writer,
};

pub const CLIENT: NodeId = NodeId([0xC1; 16]);
pub const BALANCER: NodeId = NodeId([0xB1; 16]);
pub const STORAGE: NodeId = NodeId([0x51; 16]);
pub const W1: NodeId = NodeId([0x11; 16]);
pub const W2: NodeId = NodeId([0x12; 16]);
pub const J1: JobId = JobId([1; 16]);
pub const J2: JobId = JobId([2; 16]);
pub const RECEIPT_KEY: [u8; 32] = [7; 32];

/// The n-th boot of a node.
pub fn boot(start_counter: u32) -> BootNonce {
    BootNonce::new(start_counter, 0xABCD)
}

/// A job of `count` chunks that runs `true`.
pub fn a_spec(count: u32) -> JobSpec {
    JobSpec { arguments: vec![b"true".to_vec()], array: ArraySpec::plain(count), ..JobSpec::default() }
}

pub fn submit(request: u64, job: JobId, spec: &JobSpec) -> Vec<u8> {
    submit_with(request, job, spec, &[])
}

pub fn submit_with(request: u64, job: JobId, spec: &JobSpec, inputs: &[FileId]) -> Vec<u8> {
    let fixed = SubmitJob {
        job_uuid: job.into(),
        num_input_files: U64::new(inputs.len() as u64),
        request: U64::new(request),
        chunk_count: U32::new(spec.array.count() as u32),
        ..SubmitJob::DEFAULT
    };
    fixed.frame(CLIENT, &JobBody::encode(b"", inputs, spec))
}

pub fn cancel(request: u64, job: JobId, first: u32, count: u32) -> Vec<u8> {
    let (first, count) = (U32::new(first), U32::new(count));
    CancelJob { request: U64::new(request), job_uuid: job.into(), first, count, ..CancelJob::DEFAULT }
        .frame(CLIENT, b"")
}

/// What a leader may say to run in a cancel.
pub fn running(first: u32, count: u32, attempt: u32, worker: NodeId, started_at: u64) -> RunningRange {
    RunningRange { range: ChunkRange::new(first, count), attempt, worker, started_at: WallTime(started_at) }
}

/// A result that exits 0 after 900 microseconds.
pub fn a_result() -> ChunkResult {
    ChunkResult {
        started_at: WallTime(5_000),
        duration_us: 900,
        cpu_us: 700,
        max_rss_kib: 1_500,
        exit_code: Some(0),
        signal: None,
        cause: Cause::None,
        bundle: None,
    }
}

pub fn exit(code: u8) -> ChunkResult {
    ChunkResult { exit_code: Some(code), cause: Cause::Exit, ..a_result() }
}

pub fn a_run(first: u32, results: &[ChunkResult]) -> Run {
    Run { first, results: results.to_vec() }
}

/// A batch of results, built step by step.
pub struct Batch {
    pub fixed: WorkerStatus,
    pub worker: NodeId,
    pub files: Vec<StoredFile>,
    pub runs: Vec<Run>,
}

pub fn succeeded(worker: NodeId, job: JobId, runs: &[Run]) -> Batch {
    batch(worker, job, 5, runs)
}

pub fn failed(worker: NodeId, job: JobId, attempt: u32, runs: &[Run]) -> Batch {
    let mut batch = batch(worker, job, 6, runs);
    batch.fixed.attempt = U32::new(attempt);
    batch
}

fn batch(worker: NodeId, job: JobId, state: u8, runs: &[Run]) -> Batch {
    let fixed = WorkerStatus {
        job_uuid: job.into(),
        state,
        boot: U64::new(boot(1).0),
        epoch: U64::new(1),
        batch: U64::new(1),
        ..WorkerStatus::DEFAULT
    };
    Batch { fixed, worker, files: Vec::new(), runs: runs.to_vec() }
}

impl Batch {
    pub fn number(mut self, batch: u64) -> Self {
        self.fixed.batch = U64::new(batch);
        self
    }

    pub fn counting(mut self, counts: InputCounts) -> Self {
        self.fixed = counts.tell(self.fixed);
        self
    }

    pub fn file(mut self, file: StoredFile) -> Self {
        self.files.push(file);
        self
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut fixed = self.fixed;
        fixed.num_files = U32::new(self.files.len() as u32);
        fixed.num_runs = U32::new(self.runs.len() as u32);
        fixed.frame(self.worker, &encode_results(&self.files, &self.runs))
    }
}

/// A worker's heartbeat.
pub fn heartbeat(worker: NodeId, boot: BootNonce) -> Vec<u8> {
    WorkerStatus { boot: U64::new(boot.0), ..WorkerStatus::DEFAULT }.frame(worker, b"")
}

/// A worker's heartbeat that says what runs, and for how long each chunk has.
pub fn heartbeat_running(worker: NodeId, boot: BootNonce, items: &[ChunkItem], ages: &[Duration]) -> Vec<u8> {
    let num_items = U32::new(items.len() as u32);
    WorkerStatus { boot: U64::new(boot.0), num_items, ..WorkerStatus::DEFAULT }
        .frame(worker, &encode_running(items, ages.iter().copied()))
}

/// A worker's heartbeat with what it counts of inputs.
pub fn heartbeat_counting(worker: NodeId, boot: BootNonce, counts: InputCounts) -> Vec<u8> {
    counts.tell(WorkerStatus { boot: U64::new(boot.0), ..WorkerStatus::DEFAULT }).frame(worker, b"")
}

pub fn an_item(job: JobId, first: u32, count: u32, attempt: u32) -> ChunkItem {
    ChunkItem::new(job, ChunkRange::new(first, count), attempt, holding::RUNNING)
}

/// The load balancer's statement in its boot `lb_boot` and `epoch` that `worker` in `boot` is lost.
pub fn lost(
    request: u64,
    (lb_boot, epoch): (BootNonce, u64),
    (worker, boot): (NodeId, BootNonce),
    items: &[ChunkItem],
) -> Vec<u8> {
    let fixed = Lost {
        request: U64::new(request),
        worker_uuid: worker.into(),
        worker_boot: U64::new(boot.0),
        epoch: U64::new(epoch),
        boot: U64::new(lb_boot.0),
        num_items: U32::new(items.len() as u32),
        ..Lost::DEFAULT
    };
    fixed.frame(BALANCER, records_bytes(items))
}

/// The record of a node at its n-th boot.
pub fn a_node(node: NodeId, role: Role, start_counter: u32) -> NodeRecord {
    NodeRecord {
        node,
        role,
        state: NodeState::Up,
        boot: boot(start_counter),
        public_key: ClientKey([9; 32]),
        pid: 100,
        cpus_milli: 2_000,
        memory: 4 << 30,
        is_leader: false,
        is_primary: false,
        name: format!("{}-{:02x}", role.word(), node.0[0]),
        endpoint: "tcp://127.0.0.1:1".into(),
        bulk_endpoint: String::new(),
    }
}

pub fn hello(request: u64, record: &NodeRecord) -> Vec<u8> {
    let fixed = NodeHello {
        request: U64::new(request),
        boot: U64::new(record.boot.0),
        role: record.role as u8,
        public_key: record.public_key,
        pid: U32::new(record.pid),
        cpus_milli: U32::new(record.cpus_milli),
        memory: U64::new(record.memory),
        subject: record.node.into(),
        ..NodeHello::DEFAULT
    };
    let mut body = Writer::new();
    body.string(record.name.as_bytes()).string(record.endpoint.as_bytes()).string(record.bulk_endpoint.as_bytes());
    fixed.frame(record.node, &body.bytes)
}

/// A file of these bytes with the storage node's receipt.
pub fn a_file(content: &[u8]) -> StoredFile {
    let hash = content::hash_bytes(content);
    let file = FileId::of(hash);
    let length = content.len() as u64;
    let mac = content::receipt(&RECEIPT_KEY, STORAGE, file, hash, length);
    StoredFile { file, hash, length, class: 0, receipts: vec![Receipt { node: STORAGE, mac }] }
}

pub fn record_file(request: u64, file: &StoredFile) -> Vec<u8> {
    let mut body = Writer::new();
    file.encode(&mut body);
    RecordFile { request: U64::new(request), ..RecordFile::DEFAULT }.frame(CLIENT, &body.bytes)
}

pub fn balancer_heartbeat(boot: BootNonce, epoch: u64, items: &[RunningItem]) -> Vec<u8> {
    let fixed = LoadBalancerHeartbeat {
        boot: U64::new(boot.0),
        epoch: U64::new(epoch),
        workers_seen: U32::new(1),
        num_items: U32::new(items.len() as u32),
        ..LoadBalancerHeartbeat::DEFAULT
    };
    fixed.frame(BALANCER, records_bytes(items))
}

/// A query whose fields the caller may change.
pub fn query(request: u64, subject: Subject) -> Query {
    Query { request: U64::new(request), subject: U16::new(subject as u16), ..Query::DEFAULT }
}

pub fn watch(request: u64, after: u64, job: Option<JobId>, flags: u32) -> Vec<u8> {
    let fixed = Watch {
        request: U64::new(request),
        after: U64::new(after),
        subject: U16::new(u16::from(job.is_some())),
        uuid: job.unwrap_or(JobId::NIL).into(),
        flags: U32::new(flags),
        ..Watch::DEFAULT
    };
    fixed.frame(BALANCER, b"")
}

/// The hash of nothing in particular.
pub fn a_hash(byte: u8) -> Hash {
    Hash([byte; 32])
}
