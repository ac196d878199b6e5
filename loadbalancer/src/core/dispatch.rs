//! Chooses: which job is served next, which worker gets it, and how much of it.
//!
//! Jobs: the more important first, where waiting makes important; among equals the one with the fewest chunks out, then
//! the older. Workers: one that the chunk fits, with room, the least loaded for its size. How much: its share of what is
//! left, so that all workers come to the end of a job together; where one idles all the same while another has a queue,
//! the queue's tail is taken back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use planted::Bug;
use wire::{ChunkRange, Instant, JobId, NodeId};

use super::log_view::JobView;
use super::worker_view::{UNANSWERED_MAX, WorkerView};
use super::{Action, LoadBalancer};

/// Jobs that are weighed against each other in one go.
const CANDIDATES_MAX: usize = 256;

/// Smallest first: importance, chunks out, number.
type Rank = (Reverse<i64>, u64, u64, JobId);

impl LoadBalancer {
    /// Hands out what there is work and room for.
    pub(super) fn dispatch(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.reign.is_none() {
            return;
        }
        let usable: Vec<NodeId> =
            self.workers.iter().filter(|(_, worker)| self.is_usable(worker, now)).map(|(node, _)| *node).collect();
        if usable.iter().all(|node| self.workers[node].room() == 0) {
            return;
        }
        while self.dispatch_best(&usable, now, actions) {}
        self.retract_for_idle(&usable, now, actions);
    }

    /// Serves the best candidates; true = there may be more to do.
    fn dispatch_best(&mut self, usable: &[NodeId], now: Instant, actions: &mut Vec<Action>) -> bool {
        let mut candidates = self.candidates(usable, now);
        let mut is_served = false;
        while let Some((importance, held, number, job)) = candidates.pop_first() {
            let view = self.log.jobs.get_mut(&job).expect("a candidate is a live job");
            let allowance = view.allowance();
            let Some(node) = choose(&self.workers, usable, view).filter(|_| allowance > 0) else { continue };
            let share = share(&self.workers, usable, view, node, allowance);
            let count_max = share.min(self.workers[&node].room()).min(u64::from(u32::MAX)) as u32;
            let Some((range, attempt)) = view.take(count_max) else { continue };
            view.served_at = now;
            self.assign(node, job, range, attempt, now, actions);
            candidates.insert((importance, held + u64::from(range.count), number, job));
            is_served = true;
        }
        is_served
    }

    /// The best of the jobs that have something that may go out now, to at least one of the workers.
    fn candidates(&self, usable: &[NodeId], now: Instant) -> BTreeSet<Rank> {
        let epoch = self.epoch();
        let may_all_go = self.workers.values().all(|worker| !worker.may_hold) || planted::is(Bug::GraceNotWaited);
        let step = self.config.timings.ageing_step.as_micros().max(1) as u64;
        let rank = |(job, view): (&JobId, &JobView)| {
            let age = now.since(view.served_at).as_micros() as u64 / step;
            (Reverse(i64::from(view.priority).saturating_add(age as i64)), view.held(), view.number, *job)
        };
        let is_open = |view: &JobView| {
            // What a silent worker could hold is not given away. A job accepted in our own epoch it cannot hold: for
            // another load balancer to give it out it would have had to read the log up to the job, and so past the
            // entry that made us primary.
            (may_all_go || Some(view.born_in_epoch) == epoch)
                && !view.unheld.is_empty()
                && view.allowance() > 0
                && choose(&self.workers, usable, view).is_some()
        };
        let mut ranks: Vec<Rank> = self.log.jobs.iter().filter(|(_, view)| is_open(view)).map(rank).collect();
        if ranks.len() > CANDIDATES_MAX {
            ranks.select_nth_unstable(CANDIDATES_MAX);
            ranks.truncate(CANDIDATES_MAX);
        }
        ranks.into_iter().collect()
    }

    /// True if something new may be sent to it, room aside.
    fn is_usable(&self, worker: &WorkerView, now: Instant) -> bool {
        worker.peer.is_some()
            && Some(worker.inventory_epoch) == self.epoch()
            && !worker.is_draining
            && now.since(worker.last_heard) < self.config.timings.quiet_after
            && worker.sent.len() < UNANSWERED_MAX
    }

    /// Where a worker has a free slot and nothing is left to give it, takes the tail of the longest queue back.
    fn retract_for_idle(&mut self, usable: &[NodeId], now: Instant, actions: &mut Vec<Action>) {
        let idle: Vec<NodeId> = usable.iter().filter(|node| is_idle(&self.workers[node])).copied().collect();
        for node in idle {
            let Some((victim, job, range)) = self.surplus_for(node, usable, now) else { continue };
            self.retract(victim, job, range, now, actions);
        }
    }

    /// The worker with the longest queue beyond its slots, and the part of its newest range that `node` should have.
    fn surplus_for(&self, node: NodeId, usable: &[NodeId], now: Instant) -> Option<(NodeId, JobId, ChunkRange)> {
        let may_give = |worker: &WorkerView| worker.retract.is_none() && now >= worker.retract_not_before;
        let surplus = |worker: &WorkerView| worker.held.chunks().saturating_sub(worker.slots(ONE_CPU));
        let others = usable.iter().filter(|other| **other != node).map(|other| (*other, &self.workers[other]));
        let mut victims: Vec<(u64, NodeId)> = others
            .filter(|(_, worker)| may_give(worker) && surplus(worker) > 0)
            .map(|(other, worker)| (surplus(worker), other))
            .collect();
        victims.sort_unstable_by_key(|victim| Reverse(*victim));
        victims.into_iter().find_map(|(_, victim)| self.tail_of(victim, node))
    }

    /// What the idle worker should have of the other's newest range.
    fn tail_of(&self, victim: NodeId, node: NodeId) -> Option<(NodeId, JobId, ChunkRange)> {
        let (worker, idle) = (&self.workers[&victim], &self.workers[&node]);
        let (job, range) = newest_fitting(worker, idle, |job| self.log.jobs.get(&job))?;
        let cpus_milli = self.log.jobs[&job].cpus_milli;
        let surplus = worker.held.chunks().saturating_sub(worker.slots(cpus_milli));
        let free_slots = idle.slots(cpus_milli).saturating_sub(idle.held.chunks());
        if surplus == 0 || free_slots == 0 {
            return None;
        }
        let half = surplus.div_ceil(2);
        let count = free_slots.max(half).min(surplus).min(idle.room()).min(u64::from(range.count)) as u32;
        let tail = ChunkRange::new((range.end() - u64::from(count)) as u32, count);
        Some((victim, job, tail))
    }
}

/// Thousandths of a cpu.
const ONE_CPU: u32 = 1000;

/// True while it has room and a slot that nothing it holds can fill.
fn is_idle(worker: &WorkerView) -> bool {
    worker.room() > 0 && worker.held.chunks() < worker.slots(ONE_CPU)
}

/// The range that the worker got last and may not have started, of a job that fits `idle`.
fn newest_fitting<'a>(
    worker: &WorkerView,
    idle: &WorkerView,
    view: impl Fn(JobId) -> Option<&'a JobView>,
) -> Option<(JobId, ChunkRange)> {
    let fits = |job: JobId| view(job).is_some_and(|view| idle.fits(view.cpus_milli, view.memory));
    let jobs = worker.held.jobs().filter(|(job, _)| fits(*job));
    let ranges = jobs.flat_map(|(job, map)| map.iter().map(move |(range, holding)| (job, range, holding)));
    let queued = ranges.filter(|(_, _, holding)| !holding.is_started);
    queued.max_by_key(|(job, range, holding)| (holding.claim, *job, range.first)).map(|(job, range, _)| (job, range))
}

/// The least loaded of the workers that have room and that a chunk of the job fits.
fn choose(workers: &BTreeMap<NodeId, WorkerView>, usable: &[NodeId], view: &JobView) -> Option<NodeId> {
    able(workers, usable, view).min_by_key(|(_, worker)| load(worker)).map(|(node, _)| node)
}

/// The workers that have room and that a chunk of the job fits.
fn able<'a>(
    workers: &'a BTreeMap<NodeId, WorkerView>,
    usable: &'a [NodeId],
    view: &'a JobView,
) -> impl Iterator<Item = (NodeId, &'a WorkerView)> {
    let can = |worker: &WorkerView| {
        worker.room() > 0 && worker.fits(view.cpus_milli, view.memory) && worker.sent.len() < UNANSWERED_MAX
    };
    usable.iter().map(|node| (*node, &workers[node])).filter(move |(_, worker)| can(worker))
}

/// How many of the `waiting` chunks make `node`, by its cpus, as loaded as the others will be once all are given out.
fn share(workers: &BTreeMap<NodeId, WorkerView>, usable: &[NodeId], view: &JobView, node: NodeId, waiting: u64) -> u64 {
    let (mut chunks, mut cpus) = (u128::from(waiting), 0);
    for (_, worker) in able(workers, usable, view) {
        chunks += u128::from(worker.held.chunks());
        cpus += u128::from(worker.cpus_milli);
    }
    let worker = &workers[&node];
    let target = (chunks * u128::from(worker.cpus_milli)).div_ceil(cpus.max(1));
    u64::try_from(target).unwrap_or(u64::MAX).saturating_sub(worker.held.chunks()).clamp(1, waiting)
}

/// Chunks out per cpu, in thousandths.
fn load(worker: &WorkerView) -> u64 {
    worker.held.chunks().saturating_mul(1_000_000) / u64::from(worker.cpus_milli.max(1))
}
