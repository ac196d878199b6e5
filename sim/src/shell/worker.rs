//! A worker's core with simulated programs, and with the real decisions of file transfer.

use std::collections::{BTreeMap, VecDeque};

use wire::record::{Bundle, NodeRecord};
use wire::{Duration, Instant, JobId, Message, PeerId, Role, WallTime};
use worker::core::{Action, Event, Order, Parcel, RunEnd, Server, Settings, Take, Usage, Worker};

use super::{Identity, Outside};
use crate::network::{self, Host};
use crate::process::{Behaviour, Ending, RunEntry, RunNumber};
use crate::transfer::{Download, Upload};

/// Runs whose outputs go in one file.
const RUNS_PER_FILE_MAX: usize = 16;

/// What the shell has put off.
#[derive(Debug)]
enum Later {
    Connecting { role: Role, endpoint: String },
    Connected { role: Role, endpoint: String },
    Exited { run: u64, end: RunEnd },
    Collected { run: u64, is_kept: bool },
    Staged { job: JobId },
}

#[derive(Debug)]
struct Program {
    number: RunNumber,
    job: JobId,
    chunk: u32,
    attempt: u32,
    behaviour: Behaviour,
    started_at: Instant,
}

/// A job's inputs on their way.
#[derive(Debug)]
struct Staging {
    /// Positions of the inputs that are not here.
    missing: VecDeque<usize>,
    download: Option<Download>,
}

#[derive(Debug)]
pub struct WorkerShell {
    pub core: Worker,
    identity: Identity,
    orders: BTreeMap<JobId, Order>,
    programs: BTreeMap<u64, Program>,
    later: BTreeMap<u64, Later>,
    later_count: u64,
    storage: Option<Host>,
    staging: BTreeMap<JobId, Staging>,
    /// What runs wrote, put aside.
    kept: BTreeMap<u64, Vec<u8>>,
    upload_queue: VecDeque<(JobId, u64)>,
    upload: Option<(Upload, Vec<(u64, Bundle)>)>,
    transfers: u64,
    endpoints: Vec<(Role, String)>,
    /// Starts and ends of programs, since somebody last took them.
    pub notes: Vec<String>,
}

impl WorkerShell {
    pub fn start(identity: &Identity, outside: &Outside<'_>) -> Self {
        let server = |host: &Host| Server { endpoint: network::endpoint(*host), key: None };
        let settings = Settings {
            name: identity.name.clone(),
            public_key: identity.key,
            masters: identity.masters.iter().map(server).collect(),
            load_balancers: identity.load_balancers.iter().map(server).collect(),
            ..Settings::new(identity.node, identity.boot, identity.slots)
        };
        Self {
            core: Worker::new(settings, outside.now),
            identity: identity.clone(),
            orders: BTreeMap::new(),
            programs: BTreeMap::new(),
            later: BTreeMap::new(),
            later_count: 0,
            storage: None,
            staging: BTreeMap::new(),
            kept: BTreeMap::new(),
            upload_queue: VecDeque::new(),
            upload: None,
            transfers: 0,
            endpoints: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Chunks whose programs run now, with their attempts.
    pub fn running(&self) -> impl Iterator<Item = (JobId, u32, u32)> {
        self.programs.values().map(|program| (program.job, program.chunk, program.attempt))
    }

    pub fn receive(&mut self, from: PeerId, frames: &[Vec<u8>], outside: &mut Outside<'_>) {
        let Some((first, content)) = frames.split_first() else { return };
        if self.storage.is_some_and(|storage| network::server(storage) == from) {
            return self.receive_from_storage(first, content, outside);
        }
        self.step(Event::Received { from, frame: first }, outside);
    }

    pub fn due(&mut self, number: u64, outside: &mut Outside<'_>) {
        match self.later.remove(&number).expect("it is due once") {
            Later::Connecting { role, endpoint } => {
                let host = network::host_at(&endpoint).expect("only simulated endpoints are connected");
                self.step(Event::Connecting { peer: network::server(host), role, endpoint: &endpoint }, outside);
            }
            Later::Connected { role, endpoint } => {
                let host = network::host_at(&endpoint).expect("only simulated endpoints are connected");
                self.step(Event::Connected { peer: network::server(host), role, endpoint: &endpoint }, outside);
            }
            Later::Exited { run, end } => self.exited(run, end, outside),
            Later::Collected { run, is_kept } => self.step(Event::Collected { run, is_kept }, outside),
            Later::Staged { job } => self.step(Event::Staged { job }, outside),
        }
    }

    pub fn tick(&mut self, outside: &mut Outside<'_>) {
        self.move_files(outside);
        self.step(Event::Tick, outside);
    }

    /// A server has started again, and this worker's connection to it stands anew.
    pub fn reconnected(&mut self, server: Host, outside: &mut Outside<'_>) {
        let endpoint = network::endpoint(server);
        let known = self.endpoints.iter().find(|(_, known)| *known == endpoint).cloned();
        if let Some((role, endpoint)) = known {
            self.step(Event::Connected { peer: network::server(server), role, endpoint: &endpoint }, outside);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let upload = self.upload.as_ref().and_then(|(upload, _)| upload.next_deadline());
        let downloads = self.staging.values().filter_map(|staging| staging.download.as_ref()?.next_deadline());
        self.core.next_deadline().into_iter().chain(upload).chain(downloads).min()
    }

    pub fn check_invariants(&self) {
        self.core.check_invariants();
        assert!(self.programs.len() <= self.identity.slots as usize, "more programs run than there are slots");
    }

    /// Everything that runs goes with the worker.
    pub fn crash(self, outside: &mut Outside<'_>) {
        for program in self.programs.into_values() {
            outside.journal.end(program.number, outside.now, Ending::Killed);
        }
    }

    fn step(&mut self, event: Event<'_>, outside: &mut Outside<'_>) {
        let mut actions = Vec::new();
        self.core.step(event, outside.now, &mut actions);
        for action in actions {
            self.perform(action, outside);
        }
    }

    fn perform(&mut self, action: Action, outside: &mut Outside<'_>) {
        match action {
            Action::Send { to, frame } => outside.send(to, frame),
            Action::Connect { role, server } => {
                self.endpoints.push((role, server.endpoint.clone()));
                let connecting = Later::Connecting { role, endpoint: server.endpoint.clone() };
                self.put_off_by(Duration::from_micros(1), connecting, outside);
                self.put_off(100, 3_000, Later::Connected { role, endpoint: server.endpoint }, outside);
            }
            Action::Disconnect { .. } => {}
            Action::UseStorage { nodes } => self.use_storage(&nodes, outside),
            Action::Learn { order } => {
                self.orders.insert(order.job, *order);
            }
            Action::Stage { job } => self.stage(job, outside),
            Action::Forget { job } => {
                self.orders.remove(&job);
                self.staging.remove(&job);
            }
            Action::Start { run, job, chunk, attempt, slot: _ } => {
                self.start_program(run, job, chunk, attempt, outside)
            }
            Action::Terminate { run, slot: _ } => {
                // Some programs do not care.
                if !outside.chance.once_in_a_thousand(100) {
                    self.put_off(100, 5_000, Later::Exited { run, end: RunEnd::Signal(15) }, outside);
                }
            }
            Action::Kill { run, slot: _ } => {
                self.put_off(50, 1_000, Later::Exited { run, end: RunEnd::Signal(9) }, outside);
            }
            Action::Collect { run, take, slot: _ } => {
                let is_kept = match take {
                    Take::Everything | Take::Streams | Take::Heads => self.kept.contains_key(&run),
                    Take::Nothing => {
                        self.kept.remove(&run);
                        false
                    }
                };
                self.put_off(20, 500, Later::Collected { run, is_kept }, outside);
            }
            Action::Upload { job, run } => {
                self.upload_queue.push_back((job, run));
                self.move_files(outside);
            }
            Action::Release { run } => {
                self.kept.remove(&run);
            }
        }
    }

    fn put_off(&mut self, min_us: u64, max_us: u64, later: Later, outside: &mut Outside<'_>) {
        let delay = Duration::from_micros(outside.chance.between(min_us, max_us));
        self.put_off_by(delay, later, outside);
    }

    fn put_off_by(&mut self, delay: Duration, later: Later, outside: &mut Outside<'_>) {
        self.later_count += 1;
        self.later.insert(self.later_count, later);
        outside.after(delay, self.later_count);
    }

    fn start_program(&mut self, run: u64, job: JobId, chunk: u32, attempt: u32, outside: &mut Outside<'_>) {
        let order = self.orders.get(&job).expect("only a chunk of a known job starts");
        assert!(chunk < order.chunk_count, "chunk {chunk} of job {job} is beyond its end");
        let behaviour = Behaviour::parse(&order.spec.arguments).expect("the body arrives as it was sent");
        outside.note(&mut self.notes, || format!("starts {}[{chunk}] a{attempt}", wire::hex(&job.0[12..])));
        let number = outside.journal.start(RunEntry {
            host: self.identity.host,
            worker: self.identity.node,
            boot: self.identity.boot,
            job,
            chunk,
            attempt,
            started_at: outside.now,
            ended: None,
        });
        if outside.chance.once_in_a_thousand(behaviour.output_per_mille) {
            let line = format!("job {job} chunk {chunk} attempt {attempt}\n");
            self.kept.insert(run, line.repeat(outside.chance.between(1, 20) as usize).into_bytes());
        }
        let fails = outside.chance.once_in_a_thousand(behaviour.fail_per_mille)
            || u64::from(attempt) <= behaviour.fail_attempt_max;
        let program = Program { number, job, chunk, attempt, behaviour, started_at: outside.now };
        self.programs.insert(run, program);
        let end = RunEnd::Code(if fails { 3 } else { 0 });
        self.put_off_by(behaviour.duration(outside.chance), Later::Exited { run, end }, outside);
    }

    fn exited(&mut self, run: u64, end: RunEnd, outside: &mut Outside<'_>) {
        // A program that was told to end has ended by itself, or the other way round.
        let Some(program) = self.programs.get(&run) else { return };
        if program.behaviour.is_poison {
            outside.is_struck = true;
            return;
        }
        let ending = match end {
            RunEnd::Code(0) => Ending::Well,
            RunEnd::Code(_) | RunEnd::NotStarted { .. } => Ending::Badly,
            RunEnd::Signal(signal) => Ending::Signal(signal),
            RunEnd::OutOfMemory => Ending::Signal(9),
        };
        outside.journal.end(program.number, outside.now, ending);
        outside.note(&mut self.notes, || {
            format!("{}[{}] ended: {ending:?}", wire::hex(&program.job.0[12..]), program.chunk)
        });
        let duration_us = outside.now.since(program.started_at).as_micros() as u64;
        self.programs.remove(&run);
        let usage = Usage { duration_us, cpu_us: duration_us, max_rss_kib: 1_000 };
        self.step(Event::Exited { run, end, usage, at: WallTime(outside.wall.0) }, outside);
    }

    fn use_storage(&mut self, nodes: &[NodeRecord], outside: &mut Outside<'_>) {
        self.storage = nodes.first().and_then(|node| network::host_at(&node.endpoint)).or(self.storage);
        self.move_files(outside);
    }

    fn stage(&mut self, job: JobId, outside: &mut Outside<'_>) {
        let inputs = self.orders[&job].inputs.len();
        if inputs == 0 {
            return self.put_off(50, 1_000, Later::Staged { job }, outside);
        }
        self.staging.insert(job, Staging { missing: (0..inputs).collect(), download: None });
        self.move_files(outside);
    }

    fn next_transfer(&mut self) -> u64 {
        self.transfers += 1;
        // A download numbers its requests from here on, and none has so many.
        self.identity.number_base + self.transfers * 1_000
    }

    /// Goes on with uploads and downloads.
    fn move_files(&mut self, outside: &mut Outside<'_>) {
        let Some(storage) = self.storage.map(network::server) else { return };
        self.begin_upload();
        if let Some((upload, _)) = &mut self.upload {
            outside.sent.extend(upload.messages(outside.now).into_iter().map(|frames| (storage, frames)));
        }
        let jobs: Vec<JobId> = self.staging.keys().copied().collect();
        for job in jobs {
            let first_request = self.next_transfer();
            let staging = self.staging.get_mut(&job).expect("listed above");
            if staging.download.is_none()
                && let Some(position) = staging.missing.pop_front()
            {
                let order = &self.orders[&job];
                let (file, hash) = (order.inputs[position], order.spec.inputs[position].hash);
                staging.download = Some(Download::new(self.identity.node, file, hash, first_request));
            }
            if let Some(download) = &mut staging.download {
                download.messages(outside.now).into_iter().for_each(|frame| outside.send(storage, frame));
            }
        }
    }

    /// Makes one file of what runs of one job wrote.
    fn begin_upload(&mut self) {
        if self.upload.is_some() {
            return;
        }
        let Some((job, _)) = self.upload_queue.front().copied() else { return };
        let (mut bytes, mut bundles) = (Vec::new(), Vec::new());
        while let Some((_, run)) = self.upload_queue.front().copied().filter(|(next, _)| *next == job)
            && bundles.len() < RUNS_PER_FILE_MAX
        {
            self.upload_queue.pop_front();
            // What was released meanwhile is missing.
            let Some(output) = self.kept.get(&run) else { continue };
            let bundle = Bundle {
                file: wire::FileId::NIL,
                file_index: 0,
                offset: bytes.len() as u64,
                index_length: 0,
                stdout_length: output.len() as u64,
                stderr_length: 0,
                outputs_length: 0,
            };
            bytes.extend_from_slice(output);
            bundles.push((run, bundle));
        }
        if !bundles.is_empty() {
            let number = self.next_transfer();
            self.upload = Some((Upload::new(self.identity.node, number, 1, bytes), bundles));
        }
    }

    fn receive_from_storage(&mut self, frame: &[u8], content: &[Vec<u8>], outside: &mut Outside<'_>) {
        let message = Message::decode(frame).expect("storage sends messages");
        if let Some((upload, _)) = &mut self.upload {
            upload.receive(&message, outside.now);
        }
        if let Some(file) = self.upload.as_ref().and_then(|(upload, _)| upload.stored()) {
            let (_, bundles) = self.upload.take().expect("it is stored");
            let parcel = |(run, bundle): (u64, Bundle)| Parcel {
                run,
                bundle: Some(Bundle { file: file.file, ..bundle }),
                is_refused: false,
            };
            let parcels: Vec<Parcel> = bundles.into_iter().map(parcel).collect();
            self.step(Event::Uploaded { file: Some(&file), parcels: &parcels }, outside);
        }
        let jobs: Vec<JobId> = self.staging.keys().copied().collect();
        for job in jobs {
            let staging = self.staging.get_mut(&job).expect("listed above");
            let Some(download) = &mut staging.download else { continue };
            if let Err(why) = download.receive(&message, content, outside.now) {
                panic!("an input that the masters know is not to be had: {why}");
            }
            if download.is_done() {
                staging.download = None;
                if staging.missing.is_empty() {
                    self.staging.remove(&job);
                    self.step(Event::Staged { job }, outside);
                }
            }
        }
        self.move_files(outside);
    }
}
