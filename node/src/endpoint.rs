//! A process's door to the others: the sockets that it binds and connects, as one source of admitted messages.
//!
//! Inside are a ROUTER for each address that we bind and a DEALER for each destination that we connect to. Outside there
//! are only peers: a number for each connection, with who sits at its other end. Nothing here waits except `wait`, and
//! nothing is lost without an error except what ZeroMQ loses when a connection breaks; so whatever matters is
//! acknowledged and repeated by the roles.

mod arrival;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io};

use wire::{BootNonce, ClientKey, Instant, NodeId, PeerId, Role};

use crate::admission::Grant;
use crate::bell::Bell;
use crate::certificate::Certificate;
use crate::clock::Clock;
use crate::frame::{Frame, Frames};
use crate::process::Process;
use crate::queue::{Queue, Room};
use crate::socket::{self, Attempt, Change, KeyPair, Monitor, Polled};
use crate::table::Table;
use crate::zap::AllowList;

/// Peers that have connected to us and are remembered.
const GUESTS_MAX: usize = 65_536;
/// Messages taken from one socket before the next has its turn.
const BATCH_MAX: usize = 64;
/// All queues together hold this many times what one may.
const QUEUES_FULL_MAX: usize = 8;
/// A ROUTER does not tell when one peer has room again, so while messages wait for one we look again this soon.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How often the certificate directory is checked for keys that were removed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// An address of a Unix socket ends here: 108 bytes with the zero.
const IPC_PATH_SIZE_MAX: usize = 107;

/// What an endpoint is made of. `new` gives the defaults of all but the first three.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    pub node: NodeId,
    pub boot: BootNonce,
    /// Our own, with its secret key; it may be without where there are only `ipc://` addresses.
    pub certificate: Certificate,
    pub binds: Vec<Bind>,
    /// Public certificates of those who may connect; required where a TCP address is bound.
    pub certificates_dir: Option<PathBuf>,
    /// Bytes that wait for one peer before `send` says `Full`.
    pub queue_bytes_max: usize,
}

impl EndpointConfig {
    pub fn new(node: NodeId, boot: BootNonce, certificate: Certificate) -> EndpointConfig {
        let queue_bytes_max = 64 * wire::limit::MIB;
        EndpointConfig { node, boot, certificate, binds: Vec::new(), certificates_dir: None, queue_bytes_max }
    }
}

/// An address that others connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bind {
    /// `tcp://host:port`, where port `*` or 0 lets the system pick, or `ipc://path`.
    pub address: String,
    pub class: PeerClass,
}

/// Which socket of a role a message came in on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerClass {
    Control,
    Bulk,
    Raft,
}

/// Who sits at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Of the certificate, `Client` without one; of a server, what `connect` was told.
    pub role: Role,
    /// The node that the connection is bound to: by its certificate, else by the first uuid that it used.
    pub node: Option<NodeId>,
    /// All zero on a local socket.
    pub key: ClientKey,
    pub class: PeerClass,
}

/// Says why an endpoint cannot be opened or connected.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("libzmq is {found}, at least 4.3.4 is required")]
    LibraryTooOld { found: String },
    #[error("libzmq was built without CURVE: install the system's libzmq (Debian: libzmq3-dev) and link to it")]
    LibraryWithoutCurve,
    #[error("address '{address}' is not tcp:// or ipc://, or its path is longer than 107 bytes")]
    Address { address: String },
    #[error("'{address}' needs a certificate with its secret key")]
    SecretMissing { address: String },
    #[error("'{address}' needs the public key of its server")]
    ServerKeyMissing { address: String },
    #[error("'{address}' needs a directory of certificates that may connect")]
    CertificatesMissing { address: String },
    #[error("cannot read certificates in {}: {source}", dir.display())]
    Certificates { dir: PathBuf, source: io::Error },
    #[error("cannot bind '{address}': {source}")]
    Bind { address: String, source: zmq::Error },
    #[error("cannot connect '{address}': {source}")]
    Connect { address: String, source: zmq::Error },
    #[error("cannot protect '{address}': {source}")]
    Protect { address: String, source: io::Error },
    #[error("ZeroMQ: {0}")]
    Socket(#[from] zmq::Error),
    #[error("cannot start the endpoint's machinery: {0}")]
    Thread(io::Error),
}

/// Says why a message was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The connection is gone; the peer gets a new number when it is heard again.
    #[error("the peer is unreachable")]
    Unreachable,
    #[error("too much is waiting for the peer already")]
    Full,
}

struct Router {
    socket: Polled,
    class: PeerClass,
    is_local: bool,
    bound: String,
}

struct Dealer {
    socket: Polled,
    monitor: Monitor,
    address: String,
    server: Option<ClientKey>,
    grant: Grant,
    identity: Identity,
    is_connected: bool,
    queue: Queue,
}

/// A socket that messages come from.
#[derive(Clone, Copy)]
enum Source {
    Router(usize),
    Dealer(PeerId),
}

pub struct Endpoint {
    node: NodeId,
    boot: BootNonce,
    clock: Clock,
    keys: Option<KeyPair>,
    allow_list: Option<Arc<AllowList>>,
    domain: String,
    bell: Bell,
    routers: Vec<Router>,
    dealers: BTreeMap<PeerId, Dealer>,
    guests: Table,
    /// Guests for whom messages wait.
    waiting: BTreeSet<PeerId>,
    room: Room,
    queued_total: Arc<AtomicUsize>,
    last_peer: u64,
    /// Counts drains.
    turn: u64,
    /// The last drain stopped at its limit.
    has_more: bool,
    /// What `wait` sleeps on; kept for its room.
    polled: Vec<libc::pollfd>,
    refreshed_at: Instant,
    // Last, so that every socket is closed before the context ends.
    process: Arc<Process>,
}

impl Endpoint {
    /// Binds all addresses of `config`. Peers can connect from now on; what they say waits for `drain`.
    pub fn open(config: EndpointConfig) -> Result<Endpoint, EndpointError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let clock = Clock::new();
        let process = Process::shared()?;
        let allow_list = match &config.certificates_dir {
            Some(dir) => Some(Arc::new(
                AllowList::open(dir).map_err(|source| EndpointError::Certificates { dir: dir.clone(), source })?,
            )),
            None => None,
        };
        let domain = format!("endpoint-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let public = config.certificate.public;
        let mut endpoint = Endpoint {
            node: config.node,
            boot: config.boot,
            clock,
            keys: config.certificate.secret.map(|secret| KeyPair { public, secret }),
            allow_list,
            domain,
            bell: Bell::new().map_err(EndpointError::Thread)?,
            routers: Vec::new(),
            dealers: BTreeMap::new(),
            guests: Table::new(config.binds.len(), GUESTS_MAX),
            waiting: BTreeSet::new(),
            room: Room {
                bytes_max: config.queue_bytes_max,
                total_max: config.queue_bytes_max.saturating_mul(QUEUES_FULL_MAX),
            },
            queued_total: Arc::new(AtomicUsize::new(0)),
            last_peer: 0,
            turn: 0,
            has_more: false,
            polled: Vec::new(),
            refreshed_at: clock.now(),
            process,
        };
        if let Some(list) = &endpoint.allow_list {
            endpoint.process.domains.insert(endpoint.domain.clone(), list.clone());
        }
        for bind in config.binds {
            endpoint.bind(bind)?;
        }
        Ok(endpoint)
    }

    fn bind(&mut self, bind: Bind) -> Result<(), EndpointError> {
        let Bind { address, class } = bind;
        let is_local = is_local(&address)?;
        let failed = |source| EndpointError::Bind { address: address.clone(), source };
        let mut socket = if is_local {
            socket::router(&self.process.context, &address, None)?
        } else {
            let Some(keys) = &self.keys else { return Err(EndpointError::SecretMissing { address }) };
            if self.allow_list.is_none() {
                return Err(EndpointError::CertificatesMissing { address });
            }
            socket::router(&self.process.context, &address, Some((keys, &self.domain)))?
        };
        let bound = socket.bind(&address).map_err(failed)?;
        if let Some(path) = address.strip_prefix("ipc://") {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                .map_err(|source| EndpointError::Protect { address: address.clone(), source })?;
        }
        tracing::info!(address = bound, ?class, "bound");
        self.routers.push(Router { socket, class, is_local, bound });
        Ok(())
    }

    /// The real addresses, in the order of the binds.
    pub fn bound(&self) -> Vec<String> {
        self.routers.iter().map(|router| router.bound.clone()).collect()
    }

    /// Wakes `wait`.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Our own node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Connects to one destination, whose certificate must have `server_key`; it counts as having `role`. What is sent
    /// before the connection stands waits for it, a few seconds at most.
    pub fn connect(
        &mut self,
        address: &str,
        server_key: Option<ClientKey>,
        role: Role,
        class: PeerClass,
    ) -> Result<PeerId, EndpointError> {
        if !is_local(address)? && server_key.is_none() {
            return Err(EndpointError::ServerKeyMissing { address: address.into() });
        }
        let (socket, monitor) = self.open_dealer(address, server_key)?;
        let peer = self.next_peer();
        let identity = Identity { role, node: None, key: server_key.unwrap_or_default(), class };
        let dealer = Dealer {
            socket,
            monitor,
            address: address.into(),
            server: server_key,
            grant: Grant::Server { role },
            identity,
            is_connected: false,
            queue: Queue::new(self.queued_total.clone()),
        };
        self.dealers.insert(peer, dealer);
        Ok(peer)
    }

    fn open_dealer(&self, address: &str, server: Option<ClientKey>) -> Result<(Polled, Monitor), EndpointError> {
        let curve = match (server, &self.keys) {
            (None, _) => None,
            (Some(server), Some(keys)) => Some((keys, server)),
            (Some(_), None) => return Err(EndpointError::SecretMissing { address: address.into() }),
        };
        let routing_id = socket::fresh_routing_id(self.node, self.boot);
        socket::dealer(&self.process.context, address, curve, &routing_id)
            .map_err(|source| EndpointError::Connect { address: address.into(), source })
    }

    /// Ends a connection; what still waits for it is dropped, and its number is never used again. A guest that speaks
    /// again is a new peer.
    pub fn disconnect(&mut self, peer: PeerId) {
        self.dealers.remove(&peer);
        self.guests.remove(peer);
        self.waiting.remove(&peer);
    }

    /// True while a connection that we made stands.
    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.dealers.get(&peer).is_some_and(|dealer| dealer.is_connected)
    }

    /// Who sits at the other end, as far as it is known.
    pub fn identity(&self, peer: PeerId) -> Option<&Identity> {
        let of_dealer = self.dealers.get(&peer).map(|dealer| &dealer.identity);
        of_dealer.or_else(|| self.guests.get(peer).map(|guest| &guest.identity))
    }

    /// Sleeps until a message arrives, the bell is rung, a signal comes, or `deadline`.
    pub fn wait(&mut self, deadline: Option<Instant>) {
        self.wait_with(deadline, None);
    }

    /// As `wait`, and wakes when `also` is readable.
    pub fn wait_with(&mut self, deadline: Option<Instant>, also: Option<BorrowedFd<'_>>) {
        let may_sleep = self.bell.fall_asleep() && !self.has_more;
        let mut is_busy = !may_sleep;
        self.polled.clear();
        self.polled.push(polled(self.bell.fd()));
        for router in &mut self.routers {
            is_busy |= router.socket.look(false);
            self.polled.push(polled(router.socket.fd));
        }
        for dealer in self.dealers.values_mut() {
            is_busy |= dealer.socket.look(!dealer.queue.is_empty()) || dealer.monitor.is_readable;
            self.polled.extend([polled(dealer.socket.fd), polled(dealer.monitor.fd)]);
        }
        self.polled.extend(also.map(|also| polled(also.as_raw_fd())));
        let timeout_ms = if is_busy { 0 } else { self.timeout_ms(deadline) };
        // SAFETY: the pointer and the length are those of a live vector.
        let status = unsafe { libc::poll(self.polled.as_mut_ptr(), self.polled.len() as libc::nfds_t, timeout_ms) };
        if status < 0 {
            // A signal has set its flag by now; what it found is not known.
            let error = io::Error::last_os_error();
            assert!(error.kind() == io::ErrorKind::Interrupted, "cannot poll our own sockets: {error}");
            self.polled.iter_mut().for_each(|item| item.revents = 0);
        }
        let mut found = self.polled.iter().map(|item| item.revents != 0);
        let mut next = || found.next().unwrap_or(false);
        self.bell.wake_up(next());
        for router in &mut self.routers {
            if next() {
                router.socket.signal();
            }
        }
        for dealer in self.dealers.values_mut() {
            if next() {
                dealer.socket.signal();
            }
            dealer.monitor.is_readable |= next();
        }
    }

    fn timeout_ms(&self, deadline: Option<Instant>) -> i32 {
        const TIMEOUT_MAX_MS: u128 = 3_600_000;
        let now = self.clock.now();
        let until_deadline = deadline.map(|deadline| deadline.since(now));
        let until_retry = (!self.waiting.is_empty()).then_some(RETRY_INTERVAL);
        let Some(timeout) = until_deadline.into_iter().chain(until_retry).min() else { return -1 };
        // Rounded up: a turn before the deadline would find nothing due and come again at once.
        timeout.as_micros().div_ceil(1_000).min(TIMEOUT_MAX_MS) as i32
    }

    /// Hands up to `max` messages, each whole, to `each`, and returns how many it handed. Only sockets in which `wait` has
    /// found something are read. A message that admission refuses is answered here, and counts towards `max`.
    pub fn drain(&mut self, max: usize, each: &mut dyn FnMut(PeerId, &Identity, Vec<Frame>)) -> usize {
        self.turn += 1;
        let now = self.clock.now();
        self.refresh_allow_list(now);
        self.follow_connections();
        self.flush(now);

        let mut sources = self.readable();
        // Another source begins each turn, so that the limit does not always fall on the same ones.
        let first = self.turn as usize % sources.len().max(1);
        sources.rotate_left(first);
        let (mut taken, mut handed) = (0, 0);
        while taken < max
            && let Some(source) = sources.pop_front()
        {
            let batch_max = BATCH_MAX.min(max - taken);
            let mut batch = 0;
            while batch < batch_max {
                let delivered = match source {
                    Source::Router(router) => self.take_from_router(router, each),
                    Source::Dealer(peer) => self.take_from_dealer(peer, each),
                };
                let Some(delivered) = delivered else { break };
                batch += 1;
                handed += usize::from(delivered);
            }
            taken += batch;
            if batch == batch_max {
                sources.push_back(source);
            }
        }
        self.has_more = !sources.is_empty();
        handed
    }

    fn readable(&self) -> VecDeque<Source> {
        let routers = self.routers.iter().enumerate().filter(|(_, router)| router.socket.is_readable());
        let dealers = self.dealers.iter().filter(|(_, dealer)| dealer.socket.is_readable());
        let routers = routers.map(|(index, _)| Source::Router(index));
        routers.chain(dealers.map(|(peer, _)| Source::Dealer(*peer))).collect()
    }

    /// Removed certificates count within a second, on connections that stand too.
    fn refresh_allow_list(&mut self, now: Instant) {
        if let Some(list) = &self.allow_list
            && now.since(self.refreshed_at) >= REFRESH_INTERVAL
        {
            list.refresh();
            self.refreshed_at = now;
        }
    }

    /// Opens afresh what has been disconnected. libzmq would reconnect by itself, but with the same routing id, which the
    /// other end ignores if it still believes in the old connection.
    fn follow_connections(&mut self) {
        let mut broken = Vec::new();
        for (peer, dealer) in &mut self.dealers {
            while let Some(change) = dealer.monitor.next_change() {
                let was_connected = std::mem::replace(&mut dealer.is_connected, change == Change::Connected);
                tracing::debug!(address = dealer.address, ?change, "connection");
                if was_connected && change == Change::Disconnected {
                    broken.push(*peer);
                }
            }
        }
        for peer in broken {
            let Some(dealer) = self.dealers.get(&peer) else { continue };
            match self.open_dealer(&dealer.address, dealer.server) {
                Ok((socket, monitor)) => {
                    let dealer = self.dealers.get_mut(&peer).expect("found above");
                    dealer.socket = socket;
                    dealer.monitor = monitor;
                    dealer.is_connected = false;
                    // Another node may answer there next time.
                    dealer.identity.node = None;
                }
                // The old socket reconnects as it can.
                Err(error) => tracing::error!(%error, "cannot open a connection afresh"),
            }
        }
    }

    /// Sends what waits, as far as there is room.
    fn flush(&mut self, now: Instant) {
        for dealer in self.dealers.values_mut() {
            while let Some(frames) = dealer.queue.front(now) {
                match dealer.socket.send([].into_iter(), frames) {
                    Attempt::Sent => dealer.queue.pop(),
                    Attempt::NoRoom | Attempt::Gone => break,
                }
            }
        }
        for peer in std::mem::take(&mut self.waiting) {
            let Some(guest) = self.guests.get_mut(peer) else { continue };
            let socket = &mut self.routers[guest.router].socket;
            let is_gone = loop {
                let Some(frames) = guest.queue.front(now) else { break false };
                match socket.send(envelope(&guest.routing_id, guest.has_delimiter), frames) {
                    Attempt::Sent => guest.queue.pop(),
                    Attempt::NoRoom => {
                        self.waiting.insert(peer);
                        break false;
                    }
                    Attempt::Gone => break true,
                }
            };
            if is_gone {
                self.guests.remove(peer);
            }
        }
    }

    /// Sends one message. What libzmq does not take at once waits, in order, and goes in later turns.
    pub fn send(&mut self, to: PeerId, frames: impl Into<Frames>) -> Result<(), SendError> {
        self.send_frames(to, frames.into())
    }

    fn send_frames(&mut self, to: PeerId, mut frames: Frames) -> Result<(), SendError> {
        assert!(!frames.0.is_empty(), "a message has at least one frame");
        // The peer's end would drop the connection without a word.
        let largest = frames.0.iter().map(|frame| frame.len()).max().unwrap_or(0);
        assert!(largest <= wire::limit::FRAME_SIZE_MAX, "a frame of {largest} bytes is beyond FRAME_SIZE_MAX");
        assert!(frames.0.len() <= wire::limit::FRAMES_MAX, "{} frames are beyond FRAMES_MAX", frames.0.len());

        if let Some(dealer) = self.dealers.get_mut(&to) {
            let is_sent = dealer.queue.is_empty() && dealer.socket.send([].into_iter(), &mut frames) == Attempt::Sent;
            let is_kept = is_sent || dealer.queue.push(frames, self.clock.now(), self.room);
            return if is_kept { Ok(()) } else { Err(SendError::Full) };
        }
        let Some(guest) = self.guests.get_mut(to) else { return Err(SendError::Unreachable) };
        if guest.queue.is_empty() {
            let socket = &mut self.routers[guest.router].socket;
            match socket.send(envelope(&guest.routing_id, guest.has_delimiter), &mut frames) {
                Attempt::Sent => return Ok(()),
                Attempt::NoRoom => {}
                Attempt::Gone => {
                    self.guests.remove(to);
                    return Err(SendError::Unreachable);
                }
            }
        }
        if !guest.queue.push(frames, self.clock.now(), self.room) {
            return Err(SendError::Full);
        }
        self.waiting.insert(to);
        Ok(())
    }

    /// Ends the endpoint but gives what libzmq has taken up to `linger` to reach its peers. Dropping it does not wait.
    pub fn close(self, linger: Duration) {
        let linger_ms = i32::try_from(linger.as_millis()).unwrap_or(i32::MAX);
        let sockets = self.routers.iter().map(|router| &router.socket);
        for socket in sockets.chain(self.dealers.values().map(|dealer| &dealer.socket)) {
            socket.set_linger(linger_ms);
        }
    }

    fn next_peer(&mut self) -> PeerId {
        self.last_peer += 1;
        PeerId(self.last_peer)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.process.domains.remove(&self.domain);
    }
}

/// The frames that a ROUTER wants before those of the message.
fn envelope(routing_id: &[u8], has_delimiter: bool) -> impl ExactSizeIterator<Item = &[u8]> {
    [routing_id, b""].into_iter().take(1 + usize::from(has_delimiter))
}

fn polled(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

fn is_local(address: &str) -> Result<bool, EndpointError> {
    if address.starts_with("tcp://") && !address.contains('\0') {
        return Ok(false);
    }
    match address.strip_prefix("ipc://") {
        Some(path) if !path.is_empty() && path.len() <= IPC_PATH_SIZE_MAX && !path.contains('\0') => Ok(true),
        Some(_) | None => Err(EndpointError::Address { address: address.into() }),
    }
}
