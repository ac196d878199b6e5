//! The scenarios of the dispatch protocol that a load balancer decides, by their names in the specification.

use crate::support::*;
use wire::event::LogEvent;
use wire::{BootNonce, ChunkRange, ChunkState, ErrorCode, JobId, JobState, Kind, WallTime};

/// Two workers with room for `credit` each, an epoch of ours, a clean slate.
fn two_workers(credit: u32) -> (Stage, Worker, Worker) {
    let mut stage = a_load_balancer();
    let (mut one, mut two) = (Worker::number(1), Worker::number(2));
    (one.credit, two.credit) = (credit, 0);
    stage.joins(&mut one);
    stage.joins(&mut two);
    two.credit = credit;
    (stage, one, two)
}

#[test]
fn inventory_ahead_of_the_log_waits() {
    let (mut stage, mut one, two) = two_workers(4);
    stage.submit(j(1), 1);
    stage.accepts(&mut one, 1, 3, j(1), r(0, 1));
    stage.said();
    // The chunk ends, its result is committed, the worker forgets it: all before we have read that entry.
    stage.is_telling = false;
    stage.ended(j(1), r(0, 1), ChunkState::Finished);
    one.confirmed_index = stage.index();
    stage.hears(one.peer, &one.inventory(&[]));
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.held(&one, j(1)), [r(0, 1)]);
    stage.is_telling = true;
    stage.tell();
    assert_eq!(stage.held(&one, j(1)), []);
    assert_eq!(stage.said(), []);
}

#[test]
fn delayed_assignment_is_not_given_twice() {
    let (mut stage, one, two) = two_workers(4);
    stage.submit(j(1), 1);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 1), 1)]);
    // An inventory made before the request arrived knows nothing of it: the range is on its way all the same.
    stage.hears(one.peer, &one.inventory(&[]));
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), []);
    assert_eq!(stage.held(&one, j(1)), [r(0, 1)]);
}

#[test]
fn an_assignment_that_the_worker_has_read_and_does_not_list_is_given_away() {
    let (mut stage, mut one, two) = two_workers(4);
    stage.submit(j(1), 2);
    stage.said();
    stage.hears(two.peer, &two.heartbeat());
    (one.seen, one.credit) = (1, 0);
    stage.hears(one.peer, &one.inventory(&[queued(j(1), r(0, 1), 1)]));
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(1, 1), 1)]);
}

#[test]
fn unanswered_numbers_are_sent_again_in_order_ever_more_slowly() {
    let (mut stage, mut one, _) = two_workers(4);
    stage.submit(j(1), 1);
    stage.submit(j(2), 1);
    let both = [first_request(w(1), 1, j(1), r(0, 1), 1), first_request(w(1), 2, j(2), r(0, 1), 1)];
    assert_eq!(stage.said(), both);
    stage.pass(ms(199), &[]);
    assert_eq!(stage.said(), []);
    stage.pass(ms(2), &[]);
    assert_eq!(stage.said(), both);
    stage.pass(ms(398), &[]);
    assert_eq!(stage.said(), []);
    stage.pass(ms(2), &[]);
    assert_eq!(stage.said(), both);
    stage.pass(ms(700), &[]);
    assert_eq!(stage.said(), []);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 1));
    stage.pass(ms(800), &[]);
    assert_eq!(stage.said(), [both[1].clone(), both[1].clone()]);
    stage.accepts(&mut one, 2, 0, j(2), r(0, 1));
    stage.pass(ms(2_000), &[&one]);
    assert_eq!(stage.said(), []);
}

#[test]
fn a_worker_without_the_body_gets_it_with_the_same_number() {
    let (mut stage, mut one, _) = two_workers(1);
    stage.submit(j(1), 3);
    stage.accepts(&mut one, 1, 1, j(1), r(0, 1));
    assert_eq!(stage.said()[1], request(w(1), 2, j(1), r(1, 1), 1));
    stage.hears(one.peer, &one.wants_body(2, j(1)));
    assert_eq!(stage.said(), [first_request(w(1), 2, j(1), r(1, 1), 1)]);
    // Said twice, it is only sent again when its time has come.
    stage.hears(one.peer, &one.wants_body(2, j(1)));
    assert_eq!(stage.said(), []);
    stage.accepts(&mut one, 2, 1, j(1), r(1, 1));
    assert_eq!(stage.said(), [request(w(1), 3, j(1), r(2, 1), 1)]);
}

#[test]
fn retract_crosses_start() {
    let (mut stage, mut one, two) = two_workers(5);
    stage.submit(j(1), 5);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 5));
    stage.said();
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), [Said::Retract { to: w(1), sequence: 2, job: j(1), range: r(3, 2) }]);
    // One of the two had started when the retract came.
    (one.seen, one.credit) = (2, 1);
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(3, 2), &[running(j(1), r(4, 1), 1)]));
    // The one that came back goes out; of the others only those are asked for that may not have started.
    let next = Said::Retract { to: w(1), sequence: 3, job: j(1), range: r(2, 1) };
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(3, 1), 1), next]);
    assert_eq!(stage.held(&one, j(1)), [r(0, 3), r(4, 1)]);
    one.seen = 3;
    stage.hears(one.peer, &one.retract_answer(3, j(1), r(2, 1), &[running(j(1), r(2, 1), 1)]));
    assert_eq!(stage.said(), []);
}

#[test]
fn retract_overtakes_request() {
    let (mut stage, mut one, two) = two_workers(4);
    stage.submit(j(1), 4);
    stage.said();
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), [Said::Retract { to: w(1), sequence: 2, job: j(1), range: r(2, 2) }]);
    // An answer made before number 2 was read is none: the retract's own number is not in `seen`.
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(2, 2), &[]));
    assert_eq!(stage.held(&one, j(1)), [r(0, 4)]);
    // Both go out again in their order.
    stage.pass(ms(201), &[]);
    assert_eq!(
        stage.said(),
        [first_request(w(1), 1, j(1), r(0, 4), 1), Said::Retract { to: w(1), sequence: 2, job: j(1), range: r(2, 2) }]
    );
    (one.seen, one.credit) = (2, 2);
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(2, 2), &[]));
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
}

#[test]
fn retract_answer_waits_for_log() {
    let (mut stage, mut one, two) = two_workers(4);
    stage.submit(j(1), 4);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 4));
    stage.hears(two.peer, &two.heartbeat());
    stage.said();
    // Chunk 3 ended and was forgotten before the retract came; we have not read so far.
    stage.is_telling = false;
    stage.ended(j(1), r(3, 1), ChunkState::Finished);
    (one.seen, one.credit, one.confirmed_index) = (2, 2, stage.index());
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(2, 2), &[]));
    assert_eq!(stage.said(), []);
    stage.is_telling = true;
    stage.tell();
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(2, 1), 1)]);
}

#[test]
fn lost_retract_answer_is_asked_again() {
    let (mut stage, mut one, two) = two_workers(4);
    stage.submit(j(1), 4);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 4));
    stage.hears(two.peer, &two.heartbeat());
    stage.said();
    // The number is acknowledged by a heartbeat, but what was given back is not known.
    (one.seen, one.credit) = (2, 2);
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.held(&one, j(1)), [r(0, 4)]);
    let retract = Said::Retract { to: w(1), sequence: 2, job: j(1), range: r(2, 2) };
    stage.pass(ms(250), &[]);
    assert_eq!(stage.said(), std::slice::from_ref(&retract));
    stage.pass(ms(400), &[]);
    assert_eq!(stage.said(), [retract]);
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(2, 2), &[]));
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
    stage.said();
    // A second copy of the answer finds nothing to answer.
    stage.hears(one.peer, &one.retract_answer(2, j(1), r(0, 4), &[]));
    assert_eq!(stage.said(), []);
}

#[test]
fn credit_is_not_completion() {
    let (mut stage, mut one, two) = two_workers(2);
    stage.submit(j(1), 2);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 2));
    stage.said();
    // Both chunks have ended there, so there is room; but nothing is committed.
    one.credit = 2;
    stage.hears(one.peer, &one.heartbeat());
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), []);
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
}

#[test]
fn silent_worker_blocks_only_its_ranges() {
    let (mut stage, mut one, mut two) = two_workers(2);
    stage.submit(j(1), 6);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 2));
    stage.said();
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(2, 2), 1)]);
    stage.accepts(&mut two, 1, 0, j(1), r(2, 2));
    stage.pass(ms(4_900), &[&two]);
    assert_eq!(stage.said(), []);
    stage.ended(j(1), r(2, 2), ChunkState::Finished);
    two.credit = 2;
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), [request(w(2), 2, j(1), r(4, 2), 1)]);
    stage.accepts(&mut two, 2, 0, j(1), r(4, 2));
    // After the grace period its loss is proposed, and again, until the log shows it.
    let lost = Said::Lost { worker: w(1), boot: BootNonce(1), newer_boot: false, items: vec![(j(1), r(0, 2), 1)] };
    stage.pass(ms(300), &[&two]);
    assert_eq!(stage.said(), std::slice::from_ref(&lost));
    stage.pass(ms(1_000), &[&two]);
    assert_eq!(stage.said(), [lost]);
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
    stage.failed_once(j(1), r(0, 2), &one, 1);
    two.credit = 2;
    stage.hears(two.peer, &two.heartbeat());
    assert_eq!(stage.said(), [request(w(2), 3, j(1), r(0, 2), 2)]);
    stage.pass(ms(3_000), &[&two]);
    let lost_again = |said: &Said| matches!(said, Said::Lost { .. });
    assert!(!stage.said().iter().any(lost_again));
}

#[test]
fn a_loss_that_a_busy_leader_refused_is_proposed_again() {
    let (mut stage, mut one, _) = two_workers(2);
    stage.submit(j(1), 2);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 2));
    stage.said();
    let lost = Said::Lost { worker: w(1), boot: BootNonce(1), newer_boot: false, items: vec![(j(1), r(0, 2), 1)] };
    stage.pass(ms(5_100), &[]);
    assert_eq!(stage.said(), std::slice::from_ref(&lost));
    for _ in 0..3 {
        let busy = wire::error_frame(US, ErrorCode::Busy, Some(Kind::Lost), 0, JobId::NIL, "busy");
        stage.hears(MASTER, &busy);
        assert_eq!(stage.said(), []);
        stage.pass(ms(1_100), &[]);
        assert_eq!(stage.said(), std::slice::from_ref(&lost));
    }
}

#[test]
fn a_worker_that_never_tells_its_inventory_is_asked_once_a_second() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.registers(&mut one);
    stage.said();
    // Each word of it is a reason to ask, and so is each look at the workers.
    for _ in 0..100 {
        stage.hears(one.peer, &one.heartbeat());
        stage.pass(ms(100), &[]);
    }
    let said = stage.said();
    let asked = said.iter().filter(|said| matches!(said, Said::AskInventory { .. })).count();
    assert!((9..=10).contains(&asked), "{asked} times in ten seconds");
}

#[test]
fn new_boot_frees_old_ranges() {
    let (mut stage, mut one, two) = two_workers(2);
    stage.submit(j(1), 2);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 2));
    stage.said();
    let old = one.clone();
    one.boot = BootNonce(2);
    (one.epoch, one.seen) = (0, 0);
    stage.hears(one.peer, &one.heartbeat());
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 1 }]);
    stage.hears(two.peer, &two.heartbeat());
    // At once, and with the word that the old boot is surely gone; but freed only by the log.
    stage.pass(ms(101), &[]);
    let items = vec![(j(1), r(0, 2), 1)];
    let lost = Said::Lost { worker: w(1), boot: BootNonce(1), newer_boot: true, items };
    assert_eq!(stage.said(), [lost]);
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
    stage.failed_once(j(1), r(0, 2), &old, 1);
    assert_eq!(stage.said(), [first_request(w(2), 1, j(1), r(0, 2), 2)]);
    assert_eq!(stage.held(&one, j(1)), []);
    // The new boot has never had the job's body.
    stage.submit(j(2), 1);
    (one.epoch, one.credit, one.confirmed_index) = (1, 1, stage.index());
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), [first_request(w(1), 1, j(2), r(0, 1), 1)]);
}

#[test]
fn late_report_of_old_boot_is_dropped() {
    let (mut stage, one, _) = two_workers(0);
    let mut old = one.clone();
    let mut new = one.clone();
    new.boot = BootNonce(2);
    new.credit = 2;
    stage.joins(&mut new);
    (old.epoch, old.seen, old.credit) = (1, 3, 9);
    stage.submit(j(1), 2);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 2), 1)]);
    stage.hears(old.peer, &old.accepted(j(1), r(0, 2), 1));
    stage.hears(old.peer, &old.inventory(&[queued(j(1), r(0, 2), 1)]));
    stage.hears(old.peer, &old.retract_answer(1, j(1), r(0, 2), &[]));
    stage.submit(j(2), 2);
    assert_eq!(stage.said(), []);
}

#[test]
fn late_report_of_old_epoch_is_dropped() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    one.credit = 0;
    stage.joins(&mut one);
    stage.submit(j(1), 3);
    stage.grant(2);
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 2 }]);
    let mut old = one.clone();
    (one.epoch, one.credit) = (2, 2);
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 2), 1)]);
    // Composed before the inventory that was acted on: chunk 2 is not held, whatever they say.
    (old.seen, old.credit) = (7, 0);
    stage.hears(old.peer, &old.accepted(j(1), r(2, 1), 1));
    stage.hears(old.peer, &old.inventory(&[queued(j(1), r(2, 1), 1)]));
    assert_eq!(stage.held(&one, j(1)), [r(0, 2)]);
}

#[test]
fn report_of_an_old_epoch_holds_until_the_inventory() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    let mut two = Worker::number(2);
    one.credit = 0;
    two.credit = 0;
    stage.joins(&mut one);
    stage.joins(&mut two);
    stage.submit(j(1), 3);
    stage.log(&[LogEvent::EpochGranted { load_balancer: OTHER_LOAD_BALANCER, boot: BootNonce(1), epoch: 2 }]);
    // The other one gives chunks to both workers, who tell us too.
    (one.epoch, two.epoch) = (2, 2);
    stage.hears(one.peer, &one.accepted(j(1), r(0, 1), 1));
    stage.hears(two.peer, &two.accepted(j(1), r(1, 1), 1));
    stage.grant(3);
    stage.said();
    (one.epoch, one.credit) = (3, 5);
    stage.hears(one.peer, &one.inventory(&[running(j(1), r(0, 1), 1)]));
    assert_eq!(stage.said(), []);
    // Worker 2 stays silent: what it reported waits for its loss, what nobody reported for the grace period.
    stage.pass(ms(5_100), &[&one]);
    let said = stage.said();
    let Some(Said::AskStatus { request }) = said.iter().find(|said| matches!(said, Said::AskStatus { .. })) else {
        panic!("the leader is asked how far the log is: {said:?}");
    };
    let answer = wire::Answer {
        request: wire::U64::new(*request),
        index: wire::U64::new(stage.index()),
        ..wire::Answer::DEFAULT
    };
    stage.hears(MASTER, &wire::FixedPart::frame(answer, US, &[]));
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(2, 1), 1)]);
    assert_eq!(stage.held(&two, j(1)), [r(1, 1)]);
}

#[test]
fn empty_number_fills_gap() {
    let (mut stage, mut one, _) = two_workers(4);
    stage.submit(j(1), 1);
    stage.submit(j(2), 1);
    stage.said();
    // Neither request arrived, and the first job is finished by a result of another attempt meanwhile.
    stage.ended(j(1), r(0, 1), ChunkState::Finished);
    stage.log(&[LogEvent::JobEnded { job: j(1), state: JobState::Finished, at: WallTime(0) }]);
    stage.pass(ms(201), &[]);
    assert_eq!(stage.said(), [Said::Void { to: w(1), sequence: 1 }, first_request(w(1), 2, j(2), r(0, 1), 1)]);
    stage.accepts(&mut one, 2, 3, j(2), r(0, 1));
    stage.pass(ms(500), &[&one]);
    assert_eq!(stage.said(), []);
}

#[test]
fn a_number_whose_range_is_gone_in_part_is_empty_and_the_worker_is_asked() {
    let (mut stage, mut one, _) = two_workers(4);
    stage.submit(j(1), 4);
    stage.said();
    stage.ended(j(1), r(1, 1), ChunkState::Finished);
    stage.pass(ms(201), &[]);
    assert_eq!(stage.said()[0], Said::Void { to: w(1), sequence: 1 });
    one.seen = 1;
    stage.hears(one.peer, &one.heartbeat());
    stage.pass(ms(1_000), &[]);
    let said = stage.said();
    assert!(said.contains(&Said::AskInventory { to: w(1), epoch: 1 }), "{said:?}");
    assert_eq!(stage.held(&one, j(1)), [r(0, 1), r(2, 2)]);
    // It had never read the first copy: now that is known, and the rest can go out.
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), [request(w(1), 2, j(1), r(0, 1), 1), request(w(1), 3, j(1), r(2, 2), 1)]);
}

#[test]
fn stale_item_is_asked_again() {
    let (mut stage, mut one, _) = two_workers(4);
    stage.submit(j(1), 1);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 1));
    stage.said();
    stage.failed_once(j(1), r(0, 1), &one, 1);
    // The worker's list was made before the confirmation of that failure reached it.
    stage.hears(one.peer, &one.inventory(&[ended_badly(j(1), r(0, 1), 1)]));
    assert_eq!(stage.held(&one, j(1)), [r(0, 1)]);
    stage.pass(ms(1_001), &[]);
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 1 }]);
    stage.pass(ms(1_000), &[&one]);
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 1 }]);
    one.confirmed_index = stage.index();
    one.credit = 1;
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), [request(w(1), 2, j(1), r(0, 1), 2)]);
    stage.pass(ms(150), &[&one]);
    assert_eq!(stage.said(), []);
}

#[test]
fn attempts_survive_take_over() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 4, &wire::job::JobSpec::default());
    let ended = wire::ChunkSet::from_iter([r(0, 1)]).to_bytes();
    stage.snapshot(&[LogEvent::JobSnapshot {
        number: 1,
        submitted_at: WallTime(0),
        frame: &frame,
        ended: vec![(ChunkState::Finished, ended)],
        attempts: vec![(r(2, 1), 3)],
    }]);
    stage.grant(1);
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    one.credit = 9;
    stage.hears(one.peer, &one.heartbeat());
    stage.tick();
    let held = stage.held(&one, j(1));
    assert_eq!(held, [r(1, 3)]);
    stage.pass(ms(210), &[]);
    assert_eq!(
        stage.said(),
        [
            first_request(w(1), 1, j(1), r(1, 1), 1),
            request(w(1), 2, j(1), r(2, 1), 3),
            request(w(1), 3, j(1), r(3, 1), 1)
        ]
    );
}

#[test]
fn load_balancer_restart_needs_new_epoch() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 4, &wire::job::JobSpec::default());
    let mut one = Worker::number(1);
    let job =
        LogEvent::JobSnapshot { number: 1, submitted_at: WallTime(0), frame: &frame, ended: vec![], attempts: vec![] };
    // The epoch is that of our boot before this one.
    let former = LogEvent::EpochGranted { load_balancer: US, boot: BootNonce(OUR_BOOT.0 - 1), epoch: 1 };
    stage.snapshot(&[job, LogEvent::NodeRegistered { node: record_of(&one) }, former]);
    one.epoch = 1;
    stage.hears(one.peer, &one.heartbeat());
    stage.hears(one.peer, &one.inventory(&[running(j(1), r(0, 1), 1)]));
    assert_eq!(stage.said(), []);
    stage.grant(2);
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 2 }]);
    (one.epoch, one.credit) = (2, 3);
    stage.hears(one.peer, &one.inventory(&[running(j(1), r(0, 1), 1)]));
    // What runs goes on running, the rest is handed out.
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(1, 3), 1)]);
    assert_eq!(stage.held(&one, j(1)), [r(0, 4)]);
}

#[test]
fn what_a_silent_worker_may_hold_waits_but_a_new_job_does_not() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 2, &wire::job::JobSpec::default());
    let (mut one, two) = (Worker::number(1), Worker::number(2));
    let job =
        LogEvent::JobSnapshot { number: 1, submitted_at: WallTime(0), frame: &frame, ended: vec![], attempts: vec![] };
    let nodes = [&one, &two].map(|worker| LogEvent::NodeRegistered { node: record_of(worker) });
    let [first, second] = nodes;
    stage.snapshot(&[job, first, second]);
    stage.grant(1);
    one.epoch = 1;
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), []);
    stage.submit(j(2), 2);
    assert_eq!(stage.said(), [first_request(w(1), 1, j(2), r(0, 2), 1)]);
    stage.accepts(&mut one, 1, 2, j(2), r(0, 2));
    // The leader's index is taken after the grace period, and our view has to get there.
    stage.pass(ms(4_900), &[&one]);
    assert_eq!(stage.said(), []);
    stage.pass(ms(200), &[&one]);
    let said = stage.said();
    let [Said::AskStatus { request }] = said[..] else { panic!("{said:?}") };
    stage.is_telling = false;
    stage.ended(j(1), r(0, 1), ChunkState::Finished);
    let (request, index) = (wire::U64::new(request), wire::U64::new(stage.index()));
    let answer = wire::Answer { request, index, ..wire::Answer::DEFAULT };
    stage.hears(MASTER, &wire::FixedPart::frame(answer, US, &[]));
    assert_eq!(stage.said(), []);
    stage.is_telling = true;
    stage.tell();
    assert_eq!(stage.said(), [first_request(w(1), 2, j(1), r(1, 1), 1)]);
}

#[test]
fn a_worker_that_registers_in_our_reign_blocks_nothing() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 1, &wire::job::JobSpec::default());
    stage.snapshot(&[LogEvent::JobSnapshot {
        number: 1,
        submitted_at: WallTime(0),
        frame: &frame,
        ended: vec![],
        attempts: vec![],
    }]);
    stage.grant(1);
    let (mut one, two) = (Worker::number(1), Worker::number(2));
    stage.registers(&mut one);
    stage.log(&[LogEvent::NodeRegistered { node: record_of(&two) }]);
    stage.said();
    one.epoch = 1;
    stage.hears(one.peer, &one.inventory(&[]));
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(0, 1), 1)]);
}

#[test]
fn a_snapshot_in_our_reign_unblocks_only_those_who_registered_in_the_gap() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 2, &wire::job::JobSpec::default());
    let (mut one, mut two, three) = (Worker::number(1), Worker::number(2), Worker::number(3));
    let job = || LogEvent::JobSnapshot {
        number: 1,
        submitted_at: WallTime(0),
        frame: &frame,
        ended: vec![],
        attempts: vec![],
    };
    let node = |worker: &Worker| LogEvent::NodeRegistered { node: record_of(worker) };
    stage.snapshot(&[node(&one), node(&two), job()]);
    stage.grant(1);
    one.epoch = 1;
    stage.hears(one.peer, &one.inventory(&[]));
    let grant = LogEvent::EpochGranted { load_balancer: US, boot: OUR_BOOT, epoch: 1 };
    stage.snapshot(&[node(&one), node(&two), node(&three), grant, job()]);
    stage.hears(one.peer, &one.inventory(&[]));
    // The second worker may hold the job from an epoch before ours, whether or not its registration is told again.
    stage.pass(ms(2_000), &[&one]);
    let is_given = |said: &Said| matches!(said, Said::Request { .. });
    assert!(!stage.said().iter().any(is_given));
    // The third is as silent, but nobody before us can have given it anything.
    two.epoch = 1;
    stage.hears(two.peer, &two.inventory(&[running(j(1), r(0, 1), 1)]));
    assert_eq!(stage.said(), [first_request(w(1), 1, j(1), r(1, 1), 1)]);
}

#[test]
fn what_is_canceled_is_killed_until_the_worker_says_so() {
    let (mut stage, mut one, _) = two_workers(3);
    stage.submit(j(1), 4);
    stage.accepts(&mut one, 1, 1, j(1), r(0, 3));
    stage.ended(j(1), r(1, 1), ChunkState::Finished);
    let said = stage.said();
    assert_eq!(said[said.len() - 1], request(w(1), 2, j(1), r(3, 1), 1));
    stage.log(&[LogEvent::ChunksEnded { job: j(1), state: ChunkState::Canceled, ranges: vec![r(0, 1), r(2, 2)] }]);
    stage.log(&[LogEvent::JobEnded { job: j(1), state: JobState::Canceled, at: WallTime(0) }]);
    let index = stage.index() - 1;
    let said = stage.said();
    let [Said::Kill { request, .. }] = said[..] else { panic!("{said:?}") };
    let kill = Said::Kill { to: w(1), request, job: j(1), range: r(0, 4), index };
    assert_eq!(said, std::slice::from_ref(&kill));
    // Number 2 may still be on its way to the worker: an answer before it is read is too early.
    stage.hears(one.peer, &one.killed(request));
    stage.pass(ms(210), &[]);
    assert_eq!(stage.said(), [Said::Void { to: w(1), sequence: 2 }]);
    one.seen = 2;
    stage.hears(one.peer, &one.heartbeat());
    stage.pass(ms(1_000), &[&one]);
    assert_eq!(stage.said(), [kill]);
    stage.hears(one.peer, &one.killed(request));
    stage.pass(ms(2_000), &[&one]);
    assert_eq!(stage.said(), []);
}

#[test]
fn a_kill_for_which_there_was_no_room_comes_back_with_an_inventory() {
    /// Kills of one worker that wait for their answer.
    const KILLS_MAX: u32 = 4096;
    let chunk_count = 2 * KILLS_MAX + 1;
    let (mut stage, mut one, _) = two_workers(chunk_count);
    stage.submit(j(1), chunk_count);
    stage.accepts(&mut one, 1, 0, j(1), r(0, chunk_count));
    // The last inventory was asked for a while ago.
    stage.pass(ms(1_000), &[&one]);
    stage.said();
    // Every other chunk is canceled, so that each is a kill of its own; one more than there is room for.
    let canceled: Vec<_> = (0..=KILLS_MAX).map(|chunk| r(2 * chunk, 1)).collect();
    stage.log(&[LogEvent::ChunksEnded { job: j(1), state: ChunkState::Canceled, ranges: canceled.clone() }]);
    let last = canceled[KILLS_MAX as usize];
    let kill = |said| if let Said::Kill { request, range, .. } = said { Some((request, range)) } else { None };
    let kills: Vec<(u64, ChunkRange)> = stage.said().into_iter().filter_map(kill).collect();
    assert_eq!(kills.len(), KILLS_MAX as usize);
    assert!(!kills.iter().any(|(_, range)| *range == last));
    stage.pass(ms(110), &[]);
    assert_eq!(stage.said(), [Said::AskInventory { to: w(1), epoch: 1 }]);
    let listed = [running(j(1), r(1, 1), 1), running(j(1), last, 1)];
    one.confirmed_index = stage.index();
    // Still no room: the worker is asked once more, until there is.
    stage.hears(one.peer, &one.inventory(&listed));
    stage.hears(one.peer, &one.killed(kills[0].0));
    stage.pass(ms(1_000), &[]);
    assert!(stage.said().contains(&Said::AskInventory { to: w(1), epoch: 1 }));
    stage.hears(one.peer, &one.inventory(&listed));
    let said = stage.said();
    assert!(matches!(said[..], [Said::Kill { job, range, .. }] if (job, range) == (j(1), last)), "{said:?}");
    stage.pass(ms(2_500), &[&one]);
    assert!(!stage.said().contains(&Said::AskInventory { to: w(1), epoch: 1 }));
}

#[test]
fn what_an_inventory_still_means_to_run_though_it_has_ended_is_killed() {
    let (mut stage, mut one, _) = two_workers(2);
    stage.submit(j(1), 2);
    stage.ended(j(1), r(0, 1), ChunkState::Canceled);
    stage.said();
    one.seen = 1;
    one.confirmed_index = stage.index();
    stage.hears(one.peer, &one.inventory(&[queued(j(1), r(0, 2), 1), running(j(9), r(5, 1), 1)]));
    let said = stage.said();
    let kills: Vec<_> = said
        .iter()
        .filter_map(|said| if let Said::Kill { job, range, .. } = said { Some((*job, *range)) } else { None })
        .collect();
    assert_eq!(kills, [(j(9), r(5, 1))], "the kill of chunk 0 is out already: {said:?}");
    assert_eq!(stage.held(&one, j(1)), [r(1, 1)]);
}

#[test]
fn a_deposed_primary_says_nothing_more_to_workers() {
    let (mut stage, mut one, _) = two_workers(2);
    stage.submit(j(1), 4);
    stage.said();
    stage.log(&[LogEvent::EpochGranted { load_balancer: OTHER_LOAD_BALANCER, boot: BootNonce(1), epoch: 2 }]);
    one.credit = 9;
    stage.hears(one.peer, &one.heartbeat());
    stage.ended(j(1), r(0, 4), ChunkState::Canceled);
    stage.pass(ms(6_000), &[&one]);
    assert_eq!(stage.said(), []);
}
