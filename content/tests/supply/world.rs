//! A supply among holders that are slow, dead, busy, lying or honest, and a cache that is real but for its disk: whatever
//! happens, everybody is answered or failed in time, and never with bytes that were not checked.

use std::collections::{BTreeMap, VecDeque};

use content::{
    BlockState, Fetching, Need, Outcome, Supply, SupplyAction, SupplyEvent, SupplySettings, Ticket, Wanted, Work,
    blocks, outline_size,
};
use proptest::prelude::*;
use wire::limit::BLOCK_SIZE;
use wire::{
    Duration, ErrorCode, FileId, FileResponse, FixedPart, Instant, Kind, Message, NodeId, PART_OUTLINE, PeerId,
    RESPONSE_OUTLINE, U32, U64,
};

const BLOCK: u64 = BLOCK_SIZE as u64;
const FILES: usize = 3;
const HOLDERS: u64 = 3;
const CASES: u32 = 4_000;

/// What a holder does with a request.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Honest,
    Wrong,
    WrongLength,
    Short,
    Silent,
    Busy,
    NotReady,
    Unknown,
}

#[derive(Clone, Debug)]
enum Happens {
    Read {
        file: usize,
        block: u64,
        count: u64,
    },
    Whole {
        file: usize,
    },
    Length {
        file: usize,
    },
    Touch {
        file: usize,
        block: u64,
    },
    Prefetch {
        file: usize,
    },
    Forget {
        file: usize,
    },
    Doubt {
        file: usize,
    },
    Holders {
        first: u64,
        count: u64,
    },
    /// One holder answers what it was asked first, or not.
    Reply {
        mood: Mood,
    },
    /// The driver does one order, well or not.
    Work {
        fails: bool,
    },
    Pass {
        ms: u64,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    let file = 0..FILES;
    let mood = prop_oneof![
        6 => Just(Mood::Honest),
        1 => Just(Mood::Wrong),
        1 => Just(Mood::WrongLength),
        1 => Just(Mood::Short),
        1 => Just(Mood::Silent),
        1 => Just(Mood::Busy),
        1 => Just(Mood::NotReady),
        1 => Just(Mood::Unknown),
    ];
    prop_oneof![
        4 => (file.clone(), 0..40u64, 1..3u64).prop_map(|(file, block, count)| Happens::Read { file, block, count }),
        1 => file.clone().prop_map(|file| Happens::Whole { file }),
        1 => file.clone().prop_map(|file| Happens::Length { file }),
        2 => (file.clone(), 0..40u64).prop_map(|(file, block)| Happens::Touch { file, block }),
        1 => file.clone().prop_map(|file| Happens::Prefetch { file }),
        1 => file.clone().prop_map(|file| Happens::Forget { file }),
        1 => file.prop_map(|file| Happens::Doubt { file }),
        1 => (0..HOLDERS, 0..=HOLDERS).prop_map(|(first, count)| Happens::Holders { first, count }),
        16 => mood.prop_map(|mood| Happens::Reply { mood }),
        16 => (0..30u8).prop_map(|dice| Happens::Work { fails: dice == 0 }),
        5 => prop_oneof![0..100u64, 500..4_000u64].prop_map(|ms| Happens::Pass { ms }),
    ]
}

/// One file, and what the cache has of it. The payload of a block is told right from wrong by a flag of the message.
struct File {
    wanted: Wanted,
    length: u64,
    blocks: Vec<BlockState>,
    has_outline: bool,
}

enum Order {
    Open { file: usize, length: u64 },
    Fill { file: usize, block: u64, is_right: bool },
    Check { file: usize, block: u64 },
    Outline { file: usize, is_right: bool },
    Seal { file: usize },
}

struct World {
    supply: Supply,
    now: Instant,
    files: Vec<File>,
    requests: VecDeque<(PeerId, Vec<u8>)>,
    orders: VecDeque<(Work, Order)>,
    waiting: BTreeMap<Ticket, (usize, Need, Instant)>,
    next_ticket: u64,
    /// Whether the payload of the message that is being received is right.
    is_payload_right: bool,
    outlines_right: Vec<bool>,
    /// Whether whoever does not wait any longer was answered.
    ended: BTreeMap<Ticket, bool>,
}

impl World {
    fn new(knows_length: bool, files_max: usize) -> Self {
        let file = |(at, length): (usize, u64)| {
            let hash = content::hash_bytes(&[at as u8]);
            let wanted = Wanted {
                file: FileId::of(hash),
                hash: knows_length.then_some(hash),
                length: knows_length.then_some(length),
            };
            File { wanted, length, blocks: vec![BlockState::Absent; blocks(length) as usize], has_outline: false }
        };
        let files = [7, 5 * BLOCK + 1, 40 * BLOCK].into_iter().enumerate().map(file).collect();
        let settings = SupplySettings { files_max, ..SupplySettings::default() };
        let mut world = Self {
            supply: Supply::new(NodeId([1; 16]), 1, settings),
            now: Instant(0),
            files,
            requests: VecDeque::new(),
            orders: VecDeque::new(),
            waiting: BTreeMap::new(),
            next_ticket: 0,
            is_payload_right: false,
            outlines_right: vec![true; FILES],
            ended: BTreeMap::new(),
        };
        world.happen(&Happens::Holders { first: 0, count: HOLDERS });
        world
    }

    fn step(&mut self, event: SupplyEvent<'_>) {
        let mut actions = Vec::new();
        self.supply.step(event, self.now, &mut actions);
        for action in actions {
            self.perform(action);
        }
        self.supply.check_invariants();
        for (ticket, (_, _, deadline)) in &self.waiting {
            assert!(self.now < *deadline, "{ticket:?} has waited too long");
            let next = self.supply.next_deadline().expect("somebody waits");
            assert!(next <= *deadline, "nothing would wake it for {ticket:?}");
        }
    }

    fn index(&self, file: FileId) -> usize {
        self.files.iter().position(|known| known.wanted.file == file).expect("one of ours")
    }

    fn perform(&mut self, action: SupplyAction) {
        match action {
            SupplyAction::Send { to, frame } => self.requests.push_back((to, frame)),
            SupplyAction::Open { work, wanted } => {
                let file = self.index(wanted.file);
                let length = wanted.length.expect("nothing is opened without a length");
                self.orders.push_back((work, Order::Open { file, length }));
            }
            SupplyAction::Fill { work, file, block } => {
                let order = Order::Fill { file: self.index(file), block, is_right: self.is_payload_right };
                self.orders.push_back((work, order));
            }
            SupplyAction::Check { work, file, block } => {
                self.orders.push_back((work, Order::Check { file: self.index(file), block }));
            }
            SupplyAction::Append { file, offset } => {
                let file = self.index(file);
                self.outlines_right[file] = self.is_payload_right && (offset == 0 || self.outlines_right[file]);
            }
            SupplyAction::Outline { work, file } => {
                let file = self.index(file);
                self.orders.push_back((work, Order::Outline { file, is_right: self.outlines_right[file] }));
            }
            SupplyAction::Seal { work, file } => {
                let file = self.index(file);
                self.orders.push_back((work, Order::Seal { file }));
            }
            SupplyAction::Answer { ticket, length } => {
                let (file, need, _) = self.waiting.remove(&ticket).expect("who is answered waits");
                self.ended.insert(ticket, true);
                let file = &self.files[file];
                let range = match need {
                    Need::Range { offset, length } => offset / BLOCK..(offset + length).div_ceil(BLOCK),
                    Need::Whole => 0..file.blocks.len() as u64,
                    Need::Length => 0..0,
                };
                for block in range {
                    let state = file.blocks.get(block as usize);
                    assert!(state.is_none_or(|state| *state == BlockState::Held), "block {block} was not checked");
                }
                // Only a lie in the last block cannot be found out before that block comes.
                assert_eq!(blocks(length), blocks(file.length));
                assert!(need == Need::Length || file.wanted.length.is_none() || length == file.length);
            }
            SupplyAction::Fail { ticket, .. } => {
                self.waiting.remove(&ticket).expect("who is failed waits");
                self.ended.insert(ticket, false);
            }
            SupplyAction::Distrust { .. } | SupplyAction::Rest { .. } | SupplyAction::Close { .. } => {}
        }
    }

    fn ask(&mut self, file: usize, need: Need, timeout: Duration) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.insert(ticket, (file, need, self.now + timeout));
        self.step(SupplyEvent::Asked { ticket, wanted: self.files[file].wanted, need, timeout });
    }

    fn happen(&mut self, what: &Happens) {
        match *what {
            Happens::Read { file, block, count } => {
                let need = Need::Range { offset: block * BLOCK, length: count * BLOCK };
                self.ask(file, need, Duration::from_secs(10));
            }
            Happens::Whole { file } => self.ask(file, Need::Whole, Duration::from_secs(60)),
            Happens::Length { file } => self.ask(file, Need::Length, Duration::from_secs(2)),
            Happens::Touch { file, block } => {
                let file = self.files[file].wanted.file;
                self.step(SupplyEvent::Touched { file, offset: block * BLOCK, length: BLOCK });
            }
            Happens::Prefetch { file } => {
                self.step(SupplyEvent::Wanted { wanted: self.files[file].wanted, how: Fetching::Whole });
            }
            Happens::Forget { file } => {
                self.step(SupplyEvent::Forgotten { file: self.files[file].wanted.file });
            }
            Happens::Doubt { file } => {
                for block in &mut self.files[file].blocks {
                    if *block == BlockState::Held {
                        *block = BlockState::Claimed;
                    }
                }
                self.step(SupplyEvent::Doubted { file: self.files[file].wanted.file });
            }
            Happens::Holders { first, count } => {
                let holder = |at| (PeerId((first + at) % HOLDERS), format!("holder {at}"));
                let holders: Vec<(PeerId, String)> = (0..count).map(holder).collect();
                self.step(SupplyEvent::Holders(&holders));
            }
            Happens::Reply { mood } => self.reply(mood),
            Happens::Work { fails } => self.work(fails),
            Happens::Pass { ms } => self.pass(Duration::from_millis(ms)),
        }
    }

    /// As the driver does: it sleeps until something is due.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let next = self.supply.next_deadline().map_or(end, |deadline| deadline.min(end));
            self.now = next.max(self.now + Duration::from_micros(1));
            self.step(SupplyEvent::Tick);
        }
    }

    fn reply(&mut self, mood: Mood) {
        let Some((from, frame)) = self.requests.pop_front() else { return };
        let Ok(Message::FileRequest(asked, _)) = Message::decode(&frame) else { panic!("{frame:?}") };
        let file = self.index(asked.file_uuid.file());
        let (length, offset, request) = (self.files[file].length, asked.offset.get(), asked.request.get());
        let is_outline = asked.part.get() == PART_OUTLINE;
        let size = if is_outline { outline_size(length) } else { length };
        let refusal = match mood {
            Mood::Silent => return,
            Mood::Busy => Some(ErrorCode::Busy),
            Mood::NotReady => Some(ErrorCode::NotReady),
            Mood::Unknown => Some(ErrorCode::FileUnknown),
            Mood::Honest | Mood::Wrong | Mood::WrongLength | Mood::Short => None,
        };
        let frame = match refusal {
            Some(code) => {
                wire::error_frame(NodeId([9; 16]), code, Some(Kind::FileRequest), request, wire::JobId::NIL, "no")
            }
            None => {
                let told = if matches!(mood, Mood::WrongLength) { length * 2 + 1 } else { length };
                let fixed = FileResponse {
                    file_uuid: asked.file_uuid,
                    file_length: U64::new(told),
                    offset: U64::new(offset),
                    request: U64::new(request),
                    flags: U32::new(if is_outline { RESPONSE_OUTLINE } else { 0 }),
                    ..FileResponse::DEFAULT
                };
                fixed.frame(NodeId([9; 16]), &[])
            }
        };
        let there = size.saturating_sub(offset).min(asked.length.get());
        let payload_length = if matches!(mood, Mood::Short) { there / 2 } else { there };
        self.is_payload_right = matches!(mood, Mood::Honest);
        let message = Message::decode(&frame).expect("we made it");
        self.step(SupplyEvent::Received { from, message: &message, payload_length });
    }

    fn work(&mut self, fails: bool) {
        let Some((work, order)) = self.orders.pop_front() else { return };
        if fails {
            return self.step(SupplyEvent::Done { work, outcome: Outcome::Failed("no room on the disk".into()) });
        }
        let right = |is_right| if is_right { Outcome::Right } else { Outcome::Wrong };
        let outcome = match order {
            Order::Open { file, length } if length == self.files[file].length => {
                let file = &self.files[file];
                Outcome::Opened { blocks: &file.blocks.clone(), has_outline: file.has_outline }
            }
            Order::Open { length, .. } => {
                let none = vec![BlockState::Absent; blocks(length) as usize];
                return self
                    .step(SupplyEvent::Done { work, outcome: Outcome::Opened { blocks: &none, has_outline: false } });
            }
            Order::Fill { file, block, is_right } => {
                if is_right {
                    self.files[file].blocks[block as usize] = BlockState::Held;
                }
                right(is_right)
            }
            Order::Check { file, block } => {
                self.files[file].blocks[block as usize] = BlockState::Held;
                right(true)
            }
            Order::Outline { file, is_right } => {
                self.files[file].has_outline |= is_right;
                right(is_right)
            }
            Order::Seal { file } => right(self.files[file].blocks.iter().all(|block| *block == BlockState::Held)),
        };
        let outcome = match outcome {
            Outcome::Opened { blocks, has_outline } => {
                let blocks = blocks.to_vec();
                return self
                    .step(SupplyEvent::Done { work, outcome: Outcome::Opened { blocks: &blocks, has_outline } });
            }
            other => other,
        };
        self.step(SupplyEvent::Done { work, outcome });
    }

    /// From now on all is well: whoever still waits gets what it waits for.
    fn settle(&mut self, files_max: usize) {
        self.happen(&Happens::Holders { first: 0, count: HOLDERS });
        // Long enough for every rest and every old deadline.
        self.pass(Duration::from_secs(70));
        assert!(self.waiting.is_empty());
        self.requests.clear();
        for file in 0..FILES {
            if files_max < FILES {
                // There is no room for all.
                (0..FILES).for_each(|other| self.happen(&Happens::Forget { file: other }));
            }
            self.ask(file, Need::Whole, Duration::from_secs(60));
            for _ in 0..2_000 {
                self.reply(Mood::Honest);
                self.work(false);
                if self.waiting.is_empty() {
                    break;
                }
                self.pass(Duration::from_millis(20));
            }
            assert!(self.waiting.is_empty(), "file {file} does not come whole although all is well");
            let all_held = self.files[file].blocks.iter().all(|block| *block == BlockState::Held);
            assert!(all_held, "file {file} failed although all is well");
        }
    }
}

/// What a holder has of a file, now and always.
#[derive(Clone, Debug)]
enum Copy {
    Here {
        is_outline_right: bool,
        /// By block, in a circle.
        are_right: Vec<bool>,
    },
    Unknown,
    /// The holder says nothing.
    Away,
}

impl Copy {
    fn has_right(&self, block: u64) -> bool {
        matches!(self, Self::Here { are_right, .. } if are_right[block as usize % are_right.len()])
    }
}

fn copy() -> impl Strategy<Value = Copy> {
    let mostly = || prop::bool::weighted(0.7);
    prop_oneof![
        8 => (mostly(), prop::collection::vec(mostly(), 1..6))
            .prop_map(|(is_outline_right, are_right)| Copy::Here { is_outline_right, are_right }),
        1 => Just(Copy::Unknown),
        1 => Just(Copy::Away),
    ]
}

/// The copies of one file, one for each holder.
type Copies = Vec<Copy>;

/// Whether somebody gives what is needed; `None` = not unless somebody does who is away.
fn can_be_had(copies: &Copies, length: u64, need: Need) -> Option<bool> {
    let has_outline = |copy: &Copy| matches!(copy, Copy::Here { is_outline_right: true, .. });
    let blocks = match need {
        Need::Range { offset, length: count } => offset / BLOCK..(offset + count).div_ceil(BLOCK).min(blocks(length)),
        Need::Whole => 0..blocks(length),
        Need::Length => 0..0,
    };
    let mut needs = blocks.map(|block| copies.iter().any(|copy| copy.has_right(block)));
    let can = (length <= BLOCK || copies.iter().any(has_outline)) && needs.all(|can| can);
    let is_sure = can || !copies.iter().any(|copy| matches!(copy, Copy::Away));
    is_sure.then_some(can)
}

/// Nobody changes and no time passes; returns how each who asked fared, with what was to be expected.
fn all_at_once(files: &[Copies], asks: &[(usize, Need)]) -> Vec<(Option<bool>, Option<bool>)> {
    let mut world = World::new(true, FILES);
    let mut expected = Vec::new();
    for (file, need) in asks {
        expected.push(can_be_had(&files[*file], world.files[*file].length, *need));
        world.ask(*file, *need, Duration::from_secs(60));
        while !world.requests.is_empty() || !world.orders.is_empty() {
            if let Some((from, frame)) = world.requests.front() {
                let Ok(Message::FileRequest(asked, _)) = Message::decode(frame) else { panic!("{frame:?}") };
                let (copy, block) =
                    (&files[world.index(asked.file_uuid.file())][from.0 as usize], asked.offset.get() / BLOCK);
                let mood =
                    match copy {
                        Copy::Unknown => Mood::Unknown,
                        Copy::Away => Mood::Silent,
                        Copy::Here { is_outline_right, .. } if asked.part.get() == PART_OUTLINE => {
                            if *is_outline_right { Mood::Honest } else { Mood::Wrong }
                        }
                        Copy::Here { .. } if copy.has_right(block) => Mood::Honest,
                        Copy::Here { .. } => Mood::Wrong,
                    };
                world.reply(mood);
            }
            world.work(false);
        }
    }
    let fared = (0..asks.len() as u64).map(|ticket| world.ended.get(&Ticket(ticket)).copied());
    fared.zip(expected).collect()
}

fn ask() -> impl Strategy<Value = (usize, Need)> {
    let range = |(block, count): (u64, u64)| Need::Range { offset: block * BLOCK, length: count * BLOCK };
    (0..FILES, prop_oneof![Just(Need::Whole), (0..40u64, 1..3u64).prop_map(range)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn nobody_waits_too_long_or_gets_what_was_not_checked(
        knows_length in any::<bool>(),
        files_max in FILES - 1..=FILES,
        story in prop::collection::vec(happens(), 0..200),
    ) {
        let mut world = World::new(knows_length, files_max);
        for what in &story {
            world.happen(what);
        }
        world.settle(files_max);
    }

    #[test]
    fn what_can_be_had_is_had_and_what_cannot_fails_at_once(
        files in prop::collection::vec(prop::collection::vec(copy(), HOLDERS as usize), FILES),
        asks in prop::collection::vec(ask(), 1..12),
    ) {
        let is_anybody_away = files.iter().flatten().any(|copy| matches!(copy, Copy::Away));
        for (fared, expected) in all_at_once(&files, &asks) {
            match fared {
                // It may be waiting for the one who is away, and who was asked first.
                None => prop_assert!(is_anybody_away),
                Some(_) => prop_assert_eq!(fared, expected),
            }
        }
    }
}
