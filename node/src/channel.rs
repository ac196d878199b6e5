//! Bounded channels between the thread that owns a core and its helpers.
//!
//! The owner never blocks on a channel: it only tries. Helpers may block. What a helper sends rings the owner's bell
//! after it has been pushed, so that the owner finds it.

pub use crossbeam::channel::{Receiver, RecvTimeoutError, TrySendError};
use crossbeam::channel::{SendError, Sender, TryRecvError, bounded};

use crate::Bell;

/// A channel from helpers to the owner that holds at most `items_max`.
pub fn to_owner<T>(items_max: usize, bell: &Bell) -> (Outbox<T>, Inbox<T>) {
    let (tx, rx) = bounded(items_max);
    (Outbox { tx, bell: bell.clone() }, Inbox { rx })
}

/// A channel from the owner to helpers that holds at most `items_max`. Helpers block on the receiver.
pub fn to_helper<T>(items_max: usize) -> (Orders<T>, Receiver<T>) {
    let (tx, rx) = bounded(items_max);
    (Orders { tx }, rx)
}

/// A helper's end: pushes, then rings.
#[derive(Debug)]
pub struct Outbox<T> {
    tx: Sender<T>,
    bell: Bell,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone(), bell: self.bell.clone() }
    }
}

impl<T> Outbox<T> {
    /// Waits for room. An error means that the owner is gone, so the helper should end.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        let sent = self.tx.send(item);
        self.bell.ring();
        sent
    }

    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let sent = self.tx.try_send(item);
        self.bell.ring();
        sent
    }
}

/// The owner's end of what helpers send.
#[derive(Debug)]
pub struct Inbox<T> {
    rx: Receiver<T>,
}

impl<T> Inbox<T> {
    /// The next item; an error says whether there is none now or every sender is gone.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.rx.try_recv()
    }
}

/// The owner's end of what helpers do.
#[derive(Debug)]
pub struct Orders<T> {
    tx: Sender<T>,
}

impl<T> Orders<T> {
    /// Gives the item back when the channel is full: the owner keeps it in its own bounded queue.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        self.tx.try_send(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rung_for_is_there() {
        let bell = Bell::new().unwrap();
        let (outbox, inbox) = to_owner(1, &bell);
        outbox.send(7).unwrap();
        assert!(!bell.fall_asleep());
        assert_eq!(outbox.try_send(8), Err(TrySendError::Full(8)));
        assert_eq!(inbox.try_recv(), Ok(7));
        drop(outbox);
        assert_eq!(inbox.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn the_owner_gets_back_what_has_no_room() {
        let (orders, tasks) = to_helper(1);
        orders.try_send(1).unwrap();
        assert_eq!(orders.try_send(2), Err(TrySendError::Full(2)));
        assert_eq!(tasks.recv(), Ok(1));
    }
}
