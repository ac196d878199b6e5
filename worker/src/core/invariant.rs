//! What must hold of a worker after every step; tests and the simulator ask.

use std::collections::{BTreeMap, BTreeSet};

use wire::{ChunkSet, JobId};

use super::{UNCONFIRMED_MAX, Worker};

impl Worker {
    /// Asserts that no slot is double-booked, no chunk is held twice, and the sums are right.
    pub fn check_invariants(&self) {
        self.check_slots();
        self.check_chunks();
        self.results.check_invariants();
        let live = self.queued_count() + self.running_count() as u64;
        let credit = u64::from(self.credit());
        assert!(credit == 0 || live + self.results.len() as u64 + credit <= UNCONFIRMED_MAX as u64);
        let room = u64::from(self.settings.slots + self.pace.queue_max(self.settings.slots));
        assert!(credit == 0 || live + credit <= room, "credit {credit} beyond {live} of {room}");
    }

    fn check_slots(&self) {
        let runs: BTreeSet<u64> = self.slots.runs().map(|(_, run)| run.run).collect();
        assert_eq!(runs.len(), self.running_count(), "a run is in two slots");
        let cpus: u64 = self.slots.runs().map(|(_, run)| u64::from(run.need.cpus_milli)).sum();
        let memory: u128 = self.slots.runs().map(|(_, run)| u128::from(run.need.memory)).sum();
        assert!(cpus <= u64::from(self.slots.total().cpus_milli), "{cpus} thousandths of a cpu are in use");
        assert!(memory <= u128::from(self.slots.total().memory), "{memory} bytes are in use");
    }

    fn check_chunks(&self) {
        let mut held: BTreeMap<JobId, ChunkSet> = BTreeMap::new();
        let mut count: BTreeMap<JobId, u64> = BTreeMap::new();
        let mut hold = |job: JobId, range: wire::ChunkRange| {
            held.entry(job).or_default().insert(range);
            *count.entry(job).or_default() += u64::from(range.count);
        };
        let mut queued = 0;
        for entry in self.queue.entries() {
            queued += u64::from(entry.range.count);
            hold(entry.job, entry.range);
        }
        assert_eq!(queued, self.queue.chunk_count());
        for (_, run) in self.slots.runs() {
            hold(run.job, wire::ChunkRange::one(run.chunk));
        }
        for (job, chunk, _) in self.results.all() {
            hold(job, wire::ChunkRange::one(chunk));
        }
        for (id, job) in self.jobs.all() {
            let found = held.remove(&id).unwrap_or_default();
            assert_eq!(job.held, found, "job {id} holds other chunks than it says");
            assert_eq!(count.remove(&id).unwrap_or(0), found.len(), "a chunk of job {id} is held twice");
        }
        assert!(held.is_empty(), "chunks of unknown jobs are here: {held:?}");
    }
}
