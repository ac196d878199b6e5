//! Who is alive, as far as this leader has heard, and who therefore is primary.
//!
//! A node is like a ship's light: one missed flash is fog. All of this is belief of one leader in one term; what others
//! have to rely on (a worker is lost, a load balancer reigns) becomes an entry of the log.

use std::collections::BTreeMap;

use planted::Bug;
use wire::record::{InputCounts, NodeInputs, RunningItem, records_of};
use wire::running::{RunningChunk, decode_running};
use wire::{
    BootNonce, ChunkRange, Duration, ErrorCode, FixedPart, HEARTBEAT_LEADER, Instant, JobId, Kind, LeaderHeartbeat,
    LoadBalancerHeartbeat, NodeId, PeerId, Role, U32, U64, WallTime, WorkerStatus,
};

use super::entry::{EpochGrant, RunningRange};
use super::leader::Key;
use super::state::{Epoch, Job, State};
use super::{Action, Core};

/// Running ranges that a load balancer may list.
const RUNNING_ITEMS_MAX: usize = 1024;
/// Running chunks of one worker whose start is kept.
const STARTS_MAX: usize = 1024;

/// What this leader has heard.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// Of registered nodes only, so it is no larger than their table.
    heard: BTreeMap<NodeId, Heard>,
    /// What load balancers say of themselves.
    views: BTreeMap<NodeId, BalancerView>,
    /// Since when chunks run on a worker, as its last heartbeat had it. Of those in `heard`.
    starts: BTreeMap<NodeId, Starts>,
    /// What workers count of inputs, as they said last. Of those in `heard`.
    inputs: BTreeMap<NodeId, InputCounts>,
    /// When the last epoch was granted because its primary was silent.
    replaced_at: Option<Instant>,
}

/// By chunk: the attempt that runs, and since when.
type Starts = BTreeMap<(JobId, u32), (u32, WallTime)>;

#[derive(Clone, Copy, Debug)]
struct Heard {
    boot: BootNonce,
    at: Instant,
}

/// A load balancer's last heartbeat.
#[derive(Debug)]
struct BalancerView {
    boot: BootNonce,
    epoch: u64,
    index: u64,
    workers_seen: u32,
    running: Vec<RunningItem>,
}

impl Presence {
    /// Notes that a registered node spoke. Words of a boot before the newest are of the dead.
    pub(super) fn hear(&mut self, state: &State, node: NodeId, boot: BootNonce, now: Instant) {
        let Some(record) = state.nodes.get(&node) else { return };
        let newest = record.boot.max(self.boot(node));
        if boot >= newest {
            self.heard.insert(node, Heard { boot, at: now });
        }
    }

    /// Notes what a worker counts of inputs. A result that is said again has older numbers, until the next heartbeat.
    pub(super) fn hear_inputs(&mut self, state: &State, status: &WorkerStatus) {
        let (node, boot) = (status.header.node_uuid.node(), BootNonce(status.boot.get()));
        let is_worker = state.nodes.get(&node).is_some_and(|record| record.role == Role::Worker);
        if is_worker && self.heard.get(&node).is_some_and(|heard| heard.boot == boot) {
            self.inputs.insert(node, InputCounts::told(status));
        }
    }

    /// Notes since when a worker's chunks run. The first word on a chunk stands, since the later ones differ only by how
    /// long they were under way.
    fn hear_running(&mut self, node: NodeId, running: impl Iterator<Item = RunningChunk>, wall: WallTime) {
        let before = self.starts.remove(&node).unwrap_or_default();
        let start = |run: RunningChunk| {
            let told = WallTime(wall.0.saturating_sub(u64::try_from(run.age.as_micros()).unwrap_or(u64::MAX)));
            let known = before.get(&(run.job, run.chunk)).filter(|(attempt, _)| *attempt == run.attempt);
            ((run.job, run.chunk), (run.attempt, known.map_or(told, |(_, at)| *at)))
        };
        let starts: Starts = running.take(STARTS_MAX).map(start).collect();
        if !starts.is_empty() {
            self.starts.insert(node, starts);
        }
    }

    /// The range cut where the start of its chunks differs.
    fn cut_by_start(&self, running: RunningRange, job: JobId, cut: &mut Vec<RunningRange>) {
        let RunningRange { range, attempt, worker, .. } = running;
        let mut at = u64::from(range.first);
        let mut push = |first: u64, end: u64, started_at: WallTime| {
            if first < end {
                let range = ChunkRange::new(first as u32, (end - first) as u32);
                cut.push(RunningRange { range, started_at, ..running });
            }
        };
        let keys = (job, range.first)..(job, u32::try_from(range.end()).unwrap_or(u32::MAX));
        for ((_, chunk), (of, started_at)) in
            self.starts.get(&worker).into_iter().flat_map(|map| map.range(keys.clone()))
        {
            if *of == attempt {
                push(at, (*chunk).into(), WallTime(0));
                push((*chunk).into(), u64::from(*chunk) + 1, *started_at);
                at = u64::from(*chunk) + 1;
            }
        }
        push(at, range.end(), WallTime(0));
    }

    /// What workers have told of inputs, in order of their uuids.
    pub(super) fn inputs(&self) -> impl Iterator<Item = NodeInputs> {
        self.inputs.iter().map(|(node, counts)| NodeInputs { node: *node, counts: *counts })
    }

    /// The newest boot of a node that was heard.
    pub(super) fn boot(&self, node: NodeId) -> BootNonce {
        self.heard.get(&node).map_or(BootNonce::NONE, |heard| heard.boot)
    }

    pub(super) fn heard_at(&self, node: NodeId) -> Option<Instant> {
        self.heard.get(&node).map(|heard| heard.at)
    }

    pub(super) fn is_heard(&self, node: NodeId, now: Instant, within: Duration) -> bool {
        self.heard_at(node).is_some_and(|at| now.since(at) < within)
    }

    /// What runs in the eyes of the primary; nothing while there is none, or it has not spoken in its epoch.
    pub(super) fn running(&self, epoch: &Epoch) -> &[RunningItem] {
        match self.primary_view(epoch) {
            Some(view) => &view.running,
            None => &[],
        }
    }

    /// The log index that the primary has seen.
    pub(super) fn primary_index(&self, epoch: &Epoch) -> u64 {
        self.primary_view(epoch).map_or(0, |view| view.index)
    }

    fn primary_view(&self, epoch: &Epoch) -> Option<&BalancerView> {
        let view = self.views.get(&epoch.load_balancer)?;
        (view.boot == epoch.boot && view.epoch == epoch.number).then_some(view)
    }
}

/// The ranges of one job that run in the eyes of the primary, with attempt and worker.
pub(super) fn running_of(items: &[RunningItem], job: JobId) -> impl Iterator<Item = (ChunkRange, u32, NodeId)> {
    let of_job = items.iter().filter(move |item| item.job_uuid == job.0);
    of_job.map(|item| (ChunkRange::new(item.first, item.count), item.attempt, NodeId(item.worker_uuid)))
}

impl Core {
    /// What of a job runs, at the attempts that count: in order, each chunk once. The view is a little old, so a chunk
    /// may be listed on two workers; it is told of one.
    pub(super) fn running_of(&self, job: &Job, within: ChunkRange) -> Vec<RunningRange> {
        let mut running = Vec::new();
        for (range, attempt, worker) in running_of(self.presence.running(&self.state.epoch), job.job) {
            let Some(range) = range.within(within).and_then(|range| range.within(job.range())) else { continue };
            for (range, _) in job.tries.pieces(range).into_iter().filter(|(_, tries)| tries.attempt == attempt) {
                let unknown = RunningRange { range, attempt, worker, started_at: WallTime(0) };
                self.presence.cut_by_start(unknown, job.job, &mut running);
            }
        }
        running.sort_by_key(|item| item.range.first);
        let mut end = 0;
        running.retain_mut(|item| {
            let first = u64::from(item.range.first).max(end);
            let is_new = first < item.range.end();
            if is_new {
                item.range = ChunkRange::new(first as u32, (item.range.end() - first) as u32);
                end = item.range.end();
            }
            is_new
        });
        running
    }

    /// A node other than a load balancer is alive, and may say what runs on it.
    pub(super) fn on_heartbeat(
        &mut self,
        from: PeerId,
        fixed: &WorkerStatus,
        body: &[u8],
        now: Instant,
        wall: WallTime,
        actions: &mut Vec<Action>,
    ) {
        let (node, boot) = (fixed.header.node_uuid.node(), BootNonce(fixed.boot.get()));
        self.presence.hear(&self.state, node, boot, now);
        // A status of a chunk that is not a result is for load balancers; here it only shows that its worker lives.
        if fixed.job_uuid.job().is_nil() && self.presence.heard.get(&node).is_some_and(|heard| heard.boot == boot) {
            self.presence.hear_inputs(&self.state, fixed);
            if let Ok(running) = decode_running(body, fixed.num_items.get()) {
                self.presence.hear_running(node, running, wall);
            }
        }
        self.answer_heartbeat(from, Kind::WorkerStatus, node, boot, actions);
    }

    pub(super) fn on_balancer_heartbeat(
        &mut self,
        from: PeerId,
        fixed: &LoadBalancerHeartbeat,
        body: &[u8],
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (node, boot) = (fixed.header.node_uuid.node(), BootNonce(fixed.boot.get()));
        let running = match records_of::<RunningItem>(body, fixed.num_items.get()) {
            Ok(items) => items[..items.len().min(RUNNING_ITEMS_MAX)].to_vec(),
            Err(error) => {
                let (kind, detail) = (Some(Kind::LoadBalancerHeartbeat), error.to_string());
                return self.refuse(from, kind, 0, JobId::NIL, ErrorCode::Malformed, &detail, actions);
            }
        };
        self.presence.hear(&self.state, node, boot, now);
        let is_registered =
            self.state.nodes.get(&node).is_some_and(|known| known.role == Role::LoadBalancer && known.boot == boot);
        if is_registered {
            let (epoch, index) = (fixed.epoch.get(), fixed.index.get());
            let workers_seen = fixed.workers_seen.get();
            self.presence.views.insert(node, BalancerView { boot, epoch, index, workers_seen, running });
            self.consider_epoch(now);
        }
        self.answer_heartbeat(from, Kind::LoadBalancerHeartbeat, node, boot, actions);
    }

    /// Whoever is not registered in this boot is told so, since it may have said its hello to another master's log.
    fn answer_heartbeat(&self, to: PeerId, kind: Kind, node: NodeId, boot: BootNonce, actions: &mut Vec<Action>) {
        if self.state.nodes.get(&node).is_none_or(|record| record.boot < boot) {
            let detail = format!("node {node} is not registered in this boot");
            return self.refuse(to, Some(kind), 0, JobId::NIL, ErrorCode::UnknownNode, &detail, actions);
        }
        let fixed = LeaderHeartbeat {
            term: U64::new(self.raft.term()),
            index: U64::new(self.state.index),
            epoch: U64::new(self.state.epoch.number),
            nodes_version: U64::new(self.state.nodes_version),
            flags: U32::new(HEARTBEAT_LEADER),
            ..LeaderHeartbeat::DEFAULT
        };
        actions.push(Action::Send { to, frame: fixed.frame(self.config.node, b"") });
    }

    /// Grants the next epoch when there is no primary, it has restarted, or it is silent while another is heard.
    pub(super) fn consider_epoch(&mut self, now: Instant) {
        let Some(leading_since) = self.leading_since else { return };
        if self.backlog.has(Key::Epoch) || self.is_disk_full {
            return;
        }
        let Some((load_balancer, boot)) = self.best_balancer(now) else { return };
        let Epoch { number, load_balancer: primary, boot: primary_boot } = self.state.epoch;
        let is_same_boot = boot == primary_boot || planted::is(Bug::EpochOfEarlierBoot);
        if load_balancer == primary && is_same_boot {
            return;
        }
        let has_restarted = self.state.nodes.get(&primary).is_none_or(|record| record.boot != primary_boot);
        if number != 0 && !has_restarted {
            let silent_since = self.presence.heard_at(primary).unwrap_or(leading_since).max(leading_since);
            let is_silent = now.since(silent_since) >= self.config.timings.load_balancer_silence_ms;
            let hold_down = self.config.timings.epoch_hold_down_ms;
            let is_held = self.presence.replaced_at.is_some_and(|at| now.since(at) < hold_down);
            if !is_silent || is_held {
                return;
            }
            self.presence.replaced_at = Some(now);
        }
        let grant = EpochGrant { load_balancer, boot, epoch: number + 1 };
        self.propose_own(Key::Epoch, Kind::LoadBalancerHeartbeat, grant.frame());
    }

    /// The load balancer that should reign: the primary while it is heard, else the one that sees most workers.
    fn best_balancer(&self, now: Instant) -> Option<(NodeId, BootNonce)> {
        let silence = self.config.timings.load_balancer_silence_ms;
        let candidates = self.state.nodes.values().filter(|record| {
            record.role == Role::LoadBalancer
                && self.presence.boot(record.node) == record.boot
                && self.presence.is_heard(record.node, now, silence)
        });
        let rank = |record: &&wire::record::NodeRecord| {
            let view = self.presence.views.get(&record.node).filter(|view| view.boot == record.boot);
            (record.node == self.state.epoch.load_balancer, view.map_or(0, |view| view.workers_seen))
        };
        // Of equals the first in the order of their ids.
        candidates.rev().max_by_key(rank).map(|record| (record.node, record.boot))
    }
}
