//! Watching the log: asks for what happened after the view's index, and takes the answer into the view.
//!
//! Nothing here is ever pushed unasked, so nothing can be missed: what is lost on the way is asked for again from the
//! index that the view has reached.

use std::collections::BTreeMap;

use wire::event::LogEvent;
use wire::record::NodeRecord;
use wire::{
    BATCH_SNAPSHOT, BootNonce, ChunkRange, ChunkSet, ChunkState, DecodeError, FixedPart, Instant, JobId, Message,
    NodeId, NodeState, PeerId, Reader, Role, U16, U32, U64, WATCH_FRESH, Watch, WatchBatch, WatchSubject,
};

use super::log_view::{EpochGrant, JobView};
use super::{Action, LoadBalancer, Note, Timer};

/// Parts of one answer. A snapshot of more live jobs than fit is asked for again and again, visibly in the notes.
const PARTS_MAX: usize = 4096;

impl LoadBalancer {
    /// Asks for what is new; whatever watch was out before is forgotten.
    pub(super) fn send_watch(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.link.watch_request = self.number_request();
        self.link.watch_parts.clear();
        let watch = Watch {
            request: U64::new(self.link.watch_request),
            after: U64::new(self.log.index),
            subject: U16::new(WatchSubject::Dispatch as u16),
            flags: U32::new(if self.link.wants_snapshot { WATCH_FRESH } else { 0 }),
            ..Watch::DEFAULT
        };
        actions.push(Action::Send { to: self.leader(), frame: watch.frame(self.config.node, &[]) });
        self.timers.set(Timer::Watch, now + self.config.timings.watch_timeout);
    }

    /// The answer is overdue, or none has been asked for yet: ask, and another master if there is one.
    pub(super) fn watch_unanswered(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.link.watch_request != 0 {
            self.turn_to_next_master();
        }
        self.send_watch(now, actions);
    }

    pub(super) fn on_watch_batch(
        &mut self,
        from: PeerId,
        frame: &[u8],
        batch: &WatchBatch,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_ours = self.is_master(from) && batch.request.get() == self.link.watch_request;
        let (part, parts) = (usize::from(batch.part.get()), usize::from(batch.parts.get()));
        if !is_ours || part != self.link.watch_parts.len() || part >= parts || parts > PARTS_MAX {
            return;
        }
        self.link.watch_parts.push(frame.to_vec());
        self.timers.set(Timer::Watch, now + self.config.timings.watch_timeout);
        if self.link.watch_parts.len() < parts {
            return;
        }
        let frames = std::mem::take(&mut self.link.watch_parts);
        let is_snapshot = batch.flags.get() & BATCH_SNAPSHOT != 0;
        // A batch that does not begin where the view ends has a gap; a view that needs a snapshot takes nothing less.
        if is_snapshot || (batch.after.get() == self.log.index && !self.link.wants_snapshot) {
            match decode_events(&frames) {
                Ok(events) => self.take_batch(events, batch.index.get(), is_snapshot, now, actions),
                // Asked again when the timer goes off: asking at once would only meet the same bytes.
                Err(detail) => return actions.push(Action::Note(Note::BatchMalformed { detail })),
            }
        }
        self.send_watch(now, actions);
    }

    fn take_batch(
        &mut self,
        events: Vec<LogEvent<'_>>,
        index: u64,
        is_snapshot: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if is_snapshot {
            self.take_snapshot(&events, index, now, actions);
        } else {
            self.log.index = index;
            for event in events {
                self.take_event(event, now, actions);
            }
        }
        self.view_advanced(now, actions);
        self.dispatch_soon(now);
    }

    /// One effect of the log. An event that contradicts the view (an unknown job) is of something that has ended.
    fn take_event(&mut self, event: LogEvent<'_>, now: Instant, actions: &mut Vec<Action>) {
        match event {
            LogEvent::JobAccepted { number, submitted_at: _, frame } => self.take_job(number, frame, now, actions),
            LogEvent::ChunksEnded { job, state, ranges } => self.chunks_ended(job, state, &ranges, now, actions),
            LogEvent::HolderFreed { job, worker, boot, attempt_max, ranges } => {
                self.holder_freed(job, worker, boot, attempt_max, &ranges, now);
            }
            LogEvent::ChunksWaiting { job, attempt, ranges } => {
                let Some(view) = self.log.jobs.get_mut(&job) else { return };
                ranges.into_iter().for_each(|range| view.wait_for_attempt(range, attempt));
            }
            LogEvent::JobEnded { job, state: _, at: _ } => self.forget_job(job, now, actions),
            LogEvent::EpochGranted { load_balancer, boot, epoch } => {
                self.epoch_granted(EpochGrant { load_balancer, boot, epoch }, now, actions);
            }
            LogEvent::NodeRegistered { node } => self.node_registered(&node, true, now, actions),
            // Only snapshots have it.
            LogEvent::JobSnapshot { .. } => {}
        }
    }

    fn take_job(&mut self, number: u64, frame: &[u8], now: Instant, actions: &mut Vec<Action>) {
        match JobView::new(number, frame, now) {
            Ok((job, mut view)) => {
                view.born_in_epoch = self.epoch().unwrap_or(0);
                self.log.jobs.entry(job).or_insert(view);
            }
            Err(detail) => actions.push(Action::Note(Note::BatchMalformed { detail })),
        }
    }

    /// Whoever holds them holds them no more. Those who hold what was stopped for good are told to stop.
    fn chunks_ended(
        &mut self,
        job: JobId,
        state: ChunkState,
        ranges: &[ChunkRange],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(view) = self.log.jobs.get_mut(&job) else { return };
        ranges.iter().for_each(|range| view.end(*range));
        let is_stopped = match state {
            ChunkState::Canceled | ChunkState::Aborted => true,
            ChunkState::Finished | ChunkState::Failed | ChunkState::Waiting | ChunkState::Running => false,
        };
        // One kill over all of it, where nothing in between is still to run.
        let hull = hull(ranges).filter(|hull| view.pending.count_in(*hull) == 0);
        let mut holders = Vec::new();
        for (node, worker) in &mut self.workers {
            let mut was_held = Vec::new();
            for range in ranges {
                if !worker.held.remove(job, *range).is_empty() {
                    was_held.push(*range);
                }
                worker.former.values_mut().for_each(|held| drop(held.remove(job, *range)));
            }
            worker.former.retain(|_, held| !held.is_empty());
            if is_stopped && !was_held.is_empty() {
                holders.push((*node, was_held));
            }
        }
        for (node, was_held) in holders {
            let targets = hull.map_or(was_held, |hull| vec![hull]);
            targets.into_iter().for_each(|range| self.kill(node, job, range, now, actions));
        }
    }

    /// The log names the boot that lost these ranges, or failed in them.
    fn holder_freed(
        &mut self,
        job: JobId,
        node: NodeId,
        boot: BootNonce,
        attempt_max: u32,
        ranges: &[ChunkRange],
        now: Instant,
    ) {
        let Some(worker) = self.workers.get_mut(&node) else { return };
        let held = if worker.boot == boot { Some(&mut worker.held) } else { worker.former.get_mut(&boot) };
        let Some(held) = held else { return };
        let mut freed = Vec::new();
        for range in ranges {
            freed.extend(held.remove_if(job, *range, |holding| holding.attempt <= attempt_max));
        }
        worker.former.retain(|_, held| !held.is_empty());
        self.release(job, &freed, now);
    }

    /// Every chunk of it has ended, or, after a gap, it is not in the snapshot: what is still held is stopped.
    fn forget_job(&mut self, job: JobId, now: Instant, actions: &mut Vec<Action>) {
        let Some(view) = self.log.jobs.remove(&job) else { return };
        let mut holders = Vec::new();
        for (node, worker) in &mut self.workers {
            worker.bodies.remove(&job);
            worker.former.values_mut().for_each(|held| drop(held.remove_job(job)));
            worker.former.retain(|_, held| !held.is_empty());
            if worker.held.remove_job(job).is_some() {
                holders.push(*node);
            }
        }
        for node in holders {
            self.kill(node, job, ChunkRange::new(0, view.chunk_count), now, actions);
        }
    }

    pub(super) fn node_registered(
        &mut self,
        record: &NodeRecord,
        is_after_grant: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if record.role != Role::Worker || !self.meet(record.node, record.boot, now, actions) {
            return;
        }
        let is_reigning = self.reign.is_some();
        let worker = self.workers.get_mut(&record.node).expect("it was met above");
        worker.cpus_milli = record.cpus_milli;
        worker.memory = record.memory;
        worker.is_draining = record.state == NodeState::Draining;
        // A snapshot lists all boots again. Our view had all registrations up to its index, and that was past our grant:
        // a boot that it did not have was registered later still.
        let is_new = record.boot > std::mem::replace(&mut worker.registered, record.boot);
        // A primary gives a boot something only once its view of the log has the boot's registration: the worker tells
        // no inventory before its welcome, and each inventory waits for the welcome's index. This registration stands
        // in the log after our epoch; who had read so far knew that he was primary no more. So no epoch before ours
        // has given this boot anything, and what boots before it had is dead with them.
        if is_reigning && is_after_grant && is_new {
            worker.may_hold = false;
        }
    }

    /// What was known before is void: the view becomes the snapshot, and the workers are asked what they hold.
    fn take_snapshot(&mut self, events: &[LogEvent<'_>], index: u64, now: Instant, actions: &mut Vec<Action>) {
        let before = std::mem::take(&mut self.log.jobs);
        let epoch_before = self.epoch();
        self.log.index = index;
        self.link.wants_snapshot = false;
        let grant = events.iter().find_map(|event| grant_of(event));
        let keeps_epoch = epoch_before.is_some()
            && grant.is_some_and(|grant| {
                Some(grant.epoch) == epoch_before
                    && grant.load_balancer == self.config.node
                    && grant.boot == self.config.boot
            });
        // Jobs that are new since our view had our own epoch were accepted in it.
        let born_in_epoch = if keeps_epoch { epoch_before.unwrap_or(0) } else { 0 };
        self.take_jobs(events, &before, born_in_epoch, now, actions);
        let live: Vec<JobId> = self.log.jobs.keys().copied().collect();
        // Jobs that are gone are put back for a moment, so that they are forgotten as jobs that end are.
        for (job, view) in before.into_iter().filter(|(job, _)| live.binary_search(job).is_err()) {
            self.log.jobs.insert(job, view);
            self.forget_job(job, now, actions);
        }
        for job in live {
            self.hold_against_snapshot(job, now, actions);
        }
        for event in events {
            if let LogEvent::NodeRegistered { node } = event {
                self.node_registered(node, keeps_epoch, now, actions);
            }
        }
        if let Some(grant) = grant {
            self.epoch_granted(grant, now, actions);
        }
        // Failures and losses in the gap have freed holders without our seeing it: only the workers know.
        for worker in self.workers.values_mut() {
            worker.inventory_wanted = Some(worker.next - 1);
            worker.ask_again_at = now;
        }
        actions.push(Action::Note(Note::Snapshot { index, jobs: self.log.jobs.len() }));
    }

    /// The jobs of a snapshot. One that outgrows an event is told in pieces: as it was submitted, then what has happened
    /// to it since.
    fn take_jobs(
        &mut self,
        events: &[LogEvent<'_>],
        before: &BTreeMap<JobId, JobView>,
        born_in_epoch: u64,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        for event in events {
            match event {
                LogEvent::JobSnapshot { number, submitted_at: _, frame, ended, attempts } => {
                    match snapshot_job(*number, frame, ended, attempts, now) {
                        Ok((job, mut view)) => {
                            view.born_in_epoch = before.get(&job).map_or(born_in_epoch, |known| known.born_in_epoch);
                            self.log.jobs.insert(job, view);
                        }
                        Err(detail) => actions.push(Action::Note(Note::BatchMalformed { detail })),
                    }
                }
                LogEvent::ChunksWaiting { job, attempt, ranges } => {
                    let Some(view) = self.log.jobs.get_mut(job) else { continue };
                    ranges.iter().for_each(|range| view.wait_for_attempt(*range, *attempt));
                }
                LogEvent::ChunksEnded { job, state: _, ranges } => {
                    let Some(view) = self.log.jobs.get_mut(job) else { continue };
                    ranges.iter().for_each(|range| view.end(*range));
                }
                LogEvent::JobEnded { job, state: _, at: _ } => drop(self.log.jobs.remove(job)),
                LogEvent::JobAccepted { .. }
                | LogEvent::HolderFreed { .. }
                | LogEvent::EpochGranted { .. }
                | LogEvent::NodeRegistered { .. } => {}
            }
        }
    }

    /// What is held stays held only where it has not ended; the rest of `unheld` follows.
    fn hold_against_snapshot(&mut self, job: JobId, now: Instant, actions: &mut Vec<Action>) {
        let view = self.log.jobs.get_mut(&job).expect("only jobs of the snapshot are asked for");
        let whole = ChunkRange::new(0, view.chunk_count);
        let mut kills = Vec::new();
        for (node, worker) in &mut self.workers {
            for (piece, holding) in worker.held.job(job).map(|map| map.iter().collect::<Vec<_>>()).unwrap_or_default() {
                let pending: Vec<_> = view.pending.ranges_in(piece).collect();
                if pending.iter().map(|range| u64::from(range.count)).sum::<u64>() < u64::from(piece.count) {
                    worker.held.remove(job, piece);
                    pending.iter().for_each(|range| worker.held.set(job, *range, holding));
                    kills.extend(complement(piece, &pending).into_iter().map(|range| (*node, range)));
                }
            }
            for held in worker.former.values_mut() {
                // An old boot's chunk whose attempt has risen was lost in the gap.
                let pieces: Vec<_> = held.pieces(job, whole).collect();
                for (piece, holding) in pieces {
                    held.remove(job, piece);
                    for (range, attempt) in view.pending_by_attempt(piece) {
                        if attempt <= holding.attempt {
                            held.set(job, range, holding);
                        }
                    }
                }
            }
            worker.former.retain(|_, held| !held.is_empty());
            for held in worker.all_held() {
                held.pieces(job, whole).for_each(|(piece, _)| view.unheld.remove(piece));
            }
        }
        kills.into_iter().for_each(|(node, range)| self.kill(node, job, range, now, actions));
    }
}

fn grant_of(event: &LogEvent<'_>) -> Option<EpochGrant> {
    if let LogEvent::EpochGranted { load_balancer, boot, epoch } = *event {
        Some(EpochGrant { load_balancer, boot, epoch })
    } else {
        None
    }
}

fn snapshot_job(
    number: u64,
    frame: &[u8],
    ended: &[(ChunkState, Vec<u8>)],
    attempts: &[(ChunkRange, u32)],
    now: Instant,
) -> Result<(JobId, JobView), DecodeError> {
    let (job, mut view) = JobView::new(number, frame, now)?;
    for (_, set) in ended {
        view.pending.subtract(&ChunkSet::from_bytes(set)?);
    }
    view.unheld = view.pending.clone();
    for (range, attempt) in attempts {
        view.attempts.insert(*range, *attempt);
    }
    Ok((job, view))
}

/// All events of an answer, or the first thing that is wrong with it: half a batch is never taken.
fn decode_events(frames: &[Vec<u8>]) -> Result<Vec<LogEvent<'_>>, DecodeError> {
    let mut events = Vec::new();
    for frame in frames {
        let Message::WatchBatch(batch, body) = Message::decode(frame)? else {
            return Err(DecodeError::Body { what: "a part is not a watch_batch" });
        };
        let mut from = Reader::new(body);
        for _ in 0..batch.num_events.get() {
            events.extend(LogEvent::decode(&mut from)?);
        }
    }
    Ok(events)
}

fn hull(ranges: &[ChunkRange]) -> Option<ChunkRange> {
    let first = ranges.iter().map(|range| range.first).min()?;
    let end = ranges.iter().map(|range| range.end()).max()?;
    Some(ChunkRange::new(first, u32::try_from(end - u64::from(first)).unwrap_or(u32::MAX)))
}

/// What of `whole` is in none of `parts`, which are in order and within it.
pub(super) fn complement(whole: ChunkRange, parts: &[ChunkRange]) -> Vec<ChunkRange> {
    let mut rest = Vec::new();
    let mut from = u64::from(whole.first);
    for part in parts.iter().copied().chain([ChunkRange::new(whole.end().min(u64::from(u32::MAX)) as u32, 0)]) {
        if u64::from(part.first) > from {
            rest.push(ChunkRange::new(from as u32, (u64::from(part.first) - from) as u32));
        }
        from = part.end();
    }
    rest
}
