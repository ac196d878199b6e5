//! The simulated shells: each turns what happens in the world into events of one core, and its actions into messages,
//! disk orders and programs of the world.

mod loadbalancer;
mod master;
mod storage;
mod worker;

use wire::{BootNonce, ClientKey, Duration, Instant, NodeId, PeerId, Role, WallTime};

use crate::chance::Chance;
use crate::client::Client;
use crate::disk::{MasterDisk, StorageDisk};
use crate::network::Host;
use crate::process::Journal;

pub use loadbalancer::LoadBalancerShell;
pub use master::MasterShell;
pub use storage::StorageShell;
pub use worker::WorkerShell;

/// The frames of one message.
pub type Frames = Vec<Vec<u8>>;

/// Who a process is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub host: Host,
    pub node: NodeId,
    pub boot: BootNonce,
    pub name: String,
    /// Unique for each boot: what numbers its transfers.
    pub number_base: u64,
    pub masters: Vec<Host>,
    /// The nodes of all machines, by host.
    pub nodes: Vec<NodeId>,
    pub load_balancers: Vec<Host>,
    /// Of a worker.
    pub slots: u32,
    /// Of a master: past events that it keeps for watchers; `None` = as chance has it.
    pub event_bytes_max: Option<usize>,
    /// By host.
    pub roles: Vec<Role>,
    pub key: ClientKey,
}

/// The cluster's receipt key.
pub const RECEIPT_KEY: [u8; 32] = [7; 32];

/// How long a machine's disk takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskPace {
    pub min: Duration,
    pub max: Duration,
}

impl DiskPace {
    pub const FAST: Self = Self { min: Duration::from_micros(100), max: Duration::from_millis(2) };
    pub const SLOW: Self = Self { min: Duration::from_millis(5), max: Duration::from_millis(400) };

    pub fn draw(&self, chance: &mut Chance) -> Duration {
        Duration::from_micros(chance.between(self.min.as_micros() as u64, self.max.as_micros() as u64 + 1))
    }
}

/// What a shell may use of the world around it, for one turn.
pub struct Outside<'a> {
    pub now: Instant,
    pub wall: WallTime,
    pub chance: &'a mut Chance,
    pub disk_pace: DiskPace,
    pub is_disk_full: bool,
    pub journal: &'a mut Journal,
    /// Messages to send, in order.
    pub sent: Vec<(PeerId, Frames)>,
    /// When to come back, and the shell's own number for what for.
    pub due: Vec<(Instant, u64)>,
    /// The machine goes down by what it ran.
    pub is_struck: bool,
    /// Somebody reads notes.
    pub is_traced: bool,
}

impl Outside<'_> {
    pub fn send(&mut self, to: PeerId, frame: Vec<u8>) {
        self.sent.push((to, vec![frame]));
    }

    /// Leaves a line for whoever reads notes.
    pub fn note(&self, notes: &mut Vec<String>, line: impl FnOnce() -> String) {
        if self.is_traced {
            notes.push(line());
        }
    }

    pub fn after(&mut self, delay: Duration, number: u64) {
        self.due.push((self.now + delay, number));
    }
}

/// What of a machine survives its crash.
#[derive(Debug)]
pub enum Disk {
    Master(MasterDisk),
    Storage(StorageDisk),
    /// Everything is soft, or is not simulated.
    None,
}

/// A running process of any role.
#[derive(Debug)]
pub enum Process {
    Master(Box<MasterShell>),
    LoadBalancer(Box<LoadBalancerShell>),
    Storage(Box<StorageShell>),
    Worker(Box<WorkerShell>),
    Client(Box<Client>),
}

impl Process {
    /// Takes a message.
    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        match self {
            Self::Master(shell) => shell.receive(from, frames, outside),
            Self::LoadBalancer(shell) => shell.receive(from, frames, outside),
            Self::Storage(shell) => shell.receive(from, frames, outside),
            Self::Worker(shell) => shell.receive(from, frames, outside),
            Self::Client(client) => client.receive(from, frames, outside),
        }
    }

    /// What the shell put off is due.
    pub fn due(&mut self, number: u64, outside: &mut Outside<'_>) {
        match self {
            Self::Master(shell) => shell.due(number, outside),
            Self::LoadBalancer(_) => unreachable!("a load balancer puts nothing off"),
            Self::Storage(shell) => shell.due(number, outside),
            Self::Worker(shell) => shell.due(number, outside),
            Self::Client(_) => unreachable!("a client puts nothing off"),
        }
    }

    /// A server that this process is connected to has started again.
    pub fn reconnected(&mut self, server: Host, outside: &mut Outside<'_>) {
        match self {
            Self::Master(_) | Self::LoadBalancer(_) | Self::Storage(_) | Self::Client(_) => {}
            Self::Worker(shell) => shell.reconnected(server, outside),
        }
    }

    /// The connection of a caller is gone.
    pub fn peer_gone(&mut self, peer: PeerId, outside: &mut Outside<'_>) {
        match self {
            Self::Master(shell) => shell.peer_gone(peer, outside),
            Self::LoadBalancer(shell) => shell.peer_gone(peer, outside),
            Self::Storage(_) | Self::Worker(_) | Self::Client(_) => {}
        }
    }

    /// Ends a turn.
    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        match self {
            Self::Master(shell) => shell.tick(outside),
            Self::LoadBalancer(shell) => shell.tick(outside),
            Self::Storage(shell) => shell.tick(outside),
            Self::Worker(shell) => shell.tick(outside),
            Self::Client(client) => client.tick(outside),
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Master(shell) => shell.core.next_deadline(),
            Self::LoadBalancer(shell) => shell.core.next_deadline(),
            Self::Storage(shell) => shell.core.next_deadline(),
            Self::Worker(shell) => shell.next_deadline(),
            Self::Client(client) => client.next_deadline(),
        }
    }

    pub fn check_invariants(&self) {
        match self {
            Self::Master(shell) => shell.core.check_invariants(),
            Self::LoadBalancer(shell) => shell.core.check_invariants(),
            Self::Storage(shell) => shell.core.check_invariants(),
            Self::Worker(shell) => shell.check_invariants(),
            Self::Client(_) => {}
        }
    }

    /// Ends it at once; gives back its disk as a crash leaves it.
    pub fn crash(self, outside: &mut Outside<'_>) -> Disk {
        match self {
            Self::Master(shell) => Disk::Master(shell.crash(outside)),
            Self::Storage(shell) => Disk::Storage(shell.crash(outside)),
            Self::Worker(shell) => {
                shell.crash(outside);
                Disk::None
            }
            Self::LoadBalancer(_) | Self::Client(_) => Disk::None,
        }
    }
}
