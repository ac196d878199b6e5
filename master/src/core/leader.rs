//! What the leader has taken on: requests of this turn, then entries that wait for a majority, each with who is to be
//! answered.
//!
//! Everything that comes in a turn becomes one entry and one write to the disk: that is why a hundred clients are
//! hardly slower than one. A request that is repeated while the first is under way is dropped; the answer to the first
//! serves both.

use std::collections::{BTreeMap, BTreeSet};

use planted::Bug;
use wire::{
    BootNonce, Committed, ErrorCode, FixedPart, Instant, JobAccepted, JobId, Kind, NodeId, NodeWelcome, PeerId,
    ResultConfirmed, Role, U64, WallTime, Writer, log,
};

use super::entry::RequestError;
use super::state::Outcome;
use super::{Action, Core, Decision};

/// What makes a request the same as an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Key {
    /// Numbered by its sender.
    Numbered {
        from: PeerId,
        kind: Kind,
        request: u64,
    },
    /// A batch of results is numbered per boot of its worker.
    Batch {
        worker: NodeId,
        boot: BootNonce,
        batch: u64,
    },
    /// A follower registers.
    MemberRegistration {
        node: NodeId,
    },
    /// The leader's own: its registration and the next epoch.
    SelfRegistration,
    Epoch,
}

/// Which message says that a request is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Committed,
    /// Results: their worker may forget them.
    Confirmed,
    /// A hello of this boot of a node.
    Welcome {
        node: NodeId,
        boot: BootNonce,
    },
}

/// Who is to be answered, and in which terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiter {
    /// `None` = a request of the leader's own.
    pub to: Option<PeerId>,
    pub kind: Kind,
    /// The sender's number; of results, the batch.
    pub request: u64,
    pub job: JobId,
    pub form: Form,
    pub key: Key,
    pub size: usize,
}

/// Requests that are accepted and not yet applied.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pending: Vec<(Waiter, Vec<u8>)>,
    pending_bytes: usize,
    /// How many of `pending` are results.
    pending_results: usize,
    /// By log index.
    in_flight: BTreeMap<u64, Vec<Waiter>>,
    /// Of all requests, pending and in flight.
    keys: BTreeSet<Key>,
    bytes: usize,
    /// The stamp of the last entry proposed.
    stamp: WallTime,
    /// When the last entry with results was proposed.
    results_at: Option<Instant>,
}

impl Backlog {
    pub(super) fn has(&self, key: Key) -> bool {
        self.keys.contains(&key)
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// True when what is pending fills an entry.
    pub(super) fn is_full_entry(&self, bytes_max: usize) -> bool {
        self.pending_bytes >= bytes_max
    }

    pub(super) fn has_room(&self, size: usize, requests_max: usize, bytes_max: usize) -> bool {
        self.keys.len() < requests_max && self.bytes + size <= bytes_max
    }

    pub(super) fn push(&mut self, waiter: Waiter, frame: Vec<u8>) {
        self.keys.insert(waiter.key);
        self.bytes += waiter.size;
        self.pending_bytes += waiter.size;
        self.pending_results += usize::from(waiter.form == Form::Confirmed);
        self.pending.push((waiter, frame));
    }

    /// Those who wait for the entry at `index`, in the order of its requests.
    pub(super) fn take(&mut self, index: u64) -> Vec<Waiter> {
        let waiters = self.in_flight.remove(&index).unwrap_or_default();
        waiters.iter().for_each(|waiter| self.forget(waiter));
        waiters
    }

    /// Everybody who waits, in the order in which they came.
    pub(super) fn take_all(&mut self) -> Vec<Waiter> {
        let in_flight = std::mem::take(&mut self.in_flight).into_values().flatten();
        let pending = std::mem::take(&mut self.pending).into_iter().map(|(waiter, _)| waiter);
        let all: Vec<Waiter> = in_flight.chain(pending).collect();
        *self = Self { stamp: self.stamp, ..Self::default() };
        all
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.keys.remove(&waiter.key);
        self.bytes -= waiter.size;
    }

    pub(super) fn check_invariants(&self) {
        let waiters = || self.pending.iter().map(|(waiter, _)| waiter).chain(self.in_flight.values().flatten());
        assert_eq!(waiters().map(|waiter| waiter.size).sum::<usize>(), self.bytes, "each request is counted once");
        assert_eq!(waiters().map(|waiter| waiter.key).collect::<BTreeSet<_>>(), self.keys, "each is known by its key");
    }
}

impl Core {
    /// When the next entry should be made. While the disk writes, another entry could only wait for it; so what comes
    /// meanwhile gathers into one, unless it fills an entry by itself. Nobody's work waits for a result to be confirmed
    /// (room is told to load balancers apart), so results gather a little longer when they come fast.
    pub(super) fn flush_deadline(&self, now: Instant) -> Option<Instant> {
        if !self.backlog.has_pending() || !self.raft.is_leader() {
            return None;
        }
        if self.backlog.is_full_entry(self.config.limits.entry_bytes_max) {
            return Some(now);
        }
        if self.raft.is_persisting() {
            return None;
        }
        let is_results_only = self.backlog.pending_results == self.backlog.pending.len();
        let last = self.backlog.results_at.filter(|_| is_results_only);
        Some(last.map_or(now, |last| (last + self.config.timings.results_interval_ms).max(now)))
    }

    /// Makes one entry of all that is pending, if that is due.
    pub(super) fn flush(&mut self, now: Instant, wall: WallTime, actions: &mut Vec<Action>) {
        if self.flush_deadline(now).is_none_or(|deadline| deadline > now) {
            return;
        }
        if std::mem::take(&mut self.backlog.pending_results) > 0 {
            self.backlog.results_at = Some(now);
        }
        let pending = std::mem::take(&mut self.backlog.pending);
        self.backlog.pending_bytes = 0;
        let stamp = wall.max(self.backlog.stamp).max(self.state.stamp);
        self.backlog.stamp = stamp;
        let entry = log::encode_entry(stamp, pending.iter().map(|(_, frame)| &frame[..]));
        let waiters: Vec<Waiter> = pending.into_iter().map(|(waiter, _)| waiter).collect();
        match self.raft.propose(entry) {
            Some(index) => {
                if planted::is(Bug::AcknowledgedBeforeCommit) {
                    self.answer_before_commit(&waiters, index, actions);
                }
                self.backlog.in_flight.insert(index, waiters);
            }
            None => {
                for waiter in waiters {
                    self.backlog.forget(&waiter);
                    self.answer_refused(&waiter, ErrorCode::Busy, "the log takes no more now", actions);
                }
            }
        }
    }

    /// What nobody must do.
    fn answer_before_commit(&self, waiters: &[Waiter], index: u64, actions: &mut Vec<Action>) {
        for waiter in waiters.iter().filter(|waiter| waiter.form == Form::Committed && waiter.kind != Kind::SubmitJob) {
            waiter.to.into_iter().for_each(|to| self.answer_changed(waiter, to, 1, index, actions));
        }
    }

    /// Answers a request whose entry, at `index`, has been applied.
    pub(super) fn answer_applied(
        &mut self,
        waiter: Waiter,
        outcome: Option<&Outcome>,
        index: u64,
        actions: &mut Vec<Action>,
    ) {
        let outcome = outcome.expect("an entry that a leader made gives an outcome for each of its requests");
        self.answer(&waiter, outcome, index, actions);
    }

    /// Answers a request with what became of it; `index` is that of its entry, or of the state that knew it already.
    pub(super) fn answer(&self, waiter: &Waiter, outcome: &Outcome, index: u64, actions: &mut Vec<Action>) {
        let Some(to) = waiter.to else { return };
        match outcome {
            Outcome::Accepted { job, number, index } => {
                let fixed = JobAccepted {
                    request: U64::new(waiter.request),
                    job_uuid: (*job).into(),
                    number: U64::new(*number),
                    term: U64::new(self.raft.term()),
                    index: U64::new(*index),
                    ..JobAccepted::DEFAULT
                };
                actions.push(Action::Send { to, frame: fixed.frame(self.config.node, b"") });
            }
            Outcome::Changed { changed } => self.answer_changed(waiter, to, *changed, index, actions),
            Outcome::ExistsDifferent { detail } => {
                self.answer_refused(waiter, ErrorCode::ExistsDifferent, detail, actions)
            }
            Outcome::UnknownJob { job } => {
                self.answer_refused(waiter, ErrorCode::UnknownJob, &format!("no job {job}"), actions)
            }
            Outcome::StaleEpoch { current } => {
                let detail = format!("the current epoch is {current}");
                self.answer_refused(waiter, ErrorCode::StaleEpoch, &detail, actions)
            }
            Outcome::Refused(error) => self.answer_refused(waiter, code_of(error), &error.to_string(), actions),
        }
    }

    fn answer_changed(&self, waiter: &Waiter, to: PeerId, changed: u64, index: u64, actions: &mut Vec<Action>) {
        let frame = match waiter.form {
            Form::Confirmed => ResultConfirmed {
                batch: U64::new(waiter.request),
                job_uuid: waiter.job.into(),
                index: U64::new(self.state.index),
                ..ResultConfirmed::DEFAULT
            }
            .frame(self.config.node, b""),
            Form::Welcome { node, boot } => match self.welcome(waiter.request, node, boot) {
                Ok(frame) => frame,
                Err(detail) => return self.answer_refused(waiter, ErrorCode::InvalidRequest, &detail, actions),
            },
            Form::Committed => Committed {
                request: U64::new(waiter.request),
                term: U64::new(self.raft.term()),
                index: U64::new(index),
                changed: U64::new(changed),
                ..Committed::DEFAULT
            }
            .frame(self.config.node, b""),
        };
        actions.push(Action::Send { to, frame });
    }

    /// The answer to a hello, unless a newer boot of the node has said its own.
    fn welcome(&self, request: u64, node: NodeId, boot: BootNonce) -> Result<Vec<u8>, String> {
        let newer = self.state.nodes.get(&node).filter(|record| record.boot > boot);
        if let Some(newer) = newer {
            return Err(format!("a newer boot of {} is registered: {}", newer.name, newer.boot.0 >> 32));
        }
        let mut body = Writer::new();
        let is_listed = |role: Role| matches!(role, Role::LoadBalancer | Role::Storage);
        // As many as a frame surely takes; a cluster with thousands of storage nodes asks for the rest by query.
        let listed = self.state.nodes.values().filter(|record| is_listed(record.role));
        for record in listed {
            if body.bytes.len() >= wire::limit::BLOCK_SIZE {
                break;
            }
            record.encode(&mut body);
        }
        let fixed = NodeWelcome {
            request: U64::new(request),
            index: U64::new(self.state.index),
            term: U64::new(self.raft.term()),
            epoch: U64::new(self.state.epoch.number),
            nodes_version: U64::new(self.state.nodes_version),
            ..NodeWelcome::DEFAULT
        };
        Ok(fixed.frame(self.config.node, &body.bytes))
    }

    /// Answers a request with an error.
    pub(super) fn answer_refused(&self, waiter: &Waiter, code: ErrorCode, detail: &str, actions: &mut Vec<Action>) {
        let Some(to) = waiter.to else { return };
        // "Busy" may be said a thousand times a second, and says nothing new.
        if code != ErrorCode::Busy {
            let decision = Decision::Refused { kind: waiter.kind, code, detail: detail.into() };
            actions.push(Action::Decided(decision));
        }
        self.refuse(to, Some(waiter.kind), waiter.request, waiter.job, code, detail, actions);
    }
}

/// How a request that cannot be accepted is called.
pub(super) fn code_of(error: &RequestError) -> ErrorCode {
    match error {
        RequestError::Malformed(_) => ErrorCode::Malformed,
        RequestError::Rule(_) => ErrorCode::InvalidRequest,
    }
}
