//! How our ZeroMQ sockets are set up, and how whole messages go in and out of them.

use std::os::fd::RawFd;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use wire::{BootNonce, ClientKey, NodeId};

use crate::frame::{Frame, Frames, Message};

/// Not wrapped by the `zmq` crate: with it a connection that the ZAP handler does not answer for is refused.
const ZMQ_ZAP_ENFORCE_DOMAIN: c_int = 93;
const HANDSHAKE_INTERVAL_MS: i32 = 2_000;
const HEARTBEAT_INTERVAL_MS: i32 = 1_000;
const HEARTBEAT_TIMEOUT_MS: i32 = 3_000;
const HEARTBEAT_TTL_MS: i32 = 5_000;
const RECONNECT_INTERVAL_MS: i32 = 50;
const RECONNECT_INTERVAL_MAX_MS: i32 = 1_000;
const CONNECT_TIMEOUT_MS: i32 = 3_000;
const BACKLOG: i32 = 1_024;
/// Messages that one connection's pipe holds. Credit between the peers keeps well below it.
const MESSAGES_IN_PIPE_MAX: i32 = 8_192;

/// What CURVE adds to a frame: name, nonce, authenticator and flags. libzmq measures the frame with it.
const CURVE_OVERHEAD: usize = 8 + 8 + 16 + 1;

/// Our own key pair, as sockets take it.
#[derive(Clone, Copy)]
pub(crate) struct KeyPair {
    pub(crate) public: ClientKey,
    pub(crate) secret: [u8; 32],
}

fn socket(context: &zmq::Context, kind: zmq::SocketType, is_curve: bool) -> Result<zmq::Socket, zmq::Error> {
    let socket = context.socket(kind)?;
    socket.set_linger(0)?;
    let overhead = if is_curve { CURVE_OVERHEAD } else { 0 };
    socket.set_maxmsgsize((wire::limit::FRAME_SIZE_MAX + overhead) as i64)?;
    socket.set_handshake_ivl(HANDSHAKE_INTERVAL_MS)?;
    socket.set_heartbeat_ivl(HEARTBEAT_INTERVAL_MS)?;
    socket.set_heartbeat_timeout(HEARTBEAT_TIMEOUT_MS)?;
    socket.set_heartbeat_ttl(HEARTBEAT_TTL_MS)?;
    socket.set_sndhwm(MESSAGES_IN_PIPE_MAX)?;
    socket.set_rcvhwm(MESSAGES_IN_PIPE_MAX)?;
    Ok(socket)
}

/// A ROUTER ready to bind. With `curve`, it admits only whom the ZAP handler admits in that domain.
pub(crate) fn router(
    context: &zmq::Context,
    address: &str,
    curve: Option<(&KeyPair, &str)>,
) -> Result<Polled, zmq::Error> {
    let mut socket = socket(context, zmq::ROUTER, curve.is_some())?;
    socket.set_router_mandatory(true)?;
    socket.set_backlog(BACKLOG)?;
    socket.set_ipv6(address.contains('['))?;
    if let Some((keys, domain)) = curve {
        socket.set_curve_server(true)?;
        socket.set_curve_secretkey(&keys.secret)?;
        socket.set_zap_domain(domain)?;
        enforce_domain(&mut socket)?;
    }
    Polled::new(socket)
}

fn enforce_domain(socket: &mut zmq::Socket) -> Result<(), zmq::Error> {
    let on: c_int = 1;
    // SAFETY: a live socket of this thread; the option takes an int, which libzmq copies.
    let status = unsafe {
        zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), ZMQ_ZAP_ENFORCE_DOMAIN, (&raw const on).cast(), size_of::<c_int>())
    };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: reads this thread's error number.
    Err(zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() }))
}

/// A DEALER connected to one address, and the socket that tells what becomes of its connection.
pub(crate) fn dealer(
    context: &zmq::Context,
    address: &str,
    curve: Option<(&KeyPair, ClientKey)>,
    routing_id: &[u8],
) -> Result<(Polled, Monitor), zmq::Error> {
    let socket = socket(context, zmq::DEALER, curve.is_some())?;
    // Without a connection nothing is queued in libzmq: the queue for that is ours, and bounded in bytes.
    socket.set_immediate(true)?;
    socket.set_identity(routing_id)?;
    socket.set_reconnect_ivl(RECONNECT_INTERVAL_MS)?;
    socket.set_reconnect_ivl_max(RECONNECT_INTERVAL_MAX_MS)?;
    socket.set_connect_timeout(CONNECT_TIMEOUT_MS)?;
    socket.set_ipv6(address.contains('['))?;
    if let Some((keys, server)) = curve {
        socket.set_curve_serverkey(&server.0)?;
        socket.set_curve_publickey(&keys.public.0)?;
        socket.set_curve_secretkey(&keys.secret)?;
    }
    let monitor = monitor(context, &socket)?;
    socket.connect(address)?;
    Ok((Polled::new(socket)?, monitor))
}

fn monitor(context: &zmq::Context, socket: &zmq::Socket) -> Result<Monitor, zmq::Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let endpoint = format!("inproc://monitor-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let events = zmq_sys::ZMQ_EVENT_HANDSHAKE_SUCCEEDED | zmq_sys::ZMQ_EVENT_DISCONNECTED;
    socket.monitor(&endpoint, events as i32)?;
    let monitor = context.socket(zmq::PAIR)?;
    monitor.set_linger(0)?;
    monitor.connect(&endpoint)?;
    // Something may have come while it connected.
    Ok(Monitor { fd: monitor.get_fd()?, socket: monitor, is_readable: true })
}

/// Tells what becomes of a DEALER's connection.
pub(crate) struct Monitor {
    socket: zmq::Socket,
    /// Becomes readable when libzmq has something for `socket`, and stays so until it is read to its end. That much is
    /// true only of a socket on which nothing is ever sent: sending would take notice of what has come, too. So a
    /// monitor, other than a DEALER, can be polled without asking libzmq.
    pub(crate) fd: RawFd,
    /// The last poll found `fd` readable, or nobody has read yet.
    pub(crate) is_readable: bool,
}

/// What became of a DEALER's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Connected,
    Disconnected,
}

impl Monitor {
    /// The next thing that it tells, of what the last poll has found.
    pub(crate) fn next_change(&mut self) -> Option<Change> {
        while self.is_readable {
            let Some((frames, _)) = receive(&mut self.socket, 2) else {
                self.is_readable = false;
                break;
            };
            let event =
                frames.first().and_then(|frame| frame.first_chunk::<2>()).map(|bytes| u16::from_ne_bytes(*bytes));
            match event.map(u32::from) {
                Some(zmq_sys::ZMQ_EVENT_HANDSHAKE_SUCCEEDED) => return Some(Change::Connected),
                Some(zmq_sys::ZMQ_EVENT_DISCONNECTED) => return Some(Change::Disconnected),
                Some(_) | None => {}
            }
        }
        None
    }
}

/// A routing id that no connection has had before. The other end silently ignores a connection that comes with the id of
/// one which it still believes alive, for ever; so every boot, and every connection of it, has its own.
pub(crate) fn fresh_routing_id(node: NodeId, boot: BootNonce) -> Vec<u8> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // ZeroMQ keeps ids that begin with a zero byte for itself.
    let mut id = vec![b'Z'];
    id.extend_from_slice(&node.0);
    id.extend_from_slice(&boot.0.to_be_bytes());
    id.extend_from_slice(&NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    id
}

/// Takes one whole message: its first frames, and how many it had. Frames beyond `frames_max` are read and dropped.
fn receive(socket: &mut zmq::Socket, frames_max: usize) -> Option<(Vec<Frame>, usize)> {
    let first = Message::receive(socket)?;
    let mut more = first.has_more();
    let mut frames = Vec::with_capacity(1 + usize::from(more));
    frames.push(Frame::Message(first));
    let mut count = 1;
    while more {
        let frame = Message::receive(socket).expect("libzmq hands out whole messages");
        more = frame.has_more();
        count += 1;
        if frames.len() < frames_max {
            frames.push(Frame::Message(frame));
        }
    }
    Some((frames, count))
}

/// A socket that a loop sleeps on by its descriptor, which costs one system call for all sockets, where `zmq_poll` makes
/// three or more for each.
///
/// The descriptor is a letter box with a flag: the flag is up only while letters lie in it that nobody has looked at.
/// Whatever we do with the socket, sending too, may look, and then the flag is down though there is something to read.
/// So the flag may be relied on only when nothing was done since a look found nothing; else `look` before sleeping.
pub(crate) struct Polled {
    socket: zmq::Socket,
    pub(crate) fd: RawFd,
    seen: Seen,
}

/// What is known of the messages that wait in a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// There was none, and the descriptor tells when that changes.
    Nothing,
    /// There may be some of which the descriptor does not tell.
    Unknown,
    /// There are probably some.
    Something,
}

impl Polled {
    fn new(socket: zmq::Socket) -> Result<Polled, zmq::Error> {
        Ok(Polled { fd: socket.get_fd()?, socket, seen: Seen::Unknown })
    }

    /// Binds `address` and returns the real one.
    pub(crate) fn bind(&mut self, address: &str) -> Result<String, zmq::Error> {
        self.socket.bind(address)?;
        self.socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)
    }

    /// Before sleeping: finds out what is not known. True = there is something to do at once: to read, or with
    /// `wants_room` that there is room to send.
    pub(crate) fn look(&mut self, wants_room: bool) -> bool {
        if self.seen == Seen::Something {
            return true;
        }
        if self.seen == Seen::Nothing && !wants_room {
            return false;
        }
        let events = loop {
            match self.socket.get_events() {
                Ok(events) => break events,
                Err(zmq::Error::EINTR) => {}
                Err(error) => panic!("a socket of ours does not tell its events: {error}"),
            }
        };
        let is_readable = events.contains(zmq::POLLIN);
        self.seen = if is_readable { Seen::Something } else { Seen::Nothing };
        is_readable || wants_room && events.contains(zmq::POLLOUT)
    }

    /// The descriptor was found readable.
    pub(crate) fn signal(&mut self) {
        self.seen = Seen::Something;
    }

    /// It is worth trying to receive.
    pub(crate) fn is_readable(&self) -> bool {
        self.seen == Seen::Something
    }

    /// As `receive`; without a message, the socket was read to its end.
    pub(crate) fn receive(&mut self, frames_max: usize) -> Option<(Vec<Frame>, usize)> {
        let received = receive(&mut self.socket, frames_max);
        if received.is_none() {
            self.seen = Seen::Nothing;
        }
        received
    }

    /// The routing id with which a ROUTER begins each message; `receive` takes the rest.
    pub(crate) fn receive_routing_id(&mut self) -> Option<Message> {
        let received = Message::receive(&mut self.socket);
        if received.is_none() {
            self.seen = Seen::Nothing;
        }
        received
    }

    /// Tries to send the frames of `envelope`, then those of the message, as one. Only the first can be refused.
    pub(crate) fn send<'a>(
        &mut self,
        envelope: impl ExactSizeIterator<Item = &'a [u8]>,
        frames: &mut Frames,
    ) -> Attempt {
        if self.seen == Seen::Nothing {
            self.seen = Seen::Unknown;
        }
        let count = envelope.len() + frames.0.len();
        let mut envelope = envelope.map(|bytes| Frame::Message(Message::copied(bytes)));
        let mut frames = frames.0.iter_mut();
        for index in 0..count {
            let more = index + 1 < count;
            let sent = match envelope.next() {
                Some(mut frame) => frame.send(&mut self.socket, more),
                None => frames.next().expect("counted").send(&mut self.socket, more),
            };
            match sent {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN) if index == 0 => return Attempt::NoRoom,
                Err(zmq::Error::EHOSTUNREACH) if index == 0 => return Attempt::Gone,
                Err(error) => panic!("a socket of ours cannot send frame {index} of {count}: {error}"),
            }
        }
        Attempt::Sent
    }

    /// How long what libzmq has taken may still take to reach its peers once the socket is closed.
    pub(crate) fn set_linger(&self, linger_ms: i32) {
        // It fails only on a socket that is closed.
        let _ = self.socket.set_linger(linger_ms);
    }
}

/// What became of an attempt to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attempt {
    Sent,
    /// The message is whole and can be tried again.
    NoRoom,
    /// There is no such peer any more.
    Gone,
}
