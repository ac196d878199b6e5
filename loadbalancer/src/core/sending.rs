//! What goes to workers: numbered requests and retracts, their resends, and kills.
//!
//! Numbers have no gap and never change their meaning: a number whose range is gone before it was answered is sent again
//! empty. One whose range is gone in part is sent empty too, and the worker is then asked what it holds, since nobody
//! knows whether it had read the first copy.

use wire::{
    ChunkRange, FixedPart, Instant, JobId, NodeId, REQUEST_KNOWN, Retract as RetractMessage, U32, U64, WorkerRequest,
};

use super::log_view::JobView;
use super::worker_view::{Claim, Holding, KILLS_MAX, Kill, Retract, Sent, WorkerView};
use super::{Action, LoadBalancer, Timer};

impl LoadBalancer {
    /// Gives `range` of `job`, which nobody holds, to a worker that has room for it.
    pub(super) fn assign(
        &mut self,
        node: NodeId,
        job: JobId,
        range: ChunkRange,
        attempt: u32,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let epoch = self.epoch().expect("only a primary assigns");
        let worker = self.workers.get_mut(&node).expect("a worker was chosen");
        let to = worker.peer.expect("a worker with a connection was chosen");
        assert!(u64::from(range.count) <= worker.room(), "{range:?} is beyond the room of {node}");
        let sequence = worker.number(Sent::Request { job, range, attempt });
        worker.held.set(job, range, Holding { claim: Claim::Assigned { sequence }, attempt, is_started: false });
        worker.bodies.entry(job).or_insert(sequence);
        let view = self.log.jobs.get(&job).expect("a live job was chosen");
        let frame = request(self.config.node, worker, view, epoch, sequence, (job, range, attempt));
        actions.push(Action::Send { to, frame });
        self.resend_later(node, now);
    }

    /// Takes back what has not started of `range`.
    pub(super) fn retract(
        &mut self,
        node: NodeId,
        job: JobId,
        range: ChunkRange,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let epoch = self.epoch().expect("only a primary retracts");
        let worker = self.workers.get_mut(&node).expect("a worker was chosen");
        assert!(worker.retract.is_none(), "one retract per worker is enough");
        let sequence = worker.number(Sent::Retract { job, range });
        let retract = Retract { sequence, job, range };
        worker.retract = Some(retract);
        if let Some(to) = worker.peer {
            actions.push(Action::Send { to, frame: retract_frame(self.config.node, worker, epoch, &retract) });
        }
        self.resend_later(node, now);
    }

    fn resend_later(&mut self, node: NodeId, now: Instant) {
        let worker = self.workers.get_mut(&node).expect("a worker was chosen");
        let resend_at = *worker.resend_at.get_or_insert(now + worker.resend_wait);
        self.timers.set_earlier(Timer::Resend, resend_at);
    }

    pub(super) fn resend_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_due = |worker: &WorkerView| worker.resend_at.is_some_and(|at| at <= now);
        let due: Vec<NodeId> =
            self.workers.iter().filter(|(_, worker)| is_due(worker)).map(|(node, _)| *node).collect();
        for node in due {
            self.resend(node, now, actions);
        }
        if let Some(at) = self.workers.values().filter_map(|worker| worker.resend_at).min() {
            self.timers.set(Timer::Resend, at);
        }
    }

    /// Sends every number again that has no answer, and the retract whose own answer is missing.
    pub(super) fn resend(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let us = self.config.node;
        let (Some(epoch), Some(worker)) = (self.epoch(), self.workers.get_mut(&node)) else { return };
        if worker.sent.is_empty() && worker.retract.is_none() {
            worker.resend_at = None;
            return;
        }
        worker.resend_wait = (worker.resend_wait * 2).min(self.config.timings.resend_wait_max);
        worker.resend_at = Some(now + worker.resend_wait);
        let Some(to) = worker.peer else { return };
        let mut send = |frame| actions.push(Action::Send { to, frame });
        let mut in_part = None;
        for (sequence, sent) in &worker.sent {
            let sequence = *sequence;
            match *sent {
                Sent::Request { job, range, attempt } => {
                    let ours = Claim::Assigned { sequence };
                    let mut held = worker.held.pieces(job, range).filter(|(_, holding)| holding.claim == ours);
                    let first = held.next().map(|(piece, _)| piece);
                    match self.log.jobs.get(&job) {
                        Some(view) if first == Some(range) => {
                            send(request(us, worker, view, epoch, sequence, (job, range, attempt)));
                        }
                        Some(_) | None => {
                            in_part = first.map(|_| sequence).or(in_part);
                            send(void(us, worker, epoch, sequence, job, range));
                        }
                    }
                }
                Sent::Retract { job, range } => {
                    send(retract_frame(us, worker, epoch, &Retract { sequence, job, range }));
                }
            }
        }
        let is_answered = |retract: &&Retract| retract.sequence <= worker.acked;
        if let Some(retract) = worker.retract.as_ref().filter(is_answered) {
            send(retract_frame(us, worker, epoch, retract));
        }
        worker.inventory_wanted = worker.inventory_wanted.max(in_part);
    }

    /// Stops `range`, which has ended at the view's index, for good, and until the worker says so.
    pub(super) fn kill(
        &mut self,
        node: NodeId,
        job: JobId,
        range: ChunkRange,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (Some(epoch), request) = (self.epoch(), self.number_request()) else { return };
        let (index, repeat) = (self.log.index, self.config.timings.repeat_interval);
        let Some(worker) = self.workers.get_mut(&node) else { return };
        let is_said = |kill: &Kill| kill.job == job && contains(kill.range, range);
        if worker.kills.values().any(is_said) {
            return;
        }
        if worker.kills.len() == KILLS_MAX {
            // What of it is still meant to run stands in an inventory that reflects all numbers so far, and is killed
            // then; if there is no room even then, the worker is asked once more.
            worker.inventory_wanted = Some(worker.next - 1);
            return;
        }
        let kill = Kill { job, range, index, after: worker.next - 1, again_at: now + repeat };
        worker.kills.insert(request, kill);
        if let Some(to) = worker.peer {
            actions.push(Action::Send { to, frame: kill_frame(self.config.node, epoch, request, &kill) });
        }
    }

    pub(super) fn repeat_kills(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let (Some(epoch), Some(worker)) = (self.epoch(), self.workers.get_mut(&node)) else { return };
        let Some(to) = worker.peer else { return };
        for (request, kill) in worker.kills.iter_mut().filter(|(_, kill)| kill.again_at <= now) {
            kill.again_at = now + self.config.timings.repeat_interval;
            actions.push(Action::Send { to, frame: kill_frame(self.config.node, epoch, *request, kill) });
        }
    }
}

fn contains(outer: ChunkRange, inner: ChunkRange) -> bool {
    outer.first <= inner.first && inner.end() <= outer.end()
}

/// `worker_request`, with the body if this is the number that brings it.
fn request(
    us: NodeId,
    worker: &WorkerView,
    view: &JobView,
    epoch: u64,
    sequence: u64,
    (job, range, attempt): (JobId, ChunkRange, u32),
) -> Vec<u8> {
    let brings_body = worker.bodies.get(&job) == Some(&sequence);
    let fixed = WorkerRequest {
        program_length: U64::new(if brings_body { view.program_length } else { 0 }),
        num_input_files: U64::new(if brings_body { view.num_input_files } else { 0 }),
        chunk_count: U32::new(view.chunk_count),
        attempt: U32::new(attempt),
        job_number: U64::new(view.number),
        flags: U32::new(if brings_body { 0 } else { REQUEST_KNOWN }),
        ..numbered_request(worker, epoch, sequence, job, range)
    };
    fixed.frame(us, if brings_body { view.body() } else { &[] })
}

/// The number without a range: only to be answered.
fn void(us: NodeId, worker: &WorkerView, epoch: u64, sequence: u64, job: JobId, range: ChunkRange) -> Vec<u8> {
    let nothing = ChunkRange::new(range.first, 0);
    let fixed =
        WorkerRequest { flags: U32::new(REQUEST_KNOWN), ..numbered_request(worker, epoch, sequence, job, nothing) };
    fixed.frame(us, &[])
}

fn numbered_request(worker: &WorkerView, epoch: u64, sequence: u64, job: JobId, range: ChunkRange) -> WorkerRequest {
    WorkerRequest {
        job_uuid: job.into(),
        first: U32::new(range.first),
        count: U32::new(range.count),
        epoch: U64::new(epoch),
        sequence: U64::new(sequence),
        worker_boot: U64::new(worker.boot.0),
        ..WorkerRequest::DEFAULT
    }
}

fn retract_frame(us: NodeId, worker: &WorkerView, epoch: u64, retract: &Retract) -> Vec<u8> {
    let fixed = RetractMessage {
        job_uuid: retract.job.into(),
        first: U32::new(retract.range.first),
        count: U32::new(retract.range.count),
        epoch: U64::new(epoch),
        sequence: U64::new(retract.sequence),
        worker_boot: U64::new(worker.boot.0),
        ..RetractMessage::DEFAULT
    };
    fixed.frame(us, &[])
}

fn kill_frame(us: NodeId, epoch: u64, request: u64, kill: &Kill) -> Vec<u8> {
    let fixed = wire::Kill {
        request: U64::new(request),
        job_uuid: kill.job.into(),
        first: U32::new(kill.range.first),
        count: U32::new(kill.range.count),
        epoch: U64::new(epoch),
        index: U64::new(kill.index),
        ..wire::Kill::DEFAULT
    };
    fixed.frame(us, &[])
}
