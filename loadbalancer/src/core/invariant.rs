//! What holds after every step, whatever came in. Tests and the simulator ask; a break is a fault of ours.

use std::collections::BTreeMap;

use wire::{ChunkSet, JobId, NodeId};

use super::LoadBalancer;
use super::range_map::RangeMap;
use super::worker_view::{Claim, KILLS_MAX, UNANSWERED_MAX, WorkerView};

impl LoadBalancer {
    /// Panics with what does not hold.
    pub fn check_invariants(&self) {
        self.workers.iter().for_each(|(node, worker)| self.check_worker(*node, worker));
        for (job, view) in &self.log.jobs {
            let mut held = ChunkSet::new();
            let ranges = self.workers.values().flat_map(|worker| worker.all_held()).filter_map(|held| held.job(*job));
            ranges.flat_map(|map| map.iter()).for_each(|(range, _)| held.insert(range));
            let mut expected = view.pending.clone();
            expected.subtract(&held);
            assert_eq!(view.unheld, expected, "job {job}: unheld is pending without held");
            let alive = view.pending.len() - expected.len();
            assert_eq!(held.len(), alive, "job {job}: something is held that has ended");
            self.check_assigned_once(*job);
        }
        assert!(self.timers.next_deadline().is_some(), "a load balancer always waits for something");
    }

    fn check_worker(&self, node: NodeId, worker: &WorkerView) {
        let epoch = self.epoch();
        if epoch.is_none() || worker.inventory_epoch == 0 {
            assert!(worker.sent.is_empty() && worker.retract.is_none(), "{node}: numbers without a reign");
        }
        assert!(worker.inventory_epoch == 0 || Some(worker.inventory_epoch) == epoch, "{node}: of another reign");
        let numbers: Vec<u64> = worker.sent.keys().copied().collect();
        let dense: Vec<u64> = (worker.acked + 1..worker.next).collect();
        assert_eq!(numbers, dense, "{node}: the numbers have a gap");
        assert!(numbers.len() <= UNANSWERED_MAX + 1, "{node}: too many unanswered numbers");
        assert!(worker.kills.len() <= KILLS_MAX, "{node}: too many kills");
        assert!(worker.sent.is_empty() || worker.resend_at.is_some(), "{node}: unanswered and never sent again");
        let count = |held: &super::worker_view::Held| {
            held.jobs().flat_map(|(_, map)| map.iter()).map(|(range, _)| u64::from(range.count)).sum::<u64>()
        };
        for held in worker.all_held() {
            assert_eq!(held.chunks(), count(held), "{node}: the count of held chunks is wrong");
            for (job, map) in held.jobs() {
                assert!(self.log.jobs.contains_key(&job), "{node} holds chunks of job {job}, which has ended");
                assert!(!map.is_empty(), "{node}: a job without ranges is kept");
            }
        }
        for (_, holding) in worker.held.jobs().flat_map(|(_, map)| map.iter()) {
            match holding.claim {
                Claim::Reported => {}
                Claim::Assigned { sequence } => {
                    assert!(sequence < worker.next, "{node}: number {sequence} was not given")
                }
            }
        }
    }

    /// In one epoch a chunk is given to one worker at a time.
    fn check_assigned_once(&self, job: JobId) {
        let mut assigned = RangeMap::<u64>::default();
        let mut owners = BTreeMap::new();
        for (number, (node, worker)) in self.workers.iter().enumerate() {
            owners.insert(number as u64, *node);
            let runs = worker.held.job(job).into_iter().flat_map(|map| map.iter());
            for (range, _) in runs.filter(|(_, holding)| matches!(holding.claim, Claim::Assigned { .. })) {
                if let Some((piece, other)) = assigned.pieces(range).next() {
                    panic!("{piece:?} of job {job} is given to {node} and to {}", owners[&other]);
                }
                assigned.insert(range, number as u64);
            }
        }
    }
}
