//! What a master's disk gives back at a start, and how the state grows out of it again.

use planted::Bug;
use raft::eraftpb::{Entry, HardState};
use wire::{DecodeError, NodeId, Reader, Writer};

use super::raft::{Log, LogError, Persist};
use super::state::State;

/// The durable part of a master. The shell's disk fills it; a simulated disk can be one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recovered {
    /// The bytes of the newest `SaveSnapshot`.
    pub snapshot: Option<Vec<u8>>,
    /// In the order of their indexes.
    pub entries: Vec<Entry>,
    pub hard_state: HardState,
}

/// Says why a master cannot start from its disk. None of these may be skipped: an acknowledged request could be lost.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("the snapshot cannot be read: {0}")]
    Snapshot(DecodeError),
    #[error("{0}")]
    Log(#[from] LogError),
    #[error("this master is not among the {members} members of its group")]
    NoMember { members: usize },
}

impl Recovered {
    /// Takes in a `Persist`: its entries replace whatever is here from the first one's index on, its snapshot all.
    pub fn persist(&mut self, persist: &Persist) {
        if persist.snapshot.is_some() {
            self.entries.clear();
        }
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend(persist.entries.iter().cloned());
        }
        self.hard_state = persist.hard_state.clone();
    }

    /// Drops the entries up to `index`.
    pub fn compact(&mut self, index: u64) {
        self.entries.retain(|entry| entry.index > index);
    }

    pub(super) fn restore(self, members: &[NodeId]) -> Result<(State, Log), RecoverError> {
        let (state, term) = match &self.snapshot {
            Some(bytes) => decode_snapshot(bytes).map_err(RecoverError::Snapshot)?,
            None => (State::default(), 0),
        };
        let log = Log::recover(members, (state.index, term), self.entries, self.hard_state)?;
        Ok((state, log))
    }
}

/// The bytes of a snapshot: the term of the last entry in it, then the state.
pub(super) fn encode_snapshot(term: u64, state: &State) -> Vec<u8> {
    let mut to = Writer::new();
    to.varint(term).raw(&misshapen(state).as_ref().unwrap_or(state).encode());
    to.bytes
}

/// What a snapshot has in the state's place, where such a bug is planted.
fn misshapen(state: &State) -> Option<State> {
    if planted::is(Bug::SnapshotIndexTooLow) {
        Some(State { index: state.index - 1, ..state.clone() })
    } else if planted::is(Bug::SnapshotForgetsEnded) {
        let mut misshapen = state.clone();
        misshapen.jobs.retain(|_, job| job.is_live());
        misshapen.jobs_by_number.retain(|_, job| misshapen.jobs.contains_key(job));
        Some(misshapen)
    } else {
        None
    }
}

pub(super) fn decode_snapshot(bytes: &[u8]) -> Result<(State, u64), DecodeError> {
    let mut from = Reader::new(bytes);
    let term = from.varint()?;
    Ok((State::decode(from.rest())?, term))
}
