//! The programs that workers run, and the journal of their runs.
//!
//! What a program does is told by the arguments of its job, so that a body that arrives wrong shows. The journal is kept
//! outside of all cores: it is what really ran, whatever they believe.

use std::collections::BTreeMap;

use wire::{BootNonce, Duration, Instant, JobId, NodeId};

use crate::chance::Chance;
use crate::network::Host;

/// What the chunks of a job do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// Microseconds that a run takes, at least and at most.
    pub duration_min_us: u64,
    pub duration_max_us: u64,
    /// How many of a thousand runs fail with exit code 3.
    pub fail_per_mille: u64,
    /// Attempts up to this one fail, whatever else.
    pub fail_attempt_max: u64,
    /// How many of a thousand runs write something.
    pub output_per_mille: u64,
    /// Its runs take down the worker's machine.
    pub is_poison: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            duration_min_us: 2_000,
            duration_max_us: 20_000,
            fail_per_mille: 0,
            fail_attempt_max: 0,
            output_per_mille: 0,
            is_poison: false,
        }
    }
}

impl Behaviour {
    /// A program that always takes this long.
    pub fn lasting(duration: Duration) -> Self {
        let us = duration.as_micros() as u64;
        Self { duration_min_us: us, duration_max_us: us, ..Self::default() }
    }

    /// The command that stands for it.
    pub fn arguments(&self) -> Vec<Vec<u8>> {
        let numbers = [
            self.duration_min_us,
            self.duration_max_us,
            self.fail_per_mille,
            self.fail_attempt_max,
            self.output_per_mille,
            u64::from(self.is_poison),
        ];
        std::iter::once(b"sim".to_vec()).chain(numbers.iter().map(|n| n.to_string().into_bytes())).collect()
    }

    /// The behaviour that a command stands for.
    pub fn parse(arguments: &[Vec<u8>]) -> Option<Self> {
        let [name, numbers @ ..] = arguments else { return None };
        let numbers: Vec<u64> =
            numbers.iter().map(|text| std::str::from_utf8(text).ok()?.parse().ok()).collect::<Option<_>>()?;
        let [duration_min_us, duration_max_us, fail_per_mille, fail_attempt_max, output_per_mille, is_poison] =
            numbers[..]
        else {
            return None;
        };
        let is_poison = is_poison == 1;
        let behaviour =
            Self { duration_min_us, duration_max_us, fail_per_mille, fail_attempt_max, output_per_mille, is_poison };
        (name == b"sim").then_some(behaviour)
    }

    pub fn duration(&self, chance: &mut Chance) -> Duration {
        Duration::from_micros(chance.between(self.duration_min_us, self.duration_max_us + 1))
    }
}

/// How a run ended, as its machine saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    Well,
    Badly,
    /// A signal that its worker asked for.
    Signal(u8),
    /// Its machine or its worker died.
    Killed,
}

/// One run of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunEntry {
    pub host: Host,
    pub worker: NodeId,
    pub boot: BootNonce,
    pub job: JobId,
    pub chunk: u32,
    pub attempt: u32,
    pub started_at: Instant,
    pub ended: Option<(Instant, Ending)>,
}

/// A run in the journal, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RunNumber(pub usize);

/// Everything that ever ran.
#[derive(Debug, Default)]
pub struct Journal {
    pub runs: Vec<RunEntry>,
    by_chunk: BTreeMap<(JobId, u32), Vec<RunNumber>>,
}

impl Journal {
    pub fn start(&mut self, run: RunEntry) -> RunNumber {
        let number = RunNumber(self.runs.len());
        self.by_chunk.entry((run.job, run.chunk)).or_default().push(number);
        self.runs.push(run);
        number
    }

    pub fn end(&mut self, number: RunNumber, at: Instant, ending: Ending) {
        let run = &mut self.runs[number.0];
        assert!(run.ended.is_none(), "{run:?} ends twice");
        run.ended = Some((at, ending));
    }

    /// All runs of a chunk in the order in which they started.
    pub fn of_chunk(&self, job: JobId, chunk: u32) -> impl Iterator<Item = &RunEntry> {
        self.by_chunk.get(&(job, chunk)).into_iter().flatten().map(|number| &self.runs[number.0])
    }
}
