//! What happened, as a hash by which two runs are compared, and as lines for people if they are wanted.

use wire::record::ChunkItem;
use wire::{ErrorCode, Instant, JobId, Message, StatusState};

use crate::network::Host;
use crate::shell::Process;
use crate::world::Change;

#[derive(Debug)]
pub struct Trace {
    hash: u64,
    is_printed: bool,
}

impl Trace {
    pub fn new(is_printed: bool) -> Self {
        Self { hash: 0, is_printed }
    }

    /// The hash of everything so far: equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes bytes in, eight at a time; nobody tries to find two runs of one hash.
    fn fold(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            let word = u64::from_le_bytes(word).wrapping_add(piece.len() as u64);
            self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }

    pub fn turn(&mut self, now: Instant, host: Host, why: &'static str) {
        self.fold(&now.0.to_le_bytes());
        self.fold(&host.0.to_le_bytes());
        self.fold(why.as_bytes());
    }

    pub fn message(&mut self, arrow: &str, now: Instant, own: &str, other: &str, frame: &[u8]) {
        self.fold(arrow.as_bytes());
        self.fold(frame);
        if self.is_printed {
            self.line(now, own, &format!("{arrow} {other}: {}", describe(frame)));
        }
    }

    pub fn change(&mut self, now: Instant, change: &Change) {
        if self.is_printed {
            self.line(now, "fault", &format!("{change:?}"));
        }
    }

    /// Takes the notes that a process left.
    pub fn notes(&mut self, now: Instant, name: &str, process: &mut Process) {
        let notes = match process {
            Process::Master(shell) => &mut shell.notes,
            Process::LoadBalancer(shell) => &mut shell.notes,
            Process::Worker(shell) => &mut shell.notes,
            Process::Storage(_) | Process::Client(_) => return,
        };
        for note in notes.drain(..) {
            if self.is_printed {
                self.line(now, name, &format!("   {note}"));
            }
        }
    }

    fn line(&self, now: Instant, who: &str, what: &str) {
        println!("{:>11.6} {who:<5} {what}", now.0 as f64 / 1e6);
    }
}

/// The first digits of a job's uuid that tell jobs apart.
fn short(job: JobId) -> String {
    if job.is_nil() { "-".into() } else { wire::hex(&job.0[12..]) }
}

fn items(bytes: &[u8], count: u32) -> String {
    let items = wire::record::records_of::<ChunkItem>(bytes, count).unwrap_or_default();
    let text = |item: &ChunkItem| {
        let (first, count, attempt) = ({ item.first }, { item.count }, { item.attempt });
        format!("{}[{first}+{count}]a{attempt}s{}", short(item.job()), item.state)
    };
    items.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// A message in words.
pub fn describe(frame: &[u8]) -> String {
    let message = match Message::decode(frame) {
        Ok(message) => message,
        Err(error) => return error.to_string(),
    };
    let boot = |boot: u64| boot >> 32;
    match message {
        Message::WorkerRequest(m, _) => format!(
            "worker_request {}[{}+{}] a{} e{} seq{} boot{} flags{}",
            short(m.job_uuid.job()),
            m.first,
            m.count,
            m.attempt,
            m.epoch,
            m.sequence,
            boot(m.worker_boot.get()),
            m.flags
        ),
        Message::WorkerStatus(m, body) if m.num_runs.get() == 0 => format!(
            "worker_status {} {}[{}+{}] a{} e{} seen{} boot{} ci{} credit{} {}",
            StatusState::from_number(m.state).map_or("?", StatusState::word),
            short(m.job_uuid.job()),
            m.first,
            m.count,
            m.attempt,
            m.epoch,
            m.seen_sequence,
            boot(m.boot.get()),
            m.confirmed_index,
            m.credit,
            items(body, m.num_items.get())
        ),
        Message::WorkerStatus(m, body) => {
            let runs = wire::run::decode_results(body, m.num_files.get(), m.num_runs.get());
            let runs = runs.map_or_else(
                |error| error.to_string(),
                |(_, runs)| runs.iter().map(|run| format!("[{}+{}]", run.first, run.results.len())).collect(),
            );
            format!(
                "results {} {} {runs} a{} e{} batch{} boot{} files{}",
                StatusState::from_number(m.state).map_or("?", StatusState::word),
                short(m.job_uuid.job()),
                m.attempt,
                m.epoch,
                m.batch,
                boot(m.boot.get()),
                m.num_files
            )
        }
        Message::Error(m, detail) => format!(
            "error {} request{} about {} {}: {}",
            ErrorCode::from_number(m.code.get()).map_or("?", ErrorCode::word),
            m.request,
            m.regarding,
            short(m.job_uuid.job()),
            wire::bytes_text(detail)
        ),
        Message::Inventory(m, body) => format!(
            "inventory e{} seen{} ci{} boot{} credit{}: {}",
            m.epoch,
            m.seen_sequence,
            m.confirmed_index,
            boot(m.boot.get()),
            m.credit,
            items(body, m.num_items.get())
        ),
        Message::InventoryRequest(m, _) => format!("inventory_request e{} boot{}", m.epoch, boot(m.boot.get())),
        Message::Retract(m, _) => {
            format!("retract {}[{}+{}] e{} seq{}", short(m.job_uuid.job()), m.first, m.count, m.epoch, m.sequence)
        }
        Message::RetractAnswer(m, body) => format!(
            "retract_answer {}[{}+{}] e{} seq{} seen{} ci{} holds {}",
            short(m.job_uuid.job()),
            m.first,
            m.count,
            m.epoch,
            m.sequence,
            m.seen_sequence,
            m.confirmed_index,
            items(body, (body.len() / size_of::<ChunkItem>()) as u32)
        ),
        Message::Kill(m, _) => {
            format!(
                "kill {}[{}+{}] e{} index{} request{}",
                short(m.job_uuid.job()),
                m.first,
                m.count,
                m.epoch,
                m.index,
                m.request
            )
        }
        Message::Killed(m, _) => format!("killed request{} boot{} credit{}", m.request, boot(m.boot.get()), m.credit),
        Message::ResultConfirmed(m, _) => {
            format!("result_confirmed {} batch{} index{}", short(m.job_uuid.job()), m.batch, m.index)
        }
        Message::Lost(m, body) => format!(
            "lost request{} worker {} boot{} e{} flags{}: {}",
            m.request,
            wire::hex(&m.worker_uuid.node().0[..3]),
            boot(m.worker_boot.get()),
            m.epoch,
            m.flags,
            items(body, m.num_items.get())
        ),
        Message::LoadBalancerHeartbeat(m, _) => format!("heartbeat e{} index{}", m.epoch, m.index),
        Message::LeaderHeartbeat(m, _) => format!("leader_heartbeat index{} e{} flags{}", m.index, m.epoch, m.flags),
        Message::NodeHello(m, _) => format!("node_hello boot{} request{}", boot(m.boot.get()), m.request),
        Message::NodeWelcome(m, _) => format!("node_welcome index{} request{}", m.index, m.request),
        Message::SubmitJob(m, _) => format!("submit_job {} chunks{}", short(m.job_uuid.job()), m.chunk_count),
        Message::JobAccepted(m, _) => {
            format!("job_accepted {} number{} index{}", short(m.job_uuid.job()), m.number, m.index)
        }
        Message::CancelJob(m, _) => format!("cancel_job {}", short(m.job_uuid.job())),
        Message::Committed(m, _) => format!("committed request{} index{} changed{}", m.request, m.index, m.changed),
        Message::RecordFile(m, _) => format!("record_file request{}", m.request),
        Message::Query(m, _) => format!("query subject{} request{}", m.subject, m.request),
        Message::Answer(m, _) => format!("answer subject{} request{} index{}", m.subject, m.request, m.index),
        Message::Watch(m, _) => format!("watch after{} request{} flags{}", m.after, m.request, m.flags),
        Message::WatchBatch(m, _) => format!(
            "watch_batch after{} index{} request{} flags{} events{} part{}/{}",
            m.after, m.index, m.request, m.flags, m.num_events, m.part, m.parts
        ),
        Message::FileRequest(m, _) => format!("file_request {}+{}", m.offset, m.length),
        Message::FileResponse(m, _) => format!("file_response at {} status{}", m.offset, m.status),
        Message::PutBegin(m, _) => format!("put_begin {}", m.upload),
        Message::PutGrant(m, _) => format!("put_grant {} flags{}", m.upload, m.flags),
        Message::PutBlock(m, _) => format!("put_block {} at {}", m.upload, m.offset),
        Message::PutAck(m, _) => format!("put_ack {} contiguous{}", m.upload, m.contiguous),
        Message::PutCommit(m, _) => format!("put_commit {}", m.upload),
        Message::PutDone(m, _) => format!("put_done {}", m.upload),
        Message::HaveRequest(m, _) => format!("have_request {}", m.num_files),
        Message::HaveResponse(m, _) => format!("have_response {}", m.num_files),
        Message::StateHash(m, _) => format!("state_hash index{}", m.index),
        Message::RaftMessage(m, _) => format!(
            "raft step{} term{} index{} commit{} entries{} reject{} snapshot{}",
            m.step, m.term, m.index, m.commit, m.num_entries, m.reject, m.snapshot_index
        ),
    }
}
