//! What the log says, applied once more by an outsider: the entries as they lie on the master's disk.
//!
//! The master's own state has to be equal whenever it has come as far; what it has applied has to be on its disk; and
//! whatever has ended stays as it ended.

use std::collections::{BTreeMap, BTreeSet};

use master::core::entry::Request;
use master::core::state::State;
use wire::event::LogEvent;
use wire::{BootNonce, ChunkRange, ChunkSet, ChunkState, Duration, FileId, Instant, JobId, Message, NodeId, log};

use crate::network::Host;
use crate::process::{Ending, Journal};
use crate::shell::{MasterShell, Process};
use crate::world::{Machine, STORAGE};

/// The leader believes that a worker is alive for so long after it was heard.
const GRACE: Duration = Duration::from_secs(5);
/// The states are compared once in so many entries, and after every start.
const ENTRIES_PER_COMPARISON: u64 = 256;

/// What an entry did that may excuse a second run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A worker that lives was declared lost with these chunks.
    Lost { job: JobId, range: ChunkRange },
    /// A success was accepted that had reached the leader only after its worker's boot had died.
    Outlived { job: JobId, range: ChunkRange },
}

/// What a leader has heard in its term.
#[derive(Debug)]
struct Reign {
    leader: Host,
    since: Instant,
    /// When a boot of a worker was last heard.
    heard: BTreeMap<(NodeId, BootNonce), Instant>,
    /// Batches of results that came while their worker lived.
    timely: BTreeSet<(NodeId, BootNonce, u64)>,
    /// Statements of loss that it must not believe: by load balancer boot and request.
    unbelievable: BTreeSet<(BootNonce, u64)>,
    /// Those that it may have believed when they came first: what comes again may find them on their way into the log.
    believed: BTreeSet<(BootNonce, u64)>,
}

#[derive(Debug, Default)]
pub struct History {
    pub state: State,
    /// The hash of each entry and the term of its leader, from index 1 on.
    entries: Vec<(u64, u64)>,
    /// How far each boot of a master was looked at.
    looked_at: BTreeMap<Host, u64>,
    /// By term.
    reigns: BTreeMap<u64, Reign>,
    /// Chunks that have ended, by job and state.
    ended: BTreeMap<JobId, BTreeMap<ChunkState, ChunkSet>>,
    /// Masters whose state was compared since they started.
    compared: BTreeSet<Host>,
}

impl History {
    pub fn on_master_start(&mut self, host: Host, shell: &MasterShell) {
        let (recovered, known) = (shell.core.state().index, self.state.index);
        assert!(recovered <= known, "a master begins at index {recovered}, and only {known} was ever applied");
        self.looked_at.insert(host, recovered);
        self.compared.remove(&host);
    }

    pub fn on_arrival_at_master(
        &mut self,
        machines: &[Machine],
        shell: &MasterShell,
        from: Host,
        message: &Message<'_>,
        now: Instant,
    ) {
        // Only what a leader hears counts, and only while it leads.
        let reign = self.reigns.get_mut(&shell.core.term()).filter(|_| shell.core.is_ready());
        let Some(reign) = reign else { return };
        let sender = message.header().node_uuid.node();
        if let Message::WorkerStatus(status, _) = message {
            let boot = BootNonce(status.boot.get());
            if is_alive(machines, sender, boot) && status.num_runs.get() > 0 {
                reign.timely.insert((sender, boot, status.batch.get()));
            }
            reign.heard.insert((sender, boot), now);
        } else if let Message::NodeHello(hello, _) = message {
            reign.heard.insert((sender, BootNonce(hello.boot.get())), now);
        } else if let Message::Lost(lost, _) = message {
            let worker = (lost.worker_uuid.node(), BootNonce(lost.worker_boot.get()));
            let heard = reign.heard.get(&worker).copied().unwrap_or(reign.since);
            let statement = (machines[from.0].boot, lost.request.get());
            if is_alive(machines, worker.0, worker.1) && now.since(heard) < GRACE {
                if !reign.believed.contains(&statement) {
                    reign.unbelievable.insert(statement);
                }
            } else {
                reign.unbelievable.remove(&statement);
                reign.believed.insert(statement);
            }
        }
    }

    /// Looks at what a master has applied since, and applies what nobody had.
    pub fn advance(
        &mut self,
        host: Host,
        shell: &MasterShell,
        machines: &[Machine],
        journal: &Journal,
        now: Instant,
    ) -> Vec<Effect> {
        let name = &machines[host.0].name;
        let mut effects = Vec::new();
        let (index, term) = (shell.core.state().index, shell.core.term());
        for next in self.looked_at.get(&host).copied().unwrap_or(0) + 1..=index {
            // What came with a snapshot was applied by others, and the log may still hold what it was to replace.
            if next <= self.state.index && next <= shell.disk.snapshot_index {
                continue;
            }
            let entry = shell.disk.entry(next);
            let entry = entry.unwrap_or_else(|| panic!("entry {next} was applied by {name} and is not on its disk"));
            let mark = (hash_of(&entry.data), entry.term);
            match self.entries.get(next as usize - 1) {
                Some(known) => assert_eq!(*known, mark, "entry {next} of {name} is not what another applied"),
                None => {
                    assert_eq!(next, self.state.index + 1, "{name} applied an entry before the one before it");
                    self.entries.push(mark);
                    let data = entry.data.to_vec();
                    self.apply(&data, entry.term, machines, journal, &mut effects);
                }
            }
        }
        self.looked_at.insert(host, index);
        if shell.core.is_ready() {
            self.check_reign(host, index, term, now);
        }
        let is_due = !self.compared.contains(&host) || index.is_multiple_of(ENTRIES_PER_COMPARISON);
        if index == self.state.index && is_due {
            self.compared.insert(host);
            self.check_equal(shell, name);
        }
        effects
    }

    /// One leads in a term, and knows from the first moment all that was applied in those before. (What is applied in its
    /// own, others may have on their disks before it.)
    fn check_reign(&mut self, host: Host, index: u64, term: u64, now: Instant) {
        let reign = self.reigns.entry(term).or_insert_with(|| {
            let before = self.entries.iter().rposition(|(_, of_entry)| *of_entry < term);
            let before = before.map_or(0, |position| position as u64 + 1);
            assert!(index >= before, "a master leads in term {term} from {index} on, and {before} was applied before");
            let (heard, timely, unbelievable, believed) = Default::default();
            Reign { leader: host, since: now, heard, timely, unbelievable, believed }
        });
        assert_eq!(reign.leader, host, "two masters lead in term {term}");
    }

    /// A master that has applied everything has the state that everything makes.
    pub fn check_equal(&self, shell: &MasterShell, name: &str) {
        let index = self.state.index;
        assert!(shell.core.state() == &self.state, "the state of {name} is not what the log says at {index}");
    }

    fn apply(&mut self, entry: &[u8], term: u64, machines: &[Machine], journal: &Journal, effects: &mut Vec<Effect>) {
        let index = self.state.index + 1;
        let applied = self.state.apply(index, entry);
        for event in &applied.events {
            self.on_event(event, index, journal, machines);
        }
        let Ok((_, frames)) = log::decode_entry(entry) else { return };
        for (frame, outcome) in frames.into_iter().zip(&applied.outcomes) {
            let is_effective = matches!(outcome, master::core::state::Outcome::Changed { .. });
            match Request::decode(frame) {
                Ok(Request::Lost(lost)) if is_effective => self.on_lost(&lost, frame, term, machines, effects),
                Ok(Request::Results(results)) if is_effective && results.is_success => {
                    let batch = (results.worker, results.boot, results.batch);
                    if !self.reigns.get(&term).is_some_and(|reign| reign.timely.contains(&batch)) {
                        let job = results.job;
                        let ranges = results.runs.iter().map(|run| run.range());
                        effects.extend(ranges.map(|range| Effect::Outlived { job, range }));
                    }
                }
                Ok(
                    Request::Submit(_)
                    | Request::Cancel(_)
                    | Request::RecordFile(_)
                    | Request::Results(_)
                    | Request::Register(_)
                    | Request::Lost(_)
                    | Request::GrantEpoch(_),
                )
                | Err(_) => {}
            }
        }
    }

    fn on_event(&mut self, event: &LogEvent<'_>, index: u64, journal: &Journal, machines: &[Machine]) {
        let LogEvent::ChunksEnded { job, state, ranges } = event else { return };
        let ended = self.ended.entry(*job).or_default();
        for range in ranges {
            for (before, set) in ended.iter() {
                let again = set.count_in(*range);
                assert_eq!(again, 0, "entry {index}: {again} of {range:?} of job {job} ended {before} and now {state}");
            }
            ended.entry(*state).or_default().insert(*range);
        }
        for range in ranges.iter().filter(|_| *state == ChunkState::Finished) {
            self.check_finished(*job, *range, journal, machines);
        }
    }

    /// A chunk that finished did run, and ended well, on the worker that its result names.
    fn check_finished(&self, job: JobId, range: ChunkRange, journal: &Journal, machines: &[Machine]) {
        let accepted = self.state.jobs[&job].results.read(range);
        assert_eq!(accepted.len(), range.count as usize, "each finished chunk of job {job} has one result");
        for result in accepted {
            let is_it = |run: &&crate::process::RunEntry| {
                run.worker == result.worker && matches!(run.ended, Some((_, Ending::Well)))
            };
            let name = machines.iter().find(|machine| machine.node == result.worker).map(|machine| &machine.name);
            let chunk = result.chunk;
            assert!(
                journal.of_chunk(job, chunk).any(|run| is_it(&run)),
                "chunk {chunk} of job {job} is finished by {name:?}, where it never ended well"
            );
        }
    }

    fn on_lost(
        &self,
        lost: &master::core::entry::LostWorker,
        frame: &[u8],
        term: u64,
        machines: &[Machine],
        effects: &mut Vec<Effect>,
    ) {
        let Ok(Message::Lost(fixed, _)) = Message::decode(frame) else { unreachable!("it was decoded before") };
        let statement = (lost.load_balancer_boot, fixed.request.get());
        assert!(
            !self.reigns.get(&term).is_some_and(|reign| reign.unbelievable.contains(&statement)),
            "a worker that the leader had heard within the grace period was declared lost: {lost:?}"
        );
        if !is_alive(machines, lost.worker, lost.boot) {
            return;
        }
        for item in &lost.items {
            let (job, range) = (item.job(), item.range());
            effects.push(Effect::Lost { job, range });
        }
    }

    /// The terminal state of a chunk.
    pub fn ended_state(&self, job: JobId, chunk: u32) -> Option<ChunkState> {
        self.state.jobs.get(&job).and_then(|job| job.ended_state(chunk))
    }

    /// The current attempt of a chunk.
    pub fn attempt(&self, job: JobId, chunk: u32) -> u32 {
        self.state.jobs.get(&job).map_or(1, |job| job.tries.of(chunk).attempt)
    }

    pub fn check_end(&self, machines: &[Machine], journal: &Journal) {
        let live: Vec<String> = self.state.jobs_live.iter().map(|job| self.stuck(*job, machines)).collect();
        assert!(live.is_empty(), "jobs have not ended in the calm: {}", live.join("; "));
        for (job, ended) in &self.ended {
            let sets: BTreeMap<_, _> = self.state.jobs[job].ended_sets().collect();
            let told: BTreeMap<_, _> = ended.iter().map(|(state, set)| (*state, set)).collect();
            assert!(sets == told, "what ended of job {job} is not what was told");
            for range in ended.get(&ChunkState::Finished).into_iter().flat_map(ChunkSet::ranges) {
                self.check_finished(*job, range, journal, machines);
            }
        }
        let Some(Process::Storage(storage)) = machines[STORAGE.0].process.as_ref() else { panic!("storage runs") };
        let missing: Vec<&FileId> = self.state.files.keys().filter(|file| !storage.disk.has(**file)).collect();
        assert!(missing.is_empty(), "files that the masters know are not on storage: {missing:?}");
    }
}

impl History {
    /// What is known of a job that does not end.
    fn stuck(&self, id: JobId, machines: &[Machine]) -> String {
        let job = &self.state.jobs[&id];
        let mut text = format!("job {} ({id}) has {:?} open", job.number, job.open);
        let balancer = machines.iter().find_map(|machine| match machine.process.as_ref() {
            Some(Process::LoadBalancer(shell)) => Some(shell),
            Some(_) | None => None,
        });
        for machine in machines {
            if let (Some(balancer), Some(Process::Worker(worker))) = (balancer, machine.process.as_ref()) {
                let believed = balancer.core.held_by(machine.node, id);
                let held: Vec<u32> =
                    job.open.iter().filter(|chunk| worker.core.holding_of(id, *chunk).is_some()).collect();
                text += &format!(", {} holds {held:?} and is believed to hold {believed:?}", machine.name);
            }
        }
        text
    }
}

/// Tells entries apart; it need not be safe against anybody.
fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// True while that boot of a worker runs, paused or not.
pub fn is_alive(machines: &[Machine], worker: NodeId, boot: BootNonce) -> bool {
    machines.iter().any(|machine| machine.node == worker && machine.boot == boot && machine.is_up())
}
