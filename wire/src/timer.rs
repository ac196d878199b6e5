//! The table of a core's timers: which are set, and which is due next.

use std::collections::BTreeMap;

use crate::Instant;

/// Deadlines by timer. `K` is the role's `enum Timer`, each variant with a comment.
#[derive(Clone, Debug)]
pub struct TimerTable<K: Ord + Copy> {
    deadlines: BTreeMap<K, Instant>,
}

impl<K: Ord + Copy> Default for TimerTable<K> {
    fn default() -> Self {
        Self { deadlines: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> TimerTable<K> {
    /// Sets `timer` to go off at `deadline`, whether or not it was set.
    pub fn set(&mut self, timer: K, deadline: Instant) {
        self.deadlines.insert(timer, deadline);
    }

    /// Sets `timer` unless it is set to go off earlier.
    pub fn set_earlier(&mut self, timer: K, deadline: Instant) {
        let entry = self.deadlines.entry(timer).or_insert(deadline);
        *entry = (*entry).min(deadline);
    }

    pub fn stop(&mut self, timer: K) {
        self.deadlines.remove(&timer);
    }

    pub fn is_set(&self, timer: K) -> bool {
        self.deadlines.contains_key(&timer)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.values().min().copied()
    }

    /// Takes one timer that is due at `now`; call until `None`.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (timer, _) =
            self.deadlines.iter().filter(|(_, at)| **at <= now).min_by_key(|(timer, at)| (**at, **timer))?;
        let timer = *timer;
        self.deadlines.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_go_off_in_order_and_once() {
        let mut timers = TimerTable::default();
        timers.set('b', Instant(2));
        timers.set('a', Instant(3));
        timers.set_earlier('a', Instant(1));
        assert_eq!(timers.next_deadline(), Some(Instant(1)));
        assert_eq!(timers.pop_due(Instant(5)), Some('a'));
        assert_eq!(timers.pop_due(Instant(5)), Some('b'));
        assert_eq!(timers.pop_due(Instant(5)), None);
    }
}
