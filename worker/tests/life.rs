//! The life of a chunk in a worker: files, slots, time limits, outputs; and the seed's words alone.

mod support;

use support::{Bench, LB1, a_worker, job};
use wire::job::{Input, JobBody, JobSpec};
use wire::{Duration, FileId, FixedPart, NodeId, PeerId, U64, WorkerRequest};
use worker::core::{Event, RunEnd};

const J1: u8 = 1;
const J2: u8 = 2;
const MS: Duration = Duration::from_millis(1);

fn an_input(name: &str) -> Input {
    Input { file_length: 3, path: name.into(), ..Input::default() }
}

#[test]
fn inputs_are_staged_once_and_other_jobs_do_not_wait_for_them() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.inputs = vec![an_input("a")];
    let staged = ["learn j1", "lb1: accepted 0+1 epoch 1 seen 1 credit 5"];
    let done = worker.assign(1, job(J1), 0, 1);
    assert_eq!(done, ["learn j1", "stage j1", "lb1: accepted 0+1 epoch 1 seen 1 credit 5"], "not {staged:?}");
    assert_eq!(worker.assign(2, job(J1), 1, 1), ["lb1: accepted 1+1 epoch 1 seen 2 credit 4"]);
    worker.spec.inputs.clear();
    let passes = ["learn j2", "lb1: accepted 0+1 epoch 1 seen 3 credit 3", "start j2.0 attempt 1 in 0"];
    assert_eq!(worker.assign(3, job(J2), 0, 1), passes);
    assert_eq!(worker.step(Event::Staged { job: job(J1) }), ["start j1.0 attempt 1 in 1"]);
}

#[test]
fn inputs_that_cannot_be_had_fail_the_chunks_and_are_tried_for_the_next() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.inputs = vec![an_input("a")];
    worker.assign(1, job(J1), 0, 2);
    assert_eq!(worker.step(Event::StageFailed { job: job(J1) }), [""; 0]);
    assert_eq!(worker.tick()[0], "master: batch 1 j1 attempt 1: 0+2 input_missing with 0 files");
    let retry = ["stage j1", "lb1: accepted 0+1 epoch 1 seen 2 credit 5"];
    assert_eq!(worker.assign_as(LB1, 1, 2, job(J1), 0, 1, 2), retry);
}

#[test]
fn a_chunk_of_two_cpus_takes_two_slots_worth_and_is_not_passed() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 1);
    worker.spec.cpus_milli = 2000;
    assert_eq!(worker.assign(2, job(J2), 0, 1).len(), 2, "one cpu is taken");
    assert_eq!(worker.assign(3, job(J1), 1, 1).len(), 1, "it waits its turn behind the large one");
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Code(0)), ["collect 0 Everything", "start j2.0 attempt 1 in 0"]);
    assert_eq!(worker.ends(job(J2), 0, RunEnd::Code(0)), ["collect 0 Everything", "start j1.1 attempt 1 in 0"]);
}

#[test]
fn chunks_of_half_a_cpu_share_one() {
    let mut worker = a_worker().slots(1).with_one_load_balancer().build();
    worker.spec.cpus_milli = 500;
    let done = worker.assign(1, job(J1), 0, 3);
    assert_eq!(done[2..], ["start j1.0 attempt 1 in 0", "start j1.1 attempt 1 in 1"]);
}

#[test]
fn memory_is_given_out_once() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.memory = 3 << 30;
    assert_eq!(worker.assign(1, job(J1), 0, 2)[2..], ["start j1.0 attempt 1 in 0"]);
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Code(0))[1..], ["start j1.1 attempt 1 in 0"]);
}

#[test]
fn a_time_limit_ends_the_program_with_grace() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.time_limit_ms = 500;
    worker.assign(1, job(J1), 0, 1);
    assert_eq!(worker.wait_quietly(499 * MS), [""; 0]);
    assert_eq!(worker.wait_quietly(MS), ["terminate 0"]);
    assert_eq!(worker.wait_quietly(1_999 * MS), [""; 0]);
    assert_eq!(worker.wait_quietly(MS), ["kill 0"]);
    worker.leads(support::MASTER, 1);
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Signal(9)), ["collect 0 Streams"]);
    let told = worker.tick();
    assert!(told.contains(&"master: batch 1 j1 attempt 1: 0+1 timeout with 0 files".to_owned()), "{told:?}");
}

#[test]
fn a_program_that_ends_in_its_grace_has_timed_out_all_the_same() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.spec.time_limit_ms = 500;
    worker.assign(1, job(J1), 0, 2);
    worker.exits(job(J1), 1, RunEnd::Code(0));
    worker.wait(500 * MS);
    assert_eq!(worker.ends(job(J1), 0, RunEnd::Code(0)), ["collect 0 Streams"]);
    worker.collected(job(J1), 1, false);
    let told = worker.tick();
    assert!(told.contains(&"master: batch 1 j1 attempt 1: 0+1 timeout with 0 files".to_owned()), "{told:?}");
    assert!(told.contains(&"master: batch 2 j1 attempt 1: 1+1 none with 0 files".to_owned()), "{told:?}");
    // The grace ended with the program.
    assert_eq!(worker.wait_quietly(2_500 * MS).iter().filter(|word| word.starts_with("kill")).count(), 0);
}

#[test]
fn outputs_are_taken_after_success_and_streams_after_a_failure() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 3);
    assert_eq!(worker.exits(job(J1), 0, RunEnd::Code(0)), ["collect 0 Everything"]);
    assert_eq!(worker.exits(job(J1), 1, RunEnd::Code(2)), ["collect 1 Streams"]);
    // A slot is not free before it is clean.
    assert_eq!(worker.collected(job(J1), 0, false), ["start j1.2 attempt 1 in 0"]);
    assert_eq!(worker.exits(job(J1), 2, RunEnd::NotStarted { exit_code: 127 }), ["collect 0 Streams"]);
}

#[test]
fn freed_room_is_told_once_in_a_turn_and_small_change_waits_for_more() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 6);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.ends(job(J1), 1, RunEnd::Code(0));
    let told = worker.tick();
    assert_eq!(told.iter().filter(|word| word.contains("idle")).collect::<Vec<_>>(), ["lb1: idle credit 2"]);
    assert_eq!(worker.tick(), [""; 0]);
}

#[test]
fn short_chunks_earn_credit_for_a_tenth_of_a_second() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 2);
    let run = worker.runs[&(job(J1), 0)].1;
    worker.now = worker.now + 5 * MS;
    let at = wire::WallTime(1);
    worker.step(Event::Exited { run, end: RunEnd::Code(0), usage: Default::default(), at });
    worker.step(Event::Collected { run, is_kept: false });
    // 20 for each slot, and one in each; one runs.
    assert_eq!(worker.worker.credit(), 2 * 20 + 2 - 1);
}

#[test]
fn an_idle_job_is_forgotten_and_asked_for_again() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 1);
    assert_eq!(worker.wait_quietly(90_000 * MS), [""; 0], "it has a chunk here");
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.leads(support::MASTER, 1);
    worker.tick();
    worker.confirm(1, 9);
    assert_eq!(worker.wait_quietly(120_000 * MS), ["forget j1"]);
    let known = WorkerRequest {
        sequence: U64::new(2),
        flags: wire::U32::new(wire::REQUEST_KNOWN),
        ..worker.request(job(J1), 1, 1)
    };
    assert!(worker.receives(LB1, known.frame(NodeId([1; 16]), &[]))[0].contains("error unknown_job"));
}

fn seed_request(worker: &mut Bench, from: PeerId, inputs: &[FileId]) -> Vec<String> {
    let request = WorkerRequest {
        job_uuid: job(J1).into(),
        program_length: U64::new(4),
        num_input_files: U64::new(inputs.len() as u64),
        ..WorkerRequest::DEFAULT
    };
    let body = JobBody::encode(b"prog", inputs, &JobSpec::default());
    let body = &body[..4 + 16 * inputs.len()];
    worker.receives(from, request.seed_frame(NodeId([1; 16]), body))
}

#[test]
fn the_seeds_words_alone_run_a_program_and_are_answered_in_them() {
    let mut worker = a_worker().without_masters().with_one_load_balancer().build();
    let accepted = ["learn j1", "lb1: j1 accepted (42 bytes)", "stage j1"];
    assert_eq!(seed_request(&mut worker, LB1, &[FileId([3; 16])]), accepted);
    assert_eq!(seed_request(&mut worker, LB1, &[]), ["lb1: j1 accepted (42 bytes)"], "asked again, it is the same");
    let running = ["start j1.0 attempt 1 in 0", "lb1: j1 running (42 bytes)"];
    assert_eq!(worker.step(Event::Staged { job: job(J1) }), running);
    assert_eq!(seed_request(&mut worker, LB1, &[]), ["lb1: j1 running (42 bytes)"]);
    assert_eq!(worker.exits(job(J1), 0, RunEnd::Code(0)), ["collect 0 Nothing"]);
    assert_eq!(worker.collected(job(J1), 0, false), ["lb1: j1 succeeded (42 bytes)", "forget j1"]);
    assert_eq!(worker.worker.unconfirmed_count(), 0);
}

#[test]
fn a_seed_job_fails_by_its_program_or_its_inputs() {
    let mut worker = a_worker().without_masters().with_one_load_balancer().build();
    seed_request(&mut worker, LB1, &[]);
    worker.step(Event::Staged { job: job(J1) });
    worker.exits(job(J1), 0, RunEnd::Code(1));
    assert_eq!(worker.collected(job(J1), 0, false), ["lb1: j1 failed (42 bytes)", "forget j1"]);
    seed_request(&mut worker, LB1, &[FileId([3; 16])]);
    let failed = ["lb1: j1 failed (42 bytes)", "forget j1"];
    assert_eq!(worker.step(Event::StageFailed { job: job(J1) }), failed);
}

#[test]
fn seed_jobs_are_no_business_of_load_balancers_and_masters() {
    let mut worker = a_worker().build();
    seed_request(&mut worker, LB1, &[]);
    worker.step(Event::Staged { job: job(J1) });
    assert_eq!(worker.ask_inventory(LB1, 1), ["lb1: inventory epoch 1 seen 0 confirmed 5 credit 5"]);
    worker.ends(job(J1), 0, RunEnd::Code(0));
    assert!(worker.tick().iter().all(|word| word.contains("idle")));
    assert!(worker.assign_as(PeerId(99), 0, 0, job(J1), 0, 1, 1)[0].contains("not_allowed"));
}

#[test]
fn a_run_that_fills_the_disk_is_killed_and_has_failed_for_policy() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 2);
    let (_, run) = worker.runs[&(job(J1), 0)];
    assert_eq!(worker.step(Event::DiskLow { is_low: true }), [""; 0]);
    assert_eq!(worker.step(Event::Overfull { run }), ["kill 0"]);
    assert_eq!(worker.exits(job(J1), 0, RunEnd::Signal(9)), ["collect 0 Heads"]);
    assert_eq!(worker.step(Event::Overfull { run }), [""; 0], "its slot is being cleaned");
    assert_eq!(worker.collected(job(J1), 0, true), ["upload j1.0"]);
    worker.uploaded(job(J1), &[0]);
    assert!(worker.tick().contains(&"master: batch 1 j1 attempt 1: 0+1 policy with 1 files".to_owned()));
}

#[test]
fn a_run_that_filled_the_disk_and_ended_first_has_failed_and_one_that_nobody_wants_is_only_gone() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 2);
    let run_of = |worker: &Bench, chunk| worker.runs[&(job(J1), chunk)].1;
    let ended = run_of(&worker, 0);
    worker.step(Event::Overfull { run: ended });
    assert_eq!(worker.exits(job(J1), 0, RunEnd::Code(0)), ["collect 0 Heads"]);
    let canceled = run_of(&worker, 1);
    worker.step(Event::Overfull { run: canceled });
    worker.kill(1, job(J1), 1, 1, 0);
    assert_eq!(worker.exits(job(J1), 1, RunEnd::Signal(9)), ["collect 1 Nothing"]);
}

#[test]
fn a_run_that_was_refused_an_input_has_missed_it_however_it_ends() {
    let mut worker = a_worker().slots(10).with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 7);
    worker.assign(2, job(J2), 0, 3);
    worker.exits(job(J1), 2, RunEnd::Code(1));
    assert_eq!(worker.step(Event::InputUnreadable { job: job(J1) }), [""; 0]);
    worker.exits(job(J1), 0, RunEnd::Signal(7));
    assert_eq!(worker.exits(job(J1), 4, RunEnd::Code(0)), ["collect 4 Streams"]);
    worker.exits(job(J1), 6, RunEnd::OutOfMemory);
    let (_, missed) = worker.runs[&(job(J2), 2)];
    assert_eq!(worker.step(Event::InputMissed { run: missed }), [""; 0]);
    worker.exits(job(J2), 0, RunEnd::Code(1));
    worker.exits(job(J2), 2, RunEnd::Code(0));
    for (job, chunk) in [(J1, 0), (J1, 2), (J1, 4), (J1, 6), (J2, 0), (J2, 2)].map(|(id, chunk)| (job(id), chunk)) {
        worker.collected(job, chunk, false);
    }
    let told = worker.tick();
    let expected = [
        "master: batch 1 j1 attempt 1: 0+1 input_missing, 2+1 exit, 4+1 input_missing, 6+1 oom with 0 files",
        "master: batch 2 j2 attempt 1: 0+1 exit, 2+1 input_missing with 0 files",
    ];
    assert_eq!(told[..2], expected);
    for chunk in [1, 3, 5] {
        worker.exits(job(J1), chunk, RunEnd::Signal(15));
    }
    assert_eq!(worker.step(Event::InputUnreadable { job: job(J1) }), [""; 0], "nothing of it runs");
    assert_eq!(worker.step(Event::InputMissed { run: missed }), [""; 0], "it is gone");
}

#[test]
fn spoiled_inputs_end_what_runs_and_are_brought_again_when_it_has_ended() {
    let mut worker = a_worker().slots(2).with_one_load_balancer().build();
    worker.spec.inputs = vec![an_input("a")];
    worker.assign(1, job(J1), 0, 3);
    worker.step(Event::Staged { job: job(J1) });
    assert_eq!(worker.step(Event::InputsSpoiled { job: job(J1) }), ["terminate 0", "terminate 1"]);
    assert_eq!(worker.step(Event::InputsSpoiled { job: job(J1) }), [""; 0], "it is known");
    assert_eq!(worker.exits(job(J1), 0, RunEnd::Code(0)), ["collect 0 Streams"]);
    assert_eq!(worker.collected(job(J1), 0, false), [""; 0], "the other runs still");
    assert_eq!(worker.assign(2, job(J1), 4, 1).len(), 1, "they are not fetched for one that comes now either");
    assert_eq!(worker.ends(job(J1), 1, RunEnd::Signal(15)), ["collect 1 Streams", "stage j1"]);
    let started = ["start j1.2 attempt 1 in 0", "start j1.4 attempt 1 in 1"];
    assert_eq!(worker.step(Event::Staged { job: job(J1) }), started);
    let told = worker.tick();
    assert_eq!(told[0], "master: batch 1 j1 attempt 1: 0+2 input_missing with 0 files");
}

#[test]
fn while_the_disk_is_almost_full_a_job_is_forgotten_as_soon_as_nothing_of_it_is_here() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(J1), 0, 1);
    assert_eq!(worker.step(Event::DiskLow { is_low: true }), [""; 0], "it has a chunk here");
    worker.ends(job(J1), 0, RunEnd::Code(0));
    worker.leads(support::MASTER, 1);
    worker.tick();
    assert!(worker.confirm(1, 9).contains(&"forget j1".to_owned()));
    let waits = worker.assign(2, job(J2), 0, 1);
    assert!(!waits.iter().any(|word| word.contains("forget")), "this one waits for room: {waits:?}");
}

#[test]
fn nothing_starts_while_the_disk_is_almost_full() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.step(Event::DiskLow { is_low: true });
    let waits = worker.assign(1, job(J1), 0, 1);
    assert_eq!(waits, ["learn j1", "lb1: accepted 0+1 epoch 1 seen 1 credit 0"]);
    let starts = worker.step(Event::DiskLow { is_low: false });
    assert_eq!(starts, ["start j1.0 attempt 1 in 0"]);
    assert_eq!(worker.tick(), ["lb1: idle credit 5"]);
}
