//! What only real sockets show: who gets in, who does not, and that one who does not harms nobody else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use node::{Bind, Certificate, Clock, Endpoint, EndpointConfig, EndpointError, Frame, Identity, PeerClass, SendError};
use wire::{BootNonce, ErrorCode, FixedPart, Instant, Kind, Message, NodeId, PeerId, Role, U64};

const SERVER: NodeId = NodeId([0xaa; 16]);
const W1: NodeId = NodeId([1; 16]);
const W2: NodeId = NodeId([2; 16]);
const STRANGER: NodeId = NodeId([3; 16]);
const STEP: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of certificates and a server that answers every message with a `watch_batch` of the same request and
/// the same further frames.
struct Cluster {
    dir: tempfile::TempDir,
    certificate: Certificate,
    server: Endpoint,
    heard: Vec<(PeerId, Identity, Vec<Vec<u8>>)>,
}

fn a_cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let certificate = Certificate::new().with("role", Role::Master).with("node", SERVER);
    let server = open_server(&dir, &certificate, "tcp://127.0.0.1:*");
    Cluster { dir, certificate, server, heard: Vec::new() }
}

fn open_server(dir: &tempfile::TempDir, certificate: &Certificate, address: &str) -> Endpoint {
    let mut config = EndpointConfig::new(SERVER, BootNonce::new(1, 1), certificate.clone());
    config.certificates_dir = Some(dir.path().to_owned());
    config.binds = vec![Bind { address: address.into(), class: PeerClass::Control }];
    Endpoint::open(config).unwrap()
}

impl Cluster {
    fn address(&self) -> String {
        self.server.bound()[0].clone()
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.key"))
    }

    /// A certificate that the server admits.
    fn admit(&self, name: &str, role: Option<Role>, node: Option<NodeId>) -> Certificate {
        let mut certificate = Certificate::new();
        if let Some(role) = role {
            certificate = certificate.with("role", role);
        }
        if let Some(node) = node {
            certificate = certificate.with("node", node);
        }
        certificate.save_public(self.key_path(name)).unwrap();
        certificate
    }

    fn turn(&mut self) {
        self.server.wait(Some(Clock.now() + STEP));
        let mut answers = Vec::new();
        let heard = &mut self.heard;
        self.server.drain(100, &mut |peer, identity, frames| {
            let request = match Message::decode(&frames[0]) {
                Ok(Message::Watch(watch, _)) => watch.request,
                _ => U64::ZERO,
            };
            heard.push((peer, *identity, frames.iter().map(|frame| frame.to_vec()).collect()));
            let answer = wire::WatchBatch { request, ..wire::WatchBatch::DEFAULT }.frame(SERVER, &[]);
            answers
                .push((peer, [Frame::from(answer)].into_iter().chain(frames.into_iter().skip(1)).collect::<Vec<_>>()));
        });
        for (peer, answer) in answers {
            // A test's peer may be gone by now.
            let _ = self.server.send(peer, answer);
        }
    }

    /// Turns until `done` has something to say.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> Option<T>) -> T {
        let deadline = Clock.now() + PATIENCE;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Clock.now() < deadline, "in vain: {what}");
            self.turn();
        }
    }

    /// A worker, new to the server, is answered.
    fn assert_honest_peer_works(&mut self) {
        let mut worker = a_peer(self, Some(W2), Some(Role::Worker), Some(W2));
        let answer = worker.ask(self, vec![watch(W2, 7)]);
        assert_eq!(answered(&answer), Answered::Batch(7));
    }
}

/// An endpoint that is connected to the server.
struct Peer {
    endpoint: Endpoint,
    server: PeerId,
    inbox: Vec<Vec<Vec<u8>>>,
}

/// A peer that calls itself `node` and holds a fresh certificate for `role` and `certified`.
fn a_peer(cluster: &Cluster, node: Option<NodeId>, role: Option<Role>, certified: Option<NodeId>) -> Peer {
    let name = format!("peer-{}", NodeId::random());
    let certificate = cluster.admit(&name, role, certified);
    a_peer_with(cluster, node.unwrap_or(W1), certificate)
}

fn a_peer_with(cluster: &Cluster, node: NodeId, certificate: Certificate) -> Peer {
    let mut endpoint = Endpoint::open(EndpointConfig::new(node, BootNonce::new(1, 9), certificate)).unwrap();
    let server = endpoint
        .connect(&cluster.address(), Some(cluster.certificate.public), Role::Master, PeerClass::Control)
        .unwrap();
    Peer { endpoint, server, inbox: Vec::new() }
}

impl Peer {
    fn send(&mut self, frames: Vec<Vec<u8>>) {
        self.endpoint.send(self.server, frames).unwrap();
    }

    fn turn(&mut self) {
        self.endpoint.wait(Some(Clock.now() + STEP));
        let inbox = &mut self.inbox;
        self.endpoint.drain(100, &mut |_, _, frames| {
            inbox.push(frames.iter().map(|frame| frame.to_vec()).collect());
        });
    }

    fn ask(&mut self, cluster: &mut Cluster, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        self.send(frames);
        cluster.until("an answer", |_| {
            self.turn();
            self.inbox.pop()
        })
    }
}

fn watch(node: NodeId, request: u64) -> Vec<u8> {
    wire::Watch { request: U64::new(request), ..wire::Watch::DEFAULT }.frame(node, &[])
}

fn status(node: NodeId) -> Vec<u8> {
    wire::WorkerStatus::DEFAULT.seed_frame(node, &[])
}

#[derive(PartialEq, Eq, Debug)]
enum Answered {
    Batch(u64),
    Error(ErrorCode, u64),
}

fn answered(frames: &[Vec<u8>]) -> Answered {
    match Message::decode(&frames[0]).unwrap() {
        Message::WatchBatch(batch, _) => Answered::Batch(batch.request.get()),
        Message::Error(error, _) => {
            Answered::Error(ErrorCode::from_number(error.code.get()).unwrap(), error.request.get())
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// A socket outside of our endpoint, and what becomes of its connection.
struct Raw {
    socket: zmq::Socket,
    monitor: zmq::Socket,
    _context: zmq::Context,
}

fn a_raw_socket(kind: zmq::SocketType, address: &str, keys: Option<(&Certificate, [u8; 32])>) -> Raw {
    let context = zmq::Context::new();
    let socket = context.socket(kind).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_identity(&[b"X", &NodeId::random().0[..]].concat()).unwrap();
    if let Some((own, server)) = keys {
        socket.set_curve_serverkey(&server).unwrap();
        socket.set_curve_publickey(&own.public.0).unwrap();
        socket.set_curve_secretkey(&own.secret.unwrap()).unwrap();
    }
    socket.monitor("inproc://raw", zmq::SocketEvent::ALL as i32).unwrap();
    let monitor = context.socket(zmq::PAIR).unwrap();
    monitor.connect("inproc://raw").unwrap();
    socket.connect(address).unwrap();
    Raw { socket, monitor, _context: context }
}

impl Raw {
    /// True once the connection has been refused or ended by the other end.
    fn is_refused(&self) -> bool {
        const REFUSED: [zmq::SocketEvent; 4] = [
            zmq::SocketEvent::DISCONNECTED,
            zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL,
            zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
            zmq::SocketEvent::HANDSHAKE_FAILED_AUTH,
        ];
        while let Ok(event) = self.monitor.recv_multipart(zmq::DONTWAIT) {
            let number = u16::from_ne_bytes([event[0][0], event[0][1]]);
            assert_ne!(number, zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw(), "a stranger got in");
            if REFUSED.iter().any(|refused| refused.to_raw() == number) {
                return true;
            }
        }
        false
    }

    fn answer(&self, cluster: &mut Cluster) -> Vec<Vec<u8>> {
        cluster.until("an answer to a raw socket", |_| self.socket.recv_multipart(zmq::DONTWAIT).ok())
    }
}

#[test]
fn an_admitted_peer_is_answered_and_known() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    assert!(!worker.endpoint.is_connected(worker.server));
    let answer = worker.ask(&mut cluster, vec![watch(W1, 3), vec![5; 100_000]]);
    assert_eq!(answered(&answer), Answered::Batch(3));
    assert_eq!(answer[1], vec![5; 100_000]);
    assert!(worker.endpoint.is_connected(worker.server));
    assert_eq!(worker.endpoint.identity(worker.server).unwrap().node, Some(SERVER));
    let (peer, identity) = (cluster.heard[0].0, cluster.heard[0].1);
    assert_eq!((identity.role, identity.node, identity.class), (Role::Worker, Some(W1), PeerClass::Control));
    // The number stays.
    let answer = worker.ask(&mut cluster, vec![watch(W1, 4)]);
    assert_eq!(answered(&answer), Answered::Batch(4));
    assert_eq!(cluster.heard.len(), 2);
    assert_eq!(cluster.heard[1].0, cluster.heard[0].0);
    assert_eq!(cluster.server.identity(peer), Some(&identity));
}

#[test]
fn ten_thousand_messages_come_back() {
    const COUNT: u64 = 10_000;
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    for request in 1..=COUNT {
        worker.send(vec![watch(W1, request)]);
    }
    let mut back = BTreeSet::new();
    cluster.until("all answers", |_| {
        worker.turn();
        back.extend(worker.inbox.drain(..).map(|frames| match answered(&frames) {
            Answered::Batch(request) => request,
            Answered::Error(code, request) => panic!("{request} was refused: {code}"),
        }));
        (back.len() as u64 == COUNT).then_some(())
    });
    assert_eq!(cluster.heard.len() as u64, COUNT);
}

#[test]
fn a_plain_peer_does_not_get_in() {
    let mut cluster = a_cluster();
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), None);
    raw.socket.send(status(W1), zmq::DONTWAIT).unwrap();
    cluster.until("a refusal", |_| raw.is_refused().then_some(()));
    cluster.assert_honest_peer_works();
    assert_eq!(cluster.heard.len(), 1);
}

#[test]
fn an_unknown_key_does_not_get_in() {
    let mut cluster = a_cluster();
    let stranger = Certificate::new();
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&stranger, cluster.certificate.public.0)));
    raw.socket.send(status(W1), zmq::DONTWAIT).unwrap();
    cluster.until("a refusal", |_| raw.is_refused().then_some(()));
    cluster.assert_honest_peer_works();
    assert_eq!(cluster.heard.len(), 1);
}

#[test]
fn a_wrong_server_key_connects_to_nobody() {
    let mut cluster = a_cluster();
    let known = cluster.admit("known", Some(Role::Worker), Some(W1));
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&known, Certificate::new().public.0)));
    raw.socket.send(status(W1), zmq::DONTWAIT).unwrap();
    cluster.until("a refusal", |_| raw.is_refused().then_some(()));
    cluster.assert_honest_peer_works();
    assert_eq!(cluster.heard.len(), 1);
}

#[test]
fn a_certificate_that_comes_late_lets_a_waiting_peer_in() {
    let mut cluster = a_cluster();
    let late = Certificate::new().with("role", Role::Worker).with("node", W1);
    let mut worker = a_peer_with(&cluster, W1, late.clone());
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&late, cluster.certificate.public.0)));
    cluster.until("a refusal", |_| raw.is_refused().then_some(()));
    drop(raw);
    late.save_public(cluster.key_path("late")).unwrap();
    let answer = worker.ask(&mut cluster, vec![watch(W1, 1)]);
    assert_eq!(answered(&answer), Answered::Batch(1));
}

#[test]
fn a_removed_key_is_refused_on_old_and_new_connections() {
    let mut cluster = a_cluster();
    let fired = cluster.admit("fired", Some(Role::Worker), Some(W1));
    let mut worker = a_peer_with(&cluster, W1, fired.clone());
    assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W1, 1)])), Answered::Batch(1));
    fs::remove_file(cluster.key_path("fired")).unwrap();
    cluster.until("the old connection to be refused", |cluster| {
        let answer = worker.ask(cluster, vec![status(W1)]);
        (answered(&answer) == Answered::Error(ErrorCode::NotAllowed, 0)).then_some(())
    });
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&fired, cluster.certificate.public.0)));
    cluster.until("a refusal", |_| raw.is_refused().then_some(()));
    cluster.assert_honest_peer_works();
}

#[test]
fn an_oversized_frame_ends_only_its_own_connection() {
    let mut cluster = a_cluster();
    let known = cluster.admit("known", Some(Role::Worker), Some(W1));
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&known, cluster.certificate.public.0)));
    raw.socket.send(status(W1), 0).unwrap();
    raw.answer(&mut cluster);
    while raw.monitor.recv_multipart(zmq::DONTWAIT).is_ok() {}
    let mut oversized = status(W1);
    oversized.resize(wire::limit::FRAME_SIZE_MAX + 1, 0);
    raw.socket.send(oversized, 0).unwrap();
    cluster.until("the connection to end", |_| raw.is_refused().then_some(()));
    drop(raw);
    assert_eq!(cluster.heard.len(), 1);
    cluster.assert_honest_peer_works();
}

#[test]
fn a_frame_of_the_greatest_size_gets_through() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    let block = vec![9; wire::limit::FRAME_SIZE_MAX];
    let answer = worker.ask(&mut cluster, vec![watch(W1, 1), block.clone()]);
    assert!(answer[1] == block);
}

#[test]
fn raw_tcp_garbage_and_silence_are_hung_up_on() {
    let mut cluster = a_cluster();
    let address = cluster.address().strip_prefix("tcp://").unwrap().to_owned();
    for bytes in [&[0x5a; 200][..], &[0xff; 4096], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut sink = [0; 4096];
        cluster.until("the server to hang up", |_| match stream.read(&mut sink) {
            Ok(0) => Some(()),
            Ok(_) => None,
            Err(error) => (error.kind() != std::io::ErrorKind::WouldBlock).then_some(()),
        });
    }
    cluster.assert_honest_peer_works();
    assert_eq!(cluster.heard.len(), 1);
}

#[test]
fn a_foreign_node_uuid_is_refused_and_the_connection_stays() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W2, 8)])), Answered::Error(ErrorCode::NotAllowed, 8));
    assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W1, 9)])), Answered::Batch(9));
    assert_eq!(cluster.heard.len(), 1);
    cluster.assert_honest_peer_works();
}

#[test]
fn an_unbound_key_keeps_its_first_uuid_and_cannot_take_anothers() {
    let mut cluster = a_cluster();
    cluster.admit("w2", Some(Role::Worker), Some(W2));
    let mut client = a_peer(&cluster, None, Some(Role::Client), None);
    assert_eq!(answered(&client.ask(&mut cluster, vec![watch(W2, 1)])), Answered::Error(ErrorCode::NotAllowed, 1));
    assert_eq!(answered(&client.ask(&mut cluster, vec![watch(W1, 2)])), Answered::Batch(2));
    assert_eq!(cluster.heard[0].1.node, Some(W1));
    assert_eq!(
        answered(&client.ask(&mut cluster, vec![watch(STRANGER, 3)])),
        Answered::Error(ErrorCode::NotAllowed, 3)
    );
    assert_eq!(cluster.heard.len(), 1);
}

#[test]
fn what_the_role_may_not_send_is_refused() {
    let mut cluster = a_cluster();
    let mut storage = a_peer(&cluster, Some(W1), Some(Role::Storage), Some(W1));
    assert_eq!(answered(&storage.ask(&mut cluster, vec![watch(W1, 1)])), Answered::Error(ErrorCode::NotAllowed, 1));
    // A certificate without a role: the seed's messages, and no others.
    let mut stranger = a_peer(&cluster, None, None, None);
    let hello = wire::NodeHello { request: U64::new(2), ..wire::NodeHello::DEFAULT }.frame(STRANGER, &[]);
    assert_eq!(answered(&stranger.ask(&mut cluster, vec![hello])), Answered::Error(ErrorCode::NotAllowed, 2));
    assert_eq!(answered(&stranger.ask(&mut cluster, vec![status(STRANGER)])), Answered::Batch(0));
    assert_eq!(cluster.heard.len(), 1);
    cluster.assert_honest_peer_works();
}

#[test]
fn malformed_and_unknown_messages_are_answered() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    let mut ask = |frames| answered(&worker.ask(&mut cluster, frames));
    assert_eq!(ask(vec![vec![1, 2, 3]]), Answered::Error(ErrorCode::Malformed, 0));
    assert_eq!(ask(vec![vec![]]), Answered::Error(ErrorCode::Malformed, 0));
    let mut unknown = watch(W1, 1);
    unknown[0] = 250;
    assert_eq!(ask(vec![unknown]), Answered::Error(ErrorCode::UnknownType, 0));
    let many = |count| [watch(W1, 5)].into_iter().chain((1..count).map(|_| vec![0])).collect::<Vec<_>>();
    let answer = ask(many(wire::limit::FRAMES_MAX));
    assert_eq!(answer, Answered::Batch(5));
    assert_eq!(cluster.heard.len(), 1);

    let known = cluster.admit("raw", Some(Role::Worker), Some(W1));
    let raw = a_raw_socket(zmq::DEALER, &cluster.address(), Some((&known, cluster.certificate.public.0)));
    raw.socket.send_multipart(many(wire::limit::FRAMES_MAX + 1), 0).unwrap();
    assert_eq!(answered(&raw.answer(&mut cluster)), Answered::Error(ErrorCode::Malformed, 5));
    raw.socket.send_multipart(many(1_000), 0).unwrap();
    assert_eq!(answered(&raw.answer(&mut cluster)), Answered::Error(ErrorCode::Malformed, 5));
    assert_eq!(cluster.heard.len(), 1);
    cluster.assert_honest_peer_works();
}

#[test]
fn req_is_tolerated() {
    let mut cluster = a_cluster();
    let known = cluster.admit("req", None, None);
    let raw = a_raw_socket(zmq::REQ, &cluster.address(), Some((&known, cluster.certificate.public.0)));
    for _ in 0..2 {
        raw.socket.send(status(W1), 0).unwrap();
        assert_eq!(answered(&raw.answer(&mut cluster)), Answered::Batch(0));
    }
    assert_eq!(cluster.heard.len(), 2);
    assert_eq!(cluster.heard[0].2, vec![status(W1)]);
    // A refusal reaches it too.
    raw.socket.send(watch(W1, 6), 0).unwrap();
    assert_eq!(answered(&raw.answer(&mut cluster)), Answered::Error(ErrorCode::NotAllowed, 6));
}

#[test]
fn sending_to_one_who_left_is_an_error() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    worker.ask(&mut cluster, vec![watch(W1, 1)]);
    let peer = cluster.heard[0].0;
    drop(worker);
    cluster.until("an error", |cluster| {
        cluster.server.send(peer, status(SERVER)).is_err_and(|error| error == SendError::Unreachable).then_some(())
    });
    assert_eq!(cluster.server.send(peer, status(SERVER)), Err(SendError::Unreachable));
    assert_eq!(cluster.server.send(PeerId(999), status(SERVER)), Err(SendError::Unreachable));
    cluster.assert_honest_peer_works();
}

#[test]
fn what_waits_for_a_server_is_bounded() {
    let certificate = Certificate::new();
    let mut config = EndpointConfig::new(W1, BootNonce::new(1, 1), certificate.clone());
    config.queue_bytes_max = 100_000;
    let mut endpoint = Endpoint::open(config).unwrap();
    // Nobody listens on the discard port of this machine.
    let server =
        endpoint.connect("tcp://127.0.0.1:9", Some(certificate.public), Role::Master, PeerClass::Control).unwrap();
    let results: Vec<_> = (0..20).map(|_| endpoint.send(server, vec![0; 9_000])).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 10);
    assert_eq!(results[19], Err(SendError::Full));
    endpoint.disconnect(server);
    assert_eq!(endpoint.send(server, vec![0]), Err(SendError::Unreachable));
}

#[test]
fn a_connection_outlives_its_server() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    worker.ask(&mut cluster, vec![watch(W1, 1)]);
    let address = cluster.address();
    // The port is free again only when the old endpoint is gone.
    let placeholder = open_server(&cluster.dir, &cluster.certificate, "tcp://127.0.0.1:*");
    drop(std::mem::replace(&mut cluster.server, placeholder));
    let deadline = Clock.now() + PATIENCE;
    while worker.endpoint.is_connected(worker.server) {
        worker.turn();
        assert!(Clock.now() < deadline, "the end of the server is not noticed");
    }
    let mut config = EndpointConfig::new(SERVER, BootNonce::new(2, 1), cluster.certificate.clone());
    config.certificates_dir = Some(cluster.dir.path().to_owned());
    config.binds = vec![Bind { address: address.clone(), class: PeerClass::Control }];
    cluster.server = loop {
        match Endpoint::open(config.clone()) {
            Ok(server) => break server,
            // libzmq closes the old socket in its own time.
            Err(EndpointError::Bind { .. }) => assert!(Clock.now() < deadline, "the port is not freed"),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(cluster.address(), address);
    assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W1, 2)])), Answered::Batch(2));
    // The worker's old number is not its number here.
    assert_ne!(cluster.heard[0].1.node, None);
}

#[test]
fn a_peer_that_connects_again_is_heard_at_once_and_has_a_new_number() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    for request in 1..=5 {
        assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W1, request)])), Answered::Batch(request));
        let (address, key) = (cluster.address(), cluster.certificate.public);
        let old = worker.server;
        worker.server = worker.endpoint.connect(&address, Some(key), Role::Master, PeerClass::Control).unwrap();
        worker.endpoint.disconnect(old);
    }
    let numbers: BTreeSet<PeerId> = cluster.heard.iter().map(|(peer, _, _)| *peer).collect();
    assert_eq!(numbers.len(), 5);
}

/// Carries TCP connections to the server, and can cut them on the client's side only.
struct Relay {
    address: String,
    carried: Arc<Mutex<Vec<(TcpStream, TcpStream)>>>,
}

fn a_relay(server: &str) -> Relay {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let server = server.strip_prefix("tcp://").unwrap().to_owned();
    let carried: Arc<Mutex<Vec<(TcpStream, TcpStream)>>> = Arc::default();
    let connections = carried.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(upstream) = TcpStream::connect(&server) else { return };
            for (mut from, mut to) in [(&client, &upstream), (&upstream, &client)]
                .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
            {
                // An end on one side is not carried over to the other.
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
            connections.lock().unwrap().push((client, upstream));
        }
    });
    Relay { address, carried }
}

impl Relay {
    fn cut_clients(&self) {
        for (client, _upstream) in self.carried.lock().unwrap().iter() {
            // It may be cut already.
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_cut_on_the_clients_side_only_is_heard_again() {
    let mut cluster = a_cluster();
    let relay = a_relay(&cluster.address());
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    let key = cluster.certificate.public;
    worker.server = worker.endpoint.connect(&relay.address, Some(key), Role::Master, PeerClass::Control).unwrap();
    for request in 1..=3 {
        // What was under way when the connection broke is lost, so a client asks again.
        cluster.until("an answer", |cluster| {
            worker.send(vec![watch(W1, request)]);
            let deadline = Clock.now() + Duration::from_millis(500);
            while worker.inbox.is_empty() && Clock.now() < deadline {
                worker.turn();
                cluster.turn();
            }
            worker.inbox.pop().filter(|frames| answered(frames) == Answered::Batch(request))
        });
        relay.cut_clients();
        cluster.until("the cut to be noticed", |_| {
            worker.turn();
            (!worker.endpoint.is_connected(worker.server)).then_some(())
        });
    }
}

#[test]
fn a_local_socket_needs_no_keys_and_is_closed_to_other_users() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bulk");
    let address = format!("ipc://{}", path.display());
    let certificate = Certificate::new().to_public();
    let mut config = EndpointConfig::new(SERVER, BootNonce::new(1, 1), certificate.clone());
    config.binds = vec![Bind { address: address.clone(), class: PeerClass::Bulk }];
    let server = Endpoint::open(config.clone()).unwrap();
    assert_eq!(server.bound(), vec![address.clone()]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut cluster = Cluster { dir, certificate: certificate.clone(), server, heard: Vec::new() };
    let mut endpoint = Endpoint::open(EndpointConfig::new(W1, BootNonce::new(1, 1), certificate.clone())).unwrap();
    let server = endpoint.connect(&address, None, Role::Master, PeerClass::Bulk).unwrap();
    let mut worker = Peer { endpoint, server, inbox: Vec::new() };
    assert_eq!(answered(&worker.ask(&mut cluster, vec![watch(W1, 1)])), Answered::Batch(1));
    assert_eq!(cluster.heard[0].1.class, PeerClass::Bulk);

    let refused = |address: &str, config: &EndpointConfig| {
        let binds = vec![Bind { address: address.into(), class: PeerClass::Bulk }];
        Endpoint::open(EndpointConfig { binds, ..config.clone() }).err().unwrap()
    };
    assert!(matches!(refused("tcp://127.0.0.1:*", &config), EndpointError::SecretMissing { .. }));
    config.certificate = Certificate::new();
    assert!(matches!(refused("tcp://127.0.0.1:*", &config), EndpointError::CertificatesMissing { .. }));
    assert!(matches!(refused("inproc://x", &config), EndpointError::Address { .. }));
    assert!(matches!(refused(&format!("ipc:///{}", "x".repeat(200)), &config), EndpointError::Address { .. }));
    config.certificates_dir = Some("/nowhere".into());
    assert!(matches!(refused("tcp://127.0.0.1:*", &config), EndpointError::Certificates { .. }));
    let result = worker.endpoint.connect("tcp://127.0.0.1:1", None, Role::Master, PeerClass::Bulk);
    assert!(matches!(result, Err(EndpointError::ServerKeyMissing { .. })));
}

struct Counted(Vec<u8>, Arc<AtomicUsize>);
impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_shared_frame_reaches_many_peers_and_is_freed_once() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    worker.ask(&mut cluster, vec![watch(W1, 1)]);
    let peer = cluster.heard[0].0;
    let freed = Arc::new(AtomicUsize::new(0));
    let map: Arc<dyn AsRef<[u8]> + Send + Sync> =
        Arc::new(Counted((0..=255).cycle().take(1 << 20).collect(), freed.clone()));
    for block in 0..16 {
        let header = wire::FileResponse::DEFAULT.frame(SERVER, &[]);
        let content = Frame::shared(map.clone(), block * 65_536..(block + 1) * 65_536);
        cluster.server.send(peer, [header.into(), content]).unwrap();
    }
    drop(map);
    let expected: Vec<u8> = (0..=255).cycle().take(65_536).collect();
    cluster.until("all blocks", |_| {
        worker.turn();
        (worker.inbox.len() == 16).then_some(())
    });
    assert!(worker.inbox.iter().all(|frames| frames[1] == expected));
    cluster.until("the map to be freed", |_| (freed.load(Ordering::SeqCst) == 1).then_some(()));
    drop(cluster);
    drop(worker);
    assert_eq!(freed.load(Ordering::SeqCst), 1);
}

#[test]
fn the_bell_wakes_a_loop_that_waits_for_ever() {
    const COUNT: u32 = 20_000;
    let mut endpoint = Endpoint::open(EndpointConfig::new(W1, BootNonce::NONE, Certificate::new())).unwrap();
    let (outbox, inbox) = node::channel::to_owner(8, &endpoint.bell());
    let helper = std::thread::spawn(move || (0..COUNT).for_each(|number| outbox.send(number).unwrap()));
    let mut next = 0;
    while next < COUNT {
        endpoint.wait(None);
        while let Ok(number) = inbox.try_recv() {
            assert_eq!(number, next);
            next += 1;
        }
    }
    helper.join().unwrap();
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before() {
    let mut endpoint = Endpoint::open(EndpointConfig::new(W1, BootNonce::NONE, Certificate::new())).unwrap();
    for milliseconds in [0, 1, 30] {
        let deadline: Instant = Clock.now() + Duration::from_micros(milliseconds * 1_000 + 100);
        endpoint.wait(Some(deadline));
        assert!(Clock.now() >= deadline);
    }
    // In the past: at once.
    endpoint.wait(Some(Instant(0)));
}

#[test]
fn a_turn_that_hit_its_limit_does_not_sleep() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    worker.ask(&mut cluster, vec![watch(W1, 0)]);
    for request in 1..=50 {
        worker.send(vec![watch(W1, request)]);
    }
    let mut seen = 0;
    let deadline = Clock.now() + PATIENCE;
    while seen < 50 {
        // For ever, unless something is there or left over from the turn before.
        cluster.server.wait(None);
        seen += cluster.server.drain(3, &mut |_, _, frames| {
            assert_eq!(Message::decode(&frames[0]).unwrap().kind(), Kind::Watch);
        });
        assert!(Clock.now() < deadline);
    }
}

#[test]
fn what_was_sent_before_close_arrives() {
    let mut cluster = a_cluster();
    let mut worker = a_peer(&cluster, Some(W1), Some(Role::Worker), Some(W1));
    worker.ask(&mut cluster, vec![watch(W1, 1)]);
    for request in 2..=101 {
        worker.send(vec![watch(W1, request), vec![0; 10_000]]);
    }
    worker.endpoint.close(Duration::from_secs(1));
    cluster.until("all that was sent", |cluster| (cluster.heard.len() == 101).then_some(()));
}
