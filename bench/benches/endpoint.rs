//! How much does our endpoint cost over raw libzmq with the same pattern, sizes and CURVE?
//!
//! Two threads over TCP loopback, in the patterns of libzmq's own performance tools and one more: round trips one at a time
//! (latency), a stream one way under credit (throughput), and round trips with 64 under way. The baseline is a DEALER and
//! a ROUTER with CURVE and nothing else: no poll loop, no admission, no queue. First the table of ratios, each pair
//! measured in turns; then criterion's own figures, side by side for each size.

#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// Who says how much, and when.
#[derive(Clone, Copy)]
struct Pattern {
    name: &'static str,
    /// Messages under way that have not been answered.
    window: usize,
    /// Each how many messages are answered: 1 = each, by itself; more = by one small message.
    answered: usize,
}

impl Pattern {
    fn latency(_size: usize) -> Self {
        Self { name: "latency: round trips, 1 under way", window: 1, answered: 1 }
    }

    fn stream(size: usize) -> Self {
        let window = (16 * MIB / size).clamp(16, 1_024);
        Self { name: "throughput: one way, credit", window, answered: window / 4 }
    }

    fn trips(size: usize) -> Self {
        Self { name: "throughput: round trips, 64 under way", window: 64.min(64 * MIB / size), answered: 1 }
    }

    /// Messages of a size in one round, so that it takes a few tens of milliseconds.
    fn messages(&self, size: usize) -> usize {
        let budget = if self.window == 1 { 16 * MIB } else { 128 * MIB };
        let messages = (budget / size).clamp(64, if self.window == 1 { 1_000 } else { 20_000 });
        messages.next_multiple_of(self.answered)
    }
}

const PATTERNS: [fn(usize) -> Pattern; 3] = [Pattern::latency, Pattern::stream, Pattern::trips];
const ANSWER_SIZE: usize = 64;
/// As the roles have it.
const MESSAGES_PER_TURN_MAX: usize = 256;

struct RawPair {
    dealer: zmq::Socket,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
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
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
        let (stopped, every) = (stop.clone(), answered.clone());
        let echo = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(identity) = router.recv_msg(0) else { continue };
                let body = router.recv_msg(0).unwrap();
                count += 1;
                let every = every.load(Ordering::Relaxed);
                if every == 1 {
                    router.send(identity, zmq::SNDMORE).unwrap();
                    router.send(body, 0).unwrap();
                } else if count >= every {
                    router.send(identity, zmq::SNDMORE).unwrap();
                    router.send(&body[..ANSWER_SIZE], 0).unwrap();
                }
                count %= every;
            }
        });
        Self { dealer, stop, answered, echo: Some(echo) }
    }

    fn run(&self, message: &[u8], messages: usize, pattern: Pattern) {
        self.answered.store(pattern.answered, Ordering::Relaxed);
        let (mut sent, mut heard) = (0, 0);
        while heard < messages {
            while sent < messages && sent - heard < pattern.window {
                self.dealer.send(message, 0).unwrap();
                sent += 1;
            }
            self.dealer.recv_msg(0).unwrap();
            heard += pattern.answered;
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
    answered: Arc<AtomicUsize>,
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
        let answered = Arc::new(AtomicUsize::new(1));
        let (stopped, every) = (stop.clone(), answered.clone());
        let echo = std::thread::spawn(move || {
            let own = sender_bytes(server_node);
            let mut count = 0;
            let mut arrived: Vec<(PeerId, Vec<Frame>)> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                listener.wait(None);
                listener.drain(MESSAGES_PER_TURN_MAX, &mut |peer, _, frames| arrived.push((peer, frames)));
                for (peer, mut frames) in arrived.drain(..) {
                    count += 1;
                    let every = every.load(Ordering::Relaxed);
                    // The echo speaks for itself, as every message does.
                    if every == 1 {
                        let mut answer = frames.swap_remove(0);
                        if let Frame::Message(message) = &mut answer {
                            message[1..17].copy_from_slice(&own);
                        }
                        listener.send(peer, answer).expect("the window bounds what is queued");
                    } else if count >= every {
                        let mut answer = frames[0][..ANSWER_SIZE].to_vec();
                        answer[1..17].copy_from_slice(&own);
                        listener.send(peer, answer).expect("the window bounds what is queued");
                    }
                    count %= every;
                }
            }
        });
        Self { endpoint, server, sender, stop, answered, bell, echo: Some(echo) }
    }

    fn run(&mut self, message: &[u8], messages: usize, pattern: Pattern) {
        self.answered.store(pattern.answered, Ordering::Relaxed);
        let (mut sent, mut heard) = (0, 0);
        while heard < messages {
            while sent < messages && sent - heard < pattern.window {
                self.endpoint.send(self.server, message.to_vec()).expect("the window bounds what is queued");
                sent += 1;
            }
            self.endpoint.wait(None);
            let answers = self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |_, _, _| {});
            heard += answers * pattern.answered;
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

fn table(raw: &RawPair, ours: &mut OurPair) {
    println!("| pattern | size | raw libzmq | our endpoint | speed, raw = 1 | spread |");
    println!("|---|---|---|---|---|---|");
    for pattern in PATTERNS {
        for size in SIZES {
            let pattern = pattern(size);
            let message = a_message(size, ours.sender);
            let messages = pattern.messages(size);
            let pair = Pair::measure(|| raw.run(&message, messages, pattern), || ours.run(&message, messages, pattern));
            let each = |total: Duration| total.as_secs_f64() * 1e6 / messages as f64;
            println!(
                "| {} | {size} | {:.1} us | {:.1} us | {:.2} | {:.2} |",
                pattern.name,
                each(pair.baseline),
                each(pair.candidate),
                pair.speed_ratio(),
                pair.spread
            );
        }
    }
}

/// `iterations` messages, rounded up to what is answered together, timed as criterion wants it.
fn timed(iterations: u64, pattern: Pattern, run: impl FnOnce(usize)) -> Duration {
    let messages = (iterations as usize).next_multiple_of(pattern.answered);
    let start = Instant::now();
    run(messages);
    start.elapsed().mul_f64(iterations as f64 / messages as f64)
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let raw = RawPair::new();
    let mut ours = OurPair::new(dir.path());
    table(&raw, &mut ours);
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for pattern in PATTERNS {
        let mut group = criterion.benchmark_group(pattern(SIZES[0]).name);
        for size in SIZES {
            let pattern = pattern(size);
            let message = a_message(size, ours.sender);
            group.throughput(Throughput::Bytes(message.len() as u64));
            group.bench_with_input(BenchmarkId::new("raw libzmq", size), &message, |b, message| {
                b.iter_custom(|iterations| timed(iterations, pattern, |count| raw.run(message, count, pattern)))
            });
            group.bench_with_input(BenchmarkId::new("our endpoint", size), &message, |b, message| {
                b.iter_custom(|iterations| timed(iterations, pattern, |count| ours.run(message, count, pattern)))
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
