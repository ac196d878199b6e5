//! Each line of the apply table, and that every order of entries leaves one terminal state per chunk.

use crate::support::frames::*;
use master::core::entry::{CANCEL_RUNNING_MAX, EpochGrant, stamped_cancel};
use master::core::state::{Epoch, Outcome, State};
use proptest::prelude::*;
use wire::event::LogEvent;
use wire::job::JobSpec;
use wire::record::{Bundle, ChunkResult};
use wire::{Cause, ChunkRange, ChunkState, JobState, NodeId, Role, WallTime, log};

/// A state with what its entries were answered and what watchers were told.
#[derive(Default)]
struct Replica {
    state: State,
    outcomes: Vec<Outcome>,
    /// In words, for comparison.
    events: Vec<String>,
}

impl Replica {
    /// Applies one entry of these requests, stamped with its index in milliseconds.
    fn apply(&mut self, requests: &[Vec<u8>]) -> &mut Self {
        let index = self.state.index + 1;
        let entry = log::encode_entry(WallTime(index * 1_000), requests.iter().map(|frame| &frame[..]));
        let applied = self.state.apply(index, &entry);
        self.outcomes = applied.outcomes;
        self.events = applied.events.iter().map(word).collect();
        self.state.check_invariants();
        let bytes = self.state.encode();
        let read = State::decode(&bytes).expect("a snapshot reads");
        assert!(read.encode() == bytes && read.index == self.state.index, "a snapshot says all of the state");
        self
    }

    fn one(&mut self, request: Vec<u8>) -> (Outcome, Vec<String>) {
        self.apply(&[request]);
        (self.outcomes[0].clone(), self.events.clone())
    }

    fn job(&self) -> &master::core::state::Job {
        &self.state.jobs[&J1]
    }

    fn state_of(&self, chunk: u32) -> (Option<ChunkState>, u32, u32) {
        let tries = self.job().tries.of(chunk);
        (self.job().ended_state(chunk), tries.attempt, tries.crashes)
    }
}

fn word(event: &LogEvent<'_>) -> String {
    let list = |ranges: &[ChunkRange]| {
        ranges.iter().map(|range| format!("{}+{}", range.first, range.count)).collect::<Vec<_>>().join(",")
    };
    match event {
        LogEvent::JobAccepted { number, .. } => format!("accepted {number}"),
        LogEvent::ChunksEnded { state, ranges, .. } => format!("{state} {}", list(ranges)),
        LogEvent::HolderFreed { worker, attempt_max, ranges, .. } => {
            format!("freed w{:x} ≤{} {}", worker.0[0], *attempt_max as i32, list(ranges))
        }
        LogEvent::ChunksWaiting { attempt, ranges, .. } => format!("waiting for {attempt}: {}", list(ranges)),
        LogEvent::JobEnded { state, at, .. } => format!("job {state} at {}", at.0),
        LogEvent::EpochGranted { epoch, .. } => format!("epoch {epoch}"),
        LogEvent::NodeRegistered { node } => format!("registered {}", node.name),
        LogEvent::JobSnapshot { .. } => "snapshot".into(),
    }
}

/// Epoch 1 of the balancer's first boot, and job 1 with this spec.
fn a_replica(spec: JobSpec) -> Replica {
    let mut replica = Replica::default();
    replica.apply(&[EpochGrant { load_balancer: BALANCER, boot: boot(1), epoch: 1 }.frame(), submit(1, J1, &spec)]);
    replica
}

const fn changed(changed: u64) -> Outcome {
    Outcome::Changed { changed }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| word.to_string()).collect()
}

#[test]
fn jobs_are_numbered_in_log_order_and_a_repeat_gets_the_first_answer() {
    let mut replica = a_replica(a_spec(4));
    let first = Outcome::Accepted { job: J1, number: 1, index: 1 };
    assert_eq!(replica.outcomes[1], first);
    assert_eq!(
        replica.one(submit(9, J2, &a_spec(1))),
        (Outcome::Accepted { job: J2, number: 2, index: 2 }, words(&["accepted 2"]))
    );
    assert_eq!(replica.one(submit(77, J1, &a_spec(4))), (first, vec![]));
    let (outcome, events) = replica.one(submit(1, J1, &a_spec(5)));
    assert!(matches!(outcome, Outcome::ExistsDifferent { .. }) && events.is_empty(), "{outcome:?}");
}

#[test]
fn a_success_of_any_attempt_counts_and_the_first_accepted_wins() {
    let mut replica = a_replica(a_spec(4));
    let mut early = succeeded(W1, J1, &[a_run(0, &[a_result(), a_result()])]);
    early.fixed.attempt = 7.into();
    assert_eq!(replica.one(early.frame()), (changed(2), words(&["finished 0+2"])));

    let late = succeeded(W2, J1, &[a_run(1, &[a_result(), a_result()])]);
    assert_eq!(replica.one(late.frame()), (changed(1), words(&["finished 2+1"])));
    let workers: Vec<NodeId> =
        replica.job().results.read(ChunkRange::new(0, 4)).iter().map(|accepted| accepted.worker).collect();
    assert_eq!(workers, [W1, W1, W2]);
    assert_eq!(replica.one(late.frame()), (changed(0), vec![]));
}

#[test]
fn the_last_chunk_ends_the_job_at_the_stamp_of_its_entry() {
    let mut replica = a_replica(a_spec(1));
    let (_, events) = replica.one(succeeded(W1, J1, &[a_run(0, &[a_result()])]).frame());
    assert_eq!(events, ["finished 0+1", "job finished at 2000"]);
    assert_eq!((replica.job().started_at, replica.job().finished_at), (WallTime(5_000), WallTime(2_000)));
    assert!(replica.state.jobs_live.is_empty());
}

#[test]
fn a_chunk_that_never_started_does_not_say_when_its_job_did() {
    let mut replica = a_replica(a_spec(4));
    let never = ChunkResult { started_at: WallTime(0), ..exit(1) };
    replica.one(failed(W1, J1, 1, &[a_run(0, &[never])]).frame());
    assert_eq!(replica.job().started_at, WallTime(0));
    replica.one(succeeded(W1, J1, &[a_run(1, &[a_result()])]).frame());
    replica.one(failed(W1, J1, 1, &[a_run(2, &[never])]).frame());
    assert_eq!(replica.job().started_at, WallTime(5_000));
}

#[test]
fn a_failure_below_the_current_attempt_only_frees_its_holder() {
    let mut replica = a_replica(a_spec(2));
    replica.apply(&[lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, 1, 1)])]);
    let (outcome, events) = replica.one(failed(W2, J1, 1, &[a_run(0, &[exit(1)])]).frame());
    assert_eq!((outcome, events), (changed(0), words(&["freed w12 ≤1 0+1"])));
    assert_eq!(replica.state_of(0), (None, 2, 1));
}

#[test]
fn a_failure_without_a_retry_left_is_terminal() {
    let mut replica = a_replica(a_spec(3));
    let (outcome, events) = replica.one(failed(W1, J1, 1, &[a_run(1, &[exit(3)])]).frame());
    assert_eq!((outcome, events), (changed(1), words(&["freed w11 ≤1 1+1", "failed 1+1"])));
    assert_eq!(replica.job().results.read(ChunkRange::one(1))[0].result.exit_code, Some(3));
}

#[test]
fn a_failure_is_retried_while_retries_are_left_and_its_cause_is_listed() {
    let spec =
        JobSpec { retries: 1, retry_on: Cause::Exit.bit() | Cause::Oom.bit(), retry_exit_codes: vec![75], ..a_spec(4) };
    let mut replica = a_replica(spec);
    let oom = ChunkResult { cause: Cause::Oom, exit_code: None, signal: Some(9), ..a_result() };
    let timeout = ChunkResult { cause: Cause::Timeout, ..oom };
    let (_, events) = replica.one(failed(W1, J1, 1, &[a_run(0, &[exit(75), exit(1), oom, timeout])]).frame());
    assert_eq!(events, ["freed w11 ≤1 0+4", "waiting for 2: 0+1,2+1", "failed 1+1,3+1"]);

    let (_, events) = replica.one(failed(W1, J1, 2, &[a_run(0, &[exit(75)])]).frame());
    assert_eq!(events, ["freed w11 ≤2 0+1", "failed 0+1"]);
    assert_eq!(replica.state_of(0), (Some(ChunkState::Failed), 2, 0));
}

#[test]
fn crashes_use_up_no_retry() {
    let mut replica = a_replica(JobSpec { retries: 1, ..a_spec(1) });
    replica.apply(&[lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, 1, 1)])]);
    let (_, events) = replica.one(failed(W2, J1, 2, &[a_run(0, &[exit(1)])]).frame());
    assert_eq!(events, ["freed w12 ≤2 0+1", "waiting for 3: 0+1"]);
}

#[test]
fn a_lost_attempt_is_tried_again_until_the_crash_limit() {
    let mut replica = a_replica(JobSpec { crash_limit: 3, ..a_spec(3) });
    for attempt in 1..=2 {
        let (outcome, events) = replica.one(lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, 2, attempt)]));
        assert_eq!(outcome, changed(2));
        assert_eq!(events, [String::from("freed w11 ≤-1 0+2"), format!("waiting for {}: 0+2", attempt + 1)]);
    }
    let (_, events) = replica.one(lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, 1, 3)]));
    assert_eq!(events, ["freed w11 ≤-1 0+1", "failed 0+1"]);
    assert_eq!(replica.state_of(0), (Some(ChunkState::Failed), 3, 3));
    assert!(replica.job().lost.contains(0));
}

#[test]
fn a_repeated_lost_changes_nothing_but_still_frees_the_holder() {
    let mut replica = a_replica(a_spec(2));
    let request = lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, 2, 1)]);
    replica.apply(std::slice::from_ref(&request));
    assert_eq!(replica.one(request), (changed(0), words(&["freed w11 ≤-1 0+2"])));
    assert_eq!(replica.state_of(1), (None, 2, 1));
}

#[test]
fn lost_counts_only_from_the_primary_in_its_epoch_checked_at_apply() {
    let mut replica = a_replica(a_spec(2));
    let statement =
        |boot_of_balancer, epoch| lost(1, (boot_of_balancer, epoch), (W1, boot(1)), &[an_item(J1, 0, 2, 1)]);
    let grant = EpochGrant { load_balancer: BALANCER, boot: boot(2), epoch: 2 }.frame();
    replica.apply(&[grant.clone(), statement(boot(1), 1), statement(boot(1), 2), statement(boot(2), 2), grant]);
    let stale = Outcome::StaleEpoch { current: 2 };
    assert_eq!(replica.outcomes, [changed(1), stale.clone(), stale.clone(), changed(2), stale]);
    assert_eq!(replica.state.epoch, Epoch { number: 2, load_balancer: BALANCER, boot: boot(2) });
}

#[test]
fn cancel_ends_what_has_not_ended() {
    let mut replica = a_replica(a_spec(10));
    replica.apply(&[succeeded(W1, J1, &[a_run(4, &[a_result()])]).frame()]);
    assert_eq!(replica.one(cancel(1, J1, 3, 4)), (changed(3), words(&["canceled 3+1,5+2"])));
    let (outcome, events) = replica.one(cancel(1, J1, 0, u32::MAX));
    assert_eq!((outcome, events), (changed(6), words(&["canceled 0+3,7+3", "job canceled at 4000"])));
    assert_eq!(replica.one(cancel(1, J1, 0, u32::MAX)), (changed(0), vec![]));
    let late = succeeded(W1, J1, &[a_run(0, &[a_result()])]);
    assert_eq!(replica.one(late.frame()), (changed(0), vec![]));
    assert_eq!(replica.one(cancel(1, J2, 0, 1)), (Outcome::UnknownJob { job: J2 }, vec![]));
}

#[test]
fn a_cancel_keeps_where_its_chunks_ran() {
    let mut replica = a_replica(a_spec(20));
    replica.apply(&[
        succeeded(W1, J1, &[a_run(2, &[a_result()])]).frame(),
        lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 4, 1, 1)]),
    ]);
    let running = [
        running(1, 3, 1, W1, 700),
        running(4, 1, 1, W1, 800),
        running(6, 1, 1, W2, 0),
        running(9, 1, 1, W2, 900),
        running(18, 90, 1, W2, 600),
    ];
    let (outcome, events) = replica.one(stamped_cancel(&cancel(1, J1, 0, 8), &running));
    assert_eq!((outcome, events), (changed(7), words(&["canceled 0+2,3+5"])));
    let ran = |replica: &Replica, chunk| {
        let run = replica.job().canceled.of(chunk)?;
        Some((run.worker, run.started_at.0, run.canceled_at.0))
    };
    // 2 had finished; 4 had been lost in between; 9 and 18 are not canceled by this.
    let told: Vec<_> = (0..20).filter_map(|chunk| ran(&replica, chunk).map(|ran| (chunk, ran))).collect();
    assert_eq!(told, [(1, (W1, 700, 3_000)), (3, (W1, 700, 3_000)), (6, (W2, 0, 3_000))]);
    assert_eq!(replica.job().started_at.0, 700);

    replica.apply(&[stamped_cancel(&cancel(2, J1, 0, u32::MAX), &running[4..])]);
    assert_eq!((ran(&replica, 1), ran(&replica, 9)), (Some((W1, 700, 3_000)), None));
    assert_eq!(ran(&replica, 19), Some((W2, 600, 4_000)));
    let again = replica.one(stamped_cancel(&cancel(2, J1, 0, u32::MAX), &[running[2]]));
    assert_eq!((again.0, ran(&replica, 6)), (changed(0), Some((W2, 0, 3_000))));
}

#[test]
fn a_cancel_whose_running_ranges_are_out_of_place_changes_nothing() {
    let mut replica = a_replica(a_spec(9));
    let one = running(3, 2, 1, W1, 0);
    let wrong = [
        vec![running(3, 0, 1, W1, 0)],
        vec![one, one],
        vec![one, running(0, 1, 1, W1, 0)],
        vec![running(u32::MAX, 2, 1, W1, 0)],
        (0..=CANCEL_RUNNING_MAX as u32).map(|chunk| running(chunk, 1, 1, W1, 0)).collect(),
    ];
    for ranges in &wrong {
        let outcome = replica.one(stamped_cancel(&cancel(1, J1, 0, 9), ranges)).0;
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?} for {:?}", ranges[0]);
    }
    let no_cancel = stamped_cancel(&submit(1, J2, &a_spec(1)), &[one]);
    assert!(matches!(replica.one(no_cancel).0, Outcome::Refused(_)));
    assert_eq!(replica.job().counts().waiting, 9);
}

#[test]
fn a_job_is_aborted_when_more_chunks_failed_than_it_allows() {
    let mut replica = a_replica(JobSpec { max_fails: Some(1), ..a_spec(9) });
    let (_, events) = replica.one(failed(W1, J1, 1, &[a_run(0, &[exit(1)])]).frame());
    assert_eq!(events, ["freed w11 ≤1 0+1", "failed 0+1"]);
    let (outcome, events) = replica.one(failed(W1, J1, 1, &[a_run(4, &[exit(1)])]).frame());
    assert_eq!(outcome, changed(8));
    assert_eq!(events, ["freed w11 ≤1 4+1", "failed 4+1", "aborted 1+3,5+4", "job aborted at 3000"]);
    assert_eq!(replica.job().counts().job_state(), JobState::Aborted);
}

#[test]
fn results_of_an_unknown_job_or_beyond_its_chunks_change_nothing() {
    let mut replica = a_replica(a_spec(2));
    let unknown = succeeded(W1, J2, &[a_run(0, &[a_result()])]);
    assert_eq!(replica.one(unknown.frame()), (Outcome::UnknownJob { job: J2 }, vec![]));
    let beyond = succeeded(W1, J1, &[a_run(0, &[a_result()]), a_run(1, &[a_result(), a_result()])]);
    let (outcome, events) = replica.one(beyond.frame());
    assert!(matches!(outcome, Outcome::Refused(_)) && events.is_empty());
    assert_eq!(replica.state_of(0).0, None);
}

#[test]
fn the_files_of_a_result_are_known_with_it() {
    let mut replica = a_replica(a_spec(1));
    let file = a_file(b"output");
    let bundle = Bundle {
        file: file.file,
        file_index: 0,
        offset: 0,
        index_length: 0,
        stdout_length: 6,
        stderr_length: 0,
        outputs_length: 0,
    };
    let result = ChunkResult { bundle: Some(bundle), ..a_result() };
    replica.apply(&[succeeded(W1, J1, &[a_run(0, &[result])]).file(file.clone()).frame()]);
    assert_eq!(replica.state.file_record(file.file).unwrap().copies, 1);
    let read = replica.job().results.read(ChunkRange::one(0));
    assert_eq!(read[0].result.bundle.unwrap().stdout(), bundle.stdout());
}

#[test]
fn a_file_is_recorded_once_and_gains_copies() {
    let mut replica = Replica::default();
    let mut file = a_file(b"content");
    assert_eq!(replica.one(record_file(1, &file)).0, changed(1));
    assert_eq!(replica.one(record_file(1, &file)).0, changed(0));
    file.receipts[0].node = W1;
    assert_eq!(replica.one(record_file(1, &file)).0, changed(1));
    assert_eq!(replica.state.file_record(file.file).unwrap().copies, 2);
    let other = wire::record::StoredFile { length: 3, ..file.clone() };
    assert!(matches!(replica.one(record_file(1, &other)).0, Outcome::ExistsDifferent { .. }));
    let misnamed = wire::record::StoredFile { hash: a_hash(3), ..file };
    assert!(matches!(replica.one(record_file(1, &misnamed)).0, Outcome::Refused(_)));
}

#[test]
fn the_newest_boot_of_a_node_is_its_record() {
    let mut replica = Replica::default();
    assert_eq!(replica.one(hello(1, &a_node(W1, Role::Worker, 2))).0, changed(1));
    assert_eq!(replica.state.nodes_version, 0, "workers are not in the list that welcomes carry");
    assert_eq!(replica.one(hello(1, &a_node(W1, Role::Worker, 2))), (changed(0), vec![]));
    assert_eq!(replica.one(hello(1, &a_node(W1, Role::Worker, 1))), (changed(0), vec![]));
    assert_eq!(replica.state.nodes[&W1].boot, boot(2));
    replica.apply(&[hello(1, &a_node(STORAGE, Role::Storage, 1))]);
    assert_eq!(replica.state.nodes_version, 1);
}

#[test]
fn the_stamp_never_decreases() {
    let mut state = State::default();
    state.apply(1, &log::encode_entry(WallTime(500), []));
    state.apply(2, &log::encode_entry(WallTime(400), []));
    assert_eq!(state.stamp, WallTime(500));
}

#[test]
fn a_job_of_four_billion_chunks_is_submitted_lost_and_canceled_in_one_entry_each() {
    let count = u32::MAX;
    let mut replica = a_replica(a_spec(count));
    replica.apply(&[lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, 0, count, 1)])]);
    assert_eq!(replica.state_of(count - 1), (None, 2, 1));
    assert_eq!(replica.one(cancel(1, J1, 0, count)).0, changed(u64::from(count)));
    assert!(replica.state.encode().len() < 2_000_000);
}

/// One thing that may happen to the 12 chunks of a job.
fn a_request() -> impl Strategy<Value = Vec<u8>> {
    let results =
        (any::<bool>(), 1u32..4, 0u32..12, 1u32..6, 0u8..3).prop_map(|(good, attempt, first, count, code)| {
            let result = if good { a_result() } else { exit(code) };
            let count = count.min(12 - first);
            let runs = [a_run(first, &vec![result; count as usize])];
            if good { succeeded(W1, J1, &runs).frame() } else { failed(W2, J1, attempt, &runs).frame() }
        });
    let losses = (1u32..5, 0u32..12, 1u32..12).prop_map(|(attempt, first, count)| {
        lost(1, (boot(1), 1), (W1, boot(1)), &[an_item(J1, first, count, attempt)])
    });
    let cancels = (0u32..12, 1u32..4, 0u32..12, 1u32..4, 1u32..3).prop_map(|(first, count, from, runs, attempt)| {
        let items = [running(from, 1, attempt, W1, 5), running(from + 1, runs, 1, W2, 0)];
        stamped_cancel(&cancel(1, J1, first, count), &items)
    });
    prop_oneof![6 => results, 3 => losses, 1 => cancels]
}

proptest! {
    #[test]
    fn a_chunk_that_ended_never_changes_and_watchers_could_rebuild_the_state(
        requests in proptest::collection::vec(a_request(), 1..60),
        max_fails in proptest::option::of(3u32..12),
    ) {
        let mut replica = a_replica(JobSpec { retries: 2, max_fails, ..a_spec(12) });
        let mut told = [None; 12];
        for request in requests {
            let before: Vec<_> = (0..12).map(|chunk| replica.state_of(chunk)).collect();
            let index = replica.state.index + 1;
            let entry = log::encode_entry(WallTime(index), [&request[..]]);
            for event in replica.state.apply(index, &entry).events {
                if let LogEvent::ChunksEnded { state, ranges, .. } = event {
                    for chunk in ranges.iter().flat_map(|range| range.chunks()) {
                        prop_assert_eq!(told[chunk as usize].replace(state), None, "told once");
                    }
                }
            }
            replica.state.check_invariants();
            for (chunk, (state, attempt, _)) in (0..).zip(before) {
                let now = replica.state_of(chunk);
                prop_assert!(state.is_none() || now.0 == state, "chunk {} left {:?}", chunk, state);
                prop_assert!(now.1 >= attempt && now.2 < now.1.max(4));
                prop_assert_eq!(told[chunk as usize], now.0);
            }
        }
    }

    #[test]
    fn any_bytes_give_an_outcome(
        entry in proptest::collection::vec(any::<u8>(), 0..200),
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..4),
        spoiled in (a_request(), any::<prop::sample::Index>(), any::<u8>()),
    ) {
        let mut replica = a_replica(a_spec(12));
        replica.state.apply(2, &entry);
        replica.apply(&frames);
        prop_assert_eq!(replica.outcomes.len(), frames.len());
        let (mut request, position, byte) = spoiled;
        let position = position.index(request.len());
        request[position] = byte;
        replica.apply(&[request]);
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_read_but_never_panics(
        position in any::<prop::sample::Index>(), byte in any::<u8>(), length in any::<prop::sample::Index>(),
    ) {
        let mut replica = a_replica(a_spec(12));
        replica.apply(&[
            succeeded(W1, J1, &[a_run(3, &[a_result()])]).frame(),
            hello(1, &a_node(W1, Role::Worker, 1)),
            stamped_cancel(&cancel(1, J1, 5, 5), &[running(5, 1, 1, W1, 9), running(7, 2, 1, W2, 0)]),
        ]);
        let mut bytes = replica.state.encode();
        let position = position.index(bytes.len());
        bytes[position] = byte;
        let _ = State::decode(&bytes);
        let _ = State::decode(&bytes[..length.index(bytes.len())]);
    }
}
