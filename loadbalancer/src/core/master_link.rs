//! The conversation with the masters: registration, heartbeats, and which of them leads.

use wire::record::{RunningItem, records_bytes};
use wire::{
    ChunkRange, Duration, FixedPart, HEARTBEAT_LEADER, Instant, LeaderHeartbeat, LoadBalancerHeartbeat, NodeHello,
    NodeWelcome, PeerId, Role, U32, U64, Writer,
};

use super::{Action, LoadBalancer, Note, Timer};

/// Running items in one heartbeat.
const RUNNING_ITEMS_MAX: usize = 1024;

/// What is known of the masters.
#[derive(Debug)]
pub struct MasterLink {
    /// The position of the one that is asked.
    pub current: usize,
    /// The highest term that a leader has told.
    term: u64,
    is_registered: bool,
    hello_request: u64,
    hello_wait: Duration,
    /// The watch that is out; 0 = none.
    pub watch_request: u64,
    /// Parts of its answer that are here, in order.
    pub watch_parts: Vec<Vec<u8>>,
    /// The view has to begin with a snapshot.
    pub wants_snapshot: bool,
}

impl MasterLink {
    pub fn new(hello_wait: Duration) -> Self {
        Self {
            current: 0,
            term: 0,
            is_registered: false,
            hello_request: 0,
            hello_wait,
            watch_request: 0,
            watch_parts: Vec::new(),
            wants_snapshot: true,
        }
    }
}

impl LoadBalancer {
    /// The master that is asked, as far as we know the leader.
    pub(super) fn leader(&self) -> PeerId {
        self.config.masters[self.link.current]
    }

    pub(super) fn is_master(&self, peer: PeerId) -> bool {
        self.config.masters.contains(&peer)
    }

    /// Asks the next master from now on.
    pub(super) fn turn_to_next_master(&mut self) {
        self.link.current = (self.link.current + 1) % self.config.masters.len();
    }

    /// Registers this boot, until a welcome comes.
    pub(super) fn send_hello(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.link.is_registered {
            return;
        }
        if self.link.hello_request == 0 {
            self.link.hello_request = self.number_request();
        } else {
            self.turn_to_next_master();
        }
        let hello = NodeHello {
            request: U64::new(self.link.hello_request),
            boot: U64::new(self.config.boot.0),
            role: Role::LoadBalancer as u8,
            public_key: self.config.public_key,
            pid: U32::new(self.config.pid),
            subject: self.config.node.into(),
            ..NodeHello::DEFAULT
        };
        let mut body = Writer::new();
        body.string(self.config.name.as_bytes()).string(self.config.endpoint.as_bytes()).string(b"");
        actions.push(Action::Send { to: self.leader(), frame: hello.frame(self.config.node, &body.bytes) });
        self.timers.set(Timer::Hello, now + self.link.hello_wait);
        self.link.hello_wait = (self.link.hello_wait * 2).min(self.config.timings.hello_wait_max);
    }

    pub(super) fn on_node_welcome(&mut self, from: PeerId, welcome: &NodeWelcome, actions: &mut Vec<Action>) {
        if !self.is_master(from) || welcome.request.get() != self.link.hello_request || self.link.is_registered {
            return;
        }
        self.link.is_registered = true;
        self.timers.stop(Timer::Hello);
        actions.push(Action::Note(Note::Registered { index: welcome.index.get() }));
    }

    /// The master that leads, since no other says so, does not know this boot: it says hello anew, to that one.
    pub(super) fn register_again(&mut self, leader: PeerId, now: Instant) {
        let Some(position) = self.config.masters.iter().position(|master| *master == leader) else { return };
        if self.link.is_registered || self.link.current != position {
            self.link.current = position;
            self.link.is_registered = false;
            self.link.hello_request = 0;
            self.link.hello_wait = self.config.timings.hello_wait;
            self.timers.set(Timer::Hello, now);
        }
    }

    /// Tells all masters that this boot lives: whichever leads next should have heard it.
    pub(super) fn send_heartbeat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_heard = |last_heard: Instant| now.since(last_heard) < self.config.timings.quiet_after;
        let heard = self.workers.values().filter(|worker| worker.peer.is_some() && is_heard(worker.last_heard));
        let items = if self.reign.is_some() { self.running_items(now) } else { Vec::new() };
        let heartbeat = LoadBalancerHeartbeat {
            boot: U64::new(self.config.boot.0),
            epoch: U64::new(self.epoch().unwrap_or(0)),
            index: U64::new(self.log.index),
            workers_seen: U32::new(heard.count() as u32),
            num_items: U32::new(items.len() as u32),
            ..LoadBalancerHeartbeat::DEFAULT
        };
        let frame = heartbeat.frame(self.config.node, records_bytes(&items));
        for master in &self.config.masters {
            actions.push(Action::Send { to: *master, frame: frame.clone() });
        }
        self.timers.set(Timer::Heartbeat, now + self.config.timings.heartbeat_interval);
    }

    /// What runs where: what the workers say of themselves, as far as they still hold it.
    fn running_items(&self, now: Instant) -> Vec<RunningItem> {
        let mut items = Vec::new();
        for (node, worker) in &self.workers {
            if now.since(worker.last_heard) >= self.config.timings.quiet_after {
                continue;
            }
            for item in &worker.running {
                for (piece, _) in worker.held.pieces(item.job(), item.range()) {
                    if items.len() == RUNNING_ITEMS_MAX {
                        return items;
                    }
                    let ChunkRange { first, count } = piece;
                    let (job_uuid, attempt, worker_uuid) = (item.job_uuid, item.attempt, node.0);
                    items.push(RunningItem { job_uuid, first, count, attempt, worker_uuid });
                }
            }
        }
        items
    }

    pub(super) fn on_leader_heartbeat(
        &mut self,
        from: PeerId,
        heartbeat: &LeaderHeartbeat,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(position) = self.config.masters.iter().position(|master| *master == from) else { return };
        if heartbeat.flags.get() & HEARTBEAT_LEADER == 0 || heartbeat.term.get() < self.link.term {
            return;
        }
        self.link.term = heartbeat.term.get();
        if position != self.link.current {
            self.link.current = position;
            // The watch that is out may be with a master that cannot answer it.
            self.send_watch(now, actions);
        }
    }
}
