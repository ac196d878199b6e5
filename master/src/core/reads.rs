//! Answers that must be current: questions, and requests that the state has answered already.
//!
//! A leader that has been replaced does not know it yet, and its state is a moment old. So whatever is answered from the
//! state waits until a majority has said that this is still the leader: one question to the others serves all who have
//! come in the meantime, as a caretaker who has to walk to the gate takes everybody's letters along.

use std::collections::VecDeque;

use wire::{ErrorCode, Instant, Message, PeerId, Role};

use super::{Action, Core};

/// Somebody who waits for a current answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub from: PeerId,
    pub role: Option<Role>,
    pub frame: Vec<u8>,
}

/// The walk that is under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    number: u64,
    begun_at: Instant,
    /// How many at the front wait for it.
    served: usize,
    /// What has to be applied before they are answered, once the others have said yes.
    index: Option<u64>,
}

/// All who wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Reads {
    asked: VecDeque<Asked>,
    round: Option<Round>,
}

/// Ticks after which a round that nobody has answered is begun anew: raft drops questions silently.
const ROUND_TICKS: u32 = 10;

impl Reads {
    pub(super) fn len(&self) -> usize {
        self.asked.len()
    }

    /// Everybody who waits, when nobody can be answered.
    pub(super) fn take_all(&mut self) -> Vec<Asked> {
        self.round = None;
        self.asked.drain(..).collect()
    }

    /// A majority has said that this was the leader when the round began.
    pub(super) fn on_confirmed(&mut self, number: u64, index: u64) {
        if let Some(round) = self.round.as_mut().filter(|round| round.number == number) {
            round.index = Some(index);
        }
    }

    /// Those whose answer is current in a state as of `applied`.
    fn take_served(&mut self, applied: u64) -> Vec<Asked> {
        match self.round {
            Some(Round { served, index: Some(index), .. }) if index <= applied => {
                self.round = None;
                self.asked.drain(..served).collect()
            }
            Some(_) | None => Vec::new(),
        }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.round.is_none_or(|round| round.served <= self.asked.len()), "a round serves those who wait");
    }
}

impl Core {
    /// Answers this message once it is sure that the answer is current.
    pub(super) fn ask(
        &mut self,
        from: PeerId,
        role: Option<Role>,
        message: &Message<'_>,
        frame: &[u8],
        actions: &mut Vec<Action>,
    ) {
        if self.reads.len() >= self.config.limits.reads_max {
            let (kind, request) = (Some(message.kind()), super::request_of(message));
            let detail = "too many questions are under way";
            return self.refuse(from, kind, request, wire::JobId::NIL, ErrorCode::Busy, detail, actions);
        }
        self.reads.asked.push_back(Asked { from, role, frame: frame.to_vec() });
    }

    /// Begins a round for those who have come since the last, or again when the last was lost.
    pub(super) fn begin_reads(&mut self, now: Instant) {
        if self.leading_since.is_none() || self.reads.asked.is_empty() {
            return;
        }
        let patience = self.config.timings.tick_ms * ROUND_TICKS;
        let is_under_way =
            self.reads.round.is_some_and(|round| round.index.is_some() || now.since(round.begun_at) < patience);
        if !is_under_way {
            let (number, served) = (self.raft.read_index(), self.reads.asked.len());
            self.reads.round = Some(Round { number, begun_at: now, served, index: None });
        }
    }

    /// Answers those who have waited for a round that is done.
    pub(super) fn answer_reads(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for Asked { from, role, frame } in self.reads.take_served(self.state.index) {
            let message = Message::decode(&frame).expect("it was read when it came");
            if let Message::Query(fixed, body) = message {
                self.on_query(from, &fixed, body, now, actions);
            } else if let Message::Watch(fixed, _) = message {
                self.on_watch(from, &fixed, now, actions);
            } else {
                self.on_request(from, role, &message, &frame, true, now, actions);
            }
        }
    }
}
