//! The simulated network: messages in flight, delayed, lost, doubled, reordered, cut.
//!
//! A connection is addressed as the cores see it, by `PeerId`. The side that connects names the server's address
//! (`server`); the server names the boot that spoke to it (`caller`), so that what is sent to an earlier boot of a node
//! reaches nobody, as with ZeroMQ's routing ids.

use std::collections::{BTreeMap, BTreeSet};

use wire::{Duration, Instant, PeerId};

use crate::chance::Chance;

/// One simulated machine, by its place in the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Host(pub usize);

/// Boots of a host are below this in a `PeerId`.
const BOOTS_MAX: u64 = 1_000_000;

/// The address of a server: any boot of it.
pub fn server(host: Host) -> PeerId {
    PeerId((host.0 as u64 + 1) * BOOTS_MAX)
}

/// One boot, counted from 1, of a host that has connected to a server.
pub fn caller(host: Host, boot: u64) -> PeerId {
    PeerId((host.0 as u64 + 1) * BOOTS_MAX + boot)
}

/// The host that a core means, and the boot if it answers a caller.
pub fn resolve(peer: PeerId) -> (Host, Option<u64>) {
    let boot = peer.0 % BOOTS_MAX;
    (Host((peer.0 / BOOTS_MAX) as usize - 1), (boot != 0).then_some(boot))
}

/// The address of a host as settings and records write it.
pub fn endpoint(host: Host) -> String {
    format!("sim://{}", host.0)
}

/// The host at an address that `endpoint` wrote.
pub fn host_at(endpoint: &str) -> Option<Host> {
    endpoint.strip_prefix("sim://")?.parse().ok().map(Host)
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub from: Host,
    /// The boot that sent it.
    pub from_boot: u64,
    pub to: Host,
    /// The boot that it is meant for; `None` = whichever serves that address.
    pub to_boot: Option<u64>,
    /// How the receiver sees the sender.
    pub sender: PeerId,
    pub frames: Vec<Vec<u8>>,
}

/// How unreliable the network is, in thousandths and microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weather {
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    pub delay_min_us: u64,
    pub delay_max_us: u64,
    /// What one machine sends another arrives in order, but for copies and what takes the long way: a connection stands.
    pub keeps_order: bool,
    /// How often a message takes the long way, and how long that is at most.
    pub late_per_mille: u64,
    pub late_max_us: u64,
}

impl Weather {
    /// What holds in the calm phase.
    pub const CALM: Self = Self {
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        delay_min_us: 50,
        delay_max_us: 500,
        keeps_order: true,
        late_per_mille: 0,
        late_max_us: 0,
    };
    pub const STORM: Self = Self {
        loss_per_mille: 30,
        duplicate_per_mille: 30,
        delay_min_us: 50,
        delay_max_us: 5_000,
        keeps_order: false,
        late_per_mille: 20,
        late_max_us: 5_000_000,
    };
}

/// Messages in flight, by the time at which they arrive.
#[derive(Debug, Default)]
pub struct Network {
    in_flight: BTreeMap<(Instant, u64), Envelope>,
    sent: u64,
    /// When the last message that keeps the order arrives, by sender and receiver.
    last: BTreeMap<(Host, Host), Instant>,
    /// Directed pairs that do not hear each other.
    cut: BTreeSet<(Host, Host)>,
}

impl Network {
    /// Sends a message; whether and when it arrives is the weather's.
    pub fn send(&mut self, envelope: Envelope, now: Instant, weather: &Weather, chance: &mut Chance) {
        if self.cut.contains(&(envelope.from, envelope.to)) || chance.once_in_a_thousand(weather.loss_per_mille) {
            return;
        }
        let copies = if chance.once_in_a_thousand(weather.duplicate_per_mille) { 2 } else { 1 };
        for copy in 0..copies {
            let mut at = now + Duration::from_micros(chance.between(weather.delay_min_us, weather.delay_max_us));
            if chance.once_in_a_thousand(weather.late_per_mille) {
                at = at + Duration::from_micros(chance.between(0, weather.late_max_us));
            } else if weather.keeps_order && copy == 0 {
                let last = self.last.entry((envelope.from, envelope.to)).or_default();
                at = at.max(*last);
                *last = at;
            }
            self.sent += 1;
            if copy + 1 < copies {
                self.in_flight.insert((at, self.sent), envelope.clone());
            } else {
                self.in_flight.insert((at, self.sent), envelope);
                return;
            }
        }
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.keys().next().map(|(at, _)| *at)
    }

    /// Takes one message that has arrived by `now`.
    pub fn pop_arrived(&mut self, now: Instant) -> Option<Envelope> {
        let (at, number) = *self.in_flight.keys().next()?;
        if at > now { None } else { self.in_flight.remove(&(at, number)) }
    }

    /// Nothing passes from `a` to `b` any more; what is under way still arrives.
    pub fn cut_one_way(&mut self, a: Host, b: Host) {
        self.cut.insert((a, b));
    }

    pub fn mend_one_way(&mut self, a: Host, b: Host) {
        self.cut.remove(&(a, b));
    }

    pub fn cut(&mut self, a: Host, b: Host) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Lets a message arrive at `at`, whatever the weather and the cuts.
    pub fn deliver(&mut self, envelope: Envelope, at: Instant) {
        self.sent += 1;
        self.in_flight.insert((at, self.sent), envelope);
    }

    pub fn is_cut(&self, a: Host, b: Host) -> bool {
        self.cut.contains(&(a, b))
    }
}
