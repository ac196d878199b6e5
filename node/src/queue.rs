//! Messages for one peer that libzmq would not take at once.
//!
//! Every message that matters is acknowledged and repeated by its sender, so an old one is not worth keeping: what is
//! here longer than `AGE_MAX` is dropped, lest a peer that returns is met by a minute of stale heartbeats.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wire::Instant;

use crate::Frames;

/// How long a message waits for its peer.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    messages: VecDeque<(Instant, Frames)>,
    bytes: usize,
    /// Bytes in all queues of the endpoint.
    total: Arc<AtomicUsize>,
}

/// What a queue may hold, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) bytes_max: usize,
    pub(crate) total_max: usize,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// A queue that counts into `total`.
    pub(crate) fn new(total: Arc<AtomicUsize>) -> Queue {
        Queue { messages: VecDeque::new(), bytes: 0, total }
    }

    /// Keeps the message unless this queue, or all queues together, would then hold more than there is room for.
    pub(crate) fn push(&mut self, frames: Frames, now: Instant, room: Room) -> bool {
        let size = cost(&frames);
        if self.bytes + size > room.bytes_max || self.total.load(Ordering::Relaxed) + size > room.total_max {
            return false;
        }
        self.bytes += size;
        self.total.fetch_add(size, Ordering::Relaxed);
        self.messages.push_back((now, frames));
        true
    }

    /// The message that is next to go, after dropping those that have waited too long.
    pub(crate) fn front(&mut self, now: Instant) -> Option<&mut Frames> {
        while self.messages.front().is_some_and(|(since, _)| now.since(*since) > AGE_MAX) {
            self.pop();
        }
        self.messages.front_mut().map(|(_, frames)| frames)
    }

    pub(crate) fn pop(&mut self) {
        if let Some((_, frames)) = self.messages.pop_front() {
            let size = cost(&frames);
            self.bytes -= size;
            self.total.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes held for a message; small ones are not free either.
fn cost(frames: &Frames) -> usize {
    const FRAME_COST: usize = 128;
    frames.size() + frames.0.len() * FRAME_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { bytes_max: 10_000, total_max: 15_000 };

    fn fill(queue: &mut Queue) -> usize {
        let mut held = 0;
        while queue.push(vec![0; 872].into(), Instant(0), ROOM) {
            held += 1;
        }
        held
    }

    #[test]
    fn queues_refuse_what_is_beyond_their_bytes_alone_and_together() {
        let total = Arc::new(AtomicUsize::new(0));
        let (mut first, mut second) = (Queue::new(total.clone()), Queue::new(total.clone()));
        assert_eq!(fill(&mut first), 10);
        assert_eq!(fill(&mut second), 5);
        first.pop();
        assert_eq!(fill(&mut second), 1);
        drop(second);
        assert_eq!(fill(&mut first), 1);
        drop(first);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_has_waited_too_long_is_dropped() {
        let mut queue = Queue::default();
        assert!(queue.push(vec![1].into(), Instant(0), ROOM));
        assert!(queue.push(vec![2].into(), Instant(0) + AGE_MAX, ROOM));
        let front = queue.front(Instant(1) + AGE_MAX).unwrap();
        assert_eq!(*front.0[0], [2]);
        queue.pop();
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
    }
}
