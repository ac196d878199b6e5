//! A machine of the simulated cluster: its process, its disk, and what waits while it is paused.

use wire::{BootNonce, Instant, NodeId, Role, WallTime};

use super::{Due, EPOCH_WALL_US};
use crate::chance::Chance;
use crate::disk::MasterDisk;
use crate::network::Host;
use crate::process::Journal;
use crate::shell::{Disk, DiskPace, Outside, Process};

/// A machine of the cluster, whether or not its process runs.
#[derive(Debug)]
pub struct Machine {
    pub host: Host,
    pub role: Role,
    pub node: NodeId,
    pub name: String,
    /// Processes started so far.
    pub boots: u32,
    pub boot: BootNonce,
    pub process: Option<Process>,
    pub(super) disk: Disk,
    pub disk_pace: DiskPace,
    pub is_disk_full: bool,
    /// Stopped, as by SIGSTOP: what happens to it waits.
    pub is_paused: bool,
    pub(super) waiting: Vec<Due>,
    /// Of its process.
    pub(super) deadline: Option<Instant>,
    /// Somebody reads the notes of its process.
    pub is_traced: bool,
    /// How far its wall clock is off, in microseconds.
    pub wall_offset_us: i64,
}

impl Machine {
    pub(super) fn new(host: Host, role: Role, node: NodeId, name: String, disk: Disk) -> Self {
        Self {
            host,
            role,
            node,
            name,
            boots: 0,
            boot: BootNonce::NONE,
            process: None,
            disk,
            disk_pace: DiskPace::FAST,
            is_disk_full: false,
            is_paused: false,
            waiting: Vec::new(),
            deadline: None,
            is_traced: false,
            wall_offset_us: 0,
        }
    }

    /// What its process may use of the world for one turn.
    pub(super) fn outside<'a>(&self, now: Instant, chance: &'a mut Chance, journal: &'a mut Journal) -> Outside<'a> {
        Outside {
            now,
            wall: WallTime((EPOCH_WALL_US + now.0).saturating_add_signed(self.wall_offset_us)),
            chance,
            disk_pace: self.disk_pace,
            is_disk_full: self.is_disk_full,
            journal,
            sent: Vec::new(),
            due: Vec::new(),
            is_struck: false,
            is_traced: self.is_traced,
        }
    }

    /// Its disk, if it is a master; also while its process does not run.
    pub fn master_disk(&self) -> Option<&MasterDisk> {
        match (&self.process, &self.disk) {
            (Some(Process::Master(shell)), _) => Some(&shell.disk),
            (None, Disk::Master(disk)) => Some(disk),
            _ => None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }
}
