//! What has ended and is not confirmed: kept, reported in batches, and said again until it is in the log.
//!
//! A result is like a signed delivery note: the driver keeps his copy until the office has filed theirs. A batch is one
//! job, one outcome, one attempt; once sent it is never changed, so that the leader can tell a repetition by its number.

use std::collections::BTreeMap;

use wire::record::{ChunkResult, StoredFile, holding};
use wire::run::{Run, encode_results};
use wire::{
    Cause, ChunkRange, ChunkSet, Duration, ErrorCode, FileId, FixedPart, Instant, JobId, Kind, PeerId, StatusState,
    U32, U64, WallTime, WorkerStatus,
};

use super::job::Jobs;
use super::{Action, Holding, Parcel, Timer, Worker};

/// Chunks of a batch: each takes less than 200 bytes with a file of its own.
const BATCH_CHUNKS_MAX: u32 = 1024;
const _: () = assert!(BATCH_CHUNKS_MAX as usize * 200 <= wire::limit::RESULT_BATCH_SIZE_MAX);
const _: () = assert!(BATCH_CHUNKS_MAX as usize <= wire::limit::RESULT_RUNS_MAX);
/// So many results do not wait for company.
const READY_COUNT_MIN: u64 = 64;
/// Unconfirmed batches; further results wait and make larger ones.
const BATCHES_MAX: usize = 64;

/// How a run came out, as far as it is known when its program has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) result: ChunkResult,
}

impl Outcome {
    pub(super) fn is_success(&self) -> bool {
        self.result.cause == Cause::None
    }

    /// Of a chunk that was never started.
    pub(super) fn unstarted(cause: Cause) -> Self {
        Self {
            result: ChunkResult {
                started_at: WallTime(0),
                duration_us: 0,
                cpu_us: 0,
                max_rss_kib: 0,
                exit_code: None,
                signal: None,
                cause,
                bundle: None,
            },
        }
    }
}

/// A chunk that ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) attempt: u32,
    /// The epoch that assigned it.
    pub(super) epoch: u64,
    /// The run whose outputs are put aside.
    pub(super) kept: Option<u64>,
    pub(super) outcome: Outcome,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Its outputs are on their way to storage.
    Uploading,
    /// To be reported.
    Ready,
    Reported {
        batch: u64,
    },
}

/// What the chunks of a batch have in common: job, whether they ended well, attempt, epoch.
type Alike = (JobId, bool, u32, u64);

#[derive(Debug)]
struct Batch {
    job: JobId,
    /// Those of its chunks that are still kept here.
    chunks: ChunkSet,
    frame: Vec<u8>,
    due: Instant,
    interval: Duration,
    /// The receipts were refused: when it is due, the outputs are stored again instead.
    is_refused: bool,
}

#[derive(Debug, Default)]
pub(super) struct Results {
    ended: BTreeMap<(JobId, u32), Ended>,
    ready: BTreeMap<Alike, ChunkSet>,
    ready_count: u64,
    uploading: BTreeMap<u64, (JobId, u32)>,
    batches: BTreeMap<u64, Batch>,
    last_batch: u64,
    reported_at: Option<Instant>,
    /// Stored files, each with how many results point into it.
    files: BTreeMap<FileId, (StoredFile, u32)>,
}

impl Results {
    pub(super) fn len(&self) -> usize {
        self.ended.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (JobId, u32, &Ended)> {
        self.ended.iter().map(|((job, chunk), ended)| (*job, *chunk, ended))
    }

    pub(super) fn holdings(&self) -> impl Iterator<Item = Holding> {
        self.all().map(|(job, chunk, ended)| Holding {
            job,
            range: ChunkRange::one(chunk),
            attempt: ended.attempt,
            state: if ended.outcome.is_success() { holding::ENDED_WELL } else { holding::ENDED_BADLY },
        })
    }

    /// Keeps the result of a chunk; with outputs put aside by `kept`, it is reported when they are stored.
    pub(super) fn add(
        &mut self,
        job: JobId,
        chunk: u32,
        attempt: u32,
        epoch: u64,
        outcome: Outcome,
        kept: Option<u64>,
    ) {
        let ended = Ended { attempt, epoch, kept, outcome, state: State::Uploading };
        assert!(self.ended.insert((job, chunk), ended).is_none(), "chunk {chunk} of job {job} ended twice");
        match kept {
            Some(run) => {
                self.uploading.insert(run, (job, chunk));
            }
            None => self.make_ready(job, chunk),
        }
    }

    fn make_ready(&mut self, job: JobId, chunk: u32) {
        let ended = self.ended.get_mut(&(job, chunk)).expect("only an ended chunk becomes ready");
        ended.state = State::Ready;
        let alike = (job, ended.outcome.is_success(), ended.attempt, ended.epoch);
        self.ready.entry(alike).or_default().insert(ChunkRange::one(chunk));
        self.ready_count += 1;
    }

    fn on_parcel(&mut self, parcel: &Parcel, file: Option<&StoredFile>) {
        // Its result may have been forgotten meanwhile: killed, or settled by a higher attempt.
        let Some((job, chunk)) = self.uploading.remove(&parcel.run) else { return };
        let ended = self.ended.get_mut(&(job, chunk)).expect("what is uploading has ended");
        ended.outcome.result.bundle = parcel.bundle;
        if parcel.is_refused && ended.outcome.is_success() {
            ended.outcome.result.cause = Cause::Policy;
        }
        if parcel.bundle.is_some() {
            let file = file.expect("a bundle lies in a file");
            self.files.entry(file.file).or_insert_with(|| (file.clone(), 0)).1 += 1;
        }
        self.make_ready(job, chunk);
    }

    /// Forgets the results of these chunks.
    pub(super) fn forget(
        &mut self,
        job: JobId,
        range: ChunkRange,
        jobs: &mut Jobs,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.forget_those(job, range, |_| true, jobs, now, actions);
    }

    /// Forgets the failures of these chunks that a higher attempt has settled.
    pub(super) fn forget_failures_below(
        &mut self,
        job: JobId,
        range: ChunkRange,
        attempt: u32,
        jobs: &mut Jobs,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_settled = |ended: &Ended| !ended.outcome.is_success() && ended.attempt < attempt;
        self.forget_those(job, range, is_settled, jobs, now, actions);
    }

    fn forget_those(
        &mut self,
        job: JobId,
        range: ChunkRange,
        which: impl Fn(&Ended) -> bool,
        jobs: &mut Jobs,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let last = range.end().saturating_sub(1).min(u64::from(u32::MAX)) as u32;
        if range.count == 0 {
            return;
        }
        let within = self.ended.range((job, range.first)..=(job, last));
        let chunks: Vec<u32> = within.filter(|(_, ended)| which(ended)).map(|((_, chunk), _)| *chunk).collect();
        for chunk in chunks {
            self.forget_chunk(job, chunk, actions);
            jobs.let_go(job, ChunkRange::one(chunk), now);
        }
    }

    fn forget_chunk(&mut self, job: JobId, chunk: u32, actions: &mut Vec<Action>) {
        let ended = self.ended.remove(&(job, chunk)).expect("only an ended chunk is forgotten");
        match ended.state {
            State::Uploading => {
                self.uploading.remove(&ended.kept.expect("what is uploading was put aside"));
            }
            State::Ready => self.unready(job, chunk, &ended),
            State::Reported { batch } => {
                let sent = self.batches.get_mut(&batch).expect("a reported chunk has its batch");
                sent.chunks.remove(ChunkRange::one(chunk));
                if sent.chunks.is_empty() {
                    self.batches.remove(&batch);
                }
            }
        }
        self.drop_bundle(&ended);
        if let Some(run) = ended.kept {
            actions.push(Action::Release { run });
        }
    }

    fn unready(&mut self, job: JobId, chunk: u32, ended: &Ended) {
        let alike = (job, ended.outcome.is_success(), ended.attempt, ended.epoch);
        let chunks = self.ready.get_mut(&alike).expect("a ready chunk is among its like");
        chunks.remove(ChunkRange::one(chunk));
        if chunks.is_empty() {
            self.ready.remove(&alike);
        }
        self.ready_count -= 1;
    }

    fn drop_bundle(&mut self, ended: &Ended) {
        let Some(bundle) = ended.outcome.result.bundle else { return };
        let (_, pointers) = self.files.get_mut(&bundle.file).expect("a bundle's file is known");
        *pointers -= 1;
        if *pointers == 0 {
            self.files.remove(&bundle.file);
        }
    }

    /// Takes a confirmed batch off the shelf; false if it is gone already.
    fn settle(&mut self, batch: u64, jobs: &mut Jobs, now: Instant, actions: &mut Vec<Action>) -> bool {
        let Some(sent) = self.batches.get(&batch) else { return false };
        let (job, chunks) = (sent.job, sent.chunks.clone());
        for chunk in chunks.iter() {
            self.forget_chunk(job, chunk, actions);
        }
        for range in chunks.ranges() {
            jobs.let_go(job, range, now);
        }
        assert!(!self.batches.contains_key(&batch), "batch {batch} goes with its last chunk");
        true
    }

    /// Has the outputs of a batch stored again, as if the batch had never been.
    fn store_again(&mut self, batch: u64, actions: &mut Vec<Action>) {
        let sent = self.batches.remove(&batch).expect("only an unconfirmed batch is stored again");
        for chunk in sent.chunks.iter() {
            let key = (sent.job, chunk);
            let ended = *self.ended.get(&key).expect("a reported chunk has ended");
            match ended.kept {
                Some(run) => {
                    self.drop_bundle(&ended);
                    let again = self.ended.get_mut(&key).expect("found above");
                    again.outcome.result.bundle = None;
                    again.state = State::Uploading;
                    self.uploading.insert(run, key);
                    actions.push(Action::Upload { job: sent.job, run });
                }
                None => self.make_ready(sent.job, chunk),
            }
        }
    }

    /// The body of a batch of these chunks, with the number of its files and runs.
    fn encode(&self, job: JobId, chunks: &ChunkSet) -> (Vec<u8>, u32, u32) {
        let mut positions: BTreeMap<FileId, u32> = BTreeMap::new();
        let mut files = Vec::new();
        let mut runs = Vec::new();
        for range in chunks.ranges() {
            let mut results = Vec::with_capacity(range.count as usize);
            for chunk in range.chunks() {
                let mut result = self.ended[&(job, chunk)].outcome.result;
                if let Some(bundle) = &mut result.bundle {
                    bundle.file_index = *positions.entry(bundle.file).or_insert_with(|| {
                        files.push(self.files[&bundle.file].0.clone());
                        files.len() as u32 - 1
                    });
                }
                results.push(result);
            }
            runs.push(Run { first: range.first, results });
        }
        (encode_results(&files, &runs), files.len() as u32, runs.len() as u32)
    }

    /// Asserts what must hold of all results at any time.
    pub(super) fn check_invariants(&self) {
        let mut ready = 0;
        let mut pointers: BTreeMap<FileId, u32> = BTreeMap::new();
        for ((job, chunk), ended) in &self.ended {
            match ended.state {
                State::Uploading => {
                    let run = ended.kept.expect("what is uploading was put aside");
                    assert_eq!(self.uploading.get(&run), Some(&(*job, *chunk)));
                }
                State::Ready => ready += 1,
                State::Reported { batch } => assert!(self.batches[&batch].chunks.contains(*chunk)),
            }
            if let Some(bundle) = ended.outcome.result.bundle {
                *pointers.entry(bundle.file).or_default() += 1;
            }
        }
        assert_eq!(ready, self.ready_count);
        assert_eq!(ready, self.ready.values().map(ChunkSet::len).sum::<u64>());
        for ((job, is_success, attempt, epoch), chunks) in &self.ready {
            assert!(!chunks.is_empty());
            for ended in chunks.iter().map(|chunk| &self.ended[&(*job, chunk)]) {
                let alike = (ended.outcome.is_success(), ended.attempt, ended.epoch);
                assert_eq!((alike, ended.state), ((*is_success, *attempt, *epoch), State::Ready));
            }
        }
        for (id, batch) in &self.batches {
            assert!(!batch.chunks.is_empty());
            let is_of_it = |chunk| self.ended[&(batch.job, chunk)].state == State::Reported { batch: *id };
            assert!(batch.chunks.iter().all(is_of_it), "batch {id} has a chunk that is not of it");
        }
        assert_eq!(self.uploading.len() as u64 + ready + self.reported_count(), self.ended.len() as u64);
        assert!(self.files.iter().all(|(file, (_, count))| pointers.remove(file) == Some(*count)));
        assert!(pointers.is_empty());
    }

    fn reported_count(&self) -> u64 {
        self.batches.values().map(|batch| batch.chunks.len()).sum()
    }
}

impl Worker {
    pub(super) fn on_uploaded(&mut self, file: Option<&StoredFile>, parcels: &[Parcel]) {
        for parcel in parcels {
            self.results.on_parcel(parcel, file);
        }
    }

    /// Reports at the end of a turn, unless waiting a little makes one message of many.
    pub(super) fn report_results_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.results.ready_count == 0 || self.registration.leader().is_none() {
            return;
        }
        // Company comes only while something runs or waits here, and only short chunks come in numbers: so the first
        // result after a pause, and the last one, are told at once.
        let is_last = self.running_count() == 0 && self.queued_count() == 0;
        let due = self.results.reported_at.map_or(now, |at| at + self.settings.result_delay);
        if is_last || due <= now || self.results.ready_count >= READY_COUNT_MIN {
            self.report_results(now, actions);
        } else {
            self.timers.set_earlier(Timer::Results, due);
        }
    }

    /// Reports all that is ready, in as few batches as can be.
    pub(super) fn report_results(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.timers.stop(Timer::Results);
        self.results.reported_at = Some(now);
        let Some(leader) = self.registration.leader() else { return };
        while self.results.batches.len() < BATCHES_MAX
            && let Some((&alike, chunks)) = self.results.ready.iter_mut().next()
        {
            let mut taken = ChunkSet::new();
            while taken.len() < u64::from(BATCH_CHUNKS_MAX)
                && let Some(range) = chunks.take_first(BATCH_CHUNKS_MAX - taken.len() as u32)
            {
                taken.insert(range);
            }
            if chunks.is_empty() {
                self.results.ready.remove(&alike);
            }
            self.results.ready_count -= taken.len();
            self.report_batch(alike, taken, leader, now, actions);
        }
    }

    fn report_batch(
        &mut self,
        alike: Alike,
        chunks: ChunkSet,
        leader: PeerId,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (job, is_success, attempt, epoch) = alike;
        let batch = self.results.last_batch + 1;
        self.results.last_batch = batch;
        let (body, num_files, num_runs) = self.results.encode(job, &chunks);
        let state = if is_success { StatusState::Succeeded } else { StatusState::Failed };
        let status = WorkerStatus {
            job_uuid: job.into(),
            state: state as u8,
            epoch: U64::new(epoch),
            batch: U64::new(batch),
            attempt: U32::new(attempt),
            first: U32::new(chunks.first().expect("a batch is never empty")),
            count: U32::new(chunks.len() as u32),
            num_runs: U32::new(num_runs),
            num_files: U32::new(num_files),
            // Whoever hears of a job's end may ask for them, and the next heartbeat is long in coming.
            ..self.inputs.tell(self.status())
        };
        let frame = status.frame(self.settings.node, &body);
        for chunk in chunks.iter() {
            self.results.ended.get_mut(&(job, chunk)).expect("it was ready").state = State::Reported { batch };
        }
        let interval = self.settings.resend_interval_min;
        let due = now + interval;
        actions.push(Action::Send { to: leader, frame: frame.clone() });
        self.results.batches.insert(batch, Batch { job, chunks, frame, due, interval, is_refused: false });
        self.timers.set_earlier(Timer::Resend, due);
    }

    /// Says again what was not confirmed in time.
    pub(super) fn resend_results(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_due = |batch: &Batch| batch.due <= now;
        let due: Vec<u64> = self.results.batches.iter().filter(|(_, batch)| is_due(batch)).map(|(id, _)| *id).collect();
        for id in due {
            let batch = self.results.batches.get_mut(&id).expect("found above");
            if batch.is_refused {
                self.results.store_again(id, actions);
                continue;
            }
            batch.interval = (batch.interval * 2).min(self.settings.resend_interval_max);
            batch.due = now + batch.interval;
            if let Some(to) = self.registration.leader() {
                actions.push(Action::Send { to, frame: batch.frame.clone() });
            }
        }
        if let Some(next) = self.results.batches.values().map(|batch| batch.due).min() {
            self.timers.set(Timer::Resend, next);
        }
    }

    /// Another master leads: it has not heard of what is unconfirmed.
    pub(super) fn resend_all_results(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for batch in self.results.batches.values_mut().filter(|batch| !batch.is_refused) {
            batch.due = now;
            batch.interval = self.settings.resend_interval_min / 2;
        }
        self.resend_results(now, actions);
    }

    pub(super) fn on_result_confirmed(&mut self, batch: u64, index: u64, now: Instant, actions: &mut Vec<Action>) {
        if self.results.settle(batch, &mut self.jobs, now, actions) {
            self.assignment.confirmed_index = self.assignment.confirmed_index.max(index);
        }
    }

    /// A master refused a batch, or a heartbeat (or a hello, which its timer repeats).
    pub(super) fn on_master_error(
        &mut self,
        from: PeerId,
        request: u64,
        code: u16,
        regarding: u8,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let code = ErrorCode::from_number(code);
        if code == Some(ErrorCode::NotLeader) {
            return self.registration.on_not_leader(from);
        }
        if code == Some(ErrorCode::UnknownNode) {
            return self.register_again(now);
        }
        if regarding != Kind::WorkerStatus as u8 {
            return;
        }
        if code == Some(ErrorCode::UnknownJob) {
            self.results.settle(request, &mut self.jobs, now, actions);
        } else if code == Some(ErrorCode::ReceiptInvalid)
            && let Some(batch) = self.results.batches.get_mut(&request)
        {
            batch.is_refused = true;
        }
        // Anything else may pass: the batch is said again.
    }
}
