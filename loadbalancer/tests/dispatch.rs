//! Which worker gets which chunks, and how many.

use crate::support::*;
use wire::job::JobSpec;
use wire::{ArraySpec, ChunkState};

#[test]
fn a_job_goes_to_the_worker_with_room_and_brings_its_body_once() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.submit(j(1), 10);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 4), 1)]);
    stage.accepts(&mut one, 1, 2, j(1), r(0, 4));
    assert_eq!(stage.said(), [request(w(1), 2, j(1), r(4, 2), 1)]);
}

#[test]
fn nothing_is_sent_beyond_the_room() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.submit(j(1), 10);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 4), 1)]);
    // The credit that was told before the worker had read number 1 does not count twice.
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), []);
    one.seen = 1;
    one.credit = 0;
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), []);
}

#[test]
fn workers_share_what_is_left() {
    let mut stage = a_load_balancer();
    let (mut one, mut two) = (Worker::number(1), Worker::number(2));
    (one.credit, two.credit) = (100, 100);
    stage.joins(&mut one);
    stage.joins(&mut two);
    stage.submit(j(1), 20);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 10), 1), first_request(w(2), 1, j(1), r(10, 10), 1)]);
}

#[test]
fn a_long_job_is_dispatched_in_ranges() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    one.credit = 4_000_000;
    stage.joins(&mut one);
    stage.submit(j(1), 4_000_000);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 4_000_000), 1)]);
    stage.ended(j(1), r(5, 1_000_000), ChunkState::Finished);
    assert_eq!(stage.held(&one, j(1)), [r(0, 5), r(1_000_005, 2_999_995)]);
}

#[test]
fn the_more_important_job_goes_first_and_equals_take_turns() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    one.credit = 0;
    stage.joins(&mut one);
    stage.submit(j(1), 100);
    stage.submit(j(2), 100);
    stage.submit_with(j(3), 1, &JobSpec { priority: 5, ..JobSpec::default() });
    one.credit = 2;
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), [first_request(w(1), 1, j(3), r(0, 1), 1), first_request(w(1), 2, j(1), r(0, 1), 1)]);
    (one.seen, one.credit) = (2, 1);
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), [first_request(w(1), 3, j(2), r(0, 1), 1)]);
}

#[test]
fn a_job_that_waits_long_becomes_important() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    one.credit = 0;
    stage.joins(&mut one);
    stage.submit(j(1), 1);
    stage.pass(ms(65_000), &[&one]);
    stage.submit_with(j(2), 1, &JobSpec { priority: 1, ..JobSpec::default() });
    stage.said();
    one.credit = 1;
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 1), 1)]);
}

#[test]
fn a_chunk_goes_only_where_it_fits() {
    let mut stage = a_load_balancer();
    let (mut small, mut large) = (Worker::number(1), Worker::number(2));
    large.cpus_milli = 8_000;
    stage.joins(&mut small);
    stage.submit_with(j(1), 1, &JobSpec { cpus_milli: 4_000, ..JobSpec::default() });
    stage.submit_with(j(2), 1, &JobSpec { memory: 1 << 40, ..JobSpec::default() });
    assert_eq!(stage.said(), []);
    stage.registers(&mut large);
    large.epoch = 1;
    stage.hears(large.peer, &large.inventory(&[]));
    let said = stage.said();
    assert!(said.contains(&first_request(w(2), 1, j(1), r(0, 1), 1)), "{said:?}");
    assert!(!said.iter().any(|said| matches!(said, Said::Request { job, .. } if *job == j(2))), "{said:?}");
}

#[test]
fn a_cap_on_running_chunks_holds_across_workers() {
    let mut stage = a_load_balancer();
    let (mut one, mut two) = (Worker::number(1), Worker::number(2));
    stage.joins(&mut one);
    stage.joins(&mut two);
    let array = ArraySpec::parse("0-9%3").expect("an array");
    stage.submit_with(j(1), 10, &JobSpec { array, ..JobSpec::default() });
    let given = |said: Vec<Said>| -> u32 {
        said.iter().map(|said| if let Said::Request { range, .. } = said { range.count } else { 0 }).sum()
    };
    assert_eq!(given(stage.said()), 3);
    (one.seen, two.seen) = (2, 1);
    stage.hears(one.peer, &one.heartbeat());
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(given(stage.said()), 0);
    stage.ended(j(1), r(0, 1), ChunkState::Finished);
    assert_eq!(given(stage.said()), 1);
}

#[test]
fn a_quiet_or_draining_or_disconnected_worker_gets_nothing_new() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.pass(ms(3_100), &[]);
    stage.submit(j(1), 1);
    assert_eq!(stage.said(), []);
    stage.peer_gone(one.peer);
    stage.tick();
    assert_eq!(stage.said(), []);
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 1), 1)]);
    stage.submit(j(2), 1);
    assert_eq!(stage.said(), [first_request(w(1), 2, j(2), r(0, 1), 1)]);
    let draining = wire::record::NodeRecord { state: wire::NodeState::Draining, ..record_of(&one) };
    stage.log(&[wire::event::LogEvent::NodeRegistered { node: draining }]);
    stage.submit(j(3), 1);
    assert_eq!(stage.said(), []);
}

#[test]
fn where_one_idles_the_tail_of_anothers_queue_is_taken_back() {
    let mut stage = a_load_balancer();
    let (mut one, mut two) = (Worker::number(1), Worker::number(2));
    one.credit = 10;
    stage.joins(&mut one);
    stage.submit(j(1), 10);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 10), 1)]);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 10));
    stage.registers(&mut two);
    two.epoch = 1;
    stage.hears(two.peer, &two.inventory(&[]));
    // Beyond the two slots of the first are eight; the second has room for four.
    let said = stage.said();
    assert_eq!(said[said.len() - 1], Said::Retract { to: w(1), sequence: 2, job: j(1), range: r(6, 4) });
    (one.seen, one.credit) = (2, 4);
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(6, 4), &[]));
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(6, 4), 1)]);
}

#[test]
fn a_worker_with_no_more_than_its_slots_keeps_them() {
    let mut stage = a_load_balancer();
    let (mut one, mut two) = (Worker::number(1), Worker::number(2));
    stage.joins(&mut one);
    stage.submit(j(1), 2);
    stage.accepts(&mut one, 1, 2, j(1), r(0, 2));
    stage.said();
    stage.joins(&mut two);
    stage.pass(ms(2_000), &[&one, &two]);
    assert_eq!(stage.said(), []);
}
