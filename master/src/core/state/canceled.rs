//! What ran of a job when it was canceled: where, and since when.
//!
//! No result will tell of these runs, so what the leader believed is kept instead. It is kept by runs of neighbours, and
//! of nothing that only waited.

use std::collections::BTreeMap;

use wire::{ChunkRange, DecodeError, NodeId, Reader, WallTime, Writer};

use super::results::position;

/// The canceled runs of one job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CanceledRuns {
    /// By first chunk; they never meet, since a chunk is canceled once.
    runs: BTreeMap<u32, PackedRun>,
    /// Where these ran; runs name them by position.
    workers: Vec<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct PackedRun {
    count: u32,
    worker: u32,
    started_at: WallTime,
    canceled_at: WallTime,
}

/// Where and when a chunk ran that was canceled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CanceledRun {
    pub worker: NodeId,
    /// Zero = not known.
    pub started_at: WallTime,
    pub canceled_at: WallTime,
}

impl CanceledRuns {
    /// Keeps where the chunks of `range` ran, none of which is known yet.
    pub fn keep(&mut self, range: ChunkRange, run: CanceledRun) {
        let CanceledRun { worker, started_at, canceled_at } = run;
        let worker = position(&mut self.workers, worker);
        self.runs.insert(range.first, PackedRun { count: range.count, worker, started_at, canceled_at });
    }

    pub fn of(&self, chunk: u32) -> Option<CanceledRun> {
        let (first, run) = self.runs.range(..=chunk).next_back()?;
        let PackedRun { count, worker, started_at, canceled_at } = *run;
        let is_within = ChunkRange::new(*first, count).contains(chunk);
        is_within.then(|| CanceledRun { worker: self.workers[worker as usize], started_at, canceled_at })
    }

    pub fn ranges(&self) -> impl Iterator<Item = ChunkRange> + '_ {
        self.runs.iter().map(|(first, run)| ChunkRange::new(*first, run.count))
    }

    pub fn encode(&self, to: &mut Writer) {
        to.varint(self.workers.len() as u64);
        self.workers.iter().for_each(|worker| {
            to.plain(worker);
        });
        to.varint(self.runs.len() as u64);
        for (first, run) in &self.runs {
            to.varint((*first).into()).varint(run.count.into()).varint(run.worker.into());
            to.varint(run.started_at.0).varint(run.canceled_at.0);
        }
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut canceled = Self::default();
        for _ in 0..from.varint()? {
            canceled.workers.push(*from.plain()?);
        }
        let mut end = 0;
        for _ in 0..from.varint()? {
            let (range, worker) = (ChunkRange::new(from.varint32()?, from.varint32()?), from.varint32()?);
            if u64::from(range.first) < end || range.count == 0 || worker as usize >= canceled.workers.len() {
                return Err(DecodeError::Body { what: "a canceled run is out of place" });
            }
            end = range.end();
            let (started_at, canceled_at) = (WallTime(from.varint()?), WallTime(from.varint()?));
            canceled.runs.insert(range.first, PackedRun { count: range.count, worker, started_at, canceled_at });
        }
        Ok(canceled)
    }
}
