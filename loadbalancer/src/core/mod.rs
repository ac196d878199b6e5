//! What a load balancer decides: which worker runs which chunk now. No sockets, clocks, threads, files or chance.
//!
//! The log (`log_view`) says what has to run and whose turn it is to hand it out; the workers (`worker_view`) say what
//! they hold and how much room they have. All of it is soft: a load balancer that starts with nothing asks the masters
//! for the one and the workers for the other, and until it knows enough it hands out only what nobody can hold.

#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

mod dispatch;
mod invariant;
mod log_view;
mod master_link;
mod membership;
mod note;
mod range_map;
mod report;
mod sending;
mod watch;
mod worker_view;

use std::collections::BTreeMap;

use wire::{
    BootNonce, ChunkRange, ChunkSet, ClientKey, Duration, ErrorCode, Instant, JobId, Kind, Message, NodeId, PeerId,
    TimerTable, error_frame,
};

use log_view::LogView;
use master_link::MasterLink;
use membership::Reign;
use worker_view::WorkerView;

pub use note::Note;

/// Who this load balancer is, and how long it waits for what.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeId,
    pub boot: BootNonce,
    pub name: String,
    /// Its control socket, as workers reach it.
    pub endpoint: String,
    pub public_key: ClientKey,
    pub pid: u32,
    /// The connections to the masters, in the order of the settings.
    pub masters: Vec<PeerId>,
    pub timings: Timings,
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Between heartbeats to the masters.
    pub heartbeat_interval: Duration,
    /// A watch without an answer is asked again.
    pub watch_timeout: Duration,
    /// A `node_hello` without an answer is sent again: at first, and at most.
    pub hello_wait: Duration,
    pub hello_wait_max: Duration,
    /// An unanswered number is sent again: at first, and at most.
    pub resend_wait: Duration,
    pub resend_wait_max: Duration,
    /// Between inventory requests, kills and losses that have not had their effect.
    pub repeat_interval: Duration,
    /// A worker unheard for so long gets nothing new.
    pub quiet_after: Duration,
    /// A worker unheard for so long counts as lost.
    pub grace: Duration,
    /// A waiting job gains one step of priority each.
    pub ageing_step: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(200),
            watch_timeout: Duration::from_millis(1500),
            hello_wait: Duration::from_secs(1),
            hello_wait_max: Duration::from_secs(5),
            resend_wait: Duration::from_millis(200),
            resend_wait_max: Duration::from_secs(2),
            repeat_interval: Duration::from_secs(1),
            quiet_after: Duration::from_secs(3),
            grace: Duration::from_secs(5),
            ageing_step: Duration::from_secs(30),
        }
    }
}

/// What happens to a load balancer.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first frame of a message that was admitted: the sender may send this kind, and its uuid is its own.
    Received { from: PeerId, frame: &'a [u8] },
    /// A connection is gone; its number never comes back.
    PeerGone { peer: PeerId },
    /// The end of a turn of the loop, or a deadline.
    Tick,
}

/// What is to be done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Send {
        to: PeerId,
        frame: Vec<u8>,
    },
    /// A decision worth a line in the log of the process.
    Note(Note),
}

/// What the core waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    /// `node_hello` goes out (again).
    Hello,
    /// The next heartbeat to the masters.
    Heartbeat,
    /// The watch has not been answered.
    Watch,
    /// Some worker's unanswered numbers go out again.
    Resend,
    /// Look at every worker: who is silent, what has to be asked or said again.
    Sweep,
    /// Hand out chunks: set to now by whatever makes work or room, so that a turn of the loop dispatches once.
    Dispatch,
}

/// Between two looks at every worker.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// One load balancer.
#[derive(Debug)]
pub struct LoadBalancer {
    config: Config,
    timers: TimerTable<Timer>,
    /// The number of the next request of any kind; they never repeat within a boot.
    next_request: u64,
    link: MasterLink,
    log: LogView,
    workers: BTreeMap<NodeId, WorkerView>,
    /// `Some` while the log says that the current epoch is ours.
    reign: Option<Reign>,
}

impl LoadBalancer {
    pub fn new(config: Config, now: Instant) -> Self {
        assert!(!config.masters.is_empty(), "a load balancer without masters has nothing to do");
        let mut timers = TimerTable::default();
        for timer in [Timer::Hello, Timer::Heartbeat, Timer::Watch, Timer::Sweep] {
            timers.set(timer, now);
        }
        let link = MasterLink::new(config.timings.hello_wait);
        let (log, workers) = (LogView::default(), BTreeMap::new());
        // Far from the numbers of the boot before, whose answers may still be on their way.
        let next_request = ((config.boot.0 ^ config.boot.0 >> 32) << 32) + 1;
        Self { config, timers, next_request, link, log, workers, reign: None }
    }

    /// Takes one event, changes the state, and appends what is to be done about it, in order.
    pub fn step(&mut self, event: Event<'_>, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Received { from, frame } => self.on_frame(from, frame, now, actions),
            Event::PeerGone { peer } => self.on_peer_gone(peer),
            Event::Tick => {
                while let Some(timer) = self.timers.pop_due(now) {
                    self.on_timer(timer, now, actions);
                }
            }
        }
    }

    /// When `step` wants a `Tick`, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// The epoch that is ours, if any.
    pub fn epoch(&self) -> Option<u64> {
        self.reign.as_ref().map(|reign| reign.epoch)
    }

    /// The index that the view of the log has reached.
    pub fn index(&self) -> u64 {
        self.log.index
    }

    /// Chunks that count as held by each worker, its former boots included; for the simulator's checkers.
    pub fn held_by(&self, worker: NodeId, job: JobId) -> ChunkSet {
        let held = self.workers.get(&worker).into_iter().flat_map(|view| view.all_held());
        held.filter_map(|held| held.job(job)).flat_map(|map| map.iter().map(|(range, _)| range)).collect()
    }

    fn on_timer(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
        match timer {
            Timer::Hello => self.send_hello(now, actions),
            Timer::Heartbeat => self.send_heartbeat(now, actions),
            Timer::Watch => self.watch_unanswered(now, actions),
            Timer::Resend => self.resend_due(now, actions),
            Timer::Sweep => self.sweep(now, actions),
            Timer::Dispatch => self.dispatch(now, actions),
        }
    }

    fn on_frame(&mut self, from: PeerId, frame: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(error) => return self.refuse(from, frame, ErrorCode::Malformed, &error.to_string(), actions),
        };
        let sender = message.header().node_uuid.node();
        match message {
            Message::WorkerStatus(status, body) => self.on_worker_status(from, sender, &status, body, now, actions),
            Message::Inventory(inventory, body) => {
                self.on_inventory(from, sender, frame, &inventory, body, now, actions);
            }
            Message::RetractAnswer(answer, body) => {
                self.on_retract_answer(from, sender, frame, &answer, body, now, actions);
            }
            Message::Killed(killed, _) => self.on_killed(from, sender, &killed, now, actions),
            Message::Error(error, _) => self.on_error(from, sender, &error, now, actions),
            Message::NodeWelcome(welcome, _) => self.on_node_welcome(from, &welcome, actions),
            Message::LeaderHeartbeat(heartbeat, _) => self.on_leader_heartbeat(from, &heartbeat, now, actions),
            Message::WatchBatch(batch, _) => self.on_watch_batch(from, frame, &batch, now, actions),
            Message::Answer(answer, _) => self.on_answer(from, &answer, now, actions),
            // That a loss is committed is seen in the watch, with its effects.
            Message::Committed(..) => {}
            Message::WorkerRequest(..)
            | Message::FileRequest(..)
            | Message::FileResponse(..)
            | Message::NodeHello(..)
            | Message::InventoryRequest(..)
            | Message::Retract(..)
            | Message::Kill(..)
            | Message::ResultConfirmed(..)
            | Message::Lost(..)
            | Message::LoadBalancerHeartbeat(..)
            | Message::SubmitJob(..)
            | Message::JobAccepted(..)
            | Message::CancelJob(..)
            | Message::RecordFile(..)
            | Message::Query(..)
            | Message::Watch(..)
            | Message::PutBegin(..)
            | Message::PutGrant(..)
            | Message::PutBlock(..)
            | Message::PutAck(..)
            | Message::PutCommit(..)
            | Message::PutDone(..)
            | Message::HaveRequest(..)
            | Message::HaveResponse(..)
            | Message::RaftMessage(..)
            | Message::StateHash(..) => {
                self.refuse(from, frame, ErrorCode::NotAllowed, "a load balancer does not take this message", actions);
            }
        }
    }

    fn refuse(&self, to: PeerId, frame: &[u8], code: ErrorCode, detail: &str, actions: &mut Vec<Action>) {
        let kind = frame.first().and_then(|number| Kind::from_number(*number));
        // An error that answers an error would never end.
        if kind != Some(Kind::Error) {
            let frame = error_frame(self.config.node, code, kind, 0, JobId::NIL, detail);
            actions.push(Action::Send { to, frame });
        }
    }

    fn number_request(&mut self) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        request
    }

    fn dispatch_soon(&mut self, now: Instant) {
        if self.reign.is_some() {
            self.timers.set_earlier(Timer::Dispatch, now);
        }
    }

    /// Somebody holds these ranges no more: what has not ended and nobody else holds can be given away.
    fn release(&mut self, job: JobId, ranges: &[ChunkRange], now: Instant) {
        let Some(view) = self.log.jobs.get_mut(&job) else { return };
        for range in ranges {
            let mut free: ChunkSet = view.pending.ranges_in(*range).collect();
            for held in self.workers.values().flat_map(|worker| worker.all_held()) {
                held.pieces(job, *range).for_each(|(piece, _)| free.remove(piece));
            }
            view.unheld.union_with(&free);
        }
        self.dispatch_soon(now);
    }
}
