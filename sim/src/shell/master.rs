//! A master's core over a simulated disk.

use master::core::{Action, Core, Event};
use master::{CoreConfig, Limits, Timings};
use wire::{Duration, NodeId, PeerId, Role};

use super::{Identity, Outside, RECEIPT_KEY};
use crate::disk::{MasterDisk, Write, Written};
use crate::network::{self, Host};

/// A write that found no room is tried again.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(50);

pub struct MasterShell {
    pub core: Core,
    pub disk: MasterDisk,
    /// By host.
    roles: Vec<Role>,
    /// By host.
    nodes: Vec<NodeId>,
    /// Decisions worth a line, since somebody last took them.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for MasterShell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterShell(index {})", self.core.state().index)
    }
}

impl MasterShell {
    pub fn start(identity: &Identity, disk: MasterDisk, outside: &mut Outside<'_>) -> Self {
        // Small, so that a short life sees snapshots, cut logs and watchers that are too far behind.
        let snapshot_entries = outside.chance.between(20, 400);
        let limits = Limits {
            event_bytes_max: identity.event_bytes_max.unwrap_or(outside.chance.between(1_000, 200_000) as usize),
            log_entries_kept: outside.chance.between(0, 20),
            ..Limits::default()
        };
        let config = CoreConfig {
            name: identity.name.clone(),
            endpoint: network::endpoint(identity.host),
            public_key: identity.key,
            timings: Timings { snapshot_entries, ..Timings::default() },
            limits,
            members: identity.masters.iter().map(|host| identity.nodes[host.0]).collect(),
            ..CoreConfig::new(identity.node, identity.boot, RECEIPT_KEY)
        };
        let core = Core::new(config, disk.durable.clone(), outside.now).expect("a disk gives back a whole log");
        let (roles, nodes) = (identity.roles.clone(), identity.nodes.clone());
        Self { core, disk, roles, nodes, notes: Vec::new() }
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some(frame) = frames.first() else { return };
        let (host, _) = network::resolve(from);
        if self.roles[host.0] == Role::Master {
            let (from, payload) = (self.nodes[host.0], frames.get(1).map_or(&[][..], |payload| payload));
            return self.step(Event::FromMaster { from, frame, payload }, outside);
        }
        self.step(Event::Received { from, role: Some(self.roles[host.0]), frame }, outside);
    }

    pub fn due(&mut self, _number: u64, outside: &mut Outside<'_>) {
        if outside.is_disk_full {
            outside.after(FULL_DISK_PAUSE, 0);
            if self.disk.persists_next() {
                self.step(Event::DiskFull, outside);
            }
            return;
        }
        match self.disk.perform() {
            Written::Persist(ticket) => self.step(Event::Persisted { ticket }, outside),
            Written::Snapshot(ticket) => self.step(Event::SnapshotSaved { ticket }, outside),
            Written::Compact => {}
        }
    }

    /// The connection of a boot that is gone.
    pub fn peer_gone(&mut self, peer: PeerId, outside: &mut Outside<'_>) {
        self.step(Event::PeerGone { peer }, outside);
    }

    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        self.step(Event::Tick, outside);
    }

    fn step(&mut self, event: Event<'_>, outside: &mut Outside<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, outside.now, outside.wall, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, frame } => outside.send(to, frame),
                Action::Persist(persist) => self.write(Write::Persist(persist), outside),
                Action::SaveSnapshot { ticket, bytes, index, term: _ } => {
                    self.write(Write::Snapshot { ticket, index, bytes }, outside);
                }
                Action::Compact { index } => self.write(Write::Compact { index }, outside),
                Action::ToMaster { to, frame, payload } => {
                    let host = self.nodes.iter().position(|node| *node == to).expect("a member is a machine");
                    let frames = if payload.is_empty() { vec![frame] } else { vec![frame, payload] };
                    outside.sent.push((network::server(Host(host)), frames));
                }
                Action::Halt { why } => panic!("a master that did nothing wrong was told to end: {why}"),
                Action::Decided(decision) => outside.note(&mut self.notes, || decision.to_string()),
            }
        }
    }

    fn write(&mut self, write: Write, outside: &mut Outside<'_>) {
        let takes = outside.disk_pace.draw(outside.chance);
        let at = self.disk.write(write, outside.now, takes);
        outside.due.push((at, 0));
    }

    pub fn crash(mut self, outside: &mut Outside<'_>) -> MasterDisk {
        self.disk.crash(outside.chance);
        self.disk
    }
}
