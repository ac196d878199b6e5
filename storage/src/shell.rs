//! Runs a storage node: moves events into the core and actions out.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use content::{Store, StoreError};
use node::{
    Bind, Certificate, CertificateError, Clock, Endpoint, EndpointConfig, EndpointError, Frame, Frames, IdentityError,
    NodeIdentity, PeerClass, SettingsError, signal,
};
use wire::{Duration, Instant, Message, PeerId, Role};

use crate::config::Config;
use crate::core::{Action, CoreConfig, Event, Limits, Order, Payload, Storage, Ticket};

mod disk;
use disk::Disk;

const EVENTS_PER_TURN_MAX: usize = 256;
/// How long the last answers may take to leave when the process ends.
const LINGER: Duration = Duration::from_millis(200);

/// Why a storage node does not run.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("receipt key {}: {source}", path.display())]
    ReceiptKey { path: PathBuf, source: io::Error },
    #[error("cannot start the disk threads: {0}")]
    Thread(io::Error),
}

/// Runs until SIGTERM or SIGINT. When peers can connect, one line on standard output says where: `ready: CONTROL BULK`.
pub fn run(config: &Config) -> Result<(), ShellError> {
    let identity = NodeIdentity::open(&config.dir, config.node)?;
    let store = Arc::new(Store::open(&config.dir, identity.node)?);
    let certificate = Certificate::load(&config.certificate)?;
    let receipt_key = content::load_receipt_key(&config.receipt_key)
        .map_err(|source| ShellError::ReceiptKey { path: config.receipt_key.clone(), source })?;

    let public_key = certificate.public;
    let mut binds = vec![Bind { address: config.bind.clone(), class: PeerClass::Control }];
    binds.extend(config.bulk_bind.clone().map(|address| Bind { address, class: PeerClass::Bulk }));
    let mut endpoint = Endpoint::open(EndpointConfig {
        binds,
        certificates_dir: Some(config.certificates_dir.clone()),
        ..EndpointConfig::new(identity.node, identity.boot, certificate)
    })?;
    let stop = signal::Stop::install(&endpoint.bell());
    let mut masters = Vec::new();
    for master in &config.masters {
        let peer = endpoint.connect(&master.endpoint, Some(master.key), Role::Master, PeerClass::Control)?;
        masters.push((peer, master.endpoint.clone()));
    }

    let bound = endpoint.bound();
    let control = config.endpoint.clone().unwrap_or_else(|| bound[0].clone());
    let bulk = config.bulk_endpoint.clone().or_else(|| bound.get(1).cloned()).unwrap_or_default();
    let disk = Disk::start(&store, &endpoint.bell()).map_err(ShellError::Thread)?;
    tracing::info!(node = %identity.node, files = store.list().len(), dir = %config.dir.display(), "storage node is up");
    println!("ready: {control} {bulk}");

    let core_config = CoreConfig {
        node: identity.node,
        boot: identity.boot,
        name: config.name.clone(),
        endpoint: control,
        bulk_endpoint: bulk,
        public_key,
        pid: std::process::id(),
        cpus_milli: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u32 * 1_000),
        memory: memory(),
        receipt_key,
        masters,
        limits: Limits::default(),
    };
    let clock = Clock::new();
    let now = clock.now();
    let core = Storage::new(core_config, now);
    let mut shell = Shell { endpoint, disk, core, clock, now, payloads: 0, actions: Vec::new() };
    while !stop.requested() {
        shell.turn();
    }
    tracing::info!("storage node ends");
    shell.endpoint.close(LINGER);
    Ok(())
}

struct Shell {
    endpoint: Endpoint,
    disk: Disk,
    core: Storage,
    clock: Clock,
    /// When this turn began.
    now: Instant,
    /// Counts the payloads that came, and numbers them.
    payloads: u64,
    actions: Vec<Action>,
}

/// The bytes that go with one event: a payload that came, or the content that the disk read. What no action takes up is
/// dropped with it.
#[derive(Default)]
struct Cargo {
    payload: Option<(u64, Frame)>,
    content: Option<(Ticket, Vec<Frame>)>,
}

impl Shell {
    fn turn(&mut self) {
        self.endpoint.wait(self.core.next_deadline());
        self.now = self.clock.now();
        let mut messages = Vec::new();
        self.endpoint.drain(EVENTS_PER_TURN_MAX, &mut |from, _, frames| messages.push((from, frames)));
        for (from, frames) in messages {
            self.on_frames(from, frames);
        }
        while let Some(done) = self.disk.next_done() {
            let cargo = Cargo { content: Some((done.ticket, done.content)), payload: None };
            self.step(Event::Performed { ticket: done.ticket, outcome: done.outcome }, cargo);
        }
        self.step(Event::Tick, Cargo::default());
    }

    fn on_frames(&mut self, from: PeerId, frames: Vec<Frame>) {
        let mut frames = frames.into_iter();
        let Some(first) = frames.next() else { return };
        match Message::decode(&first) {
            Ok(message) => {
                self.payloads += 1;
                let number = self.payloads;
                let bytes = frames.next();
                let payload = bytes.as_ref().map(|bytes| Payload { number, length: bytes.len() as u64 });
                let cargo = Cargo { payload: bytes.map(|bytes| (number, bytes)), content: None };
                self.step(Event::Received { from, message, payload }, cargo);
            }
            Err(error) => self.step(Event::Malformed { from, error }, Cargo::default()),
        }
    }

    fn step(&mut self, event: Event<'_>, mut cargo: Cargo) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.step(event, self.now, &mut actions);
        for action in actions.drain(..) {
            self.perform(action, &mut cargo);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action, cargo: &mut Cargo) {
        match action {
            Action::Send { to, frame } => self.send(to, frame.into()),
            Action::SendContent { to, frame, ticket } => {
                let (read, content) = cargo.content.take().expect("content is sent when its read is done");
                assert_eq!(read, ticket);
                let mut frames = vec![Frame::from(frame)];
                frames.extend(content);
                self.send(to, frames.into());
            }
            Action::Order { ticket, order } => {
                let payload = match &order {
                    Order::Write { payload, .. } => {
                        let (number, bytes) = cargo.payload.take().expect("a payload is written when it comes");
                        assert_eq!(number, payload.number);
                        Some(bytes)
                    }
                    Order::Begin { .. }
                    | Order::Commit { .. }
                    | Order::Abort { .. }
                    | Order::Read { .. }
                    | Order::Have { .. }
                    | Order::Check { .. } => None,
                };
                self.disk.order(ticket, order, payload);
            }
        }
    }

    fn send(&mut self, to: PeerId, frames: Frames) {
        // Whoever still wants the answer asks again.
        if let Err(error) = self.endpoint.send(to, frames) {
            tracing::debug!(?to, %error, "an answer was not sent");
        }
    }
}

/// Bytes of this machine's memory; 0 = not known.
fn memory() -> u64 {
    // SAFETY: sysconf takes and gives plain numbers.
    let (pages, page_size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(page_size).unwrap_or(0)
}
