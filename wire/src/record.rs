//! The packed records inside bodies: chunk items, stored files, and what queries answer.

use bytemuck::{Pod, Zeroable};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    BootNonce, Cause, ChunkRange, ChunkState, ClientKey, DecodeError, FileAddress, FileId, Hash, JobId, JobState,
    NodeId, NodeState, Reader, Role, WallTime, Writer,
};

// Plain records are cast from bytes as they lie, so their integers are the machine's own.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

/// What a worker has of a range, in `ChunkItem::state`.
pub mod holding {
    pub const QUEUED: u8 = 1;
    pub const RUNNING: u8 = 2;
    pub const ENDED_WELL: u8 = 3;
    pub const ENDED_BADLY: u8 = 4;
}

/// A range of chunks of one job with one attempt, as inventories and `lost` list them. 29 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C, packed)]
pub struct ChunkItem {
    pub job_uuid: [u8; 16],
    pub first: u32,
    pub count: u32,
    pub attempt: u32,
    /// See `holding`.
    pub state: u8,
}

impl ChunkItem {
    pub fn new(job: JobId, range: ChunkRange, attempt: u32, state: u8) -> Self {
        Self { job_uuid: job.0, first: range.first, count: range.count, attempt, state }
    }

    pub fn job(&self) -> JobId {
        JobId(self.job_uuid)
    }

    pub fn range(&self) -> ChunkRange {
        ChunkRange::new(self.first, self.count)
    }
}

/// A range that runs on a worker, in a load balancer's heartbeat. 44 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C, packed)]
pub struct RunningItem {
    pub job_uuid: [u8; 16],
    pub first: u32,
    pub count: u32,
    pub attempt: u32,
    pub worker_uuid: [u8; 16],
}

/// `bytes` as records where they lie; they have to be a whole number of them.
pub fn records<T: Pod>(bytes: &[u8]) -> Result<&[T], DecodeError> {
    bytemuck::try_cast_slice(bytes).map_err(|_| DecodeError::Body { what: "it is not a whole number of records" })
}

/// The first `count` records of `bytes`, which have to be there.
pub fn records_of<T: Pod>(bytes: &[u8], count: u32) -> Result<&[T], DecodeError> {
    let size = (count as usize).checked_mul(size_of::<T>()).filter(|size| *size <= bytes.len());
    records(&bytes[..size.ok_or(DecodeError::Body { what: "it has fewer records than its count says" })?])
}

/// The bytes of records.
pub fn records_bytes<T: Pod>(records: &[T]) -> &[u8] {
    bytemuck::cast_slice(records)
}

/// How a worker's programs have read their inputs since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InputCounts {
    /// Opened to be read past the worker, straight from its cache.
    pub opens_passthrough: u64,
    /// Opened to be read through the worker.
    pub opens_cached: u64,
    /// Opens that waited for the file first; they count as one of the others too.
    pub opens_waited: u64,
    /// Opens and reads that failed.
    pub reads_failed: u64,
    /// Handed over by the worker; what is read past it is not known.
    pub bytes_served: u64,
    /// From storage.
    pub bytes_fetched: u64,
}

impl InputCounts {
    fn numbers(&self) -> [u64; 6] {
        [
            self.opens_passthrough,
            self.opens_cached,
            self.opens_waited,
            self.reads_failed,
            self.bytes_served,
            self.bytes_fetched,
        ]
    }

    fn of(
        [opens_passthrough, opens_cached, opens_waited, reads_failed, bytes_served, bytes_fetched]: [u64; 6],
    ) -> Self {
        Self { opens_passthrough, opens_cached, opens_waited, reads_failed, bytes_served, bytes_fetched }
    }

    /// As a worker's heartbeat or result tells them.
    pub fn told(status: &crate::WorkerStatus) -> Self {
        let opens = [status.opens_passthrough, status.opens_cached, status.opens_waited];
        let [passthrough, cached, waited] = opens.map(|count| count.get());
        let [failed, served, fetched] =
            [status.reads_failed, status.bytes_served, status.bytes_fetched].map(|count| count.get());
        Self::of([passthrough, cached, waited, failed, served, fetched])
    }

    /// A status with them.
    pub fn tell(&self, status: crate::WorkerStatus) -> crate::WorkerStatus {
        let [passthrough, cached, waited, failed, served, fetched] = self.numbers().map(crate::U64::new);
        crate::WorkerStatus {
            opens_passthrough: passthrough,
            opens_cached: cached,
            opens_waited: waited,
            reads_failed: failed,
            bytes_served: served,
            bytes_fetched: fetched,
            ..status
        }
    }
}

/// What a query of `inputs` answers, for each worker that has told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeInputs {
    pub node: NodeId,
    pub counts: InputCounts,
}

impl NodeInputs {
    pub fn encode(&self, to: &mut Writer) {
        to.plain(&self.node);
        for number in self.counts.numbers() {
            to.varint(number);
        }
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let node = *from.plain()?;
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = from.varint()?;
        }
        Ok(Self { node, counts: InputCounts::of(numbers) })
    }
}

/// A storage node's word that a file is durable there: a MAC under the cluster's receipt key. 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Receipt {
    pub node: NodeId,
    pub mac: [u8; 32],
}

/// A file that is durable on storage, with the receipts that prove it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredFile {
    pub file: FileId,
    pub hash: Hash,
    /// Bytes.
    pub length: u64,
    /// 0 input, 1 result, 2 temp.
    pub class: u8,
    pub receipts: Vec<Receipt>,
}

impl StoredFile {
    pub fn encode(&self, to: &mut Writer) {
        to.plain(&self.file)
            .plain(&self.hash)
            .varint(self.length)
            .raw(&[self.class])
            .varint(self.receipts.len() as u64);
        self.receipts.iter().for_each(|receipt| {
            to.plain(receipt);
        });
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (file, hash) = (*from.plain()?, *from.plain()?);
        let (length, class) = (from.varint()?, from.raw(1)?[0]);
        let count = from.varint32()? as usize;
        Ok(Self { file, hash, length, class, receipts: from.slice::<Receipt>(count)?.to_vec() })
    }
}

/// A node as masters know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    pub node: NodeId,
    pub role: Role,
    pub state: NodeState,
    pub boot: BootNonce,
    pub public_key: ClientKey,
    pub pid: u32,
    /// Thousandths of a cpu.
    pub cpus_milli: u32,
    /// Bytes.
    pub memory: u64,
    pub is_leader: bool,
    pub is_primary: bool,
    pub name: String,
    /// The control socket.
    pub endpoint: String,
    /// The bulk socket; empty = none.
    pub bulk_endpoint: String,
}

impl NodeRecord {
    pub fn encode(&self, to: &mut Writer) {
        to.plain(&self.node)
            .raw(&[self.role as u8, self.state as u8, u8::from(self.is_leader) | u8::from(self.is_primary) << 1])
            .varint(self.boot.0)
            .plain(&self.public_key)
            .varint(self.pid.into())
            .varint(self.cpus_milli.into())
            .varint(self.memory)
            .string(self.name.as_bytes())
            .string(self.endpoint.as_bytes())
            .string(self.bulk_endpoint.as_bytes());
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let node = *from.plain()?;
        let [role, state, flags] = from.raw(3)?.try_into().expect("three bytes were read");
        Ok(Self {
            node,
            role: Role::from_number(role).ok_or(DecodeError::Body { what: "a role is unknown" })?,
            state: NodeState::from_number(state).ok_or(DecodeError::Body { what: "a node state is unknown" })?,
            boot: BootNonce(from.varint()?),
            public_key: *from.plain()?,
            pid: from.varint32()?,
            cpus_milli: from.varint32()?,
            memory: from.varint()?,
            is_leader: flags & 1 != 0,
            is_primary: flags & 2 != 0,
            name: text(from)?,
            endpoint: text(from)?,
            bulk_endpoint: text(from)?,
        })
    }
}

fn text(from: &mut Reader<'_>) -> Result<String, DecodeError> {
    let bytes = from.string()?;
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Body { what: "a name is not UTF-8" })
}

/// How many chunks of a job are in each state; `waiting + running + … = total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkCounts {
    pub waiting: u64,
    pub running: u64,
    pub finished: u64,
    pub failed: u64,
    pub canceled: u64,
    pub aborted: u64,
}

impl ChunkCounts {
    pub fn total(&self) -> u64 {
        self.waiting + self.running + self.ended()
    }

    pub fn ended(&self) -> u64 {
        self.finished + self.failed + self.canceled + self.aborted
    }

    /// The state of a job with these chunks.
    pub fn job_state(&self) -> JobState {
        if self.waiting + self.running > 0 {
            return if self.running == 0 && self.ended() == 0 { JobState::Waiting } else { JobState::Running };
        }
        match self {
            Self { canceled: 1.., .. } => JobState::Canceled,
            Self { aborted: 1.., .. } => JobState::Aborted,
            Self { failed: 1.., .. } => JobState::Failed,
            Self { .. } => JobState::Finished,
        }
    }
}

/// A job as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobRecord {
    pub job: JobId,
    pub number: u64,
    pub state: JobState,
    pub counts: ChunkCounts,
    pub submitted_at: WallTime,
    /// The earliest start in a result; zero = none yet.
    pub started_at: WallTime,
    /// When its last chunk ended; zero = not yet.
    pub finished_at: WallTime,
    pub name: Vec<u8>,
    /// The array's text form is rebuilt from these.
    pub array: crate::ArraySpec,
    /// The first words of the command, for lists.
    pub command: Vec<u8>,
}

impl JobRecord {
    pub fn encode(&self, to: &mut Writer) {
        let c = &self.counts;
        to.plain(&self.job).varint(self.number).raw(&[self.state as u8]);
        for count in [c.waiting, c.running, c.finished, c.failed, c.canceled, c.aborted] {
            to.varint(count);
        }
        to.varint(self.submitted_at.0).varint(self.started_at.0).varint(self.finished_at.0);
        to.string(&self.name).string(&self.command);
        crate::job::encode_array(&self.array, to);
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (job, number, state) = (*from.plain()?, from.varint()?, from.raw(1)?[0]);
        let mut counts = [0; 6];
        for count in &mut counts {
            *count = from.varint()?;
        }
        let [waiting, running, finished, failed, canceled, aborted] = counts;
        Ok(Self {
            job,
            number,
            state: JobState::from_number(state).ok_or(DecodeError::Body { what: "a job state is unknown" })?,
            counts: ChunkCounts { waiting, running, finished, failed, canceled, aborted },
            submitted_at: WallTime(from.varint()?),
            started_at: WallTime(from.varint()?),
            finished_at: WallTime(from.varint()?),
            name: from.string()?.to_vec(),
            command: from.string()?.to_vec(),
            array: crate::job::decode_array(from)?,
        })
    }
}

/// A chunk as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkRecord {
    /// Its index; the number that people see comes from the job's array.
    pub chunk: u32,
    pub state: ChunkState,
    pub attempt: u32,
    /// The worker of its result, or where it runs, or ran when it was canceled; nil = none.
    pub node: NodeId,
    /// Zero = it has not started, or since when it runs is not known.
    pub started_at: WallTime,
    /// Zero = it does not run, or has not ended.
    pub finished_at: WallTime,
    /// What its accepted result says, if it has one: the times are then those of the result.
    pub result: Option<ChunkResult>,
}

impl ChunkRecord {
    pub fn encode(&self, to: &mut Writer) {
        to.varint(self.chunk.into()).raw(&[self.state as u8, u8::from(self.result.is_some())]);
        to.varint(self.attempt.into()).plain(&self.node);
        match &self.result {
            Some(result) => {
                result.encode(WallTime(0), to);
                if let Some(bundle) = &result.bundle {
                    to.plain(&bundle.file);
                }
            }
            None => {
                to.varint(self.started_at.0).varint(self.finished_at.0);
            }
        }
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let chunk = from.varint32()?;
        let [state, has_result] = from.raw(2)?.try_into().expect("two bytes were read");
        let (attempt, node) = (from.varint32()?, *from.plain()?);
        let (started_at, finished_at, result) = if has_result == 1 {
            let mut result = ChunkResult::decode(WallTime(0), &[], from)?;
            if let Some(bundle) = &mut result.bundle {
                bundle.file = *from.plain()?;
            }
            (result.started_at, result.finished_at(), Some(result))
        } else {
            (WallTime(from.varint()?), WallTime(from.varint()?), None)
        };
        let state = ChunkState::from_number(state).ok_or(DecodeError::Body { what: "a chunk state is unknown" })?;
        Ok(Self { chunk, state, attempt, node, started_at, finished_at, result })
    }
}

/// Where the outputs of one chunk lie: a bundle is its index, then standard output, then standard error, then the
/// outputs in the order of the index, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bundle {
    /// In a batch of results this is told by `file_index`; nil until resolved.
    pub file: FileId,
    /// Position of the file in the batch's list.
    pub file_index: u32,
    pub offset: u64,
    /// Bytes of the index; 0 = no outputs besides the two streams.
    pub index_length: u64,
    pub stdout_length: u64,
    pub stderr_length: u64,
    /// Bytes of all outputs.
    pub outputs_length: u64,
}

impl Bundle {
    pub fn index(&self) -> Option<FileAddress> {
        self.piece(self.offset, self.index_length)
    }

    pub fn stdout(&self) -> Option<FileAddress> {
        self.piece(self.offset + self.index_length, self.stdout_length)
    }

    pub fn stderr(&self) -> Option<FileAddress> {
        self.piece(self.offset + self.index_length + self.stdout_length, self.stderr_length)
    }

    /// Where the outputs begin.
    pub fn outputs_offset(&self) -> u64 {
        self.offset + self.index_length + self.stdout_length + self.stderr_length
    }

    fn piece(&self, offset: u64, length: u64) -> Option<FileAddress> {
        (length > 0).then_some(FileAddress { file: self.file, piece: Some((offset, length)) })
    }
}

/// One line of a bundle's index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputEntry {
    /// Relative path under the output directory.
    pub name: Vec<u8>,
    pub length: u64,
    pub hash: Hash,
    /// Permission bits.
    pub mode: u32,
}

/// The bytes of a bundle's index.
pub fn encode_output_index(entries: &[OutputEntry]) -> Vec<u8> {
    let mut to = Writer::new();
    to.varint(entries.len() as u64);
    for entry in entries {
        to.string(&entry.name).varint(entry.length).plain(&entry.hash).varint(entry.mode.into());
    }
    to.bytes
}

/// The lines of a bundle's index.
pub fn decode_output_index(bytes: &[u8]) -> Result<Vec<OutputEntry>, DecodeError> {
    let mut from = Reader::new(bytes);
    let count = from.varint()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let name = from.string()?.to_vec();
        let (length, hash, mode) = (from.varint()?, *from.plain()?, from.varint32()?);
        entries.push(OutputEntry { name, length, hash, mode });
    }
    from.end()?;
    Ok(entries)
}

/// What the run of a chunk came to, as its worker measured it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkResult {
    /// Zero = it never started.
    pub started_at: WallTime,
    /// Microseconds from start to end.
    pub duration_us: u64,
    /// User and system time of the whole process tree.
    pub cpu_us: u64,
    pub max_rss_kib: u64,
    /// `None` when a signal ended it.
    pub exit_code: Option<u8>,
    pub signal: Option<u8>,
    pub cause: Cause,
    /// `None` = it wrote nothing.
    pub bundle: Option<Bundle>,
}

impl ChunkResult {
    pub fn finished_at(&self) -> WallTime {
        WallTime(self.started_at.0.saturating_add(self.duration_us))
    }

    /// Appends the columns, with the start relative to `base`: see `earliest_start`.
    pub fn encode(&self, base: WallTime, to: &mut Writer) {
        let plain_exit = self.exit_code == Some(0) && self.signal.is_none() && self.cause == Cause::None;
        // A zero is before any base, so it has a flag.
        let never_started = self.started_at == WallTime(0) && base != WallTime(0);
        to.raw(&[u8::from(!plain_exit) | u8::from(self.bundle.is_some()) << 1 | u8::from(never_started) << 2]);
        to.varint(self.started_at.0.saturating_sub(base.0))
            .varint(self.duration_us)
            .varint(self.cpu_us)
            .varint(self.max_rss_kib);
        if !plain_exit {
            to.varint(self.exit_code.map_or(0, |code| u64::from(code) + 1))
                .raw(&[self.signal.unwrap_or(0), self.cause as u8]);
        }
        if let Some(b) = &self.bundle {
            to.varint(b.file_index.into()).varint(b.offset).varint(b.index_length);
            to.varint(b.stdout_length).varint(b.stderr_length).varint(b.outputs_length);
        }
    }

    /// Reads the columns; a bundle's file is looked up in `files` by its position (nil if `files` is empty).
    pub fn decode(base: WallTime, files: &[FileId], from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = from.raw(1)?[0];
        let base = if flags & 4 == 0 { base } else { WallTime(0) };
        let started_at =
            WallTime(base.0.checked_add(from.varint()?).ok_or(DecodeError::Body { what: "a time is too large" })?);
        let (duration_us, cpu_us, max_rss_kib) = (from.varint()?, from.varint()?, from.varint()?);
        let (mut exit_code, mut signal, mut cause) = (Some(0), None, Cause::None);
        if flags & 1 != 0 {
            let code = from.varint()?;
            exit_code = code
                .checked_sub(1)
                .map(u8::try_from)
                .transpose()
                .map_err(|_| DecodeError::Body { what: "an exit code is above 255" })?;
            let [number, why] = from.raw(2)?.try_into().expect("two bytes were read");
            signal = (number != 0).then_some(number);
            cause = Cause::from_number(why).ok_or(DecodeError::Body { what: "a cause is unknown" })?;
        }
        let bundle = if flags & 2 != 0 { Some(decode_bundle(files, from)?) } else { None };
        Ok(Self { started_at, duration_us, cpu_us, max_rss_kib, exit_code, signal, cause, bundle })
    }
}

/// The earliest start of those that started: the base for a batch of results. `None` = none of them did.
pub fn earliest_start<'a>(results: impl IntoIterator<Item = &'a ChunkResult>) -> Option<WallTime> {
    results.into_iter().map(|result| result.started_at).filter(|at| *at != WallTime(0)).min()
}

fn decode_bundle(files: &[FileId], from: &mut Reader<'_>) -> Result<Bundle, DecodeError> {
    let file_index = from.varint32()?;
    let file = match files.get(file_index as usize) {
        Some(file) => *file,
        None if files.is_empty() => FileId::NIL,
        None => return Err(DecodeError::Body { what: "a bundle names a file that the batch does not have" }),
    };
    let bundle = Bundle {
        file,
        file_index,
        offset: from.varint()?,
        index_length: from.varint()?,
        stdout_length: from.varint()?,
        stderr_length: from.varint()?,
        outputs_length: from.varint()?,
    };
    let parts = [bundle.index_length, bundle.stdout_length, bundle.stderr_length, bundle.outputs_length];
    let end = parts.iter().try_fold(bundle.offset, |sum, part| sum.checked_add(*part));
    end.map(|_| bundle).ok_or(DecodeError::Body { what: "a bundle is beyond any file" })
}

/// A file as masters know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileRecord {
    pub file: FileId,
    pub hash: Hash,
    pub length: u64,
    /// 0 input, 1 result, 2 temp.
    pub class: u8,
    /// Durable copies.
    pub copies: u32,
    pub stored_at: WallTime,
}

impl FileRecord {
    pub fn encode(&self, to: &mut Writer) {
        to.plain(&self.file).plain(&self.hash).varint(self.length).raw(&[self.class]);
        to.varint(self.copies.into()).varint(self.stored_at.0);
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (file, hash) = (*from.plain()?, *from.plain()?);
        let (length, class) = (from.varint()?, from.raw(1)?[0]);
        Ok(Self { file, hash, length, class, copies: from.varint32()?, stored_at: WallTime(from.varint()?) })
    }
}

/// What `zg status` shows; one record answers the status query.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusRecord {
    pub leader: NodeId,
    pub term: u64,
    pub commit_index: u64,
    pub epoch: u64,
    /// Nil = no primary.
    pub primary: NodeId,
    /// The log index that the primary has seen.
    pub primary_index: u64,
    pub jobs_live: u64,
    pub jobs_total: u64,
    pub chunks_running: u64,
    pub chunks_waiting: u64,
    pub files: u64,
    pub log_first_index: u64,
    pub snapshot_index: u64,
}

impl StatusRecord {
    pub fn encode(&self, to: &mut Writer) {
        to.plain(&self.leader).plain(&self.primary);
        for number in self.numbers() {
            to.varint(number);
        }
    }

    fn numbers(&self) -> [u64; 11] {
        [
            self.term,
            self.commit_index,
            self.epoch,
            self.primary_index,
            self.jobs_live,
            self.jobs_total,
            self.chunks_running,
            self.chunks_waiting,
            self.files,
            self.log_first_index,
            self.snapshot_index,
        ]
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (leader, primary) = (*from.plain()?, *from.plain()?);
        let mut n = [0; 11];
        for number in &mut n {
            *number = from.varint()?;
        }
        let [term, commit_index, epoch, primary_index, jobs_live, jobs_total, ..] = n;
        let [.., chunks_running, chunks_waiting, files, log_first_index, snapshot_index] = n;
        Ok(Self {
            leader,
            primary,
            term,
            commit_index,
            epoch,
            primary_index,
            jobs_live,
            jobs_total,
            chunks_running,
            chunks_waiting,
            files,
            log_first_index,
            snapshot_index,
        })
    }
}
