//! A client of the simulated cluster: submits jobs, asks the same again until it is answered, and remembers every promise.

mod watcher;

use std::collections::BTreeMap;

use wire::job::{Input, JobBody, JobSpec};
use wire::record::{JobRecord, StoredFile};
use wire::{
    ArraySpec, CancelJob, Duration, ErrorCode, FixedPart, Instant, JobId, Message, NodeId, PeerId, Query, Reader,
    RecordFile, Subject, SubmitJob, U16, U32, U64, WatchBatch, Writer,
};

use crate::chance::Chance;
use crate::network::{self, Host};
use crate::process::Behaviour;
use crate::shell::Outside;
use crate::transfer::Upload;

use watcher::Watcher;

/// The first wait for an answer, and the longest.
const ANSWER_WAIT_MIN: Duration = Duration::from_millis(500);
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// Masters that disagree about who leads are not asked faster than that.
const NOT_LEADER_PAUSE: Duration = Duration::from_millis(50);
/// How many of a thousand requests go to any of the masters.
const FORGETS_LEADER_PER_MILLE: u64 = 150;
/// How many of a thousand jobs are watched until they end.
const WATCHED_PER_MILLE: u64 = 300;

/// A job as a client describes it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub chunk_count: u32,
    pub behaviour: Behaviour,
    /// Its array and arguments are set from the two above.
    pub spec: JobSpec,
    pub input: Option<StoredFile>,
}

impl Plan {
    pub fn new(chunk_count: u32, behaviour: Behaviour) -> Self {
        Self { chunk_count, behaviour, spec: JobSpec::default(), input: None }
    }

    /// Something that people might submit.
    pub fn random(files: &[StoredFile], chance: &mut Chance) -> Self {
        let size = chance.between(0, 100);
        let (low, high) = match size {
            0..55 => (1, 5),
            55..95 => (5, 31),
            _ => (31, 201),
        };
        let chunk_count = chance.between(low, high) as u32;
        let is_long = size < 5;
        let (duration_min_us, duration_max_us) = if is_long { (200_000, 1_500_000) } else { (500, 25_000) };
        let one_of = |choices: &[u64], chance: &mut Chance| choices[chance.between(0, choices.len() as u64) as usize];
        let behaviour = Behaviour {
            duration_min_us,
            duration_max_us,
            fail_per_mille: one_of(&[0, 0, 30, 300], chance),
            output_per_mille: one_of(&[0, 0, 200, 1_000], chance),
            ..Behaviour::default()
        };
        let mut plan = Self::new(chunk_count, behaviour);
        plan.spec.retries = one_of(&[0, 1, 3], chance) as u32;
        plan.spec.max_fails = (chance.once_in_a_thousand(150)).then(|| chance.between(0, 3) as u32);
        plan.spec.priority = chance.between(0, 3) as i32;
        if chance.once_in_a_thousand(100) {
            plan.spec.array.running_max = chance.between(1, 4) as u32;
        }
        if is_long && chance.once_in_a_thousand(300) {
            plan.spec.time_limit_ms = 500;
        }
        if !files.is_empty() && chance.once_in_a_thousand(250) {
            plan.input = Some(files[chance.between(0, files.len() as u64) as usize].clone());
        }
        plan
    }

    fn frame(&self, sender: NodeId, job: JobId, request: u64) -> Vec<u8> {
        let mut spec = self.spec.clone();
        spec.array = ArraySpec { running_max: spec.array.running_max, ..ArraySpec::plain(self.chunk_count) };
        spec.arguments = self.behaviour.arguments();
        let input = |file: &StoredFile| Input {
            hash: file.hash,
            file_length: file.length,
            path: b"in".to_vec(),
            ..Input::default()
        };
        spec.inputs = self.input.iter().map(input).collect();
        let uuids: Vec<_> = self.input.iter().map(|file| file.file).collect();
        let body = JobBody::encode(b"", &uuids, &spec);
        let fixed = SubmitJob {
            job_uuid: job.into(),
            num_input_files: U64::new(uuids.len() as u64),
            request: U64::new(request),
            chunk_count: U32::new(self.chunk_count),
            ..SubmitJob::DEFAULT
        };
        fixed.frame(sender, &body)
    }
}

/// What was asked of the masters.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    Submit {
        job: JobId,
    },
    Cancel {
        job: JobId,
    },
    Record {
        file: StoredFile,
    },
    /// How a job goes.
    Query {
        job: JobId,
    },
}

/// A promise of the masters, or an answer of theirs.
#[derive(Clone, PartialEq, Debug)]
pub struct Acknowledgement {
    pub request: Request,
    pub index: u64,
    /// When it was asked first.
    pub began_at: Instant,
    pub at: Instant,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    frame: Vec<u8>,
    began_at: Instant,
    again_at: Instant,
    wait: Duration,
    /// It is about a job that was not accepted yet.
    is_early: bool,
}

/// A job that this client submitted.
#[derive(Debug)]
pub struct Submitted {
    pub plan: Plan,
    /// The `submit_job` as it went out first.
    pub frame: Vec<u8>,
    /// `(number, index)` once it is accepted.
    pub accepted: Option<(u64, u64)>,
    /// The lowest log index at which the job is known to have ended.
    pub ended_at: Option<u64>,
}

/// What a client does of its own accord.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Between two requests.
    pub pause_min: Duration,
    pub pause_max: Duration,
}

#[derive(Debug)]
pub struct Client {
    node: NodeId,
    masters: Vec<PeerId>,
    /// The one that is asked, as far as is known the leader.
    leader: usize,
    /// When it last turned to another.
    turned_at: Instant,
    storage: PeerId,
    requests: u64,
    open: BTreeMap<u64, Asked>,
    pub jobs: BTreeMap<JobId, Submitted>,
    /// In the order in which they came.
    pub acknowledgements: Vec<Acknowledgement>,
    uploads: Vec<Upload>,
    watchers: BTreeMap<JobId, Watcher>,
    /// Files that masters know.
    pub files: Vec<StoredFile>,
    /// `None` = it only does what it is told.
    habit: Option<Habit>,
    next_habit_at: Instant,
    /// Refusals that a good request does not get.
    pub complaints: Vec<String>,
}

impl Client {
    pub fn new(node: NodeId, number_base: u64, masters: &[Host], storage: Host, habit: Option<Habit>) -> Self {
        Self {
            node,
            masters: masters.iter().map(|host| network::server(*host)).collect(),
            leader: 0,
            turned_at: Instant(0),
            storage: network::server(storage),
            requests: number_base,
            open: BTreeMap::new(),
            jobs: BTreeMap::new(),
            acknowledgements: Vec::new(),
            uploads: Vec::new(),
            watchers: BTreeMap::new(),
            files: Vec::new(),
            habit,
            next_habit_at: Instant(500_000),
            complaints: Vec::new(),
        }
    }

    /// Begins nothing new from now on; what is open goes on.
    pub fn settle_down(&mut self) {
        self.habit = None;
    }

    /// True when every request is answered, every file recorded, and every watched job has ended.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty() && self.uploads.is_empty() && self.watchers.is_empty()
    }

    pub fn submit(&mut self, plan: Plan, outside: &mut Outside<'_>) -> JobId {
        let job = job_id(outside);
        self.requests += 1;
        let frame = plan.frame(self.node, job, self.requests);
        self.jobs.insert(job, Submitted { plan, frame: frame.clone(), accepted: None, ended_at: None });
        self.ask(self.requests, Request::Submit { job }, frame, outside);
        job
    }

    pub fn cancel(&mut self, job: JobId, outside: &mut Outside<'_>) {
        self.requests += 1;
        let fixed = CancelJob { request: U64::new(self.requests), job_uuid: job.into(), ..CancelJob::DEFAULT };
        self.ask(self.requests, Request::Cancel { job }, fixed.frame(self.node, &[]), outside);
    }

    pub fn query(&mut self, job: JobId, outside: &mut Outside<'_>) {
        self.requests += 1;
        let fixed = Query {
            request: U64::new(self.requests),
            subject: U16::new(Subject::Job as u16),
            uuid: job.into(),
            ..Query::DEFAULT
        };
        self.ask(self.requests, Request::Query { job }, fixed.frame(self.node, &[]), outside);
    }

    /// Stores a file, and has the masters record it.
    pub fn store(&mut self, bytes: Vec<u8>, outside: &mut Outside<'_>) {
        self.requests += 1;
        self.uploads.push(Upload::new(self.node, self.requests, 0, bytes));
        self.move_files(outside);
    }

    fn ask(&mut self, number: u64, request: Request, frame: Vec<u8>, outside: &mut Outside<'_>) {
        // As a program that has just started and knows nobody.
        if self.habit.is_some() && outside.chance.once_in_a_thousand(FORGETS_LEADER_PER_MILLE) {
            let anybody = outside.chance.between(0, self.masters.len() as u64) as usize;
            self.turn_to(anybody, outside.now);
        }
        outside.send(self.masters[self.leader], frame.clone());
        let wait = ANSWER_WAIT_MIN;
        let is_early = match request {
            Request::Cancel { job } | Request::Query { job } => self.jobs[&job].accepted.is_none(),
            Request::Submit { .. } | Request::Record { .. } => false,
        };
        let asked = Asked { request, frame, began_at: outside.now, again_at: outside.now + wait, wait, is_early };
        self.open.insert(number, asked);
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some(frame) = frames.first() else { return };
        let message = Message::decode(frame).expect("the cluster sends messages");
        if from == self.storage {
            self.uploads.iter_mut().for_each(|upload| upload.receive(&message, outside.now));
            return self.move_files(outside);
        }
        // Every kind that a client does not await belongs to another conversation.
        if let Message::JobAccepted(accepted, _) = message {
            self.on_accepted(accepted.request.get(), accepted.number.get(), accepted.index.get(), outside);
        } else if let Message::Committed(committed, _) = message {
            self.on_committed(committed.request.get(), committed.index.get(), outside.now);
        } else if let Message::Answer(answer, body) = message {
            self.on_answer(answer.request.get(), answer.index.get(), body, outside.now);
        } else if let Message::WatchBatch(batch, body) = message {
            self.on_watch_batch(&batch, body, outside);
        } else if let Message::Error(error, detail) = message {
            self.on_error(error.request.get(), error.code.get(), &wire::bytes_text(detail), outside.now);
        }
    }

    fn on_accepted(&mut self, number: u64, job_number: u64, index: u64, outside: &mut Outside<'_>) {
        let Some(asked) = self.open.remove(&number) else { return };
        let Request::Submit { job } = asked.request else {
            panic!("{:?} was answered with job_accepted", asked.request)
        };
        let submitted = self.jobs.get_mut(&job).expect("it was submitted here");
        let accepted = *submitted.accepted.get_or_insert((job_number, index));
        assert_eq!(accepted, (job_number, index), "job {job} was accepted twice, and differently");
        let chunk_count = submitted.plan.chunk_count;
        self.acknowledge(asked, index, outside.now);
        if outside.chance.once_in_a_thousand(WATCHED_PER_MILLE) {
            self.watchers.insert(job, Watcher::new(job, chunk_count, index));
            self.watch(job, outside);
        }
    }

    /// Asks what is new of a job that is watched.
    fn watch(&mut self, job: JobId, outside: &mut Outside<'_>) {
        self.requests += 1;
        let watcher = self.watchers.get_mut(&job).expect("only watched jobs are asked for");
        outside.send(self.masters[self.leader], watcher.ask(self.node, self.requests, outside.now));
    }

    fn on_watch_batch(&mut self, batch: &WatchBatch, body: &[u8], outside: &mut Outside<'_>) {
        let is_it = |watcher: &Watcher| watcher.request == batch.request.get();
        let Some((&job, watcher)) = self.watchers.iter_mut().find(|(_, watcher)| is_it(watcher)) else { return };
        watcher.receive(batch, body);
        if watcher.is_done {
            self.watchers.remove(&job);
            self.jobs.get_mut(&job).expect("it was submitted here").ended_at.get_or_insert(batch.index.get());
        } else {
            self.watch(job, outside);
        }
    }

    fn on_committed(&mut self, number: u64, index: u64, now: Instant) {
        let Some(asked) = self.open.remove(&number) else { return };
        match &asked.request {
            Request::Record { file } => self.files.push(file.clone()),
            Request::Cancel { .. } => {}
            Request::Submit { .. } | Request::Query { .. } => {
                panic!("{:?} was answered with committed", asked.request);
            }
        }
        self.acknowledge(asked, index, now);
    }

    fn on_answer(&mut self, number: u64, index: u64, body: &[u8], now: Instant) {
        let Some(asked) = self.open.remove(&number) else { return };
        let Request::Query { job } = asked.request else { panic!("{:?} was answered with an answer", asked.request) };
        let record = JobRecord::decode(&mut Reader::new(body)).expect("a job's record");
        let submitted = self.jobs.get_mut(&job).expect("it was submitted here");
        assert_eq!((record.job, record.counts.total()), (job, u64::from(submitted.plan.chunk_count)));
        let is_ended = record.state.is_terminal();
        let was_ended = submitted.ended_at.is_some_and(|ended_at| ended_at <= index);
        assert!(is_ended || !was_ended, "job {job} had ended by {index} and has not any more");
        if is_ended {
            submitted.ended_at = Some(submitted.ended_at.map_or(index, |ended_at| ended_at.min(index)));
        }
        self.acknowledge(asked, index, now);
    }

    fn acknowledge(&mut self, asked: Asked, index: u64, at: Instant) {
        let Asked { request, began_at, .. } = asked;
        self.acknowledgements.push(Acknowledgement { request, index, began_at, at });
    }

    fn on_error(&mut self, number: u64, code: u16, detail: &str, now: Instant) {
        if ErrorCode::from_number(code) == Some(ErrorCode::NotLeader) {
            let soon = now + NOT_LEADER_PAUSE;
            if let Some(asked) = self.open.get_mut(&number) {
                asked.again_at = asked.again_at.min(soon);
            } else if let Some(watcher) = self.watchers.values_mut().find(|watcher| watcher.request == number) {
                watcher.again_at = watcher.again_at.min(soon);
            } else {
                return;
            }
            let named = network::host_at(detail).map(network::server);
            let named = named.and_then(|named| self.masters.iter().position(|master| *master == named));
            self.turn_to(named.unwrap_or(self.leader + 1), now);
            return;
        }
        let Some(asked) = self.open.get_mut(&number) else { return };
        match ErrorCode::from_number(code) {
            // The same again, later.
            Some(ErrorCode::Busy | ErrorCode::NotReady | ErrorCode::DiskFull) => {
                asked.again_at = asked.again_at.min(now + ANSWER_WAIT_MIN);
            }
            code => {
                let asked = self.open.remove(&number).expect("found above");
                if !(asked.is_early && code == Some(ErrorCode::UnknownJob)) {
                    self.complaints.push(format!("{:?} was refused: {code:?} {detail}", asked.request));
                }
            }
        }
    }

    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        if let Some(habit) = self.habit
            && self.next_habit_at <= outside.now
        {
            let (min, max) = (habit.pause_min.as_micros() as u64, habit.pause_max.as_micros() as u64);
            self.next_habit_at = outside.now + Duration::from_micros(outside.chance.between(min, max));
            self.follow_habit(outside);
        }
        let now = outside.now;
        // Whoever does not answer may not lead, or may be no more.
        let is_silent = self.open.values().any(|asked| asked.again_at <= now && asked.wait > ANSWER_WAIT_MIN)
            || self.watchers.values().any(|watcher| watcher.again_at <= now);
        if is_silent && now.since(self.turned_at) >= ANSWER_WAIT_MIN {
            self.turn_to(self.leader + 1, now);
        }
        for asked in self.open.values_mut().filter(|asked| asked.again_at <= now) {
            outside.send(self.masters[self.leader], asked.frame.clone());
            asked.wait = (asked.wait * 2).min(ANSWER_WAIT_MAX);
            asked.again_at = now + asked.wait;
        }
        let due = self.watchers.iter().filter(|(_, watcher)| watcher.again_at <= now).map(|(job, _)| *job);
        for job in due.collect::<Vec<_>>() {
            self.watch(job, outside);
        }
        self.move_files(outside);
    }

    fn turn_to(&mut self, master: usize, now: Instant) {
        (self.leader, self.turned_at) = (master % self.masters.len(), now);
    }

    fn follow_habit(&mut self, outside: &mut Outside<'_>) {
        let live: Vec<JobId> = self.jobs.iter().filter(|(_, job)| job.ended_at.is_none()).map(|(id, _)| *id).collect();
        let pick = |chance: &mut Chance| {
            // The latest are the most likely to be live still.
            let low = live.len().saturating_sub(8) as u64;
            live.get(chance.between(low, live.len() as u64) as usize).copied()
        };
        match outside.chance.between(0, 100) {
            0..12 => {
                if let Some(job) = pick(outside.chance) {
                    self.cancel(job, outside);
                }
            }
            12..31 => {
                if let Some(job) = pick(outside.chance) {
                    self.query(job, outside);
                }
            }
            31..39 => {
                let size = outside.chance.between(0, 5_000) as usize;
                let bytes = (0..size).map(|_| outside.chance.draw() as u8).collect();
                self.store(bytes, outside);
            }
            _ => {
                let plan = Plan::random(&self.files, outside.chance);
                self.submit(plan, outside);
            }
        }
    }

    fn move_files(&mut self, outside: &mut Outside<'_>) {
        for upload in &mut self.uploads {
            outside.sent.extend(upload.messages(outside.now).into_iter().map(|frames| (self.storage, frames)));
        }
        let stored: Vec<StoredFile> = self.uploads.iter().filter_map(Upload::stored).collect();
        self.uploads.retain(|upload| upload.stored().is_none());
        for file in stored {
            self.requests += 1;
            let mut body = Writer::new();
            file.encode(&mut body);
            let fixed = RecordFile { request: U64::new(self.requests), ..RecordFile::DEFAULT };
            self.ask(self.requests, Request::Record { file }, fixed.frame(self.node, &body.bytes), outside);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let habit = self.habit.map(|_| self.next_habit_at);
        let open = self.open.values().map(|asked| asked.again_at);
        let watchers = self.watchers.values().map(|watcher| watcher.again_at);
        habit.into_iter().chain(open).chain(watchers).chain(self.uploads.iter().filter_map(Upload::next_deadline)).min()
    }
}

/// A uuid v7 of this moment.
fn job_id(outside: &mut Outside<'_>) -> JobId {
    let random = outside.chance.draw();
    let upper = ((outside.wall.0 / 1_000) << 16) | (7 << 12) | (random >> 52);
    JobId::from_halves(upper, (1 << 63) | (outside.chance.draw() >> 2))
}
