//! What the masters' log says, as far as this load balancer has watched it.
//!
//! The log is the only thing believed without question: which chunks have not ended, at which attempt, and whose epoch
//! it is. What workers say is held against it.

use std::collections::BTreeMap;

use planted::Bug;
use wire::job::{JobBody, JobSpec};
use wire::{BootNonce, ChunkRange, ChunkSet, DecodeError, Instant, JobId, Message, NodeId};

use super::range_map::RangeMap;

/// The log up to `index`.
#[derive(Debug, Default)]
pub struct LogView {
    /// The index of the last entry that is in the view.
    pub index: u64,
    /// Jobs that have not ended.
    pub jobs: BTreeMap<JobId, JobView>,
    /// The current primary.
    pub grant: Option<EpochGrant>,
}

/// The entry that made a boot of a load balancer the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochGrant {
    pub load_balancer: NodeId,
    pub boot: BootNonce,
    pub epoch: u64,
}

/// A job that has not ended, as dispatch needs it.
#[derive(Debug)]
pub struct JobView {
    pub number: u64,
    /// Its `submit_job` as it came; workers get the body from it.
    frame: Box<[u8]>,
    body_start: usize,
    pub program_length: u64,
    pub num_input_files: u64,
    pub chunk_count: u32,
    pub cpus_milli: u32,
    /// Bytes that one chunk needs.
    pub memory: u64,
    pub priority: i32,
    /// At most that many chunks are out at once; 0 = no cap.
    pub running_max: u32,
    /// Chunks that have not ended.
    pub pending: ChunkSet,
    /// Pending chunks that nobody is known to hold.
    pub unheld: ChunkSet,
    /// Current attempts, where they are not 1.
    pub attempts: RangeMap<u32>,
    /// The epoch of ours in which it was accepted; 0 = accepted before we were primary.
    pub born_in_epoch: u64,
    /// When a chunk of it last went to a worker, or it became known: from there on it ages.
    pub served_at: Instant,
}

impl JobView {
    /// A new job of the `submit_job` in `frame`.
    pub fn new(number: u64, frame: &[u8], now: Instant) -> Result<(JobId, JobView), DecodeError> {
        let wrong = DecodeError::Body { what: "a job in the log is not a submit_job" };
        let (fixed, body) = submit_of(frame).ok_or(wrong)?;
        let (program_length, num_input_files) = (fixed.program_length.get(), fixed.num_input_files.get());
        let spec = JobSpec::decode(JobBody::decode(body, program_length, num_input_files)?.spec)?;
        let chunk_count = fixed.chunk_count.get();
        let view = JobView {
            number,
            body_start: frame.len() - body.len(),
            frame: frame.into(),
            program_length,
            num_input_files,
            chunk_count,
            cpus_milli: spec.cpus_milli,
            memory: spec.memory,
            priority: spec.priority,
            running_max: spec.array.running_max,
            pending: ChunkSet::full(chunk_count),
            unheld: ChunkSet::full(chunk_count),
            attempts: RangeMap::default(),
            born_in_epoch: 0,
            served_at: now,
        };
        Ok((fixed.job_uuid.job(), view))
    }

    /// The job body, as `worker_request` carries it.
    pub fn body(&self) -> &[u8] {
        &self.frame[self.body_start..]
    }

    /// The current attempt of `chunk`, and one past the last chunk that has the same.
    pub fn attempt_at(&self, chunk: u32) -> (u32, u64) {
        let (attempt, end) = self.attempts.run_at(chunk);
        (attempt.unwrap_or(1), end)
    }

    /// What of `range` has not ended, cut where the current attempt changes.
    pub fn pending_by_attempt(&self, range: ChunkRange) -> Vec<(ChunkRange, u32)> {
        let mut parts = Vec::new();
        for run in self.pending.ranges_in(range) {
            let mut from = run.first;
            while u64::from(from) < run.end() {
                let (attempt, end) = self.attempt_at(from);
                let end = end.min(run.end());
                parts.push((ChunkRange::new(from, (end - u64::from(from)) as u32), attempt));
                let Ok(next) = u32::try_from(end) else { break };
                from = next;
            }
        }
        parts
    }

    /// Chunks that somebody holds.
    pub fn held(&self) -> u64 {
        self.pending.len() - self.unheld.len()
    }

    /// How many more chunks may go out now.
    pub fn allowance(&self) -> u64 {
        let unheld = self.unheld.len();
        match self.running_max {
            0 => unheld,
            cap => unheld.min(u64::from(cap).saturating_sub(self.held())),
        }
    }

    /// Takes the lowest unheld chunks: one range of one attempt, at most `count_max` long.
    pub fn take(&mut self, count_max: u32) -> Option<(ChunkRange, u32)> {
        let run = self.unheld.ranges().next()?;
        let (attempt, end) = self.attempt_at(run.first);
        let same = u32::try_from(end - u64::from(run.first)).unwrap_or(u32::MAX);
        let range = ChunkRange::new(run.first, run.count.min(count_max).min(same));
        self.unheld.remove(range);
        Some((range, attempt))
    }

    /// What of `range` has not ended is at `attempt` from now on.
    pub fn wait_for_attempt(&mut self, range: ChunkRange, attempt: u32) {
        for run in self.pending.ranges_in(range) {
            self.attempts.insert(run, attempt);
        }
    }

    /// The chunks of `range` have ended.
    pub fn end(&mut self, range: ChunkRange) {
        self.pending.remove(range);
        self.unheld.remove(range);
        self.attempts.remove(range);
    }
}

fn submit_of(frame: &[u8]) -> Option<(wire::SubmitJob, &[u8])> {
    // Only one kind is a job; the others are not ours to look at.
    if let Ok(Message::SubmitJob(fixed, body)) = Message::decode(frame) { Some((*fixed, body)) } else { None }
}

impl LogView {
    /// The epoch that is this boot's, if the log says so: an epoch is granted to a boot, not to a node.
    pub fn epoch_of(&self, load_balancer: NodeId, boot: BootNonce) -> Option<u64> {
        let is_boot = |granted: BootNonce| granted == boot || planted::is(Bug::EpochOfEarlierBoot);
        let ours = self.grant.filter(|grant| grant.load_balancer == load_balancer && is_boot(grant.boot));
        ours.map(|grant| grant.epoch)
    }
}
