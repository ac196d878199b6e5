//! How much room a worker gives: about a tenth of a second of work, by how long its chunks have taken.
//!
//! Too little and slots idle for a round trip to the load balancer; too much and the tail of a job waits behind one
//! worker's hoard. So the tray is measured in time, not in chunks.

use wire::Duration;

use super::{QUEUED_CHUNKS_MAX, UNCONFIRMED_MAX};

/// The work that waits here, as time.
const QUEUED_TIME: Duration = Duration::from_millis(100);
/// Chunks that wait for each slot, however long they take.
const QUEUED_PER_SLOT_MIN: u32 = 2;
/// A measurement counts this part of the mean.
const MEAN_WEIGHT: u64 = 8;

/// How fast chunks go here, and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// A moving mean; `None` until a chunk has ended.
    chunk_time_us: Option<u64>,
    /// The credit that load balancers know of.
    pub(super) told: u32,
}

impl Pace {
    /// Counts a chunk that took so long from its start until its slot was free again.
    pub(super) fn on_chunk(&mut self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = self.chunk_time_us.map_or(took, |mean| mean - mean / MEAN_WEIGHT + took / MEAN_WEIGHT);
        self.chunk_time_us = Some(mean.max(1));
    }

    /// Chunks that may wait here.
    pub(super) fn queue_max(&self, slots: u32) -> u32 {
        let least = slots.saturating_mul(QUEUED_PER_SLOT_MIN).min(QUEUED_CHUNKS_MAX);
        let Some(chunk_time_us) = self.chunk_time_us else { return least };
        let per_slot = QUEUED_TIME.as_micros() as u64 / chunk_time_us;
        let wanted = per_slot.saturating_mul(slots.into()).min(QUEUED_CHUNKS_MAX.into());
        (wanted as u32).max(least)
    }

    /// What there is room for when `live` chunks wait or run and `unconfirmed` have ended.
    pub(super) fn credit(&self, slots: u32, live: u64, unconfirmed: usize, takes_more: bool) -> u32 {
        if !takes_more {
            return 0;
        }
        let room = (u64::from(slots) + u64::from(self.queue_max(slots))).saturating_sub(live);
        let shelf = (UNCONFIRMED_MAX as u64).saturating_sub(live + unconfirmed as u64);
        room.min(shelf) as u32
    }

    /// Freed room of this size is worth telling at once.
    pub(super) fn room_step(&self, slots: u32) -> u32 {
        (self.queue_max(slots) / 8).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmeasured_worker_queues_two_chunks_for_each_slot() {
        let pace = Pace::default();
        assert_eq!(pace.credit(2, 0, 0, true), 2 + 4);
        assert_eq!(pace.credit(2, 5, 0, true), 1);
        assert_eq!(pace.credit(2, 9, 0, true), 0);
        assert_eq!(pace.room_step(2), 1);
    }

    #[test]
    fn short_chunks_are_queued_by_the_hundred_and_long_ones_by_the_pair() {
        let mut pace = Pace::default();
        pace.on_chunk(Duration::from_micros(500));
        assert_eq!(pace.queue_max(2), 400);
        pace.on_chunk(Duration::from_micros(1));
        (0..100).for_each(|_| pace.on_chunk(Duration::from_micros(1)));
        assert_eq!(pace.queue_max(2), QUEUED_CHUNKS_MAX);
        (0..100).for_each(|_| pace.on_chunk(Duration::from_secs(5)));
        assert_eq!(pace.queue_max(2), 4);
    }

    #[test]
    fn a_full_shelf_takes_nothing_more() {
        let pace = Pace::default();
        assert_eq!(pace.credit(2, 0, UNCONFIRMED_MAX - 1, true), 1);
        assert_eq!(pace.credit(2, 1, UNCONFIRMED_MAX - 1, true), 0);
        assert_eq!(pace.credit(2, 0, 0, false), 0);
    }
}
