//! Runs seeds: `sim --seed N [--trace]` replays one, `sim --seeds N [--first F]` runs many.

use std::process::ExitCode;
use std::time::Instant;

use sim::seed::{self, Care, Report};

const USAGE: &str = "usage: sim --seed N [--trace] | sim --seeds N [--first F]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| -> Option<u64> {
        let position = arguments.iter().position(|argument| argument == name)?;
        arguments.get(position + 1)?.parse().ok()
    };
    match (number("--seed"), number("--seeds")) {
        (Some(one), None) => run_one(one, arguments.iter().any(|argument| argument == "--trace")),
        (None, Some(count)) => run_many(number("--first").unwrap_or(1), count),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run_one(number: u64, is_traced: bool) -> ExitCode {
    match seed::run(number, if is_traced { Care::Traced } else { Care::Thorough }) {
        Ok(report) => {
            println!("seed {number}: {report:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this measures how fast seeds run; no seed sees it")]
fn run_many(first: u64, count: u64) -> ExitCode {
    let began = Instant::now();
    let mut sum = Report { faults: 0, acknowledged: 0, runs: 0, steps: 0, excused: 0, trace_hash: 0 };
    let mut failures = 0;
    for number in first..first + count {
        match seed::run(number, Care::Quick) {
            Ok(report) => {
                sum.faults += report.faults;
                sum.acknowledged += report.acknowledged;
                sum.runs += report.runs;
                sum.steps += report.steps;
                sum.excused += report.excused;
            }
            Err(failure) => {
                failures += 1;
                println!("{failure}");
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let passed = (count - failures).max(1) as f64;
    println!(
        "{count} seeds from {first}: {failures} failed; {:.1} seeds/s; a seed has {:.1} faults, {:.1} acknowledgements, \
         {:.0} runs of programs ({:.1} of them excused second runs), {:.0} events",
        count as f64 / seconds,
        sum.faults as f64 / passed,
        sum.acknowledged as f64 / passed,
        sum.runs as f64 / passed,
        sum.excused as f64 / passed,
        sum.steps as f64 / passed,
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
