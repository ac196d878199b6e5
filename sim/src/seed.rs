//! One seed from its beginning to its end: a cluster under load, faults, then calm, in which all has to be set right.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wire::{Duration, Instant};

use crate::client::Habit;
use crate::faults;
use crate::network::Weather;
use crate::shell::Process;
use crate::world::{Change, Settings, World};

/// How long the calm lasts at most.
const CALM_MAX: Duration = Duration::from_secs(60);
/// A seed lives so long at least.
const LIFE_MIN: Instant = Instant(60_000_000);
const MASTERS: usize = 3;
const WORKERS: usize = 4;
/// Of a quick run.
const INVARIANTS_EVERY: u64 = 401;

/// What a seed came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    pub faults: u64,
    /// Submissions, cancels and recorded files that were acknowledged.
    pub acknowledged: u64,
    pub runs: u64,
    pub steps: u64,
    /// Second runs that the protocol admits.
    pub excused: u64,
    /// Equal for equal histories.
    pub trace_hash: u64,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("seed {seed} failed at step {step}: {what}; replay: cargo run -p sim -- --seed {seed}")]
pub struct Failure {
    pub seed: u64,
    pub step: u64,
    pub what: String,
}

/// How a seed is run; what happens in it is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// Cores look at their own invariants now and then.
    Quick,
    /// After every event.
    Thorough,
    /// That, and every event is a line on standard output.
    Traced,
}

/// Runs one seed.
pub fn run(seed: u64, care: Care) -> Result<Report, Failure> {
    let habit = Habit { pause_min: Duration::from_millis(60), pause_max: Duration::from_millis(360) };
    let invariants_every = if care == Care::Quick { INVARIANTS_EVERY } else { 1 };
    let is_traced = care == Care::Traced;
    let settings = Settings {
        seed,
        masters: MASTERS,
        workers: WORKERS,
        habit: Some(habit),
        is_traced,
        invariants_every,
        ..Settings::default()
    };
    let mut steps = 0;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(settings);
        let faults = faults::plan(&mut world);
        let outcome = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
        steps = world.steps;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        Report {
            faults,
            acknowledged: world.checker.promises.acknowledged,
            runs: world.journal.runs.len() as u64,
            steps: world.steps,
            excused: world.checker.reruns.excused,
            trace_hash: world.trace.hash(),
        }
    }));
    result.map_err(|panic| Failure { seed, step: steps, what: text_of(&*panic) })
}

/// Runs one seed with a bug in the cores.
#[cfg(feature = "planted")]
pub fn run_with(bug: planted::Bug, seed: u64) -> Result<Report, Failure> {
    planted::plant(Some(bug));
    let result = run(seed, Care::Quick);
    planted::plant(None);
    result
}

fn live(world: &mut World) {
    world.run_until(faults::FAULTS_UNTIL);
    calm_down(world);
    let end = world.now + CALM_MAX;
    while world.now < end && !(is_settled(world) && world.now >= LIFE_MIN) {
        world.run_until(world.now + Duration::from_millis(500));
    }
    world.check_end();
}

/// Ends all faults; clients begin nothing new.
pub fn calm_down(world: &mut World) {
    let now = world.now;
    world.network.heal();
    world.weather = Weather::CALM;
    for host in world.machines.iter().map(|machine| machine.host).collect::<Vec<_>>() {
        world.plan(now, Change::Resume { host });
        world.plan(now, Change::Restart { host });
        world.plan(now, Change::DiskFull { host, is_full: false });
        world.plan(now, Change::DiskPace { host, pace: crate::shell::DiskPace::FAST });
    }
    // Everything that is planned for this moment happens.
    world.run_until(Instant(now.0 + 1));
    for machine in &mut world.machines {
        if let Some(Process::Client(client)) = machine.process.as_mut() {
            client.settle_down();
        }
    }
}

/// True when a master leads and all have applied the same, every job has ended, every request is answered, and no worker holds anything.
pub fn is_settled(world: &World) -> bool {
    let is_quiet = |process: &Process| match process {
        Process::Client(client) => client.is_settled(),
        Process::Worker(shell) => {
            let core = &shell.core;
            core.queued_count() == 0 && core.running_count() == 0 && core.unconfirmed_count() == 0
        }
        Process::Master(shell) => shell.core.state().index == world.checker.history.state.index,
        Process::LoadBalancer(_) | Process::Storage(_) => true,
    };
    let leads = |process: &Process| matches!(process, Process::Master(shell) if shell.core.is_ready());
    world.machines.iter().filter_map(|machine| machine.process.as_ref()).any(leads)
        && world.checker.history.state.jobs_live.is_empty()
        && world.machines.iter().all(|machine| machine.process.as_ref().is_some_and(is_quiet))
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}
