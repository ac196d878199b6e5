//! Whether the masters' states are still one: each tells the others what its own has come to, and one that a majority of
//! the others contradicts ends.
//!
//! Masters that applied the same entries hold the same state, unless a disk, a memory or a program was wrong. That would
//! show months later, in somebody's results; so every so many entries the chain of everything that was applied is compared.

use std::collections::{BTreeMap, VecDeque};

use wire::{FixedPart, Hash, Instant, NodeId, StateHash, U64};

use super::{Action, Core};

/// Entries between two comparisons.
const INTERVAL: u64 = 1024;
/// Hashes of its own that a master remembers: the others may be that much later.
const KEPT: usize = 16;
/// Ticks between two tellings of the same hash: nothing else notices that one was lost.
const REPEAT_TICKS: u32 = 50;

#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Our own, by index, oldest first.
    own: VecDeque<(u64, Hash)>,
    /// What each of the others told last.
    told: BTreeMap<NodeId, (u64, Hash)>,
    repeated_at: Option<Instant>,
}

impl Core {
    /// Tells the others what our state is, where that is due.
    pub(super) fn publish_hash(&mut self, actions: &mut Vec<Action>) {
        let (index, hash) = (self.state.index, self.state.chain);
        if !index.is_multiple_of(INTERVAL) || self.group.is_lone() {
            return;
        }
        self.compared.own.push_back((index, hash));
        if self.compared.own.len() > KEPT {
            self.compared.own.pop_front();
        }
        self.tell_hash(actions);
        self.compare_hashes(actions);
    }

    /// Tells it again.
    pub(super) fn repeat_hash(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let interval = self.config.timings.tick_ms * REPEAT_TICKS;
        if self.compared.repeated_at.is_none_or(|at| now.since(at) >= interval) {
            self.compared.repeated_at = Some(now);
            self.tell_hash(actions);
        }
    }

    fn tell_hash(&self, actions: &mut Vec<Action>) {
        let Some((index, hash)) = self.compared.own.back() else { return };
        let frame =
            StateHash { index: U64::new(*index), hash: *hash, ..StateHash::DEFAULT }.frame(self.config.node, b"");
        for to in self.group.members().filter(|member| *member != self.config.node) {
            actions.push(Action::ToMaster { to, frame: frame.clone(), payload: Vec::new() });
        }
    }

    pub(super) fn on_state_hash(&mut self, from: NodeId, index: u64, hash: Hash, actions: &mut Vec<Action>) {
        self.compared.told.insert(from, (index, hash));
        self.compare_hashes(actions);
    }

    /// Ends where more than half of the others have the same state as each other, and another than ours.
    fn compare_hashes(&self, actions: &mut Vec<Action>) {
        let others = self.group.members().count() - 1;
        for (index, own) in &self.compared.own {
            let mut against: BTreeMap<Hash, usize> = BTreeMap::new();
            for (_, hash) in self.compared.told.values().filter(|(of, hash)| of == index && hash != own) {
                *against.entry(*hash).or_default() += 1;
            }
            if against.values().any(|count| *count * 2 > others) {
                let why = format!("at entry {index} the state of most other masters is another than this one's");
                return actions.push(Action::Halt { why });
            }
        }
    }
}
