//! A storage node by itself, with words for what it is told and what it does.

#![allow(dead_code, reason = "each test file uses a part of the vocabulary")]

use content::hash_bytes;
use storage::{Action, CoreConfig, Event, Limits, Order, Outcome, Payload, Storage, Ticket};
use wire::{
    BootNonce, ClientKey, Duration, FileId, FixedPart, GenericMessage, Hash, Instant, Message, NodeId, PeerId,
    PutBegin, PutBlock, PutCommit, U16, U32, U64,
};

pub const NODE: NodeId = NodeId([9; 16]);
pub const CLIENT: NodeId = NodeId([1; 16]);
pub const C: PeerId = PeerId(1);
pub const BLOCK: u64 = wire::limit::BLOCK_SIZE as u64;
pub const KEY: [u8; 32] = [5; 32];
pub const M1: PeerId = PeerId(101);
pub const M2: PeerId = PeerId(102);

/// A storage node and the time it lives in.
pub struct Scenario {
    pub storage: Storage,
    pub now: Instant,
}

pub fn limits() -> Limits {
    Limits {
        uploads_max: 2,
        blocks_per_upload_max: 4,
        blocks_in_flight_max: 6,
        checks_max: 1,
        read_bytes_max: 3 * BLOCK,
        reads_per_peer_max: 2,
        upload_idle_timeout: Duration::from_secs(60),
        file_size_max: 100 * BLOCK,
    }
}

pub fn a_storage_node(limits: Limits, masters: Vec<(PeerId, String)>) -> Scenario {
    let config = CoreConfig {
        node: NODE,
        boot: BootNonce(7),
        name: "s1".into(),
        endpoint: "tcp://s1:1".into(),
        bulk_endpoint: "ipc://s1".into(),
        public_key: ClientKey([3; 32]),
        pid: 42,
        cpus_milli: 2_000,
        memory: 1 << 30,
        receipt_key: KEY,
        masters,
        limits,
    };
    Scenario { storage: Storage::new(config, Instant(0)), now: Instant(0) }
}

impl Scenario {
    pub fn step(&mut self, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.storage.step(event, self.now, &mut actions);
        self.storage.check_invariants();
        actions
    }

    /// Takes a frame from `from`, with a payload of so many bytes.
    pub fn receives(&mut self, from: PeerId, frame: &[u8], payload_length: Option<u64>) -> Vec<Action> {
        let payload = payload_length.map(|length| Payload { number: 1, length });
        match Message::decode(frame) {
            Ok(message) => self.step(Event::Received { from, message, payload }),
            Err(error) => self.step(Event::Malformed { from, error }),
        }
    }

    pub fn performed(&mut self, ticket: u64, outcome: Outcome) -> Vec<Action> {
        self.step(Event::Performed { ticket: Ticket(ticket), outcome })
    }

    pub fn passes(&mut self, duration: Duration) -> Vec<Action> {
        self.now = self.now + duration;
        self.step(Event::Tick)
    }

    /// Sleeps until the core wants to be called.
    pub fn until_deadline(&mut self) -> Vec<Action> {
        self.now = self.storage.next_deadline().expect("it waits for something");
        self.step(Event::Tick)
    }
}

pub fn content(length: u64) -> (FileId, Hash, u64) {
    let hash = hash_bytes(b"a content");
    (FileId::of(hash), hash, length)
}

pub fn begin(upload: u64, length: u64) -> Vec<u8> {
    put_begin(upload, length, 0)
}

pub fn put_begin(upload: u64, length: u64, flags: u16) -> Vec<u8> {
    let fixed = PutBegin {
        request: U64::new(upload + 1_000),
        upload: U64::new(upload),
        file_length: U64::new(length),
        hash: content(length).1,
        flags: U16::new(flags),
        ..PutBegin::DEFAULT
    };
    fixed.frame(CLIENT, &[])
}

pub fn block(upload: u64, offset: u64) -> Vec<u8> {
    PutBlock { upload: U64::new(upload), offset: U64::new(offset), ..PutBlock::DEFAULT }.frame(CLIENT, &[])
}

pub fn commit(upload: u64, length: u64) -> Vec<u8> {
    let fixed = PutCommit {
        request: U64::new(upload + 2_000),
        upload: U64::new(upload),
        file_length: U64::new(length),
        hash: content(length).1,
        ..PutCommit::DEFAULT
    };
    fixed.frame(CLIENT, &[])
}

pub fn have(request: u64, num_files: u32, files: &[FileId]) -> Vec<u8> {
    let fixed =
        wire::HaveRequest { request: U64::new(request), num_files: U32::new(num_files), ..wire::HaveRequest::DEFAULT };
    fixed.frame(CLIENT, &files.iter().flat_map(|file| file.0).collect::<Vec<_>>())
}

/// Actions in words, one each: what is sent to whom with its numbers, or what is ordered under which ticket.
pub fn words(actions: Vec<Action>) -> Vec<String> {
    actions.into_iter().map(word).collect()
}

fn word(action: Action) -> String {
    match action {
        Action::Order { ticket: Ticket(ticket), order } => format!("#{ticket} {}", order_word(&order)),
        Action::SendContent { to, frame, ticket: Ticket(ticket) } => {
            format!("{} with content of #{ticket}", message_word(to, &frame))
        }
        Action::Send { to, frame } => message_word(to, &frame),
    }
}

fn order_word(order: &Order) -> String {
    match order {
        Order::Begin { upload, length, is_checked, .. } => {
            format!("begin {upload} length {length:?}{}", if *is_checked { " checked" } else { "" })
        }
        Order::Write { upload, offset, payload } => format!("write {upload} {offset}+{}", payload.length),
        Order::Commit { upload, length, .. } => format!("commit {upload} length {length}"),
        Order::Abort { upload } => format!("abort {upload}"),
        Order::Read { ask } => format!("read {:?}", ask.range),
        Order::Have { files } => format!("have {}", files.len()),
        Order::Check { .. } => "check".into(),
    }
}

fn message_word(to: PeerId, frame: &[u8]) -> String {
    let header = GenericMessage::peek(frame).expect("we made it");
    assert_eq!(header.node_uuid.node(), NODE);
    let text = match Message::decode(frame).expect("we made it") {
        Message::PutGrant(m, _) => format!(
            "grant {} request {} contiguous {} credit {} flags {}",
            m.upload, m.request, m.contiguous, m.credit, m.flags
        ),
        Message::PutAck(m, _) => format!("ack {} contiguous {} credit {}", m.upload, m.contiguous, m.credit),
        Message::PutDone(m, body) => {
            let receipts = wire::Reader::new(body).slice::<wire::record::Receipt>(body.len() / 48).expect("whole");
            let [receipt] = receipts else { panic!("one receipt") };
            let file = m.file_uuid.file();
            let is_good = content::verify_receipt(&KEY, receipt.node, file, m.hash, m.file_length.get(), &receipt.mac);
            assert!(is_good && receipt.node == NODE);
            format!("done {} request {} length {}", m.upload, m.request, m.file_length)
        }
        Message::FileResponse(m, _) => {
            let size = m.header.header_length;
            format!("response of {size} request {} offset {} file_length {}", m.request, m.offset, m.file_length)
        }
        Message::HaveResponse(m, bits) => format!("had {} request {} {bits:?}", m.num_files, m.request),
        Message::Error(m, _) => {
            let code = wire::ErrorCode::from_number(m.code.get()).expect("we made it");
            format!("error {code} request {} regarding {}", m.request, m.regarding)
        }
        Message::NodeHello(m, _) => format!("hello {} boot {}", m.request, m.boot),
        Message::WorkerStatus(m, _) => format!("status {} boot {}", m.state, m.boot),
        other => panic!("{other:?}"),
    };
    format!("to {}: {text}", to.0)
}
