//! Runs a worker: moves events into the core and actions out.
//!
//! One thread owns the core, the endpoint and the slots; it never waits for a disk or for storage. Beside it, stagers
//! bring inputs, an uploader stores outputs, and a sweeper removes what is left over.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{io, thread};

use content::{Store, StoreError, SupplySettings};
use node::channel::{self, Inbox, Orders};
use node::{
    Bind, Certificate, CertificateError, Clock, Endpoint, EndpointConfig, EndpointError, IdentityError, NodeIdentity,
    PeerClass, SettingsError, signal,
};
use wire::record::InputCounts;
use wire::{Duration, Instant, JobId, PeerId, Role};

use crate::config::Config;
use crate::core::{Action, Event, Order, RunEnd, Server, Settings, SlotIndex, Take, Usage, Worker};
use crate::mount::{Mount, Parking};
use crate::slot::{Ended, Groups, Report, SlotEvent};
use crate::supply::Supplier;

mod bench;
mod cache;
mod directory;
mod disk;
mod glob;
mod inputs;
mod outbox;
mod program;
mod stage;
mod storage;
mod sweep;
mod tree;
mod upload;

use bench::{Benches, Current};
use cache::Cache;
use directory::Directory;
use disk::{DiskWatch, mebibytes};
use inputs::{Mounted, mount};
use outbox::Kept;
use program::{RunOf, Surroundings};
use stage::{Stage, Staged};
use storage::{Ourselves, StorageList};
use sweep::Sweeper;
use upload::{OwnDisk, Uploaded, Uploader};

const EVENTS_PER_TURN_MAX: usize = 256;
/// Reports of helpers that wait for the loop.
const REPORTS_MAX: usize = 1024;
/// How long the last words may take to leave when the process ends.
const LINGER: Duration = Duration::from_millis(200);
/// Unconfirmed small outputs that are kept in memory, in bytes; more stay on disk.
const OUTBOX_MEMORY_MAX: usize = 64 << 20;

/// How often the start of a program is tried that the machine has no room for; with doubled pauses that is 3 s.
const TRIES_MAX: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(100);
/// How often a start waits such a pause for the mount, which is made anew each second; together 30 s.
const MOUNT_TRIES_MAX: u32 = 300;
/// Between two tries to make a slot ready: somebody has to make room on the disk first.
const READY_PAUSE: Duration = Duration::from_secs(1);

/// Why a worker does not run.
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
    #[error("data directory {dir}: {source}")]
    Directory { dir: String, source: io::Error },
    #[error("cannot start the threads: {0}")]
    Thread(io::Error),
    #[error("slots: {0}")]
    Slot(io::Error),
}

/// Runs until SIGTERM or SIGINT; then nothing of what it started is left. When it is up, one line on standard output
/// says so: `ready: ENDPOINT`, without the endpoint if it binds none.
pub fn run(config: &Config) -> Result<(), ShellError> {
    let identity = NodeIdentity::open(&config.dir, config.node)?;
    let in_directory = |source| ShellError::Directory { dir: config.dir.display().to_string(), source };
    let mut directory = Directory::open(&config.dir).map_err(in_directory)?;
    let cache = Arc::new(Cache::new(Store::open(&directory.cache(), identity.node)?, config.cache_size_max)?);
    let certificate = Certificate::load(&config.certificate)?;
    let binds = config.bind.iter().map(|address| Bind { address: address.clone(), class: PeerClass::Control });
    let endpoint = Endpoint::open(EndpointConfig {
        binds: binds.collect(),
        certificates_dir: config.bind.as_ref().and(config.certificates_dir.clone()),
        ..EndpointConfig::new(identity.node, identity.boot, certificate.clone())
    })?;
    let bell = endpoint.bell();
    let stop = signal::Stop::install(&bell);
    let clock = Clock::new();
    let control = config.endpoint.clone().or_else(|| endpoint.bound().first().cloned()).unwrap_or_default();
    let settings = settings(config, &identity, &certificate, control.clone());

    let gate = Arc::new(Mutex::new(()));
    let groups = match config.groups.then(|| Groups::open(identity.node)) {
        Some(Ok(groups)) => groups,
        Some(Err(error)) => {
            tracing::warn!(%error, "no control groups can be made here: programs run without limits of memory");
            Groups::none()
        }
        None => Groups::none(),
    };
    let storage = StorageList::of_settings(&config.storage);
    let ourselves = Ourselves { node: identity.node, boot: identity.boot, certificate };
    let parking = Arc::new(Parking::default());
    let supplier = Supplier::start(
        identity.node,
        identity.boot,
        ourselves.certificate.clone(),
        cache.clone(),
        parking.clone(),
        SupplySettings::default(),
    )?;
    supplier.holders(storage.addresses());
    let open_mount = || mount(config, &identity, &cache, &supplier, parking, &gate);
    let mount = config.fuse.then(open_mount).flatten();
    if mount.is_some() {
        // Not where inputs are written out: a link into a store would let a program write to it.
        cache.store.borrow_from(&config.storage_dirs);
    }
    directory.mount = mount.as_ref().map(|mount| mount.path().to_owned());
    // Goes after the slots, so that no program is cut off.
    let mounted = Mounted(mount.clone());
    let surroundings = Arc::new(Surroundings::new(identity.node));
    let (staged_tx, staged) = channel::to_owner(REPORTS_MAX, &bell);
    let (uploaded_tx, uploaded) = channel::to_owner(REPORTS_MAX, &bell);
    let stage = Stage {
        directory: directory.clone(),
        cache: cache.clone(),
        supplier: supplier.clone(),
        mount: mount.clone(),
        storage: storage.clone(),
        may_learn_storage: !config.masters.is_empty(),
        timeout: config.stage_timeout,
        gate: gate.clone(),
    };
    let stager = stage.start(&staged_tx).map_err(ShellError::Thread)?;
    let own_disk = OwnDisk { root: config.dir.clone(), free_bytes_min: config.free_bytes_min };
    let uploader = Uploader::start(
        ourselves,
        storage.clone(),
        surroundings.clone(),
        config.output_size_max,
        own_disk,
        uploaded_tx,
    )
    .map_err(ShellError::Thread)?;
    let mut sweeper = Sweeper::start(directory.trash()).map_err(ShellError::Thread)?;
    let mut benches = Benches::new(gate, groups).map_err(ShellError::Slot)?;
    for slot in 0..settings.slots {
        benches.open(slot, &directory);
        benches.make_ready(slot, &mut sweeper).map_err(ShellError::Slot)?;
    }

    tracing::info!(node = %identity.node, slots = settings.slots, dir = %config.dir.display(), "worker is up");
    println!("ready: {control}");
    let now = clock.now();
    let fixed = settings.masters.iter().chain(&settings.load_balancers).cloned().collect();
    let mut shell = Shell {
        core: Worker::new(settings, now),
        endpoint,
        clock,
        now,
        fixed,
        links: BTreeMap::new(),
        directory,
        mount,
        supplier,
        told_counts: InputCounts::default(),
        cache: cache.clone(),
        disk: DiskWatch::new(config.dir.clone(), config.free_bytes_min),
        benches,
        sweeper,
        surroundings,
        storage,
        orders: BTreeMap::new(),
        stager: Backlog::new(stager),
        staged,
        outbox: BTreeMap::new(),
        outbox_memory: 0,
        uploader: Backlog::new(uploader),
        uploaded,
        pending: VecDeque::new(),
        late: BTreeMap::new(),
        actions: Vec::new(),
    };
    while !stop.requested() {
        shell.turn()?;
    }
    tracing::info!("worker ends");
    let Shell { endpoint, benches, .. } = shell;
    // Ends every program, and waits for that.
    drop(benches);
    drop(mounted);
    endpoint.close(LINGER);
    Ok(())
}

fn settings(config: &Config, identity: &NodeIdentity, certificate: &Certificate, endpoint: String) -> Settings {
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    let servers = |servers: &[node::settings::Server]| {
        servers.iter().map(|server| Server { endpoint: server.endpoint.clone(), key: Some(server.key) }).collect()
    };
    Settings {
        name: config.name.clone(),
        public_key: certificate.public,
        endpoint,
        pid: std::process::id(),
        memory: config.memory.unwrap_or_else(memory),
        masters: servers(&config.masters),
        load_balancers: servers(&config.loadbalancers),
        kill_grace: config.kill_grace,
        ..Settings::new(identity.node, identity.boot, config.slots.unwrap_or(cpus).max(1))
    }
}

/// Orders for a helper, with those that its channel has no room for.
struct Backlog<T> {
    orders: Orders<T>,
    /// Bounded by what the core has under way: jobs, or unconfirmed runs.
    waiting: VecDeque<T>,
}

impl<T> Backlog<T> {
    fn new(orders: Orders<T>) -> Self {
        Self { orders, waiting: VecDeque::new() }
    }

    fn push(&mut self, order: T) {
        self.waiting.push_back(order);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(order) = self.waiting.pop_front() {
            if let Err(full) = self.orders.try_send(order) {
                return self.waiting.push_front(full.into_inner());
            }
        }
    }
}

/// A connection that the core asked for.
struct Link {
    role: Role,
    endpoint: String,
    is_connected: bool,
}

/// Something that an action led to at once.
enum Pending {
    Connecting { peer: PeerId, role: Role, endpoint: String },
    Missed { run: u64 },
    Exited { run: u64, end: RunEnd, usage: Usage },
    Collected { run: u64, is_kept: bool },
}

/// What a slot is to do as soon as it can.
enum Late {
    Start,
    /// The run's directories cannot be cleaned yet. Until then its slot stays taken.
    Clean {
        run: u64,
        is_kept: bool,
    },
}

struct Shell {
    core: Worker,
    endpoint: Endpoint,
    clock: Clock,
    /// When this turn began.
    now: Instant,
    /// Servers that the settings name.
    fixed: Vec<Server>,
    links: BTreeMap<PeerId, Link>,
    directory: Directory,
    mount: Option<Arc<Mount>>,
    supplier: Supplier,
    /// The counts that the core knows.
    told_counts: InputCounts,
    cache: Arc<Cache>,
    disk: DiskWatch,
    benches: Benches,
    sweeper: Sweeper,
    surroundings: Arc<Surroundings>,
    storage: StorageList,
    /// Bodies of the jobs that the core knows.
    orders: BTreeMap<JobId, Arc<Order>>,
    stager: Backlog<Arc<Order>>,
    staged: Inbox<Staged>,
    outbox: BTreeMap<u64, Arc<Kept>>,
    /// Bytes in memory of the outbox.
    outbox_memory: usize,
    uploader: Backlog<Arc<Kept>>,
    uploaded: Inbox<Uploaded>,
    pending: VecDeque<Pending>,
    /// Slots that the machine has no room for now, and when each tries again.
    late: BTreeMap<SlotIndex, (Instant, Late)>,
    actions: Vec<Action>,
}

impl Shell {
    fn turn(&mut self) -> Result<(), ShellError> {
        let late = self.late.values().map(|(due, _)| *due);
        let look = (self.benches.is_busy() || self.disk.is_low()).then_some(self.disk.due);
        let deadline = self.core.next_deadline().into_iter().chain(late).chain(look).min();
        self.endpoint.wait_with(deadline, Some(self.benches.as_fd()));
        self.now = self.clock.now();
        if self.disk.due <= self.now {
            self.look_at_disk()?;
        }
        // First what ended: it makes room for what has come.
        let ended = self.benches.hear().map_err(ShellError::Slot)?;
        self.look_at_inputs(&ended)?;
        for (slot, event) in ended {
            self.on_slot_event(slot, event)?;
        }
        self.catch_up()?;
        let mut messages = Vec::new();
        self.endpoint.drain(EVENTS_PER_TURN_MAX, &mut |from, _, frames| messages.push((from, frames)));
        self.note_connections()?;
        for (from, frames) in &messages {
            if let Some(frame) = frames.first() {
                self.step(Event::Received { from: *from, frame })?;
            }
        }
        while let Ok(staged) = self.staged.try_recv() {
            self.on_staged(staged)?;
        }
        while let Ok(Uploaded { file, parcels }) = self.uploaded.try_recv() {
            self.step(Event::Uploaded { file: file.as_ref(), parcels: &parcels })?;
        }
        self.stager.flush();
        self.uploader.flush();
        let counts = self.input_counts();
        if counts != self.told_counts {
            self.told_counts = counts;
            self.step(Event::InputsCounted { counts })?;
        }
        self.step(Event::Tick)
    }

    /// Tells the core of connections that have come to stand.
    fn note_connections(&mut self) -> Result<(), ShellError> {
        let mut connected = Vec::new();
        for (peer, link) in &mut self.links {
            let was_connected = link.is_connected;
            link.is_connected = self.endpoint.is_connected(*peer);
            if link.is_connected && !was_connected {
                tracing::info!(role = %link.role, endpoint = link.endpoint, "connected");
                connected.push((*peer, link.role, link.endpoint.clone()));
            }
        }
        for (peer, role, endpoint) in connected {
            self.step(Event::Connected { peer, role, endpoint: &endpoint })?;
        }
        Ok(())
    }

    fn on_staged(&mut self, staged: Staged) -> Result<(), ShellError> {
        let job = staged.job;
        if !self.orders.contains_key(&job) {
            // It was forgotten meanwhile, before its last files came.
            self.cache.release(job);
        }
        match staged.result {
            Ok(()) => self.step(Event::Staged { job }),
            Err(why) => {
                tracing::warn!(%job, why, "inputs cannot be had");
                self.step(Event::StageFailed { job })
            }
        }
    }

    fn on_slot_event(&mut self, slot: SlotIndex, event: SlotEvent) -> Result<(), ShellError> {
        match event {
            SlotEvent::Reported(Report::Ready) => Ok(()),
            SlotEvent::Reported(Report::Started { run, pid }) => {
                tracing::debug!(run, pid, slot, "started");
                Ok(())
            }
            SlotEvent::Reported(Report::Exited {
                run,
                ended,
                cpu_us,
                rss_max_bytes,
                duration_us,
                memory_peak_bytes,
            }) => {
                let end = match ended {
                    Ended::Code(code) => RunEnd::Code(code as u8),
                    Ended::Signal(signal) => RunEnd::Signal(signal as u8),
                    Ended::OutOfMemory => {
                        self.note_out_of_memory(slot, run, memory_peak_bytes);
                        RunEnd::OutOfMemory
                    }
                };
                if end != RunEnd::Code(0) {
                    // It may have failed because it had filled the disk.
                    self.look_at_disk()?;
                }
                let usage = Usage { duration_us, cpu_us, max_rss_kib: rss_max_bytes / 1024 };
                self.exited(run, end, usage)
            }
            SlotEvent::Reported(Report::Failed { run, exit_code, errno, message }) => {
                self.not_started(slot, run, exit_code as u8, errno, message)
            }
            SlotEvent::Died { unfinished, status, is_stillborn: true, is_out_of_memory: _ } => {
                tracing::error!(slot, %status, "a slot process died before it could run anything");
                if !unfinished.is_empty() {
                    self.start_later(slot, &io::Error::other("its process died before it could run anything"));
                }
                Ok(())
            }
            SlotEvent::Died { unfinished, status, is_stillborn: false, is_out_of_memory } => {
                tracing::error!(slot, %status, "a slot process died; what it ran was killed");
                for run in unfinished {
                    let end = if is_out_of_memory {
                        self.note_out_of_memory(slot, run, 0);
                        RunEnd::OutOfMemory
                    } else {
                        RunEnd::Signal(libc::SIGKILL as u8)
                    };
                    self.exited(run, end, Usage::default())?;
                }
                Ok(())
            }
        }
    }

    /// Has the run's standard error say what its end was for; `used` = the most bytes it had, if that is known.
    fn note_out_of_memory(&mut self, slot: SlotIndex, run: u64, used: u64) {
        let current = self.benches.at(slot).current.as_mut().expect("a run that is reported is in its slot");
        let note = match (current.order.spec.memory, used) {
            (0, _) => "killed: the machine has no memory left (the job has no limit of its own)".to_owned(),
            (limit, 0) => format!("killed: out of memory (limit: {limit} bytes)"),
            (limit, used) => format!("killed: out of memory: {used} bytes used (limit: {limit} bytes)"),
        };
        tracing::info!(slot, run, note, "out of memory");
        current.note = Some(note);
    }

    /// Looks how much room there is. Of a disk that is almost full the run goes that holds most, one at a time, and the next
    /// only when the room of the last is there.
    fn look_at_disk(&mut self) -> Result<(), ShellError> {
        let was_low = self.disk.is_low();
        self.disk.look(self.now);
        // What the cache has and no job needs goes first.
        while self.disk.is_low() && self.cache.remove_idle() {
            self.disk.look(self.now);
        }
        let is_low = self.disk.is_low();
        let (free, free_bytes_min) = (self.disk.free_bytes, self.disk.free_bytes_min);
        if is_low != was_low {
            if is_low {
                tracing::error!(free, free_bytes_min, "the disk is almost full: nothing starts until it has room");
            } else {
                tracing::info!(free, free_bytes_min, "the disk has room again");
            }
            self.step(Event::DiskLow { is_low })?;
        }
        if !is_low || self.sweeper.is_busy() {
            return Ok(());
        }
        let is_to_blame = |(_, held): &(SlotIndex, u64)| *held >= self.disk.blame_min();
        let Some((slot, held)) = self.benches.fullest().filter(is_to_blame) else { return Ok(()) };
        let current = self.benches.at(slot).current.as_mut().expect("the fullest slot is in use");
        let run = current.run;
        let [held, free, least] = [held, free, free_bytes_min].map(mebibytes);
        let why = format!(
            "this run filled the disk of its worker and was ended: it held {held}, {free} were free, and {least} have to \
             be. Only the beginnings of its standard output and error are kept"
        );
        tracing::error!(job = %current.order.job, chunk = current.chunk, slot, run, why);
        current.overfull = Some(why);
        self.step(Event::Overfull { run })
    }

    /// A program was not started: for a reason of its own, or because the machine has no room for a process now.
    fn not_started(
        &mut self,
        slot: SlotIndex,
        run: u64,
        exit_code: u8,
        errno: i32,
        message: String,
    ) -> Result<(), ShellError> {
        let current = self.benches.at(slot).current.as_mut().expect("a run that is reported is in its slot");
        let is_machines = matches!(errno, libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EBUSY);
        if is_machines && current.tries < TRIES_MAX {
            tracing::warn!(slot, run, message, "tried again soon");
            let pause = TRY_PAUSE * (1 << current.tries);
            current.tries += 1;
            current.not_started = Some(message);
            self.late.insert(slot, (self.now + pause, Late::Start));
            return Ok(());
        }
        current.not_started = Some(message);
        self.exited(run, RunEnd::NotStarted { exit_code }, Usage::default())
    }

    /// Has slots do what they could not do before.
    fn catch_up(&mut self) -> Result<(), ShellError> {
        let is_due = |(slot, (due, _)): (&SlotIndex, &(Instant, Late))| (*due <= self.now).then_some(*slot);
        let slots: Vec<SlotIndex> = self.late.iter().filter_map(is_due).collect();
        for slot in slots {
            match self.late.remove(&slot) {
                Some((_, Late::Start)) => self.try_start(slot),
                Some((_, Late::Clean { run, is_kept })) => self.clean(slot, run, is_kept),
                None => {}
            }
            self.settle()?;
        }
        Ok(())
    }

    fn exited(&mut self, run: u64, end: RunEnd, usage: Usage) -> Result<(), ShellError> {
        self.pending.push_back(Pending::Exited { run, end, usage });
        self.settle()
    }

    /// One event, with all that follows from it at once.
    fn step(&mut self, event: Event<'_>) -> Result<(), ShellError> {
        self.step_once(event)?;
        self.settle()
    }

    fn settle(&mut self) -> Result<(), ShellError> {
        while let Some(pending) = self.pending.pop_front() {
            match pending {
                Pending::Connecting { peer, role, endpoint } => {
                    self.step_once(Event::Connecting { peer, role, endpoint: &endpoint })?;
                }
                Pending::Missed { run } => self.step_once(Event::InputMissed { run })?,
                Pending::Exited { run, end, usage } => {
                    let at = self.clock.wall();
                    self.step_once(Event::Exited { run, end, usage, at })?;
                }
                Pending::Collected { run, is_kept } => self.step_once(Event::Collected { run, is_kept })?,
            }
        }
        Ok(())
    }

    fn step_once(&mut self, event: Event<'_>) -> Result<(), ShellError> {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.step(event, self.now, &mut actions);
        for action in actions.drain(..) {
            self.perform(action)?;
        }
        self.actions = actions;
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), ShellError> {
        match action {
            Action::Send { to, frame } => {
                // Whatever matters is said again until it is answered.
                if let Err(error) = self.endpoint.send(to, frame) {
                    tracing::debug!(?to, %error, "a message was not sent");
                }
            }
            Action::Connect { role, server } => self.connect(role, server)?,
            Action::Disconnect { peer } => {
                self.links.remove(&peer);
                self.endpoint.disconnect(peer);
            }
            Action::UseStorage { nodes } => {
                self.storage.replace(&nodes);
                self.supplier.holders(self.storage.addresses());
            }
            Action::Learn { order } => {
                tracing::info!(job = %order.job, number = order.number, "job");
                self.orders.insert(order.job, Arc::from(order));
            }
            Action::Stage { job } => self.stager.push(self.order(job)),
            Action::Forget { job } => {
                self.orders.remove(&job);
                if let Some(mount) = &self.mount {
                    mount.withdraw(job);
                }
                self.cache.release(job);
                self.discard(&self.directory.job(job));
            }
            Action::Start { slot, run, job, chunk, attempt } => self.start(slot, run, job, chunk, attempt),
            Action::Terminate { slot, run } => {
                self.end_late(slot, run, libc::SIGTERM);
                self.benches.at(slot).terminate(run);
            }
            Action::Kill { slot, run } => {
                self.end_late(slot, run, libc::SIGKILL);
                self.benches.at(slot).kill(run);
            }
            Action::Collect { slot, run, take } => self.collect(slot, run, take),
            Action::Upload { job: _, run } => {
                let kept = self.outbox.get(&run).expect("what is uploaded was put aside").clone();
                self.uploader.push(kept);
            }
            Action::Release { run } => {
                let kept = self.outbox.remove(&run).expect("what is released was put aside");
                self.outbox_memory -= kept.memory();
                self.discard(&kept.aside);
            }
        }
        Ok(())
    }

    fn connect(&mut self, role: Role, server: Server) -> Result<(), ShellError> {
        match self.endpoint.connect(&server.endpoint, server.key, role, PeerClass::Control) {
            Ok(peer) => {
                self.pending.push_back(Pending::Connecting { peer, role, endpoint: server.endpoint.clone() });
                self.links.insert(peer, Link { role, endpoint: server.endpoint, is_connected: false });
                Ok(())
            }
            Err(error) if self.fixed.contains(&server) => Err(error.into()),
            Err(error) => {
                tracing::error!(%role, endpoint = server.endpoint, %error, "the masters name a server that cannot be");
                Ok(())
            }
        }
    }

    fn order(&self, job: JobId) -> Arc<Order> {
        self.orders.get(&job).expect("the core speaks of jobs that it had us learn").clone()
    }

    fn start(&mut self, slot: SlotIndex, run: u64, job: JobId, chunk: u32, attempt: u32) {
        let order = self.order(job);
        let bench = self.benches.open(slot, &self.directory);
        let of = RunOf { order: &order, run, chunk, attempt };
        let foreign_directory =
            (!order.spec.cwd.is_empty()).then(|| self.surroundings.working_directory(of, &bench.path));
        bench.current = Some(Current {
            run,
            order,
            chunk,
            attempt,
            foreign_directory,
            not_started: None,
            note: None,
            tries: 0,
            overfull: None,
            mount: None,
            mount_tries: 0,
        });
        self.try_start(slot);
    }

    /// Starts what the slot has been given, or says that it cannot be started, or leaves it for later.
    fn try_start(&mut self, slot: SlotIndex) {
        if let Err(error) = self.benches.make_ready(slot, &mut self.sweeper) {
            return self.start_later(slot, &error);
        }
        let bench = self.benches.at(slot);
        let current = bench.current.as_mut().expect("a slot is given a run before it starts it");
        if let Some(mount) = self.mount.as_ref().filter(|_| !current.order.inputs.is_empty()) {
            current.mount = mount.standing();
            if current.mount.is_none() && current.mount_tries < MOUNT_TRIES_MAX {
                current.mount_tries += 1;
                self.late.insert(slot, (self.now + TRY_PAUSE, Late::Start));
                return;
            }
            if current.mount.is_none() {
                self.pending.push_back(Pending::Missed { run: current.run });
                let why = "its inputs are not mounted, and cannot be".to_owned();
                return self.give_up(slot, why, RunEnd::NotStarted { exit_code: 126 });
            }
        }
        current.not_started = None;
        let run = current.run;
        let of = RunOf { order: &current.order, run, chunk: current.chunk, attempt: current.attempt };
        let not_started = match self.surroundings.start(of, &self.directory, &bench.path) {
            Ok(start) => {
                let program = start.program.to_string_lossy().into_owned();
                match self.benches.start(slot, start) {
                    Ok(true) => return,
                    Ok(false) => format!("cannot run {program}: its arguments and environment are too long"),
                    Err(error) => format!("cannot run {program}: {error}"),
                }
            }
            Err(why) => format!("cannot run the program: {why}"),
        };
        self.give_up(slot, not_started, RunEnd::NotStarted { exit_code: 126 });
    }

    fn start_later(&mut self, slot: SlotIndex, error: &io::Error) {
        tracing::error!(slot, %error, "the slot cannot be used now");
        let current = self.benches.at(slot).current.as_mut().expect("a slot is given a run before it starts it");
        current.not_started = Some(format!("the slot cannot be used: {error}"));
        self.late.insert(slot, (self.now + READY_PAUSE, Late::Start));
    }

    /// Ends a run that waits for its start.
    fn end_late(&mut self, slot: SlotIndex, run: u64, signal: i32) {
        if let Some((_, Late::Start)) = self.late.get(&slot) {
            self.late.remove(&slot);
            tracing::info!(slot, run, "ended before it could be started");
            self.pending.push_back(Pending::Exited { run, end: RunEnd::Signal(signal as u8), usage: Usage::default() });
        }
    }

    fn give_up(&mut self, slot: SlotIndex, why: String, end: RunEnd) {
        let current = self.benches.at(slot).current.as_mut().expect("a slot is given a run before it starts it");
        current.not_started = Some(why);
        self.pending.push_back(Pending::Exited { run: current.run, end, usage: Usage::default() });
    }

    fn collect(&mut self, slot: SlotIndex, run: u64, take: Take) {
        let may_read = self.outbox_memory < OUTBOX_MEMORY_MAX;
        let kept = self.benches.at(slot).collect(take, may_read, &self.directory);
        let is_kept = kept.is_some();
        if let Some(kept) = kept {
            self.outbox_memory += kept.memory();
            self.outbox.insert(run, Arc::new(kept));
        }
        self.clean(slot, run, is_kept);
    }

    /// Cleans the slot and says so, or leaves it for later: nothing starts in it before.
    fn clean(&mut self, slot: SlotIndex, run: u64, is_kept: bool) {
        match self.benches.at(slot).clean(&mut self.sweeper) {
            Ok(()) => self.pending.push_back(Pending::Collected { run, is_kept }),
            Err(error) => {
                tracing::error!(slot, run, %error, "the slot stays closed: it cannot be cleaned");
                self.late.insert(slot, (self.now + READY_PAUSE, Late::Clean { run, is_kept }));
            }
        }
    }

    fn discard(&mut self, path: &Path) {
        if let Err(error) = self.sweeper.discard(path) {
            tracing::warn!(path = %path.display(), %error, "left over until the next start");
        }
    }
}

/// Bytes of this machine's memory.
fn memory() -> u64 {
    // SAFETY: sysconf takes and gives plain numbers.
    let (pages, page_size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(page_size).unwrap_or(0)
}
