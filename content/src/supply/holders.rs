//! Who can be asked now, and who first.

use std::collections::BTreeMap;

use wire::{FileId, Instant, PeerId};

use super::doubt::{Doubts, Of};

/// A holder with something amiss in so many files at a time has more amiss than these.
pub(super) const FILES_MAX: usize = 4;

#[derive(Default, Debug)]
struct Holder {
    name: String,
    /// The last sign of life.
    heard_at: Instant,
    /// It sent wrong things of several files: only asked if there is nobody else, until then.
    rests_until: Option<Instant>,
    /// It is busy: not to be asked until then.
    pauses_until: Option<Instant>,
    /// It has not answered: only asked if there is nobody else, until then.
    slow_until: Option<Instant>,
    /// Files that it is not to be asked for until then.
    not_ready: BTreeMap<FileId, Instant>,
}

/// All holders, the best first.
#[derive(Default, Debug)]
pub(super) struct Holders {
    order: Vec<PeerId>,
    holders: BTreeMap<PeerId, Holder>,
}

impl Holders {
    /// Takes a new list; returns those that were on the old one only.
    pub(super) fn replace(&mut self, peers: &[(PeerId, String)]) -> Vec<PeerId> {
        let before = std::mem::take(&mut self.order);
        self.order = peers.iter().map(|(peer, _)| *peer).collect();
        let gone: Vec<PeerId> = before.into_iter().filter(|peer| !self.order.contains(peer)).collect();
        gone.iter().for_each(|peer| drop(self.holders.remove(peer)));
        for (peer, name) in peers {
            self.holders.entry(*peer).or_default().name.clone_from(name);
        }
        gone
    }

    pub(super) fn is_known(&self, peer: PeerId) -> bool {
        self.holders.contains_key(&peer)
    }

    pub(super) fn name(&self, peer: PeerId) -> &str {
        self.holders.get(&peer).map_or("", |holder| &holder.name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PeerId> {
        self.order.iter().copied()
    }

    /// Whether there is a holder, and `holds` of each.
    pub(super) fn all(&self, holds: impl Fn(PeerId) -> bool) -> bool {
        !self.order.is_empty() && self.order.iter().all(|peer| holds(*peer))
    }

    /// The best that may be asked; `preferred` if it is as good as any.
    pub(super) fn choose(&self, preferred: Option<PeerId>, doubts: &Doubts, of: Of, now: Instant) -> Option<PeerId> {
        let may = |peer: &PeerId| self.holders[peer].pauses_until.is_none() && !doubts.bar(*peer, of, now);
        self.iter().filter(may).min_by_key(|peer| {
            let holder = &self.holders[peer];
            // Of several slow ones the one that has been so for the longest.
            (holder.slow_until, holder.rests_until.is_some(), doubts.has_wrong(*peer, now), preferred != Some(*peer))
        })
    }

    pub(super) fn heard(&mut self, peer: PeerId, now: Instant) {
        if let Some(holder) = self.holders.get_mut(&peer) {
            holder.heard_at = now;
            holder.slow_until = None;
        }
    }

    pub(super) fn heard_at(&self, peer: PeerId) -> Instant {
        self.holders.get(&peer).map_or(Instant(0), |holder| holder.heard_at)
    }

    /// Has it asked last; whether it was not before.
    pub(super) fn rest(&mut self, peer: PeerId, until: Instant) -> bool {
        self.holders.get_mut(&peer).is_some_and(|holder| holder.rests_until.replace(until).is_none())
    }

    pub(super) fn pause(&mut self, peer: PeerId, until: Instant) {
        if let Some(holder) = self.holders.get_mut(&peer) {
            holder.pauses_until = Some(until);
        }
    }

    /// Notes that a file is not ready there. Where several are not, it is the holder that is not ready.
    pub(super) fn not_ready(&mut self, peer: PeerId, file: FileId, until: Instant) {
        let Some(holder) = self.holders.get_mut(&peer) else { return };
        holder.not_ready.insert(file, until);
        if holder.not_ready.len() >= FILES_MAX {
            holder.pauses_until = Some(until);
        }
    }

    pub(super) fn slow(&mut self, peer: PeerId, until: Instant) {
        if let Some(holder) = self.holders.get_mut(&peer) {
            holder.slow_until = Some(until);
        }
    }

    /// Ends what has lasted long enough.
    pub(super) fn wake(&mut self, now: Instant) {
        for holder in self.holders.values_mut() {
            for until in [&mut holder.rests_until, &mut holder.pauses_until, &mut holder.slow_until] {
                until.take_if(|until| *until <= now);
            }
            holder.not_ready.retain(|_, until| now < *until);
        }
    }

    /// When somebody may be asked again who may not now.
    pub(super) fn next_change(&self) -> Option<Instant> {
        let all = self.holders.values();
        all.flat_map(|holder| holder.not_ready.values().copied().chain(holder.pauses_until)).min()
    }
}
