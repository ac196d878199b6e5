//! Who commands: one boot of one load balancer in each epoch, and no worker obeys an epoch that is over.

use std::collections::BTreeMap;

use wire::Message;

use crate::network::Host;
use crate::shell::{Process, WorkerShell};
use crate::world::Machine;

#[derive(Debug, Default)]
pub struct Command {
    /// The boot that gave commands in each epoch.
    speakers: BTreeMap<u64, (Host, u32)>,
    /// The highest epoch of each boot of a worker.
    epochs: BTreeMap<(Host, u32), u64>,
}

impl Command {
    pub fn on_sent(&mut self, machine: &Machine, message: &Message<'_>) {
        let Some(epoch) = epoch_of(message) else { return };
        let speaker = (machine.host, machine.boots);
        let known = *self.speakers.entry(epoch).or_insert(speaker);
        assert_eq!(known, speaker, "two boots of load balancers command in epoch {epoch}");
    }

    pub fn on_worker(&mut self, shell: &WorkerShell, machine: &Machine) {
        let highest = self.epochs.entry((machine.host, machine.boots)).or_default();
        let epoch = shell.core.epoch();
        assert!(epoch >= *highest, "{} went back from epoch {highest} to {epoch}", machine.name);
        *highest = epoch;
    }
}

/// The epoch of a command of a load balancer.
fn epoch_of(message: &Message<'_>) -> Option<u64> {
    // Only these are commands.
    if let Message::WorkerRequest(request, _) = message {
        Some(request.epoch.get())
    } else if let Message::Retract(retract, _) = message {
        Some(retract.epoch.get())
    } else if let Message::Kill(kill, _) = message {
        Some(kill.epoch.get())
    } else {
        None
    }
}

/// What a worker held before a command that is over came to it.
#[derive(Debug, Default)]
pub struct Before {
    stale: Option<(u64, u64)>,
}

impl Before {
    pub fn of(machine: &Machine, message: &Message<'_>) -> Self {
        let Some(Process::Worker(shell)) = machine.process.as_ref() else { return Self::default() };
        let epoch = shell.core.epoch();
        let is_stale = epoch_of(message).is_some_and(|of_command| of_command < epoch);
        Self { stale: is_stale.then(|| (epoch, holdings(shell))) }
    }

    /// Checks that a command which is over had no effect.
    pub fn check(self, process: &Process) {
        let (Some((epoch, held)), Process::Worker(shell)) = (self.stale, process) else { return };
        let after = (shell.core.epoch(), holdings(shell));
        assert_eq!(after, (epoch, held), "a command of an epoch below {epoch} was obeyed");
    }
}

fn holdings(shell: &WorkerShell) -> u64 {
    let core = &shell.core;
    core.queued_count() + core.running_count() as u64 + core.unconfirmed_count() as u64
}
