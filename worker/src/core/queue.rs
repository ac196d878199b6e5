//! What waits here for a slot, as ranges: a hundred thousand chunks of one job are one entry.

use std::collections::VecDeque;

use wire::{ChunkRange, JobId};

/// Neighbouring chunks of one job that were accepted alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Queued {
    pub(super) job: JobId,
    /// Never empty.
    pub(super) range: ChunkRange,
    pub(super) attempt: u32,
    /// The epoch that assigned it.
    pub(super) epoch: u64,
}

/// First come, first started; no chunk is in it twice (its owner sees to that).
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Queued>,
    chunks: u64,
}

impl Queue {
    pub(super) fn chunk_count(&self) -> u64 {
        self.chunks
    }

    pub(super) fn range_count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Queued> {
        self.entries.iter()
    }

    pub(super) fn at(&self, index: usize) -> &Queued {
        &self.entries[index]
    }

    /// Puts a range at the end; one that continues the last entry becomes part of it.
    pub(super) fn push(&mut self, queued: Queued) {
        if queued.range.count == 0 {
            return;
        }
        self.chunks += u64::from(queued.range.count);
        if let Some(last) = self.entries.back_mut()
            && (last.job, last.attempt, last.epoch) == (queued.job, queued.attempt, queued.epoch)
            && last.range.end() == u64::from(queued.range.first)
        {
            last.range.count += queued.range.count;
            return;
        }
        self.entries.push_back(queued);
    }

    /// Takes the first chunk of the entry at `index`.
    pub(super) fn take(&mut self, index: usize) -> Queued {
        let entry = &mut self.entries[index];
        let taken = Queued { range: ChunkRange::one(entry.range.first), ..*entry };
        entry.range.first = entry.range.first.wrapping_add(1);
        entry.range.count -= 1;
        if entry.range.count == 0 {
            self.entries.remove(index);
        }
        self.chunks -= 1;
        taken
    }

    /// The parts of `range` that wait here, in the order of the queue.
    pub(super) fn within(&self, job: JobId, range: ChunkRange) -> impl Iterator<Item = Queued> {
        self.entries
            .iter()
            .filter(move |entry| entry.job == job)
            .filter_map(move |entry| overlap(entry.range, range).map(|range| Queued { range, ..*entry }))
    }

    pub(super) fn has_any(&self, job: JobId, range: ChunkRange) -> bool {
        self.within(job, range).next().is_some()
    }

    /// Takes out what waits here of `range`, and returns it.
    pub(super) fn remove(&mut self, job: JobId, range: ChunkRange) -> Vec<Queued> {
        let removed: Vec<Queued> = self.within(job, range).collect();
        if removed.is_empty() {
            return removed;
        }
        self.rebuild(job, range, |_| None);
        self.chunks -= removed.iter().map(|queued| u64::from(queued.range.count)).sum::<u64>();
        removed
    }

    /// Gives what waits here of `range` with a lower attempt the higher one; its place in the queue stays.
    pub(super) fn raise_attempt(&mut self, job: JobId, range: ChunkRange, attempt: u32) {
        if self.within(job, range).any(|queued| queued.attempt < attempt) {
            self.rebuild(job, range, |part| Some(Queued { attempt: part.attempt.max(attempt), ..part }));
        }
    }

    /// Replaces each part that lies in `range`, and cuts its entry where need be.
    fn rebuild(&mut self, job: JobId, range: ChunkRange, replace: impl Fn(Queued) -> Option<Queued>) {
        let mut entries = VecDeque::with_capacity(self.entries.len() + 2);
        for entry in self.entries.drain(..) {
            let Some(part) = overlap(entry.range, range).filter(|_| entry.job == job) else {
                entries.push_back(entry);
                continue;
            };
            let before = ChunkRange::new(entry.range.first, part.first - entry.range.first);
            let after = ChunkRange::new(part.end() as u32, (entry.range.end() - part.end()) as u32);
            let rest = |range: ChunkRange| (range.count > 0).then_some(Queued { range, ..entry });
            entries.extend(rest(before));
            entries.extend(replace(Queued { range: part, ..entry }));
            entries.extend(rest(after));
        }
        self.entries = entries;
    }
}

/// What two ranges have in common.
pub(super) fn overlap(one: ChunkRange, other: ChunkRange) -> Option<ChunkRange> {
    let first = one.first.max(other.first);
    let end = one.end().min(other.end());
    let count = end.checked_sub(u64::from(first)).filter(|count| *count > 0)?;
    Some(ChunkRange::new(first, count as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId([1; 16]);

    fn queued(first: u32, count: u32, attempt: u32) -> Queued {
        Queued { job: JOB, range: ChunkRange::new(first, count), attempt, epoch: 1 }
    }

    fn contents(queue: &Queue) -> Vec<(u32, u32, u32)> {
        queue.entries().map(|entry| (entry.range.first, entry.range.count, entry.attempt)).collect()
    }

    #[test]
    fn neighbours_become_one_entry_and_leave_one_by_one() {
        let mut queue = Queue::default();
        queue.push(queued(0, 50_000, 1));
        queue.push(queued(50_000, 50_000, 1));
        assert_eq!(contents(&queue), [(0, 100_000, 1)]);
        assert_eq!(queue.take(0), queued(0, 1, 1));
        assert_eq!((queue.chunk_count(), contents(&queue)), (99_999, vec![(1, 99_999, 1)]));
    }

    #[test]
    fn a_range_is_cut_out_of_the_middle() {
        let mut queue = Queue::default();
        queue.push(queued(0, 10, 1));
        assert_eq!(queue.remove(JOB, ChunkRange::new(3, 4)), [queued(3, 4, 1)]);
        assert_eq!((queue.chunk_count(), contents(&queue)), (6, vec![(0, 3, 1), (7, 3, 1)]));
        assert_eq!(queue.remove(JOB, ChunkRange::new(3, 4)), []);
        assert_eq!(queue.remove(JobId([2; 16]), ChunkRange::new(0, u32::MAX)), []);
        assert_eq!(queue.remove(JOB, ChunkRange::new(0, u32::MAX)).len(), 2);
        assert_eq!((queue.chunk_count(), queue.range_count()), (0, 0));
    }

    #[test]
    fn a_higher_attempt_keeps_its_place() {
        let mut queue = Queue::default();
        queue.push(queued(0, 4, 2));
        queue.push(queued(9, 1, 1));
        queue.raise_attempt(JOB, ChunkRange::new(1, 2), 3);
        queue.raise_attempt(JOB, ChunkRange::new(0, 1), 1);
        assert_eq!(contents(&queue), [(0, 1, 2), (1, 2, 3), (3, 1, 2), (9, 1, 1)]);
        assert_eq!(queue.chunk_count(), 5);
    }

    #[test]
    fn the_last_chunk_of_the_largest_job_can_be_taken() {
        let mut queue = Queue::default();
        queue.push(queued(u32::MAX - 1, 1, 1));
        assert_eq!(queue.take(0).range.first, u32::MAX - 1);
        assert_eq!(queue.range_count(), 0);
    }
}
