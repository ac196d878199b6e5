//! What load balancers may tell a worker, and what it makes of it: numbers, epochs, duplicates, retracts, kills.

mod support;

use support::{BOOT, Bench, LB1, LB2, MASTER, a_worker, job};
use wire::{Duration, ErrorCode, FixedPart, NodeId, PeerId, U32, U64, WorkerRequest};
use worker::core::RunEnd;

const J1: u8 = 1;

/// A worker that runs chunks 0 and 1 of job 1 and queues 2 to 5, by number 1.
fn a_busy_worker() -> Bench {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 6);
    worker
}

#[test]
fn an_accepted_range_is_told_to_both_load_balancers_and_starts() {
    let mut worker = a_worker().build();
    assert_eq!(
        worker.assign(1, job(J1), 0, 3),
        [
            "learn j1",
            "lb1: accepted 0+3 epoch 1 seen 1 credit 3",
            "lb2: accepted 0+3 epoch 1 seen 1 credit 3",
            "start j1.0 attempt 1 in 0",
            "start j1.1 attempt 1 in 1",
        ]
    );
    assert_eq!(worker.tick(), [""; 0]);
}

#[test]
fn a_chunk_assigned_twice_starts_once() {
    let mut worker = a_busy_worker();
    // The same number again is only answered, in a later number the chunks are known.
    let again = ["lb1: accepted 0+6 epoch 1 seen 1 credit 0", "lb2: accepted 0+6 epoch 1 seen 1 credit 0"];
    assert_eq!(worker.assign(1, job(J1), 0, 6), again);
    let later = ["lb1: accepted 0+6 epoch 1 seen 2 credit 0", "lb2: accepted 0+6 epoch 1 seen 2 credit 0"];
    assert_eq!(worker.assign(2, job(J1), 0, 6), later);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    assert_eq!(worker.assign(3, job(J1), 0, 1).len(), 2, "it ended and is not confirmed");
    assert_eq!((worker.worker.queued_count(), worker.worker.running_count()), (3, 2));
}

#[test]
fn a_range_that_is_held_in_part_is_queued_for_the_rest() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 2, 3);
    worker.assign(2, job(J1), 0, 8);
    assert_eq!(
        worker.ask_inventory(LB1, 1),
        ["lb1: inventory epoch 1 seen 2 confirmed 5 credit 0, q 4+1 q 0+2 q 5+3 r 2+2"]
    );
}

#[test]
fn a_hundred_thousand_chunks_are_one_range() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 100_000);
    assert_eq!(worker.worker.queued_count(), 99_998);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 1 confirmed 5 credit 0, q 2+99998 r 0+2"]);
    assert_eq!(worker.retract(2, job(J1), 2, 99_998), ["lb1: gave 2+99998 seen 2 confirmed 5"]);
    assert_eq!(worker.worker.queued_count(), 0);
}

#[test]
fn a_number_after_a_gap_waits_to_be_sent_again() {
    let mut worker = a_worker().build();
    assert_eq!(worker.assign(2, job(J1), 0, 1), [""; 0]);
    assert_eq!(worker.worker.running_count(), 0);
    assert_eq!(worker.assign(1, job(J1), 1, 1).len(), 4);
    assert_eq!(worker.assign(2, job(J1), 0, 1).len(), 3);
}

#[test]
fn empty_number_fills_gap() {
    let mut worker = a_worker().build();
    let empty = ["lb1: accepted 0+0 epoch 1 seen 1 credit 6", "lb2: accepted 0+0 epoch 1 seen 1 credit 6"];
    assert_eq!(worker.assign(1, job(J1), 0, 0), empty);
    assert_eq!(worker.assign(2, job(J1), 0, 1).len(), 4);
}

#[test]
fn a_job_that_was_never_told_is_asked_for() {
    let mut worker = a_worker().build();
    let known =
        WorkerRequest { sequence: U64::new(1), flags: U32::new(wire::REQUEST_KNOWN), ..worker.request(job(J1), 0, 1) };
    let answer = worker.receives(LB1, known.frame(NodeId([1; 16]), &[]));
    assert_eq!(answer, [format!("lb1: error unknown_job about 1: job {} has not been told here", job(J1))]);
    // The number is still free.
    assert_eq!(worker.assign(1, job(J1), 0, 1).len(), 4);
    let known = WorkerRequest { sequence: U64::new(2), first: U32::new(1), ..known };
    assert_eq!(worker.receives(LB1, known.frame(NodeId([1; 16]), &[])).len(), 3);
}

#[test]
fn what_is_meant_for_another_boot_is_not_heard() {
    let mut worker = a_worker().build();
    let body = worker.body();
    let earlier =
        WorkerRequest { sequence: U64::new(1), worker_boot: U64::new(BOOT - 1), ..worker.request(job(J1), 0, 1) };
    assert_eq!(worker.receives(LB1, earlier.frame(NodeId([1; 16]), &body)), [""; 0]);
    assert_eq!(worker.worker.epoch(), 0);
}

#[test]
fn chunks_beyond_the_job_are_refused() {
    let mut worker = a_worker().build();
    worker.chunk_count = 10;
    let answer = worker.assign(1, job(J1), 8, 3);
    assert!(answer[1].contains("error invalid_request about 1: chunks 8+3 are beyond the 10"), "{answer:?}");
    assert_eq!(worker.assign(1, job(J1), 8, 2).len(), 4);
}

#[test]
fn only_load_balancers_that_it_connected_to_may_assign() {
    let mut worker = a_worker().build();
    for peer in [MASTER, PeerId(99)] {
        let answer = worker.assign_as(peer, 1, 1, job(J1), 0, 1, 1);
        assert!(answer.len() == 1 && answer[0].contains("error not_allowed"), "{answer:?}");
    }
}

#[test]
fn garbage_is_answered_not_obeyed() {
    let mut worker = a_worker().build();
    assert!(worker.receives(LB1, vec![1; 3])[0].contains("error malformed"));
    let body = [0xff; 5];
    let request = WorkerRequest { sequence: U64::new(1), ..worker.request(job(J1), 0, 1) };
    assert!(worker.receives(LB1, request.frame(NodeId([1; 16]), &body))[0].contains("error malformed about 1"));
    assert_eq!(
        worker.receives(LB1, wire::error_frame(NodeId([1; 16]), ErrorCode::Busy, None, 0, job(J1), "")),
        [""; 0]
    );
}

#[test]
fn a_job_whose_names_leave_its_directory_is_refused_and_what_follows_is_obeyed() {
    let mut worker = a_worker().build();
    let input = |path: &[u8]| wire::job::Input { file_length: 1, path: path.to_vec(), ..Default::default() };
    worker.spec.inputs = vec![input(b"../../../etc/passwd")];
    let said = worker.assign(1, job(J1), 0, 1);
    assert!(said.len() == 1 && said[0].contains("error malformed about 1"), "{said:?}");
    worker.spec.inputs = vec![input(b"in/it")];
    let done = worker.assign(2, job(J1), 0, 1);
    assert_eq!(done[..3], ["learn j1", "stage j1", "lb1: accepted 0+1 epoch 1 seen 2 credit 5"]);
}

#[test]
fn two_primaries_one_epoch_counts() {
    let mut worker = a_worker().build();
    assert_eq!(worker.assign_as(LB1, 1, 1, job(J1), 0, 1, 1).len(), 4);
    assert_eq!(worker.ask_inventory(LB2, 2), ["lb2: inventory epoch 2 seen 0 confirmed 5 credit 5, r 0+1"]);
    // The old reign is over, for every kind of command.
    let stale = ["lb1: error stale_epoch about 2: epoch 1 is over: 2 has begun"];
    assert_eq!(worker.assign_as(LB1, 1, 2, job(J1), 1, 1, 1), stale);
    assert_eq!(worker.retract(2, job(J1), 0, 1), stale);
    assert_eq!(worker.kill(2, job(J1), 0, 1, 9), stale);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: error stale_epoch about 0: epoch 1 is over: 2 has begun"]);
    // Numbers start anew with the reign.
    assert_eq!(worker.assign_as(LB2, 2, 1, job(J1), 1, 1, 1)[0], "lb1: accepted 1+1 epoch 2 seen 1 credit 4");
}

#[test]
fn an_inventory_lists_all_that_is_held() {
    let mut worker = a_busy_worker();
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.ends(job(J1), 1, RunEnd::Code(1));
    assert_eq!(
        worker.ask_inventory(LB2, 1),
        ["lb2: inventory epoch 1 seen 1 confirmed 5 credit 2, q 4+2 r 2+2 well 0+1 badly 1+1"]
    );
}

#[test]
fn retract_crosses_start() {
    let mut worker = a_busy_worker();
    // 1 runs already: what is held is told, what was not started is given back.
    assert_eq!(worker.retract(2, job(J1), 1, 3), ["lb1: gave 1+3 seen 2 confirmed 5, r 1+1"]);
    assert_eq!(worker.worker.queued_count(), 2);
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Code(0)), ["collect 0 Everything", "start j1.4 attempt 1 in 0"]);
}

#[test]
fn lost_retract_answer_is_asked_again() {
    let mut worker = a_busy_worker();
    worker.retract(2, job(J1), 2, 2);
    // Given to this worker again meanwhile: an old retract takes nothing, its answer is the state now.
    worker.assign(3, job(J1), 2, 1);
    assert_eq!(worker.retract(2, job(J1), 2, 2), ["lb1: gave 2+2 seen 3 confirmed 5, q 2+1"]);
}

#[test]
fn retract_overtakes_request() {
    let mut worker = a_worker().build();
    assert_eq!(worker.retract(2, job(J1), 0, 2), [""; 0]);
    worker.assign(1, job(J1), 0, 6);
    assert_eq!(worker.retract(2, job(J1), 0, 6), ["lb1: gave 0+6 seen 2 confirmed 5, r 0+2"]);
}

#[test]
fn higher_attempt_meets_kept_failure() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(1));
    assert_eq!(worker.tick()[0], "master: batch 1 j1 attempt 1: 0+1 exit with 0 files");
    // The load balancer knows it as settled: the failure is forgotten, thereby confirmed, and the chunk runs again.
    let run_again = worker.assign_as(LB1, 1, 2, job(J1), 0, 1, 2);
    assert_eq!(run_again[2], "start j1.0 attempt 2 in 0");
    assert_eq!(worker.confirm(1, 20), [""; 0], "its batch went with it");
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 2 confirmed 5 credit 5, r 0+1@2"]);
}

#[test]
fn a_higher_attempt_relabels_what_waits_or_runs_and_leaves_a_success() {
    let mut worker = a_busy_worker();
    worker.ends(job(J1), 0, RunEnd::Code(0));
    assert_eq!(worker.assign_as(LB1, 1, 2, job(J1), 0, 4, 2).len(), 2);
    assert_eq!(
        worker.ask_inventory(LB1, 1),
        ["lb1: inventory epoch 1 seen 2 confirmed 5 credit 1, q 3+1@2 q 4+2 r 2+1@2 r 1+1@2 well 0+1"]
    );
    // A result has the attempt that it has by then.
    worker.ends(job(J1), 1, RunEnd::Code(3));
    let told = worker.tick();
    assert!(told.contains(&"master: batch 1 j1 attempt 2: 1+1 exit with 0 files".to_owned()), "{told:?}");
}

#[test]
fn a_lower_attempt_changes_nothing() {
    let mut worker = a_worker().build();
    worker.assign_as(LB1, 1, 1, job(J1), 0, 1, 3);
    worker.ends(job(J1), 0, RunEnd::Code(1));
    assert_eq!(worker.assign_as(LB1, 1, 2, job(J1), 0, 1, 2).len(), 2);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 2 confirmed 5 credit 6, badly 0+1@3"]);
}

#[test]
fn a_kill_stops_what_runs_and_is_answered_when_nothing_is_left() {
    let mut worker = a_busy_worker();
    assert_eq!(worker.kill(77, job(J1), 0, 100, 30), ["terminate 0", "terminate 1"]);
    assert_eq!(worker.worker.queued_count(), 0);
    // Asked again: nothing new.
    assert_eq!(worker.kill(77, job(J1), 0, 100, 30), [""; 0]);
    assert_eq!(worker.ends(job(J1), 1, RunEnd::Signal(15)), ["collect 1 Nothing"]);
    assert_eq!(worker.wait_quietly(Duration::from_secs(2)), ["kill 0"]);
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Signal(9)), ["collect 0 Nothing", "lb1: killed 77"]);
    assert_eq!(worker.kill(78, job(J1), 0, 100, 31), ["lb1: killed 78"]);
    // Nothing of it is reported, and the index is known to be past the cancel.
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 1 confirmed 31 credit 6"]);
}

#[test]
fn cancel_races_finish() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 3);
    // 0 is in a batch, 1 has ended with outputs on their way to storage, 2 runs to its end as the kill comes.
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    worker.exits(job(J1), 1, RunEnd::Code(0));
    assert_eq!(worker.collected(job(J1), 1, true), ["upload j1.1"]);
    worker.exits(job(J1), 2, RunEnd::Code(0));
    assert_eq!(worker.kill(5, job(J1), 0, u32::MAX, 40), ["release j1.1"]);
    assert_eq!(worker.collected(job(J1), 2, true), ["release j1.2", "lb1: killed 5"]);
    // Neither a late upload nor a late confirmation finds anything.
    assert_eq!(worker.uploaded(job(J1), &[1]), [""; 0]);
    assert_eq!(worker.confirm(1, 39), [""; 0]);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 1 confirmed 40 credit 6"]);
}
