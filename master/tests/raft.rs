//! Nothing is promised before it is durable, and what is durable comes back.

use crate::support::frames::*;
use crate::support::*;
use master::core::{Event, RecoverError, Recovered};
use wire::{Duration, JobId, Role};

#[test]
fn a_lone_master_leads_as_soon_as_its_vote_is_durable() {
    let mut master = a_master().slow_disk().build();
    assert!(!master.core.is_ready());
    let refused = master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    assert_eq!(refused, ["1: error not_ready #1: this master is starting"]);
    assert_eq!(master.unwritten(), 1, "its vote, and the first entry of its term");
    master.persist_one();
    assert!(master.core.is_ready());
}

#[test]
fn nothing_is_acknowledged_before_it_is_persisted() {
    let mut master = a_master().slow_disk().build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    assert_eq!(master.receives(CLIENT_PEER, submit(7, J1, &a_spec(3))), [""; 0]);
    assert_eq!(master.unwritten(), 1);
    assert_eq!(master.wait(Duration::from_secs(10)), [""; 0]);
    assert!(master.core.state().jobs.is_empty());
    assert_eq!(master.step(Event::Persisted { ticket: NO_TICKET }), []);

    assert_eq!(master.persist_one(), ["1: job_accepted #7 number 1"]);
}

#[test]
fn what_comes_in_one_turn_is_one_entry() {
    let mut master = a_master().build();
    let before = master.core.state().index;
    let said = master.receives_all(&[
        (CLIENT_PEER, submit(1, J1, &a_spec(1))),
        (CLIENT_PEER, submit(2, J2, &a_spec(1))),
        (CLIENT_PEER, record_file(3, &a_file(b"x"))),
    ]);
    let expected = ["1: job_accepted #1 number 1", "1: job_accepted #2 number 2", "1: committed #3 changed 1"];
    assert_eq!(said, expected);
    assert_eq!(master.core.state().index, before + 1);
}

#[test]
fn what_comes_while_the_disk_writes_gathers_into_one_entry() {
    let mut master = a_master().slow_disk().build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    let before = master.core.state().index;
    for n in 1..=4u8 {
        assert_eq!(master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &a_spec(1))), [""; 0]);
        assert_eq!(master.unwritten(), 1);
    }
    assert!(master.core.next_deadline() > Some(master.now), "it does not spin meanwhile");
    assert_eq!(master.persist_one().len(), 1);
    master.tick();
    assert_eq!(master.persist_one().len(), 3);
    assert_eq!(master.core.state().index, before + 2);
}

#[test]
fn what_fills_an_entry_does_not_wait_for_the_end_of_the_turn() {
    let mut master = a_master().limits(|limits| limits.entry_bytes_max = 200).build();
    let before = master.core.state().index;
    let jobs: Vec<_> = (1..=4).map(|n| (CLIENT_PEER, submit(n, JobId([n as u8; 16]), &a_spec(1)))).collect();
    assert_eq!(master.receives_all(&jobs).len(), 4);
    assert_eq!(master.core.state().index, before + 2);
}

#[test]
fn a_crash_before_the_disk_answered_loses_only_what_was_not_acknowledged() {
    let mut master = a_master().slow_disk().build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    assert_eq!(master.persist_one(), ["1: job_accepted #1 number 1"]);
    master.receives(CLIENT_PEER, submit(2, J2, &a_spec(1)));

    let mut master = master.crash_and_restart();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    assert_eq!(master.core.state().jobs.keys().collect::<Vec<_>>(), [&J1]);
    assert_eq!(master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1))), ["1: job_accepted #1 number 1"]);
}

#[test]
fn a_restart_replays_the_log_to_the_same_state() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(10)));
    master.receives(W1_PEER, succeeded(W1, J1, &[a_run(2, &[a_result(), a_result()])]).frame());
    master.receives(CLIENT_PEER, cancel(2, J1, 5, 1));
    let before = master.core.state().clone();

    let mut master = master.crash_and_restart();
    assert!(master.core.is_ready());
    let state = master.core.state();
    assert_eq!((&state.jobs, &state.files, state.epoch), (&before.jobs, &before.files, before.epoch));
    assert_eq!(state.nodes[&MASTER].boot, boot(2));
    assert_eq!(master.receives(CLIENT_PEER, submit(9, J2, &a_spec(1))), ["1: job_accepted #9 number 2"]);
    assert!(master.core.state().stamp >= before.stamp);
}

#[test]
fn a_snapshot_cuts_the_log_and_a_restart_from_it_gives_the_same_state() {
    let mut master = a_master().snapshot_entries(20).limits(|limits| limits.log_entries_kept = 5).build();
    for n in 1..=50u8 {
        let spec = a_spec(10);
        let accepted = master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &spec));
        assert_eq!(accepted, [format!("1: job_accepted #{n} number {n}")]);
    }
    master.receives(W1_PEER, succeeded(W1, JobId([3; 16]), &[a_run(2, &[a_result()])]).frame());
    assert!(master.disk.snapshot.is_some());
    assert!(master.disk.entries.len() <= 26, "{} entries are kept", master.disk.entries.len());

    let mut before = master.core.state().clone();
    let master = master.crash_and_restart();
    let after = master.core.state();
    // The restart itself added an empty entry, and the master's new boot.
    (before.index, before.chain, before.stamp) = (after.index, after.chain, after.stamp);
    before.nodes = after.nodes.clone();
    assert!(before.encode() == after.encode());
}

#[test]
fn a_slow_snapshot_stops_neither_requests_nor_the_log() {
    let mut master = a_master().snapshot_entries(5).slow_disk().build();
    let mut finished = 0;
    for n in 1..=12u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &a_spec(1)));
        while finished < 100 && master.unwritten() > 0 {
            finished += 1;
            master.persist_one();
            master.tick();
        }
    }
    let mut master = master.crash_and_restart();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    assert_eq!(master.core.state().jobs.len(), 11, "the first came before it led");
}

#[test]
fn a_full_disk_refuses_requests_until_it_has_room() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    master.step(Event::DiskFull);
    let refused = master.receives(CLIENT_PEER, submit(2, J2, &a_spec(1)));
    assert_eq!(refused, ["1: error disk_full #2: the master's disk is full"]);
    assert_eq!(master.receives(CLIENT_PEER, submit(3, J1, &a_spec(1))), ["1: job_accepted #3 number 1"]);
    master.step(Event::Persisted { ticket: NO_TICKET });
    assert_eq!(master.receives(CLIENT_PEER, submit(4, J2, &a_spec(1))), ["1: job_accepted #4 number 2"]);
}

#[test]
fn a_disk_that_is_down_to_its_reserve_takes_only_what_ends_or_frees_something() {
    let mut master = a_master().build();
    master.enthrones(1);
    for (n, job) in [(1, J1), (2, J2)] {
        master.receives(CLIENT_PEER, submit(n, job, &a_spec(2)));
    }
    master.step(Event::DiskLow { is_low: true });
    let full = "the master's disk is full";
    let refused = master.receives(CLIENT_PEER, submit(3, JobId([3; 16]), &a_spec(1)));
    assert_eq!(refused, [format!("1: error disk_full #3: {full}")]);
    let refused = master.receives(CLIENT_PEER, record_file(4, &a_file(b"a")));
    assert_eq!(refused, [format!("1: error disk_full #4: {full}")]);

    let done = master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result(), a_result()])]).frame());
    assert!(done.iter().any(|said| said.contains("confirmed")), "{done:?}");
    let done = master.receives(CLIENT_PEER, cancel(5, J2, 0, u32::MAX));
    assert!(done.iter().any(|said| said.contains("committed #5")), "{done:?}");
    let done = master.receives(W2_PEER, hello(6, &a_node(W2, Role::Worker, 1)));
    assert!(done.iter().any(|said| said.contains("welcome")), "{done:?}");

    master.step(Event::DiskLow { is_low: false });
    let accepted = master.receives(CLIENT_PEER, submit(7, JobId([3; 16]), &a_spec(1)));
    assert_eq!(accepted, ["1: job_accepted #7 number 3"]);
}

#[test]
fn what_waits_for_room_on_the_disk_says_so_when_it_is_asked_again() {
    let mut master = a_master().slow_disk().build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    assert_eq!(master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1))), [""; 0]);
    master.step(Event::DiskFull);
    let waits = master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    assert_eq!(waits, ["1: error busy #1: the master's disk is full: the request waits for room"]);
    assert_eq!(master.persist_one(), ["1: job_accepted #1 number 1"]);
}

#[test]
fn a_disk_that_lost_something_is_refused() {
    let mut master = a_master().build();
    for n in 1..=5u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &a_spec(1)));
    }
    let start = |disk: Recovered| {
        let config = master::CoreConfig::new(MASTER, boot(2), RECEIPT_KEY);
        master::core::Core::new(config, disk, wire::Instant(0)).map(|_| ())
    };
    let mut gap = master.disk.clone();
    gap.entries.remove(3);
    assert!(matches!(start(gap), Err(RecoverError::Log(_))));
    let mut short = master.disk.clone();
    short.entries.truncate(2);
    assert!(matches!(start(short), Err(RecoverError::Log(_))));
    let spoiled = Recovered { snapshot: Some(vec![1, 99, 3]), ..master.disk.clone() };
    assert!(matches!(start(spoiled), Err(RecoverError::Snapshot(_))));
    assert_eq!(start(master.disk.clone()), Ok(()));
}

#[test]
fn a_master_outside_of_its_group_is_refused() {
    let mut config = master::CoreConfig::new(MASTER, boot(1), RECEIPT_KEY);
    config.members = vec![W1, W2];
    let refused = master::core::Core::new(config, Recovered::default(), wire::Instant(0)).map(|_| ());
    assert_eq!(refused, Err(RecoverError::NoMember { members: 2 }));
}

#[test]
fn two_runs_of_the_same_events_do_the_same() {
    let run = || {
        let mut master = a_master().build();
        master.enthrones(1);
        master.receives(CLIENT_PEER, submit(1, J1, &a_spec(10)));
        let said = master.wait(Duration::from_secs(3));
        (said, master.disk, master.decisions)
    };
    assert_eq!(run(), run());
}
