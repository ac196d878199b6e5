//! Runs a master: moves events into the core and actions out.

mod data_dir;
mod disk;
mod mark;
mod snapshot;

use std::io;
use std::path::PathBuf;

use node::{
    Bind, Certificate, CertificateError, Clock, Endpoint, EndpointConfig, EndpointError, IdentityError, PeerClass,
    SendError, signal,
};
use wire::{ClientKey, Duration, Instant, PeerId, Role};

use crate::config::{Config, CoreConfig, Limits};
use crate::core::{Action, Core, Decision, Event, RecoverError};

use data_dir::DataDir;
pub use data_dir::DataDirError;
pub use disk::DiskError;
use disk::{Disk, Done};

const EVENTS_PER_TURN_MAX: usize = 512;
/// How long the last answers may take to leave when the process ends.
const LINGER: Duration = Duration::from_millis(200);

/// Why a master does not run.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("receipt key {}: {source}", path.display())]
    ReceiptKey { path: PathBuf, source: io::Error },
    #[error(
        "{}: {source}; restore the directory from a copy: a master that forgot what it acknowledged must not go on",
        dir.display()
    )]
    Recover { dir: PathBuf, source: RecoverError },
}

/// Runs until SIGTERM or SIGINT. When the master leads, one line on standard output says where: `ready: CONTROL`.
pub fn run(config: &Config) -> Result<(), ShellError> {
    let dir = DataDir::open(&config.dir, config.node, config.init)?;
    let certificate = Certificate::load(&config.certificate)?;
    let receipt_key = content::load_receipt_key(&config.receipt_key)
        .map_err(|source| ShellError::ReceiptKey { path: config.receipt_key.clone(), source })?;

    let public_key = certificate.public;
    let endpoint = Endpoint::open(EndpointConfig {
        binds: vec![Bind { address: config.bind.clone(), class: PeerClass::Control }],
        certificates_dir: Some(config.certificates_dir.clone()),
        ..EndpointConfig::new(dir.identity.node, dir.identity.boot, certificate)
    })?;
    let stop = signal::Stop::install(&endpoint.bell());
    let control = config.endpoint.clone().unwrap_or_else(|| endpoint.bound()[0].clone());

    let (disk, recovered) = Disk::open(&config.dir, config.free_bytes_min, &endpoint.bell())?;
    // Only a directory that has its log counts as that of a member.
    let members = dir.members()?;
    let (entries, snapshot_bytes) = (recovered.entries.len(), recovered.snapshot.as_ref().map_or(0, Vec::len));
    tracing::info!(node = %dir.identity.node, entries, snapshot_bytes, dir = %config.dir.display(), "master starts");

    let core_config = CoreConfig {
        node: dir.identity.node,
        boot: dir.identity.boot,
        members,
        seed: dir.identity.boot.0,
        name: config.name.clone(),
        endpoint: control.clone(),
        public_key,
        pid: std::process::id(),
        receipt_key,
        timings: config.timings.clone(),
        limits: Limits::default(),
    };
    let clock = Clock::new();
    let now = clock.now();
    let core = Core::new(core_config, recovered, now)
        .map_err(|source| ShellError::Recover { dir: config.dir.clone(), source })?;
    // Sockets are in one process's hands only, and it stops taking messages when it is told to.
    let mut shell = Shell { endpoint, disk, core, clock, now, gone: Vec::new(), actions: Vec::new() };
    let mut is_told = false;
    while !stop.requested() {
        shell.turn();
        if !is_told && shell.core.is_ready() {
            println!("ready: {control}");
            is_told = true;
        }
    }
    tracing::info!("master ends");
    let Shell { endpoint, disk, .. } = shell;
    endpoint.close(LINGER);
    disk.close();
    Ok(())
}

struct Shell {
    endpoint: Endpoint,
    disk: Disk,
    core: Core,
    clock: Clock,
    /// When this turn began.
    now: Instant,
    /// Connections that were found gone while sending.
    gone: Vec<PeerId>,
    actions: Vec<Action>,
}

impl Shell {
    fn turn(&mut self) {
        self.endpoint.wait(self.core.next_deadline());
        self.now = self.clock.now();
        let mut messages = Vec::new();
        self.endpoint.drain(EVENTS_PER_TURN_MAX, &mut |from, identity, frames| {
            // A local socket has no key: whoever can open it is trusted as we are.
            let role: Option<Role> = (identity.key != ClientKey::default()).then_some(identity.role);
            messages.extend(frames.into_iter().next().map(|frame| (from, role, frame)));
        });
        for (from, role, frame) in messages {
            self.step(Event::Received { from, role, frame: &frame });
        }
        while let Some(done) = self.disk.next_done() {
            match done {
                Done::Persisted(ticket) => self.step(Event::Persisted { ticket }),
                Done::SnapshotSaved(ticket) => self.step(Event::SnapshotSaved { ticket }),
                Done::Full => self.step(Event::DiskFull),
                Done::Low(is_low) => self.step(Event::DiskLow { is_low }),
            }
        }
        self.step(Event::Tick);
        while let Some(peer) = self.gone.pop() {
            self.step(Event::PeerGone { peer });
        }
        self.disk.push();
    }

    fn step(&mut self, event: Event<'_>) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.step(event, self.now, self.clock.wall(), &mut actions);
        for action in actions.drain(..) {
            self.perform(action);
        }
        self.actions = actions;
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { to, frame } => match self.endpoint.send(to, frame) {
                Ok(()) => {}
                Err(SendError::Unreachable) => self.gone.push(to),
                // Whoever still wants the answer asks again.
                Err(SendError::Full) => tracing::warn!(?to, "an answer was dropped: too much waits for this peer"),
            },
            Action::Persist(persist) => self.disk.persist(persist),
            Action::SaveSnapshot { ticket, index, bytes, .. } => self.disk.save_snapshot(ticket, index, bytes),
            Action::Compact { index } => self.disk.compact(index),
            Action::Decided(decision) => tell(&decision),
        }
    }
}

/// One line for each decision; refusals are somebody else's news.
fn tell(decision: &Decision) {
    match decision {
        Decision::Leading { .. }
        | Decision::JobAccepted { .. }
        | Decision::JobEnded { .. }
        | Decision::NodeRegistered { .. }
        | Decision::EpochGranted { .. }
        | Decision::LostRefused { .. } => tracing::info!("{decision}"),
        Decision::Refused { .. } | Decision::Snapshot { .. } => tracing::debug!("{decision}"),
    }
}
