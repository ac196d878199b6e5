//! What this load balancer believes about one worker, which may be stale: what it holds, what was sent to it, its room.
//!
//! A range counts as held from the moment it is sent until the log shows that it ended or that its holder lost it, or
//! the worker itself lists what it holds and the range is not in the list. That the worker has room again frees nothing.

use std::collections::BTreeMap;

use wire::record::ChunkItem;
use wire::{BootNonce, ChunkRange, Duration, Instant, JobId, PeerId};

use super::range_map::RangeMap;

/// Unanswered numbers of one worker; it gets nothing new beyond that.
pub const UNANSWERED_MAX: usize = 64;
/// Kills of one worker that wait for their answer. More are dropped: an inventory is asked for, which brings them back.
pub const KILLS_MAX: usize = 4096;

/// By what right a range counts as held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Claim {
    /// The worker said so.
    Reported,
    /// Sent under this number of the current epoch.
    Assigned { sequence: u64 },
}

/// What is known of a held range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    pub claim: Claim,
    pub attempt: u32,
    /// The worker has said that it runs or has ended: there is nothing to take back.
    pub is_started: bool,
}

/// Ranges that one boot of a worker holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    jobs: BTreeMap<JobId, RangeMap<Holding>>,
    chunks: u64,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many chunks.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    pub fn job(&self, job: JobId) -> Option<&RangeMap<Holding>> {
        self.jobs.get(&job)
    }

    pub fn jobs(&self) -> impl Iterator<Item = (JobId, &RangeMap<Holding>)> {
        self.jobs.iter().map(|(job, map)| (*job, map))
    }

    pub fn pieces(&self, job: JobId, range: ChunkRange) -> impl Iterator<Item = (ChunkRange, Holding)> + '_ {
        self.jobs.get(&job).into_iter().flat_map(move |map| map.pieces(range))
    }

    pub fn set(&mut self, job: JobId, range: ChunkRange, holding: Holding) {
        self.remove(job, range);
        self.jobs.entry(job).or_default().insert(range, holding);
        self.chunks += u64::from(range.count);
    }

    pub fn remove(&mut self, job: JobId, range: ChunkRange) -> Vec<(ChunkRange, Holding)> {
        let Some(map) = self.jobs.get_mut(&job) else { return Vec::new() };
        let removed = map.remove(range);
        if map.is_empty() {
            self.jobs.remove(&job);
        }
        self.chunks -= removed.iter().map(|(piece, _)| u64::from(piece.count)).sum::<u64>();
        removed
    }

    /// Takes out the pieces of `range` that `which` picks.
    pub fn remove_if(&mut self, job: JobId, range: ChunkRange, which: impl Fn(Holding) -> bool) -> Vec<ChunkRange> {
        let picked: Vec<_> = self.pieces(job, range).filter(|(_, holding)| which(*holding)).collect();
        picked
            .into_iter()
            .map(|(piece, _)| {
                self.remove(job, piece);
                piece
            })
            .collect()
    }

    /// What is held of `range` has started.
    pub fn mark_started(&mut self, job: JobId, range: ChunkRange) {
        let Some(map) = self.jobs.get_mut(&job) else { return };
        let pieces: Vec<_> = map.pieces(range).collect();
        for (piece, holding) in pieces {
            map.insert(piece, Holding { is_started: true, ..holding });
        }
    }

    /// Takes out a whole job; gives back what it had.
    pub fn remove_job(&mut self, job: JobId) -> Option<RangeMap<Holding>> {
        let map = self.jobs.remove(&job)?;
        self.chunks -= map.iter().map(|(range, _)| u64::from(range.count)).sum::<u64>();
        Some(map)
    }

    /// The numbers of an epoch that is over mean nothing any more.
    pub fn make_reported(&mut self) {
        for map in self.jobs.values_mut() {
            let runs: Vec<_> = map.iter().collect();
            for (range, holding) in runs {
                map.insert(range, Holding { claim: Claim::Reported, ..holding });
            }
        }
    }
}

/// What went out under a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Request { job: JobId, range: ChunkRange, attempt: u32 },
    Retract { job: JobId, range: ChunkRange },
}

/// A retract whose answer is not here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retract {
    pub sequence: u64,
    pub job: JobId,
    pub range: ChunkRange,
}

/// A kill whose answer is not here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kill {
    pub job: JobId,
    pub range: ChunkRange,
    /// The log index by which the chunks ended.
    pub index: u64,
    /// Numbers up to this one may still bring the range to the worker: an answer before they are processed is too early.
    pub after: u64,
    pub again_at: Instant,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Its connection; `None` = none, or gone.
    pub peer: Option<PeerId>,
    pub boot: BootNonce,
    /// The newest boot whose registration our view of the log has.
    pub registered: BootNonce,
    pub cpus_milli: u32,
    /// Bytes.
    pub memory: u64,
    /// The masters drain it: it gets nothing new.
    pub is_draining: bool,
    /// When it was last heard, or first heard of.
    pub last_heard: Instant,
    /// The epoch of the last inventory acted on; 0 = none of this boot and reign.
    pub inventory_epoch: u64,
    /// It may hold what no inventory has told us yet: what epochs before ours gave it.
    pub may_hold: bool,
    /// The next number to be given, and the highest that it has answered.
    pub next: u64,
    pub acked: u64,
    /// What went out under the numbers `acked + 1 .. next`.
    pub sent: BTreeMap<u64, Sent>,
    /// Chunks in `sent`: they will take of `credit` once processed.
    pub unanswered_chunks: u64,
    /// Its room when it had processed `acked`.
    pub credit: u32,
    pub held: Held,
    /// What boots before this one held, until the log shows that it is lost.
    pub former: BTreeMap<BootNonce, Held>,
    pub retract: Option<Retract>,
    /// A worker whose retract gave nothing is left in peace until then.
    pub retract_not_before: Instant,
    pub kills: BTreeMap<u64, Kill>,
    /// Jobs whose body this boot has, or is being sent under this number.
    pub bodies: BTreeMap<JobId, u64>,
    /// An inventory is wanted that reflects all numbers up to this one.
    pub inventory_wanted: Option<u64>,
    pub ask_again_at: Instant,
    /// An inventory and a retract answer that are ahead of our view of the log.
    pub waiting_inventory: Option<Vec<u8>>,
    pub waiting_answer: Option<Vec<u8>>,
    /// When unanswered numbers go out again, and the wait after that.
    pub resend_at: Option<Instant>,
    pub resend_wait: Duration,
    /// When its loss may be proposed (again).
    pub lost_again_at: Instant,
    /// What runs on it, by its own heartbeat.
    pub running: Vec<ChunkItem>,
}

impl WorkerView {
    pub fn new(now: Instant, resend_wait: Duration) -> Self {
        Self {
            peer: None,
            boot: BootNonce::NONE,
            registered: BootNonce::NONE,
            cpus_milli: 0,
            memory: 0,
            is_draining: false,
            last_heard: now,
            inventory_epoch: 0,
            may_hold: false,
            next: 1,
            acked: 0,
            sent: BTreeMap::new(),
            unanswered_chunks: 0,
            credit: 0,
            held: Held::default(),
            former: BTreeMap::new(),
            retract: None,
            retract_not_before: now,
            kills: BTreeMap::new(),
            bodies: BTreeMap::new(),
            inventory_wanted: None,
            ask_again_at: now,
            waiting_inventory: None,
            waiting_answer: None,
            resend_at: None,
            resend_wait,
            lost_again_at: now,
            running: Vec::new(),
        }
    }

    /// What may still be sent.
    pub fn room(&self) -> u64 {
        u64::from(self.credit).saturating_sub(self.unanswered_chunks)
    }

    /// All that any boot of it holds.
    pub fn all_held(&self) -> impl Iterator<Item = &Held> {
        std::iter::once(&self.held).chain(self.former.values())
    }

    /// True while an inventory of it waits for our view of the log.
    pub fn is_waiting(&self) -> bool {
        self.waiting_inventory.is_some()
    }

    /// How many chunks of `cpus_milli` each it runs at once.
    pub fn slots(&self, cpus_milli: u32) -> u64 {
        u64::from((self.cpus_milli / cpus_milli.max(1)).max(1))
    }

    pub fn fits(&self, cpus_milli: u32, memory: u64) -> bool {
        cpus_milli <= self.cpus_milli && memory <= self.memory
    }

    /// Numbers what is sent.
    pub fn number(&mut self, sent: Sent) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.unanswered_chunks += chunks_of(&sent);
        self.sent.insert(sequence, sent);
        sequence
    }

    /// The worker has processed all numbers up to `seen`, and then had room for `credit` chunks. What is older than
    /// known, or answers a number that was never given, changes nothing.
    pub fn acknowledge(&mut self, seen: u64, credit: u32) {
        if seen < self.acked || seen >= self.next {
            return;
        }
        self.sent = self.sent.split_off(&(seen + 1));
        self.unanswered_chunks = self.sent.values().map(chunks_of).sum();
        self.acked = seen;
        self.credit = credit;
    }

    /// Forgets everything that belongs to an epoch: numbers, room, retracts, what was wanted.
    pub fn forget_epoch(&mut self, resend_wait: Duration) {
        let acked = self.acked;
        self.bodies.retain(|_, sequence| *sequence <= acked);
        self.bodies.values_mut().for_each(|sequence| *sequence = 0);
        self.inventory_epoch = 0;
        self.next = 1;
        self.acked = 0;
        self.sent.clear();
        self.unanswered_chunks = 0;
        self.credit = 0;
        self.retract = None;
        self.inventory_wanted = None;
        self.waiting_inventory = None;
        self.waiting_answer = None;
        self.resend_at = None;
        self.resend_wait = resend_wait;
    }
}

fn chunks_of(sent: &Sent) -> u64 {
    match sent {
        Sent::Request { range, .. } => u64::from(range.count),
        Sent::Retract { .. } => 0,
    }
}
