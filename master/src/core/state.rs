//! What all masters agree on, and what each log entry does to it.
//!
//! `apply` is the whole of it: a pure function of the state and the bytes of an entry, total for any bytes. Two masters
//! that applied the same entries hold the same state, whatever their clocks, sockets and disks did meanwhile. Time comes
//! only from the entry's stamp.

mod canceled;
mod job;
mod results;
mod snapshot;
mod tries;

use std::collections::{BTreeMap, BTreeSet};

use planted::Bug;
use wire::event::LogEvent;
use wire::record::{FileRecord, NodeRecord, StoredFile};
use wire::{BootNonce, FileId, Hash, JobId, NodeId, Role, WallTime, Writer, log};

use super::entry::{Cancel, EpochGrant, LostWorker, Request, RequestError, Results, Submit};

pub use canceled::CanceledRun;
pub use job::Job;
use job::{Changes, Facts, Holder};
pub use results::Accepted;
pub use tries::Tries;

/// The replicated state.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct State {
    /// The index of the last entry applied.
    pub index: u64,
    /// Chained over every entry, what it was answered and what it did: equal states have equal ones, however they came.
    pub chain: Hash,
    /// The latest stamp; it never decreases.
    pub stamp: WallTime,
    pub epoch: Epoch,
    /// Counts changes of what `node_welcome` lists: load balancers and storage nodes.
    pub nodes_version: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub files: BTreeMap<FileId, File>,
    /// Files in the order in which they were recorded.
    pub files_by_number: BTreeMap<u64, FileId>,
    pub jobs: BTreeMap<JobId, Job>,
    pub jobs_by_number: BTreeMap<u64, JobId>,
    /// Jobs that have not ended.
    pub jobs_live: BTreeSet<JobId>,
}

/// The reign of a primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Epoch {
    /// 0 = none was ever granted.
    pub number: u64,
    /// The one boot that may command in it; nil before the first grant.
    pub load_balancer: NodeId,
    pub boot: BootNonce,
}

/// A file that storage holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    pub number: u64,
    pub hash: Hash,
    pub length: u64,
    pub class: u8,
    /// The storage nodes that vouched for a durable copy.
    pub copies: Vec<NodeId>,
    pub stored_at: WallTime,
}

/// What became of one request of an entry, for its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The job is in the log, by this entry or an earlier one.
    Accepted {
        job: JobId,
        number: u64,
        index: u64,
    },
    /// So many chunks, files or records changed; none = it was known already.
    Changed {
        changed: u64,
    },
    ExistsDifferent {
        detail: String,
    },
    UnknownJob {
        job: JobId,
    },
    /// The statement is of an epoch that is not the current one.
    StaleEpoch {
        current: u64,
    },
    /// It breaks its layout or a rule; nothing changed.
    Refused(RequestError),
}

/// What an entry did.
#[derive(Debug, Default)]
pub struct Applied<'a> {
    /// One for each request of the entry, in order; none when the entry itself is malformed.
    pub outcomes: Vec<Outcome>,
    pub events: Vec<LogEvent<'a>>,
}

impl Outcome {
    fn encode(&self, to: &mut Writer) {
        match self {
            Self::Accepted { job, number, index } => to.raw(&[1]).plain(job).varint(*number).varint(*index),
            Self::Changed { changed } => to.raw(&[2]).varint(*changed),
            Self::ExistsDifferent { detail } => to.raw(&[3]).string(detail.as_bytes()),
            Self::UnknownJob { job } => to.raw(&[4]).plain(job),
            Self::StaleEpoch { current } => to.raw(&[5]).varint(*current),
            Self::Refused(error) => to.raw(&[6]).string(error.to_string().as_bytes()),
        };
    }
}

impl Applied<'_> {
    /// The next link of the chain.
    fn chained(&self, before: Hash, entry: &[u8]) -> Hash {
        let mut to = Writer::new();
        to.plain(&before).string(entry).varint(self.outcomes.len() as u64);
        self.outcomes.iter().for_each(|outcome| outcome.encode(&mut to));
        self.events.iter().for_each(|event| event.encode(&mut to));
        content::hash_bytes(&to.bytes)
    }
}

impl State {
    /// Applies the entry at `index`. Total: any bytes give outcomes, and never a panic.
    pub fn apply<'a>(&mut self, index: u64, entry: &'a [u8]) -> Applied<'a> {
        self.index = index;
        let mut applied = Applied::default();
        self.apply_requests(entry, &mut applied);
        self.chain = applied.chained(self.chain, entry);
        applied
    }

    fn apply_requests<'a>(&mut self, entry: &'a [u8], applied: &mut Applied<'a>) {
        // The first entry of a leader's term is empty; one that cannot be read means the same to every master.
        let Ok((stamp, frames)) = log::decode_entry(entry) else { return };
        self.stamp = self.stamp.max(stamp);
        for frame in frames {
            let outcome = match Request::decode(frame) {
                Ok(request) => self.apply_request(request, &mut applied.events),
                Err(error) => Outcome::Refused(error),
            };
            applied.outcomes.push(outcome);
        }
    }

    fn apply_request<'a>(&mut self, request: Request<'a>, events: &mut Vec<LogEvent<'a>>) -> Outcome {
        match request {
            Request::Submit(submit) => self.submit(&submit, events),
            Request::Cancel(cancel) => self.cancel(&cancel, events),
            Request::RecordFile(file) => self.record_file(&file),
            Request::Results(results) => self.results(&results, events),
            Request::Register(record) => self.register(record, events),
            Request::Lost(lost) => self.lost(&lost, events),
            Request::GrantEpoch(grant) => self.grant_epoch(grant, events),
        }
    }

    fn submit<'a>(&mut self, submit: &Submit<'a>, events: &mut Vec<LogEvent<'a>>) -> Outcome {
        if let Some(outcome) = self.known_job(submit.job, submit.frame) {
            return outcome;
        }
        let number = self.jobs_by_number.last_key_value().map_or(1, |(last, _)| last + 1);
        let facts = Facts::new(&submit.spec, submit.chunk_count);
        let job = Job::new(submit.job, number, self.index, self.stamp, facts, submit.frame);
        self.jobs.insert(submit.job, job);
        self.jobs_by_number.insert(number, submit.job);
        self.jobs_live.insert(submit.job);
        events.push(LogEvent::JobAccepted { number, submitted_at: self.stamp, frame: submit.frame });
        Outcome::Accepted { job: submit.job, number, index: self.index }
    }

    /// The answer to a `submit_job` whose uuid is taken: the first answer again, or that it is another job.
    pub fn known_job(&self, job: JobId, frame: &[u8]) -> Option<Outcome> {
        let known = self.jobs.get(&job).filter(|_| !planted::is(Bug::RepetitionNotKnown))?;
        if Submit::is_same(&known.frame, frame) {
            return Some(Outcome::Accepted { job, number: known.number, index: known.index });
        }
        let detail = format!("job {job} is job {} already, with other content", known.number);
        Some(Outcome::ExistsDifferent { detail })
    }

    fn cancel(&mut self, cancel: &Cancel, events: &mut Vec<LogEvent<'_>>) -> Outcome {
        let stamp = self.stamp;
        let Some(job) = self.jobs.get_mut(&cancel.job) else { return Outcome::UnknownJob { job: cancel.job } };
        let changes = job.cancel(cancel.range, &cancel.running, stamp);
        self.tell(cancel.job, changes, None, events)
    }

    fn record_file(&mut self, file: &StoredFile) -> Outcome {
        if let Some(known) = self.files.get(&file.file)
            && (known.hash, known.length) != (file.hash, file.length)
        {
            let detail = format!("file {} is known with hash {} and {} bytes", file.file, known.hash, known.length);
            return Outcome::ExistsDifferent { detail };
        }
        Outcome::Changed { changed: u64::from(self.keep_file(file)) }
    }

    /// Adds the file, or the copies that are new. False = all this was known. The first of two files of one uuid stays.
    fn keep_file(&mut self, file: &StoredFile) -> bool {
        let copies = file.receipts.iter().map(|receipt| receipt.node);
        if let Some(known) = self.files.get_mut(&file.file) {
            if (known.hash, known.length) != (file.hash, file.length) {
                return false;
            }
            let before = known.copies.len();
            known.copies.extend(copies);
            known.copies.sort_unstable();
            known.copies.dedup();
            return known.copies.len() > before;
        }
        let number = self.files_by_number.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut copies: Vec<NodeId> = copies.collect();
        copies.sort_unstable();
        copies.dedup();
        let (hash, length, class) = (file.hash, file.length, file.class);
        self.files.insert(file.file, File { number, hash, length, class, copies, stored_at: self.stamp });
        self.files_by_number.insert(number, file.file);
        true
    }

    fn results(&mut self, results: &Results, events: &mut Vec<LogEvent<'_>>) -> Outcome {
        let stamp = self.stamp;
        let Some(job) = self.jobs.get_mut(&results.job) else { return Outcome::UnknownJob { job: results.job } };
        if !job.has(&results.runs) {
            let detail = format!("a result is beyond the {} chunks of job {}", job.facts.chunk_count, job.number);
            return Outcome::Refused(RequestError::Rule(detail));
        }
        let Results { worker, boot, attempt, .. } = *results;
        let (changes, holder) = if results.is_success {
            (job.succeed(worker, attempt, &results.runs, stamp), None)
        } else {
            let holder = Holder { worker, boot, attempt_max: attempt };
            (job.fail(worker, attempt, &results.runs, stamp), Some(holder))
        };
        for file in &results.files {
            self.keep_file(file);
        }
        self.tell(results.job, changes, holder, events)
    }

    fn register(&mut self, record: NodeRecord, events: &mut Vec<LogEvent<'_>>) -> Outcome {
        let known = self.nodes.get(&record.node);
        if known.is_some_and(|known| known.boot > record.boot || *known == record) {
            return Outcome::Changed { changed: 0 };
        }
        let is_listed = |role: Role| matches!(role, Role::LoadBalancer | Role::Storage);
        if is_listed(record.role) || known.is_some_and(|known| is_listed(known.role)) {
            self.nodes_version += 1;
        }
        self.nodes.insert(record.node, record.clone());
        events.push(LogEvent::NodeRegistered { node: record });
        Outcome::Changed { changed: 1 }
    }

    fn lost(&mut self, lost: &LostWorker, events: &mut Vec<LogEvent<'_>>) -> Outcome {
        let speaker = Epoch { number: lost.epoch, load_balancer: lost.load_balancer, boot: lost.load_balancer_boot };
        if speaker != self.epoch {
            return Outcome::StaleEpoch { current: self.epoch.number };
        }
        // The boot is gone with whatever it held, so its holding ends for every attempt.
        let holder = Holder { worker: lost.worker, boot: lost.boot, attempt_max: u32::MAX };
        let mut changed = 0;
        for item in &lost.items {
            let stamp = self.stamp;
            // A load balancer whose view is behind may name a job that is unknown here: of that nothing is lost.
            let Some(job) = self.jobs.get_mut(&item.job()) else { continue };
            let changes = job.lose(item.range(), item.attempt, stamp);
            changed += changes.changed;
            self.tell(item.job(), changes, Some(holder), events);
        }
        Outcome::Changed { changed }
    }

    fn grant_epoch(&mut self, grant: EpochGrant, events: &mut Vec<LogEvent<'_>>) -> Outcome {
        if grant.epoch <= self.epoch.number {
            return Outcome::StaleEpoch { current: self.epoch.number };
        }
        let EpochGrant { load_balancer, boot, epoch } = grant;
        self.epoch = Epoch { number: epoch, load_balancer, boot };
        events.push(LogEvent::EpochGranted { load_balancer, boot, epoch });
        Outcome::Changed { changed: 1 }
    }

    fn tell(
        &mut self,
        job: JobId,
        changes: Changes,
        holder: Option<Holder>,
        events: &mut Vec<LogEvent<'_>>,
    ) -> Outcome {
        let changed = changes.changed;
        changes.events(job, holder, events);
        if !self.jobs[&job].is_live() {
            self.jobs_live.remove(&job);
        }
        Outcome::Changed { changed }
    }

    /// The record of a file as people see it.
    pub fn file_record(&self, id: FileId) -> Option<FileRecord> {
        let file = self.files.get(&id)?;
        Some(FileRecord {
            file: id,
            hash: file.hash,
            length: file.length,
            class: file.class,
            copies: file.copies.len() as u32,
            stored_at: file.stored_at,
        })
    }

    /// What must hold after every entry.
    pub fn check_invariants(&self) {
        for (id, job) in &self.jobs {
            assert!(job.is_consistent(), "{job:?}");
            assert_eq!(self.jobs_by_number.get(&job.number), Some(id), "job {id} has its number");
            assert_eq!(self.jobs_live.contains(id), job.is_live(), "{id} is live while it has open chunks");
        }
        assert_eq!(self.jobs.len(), self.jobs_by_number.len(), "each job has one number");
        assert!(self.files.iter().all(|(id, file)| self.files_by_number.get(&file.number) == Some(id)));
        assert_eq!(self.files.len(), self.files_by_number.len(), "each file has one number");
    }
}
