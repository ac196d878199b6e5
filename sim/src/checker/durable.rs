//! Nothing is said before a disk has it: neither by a master to its group, nor by the group to anybody.
//!
//! These are the promises that a crash of all machines at once would show to be lies; here they are held against the
//! disks at the moment at which they are given.

use master::core::raft_id;
use wire::{Message, Role};

use crate::network::Host;
use crate::world::Machine;

/// Numbers of raft's steps in a frame.
const APPEND_RESPONSE: u8 = 1;
const VOTE_RESPONSE: u8 = 3;

/// A master says something.
pub fn on_sent(machines: &[Machine], from: Host, to: Host, message: &Message<'_>) {
    let machine = &machines[from.0];
    let name = &machine.name;
    // Only these promise something that a disk has to keep.
    if let Message::RaftMessage(step, _) = message {
        let disk = machine.master_disk().expect("a master has a disk");
        let (term, index) = (step.term.get(), step.index.get());
        if step.reject != 0 {
            return;
        }
        if step.step == APPEND_RESPONSE {
            let is_there = index <= disk.snapshot_index || disk.entry(index).is_some();
            assert!(is_there, "{name} says that it has entry {index}, and it is not on its disk");
        } else if step.step == VOTE_RESPONSE {
            let kept = &disk.durable.hard_state;
            let is_there = kept.term > term || (kept.term == term && kept.vote == raft_id(machines[to.0].node));
            assert!(is_there, "{name} votes in term {term}, and its disk does not have it: {kept:?}");
        }
    } else if let Message::JobAccepted(accepted, _) = message {
        check_agreed(machines, from, accepted.index.get());
    } else if let Message::Committed(committed, _) = message {
        check_agreed(machines, from, committed.index.get());
    } else if let Message::ResultConfirmed(confirmed, _) = message {
        check_agreed(machines, from, confirmed.index.get());
    }
}

/// What is acknowledged is on the disks of more than half of the masters, whether or not they run.
fn check_agreed(machines: &[Machine], from: Host, index: u64) {
    let masters = machines.iter().filter(|machine| machine.role == Role::Master);
    let disks: Vec<_> = masters.filter_map(Machine::master_disk).collect();
    let own = machines[from.0].master_disk().expect("a master has a disk");
    let term = own.entry(index).map(|entry| entry.term);
    let have = disks.iter().filter(|disk| {
        index <= disk.snapshot_index
            || disk.entry(index).is_some_and(|entry| term.is_none_or(|term| term == entry.term))
    });
    let (have, all) = (have.count(), disks.len());
    let name = &machines[from.0].name;
    assert!(have * 2 > all, "{name} acknowledges entry {index}, which {have} of {all} disks have");
}
