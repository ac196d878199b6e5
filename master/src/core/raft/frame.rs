//! Raft's messages in our own packed frames: protobuf is never parsed from the network.
//!
//! Raft knows a master by a number made of its uuid. The sender of a frame is the node of its header, which admission has
//! compared with the sender's key, so nobody speaks for another.

use raft::eraftpb::{Entry, EntryType, Message as Step, MessageType};
use wire::{DecodeError, FixedPart, Hash, NodeId, RaftMessage, Reader, U32, U64, Writer};

use super::raft_id;

/// The kinds of steps that masters tell each other, by their numbers.
const STEPS: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgTimeoutNow,
];
const KINDS: [EntryType; 3] = [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
const LEARNER: u8 = 1;
/// Entries of one frame; each takes some bytes of it, so more is a lie about the count.
const ENTRIES_MAX: usize = wire::limit::FRAME_SIZE_MAX / 5;

/// What stands in a snapshot's place in a message: the file that has it, which the receiver fetches from the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::core) struct SnapshotFile {
    pub index: u64,
    pub term: u64,
    pub length: u64,
    pub hash: Hash,
}

impl SnapshotFile {
    const SIZE: usize = 8 + 32;

    /// As raft carries it.
    pub(in crate::core) fn data(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.plain(&U64::new(self.length)).plain(&self.hash);
        to.bytes
    }

    pub(in crate::core) fn of_step(step: &Step) -> Option<Self> {
        let snapshot = step.get_snapshot();
        let metadata = snapshot.get_metadata();
        let (length, hash) = snapshot.data.split_at_checked(8).filter(|_| snapshot.data.len() == Self::SIZE)?;
        let length = u64::from_le_bytes(length.try_into().ok()?);
        let hash = Hash(hash.try_into().ok()?);
        Some(Self { index: metadata.index, term: metadata.term, length, hash })
    }
}

/// A step as it is sent; `None` = a kind that is for nobody else.
pub(in crate::core) fn encode(step: &Step, from: NodeId, to: NodeId) -> Option<Vec<u8>> {
    let number = STEPS.iter().position(|kind| *kind == step.msg_type)?;
    let file = SnapshotFile::of_step(step);
    let conf = step.get_snapshot().get_metadata().get_conf_state();
    let mut body = Writer::new();
    body.raw(&step.context);
    let mut num_members = 0;
    if file.is_some() {
        let learners = conf.learners.iter().map(|id| (id, LEARNER));
        for (id, flags) in conf.voters.iter().map(|id| (id, 0)).chain(learners) {
            body.plain(&U64::new(*id)).raw(&[flags]);
            num_members += 1;
        }
    }
    for entry in &step.entries {
        let kind = KINDS.iter().position(|kind| *kind == entry.entry_type).expect("all kinds are listed");
        body.varint(entry.term).varint(entry.index).raw(&[kind as u8]).string(&entry.context).string(&entry.data);
    }
    let fixed = RaftMessage {
        to_uuid: to.into(),
        term: U64::new(step.term),
        log_term: U64::new(step.log_term),
        index: U64::new(step.index),
        commit: U64::new(step.commit),
        commit_term: U64::new(step.commit_term),
        reject_hint: U64::new(step.reject_hint),
        request_snapshot: U64::new(step.request_snapshot),
        snapshot_index: U64::new(file.map_or(0, |file| file.index)),
        snapshot_term: U64::new(file.map_or(0, |file| file.term)),
        snapshot_length: U64::new(file.map_or(0, |file| file.length)),
        snapshot_hash: file.map_or(Hash::NIL, |file| file.hash),
        context_length: U32::new(step.context.len() as u32),
        num_entries: U32::new(step.entries.len() as u32),
        num_members: U32::new(num_members),
        step: number as u8,
        reject: step.reject.into(),
        ..RaftMessage::DEFAULT
    };
    Some(fixed.frame(from, &body.bytes))
}

/// The step that a frame for `me` holds.
pub(in crate::core) fn decode(fixed: &RaftMessage, body: &[u8], me: NodeId) -> Result<Step, DecodeError> {
    let wrong = |what| DecodeError::Body { what };
    if fixed.to_uuid.node() != me {
        return Err(wrong("it is for another master"));
    }
    let from = &mut Reader::new(body);
    let mut step = Step::default();
    step.msg_type = *STEPS.get(usize::from(fixed.step)).ok_or(wrong("its step is not known here"))?;
    (step.from, step.to) = (raft_id(fixed.header.node_uuid.node()), raft_id(me));
    (step.term, step.log_term, step.index) = (fixed.term.get(), fixed.log_term.get(), fixed.index.get());
    (step.commit, step.commit_term) = (fixed.commit.get(), fixed.commit_term.get());
    (step.reject_hint, step.request_snapshot) = (fixed.reject_hint.get(), fixed.request_snapshot.get());
    step.reject = fixed.reject != 0;
    step.context = from.raw(fixed.context_length.get() as usize)?.to_vec().into();
    if step.msg_type == MessageType::MsgSnapshot {
        let file = SnapshotFile {
            index: fixed.snapshot_index.get(),
            term: fixed.snapshot_term.get(),
            length: fixed.snapshot_length.get(),
            hash: fixed.snapshot_hash,
        };
        let snapshot = step.mut_snapshot();
        snapshot.data = file.data().into();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (file.index, file.term);
        for _ in 0..fixed.num_members.get() {
            let (id, flags) = (from.plain::<U64>()?.get(), from.raw(1)?[0]);
            let conf = metadata.mut_conf_state();
            if flags & LEARNER != 0 { conf.learners.push(id) } else { conf.voters.push(id) }
        }
    }
    let count = fixed.num_entries.get() as usize;
    if count > ENTRIES_MAX {
        return Err(wrong("it has more entries than bytes"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let mut entry = Entry::default();
        (entry.term, entry.index) = (from.varint()?, from.varint()?);
        entry.entry_type =
            *KINDS.get(usize::from(from.raw(1)?[0])).ok_or(wrong("a kind of entry is not known here"))?;
        entry.context = from.string()?.to_vec().into();
        entry.data = from.string()?.to_vec().into();
        entries.push(entry);
    }
    step.entries = entries.into();
    from.end()?;
    Ok(step)
}
