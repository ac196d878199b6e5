//! The simulated cluster: machines with processes, a network between them, and one line of time.
//!
//! Time jumps from event to event: a message arrives, a core's deadline comes, a disk is done, a program ends, a fault
//! strikes. Each event is one turn of one process, and after each the checkers look at everything. All chance comes from
//! one generator, so a seed is a whole history.

mod filter;
mod life;
mod machine;

use std::collections::BTreeMap;

use wire::{Instant, NodeId, PeerId, Role};

use crate::chance::Chance;
use crate::checker::Checker;
use crate::client::Habit;
use crate::disk::{MasterDisk, StorageDisk};
use crate::network::{self, Envelope, Host, Network, Weather};
use crate::process::Journal;
use crate::shell::{Disk, Frames, Outside, Process};
use crate::trace::Trace;

use filter::Filter;

pub use filter::FilterId;
pub use life::Change;
pub use machine::Machine;

/// Wall time at the world's beginning.
const EPOCH_WALL_US: u64 = 1_800_000_000_000_000;

/// More events at one moment are a core that wants to be called again and again and does nothing.
const STEPS_AT_ONCE_MAX: u64 = 100_000;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub seed: u64,
    pub masters: usize,
    pub workers: usize,
    pub clients: usize,
    /// Cpus of each worker.
    pub slots: u32,
    /// `None` = clients do only what they are told.
    pub habit: Option<Habit>,
    /// Lines of what happens go to standard output.
    pub is_traced: bool,
    /// A core looks at its own invariants after one in so many events; they cost more than all the rest.
    pub invariants_every: u64,
    /// How often a caller is told that its connection to a server that has started again stands.
    pub told_per_mille: u64,
    /// Bytes of past events that the master keeps for watchers; `None` = as chance has it.
    pub event_bytes_max: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            masters: 1,
            workers: 3,
            clients: 2,
            slots: 2,
            habit: None,
            is_traced: false,
            invariants_every: 1,
            told_per_mille: 500,
            event_bytes_max: None,
        }
    }
}

/// What happens at a certain time.
#[derive(Clone, Debug)]
enum Due {
    Arrival(Envelope),
    /// What the shell of that boot has put off.
    Put {
        host: Host,
        boots: u32,
        number: u64,
    },
    /// A caller's connection to a server that has started again stands.
    Reconnected {
        host: Host,
        boots: u32,
        server: Host,
    },
    /// The connection of a boot that is gone is noticed by a server.
    PeerGone {
        host: Host,
        boots: u32,
        peer: PeerId,
    },
    Change(Change),
    /// Nothing: somebody looks at the world then.
    Mark,
}

#[derive(Debug)]
pub struct World {
    pub now: Instant,
    /// Events so far.
    pub steps: u64,
    /// Those of this moment.
    steps_now: u64,
    pub settings: Settings,
    pub machines: Vec<Machine>,
    pub network: Network,
    pub weather: Weather,
    pub journal: Journal,
    pub checker: Checker,
    pub trace: Trace,
    agenda: BTreeMap<(Instant, u64), Due>,
    agenda_count: u64,
    chance: Chance,
    /// Every message that was sent, for scenarios to look at; kept only when somebody wants it.
    pub sent: Option<Vec<Sent>>,
    filters: Vec<Filter>,
    /// The machine whose mailbox is emptied in one turn.
    draining: Option<Host>,
}

/// A message as it was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: Instant,
    pub from: Host,
    pub to: Host,
    pub frame: Vec<u8>,
}

pub const MASTER: Host = Host(0);
pub const LOAD_BALANCER: Host = Host(1);
pub const STORAGE: Host = Host(2);
const FIRST_WORKER: usize = 3;

impl World {
    /// A cluster whose processes have just started.
    pub fn new(settings: Settings) -> Self {
        let mut world = Self {
            now: Instant(0),
            steps: 0,
            steps_now: 0,
            settings,
            machines: Vec::new(),
            network: Network::default(),
            weather: Weather::CALM,
            journal: Journal::default(),
            checker: Checker::default(),
            trace: Trace::new(settings.is_traced),
            agenda: BTreeMap::new(),
            agenda_count: 0,
            chance: Chance::new(settings.seed),
            sent: None,
            filters: Vec::new(),
            draining: None,
        };
        world.add(Role::Master, "m1".into(), Disk::Master(MasterDisk::default()));
        world.add(Role::LoadBalancer, "lb1".into(), Disk::None);
        world.add(Role::Storage, "s1".into(), Disk::Storage(StorageDisk::default()));
        for worker in 1..=settings.workers {
            world.add(Role::Worker, format!("w{worker}"), Disk::None);
        }
        for client in 1..=settings.clients {
            world.add(Role::Client, format!("c{client}"), Disk::None);
        }
        // Last, so that all others have the same places whether or not there are several.
        for master in 2..=settings.masters {
            world.add(Role::Master, format!("m{master}"), Disk::Master(MasterDisk::default()));
        }
        for host in 0..world.machines.len() {
            world.start(Host(host));
        }
        world
    }

    fn add(&mut self, role: Role, name: String, disk: Disk) {
        let host = Host(self.machines.len());
        let (upper, lower) = (self.chance.draw(), self.chance.draw());
        let node = NodeId::from_halves(upper, lower);
        let machine = Machine::new(host, role, node, name, disk);
        self.machines.push(Machine { is_traced: self.settings.is_traced, ..machine });
    }

    pub fn masters(&self) -> Vec<Host> {
        let masters = self.machines.iter().filter(|machine| machine.role == Role::Master);
        masters.map(|machine| machine.host).collect()
    }

    /// The worker number `n`, from 1.
    pub fn worker(&self, n: usize) -> Host {
        assert!(n >= 1 && n <= self.settings.workers, "there is no worker {n}");
        Host(FIRST_WORKER + n - 1)
    }

    pub fn workers(&self) -> impl Iterator<Item = Host> + use<> {
        (FIRST_WORKER..FIRST_WORKER + self.settings.workers).map(Host)
    }

    /// The client number `n`, from 1.
    pub fn client(&self, n: usize) -> Host {
        assert!(n >= 1 && n <= self.settings.clients, "there is no client {n}");
        Host(FIRST_WORKER + self.settings.workers + n - 1)
    }

    pub fn clients(&self) -> impl Iterator<Item = Host> + use<> {
        let first = FIRST_WORKER + self.settings.workers;
        (first..first + self.settings.clients).map(Host)
    }

    pub fn machine(&self, host: Host) -> &Machine {
        &self.machines[host.0]
    }

    pub fn chance(&mut self) -> &mut Chance {
        &mut self.chance
    }

    /// Has something happen at a later time.
    pub fn plan(&mut self, at: Instant, change: Change) {
        self.put(at, Due::Change(change));
    }

    fn put(&mut self, at: Instant, due: Due) {
        self.agenda_count += 1;
        self.agenda.insert((at, self.agenda_count), due);
    }

    /// Goes on to the next event and lets it happen.
    pub fn step(&mut self) {
        self.steps += 1;
        let deadline = self.next_deadline();
        let arrival = self.network.next_arrival();
        let planned = self.agenda.keys().next().map(|(at, _)| *at);
        let next = [planned, arrival, deadline.map(|(at, _)| at)].into_iter().flatten().min();
        // A deadline that passed while its machine was paused is due at once.
        let next = self.now.max(next.expect("a cluster always waits for something"));
        self.steps_now = if next == self.now { self.steps_now + 1 } else { 0 };
        assert!(self.steps_now < STEPS_AT_ONCE_MAX, "time stands still: {deadline:?} is due for ever");
        self.now = next;
        if planned.is_some_and(|at| at <= self.now) {
            let (_, due) = self.agenda.pop_first().expect("it is the next event");
            self.happen(due);
        } else if let Some(envelope) = self.network.pop_arrived(self.now) {
            self.happen(Due::Arrival(envelope));
        } else if let Some((_, host)) = deadline {
            self.turn(host, "tick", |_, _| {});
        }
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Instant) {
        // The mark keeps time from jumping beyond.
        self.put(until, Due::Mark);
        while self.now < until {
            self.step();
        }
    }

    fn next_deadline(&self) -> Option<(Instant, Host)> {
        let awake = self.machines.iter().filter(|machine| !machine.is_paused);
        awake.filter_map(|machine| Some((machine.deadline?, machine.host))).min()
    }

    fn happen(&mut self, due: Due) {
        if let Some(machine) = target(&due).map(|host| &mut self.machines[host.0])
            && machine.is_paused
        {
            return machine.waiting.push(due);
        }
        match due {
            Due::Arrival(envelope) => {
                // File transfer leans on the order of its connection: what a storage node said before it died does not
                // come after it has started again.
                let is_bygone =
                    envelope.from == STORAGE && envelope.from_boot != u64::from(self.machines[STORAGE.0].boots);
                if !is_bygone && self.is_for_this_boot(envelope.to, envelope.to_boot) {
                    self.arrive(envelope);
                }
            }
            Due::Put { host, boots, number } => {
                if self.is_for_this_boot(host, Some(boots.into())) {
                    self.turn(host, "due", |process, outside| process.due(number, outside));
                }
            }
            Due::Reconnected { host, boots, server } => {
                if self.is_for_this_boot(host, Some(boots.into())) && !self.network.is_cut(host, server) {
                    self.turn(host, "reconnected", |process, outside| process.reconnected(server, outside));
                }
            }
            Due::PeerGone { host, boots, peer } => {
                if self.is_for_this_boot(host, Some(boots.into())) {
                    self.turn(host, "peer gone", |process, outside| process.peer_gone(peer, outside));
                }
            }
            Due::Change(change) => self.change(change),
            Due::Mark => {}
        }
    }

    fn is_for_this_boot(&self, host: Host, boots: Option<u64>) -> bool {
        let machine = &self.machines[host.0];
        machine.is_up() && boots.is_none_or(|boots| boots == u64::from(machine.boots))
    }

    fn arrive(&mut self, envelope: Envelope) {
        let Envelope { from, to, sender, frames, .. } = envelope;
        self.trace.message("<-", self.now, &self.machines[to.0].name, &self.machines[from.0].name, &frames[0]);
        let before = self.checker.before_arrival(&self.machines, from, to, &frames[0], self.now);
        self.turn(to, "message", |process, outside| {
            process.receive(sender, &frames, outside);
            before.check(process);
        });
    }

    /// One turn of a process: what happens, then a tick, then everything that it wants done.
    pub fn turn<R>(
        &mut self,
        host: Host,
        why: &'static str,
        what: impl FnOnce(&mut Process, &mut Outside<'_>) -> R,
    ) -> R {
        let machine = &mut self.machines[host.0];
        self.trace.turn(self.now, host, why);
        let mut outside = machine.outside(self.now, &mut self.chance, &mut self.journal);
        let process = machine.process.as_mut().expect("only a running process has a turn");
        let result = what(process, &mut outside);
        if self.draining != Some(host) {
            process.tick(&mut outside);
        }
        machine.deadline = process.next_deadline();
        if self.steps.is_multiple_of(self.settings.invariants_every) {
            process.check_invariants();
        }
        self.trace.notes(self.now, &machine.name, process);
        let Outside { sent, due, is_struck, .. } = outside;
        self.post(host, sent);
        let boots = self.machines[host.0].boots;
        for (at, number) in due {
            self.put(at, Due::Put { host, boots, number });
        }
        self.checker.after_turn(&self.machines, host, &self.journal, self.now);
        if is_struck {
            self.strike(host);
        }
        result
    }

    /// Sends messages as a process meant them.
    fn post(&mut self, from: Host, sent: Vec<(PeerId, Frames)>) {
        for (peer, frames) in sent {
            let (to, to_boot) = network::resolve(peer);
            let boots = u64::from(self.machines[from.0].boots);
            // Who answers a caller is known to it by its own address.
            let sender = if to_boot.is_some() { network::server(from) } else { network::caller(from, boots) };
            self.trace.message("->", self.now, &self.machines[from.0].name, &self.machines[to.0].name, &frames[0]);
            self.checker.on_sent(&self.machines, from, to, &frames[0], self.now);
            if let Some(log) = &mut self.sent {
                log.push(Sent { at: self.now, from, to, frame: frames[0].clone() });
            }
            let envelope = Envelope { from, from_boot: boots, to, to_boot, sender, frames };
            let filter = self.filters.iter_mut().find(|filter| filter.is_on && (filter.which)(&envelope));
            if let Some(filter) = filter {
                filter.held.iter_mut().for_each(|held| held.push(envelope.clone()));
                continue;
            }
            self.network.send(envelope, self.now, &self.weather, &mut self.chance);
        }
    }

    /// Looks at everything once more at the end of the calm.
    pub fn check_end(&mut self) {
        self.checker.check_end(&self.machines, &self.journal);
    }
}

fn target(due: &Due) -> Option<Host> {
    match due {
        Due::Arrival(envelope) => Some(envelope.to),
        Due::Put { host, .. } | Due::Reconnected { host, .. } | Due::PeerGone { host, .. } => Some(*host),
        Due::Change(_) | Due::Mark => None,
    }
}
