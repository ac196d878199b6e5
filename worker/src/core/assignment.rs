//! What load balancers may tell a worker, and in which order it counts: epochs, numbers, and what is held already.
//!
//! Epochs fence: a command of an older reign than the newest seen is refused. Numbers are dense within a reign: the next
//! one is obeyed, an earlier one is answered again, a later one waits to be sent again. A chunk that is held here is
//! never taken twice; a higher attempt of it only says that somebody thinks the lower one is settled.

use planted::Bug;
use wire::record::{ChunkItem, holding, records_bytes};
use wire::running::encode_running;
use wire::{
    ChunkRange, ErrorCode, Instant, Inventory, JobId, Kill, Killed, Kind, PeerId, Retract, RetractAnswer, StatusState,
    U32, U64, WorkerRequest, WorkerStatus,
};

use super::job::Order;
use super::queue::Queued;
use super::slots::Stop;
use super::{Action, Holding, KILLS_MAX, QUEUED_RANGES_MAX, Timer, Worker};

/// Even one chunk each, everything that is held here within the credit fits one frame.
const _: () = assert!(
    (super::UNCONFIRMED_MAX + super::QUEUED_CHUNKS_MAX as usize) * size_of::<ChunkItem>() + size_of::<Inventory>()
        <= wire::limit::FRAME_SIZE_MAX
);

/// Where this worker stands with the load balancers.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    /// The highest epoch seen.
    pub(super) epoch: u64,
    /// The highest sequence processed in it.
    pub(super) seen: u64,
    /// The highest log index by which a result was forgotten.
    pub(super) confirmed_index: u64,
    kills: Vec<PendingKill>,
}

/// A kill that waits for programs to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PendingKill {
    from: PeerId,
    request: u64,
    job: JobId,
    range: ChunkRange,
}

/// What a number means here.
enum Sequence {
    Next,
    /// Obeyed before.
    Again,
    /// One before it is missing.
    Later,
}

impl Worker {
    pub(super) fn on_worker_request(
        &mut self,
        from: PeerId,
        request: &WorkerRequest,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (epoch, sequence) = (request.epoch.get(), request.sequence.get());
        if epoch == 0 && sequence == 0 {
            return self.on_seed_request(from, request, body, now, actions);
        }
        let job = request.job_uuid.job();
        if !self.obeys(from, Kind::WorkerRequest, request.worker_boot.get(), epoch, sequence, job, actions) {
            return;
        }
        match self.sequence(sequence) {
            Sequence::Later => return,
            Sequence::Again => {}
            Sequence::Next => {
                let range = ChunkRange::new(request.first.get(), request.count.get());
                if range.count > 0 {
                    if let Err((code, detail)) = self.make_known(job, range, request, body, now, actions) {
                        // It will never be a job: the number is done with, and what follows it need not wait.
                        if code == ErrorCode::Malformed {
                            self.assignment.seen = sequence;
                        }
                        let kind = Some(Kind::WorkerRequest);
                        return self.refuse(from, code, kind, sequence, job, &detail, actions);
                    }
                    self.accept(Queued { job, range, attempt: request.attempt.get(), epoch }, now, actions);
                }
                self.assignment.seen = sequence;
            }
        }
        let accepted = WorkerStatus {
            job_uuid: job.into(),
            state: StatusState::Accepted as u8,
            first: request.first,
            count: request.count,
            attempt: request.attempt,
            ..self.status()
        };
        self.tell_load_balancers(accepted, &[], actions);
    }

    /// Sees to it that the job's body is here and the range is one of its, or says why not.
    fn make_known(
        &mut self,
        id: JobId,
        range: ChunkRange,
        request: &WorkerRequest,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<(), (ErrorCode, String)> {
        if self.queue.range_count() >= QUEUED_RANGES_MAX {
            return Err((ErrorCode::Busy, format!("{QUEUED_RANGES_MAX} ranges wait here")));
        }
        if self.jobs.at(id).is_some_and(|job| job.seed_peer.is_some()) {
            return Err((ErrorCode::Busy, format!("job {id} is here in the seed's words, and not done")));
        }
        if self.jobs.at(id).is_none() {
            if request.flags.get() & wire::REQUEST_KNOWN != 0 {
                return Err((ErrorCode::UnknownJob, format!("job {id} has not been told here")));
            }
            if !self.jobs.has_room() {
                return Err((ErrorCode::Busy, format!("{} jobs have chunks here", super::JOBS_MAX)));
            }
            let order = Order::decode(request, body).map_err(|error| (ErrorCode::Malformed, error))?;
            self.learn(order, None, now, actions);
        }
        let chunk_count = self.jobs.at(id).expect("it was learnt above").chunk_count;
        if range.is_within(chunk_count) {
            return Ok(());
        }
        let detail = format!("chunks {}+{} are beyond the {chunk_count} of job {id}", range.first, range.count);
        Err((ErrorCode::InvalidRequest, detail))
    }

    /// Queues what of the range is not held here, and settles what is.
    pub(super) fn accept(&mut self, queued: Queued, now: Instant, actions: &mut Vec<Action>) {
        let Queued { job: id, range, attempt, epoch } = queued;
        let job = self.jobs.at_mut(id).expect("the caller has made it known");
        let need = job.need;
        if job.held.count_in(range) == 0 {
            job.held.insert(range);
            self.queue.push(queued);
        } else {
            self.queue.raise_attempt(id, range, attempt);
            let slots: Vec<_> = self.slots.within(id, range).map(|(slot, _)| slot).collect();
            for slot in slots {
                let run = self.slots.at(slot).expect("it was found above");
                run.attempt = run.attempt.max(attempt);
            }
            self.results.forget_failures_below(id, range, attempt, &mut self.jobs, now, actions);
            let job = self.jobs.at_mut(id).expect("the caller has made it known");
            let mut missing = wire::ChunkSet::new();
            missing.insert(range);
            missing.subtract(&job.held);
            job.held.insert(range);
            for range in missing.ranges() {
                self.queue.push(Queued { job: id, range, attempt, epoch });
            }
        }
        if !self.slots.can_ever_fit(need) {
            return self.fail_queued(id, wire::Cause::Policy, now, actions);
        }
        self.stage(id, actions);
    }

    pub(super) fn on_retract(&mut self, from: PeerId, retract: &Retract, now: Instant, actions: &mut Vec<Action>) {
        let (epoch, sequence) = (retract.epoch.get(), retract.sequence.get());
        let job = retract.job_uuid.job();
        let range = ChunkRange::new(retract.first.get(), retract.count.get());
        if !self.obeys(from, Kind::Retract, retract.worker_boot.get(), epoch, sequence, job, actions) {
            return;
        }
        match self.sequence(sequence) {
            Sequence::Later => return,
            Sequence::Again => {}
            Sequence::Next => {
                for given_back in self.queue.remove(job, range) {
                    self.jobs.let_go(job, given_back.range, now);
                }
                self.assignment.seen = sequence;
            }
        }
        let items = items(self.holdings().filter_map(|holding| {
            let range = super::queue::overlap(holding.range, range).filter(|_| holding.job == job)?;
            Some(Holding { range, ..holding })
        }));
        if !fits_frame::<RetractAnswer>(&items) {
            return;
        }
        let answer = RetractAnswer {
            job_uuid: retract.job_uuid,
            first: retract.first,
            count: retract.count,
            boot: U64::new(self.settings.boot.0),
            epoch: U64::new(self.assignment.epoch),
            sequence: retract.sequence,
            seen_sequence: U64::new(self.assignment.seen),
            confirmed_index: U64::new(self.assignment.confirmed_index),
            credit: U32::new(self.credit()),
            ..RetractAnswer::DEFAULT
        };
        self.send(from, answer, records_bytes(&items), actions);
    }

    pub(super) fn on_kill(&mut self, from: PeerId, kill: &Kill, now: Instant, actions: &mut Vec<Action>) {
        let (epoch, request) = (kill.epoch.get(), kill.request.get());
        let job = kill.job_uuid.job();
        let range = ChunkRange::new(kill.first.get(), kill.count.get());
        if epoch < self.assignment.epoch && !planted::is(Bug::StaleEpochObeyed) {
            return self.refuse_stale(from, Kind::Kill, request, job, epoch, actions);
        }
        self.adopt(epoch);
        for queued in self.queue.remove(job, range) {
            self.jobs.let_go(job, queued.range, now);
        }
        self.results.forget(job, range, &mut self.jobs, now, actions);
        let slots: Vec<_> = self.slots.within(job, range).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.end_run(slot, Stop::Canceled, now, actions);
        }
        let index = kill.index.get();
        self.assignment.confirmed_index = self.assignment.confirmed_index.max(index);
        let pending = PendingKill { from, request, job, range };
        // One too many is asked again by its load balancer, who repeats it until it is answered.
        if !self.assignment.kills.contains(&pending) && self.assignment.kills.len() < KILLS_MAX {
            self.assignment.kills.push(pending);
        }
        self.answer_kills(actions);
    }

    /// Answers every kill whose range has nothing left here.
    pub(super) fn answer_kills(&mut self, actions: &mut Vec<Action>) {
        if self.assignment.kills.is_empty() {
            return;
        }
        let kills = std::mem::take(&mut self.assignment.kills);
        let (pending, done): (Vec<_>, Vec<_>) = kills.into_iter().partition(|kill| {
            self.queue.has_any(kill.job, kill.range) || self.slots.within(kill.job, kill.range).next().is_some()
        });
        self.assignment.kills = pending;
        for kill in done {
            let killed = Killed {
                request: U64::new(kill.request),
                boot: U64::new(self.settings.boot.0),
                credit: U32::new(self.credit()),
                ..Killed::DEFAULT
            };
            self.send(kill.from, killed, &[], actions);
        }
    }

    pub(super) fn on_inventory_request(&mut self, from: PeerId, epoch: u64, actions: &mut Vec<Action>) {
        if epoch < self.assignment.epoch && !planted::is(Bug::StaleEpochObeyed) {
            return self.refuse_stale(from, Kind::InventoryRequest, 0, JobId::NIL, epoch, actions);
        }
        // Before composing: what the inventory says is then true for the new reign's numbers too.
        self.adopt(epoch);
        self.tell_inventory(from, actions);
    }

    /// Sends everything that is held here, or remembers to, once the leader has said where the log stands.
    pub(super) fn tell_inventory(&mut self, to: PeerId, actions: &mut Vec<Action>) {
        if !self.registration.may_tell_inventory(to) {
            return;
        }
        let items = items(self.holdings());
        if !fits_frame::<Inventory>(&items) {
            return;
        }
        let inventory = Inventory {
            boot: U64::new(self.settings.boot.0),
            epoch: U64::new(self.assignment.epoch),
            seen_sequence: U64::new(self.assignment.seen),
            confirmed_index: U64::new(self.assignment.confirmed_index),
            credit: U32::new(self.credit()),
            cpus_milli: U32::new(self.slots.total().cpus_milli),
            memory: U64::new(self.slots.total().memory),
            num_items: U32::new(items.len() as u32),
            ..Inventory::DEFAULT
        };
        self.send(to, inventory, records_bytes(&items), actions);
    }

    /// Whether a numbered command is for this boot and of a reign that still counts; adopts a newer one.
    fn obeys(
        &mut self,
        from: PeerId,
        kind: Kind,
        boot: u64,
        epoch: u64,
        sequence: u64,
        job: JobId,
        actions: &mut Vec<Action>,
    ) -> bool {
        // Meant for an earlier boot of this worker: the sender will learn of this one by its inventory.
        if boot != 0 && boot != self.settings.boot.0 {
            return false;
        }
        if epoch < self.assignment.epoch && !planted::is(Bug::StaleEpochObeyed) {
            self.refuse_stale(from, kind, sequence, job, epoch, actions);
            return false;
        }
        self.adopt(epoch);
        true
    }

    fn refuse_stale(&self, from: PeerId, kind: Kind, request: u64, job: JobId, epoch: u64, actions: &mut Vec<Action>) {
        let detail = format!("epoch {epoch} is over: {} has begun", self.assignment.epoch);
        self.refuse(from, ErrorCode::StaleEpoch, Some(kind), request, job, &detail, actions);
    }

    fn adopt(&mut self, epoch: u64) {
        if epoch > self.assignment.epoch || (epoch < self.assignment.epoch && planted::is(Bug::StaleEpochObeyed)) {
            self.assignment.epoch = epoch;
            self.assignment.seen = 0;
        }
    }

    fn sequence(&self, sequence: u64) -> Sequence {
        match sequence.checked_sub(self.assignment.seen) {
            Some(0) if planted::is(Bug::NumberObeyedAgain) => Sequence::Next,
            None | Some(0) => Sequence::Again,
            Some(1) => Sequence::Next,
            Some(_) => Sequence::Later,
        }
    }

    /// Everything that is held here: queued, running, and ended without confirmation.
    pub(super) fn holdings(&self) -> impl Iterator<Item = Holding> {
        // What the seed's words alone gave is nobody's business but its giver's.
        let of_load_balancers =
            |holding: &Holding| self.jobs.at(holding.job).is_some_and(|job| job.seed_peer.is_none());
        let queued = self.queue.entries().map(|queued| Holding {
            job: queued.job,
            range: queued.range,
            attempt: queued.attempt,
            state: holding::QUEUED,
        });
        queued.chain(self.running()).chain(self.results.holdings()).filter(of_load_balancers)
    }

    fn running(&self) -> impl Iterator<Item = Holding> {
        self.slots.runs().map(|(_, run)| Holding {
            job: run.job,
            range: ChunkRange::one(run.chunk),
            attempt: run.attempt,
            state: holding::RUNNING,
        })
    }

    /// What runs, for a heartbeat: how many ranges, and its body.
    pub(super) fn running_body(&self, now: Instant) -> (u32, Vec<u8>) {
        let is_told = |job: JobId| self.jobs.at(job).is_some_and(|job| job.seed_peer.is_none());
        let items = items(self.running().filter(|holding| is_told(holding.job)));
        let told = self.slots.runs().filter(|(_, run)| is_told(run.job));
        (items.len() as u32, encode_running(&items, told.map(|(_, run)| now.since(run.started_at))))
    }

    /// A timer of a run goes with it.
    pub(super) fn stop_timers(&mut self, slot: super::SlotIndex) {
        self.timers.stop(Timer::TimeLimit(slot));
        self.timers.stop(Timer::Grace(slot));
    }
}

/// Whether the items fit behind a fixed part. They do, unless a load balancer went far beyond its credit; it then hears
/// nothing, and so gives nothing away.
fn fits_frame<T>(items: &[ChunkItem]) -> bool {
    size_of_val(items) + size_of::<T>() <= wire::limit::FRAME_SIZE_MAX
}

/// Holdings as they travel; those that continue the one before become one with it.
fn items(holdings: impl Iterator<Item = Holding>) -> Vec<ChunkItem> {
    let mut items: Vec<ChunkItem> = Vec::new();
    for held in holdings {
        let item = ChunkItem::new(held.job, held.range, held.attempt, held.state);
        if let Some(last) = items.last_mut()
            && (last.job(), { last.attempt }, last.state) == (held.job, held.attempt, held.state)
            && last.range().end() == u64::from(held.range.first)
        {
            last.count += held.range.count;
        } else {
            items.push(item);
        }
    }
    items
}
