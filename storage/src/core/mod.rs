//! What a storage node decides: who may upload how much now, what the disk is asked to do, and what peers are told.
//!
//! The core is the desk of a warehouse: papers cross it, goods never do. A block that came in is a number here, and what
//! the disk read is known by the ticket of the order; the shell carries the bytes. Everything that the disk does comes back
//! under its ticket, and only then is anybody told that it is done.

#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

use std::collections::{BTreeMap, BTreeSet};

use content::Ask;
use wire::limit::{BLOCK_SIZE, MIB};
use wire::{
    BootNonce, ClientKey, DecodeError, Duration, ErrorCode, FileId, Hash, Instant, JobId, Kind, Message, NodeId,
    PeerId, TimerTable,
};

mod read;
mod register;
mod upload;

use register::Registration;
use upload::Uploads;

/// Limits of one storage node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Uploads at the same time; beyond it the answer to `put_begin` is `busy`.
    pub uploads_max: usize,
    /// Blocks of one upload that may be on the way: its credit when there is room.
    pub blocks_per_upload_max: u32,
    /// Blocks of all uploads that wait for the disk.
    pub blocks_in_flight_max: u32,
    /// Files that wait to be read again.
    pub checks_max: usize,
    /// Bytes that the disk has been asked to read for answers.
    pub read_bytes_max: u64,
    /// Reads and other questions to the disk at the same time for one peer.
    pub reads_per_peer_max: usize,
    /// An upload that has not been heard of for so long is given up.
    pub upload_idle_timeout: Duration,
    /// Bytes of the largest file.
    pub file_size_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uploads_max: 256,
            blocks_per_upload_max: 16,
            blocks_in_flight_max: 128,
            checks_max: 64,
            read_bytes_max: 512 * MIB as u64,
            reads_per_peer_max: 64,
            upload_idle_timeout: Duration::from_secs(120),
            file_size_max: 1 << 44,
        }
    }
}

/// What a core is told about its node once.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub node: NodeId,
    pub boot: BootNonce,
    pub name: String,
    /// Where others reach the two sockets.
    pub endpoint: String,
    pub bulk_endpoint: String,
    pub public_key: ClientKey,
    pub pid: u32,
    /// Thousandths of a cpu.
    pub cpus_milli: u32,
    /// Bytes.
    pub memory: u64,
    pub receipt_key: [u8; 32],
    /// The masters' connections, with the endpoints by which they name one another.
    pub masters: Vec<(PeerId, String)>,
    pub limits: Limits,
}

/// An order to the disk; it comes back with what became of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Content bytes that came with a message: the shell's number for them, and how many they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    pub number: u64,
    pub length: u64,
}

/// What happens to a storage node.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A payload that no order takes up before the next event is forgotten.
    Received {
        from: PeerId,
        message: Message<'a>,
        payload: Option<Payload>,
    },
    /// Something came that is no message.
    Malformed {
        from: PeerId,
        error: DecodeError,
    },
    /// The disk is done with an order.
    Performed {
        ticket: Ticket,
        outcome: Outcome,
    },
    Tick,
}

/// What the disk is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin an upload under our number, unless the content with this hash is here.
    Begin {
        upload: u64,
        length: Option<u64>,
        hash: Hash,
        /// It ends a chunk; whatever else comes yields to what does.
        is_result: bool,
        /// A copy that is here does not count before it has been read again.
        is_checked: bool,
    },
    Write {
        upload: u64,
        offset: u64,
        payload: Payload,
    },
    Commit {
        upload: u64,
        hash: Hash,
        length: u64,
    },
    /// Comes back too, as `Aborted`.
    Abort {
        upload: u64,
    },
    Read {
        ask: Ask,
    },
    Have {
        files: Vec<FileId>,
    },
    /// Read a whole file again; it is taken out of the store if it is wrong.
    Check {
        file: FileId,
    },
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Begun,
    /// Nothing was begun: the file is here.
    Exists {
        length: u64,
    },
    Written {
        contiguous: u64,
    },
    Committed {
        file: FileId,
        hash: Hash,
        length: u64,
    },
    Aborted,
    /// The content waits in the shell under the order's ticket.
    Read {
        file_length: u64,
    },
    /// One bit per file, lowest first.
    Had {
        bits: Vec<u8>,
    },
    /// Nothing was done: the copy that is here has to be read again first.
    Unchecked {
        file: FileId,
    },
    /// The file is right, or here no more.
    Checked,
    Failed {
        code: ErrorCode,
        detail: String,
    },
}

/// What a storage node does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send {
        to: PeerId,
        frame: Vec<u8>,
    },
    /// Send `frame` and behind it the content that was read under `ticket`.
    SendContent {
        to: PeerId,
        frame: Vec<u8>,
        ticket: Ticket,
    },
    Order {
        ticket: Ticket,
        order: Order,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// Say hello again: the master has not welcomed us.
    Hello,
    /// Tell the leader that we live.
    Heartbeat,
    /// The leader has been silent for too long: look for it again.
    LeaderSilent,
    /// Look for uploads that nobody goes on with.
    IdleUploads,
}

/// Why an order was given, to know what to say when it comes back.
#[derive(Clone, Copy, Debug)]
enum Work {
    Begin { key: UploadKey, request: u64 },
    Write { key: UploadKey, upload: u64 },
    Commit { key: UploadKey, upload: u64, request: u64, to: PeerId },
    Abort,
    Read { to: PeerId, ask: Ask },
    Have { to: PeerId, request: u64, files: u32 },
    Check { file: FileId },
}

/// An upload as its sender names it.
type UploadKey = (NodeId, u64);

/// The storage role's decisions.
#[derive(Debug)]
pub struct Storage {
    config: CoreConfig,
    timers: TimerTable<Timer>,
    registration: Registration,
    uploads: Uploads,
    work: BTreeMap<Ticket, Work>,
    last_ticket: Ticket,
    /// Files that the disk reads again.
    checks: BTreeSet<FileId>,
    /// The sum of what the reads in `work` may bring.
    read_bytes: u64,
}

impl Storage {
    pub fn new(config: CoreConfig, now: Instant) -> Self {
        let mut timers = TimerTable::default();
        if !config.masters.is_empty() {
            timers.set(Timer::Hello, now);
        }
        timers.set(Timer::IdleUploads, now + config.limits.upload_idle_timeout);
        Self {
            config,
            timers,
            registration: Registration::default(),
            uploads: Uploads::default(),
            work: BTreeMap::new(),
            last_ticket: Ticket(0),
            checks: BTreeSet::new(),
            read_bytes: 0,
        }
    }

    /// Takes one event, changes the state, and appends what is to be done about it, in order.
    pub fn step(&mut self, event: Event<'_>, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Received { from, message, payload } => self.on_message(from, &message, payload, now, actions),
            Event::Malformed { from, error } => {
                let code = match error {
                    DecodeError::UnknownType { .. } => ErrorCode::UnknownType,
                    DecodeError::Short { .. }
                    | DecodeError::HeaderShort { .. }
                    | DecodeError::HeaderBeyondFrame { .. }
                    | DecodeError::Body { .. } => ErrorCode::Malformed,
                };
                self.refuse(from, code, None, 0, &error.to_string(), actions);
            }
            Event::Performed { ticket, outcome } => self.on_performed(ticket, outcome, now, actions),
            Event::Tick => {}
        }
        while let Some(timer) = self.timers.pop_due(now) {
            self.on_timer(timer, now, actions);
        }
    }

    /// When `step` wants a `Tick`, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    fn on_message(
        &mut self,
        from: PeerId,
        message: &Message<'_>,
        payload: Option<Payload>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let sender = message.header().node_uuid.node();
        match message {
            Message::FileRequest(request, _) => self.on_file_request(from, Ask::of(request), actions),
            Message::HaveRequest(request, body) => {
                self.on_have_request(from, request.request.get(), request.num_files.get(), body, actions);
            }
            Message::PutBegin(begin, _) => self.on_put_begin(from, sender, begin, now, actions),
            Message::PutBlock(block, _) => self.on_put_block(from, sender, block, payload, now, actions),
            Message::PutCommit(commit, _) => self.on_put_commit(from, sender, commit, now, actions),
            Message::NodeWelcome(..) => self.on_node_welcome(from, now, actions),
            Message::LeaderHeartbeat(heartbeat, _) => {
                self.on_leader_heartbeat(from, heartbeat.flags.get() & wire::HEARTBEAT_LEADER != 0, now);
            }
            Message::Error(error, detail) => self.on_error(from, error.code.get(), detail, now),
            Message::WorkerRequest(..)
            | Message::WorkerStatus(..)
            | Message::FileResponse(..)
            | Message::NodeHello(..)
            | Message::Inventory(..)
            | Message::InventoryRequest(..)
            | Message::Retract(..)
            | Message::RetractAnswer(..)
            | Message::Kill(..)
            | Message::Killed(..)
            | Message::ResultConfirmed(..)
            | Message::Lost(..)
            | Message::LoadBalancerHeartbeat(..)
            | Message::SubmitJob(..)
            | Message::JobAccepted(..)
            | Message::CancelJob(..)
            | Message::Committed(..)
            | Message::RecordFile(..)
            | Message::Query(..)
            | Message::Answer(..)
            | Message::Watch(..)
            | Message::WatchBatch(..)
            | Message::PutGrant(..)
            | Message::PutAck(..)
            | Message::PutDone(..)
            | Message::HaveResponse(..)
            | Message::RaftMessage(..)
            | Message::StateHash(..) => {
                let kind = message.kind();
                let detail = format!("a storage node does not take {kind:?}");
                self.refuse(from, ErrorCode::InvalidRequest, Some(kind), 0, &detail, actions);
            }
        }
    }

    fn on_performed(&mut self, ticket: Ticket, outcome: Outcome, now: Instant, actions: &mut Vec<Action>) {
        let work = self.work.remove(&ticket).expect("the disk performs each order that we gave, once");
        match work {
            Work::Begin { key, request } => self.on_begun(key, request, outcome, now, actions),
            Work::Write { key, upload } => self.on_written(key, upload, outcome, now, actions),
            Work::Commit { key, upload, request, to } => {
                self.on_committed(key, upload, request, to, outcome, actions);
            }
            Work::Abort => assert_eq!(outcome, Outcome::Aborted),
            Work::Read { to, ask } => self.on_read(ticket, to, ask, outcome, actions),
            Work::Have { to, request, files } => self.on_had(to, request, files, outcome, actions),
            Work::Check { file } => self.on_checked(file, &outcome, now, actions),
        }
    }

    fn on_timer(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
        match timer {
            Timer::Hello => self.on_hello_due(now, actions),
            Timer::Heartbeat => self.on_heartbeat_due(now, actions),
            Timer::LeaderSilent => self.on_leader_silent(now),
            Timer::IdleUploads => self.on_idle_uploads(now, actions),
        }
    }

    fn order(&mut self, work: Work, order: Order, actions: &mut Vec<Action>) -> Ticket {
        self.last_ticket.0 += 1;
        self.work.insert(self.last_ticket, work);
        actions.push(Action::Order { ticket: self.last_ticket, order });
        self.last_ticket
    }

    /// Has a file read again, if that is not under way; false = too many wait for it.
    fn check(&mut self, file: FileId, actions: &mut Vec<Action>) -> bool {
        if self.checks.contains(&file) {
            return true;
        }
        if self.checks.len() >= self.config.limits.checks_max {
            return false;
        }
        self.checks.insert(file);
        self.order(Work::Check { file }, Order::Check { file }, actions);
        true
    }

    fn on_checked(&mut self, file: FileId, outcome: &Outcome, now: Instant, actions: &mut Vec<Action>) {
        assert_eq!(*outcome, Outcome::Checked);
        self.checks.remove(&file);
        // Who wanted to read it asks again.
        self.on_upload_checked(file, now, actions);
    }

    fn refuse(
        &self,
        to: PeerId,
        code: ErrorCode,
        regarding: Option<Kind>,
        request: u64,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let frame = wire::error_frame(self.config.node, code, regarding, request, JobId::NIL, detail);
        actions.push(Action::Send { to, frame });
    }

    /// Panics when the state contradicts itself.
    pub fn check_invariants(&self) {
        let limits = &self.config.limits;
        assert!(self.uploads.len() <= limits.uploads_max);
        let mut read_bytes = 0;
        let mut writes: BTreeMap<u64, u32> = BTreeMap::new();
        let mut checks = Vec::new();
        for work in self.work.values() {
            match work {
                Work::Read { ask, .. } => read_bytes += ask.size_max(),
                Work::Write { upload, .. } => *writes.entry(*upload).or_default() += 1,
                Work::Check { file } => checks.push(*file),
                Work::Begin { .. } | Work::Commit { .. } | Work::Abort | Work::Have { .. } => {}
            }
        }
        checks.sort_unstable();
        assert!(self.checks.iter().eq(&checks) && checks.len() <= limits.checks_max);
        assert_eq!(read_bytes, self.read_bytes);
        assert!(self.read_bytes <= limits.read_bytes_max);
        let blocks: u32 = writes.values().sum();
        assert_eq!(blocks, self.uploads.blocks_in_flight());
        assert!(blocks <= limits.blocks_in_flight_max);
        self.uploads.check_invariants(&writes, &self.checks, limits.blocks_per_upload_max);
    }
}

const _: () = assert!(BLOCK_SIZE == MIB, "credit counts blocks of this size");
