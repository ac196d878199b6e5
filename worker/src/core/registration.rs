//! Whom a worker talks to: it registers with the masters, follows the leader, and keeps a connection to every load
//! balancer that the welcome or its settings name.

use wire::record::NodeRecord;
use wire::{
    ClientKey, Duration, HEARTBEAT_LEADER, Instant, LeaderHeartbeat, NodeHello, NodeWelcome, PeerId, Reader, Role,
    StatusState, U32, U64, WorkerStatus, Writer,
};

use super::{Action, Server, Settings, Timer, Worker};

/// A server that there is, or should be, a connection to.
#[derive(Debug)]
struct Link {
    role: Role,
    server: Server,
    /// `None` until the connection stands.
    peer: Option<PeerId>,
    /// The connection that was made for it, standing or not.
    attempt: Option<PeerId>,
    is_asked_for: bool,
    /// The settings name it, so that no list of the masters' takes it away.
    is_fixed: bool,
    /// It is owed an inventory.
    wants_inventory: bool,
}

#[derive(Debug)]
pub(super) struct Registration {
    links: Vec<Link>,
    /// With masters, nothing is said of what is held here before the leader has told where the log stands.
    is_welcome: bool,
    leader: Option<PeerId>,
    leader_term: u64,
    leader_heard_at: Instant,
    nodes_version: u64,
    request: u64,
    hello_interval: Duration,
}

impl Registration {
    pub(super) fn new(settings: &Settings) -> Self {
        let link = |role, server: &Server| Link {
            role,
            server: server.clone(),
            peer: None,
            attempt: None,
            is_asked_for: false,
            is_fixed: true,
            wants_inventory: false,
        };
        let masters = settings.masters.iter().map(|server| link(Role::Master, server));
        let load_balancers = settings.load_balancers.iter().map(|server| link(Role::LoadBalancer, server));
        Self {
            links: masters.chain(load_balancers).collect(),
            is_welcome: settings.masters.is_empty(),
            leader: None,
            leader_term: 0,
            leader_heard_at: Instant::default(),
            nodes_version: 0,
            request: 1,
            hello_interval: settings.resend_interval_min,
        }
    }

    /// What a peer is to us; `None` = we did not connect to it.
    pub(super) fn role_of(&self, peer: PeerId) -> Option<Role> {
        self.links.iter().find(|link| link.peer == Some(peer)).map(|link| link.role)
    }

    pub(super) fn peers(&self, role: Role) -> Vec<PeerId> {
        self.links.iter().filter(|link| link.role == role).filter_map(|link| link.peer).collect()
    }

    /// The master that leads, as far as is known.
    pub(super) fn leader(&self) -> Option<PeerId> {
        self.leader
    }

    /// The leader, or every master while none is known to lead.
    fn masters(&self) -> Vec<PeerId> {
        self.leader.map_or_else(|| self.peers(Role::Master), |leader| vec![leader])
    }

    pub(super) fn on_not_leader(&mut self, from: PeerId) {
        if self.leader == Some(from) {
            self.leader = None;
        }
    }

    /// True when an inventory may go to this load balancer now; else it is owed.
    pub(super) fn may_tell_inventory(&mut self, to: PeerId) -> bool {
        let is_welcome = self.is_welcome;
        if let Some(link) = self.links.iter_mut().find(|link| link.peer == Some(to)) {
            link.wants_inventory = !is_welcome;
        }
        is_welcome
    }

    /// Makes the list of load balancers the masters', besides what the settings name; returns who is left behind.
    fn follow(&mut self, records: &[NodeRecord]) -> Vec<PeerId> {
        let mut left = Vec::new();
        let wanted: Vec<Server> = records.iter().filter(|node| node.role == Role::LoadBalancer).map(server).collect();
        self.links.retain(|link| {
            let stays = link.is_fixed || link.role != Role::LoadBalancer || wanted.contains(&link.server);
            if !stays {
                // Also one that never stood: nobody else would ever end it.
                left.extend(link.peer.or(link.attempt));
            }
            stays
        });
        for server in wanted {
            let is_same = |link: &Link| {
                let same_key = link.server.key.is_some() && link.server.key == server.key;
                link.role == Role::LoadBalancer && (same_key || link.server.endpoint == server.endpoint)
            };
            if server.endpoint.is_empty() || self.links.iter().any(is_same) {
                continue;
            }
            self.links.push(Link {
                role: Role::LoadBalancer,
                server,
                peer: None,
                attempt: None,
                is_asked_for: false,
                is_fixed: false,
                wants_inventory: false,
            });
        }
        left
    }
}

fn server(node: &NodeRecord) -> Server {
    let key = (node.public_key != ClientKey::default()).then_some(node.public_key);
    Server { endpoint: node.endpoint.clone(), key }
}

impl Worker {
    pub(super) fn connect_wanted(&mut self, actions: &mut Vec<Action>) {
        for link in self.registration.links.iter_mut().filter(|link| !link.is_asked_for) {
            link.is_asked_for = true;
            actions.push(Action::Connect { role: link.role, server: link.server.clone() });
        }
    }

    /// A connection is being made; it may never stand.
    pub(super) fn on_connecting(&mut self, peer: PeerId, role: Role, endpoint: &str, actions: &mut Vec<Action>) {
        let is_it = |link: &&mut Link| link.role == role && link.server.endpoint == endpoint;
        match self.registration.links.iter_mut().find(is_it) {
            Some(link) => link.attempt = Some(peer),
            // It has left the masters' list since it was asked for.
            None => actions.push(Action::Disconnect { peer }),
        }
    }

    /// A connection stands: the first words are ours.
    pub(super) fn on_connected(
        &mut self,
        peer: PeerId,
        role: Role,
        endpoint: &str,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_it = |link: &&mut Link| link.role == role && link.server.endpoint == endpoint;
        // It may have left the masters' list since it was asked for.
        let Some(link) = self.registration.links.iter_mut().find(is_it) else {
            return actions.push(Action::Disconnect { peer });
        };
        link.peer = Some(peer);
        match role {
            Role::Master => {
                self.say_hello(&[peer], actions);
                // It may have been lost on the way: the timer repeats it until there is an answer.
                self.timers.set_earlier(Timer::Hello, now + self.settings.resend_interval_min);
            }
            Role::LoadBalancer => {
                self.send(peer, self.idle_status(0), &[], actions);
                // Alone with a peer that may know only the seed's structs, a worker waits to be asked.
                if !self.settings.masters.is_empty() {
                    self.tell_inventory(peer, actions);
                }
            }
            Role::Worker | Role::Storage | Role::Gateway | Role::Client => {}
        }
    }

    fn say_hello(&self, to: &[PeerId], actions: &mut Vec<Action>) {
        let settings = &self.settings;
        let hello = NodeHello {
            request: U64::new(self.registration.request),
            boot: U64::new(settings.boot.0),
            role: Role::Worker as u8,
            public_key: settings.public_key,
            pid: U32::new(settings.pid),
            cpus_milli: U32::new(self.slots.total().cpus_milli),
            memory: U64::new(self.slots.total().memory),
            subject: settings.node.into(),
            ..NodeHello::DEFAULT
        };
        let mut body = Writer::new();
        body.string(settings.name.as_bytes()).string(settings.endpoint.as_bytes()).string(b"");
        for peer in to {
            self.send(*peer, hello, &body.bytes, actions);
        }
    }

    /// The leader does not know this worker, or has a longer list of nodes.
    pub(super) fn register_again(&mut self, now: Instant) {
        self.registration.hello_interval = self.settings.resend_interval_min;
        self.timers.set_earlier(Timer::Hello, now);
    }

    /// The registration has not been answered: say it again, ever less often.
    pub(super) fn on_hello_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let masters = self.registration.masters();
        self.say_hello(&masters, actions);
        self.timers.set(Timer::Hello, now + self.registration.hello_interval);
        let interval_max = self.settings.resend_interval_max;
        self.registration.hello_interval = (self.registration.hello_interval * 2).min(interval_max);
    }

    pub(super) fn on_welcome(
        &mut self,
        from: PeerId,
        welcome: &NodeWelcome,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Ok(records) = node_records(body) else { return };
        if welcome.request.get() != self.registration.request {
            return;
        }
        self.timers.stop(Timer::Hello);
        self.registration.request += 1;
        self.registration.nodes_version = welcome.nodes_version.get();
        self.follow_leader(from, welcome.term.get(), now, actions);
        if !std::mem::replace(&mut self.registration.is_welcome, true) {
            // Whatever an earlier boot of this node left unconfirmed is settled at or before this index.
            self.assignment.confirmed_index = self.assignment.confirmed_index.max(welcome.index.get());
        }
        for peer in self.registration.follow(&records) {
            actions.push(Action::Disconnect { peer });
        }
        self.connect_wanted(actions);
        let storage: Vec<NodeRecord> = records.into_iter().filter(|node| node.role == Role::Storage).collect();
        actions.push(Action::UseStorage { nodes: storage });
        let owed = self.registration.links.iter().filter(|link| link.wants_inventory).filter_map(|link| link.peer);
        for peer in owed.collect::<Vec<_>>() {
            self.tell_inventory(peer, actions);
        }
    }

    pub(super) fn on_leader_heartbeat(
        &mut self,
        from: PeerId,
        heartbeat: &LeaderHeartbeat,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if heartbeat.flags.get() & HEARTBEAT_LEADER == 0 {
            return self.registration.on_not_leader(from);
        }
        self.follow_leader(from, heartbeat.term.get(), now, actions);
        if self.registration.is_welcome && heartbeat.nodes_version.get() > self.registration.nodes_version {
            self.register_again(now);
        }
    }

    fn follow_leader(&mut self, from: PeerId, term: u64, now: Instant, actions: &mut Vec<Action>) {
        // A deposed leader may not know it yet.
        if term < self.registration.leader_term {
            return;
        }
        self.registration.leader_term = term;
        self.registration.leader_heard_at = now;
        if self.registration.leader != Some(from) {
            self.registration.leader = Some(from);
            self.resend_all_results(now, actions);
        }
    }

    pub(super) fn on_heartbeat_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.timers.set(Timer::Heartbeat, now + self.settings.heartbeat_interval);
        if now.since(self.registration.leader_heard_at) > self.settings.leader_silence_max {
            self.registration.leader = None;
        }
        let (num_items, running) = self.running_body(now);
        let status = self.idle_status(num_items);
        for peer in self.registration.masters() {
            self.send(peer, status, &running, actions);
        }
        self.tell_load_balancers(status, &running, actions);
    }

    fn idle_status(&self, num_items: u32) -> WorkerStatus {
        let status = WorkerStatus { state: StatusState::Idle as u8, num_items: U32::new(num_items), ..self.status() };
        self.inputs.tell(status)
    }

    /// Tells load balancers how much room there is now.
    pub(super) fn tell_room(&mut self, actions: &mut Vec<Action>) {
        self.tell_load_balancers(self.idle_status(0), &[], actions);
    }

    /// Tells of freed room at the end of a turn: at once if it is worth a message, else soon.
    pub(super) fn tell_room_if_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let credit = self.credit();
        if credit <= self.pace.told {
            // Less is told by the answer to whatever took it, or by the next heartbeat.
            return;
        }
        if credit - self.pace.told >= self.pace.room_step(self.settings.slots) {
            self.tell_room(actions);
        } else {
            self.timers.set_earlier(Timer::Room, now + self.settings.room_delay);
        }
    }
}

fn node_records(body: &[u8]) -> Result<Vec<NodeRecord>, wire::DecodeError> {
    let mut from = Reader::new(body);
    let mut records = Vec::new();
    while !from.is_empty() {
        records.push(NodeRecord::decode(&mut from)?);
    }
    Ok(records)
}
