//! A supply with a hand-made driver: events in, and what is done about them in words.

use std::collections::BTreeMap;

use content::{
    BlockState, FetchError, Fetching, Need, Outcome, Supply, SupplyAction, SupplyEvent, SupplySettings, Ticket, Wanted,
    Work, hash_bytes, outline_size,
};
use wire::limit::BLOCK_SIZE;
use wire::{
    Duration, ErrorCode, FileId, FileResponse, FixedPart, Instant, Kind, Message, NodeId, PART_OUTLINE, PeerId,
    RESPONSE_OUTLINE, U32, U64,
};

pub const BLOCK: u64 = BLOCK_SIZE as u64;
pub const A: PeerId = PeerId(1);
pub const B: PeerId = PeerId(2);
const READ_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Builder {
    length: u64,
    is_length_known: bool,
    holders: Vec<PeerId>,
    settings: SupplySettings,
}

pub fn a_desk() -> Builder {
    Builder { length: BLOCK, is_length_known: true, holders: vec![A], settings: SupplySettings::default() }
}

impl Builder {
    /// The file has so many blocks, the last of them short.
    pub fn blocks(self, count: u64) -> Self {
        self.length(count * BLOCK - 1)
    }

    pub fn length(mut self, length: u64) -> Self {
        self.length = length;
        self
    }

    pub fn unknown_length(mut self) -> Self {
        self.is_length_known = false;
        self
    }

    pub fn holders(mut self, holders: &[PeerId]) -> Self {
        self.holders = holders.to_vec();
        self
    }

    pub fn flying(mut self, max: usize) -> Self {
        self.settings.blocks_in_flight_max = max;
        self
    }

    pub fn files_max(mut self, max: usize) -> Self {
        self.settings.files_max = max;
        self
    }

    pub fn build(self) -> Desk {
        let hash = hash_bytes(b"whatever it is");
        let wanted =
            Wanted { file: FileId::of(hash), hash: Some(hash), length: self.is_length_known.then_some(self.length) };
        let supply = Supply::new(NodeId([1; 16]), 100, self.settings);
        let mut desk = Desk {
            supply,
            now: Instant(1_000_000),
            wanted,
            length: self.length,
            is_opened: false,
            works: BTreeMap::new(),
            requests: BTreeMap::new(),
        };
        desk.holders(&self.holders);
        desk
    }

    /// Open, with nothing here but the outline, and in full swing.
    pub fn ready(self) -> Desk {
        let warm = self.settings.blocks_in_flight_max as u64;
        let blocks = vec![BlockState::Absent; content::blocks(self.length) as usize];
        let mut desk = self.build();
        desk.warm_up(warm);
        assert_eq!(desk.wants(Fetching::Lazily), ["open"]);
        assert_eq!(desk.opened(&blocks, true), [] as [&str; 0]);
        desk
    }
}

pub struct Desk {
    supply: Supply,
    now: Instant,
    wanted: Wanted,
    length: u64,
    is_opened: bool,
    /// By its description, the last one.
    works: BTreeMap<String, Work>,
    /// By whom and for what, the last one.
    requests: BTreeMap<(PeerId, String), u64>,
}

impl Desk {
    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    pub fn next_deadline(&self) -> Instant {
        self.supply.next_deadline().expect("something is to be waited for")
    }

    fn step(&mut self, event: SupplyEvent<'_>) -> Vec<String> {
        let mut actions = Vec::new();
        self.supply.step(event, self.now, &mut actions);
        self.supply.check_invariants();
        actions.iter().map(|action| self.describe(action)).collect()
    }

    fn describe(&mut self, action: &SupplyAction) -> String {
        let (text, work) = match action {
            SupplyAction::Send { to, frame } => {
                let Ok(Message::FileRequest(fixed, _)) = Message::decode(frame) else { panic!("{frame:?}") };
                let what = match (fixed.part.get(), fixed.length.get()) {
                    (PART_OUTLINE, _) => format!("outline {}", fixed.offset.get()),
                    (_, 0) if !self.is_opened => "length".to_owned(),
                    (_, _) => format!("block {}", fixed.offset.get() / BLOCK),
                };
                self.requests.insert((*to, what.clone()), fixed.request.get());
                return format!("{}: {what}", name(*to));
            }
            SupplyAction::Open { work, .. } => {
                self.is_opened = true;
                ("open".to_owned(), *work)
            }
            SupplyAction::Fill { work, block, .. } => (format!("fill {block}"), *work),
            SupplyAction::Check { work, block, .. } => (format!("check {block}"), *work),
            SupplyAction::Append { offset, .. } => return format!("append {offset}"),
            SupplyAction::Outline { work, .. } => ("outline".to_owned(), *work),
            SupplyAction::Seal { work, .. } => ("seal".to_owned(), *work),
            SupplyAction::Answer { ticket, length } => {
                assert!(self.wanted.length.is_none() || *length == self.length || *length == 5);
                return format!("answer {}", ticket.0);
            }
            SupplyAction::Fail { ticket, why } => {
                let why = match why {
                    FetchError::FileUnknown(_) => "FileUnknown",
                    FetchError::Mismatch { .. } => "Mismatch",
                    FetchError::Wrong { holders, .. } => &format!("Wrong from {}", holders.join(" and ")),
                    FetchError::Deadline { .. } => "Deadline",
                    FetchError::Local { .. } => "Local",
                    other => panic!("{other}"),
                };
                return format!("fail {}: {why}", ticket.0);
            }
            SupplyAction::Distrust { holder, .. } => return format!("distrust {}", name(*holder)),
            SupplyAction::Rest { holder } => return format!("rest {}", name(*holder)),
            SupplyAction::Close { .. } => {
                self.is_opened = false;
                return "close".to_owned();
            }
        };
        self.works.insert(text.clone(), work);
        text
    }

    pub fn holders(&mut self, holders: &[PeerId]) -> Vec<String> {
        let named: Vec<(PeerId, String)> = holders.iter().map(|peer| (*peer, name(*peer).to_owned())).collect();
        self.step(SupplyEvent::Holders(&named))
    }

    pub fn asks_for(&mut self, ticket: u64, wanted: Wanted, need: Need, timeout: Duration) -> Vec<String> {
        self.step(SupplyEvent::Asked { ticket: Ticket(ticket), wanted, need, timeout })
    }

    pub fn asks(&mut self, ticket: u64, need: Need, timeout: Duration) -> Vec<String> {
        self.asks_for(ticket, self.wanted, need, timeout)
    }

    /// Somebody reads these blocks.
    pub fn reads(&mut self, ticket: u64, block: u64, count: u64) -> Vec<String> {
        let need = Need::Range { offset: block * BLOCK + 1, length: count * BLOCK - 2 };
        self.asks(ticket, need, READ_TIMEOUT)
    }

    /// Reads a block and gets what it asked for, but not what is fetched ahead.
    pub fn reads_through(&mut self, ticket: u64, block: u64) -> Vec<String> {
        let asked = self.reads(ticket, block, 1);
        self.sends(A, block);
        self.done(&format!("fill {block}"), Outcome::Right);
        asked
    }

    pub fn touches(&mut self, block: u64) -> Vec<String> {
        self.step(SupplyEvent::Touched { file: self.wanted.file, offset: block * BLOCK, length: BLOCK })
    }

    pub fn wants(&mut self, how: Fetching) -> Vec<String> {
        self.wants_file(self.wanted, how)
    }

    pub fn wants_file(&mut self, wanted: Wanted, how: Fetching) -> Vec<String> {
        self.step(SupplyEvent::Wanted { wanted, how })
    }

    pub fn forgets(&mut self) -> Vec<String> {
        self.step(SupplyEvent::Forgotten { file: self.wanted.file })
    }

    pub fn doubts(&mut self) -> Vec<String> {
        self.step(SupplyEvent::Doubted { file: self.wanted.file })
    }

    pub fn opened(&mut self, blocks: &[BlockState], has_outline: bool) -> Vec<String> {
        self.done("open", Outcome::Opened { blocks, has_outline })
    }

    pub fn done(&mut self, work: &str, outcome: Outcome<'_>) -> Vec<String> {
        let work = self.works.remove(work).unwrap_or_else(|| panic!("'{work}' was not ordered"));
        self.step(SupplyEvent::Done { work, outcome })
    }

    pub fn passes(&mut self, duration: Duration) -> Vec<String> {
        self.now = self.now + duration;
        self.step(SupplyEvent::Tick)
    }

    pub fn tells_length(&mut self, from: PeerId, length: u64) -> Vec<String> {
        self.length = length;
        self.answers(from, "length", 0, 0, 0)
    }

    pub fn sends(&mut self, from: PeerId, block: u64) -> Vec<String> {
        let rest = self.length.saturating_sub(block * BLOCK);
        self.sends_bytes(from, block, rest.min(BLOCK))
    }

    pub fn sends_bytes(&mut self, from: PeerId, block: u64, length: u64) -> Vec<String> {
        self.answers(from, &format!("block {block}"), block * BLOCK, 0, length)
    }

    pub fn sends_outline(&mut self, from: PeerId, offset: u64) -> Vec<String> {
        let length = (outline_size(self.length) - offset).min(BLOCK);
        self.answers(from, &format!("outline {offset}"), offset, RESPONSE_OUTLINE, length)
    }

    /// The beginning of the content, as one does who does not know what an outline is.
    pub fn sends_instead_of_outline(&mut self, from: PeerId) -> Vec<String> {
        self.answers(from, "outline 0", 0, 0, outline_size(self.length))
    }

    fn answers(&mut self, from: PeerId, what: &str, offset: u64, flags: u32, length: u64) -> Vec<String> {
        let request = self.requests[&(from, what.to_owned())];
        let fixed = FileResponse {
            file_uuid: self.wanted.file.into(),
            file_length: U64::new(self.length),
            offset: U64::new(offset),
            request: U64::new(request),
            flags: U32::new(flags),
            ..FileResponse::DEFAULT
        };
        let frame = fixed.frame(NodeId([9; 16]), &[]);
        let message = Message::decode(&frame).expect("we made it");
        self.step(SupplyEvent::Received { from, message: &message, payload_length: length })
    }

    pub fn refuses(&mut self, from: PeerId, block: u64, code: ErrorCode) -> Vec<String> {
        self.refuses_what(from, &format!("block {block}"), code)
    }

    pub fn refuses_outline(&mut self, from: PeerId, code: ErrorCode) -> Vec<String> {
        self.refuses_what(from, "outline 0", code)
    }

    fn refuses_what(&mut self, from: PeerId, what: &str, code: ErrorCode) -> Vec<String> {
        let request = self.requests[&(from, what.to_owned())];
        let frame = wire::error_frame(NodeId([9; 16]), code, Some(Kind::FileRequest), request, wire::JobId::NIL, "no");
        let message = Message::decode(&frame).expect("we made it");
        self.step(SupplyEvent::Received { from, message: &message, payload_length: 0 })
    }

    /// Everything that was asked for comes and is right, again and again.
    pub fn deliver_all(&mut self, from: PeerId) {
        loop {
            let asked: Vec<String> = self.requests.keys().map(|(_, what)| what.clone()).collect();
            self.requests.iter().for_each(|(key, _)| assert_eq!(key.0, from));
            let mut some = false;
            for what in asked {
                let block = what.strip_prefix("block ").expect("only blocks are out").parse().expect("a number");
                if !self.sends(from, block).is_empty() {
                    some = true;
                    self.done(&format!("fill {block}"), Outcome::Right);
                }
            }
            if !some {
                return;
            }
        }
    }

    /// Blocks that were asked for and have not come.
    pub fn flying(&mut self) -> usize {
        let asked: Vec<(PeerId, String)> = self.requests.keys().cloned().collect();
        asked
            .into_iter()
            .filter(|(from, what)| {
                let block = what.strip_prefix("block ").expect("only blocks are out").parse().expect("a number");
                !self.sends(*from, block).is_empty()
            })
            .count()
    }

    /// From now on the file is another one.
    pub fn turns_to(&mut self, number: u64, length: u64) {
        let hash = hash_bytes(&number.to_le_bytes());
        self.length = length;
        self.wanted = Wanted { file: FileId::of(hash), hash: Some(hash), length: Some(length) };
        self.is_opened = false;
        self.works.clear();
        self.requests.clear();
    }

    /// Another file comes quickly, so that as much as may be is under way at once.
    fn warm_up(&mut self, blocks: u64) {
        let (wanted, length) = (self.wanted, self.length);
        self.turns_to(u64::MAX, (blocks + 1) * BLOCK);
        let absent = vec![BlockState::Absent; blocks as usize + 1];
        self.wants(Fetching::Lazily);
        self.opened(&absent, true);
        for block in 0..blocks {
            // Backwards: it is no stream.
            self.reads_through(10_000 + block, blocks - block);
        }
        self.forgets();
        (self.wanted, self.length) = (wanted, length);
        self.works.clear();
        self.requests.clear();
    }
}

fn name(peer: PeerId) -> &'static str {
    match peer {
        A => "A",
        B => "B",
        _ => "somebody",
    }
}
