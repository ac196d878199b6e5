//! What workers say: their state, their inventories, and what they answer to retracts and kills.
//!
//! Every word is as old as its way was long. So each is held against what is known already: the boot, the epoch, the
//! number up to which the worker had read, and the log index up to which it had forgotten results. What was composed
//! before something that has been acted on is dropped; what is ahead of our view of the log waits for it.

use std::collections::BTreeMap;

use planted::Bug;
use wire::record::{ChunkItem, holding, records, records_of};
use wire::{
    BootNonce, ChunkRange, Error, ErrorCode, Instant, Inventory, JobId, Killed, Kind, Message, NodeId, PeerId,
    RetractAnswer, StatusState, WorkerStatus,
};

use super::range_map::RangeMap;
use super::watch::complement;
use super::worker_view::{Claim, Held, Holding, Sent, WorkerView};
use super::{Action, LoadBalancer, Timer};

/// Running items that are kept of one worker.
const RUNNING_ITEMS_MAX: usize = 1024;

impl LoadBalancer {
    pub(super) fn on_worker_status(
        &mut self,
        from: PeerId,
        node: NodeId,
        status: &WorkerStatus,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let boot = BootNonce(status.boot.get());
        if !self.hear(from, node, boot, now, actions) {
            return;
        }
        let (epoch, job) = (status.epoch.get(), status.job_uuid.job());
        if job.is_nil() {
            if let Ok(items) = records_of::<ChunkItem>(body, status.num_items.get())
                && !items.is_empty()
            {
                let worker = self.workers.get_mut(&node).expect("it was heard above");
                worker.running = items[..items.len().min(RUNNING_ITEMS_MAX)].to_vec();
            }
        } else if status.state == StatusState::Accepted as u8 && Some(epoch) != self.epoch() && boot != BootNonce::NONE
        {
            let range = ChunkRange::new(status.first.get(), status.count.get());
            self.on_foreign_report(node, epoch, job, range, status.attempt.get());
        }
        if boot != BootNonce::NONE {
            self.acknowledged(node, epoch, status.seen_sequence.get(), status.credit.get(), now);
        }
        self.ask_if_unknown(node, now, actions);
    }

    /// The worker has processed our numbers up to `seen`, and had room for `credit` chunks then.
    fn acknowledged(&mut self, node: NodeId, epoch: u64, seen: u64, credit: u32, now: Instant) {
        let is_ours = Some(epoch) == self.epoch();
        if planted::is(Bug::CreditTakenForCompletion) {
            self.free_by_credit(node, credit, now);
        }
        let worker = self.workers.get_mut(&node).expect("only for workers that were heard");
        if !is_ours || worker.inventory_epoch != epoch {
            return;
        }
        let before = worker.acked;
        worker.acknowledge(seen, credit);
        if worker.acked > before {
            // It answers: what is left gets a fresh wait.
            worker.resend_wait = self.config.timings.resend_wait;
            worker.resend_at = Some(now + worker.resend_wait);
            self.timers.set_earlier(Timer::Resend, now + worker.resend_wait);
        }
        if worker.sent.is_empty() && worker.retract.is_none() {
            worker.resend_at = None;
        }
        self.dispatch_soon(now);
    }

    /// What nobody must do: who has more room need not have finished anything.
    fn free_by_credit(&mut self, node: NodeId, credit: u32, now: Instant) {
        let worker = self.workers.get_mut(&node).expect("only for workers that were heard");
        let held = worker.held.jobs().find_map(|(job, map)| Some((job, map.iter().next()?.0)));
        let Some((job, range)) = held.filter(|_| credit > worker.credit) else { return };
        worker.held.remove(job, range);
        self.release(job, &[range], now);
    }

    /// A worker tells what another epoch gave it: from now on that is held.
    fn on_foreign_report(&mut self, node: NodeId, epoch: u64, job: JobId, range: ChunkRange, attempt: u32) {
        let ours = self.epoch();
        let worker = self.workers.get_mut(&node).expect("it was heard");
        // Composed before the inventory that we acted on, which had it or not.
        if ours.is_some_and(|ours| worker.inventory_epoch == ours && epoch < ours) {
            return;
        }
        let Some(view) = self.log.jobs.get_mut(&job) else { return };
        for piece in view.pending.ranges_in(range).collect::<Vec<_>>() {
            view.unheld.remove(piece);
            worker.held.set(job, piece, Holding { claim: Claim::Reported, attempt, is_started: false });
        }
    }

    pub(super) fn on_inventory(
        &mut self,
        from: PeerId,
        node: NodeId,
        frame: &[u8],
        inventory: &Inventory,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let boot = BootNonce(inventory.boot.get());
        let Ok(items) = records_of::<ChunkItem>(body, inventory.num_items.get()) else {
            return self.refuse(from, frame, ErrorCode::Malformed, "it has fewer items than it says", actions);
        };
        if boot == BootNonce::NONE {
            return self.refuse(from, frame, ErrorCode::InvalidRequest, "an inventory needs a boot", actions);
        }
        if !self.hear(from, node, boot, now, actions) {
            return;
        }
        // The worker has forgotten results of entries that we have not seen: to us they would be chunks to run again.
        if self.log.index < inventory.confirmed_index.get() && !planted::is(Bug::InventoryBeforeItsIndex) {
            let worker = self.workers.get_mut(&node).expect("it was heard above");
            let age = |frame: &Vec<u8>| inventory_of(frame).map(|(inventory, _)| age_of(&inventory));
            if worker.waiting_inventory.as_ref().and_then(age).is_none_or(|waiting| waiting <= age_of(inventory)) {
                worker.waiting_inventory = Some(frame.to_vec());
            }
            return;
        }
        let worker = self.workers.get_mut(&node).expect("it was heard above");
        // One that waits and was composed earlier has nothing to add.
        let age = |frame: &Vec<u8>| inventory_of(frame).map(|(inventory, _)| age_of(&inventory));
        if worker.waiting_inventory.as_ref().and_then(age).is_some_and(|waiting| waiting <= age_of(inventory)) {
            worker.waiting_inventory = None;
        }
        self.act_on_inventory(node, inventory, items, now, actions);
        self.ask_if_unknown(node, now, actions);
    }

    fn act_on_inventory(
        &mut self,
        node: NodeId,
        inventory: &Inventory,
        items: &[ChunkItem],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (epoch, seen, credit) = (inventory.epoch.get(), inventory.seen_sequence.get(), inventory.credit.get());
        let ours = self.epoch();
        let worker = self.workers.get_mut(&node).expect("it was heard");
        worker.cpus_milli = inventory.cpus_milli.get();
        worker.memory = inventory.memory.get();
        let is_of_our_epoch = ours == Some(epoch);
        let is_first = worker.inventory_epoch != epoch;
        let is_older = match ours {
            None => false,
            Some(_) if epoch < worker.inventory_epoch => true,
            Some(_) if is_of_our_epoch && !is_first => seen < worker.acked || seen >= worker.next,
            Some(_) => false,
        };
        if is_older {
            return;
        }
        let is_full = ours.is_none() || is_of_our_epoch;
        let ended = self.reconcile(node, items, seen, is_full, now);
        if !is_of_our_epoch {
            return;
        }
        let worker = self.workers.get_mut(&node).expect("it was heard");
        if is_first {
            worker.next = seen + 1;
            worker.acked = seen;
            worker.inventory_epoch = epoch;
        }
        worker.may_hold = false;
        worker.inventory_wanted = worker.inventory_wanted.filter(|wanted| seen < *wanted);
        self.acknowledged(node, epoch, seen, credit, now);
        for (job, range) in ended {
            self.kill(node, job, range, now, actions);
        }
    }

    /// Brings what the worker counts as holding in line with its list, as far as the list can know: up to number
    /// `seen`. Gives back what it still means to run though it has ended.
    fn reconcile(
        &mut self,
        node: NodeId,
        items: &[ChunkItem],
        seen: u64,
        is_full: bool,
        now: Instant,
    ) -> Vec<(JobId, ChunkRange)> {
        let mut listed = BTreeMap::<JobId, RangeMap<Listed>>::new();
        let mut ended = Vec::new();
        for item in items {
            let (job, range) = (item.job(), item.range());
            let pending = match self.log.jobs.get(&job) {
                Some(view) => view.pending.ranges_in(range).collect(),
                // Whatever an epoch before ours gave is in our view: a job that is not there has ended.
                None => Vec::new(),
            };
            if item.state == holding::QUEUED || item.state == holding::RUNNING {
                ended.extend(complement(range, &pending).into_iter().map(|range| (job, range)));
            }
            let listed = listed.entry(job).or_default();
            pending.into_iter().for_each(|range| listed.insert(range, Listed::from(item)));
        }
        let worker = self.workers.get_mut(&node).expect("it was heard");
        let mut freed = Vec::new();
        if is_full {
            let none = RangeMap::default();
            let held: Vec<_> = worker.held.jobs().map(|(job, map)| (job, map.clone())).collect();
            for (job, map) in held {
                let gone = unlisted(&map, listed.get(&job).unwrap_or(&none), seen);
                gone.iter().for_each(|range| drop(worker.held.remove(job, *range)));
                freed.push((job, gone));
            }
        }
        for (job, map) in listed {
            let Some(view) = self.log.jobs.get_mut(&job) else { continue };
            for (range, Listed { attempt, is_started }) in map.iter() {
                for piece in unassigned(&worker.held, job, range) {
                    worker.held.set(job, piece, Holding { claim: Claim::Reported, attempt, is_started });
                    view.unheld.remove(piece);
                }
            }
        }
        freed.into_iter().for_each(|(job, ranges)| self.release(job, &ranges, now));
        ended
    }

    pub(super) fn on_retract_answer(
        &mut self,
        from: PeerId,
        node: NodeId,
        frame: &[u8],
        answer: &RetractAnswer,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Ok(items) = records::<ChunkItem>(body) else {
            return self.refuse(from, frame, ErrorCode::Malformed, "its items are cut off", actions);
        };
        if !self.hear(from, node, BootNonce(answer.boot.get()), now, actions) {
            return;
        }
        let worker = self.workers.get_mut(&node).expect("it was heard above");
        let epoch = answer.epoch.get();
        if worker.boot.0 != answer.boot.get() || worker.inventory_epoch != epoch || epoch == 0 {
            return;
        }
        if self.log.index < answer.confirmed_index.get() && !planted::is(Bug::InventoryBeforeItsIndex) {
            worker.waiting_answer = Some(frame.to_vec());
            return;
        }
        self.act_on_retract_answer(node, answer, items, now);
    }

    fn act_on_retract_answer(&mut self, node: NodeId, answer: &RetractAnswer, items: &[ChunkItem], now: Instant) {
        let (epoch, seen) = (answer.epoch.get(), answer.seen_sequence.get());
        if Some(epoch) != self.epoch() {
            return;
        }
        let pause = self.config.timings.resend_wait;
        let worker = self.workers.get_mut(&node).expect("it was heard");
        let answered = |retract: &super::worker_view::Retract| retract.sequence == answer.sequence.get();
        if let Some(retract) = worker.retract.filter(|retract| answered(retract) && seen >= retract.sequence) {
            worker.retract = None;
            let mut listed = RangeMap::default();
            let is_of_it = |item: &&ChunkItem| item.job() == retract.job && item.range().is_within(u32::MAX);
            for item in items.iter().filter(is_of_it) {
                listed.insert(item.range(), Listed::from(item));
            }
            let mut held = RangeMap::default();
            for (piece, holding) in worker.held.pieces(retract.job, retract.range) {
                held.insert(piece, holding);
            }
            let gone = unlisted(&held, &listed, seen);
            gone.iter().for_each(|range| drop(worker.held.remove(retract.job, *range)));
            if gone.is_empty() {
                worker.retract_not_before = now + pause;
            }
            for (range, _) in listed.iter().filter(|(_, listed)| listed.is_started) {
                worker.held.mark_started(retract.job, range);
            }
            self.release(retract.job, &gone, now);
        }
        self.acknowledged(node, epoch, seen, answer.credit.get(), now);
    }

    pub(super) fn on_killed(
        &mut self,
        from: PeerId,
        node: NodeId,
        killed: &Killed,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let boot = BootNonce(killed.boot.get());
        if !self.hear(from, node, boot, now, actions) {
            return;
        }
        let worker = self.workers.get_mut(&node).expect("it was heard above");
        let acked = worker.acked;
        // A number that is still on its way could bring the range back: then the kill is said once more after it.
        if worker.boot == boot && worker.kills.get(&killed.request.get()).is_some_and(|kill| acked >= kill.after) {
            worker.kills.remove(&killed.request.get());
        }
    }

    pub(super) fn on_error(
        &mut self,
        from: PeerId,
        node: NodeId,
        error: &Error,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let code = ErrorCode::from_number(error.code.get());
        if self.is_master(from) {
            if code == Some(ErrorCode::UnknownNode) {
                self.register_again(from, now);
            }
            let is_watch = error.request.get() == self.link.watch_request && error.regarding == Kind::Watch as u8;
            if code == Some(ErrorCode::NotLeader) && is_watch && self.config.masters.len() > 1 {
                self.turn_to_next_master();
            }
            return;
        }
        if code == Some(ErrorCode::UnknownJob) && error.regarding == Kind::WorkerRequest as u8 {
            self.body_wanted(node, error.job_uuid.job(), error.request.get(), now, actions);
        }
    }

    /// A worker does not have the body of a job that a request called known.
    fn body_wanted(&mut self, node: NodeId, job: JobId, sequence: u64, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&node) else { return };
        let is_sent = |sent: &Sent| matches!(sent, Sent::Request { job: asked, .. } if *asked == job);
        // Once per number: if that one is lost too, the resend takes care of it.
        if worker.sent.get(&sequence).is_some_and(is_sent) && worker.bodies.get(&job) != Some(&sequence) {
            worker.bodies.insert(job, sequence);
            self.resend(node, now, actions);
        }
    }

    /// Takes the inventories and answers that our view of the log has caught up with.
    pub(super) fn take_waiting(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let index = self.log.index;
        let mut inventories = Vec::new();
        let mut answers = Vec::new();
        for (node, worker) in &mut self.workers {
            let is_due =
                |frame: &mut Vec<u8>| inventory_of(frame).is_none_or(|(i, _)| i.confirmed_index.get() <= index);
            inventories.extend(worker.waiting_inventory.take_if(is_due).map(|frame| (*node, frame)));
            let is_due = |frame: &mut Vec<u8>| answer_of(frame).is_none_or(|(a, _)| a.confirmed_index.get() <= index);
            answers.extend(worker.waiting_answer.take_if(is_due).map(|frame| (*node, frame)));
        }
        for (node, frame) in inventories {
            let Some((inventory, items)) = inventory_of(&frame) else { continue };
            if self.workers.get(&node).is_some_and(|worker| worker.boot.0 == inventory.boot.get()) {
                self.act_on_inventory(node, &inventory, items, now, actions);
                self.ask_if_unknown(node, now, actions);
            }
        }
        for (node, frame) in answers {
            let Some((answer, items)) = answer_of(&frame) else { continue };
            let is_current = |worker: &WorkerView| {
                worker.boot.0 == answer.boot.get() && worker.inventory_epoch == answer.epoch.get()
            };
            if self.workers.get(&node).is_some_and(is_current) {
                self.act_on_retract_answer(node, &answer, items, now);
            }
        }
    }
}

/// What a worker's list says of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listed {
    attempt: u32,
    is_started: bool,
}

impl From<&ChunkItem> for Listed {
    fn from(item: &ChunkItem) -> Self {
        Self { attempt: item.attempt, is_started: item.state != holding::QUEUED }
    }
}

/// How late an inventory was composed, for two of one boot.
fn age_of(inventory: &Inventory) -> (u64, u64, u64, u64) {
    let Inventory { boot, epoch, seen_sequence, confirmed_index, .. } = *inventory;
    (boot.get(), epoch.get(), seen_sequence.get(), confirmed_index.get())
}

fn inventory_of(frame: &[u8]) -> Option<(Inventory, &[ChunkItem])> {
    if let Ok(Message::Inventory(inventory, body)) = Message::decode(frame) {
        Some((*inventory, records_of(body, inventory.num_items.get()).ok()?))
    } else {
        None
    }
}

fn answer_of(frame: &[u8]) -> Option<(RetractAnswer, &[ChunkItem])> {
    if let Ok(Message::RetractAnswer(answer, body)) = Message::decode(frame) {
        Some((*answer, records(body).ok()?))
    } else {
        None
    }
}

/// What of `held` a list composed at number `seen` should have and has not.
fn unlisted(held: &RangeMap<Holding>, listed: &RangeMap<Listed>, seen: u64) -> Vec<ChunkRange> {
    let known = held.iter().filter(|(_, holding)| match holding.claim {
        Claim::Reported => true,
        // A later number was on its way when the list was made.
        Claim::Assigned { sequence } => sequence <= seen,
    });
    known.flat_map(|(range, _)| listed.gaps(range)).collect()
}

/// What of `range` is not held by an assignment of our own, which knows better than a list.
fn unassigned(held: &Held, job: JobId, range: ChunkRange) -> Vec<ChunkRange> {
    let assigned = |holding: &Holding| match holding.claim {
        Claim::Reported => false,
        Claim::Assigned { .. } => true,
    };
    let pieces: Vec<_> =
        held.pieces(job, range).filter(|(_, holding)| assigned(holding)).map(|(piece, _)| piece).collect();
    complement(range, &pieces)
}
