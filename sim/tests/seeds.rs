//! What nobody thought of: the seeds that once failed, then fresh ones.
//!
//! `SIM_SEEDS` says how many fresh ones (default 100); `SIM_FIRST_SEED` where they begin, else they begin elsewhere on
//! every day.

use std::time::{SystemTime, UNIX_EPOCH};

use sim::many;
use sim::seed::{self, Care, Report};

/// One seed a line; what follows it says what was wrong.
const ONCE_FAILED: &str = include_str!("../seeds.txt");

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs seeds, none of which may fail.
fn run(seeds: impl IntoIterator<Item = u64>) -> Vec<Report> {
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let results = many::on_all_cpus(&seeds, |number| seed::run(*number, Care::Quick));
    let failures: Vec<String> = results.iter().filter_map(|result| Some(result.as_ref().err()?.to_string())).collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
    results.into_iter().flatten().collect()
}

#[test]
fn seeds_that_once_failed_pass() {
    let lines = ONCE_FAILED.lines().filter(|line| !line.starts_with('#'));
    run(lines.filter_map(|line| line.split_whitespace().next()).map(|text| text.parse().expect("a seed")));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the day only picks which seeds are tried; no core sees it")]
fn fresh_seeds_pass() {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let first = number("SIM_FIRST_SEED").unwrap_or(day * 1_000_000);
    let reports = run(first..first + number("SIM_SEEDS").unwrap_or(100));
    // Seeds in which little happens show little.
    let count = reports.len() as u64;
    let (faults, acknowledged) =
        reports.iter().fold((0, 0), |sum, report| (sum.0 + report.faults, sum.1 + report.acknowledged));
    assert!(count < 50 || faults >= 20 * count, "{faults} faults in {count} seeds");
    assert!(count < 50 || acknowledged >= 300 * count, "{acknowledged} acknowledgements in {count} seeds");
}

#[test]
fn a_seed_is_a_whole_history() {
    for number in [3, 4] {
        let first = seed::run(number, Care::Quick).expect("it passes");
        let again = seed::run(number, Care::Thorough).expect("it passes again");
        assert_eq!(first, again, "seed {number} went two ways");
        assert!(first.faults >= 10 && first.acknowledged > 100 && first.runs > 1_000, "{first:?}");
    }
}
