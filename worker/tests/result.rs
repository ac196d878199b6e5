//! What has ended is kept, reported in batches, and said again until it is in the log.

mod support;

use support::{LB1, MASTER, MASTER2, a_bundle, a_file, a_worker, job};
use wire::record::InputCounts;
use wire::{Duration, ErrorCode, Message, PeerId};
use worker::core::{Event, Parcel, RunEnd};

const J1: u8 = 1;
const MS: Duration = Duration::from_millis(1);

#[test]
fn results_are_kept_until_confirmed() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    assert_eq!(
        worker.tick(),
        ["master: batch 1 j1 attempt 1: 0+1 none with 0 files", "lb1: idle credit 6", "lb2: idle credit 6",]
    );
    assert_eq!(worker.worker.unconfirmed_count(), 1);
    assert_eq!(worker.confirm(1, 9), [""; 0]);
    assert_eq!(worker.worker.unconfirmed_count(), 0);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 1 confirmed 9 credit 6"]);
}

#[test]
fn a_result_brings_what_is_counted_of_inputs_by_then() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    let counts = InputCounts { opens_passthrough: 2, bytes_fetched: 7, ..InputCounts::default() };
    worker.step(Event::InputsCounted { counts });
    worker.tick();
    let (_, frame) = worker.frames.iter().find(|(to, _)| *to == MASTER).expect("the result");
    let Ok(Message::WorkerStatus(status, _)) = Message::decode(frame) else { panic!("a result is a status") };
    assert_eq!((InputCounts::told(&status), status.num_runs.get()), (counts, 1));
}

#[test]
fn lost_confirmation_is_asked_again() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    let again = ["master: batch 1 j1 attempt 1: 0+1 none with 0 files"];
    assert_eq!(worker.wait_quietly(1_000 * MS), again);
    assert_eq!(worker.wait_quietly(1_900 * MS), [""; 0]);
    worker.leads(MASTER, 1);
    assert_eq!(worker.wait_quietly(100 * MS), again);
    worker.leads(MASTER, 1);
    worker.confirm(1, 9);
    // Confirmed twice, as after a repetition: the index of the second one is not its own.
    assert_eq!(worker.confirm(1, 12), [""; 0]);
    assert_eq!(worker.wait_quietly(2_000 * MS), [""; 0]);
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 1 confirmed 9 credit 6"]);
}

#[test]
fn a_new_leader_hears_at_once_what_is_unconfirmed() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    assert_eq!(worker.leads(MASTER2, 2), ["master2: batch 1 j1 attempt 1: 0+1 none with 0 files"]);
    assert_eq!(worker.leads(MASTER, 1), [""; 0], "a deposed leader is not followed");
    assert_eq!(worker.wait_quietly(1_000 * MS), ["master2: batch 1 j1 attempt 1: 0+1 none with 0 files"]);
}

#[test]
fn without_a_leader_results_wait() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.receives(MASTER, wire::error_frame(support::ME, ErrorCode::NotLeader, None, 0, job(J1), "master2"));
    worker.ends(job(J1), 0, RunEnd::Code(0));
    assert_eq!(worker.tick(), ["lb1: idle credit 6", "lb2: idle credit 6"]);
    worker.leads(MASTER2, 2);
    assert_eq!(worker.tick(), ["master2: batch 1 j1 attempt 1: 0+1 none with 0 files"]);
}

#[test]
fn results_that_end_soon_after_others_go_together() {
    let mut worker = a_worker().slots(8).with_one_load_balancer().with_result_delay(Duration::from_secs(1)).build();
    worker.assign(1, job(J1), 0, 8);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    for chunk in [5, 1, 2, 4] {
        worker.ends(job(J1), chunk, RunEnd::Code(0));
    }
    worker.ends(job(J1), 3, RunEnd::Signal(11));
    assert!(!worker.tick().iter().any(|word| word.contains("batch")));
    let batches = [
        "master: batch 2 j1 attempt 1: 3+1 signal with 0 files",
        "master: batch 3 j1 attempt 1: 1+2 none, 4+2 none with 0 files",
    ];
    let mut done = worker.wait_quietly(Duration::from_millis(500));
    // The first batch is not confirmed and is said again.
    done.retain(|word| !word.contains("batch 1 "));
    assert_eq!(done, batches);
}

#[test]
fn the_last_result_is_told_at_once() {
    let mut worker = a_worker().slots(2).with_one_load_balancer().with_result_delay(Duration::from_secs(1)).build();
    worker.assign(1, job(J1), 0, 2);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    worker.ends(job(J1), 1, RunEnd::Code(0));
    assert!(worker.tick().contains(&"master: batch 2 j1 attempt 1: 1+1 none with 0 files".to_owned()));
}

#[test]
fn a_result_with_outputs_is_reported_when_they_are_stored() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 2);
    for chunk in [0, 1] {
        worker.exits(job(J1), chunk, RunEnd::Code(0));
        assert_eq!(worker.collected(job(J1), chunk, true), [format!("upload j1.{chunk}")]);
    }
    assert_eq!(worker.tick(), ["lb1: idle credit 6"]);
    assert_eq!(worker.uploaded(job(J1), &[0, 1]), [""; 0]);
    assert_eq!(worker.tick(), ["master: batch 1 j1 attempt 1: 0+2 none with 1 files"]);
    assert_eq!(worker.confirm(1, 9), ["release j1.0", "release j1.1"]);
}

#[test]
fn refused_outputs_make_a_failure() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 2);
    for chunk in [0, 1] {
        worker.exits(job(J1), chunk, RunEnd::Code(0));
        worker.collected(job(J1), chunk, true);
    }
    let (one, other) = (worker.runs[&(job(J1), 0)].1, worker.runs[&(job(J1), 1)].1);
    let parcels = [
        Parcel { run: one, bundle: Some(a_bundle(0)), is_refused: true },
        Parcel { run: other, bundle: None, is_refused: false },
    ];
    worker.step(Event::Uploaded { file: Some(&a_file()), parcels: &parcels });
    let batches = [
        "master: batch 1 j1 attempt 1: 0+1 policy with 1 files",
        "master: batch 2 j1 attempt 1: 1+1 none with 0 files",
        "lb1: idle credit 6",
    ];
    assert_eq!(worker.tick(), batches);
}

#[test]
fn a_refused_receipt_has_the_outputs_stored_again() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 1);
    worker.exits(job(J1), 0, RunEnd::Code(0));
    worker.collected(job(J1), 0, true);
    worker.uploaded(job(J1), &[0]);
    worker.tick();
    assert_eq!(worker.master_refuses(1, ErrorCode::ReceiptInvalid), [""; 0]);
    assert_eq!(worker.wait_quietly(1_000 * MS), ["upload j1.0"]);
    worker.uploaded(job(J1), &[0]);
    assert_eq!(worker.tick(), ["master: batch 2 j1 attempt 1: 0+1 none with 1 files"]);
    assert_eq!(worker.confirm(2, 9), ["release j1.0"]);
}

#[test]
fn a_job_that_masters_have_forgotten_is_forgotten_here() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    assert_eq!(worker.master_refuses(1, ErrorCode::Busy), [""; 0]);
    assert_eq!(worker.worker.unconfirmed_count(), 1);
    assert_eq!(worker.master_refuses(1, ErrorCode::UnknownJob), [""; 0]);
    assert_eq!(worker.worker.unconfirmed_count(), 0);
}

#[test]
fn only_a_master_confirms() {
    let mut worker = a_worker().build();
    worker.assign(1, job(J1), 0, 1);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.tick();
    let confirmed = wire::ResultConfirmed { batch: wire::U64::new(1), ..wire::ResultConfirmed::DEFAULT };
    for peer in [LB1, PeerId(99)] {
        let answer = worker.receives(peer, wire::FixedPart::frame(confirmed, support::ME, &[]));
        assert!(answer[0].contains("not_allowed"), "{answer:?}");
    }
    assert_eq!(worker.worker.unconfirmed_count(), 1);
}

#[test]
fn a_batch_has_a_thousand_chunks_at_most() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.cpus_milli = 64_000;
    // No worker of this size could ever run them: each fails, without a program.
    worker.assign(1, job(J1), 0, 3_000);
    assert_eq!(
        worker.tick(),
        [
            "master: batch 1 j1 attempt 1: 0+1024 policy with 0 files",
            "master: batch 2 j1 attempt 1: 1024+1024 policy with 0 files",
            "master: batch 3 j1 attempt 1: 2048+952 policy with 0 files",
        ]
    );
}

#[test]
fn too_many_unconfirmed_results_stop_the_credit() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.cpus_milli = 64_000;
    worker.assign(1, job(J1), 0, 65_530);
    assert_eq!(worker.worker.credit(), 6);
    worker.assign(2, job(J1), 65_530, 4);
    assert_eq!(worker.worker.credit(), 2);
    worker.assign(3, job(J1), 65_534, 2);
    assert_eq!(worker.worker.credit(), 0);
    worker.tick();
    worker.confirm(1, 9);
    let told = worker.tick();
    assert!(told.contains(&"lb1: idle credit 6".to_owned()), "{told:?}");
}
