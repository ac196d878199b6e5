//! What the benchmarks share: paired measurement, because a time alone means nothing on a shared machine.
//!
//! A candidate and its baseline are run in turns, several rounds each, and the ratio of their medians is what counts:
//! whatever slows the machine down slows both.

// Benchmarks are the one place that times itself by the machine's clock.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

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
        baseline();
        candidate();
        let (mut base, mut cand) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            base.push(time(&mut baseline));
            cand.push(time(&mut candidate));
        }
        base.sort();
        cand.sort();
        let spread = cand[ROUNDS - 1].as_secs_f64() / cand[0].as_secs_f64();
        Self { baseline: base[ROUNDS / 2], candidate: cand[ROUNDS / 2], spread }
    }

    /// Speed of the candidate over the baseline's: above 1 is faster.
    pub fn speed_ratio(&self) -> f64 {
        self.baseline.as_secs_f64() / self.candidate.as_secs_f64()
    }
}

fn time(work: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
