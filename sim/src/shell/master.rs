//! A master's core over a simulated disk.

use master::core::{Action, Core, Event};
use master::{CoreConfig, Limits, Timings};
use wire::{Duration, PeerId, Role};

use super::{Identity, Outside, RECEIPT_KEY};
use crate::disk::{MasterDisk, Write, Written};
use crate::network;

/// A write that found no room is tried again.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(50);

pub struct MasterShell {
    pub core: Core,
    pub disk: MasterDisk,
    /// By host.
    roles: Vec<Role>,
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
            ..CoreConfig::new(identity.node, identity.boot, RECEIPT_KEY)
        };
        let core = Core::new(config, disk.durable.clone(), outside.now).expect("a disk gives back a whole log");
        Self { core, disk, roles: identity.roles.clone(), notes: Vec::new() }
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some(frame) = frames.first() else { return };
        let (host, _) = network::resolve(from);
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
                Action::SaveSnapshot { ticket, bytes, index: _, term: _ } => {
                    self.write(Write::Snapshot { ticket, bytes }, outside);
                }
                Action::Compact { index } => self.write(Write::Compact { index }, outside),
                Action::ToMaster { .. } | Action::Halt { .. } => unreachable!("a lone master has nobody to talk to"),
                Action::Decided(decision) => self.notes.push(decision.to_string()),
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
