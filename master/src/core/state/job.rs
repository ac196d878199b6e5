//! One job: which of its chunks have ended how, and what log entries do to them.
//!
//! This is the apply table of the protocol: a chunk has one place for a result, and the first accepted entry takes it.
//! Everything here costs by runs of neighbours, never by chunks that have not run.

use wire::job::{JobBody, JobSpec};
use wire::record::{ChunkCounts, ChunkResult, earliest_start};
use wire::run::Run;
use wire::{ArraySpec, BootNonce, Cause, ChunkRange, ChunkSet, ChunkState, JobId, JobState, NodeId, WallTime};
use wire::{DecodeError, Message, Reader, Writer, event::LogEvent};

use super::super::entry::RunningRange;
use super::canceled::{CanceledRun, CanceledRuns};
use super::results::ResultRuns;
use super::tries::{Tries, TryMap};

/// Ranges in one event, so that none outgrows a frame.
const EVENT_RANGES_MAX: usize = 65_536;
/// Bytes of the command that lists show.
const COMMAND_SIZE_MAX: usize = 200;

/// The states that a chunk never leaves, in the order of `Job::ended`.
pub const TERMINAL: [ChunkState; 4] =
    [ChunkState::Finished, ChunkState::Failed, ChunkState::Canceled, ChunkState::Aborted];

/// A job in the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    pub job: JobId,
    pub number: u64,
    /// The log index that accepted it.
    pub index: u64,
    pub submitted_at: WallTime,
    /// The earliest start in an accepted result, or of what ran when it was canceled; zero = none yet.
    pub started_at: WallTime,
    /// When its last chunk ended; zero = not yet.
    pub finished_at: WallTime,
    /// Its `submit_job` as it came.
    pub frame: Box<[u8]>,
    pub facts: Facts,
    /// Chunks that have not ended.
    pub open: ChunkSet,
    /// Chunks that have, by `TERMINAL`.
    ended: [ChunkSet; 4],
    /// How many are in each of `ended`.
    ended_counts: [u64; 4],
    /// Those of `Failed` whose worker was lost too often: they have no result.
    pub lost: ChunkSet,
    pub tries: TryMap,
    pub results: ResultRuns,
    /// Of `Canceled` those that ran then.
    pub canceled: CanceledRuns,
}

/// What is read from the job's frame once and for all.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    pub chunk_count: u32,
    pub name: Vec<u8>,
    /// The first words of the command.
    pub command: Vec<u8>,
    pub array: ArraySpec,
    retries: u32,
    retry_on: u32,
    retry_exit_codes: Vec<u8>,
    crash_limit: u32,
    max_fails: Option<u32>,
}

impl Facts {
    pub fn new(spec: &JobSpec, chunk_count: u32) -> Self {
        let mut command = spec.arguments.join(&b' ');
        command.truncate(COMMAND_SIZE_MAX);
        Self {
            chunk_count,
            name: spec.name.clone(),
            command,
            array: spec.array.clone(),
            retries: spec.retries,
            retry_on: spec.retry_on,
            retry_exit_codes: spec.retry_exit_codes.clone(),
            crash_limit: spec.crash_limit,
            max_fails: spec.max_fails,
        }
    }

    fn of_frame(frame: &[u8]) -> Result<(JobId, Self), DecodeError> {
        let Message::SubmitJob(fixed, body) = Message::decode(frame)? else {
            return Err(DecodeError::Body { what: "a job's frame is no submit_job" });
        };
        let body = JobBody::decode(body, fixed.program_length.get(), fixed.num_input_files.get())?;
        Ok((fixed.job_uuid.job(), Self::new(&JobSpec::decode(body.spec)?, fixed.chunk_count.get())))
    }

    fn is_retried(&self, result: &ChunkResult, tries: Tries) -> bool {
        let failures = (tries.attempt - 1).saturating_sub(tries.crashes);
        let is_listed = self.retry_on & result.cause.bit() != 0;
        let is_exit_listed = result.cause != Cause::Exit
            || self.retry_exit_codes.is_empty()
            || result.exit_code.is_some_and(|code| self.retry_exit_codes.contains(&code));
        is_listed && is_exit_listed && failures < self.retries && tries.attempt < u32::MAX
    }
}

/// Who held chunks that an entry frees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    pub worker: NodeId,
    pub boot: BootNonce,
    pub attempt_max: u32,
}

/// What an entry did to the chunks of one job.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes {
    /// Chunks whose holder holds them no more, though they have not ended by this.
    freed: Vec<ChunkRange>,
    /// Chunks that wait again, with their attempt.
    waiting: Vec<(u32, ChunkRange)>,
    /// By `TERMINAL`.
    ended: [Vec<ChunkRange>; 4],
    /// Set when the last chunk ended.
    job_ended: Option<(JobState, WallTime)>,
    /// Chunks whose state or attempt changed.
    pub changed: u64,
}

impl Changes {
    /// The changes as watchers are told.
    pub fn events(self, job: JobId, holder: Option<Holder>, events: &mut Vec<LogEvent<'_>>) {
        if let Some(Holder { worker, boot, attempt_max }) = holder {
            for ranges in pieces(self.freed) {
                events.push(LogEvent::HolderFreed { job, worker, boot, attempt_max, ranges });
            }
        }
        let mut waiting = self.waiting;
        waiting.sort_by_key(|(attempt, range)| (*attempt, range.first));
        for same in waiting.chunk_by(|a, b| a.0 == b.0) {
            let attempt = same[0].0;
            for ranges in pieces(same.iter().map(|(_, range)| *range).collect()) {
                events.push(LogEvent::ChunksWaiting { job, attempt, ranges });
            }
        }
        for (state, ended) in TERMINAL.into_iter().zip(self.ended) {
            for ranges in pieces(ended) {
                events.push(LogEvent::ChunksEnded { job, state, ranges });
            }
        }
        if let Some((state, at)) = self.job_ended {
            events.push(LogEvent::JobEnded { job, state, at });
        }
    }
}

/// The ranges with neighbours joined, in lists that fit an event.
fn pieces(ranges: Vec<ChunkRange>) -> Vec<Vec<ChunkRange>> {
    let mut joined: Vec<ChunkRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end() == u64::from(range.first) => last.count += range.count,
            _ => joined.push(range),
        }
    }
    joined.chunks(EVENT_RANGES_MAX).map(<[ChunkRange]>::to_vec).collect()
}

impl Job {
    /// A job of which nothing has run.
    pub fn new(job: JobId, number: u64, index: u64, submitted_at: WallTime, facts: Facts, frame: &[u8]) -> Self {
        Self {
            job,
            number,
            index,
            submitted_at,
            started_at: WallTime(0),
            finished_at: WallTime(0),
            frame: frame.into(),
            open: ChunkSet::full(facts.chunk_count),
            facts,
            ended: Default::default(),
            ended_counts: [0; 4],
            lost: ChunkSet::new(),
            tries: TryMap::default(),
            results: ResultRuns::default(),
            canceled: CanceledRuns::default(),
        }
    }

    /// All its chunks.
    pub fn range(&self) -> ChunkRange {
        ChunkRange::new(0, self.facts.chunk_count)
    }

    pub fn is_live(&self) -> bool {
        !self.open.is_empty()
    }

    /// The chunks in each state; what runs is not known here and counts as waiting.
    pub fn counts(&self) -> ChunkCounts {
        let [finished, failed, canceled, aborted] = self.ended_counts;
        let waiting = u64::from(self.facts.chunk_count) - finished - failed - canceled - aborted;
        ChunkCounts { waiting, running: 0, finished, failed, canceled, aborted }
    }

    /// The terminal state of a chunk; `None` = it has not ended.
    pub fn ended_state(&self, chunk: u32) -> Option<ChunkState> {
        let position = self.ended.iter().position(|set| set.contains(chunk))?;
        Some(TERMINAL[position])
    }

    /// The chunks of each terminal state that has any.
    pub fn ended_sets(&self) -> impl Iterator<Item = (ChunkState, &ChunkSet)> {
        TERMINAL.into_iter().zip(&self.ended).filter(|(_, set)| !set.is_empty())
    }

    /// True when every chunk of the runs exists.
    pub fn has(&self, runs: &[Run]) -> bool {
        runs.iter().all(|run| run.range().is_within(self.facts.chunk_count))
    }

    /// Successes: of any attempt, and the first accepted wins.
    pub fn succeed(&mut self, worker: NodeId, attempt: u32, runs: &[Run], stamp: WallTime) -> Changes {
        let mut changes = Changes::default();
        for run in runs {
            for range in self.open_in(run.range()) {
                self.accept(worker, attempt, range, run);
                self.end(range, ChunkState::Finished, &mut changes);
            }
        }
        self.finish(stamp, &mut changes);
        changes
    }

    /// Failures of one attempt: each chunk that is at that attempt gets another, or has failed.
    pub fn fail(&mut self, worker: NodeId, attempt: u32, runs: &[Run], stamp: WallTime) -> Changes {
        let mut changes = Changes::default();
        for run in runs {
            for range in self.open_in(run.range()) {
                changes.freed.push(range);
                for (piece, tries) in self.tries.pieces(range) {
                    if tries.attempt == attempt {
                        self.fail_piece(worker, piece, tries, run, &mut changes);
                    }
                }
            }
        }
        self.finish(stamp, &mut changes);
        changes
    }

    fn fail_piece(&mut self, worker: NodeId, piece: ChunkRange, tries: Tries, run: &Run, changes: &mut Changes) {
        let is_retried = |chunk: u32| self.facts.is_retried(&run.results[(chunk - run.first) as usize], tries);
        let chunks: Vec<(u32, bool)> = piece.chunks().map(|chunk| (chunk, is_retried(chunk))).collect();
        for same in chunks.chunk_by(|a, b| a.1 == b.1) {
            let range = ChunkRange::new(same[0].0, same.len() as u32);
            if same[0].1 {
                let again = Tries { attempt: tries.attempt + 1, ..tries };
                self.wait_again(range, again, changes);
            } else {
                self.accept(worker, tries.attempt, range, run);
                self.end(range, ChunkState::Failed, changes);
            }
        }
    }

    /// The worker that held these chunks is gone: those at that attempt get another, or have crashed too often.
    pub fn lose(&mut self, range: ChunkRange, attempt: u32, stamp: WallTime) -> Changes {
        let mut changes = Changes::default();
        for range in self.open_in(range) {
            changes.freed.push(range);
            for (piece, tries) in self.tries.pieces(range) {
                if tries.attempt != attempt {
                    continue;
                }
                let crashes = tries.crashes + 1;
                if crashes >= self.facts.crash_limit || attempt == u32::MAX {
                    self.tries.set(piece, Tries { attempt, crashes });
                    self.lost.insert(piece);
                    self.end(piece, ChunkState::Failed, &mut changes);
                } else {
                    self.wait_again(piece, Tries { attempt: attempt + 1, crashes }, &mut changes);
                }
            }
        }
        self.finish(stamp, &mut changes);
        changes
    }

    /// Every chunk of the range that has not ended is canceled. `running` is in order, each chunk at most once; what it
    /// says of an attempt that does not count any more is not so.
    pub fn cancel(&mut self, range: ChunkRange, running: &[RunningRange], stamp: WallTime) -> Changes {
        let mut changes = Changes::default();
        for item in running {
            let RunningRange { worker, started_at, .. } = *item;
            let Some(within) = item.range.within(range) else { continue };
            for open in self.open_in(within) {
                for (piece, tries) in self.tries.pieces(open) {
                    if tries.attempt == item.attempt {
                        self.canceled.keep(piece, CanceledRun { worker, started_at, canceled_at: stamp });
                        self.start_at(Some(started_at));
                    }
                }
            }
        }
        for range in self.open_in(range) {
            self.end(range, ChunkState::Canceled, &mut changes);
        }
        self.finish(stamp, &mut changes);
        changes
    }

    fn open_in(&self, range: ChunkRange) -> Vec<ChunkRange> {
        self.open.ranges_in(range).collect()
    }

    fn accept(&mut self, worker: NodeId, attempt: u32, range: ChunkRange, run: &Run) {
        let start = (range.first - run.first) as usize;
        let results = &run.results[start..start + range.count as usize];
        self.start_at(earliest_start(results));
        self.results.keep(worker, attempt, range.first, results);
    }

    /// A chunk of it started then, as far as that is known.
    fn start_at(&mut self, at: Option<WallTime>) {
        let known = [at, Some(self.started_at)].into_iter().flatten().filter(|at| *at != WallTime(0));
        self.started_at = known.min().unwrap_or_default();
    }

    fn wait_again(&mut self, range: ChunkRange, tries: Tries, changes: &mut Changes) {
        self.tries.set(range, tries);
        changes.waiting.push((tries.attempt, range));
        changes.changed += u64::from(range.count);
    }

    fn end(&mut self, range: ChunkRange, state: ChunkState, changes: &mut Changes) {
        let position = TERMINAL.iter().position(|terminal| *terminal == state).expect("a chunk ends in such a state");
        self.open.remove(range);
        self.ended[position].insert(range);
        self.ended_counts[position] += u64::from(range.count);
        changes.ended[position].push(range);
        changes.changed += u64::from(range.count);
    }

    /// Aborts the job when too many chunks have failed, and ends it with its last chunk.
    fn finish(&mut self, stamp: WallTime, changes: &mut Changes) {
        let failed = self.ended_counts[1];
        if changes.changed > 0 && self.facts.max_fails.is_some_and(|max| failed > u64::from(max)) {
            for range in self.open_in(ChunkRange::new(0, self.facts.chunk_count)) {
                self.end(range, ChunkState::Aborted, changes);
            }
        }
        if changes.changed > 0 && self.open.is_empty() {
            self.finished_at = stamp;
            changes.job_ended = Some((self.counts().job_state(), stamp));
        }
    }

    pub fn encode(&self, to: &mut Writer) {
        to.varint(self.number).varint(self.index).varint(self.submitted_at.0);
        to.varint(self.started_at.0).varint(self.finished_at.0).string(&self.frame);
        for set in self.ended.iter().chain([&self.lost]) {
            to.string(&set.to_bytes());
        }
        self.tries.encode(to);
        self.results.encode(to);
        self.canceled.encode(to);
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (number, index, submitted_at) = (from.varint()?, from.varint()?, WallTime(from.varint()?));
        let (started_at, finished_at) = (WallTime(from.varint()?), WallTime(from.varint()?));
        let frame = from.string()?;
        let (id, facts) = Facts::of_frame(frame)?;
        let mut job = Self::new(id, number, index, submitted_at, facts, frame);
        (job.started_at, job.finished_at) = (started_at, finished_at);
        for position in 0..TERMINAL.len() {
            let set = ChunkSet::from_bytes(from.string()?)?;
            job.open.subtract(&set);
            job.ended_counts[position] = set.len();
            job.ended[position] = set;
        }
        job.lost = ChunkSet::from_bytes(from.string()?)?;
        job.tries = TryMap::decode(from)?;
        job.results = ResultRuns::decode(from)?;
        job.canceled = CanceledRuns::decode(from)?;
        if !job.is_consistent() {
            return Err(DecodeError::Body { what: "the chunks of a job are not each in one state" });
        }
        Ok(job)
    }

    /// Each chunk is in one state, has a result exactly if it finished or failed with one, and was canceled if it ran so.
    pub fn is_consistent(&self) -> bool {
        let total = self.open.len() + self.ended_counts.iter().sum::<u64>();
        let mut union = self.open.clone();
        self.ended.iter().for_each(|set| union.union_with(set));
        let counts_hold = self.ended.iter().map(ChunkSet::len).eq(self.ended_counts);
        let [_, _, canceled, _] = &self.ended;
        let are_canceled = self.canceled.ranges().all(|range| canceled.count_in(range) == u64::from(range.count));
        let with_result = self.ended_counts[0] + self.ended_counts[1] - self.lost.len();
        total == u64::from(self.facts.chunk_count)
            && union.len() == total
            && counts_hold
            && are_canceled
            && self.results.count() == with_result
            && (self.finished_at == WallTime(0)) == self.is_live()
    }
}
