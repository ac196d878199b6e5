//! Who can be asked now, and who first.

use std::collections::BTreeMap;

use wire::{Instant, PeerId};

use crate::FetchError;

#[derive(Clone, Copy, Default, Debug)]
struct Holder {
    /// The last sign of life.
    heard_at: Instant,
    /// It sent something wrong: not to be asked until then.
    rests_until: Option<Instant>,
    /// It is busy: not to be asked until then.
    pauses_until: Option<Instant>,
    /// It has not answered: only asked if there is nobody else, until then.
    slow_until: Option<Instant>,
}

/// All holders, the best first.
#[derive(Default, Debug)]
pub(super) struct Holders {
    order: Vec<PeerId>,
    holders: BTreeMap<PeerId, Holder>,
}

impl Holders {
    /// Takes a new list; returns those that were on the old one only.
    pub(super) fn replace(&mut self, peers: &[PeerId]) -> Vec<PeerId> {
        let gone = self.order.iter().copied().filter(|peer| !peers.contains(peer)).collect();
        self.order = peers.to_vec();
        self.holders.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            self.holders.entry(*peer).or_default();
        }
        gone
    }

    pub(super) fn is_known(&self, peer: PeerId) -> bool {
        self.holders.contains_key(&peer)
    }

    pub(super) fn rests(&self, peer: PeerId) -> bool {
        self.holders.get(&peer).is_some_and(|holder| holder.rests_until.is_some())
    }

    /// Whether there is a holder, and `holds` of each.
    pub(super) fn all(&self, holds: impl Fn(PeerId) -> bool) -> bool {
        !self.order.is_empty() && self.order.iter().all(|peer| holds(*peer))
    }

    /// The best that may be asked; `preferred` if it is as good as any.
    pub(super) fn choose(&self, preferred: Option<PeerId>, refused: &BTreeMap<PeerId, FetchError>) -> Option<PeerId> {
        let may = self.order.iter().filter(|peer| {
            let holder = &self.holders[peer];
            holder.rests_until.is_none() && holder.pauses_until.is_none() && !refused.contains_key(peer)
        });
        // Of several slow ones the one that has been so for the longest.
        may.min_by_key(|peer| (self.holders[peer].slow_until, preferred != Some(**peer))).copied()
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

    pub(super) fn rest(&mut self, peer: PeerId, until: Instant) {
        if let Some(holder) = self.holders.get_mut(&peer) {
            holder.rests_until = Some(until);
        }
    }

    pub(super) fn pause(&mut self, peer: PeerId, until: Instant) {
        if let Some(holder) = self.holders.get_mut(&peer) {
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
        }
    }

    /// When somebody may be asked again who may not now.
    pub(super) fn next_change(&self) -> Option<Instant> {
        self.holders.values().flat_map(|holder| [holder.rests_until, holder.pauses_until]).flatten().min()
    }
}
