//! What runs, and whether something more would fit: cpus and memory as chunks declare them, one slot process per run.

use wire::{ChunkRange, Duration, Instant, JobId};

use super::queue::overlap;
use super::result::Outcome;

/// Which slot, from 0.
pub type SlotIndex = u32;

/// Chunks of a fraction of a cpu may share one, up to this many.
const RUNS_PER_CPU_MAX: u32 = 4;

/// What a chunk takes while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Need {
    pub(super) cpus_milli: u32,
    /// Bytes.
    pub(super) memory: u64,
}

/// Whether a run was asked to end, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    No,
    TimedOut,
    /// It filled the disk.
    Overfull,
    /// What was written out for it to read was changed.
    Spoiled,
    /// Nobody wants its result.
    Canceled,
}

/// A chunk in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) run: u64,
    pub(super) job: JobId,
    pub(super) chunk: u32,
    pub(super) attempt: u32,
    /// The epoch that assigned it.
    pub(super) epoch: u64,
    pub(super) need: Need,
    pub(super) started_at: Instant,
    pub(super) time_limit: Option<Duration>,
    pub(super) stop: Stop,
    /// It was refused an input, or may have read something else.
    pub(super) missed_input: bool,
    /// How it ended, once it has; its slot is being cleaned.
    pub(super) outcome: Option<Outcome>,
}

/// All slots of a worker. A slot beyond the cpus is used only by chunks that need less than one.
#[derive(Debug)]
pub(super) struct Slots {
    runs: Vec<Option<Run>>,
    total: Need,
    used: Need,
}

impl Slots {
    pub(super) fn new(cpus: u32, memory: u64) -> Self {
        let total = Need { cpus_milli: cpus.saturating_mul(1000), memory };
        let runs = vec![None; cpus.saturating_mul(RUNS_PER_CPU_MAX) as usize];
        Self { runs, total, used: Need { cpus_milli: 0, memory: 0 } }
    }

    pub(super) fn total(&self) -> Need {
        self.total
    }

    /// True when an otherwise idle worker could run it.
    pub(super) fn can_ever_fit(&self, need: Need) -> bool {
        need.cpus_milli <= self.total.cpus_milli && need.memory <= self.total.memory
    }

    /// The slot in which it could start now.
    pub(super) fn fits(&self, need: Need) -> Option<SlotIndex> {
        let cpus_milli = self.used.cpus_milli.checked_add(need.cpus_milli)?;
        let memory = self.used.memory.checked_add(need.memory)?;
        if cpus_milli > self.total.cpus_milli || memory > self.total.memory {
            return None;
        }
        self.runs.iter().position(Option::is_none).map(|slot| slot as SlotIndex)
    }

    pub(super) fn occupy(&mut self, slot: SlotIndex, run: Run) {
        let place = &mut self.runs[slot as usize];
        assert!(place.is_none(), "slot {slot} is double-booked: {place:?} and {run:?}");
        self.used.cpus_milli += run.need.cpus_milli;
        self.used.memory += run.need.memory;
        *place = Some(run);
    }

    pub(super) fn release(&mut self, slot: SlotIndex) -> Run {
        let run = self.runs[slot as usize].take().expect("only an occupied slot is released");
        self.used.cpus_milli -= run.need.cpus_milli;
        self.used.memory -= run.need.memory;
        run
    }

    /// What runs in the slot, its outputs being collected or not.
    pub(super) fn at(&mut self, slot: SlotIndex) -> Option<&mut Run> {
        self.runs.get_mut(slot as usize).and_then(Option::as_mut)
    }

    /// The slot of a run, and the run.
    pub(super) fn find(&mut self, run: u64) -> Option<(SlotIndex, &mut Run)> {
        let slot = self.runs.iter().position(|place| place.as_ref().is_some_and(|held| held.run == run))?;
        self.runs[slot].as_mut().map(|run| (slot as SlotIndex, run))
    }

    /// Such runs as have not ended yet did not get what they were to read.
    pub(super) fn note_missed_input(&mut self, is_meant: impl Fn(&Run) -> bool) {
        for run in self.runs.iter_mut().flatten().filter(|run| run.outcome.is_none() && is_meant(run)) {
            run.missed_input = true;
        }
    }

    /// Everything in a slot.
    pub(super) fn runs(&self) -> impl Iterator<Item = (SlotIndex, &Run)> {
        let slots = self.runs.iter().enumerate();
        slots.filter_map(|(slot, place)| place.as_ref().map(|run| (slot as SlotIndex, run)))
    }

    /// The slots with chunks of the range.
    pub(super) fn within(&self, job: JobId, range: ChunkRange) -> impl Iterator<Item = (SlotIndex, &Run)> {
        self.runs().filter(move |(_, run)| run.job == job && overlap(ChunkRange::one(run.chunk), range).is_some())
    }
}
