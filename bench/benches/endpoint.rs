//! How much does our endpoint cost over raw libzmq with the same pattern, sizes and CURVE?
//!
//! Two threads over TCP loopback: one asks with a window of requests in flight, the other echoes. Window 1 is latency,
//! window 64 throughput. The baseline is a DEALER and a ROUTER with CURVE and nothing else. First the table of ratios, each
//! pair measured in turns; then criterion's own figures, side by side for each size.

#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench::Pair;
use criterion::{BenchmarkId, Criterion, Throughput};
use node::{Bind, Certificate, Endpoint, EndpointConfig, Frame, PeerClass};
use wire::limit::{KIB, MIB};
use wire::{BootNonce, FileRequest, FixedPart, NodeId, PeerId, Role};

const SIZES: [usize; 5] = [64, KIB, 16 * KIB, 256 * KIB, MIB];

/// A message of `size` bytes that the endpoint admits.
fn a_message(size: usize, sender: NodeId) -> Vec<u8> {
    let mut frame = FileRequest::DEFAULT.seed_frame(sender, b"");
    frame.resize(size.max(frame.len()), 7);
    frame
}

/// Round trips for one round of a size, so that a round takes a few tens of milliseconds.
fn trips(size: usize, window: usize) -> usize {
    let budget = if window == 1 { 16 * MIB } else { 128 * MIB };
    (budget / size).clamp(64, if window == 1 { 1_000 } else { 20_000 })
}

struct RawPair {
    dealer: zmq::Socket,
    stop: Arc<AtomicBool>,
    echo: Option<JoinHandle<()>>,
}

impl RawPair {
    fn new() -> Self {
        let context = zmq::Context::new();
        let (server, client) = (zmq::CurveKeyPair::new().unwrap(), zmq::CurveKeyPair::new().unwrap());
        let router = context.socket(zmq::ROUTER).unwrap();
        router.set_curve_server(true).unwrap();
        router.set_curve_secretkey(&server.secret_key).unwrap();
        router.set_rcvtimeo(100).unwrap();
        router.set_linger(0).unwrap();
        router.bind("tcp://127.0.0.1:*").unwrap();
        let address = router.get_last_endpoint().unwrap().unwrap();
        let dealer = context.socket(zmq::DEALER).unwrap();
        dealer.set_curve_serverkey(&server.public_key).unwrap();
        dealer.set_curve_publickey(&client.public_key).unwrap();
        dealer.set_curve_secretkey(&client.secret_key).unwrap();
        dealer.set_linger(0).unwrap();
        dealer.connect(&address).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let echo = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(identity) = router.recv_msg(0) else { continue };
                let body = router.recv_msg(0).unwrap();
                router.send(identity, zmq::SNDMORE).unwrap();
                router.send(body, 0).unwrap();
            }
        });
        Self { dealer, stop, echo: Some(echo) }
    }

    fn run(&self, message: &[u8], trips: usize, window: usize) {
        let (mut sent, mut heard) = (0, 0);
        while heard < trips {
            while sent < trips && sent - heard < window {
                self.dealer.send(message, 0).unwrap();
                sent += 1;
            }
            assert_eq!(self.dealer.recv_msg(0).unwrap().len(), message.len());
            heard += 1;
        }
    }
}

impl Drop for RawPair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.echo.take().expect("it is taken once").join().expect("the echo thread does not panic");
    }
}

struct OurPair {
    endpoint: Endpoint,
    server: PeerId,
    sender: NodeId,
    stop: Arc<AtomicBool>,
    bell: node::Bell,
    echo: Option<JoinHandle<()>>,
}

impl OurPair {
    fn new(dir: &std::path::Path) -> Self {
        let (server_node, sender) = (NodeId::random(), NodeId::random());
        let server = Certificate::new().with("role", Role::Storage).with("node", server_node);
        let client = Certificate::new().with("role", Role::Client).with("node", sender);
        client.save_public(dir.join("client.key")).unwrap();
        let server_key = server.public;
        let mut config = EndpointConfig::new(server_node, BootNonce::new(1, 1), server);
        config.binds = vec![Bind { address: "tcp://127.0.0.1:*".into(), class: PeerClass::Control }];
        config.certificates_dir = Some(dir.to_owned());
        let mut listener = Endpoint::open(config).unwrap();
        let address = listener.bound()[0].clone();
        let mut endpoint = Endpoint::open(EndpointConfig::new(sender, BootNonce::new(1, 2), client)).unwrap();
        let server = endpoint.connect(&address, Some(server_key), Role::Storage, PeerClass::Control).unwrap();
        let (stop, bell) = (Arc::new(AtomicBool::new(false)), listener.bell());
        let stopped = stop.clone();
        let echo = std::thread::spawn(move || {
            let mut answers: Vec<(PeerId, Vec<Frame>)> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                listener.wait(None);
                listener.drain(256, &mut |peer, _, frames| answers.push((peer, frames)));
                for (peer, mut frames) in answers.drain(..) {
                    // The echo speaks for itself, as every message does.
                    let mut answer = frames.swap_remove(0);
                    if let Frame::Message(message) = &mut answer {
                        message[1..17].copy_from_slice(&sender_bytes(server_node));
                    }
                    listener.send(peer, answer).expect("the window bounds what is queued");
                }
            }
        });
        Self { endpoint, server, sender, stop, bell, echo: Some(echo) }
    }

    fn run(&mut self, message: &[u8], trips: usize, window: usize) {
        let (mut sent, mut heard) = (0, 0);
        while heard < trips {
            while sent < trips && sent - heard < window {
                self.endpoint.send(self.server, message.to_vec()).expect("the window bounds what is queued");
                sent += 1;
            }
            self.endpoint.wait(None);
            self.endpoint.drain(256, &mut |_, _, frames| {
                assert_eq!(frames[0].len(), message.len());
                heard += 1;
            });
        }
    }
}

/// The two halves of a node's uuid as the header has them.
fn sender_bytes(node: NodeId) -> [u8; 16] {
    let frame = FileRequest::DEFAULT.seed_frame(node, b"");
    frame[1..17].try_into().expect("sixteen bytes")
}

impl Drop for OurPair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        self.echo.take().expect("it is taken once").join().expect("the echo thread does not panic");
    }
}

const PATTERNS: [(&str, usize); 2] = [("latency, window 1", 1), ("throughput, window 64", 64)];

fn table(raw: &RawPair, ours: &mut OurPair) {
    println!("| pattern | size | raw libzmq | our endpoint | speed, raw = 1 | spread |");
    println!("|---|---|---|---|---|---|");
    for (pattern, window) in PATTERNS {
        for size in SIZES {
            let window = window.min(64 * MIB / size);
            let message = a_message(size, ours.sender);
            let trips = trips(size, window);
            let pair = Pair::measure(|| raw.run(&message, trips, window), || ours.run(&message, trips, window));
            let per_trip = |total: Duration| total.as_secs_f64() * 1e6 / trips as f64;
            println!(
                "| {pattern} | {size} | {:.1} us | {:.1} us | {:.2} | {:.2} |",
                per_trip(pair.baseline),
                per_trip(pair.candidate),
                pair.speed_ratio(),
                pair.spread
            );
        }
    }
}

/// `iterations` round trips of `message`, timed as criterion wants it.
fn timed(iterations: u64, run: impl FnOnce(usize)) -> Duration {
    let start = Instant::now();
    run(iterations as usize);
    start.elapsed()
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raw = RawPair::new();
    let mut ours = OurPair::new(dir.path());
    table(&raw, &mut ours);
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for (pattern, window) in PATTERNS {
        let mut group = criterion.benchmark_group(pattern);
        for size in SIZES {
            let message = a_message(size, ours.sender);
            group.throughput(Throughput::Bytes(message.len() as u64));
            group.bench_with_input(BenchmarkId::new("raw libzmq", size), &message, |b, message| {
                b.iter_custom(|iterations| timed(iterations, |trips| raw.run(message, trips, window)))
            });
            group.bench_with_input(BenchmarkId::new("our endpoint", size), &message, |b, message| {
                b.iter_custom(|iterations| timed(iterations, |trips| ours.run(message, trips, window)))
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
