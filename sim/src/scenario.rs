//! The vocabulary of scenarios: a small calm cluster, and words for what is done to it and what is seen of it.
//!
//! A scenario tells one story and asserts what happened in it: which programs ran, which messages were sent. The
//! checkers look on all the while.

use wire::{ChunkRange, ChunkState, Duration, Inventory, JobId, Kind, Message, WorkerRequest};

use crate::client::Plan;
use crate::network::{Envelope, Host};
use crate::process::RunEntry;
use crate::seed;
use crate::shell::{LoadBalancerShell, MasterShell, Process, WorkerShell};
use crate::world::{Change, FilterId, LOAD_BALANCER, MASTER, STORAGE, Sent, Settings, World};

/// The machines besides workers and clients.
const SERVERS: [Host; 3] = [MASTER, LOAD_BALANCER, STORAGE];
/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with one client, ready for work.
pub struct Cluster {
    pub world: World,
}

impl Cluster {
    /// A cluster whose workers, of two slots each, are known to its primary.
    pub fn with_workers(workers: usize) -> Self {
        Self::with(Settings { workers, ..Settings::default() })
    }

    /// As `with_workers`, with a master that keeps few past events for watchers who are behind.
    pub fn with_forgetful_master(workers: usize) -> Self {
        Self::with(Settings { workers, event_bytes_max: Some(150), ..Settings::default() })
    }

    /// As `with_workers`, with masters in a group of three.
    pub fn with_three_masters(workers: usize) -> Self {
        Self::with(Settings { masters: 3, workers, ..Settings::default() })
    }

    fn with(settings: Settings) -> Self {
        let is_traced = std::env::var_os("SIM_TRACE").is_some();
        let settings = Settings { clients: 1, is_traced, told_per_mille: 0, ..settings };
        let mut world = World::new(settings);
        world.sent = Some(Vec::new());
        let mut cluster = Self { world };
        cluster.until_ready();
        cluster
    }

    /// Waits until there is a primary that has heard every worker that is up.
    pub fn until_ready(&mut self) {
        self.until("a primary knows its workers", |cluster| {
            let Some(epoch) = cluster.epoch() else { return false };
            let up = cluster.world.workers().filter(|host| cluster.world.machine(*host).is_up());
            let mut epochs = up.map(|host| cluster.worker(host).core.epoch());
            let servers = SERVERS.map(|server| cluster.world.machine(server));
            let nodes = &cluster.world.checker.history.state.nodes;
            epochs.all(|of_worker| of_worker == epoch)
                && servers.iter().all(|server| nodes.get(&server.node).is_some_and(|node| node.boot == server.boot))
        });
        self.run(Duration::from_millis(100));
    }

    // What is done to it.

    /// Submits a job, and waits until it is accepted.
    pub fn submit(&mut self, plan: Plan) -> JobId {
        let client = self.world.client(1);
        let job = self.world.turn(client, "submit", |process, outside| {
            let Process::Client(client) = process else { unreachable!("it is a client") };
            client.submit(plan, outside)
        });
        self.until("the job is accepted", |cluster| cluster.world.checker.history.state.jobs.contains_key(&job));
        job
    }

    /// Cancels a job, and waits until that is in the log.
    pub fn cancel(&mut self, job: JobId) {
        let client = self.world.client(1);
        self.world.turn(client, "cancel", |process, outside| {
            let Process::Client(client) = process else { unreachable!("it is a client") };
            client.cancel(job, outside);
        });
        self.until("the job is canceled", |cluster| !cluster.is_live(job));
    }

    /// Nothing passes between the two.
    pub fn cut(&mut self, a: Host, b: Host) {
        self.world.change(Change::CutOneWay { from: a, to: b });
        self.world.change(Change::CutOneWay { from: b, to: a });
    }

    /// Nothing passes between it and anybody.
    pub fn isolate(&mut self, host: Host) {
        let others: Vec<Host> = self.world.machines.iter().map(|machine| machine.host).collect();
        others.into_iter().filter(|other| *other != host).for_each(|other| self.cut(host, other));
    }

    /// All connections stand again.
    pub fn heal(&mut self) {
        self.world.network.heal();
    }

    pub fn crash(&mut self, host: Host) {
        self.world.change(Change::Crash { host });
    }

    pub fn restart(&mut self, host: Host) {
        self.world.change(Change::Restart { host });
    }

    /// The worker's connection to the load balancer is made anew: it says what it holds.
    pub fn reconnect(&mut self, worker: Host) {
        self.world.turn(worker, "reconnected", |process, outside| process.reconnected(LOAD_BALANCER, outside));
    }

    /// Keeps such messages of `from` to `to` until they are released.
    pub fn hold(&mut self, from: Host, to: Host, kind: Kind) -> FilterId {
        self.world.hold(move |envelope| is_of(envelope, from, to, kind))
    }

    /// As `hold`, for results alone: a worker's statuses of other kinds pass.
    pub fn hold_results(&mut self, from: Host) -> FilterId {
        self.world.hold(move |envelope| is_of(envelope, from, MASTER, Kind::WorkerStatus) && has_results(envelope))
    }

    /// Loses such messages until it is told to stop by a release.
    pub fn lose(&mut self, from: Host, to: Host, kind: Kind) -> FilterId {
        self.world.lose(move |envelope| is_of(envelope, from, to, kind))
    }

    /// As `lose`, for results alone.
    pub fn lose_results(&mut self, from: Host) -> FilterId {
        self.world.lose(move |envelope| is_of(envelope, from, MASTER, Kind::WorkerStatus) && has_results(envelope))
    }

    pub fn release(&mut self, filter: FilterId) {
        self.world.release(filter);
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) {
        self.world.run_until(self.world.now + duration);
    }

    /// Lets time pass until something holds; panics when that takes too long.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = self.world.now + PATIENCE;
        while !holds(self) {
            assert!(self.world.now < end, "waited in vain: {what}");
            self.world.step();
        }
    }

    /// Ends all faults, and waits until every job has ended and nobody holds anything; then all has to be in order.
    pub fn settle(&mut self) {
        seed::calm_down(&mut self.world);
        self.until("everything has ended", |cluster| seed::is_settled(&cluster.world));
        self.world.check_end();
    }

    // What is seen of it.

    /// The master that leads, if one does.
    pub fn leader(&self) -> Option<Host> {
        let leads = |host: &Host| matches!(&self.world.machine(*host).process, Some(Process::Master(shell)) if shell.core.is_ready());
        self.world.masters().into_iter().find(leads)
    }

    /// How far a master has applied the log.
    pub fn applied(&self, master: Host) -> u64 {
        match &self.world.machine(master).process {
            Some(Process::Master(shell)) => shell.core.state().index,
            _ => panic!("{master:?} is no master that runs"),
        }
    }

    /// The epoch that the load balancer holds.
    pub fn epoch(&self) -> Option<u64> {
        self.load_balancer().and_then(|shell| shell.core.epoch())
    }

    pub fn load_balancer(&self) -> Option<&LoadBalancerShell> {
        match self.world.machine(LOAD_BALANCER).process.as_ref() {
            Some(Process::LoadBalancer(shell)) => Some(shell),
            Some(_) => unreachable!("it is a load balancer"),
            None => None,
        }
    }

    pub fn master(&self) -> Option<&MasterShell> {
        match self.world.machine(MASTER).process.as_ref() {
            Some(Process::Master(shell)) => Some(shell),
            Some(_) => unreachable!("it is a master"),
            None => None,
        }
    }

    pub fn worker(&self, host: Host) -> &WorkerShell {
        match self.world.machine(host).process.as_ref() {
            Some(Process::Worker(shell)) => shell,
            Some(_) | None => panic!("{host:?} is a worker that runs"),
        }
    }

    /// True when the primary believes that the worker holds the chunk.
    pub fn counts_as_held(&self, worker: Host, job: JobId, chunk: u32) -> bool {
        let node = self.world.machine(worker).node;
        self.load_balancer().is_some_and(|shell| shell.core.held_by(node, job).contains(chunk))
    }

    pub fn is_live(&self, job: JobId) -> bool {
        self.world.checker.history.state.jobs[&job].is_live()
    }

    /// How a chunk ended in the log.
    pub fn ended(&self, job: JobId, chunk: u32) -> Option<ChunkState> {
        self.world.checker.history.ended_state(job, chunk)
    }

    /// The attempt of a chunk in the log.
    pub fn attempt(&self, job: JobId, chunk: u32) -> u32 {
        self.world.checker.history.attempt(job, chunk)
    }

    /// The highest log index that is applied.
    pub fn index(&self) -> u64 {
        self.world.checker.history.state.index
    }

    /// What ran of a chunk, in order.
    pub fn runs(&self, job: JobId, chunk: u32) -> Vec<RunEntry> {
        self.world.journal.of_chunk(job, chunk).copied().collect()
    }

    /// Where and for which attempts a chunk ran.
    pub fn history(&self, job: JobId, chunk: u32) -> Vec<(Host, u32)> {
        self.runs(job, chunk).iter().map(|run| (run.host, run.attempt)).collect()
    }

    /// Messages of a kind that were sent so far, whether or not they arrived.
    pub fn sent(&self, from: Host, to: Host, kind: Kind) -> Vec<&Sent> {
        let sent = self.world.sent.as_ref().expect("a scenario keeps what is sent");
        let is_it = |sent: &&Sent| sent.from == from && sent.to == to && sent.frame[0] == kind as u8;
        sent.iter().filter(is_it).collect()
    }

    /// Requests to a worker for chunks of a job, in order.
    pub fn requests(&self, to: Host, job: JobId) -> Vec<WorkerRequest> {
        let of_frame = |sent: &Sent| match Message::decode(&sent.frame) {
            Ok(Message::WorkerRequest(request, _)) if request.job_uuid.job() == job => Some(*request),
            _ => None,
        };
        self.sent(LOAD_BALANCER, to, Kind::WorkerRequest).into_iter().filter_map(of_frame).collect()
    }

    /// True when a request for the chunk was sent to the worker.
    pub fn was_asked(&self, to: Host, job: JobId, chunk: u32) -> bool {
        self.requests(to, job).iter().any(|request| range_of(request).contains(chunk))
    }

    /// How many requests of an epoch went to a worker for a job.
    pub fn requests_in(&self, epoch: u64, to: Host, job: JobId) -> usize {
        self.requests(to, job).iter().filter(|request| request.epoch.get() == epoch).count()
    }

    /// The worker that was asked for a job in an epoch.
    pub fn holder_in(&self, epoch: u64, job: JobId) -> Option<Host> {
        self.world.workers().find(|worker| self.requests_in(epoch, *worker, job) > 0)
    }

    /// Inventories that a worker sent.
    pub fn inventories(&self, from: Host) -> Vec<Inventory> {
        let of_frame = |sent: &Sent| match Message::decode(&sent.frame) {
            Ok(Message::Inventory(inventory, _)) => Some(*inventory),
            _ => None,
        };
        self.sent(from, LOAD_BALANCER, Kind::Inventory).into_iter().filter_map(of_frame).collect()
    }
}

pub fn range_of(request: &WorkerRequest) -> ChunkRange {
    ChunkRange::new(request.first.get(), request.count.get())
}

fn is_of(envelope: &Envelope, from: Host, to: Host, kind: Kind) -> bool {
    envelope.from == from && envelope.to == to && envelope.frames[0][0] == kind as u8
}

fn has_results(envelope: &Envelope) -> bool {
    matches!(Message::decode(&envelope.frames[0]), Ok(Message::WorkerStatus(status, _)) if status.num_runs.get() > 0)
}
