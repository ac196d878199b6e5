//! A worker that keeps the rules of the protocol, and runs nothing.

use std::collections::{BTreeMap, BTreeSet};

use wire::record::{ChunkItem, NodeRecord, holding};
use wire::*;

use super::{Worker, ms, record_of};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Run {
    Queued,
    Running { until: Instant },
    EndedWell,
    EndedBadly,
}

/// A chunk that the worker has.
#[derive(Clone, Copy, Debug)]
pub struct Has {
    pub run: Run,
    pub attempt: u32,
    /// When its result is told (again).
    tell_at: Instant,
}

/// A chunk that is new here, and its attempt.
pub type Accepted = ((JobId, u32), u32);

/// What a worker says in a moment: frames for the load balancer, `(chunk, attempt, is_good)` for the master.
#[derive(Default)]
pub struct Words {
    pub frames: Vec<Vec<u8>>,
    pub results: Vec<((JobId, u32), u32, bool)>,
    /// Runs that began.
    pub starts: u64,
}

const SLOTS: usize = 2;
const ROOM: usize = 8;

pub struct FakeWorker {
    pub node: NodeId,
    pub boot: BootNonce,
    pub is_up: bool,
    number: u8,
    epoch: u64,
    seen: u64,
    pub confirmed_index: u64,
    pub chunks: BTreeMap<(JobId, u32), Has>,
    bodies: BTreeSet<JobId>,
    beat_at: Instant,
}

impl FakeWorker {
    pub fn new(number: u8, boot: BootNonce) -> FakeWorker {
        FakeWorker {
            node: super::w(number),
            boot,
            is_up: true,
            number,
            epoch: 0,
            seen: 0,
            confirmed_index: 0,
            chunks: BTreeMap::new(),
            bodies: BTreeSet::new(),
            beat_at: Instant(0),
        }
    }

    fn words(&self) -> Worker {
        let busy = self.chunks.values().filter(|has| matches!(has.run, Run::Queued | Run::Running { .. })).count();
        Worker {
            boot: self.boot,
            epoch: self.epoch,
            seen: self.seen,
            confirmed_index: self.confirmed_index,
            credit: ROOM.saturating_sub(busy) as u32,
            ..Worker::number(self.number)
        }
    }

    pub fn record(&self) -> NodeRecord {
        record_of(&self.words())
    }

    pub fn next_deadline(&self) -> Instant {
        let deadlines = self.chunks.values().filter_map(|has| match has.run {
            Run::Queued => None,
            Run::Running { until } => Some(until),
            Run::EndedWell | Run::EndedBadly => Some(has.tell_at),
        });
        deadlines.min().unwrap_or(self.beat_at).min(self.beat_at)
    }

    /// Runs go on: some end, well or badly, queued ones start, results and heartbeats are told.
    pub fn moment(&mut self, now: Instant, duration: Duration, fails: bool) -> Words {
        let mut words = Words::default();
        let mut has_room = false;
        for (chunk, has) in &mut self.chunks {
            match has.run {
                Run::Running { until } if until <= now => {
                    has.run = if fails { Run::EndedBadly } else { Run::EndedWell };
                    has.tell_at = now;
                    has_room = true;
                }
                Run::Queued | Run::Running { .. } | Run::EndedWell | Run::EndedBadly => {}
            }
            let is_ended = matches!(has.run, Run::EndedWell | Run::EndedBadly);
            if is_ended && has.tell_at <= now {
                has.tell_at = now + ms(1_000);
                words.results.push((*chunk, has.attempt, has.run == Run::EndedWell));
            }
        }
        let running = self.chunks.values().filter(|has| matches!(has.run, Run::Running { .. })).count();
        let queued = self.chunks.values_mut().filter(|has| has.run == Run::Queued);
        for has in queued.take(SLOTS.saturating_sub(running)) {
            has.run = Run::Running { until: now + duration };
            words.starts += 1;
        }
        if self.beat_at <= now {
            self.beat_at = now + ms(1_000);
            has_room = true;
        }
        if has_room {
            words.frames.push(self.words().heartbeat());
        }
        words
    }

    pub fn confirmed(&mut self, chunk: (JobId, u32), attempt: u32, index: u64) {
        let is_it = |has: &Has| has.attempt == attempt && matches!(has.run, Run::EndedWell | Run::EndedBadly);
        if self.chunks.get(&chunk).is_some_and(is_it) {
            self.chunks.remove(&chunk);
            self.confirmed_index = self.confirmed_index.max(index);
        }
    }

    /// Takes a frame of a load balancer; gives back the answers and the chunks that are new here.
    pub fn hears(&mut self, frame: &[u8], now: Instant) -> (Vec<Vec<u8>>, Vec<Accepted>) {
        match Message::decode(frame).expect("it sends messages") {
            Message::InventoryRequest(request, _) => {
                if request.epoch.get() < self.epoch {
                    return Default::default();
                }
                self.adopt(request.epoch.get());
                (vec![self.words().inventory(&self.items(|_| true))], vec![])
            }
            Message::WorkerRequest(request, _) => {
                if request.worker_boot.get() != self.boot.0 || request.epoch.get() < self.epoch {
                    return Default::default();
                }
                self.adopt(request.epoch.get());
                self.on_request(&request, now)
            }
            Message::Retract(retract, _) => {
                if retract.worker_boot.get() != self.boot.0 || retract.epoch.get() < self.epoch {
                    return Default::default();
                }
                self.adopt(retract.epoch.get());
                (self.on_retract(&retract).into_iter().collect(), vec![])
            }
            Message::Kill(kill, _) => {
                if kill.epoch.get() < self.epoch {
                    return Default::default();
                }
                self.adopt(kill.epoch.get());
                let range = ChunkRange::new(kill.first.get(), kill.count.get());
                let job = kill.job_uuid.job();
                self.chunks.retain(|chunk, _| !(chunk.0 == job && range.contains(chunk.1)));
                self.confirmed_index = self.confirmed_index.max(kill.index.get());
                (vec![self.words().killed(kill.request.get())], vec![])
            }
            other => panic!("a worker does not expect {:?}", other.kind()),
        }
    }

    fn adopt(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.seen = 0;
        }
    }

    fn on_request(&mut self, request: &WorkerRequest, now: Instant) -> (Vec<Vec<u8>>, Vec<Accepted>) {
        let (sequence, job) = (request.sequence.get(), request.job_uuid.job());
        let range = ChunkRange::new(request.first.get(), request.count.get());
        let mut new = Vec::new();
        if sequence > self.seen + 1 {
            return Default::default();
        }
        if sequence == self.seen + 1 {
            if range.count > 0 {
                let brings_body = request.flags.get() & REQUEST_KNOWN == 0;
                if !brings_body && !self.bodies.contains(&job) {
                    return (vec![self.words().wants_body(sequence, job)], vec![]);
                }
                self.bodies.insert(job);
            }
            self.seen = sequence;
            for number in range.chunks() {
                self.accept((job, number), request.attempt.get(), now, &mut new);
            }
        }
        (vec![self.words().accepted(job, range, request.attempt.get())], new)
    }

    fn accept(&mut self, chunk: (JobId, u32), attempt: u32, now: Instant, new: &mut Vec<Accepted>) {
        let fresh = Has { run: Run::Queued, attempt, tell_at: now };
        match self.chunks.get_mut(&chunk) {
            None => {}
            Some(has) if attempt > has.attempt => match has.run {
                Run::Queued | Run::Running { .. } => return has.attempt = attempt,
                Run::EndedWell => return,
                Run::EndedBadly => {}
            },
            Some(_) => return,
        }
        self.chunks.insert(chunk, fresh);
        new.push((chunk, attempt));
    }

    fn on_retract(&mut self, retract: &Retract) -> Option<Vec<u8>> {
        let (sequence, job) = (retract.sequence.get(), retract.job_uuid.job());
        let range = ChunkRange::new(retract.first.get(), retract.count.get());
        let is_in = |chunk: &(JobId, u32)| chunk.0 == job && range.contains(chunk.1);
        if sequence > self.seen + 1 {
            return None;
        }
        if sequence == self.seen + 1 {
            self.seen = sequence;
            self.chunks.retain(|chunk, has| !(is_in(chunk) && has.run == Run::Queued));
        }
        Some(self.words().retract_answer(sequence, job, range, &self.items(is_in)))
    }

    fn items(&self, which: impl Fn(&(JobId, u32)) -> bool) -> Vec<ChunkItem> {
        let listed = self.chunks.iter().filter(|(chunk, _)| which(chunk));
        listed
            .map(|((job, number), has)| {
                let state = match has.run {
                    Run::Queued => holding::QUEUED,
                    Run::Running { .. } => holding::RUNNING,
                    Run::EndedWell => holding::ENDED_WELL,
                    Run::EndedBadly => holding::ENDED_BADLY,
                };
                ChunkItem::new(*job, ChunkRange::one(*number), has.attempt, state)
            })
            .collect()
    }
}
