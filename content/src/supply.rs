//! Decides which block of which file is asked of whom, when again, and who is answered.
//!
//! Like the desk of a library that lends from other libraries: readers come with call slips, two slips for one book are one
//! order, whoever stands at the desk is served before what might be wanted next, and that before what is only to be
//! stocked. A library that does not answer is passed over, a book that came wrong is asked of another, what all send wrong
//! nobody waits for, and no reader waits longer than the notice on the wall says. Bytes do not come through here: the driver
//! checks and keeps them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use wire::limit::BLOCK_SIZE;
use wire::{Duration, ErrorCode, FileAddress, FileId, FileRequest, FixedPart, Hash, Instant, Message, NodeId, PeerId};
use wire::{PART_OUTLINE, RESPONSE_OUTLINE, U32, U64};

use crate::{BlockState, FetchError, outline_size};

mod ask;
mod done;
mod doubt;
mod entry;
mod holders;
mod invariant;
mod reply;
mod wait;

use doubt::{Of, Why};
use entry::{Block, Class, Entry, Length, Stage};
use holders::Holders;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Settings of a supply.
#[derive(Clone, Copy, Debug)]
pub struct SupplySettings {
    /// Blocks asked for, or here and not yet checked; 16 = a window of 16 MiB. A slow holder gets fewer.
    pub blocks_in_flight_max: usize,
    /// As many more for whoever waits, so that what is fetched ahead is never in the way.
    pub demand_extra: usize,
    /// How far ahead of a sequential reader is fetched at the most, in blocks.
    pub window_max: u64,
    /// How long a holder may be silent before the next is asked.
    pub range_timeout: Duration,
    /// How long to leave a holder alone that is busy, or a file at one that has it not ready.
    pub busy_pause: Duration,
    /// How long a holder is not asked for what it has sent wrong, or refused.
    pub doubt: Duration,
    /// How long a holder is asked last that sent wrong things of several files.
    pub rest: Duration,
    /// After a read has missed its deadline, those of the same file fail at once for so long, or until a block comes: the
    /// kernel asks again for what failed, and each time would cost a deadline.
    pub mute: Duration,
    /// Tickets at the same time; beyond it they fail at once.
    pub tickets_max: usize,
    /// Files that are remembered although nobody waits for them.
    pub files_max: usize,
}

impl Default for SupplySettings {
    fn default() -> Self {
        Self {
            blocks_in_flight_max: 16,
            demand_extra: 4,
            window_max: 16,
            range_timeout: Duration::from_secs(2),
            busy_pause: Duration::from_millis(50),
            doubt: Duration::from_secs(3),
            rest: Duration::from_secs(15),
            mute: Duration::from_secs(5),
            tickets_max: 1024,
            files_max: 16_384,
        }
    }
}

/// Somebody who waits: a number that the driver gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// An order to the driver that takes time; it comes back with what became of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Work(pub u64);

/// What is known of a file before its bytes are here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub file: FileId,
    /// Without it the 122 bits of the id are checked.
    pub hash: Option<Hash>,
    /// Without it holders are asked.
    pub length: Option<u64>,
}

/// What a ticket waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// The length of the file.
    Length,
    /// These bytes, checked and in the cache; those beyond the end are not missed.
    Range { offset: u64, length: u64 },
    /// The whole file, checked and sealed.
    Whole,
}

/// How much of a file is fetched that nobody waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fetching {
    /// What is read, and what a sequential reader will read next.
    Lazily,
    /// All of it, when nothing else is to be done.
    Whole,
}

/// What became of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// Of `Open`: what is here of each block, and whether the outline is here too.
    Opened { blocks: &'a [BlockState], has_outline: bool },
    /// Of `Open`: everything is here, seen to be right, and sealed.
    Sealed,
    /// Done; what was checked is right.
    Right,
    /// What was checked is wrong, and is gone.
    Wrong,
    /// It could not be done here: no room, an unusable disk.
    Failed(String),
}

#[derive(Debug)]
pub enum SupplyEvent<'a> {
    /// Who can be asked, the best first, and what to call them when an error speaks of them.
    Holders(&'a [(PeerId, String)]),
    /// Somebody waits, at most for `timeout`.
    Asked {
        ticket: Ticket,
        wanted: Wanted,
        need: Need,
        timeout: Duration,
    },
    /// These bytes were read from the cache, without a ticket.
    Touched {
        file: FileId,
        offset: u64,
        length: u64,
    },
    /// The file will be wanted.
    Wanted {
        wanted: Wanted,
        how: Fetching,
    },
    /// Nobody needs the file now.
    Forgotten {
        file: FileId,
    },
    /// The cache turns out to have less of the file than it had: somebody else has been at it.
    Doubted {
        file: FileId,
    },
    Received {
        from: PeerId,
        message: &'a Message<'a>,
        payload_length: u64,
    },
    Done {
        work: Work,
        outcome: Outcome<'a>,
    },
    Tick,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SupplyAction {
    Send {
        to: PeerId,
        frame: Vec<u8>,
    },
    /// Find the file in the cache, or make room for it there; until `Close`.
    Open {
        work: Work,
        wanted: Wanted,
    },
    /// Check the payload of the message that has just been received as this block, and keep it.
    Fill {
        work: Work,
        file: FileId,
        block: u64,
    },
    /// Look whether a claimed block is right.
    Check {
        work: Work,
        file: FileId,
        block: u64,
    },
    /// Append the payload of the message that has just been received to the outline, of which it is what begins at `offset`.
    Append {
        file: FileId,
        offset: u64,
    },
    /// The outline is complete: check it, and keep it.
    Outline {
        work: Work,
        file: FileId,
    },
    /// Every block is held: make the file durable and give it its place.
    Seal {
        work: Work,
        file: FileId,
    },
    /// What the ticket waits for is here, in a file of `length` bytes.
    Answer {
        ticket: Ticket,
        length: u64,
    },
    Fail {
        ticket: Ticket,
        why: FetchError,
    },
    /// This holder sent something wrong of the file; that it is not asked for a while.
    Distrust {
        holder: PeerId,
        file: FileId,
        what: &'static str,
    },
    /// This holder sent wrong things of several files; it is asked last for a while.
    Rest {
        holder: PeerId,
    },
    /// Let go of the file.
    Close {
        file: FileId,
    },
}

/// A request to a holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Length,
    /// From this byte of it on.
    Outline(u64),
    Block(u64, Class),
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    file: FileId,
    part: Part,
    to: PeerId,
    at: Instant,
    /// When the same holder first answered something that was asked later.
    overtaken_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Open,
    Fill { block: u64, from: PeerId },
    Check { block: u64 },
    Outline { from: PeerId },
    Seal,
}

#[derive(Clone, Copy, Debug)]
struct Working {
    /// `None` when the file was given up meanwhile: the outcome counts for nothing.
    file: Option<FileId>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    file: FileId,
    need: Need,
    deadline: Instant,
}

/// All files of one cache that are on their way here.
#[derive(Debug)]
pub struct Supply {
    node: NodeId,
    settings: SupplySettings,
    holders: Holders,
    files: BTreeMap<FileId, Entry>,
    tickets: BTreeMap<Ticket, Waiting>,
    deadlines: BTreeSet<(Instant, Ticket)>,
    /// By the number of the request.
    asked: BTreeMap<u64, Asked>,
    works: BTreeMap<Work, Working>,
    /// Files whose length or outline is to be asked for.
    errands: VecDeque<FileId>,
    demand: VecDeque<(FileId, u64)>,
    ahead: VecDeque<(FileId, u64)>,
    /// Files to fetch whole, the smallest first.
    whole: BTreeSet<(u64, FileId)>,
    /// Blocks that may be in flight now.
    room: usize,
    /// The last request before the room was halved: what was asked earlier says nothing new.
    room_halved_before: u64,
    next_request: u64,
    next_work: u64,
}

/// A holder that answers sooner than this gets more to do, one that takes longer than the other less: whoever waits should
/// not stand behind seconds of other people's bytes.
const ANSWER_SOON: Duration = Duration::from_millis(300);
const ANSWER_LATE: Duration = Duration::from_secs(1);
const ROOM_MIN: usize = 2;
const ROOM_FIRST: usize = 4;

/// Whether something could be begun.
enum Begun {
    Yes,
    /// It was in line for nothing.
    Stale,
    /// Nobody can be asked for it now.
    Later,
}

impl Supply {
    /// A supply that signs as `node` and numbers its requests from `first_request`.
    pub fn new(node: NodeId, first_request: u64, settings: SupplySettings) -> Self {
        Self {
            node,
            settings,
            holders: Holders::default(),
            files: BTreeMap::new(),
            tickets: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            asked: BTreeMap::new(),
            works: BTreeMap::new(),
            errands: VecDeque::new(),
            demand: VecDeque::new(),
            ahead: VecDeque::new(),
            whole: BTreeSet::new(),
            room: ROOM_FIRST.min(settings.blocks_in_flight_max),
            room_halved_before: 0,
            next_request: first_request,
            next_work: 0,
        }
    }

    /// Takes one event, changes the state, and appends what is to be done about it, in order.
    pub fn step(&mut self, event: SupplyEvent<'_>, now: Instant, actions: &mut Vec<SupplyAction>) {
        match event {
            SupplyEvent::Holders(peers) => self.on_holders(peers),
            SupplyEvent::Asked { ticket, wanted, need, timeout } => {
                self.on_asked(ticket, wanted, need, now + timeout, now, actions);
            }
            SupplyEvent::Touched { file, offset, length } => self.on_touched(file, offset, length),
            SupplyEvent::Wanted { wanted, how } => {
                if self.entry(wanted, false, now, actions).is_ok() {
                    self.raise(wanted.file, how, actions);
                }
            }
            SupplyEvent::Forgotten { file } => {
                let address = FileAddress { file, piece: None };
                let why = FetchError::Local { what: address.to_string(), why: "nobody needs it any longer".into() };
                self.fail_all(file, &why, actions);
                self.close(file, actions);
            }
            SupplyEvent::Doubted { file } => {
                if self.files.contains_key(&file) {
                    self.restart(file, actions);
                }
            }
            SupplyEvent::Received { from, message, payload_length } => {
                self.on_received(from, message, payload_length, now, actions);
            }
            SupplyEvent::Done { work, outcome } => self.on_done(work, outcome, now, actions),
            SupplyEvent::Tick => {}
        }
        self.time_out(now, actions);
        self.pump(now, actions);
    }

    /// When `step` wants a `Tick`, if nothing else happens first.
    pub fn next_deadline(&self) -> Option<Instant> {
        let tickets = self.deadlines.first().map(|(deadline, _)| *deadline);
        let requests = self.asked.values().map(|asked| self.late_at(asked)).min();
        let is_stuck =
            !(self.errands.is_empty() && self.demand.is_empty() && self.ahead.is_empty() && self.whole.is_empty());
        let holders = is_stuck.then(|| self.holders.next_change()).flatten();
        [tickets, requests, holders].into_iter().flatten().min()
    }

    /// Whether what becomes of an order still counts.
    pub fn is_wanted(&self, work: Work) -> bool {
        self.works.get(&work).is_some_and(|working| working.file.is_some())
    }

    fn on_holders(&mut self, peers: &[(PeerId, String)]) {
        for gone in self.holders.replace(peers) {
            self.ask_again_all(gone);
            for entry in self.files.values_mut() {
                entry.doubts.forget(gone);
            }
        }
    }

    fn time_out(&mut self, now: Instant, actions: &mut Vec<SupplyAction>) {
        while let Some((deadline, ticket)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            let waiting = self.tickets[&ticket];
            let entry = self.files.get_mut(&waiting.file).expect("somebody waits for it");
            let why = FetchError::Deadline {
                address: FileAddress { file: waiting.file, piece: None },
                held: (entry.held * BLOCK).min(entry.length.known().unwrap_or(0)),
            };
            if let Need::Range { .. } = waiting.need {
                entry.muted = Some((now + self.settings.mute, why.clone()));
            }
            debug_assert!(deadline <= now);
            self.fail(ticket, why, actions);
        }
        let late: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| self.late_at(asked) <= now).map(|(request, _)| *request).collect();
        for request in late {
            let asked = self.asked.remove(&request).expect("it was found above");
            self.holders.slow(asked.to, now + self.settings.range_timeout);
            let part = match asked.part {
                // Nobody waits for it, and if that changes it is asked for again.
                Part::Block(block, Class::Ahead) => Part::Block(block, Class::Whole),
                Part::Block(..) | Part::Length | Part::Outline(_) => asked.part,
            };
            self.put_back(asked.file, part);
        }
    }

    /// When a request counts as lost: its holder has said nothing for too long, or has long answered what came after it.
    fn late_at(&self, asked: &Asked) -> Instant {
        let silent = asked.at.max(self.holders.heard_at(asked.to)) + self.settings.range_timeout;
        asked.overtaken_at.map_or(silent, |at| silent.min(at + self.settings.range_timeout))
    }
}

fn local(file: FileId, why: &str) -> FetchError {
    FetchError::Local { what: FileAddress { file, piece: None }.to_string(), why: why.to_owned() }
}
