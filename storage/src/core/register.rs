//! How a storage node makes itself known: hello to a master until the leader welcomes it, then a heartbeat every second.

use wire::{Duration, ErrorCode, FixedPart, Instant, JobId, NodeHello, PeerId, Role, StatusState, U32, U64, Writer};

use super::{Action, Storage, Timer};

const HELLO_INTERVAL: Duration = Duration::from_secs(1);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A leader that has answered no heartbeat for so long is looked for elsewhere.
const LEADER_SILENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Whom a node believes to lead, and whether that one knows it.
#[derive(Debug, Default)]
pub(super) struct Registration {
    /// Position in the list of masters.
    leader: usize,
    is_welcome: bool,
    /// Counts hellos, and numbers them.
    hellos: u64,
}

impl Storage {
    /// True once the leader has put this boot into the log.
    pub fn is_registered(&self) -> bool {
        self.registration.is_welcome
    }

    pub(super) fn on_hello_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let registration = &mut self.registration;
        // After the first try nobody is sure to be right: ask them in turn.
        if registration.hellos > 0 {
            registration.leader = (registration.leader + 1) % self.config.masters.len();
        }
        registration.hellos += 1;
        self.say_hello(now, actions);
    }

    fn say_hello(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let config = &self.config;
        let fixed = NodeHello {
            request: U64::new(self.registration.hellos),
            boot: U64::new(config.boot.0),
            role: Role::Storage as u8,
            public_key: config.public_key,
            pid: U32::new(config.pid),
            cpus_milli: U32::new(config.cpus_milli),
            memory: U64::new(config.memory),
            subject: config.node.into(),
            ..NodeHello::DEFAULT
        };
        let mut body = Writer::new();
        for text in [&config.name, &config.endpoint, &config.bulk_endpoint] {
            body.string(text.as_bytes());
        }
        let (to, _) = config.masters[self.registration.leader];
        actions.push(Action::Send { to, frame: fixed.frame(config.node, &body.bytes) });
        self.timers.set(Timer::Hello, now + HELLO_INTERVAL);
    }

    pub(super) fn on_node_welcome(&mut self, from: PeerId, now: Instant, actions: &mut Vec<Action>) {
        let Some(master) = self.master(from) else { return };
        self.registration.leader = master;
        self.registration.is_welcome = true;
        self.timers.stop(Timer::Hello);
        self.timers.set(Timer::LeaderSilent, now + LEADER_SILENT_TIMEOUT);
        self.on_heartbeat_due(now, actions);
    }

    pub(super) fn on_heartbeat_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.registration.is_welcome {
            return;
        }
        let fixed = wire::WorkerStatus {
            job_uuid: JobId::NIL.into(),
            state: StatusState::Idle as u8,
            boot: U64::new(self.config.boot.0),
            ..wire::WorkerStatus::DEFAULT
        };
        let (to, _) = self.config.masters[self.registration.leader];
        actions.push(Action::Send { to, frame: fixed.frame(self.config.node, &[]) });
        self.timers.set(Timer::Heartbeat, now + HEARTBEAT_INTERVAL);
    }

    pub(super) fn on_leader_heartbeat(&mut self, from: PeerId, leads: bool, now: Instant) {
        if self.master(from) != Some(self.registration.leader) || !self.registration.is_welcome {
            return;
        }
        if leads {
            self.timers.set(Timer::LeaderSilent, now + LEADER_SILENT_TIMEOUT);
        } else {
            self.look_for_leader(now);
        }
    }

    pub(super) fn on_leader_silent(&mut self, now: Instant) {
        self.look_for_leader(now);
    }

    /// An `error` is for us only if it is a master's answer to our hello or heartbeat.
    pub(super) fn on_error(&mut self, from: PeerId, code: u16, detail: &[u8], now: Instant) {
        if self.master(from) != Some(self.registration.leader) {
            return;
        }
        match ErrorCode::from_number(code) {
            Some(ErrorCode::NotLeader) => {
                // The one before the named one, since a hello goes to the next.
                let masters = &self.config.masters;
                if let Some(named) = masters.iter().position(|(_, endpoint)| endpoint.as_bytes() == detail) {
                    self.registration.leader = (named + masters.len() - 1) % masters.len();
                }
                self.look_for_leader(now);
            }
            // A master that lost its state, or is starting.
            Some(ErrorCode::UnknownNode | ErrorCode::NotReady) => {
                self.registration.is_welcome = false;
                self.timers.set_earlier(Timer::Hello, now + HELLO_INTERVAL);
            }
            Some(_) | None => {}
        }
    }

    fn look_for_leader(&mut self, now: Instant) {
        self.registration.is_welcome = false;
        self.timers.stop(Timer::Heartbeat);
        self.timers.stop(Timer::LeaderSilent);
        // Not at once: masters that disagree would send us round and round.
        self.timers.set_earlier(Timer::Hello, now + Duration::from_millis(100));
    }

    fn master(&self, peer: PeerId) -> Option<usize> {
        self.config.masters.iter().position(|(master, _)| *master == peer)
    }
}
