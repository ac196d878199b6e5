//! Brings files from storage into the cache, block by block, for whoever waits: one thread that owns the connections and
//! what `content::Supply` decides, and beside it threads that check and write.
//!
//! Nobody who asks is ever held up: a question goes in with a ticket, and what is parked under the ticket is called on this
//! thread when the answer is there, with the block that has just come if it is at hand. Whoever can wait has `fetch`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use content::{
    BlockState, Cached, FetchError, Fetching, HolderAddress, Need, Outcome, Store, StoreError, Supply, SupplyAction,
    SupplyEvent, SupplySettings, Ticket, Wanted, Work,
};
use node::channel::{self, Inbox, Orders, Outbox, Receiver, TrySendError};
use node::{Bell, Certificate, Clock, Endpoint, EndpointConfig, EndpointError, Frame};
use wire::{BootNonce, ClientKey, Duration, FileAddress, FileId, Instant, Message, NodeId, PeerId};

use crate::mount::Parking;

mod recent;

pub use recent::Block;
use recent::Recent;

/// Threads that check and write.
const FILLERS: usize = 2;
/// Questions that have not been looked at yet; beyond it they fail.
const QUESTIONS_MAX: usize = 16_384;
/// Orders that lie before the fillers; the others, a few blocks and at most one for each file, wait with the thread.
const JOBS_MAX: usize = 64;
/// Messages taken from the sockets in one go.
const MESSAGES_PER_TURN_MAX: usize = 32;
/// Whoever waits for this thread without being called waits no longer than this beyond its time.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the files go.
pub trait Shelf: Send + Sync + 'static {
    fn store(&self) -> &Store;
    /// A file has more bytes on the disk than before.
    fn grown(&self, file: FileId);
    /// Somebody reads a file: until as many `closed` it stays.
    fn opened(&self, file: FileId);
    fn closed(&self, file: FileId);
    /// The disk is full: removes what nobody needs, but not this file. Whoever comes meanwhile waits.
    fn make_room(&self, file: FileId);
}

enum Question {
    Ask { ticket: Ticket, wanted: Wanted, need: Need, timeout: Duration },
    Touched { file: FileId, offset: u64, length: u64 },
    Want { wanted: Wanted, how: Fetching },
    Forget { file: FileId },
    Holders(Vec<HolderAddress>),
    Beat,
}

/// The way to the thread, for any other. The thread ends with the last of them.
#[derive(Clone)]
pub struct Supplier(Arc<Line>);

struct Line {
    /// `None` only while it is dropped.
    questions: Option<Outbox<Question>>,
    bell: Bell,
    parking: Arc<Parking>,
    next_ticket: AtomicU64,
    beats_unanswered: Arc<AtomicU64>,
    bytes_fetched: Arc<AtomicU64>,
    recent: Arc<Recent>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // The thread sees that nobody is left when it is woken.
        self.questions = None;
        self.bell.ring();
    }
}

impl Supplier {
    /// Starts the threads; what is asked for is answered to `parking`. Holders are told later.
    pub fn start(
        node: NodeId,
        boot: BootNonce,
        certificate: Certificate,
        shelf: Arc<dyn Shelf>,
        parking: Arc<Parking>,
        settings: SupplySettings,
    ) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::open(EndpointConfig::new(node, boot, certificate))?;
        let bell = endpoint.bell();
        let (questions, asked) = channel::to_owner(QUESTIONS_MAX, &bell);
        let (done, finished) = channel::to_owner(JOBS_MAX, &bell);
        let (jobs, waiting) = channel::to_helper(JOBS_MAX);
        let (bytes_fetched, beats_unanswered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let recent = Arc::new(Recent::default());
        for _ in 0..FILLERS {
            let filler = Filler {
                shelf: shelf.clone(),
                waiting: waiting.clone(),
                done: done.clone(),
                count: bytes_fetched.clone(),
                recent: recent.clone(),
            };
            spawn("filler", move || filler.run())?;
        }
        // Numbers of an earlier process of this node must not be taken for ours.
        let supply = Supply::new(node, NodeId::random().halves().0 >> 1, settings);
        let driver = Driver {
            endpoint,
            clock: Clock::new(),
            supply,
            asked,
            finished,
            jobs,
            backlog: VecDeque::new(),
            holders: Vec::new(),
            open: BTreeMap::new(),
            outlines: BTreeMap::new(),
            waiting: BTreeMap::new(),
            parking: parking.clone(),
            beats_unanswered: beats_unanswered.clone(),
            events: VecDeque::new(),
        };
        spawn("supply", move || driver.run())?;
        let next_ticket = AtomicU64::new(0);
        let questions = Some(questions);
        let line = Line { questions, bell, parking, next_ticket, beats_unanswered, bytes_fetched, recent };
        Ok(Self(Arc::new(line)))
    }

    /// A ticket that nobody has. What is to be done is parked under it before it is used.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.0.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks; what is parked is called at the latest after `timeout`. False = there is no room, and it never will be.
    pub fn ask(&self, ticket: Ticket, wanted: Wanted, need: Need, timeout: Duration) -> bool {
        self.send(Question::Ask { ticket, wanted, need, timeout })
    }

    /// Asks and waits; returns the length of the file. Not for threads that somebody waits for.
    pub fn fetch(&self, wanted: Wanted, need: Need, timeout: Duration) -> Result<u64, FetchError> {
        let (tx, rx) = mpsc::sync_channel(1);
        let ticket = self.ticket();
        // Whoever has stopped waiting does not want to know.
        self.0.parking.park(ticket, move |came| {
            let _ = tx.send(came.map(|came| came.length).map_err(FetchError::clone));
        });
        if !self.ask(ticket, wanted, need, timeout) {
            self.0.parking.fail(ticket, &local(wanted.file, "too many wait already"));
        }
        match rx.recv_timeout(timeout + CALL_TIMEOUT) {
            Ok(answer) => answer,
            Err(_) => Err(local(wanted.file, "the thread that fetches does not answer")),
        }
    }

    /// Tells of a read that the cache could answer, in a file that is not whole: its reader will go on.
    pub fn touched(&self, file: FileId, offset: u64, length: u64) {
        self.send(Question::Touched { file, offset, length });
    }

    /// Has a file fetched although nobody waits for it.
    pub fn want(&self, wanted: Wanted, how: Fetching) {
        self.send(Question::Want { wanted, how });
    }

    /// Ends what is fetched of a file, and fails whoever waits for it.
    pub fn forget(&self, file: FileId) {
        self.send(Question::Forget { file });
    }

    /// Says who has files, the best first.
    pub fn holders(&self, addresses: Vec<HolderAddress>) {
        self.send(Question::Holders(addresses));
    }

    /// Has the thread say that it is there; returns how many times in a row it has not said so yet.
    pub fn beat(&self) -> u64 {
        let unanswered = self.0.beats_unanswered.fetch_add(1, Ordering::Relaxed);
        self.send(Question::Beat);
        unanswered
    }

    /// Bytes that have come and were right since the start.
    pub fn bytes_fetched(&self) -> u64 {
        self.0.bytes_fetched.load(Ordering::Relaxed)
    }

    /// The block that this byte of the file lies in, if it is one of the last that came.
    pub fn at_hand(&self, file: FileId, offset: u64) -> Option<Arc<Block>> {
        self.0.recent.find(file, offset)
    }

    /// Somebody has read the block to its end: the memory is used for the next one while the processor's caches still have it.
    pub fn let_go(&self, block: &Arc<Block>) {
        self.0.recent.let_go(block);
    }

    fn send(&self, question: Question) -> bool {
        self.0.questions.as_ref().is_some_and(|questions| questions.try_send(question).is_ok())
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), EndpointError> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(EndpointError::Thread)
}

fn local(file: FileId, why: &str) -> FetchError {
    FetchError::Local { what: FileAddress { file, piece: None }.to_string(), why: why.to_owned() }
}

/// An order to a filler.
enum Job {
    Open { wanted: Wanted },
    Fill { cached: Arc<Cached>, block: u64, bytes: Frame },
    Check { cached: Arc<Cached>, block: u64 },
    Outline { cached: Arc<Cached>, bytes: Vec<u8> },
    Seal { cached: Arc<Cached> },
}

/// What became of it.
struct Done {
    work: Work,
    outcome: Became,
    /// The block that came and was right.
    block: Option<Arc<Block>>,
}

enum Became {
    Opened(Arc<Cached>),
    Sealed(Arc<Cached>),
    Right,
    Wrong,
    Failed(String),
}

/// A thread that checks and writes.
struct Filler {
    shelf: Arc<dyn Shelf>,
    waiting: Receiver<(Work, Job)>,
    done: Outbox<Done>,
    count: Arc<AtomicU64>,
    recent: Arc<Recent>,
}

impl Filler {
    fn run(self) {
        while let Ok((work, job)) = self.waiting.recv() {
            let (outcome, block) = self.perform(job);
            if self.done.send(Done { work, outcome, block }).is_err() {
                return;
            }
        }
    }

    fn perform(&self, job: Job) -> (Became, Option<Arc<Block>>) {
        let judge = |result: Result<bool, StoreError>| match result {
            Ok(true) => Became::Right,
            Ok(false) | Err(StoreError::Mismatch(_)) => Became::Wrong,
            Err(error) => Became::Failed(error.to_string()),
        };
        match job {
            Job::Open { wanted } => {
                let length = wanted.length.expect("nothing is opened without a length");
                let opened = self.shelf.store().cached(wanted.file, wanted.hash, length);
                if let Some(error) = opened.as_ref().ok().and_then(|cached| cached.borrow().err()) {
                    tracing::debug!(file = %wanted.file, %error, "it cannot be borrowed");
                }
                let became = opened.map(|cached| match cached.is_sealed() {
                    true => Became::Sealed(cached),
                    false => Became::Opened(cached),
                });
                (became.unwrap_or_else(|error| Became::Failed(error.to_string())), None)
            }
            Job::Fill { cached, block, bytes } => match judge(self.with_room(&cached, || cached.fill(block, &bytes))) {
                Became::Right => {
                    self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.shelf.grown(cached.file);
                    let offset = block * wire::limit::BLOCK_SIZE as u64;
                    let block = Arc::new(Block { file: cached.file, offset, bytes });
                    self.recent.add(block.clone());
                    (Became::Right, Some(block))
                }
                became => (became, None),
            },
            Job::Check { cached, block } => (judge(cached.recheck(block)), None),
            Job::Outline { cached, bytes } => {
                let is_right = cached.take_outline(&bytes).is_ok();
                (if is_right { Became::Right } else { Became::Wrong }, None)
            }
            Job::Seal { cached } => {
                let became = judge(self.with_room(&cached, || self.shelf.store().seal(&cached)));
                self.shelf.grown(cached.file);
                (became, None)
            }
        }
    }

    /// Writes, and once more where the disk was full: what nobody needs may be gone then, removed here or by the other filler.
    fn with_room<T>(&self, cached: &Cached, write: impl Fn() -> Result<T, StoreError>) -> Result<bool, StoreError> {
        let mut written = write();
        if let Err(StoreError::DiskFull) = written {
            self.shelf.make_room(cached.file);
            written = write();
        }
        written.map(|_| true)
    }
}

/// Somebody who waits.
struct Waiting {
    wanted: Wanted,
    need: Need,
    deadline: Instant,
}

/// What comes with an event, for its actions.
#[derive(Default)]
struct Cargo {
    payload: Option<Frame>,
    block: Option<Arc<Block>>,
}

/// The thread that owns the core.
struct Driver {
    endpoint: Endpoint,
    clock: Clock,
    supply: Supply,
    asked: Inbox<Question>,
    finished: Inbox<Done>,
    jobs: Orders<(Work, Job)>,
    /// What the fillers have no room for yet.
    backlog: VecDeque<(Work, Job)>,
    holders: Vec<(HolderAddress, PeerId)>,
    open: BTreeMap<FileId, Arc<Cached>>,
    /// Pieces that have come of outlines.
    outlines: BTreeMap<FileId, Vec<u8>>,
    waiting: BTreeMap<Ticket, Waiting>,
    parking: Arc<Parking>,
    beats_unanswered: Arc<AtomicU64>,
    /// What follows from actions, to be told in the same turn.
    events: VecDeque<Follow>,
}

/// An event that an action led to.
enum Follow {
    /// The cache has less than the core believes.
    Doubt(FileId),
    AskAgain(Ticket, Waiting),
}

impl Driver {
    fn run(mut self) {
        loop {
            self.endpoint.wait(self.supply.next_deadline());
            loop {
                match self.asked.try_recv() {
                    Ok(question) => self.on_question(question),
                    Err(error) if error.is_empty() => break,
                    Err(_) => return,
                }
            }
            let mut messages = Vec::new();
            self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |from, _, frames| messages.push((from, frames)));
            for (from, frames) in messages {
                self.on_frames(from, frames);
            }
            while let Ok(done) = self.finished.try_recv() {
                self.hand_on();
                self.on_done(done);
            }
            self.step(SupplyEvent::Tick, Cargo::default());
        }
    }

    fn on_question(&mut self, question: Question) {
        match question {
            Question::Ask { ticket, wanted, need, timeout } => {
                let deadline = self.clock.now() + timeout;
                self.on_ask(ticket, Waiting { wanted, need, deadline });
            }
            Question::Touched { file, offset, length } => {
                self.step(SupplyEvent::Touched { file, offset, length }, Cargo::default());
            }
            Question::Want { wanted, how } => self.step(SupplyEvent::Wanted { wanted, how }, Cargo::default()),
            Question::Forget { file } => self.step(SupplyEvent::Forgotten { file }, Cargo::default()),
            Question::Holders(addresses) => self.on_holders(addresses),
            Question::Beat => self.beats_unanswered.store(0, Ordering::Relaxed),
        }
    }

    fn on_ask(&mut self, ticket: Ticket, waiting: Waiting) {
        let (wanted, need) = (waiting.wanted, waiting.need);
        let timeout = waiting.deadline.since(self.clock.now());
        self.waiting.insert(ticket, waiting);
        self.step(SupplyEvent::Asked { ticket, wanted, need, timeout }, Cargo::default());
    }

    fn on_holders(&mut self, addresses: Vec<HolderAddress>) {
        let key = |address: &HolderAddress| -> (String, Option<ClientKey>) { (address.endpoint.clone(), address.key) };
        let mut before = std::mem::take(&mut self.holders);
        for address in addresses {
            if let Some(at) = before.iter().position(|(known, _)| key(known) == key(&address)) {
                self.holders.push(before.remove(at));
                continue;
            }
            match self.endpoint.connect(&address.endpoint, address.key, address.role, address.class) {
                Ok(peer) => self.holders.push((address, peer)),
                Err(error) => tracing::error!(endpoint = address.endpoint, %error, "a storage node cannot be asked"),
            }
        }
        for (_, peer) in before {
            self.endpoint.disconnect(peer);
        }
        let peers: Vec<(PeerId, String)> =
            self.holders.iter().map(|(address, peer)| (*peer, address.endpoint.clone())).collect();
        self.step(SupplyEvent::Holders(&peers), Cargo::default());
    }

    fn on_frames(&mut self, from: PeerId, mut frames: Vec<Frame>) {
        let payload = match frames.len() {
            0 => return,
            1 => None,
            2 => frames.pop(),
            _ => Some(Frame::from(frames.drain(1..).flat_map(|frame| frame.to_vec()).collect::<Vec<u8>>())),
        };
        let Ok(message) = Message::decode(&frames[0]) else { return };
        let payload_length = payload.as_ref().map_or(0, |payload| payload.len() as u64);
        // An answer without content may be without its frame.
        let payload = payload.or_else(|| Some(Frame::from(Vec::new())));
        let event = SupplyEvent::Received { from, message: &message, payload_length };
        self.step(event, Cargo { payload, block: None });
    }

    fn on_done(&mut self, done: Done) {
        let Done { work, outcome, block } = done;
        let cargo = Cargo { payload: None, block };
        let outcome = match outcome {
            Became::Opened(cached) => {
                let blocks: Vec<BlockState> =
                    (0..content::blocks(cached.length)).map(|block| cached.state(block)).collect();
                let has_outline = cached.outline().is_some();
                self.keep_open(work, cached);
                return self.step(
                    SupplyEvent::Done { work, outcome: Outcome::Opened { blocks: &blocks, has_outline } },
                    cargo,
                );
            }
            Became::Sealed(cached) => {
                self.keep_open(work, cached);
                Outcome::Sealed
            }
            Became::Right => Outcome::Right,
            Became::Wrong => Outcome::Wrong,
            Became::Failed(why) => Outcome::Failed(why),
        };
        self.step(SupplyEvent::Done { work, outcome }, cargo);
    }

    /// A file that was given up while it was opened is not kept.
    fn keep_open(&mut self, work: Work, cached: Arc<Cached>) {
        if self.supply.is_wanted(work) {
            self.open.insert(cached.file, cached);
        }
    }

    fn step(&mut self, event: SupplyEvent<'_>, mut cargo: Cargo) {
        let mut actions = Vec::new();
        self.supply.step(event, self.clock.now(), &mut actions);
        for action in actions {
            self.perform(action, &mut cargo);
        }
        while let Some(follow) = self.events.pop_front() {
            match follow {
                Follow::Doubt(file) => self.step(SupplyEvent::Doubted { file }, Cargo::default()),
                Follow::AskAgain(ticket, waiting) => self.on_ask(ticket, waiting),
            }
        }
    }

    fn perform(&mut self, action: SupplyAction, cargo: &mut Cargo) {
        match action {
            SupplyAction::Send { to, frame } => {
                // What is not taken is lost, and silence brings it again.
                let _ = self.endpoint.send(to, frame);
            }
            SupplyAction::Open { work, wanted } => self.order(work, Job::Open { wanted }),
            SupplyAction::Fill { work, file, block } => {
                let bytes = cargo.payload.take().expect("a block is kept when it comes");
                self.order(work, Job::Fill { cached: self.opened(file), block, bytes });
            }
            SupplyAction::Check { work, file, block } => {
                self.order(work, Job::Check { cached: self.opened(file), block });
            }
            SupplyAction::Append { file, offset } => {
                let bytes = cargo.payload.take().expect("a piece is kept when it comes");
                let outline = self.outlines.entry(file).or_default();
                outline.truncate(usize::try_from(offset).unwrap_or(usize::MAX));
                outline.extend_from_slice(&bytes);
            }
            SupplyAction::Outline { work, file } => {
                let bytes = self.outlines.remove(&file).unwrap_or_default();
                self.order(work, Job::Outline { cached: self.opened(file), bytes });
            }
            SupplyAction::Seal { work, file } => self.order(work, Job::Seal { cached: self.opened(file) }),
            SupplyAction::Answer { ticket, length } => self.answer(ticket, length, cargo),
            SupplyAction::Fail { ticket, why } => {
                self.waiting.remove(&ticket).expect("who is failed waits");
                self.parking.fail(ticket, &why);
            }
            SupplyAction::Distrust { holder, file, what } => {
                let endpoint = self.endpoint_of(holder);
                tracing::error!(endpoint, %file, what, "a storage node sent something wrong, and is not asked for it for a while");
            }
            SupplyAction::Rest { holder } => {
                let endpoint = self.endpoint_of(holder);
                tracing::error!(
                    endpoint,
                    "a storage node sent wrong things of several files, and is asked last for a while"
                );
            }
            SupplyAction::Close { file } => {
                self.open.remove(&file);
                self.outlines.remove(&file);
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, length: u64, cargo: &Cargo) {
        let waiting = self.waiting.remove(&ticket).expect("who is answered waits");
        let file = waiting.wanted.file;
        let is_here = match waiting.need {
            Need::Range { offset, length } => self.open.get(&file).is_some_and(|cached| {
                // Looks at the file itself: it may have been removed or written to since.
                let _ = cached.is_sealed();
                cached.holds(offset, length)
            }),
            Need::Length | Need::Whole => true,
        };
        if !is_here {
            self.events.push_back(Follow::Doubt(file));
            return self.events.push_back(Follow::AskAgain(ticket, waiting));
        }
        self.parking.answer(ticket, length, cargo.block.as_ref());
    }

    fn endpoint_of(&self, holder: PeerId) -> Option<&str> {
        self.holders.iter().find(|(_, peer)| *peer == holder).map(|(known, _)| &*known.endpoint)
    }

    fn opened(&self, file: FileId) -> Arc<Cached> {
        self.open.get(&file).expect("nothing is done with a file before it is open").clone()
    }

    fn order(&mut self, work: Work, job: Job) {
        self.backlog.push_back((work, job));
        self.hand_on();
    }

    fn hand_on(&mut self) {
        while let Some(job) = self.backlog.pop_front() {
            if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
                return self.backlog.push_front(job);
            }
        }
    }
}

impl Drop for Driver {
    /// Whoever waits would wait for ever.
    fn drop(&mut self) {
        let mut tickets: Vec<(Ticket, FileId)> =
            self.waiting.iter().map(|(ticket, waiting)| (*ticket, waiting.wanted.file)).collect();
        while let Ok(question) = self.asked.try_recv() {
            if let Question::Ask { ticket, wanted, .. } = question {
                tickets.push((ticket, wanted.file));
            }
        }
        for (ticket, file) in tickets {
            self.parking.fail(ticket, &local(file, "this worker ends"));
        }
    }
}
