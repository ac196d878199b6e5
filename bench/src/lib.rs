//! What the benchmarks share: paired measurement, because a time alone means nothing on a shared machine.
//!
//! A candidate and its baseline are run in turns, several rounds each, and the ratio of their medians is what counts:
//! whatever slows the machine down slows both.

// Benchmarks are the one place that times itself by the machine's clock.
#![allow(clippy::disallowed_methods)]

mod cluster;

use std::time::{Duration, Instant};

pub use cluster::Cluster;

/// Rounds of each side; odd, so that the median is one of them.
const ROUNDS: usize = 7;

/// The medians of a pair, and their spread.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub baseline: Duration,
    pub candidate: Duration,
    /// Slowest round of the candidate over its fastest.
    pub spread: f64,
}

impl Pair {
    /// Runs both in turns and keeps the medians. Each call does the same amount of work.
    pub fn measure(mut baseline: impl FnMut(), mut candidate: impl FnMut()) -> Self {
        let sides = in_turns(2, |side| if side == 0 { baseline() } else { candidate() });
        Self { baseline: sides[0].median, candidate: sides[1].median, spread: sides[1].spread }
    }

    /// Speed of the candidate over the baseline's: above 1 is faster.
    pub fn speed_ratio(&self) -> f64 {
        self.baseline.as_secs_f64() / self.candidate.as_secs_f64()
    }
}

/// What the rounds of one side say together.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    pub median: Duration,
    pub fastest: Duration,
    /// Slowest over fastest.
    pub spread: f64,
}

impl Rounds {
    /// At least one round.
    pub fn of(mut rounds: Vec<Duration>) -> Self {
        rounds.sort();
        let (fastest, slowest) = (rounds[0], rounds[rounds.len() - 1]);
        let spread = slowest.as_secs_f64() / fastest.as_secs_f64();
        Self { median: rounds[rounds.len() / 2], fastest, spread }
    }
}

/// Runs `work` for each of so many sides in turns; the first turn of each warms up and does not count.
pub fn in_turns(sides: usize, mut work: impl FnMut(usize)) -> Vec<Rounds> {
    let mut rounds = vec![Vec::new(); sides];
    for turn in 0..=ROUNDS {
        for (side, rounds) in rounds.iter_mut().enumerate() {
            let taken = time(|| work(side));
            if turn > 0 {
                rounds.push(taken);
            }
        }
    }
    rounds.into_iter().map(Rounds::of).collect()
}

/// How long `work` takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
