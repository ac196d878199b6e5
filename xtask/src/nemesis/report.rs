//! The table of a run: what was done, what was promised and kept, and how long submits were held up.

use super::Harm;
use super::history::{History, Verb};
use std::fmt::Write;

/// What is asked of kills of the leader.
const MEDIAN_MAX_US: u64 = 1_000_000;
const STALL_MAX_US: u64 = 3_000_000;

/// The whole report, in Markdown.
pub(super) fn report(history: &History, wrong: &[String], machine: &str) -> String {
    let (begun, ended) = history.span();
    let seconds = (ended.saturating_sub(begun)) as f64 / 1e6;
    let submits = history.submits().count();
    let count = |verb| history.answers.iter().filter(|answer| answer.verb == verb).count();
    let (jobs, chunks) = history.ended();
    let mut latencies: Vec<u64> = history.submits().map(|submit| submit.ended - submit.begun).collect();
    latencies.sort();

    let mut text = String::from(
        "| what was done to masters | times | stall of submits, median | max | asked |\n|---|---|---|---|---|\n",
    );
    for harm in Harm::ALL {
        let stalls = history.stalls();
        let mut longest: Vec<u64> =
            stalls.iter().filter(|stall| stall.harm == harm).map(|stall| stall.longest).collect();
        longest.sort();
        let (Some(max), median) = (longest.last(), middle(&longest)) else { continue };
        let asked = match harm {
            Harm::KillLeader if median < MEDIAN_MAX_US && *max < STALL_MAX_US => "< 1 s, < 3 s: kept",
            Harm::KillLeader => "< 1 s, < 3 s: **missed**",
            Harm::StopLeader | Harm::KillFollower | Harm::StopFollower | Harm::KillAll => "",
        };
        let (name, times) = (name(harm), longest.len());
        line(&mut text, format!("| {name} | {times} | {} | {} | {asked} |", in_seconds(median), in_seconds(*max)));
    }
    line(&mut text, String::new());
    line(&mut text, "A stall is the longest that any submit waited between one of them and the next.".into());
    line(&mut text, "\n| clients | |\n|---|---|".into());
    line(&mut text, format!("| jobs acknowledged | {submits} in {seconds:.0} s: {:.0}/s |", submits as f64 / seconds));
    line(&mut text, format!("| a submit takes, median | {:.1} ms |", middle(&latencies) as f64 / 1e3));
    let [cancels, queries, waits] = [Verb::Cancel, Verb::Query, Verb::Wait].map(count);
    line(&mut text, format!("| cancels, questions, waits answered | {cancels}, {queries}, {waits} |"));
    line(&mut text, format!("| requests given up | {} |", history.failures.len()));
    line(&mut text, format!("| jobs and chunks there in the end | {jobs}, {chunks} |"));
    line(&mut text, format!("| contradictions | {} |", wrong.len()));
    line(&mut text, format!("\nMeasured with {machine}."));
    if !wrong.is_empty() {
        line(&mut text, "\nWhat cannot be:\n".into());
        wrong.iter().for_each(|wrong| line(&mut text, format!("- {wrong}")));
    }
    text
}

/// What was done, for people.
pub(super) fn name(harm: Harm) -> &'static str {
    match harm {
        Harm::KillLeader => "kill -9 of the leader",
        Harm::StopLeader => "SIGSTOP of the leader, 1 to 5 s",
        Harm::KillFollower => "kill -9 of a follower",
        Harm::StopFollower => "SIGSTOP of a follower, 1 to 5 s",
        Harm::KillAll => "kill -9 of all three at once",
    }
}

fn line(text: &mut String, line: String) {
    writeln!(text, "{line}").expect("a String takes everything");
}

/// The median of what is sorted; zero of nothing.
fn middle(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn in_seconds(microseconds: u64) -> String {
    format!("{:.2} s", microseconds as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_median_the_longest_and_the_verdict() {
        let text = "submit 0 10000 1 1 a 1 1\nharm 20000 kill-leader\nsubmit 15000 415000 2 2 b 2 1\nharm 500000 kill-leader\n\
            submit 490000 5490000 3 3 c 3 1\n";
        let report = report(&History::read(text).unwrap(), &[], "two cores");
        let expected = "| kill -9 of the leader | 2 | 4.99 s | 4.99 s | < 1 s, < 3 s: **missed** |";
        assert!(report.contains(expected), "{report}");
        assert!(report.contains("| jobs acknowledged | 3 in 5 s: 1/s |"), "{report}");
        assert!(report.contains("Measured with two cores."), "{report}");
    }
}
