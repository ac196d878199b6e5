//! What a worker decides: which chunks it takes, when each starts, how it ended, and whom to tell.
//!
//! A worker is like a workshop with a few benches and a tray of orders. Load balancers put orders on the tray, as long
//! as it has room; whoever finishes at a bench takes the next one. What is finished lies on the shelf until the masters
//! have written it in their book; only then is it thrown away. The tray may be taken back, the shelf may not: whatever
//! a worker ran, it can show until somebody has confirmed it.
//!
//! No sockets, clocks, threads, files or chance here: programs, files and frames are handles and actions.

#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

mod assignment;
mod credit;
mod invariant;
mod job;
mod life;
mod queue;
mod registration;
mod result;
mod slots;

use wire::record::{Bundle, InputCounts, NodeRecord, StoredFile};
use wire::{
    BootNonce, ChunkRange, ClientKey, Duration, ErrorCode, FixedPart, Instant, JobId, Kind, Message, NodeId, PeerId,
    Role, TimerTable, U32, U64, WallTime, WorkerStatus,
};

pub use job::Order;
pub use slots::SlotIndex;

use assignment::Assignment;
use credit::Pace;
use job::Jobs;
use queue::Queue;
use registration::Registration;
use result::Results;
use slots::Slots;

/// Ended chunks that may wait for their confirmation. Above this a worker gives no credit.
pub const UNCONFIRMED_MAX: usize = 65_536;
/// Chunks that a worker queues, whatever it measures.
pub const QUEUED_CHUNKS_MAX: u32 = 4096;
/// Ranges that a queue holds; a request beyond them is answered with `busy`.
pub const QUEUED_RANGES_MAX: usize = 8192;
/// Jobs whose bodies a worker keeps.
pub const JOBS_MAX: usize = 512;
/// Unanswered kills.
pub const KILLS_MAX: usize = 1024;

/// A server to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    pub endpoint: String,
    /// `None` on a local socket.
    pub key: Option<ClientKey>,
}

/// Who this worker is and by which times it works.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: NodeId,
    pub boot: BootNonce,
    pub name: String,
    /// Of its certificate.
    pub public_key: ClientKey,
    /// Its own control socket; empty = it binds none.
    pub endpoint: String,
    pub pid: u32,
    /// Cpus, each room for one running chunk of one cpu.
    pub slots: u32,
    /// Bytes.
    pub memory: u64,
    pub masters: Vec<Server>,
    pub load_balancers: Vec<Server>,
    pub heartbeat_interval: Duration,
    /// How often what was not answered is said again: at first, and at most.
    pub resend_interval_min: Duration,
    pub resend_interval_max: Duration,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// How long freed room waits for more before load balancers are told.
    pub room_delay: Duration,
    /// Between batches of results, while more are to be expected.
    pub result_delay: Duration,
    /// How long a leader may be silent before all masters are asked.
    pub leader_silence_max: Duration,
    /// How long the body and inputs of a job are kept that has nothing here.
    pub job_idle_max: Duration,
}

impl Settings {
    /// Settings with the default times, 4 GiB of memory and no servers.
    pub fn new(node: NodeId, boot: BootNonce, slots: u32) -> Self {
        Self {
            node,
            boot,
            name: String::new(),
            public_key: ClientKey::default(),
            endpoint: String::new(),
            pid: 0,
            slots,
            memory: 4 << 30,
            masters: Vec::new(),
            load_balancers: Vec::new(),
            heartbeat_interval: Duration::from_secs(1),
            resend_interval_min: Duration::from_secs(1),
            resend_interval_max: Duration::from_secs(5),
            kill_grace: Duration::from_secs(2),
            room_delay: Duration::from_millis(50),
            result_delay: Duration::from_millis(20),
            leader_silence_max: Duration::from_secs(3),
            job_idle_max: Duration::from_secs(60),
        }
    }
}

/// How a run's program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunEnd {
    Code(u8),
    Signal(u8),
    /// The kernel killed it, or another of its processes, for want of memory.
    OutOfMemory,
    /// It could not be started: 127 = not found, 126 = not startable.
    NotStarted {
        exit_code: u8,
    },
}

/// What a run used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub duration_us: u64,
    /// User and system time of the whole tree.
    pub cpu_us: u64,
    pub max_rss_kib: u64,
}

/// What became of the outputs of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parcel {
    pub run: u64,
    /// Where they lie; `None` = there were none after all.
    pub bundle: Option<Bundle>,
    /// A declared output is missing, or there is too much: the chunk has failed for `policy`.
    pub is_refused: bool,
}

/// What happens to a worker.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A connection that was asked for has its number; whether it will ever stand is open.
    Connecting {
        peer: PeerId,
        role: Role,
        endpoint: &'a str,
    },
    /// A connection that was asked for stands, or stands anew.
    Connected {
        peer: PeerId,
        role: Role,
        endpoint: &'a str,
    },
    Received {
        from: PeerId,
        frame: &'a [u8],
    },
    /// Program and inputs of the job are here.
    Staged {
        job: JobId,
    },
    /// They cannot be had.
    StageFailed {
        job: JobId,
    },
    /// How programs have read their inputs so far; told with the next heartbeat or result.
    InputsCounted {
        counts: InputCounts,
    },
    /// The run was refused an input that it wanted to read, or may have read something else.
    InputMissed {
        run: u64,
    },
    /// So was some run of the job; which is not known.
    InputUnreadable {
        job: JobId,
    },
    /// Inputs that were written out for the job are not as they were.
    InputsSpoiled {
        job: JobId,
    },
    /// The program of a run ended and nothing is left of it. `at` = when.
    Exited {
        run: u64,
        end: RunEnd,
        usage: Usage,
        at: WallTime,
    },
    /// The slot is clean again. `is_kept` = the run wrote something, which was put aside for its upload.
    Collected {
        run: u64,
        is_kept: bool,
    },
    /// Outputs are durable on storage, all in `file`; `None` = none of the parcels has a bundle.
    Uploaded {
        file: Option<&'a StoredFile>,
        parcels: &'a [Parcel],
    },
    /// Whether the disk is almost full. Nothing starts meanwhile.
    DiskLow {
        is_low: bool,
    },
    /// Of all runs this one holds most of a disk that is almost full.
    Overfull {
        run: u64,
    },
    Tick,
}

/// Which of a run's outputs are put aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// Standard output and error, the output directory and the declared outputs.
    Everything,
    /// Standard output and error.
    Streams,
    /// Their beginnings: for more there is no room.
    Heads,
    Nothing,
}

/// What a worker wants done, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    Send {
        to: PeerId,
        frame: Vec<u8>,
    },
    /// Answered by `Connecting`, and by `Connected` when it stands.
    Connect {
        role: Role,
        server: Server,
    },
    Disconnect {
        peer: PeerId,
    },
    /// From now on files are fetched from and put to these nodes.
    UseStorage {
        nodes: Vec<NodeRecord>,
    },
    /// Keep the job's body for what follows.
    Learn {
        order: Box<Order>,
    },
    /// Fetch what the job needs. Answered by `Staged` or `StageFailed`.
    Stage {
        job: JobId,
    },
    /// Nothing of the job is here any more.
    Forget {
        job: JobId,
    },
    /// Answered by `Exited`.
    Start {
        slot: SlotIndex,
        run: u64,
        job: JobId,
        chunk: u32,
        attempt: u32,
    },
    /// Ask the run's whole tree to end.
    Terminate {
        slot: SlotIndex,
        run: u64,
    },
    /// End it.
    Kill {
        slot: SlotIndex,
        run: u64,
    },
    /// Put the run's outputs aside and clean its slot. Answered by `Collected`.
    Collect {
        slot: SlotIndex,
        run: u64,
        take: Take,
    },
    /// Store what was put aside. Answered by `Uploaded`, however long it takes.
    Upload {
        job: JobId,
        run: u64,
    },
    /// What was put aside is not needed any more.
    Release {
        run: u64,
    },
}

/// What goes off by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// The next heartbeat to masters and load balancers.
    Heartbeat,
    /// The registration is not answered yet: say hello again.
    Hello,
    /// Freed room that has not been told.
    Room,
    /// Results that wait for company.
    Results,
    /// The next batch that was not confirmed in time.
    Resend,
    /// Jobs that have nothing here any more.
    Forget,
    /// The time limit of what runs in this slot.
    TimeLimit(SlotIndex),
    /// The grace of what was asked to end in this slot.
    Grace(SlotIndex),
}

/// The core of a worker.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    registration: Registration,
    assignment: Assignment,
    jobs: Jobs,
    queue: Queue,
    slots: Slots,
    results: Results,
    pace: Pace,
    is_disk_low: bool,
    inputs: InputCounts,
    timers: TimerTable<Timer>,
    runs: u64,
}

impl Worker {
    pub fn new(settings: Settings, now: Instant) -> Self {
        let mut timers = TimerTable::default();
        timers.set(Timer::Heartbeat, now + settings.heartbeat_interval);
        if !settings.masters.is_empty() {
            timers.set(Timer::Hello, now);
        }
        Self {
            registration: Registration::new(&settings),
            assignment: Assignment::default(),
            jobs: Jobs::default(),
            queue: Queue::default(),
            slots: Slots::new(settings.slots, settings.memory),
            results: Results::default(),
            pace: Pace::default(),
            is_disk_low: false,
            inputs: InputCounts::default(),
            timers,
            runs: 0,
            settings,
        }
    }

    /// Takes one event, changes the state, and appends what is to be done about it, in order.
    pub fn step(&mut self, event: Event<'_>, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Connecting { peer, role, endpoint } => self.on_connecting(peer, role, endpoint, actions),
            Event::Connected { peer, role, endpoint } => self.on_connected(peer, role, endpoint, now, actions),
            Event::Received { from, frame } => self.on_frame(from, frame, now, actions),
            Event::Staged { job } => self.on_staged(job),
            Event::StageFailed { job } => self.on_stage_failed(job, now, actions),
            Event::Exited { run, end, usage, at } => self.on_exited(run, end, usage, at, actions),
            Event::Collected { run, is_kept } => self.on_collected(run, is_kept, now, actions),
            Event::Uploaded { file, parcels } => self.on_uploaded(file, parcels),
            Event::DiskLow { is_low } => self.is_disk_low = is_low,
            Event::InputsCounted { counts } => self.inputs = counts,
            Event::InputMissed { run } => self.slots.note_missed_input(|held| held.run == run),
            Event::InputUnreadable { job } => self.slots.note_missed_input(|held| held.job == job),
            Event::InputsSpoiled { job } => self.on_inputs_spoiled(job, now, actions),
            Event::Overfull { run } => self.on_overfull(run, actions),
            Event::Tick => self.on_tick(now, actions),
        }
        if self.is_disk_low {
            // What they alone need of the cache may be all the room there is.
            self.forget_jobs_without_chunks(actions);
        }
        self.start_chunks(now, actions);
    }

    /// When `step` wants a `Tick`, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Chunks that run now.
    pub fn running_count(&self) -> usize {
        self.slots.runs().count()
    }

    /// Chunks that wait here for a slot.
    pub fn queued_count(&self) -> u64 {
        self.queue.chunk_count()
    }

    /// Chunks that ended and are not confirmed.
    pub fn unconfirmed_count(&self) -> usize {
        self.results.len()
    }

    /// What is held here of a chunk, as `(state, attempt)`; for the simulator's checkers.
    pub fn holding_of(&self, job: JobId, chunk: u32) -> Option<(u8, u32)> {
        let is_held = self.jobs.at(job).is_some_and(|job| job.held.contains(chunk));
        let mut holdings = self.holdings().filter(|_| is_held);
        let holding = holdings.find(|holding| holding.job == job && holding.range.contains(chunk))?;
        Some((holding.state, holding.attempt))
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.assignment.epoch
    }

    /// How many more chunks there is room for beyond all that were accepted.
    pub fn credit(&self) -> u32 {
        let live = self.queue.chunk_count() + self.slots.runs().count() as u64;
        let takes_more = self.jobs.has_room() && !self.is_disk_low;
        self.pace.credit(self.settings.slots, live, self.results.len(), takes_more)
    }

    fn on_frame(&mut self, from: PeerId, frame: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                return self.refuse(from, ErrorCode::Malformed, None, 0, JobId::NIL, &error.to_string(), actions);
            }
        };
        match (self.registration.role_of(from), &message) {
            (Some(Role::LoadBalancer), Message::WorkerRequest(request, body)) => {
                self.on_worker_request(from, request, body, now, actions);
            }
            (Some(Role::LoadBalancer), Message::Retract(retract, _)) => self.on_retract(from, retract, now, actions),
            (Some(Role::LoadBalancer), Message::Kill(kill, _)) => self.on_kill(from, kill, now, actions),
            (Some(Role::LoadBalancer), Message::InventoryRequest(request, _)) => {
                self.on_inventory_request(from, request.epoch.get(), actions);
            }
            (Some(Role::Master), Message::NodeWelcome(welcome, body)) => {
                self.on_welcome(from, welcome, body, now, actions);
            }
            (Some(Role::Master), Message::LeaderHeartbeat(heartbeat, _)) => {
                self.on_leader_heartbeat(from, heartbeat, now, actions);
            }
            (Some(Role::Master), Message::ResultConfirmed(confirmed, _)) => {
                self.on_result_confirmed(confirmed.batch.get(), confirmed.index.get(), now, actions);
            }
            (Some(Role::Master), Message::Error(error, _)) => {
                self.on_master_error(from, error.request.get(), error.code.get(), error.regarding, now, actions);
            }
            // Two peers must not answer each other's errors for ever, and a load balancer's are for people to read.
            (_, Message::Error(..)) => {}
            (_, Message::FileRequest(request, _)) => {
                let detail = format!("no file {} on this worker", request.file_uuid.file());
                let number = request.request.get();
                self.refuse(
                    from,
                    ErrorCode::FileUnknown,
                    Some(Kind::FileRequest),
                    number,
                    JobId::NIL,
                    &detail,
                    actions,
                );
            }
            (role, other) => {
                let who = role.map_or("a peer that it did not connect to", Role::word);
                let detail = format!("a worker takes no {:?} from {who}", other.kind());
                self.refuse(from, ErrorCode::NotAllowed, Some(other.kind()), 0, JobId::NIL, &detail, actions);
            }
        }
    }

    fn on_tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.connect_wanted(actions);
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Heartbeat => self.on_heartbeat_due(now, actions),
                Timer::Hello => self.on_hello_due(now, actions),
                Timer::Room => self.tell_room(actions),
                Timer::Results => self.report_results(now, actions),
                Timer::Resend => self.resend_results(now, actions),
                Timer::Forget => self.forget_idle_jobs(now, actions),
                Timer::TimeLimit(slot) => self.on_time_limit(slot, now, actions),
                Timer::Grace(slot) => self.on_grace_over(slot, actions),
            }
        }
        self.report_results_if_due(now, actions);
        self.tell_room_if_due(now, actions);
    }

    /// A status with everything about the worker itself; the caller adds what it is about.
    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            boot: U64::new(self.settings.boot.0),
            epoch: U64::new(self.assignment.epoch),
            seen_sequence: U64::new(self.assignment.seen),
            confirmed_index: U64::new(self.assignment.confirmed_index),
            credit: U32::new(self.credit()),
            ..WorkerStatus::DEFAULT
        }
    }

    fn send(&self, to: PeerId, message: impl FixedPart, body: &[u8], actions: &mut Vec<Action>) {
        actions.push(Action::Send { to, frame: message.frame(self.settings.node, body) });
    }

    /// Sends the same to every load balancer.
    fn tell_load_balancers(&mut self, message: impl FixedPart, body: &[u8], actions: &mut Vec<Action>) {
        let frame = message.frame(self.settings.node, body);
        for to in self.registration.peers(Role::LoadBalancer) {
            actions.push(Action::Send { to, frame: frame.clone() });
        }
        self.pace.told = self.credit();
        self.timers.stop(Timer::Room);
    }

    fn refuse(
        &self,
        to: PeerId,
        code: ErrorCode,
        regarding: Option<Kind>,
        request: u64,
        job: JobId,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let frame = wire::error_frame(self.settings.node, code, regarding, request, job, detail);
        actions.push(Action::Send { to, frame });
    }
}

/// The state of a chunk that is held here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holding {
    job: JobId,
    range: ChunkRange,
    attempt: u32,
    /// See `wire::record::holding`.
    state: u8,
}
