//! Uploads: a put from its `put_begin` to its receipt.
//!
//! Credit is the only thing between a fast sender and a full memory, so every grant and every ack says how many blocks may
//! be on the way, and the table never promises more than the limits hold. What the sender repeats is answered again from
//! the table or from the disk; nothing is done twice.

use std::collections::{BTreeMap, BTreeSet};

use wire::limit::BLOCK_SIZE;
use wire::record::Receipt;
use wire::{
    ErrorCode, FileId, FixedPart, Hash, Instant, Kind, NodeId, PeerId, PutAck, PutBegin, PutBlock, PutCommit, PutDone,
    PutGrant, U32, U64, Writer,
};

use super::{Action, Order, Outcome, Payload, Storage, Timer, UploadKey, Work};

/// `put_begin.class` of what a chunk has written.
const CLASS_RESULT: u16 = 1;
/// `put_begin.file_length` of a content whose length is not known yet.
const LENGTH_UNKNOWN: u64 = u64::MAX;

/// What the sender of a repeated commit is told.
const AT_IT: &str = "the disk is still at it";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The disk makes room.
    Beginning,
    /// The disk reads again what is here.
    Checking { request: u64 },
    /// Blocks may come.
    Open,
    /// The disk verifies and makes durable.
    Committing,
}

#[derive(Debug)]
struct Upload {
    /// Our own number for it, by which the disk knows it; never used again.
    number: u64,
    /// Where it was heard last: answers go there.
    peer: PeerId,
    /// What `put_begin` said, by which a repetition is known.
    hash: Hash,
    length: Option<u64>,
    is_result: bool,
    state: State,
    /// Bytes on disk from the start on.
    contiguous: u64,
    /// Blocks that wait for the disk.
    blocks_in_flight: u32,
    heard_at: Instant,
}

impl Upload {
    fn begin(&self, is_checked: bool) -> Order {
        let Self { number, length, hash, is_result, .. } = *self;
        Order::Begin { upload: number, length, hash, is_result, is_checked }
    }
}

/// The uploads that are open, by sender and the sender's number.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    open: BTreeMap<UploadKey, Upload>,
    last_number: u64,
    /// Blocks that wait for the disk, those of given-up uploads too.
    blocks_in_flight: u32,
}

impl Uploads {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn blocks_in_flight(&self) -> u32 {
        self.blocks_in_flight
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn check_invariants(
        &self,
        writes: &BTreeMap<u64, u32>,
        checks: &BTreeSet<FileId>,
        blocks_per_upload_max: u32,
    ) {
        for upload in self.open.values() {
            let is_checking = matches!(upload.state, State::Checking { .. });
            assert!(!is_checking || checks.contains(&FileId::of(upload.hash)), "nobody would go on with it");
            assert_eq!(upload.blocks_in_flight, writes.get(&upload.number).copied().unwrap_or(0));
            assert!(upload.blocks_in_flight <= blocks_per_upload_max);
            assert!(upload.number <= self.last_number);
        }
    }
}

impl Storage {
    pub(super) fn on_put_begin(
        &mut self,
        from: PeerId,
        sender: NodeId,
        begin: &PutBegin,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let key = (sender, begin.upload.get());
        let request = begin.request.get();
        let length = Some(begin.file_length.get()).filter(|length| *length != LENGTH_UNKNOWN);
        if let Some(upload) = self.uploads.open.get_mut(&key) {
            let is_same = (upload.hash, upload.length) == (begin.hash, length);
            match (upload.state, is_same) {
                // The grant comes when the disk has made room; until then the sender hears that we live.
                (State::Beginning, true) => {
                    upload.peer = from;
                    let detail = "the disk has not yet made room";
                    self.refuse(from, ErrorCode::Busy, Some(Kind::PutBegin), request, detail, actions);
                }
                (State::Checking { .. }, true) => {
                    upload.peer = from;
                    let detail = "the copy that is here is read again";
                    self.refuse(from, ErrorCode::Busy, Some(Kind::PutBegin), request, detail, actions);
                }
                (State::Open | State::Committing, true) => {
                    upload.peer = from;
                    upload.heard_at = now;
                    self.grant(key, request, actions);
                }
                // A sender that was started again counts its uploads anew: the one before it is nobody's.
                (State::Open, false) => {
                    let order = Order::Abort { upload: upload.number };
                    self.uploads.open.remove(&key);
                    self.order(Work::Abort, order, actions);
                    return self.on_put_begin(from, sender, begin, now, actions);
                }
                (State::Beginning | State::Checking { .. } | State::Committing, false) => {
                    let detail = "another content is on its way under this number";
                    self.refuse(from, ErrorCode::Busy, Some(Kind::PutBegin), request, detail, actions);
                }
            }
            return;
        }
        let limits = &self.config.limits;
        if let Some(length) = length.filter(|length| *length > limits.file_size_max) {
            let detail = format!("{length} bytes are above the largest file here, {}", limits.file_size_max);
            return self.refuse(from, ErrorCode::TooLarge, Some(Kind::PutBegin), request, &detail, actions);
        }
        if self.uploads.len() >= limits.uploads_max {
            let detail = format!("{} uploads are open already", limits.uploads_max);
            return self.refuse(from, ErrorCode::Busy, Some(Kind::PutBegin), request, &detail, actions);
        }
        let number = self.uploads.next_number();
        let upload = Upload {
            number,
            peer: from,
            hash: begin.hash,
            length,
            is_result: begin.class.get() == CLASS_RESULT,
            state: State::Beginning,
            contiguous: 0,
            blocks_in_flight: 0,
            heard_at: now,
        };
        let order = upload.begin(begin.flags.get() & wire::PUT_CHECKED != 0);
        self.uploads.open.insert(key, upload);
        self.order(Work::Begin { key, request }, order, actions);
    }

    /// Goes on with the uploads that waited until the copy that is here had been read again.
    pub(super) fn on_upload_checked(&mut self, file: FileId, now: Instant, actions: &mut Vec<Action>) {
        let mut orders = Vec::new();
        for (key, upload) in &mut self.uploads.open {
            let State::Checking { request } = upload.state else { continue };
            if FileId::of(upload.hash) == file {
                upload.state = State::Beginning;
                upload.heard_at = now;
                orders.push((Work::Begin { key: *key, request }, upload.begin(false)));
            }
        }
        for (work, order) in orders {
            self.order(work, order, actions);
        }
    }

    pub(super) fn on_begun(
        &mut self,
        key: UploadKey,
        request: u64,
        outcome: Outcome,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let upload = self.uploads.open.get_mut(&key).expect("an upload is not given up while the disk begins it");
        assert_eq!(upload.state, State::Beginning);
        match outcome {
            Outcome::Begun => {
                upload.state = State::Open;
                upload.heard_at = now;
                self.grant(key, request, actions);
            }
            Outcome::Unchecked { file } => {
                upload.state = State::Checking { request };
                let to = upload.peer;
                if !self.check(file, actions) {
                    self.uploads.open.remove(&key);
                    let detail = "too many files are read again already";
                    self.refuse(to, ErrorCode::Busy, Some(Kind::PutBegin), request, detail, actions);
                }
            }
            Outcome::Exists { length } => {
                let to = upload.peer;
                self.uploads.open.remove(&key);
                self.send_grant(to, key, request, length, 0, wire::GRANT_EXISTS, actions);
            }
            Outcome::Failed { code, detail } => {
                let to = upload.peer;
                self.uploads.open.remove(&key);
                self.refuse(to, code, Some(Kind::PutBegin), request, &detail, actions);
            }
            Outcome::Written { .. }
            | Outcome::Committed { .. }
            | Outcome::Aborted
            | Outcome::Read { .. }
            | Outcome::Had { .. }
            | Outcome::Checked => unreachable!("the disk answered a beginning with {outcome:?}"),
        }
    }

    pub(super) fn on_put_block(
        &mut self,
        from: PeerId,
        sender: NodeId,
        block: &PutBlock,
        payload: Option<Payload>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let key = (sender, block.upload.get());
        let limits = &self.config.limits;
        let total = self.uploads.blocks_in_flight;
        // A block has no request number; the upload's says which one is meant.
        let refuse = |storage: &Self, code, detail: &str, actions: &mut Vec<Action>| {
            storage.refuse(from, code, Some(Kind::PutBlock), key.1, detail, actions);
        };
        let Some(payload) = payload.filter(|payload| (1..=BLOCK_SIZE as u64).contains(&payload.length)) else {
            let detail = format!("a block has 1 to {BLOCK_SIZE} bytes, in the second frame");
            return refuse(self, ErrorCode::InvalidRequest, &detail, actions);
        };
        let Some(upload) = self.uploads.open.get_mut(&key) else {
            return refuse(self, ErrorCode::UploadUnknown, &format!("no upload {} here", key.1), actions);
        };
        upload.peer = from;
        upload.heard_at = now;
        match upload.state {
            State::Open => {}
            // A block from before its sender learned that everything is here.
            State::Committing => return,
            State::Beginning | State::Checking { .. } => {
                return refuse(self, ErrorCode::Busy, "no credit has been granted yet", actions);
            }
        }
        if upload.blocks_in_flight >= limits.blocks_per_upload_max || total >= limits.blocks_in_flight_max {
            return refuse(self, ErrorCode::Busy, "more blocks came than credit was granted", actions);
        }
        upload.blocks_in_flight += 1;
        let number = upload.number;
        self.uploads.blocks_in_flight += 1;
        let order = Order::Write { upload: number, offset: block.offset.get(), payload };
        self.order(Work::Write { key, upload: number }, order, actions);
    }

    pub(super) fn on_written(
        &mut self,
        key: UploadKey,
        number: u64,
        outcome: Outcome,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.uploads.blocks_in_flight -= 1;
        // The upload may have been given up, and begun again under another number.
        let Some(upload) = self.uploads.open.get_mut(&key).filter(|upload| upload.number == number) else { return };
        upload.blocks_in_flight -= 1;
        match outcome {
            Outcome::Written { contiguous } => {
                upload.contiguous = contiguous;
                upload.heard_at = now;
                let (to, credit) = (upload.peer, self.credit());
                let fixed = PutAck {
                    upload: U64::new(key.1),
                    contiguous: U64::new(contiguous),
                    credit: U32::new(credit),
                    ..PutAck::DEFAULT
                };
                actions.push(Action::Send { to, frame: fixed.frame(self.config.node, &[]) });
            }
            Outcome::Failed { code, detail } => {
                // The store has given it up.
                let to = upload.peer;
                self.uploads.open.remove(&key);
                self.refuse(to, code, Some(Kind::PutBlock), key.1, &detail, actions);
            }
            Outcome::Begun
            | Outcome::Exists { .. }
            | Outcome::Committed { .. }
            | Outcome::Aborted
            | Outcome::Read { .. }
            | Outcome::Had { .. }
            | Outcome::Unchecked { .. }
            | Outcome::Checked => unreachable!("the disk answered a write with {outcome:?}"),
        }
    }

    pub(super) fn on_put_commit(
        &mut self,
        from: PeerId,
        sender: NodeId,
        commit: &PutCommit,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let key = (sender, commit.upload.get());
        let request = commit.request.get();
        let refuse = |storage: &Self, code, detail: &str, actions: &mut Vec<Action>| {
            storage.refuse(from, code, Some(Kind::PutCommit), request, detail, actions);
        };
        if commit.hash.is_nil() {
            return refuse(self, ErrorCode::InvalidRequest, "a commit names the hash", actions);
        }
        // A repeated commit without an upload, which the table does not know.
        let is_repeated = !self.uploads.open.contains_key(&key) && self.is_committing(key, from);
        let has_room = self.reads_of(from) < self.config.limits.reads_per_peer_max;
        let number = match self.uploads.open.get_mut(&key) {
            Some(upload) => {
                upload.peer = from;
                upload.heard_at = now;
                match upload.state {
                    State::Open => {
                        upload.state = State::Committing;
                        upload.number
                    }
                    // The answer comes when the disk is done, to where the sender is now; until then it hears that we live.
                    State::Committing => return refuse(self, ErrorCode::Busy, AT_IT, actions),
                    State::Beginning | State::Checking { .. } => {
                        return refuse(self, ErrorCode::Busy, "it has not begun yet", actions);
                    }
                }
            }
            None if is_repeated => return refuse(self, ErrorCode::Busy, AT_IT, actions),
            // The file may be here already, or its receipt was lost: the disk knows. Nothing is here under this number.
            None if has_room => self.uploads.next_number(),
            None => return refuse(self, ErrorCode::Busy, "too many questions at once", actions),
        };
        let order = Order::Commit { upload: number, hash: commit.hash, length: commit.file_length.get() };
        self.order(Work::Commit { key, upload: number, request, to: from }, order, actions);
    }

    /// Whether the disk is at a commit under this key; then its answer goes to `from`.
    fn is_committing(&mut self, key: UploadKey, from: PeerId) -> bool {
        for work in self.work.values_mut() {
            match work {
                Work::Commit { key: committing, to, .. } if *committing == key => {
                    *to = from;
                    return true;
                }
                Work::Commit { .. }
                | Work::Begin { .. }
                | Work::Write { .. }
                | Work::Abort
                | Work::Read { .. }
                | Work::Have { .. }
                | Work::Check { .. } => {}
            }
        }
        false
    }

    pub(super) fn on_committed(
        &mut self,
        key: UploadKey,
        number: u64,
        request: u64,
        to: PeerId,
        outcome: Outcome,
        actions: &mut Vec<Action>,
    ) {
        let is_open = self.uploads.open.get(&key).is_some_and(|upload| upload.number == number);
        let to = if is_open { self.uploads.open.remove(&key).map_or(to, |upload| upload.peer) } else { to };
        match outcome {
            Outcome::Committed { file, hash, length } => {
                let (node, receipt_key) = (self.config.node, &self.config.receipt_key);
                let mac = content::receipt(receipt_key, node, file, hash, length);
                let mut body = Writer::new();
                body.plain(&Receipt { node, mac });
                let fixed = PutDone {
                    request: U64::new(request),
                    upload: U64::new(key.1),
                    file_uuid: file.into(),
                    file_length: U64::new(length),
                    hash,
                    ..PutDone::DEFAULT
                };
                actions.push(Action::Send { to, frame: fixed.frame(node, &body.bytes) });
            }
            Outcome::Failed { code, detail } => {
                // The store has given it up.
                self.refuse(to, code, Some(Kind::PutCommit), request, &detail, actions);
            }
            Outcome::Unchecked { file } => {
                self.check(file, actions);
                let detail = "the copy that is here is read again first";
                self.refuse(to, ErrorCode::NotReady, Some(Kind::PutCommit), request, detail, actions);
            }
            Outcome::Begun
            | Outcome::Exists { .. }
            | Outcome::Written { .. }
            | Outcome::Aborted
            | Outcome::Read { .. }
            | Outcome::Had { .. }
            | Outcome::Checked => unreachable!("the disk answered a commit with {outcome:?}"),
        }
    }

    /// Gives up the uploads that nobody goes on with.
    pub(super) fn on_idle_uploads(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let timeout = self.config.limits.upload_idle_timeout;
        let is_idle = |upload: &Upload| {
            // What waits for the disk is not idle.
            upload.state == State::Open && upload.blocks_in_flight == 0 && upload.heard_at + timeout <= now
        };
        let idle: Vec<UploadKey> =
            self.uploads.open.iter().filter(|(_, upload)| is_idle(upload)).map(|(key, _)| *key).collect();
        for key in idle {
            if let Some(upload) = self.uploads.open.remove(&key) {
                self.order(Work::Abort, Order::Abort { upload: upload.number }, actions);
            }
        }
        self.timers.set(Timer::IdleUploads, now + timeout / 4);
    }

    fn grant(&self, key: UploadKey, request: u64, actions: &mut Vec<Action>) {
        let upload = &self.uploads.open[&key];
        // What waits for the disk has used credit already, and its acks will bring more.
        let credit = self.credit().saturating_sub(upload.blocks_in_flight);
        self.send_grant(upload.peer, key, request, upload.contiguous, credit, 0, actions);
    }

    fn send_grant(
        &self,
        to: PeerId,
        key: UploadKey,
        request: u64,
        contiguous: u64,
        credit: u32,
        flags: u32,
        actions: &mut Vec<Action>,
    ) {
        let fixed = PutGrant {
            request: U64::new(request),
            upload: U64::new(key.1),
            contiguous: U64::new(contiguous),
            credit: U32::new(credit),
            flags: U32::new(flags),
            ..PutGrant::DEFAULT
        };
        actions.push(Action::Send { to, frame: fixed.frame(self.config.node, &[]) });
    }

    /// The blocks from `contiguous` on that an upload may have on the way: its share of what all may have, at least one.
    fn credit(&self) -> u32 {
        let limits = &self.config.limits;
        let share = limits.blocks_in_flight_max / (self.uploads.len().max(1) as u32);
        share.clamp(1, limits.blocks_per_upload_max)
    }
}
