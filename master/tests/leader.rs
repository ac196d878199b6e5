//! What the leader lets into its log, what it answers without an entry, and who it believes to be alive.

use crate::support::frames::*;
use crate::support::*;
use master::core::entry::{CANCEL_RUNNING_MAX, stamped_cancel};
use wire::job::{Input, JobSpec};
use wire::record::StoredFile;
use wire::{Duration, Hash, NodeId, Role};

const GRACE: Duration = Duration::from_secs(5);

#[test]
fn a_submit_that_is_repeated_gets_the_first_answer_and_no_entry() {
    let mut master = a_master().build();
    let first = master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    assert_eq!(first, ["1: job_accepted #1 number 1"]);
    let index = master.core.state().index;
    assert_eq!(master.receives(W1_PEER, submit(2, J1, &a_spec(4))), ["3: job_accepted #2 number 1"]);
    let other = master.receives(CLIENT_PEER, submit(3, J1, &a_spec(5)));
    assert_eq!(other, [format!("1: error exists_different #3: job {J1} is job 1 already, with other content")]);
    assert_eq!(master.core.state().index, index);
}

#[test]
fn a_submit_that_is_repeated_while_it_is_under_way_is_answered_once() {
    let mut master = a_master().slow_disk().build();
    master.persist_one();
    master.tick();
    master.persist_one();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    let unwritten = master.unwritten();
    assert_eq!(master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4))), [""; 0]);
    assert_eq!(master.unwritten(), unwritten);
    assert_eq!(master.persist_one(), ["1: job_accepted #1 number 1"]);
}

#[test]
fn a_job_that_breaks_a_rule_is_refused_with_the_value() {
    let mut master = a_master().build();
    let spec = JobSpec { arguments: vec![b"x".to_vec(), b"%{NOPE}".to_vec()], ..a_spec(1) };
    let said = master.receives(CLIENT_PEER, submit(1, J1, &spec));
    assert!(said[0].starts_with("1: error invalid_request #1: ") && said[0].contains("NOPE"), "{said:?}");
    assert_eq!(said.len(), 1);
}

#[test]
fn an_input_that_nobody_stored_is_named() {
    let mut master = a_master().build();
    let file = a_file(b"corpus");
    let input = Input { hash: file.hash, file_length: 6, path: b"in/corpus".to_vec(), ..Input::default() };
    let spec = |input: Input| JobSpec { inputs: vec![input], ..a_spec(1) };
    let unknown = format!("1: error file_unknown #1: input 'in/corpus': no file {} of 6 bytes is stored", file.file);
    assert_eq!(master.receives(CLIENT_PEER, submit_with(1, J1, &spec(input.clone()), &[file.file])), [unknown]);

    master.receives(CLIENT_PEER, record_file(2, &file));
    let other = Input { hash: Hash([1; 32]), ..input.clone() };
    let refused = master.receives(CLIENT_PEER, submit_with(3, J1, &spec(other), &[file.file]));
    assert!(refused[0].starts_with("1: error file_unknown #3"), "{refused:?}");
    let accepted = master.receives(CLIENT_PEER, submit_with(4, J1, &spec(input), &[file.file]));
    assert_eq!(accepted, ["1: job_accepted #4 number 1"]);
}

#[test]
fn a_job_that_no_worker_can_run_is_refused_once_there_are_workers() {
    let mut master = a_master().build();
    let spec = |cpus: u32| JobSpec { cpus_milli: cpus * 1_000, ..a_spec(1) };
    assert_eq!(master.receives(CLIENT_PEER, submit(1, J1, &spec(64))), ["1: job_accepted #1 number 1"]);

    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1)).registers(W2_PEER, &a_node(W2, Role::Worker, 1));
    let refused = master.receives(CLIENT_PEER, submit(2, J2, &spec(64)));
    assert_eq!(refused, ["1: error impossible #2: no worker has 64 cpus (largest: worker-11, 2)"]);
    let large = JobSpec { memory: 5 << 30, ..a_spec(1) };
    let refused = master.receives(CLIENT_PEER, submit(3, J2, &large));
    assert_eq!(refused, ["1: error impossible #3: no worker has 5 GiB of memory (largest: worker-11, 4 GiB)"]);
    assert_eq!(master.receives(CLIENT_PEER, submit(4, J2, &spec(2))), ["1: job_accepted #4 number 2"]);
}

#[test]
fn results_are_confirmed_when_applied_and_a_repeat_is_confirmed_without_an_entry() {
    let mut master = a_master().build();
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    let batch = succeeded(W1, J1, &[a_run(0, &[a_result(), a_result()])]).number(7);
    assert_eq!(master.receives(W1_PEER, batch.frame()), ["3: confirmed 7"]);
    let index = master.core.state().index;
    assert_eq!(master.receives(W1_PEER, batch.frame()), ["3: confirmed 7"]);
    assert_eq!(master.core.state().index, index);

    // A failure of a finished chunk holds nobody up either.
    assert_eq!(master.receives(W2_PEER, failed(W2, J1, 1, &[a_run(1, &[exit(1)])]).frame()), ["4: confirmed 1"]);
    assert_eq!(master.core.state().index, index);
}

#[test]
fn an_old_failure_is_committed_all_the_same() {
    let mut master = a_master().build();
    let epoch = master.enthrones(1);
    master.registers(W2_PEER, &a_node(W2, Role::Worker, 2));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    master.receives(BALANCER_PEER, lost(1, (boot(1), epoch), (W2, boot(1)), &[an_item(J1, 0, 1, 1)]));
    assert_eq!(master.core.state().jobs[&J1].tries.of(0).attempt, 2);
    let index = master.core.state().index;
    assert_eq!(master.receives(W1_PEER, failed(W1, J1, 1, &[a_run(0, &[exit(1)])]).frame()), ["3: confirmed 1"]);
    assert_eq!(master.core.state().index, index + 1, "load balancers learn of the holder from the log");
}

#[test]
fn a_batch_that_is_under_way_is_not_proposed_twice() {
    let mut master = a_master().slow_disk().build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    master.persist_one();
    let batch = succeeded(W1, J1, &[a_run(0, &[a_result()])]);
    master.receives(W1_PEER, batch.frame());
    assert_eq!(master.unwritten(), 1);
    // The worker has connected anew meanwhile; it is the same batch.
    assert_eq!(master.receives(W2_PEER, batch.frame()), [""; 0]);
    assert_eq!(master.unwritten(), 1);
    assert_eq!(master.persist_one(), ["3: confirmed 1"]);
}

#[test]
fn results_that_come_fast_share_an_entry_and_hold_up_nobody_else() {
    let mut master = a_master().results_interval(Duration::from_millis(5)).build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(9)));
    let result = |chunk: u32| succeeded(W1, J1, &[a_run(chunk, &[a_result()])]).number(chunk.into()).frame();
    assert_eq!(master.receives(W1_PEER, result(1)), ["3: confirmed 1"], "the first waits for nothing");
    let index = master.core.state().index;
    assert_eq!(master.receives(W1_PEER, result(2)), [""; 0]);
    assert_eq!(master.wait(Duration::from_millis(4)), [""; 0]);
    assert_eq!(master.receives(W1_PEER, result(3)), [""; 0]);
    assert_eq!(master.wait(Duration::from_millis(1)), ["3: confirmed 2", "3: confirmed 3"]);
    assert_eq!(master.core.state().index, index + 1);

    master.receives(W1_PEER, result(4));
    let said = master.receives(CLIENT_PEER, submit(2, J2, &a_spec(1)));
    assert_eq!(said, ["3: confirmed 4", "1: job_accepted #2 number 2"]);
}

#[test]
fn results_of_a_job_that_nobody_knows_are_told_so() {
    let mut master = a_master().build();
    let said = master.receives(W1_PEER, succeeded(W1, J2, &[a_run(0, &[a_result()])]).number(9).frame());
    assert_eq!(said, [format!("3: error unknown_job #9: no job {J2}")]);
}

#[test]
fn a_file_counts_only_on_a_storage_nodes_word() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    let file = a_file(b"x");
    let mut forged = file.clone();
    forged.receipts[0].mac[0] ^= 1;
    let bare = StoredFile { receipts: vec![], ..file.clone() };
    let invalid = |request: u64, peer: u64| {
        format!("{peer}: error receipt_invalid #{request}: file {} of 1 bytes has no valid receipt", file.file)
    };
    assert_eq!(master.receives(CLIENT_PEER, record_file(2, &forged)), [invalid(2, 1)]);
    assert_eq!(master.receives(CLIENT_PEER, record_file(3, &bare)), [invalid(3, 1)]);
    let batch = succeeded(W1, J1, &[a_run(0, &[a_result()])]);
    assert_eq!(master.receives(W1_PEER, batch.file(forged).frame()), [invalid(1, 3)]);

    assert_eq!(master.receives(CLIENT_PEER, record_file(4, &file)), ["1: committed #4 changed 1"]);
    let index = master.core.state().index;
    assert_eq!(master.receives(CLIENT_PEER, record_file(5, &file)), ["1: committed #5 changed 0"]);
    assert_eq!(master.core.state().index, index);
}

#[test]
fn a_hello_is_logged_once_and_the_welcome_lists_whom_all_need() {
    let mut master = a_master().build();
    master.registers(CLIENT_PEER, &a_node(STORAGE, Role::Storage, 1));
    let hello_of_w1 = hello(5, &a_node(W1, Role::Worker, 1));
    let welcome = ["3: welcome #5 [\"storage-51\"]"];
    assert_eq!(master.receives(W1_PEER, hello_of_w1.clone()), welcome);
    let index = master.core.state().index;
    assert_eq!(master.receives(W1_PEER, hello_of_w1), welcome);
    assert_eq!(master.core.state().index, index);

    master.registers(W1_PEER, &a_node(W1, Role::Worker, 2));
    let old = master.receives(W1_PEER, hello(6, &a_node(W1, Role::Worker, 1)));
    assert_eq!(old, ["3: error invalid_request #6: a newer boot of worker-11 is registered: 2"]);
}

#[test]
fn a_node_registers_only_itself_in_the_role_of_its_certificate() {
    let mut master = a_master().build();
    let mut forged = hello(1, &a_node(W1, Role::Worker, 1));
    forged[1..17].copy_from_slice(&hello(1, &a_node(W2, Role::Worker, 1))[1..17]);
    assert!(master.receives(W1_PEER, forged)[0].starts_with("3: error not_allowed #1"));

    let frame = hello(2, &a_node(W1, Role::Storage, 1));
    let event = master::core::Event::Received { from: W1_PEER, role: Some(Role::Worker), frame: &frame };
    assert!(said(W1_PEER, &master.step(event)[0].1).starts_with("3: error not_allowed #2"));
}

#[test]
fn heartbeats_of_the_registered_are_answered_and_others_are_told_to_register() {
    let mut master = a_master().build();
    let stranger = master.receives(W1_PEER, heartbeat(W1, boot(1)));
    assert_eq!(stranger, [format!("3: error unknown_node #0: node {W1} is not registered in this boot")]);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    assert_eq!(master.receives(W1_PEER, heartbeat(W1, boot(1))), ["3: heartbeat epoch 0"]);
    assert!(master.receives(W1_PEER, heartbeat(W1, boot(2)))[0].contains("unknown_node"));
}

#[test]
fn a_worker_that_the_leader_hears_is_not_lost() {
    let mut master = a_master().build();
    let epoch = master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(2)));
    let statement = |request| lost(request, (boot(1), epoch), (W1, boot(1)), &[an_item(J1, 0, 2, 1)]);
    master.wait(GRACE);
    master.receives(W1_PEER, heartbeat(W1, boot(1)));
    master.wait(Duration::from_secs(2));
    let refused = master.receives(BALANCER_PEER, statement(1));
    assert_eq!(refused, ["2: error busy #1: it may be alive: nothing heard for 2000 ms"]);

    master.wait(GRACE);
    assert_eq!(master.receives(BALANCER_PEER, statement(2)), ["2: committed #2 changed 2"]);
    assert_eq!(master.core.state().jobs[&J1].tries.of(1).attempt, 2);
}

#[test]
fn a_new_leader_waits_a_grace_period_before_it_believes_a_loss() {
    let mut master = a_master().build();
    let epoch = master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(2)));
    master.wait(GRACE * 2);
    let mut master = master.crash_and_restart();
    let statement = lost(1, (boot(1), epoch), (W1, boot(1)), &[an_item(J1, 0, 2, 1)]);
    assert!(master.receives(BALANCER_PEER, statement.clone())[0].starts_with("2: error busy #1"));
    master.wait(GRACE);
    assert_eq!(master.receives(BALANCER_PEER, statement), ["2: committed #1 changed 2"]);
}

#[test]
fn a_newer_boot_shows_at_once_that_the_older_is_lost() {
    let mut master = a_master().build();
    let epoch = master.enthrones(1);
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(2)));
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1)).registers(W1_PEER, &a_node(W1, Role::Worker, 2));
    let statement = lost(1, (boot(1), epoch), (W1, boot(1)), &[an_item(J1, 0, 2, 1)]);
    assert_eq!(master.receives(BALANCER_PEER, statement), ["2: committed #1 changed 2"]);
    let newer = lost(2, (boot(1), epoch), (W1, boot(2)), &[an_item(J1, 0, 2, 2)]);
    assert!(master.receives(BALANCER_PEER, newer)[0].starts_with("2: error busy #2"));
}

#[test]
fn only_the_primary_in_its_epoch_may_call_a_worker_lost() {
    let mut master = a_master().build();
    assert_eq!((master.enthrones(1), master.enthrones(2)), (1, 2));
    master.wait(GRACE);
    for (lb_boot, epoch) in [(boot(1), 1), (boot(1), 2), (boot(2), 1), (boot(2), 3)] {
        let statement = lost(1, (lb_boot, epoch), (W1, boot(1)), &[]);
        assert_eq!(master.receives(BALANCER_PEER, statement), ["2: error stale_epoch #1: the current epoch is 2"]);
    }
    let statement = lost(2, (boot(2), 2), (W1, boot(1)), &[]);
    assert_eq!(master.receives(BALANCER_PEER, statement), ["2: committed #2 changed 0"]);
}

#[test]
fn a_restarted_load_balancer_gets_the_next_epoch_with_its_hello() {
    let mut master = a_master().build();
    assert_eq!(master.enthrones(1), 1);
    master.registers(BALANCER_PEER, &a_node(BALANCER, Role::LoadBalancer, 2));
    assert_eq!((master.core.state().epoch.number, master.core.state().epoch.boot), (2, boot(2)));
}

#[test]
fn an_epoch_outlives_the_masters_restart() {
    let mut master = a_master().build();
    master.enthrones(1);
    let mut master = master.crash_and_restart();
    let heard = master.receives(BALANCER_PEER, balancer_heartbeat(boot(1), 1, &[]));
    assert_eq!(heard, ["2: heartbeat epoch 1"]);
    master.wait(Duration::from_secs(10));
    assert_eq!(master.core.state().epoch.number, 1);
}

/// The heartbeats of a second load balancer.
const AUXILIARY: NodeId = NodeId([0xB2; 16]);

fn auxiliary_heartbeat() -> Vec<u8> {
    let mut frame = balancer_heartbeat(boot(1), 0, &[]);
    let of_node = hello(1, &a_node(AUXILIARY, Role::LoadBalancer, 1));
    frame[1..17].copy_from_slice(&of_node[1..17]);
    frame
}

#[test]
fn a_silent_primary_is_replaced_and_not_more_often_than_the_hold_down() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.registers(W2_PEER, &a_node(AUXILIARY, Role::LoadBalancer, 1));
    // Both speak: nothing changes.
    for _ in 0..20 {
        master.receives(BALANCER_PEER, balancer_heartbeat(boot(1), 1, &[]));
        master.receives(W2_PEER, auxiliary_heartbeat());
        master.wait(Duration::from_millis(200));
    }
    assert_eq!(master.core.state().epoch.number, 1);
    let mut since = master.now;
    let mut reigns = Vec::new();
    for turn in 0..40 {
        let before = master.core.state().epoch.number;
        // First the primary is silent, then the auxiliary.
        if turn < 5 {
            master.receives(W2_PEER, auxiliary_heartbeat());
        } else {
            master.receives(BALANCER_PEER, balancer_heartbeat(boot(1), 1, &[]));
        }
        master.wait(Duration::from_millis(200));
        if master.core.state().epoch.number > before {
            reigns.push((master.core.state().epoch.load_balancer, master.now.since(since)));
            since = master.now;
        }
    }
    assert_eq!(reigns.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [AUXILIARY, BALANCER]);
    assert!(reigns[0].1 < Duration::from_millis(1_200) && reigns[1].1 >= Duration::from_secs(3), "{reigns:?}");
}

#[test]
fn a_full_backlog_says_busy_and_keeps_nothing() {
    let mut master = a_master().slow_disk().limits(|limits| limits.backlog_max = 3).build();
    while master.unwritten() > 0 {
        master.persist_one();
        master.tick();
    }
    let jobs: Vec<_> = (1..=5u8).map(|n| (CLIENT_PEER, submit(n.into(), wire::JobId([n; 16]), &a_spec(1)))).collect();
    let busy = |n: u8| format!("1: error busy #{n}: too many requests are under way");
    assert_eq!(master.receives_all(&jobs), [busy(4), busy(5)]);
    assert_eq!(master.persist_one().len(), 3);
    assert_eq!(master.receives_all(&jobs[3..]), [""; 0]);
}

#[test]
fn cancel_is_answered_with_what_it_changed() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    assert_eq!(master.receives(CLIENT_PEER, cancel(2, J1, 0, u32::MAX)), ["1: committed #2 changed 4"]);
    assert_eq!(master.receives(CLIENT_PEER, cancel(3, J1, 0, u32::MAX)), ["1: committed #3 changed 0"]);
    assert_eq!(master.receives(CLIENT_PEER, cancel(4, J2, 0, 1)), [format!("1: error unknown_job #4: no job {J2}")]);
}

#[test]
fn a_cancel_enters_the_log_with_what_runs() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1)).registers(W2_PEER, &a_node(W2, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(9)));
    master.receives(CLIENT_PEER, submit(2, J2, &a_spec(9)));
    let second = Duration::from_secs(1);
    // The first word about 2 counts, and of 3 only where it runs is known.
    for age in [second, 3 * second] {
        master.receives(W1_PEER, heartbeat_running(W1, boot(1), &[an_item(J1, 2, 2, 1)], &[age]));
    }
    master.runs_all(&[(J1, 7, 1, W2), (J2, 0, 9, W1), (J1, 2, 2, W1), (J1, 3, 1, W2)]);
    let forged = stamped_cancel(&cancel(3, J1, 0, 9), &[running(0, 9, 1, W2, 1)]);
    let refused = master.receives(CLIENT_PEER, forged);
    assert!(refused[0].starts_with("1: error"), "only a leader says what runs: {refused:?}");

    assert_eq!(master.receives(CLIENT_PEER, cancel(4, J1, 0, 6)), ["1: committed #4 changed 6"]);
    let canceled = |master: &MasterUnderTest, chunk| {
        let run = master.core.state().jobs[&J1].canceled.of(chunk)?;
        Some((chunk, run.worker, run.started_at.0.saturating_sub(WALL)))
    };
    let told: Vec<_> = (0..9).filter_map(|chunk| canceled(&master, chunk)).collect();
    assert_eq!(told, [(2, W1, master.now.0 - 1_000_000), (3, W1, 0)]);
    let index = master.core.state().index;
    assert_eq!(master.receives(CLIENT_PEER, cancel(4, J1, 0, 6)), ["1: committed #4 changed 0"]);
    assert_eq!(master.core.state().index, index);

    assert_eq!(master.receives(CLIENT_PEER, cancel(5, J1, 0, u32::MAX)), ["1: committed #5 changed 3"]);
    assert_eq!(canceled(&master, 7), Some((7, W2, 0)));
    let before = master.core.state().encode();
    let restarted = master.crash_and_restart();
    let job = |bytes: &[u8]| master::core::state::State::decode(bytes).unwrap().jobs[&J1].clone();
    assert!(job(&before) == restarted.core.state().jobs[&J1], "the log says it again");
}

#[test]
fn of_what_runs_a_cancel_tells_as_much_as_fits() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(3_000)));
    master.receives(W1_PEER, hello(1, &a_node(W1, Role::Worker, 1)));
    let items: Vec<_> = (0..1_000).map(|n| (J1, 3 * n, 2, W1)).collect();
    master.runs_all(&items);
    let ages: Vec<_> = (0..1_024).map(Duration::from_secs).collect();
    master.receives(W1_PEER, heartbeat_running(W1, boot(1), &[an_item(J1, 0, 3_000, 1)], &ages));
    assert_eq!(master.receives(CLIENT_PEER, cancel(2, J1, 0, u32::MAX)), ["1: committed #2 changed 3000"]);
    let canceled = &master.core.state().jobs[&J1].canceled;
    assert_eq!(canceled.ranges().count(), CANCEL_RUNNING_MAX);
    assert!(canceled.of(0).is_some() && canceled.of(2).is_none() && canceled.of(2_998).is_none());
}

#[test]
fn what_is_not_for_masters_is_refused_and_nothing_panics() {
    let mut master = a_master().build();
    for kind in 0..=255u8 {
        for length in [0usize, 25, 40, 60, 120, 300] {
            let mut frame = vec![kind; length];
            if length >= 25 {
                frame[0] = kind;
                frame[17..25].copy_from_slice(&(length.min(110) as u64).to_le_bytes());
            }
            master.receives(CLIENT_PEER, frame);
        }
    }
}
