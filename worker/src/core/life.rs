//! The life of a chunk here: its job's files come, it starts, its program ends, its outputs are put aside and stored.

use wire::record::ChunkResult;
use wire::{
    Cause, ChunkRange, ErrorCode, FixedPart, Instant, JobId, Kind, PeerId, StatusState, WallTime, WorkerRequest,
    WorkerStatus,
};

use super::job::{Order, Stage};
use super::queue::Queued;
use super::result::Outcome;
use super::slots::{Run, SlotIndex, Stop};
use super::{Action, RunEnd, Take, Timer, UNCONFIRMED_MAX, Usage, Worker};

/// By which the kernel ends whoever has no memory.
const SIGKILL: u8 = 9;

impl Worker {
    /// A request in the seed's words alone: chunk 0 of 1, answered to its giver, unknown to masters.
    pub(super) fn on_seed_request(
        &mut self,
        from: PeerId,
        request: &WorkerRequest,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let id = request.job_uuid.job();
        let kind = Some(Kind::WorkerRequest);
        if let Some(job) = self.jobs.at(id) {
            if job.seed_peer != Some(from) {
                let detail = format!("job {id} is here already, from somebody else");
                return self.refuse(from, ErrorCode::ExistsDifferent, kind, 0, id, &detail, actions);
            }
            if !job.held.is_empty() {
                let is_running = self.slots.within(id, ChunkRange::one(0)).next().is_some();
                let state = if is_running { StatusState::Running } else { StatusState::Accepted };
                return self.tell_seed_peer(from, id, state, actions);
            }
        }
        if !self.jobs.has_room() {
            let detail = format!("{} jobs have chunks here", super::JOBS_MAX);
            return self.refuse(from, ErrorCode::Busy, kind, 0, id, &detail, actions);
        }
        // A load balancer may have killed the chunk and left the job.
        if self.jobs.at(id).is_none() {
            match Order::decode(request, body) {
                Ok(order) => self.learn(order, Some(from), now, actions),
                Err(error) => {
                    return self.refuse(from, ErrorCode::Malformed, kind, 0, id, &error, actions);
                }
            }
        }
        self.tell_seed_peer(from, id, StatusState::Accepted, actions);
        self.accept(Queued { job: id, range: ChunkRange::one(0), attempt: 1, epoch: 0 }, now, actions);
    }

    /// Answers in the seed's form.
    fn tell_seed_peer(&self, to: PeerId, job: JobId, state: StatusState, actions: &mut Vec<Action>) {
        let status = WorkerStatus { job_uuid: job.into(), state: state as u8, ..WorkerStatus::DEFAULT };
        actions.push(Action::Send { to, frame: status.seed_frame(self.settings.node, &[]) });
    }

    pub(super) fn on_staged(&mut self, id: JobId) {
        if let Some(job) = self.jobs.at_mut(id) {
            job.stage = Stage::Here;
        }
    }

    pub(super) fn on_stage_failed(&mut self, id: JobId, now: Instant, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.at_mut(id) else { return };
        // The next chunk tries again: storage may be back by then.
        job.stage = Stage::Absent;
        self.fail_queued(id, Cause::InputMissing, now, actions);
    }

    /// What runs of the job may have read what was not its input, and is ended; what comes after finds it whole again.
    pub(super) fn on_inputs_spoiled(&mut self, id: JobId, now: Instant, actions: &mut Vec<Action>) {
        self.slots.note_missed_input(|run| run.job == id);
        let Some(job) = self.jobs.at_mut(id) else { return };
        match job.stage {
            Stage::Here => job.stage = Stage::Absent,
            // One that comes spoiled is found out by its first chunk.
            Stage::Absent | Stage::Coming => return,
        }
        let is_meant = |run: &Run| run.job == id && run.stop == Stop::No;
        let slots: Vec<_> = self.slots.runs().filter(|(_, run)| is_meant(run)).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.end_run(slot, Stop::Spoiled, now, actions);
        }
        self.stage_queued(id, actions);
    }

    /// Fetches the job's files again for chunks that wait for them.
    fn stage_queued(&mut self, id: JobId, actions: &mut Vec<Action>) {
        if self.queue.has_any(id, ChunkRange::new(0, u32::MAX)) {
            self.stage(id, actions);
        }
    }

    /// Ends all queued chunks of a job that cannot be started here.
    pub(super) fn fail_queued(&mut self, id: JobId, cause: Cause, now: Instant, actions: &mut Vec<Action>) {
        for queued in self.queue.remove(id, ChunkRange::new(0, u32::MAX)) {
            for chunk in queued.range.chunks() {
                self.end_chunk(id, chunk, queued.attempt, queued.epoch, Outcome::unstarted(cause), None, now, actions);
            }
        }
        self.answer_kills(actions);
    }

    /// Starts what fits, in the order of the queue; jobs whose files are not here are passed over.
    pub(super) fn start_chunks(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Credit has long been 0 by then; this holds whoever gave more than was asked for.
        while !self.is_disk_low && self.results.len() + self.running_count() < UNCONFIRMED_MAX {
            let staged = self.queue.entries().position(|entry| self.jobs.is_staged(entry.job));
            let Some(index) = staged else { return };
            let job = self.jobs.at(self.queue.at(index).job).expect("a job with chunks is known");
            let (need, time_limit, seed_peer) = (job.need, job.time_limit, job.seed_peer);
            // A large chunk waits for its turn: if smaller ones passed it, it might wait for ever.
            let Some(slot) = self.slots.fits(need) else { return };
            let Queued { job, range, attempt, epoch } = self.queue.take(index);
            self.runs += 1;
            let run = Run {
                run: self.runs,
                job,
                chunk: range.first,
                attempt,
                epoch,
                need,
                started_at: now,
                time_limit,
                stop: Stop::No,
                missed_input: false,
                outcome: None,
            };
            self.slots.occupy(slot, run);
            if let Some(limit) = time_limit {
                self.timers.set(Timer::TimeLimit(slot), now + limit);
            }
            actions.push(Action::Start { slot, run: run.run, job, chunk: run.chunk, attempt });
            if let Some(peer) = seed_peer {
                self.tell_seed_peer(peer, job, StatusState::Running, actions);
            }
        }
    }

    pub(super) fn on_time_limit(&mut self, slot: SlotIndex, now: Instant, actions: &mut Vec<Action>) {
        self.end_run(slot, Stop::TimedOut, now, actions);
    }

    /// Asks what runs in the slot to end.
    pub(super) fn end_run(&mut self, slot: SlotIndex, why: Stop, now: Instant, actions: &mut Vec<Action>) {
        let Some(run) = self.slots.at(slot) else { return };
        let was_asked = run.stop != Stop::No;
        // A timeout that is canceled stays canceled.
        if run.stop != Stop::Canceled {
            run.stop = why;
        }
        if was_asked || run.outcome.is_some() {
            return;
        }
        actions.push(Action::Terminate { slot, run: run.run });
        self.timers.stop(Timer::TimeLimit(slot));
        self.timers.set(Timer::Grace(slot), now + self.settings.kill_grace);
    }

    /// Ends a run at once: in a grace it would only fill the disk further.
    pub(super) fn on_overfull(&mut self, run: u64, actions: &mut Vec<Action>) {
        let (slot, held) = self.slots.find(run).expect("what fills the disk is in its slot");
        if held.outcome.is_some() {
            return;
        }
        match held.stop {
            Stop::No | Stop::TimedOut | Stop::Spoiled => held.stop = Stop::Overfull,
            Stop::Overfull | Stop::Canceled => {}
        }
        self.stop_timers(slot);
        actions.push(Action::Kill { slot, run });
    }

    pub(super) fn on_grace_over(&mut self, slot: SlotIndex, actions: &mut Vec<Action>) {
        if let Some(run) = self.slots.at(slot) {
            actions.push(Action::Kill { slot, run: run.run });
        }
    }

    pub(super) fn on_exited(&mut self, run: u64, end: RunEnd, usage: Usage, at: WallTime, actions: &mut Vec<Action>) {
        let (slot, held) = self.slots.find(run).expect("a run ends in its slot, once");
        let outcome = Outcome { result: result(end, usage, at, held.stop, held.missed_input) };
        held.outcome = Some(outcome);
        let is_seeds = self.jobs.at(held.job).is_some_and(|job| job.seed_peer.is_some());
        let take = match held.stop {
            Stop::Canceled => Take::Nothing,
            // The seed's status has no room to say where outputs are.
            Stop::No | Stop::TimedOut | Stop::Overfull | Stop::Spoiled if is_seeds => Take::Nothing,
            Stop::Overfull => Take::Heads,
            Stop::No | Stop::TimedOut if outcome.is_success() => Take::Everything,
            Stop::No | Stop::TimedOut | Stop::Spoiled => Take::Streams,
        };
        self.stop_timers(slot);
        actions.push(Action::Collect { slot, run, take });
    }

    pub(super) fn on_collected(&mut self, run: u64, is_kept: bool, now: Instant, actions: &mut Vec<Action>) {
        let (slot, _) = self.slots.find(run).expect("a slot is cleaned after its run");
        let ended = self.slots.release(slot);
        self.stage_queued(ended.job, actions);
        self.pace.on_chunk(now.since(ended.started_at));
        let outcome = ended.outcome.expect("a slot is cleaned after its program has ended");
        if ended.stop == Stop::Canceled {
            self.jobs.let_go(ended.job, ChunkRange::one(ended.chunk), now);
            if is_kept {
                actions.push(Action::Release { run });
            }
            // Whoever gave it in the seed's words waits to hear.
            self.finish_seed_job(ended.job, StatusState::Killed, actions);
        } else {
            let kept = is_kept.then_some(run);
            self.end_chunk(ended.job, ended.chunk, ended.attempt, ended.epoch, outcome, kept, now, actions);
        }
        self.answer_kills(actions);
    }

    /// Keeps the result of a chunk, or, if the seed's words gave it, tells it and forgets it.
    fn end_chunk(
        &mut self,
        job: JobId,
        chunk: u32,
        attempt: u32,
        epoch: u64,
        outcome: Outcome,
        kept: Option<u64>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if self.jobs.at(job).is_some_and(|job| job.seed_peer.is_some()) {
            self.jobs.let_go(job, ChunkRange::one(chunk), now);
            let state = if outcome.is_success() { StatusState::Succeeded } else { StatusState::Failed };
            return self.finish_seed_job(job, state, actions);
        }
        self.results.add(job, chunk, attempt, epoch, outcome, kept);
        if let Some(run) = kept {
            actions.push(Action::Upload { job, run });
        }
    }

    /// Says how a job of the seed's words ended, and forgets it.
    fn finish_seed_job(&mut self, id: JobId, state: StatusState, actions: &mut Vec<Action>) {
        let Some(peer) = self.jobs.at(id).and_then(|job| job.seed_peer) else { return };
        self.tell_seed_peer(peer, id, state, actions);
        self.forget_job(id, actions);
    }
}

/// What the end of a program means for its chunk.
fn result(end: RunEnd, usage: Usage, at: WallTime, stop: Stop, missed_input: bool) -> ChunkResult {
    let (exit_code, signal) = match end {
        RunEnd::Code(code) | RunEnd::NotStarted { exit_code: code } => (Some(code), None),
        RunEnd::Signal(signal) => (None, Some(signal)),
        RunEnd::OutOfMemory => (None, Some(SIGKILL)),
    };
    let cause = match (stop, end) {
        // Also when it ended by itself in its grace: it had its time.
        (Stop::TimedOut, _) => Cause::Timeout,
        // Also when it ended by itself, well or badly, before it was killed: what it wrote is not kept.
        (Stop::Overfull, _) => Cause::Policy,
        (Stop::Spoiled, _) => Cause::InputMissing,
        (Stop::No | Stop::Canceled, RunEnd::OutOfMemory) => Cause::Oom,
        // Also when it ended well: what it made may rest on bytes that it never got. It may have failed for something else;
        // but what it read was not what it was promised.
        (Stop::No | Stop::Canceled, RunEnd::Code(_) | RunEnd::NotStarted { .. } | RunEnd::Signal(_))
            if missed_input =>
        {
            Cause::InputMissing
        }
        (Stop::No | Stop::Canceled, RunEnd::Code(0)) => Cause::None,
        (Stop::No | Stop::Canceled, RunEnd::Code(_) | RunEnd::NotStarted { .. }) => Cause::Exit,
        (Stop::No | Stop::Canceled, RunEnd::Signal(_)) => Cause::Signal,
    };
    ChunkResult {
        started_at: WallTime(at.0.saturating_sub(usage.duration_us)),
        duration_us: usage.duration_us,
        cpu_us: usage.cpu_us,
        max_rss_kib: usage.max_rss_kib,
        exit_code,
        signal,
        cause,
        bundle: None,
    }
}
