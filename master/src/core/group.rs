//! The other masters: what they tell us and we them, and what follows when leadership comes or goes.
//!
//! A follower that is so late that the leader no longer has the entries it needs is told of a snapshot, and fetches it
//! from the leader piece by piece. raft hears of it only when it is durable here.

use std::collections::BTreeMap;

use planted::Bug;
use raft::eraftpb::{Message as Step, MessageType};
use wire::limit::BLOCK_SIZE;
use wire::{
    ErrorCode, FileId, FileRequest, FileResponse, FixedPart, Instant, JobId, Kind, Message, NodeId, RaftMessage, Role,
    U64,
};

use super::entry::{Request, hello_frame};
use super::leader::Key;
use super::raft::frame::{self, SnapshotFile};
use super::raft::{StepError, Ticket, raft_id};
use super::{Action, Core, Decision, recovery};

/// Ticks between two hellos.
const HELLO_TICKS: u32 = 10;
/// Ticks after which a piece of a snapshot is asked for again.
const FETCH_TICKS: u32 = 20;
/// Ticks without a question for it after which a follower has given a snapshot up.
const SNAPSHOT_TICKS: u32 = 100;

/// The group, seen from one member.
#[derive(Debug)]
pub(super) struct Group {
    /// By raft's numbers.
    members: BTreeMap<u64, NodeId>,
    fetch: Option<Fetch>,
    /// The newest durable snapshot, for those who are late. `None` also where nobody is to have it.
    offered: Option<(SnapshotFile, Vec<u8>)>,
    /// When members last asked for a piece of it, or were told of it.
    asked_at: BTreeMap<u64, Instant>,
    /// When this master last told the leader who it is.
    hello_at: Option<Instant>,
}

/// A snapshot on its way here.
#[derive(Debug)]
struct Fetch {
    /// What raft is told in the end.
    step: Step,
    file: SnapshotFile,
    from: NodeId,
    bytes: Vec<u8>,
    asked_at: Instant,
    /// All of it is here, and the disk writes it.
    saving: Option<Ticket>,
}

impl Group {
    pub(super) fn new(members: &[NodeId]) -> Self {
        let members = members.iter().map(|member| (raft_id(*member), *member)).collect();
        Self { members, fetch: None, offered: None, asked_at: BTreeMap::new(), hello_at: None }
    }

    pub(super) fn is_lone(&self) -> bool {
        self.members.len() == 1
    }

    /// The uuids of all members.
    pub(super) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.members.values().copied()
    }

    pub(super) fn member(&self, id: u64) -> Option<NodeId> {
        self.members.get(&id).copied()
    }
}

impl Core {
    /// What another master told us.
    pub(super) fn on_master(
        &mut self,
        from: NodeId,
        frame: &[u8],
        payload: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        // Whoever is no member, or talks nonsense, is no business of raft's.
        if !self.group.members.contains_key(&raft_id(from)) || from == self.config.node {
            return actions.push(Action::Decided(Decision::StrangerIgnored { node: from }));
        }
        if let Some(record) = self.state.nodes.get(&from) {
            let boot = record.boot;
            self.presence.hear(&self.state, from, boot, now);
        }
        match Message::decode(frame) {
            Ok(Message::RaftMessage(fixed, body)) => self.on_raft(from, &fixed, body, now, actions),
            Ok(Message::StateHash(fixed, _)) => self.on_state_hash(from, fixed.index.get(), fixed.hash, actions),
            Ok(Message::NodeHello(..)) => self.on_member_hello(from, frame),
            Ok(Message::FileRequest(fixed, _)) => self.on_snapshot_asked(from, &fixed, now, actions),
            Ok(Message::FileResponse(fixed, _)) => self.on_snapshot_piece(&fixed, payload, now, actions),
            Ok(_) | Err(_) => {}
        }
    }

    fn on_raft(&mut self, from: NodeId, fixed: &RaftMessage, body: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let Ok(step) = frame::decode(fixed, body, self.config.node) else { return };
        if step.from != raft_id(from) {
            return;
        }
        if step.msg_type == MessageType::MsgSnapshot {
            return self.on_snapshot_told(from, step, now, actions);
        }
        match self.raft.step(step) {
            Ok(()) | Err(StepError::Gap | StepError::Local) => {}
            Err(why @ (StepError::Forgotten { .. } | StepError::OtherCommitted { .. })) => {
                actions.push(Action::Halt { why: why.to_string() });
            }
        }
    }

    /// Sends what raft has for others.
    pub(super) fn send_steps(&mut self, steps: Vec<Step>, now: Instant, actions: &mut Vec<Action>) {
        for step in steps {
            let Some(to) = self.group.member(step.to) else { continue };
            if step.msg_type == MessageType::MsgSnapshot {
                self.group.asked_at.insert(step.to, now);
            }
            if let Some(frame) = frame::encode(&step, self.config.node, to) {
                actions.push(Action::ToMaster { to, frame, payload: Vec::new() });
            }
        }
    }

    /// A follower is a node that people see, and registers with whoever leads.
    fn on_member_hello(&mut self, from: NodeId, frame: &[u8]) {
        let Ok(Request::Register(record)) = Request::decode(frame) else { return };
        let is_news = self.state.nodes.get(&from).is_none_or(|known| known.boot < record.boot);
        if self.leading_since.is_some() && record.node == from && record.role == Role::Master && is_news {
            self.propose_own(Key::MemberRegistration { node: from }, Kind::NodeHello, frame.to_vec());
        }
    }

    /// Says hello to the leader until this boot is registered.
    fn tell_leader_of_self(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let leader = self.group.member(self.raft.leader()).filter(|leader| *leader != self.config.node);
        let record = self.own_record();
        let is_due = self.group.hello_at.is_none_or(|at| now.since(at) >= self.config.timings.tick_ms * HELLO_TICKS);
        if let Some(to) = leader.filter(|_| is_due && self.state.nodes.get(&record.node) != Some(&record)) {
            self.group.hello_at = Some(now);
            actions.push(Action::ToMaster { to, frame: hello_frame(&record), payload: Vec::new() });
        }
    }

    /// Sees to what is said again and again, and to snapshots that are on their way.
    pub(super) fn tick_group(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let tick = self.config.timings.tick_ms;
        self.tell_leader_of_self(now, actions);
        for member in self.raft.snapshotting() {
            let asked_at = *self.group.asked_at.entry(member).or_insert(now);
            if now.since(asked_at) >= tick * SNAPSHOT_TICKS {
                self.group.asked_at.remove(&member);
                self.raft.on_snapshot_failed(member);
            }
        }
        let Some(fetch) = self.group.fetch.as_ref().filter(|fetch| fetch.saving.is_none()) else { return };
        if self.raft.term() > fetch.step.term {
            // Its leader is none any more, and the next will tell us of its own.
            self.group.fetch = None;
        } else if now.since(fetch.asked_at) >= tick * FETCH_TICKS {
            self.ask_for_piece(now, actions);
        }
    }

    /// The leader has no longer what we need, but a snapshot.
    fn on_snapshot_told(&mut self, from: NodeId, step: Step, now: Instant, actions: &mut Vec<Action>) {
        let Some(file) = SnapshotFile::of_step(&step) else { return };
        if step.term < self.raft.term() || file.index <= self.state.index {
            // raft says by itself that it is further already.
            return drop(self.raft.step(step));
        }
        if self.group.fetch.as_ref().is_some_and(|fetch| fetch.saving.is_some() || fetch.file == file) {
            return;
        }
        self.group.fetch = Some(Fetch { step, file, from, bytes: Vec::new(), asked_at: now, saving: None });
        self.ask_for_piece(now, actions);
    }

    fn ask_for_piece(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(fetch) = &mut self.group.fetch else { return };
        fetch.asked_at = now;
        let fixed = FileRequest {
            file_uuid: FileId::of(fetch.file.hash).into(),
            offset: U64::new(fetch.bytes.len() as u64),
            ..FileRequest::DEFAULT
        };
        let frame = fixed.frame(self.config.node, b"");
        actions.push(Action::ToMaster { to: fetch.from, frame, payload: Vec::new() });
    }

    fn on_snapshot_asked(&mut self, from: NodeId, fixed: &FileRequest, now: Instant, actions: &mut Vec<Action>) {
        let offered = self.group.offered.as_ref();
        let offered = offered.filter(|(file, _)| FileId::of(file.hash) == fixed.file_uuid.file());
        let Some((file, bytes)) = offered else {
            let (kind, detail) = (Some(Kind::FileRequest), "this snapshot has been replaced");
            let node = self.config.node;
            let frame = wire::error_frame(node, ErrorCode::FileUnknown, kind, 0, JobId::NIL, detail);
            return actions.push(Action::ToMaster { to: from, frame, payload: Vec::new() });
        };
        let start = usize::try_from(fixed.offset.get()).unwrap_or(usize::MAX).min(bytes.len());
        let length = usize::try_from(fixed.length.get()).unwrap_or(usize::MAX).min(BLOCK_SIZE).min(bytes.len() - start);
        let answer = FileResponse {
            file_uuid: fixed.file_uuid,
            file_length: U64::new(file.length),
            offset: U64::new(start as u64),
            request: fixed.request,
            ..FileResponse::DEFAULT
        };
        let payload = bytes[start..start + length].to_vec();
        self.group.asked_at.insert(raft_id(from), now);
        actions.push(Action::ToMaster { to: from, frame: answer.frame(self.config.node, b""), payload });
    }

    fn on_snapshot_piece(&mut self, fixed: &FileResponse, payload: &[u8], now: Instant, actions: &mut Vec<Action>) {
        let Some(fetch) = self.group.fetch.as_mut().filter(|fetch| fetch.saving.is_none()) else { return };
        let is_next = fixed.file_uuid.file() == FileId::of(fetch.file.hash)
            && fixed.offset.get() == fetch.bytes.len() as u64
            && !payload.is_empty()
            && payload.len() as u64 <= fetch.file.length - fetch.bytes.len() as u64;
        if !is_next {
            return;
        }
        fetch.bytes.extend_from_slice(payload);
        if (fetch.bytes.len() as u64) < fetch.file.length {
            return self.ask_for_piece(now, actions);
        }
        let is_right = content::hash_bytes(&fetch.bytes) == fetch.file.hash
            && recovery::decode_snapshot(&fetch.bytes)
                .is_ok_and(|(state, term)| (state.index, term) == (fetch.file.index, fetch.file.term));
        if !is_right {
            actions.push(Action::Decided(Decision::SnapshotRefused { from: fetch.from, index: fetch.file.index }));
            self.group.fetch = None;
            return;
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        fetch.saving = Some(ticket);
        let (index, term, bytes) = (fetch.file.index, fetch.file.term, fetch.bytes.clone());
        actions.push(Action::SaveSnapshot { ticket, index, term, bytes });
    }

    /// A fetched snapshot is durable. False = the ticket is of none.
    pub(super) fn on_fetched_saved(&mut self, ticket: Ticket) -> bool {
        let Some(fetch) = self.group.fetch.take_if(|fetch| fetch.saving == Some(ticket)) else { return false };
        // raft takes it if it has not got further meanwhile, and gives it back as what to go on from.
        self.group.offered = Some((fetch.file, fetch.bytes));
        self.raft.offer_snapshot(fetch.file);
        let _ = self.raft.step(fetch.step);
        true
    }

    /// Goes on from the snapshot that raft has taken, which is the one that was saved last.
    pub(super) fn restore(&mut self, index: u64, actions: &mut Vec<Action>) {
        let (file, bytes) = self.group.offered.as_ref().expect("raft takes what was fetched");
        assert_eq!(file.index, index, "raft takes what was fetched last");
        let (state, _) = recovery::decode_snapshot(bytes).expect("it was read when it came");
        self.watchers.restart(index);
        self.snapshot_index = index;
        self.log_bytes = 0;
        self.state = state;
        actions.push(Action::Decided(Decision::Restored { index }));
    }

    /// Whoever is too late for the log may have this snapshot, which is durable.
    pub(super) fn offer(&mut self, index: u64, term: u64, bytes: Vec<u8>) {
        let is_newer = self.group.offered.as_ref().is_none_or(|(file, _)| file.index < index);
        if self.group.is_lone() || !is_newer {
            return;
        }
        let file = SnapshotFile { index, term, length: bytes.len() as u64, hash: content::hash_bytes(&bytes) };
        self.raft.offer_snapshot(file);
        self.group.offered = Some((file, bytes));
    }

    /// Where the leader is to be asked; empty = nobody is known to lead.
    pub(super) fn leader_endpoint(&self) -> &str {
        let leader = self.group.member(self.raft.leader()).and_then(|node| self.state.nodes.get(&node));
        leader.map_or("", |record| &record.endpoint)
    }

    /// Without room on its disk a leader can take nothing; another may.
    pub(super) fn step_down(&mut self, actions: &mut Vec<Action>) {
        if self.leading_since.is_some() && !self.group.is_lone() {
            actions.push(Action::Decided(Decision::SteppingDown));
            self.raft.transfer_leader();
        }
    }

    /// Leads no longer: whoever waits is sent to the next, where the same request gets the same answer.
    pub(super) fn resign(&mut self, actions: &mut Vec<Action>) {
        self.leading_since = None;
        self.presence = Default::default();
        actions.push(Action::Decided(Decision::Resigned { term: self.raft.term(), index: self.state.index }));
        let endpoint = self.leader_endpoint().to_owned();
        if planted::is(Bug::AnswersForSuccessor) {
            return;
        }
        for waiter in self.backlog.take_all() {
            self.answer_refused(&waiter, ErrorCode::NotLeader, &endpoint, actions);
        }
        for asked in self.reads.take_all() {
            let message = Message::decode(&asked.frame).expect("it was read when it came");
            self.send_to_leader(asked.from, &message, actions);
        }
        for (peer, request, job) in self.watchers.take_all() {
            self.refuse(peer, Some(Kind::Watch), request, job, ErrorCode::NotLeader, &endpoint, actions);
        }
    }

    /// Says who leads to somebody who asked the wrong master.
    pub(super) fn send_to_leader(&self, to: wire::PeerId, message: &Message<'_>, actions: &mut Vec<Action>) {
        let (kind, request) = (Some(message.kind()), super::request_of(message));
        // A lone master, and one that has just been elected, will be able to answer in a moment.
        let (code, detail) = if self.group.is_lone() || self.raft.is_leader() {
            (ErrorCode::NotReady, "this master is starting")
        } else {
            (ErrorCode::NotLeader, self.leader_endpoint())
        };
        self.refuse(to, kind, request, JobId::NIL, code, detail, actions);
    }
}
