//! How our ZeroMQ sockets are set up, and how whole messages go in and out of them.

use std::os::fd::RawFd;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use wire::{BootNonce, ClientKey, NodeId};

use crate::frame::{Frame, Frames, Outgoing};

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
) -> Result<zmq::Socket, zmq::Error> {
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
    Ok(socket)
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
) -> Result<(zmq::Socket, Monitor), zmq::Error> {
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
    Ok((socket, monitor))
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
            let Some((frames, _)) = receive(&self.socket, 2) else {
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
pub(crate) fn receive(socket: &zmq::Socket, frames_max: usize) -> Option<(Vec<zmq::Message>, usize)> {
    let mut frames = Vec::with_capacity(2);
    let mut count = 0;
    loop {
        let frame = match socket.recv_msg(zmq::DONTWAIT) {
            Ok(frame) => frame,
            Err(zmq::Error::EINTR) => continue,
            Err(zmq::Error::EAGAIN) if count == 0 => return None,
            Err(error) => panic!("a socket of ours cannot receive: {error}"),
        };
        let more = frame.get_more();
        count += 1;
        if frames.len() < frames_max {
            frames.push(frame);
        }
        if !more {
            return Some((frames, count));
        }
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

/// Tries to send `prefix`, then the frames, as one message. Only its first frame can be refused.
pub(crate) fn send(socket: &mut zmq::Socket, prefix: &[&[u8]], frames: &mut Frames) -> Attempt {
    let count = prefix.len() + frames.0.len();
    let prefix = prefix.iter().map(|bytes| Outgoing::copied(bytes));
    let outgoing = prefix.chain(frames.0.iter_mut().map(Frame::outgoing));
    for (index, frame) in outgoing.enumerate() {
        match frame.send(socket, index + 1 < count) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) if index == 0 => return Attempt::NoRoom,
            Err(zmq::Error::EHOSTUNREACH) if index == 0 => return Attempt::Gone,
            Err(error) => panic!("a socket of ours cannot send frame {index} of {count}: {error}"),
        }
    }
    Attempt::Sent
}
