//! The conversation with the masters: registration, heartbeats, the watch.

use crate::support::*;
use loadbalancer::core::{Action, Config, Event, LoadBalancer, Timings};
use wire::event::LogEvent;
use wire::job::JobSpec;
use wire::*;

const NODE_OF_MASTER: NodeId = NodeId([9; 16]);
const FIRST_REQUEST: u64 = (OUR_BOOT.0 << 32) + 1;

fn welcome(request: u64) -> Vec<u8> {
    NodeWelcome { request: U64::new(request), index: U64::new(3), ..NodeWelcome::DEFAULT }.frame(NODE_OF_MASTER, &[])
}

#[test]
fn it_says_hello_until_it_is_welcome_and_begins_with_a_snapshot() {
    let mut stage = a_fresh_load_balancer();
    let hello = Said::Hello { boot: OUR_BOOT, name: "l1".into() };
    let heartbeat = Said::Heartbeat { epoch: 0, index: 0, workers_seen: 0, running: 0 };
    let watch = Said::Watch { after: 0, fresh: true };
    assert_eq!(stage.all_said(), [hello.clone(), heartbeat.clone(), watch.clone()]);
    let count = |said: &[Said], what: &Said| said.iter().filter(|said| *said == what).count();
    stage.pass(ms(3_900), &[]);
    let said = stage.all_said();
    assert_eq!(count(&said, &hello), 2, "after one second and after two more");
    assert_eq!(count(&said, &watch), 2, "each and a half second");
    assert_eq!(count(&said, &heartbeat), 19);
    // What the boot before asked is answered late.
    stage.hears(MASTER, &welcome(1));
    stage.pass(ms(5_000), &[]);
    assert!(stage.all_said().contains(&hello));
    stage.hears(MASTER, &welcome(FIRST_REQUEST));
    stage.pass(ms(10_000), &[]);
    assert_eq!(count(&stage.all_said(), &hello), 0);
    assert!(stage.notes.contains(&loadbalancer::core::Note::Registered { index: 3 }));
}

#[test]
fn a_master_that_has_forgotten_it_gets_a_new_hello() {
    let mut stage = a_fresh_load_balancer();
    stage.hears(MASTER, &welcome(FIRST_REQUEST));
    stage.all_said();
    let kind = Some(Kind::LoadBalancerHeartbeat);
    stage.hears(MASTER, &error_frame(NODE_OF_MASTER, ErrorCode::UnknownNode, kind, 0, JobId::NIL, "who?"));
    assert_eq!(stage.all_said(), [Said::Hello { boot: OUR_BOOT, name: "l1".into() }]);
}

#[test]
fn of_several_masters_the_one_that_does_not_know_it_leads_and_gets_the_hello() {
    let config = Config {
        node: US,
        boot: OUR_BOOT,
        name: "l1".into(),
        endpoint: "tcp://l1".into(),
        public_key: ClientKey([9; 32]),
        pid: 5,
        masters: vec![PeerId(1), PeerId(2), PeerId(3)],
        timings: Timings::default(),
    };
    let now = Instant(1_000_000);
    let mut core = LoadBalancer::new(config, now);
    let mut hellos = |event: Event<'_>| {
        let mut actions = Vec::new();
        core.step(event, now, &mut actions);
        let mut to = Vec::new();
        for action in actions {
            if let Action::Send { to: peer, frame } = action
                && matches!(Message::decode(&frame), Ok(Message::NodeHello(..)))
            {
                to.push(peer);
            }
        }
        to
    };
    assert_eq!(hellos(Event::Tick), [PeerId(1)]);
    let kind = Some(Kind::NodeHello);
    let follower = error_frame(NODE_OF_MASTER, ErrorCode::NotLeader, kind, FIRST_REQUEST, JobId::NIL, "tcp://m2");
    assert_eq!(hellos(Event::Received { from: PeerId(1), frame: &follower }), []);
    let kind = Some(Kind::LoadBalancerHeartbeat);
    let leader = error_frame(NODE_OF_MASTER, ErrorCode::UnknownNode, kind, 0, JobId::NIL, "who?");
    hellos(Event::Received { from: PeerId(2), frame: &leader });
    assert_eq!(hellos(Event::Tick), [PeerId(2)]);
    assert_eq!(hellos(Event::Received { from: PeerId(2), frame: &leader }), [], "it is under way");
    assert_eq!(hellos(Event::Tick), []);
}

#[test]
fn an_answered_watch_is_followed_by_the_next() {
    let mut stage = a_load_balancer();
    stage.all_said();
    stage.submit(j(1), 1);
    assert_eq!(stage.all_said(), [Said::Watch { after: 2, fresh: false }]);
    assert_eq!(stage.core.index(), 2);
}

#[test]
fn a_lost_batch_is_asked_for_again() {
    let mut stage = a_load_balancer();
    stage.is_telling = false;
    stage.submit(j(1), 1);
    stage.all_said();
    stage.pass(ms(1_501), &[]);
    assert!(stage.all_said().contains(&Said::Watch { after: 1, fresh: false }));
    stage.is_telling = true;
    stage.tell();
    assert_eq!(stage.core.index(), 2);
}

#[test]
fn a_master_that_dies_in_the_middle_of_an_answer_costs_a_timeout_and_nothing_else() {
    let mut stage = a_load_balancer();
    stage.all_said();
    let request = U64::new(stage.watch_request());
    stage.is_telling = false;
    stage.submit(j(1), 1);
    let part = |part| {
        let (after, index) = (U64::new(1), U64::new(2));
        WatchBatch { request, after, index, part: U16::new(part), parts: U16::new(2), ..WatchBatch::DEFAULT }
            .frame(NODE_OF_MASTER, &[])
    };
    stage.hears(MASTER, &part(0));
    // Heartbeats go unheard meanwhile; the watch is asked again from where the view is, under a number of its own.
    stage.pass(ms(1_501), &[]);
    assert!(stage.all_said().contains(&Said::Watch { after: 1, fresh: false }));
    assert_ne!(stage.watch_request(), request.get());
    // What was still on its way from the dead master completes nothing.
    stage.hears(MASTER, &part(1));
    assert_eq!((stage.core.index(), stage.all_said()), (1, vec![]));
    stage.is_telling = true;
    stage.tell();
    assert_eq!((stage.core.index(), stage.all_said()), (2, vec![Said::Watch { after: 2, fresh: false }]));
}

#[test]
fn a_batch_with_a_gap_or_of_an_old_watch_or_of_nonsense_changes_nothing() {
    let mut stage = a_load_balancer();
    stage.all_said();
    let batch = WatchBatch { after: U64::new(5), index: U64::new(9), ..WatchBatch::DEFAULT };
    stage.hears(MASTER, &batch.frame(NODE_OF_MASTER, &[]));
    assert_eq!(stage.all_said(), []);
    let request = stage.watch_request();
    let batch = WatchBatch { request: U64::new(request), ..batch };
    stage.hears(MASTER, &batch.frame(NODE_OF_MASTER, &[]));
    assert_eq!(stage.all_said(), [Said::Watch { after: 1, fresh: false }]);
    let request = U64::new(stage.watch_request());
    let batch = WatchBatch { request, after: U64::new(1), num_events: U32::new(3), ..batch };
    stage.hears(MASTER, &batch.frame(NODE_OF_MASTER, b"\x01\x02nonsense"));
    assert_eq!((stage.core.index(), stage.all_said()), (1, vec![]));
    // A worker cannot pretend to be a master.
    let batch = WatchBatch { num_events: U32::new(0), ..batch };
    stage.hears(PeerId(101), &batch.frame(NODE_OF_MASTER, &[]));
    assert_eq!(stage.core.index(), 1);
}

#[test]
fn a_snapshot_in_parts_counts_when_all_are_here() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 5, &JobSpec::default());
    let job =
        LogEvent::JobSnapshot { number: 1, submitted_at: WallTime(0), frame: &frame, ended: vec![], attempts: vec![] };
    let grant = LogEvent::EpochGranted { load_balancer: US, boot: OUR_BOOT, epoch: 4 };
    let request = U64::new(stage.watch_request());
    for (part, event) in [job, grant].iter().enumerate() {
        assert_eq!(stage.core.epoch(), None);
        let mut body = Writer::new();
        event.encode(&mut body);
        let batch = WatchBatch {
            request,
            index: U64::new(0),
            flags: U32::new(BATCH_SNAPSHOT),
            num_events: U32::new(1),
            part: U16::new(part as u16),
            parts: U16::new(2),
            ..WatchBatch::DEFAULT
        };
        stage.hears(MASTER, &batch.frame(NODE_OF_MASTER, &body.bytes));
    }
    assert_eq!(stage.core.epoch(), Some(4));
}

#[test]
fn a_snapshot_in_the_middle_of_a_reign_keeps_what_is_held_and_asks_the_workers() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.submit(j(1), 4);
    stage.submit(j(2), 2);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 4));
    stage.said();
    // Meanwhile chunk 0 finished, chunk 1 was canceled, chunk 2 failed once, and job 2 is gone.
    let frame = submit(j(1), 4, &JobSpec::default());
    let set = |range| ChunkSet::from_iter([range]).to_bytes();
    let ended = vec![(ChunkState::Finished, set(r(0, 1))), (ChunkState::Canceled, set(r(1, 1)))];
    let job = LogEvent::JobSnapshot {
        number: 1,
        submitted_at: WallTime(0),
        frame: &frame,
        ended,
        attempts: vec![(r(2, 1), 2)],
    };
    let grant = LogEvent::EpochGranted { load_balancer: US, boot: OUR_BOOT, epoch: 1 };
    stage.snapshot(&[job, LogEvent::NodeRegistered { node: record_of(&one) }, grant]);
    assert_eq!(stage.held(&one, j(1)), [r(2, 2)]);
    stage.pass(ms(101), &[]);
    let said = stage.said();
    let is_kill = |said: &&Said| matches!(said, Said::Kill { job, range, .. } if *job == j(1) && *range == r(0, 2));
    assert_eq!(said.iter().filter(is_kill).count(), 1, "{said:?}");
    assert!(said.contains(&Said::AskInventory { to: w(1), epoch: 1 }), "{said:?}");
    // The worker has nothing of chunk 2 any more: now it can go out with its new attempt.
    one.credit = 1;
    stage.hears(one.peer, &one.inventory(&[running(j(1), r(3, 1), 1)]));
    assert_eq!(stage.said(), [request(w(1), 2, j(1), r(2, 1), 2)]);
}

/// A job as it was submitted.
fn bare_snapshot(frame: &[u8]) -> LogEvent<'_> {
    LogEvent::JobSnapshot { number: 1, submitted_at: WallTime(0), frame, ended: vec![], attempts: vec![] }
}

#[test]
fn a_job_too_large_for_one_event_is_taken_in_pieces() {
    let mut stage = a_fresh_load_balancer();
    let frame = submit(j(1), 6, &JobSpec::default());
    stage.snapshot(&[
        bare_snapshot(&frame),
        LogEvent::ChunksWaiting { job: j(1), attempt: 3, ranges: vec![r(2, 1)] },
        LogEvent::ChunksWaiting { job: j(1), attempt: 2, ranges: vec![r(4, 1)] },
        LogEvent::ChunksEnded { job: j(1), state: ChunkState::Finished, ranges: vec![r(0, 1)] },
        LogEvent::ChunksEnded { job: j(1), state: ChunkState::Failed, ranges: vec![r(4, 1)] },
    ]);
    stage.grant(1);
    let mut one = Worker::number(1);
    one.credit = 0;
    stage.joins(&mut one);
    one.credit = 9;
    stage.hears(one.peer, &one.heartbeat());
    let rest = [
        first_request(w(1), 1, j(1), r(1, 1), 1),
        request(w(1), 2, j(1), r(2, 1), 3),
        request(w(1), 3, j(1), r(3, 1), 1),
        request(w(1), 4, j(1), r(5, 1), 1),
    ];
    assert_eq!(stage.said(), rest);
}

#[test]
fn what_ended_in_a_gap_and_is_told_in_pieces_is_held_no_more() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.submit(j(1), 4);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 4));
    stage.said();
    let frame = submit(j(1), 4, &JobSpec::default());
    stage.snapshot(&[
        LogEvent::NodeRegistered { node: record_of(&one) },
        LogEvent::EpochGranted { load_balancer: US, boot: OUR_BOOT, epoch: 1 },
        bare_snapshot(&frame),
        LogEvent::ChunksWaiting { job: j(1), attempt: 2, ranges: vec![r(2, 1)] },
        LogEvent::ChunksEnded { job: j(1), state: ChunkState::Canceled, ranges: vec![r(0, 2)] },
    ]);
    assert_eq!(stage.held(&one, j(1)), [r(2, 2)]);
    let said = stage.said();
    let is_kill = |said: &&Said| matches!(said, Said::Kill { job, range, .. } if *job == j(1) && *range == r(0, 2));
    assert_eq!(said.iter().filter(is_kill).count(), 1, "{said:?}");
    one.credit = 1;
    stage.hears(one.peer, &one.inventory(&[running(j(1), r(3, 1), 1)]));
    stage.tick();
    assert!(stage.said().contains(&request(w(1), 2, j(1), r(2, 1), 2)));
}

#[test]
fn heartbeats_tell_what_runs_and_is_still_held() {
    let mut stage = a_load_balancer();
    let mut one = Worker::number(1);
    stage.joins(&mut one);
    stage.submit(j(1), 4);
    stage.accepts(&mut one, 1, 0, j(1), r(0, 4));
    stage.hears(one.peer, &one.heartbeat_running(&[running(j(1), r(0, 2), 1)]));
    stage.ended(j(1), r(0, 1), ChunkState::Finished);
    stage.all_said();
    stage.pass(ms(201), &[]);
    let index = stage.index();
    let heartbeat = Said::Heartbeat { epoch: 1, index, workers_seen: 1, running: 1 };
    assert!(stage.all_said().contains(&heartbeat));
}

#[test]
fn what_is_not_for_a_load_balancer_is_refused_and_bad_bytes_too() {
    let mut stage = a_load_balancer();
    stage.all_said();
    let peer = PeerId(150);
    stage.hears(peer, &CancelJob::DEFAULT.frame(w(1), &[]));
    stage.hears(peer, &[2, 0, 0]);
    // A list that is shorter than it says.
    let inventory = Inventory { boot: U64::new(1), num_items: U32::new(u32::MAX), ..Inventory::DEFAULT };
    stage.hears(peer, &inventory.frame(w(1), &[]));
    stage.hears(peer, &error_frame(w(1), ErrorCode::Malformed, None, 0, JobId::NIL, "no"));
    let codes: Vec<_> = stage.all_said();
    assert_eq!(
        codes,
        [ErrorCode::NotAllowed, ErrorCode::Malformed, ErrorCode::Malformed]
            .map(|code| Said::Refused { to: peer, code: code as u16 })
    );
}
