//! Answers questions from the state and from what the primary says runs.
//!
//! Lists are given in pages that end where a frame is full or the asker's limit is reached; the answer says after which
//! key to go on.

use wire::record::{ChunkCounts, ChunkRecord, ChunkResult, JobRecord, NodeRecord, StatusRecord};
use wire::{
    Answer, Cause, ChunkRange, ChunkState, ErrorCode, FixedPart, Instant, JobId, Kind, NodeId, NodeState, PeerId,
    QUERY_ALL, Query, Role, Subject, U16, U32, U64, WallTime, Writer, bytes_text, limit::BLOCK_SIZE,
};

use super::entry::RunningRange;
use super::presence::running_of;
use super::state::{Accepted, CanceledRun, Job};
use super::{Action, Core};

/// Records of one answer.
const RECORDS_MAX: u32 = 10_000;
/// The least part of a uuid that names a job.
const PREFIX_DIGITS_MIN: usize = 4;

/// A page of records.
#[derive(Default)]
struct Page {
    body: Writer,
    records: u32,
    limit: u32,
    /// Key to go on after; 0 = this is all.
    next: u64,
}

impl Page {
    /// Adds a record. False = it does not fit, and the page ends before it; the first always fits.
    fn push(&mut self, encode: impl FnOnce(&mut Writer)) -> bool {
        let mut record = Writer::new();
        encode(&mut record);
        let is_full = self.records >= self.limit || self.body.bytes.len() + record.bytes.len() > BLOCK_SIZE;
        if self.records > 0 && is_full {
            return false;
        }
        self.body.raw(&record.bytes);
        self.records += 1;
        true
    }
}

/// Why there is no answer.
type Refusal = (ErrorCode, String);

impl Core {
    pub(super) fn on_query(
        &mut self,
        from: PeerId,
        fixed: &Query,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let answer = match Subject::from_number(fixed.subject.get()) {
            None => Err((ErrorCode::InvalidRequest, format!("query subject {} is not known here", fixed.subject))),
            Some(_) if fixed.index.get() > self.state.index => {
                let detail = format!("index {} is not reached yet, this is {}", fixed.index, self.state.index);
                Err((ErrorCode::NotReady, detail))
            }
            Some(subject) => self.page(subject, fixed, body, now),
        };
        match answer {
            Ok(page) => {
                let answer = Answer {
                    request: fixed.request,
                    index: U64::new(self.state.index),
                    next: U64::new(page.next),
                    subject: fixed.subject,
                    num_records: U32::new(page.records),
                    reserved: U16::ZERO,
                    term: U32::new(u32::try_from(self.raft.term()).unwrap_or(u32::MAX)),
                    ..Answer::DEFAULT
                };
                let frame = answer.frame(self.config.node, &page.body.bytes);
                actions.push(Action::Send { to: from, frame });
            }
            Err((code, detail)) => {
                let (request, job) = (fixed.request.get(), fixed.uuid.job());
                self.refuse(from, Some(Kind::Query), request, job, code, &detail, actions);
            }
        }
    }

    fn page(&self, subject: Subject, fixed: &Query, body: &[u8], now: Instant) -> Result<Page, Refusal> {
        let mut page = Page { limit: fixed.limit.get().clamp(1, RECORDS_MAX), ..Page::default() };
        let after = fixed.after.get();
        match subject {
            Subject::Jobs => self.jobs(fixed.flags.get() & QUERY_ALL != 0, after, &mut page),
            Subject::Job => {
                let record = self.job_record(self.select(fixed.uuid.job(), body)?);
                page.push(|to| record.encode(to));
            }
            Subject::Chunks => self.chunks(self.select(fixed.uuid.job(), body)?, after, &mut page),
            Subject::Files => self.files(after, &mut page),
            Subject::File => {
                let id = fixed.uuid.file();
                let record = self.state.file_record(id).ok_or((ErrorCode::FileUnknown, format!("no file {id}")))?;
                page.push(|to| record.encode(to));
            }
            Subject::Nodes => self.nodes(after, now, &mut page),
            Subject::Inputs => self.inputs(after, &mut page),
            Subject::Status => {
                page.push(|to| self.status().encode(to));
            }
        }
        Ok(page)
    }

    /// The job that a uuid, a number, a unique prefix of a uuid or `last` names.
    fn select(&self, uuid: JobId, text: &[u8]) -> Result<&Job, Refusal> {
        let unknown = |detail: String| (ErrorCode::UnknownJob, detail);
        if !uuid.is_nil() {
            return self.state.jobs.get(&uuid).ok_or_else(|| unknown(format!("no job {uuid}")));
        }
        let text = bytes_text(text);
        let nothing = || unknown(format!("no job '{text}'"));
        let by_number = |number: u64| self.state.jobs_by_number.get(&number).map(|id| &self.state.jobs[id]);
        if text == "last" {
            let last = self.state.jobs_by_number.last_key_value().ok_or_else(nothing)?;
            return Ok(&self.state.jobs[last.1]);
        }
        if let Some(job) = text.parse().ok().and_then(by_number) {
            return Ok(job);
        }
        let prefix = text.to_ascii_lowercase().replace('-', "");
        if prefix.len() < PREFIX_DIGITS_MIN || !prefix.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(nothing());
        }
        // Uuids sort as their digits do, so those that a prefix names stand together.
        let first: JobId = format!("{prefix:0<32}").parse().map_err(|_| nothing())?;
        let from_first = self.state.jobs.range(first..).map(|(_, job)| job);
        let mut named = from_first.take_while(|job| job.job.simple().starts_with(&prefix));
        match (named.next(), named.next()) {
            (Some(job), None) => Ok(job),
            (None, _) => Err(nothing()),
            (Some(first), Some(second)) => {
                let detail = format!("'{text}' names several jobs, {} and {} among them", first.job, second.job);
                Err(unknown(detail))
            }
        }
    }

    fn jobs(&self, all: bool, after: u64, page: &mut Page) {
        let wanted = |job: &&Job| all || job.is_live();
        let newer = self.state.jobs_by_number.range(after.saturating_add(1)..).map(|(_, id)| &self.state.jobs[id]);
        let mut given = after;
        for job in newer.filter(wanted) {
            if !page.push(|to| self.job_record(job).encode(to)) {
                page.next = given;
                return;
            }
            given = job.number;
        }
    }

    fn job_record(&self, job: &Job) -> JobRecord {
        let counts = self.counts(job);
        JobRecord {
            job: job.job,
            number: job.number,
            state: counts.job_state(),
            counts,
            submitted_at: job.submitted_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            name: job.facts.name.clone(),
            array: job.facts.array.clone(),
            command: job.facts.command.clone(),
        }
    }

    /// The chunks in each state, those that run told apart.
    fn counts(&self, job: &Job) -> ChunkCounts {
        let mut counts = job.counts();
        let running: u64 = running_of(self.presence.running(&self.state.epoch), job.job)
            .map(|(range, ..)| job.open.count_in(range))
            .sum();
        // The view is a little old: a chunk may be listed on two workers, or run no more.
        counts.running = running.min(counts.waiting);
        counts.waiting -= counts.running;
        counts
    }

    fn chunks(&self, job: &Job, first: u64, page: &mut Page) {
        let count = job.facts.chunk_count;
        let Ok(first) = u32::try_from(first) else { return };
        let range = ChunkRange::new(first, page.limit.min(count.saturating_sub(first)));
        let running = self.running_of(job, range);
        let mut running =
            running.iter().flat_map(|item| item.range.chunks().map(move |chunk| (chunk, item))).peekable();
        let accepted = job.results.read(range);
        let mut accepted = accepted.iter().peekable();
        for chunk in range.chunks() {
            let result = accepted.next_if(|accepted| accepted.chunk == chunk);
            let running = running.next_if(|(of, _)| *of == chunk).map(|(_, item)| item);
            if !page.push(|to| chunk_record(job, chunk, result, running).encode(to)) {
                page.next = chunk.into();
                return;
            }
        }
        if range.count > 0 && range.end() < u64::from(count) {
            page.next = range.end();
        }
    }

    fn files(&self, after: u64, page: &mut Page) {
        let mut given = after;
        for (number, id) in self.state.files_by_number.range(after.saturating_add(1)..) {
            let record = self.state.file_record(*id).expect("a numbered file is known");
            if !page.push(|to| record.encode(to)) {
                page.next = given;
                return;
            }
            given = *number;
        }
    }

    /// The key is how many were given: nodes are never removed, and one that registers meanwhile is seen the next time.
    fn nodes(&self, after: u64, now: Instant, page: &mut Page) {
        let skipped = usize::try_from(after).unwrap_or(usize::MAX);
        for (position, record) in self.state.nodes.values().enumerate().skip(skipped) {
            if !page.push(|to| self.node_record(record, now).encode(to)) {
                page.next = position as u64;
                return;
            }
        }
    }

    /// The key is as for nodes.
    fn inputs(&self, after: u64, page: &mut Page) {
        let skipped = usize::try_from(after).unwrap_or(usize::MAX);
        for (position, record) in self.presence.inputs().enumerate().skip(skipped) {
            if !page.push(|to| record.encode(to)) {
                page.next = position as u64;
                return;
            }
        }
    }

    fn node_record(&self, record: &NodeRecord, now: Instant) -> NodeRecord {
        let is_leader = record.node == self.config.node;
        let is_up = is_leader || self.presence.is_heard(record.node, now, self.config.timings.grace_ms);
        let epoch = &self.state.epoch;
        NodeRecord {
            state: if is_up { NodeState::Up } else { NodeState::Lost },
            is_leader,
            is_primary: record.role == Role::LoadBalancer
                && (record.node, record.boot) == (epoch.load_balancer, epoch.boot),
            ..record.clone()
        }
    }

    fn status(&self) -> StatusRecord {
        let live = || self.state.jobs_live.iter().map(|id| self.counts(&self.state.jobs[id]));
        StatusRecord {
            leader: self.config.node,
            term: self.raft.term(),
            commit_index: self.raft.commit_index(),
            epoch: self.state.epoch.number,
            primary: self.state.epoch.load_balancer,
            primary_index: self.presence.primary_index(&self.state.epoch),
            jobs_live: self.state.jobs_live.len() as u64,
            jobs_total: self.state.jobs.len() as u64,
            chunks_running: live().map(|counts| counts.running).sum(),
            chunks_waiting: live().map(|counts| counts.waiting).sum(),
            files: self.state.files.len() as u64,
            log_first_index: self.raft.log().compacted_index() + 1,
            snapshot_index: self.snapshot_index,
        }
    }
}

fn chunk_record(job: &Job, chunk: u32, accepted: Option<&Accepted>, running: Option<&RunningRange>) -> ChunkRecord {
    let nothing = ChunkRecord {
        chunk,
        state: job.ended_state(chunk).unwrap_or(ChunkState::Waiting),
        attempt: job.tries.of(chunk).attempt,
        node: NodeId::NIL,
        started_at: WallTime(0),
        finished_at: WallTime(0),
        result: None,
    };
    if let Some(Accepted { attempt, worker, result, .. }) = accepted {
        let (started_at, finished_at) = (result.started_at, result.finished_at());
        return ChunkRecord {
            attempt: *attempt,
            node: *worker,
            started_at,
            finished_at,
            result: Some(*result),
            ..nothing
        };
    }
    if let Some(CanceledRun { worker, started_at, canceled_at }) = job.canceled.of(chunk) {
        return ChunkRecord { node: worker, started_at, finished_at: canceled_at, ..nothing };
    }
    if job.lost.contains(chunk) {
        return ChunkRecord { result: Some(WORKER_LOST), ..nothing };
    }
    match running.filter(|_| job.open.contains(chunk)) {
        Some(item) => {
            let RunningRange { worker, started_at, .. } = *item;
            ChunkRecord { state: ChunkState::Running, node: worker, started_at, ..nothing }
        }
        None => nothing,
    }
}

/// What is said of a chunk whose workers were all lost: no run of it ever reported.
const WORKER_LOST: ChunkResult = ChunkResult {
    started_at: WallTime(0),
    duration_us: 0,
    cpu_us: 0,
    max_rss_kib: 0,
    exit_code: None,
    signal: None,
    cause: Cause::WorkerLost,
    bundle: None,
};
