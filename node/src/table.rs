//! The peers that have connected to us: a stable number for each routing id, and what is known of its holder.
//!
//! ZeroMQ does not say when a peer leaves. One that has left is forgotten when something is sent to it, or, when the
//! table is full, because it has been silent longest.

use std::collections::HashMap;

use wire::PeerId;

use crate::admission::Grant;
use crate::endpoint::Identity;
use crate::queue::Queue;

pub(crate) struct Guest {
    /// Which of our sockets it came to.
    pub(crate) router: usize,
    pub(crate) routing_id: Vec<u8>,
    /// The User-Id that ZAP gave its connection; empty on a local socket.
    pub(crate) user: String,
    /// `None` = its key is no longer admitted.
    pub(crate) grant: Option<Grant>,
    /// The version of the allow-list that the grant comes from.
    pub(crate) version: u64,
    pub(crate) identity: Identity,
    /// It puts an empty frame before its messages, as REQ does, and wants one before the answers.
    pub(crate) has_delimiter: bool,
    pub(crate) queue: Queue,
    /// One of its refusals has been logged.
    pub(crate) is_noted: bool,
    /// The turn in which it was last heard.
    pub(crate) heard: u64,
}

pub(crate) struct Table {
    guests: HashMap<PeerId, Guest>,
    /// For each of our sockets, by its index.
    by_routing_id: Vec<HashMap<Vec<u8>, PeerId>>,
    guests_max: usize,
}

impl Table {
    pub(crate) fn new(routers: usize, guests_max: usize) -> Table {
        Table { guests: HashMap::new(), by_routing_id: vec![HashMap::new(); routers], guests_max }
    }

    pub(crate) fn find(&self, router: usize, routing_id: &[u8]) -> Option<PeerId> {
        self.by_routing_id[router].get(routing_id).copied()
    }

    pub(crate) fn get(&self, peer: PeerId) -> Option<&Guest> {
        self.guests.get(&peer)
    }

    pub(crate) fn get_mut(&mut self, peer: PeerId) -> Option<&mut Guest> {
        self.guests.get_mut(&peer)
    }

    /// Takes in a guest; one that had its routing id before is forgotten.
    pub(crate) fn insert(&mut self, peer: PeerId, guest: Guest) {
        if self.guests.len() >= self.guests_max {
            self.forget_silent();
        }
        if let Some(before) = self.by_routing_id[guest.router].insert(guest.routing_id.clone(), peer) {
            self.guests.remove(&before);
        }
        self.guests.insert(peer, guest);
    }

    pub(crate) fn remove(&mut self, peer: PeerId) {
        if let Some(guest) = self.guests.remove(&peer) {
            self.by_routing_id[guest.router].remove(&guest.routing_id);
        }
    }

    /// Forgets the quarter that has been silent longest: a quarter at a time, so that a flood of newcomers costs little.
    fn forget_silent(&mut self) {
        let mut by_age: Vec<(u64, PeerId)> = self.guests.iter().map(|(peer, guest)| (guest.heard, *peer)).collect();
        by_age.sort_unstable();
        let count = by_age.len().div_ceil(4);
        tracing::warn!(count, "the table of peers is full: those silent longest are forgotten");
        for (_, peer) in by_age.into_iter().take(count) {
            self.remove(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::{ClientKey, Role};

    use super::*;
    use crate::PeerClass;

    fn guest(routing_id: u64, heard: u64) -> Guest {
        Guest {
            router: 0,
            routing_id: routing_id.to_be_bytes().to_vec(),
            user: String::new(),
            grant: Some(Grant::Local),
            version: 0,
            identity: Identity { role: Role::Client, node: None, key: ClientKey::default(), class: PeerClass::Control },
            has_delimiter: false,
            queue: Queue::default(),
            is_noted: false,
            heard,
        }
    }

    #[test]
    fn a_full_table_forgets_those_silent_longest() {
        let mut table = Table::new(1, 8);
        for n in 0..1_000 {
            table.insert(PeerId(n), guest(n, n));
            // The first guest never falls silent.
            table.get_mut(PeerId(0)).unwrap().heard = n;
            assert!(table.guests.len() <= 8);
            assert_eq!(table.guests.len(), table.by_routing_id[0].len());
        }
        assert_eq!(table.find(0, &0u64.to_be_bytes()), Some(PeerId(0)));
        assert_eq!(table.find(0, &1u64.to_be_bytes()), None);
    }

    #[test]
    fn who_takes_over_a_routing_id_is_another_peer() {
        let mut table = Table::new(1, 8);
        table.insert(PeerId(1), guest(5, 0));
        table.insert(PeerId(2), guest(5, 1));
        assert_eq!(table.find(0, &5u64.to_be_bytes()), Some(PeerId(2)));
        assert!(table.get(PeerId(1)).is_none());
        table.remove(PeerId(2));
        assert_eq!(table.find(0, &5u64.to_be_bytes()), None);
    }
}
