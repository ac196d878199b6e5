//! The requests that the log holds, parsed from the frames in which they came.
//!
//! The leader parses a request before it proposes it, every master parses it again when it applies it, and both with
//! this code: so what one refuses no other can accept. Most requests are peers' messages as they came. A few the leader
//! makes itself; their kinds begin at `INTERNAL_KIND_MIN`, which `wire` never gives out and admission never lets in.

use wire::job::{JobBody, JobSpec};
use wire::record::{ChunkItem, NodeRecord, StoredFile, records_of};
use wire::run::{Run, decode_results};
use wire::{
    BootNonce, CancelJob, ChunkRange, DecodeError, FixedPart, JobId, Message, NodeHello, NodeId, NodeState, Reader,
    Role, StatusState, U32, U64, WallTime, Writer,
};

/// Kinds from here on exist only inside the log.
pub const INTERNAL_KIND_MIN: u8 = 200;
/// An `EpochGrant`: kind, load balancer (16 bytes), boot and epoch as varints.
const EPOCH_GRANT: u8 = INTERNAL_KIND_MIN;
/// A `cancel_job` with what runs of it: see `stamped_cancel`.
const STAMPED_CANCEL: u8 = INTERNAL_KIND_MIN + 1;
/// Ranges that a cancel says to run. What is beyond counts as waiting, which is only less told.
pub const CANCEL_RUNNING_MAX: usize = 1024;

/// A request of the log.
#[derive(Clone, PartialEq, Debug)]
pub enum Request<'a> {
    Submit(Box<Submit<'a>>),
    Cancel(Cancel),
    RecordFile(StoredFile),
    Results(Results),
    Register(NodeRecord),
    Lost(LostWorker),
    GrantEpoch(EpochGrant),
}

/// A job to accept.
#[derive(Clone, PartialEq, Debug)]
pub struct Submit<'a> {
    pub job: JobId,
    pub chunk_count: u32,
    pub body: JobBody<'a>,
    pub spec: JobSpec,
    /// The `submit_job` as it came.
    pub frame: &'a [u8],
}

/// Chunks to cancel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cancel {
    pub job: JobId,
    pub range: ChunkRange,
    /// What runs in the eyes of the leader, in order, each chunk at most once.
    pub running: Vec<RunningRange>,
}

/// Chunks of a job that run on a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunningRange {
    pub range: ChunkRange,
    pub attempt: u32,
    pub worker: NodeId,
    /// Zero = not known.
    pub started_at: WallTime,
}

/// A `cancel_job` as it came, with what runs of it at most `CANCEL_RUNNING_MAX` ranges.
pub fn stamped_cancel(frame: &[u8], running: &[RunningRange]) -> Vec<u8> {
    let mut to = Writer::new();
    to.raw(&[STAMPED_CANCEL]).string(frame).varint(running.len() as u64);
    for item in running {
        to.varint(item.range.first.into()).varint(item.range.count.into()).varint(item.attempt.into());
        to.plain(&item.worker).varint(item.started_at.0);
    }
    to.bytes
}

impl Cancel {
    fn decode_stamped(frame: &[u8]) -> Result<Self, RequestError> {
        let mut from = Reader::new(&frame[1..]);
        let Message::CancelJob(fixed, _) = Message::decode(from.string()?)? else {
            return Err(RequestError::Rule("what is stamped is no cancel_job".into()));
        };
        let count = from.varint()?;
        if count > CANCEL_RUNNING_MAX as u64 {
            return Err(RequestError::Rule(format!("{count} ranges run, the limit is {CANCEL_RUNNING_MAX}")));
        }
        let mut running = Vec::new();
        let mut end = 0;
        for _ in 0..count {
            let range = ChunkRange::new(from.varint32()?, from.varint32()?);
            if range.count == 0 || u64::from(range.first) < end || !range.is_within(u32::MAX) {
                return Err(DecodeError::Body { what: "a range that runs is out of place" }.into());
            }
            end = range.end();
            let (attempt, worker, started_at) = (from.varint32()?, *from.plain()?, WallTime(from.varint()?));
            running.push(RunningRange { range, attempt, worker, started_at });
        }
        from.end()?;
        Ok(Self { running, ..Self::parse(&fixed) })
    }

    fn parse(fixed: &CancelJob) -> Self {
        let range = ChunkRange::new(fixed.first.get(), fixed.count.get());
        Self { job: fixed.job_uuid.job(), range, running: Vec::new() }
    }
}

/// A batch of results: one job, one outcome, one attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Results {
    pub job: JobId,
    pub is_success: bool,
    pub worker: NodeId,
    pub boot: BootNonce,
    pub batch: u64,
    pub attempt: u32,
    pub files: Vec<StoredFile>,
    pub runs: Vec<Run>,
}

/// A load balancer's statement that a boot of a worker is gone.
#[derive(Clone, PartialEq, Debug)]
pub struct LostWorker {
    pub load_balancer: NodeId,
    pub load_balancer_boot: BootNonce,
    pub epoch: u64,
    pub worker: NodeId,
    pub boot: BootNonce,
    pub flags: u32,
    pub items: Vec<ChunkItem>,
}

/// Makes one boot of one load balancer the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochGrant {
    pub load_balancer: NodeId,
    pub boot: BootNonce,
    pub epoch: u64,
}

impl EpochGrant {
    /// The form in which the log holds it.
    pub fn frame(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.raw(&[EPOCH_GRANT]).plain(&self.load_balancer).varint(self.boot.0).varint(self.epoch);
        to.bytes
    }

    fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(&frame[1..]);
        let grant = Self { load_balancer: *from.plain()?, boot: BootNonce(from.varint()?), epoch: from.varint()? };
        from.end()?;
        Ok(grant)
    }
}

/// Says why a frame is no request of the log; the text goes back to whoever sent it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    /// Its bytes are in order, but it breaks a rule.
    #[error("{0}")]
    Rule(String),
}

impl<'a> Request<'a> {
    /// Parses a frame of an entry.
    pub fn decode(frame: &'a [u8]) -> Result<Self, RequestError> {
        if frame.first() == Some(&EPOCH_GRANT) {
            return Ok(Request::GrantEpoch(EpochGrant::decode(frame)?));
        }
        if frame.first() == Some(&STAMPED_CANCEL) {
            return Ok(Request::Cancel(Cancel::decode_stamped(frame)?));
        }
        let message = Message::decode(frame)?;
        match message {
            Message::SubmitJob(..) => Submit::parse(&message, frame).map(|submit| Request::Submit(Box::new(submit))),
            Message::CancelJob(fixed, _) => Ok(Request::Cancel(Cancel::parse(&fixed))),
            Message::RecordFile(_, body) => {
                let mut from = Reader::new(body);
                let file = StoredFile::decode(&mut from)?;
                from.end()?;
                check_name(&file)?;
                Ok(Request::RecordFile(file))
            }
            Message::WorkerStatus(..) => Results::parse(&message).map(Request::Results),
            Message::NodeHello(fixed, body) => Ok(Request::Register(record_of_hello(&fixed, body)?)),
            Message::Lost(..) => Ok(Request::Lost(LostWorker::parse(&message)?)),
            Message::WorkerRequest(..)
            | Message::FileRequest(..)
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
            | Message::Query(..)
            | Message::Answer(..)
            | Message::Watch(..)
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
                Err(RequestError::Rule(format!("{:?} is not a request of the log", message.kind())))
            }
        }
    }
}

impl<'a> Submit<'a> {
    fn parse(message: &Message<'a>, frame: &'a [u8]) -> Result<Self, RequestError> {
        let Message::SubmitJob(fixed, body) = message else { unreachable!("the caller looked") };
        let body = JobBody::decode(body, fixed.program_length.get(), fixed.num_input_files.get())?;
        let spec = JobSpec::decode(body.spec)?;
        let chunk_count = fixed.chunk_count.get();
        spec.check(&body, chunk_count).map_err(|error| RequestError::Rule(error.to_string()))?;
        let job = fixed.job_uuid.job();
        if job.is_nil() {
            return Err(RequestError::Rule("the job's uuid is zero".into()));
        }
        Ok(Self { job, chunk_count, body, spec, frame })
    }

    /// True when both frames, of which each was accepted once, ask for the same job: all but `request` and sender.
    pub fn is_same(frame: &[u8], other: &[u8]) -> bool {
        let (Ok(Message::SubmitJob(a, a_body)), Ok(Message::SubmitJob(b, b_body))) =
            (Message::decode(frame), Message::decode(other))
        else {
            return false;
        };
        a.job_uuid == b.job_uuid
            && a.program_length == b.program_length
            && a.num_input_files == b.num_input_files
            && a.chunk_count == b.chunk_count
            && a.flags == b.flags
            && a_body == b_body
    }
}

impl Results {
    fn parse(message: &Message<'_>) -> Result<Self, RequestError> {
        let Message::WorkerStatus(fixed, body) = message else { unreachable!("the caller looked") };
        let is_success = match StatusState::from_number(fixed.state) {
            Some(StatusState::Succeeded) => true,
            Some(StatusState::Failed) => false,
            Some(
                StatusState::Idle
                | StatusState::Accepted
                | StatusState::Fetching
                | StatusState::Running
                | StatusState::WritingBack
                | StatusState::Canceled
                | StatusState::Killed
                | StatusState::Lost,
            )
            | None => return Err(RequestError::Rule(format!("state {} is not a result", fixed.state))),
        };
        if fixed.num_runs.get() as usize > wire::limit::RESULT_RUNS_MAX {
            let (runs, max) = (fixed.num_runs.get(), wire::limit::RESULT_RUNS_MAX);
            return Err(RequestError::Rule(format!("a batch has {runs} runs, the limit is {max}")));
        }
        let (files, runs) = decode_results(body, fixed.num_files.get(), fixed.num_runs.get())?;
        files.iter().try_for_each(check_name)?;
        Ok(Self {
            job: fixed.job_uuid.job(),
            is_success,
            worker: fixed.header.node_uuid.node(),
            boot: BootNonce(fixed.boot.get()),
            batch: fixed.batch.get(),
            attempt: fixed.attempt.get(),
            files,
            runs,
        })
    }
}

impl LostWorker {
    fn parse(message: &Message<'_>) -> Result<Self, DecodeError> {
        let Message::Lost(fixed, body) = message else { unreachable!("the caller looked") };
        Ok(Self {
            load_balancer: fixed.header.node_uuid.node(),
            load_balancer_boot: BootNonce(fixed.boot.get()),
            epoch: fixed.epoch.get(),
            worker: fixed.worker_uuid.node(),
            boot: BootNonce(fixed.worker_boot.get()),
            flags: fixed.flags.get(),
            items: records_of::<ChunkItem>(body, fixed.num_items.get())?.to_vec(),
        })
    }
}

/// A file's uuid is made of its hash, so a record that says otherwise is of no file.
fn check_name(file: &StoredFile) -> Result<(), RequestError> {
    if file.file.names(file.hash) {
        return Ok(());
    }
    Err(RequestError::Rule(format!("file {} is not the name of hash {}", file.file, file.hash)))
}

fn record_of_hello(fixed: &NodeHello, body: &[u8]) -> Result<NodeRecord, RequestError> {
    let rule = |detail: String| Err(RequestError::Rule(detail));
    let Some(role) = Role::from_number(fixed.role) else {
        return rule(format!("role {} is unknown", fixed.role));
    };
    let mut from = Reader::new(body);
    let mut text = || -> Result<String, RequestError> {
        let bytes = from.string()?;
        if bytes.len() > wire::limit::NAME_SIZE_MAX {
            let (size, max) = (bytes.len(), wire::limit::NAME_SIZE_MAX);
            return Err(RequestError::Rule(format!("a name or endpoint takes {size} bytes, the limit is {max}")));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| RequestError::Rule("a name or endpoint is not UTF-8".into()))
    };
    let node = fixed.subject.node();
    if node.is_nil() {
        return rule("the subject of the hello is zero".into());
    }
    Ok(NodeRecord {
        node,
        role,
        state: NodeState::Up,
        boot: BootNonce(fixed.boot.get()),
        public_key: fixed.public_key,
        pid: fixed.pid.get(),
        cpus_milli: fixed.cpus_milli.get(),
        memory: fixed.memory.get(),
        is_leader: false,
        is_primary: false,
        name: text()?,
        endpoint: text()?,
        bulk_endpoint: text()?,
    })
}

/// The hello by which the leader registers itself.
pub(super) fn hello_frame(record: &NodeRecord) -> Vec<u8> {
    let fixed = NodeHello {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_grant_reads_as_it_was_written() {
        let grant = EpochGrant { load_balancer: NodeId([3; 16]), boot: BootNonce(5), epoch: 7 };
        assert_eq!(Request::decode(&grant.frame()), Ok(Request::GrantEpoch(grant)));
        assert!(Request::decode(&grant.frame()[..10]).is_err());
    }

    #[test]
    fn wire_gives_out_no_internal_kind() {
        assert!((INTERNAL_KIND_MIN..=u8::MAX).all(|number| wire::Kind::from_number(number).is_none()));
    }
}
