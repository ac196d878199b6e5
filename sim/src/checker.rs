//! Looks at everything after every event, and stops the run at the first broken promise.
//!
//! A checker is an outsider who sees all: the entries on the master's disk, every message, every program. It keeps its
//! own copy of the state that the log makes (`history`), which promises were given (`promises`), who commands in which
//! epoch (`command`), and for which chunks a second run is excusable (`rerun`). A violation is a panic; whoever runs the
//! seed catches it and prints the line that replays it.

mod command;
mod durable;
mod history;
mod promises;
mod rerun;

use wire::{Instant, Message, Role};

use crate::network::Host;
use crate::process::Journal;
use crate::shell::Process;
use crate::world::{LOAD_BALANCER, Machine};

use command::Command;
use history::History;
use promises::Promises;
use rerun::Reruns;

pub use command::Before;

#[derive(Debug, Default)]
pub struct Checker {
    pub history: History,
    pub promises: Promises,
    command: Command,
    pub reruns: Reruns,
    /// Runs in the journal that were looked at.
    runs_seen: usize,
}

impl Checker {
    /// A process has started.
    pub fn on_start(&mut self, machines: &[Machine], host: Host) {
        if let Some(Process::Master(shell)) = machines[host.0].process.as_ref() {
            self.history.on_master_start(host, shell);
        }
    }

    /// A message arrives; the answer checks the receiver once it has taken it.
    pub fn before_arrival(&mut self, machines: &[Machine], from: Host, to: Host, frame: &[u8], now: Instant) -> Before {
        let Ok(message) = Message::decode(frame) else { return Before::default() };
        if let Some(Process::Master(shell)) = machines[to.0].process.as_ref() {
            self.history.on_arrival_at_master(machines, shell, from, &message, now);
        }
        if to == LOAD_BALANCER {
            self.reruns.on_arrival_at_load_balancer(machines, from, &message);
        }
        if let Message::WorkerRequest(request, _) = &message {
            self.reruns.on_request_arriving(&machines[to.0], request);
        }
        Before::of(&machines[to.0], &message)
    }

    /// A message leaves.
    pub fn on_sent(&mut self, machines: &[Machine], from: Host, to: Host, frame: &[u8], now: Instant) {
        let role = machines[from.0].role;
        if !matches!(role, Role::LoadBalancer | Role::Master) {
            return;
        }
        let message = Message::decode(frame).expect("a core sends messages");
        if role == Role::Master {
            return durable::on_sent(machines, from, to, &message);
        }
        self.command.on_sent(&machines[from.0], &message);
        if let Message::WorkerRequest(request, _) = message {
            self.reruns.on_dispatch(machines, to, &request, now);
        }
    }

    /// A process has had a turn.
    pub fn after_turn(&mut self, machines: &[Machine], host: Host, journal: &Journal, now: Instant) {
        match machines[host.0].process.as_ref() {
            Some(Process::Master(shell)) => {
                for effect in self.history.advance(host, shell, machines, journal, now) {
                    self.reruns.on_effect(effect);
                }
            }
            Some(Process::LoadBalancer(shell)) => self.reruns.on_load_balancer(shell, machines, &self.history, now),
            Some(Process::Worker(shell)) => {
                self.command.on_worker(shell, &machines[host.0]);
                while self.runs_seen < journal.runs.len() {
                    let run = journal.runs[self.runs_seen];
                    self.runs_seen += 1;
                    self.reruns.on_run(&run, machines, journal, &self.history);
                }
            }
            Some(Process::Client(client)) => self.promises.on_client(host, client, &self.history),
            Some(Process::Storage(_)) | None => {}
        }
    }

    /// The calm has lasted: everything has to be in order.
    pub fn check_end(&mut self, machines: &[Machine], journal: &Journal) {
        for machine in machines {
            if let Some(Process::Master(shell)) = machine.process.as_ref() {
                self.history.check_equal(shell, &machine.name);
            }
        }
        self.history.check_end(machines, journal);
        self.promises.check_end(machines, &self.history);
        for machine in machines {
            let Some(Process::Worker(shell)) = machine.process.as_ref() else { continue };
            let core = &shell.core;
            let held = (core.queued_count(), core.running_count(), core.unconfirmed_count());
            assert_eq!(held, (0, 0, 0), "{} still has chunks queued, running or unconfirmed", machine.name);
        }
    }
}
