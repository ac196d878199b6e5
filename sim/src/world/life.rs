//! What faults do to machines: crash, restart, pause, and all the rest.

use wire::{BootNonce, ClientKey, Duration, Role};

use super::{Due, LOAD_BALANCER, STORAGE, World};
use crate::client::Client;
use crate::network::{self, Host, Weather};
use crate::shell::{Disk, DiskPace, Identity, LoadBalancerShell, MasterShell, Process, StorageShell, WorkerShell};

/// What a fault does, or undoes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Crash {
        host: Host,
    },
    Restart {
        host: Host,
    },
    Pause {
        host: Host,
    },
    Resume {
        host: Host,
    },
    /// Nothing passes from the one to the other.
    CutOneWay {
        from: Host,
        to: Host,
    },
    MendOneWay {
        from: Host,
        to: Host,
    },
    Weather(Weather),
    DiskPace {
        host: Host,
        pace: DiskPace,
    },
    /// A master's disk takes nothing more, or has room again.
    DiskFull {
        host: Host,
        is_full: bool,
    },
    /// Whoever leads is cut off from the other masters, and its clients still reach it; then it stands still for a while.
    Depose {
        pause: Duration,
        cut: Duration,
    },
    /// All machines but clients go down at once, and come back one by one.
    PowerCut,
    /// Its wall clock jumps.
    WallJump {
        host: Host,
        by_us: i64,
    },
}

impl World {
    /// What it ran took the machine down; it comes back by itself.
    pub(super) fn strike(&mut self, host: Host) {
        self.change(Change::Crash { host });
        self.plan(self.now + Duration::from_millis(500), Change::Restart { host });
    }

    /// Has something happen now.
    pub fn change(&mut self, change: Change) {
        self.trace.change(self.now, &change);
        match change {
            Change::Crash { host } => self.crash(host),
            Change::Restart { host } => {
                if !self.machines[host.0].is_up() {
                    self.start(host);
                }
            }
            Change::Pause { host } => self.machines[host.0].is_paused = true,
            Change::Resume { host } => self.resume(host),
            Change::CutOneWay { from, to } => self.network.cut_one_way(from, to),
            Change::MendOneWay { from, to } => self.network.mend_one_way(from, to),
            Change::Weather(weather) => self.weather = weather,
            Change::DiskPace { host, pace } => self.machines[host.0].disk_pace = pace,
            Change::DiskFull { host, is_full } => self.machines[host.0].is_disk_full = is_full,
            Change::Depose { pause, cut } => self.depose(pause, cut),
            Change::PowerCut => self.cut_power(),
            Change::WallJump { host, by_us } => self.machines[host.0].wall_offset_us += by_us,
        }
    }

    fn depose(&mut self, pause: Duration, cut: Duration) {
        let leads = |host: &Host| match &self.machines[host.0].process {
            Some(Process::Master(shell)) => shell.core.is_ready(),
            _ => false,
        };
        let Some(leader) = self.masters().into_iter().find(leads) else { return };
        let now = self.now;
        for other in self.masters().into_iter().filter(|other| *other != leader) {
            for (from, to) in [(leader, other), (other, leader)] {
                self.change(Change::CutOneWay { from, to });
                self.plan(now + cut, Change::MendOneWay { from, to });
            }
        }
        self.plan(now + pause / 8, Change::Pause { host: leader });
        self.plan(now + pause, Change::Resume { host: leader });
    }

    fn cut_power(&mut self) {
        let hosts = self.machines.iter().filter(|machine| machine.role != Role::Client).map(|machine| machine.host);
        for host in hosts.collect::<Vec<_>>() {
            self.change(Change::Crash { host });
            let at = self.now + Duration::from_micros(self.chance.between(1_000, 2_000_000));
            self.plan(at, Change::Restart { host });
        }
    }

    fn crash(&mut self, host: Host) {
        let machine = &mut self.machines[host.0];
        let Some(process) = machine.process.take() else { return };
        machine.is_paused = false;
        machine.waiting.clear();
        machine.deadline = None;
        let mut outside = machine.outside(self.now, &mut self.chance, &mut self.journal);
        machine.disk = process.crash(&mut outside);
        // Servers notice that a caller is gone, or they do not.
        let peer = network::caller(host, machine.boots.into());
        for server in self.masters().into_iter().chain([LOAD_BALANCER, STORAGE]) {
            let boots = self.machines[server.0].boots;
            if server != host && self.chance.once_in_a_thousand(700) {
                let at = self.now + Duration::from_micros(self.chance.between(100, 30_000_000));
                self.put(at, Due::PeerGone { host: server, boots, peer });
            }
        }
    }

    fn resume(&mut self, host: Host) {
        let machine = &mut self.machines[host.0];
        if !std::mem::take(&mut machine.is_paused) {
            return;
        }
        // What came meanwhile is taken up before the clock is looked at, as a shell's turn does.
        self.draining = Some(host);
        for due in std::mem::take(&mut machine.waiting) {
            self.happen(due);
        }
        self.draining = None;
        if self.machines[host.0].is_up() {
            self.turn(host, "resumed", |_, _| {});
        }
    }

    pub(super) fn start(&mut self, host: Host) {
        let number_base = self.chance.draw() >> 1;
        let random = self.chance.draw() as u32;
        let roles = self.machines.iter().map(|machine| machine.role).collect();
        let nodes = self.machines.iter().map(|machine| machine.node).collect();
        let masters = self.masters();
        let machine = &mut self.machines[host.0];
        machine.boots += 1;
        machine.boot = BootNonce::new(machine.boots, random);
        let identity = Identity {
            host,
            node: machine.node,
            boot: machine.boot,
            name: machine.name.clone(),
            number_base,
            masters: masters.clone(),
            nodes,
            load_balancers: vec![LOAD_BALANCER],
            slots: self.settings.slots,
            event_bytes_max: self.settings.event_bytes_max,
            roles,
            key: ClientKey([host.0 as u8 + 1; 32]),
        };
        let mut outside = machine.outside(self.now, &mut self.chance, &mut self.journal);
        let process = match std::mem::replace(&mut machine.disk, Disk::None) {
            Disk::Master(disk) => Process::Master(Box::new(MasterShell::start(&identity, disk, &mut outside))),
            Disk::Storage(disk) => Process::Storage(Box::new(StorageShell::start(&identity, disk, &outside))),
            Disk::None if machine.role == Role::LoadBalancer => {
                Process::LoadBalancer(Box::new(LoadBalancerShell::start(&identity, &outside)))
            }
            Disk::None if machine.role == Role::Worker => {
                Process::Worker(Box::new(WorkerShell::start(&identity, &outside)))
            }
            Disk::None => {
                let base = 1 + ((number_base >> 20) << 20);
                Process::Client(Box::new(Client::new(machine.node, base, &masters, STORAGE, self.settings.habit)))
            }
        };
        machine.process = Some(process);
        self.checker.on_start(&self.machines, host);
        self.turn(host, "start", |_, _| {});
        if masters.contains(&host) || host == LOAD_BALANCER {
            self.reconnect_callers(host);
        }
    }

    /// Those who were connected to a server that has started again find it again, and may or may not be told.
    fn reconnect_callers(&mut self, server: Host) {
        for host in 0..self.machines.len() {
            let boots = self.machines[host].boots;
            if boots > 0 && self.chance.once_in_a_thousand(self.settings.told_per_mille) {
                let at = self.now + Duration::from_micros(self.chance.between(100, 200_000));
                self.put(at, Due::Reconnected { host: Host(host), boots, server });
            }
        }
    }
}
