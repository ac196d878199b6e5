//! No chunk runs again without need. The excuses are those of the protocol (§6), as its model has them.
//!
//! A chunk is tainted once one of them has happened to it: its worker was declared lost while alive; its result reached
//! the leader after its worker's boot had died; or it was given away while a worker, silent to a new primary for the
//! grace period, held it or still got it from the one before. A start of any other chunk that another living worker
//! holds, or that has finished, is a violation.

use std::collections::{BTreeMap, BTreeSet};

use wire::record::holding;
use wire::{ChunkRange, ChunkState, Duration, Instant, JobId, Message, WorkerRequest};

use super::history::{Effect, History};
use crate::network::Host;
use crate::process::{Journal, RunEntry};
use crate::shell::{LoadBalancerShell, Process, WorkerShell};
use crate::world::Machine;

/// A worker that is not heard for so long may be given up.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Reruns {
    tainted: BTreeSet<(JobId, u32)>,
    /// Chunks given away while this worker was silent: if it gets one of them after all, that is excused.
    given_away: BTreeMap<Host, BTreeSet<(JobId, u32)>>,
    /// The epoch of the last inventory of this boot that reached the primary's boot, and the index that it waits for.
    heard: BTreeMap<(Host, u32), (u64, u64)>,
    /// How far the primary's view of the log is.
    view: u64,
    /// The epoch whose silent workers have been given up.
    given_up_in: u64,
    /// The epoch of the primary, and since when it knows it.
    reign: Option<(u64, Instant)>,
    /// The highest number that the primary gave in its epoch to each boot of a worker.
    numbers: BTreeMap<(u64, Host, u64), u64>,
    /// Starts of tainted chunks that would have been violations.
    pub excused: u64,
}

impl Reruns {
    /// The load balancer has had a turn. Once the grace period of its reign is over, it gives up on silent workers.
    pub fn on_load_balancer(
        &mut self,
        shell: &LoadBalancerShell,
        machines: &[Machine],
        history: &History,
        now: Instant,
    ) {
        self.view = shell.core.index();
        let epoch = shell.core.epoch();
        if epoch != self.reign.map(|(epoch, _)| epoch) {
            self.reign = epoch.map(|epoch| (epoch, now));
        }
        let Some((epoch, since)) = self.reign else { return };
        if now.since(since) < GRACE || self.given_up_in == epoch {
            return;
        }
        self.given_up_in = epoch;
        for machine in machines {
            if self.has_told(machine, epoch) {
                continue;
            }
            let Some(Process::Worker(shell)) = machine.process.as_ref() else { continue };
            for job in history.state.jobs_live.iter().map(|job| &history.state.jobs[job]) {
                let held = job.open.iter().filter(|chunk| holds(shell, job.job, *chunk).is_some());
                self.tainted.extend(held.map(|chunk| (job.job, chunk)));
            }
        }
    }

    /// True when the primary has acted on an inventory of the worker.
    fn has_told(&self, machine: &Machine, epoch: u64) -> bool {
        let told = self.heard.get(&(machine.host, machine.boots));
        told.is_some_and(|(of_epoch, index)| *of_epoch == epoch && *index <= self.view)
    }

    pub fn on_arrival_at_load_balancer(&mut self, machines: &[Machine], from: Host, message: &Message<'_>) {
        let Message::Inventory(inventory, _) = message else { return };
        let machine = &machines[from.0];
        if self.reign.is_some_and(|(epoch, _)| epoch == inventory.epoch.get()) && machine.boot.0 == inventory.boot.get()
        {
            let epoch = inventory.epoch.get();
            // An earlier one that was acted on is as good.
            if !self.has_told(machine, epoch) {
                self.heard.insert((from, machine.boots), (epoch, inventory.confirmed_index.get()));
            }
            if self.has_told(machine, epoch) {
                self.given_away.remove(&from);
            }
        }
    }

    /// The primary gives away a range.
    pub fn on_dispatch(&mut self, machines: &[Machine], to: Host, request: &WorkerRequest, now: Instant) {
        let (epoch, sequence) = (request.epoch.get(), request.sequence.get());
        let number = self.numbers.entry((epoch, to, request.worker_boot.get())).or_default();
        if sequence <= *number {
            return;
        }
        *number = sequence;
        let Some((_, since)) = self.reign.filter(|(reign, _)| *reign == epoch) else { return };
        if now.since(since) < GRACE {
            return;
        }
        let (job, range) = (request.job_uuid.job(), ChunkRange::new(request.first.get(), request.count.get()));
        for machine in machines.iter().filter(|machine| machine.host != to) {
            let Some(Process::Worker(shell)) = machine.process.as_ref() else { continue };
            if self.has_told(machine, epoch) {
                continue;
            }
            for chunk in range.chunks() {
                if holds(shell, job, chunk).is_some() {
                    self.tainted.insert((job, chunk));
                } else {
                    self.given_away.entry(machine.host).or_default().insert((job, chunk));
                }
            }
        }
    }

    /// A request comes to a worker that will obey it.
    pub fn on_request_arriving(&mut self, machine: &Machine, request: &WorkerRequest) {
        let Some(Process::Worker(shell)) = machine.process.as_ref() else { return };
        let Some(given_away) = self.given_away.get(&machine.host) else { return };
        if request.epoch.get() < shell.core.epoch() || request.worker_boot.get() != machine.boot.0 {
            return;
        }
        let (job, range) = (request.job_uuid.job(), ChunkRange::new(request.first.get(), request.count.get()));
        let taken = range.chunks().map(|chunk| (job, chunk)).filter(|place| given_away.contains(place));
        self.tainted.extend(taken);
    }

    pub fn on_effect(&mut self, effect: Effect) {
        let (Effect::Lost { job, range } | Effect::Outlived { job, range }) = effect;
        self.tainted.extend(range.chunks().map(|chunk| (job, chunk)));
    }

    /// A program has started.
    pub fn on_run(&mut self, run: &RunEntry, machines: &[Machine], journal: &Journal, history: &History) {
        let (job, chunk) = (run.job, run.chunk);
        let is_twin = |other: &&RunEntry| {
            (other.host, other.boot) == (run.host, run.boot) && other.ended.is_none() && *other != run
        };
        let twin = journal.of_chunk(job, chunk).find(is_twin);
        assert!(twin.is_none(), "chunk {chunk} of job {job} runs twice at once on one worker: {twin:?}");
        let excuse = self.tainted.contains(&(job, chunk));
        let mut why = None;
        if history.ended_state(job, chunk) == Some(ChunkState::Finished) {
            why = Some("it has finished".to_string());
        }
        let current = history.attempt(job, chunk);
        if history.ended_state(job, chunk).is_none() {
            for machine in machines.iter().filter(|machine| machine.host != run.host) {
                let Some(Process::Worker(shell)) = machine.process.as_ref() else { continue };
                // A failure that a higher attempt has settled is kept only until it is confirmed.
                if let Some((state, attempt)) = holds(shell, job, chunk)
                    && (state != holding::ENDED_BADLY || attempt >= current)
                {
                    why = Some(format!("{} holds it (state {state}, attempt {attempt})", machine.name));
                }
            }
        }
        let Some(why) = why else { return };
        assert!(
            excuse,
            "chunk {chunk} of job {job} starts on {} for attempt {} (current {current}) although {why}",
            machines[run.host.0].name, run.attempt
        );
        self.excused += 1;
    }
}

fn holds(shell: &WorkerShell, job: JobId, chunk: u32) -> Option<(u8, u32)> {
    shell.core.holding_of(job, chunk)
}
