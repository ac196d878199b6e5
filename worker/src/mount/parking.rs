//! Those who wait for bytes: each leaves a ticket and what is to be done when the bytes are here, and goes.
//!
//! No thread that answers the kernel ever waits itself: three of them serve a thousand programs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use content::{FetchError, Ticket};

use crate::supply::Block;

/// What has come for a ticket.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Bytes of the whole file.
    pub length: u64,
    /// The block that has just come; everything that was asked for is in the cache too.
    pub at_hand: Option<&'a Arc<Block>>,
}

type Parked = Box<dyn FnOnce(Result<Arrival<'_>, &FetchError>) + Send>;

/// What waits, by ticket.
#[derive(Default)]
pub struct Parking(Mutex<BTreeMap<Ticket, Parked>>);

impl fmt::Debug for Parking {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} wait", self.waiting().len())
    }
}

impl Parking {
    /// Has `then` called when the ticket is answered or fails; it must not wait for anything.
    pub fn park(&self, ticket: Ticket, then: impl FnOnce(Result<Arrival<'_>, &FetchError>) + Send + 'static) {
        self.waiting().insert(ticket, Box::new(then));
    }

    /// What the ticket waits for is here.
    pub fn answer(&self, ticket: Ticket, length: u64, at_hand: Option<&Arc<Block>>) {
        if let Some(then) = self.take(ticket) {
            then(Ok(Arrival { length, at_hand }));
        }
    }

    pub fn fail(&self, ticket: Ticket, why: &FetchError) {
        if let Some(then) = self.take(ticket) {
            then(Err(why));
        }
    }

    fn take(&self, ticket: Ticket) -> Option<Parked> {
        self.waiting().remove(&ticket)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Ticket, Parked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use wire::FileId;

    #[test]
    fn each_ticket_is_answered_once_with_what_came_for_it() {
        let parking = Parking::default();
        let (tx, rx) = channel();
        for number in 0..3 {
            let tx = tx.clone();
            parking.park(Ticket(number), move |came| {
                let bytes =
                    came.map(|came| came.at_hand.map(|block| block.bytes.to_vec())).map_err(ToString::to_string);
                tx.send((number, bytes)).expect("it is read");
            });
        }
        let block = Arc::new(Block { file: FileId::NIL, offset: 0, bytes: vec![7].into() });
        parking.answer(Ticket(1), 100, Some(&block));
        parking.answer(Ticket(1), 100, None);
        parking.answer(Ticket(0), 100, None);
        let why = FetchError::Local { what: "it".into(), why: "is not here".into() };
        parking.fail(Ticket(2), &why);
        let told: Vec<_> = rx.try_iter().collect();
        assert_eq!(told, [(1, Ok(Some(vec![7]))), (0, Ok(None)), (2, Err(why.to_string()))]);
    }
}
