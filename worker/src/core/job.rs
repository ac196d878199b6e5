//! The jobs that have something here: what a chunk of each needs, whether its files are here, which chunks are held.

use std::collections::BTreeMap;

use wire::job::{JobBody, JobSpec};
use wire::{ChunkRange, ChunkSet, Duration, FileId, Instant, JobId, PeerId, WorkerRequest};

use super::slots::Need;
use super::{Action, JOBS_MAX, Timer, Worker};

/// The body of a job, as the shell needs it to run chunks.
#[derive(Clone, PartialEq, Debug)]
pub struct Order {
    pub job: JobId,
    /// What people call it by; 0 from a peer that knows only the seed's struct.
    pub number: u64,
    pub chunk_count: u32,
    /// The program's bytes; empty = the spec names it.
    pub program: Vec<u8>,
    /// In the order of the spec's inputs, unless the spec has none: then each is called by its uuid.
    pub inputs: Vec<FileId>,
    pub spec: JobSpec,
}

impl Order {
    /// Or says what is wrong. Masters have checked it already; but its names become paths here, whoever gave them.
    pub(super) fn decode(request: &WorkerRequest, body: &[u8]) -> Result<Self, String> {
        let parts = JobBody::decode(body, request.program_length.get(), request.num_input_files.get())
            .map_err(|error| error.to_string())?;
        let spec = JobSpec::decode(parts.spec).map_err(|error| error.to_string())?;
        // The seed's words alone bring none.
        if !parts.spec.is_empty() {
            spec.check(&parts, request.chunk_count.get()).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            job: request.job_uuid.job(),
            number: request.job_number.get(),
            chunk_count: request.chunk_count.get(),
            program: parts.program.to_vec(),
            inputs: parts.inputs.to_vec(),
            spec,
        })
    }

    /// Whether something has to be written or fetched before a chunk can start.
    fn has_files(&self) -> bool {
        !self.program.is_empty() || !self.inputs.is_empty()
    }
}

/// Whether a job's files are here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Not asked for, or the last try failed.
    Absent,
    Coming,
    Here,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) need: Need,
    pub(super) time_limit: Option<Duration>,
    pub(super) chunk_count: u32,
    pub(super) stage: Stage,
    /// Every chunk that is queued, runs, or ended without confirmation.
    pub(super) held: ChunkSet,
    /// Who gave it in the seed's words alone, and wants to hear how it goes.
    pub(super) seed_peer: Option<PeerId>,
    /// Since when nothing of it is held.
    idle_since: Instant,
}

/// The jobs whose bodies are kept here.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: BTreeMap<JobId, Job>,
}

impl Jobs {
    pub(super) fn at(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job)
    }

    pub(super) fn at_mut(&mut self, job: JobId) -> Option<&mut Job> {
        self.jobs.get_mut(&job)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.jobs.iter().map(|(id, job)| (*id, job))
    }

    /// True when a body more can be kept, if need be in the place of one that has nothing here.
    pub(super) fn has_room(&self) -> bool {
        self.jobs.len() < JOBS_MAX || self.longest_idle().is_some()
    }

    pub(super) fn is_staged(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.stage == Stage::Here)
    }

    /// A chunk is not held any more.
    pub(super) fn let_go(&mut self, id: JobId, range: ChunkRange, now: Instant) {
        let job = self.jobs.get_mut(&id).expect("a job with chunks is known");
        job.held.remove(range);
        job.idle_since = now;
    }

    fn longest_idle(&self) -> Option<JobId> {
        let idle = self.jobs.iter().filter(|(_, job)| job.held.is_empty() && job.stage != Stage::Coming);
        idle.min_by_key(|(id, job)| (job.idle_since, **id)).map(|(id, _)| *id)
    }
}

impl Worker {
    /// Keeps the job's body; the caller has seen that there is room.
    pub(super) fn learn(&mut self, order: Order, seed_peer: Option<PeerId>, now: Instant, actions: &mut Vec<Action>) {
        if self.jobs.jobs.len() >= JOBS_MAX
            && let Some(idle) = self.jobs.longest_idle()
        {
            self.forget_job(idle, actions);
        }
        let job = Job {
            need: Need { cpus_milli: order.spec.cpus_milli, memory: order.spec.memory },
            time_limit: (order.spec.time_limit_ms > 0).then(|| Duration::from_millis(order.spec.time_limit_ms)),
            chunk_count: order.chunk_count,
            stage: if order.has_files() { Stage::Absent } else { Stage::Here },
            held: ChunkSet::new(),
            seed_peer,
            idle_since: now,
        };
        self.jobs.jobs.insert(order.job, job);
        self.timers.set_earlier(Timer::Forget, now + self.settings.job_idle_max);
        actions.push(Action::Learn { order: Box::new(order) });
    }

    /// Fetches the job's files unless they are here or on their way. While something runs that had others, it is waited for:
    /// nobody's files are taken away from under it, and it may write where the new ones come.
    pub(super) fn stage(&mut self, id: JobId, actions: &mut Vec<Action>) {
        let is_running = self.slots.runs().any(|(_, run)| run.job == id);
        let job = self.jobs.jobs.get_mut(&id).expect("only a known job is staged");
        if job.stage == Stage::Absent && !is_running {
            job.stage = Stage::Coming;
            actions.push(Action::Stage { job: id });
        }
    }

    pub(super) fn forget_job(&mut self, id: JobId, actions: &mut Vec<Action>) {
        let job = self.jobs.jobs.remove(&id).expect("only a known job is forgotten");
        assert!(job.held.is_empty(), "job {id} is forgotten while {:?} of it are here", job.held);
        actions.push(Action::Forget { job: id });
    }

    /// Drops the bodies of all jobs that have nothing here now; whoever brings a chunk of one brings its body again.
    pub(super) fn forget_jobs_without_chunks(&mut self, actions: &mut Vec<Action>) {
        while let Some(idle) = self.jobs.longest_idle() {
            self.forget_job(idle, actions);
        }
    }

    /// Drops the bodies of jobs that had nothing here for long enough.
    pub(super) fn forget_idle_jobs(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let idle_max = self.settings.job_idle_max;
        while let Some(idle) = self.jobs.longest_idle() {
            let until = self.jobs.jobs[&idle].idle_since + idle_max;
            if until > now {
                break;
            }
            self.forget_job(idle, actions);
        }
        if !self.jobs.jobs.is_empty() {
            self.timers.set(Timer::Forget, now + idle_max);
        }
    }
}
