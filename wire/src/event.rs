//! What a `watch_batch` tells: the effects of log entries, in log order.

use crate::record::NodeRecord;
use crate::{BootNonce, ChunkRange, ChunkState, DecodeError, JobId, JobState, NodeId, Reader, WallTime, Writer};

/// One effect of a log entry, or, in a snapshot, one live subject.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogEvent<'a> {
    /// A job is in the log; `frame` is its `submit_job` as it came.
    JobAccepted { number: u64, submitted_at: WallTime, frame: &'a [u8] },
    /// Chunks reached a state that they never leave; whoever held them holds them no more.
    ChunksEnded { job: JobId, state: ChunkState, ranges: Vec<ChunkRange> },
    /// A failure or loss names its worker's boot: of these ranges that boot holds nothing up to `attempt_max`.
    HolderFreed { job: JobId, worker: NodeId, boot: BootNonce, attempt_max: u32, ranges: Vec<ChunkRange> },
    /// These chunks wait again, for `attempt`.
    ChunksWaiting { job: JobId, attempt: u32, ranges: Vec<ChunkRange> },
    /// Every chunk of the job has ended.
    JobEnded { job: JobId, state: JobState, at: WallTime },
    /// The primary is now this boot of this load balancer.
    EpochGranted { load_balancer: NodeId, boot: BootNonce, epoch: u64 },
    /// A new boot of a node is registered, or its record changed.
    NodeRegistered { node: NodeRecord },
    /// In a snapshot: a job that has not ended. `ended` holds a set per terminal state; `attempts` what is not 1.
    JobSnapshot {
        number: u64,
        submitted_at: WallTime,
        frame: &'a [u8],
        ended: Vec<(ChunkState, Vec<u8>)>,
        attempts: Vec<(ChunkRange, u32)>,
    },
}

/// The numbers of the kinds: append-only.
mod number {
    pub const JOB_ACCEPTED: u8 = 1;
    pub const CHUNKS_ENDED: u8 = 2;
    pub const HOLDER_FREED: u8 = 3;
    pub const CHUNKS_WAITING: u8 = 4;
    pub const JOB_ENDED: u8 = 5;
    pub const EPOCH_GRANTED: u8 = 6;
    pub const NODE_REGISTERED: u8 = 7;
    pub const JOB_SNAPSHOT: u8 = 8;
}

impl<'a> LogEvent<'a> {
    /// Appends the event: its number, its length, its fields.
    pub fn encode(&self, to: &mut Writer) {
        let mut fields = Writer::new();
        let number = self.encode_fields(&mut fields);
        to.raw(&[number]).string(&fields.bytes);
    }

    fn encode_fields(&self, to: &mut Writer) -> u8 {
        match self {
            LogEvent::JobAccepted { number, submitted_at, frame } => {
                to.varint(*number).varint(submitted_at.0).string(frame);
                number::JOB_ACCEPTED
            }
            LogEvent::ChunksEnded { job, state, ranges } => {
                to.plain(job).raw(&[*state as u8]);
                encode_ranges(ranges, to);
                number::CHUNKS_ENDED
            }
            LogEvent::HolderFreed { job, worker, boot, attempt_max, ranges } => {
                to.plain(job).plain(worker).varint(boot.0).varint((*attempt_max).into());
                encode_ranges(ranges, to);
                number::HOLDER_FREED
            }
            LogEvent::ChunksWaiting { job, attempt, ranges } => {
                to.plain(job).varint((*attempt).into());
                encode_ranges(ranges, to);
                number::CHUNKS_WAITING
            }
            LogEvent::JobEnded { job, state, at } => {
                to.plain(job).raw(&[*state as u8]).varint(at.0);
                number::JOB_ENDED
            }
            LogEvent::EpochGranted { load_balancer, boot, epoch } => {
                to.plain(load_balancer).varint(boot.0).varint(*epoch);
                number::EPOCH_GRANTED
            }
            LogEvent::NodeRegistered { node } => {
                node.encode(to);
                number::NODE_REGISTERED
            }
            LogEvent::JobSnapshot { number, submitted_at, frame, ended, attempts } => {
                to.varint(*number).varint(submitted_at.0).string(frame).varint(ended.len() as u64);
                for (state, set) in ended {
                    to.raw(&[*state as u8]).string(set);
                }
                to.varint(attempts.len() as u64);
                for (range, attempt) in attempts {
                    to.varint(range.first.into()).varint(range.count.into()).varint((*attempt).into());
                }
                number::JOB_SNAPSHOT
            }
        }
    }

    /// Reads one event. `Ok(None)` = a kind that is newer than we are, skipped.
    pub fn decode(from: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        let kind = from.raw(1)?[0];
        let mut fields = Reader::new(from.string()?);
        let event = Self::decode_fields(kind, &mut fields)?;
        if event.is_some() {
            fields.end()?;
        }
        Ok(event)
    }

    fn decode_fields(kind: u8, from: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match kind {
            number::JOB_ACCEPTED => LogEvent::JobAccepted {
                number: from.varint()?,
                submitted_at: WallTime(from.varint()?),
                frame: from.string()?,
            },
            number::CHUNKS_ENDED => {
                LogEvent::ChunksEnded { job: *from.plain()?, state: chunk_state(from)?, ranges: decode_ranges(from)? }
            }
            number::HOLDER_FREED => LogEvent::HolderFreed {
                job: *from.plain()?,
                worker: *from.plain()?,
                boot: BootNonce(from.varint()?),
                attempt_max: from.varint32()?,
                ranges: decode_ranges(from)?,
            },
            number::CHUNKS_WAITING => {
                LogEvent::ChunksWaiting { job: *from.plain()?, attempt: from.varint32()?, ranges: decode_ranges(from)? }
            }
            number::JOB_ENDED => {
                let (job, state) = (*from.plain()?, from.raw(1)?[0]);
                let state = JobState::from_number(state).ok_or(DecodeError::Body { what: "a job state is unknown" })?;
                LogEvent::JobEnded { job, state, at: WallTime(from.varint()?) }
            }
            number::EPOCH_GRANTED => LogEvent::EpochGranted {
                load_balancer: *from.plain()?,
                boot: BootNonce(from.varint()?),
                epoch: from.varint()?,
            },
            number::NODE_REGISTERED => LogEvent::NodeRegistered { node: NodeRecord::decode(from)? },
            number::JOB_SNAPSHOT => decode_job_snapshot(from)?,
            _ => return Ok(None),
        }))
    }
}

fn decode_job_snapshot<'a>(from: &mut Reader<'a>) -> Result<LogEvent<'a>, DecodeError> {
    let (number, submitted_at, frame) = (from.varint()?, WallTime(from.varint()?), from.string()?);
    let mut ended = Vec::new();
    for _ in 0..from.varint()? {
        ended.push((chunk_state(from)?, from.string()?.to_vec()));
    }
    let mut attempts = Vec::new();
    for _ in 0..from.varint()? {
        attempts.push((decode_range(from)?, from.varint32()?));
    }
    Ok(LogEvent::JobSnapshot { number, submitted_at, frame, ended, attempts })
}

fn chunk_state(from: &mut Reader<'_>) -> Result<ChunkState, DecodeError> {
    ChunkState::from_number(from.raw(1)?[0]).ok_or(DecodeError::Body { what: "a chunk state is unknown" })
}

fn encode_ranges(ranges: &[ChunkRange], to: &mut Writer) {
    to.varint(ranges.len() as u64);
    for range in ranges {
        to.varint(range.first.into()).varint(range.count.into());
    }
}

fn decode_range(from: &mut Reader<'_>) -> Result<ChunkRange, DecodeError> {
    Ok(ChunkRange::new(from.varint32()?, from.varint32()?))
}

fn decode_ranges(from: &mut Reader<'_>) -> Result<Vec<ChunkRange>, DecodeError> {
    let count = from.varint()?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push(decode_range(from)?);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_reads_as_it_was_written() {
        let ranges = vec![ChunkRange::new(0, 3), ChunkRange::new(9, 1)];
        let (job, node) = (JobId([1; 16]), NodeId([2; 16]));
        let events = [
            LogEvent::JobAccepted { number: 1, submitted_at: WallTime(5), frame: b"frame" },
            LogEvent::ChunksEnded { job, state: ChunkState::Finished, ranges: ranges.clone() },
            LogEvent::HolderFreed { job, worker: node, boot: BootNonce(7), attempt_max: 2, ranges: ranges.clone() },
            LogEvent::ChunksWaiting { job, attempt: 2, ranges },
            LogEvent::JobEnded { job, state: JobState::Failed, at: WallTime(6) },
            LogEvent::EpochGranted { load_balancer: node, boot: BootNonce(7), epoch: 3 },
            LogEvent::JobSnapshot {
                number: 1,
                submitted_at: WallTime(5),
                frame: b"frame",
                ended: vec![(ChunkState::Failed, vec![1, 2])],
                attempts: vec![(ChunkRange::new(4, 2), 3)],
            },
        ];
        let mut to = Writer::new();
        events.iter().for_each(|event| event.encode(&mut to));
        let mut from = Reader::new(&to.bytes);
        for event in &events {
            assert_eq!(LogEvent::decode(&mut from).unwrap().as_ref(), Some(event));
        }
        assert!(from.is_empty());
    }

    #[test]
    fn an_event_of_a_newer_kind_is_skipped() {
        let mut to = Writer::new();
        to.raw(&[200]).string(b"later").raw(&[]);
        let mut from = Reader::new(&to.bytes);
        assert_eq!(LogEvent::decode(&mut from), Ok(None));
        assert!(from.is_empty());
    }
}
