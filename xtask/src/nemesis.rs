//! Masters under `kill -9` and SIGSTOP: a real cluster of three, clients that submit without pause, and somebody who
//! does harm at random instants. What the clients were told is checked afterwards.
//!
//! The load is a program of its own (`client/examples/load.rs`), which prints the history; harm is told to it first, so
//! that one clock times both. Leaders are killed while all three masters are up: the death of two is not survived, only
//! outlived, and that is what the kills of all at once are for.

mod chance;
mod history;
mod masters;
mod plot;
mod report;

use crate::cluster::{self, Cluster};
use crate::{Outcome, output};
use chance::Chance;
use history::History;
use masters::Masters;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Between the instant at which all masters are up and the next harm.
const PAUSE_MAX_MS: u64 = 3_000;
/// How long a stopped master is stopped.
const STOP_MS: std::ops::Range<u64> = 1_000..5_000;
/// Load before the first harm and after the last.
const QUIET: Duration = Duration::from_secs(3);

/// What is done to masters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Harm {
    KillLeader,
    StopLeader,
    KillFollower,
    StopFollower,
    KillAll,
}

impl Harm {
    const ALL: [Harm; 5] = [Harm::KillLeader, Harm::StopLeader, Harm::KillFollower, Harm::StopFollower, Harm::KillAll];

    /// Its word in the history.
    fn word(self) -> &'static str {
        match self {
            Harm::KillLeader => "kill-leader",
            Harm::StopLeader => "stop-leader",
            Harm::KillFollower => "kill-follower",
            Harm::StopFollower => "stop-follower",
            Harm::KillAll => "kill-all",
        }
    }

    /// How often it is done for so many kills of the leader.
    fn count(self, kills: usize) -> usize {
        match self {
            Harm::KillLeader => kills,
            Harm::KillAll => kills / 2,
            Harm::StopLeader | Harm::KillFollower | Harm::StopFollower => kills / 4,
        }
    }
}

struct Options {
    kills: usize,
    at_least: Duration,
    seed: Option<u64>,
    out: PathBuf,
}

impl Options {
    fn read(words: &[&str]) -> Outcome<Options> {
        let out = crate::target()?.join("nemesis");
        let mut options = Options { kills: 20, at_least: Duration::ZERO, seed: None, out };
        for pair in words.chunks(2) {
            let &[flag, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
            let number = || value.parse::<u64>().map_err(|_| format!("{flag} needs a number, not `{value}`"));
            match flag {
                "--kills" => options.kills = number()? as usize,
                "--minutes" => options.at_least = Duration::from_secs(60 * number()?),
                "--seed" => options.seed = Some(number()?),
                "--out" => options.out = value.into(),
                _ => return Err(format!("nemesis has no option {flag}")),
            }
        }
        Ok(options)
    }
}

/// Runs everything; fails when the history contradicts itself.
pub(crate) fn nemesis(words: &[&str]) -> Outcome {
    let options = Options::read(words)?;
    let seed = options.seed.map_or_else(chance::fresh_seed, Ok)?;
    cluster::build(&["--bins", "--examples"])?;
    let write = |name: &str, text: &str| {
        let path = options.out.join(name);
        std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    std::fs::create_dir_all(&options.out).map_err(|error| format!("cannot make {}: {error}", options.out.display()))?;
    println!("Seed {seed}. The report comes to {}.", options.out.display());
    let path = options.out.join("history.txt");
    harm(&options, seed, &path)?;
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let history = History::read(&text)?;
    let wrong = history.check();
    let report = report::report(&history, &wrong, &about_this_machine());
    write("report.md", &report)?;
    write("throughput.svg", &plot::plot(&history))?;
    println!("\n{report}");
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} contradictions in {}", wrong.len(), path.display())) }
}

/// Starts the cluster and the load, does the harm, and leaves the whole history at `history`.
fn harm(options: &Options, seed: u64, history: &Path) -> Outcome {
    let cluster = Cluster::start("nemesis", &["--masters", "3", "--workers", "2"])?;
    let masters = Masters::of(&cluster);
    let harmed = Load::start(&cluster, history).and_then(|mut load| {
        do_harm(options, seed, &masters, &mut load)?;
        masters.wait_all_up()?;
        load.finish()
    });
    if harmed.is_err() {
        for log in cluster.logs() {
            // What cannot be kept is told by its absence.
            let _ = std::fs::copy(&log, options.out.join(log.file_name().unwrap_or_default()));
        }
    }
    harmed.and(cluster.stop())
}

#[expect(clippy::disallowed_methods, reason = "no core here: harm goes on for as long as it was asked to")]
fn do_harm(options: &Options, seed: u64, masters: &Masters, load: &mut Load) -> Outcome {
    let mut chance = Chance::new(seed);
    let begun = std::time::Instant::now();
    std::thread::sleep(QUIET);
    loop {
        let mut plan: Vec<Harm> = Harm::ALL.iter().flat_map(|harm| vec![*harm; harm.count(options.kills)]).collect();
        chance.shuffle(&mut plan);
        for (done, harm) in plan.iter().enumerate() {
            masters.wait_all_up()?;
            std::thread::sleep(Duration::from_millis(chance.below(PAUSE_MAX_MS)));
            do_one(*harm, masters, load, &mut chance)?;
            println!("{:>4} of {} {}", done + 1, plan.len(), harm.word());
        }
        if plan.is_empty() || begun.elapsed() >= options.at_least {
            break;
        }
    }
    masters.wait_all_up()?;
    std::thread::sleep(QUIET);
    Ok(())
}

fn do_one(harm: Harm, masters: &Masters, load: &mut Load, chance: &mut Chance) -> Outcome {
    let leader = masters.leader()?;
    let followers: Vec<&str> = masters.names().filter(|name| *name != leader).collect();
    let follower = followers[chance.below(followers.len() as u64) as usize];
    match harm {
        Harm::KillLeader => masters.signal("KILL", &[&leader], || load.tell(harm.word())),
        Harm::KillFollower => masters.signal("KILL", &[follower], || load.tell(harm.word())),
        Harm::KillAll => masters.signal("KILL", &masters.names().collect::<Vec<_>>(), || load.tell(harm.word())),
        Harm::StopLeader | Harm::StopFollower => {
            let victim = if harm == Harm::StopLeader { &leader } else { follower };
            masters.signal("STOP", &[victim], || load.tell(harm.word()))?;
            std::thread::sleep(Duration::from_millis(STOP_MS.start + chance.below(STOP_MS.end - STOP_MS.start)));
            masters.signal("CONT", &[victim], || load.tell("continue"))
        }
    }
}

/// The program that makes load.
struct Load {
    child: Child,
}

impl Load {
    fn start(cluster: &Cluster, history: &Path) -> Outcome<Load> {
        let program = crate::target()?.join("release/examples/load");
        let file = File::create(history).map_err(|error| format!("cannot write {}: {error}", history.display()))?;
        let mut command = Command::new(&program);
        command.arg(cluster.dir()).stdin(Stdio::piped()).stdout(file);
        let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Load { child })
    }

    /// Has a line written into the history.
    fn tell(&mut self, line: &str) -> Outcome {
        let stdin = self.child.stdin.as_mut().expect("it is piped, and closed at the end only");
        writeln!(stdin, "{line}").map_err(|error| format!("the load has ended: {error}"))
    }

    /// Has it ask what all jobs have come to.
    fn finish(mut self) -> Outcome {
        drop(self.child.stdin.take());
        let status = self.child.wait().map_err(|error| format!("cannot wait for the load: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("the load ended badly: {status}")) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What figures depend on, in a few words.
fn about_this_machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let busy = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let busy = busy.split(' ').nth(2).unwrap_or("unknown").to_owned();
    let commit = output("git", &["describe", "--always", "--dirty"]).unwrap_or_default();
    format!("{cpus} cores for everything, load of the last 15 minutes {busy}, commit {}", commit.trim())
}
