//! Runs seeds: `sim --seed N [--trace]` replays one, `sim --seeds N [--first F]` runs many, and `sim --planted N` shows in
//! how many of N seeds each planted bug is found.

use std::process::ExitCode;
use std::time::Instant;

use sim::many;
use sim::seed::{self, Care, Report};

const USAGE: &str = "usage: sim --seed N [--trace] | sim --seeds N [--first F] | sim --planted N [--first F] [BUG..]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| -> Option<u64> {
        let position = arguments.iter().position(|argument| argument == name)?;
        arguments.get(position + 1)?.parse().ok()
    };
    let first = number("--first").unwrap_or(1);
    match (number("--seed"), number("--seeds"), number("--planted")) {
        (Some(one), None, None) => run_one(one, arguments.iter().any(|argument| argument == "--trace")),
        (None, Some(count), None) => run_many(first, count),
        (None, None, Some(count)) => run_planted(first, count),
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
    let seeds: Vec<u64> = (first..first + count).collect();
    let mut sum = Report { faults: 0, acknowledged: 0, runs: 0, steps: 0, excused: 0, trace_hash: 0 };
    let mut failures = 0;
    let results = many::on_all_cpus(&seeds, |number| {
        seed::run(*number, Care::Quick).inspect_err(|failure| println!("{failure}"))
    });
    for result in results {
        match result {
            Ok(report) => {
                sum.faults += report.faults;
                sum.acknowledged += report.acknowledged;
                sum.runs += report.runs;
                sum.steps += report.steps;
                sum.excused += report.excused;
            }
            Err(_) => failures += 1,
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

/// Prints in how many of so many seeds each planted bug was found.
#[cfg(feature = "planted")]
fn run_planted(first: u64, count: u64) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    println!("| bug | found in, of {count} seeds | first seed | how, there |\n|---|---|---|---|");
    let seeds: Vec<u64> = (first..first + count).collect();
    let mut is_missed = false;
    // Names of bugs behind the numbers pick those.
    let names: Vec<String> = std::env::args().filter(|argument| argument.starts_with(char::is_uppercase)).collect();
    let is_wanted = |bug: &planted::Bug| names.is_empty() || names.contains(&format!("{bug:?}"));
    for bug in planted::Bug::ALL.into_iter().filter(is_wanted) {
        let results = many::on_all_cpus(&seeds, |number| sim::seed::run_with(bug, *number));
        let found: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        is_missed |= found.is_empty();
        let (seed, what) = found.first().map_or((0, ""), |failure| (failure.seed, failure.what.as_str()));
        let what: String = what.replace(['\n', '|'], " ").chars().take(140).collect();
        println!("| {bug:?} | {} | {seed} | {what} |", found.len());
    }
    if is_missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(not(feature = "planted"))]
fn run_planted(_first: u64, _count: u64) -> ExitCode {
    eprintln!(
        "bugs are planted only where they are built in: cargo run --release -p sim --features planted -- --planted 20"
    );
    ExitCode::from(2)
}
