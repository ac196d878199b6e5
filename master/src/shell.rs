//! Runs a master: moves events into the core and actions out.

mod data_dir;
mod disk;
mod mark;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use node::{
    Bind, Certificate, CertificateError, Clock, Endpoint, EndpointConfig, EndpointError, Frame, Identity,
    IdentityError, PeerClass, SendError, signal,
};
use wire::{ClientKey, Duration, Instant, NodeId, PeerId, Role};

use crate::config::{Config, CoreConfig, Limits};
use crate::core::{Action, Core, Decision, Event, RecoverError};

use data_dir::DataDir;
pub use data_dir::DataDirError;
pub use disk::DiskError;
use disk::{Disk, Done};

const EVENTS_PER_TURN_MAX: usize = 512;
/// How long the last answers may take to leave when the process ends.
const LINGER: Duration = Duration::from_millis(200);

/// How long another master may take to lead when this one ends.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(500);

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
        "{why}. Its directory {} contradicts its group: move it away, and bring this master back as a new one", dir.display()
    )]
    Halted { dir: PathBuf, why: String },
    #[error(
        "{}: {source}; restore the directory from a copy: a master that forgot what it acknowledged must not go on",
        dir.display()
    )]
    Recover { dir: PathBuf, source: RecoverError },
}

/// Runs until SIGTERM or SIGINT. When the master leads or knows who does, one line on standard output says where: `ready: CONTROL`.
pub fn run(config: &Config) -> Result<(), ShellError> {
    let dir = DataDir::open(&config.dir, config.node, config.init, config.masters.is_empty())?;
    let certificate = Certificate::load(&config.certificate)?;
    let receipt_key = content::load_receipt_key(&config.receipt_key)
        .map_err(|source| ShellError::ReceiptKey { path: config.receipt_key.clone(), source })?;

    let public_key = certificate.public;
    let mut binds = vec![Bind { address: config.bind.clone(), class: PeerClass::Control }];
    binds.extend(config.raft_bind.clone().map(|address| Bind { address, class: PeerClass::Raft }));
    let mut endpoint = Endpoint::open(EndpointConfig {
        binds,
        certificates_dir: Some(config.certificates_dir.clone()),
        ..EndpointConfig::new(dir.identity.node, dir.identity.boot, certificate)
    })?;
    let stop = signal::Stop::install(&endpoint.bell());
    let control = config.endpoint.clone().unwrap_or_else(|| endpoint.bound()[0].clone());

    let mut masters = BTreeMap::new();
    for other in &config.masters {
        let peer = endpoint.connect(&other.endpoint, Some(other.key), Role::Master, PeerClass::Raft)?;
        masters.insert(other.node, peer);
    }
    let (disk, recovered) = Disk::open(&config.dir, config.free_bytes_min, &endpoint.bell())?;
    // Only a directory that has its log counts as that of a member.
    let members = dir.members(&masters.keys().copied().collect::<Vec<_>>())?;
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
    let mut shell = Shell {
        endpoint,
        disk,
        core,
        clock,
        now,
        gone: Vec::new(),
        masters,
        unreachable: BTreeSet::new(),
        halted: None,
        actions: Vec::new(),
    };
    let mut is_told = false;
    while !stop.requested() {
        shell.turn();
        if let Some(why) = shell.halted.take() {
            return Err(ShellError::Halted { dir: config.dir.clone(), why });
        }
        if !is_told && (shell.core.is_ready() || shell.core.follows()) {
            println!("ready: {control}");
            is_told = true;
        }
    }
    tracing::info!("master ends");
    shell.hand_over();
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
    /// The other masters, as we connect to them.
    masters: BTreeMap<NodeId, PeerId>,
    /// Those whom something did not reach.
    unreachable: BTreeSet<NodeId>,
    /// Why this master must end.
    halted: Option<String>,
    actions: Vec<Action>,
}

impl Shell {
    fn turn(&mut self) {
        self.endpoint.wait(self.core.next_deadline());
        self.now = self.clock.now();
        let mut messages = Vec::new();
        self.endpoint.drain(EVENTS_PER_TURN_MAX, &mut |from, identity, frames| {
            messages.push((from, *identity, frames));
        });
        for (from, identity, frames) in messages {
            self.on_frames(from, &identity, &frames);
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
        while let Some(node) = self.unreachable.pop_first() {
            self.step(Event::MasterUnreachable { node });
        }
        self.disk.push();
    }

    /// Has another master lead before this one goes, if there is one: nobody then waits for an election.
    fn hand_over(&mut self) {
        let until = self.clock.now() + HAND_OVER_TIMEOUT;
        self.step(Event::Stop);
        while !self.masters.is_empty() && self.core.is_ready() && self.clock.now() < until {
            self.turn();
        }
    }

    fn on_frames(&mut self, from: PeerId, identity: &Identity, frames: &[Frame]) {
        let Some(frame) = frames.first() else { return };
        match identity.class {
            PeerClass::Raft => {
                // Admission has compared the header's node with the one that the key is bound to.
                let Some(from) = identity.node.filter(|_| identity.role == Role::Master) else { return };
                let payload = frames.get(1).map_or(&[][..], |payload| payload);
                self.step(Event::FromMaster { from, frame, payload });
            }
            PeerClass::Control | PeerClass::Bulk => {
                // A local socket has no key: whoever can open it is trusted as we are.
                let role: Option<Role> = (identity.key != ClientKey::default()).then_some(identity.role);
                self.step(Event::Received { from, role, frame });
            }
        }
    }

    fn send_to_master(&mut self, to: NodeId, frame: Vec<u8>, payload: Vec<u8>) {
        let Some(peer) = self.masters.get(&to) else { return };
        let mut frames = vec![Frame::from(frame)];
        if !payload.is_empty() {
            frames.push(payload.into());
        }
        if self.endpoint.send(*peer, frames).is_err() {
            self.unreachable.insert(to);
        }
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
            Action::ToMaster { to, frame, payload } => self.send_to_master(to, frame, payload),
            Action::Halt { why } => self.halted = Some(why),
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
        | Decision::Resigned { .. }
        | Decision::SteppingDown
        | Decision::Restored { .. }
        | Decision::LostRefused { .. } => tracing::info!("{decision}"),
        Decision::SnapshotRefused { .. } | Decision::StrangerIgnored { .. } => tracing::warn!("{decision}"),
        Decision::Refused { .. } | Decision::Snapshot { .. } => tracing::debug!("{decision}"),
    }
}
