//! Everything that masters tell others, as a feed that is read from an index.
//!
//! A watcher asks "what came after index I?" and gets it, or, when the past is forgotten, a picture of the present and
//! then what follows. Nothing is pushed without an index, so nothing can be missed without being noticed. A watch that
//! finds nothing new waits a moment, so that news travels at once and silence costs little.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::event::LogEvent;
use wire::limit::{BLOCK_SIZE, FRAME_SIZE_MAX, KIB, WATCH_BATCH_SIZE_MAX};
use wire::{
    BATCH_SNAPSHOT, ChunkRange, ErrorCode, FixedPart, Instant, JobId, Kind, PeerId, U16, U32, U64, WATCH_FRESH, Watch,
    WatchBatch, WatchSubject, Writer,
};

use super::state::{Job, State};
use super::{Action, Core};

/// What a watcher hears of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Topic {
    Dispatch,
    Job(JobId),
}

/// An event as it is sent.
#[derive(Debug)]
struct Told {
    /// The job that it is about.
    job: Option<JobId>,
    bytes: Box<[u8]>,
}

/// The events of one entry.
#[derive(Debug)]
struct Batch {
    index: u64,
    events: Vec<Told>,
    size: usize,
}

/// A watch that waits for news.
#[derive(Clone, Copy, Debug)]
struct Parked {
    request: u64,
    after: u64,
    deadline: Instant,
}

/// The recent past, and who waits for the future.
#[derive(Debug)]
pub(super) struct Watchers {
    /// Batches of entries above `start` that have events, in order.
    past: VecDeque<Batch>,
    /// Everything after this index is known.
    start: u64,
    size: usize,
    size_max: usize,
    watches_max: usize,
    /// One per peer and topic: a watch that comes again replaces the earlier.
    parked: BTreeMap<(Topic, PeerId), Parked>,
    deadlines: BTreeSet<(Instant, Topic, PeerId)>,
}

impl Watchers {
    pub(super) fn new(start: u64, size_max: usize, watches_max: usize) -> Self {
        Self {
            past: VecDeque::new(),
            start,
            size: 0,
            size_max,
            watches_max,
            parked: BTreeMap::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// Keeps the events of the entry at `index`; adds the topics that they concern to `told`.
    pub(super) fn push(&mut self, index: u64, events: &[LogEvent<'_>], told: &mut BTreeSet<Topic>) {
        if events.is_empty() {
            return;
        }
        told.insert(Topic::Dispatch);
        let events: Vec<Told> = events.iter().map(Told::new).collect();
        told.extend(events.iter().filter_map(|event| event.job).map(Topic::Job));
        let size = events.iter().map(Told::cost).sum();
        self.past.push_back(Batch { index, events, size });
        self.size += size;
        while self.size > self.size_max
            && let Some(oldest) = self.past.pop_front()
        {
            self.size -= oldest.size;
            self.start = oldest.index;
        }
    }

    /// Knows nothing of what was before `index`.
    pub(super) fn restart(&mut self, index: u64) {
        self.past.clear();
        (self.start, self.size) = (index, 0);
    }

    /// Everybody who waits: the peer, the number of its watch, and its job.
    pub(super) fn take_all(&mut self) -> Vec<(PeerId, u64, JobId)> {
        self.deadlines.clear();
        let job = |topic| match topic {
            Topic::Dispatch => JobId::NIL,
            Topic::Job(job) => job,
        };
        let parked = std::mem::take(&mut self.parked).into_iter();
        parked.map(|((topic, peer), parked)| (peer, parked.request, job(topic))).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// A connection is gone; nobody hears answers to its watches.
    pub(super) fn forget(&mut self, peer: PeerId) {
        let gone: Vec<Topic> =
            self.parked.keys().filter(|(_, parked)| *parked == peer).map(|(topic, _)| *topic).collect();
        for topic in gone {
            self.unpark(topic, peer);
        }
    }

    fn park(&mut self, topic: Topic, peer: PeerId, parked: Parked) {
        self.unpark(topic, peer);
        self.deadlines.insert((parked.deadline, topic, peer));
        self.parked.insert((topic, peer), parked);
    }

    fn unpark(&mut self, topic: Topic, peer: PeerId) -> Option<Parked> {
        let parked = self.parked.remove(&(topic, peer))?;
        self.deadlines.remove(&(parked.deadline, topic, peer));
        Some(parked)
    }

    /// Those who wait for news of the topic.
    fn waiting_for(&self, topic: Topic) -> Vec<PeerId> {
        let all = (topic, PeerId(0))..=(topic, PeerId(u64::MAX));
        self.parked.range(all).map(|((_, peer), _)| *peer).collect()
    }

    /// The events of the topic after an index, whole entries, as many as a batch takes; and the index that they reach,
    /// which is `newest` when that is all.
    fn after(&self, topic: Topic, after: u64, newest: u64) -> (Vec<&[u8]>, u64) {
        let first = self.past.partition_point(|batch| batch.index <= after);
        let (mut events, mut size): (Vec<&[u8]>, usize) = (Vec::new(), 0);
        for batch in self.past.range(first..) {
            let of_topic = batch.events.iter().filter(|event| event.is_of(topic));
            let batch_size: usize = of_topic.clone().map(|event| event.bytes.len()).sum();
            if batch_size > 0 && size > 0 && size + batch_size > WATCH_BATCH_SIZE_MAX {
                return (events, batch.index - 1);
            }
            size += batch_size;
            events.extend(of_topic.map(|event| &*event.bytes));
        }
        (events, newest)
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.parked.len(), self.deadlines.len(), "each parked watch has its deadline");
        assert_eq!(self.past.iter().map(|batch| batch.size).sum::<usize>(), self.size, "each batch is counted");
    }
}

impl Told {
    fn new(event: &LogEvent<'_>) -> Self {
        let mut to = Writer::new();
        event.encode(&mut to);
        let job = match event {
            LogEvent::JobAccepted { frame, .. } | LogEvent::JobSnapshot { frame, .. } => job_of(frame),
            LogEvent::ChunksEnded { job, .. }
            | LogEvent::HolderFreed { job, .. }
            | LogEvent::ChunksWaiting { job, .. }
            | LogEvent::JobEnded { job, .. } => Some(*job),
            LogEvent::EpochGranted { .. } | LogEvent::NodeRegistered { .. } => None,
        };
        Self { job, bytes: to.bytes.into() }
    }

    fn is_of(&self, topic: Topic) -> bool {
        match topic {
            Topic::Dispatch => true,
            Topic::Job(job) => self.job == Some(job),
        }
    }

    /// Bytes of memory; a small event is not free either.
    fn cost(&self) -> usize {
        self.bytes.len() + 64
    }
}

fn job_of(frame: &[u8]) -> Option<JobId> {
    match wire::Message::decode(frame) {
        Ok(wire::Message::SubmitJob(fixed, _)) => Some(fixed.job_uuid.job()),
        Ok(_) | Err(_) => None,
    }
}

impl Core {
    /// True for a watch that a leader which has been replaced must not answer: of a job that is not known here, or by
    /// somebody who knows more of the log.
    pub(super) fn is_watch_ahead(&self, fixed: &Watch) -> bool {
        let is_unknown =
            fixed.subject.get() == WatchSubject::Job as u16 && !self.state.jobs.contains_key(&fixed.uuid.job());
        is_unknown || fixed.after.get() > self.state.index
    }

    pub(super) fn on_watch(&mut self, from: PeerId, fixed: &Watch, now: Instant, actions: &mut Vec<Action>) {
        let (request, after) = (fixed.request.get(), fixed.after.get());
        let job = fixed.uuid.job();
        let refuse = |core: &Self, code, detail: &str, actions: &mut Vec<Action>| {
            core.refuse(from, Some(Kind::Watch), request, job, code, detail, actions);
        };
        let topic = match fixed.subject.get() {
            subject if subject == WatchSubject::Dispatch as u16 => Topic::Dispatch,
            subject if subject == WatchSubject::Job as u16 => {
                if !self.state.jobs.contains_key(&job) {
                    return refuse(self, ErrorCode::UnknownJob, &format!("no job {job}"), actions);
                }
                Topic::Job(job)
            }
            subject => {
                let detail = format!("watch subject {subject} is not known here");
                return refuse(self, ErrorCode::InvalidRequest, &detail, actions);
            }
        };
        // Its index is before what is remembered, or after what has happened: only the present can be told.
        let is_gap = after < self.watchers.start || after > self.state.index;
        if fixed.flags.get() & WATCH_FRESH != 0 || is_gap {
            return self.send_snapshot(from, request, topic, actions);
        }
        if self.send_news(from, request, topic, after, actions) {
            return;
        }
        let is_new = !self.watchers.parked.contains_key(&(topic, from));
        if is_new && self.watchers.parked.len() >= self.watchers.watches_max {
            return refuse(self, ErrorCode::Busy, "too many watches wait", actions);
        }
        let deadline = now + self.config.timings.watch_hold_ms;
        self.watchers.park(topic, from, Parked { request, after, deadline });
    }

    /// Tells those who wait for a topic that there is news.
    pub(super) fn answer_told_watches(&mut self, told: &BTreeSet<Topic>, actions: &mut Vec<Action>) {
        for topic in told {
            for peer in self.watchers.waiting_for(*topic) {
                let parked = self.watchers.unpark(*topic, peer).expect("it waits");
                if !self.send_news(peer, parked.request, *topic, parked.after, actions) {
                    self.watchers.park(*topic, peer, parked);
                }
            }
        }
    }

    /// Tells those who have waited long enough how far the log is, even if that is nothing to them.
    pub(super) fn answer_due_watches(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((deadline, topic, peer)) = self.watchers.deadlines.first().copied()
            && deadline <= now
        {
            let parked = self.watchers.unpark(topic, peer).expect("it waits");
            if !self.send_news(peer, parked.request, topic, parked.after, actions) {
                let batch = self.batch(parked.request, parked.after, self.state.index, 0);
                self.send_parts(peer, batch, &[], actions);
            }
        }
    }

    /// Sends what came after an index. False = nothing did.
    fn send_news(&self, to: PeerId, request: u64, topic: Topic, after: u64, actions: &mut Vec<Action>) -> bool {
        if after < self.watchers.start {
            self.send_snapshot(to, request, topic, actions);
            return true;
        }
        let (events, index) = self.watchers.after(topic, after, self.state.index);
        if events.is_empty() {
            return false;
        }
        self.send_parts(to, self.batch(request, after, index, 0), &events, actions);
        true
    }

    fn send_snapshot(&self, to: PeerId, request: u64, topic: Topic, actions: &mut Vec<Action>) {
        let events: Vec<Told> = match topic {
            Topic::Dispatch => dispatch_snapshot(&self.state),
            Topic::Job(job) => job_snapshot(&self.state.jobs[&job]),
        };
        let events: Vec<&[u8]> = events.iter().map(|event| &*event.bytes).collect();
        let index = self.state.index;
        self.send_parts(to, self.batch(request, index, index, BATCH_SNAPSHOT), &events, actions);
    }

    fn batch(&self, request: u64, after: u64, index: u64, flags: u32) -> WatchBatch {
        WatchBatch {
            request: U64::new(request),
            after: U64::new(after),
            index: U64::new(index),
            term: U64::new(self.raft.term()),
            flags: U32::new(flags),
            ..WatchBatch::DEFAULT
        }
    }

    /// Sends the events in as many messages as they take, at least one.
    fn send_parts(&self, to: PeerId, batch: WatchBatch, events: &[&[u8]], actions: &mut Vec<Action>) {
        let parts = parts(events);
        for (part, events) in parts.iter().enumerate() {
            let fixed = WatchBatch {
                num_events: U32::new(events.len() as u32),
                part: U16::new(part as u16),
                parts: U16::new(parts.len() as u16),
                ..batch
            };
            actions.push(Action::Send { to, frame: fixed.frame(self.config.node, &events.concat()) });
        }
    }
}

/// Cuts the events into lists of at most 1 MiB, or of one event.
fn parts<'a>(events: &'a [&'a [u8]]) -> Vec<&'a [&'a [u8]]> {
    let (mut parts, mut start, mut size) = (Vec::new(), 0, 0);
    for (position, event) in events.iter().enumerate() {
        if position > start && size + event.len() > BLOCK_SIZE {
            parts.push(&events[start..position]);
            (start, size) = (position, 0);
        }
        size += event.len();
    }
    parts.push(&events[start..]);
    parts
}

/// All that a load balancer without a view has to know.
fn dispatch_snapshot(state: &State) -> Vec<Told> {
    let mut events: Vec<Told> =
        state.nodes.values().map(|node| Told::new(&LogEvent::NodeRegistered { node: node.clone() })).collect();
    if state.epoch.number > 0 {
        let (load_balancer, boot, epoch) = (state.epoch.load_balancer, state.epoch.boot, state.epoch.number);
        events.push(Told::new(&LogEvent::EpochGranted { load_balancer, boot, epoch }));
    }
    // In the order of their numbers: the oldest job is told of first.
    let live = state.jobs_by_number.values().filter(|job| state.jobs_live.contains(job));
    events.extend(live.flat_map(|job| job_snapshot(&state.jobs[job])));
    events
}

/// Room for what an event has beside a job's frame and sets.
const SNAPSHOT_EVENT_RESERVE: usize = 4 * KIB;
/// Ranges in one event, so that none outgrows a frame.
const EVENT_RANGES_MAX: usize = 65_536;

/// One job as it is now.
fn job_snapshot(job: &Job) -> Vec<Told> {
    let (number, submitted_at, frame) = (job.number, job.submitted_at, &*job.frame);
    let ended: Vec<_> = job.ended_sets().map(|(state, set)| (state, set.to_bytes())).collect();
    let attempts: Vec<(ChunkRange, u32)> = job.tries.iter().map(|(range, tries)| (range, tries.attempt)).collect();
    let size = frame.len() + ended.iter().map(|(_, set)| set.len() + 8).sum::<usize>() + attempts.len() * 15;
    let mut events = Vec::new();
    if size + SNAPSHOT_EVENT_RESERVE <= FRAME_SIZE_MAX - KIB {
        events.push(Told::new(&LogEvent::JobSnapshot { number, submitted_at, frame, ended, attempts }));
    } else {
        // Told in pieces: the job as it was submitted, then what has happened to it.
        let bare = LogEvent::JobSnapshot { number, submitted_at, frame, ended: Vec::new(), attempts: Vec::new() };
        events.push(Told::new(&bare));
        let id = job.job;
        for (range, attempt) in attempts {
            events.push(Told::new(&LogEvent::ChunksWaiting { job: id, attempt, ranges: vec![range] }));
        }
        for (state, set) in job.ended_sets() {
            let ranges: Vec<ChunkRange> = set.ranges().collect();
            for ranges in ranges.chunks(EVENT_RANGES_MAX) {
                events.push(Told::new(&LogEvent::ChunksEnded { job: id, state, ranges: ranges.to_vec() }));
            }
        }
    }
    if !job.is_live() {
        let (state, at) = (job.counts().job_state(), job.finished_at);
        events.push(Told::new(&LogEvent::JobEnded { job: job.job, state, at }));
    }
    events
}
