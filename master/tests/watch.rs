//! What watchers are told, from which index, and when.

use crate::support::frames::*;
use crate::support::*;
use master::core::Event;
use wire::job::JobSpec;
use wire::{Duration, FixedPart, JobId, Message, Role, WATCH_FRESH};

#[test]
fn a_watch_is_answered_at_once_when_there_is_news() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(2)));
    let told = master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    assert_eq!(told, ["2: batch #1 (2, 3] accepted 1"]);
}

#[test]
fn a_watch_without_news_waits_for_it() {
    let mut master = a_master().build();
    let index = master.core.state().index;
    assert_eq!(master.receives(BALANCER_PEER, watch(1, index, None, 0)), [""; 0]);
    let said = master.receives(CLIENT_PEER, submit(1, J1, &a_spec(2)));
    assert_eq!(said, ["1: job_accepted #1 number 1", "2: batch #1 (2, 3] accepted 1"]);
    // It was answered, so the next news is for the next watch.
    assert_eq!(master.receives(CLIENT_PEER, cancel(2, J1, 0, 1)), ["1: committed #2 changed 1"]);
    assert_eq!(master.receives(BALANCER_PEER, watch(2, 3, None, 0)), ["2: batch #2 (3, 4] canceled 0"]);
}

#[test]
fn a_watch_that_waited_long_enough_is_told_how_far_the_log_is() {
    let mut master = a_master().build();
    master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    assert_eq!(master.wait(Duration::from_millis(999)), [""; 0]);
    assert_eq!(master.wait(Duration::from_millis(1)), ["2: batch #1 (2, 2] "]);
    assert_eq!(master.wait(Duration::from_secs(5)), [""; 0]);
}

#[test]
fn a_watch_that_is_sent_again_replaces_the_earlier() {
    let mut master = a_master().build();
    master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    master.receives(BALANCER_PEER, watch(2, 2, None, 0));
    assert_eq!(master.wait(Duration::from_secs(5)), ["2: batch #2 (2, 2] "]);
}

#[test]
fn a_fresh_watcher_gets_the_present_then_what_follows() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.receives(CLIENT_PEER, submit(1, J1, &JobSpec { retries: 1, ..a_spec(4) }));
    master.receives(CLIENT_PEER, submit(2, J2, &a_spec(1)));
    master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result()])]).frame());
    master.receives(W1_PEER, failed(W1, J1, 1, &[a_run(1, &[exit(1)])]).number(2).frame());
    master.receives(W1_PEER, succeeded(W1, J2, &[a_run(0, &[a_result()])]).number(3).frame());
    let index = master.core.state().index;
    let told = master.receives(BALANCER_PEER, watch(9, 0, None, WATCH_FRESH));
    let nodes = "node m1; node loadbalancer-b1";
    // The job that has ended is nothing to a load balancer.
    let expected = format!("2: snapshot #9 ({index}, {index}] {nodes}; epoch 1; job 1 with 1 sets, 1 attempts");
    assert_eq!(told, [expected]);
    assert_eq!(master.receives(BALANCER_PEER, watch(10, index, None, 0)), [""; 0]);
}

#[test]
fn a_watcher_of_one_job_hears_of_that_job_only() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    master.receives(CLIENT_PEER, submit(2, J2, &a_spec(1)));
    assert_eq!(master.receives(W2_PEER, watch(1, 2, Some(J1), 0)), ["4: batch #1 (2, 4] accepted 1"]);
    assert_eq!(master.receives(W2_PEER, watch(2, 4, Some(J1), 0)), [""; 0]);
    assert_eq!(master.receives(CLIENT_PEER, cancel(3, J2, 0, 1)), ["1: committed #3 changed 1"]);
    let said = master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result()])]).frame());
    assert_eq!(said, ["3: confirmed 1", "4: batch #2 (4, 6] finished 0; job finished"]);

    let ended = master.receives(W2_PEER, watch(3, 0, Some(J1), WATCH_FRESH));
    assert_eq!(ended, ["4: snapshot #3 (6, 6] job 1 with 1 sets, 0 attempts; job finished"]);
    let unknown = JobId([9; 16]);
    let refused = master.receives(W2_PEER, watch(4, 0, Some(unknown), 0));
    assert_eq!(refused, [format!("4: error unknown_job #4: no job {unknown}")]);
}

#[test]
fn a_watcher_from_before_what_is_remembered_gets_a_snapshot() {
    let mut master = a_master().limits(|limits| limits.event_bytes_max = 500).build();
    for n in 1..=20u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &a_spec(1)));
    }
    let told = master.receives(BALANCER_PEER, watch(1, 5, None, 0));
    assert!(told[0].starts_with("2: snapshot #1 (22, 22] node m1; job 1 with"), "{told:?}");
    assert!(master.receives(BALANCER_PEER, watch(2, 21, None, 0))[0].starts_with("2: batch #2 (21, 22] accepted 20"));
    // One from the future has seen a log that is gone.
    assert!(master.receives(BALANCER_PEER, watch(3, 99, None, 0))[0].starts_with("2: snapshot #3"));
}

#[test]
fn the_past_before_a_restart_is_known_as_far_as_the_log_is() {
    let mut master = a_master().build();
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    let mut master = master.crash_and_restart();
    let told = master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    assert!(told[0].starts_with("2: batch #1 (2, 5] accepted 1; node m1"), "{told:?}");
}

#[test]
fn much_news_comes_in_several_batches_without_a_gap() {
    let mut master = a_master().build();
    let spec = JobSpec { environment: vec![(b"E".to_vec(), vec![b'x'; 100_000])], ..a_spec(1) };
    for n in 1..=10u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &spec));
    }
    let (mut after, mut batches, mut accepted) = (2, 0, Vec::new());
    while after < master.core.state().index {
        let sent = master.receives_frames(&[(BALANCER_PEER, watch(1, after, None, 0))]);
        let Ok(Message::WatchBatch(fixed, body)) = Message::decode(&sent[0].1) else { panic!("no batch") };
        assert!(sent.len() == 1 && fixed.after.get() == after && sent[0].1.len() < 300_000);
        accepted.extend(events(&fixed, body).iter().map(event_word));
        after = fixed.index.get();
        batches += 1;
    }
    assert_eq!(batches, 5);
    assert_eq!(accepted, (1..=10).map(|n| format!("accepted {n}")).collect::<Vec<_>>());
}

#[test]
fn a_snapshot_larger_than_a_frame_comes_in_parts() {
    let mut master = a_master().build();
    let spec = JobSpec { environment: vec![(b"E".to_vec(), vec![b'x'; 900_000])], ..a_spec(1) };
    for n in 1..=3u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &spec));
    }
    let sent = master.receives_frames(&[(BALANCER_PEER, watch(1, 0, None, WATCH_FRESH))]);
    assert_eq!(sent.len(), 3);
    let mut told = Vec::new();
    for (part, (_, frame)) in sent.iter().enumerate() {
        assert!(frame.len() <= wire::limit::FRAME_SIZE_MAX);
        let Ok(Message::WatchBatch(fixed, body)) = Message::decode(frame) else { panic!("no batch") };
        assert_eq!((fixed.part.get(), fixed.parts.get(), fixed.request.get()), (part as u16, 3, 1));
        told.extend(events(&fixed, body).iter().map(event_word));
    }
    let job = |n: u8| format!("job {n} with 0 sets, 0 attempts");
    assert_eq!(told, [String::from("node m1"), job(1), job(2), job(3)]);
}

#[test]
fn a_job_too_large_for_one_event_is_told_in_pieces() {
    let mut master = a_master().build();
    // A frame near its limit, and sets that no longer fit beside it: every second chunk has ended.
    let program = vec![b'#'; 1_040_000];
    let lines = JobSpec { environment: vec![(b"E".to_vec(), vec![b'x'; 980_000])], ..a_spec(600_000) };
    let body = wire::job::JobBody::encode(&program, &[], &lines);
    let fixed = wire::SubmitJob {
        job_uuid: J1.into(),
        program_length: wire::U64::new(1_040_000),
        chunk_count: wire::U32::new(600_000),
        ..wire::SubmitJob::DEFAULT
    };
    assert_eq!(master.receives(CLIENT_PEER, fixed.frame(CLIENT, &body)), ["1: job_accepted #0 number 1"]);
    master.checks_invariants = false;
    for start in (0..600_000).step_by(2_000) {
        let runs: Vec<_> = (0..1_000).map(|n| a_run(start + 2 * n, &[a_result()])).collect();
        master.receives(W1_PEER, succeeded(W1, J1, &runs).number(start.into()).frame());
    }
    let sent = master.receives_frames(&[(BALANCER_PEER, watch(1, 0, Some(J1), WATCH_FRESH))]);
    let mut ended = 0;
    for (_, frame) in &sent {
        assert!(frame.len() <= wire::limit::FRAME_SIZE_MAX);
        let Ok(Message::WatchBatch(fixed, body)) = Message::decode(frame) else { panic!("no batch") };
        for event in events(&fixed, body) {
            if let wire::event::LogEvent::ChunksEnded { ranges, .. } = event {
                ended += ranges.iter().map(|range| range.count).sum::<u32>();
            }
        }
    }
    assert_eq!(ended, 300_000);
}

#[test]
fn a_peer_that_is_gone_leaves_no_watch_behind() {
    let mut master = a_master().limits(|limits| limits.watches_max = 1).build();
    master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    assert_eq!(master.receives(W1_PEER, watch(1, 2, None, 0)), ["3: error busy #1: too many watches wait"]);
    master.step(Event::PeerGone { peer: BALANCER_PEER });
    assert_eq!(master.receives(W1_PEER, watch(2, 2, None, 0)), [""; 0]);
    assert_eq!(master.wait(Duration::from_secs(2)), ["3: batch #2 (2, 2] "]);
}

#[test]
fn a_new_worker_is_news() {
    let mut master = a_master().build();
    master.receives(BALANCER_PEER, watch(1, 2, None, 0));
    let said = master.receives(W1_PEER, hello(1, &a_node(W1, Role::Worker, 1)));
    assert_eq!(said, ["3: welcome #1 []", "2: batch #1 (2, 3] node worker-11"]);
}
