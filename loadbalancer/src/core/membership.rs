//! Who is here, who is lost, and whose turn it is.
//!
//! A worker is like a ship's light: one missed flash is fog, five seconds of darkness are a loss, but only if the
//! leader's lookout has not seen it either. A new primary first lets every ship call its name: what a silent one may
//! carry is not given away before the grace period is over and the log has been read up to there.

use wire::record::{ChunkItem, records_bytes};
use wire::{
    Answer, BootNonce, FixedPart, Instant, InventoryRequest, LOST_NEWER_BOOT, Lost, NodeId, PeerId, Query, Subject,
    U16, U32, U64,
};

use super::log_view::EpochGrant;
use super::worker_view::{Held, WorkerView};
use super::{Action, LoadBalancer, Note, SWEEP_INTERVAL, Timer};

/// Items of one `lost`; what is beyond is in the next.
const LOST_ITEMS_MAX: usize = 8192;

/// A time during which the epoch is ours.
#[derive(Debug)]
pub struct Reign {
    pub epoch: u64,
    pub since: Instant,
    grace: Grace,
}

/// How far the wait for silent workers has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Grace {
    /// The grace period has not passed.
    Running,
    /// It has; the leader is asked how far the log is now.
    Asking {
        request: u64,
        again_at: Instant,
    },
    /// What has happened until then is in the view once it has reached `index`.
    Reading {
        index: u64,
    },
    Over,
}

impl LoadBalancer {
    /// Makes sure that `boot` of the worker is known. False = it is an older boot, whose words count no more.
    pub(super) fn meet(&mut self, node: NodeId, boot: BootNonce, now: Instant, actions: &mut Vec<Action>) -> bool {
        let resend_wait = self.config.timings.resend_wait;
        let worker = self.workers.entry(node).or_insert_with(|| WorkerView::new(now, resend_wait));
        // A peer that knows only the seed's struct tells no boot: it may be any.
        if boot == worker.boot || boot == BootNonce::NONE {
            return true;
        }
        if boot < worker.boot {
            return false;
        }
        let old_boot = std::mem::replace(&mut worker.boot, boot);
        let held = std::mem::take(&mut worker.held);
        if !held.is_empty() {
            worker.former.insert(old_boot, held);
        }
        worker.forget_epoch(resend_wait);
        worker.bodies.clear();
        worker.kills.clear();
        worker.running.clear();
        worker.last_heard = now;
        worker.ask_again_at = now;
        worker.lost_again_at = now;
        actions.push(Action::Note(Note::WorkerMet { worker: node, boot }));
        true
    }

    /// As `meet`, for words that came over a connection.
    pub(super) fn hear(
        &mut self,
        from: PeerId,
        node: NodeId,
        boot: BootNonce,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        if !self.meet(node, boot, now, actions) {
            return false;
        }
        let worker = self.workers.get_mut(&node).expect("it was met above");
        worker.peer = Some(from);
        worker.last_heard = now;
        true
    }

    pub(super) fn on_peer_gone(&mut self, peer: PeerId) {
        for worker in self.workers.values_mut().filter(|worker| worker.peer == Some(peer)) {
            worker.peer = None;
        }
    }

    /// The log names the primary. Whoever it is, the numbers of the epoch before mean nothing any more.
    pub(super) fn epoch_granted(&mut self, grant: EpochGrant, now: Instant, actions: &mut Vec<Action>) {
        if self.log.grant == Some(grant) {
            return;
        }
        self.log.grant = Some(grant);
        let was_ours = self.reign.take().is_some();
        let ours = self.log.epoch_of(self.config.node, self.config.boot);
        for worker in self.workers.values_mut() {
            worker.forget_epoch(self.config.timings.resend_wait);
            worker.held.make_reported();
            worker.may_hold = true;
            worker.ask_again_at = now;
            worker.lost_again_at = now;
            worker.retract_not_before = now;
            worker.kills.values_mut().for_each(|kill| (kill.after, kill.again_at) = (0, now));
            if ours.is_none() {
                worker.kills.clear();
            }
        }
        match ours {
            Some(epoch) => {
                self.reign = Some(Reign { epoch, since: now, grace: Grace::Running });
                actions.push(Action::Note(Note::EpochGained { epoch, index: self.log.index }));
                let nodes: Vec<NodeId> = self.workers.keys().copied().collect();
                nodes.into_iter().for_each(|node| self.ask_if_unknown(node, now, actions));
            }
            None if was_ours => actions.push(Action::Note(Note::EpochLost { epoch: grant.epoch })),
            None => {}
        }
    }

    /// The view of the log has reached a new index: what waited for it may go on.
    pub(super) fn view_advanced(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.take_waiting(now, actions);
        self.end_grace(now, actions);
    }

    /// Asks a worker for its inventory if we do not know what it holds.
    pub(super) fn ask_if_unknown(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let (Some(epoch), Some(worker)) = (self.epoch(), self.workers.get(&node)) else { return };
        if worker.inventory_epoch != epoch || worker.inventory_wanted.is_some() {
            self.ask_inventory(node, epoch, now, actions);
        }
    }

    /// What is held at an attempt that is over may be confirmed and forgotten already: asks until none of it is left.
    fn ask_if_stale(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let (Some(epoch), Some(worker)) = (self.epoch(), self.workers.get(&node)) else { return };
        let is_stale = worker.held.jobs().any(|(job, map)| {
            let view = self.log.jobs.get(&job).filter(|view| !view.attempts.is_empty());
            // What we assigned ourselves too: the entry that freed it may lie in a gap of our view.
            view.is_some_and(|view| {
                map.iter().any(|(range, holding)| {
                    view.pending_by_attempt(range).iter().any(|(_, attempt)| *attempt > holding.attempt)
                })
            })
        });
        if is_stale {
            self.ask_inventory(node, epoch, now, actions);
        }
    }

    /// At most once per interval, and not while an inventory is here that waits for our view of the log.
    fn ask_inventory(&mut self, node: NodeId, epoch: u64, now: Instant, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get_mut(&node) else { return };
        let Some(to) = worker.peer.filter(|_| now >= worker.ask_again_at && !worker.is_waiting()) else { return };
        worker.ask_again_at = now + self.config.timings.repeat_interval;
        let (epoch, boot) = (U64::new(epoch), U64::new(self.config.boot.0));
        let request = InventoryRequest { epoch, boot, ..InventoryRequest::DEFAULT };
        actions.push(Action::Send { to, frame: request.frame(self.config.node, &[]) });
    }

    /// Looks at every worker: what has to be asked or said again, and who is lost.
    pub(super) fn sweep(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.timers.set(Timer::Sweep, now + SWEEP_INTERVAL);
        if self.reign.is_none() {
            return;
        }
        let nodes: Vec<NodeId> = self.workers.keys().copied().collect();
        for node in nodes {
            self.ask_if_unknown(node, now, actions);
            self.ask_if_stale(node, now, actions);
            self.repeat_kills(node, now, actions);
            self.propose_loss(node, now, actions);
        }
        self.watch_grace(now, actions);
        // Retracts that were put off, and jobs that age.
        self.dispatch_soon(now);
    }

    /// Proposes the loss of what dead boots of the worker held, and of what it holds itself if it is silent. Nothing is
    /// freed here: the log will say so.
    fn propose_loss(&mut self, node: NodeId, now: Instant, actions: &mut Vec<Action>) {
        let (Some(reign), Some(worker)) = (&self.reign, self.workers.get(&node)) else { return };
        if now < worker.lost_again_at {
            return;
        }
        // In a new reign only an inventory of it counts as heard.
        let heard = if worker.inventory_epoch == reign.epoch { worker.last_heard } else { reign.since };
        let is_silent = now.since(heard) >= self.config.timings.grace && !worker.is_waiting();
        let epoch = reign.epoch;
        let mut losses: Vec<(BootNonce, Vec<ChunkItem>, u32)> =
            worker.former.iter().map(|(boot, held)| (*boot, items_of(held), LOST_NEWER_BOOT)).collect();
        if is_silent && !worker.held.is_empty() {
            losses.push((worker.boot, items_of(&worker.held), 0));
        }
        for (boot, items, flags) in losses {
            let chunks = items.iter().map(|item| u64::from(item.count)).sum();
            actions.push(Action::Note(Note::LossProposed { worker: node, boot, chunks }));
            for part in items.chunks(LOST_ITEMS_MAX) {
                let lost = Lost {
                    request: U64::new(self.number_request()),
                    worker_uuid: node.into(),
                    worker_boot: U64::new(boot.0),
                    epoch: U64::new(epoch),
                    boot: U64::new(self.config.boot.0),
                    num_items: U32::new(part.len() as u32),
                    flags: U32::new(flags),
                    ..Lost::DEFAULT
                };
                let frame = lost.frame(self.config.node, records_bytes(part));
                actions.push(Action::Send { to: self.leader(), frame });
            }
            if let Some(worker) = self.workers.get_mut(&node) {
                worker.lost_again_at = now + self.config.timings.repeat_interval;
            }
        }
    }

    /// Once the grace period has passed, learns from the leader how far the log was after it.
    fn watch_grace(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let request = self.next_request;
        let (grace, repeat) = (self.config.timings.grace, self.config.timings.repeat_interval);
        let Some(reign) = &mut self.reign else { return };
        let is_due = match reign.grace {
            Grace::Running => now.since(reign.since) >= grace,
            Grace::Asking { again_at, .. } => now >= again_at,
            Grace::Reading { .. } | Grace::Over => false,
        };
        if !is_due {
            return;
        }
        if !self.workers.values().any(|worker| worker.may_hold) {
            reign.grace = Grace::Over;
            return;
        }
        reign.grace = Grace::Asking { request, again_at: now + repeat };
        self.next_request += 1;
        let query = Query {
            request: U64::new(request),
            subject: U16::new(Subject::Status as u16),
            limit: U32::new(1),
            ..Query::DEFAULT
        };
        actions.push(Action::Send { to: self.leader(), frame: query.frame(self.config.node, &[]) });
    }

    pub(super) fn on_answer(&mut self, from: PeerId, answer: &Answer, now: Instant, actions: &mut Vec<Action>) {
        let is_master = self.is_master(from);
        let Some(reign) = &mut self.reign else { return };
        if let Grace::Asking { request, .. } = reign.grace
            && is_master
            && answer.request.get() == request
        {
            reign.grace = Grace::Reading { index: answer.index.get() };
            self.end_grace(now, actions);
        }
    }

    /// The view has all that happened until after the grace period: who has still not told what it holds, is given up.
    fn end_grace(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let index = self.log.index;
        let Some(reign) = &mut self.reign else { return };
        if !matches!(reign.grace, Grace::Reading { index: until } if index >= until) {
            return;
        }
        reign.grace = Grace::Over;
        let mut silent = 0;
        for worker in self.workers.values_mut().filter(|worker| worker.may_hold) {
            // A worker whose inventory is here is not silent, we are slow.
            if !worker.is_waiting() {
                worker.may_hold = false;
                silent += 1;
            }
        }
        actions.push(Action::Note(Note::GraceOver { workers: silent }));
        self.dispatch_soon(now);
    }
}

fn items_of(held: &Held) -> Vec<ChunkItem> {
    let runs = held.jobs().flat_map(|(job, map)| map.iter().map(move |(range, holding)| (job, range, holding)));
    runs.map(|(job, range, holding)| ChunkItem::new(job, range, holding.attempt, 0)).collect()
}
