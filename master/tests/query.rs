//! What questions are answered with.

use crate::support::frames::*;
use crate::support::*;
use wire::job::JobSpec;
use wire::record::{
    ChunkCounts, ChunkRecord, FileRecord, InputCounts, JobRecord, NodeInputs, NodeRecord, StatusRecord,
};
use wire::{
    Cause, ChunkState, DecodeError, Duration, ErrorCode, FixedPart, JobId, JobState, Message, NodeState, QUERY_ALL,
    Query, Reader, Role, Subject, U32, U64,
};

/// The records of the answer, and the key to go on after.
fn ask<T>(
    master: &mut MasterUnderTest,
    query: Query,
    text: &str,
    decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<(Vec<T>, u64), (ErrorCode, String)> {
    let sent = master.receives_frames(&[(CLIENT_PEER, query.frame(CLIENT, text.as_bytes()))]);
    assert_eq!(sent.len(), 1);
    match Message::decode(&sent[0].1).unwrap() {
        Message::Answer(fixed, body) => {
            let mut from = Reader::new(body);
            let records = (0..fixed.num_records.get()).map(|_| decode(&mut from).unwrap()).collect();
            assert!(from.is_empty() && fixed.request == query.request && fixed.subject == query.subject);
            Ok((records, fixed.next.get()))
        }
        Message::Error(fixed, detail) => {
            let code = ErrorCode::from_number(fixed.code.get()).unwrap();
            Err((code, String::from_utf8(detail.to_vec()).unwrap()))
        }
        other => panic!("answered by {:?}", other.kind()),
    }
}

fn job_by(master: &mut MasterUnderTest, text: &str) -> Result<JobRecord, (ErrorCode, String)> {
    ask(master, query(1, Subject::Job), text, JobRecord::decode).map(|(mut records, _)| records.remove(0))
}

#[test]
fn a_job_is_named_by_number_uuid_prefix_or_last() {
    let mut master = a_master().build();
    let (one, two) = ("11112222-0000-7000-8000-000000000001", "11113333-0000-7000-8000-000000000002");
    for (request, id) in [(1, one), (2, two)] {
        master.receives(CLIENT_PEER, submit(request, id.parse().unwrap(), &a_spec(3)));
    }
    for (text, number) in [("1", 1), ("2", 2), ("last", 2), (one, 1), ("11113", 2), ("11112222", 1), ("1111-3333", 2)] {
        assert_eq!(job_by(&mut master, text).map(|job| job.number), Ok(number), "{text}");
    }
    let by_uuid = Query { uuid: one.parse::<JobId>().unwrap().into(), ..query(1, Subject::Job) };
    assert_eq!(ask(&mut master, by_uuid, "", JobRecord::decode).unwrap().0[0].number, 1);
    let too_long = format!("{one}0");
    for text in ["3", "abcdef", "111", "", "job one", "%", &too_long] {
        assert_eq!(job_by(&mut master, text), Err((ErrorCode::UnknownJob, format!("no job '{text}'"))));
    }
    let (code, detail) = job_by(&mut master, "1111").unwrap_err();
    assert!(code == ErrorCode::UnknownJob && detail.contains(one) && detail.contains(two), "{detail}");
}

#[test]
fn the_chunks_of_a_job_are_counted_with_what_the_primary_runs() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.receives(CLIENT_PEER, submit(1, J1, &JobSpec { name: b"count".to_vec(), ..a_spec(10) }));
    master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result(), a_result()])]).frame());
    master.runs(J1, 1, 4, W2);
    let job = job_by(&mut master, "1").unwrap();
    let expected = ChunkCounts { waiting: 5, running: 3, finished: 2, ..ChunkCounts::default() };
    assert_eq!((job.counts, job.state, job.name.as_slice()), (expected, JobState::Running, &b"count"[..]));
    assert_eq!((job.command.as_slice(), job.started_at.0, job.finished_at.0), (&b"true"[..], 5_000, 0));
    let status = ask(&mut master, query(1, Subject::Status), "", StatusRecord::decode).unwrap().0.remove(0);
    assert_eq!((status.chunks_running, status.chunks_waiting, status.jobs_live), (3, 5, 1));
    assert_eq!((status.leader, status.primary, status.epoch), (MASTER, BALANCER, 1));
}

#[test]
fn what_workers_count_of_inputs_is_told_as_their_last_heartbeats_and_results_had_it() {
    let mut master = a_master().build();
    let inputs =
        |master: &mut MasterUnderTest| ask(master, query(1, Subject::Inputs), "", NodeInputs::decode).unwrap().0;
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    assert_eq!(inputs(&mut master), []);
    for bytes_fetched in [7, 9] {
        let counts = InputCounts { opens_cached: 2, bytes_fetched, ..InputCounts::default() };
        master.receives(W1_PEER, heartbeat_counting(W1, boot(1), counts));
        assert_eq!(inputs(&mut master), [NodeInputs { node: W1, counts }]);
    }
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(1)));
    let counts = InputCounts { opens_passthrough: 3, bytes_fetched: 20, ..InputCounts::default() };
    master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result()])]).counting(counts).frame());
    assert_eq!(inputs(&mut master), [NodeInputs { node: W1, counts }], "whoever knows the end knows them");
}

#[test]
fn each_chunk_tells_its_state_attempt_and_result() {
    let mut master = a_master().build();
    let epoch = master.enthrones(1);
    master.receives(CLIENT_PEER, submit(1, J1, &JobSpec { crash_limit: 1, ..a_spec(6) }));
    master.receives(W1_PEER, succeeded(W1, J1, &[a_run(0, &[a_result()])]).frame());
    master.receives(W1_PEER, failed(W1, J1, 1, &[a_run(1, &[exit(3)])]).number(2).frame());
    master.wait(Duration::from_secs(5));
    master.receives(BALANCER_PEER, lost(1, (boot(1), epoch), (W2, boot(1)), &[an_item(J1, 2, 1, 1)]));
    master.receives(CLIENT_PEER, cancel(2, J1, 3, 1));
    master.runs(J1, 4, 1, W2);
    let (chunks, next) = ask(&mut master, query(1, Subject::Chunks), "last", ChunkRecord::decode).unwrap();
    let told: Vec<_> = chunks.iter().map(|c| (c.chunk, c.state, c.node, c.result.map(|r| r.cause))).collect();
    let nobody = wire::NodeId::NIL;
    let expected = [
        (0, ChunkState::Finished, W1, Some(Cause::None)),
        (1, ChunkState::Failed, W1, Some(Cause::Exit)),
        (2, ChunkState::Failed, nobody, Some(Cause::WorkerLost)),
        (3, ChunkState::Canceled, nobody, None),
        (4, ChunkState::Running, W2, None),
        (5, ChunkState::Waiting, nobody, None),
    ];
    assert_eq!((told.as_slice(), next), (&expected[..], 0));
    assert_eq!(chunks[1].result.unwrap().exit_code, Some(3));
}

#[test]
fn chunks_tell_since_when_they_run_and_when_they_were_canceled() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    master.receives(CLIENT_PEER, submit(1, J1, &a_spec(4)));
    let ages = [Duration::from_millis(300)];
    master.receives(W1_PEER, heartbeat_running(W1, boot(1), &[an_item(J1, 1, 1, 1)], &ages));
    master.runs_all(&[(J1, 1, 1, W1), (J1, 2, 1, W2)]);
    let (started_at, nobody) = (WALL + master.now.0 - 300_000, wire::NodeId::NIL);
    let told = |master: &mut MasterUnderTest| {
        let (chunks, _) = ask(master, query(1, Subject::Chunks), "last", ChunkRecord::decode).unwrap();
        assert!(chunks.iter().all(|chunk| chunk.attempt == 1 && chunk.result.is_none()));
        chunks.iter().map(|c| (c.state, c.node, c.started_at.0, c.finished_at.0)).collect::<Vec<_>>()
    };
    use ChunkState::{Canceled, Running, Waiting};
    let waiting = (Waiting, nobody, 0, 0);
    assert_eq!(told(&mut master), [waiting, (Running, W1, started_at, 0), (Running, W2, 0, 0), waiting]);
    master.wait(Duration::from_millis(50));
    let canceled_at = WALL + master.now.0;
    master.receives(CLIENT_PEER, cancel(2, J1, 0, 3));
    master.wait(Duration::from_millis(50));
    let expected =
        [(Canceled, nobody, 0, 0), (Canceled, W1, started_at, canceled_at), (Canceled, W2, 0, canceled_at), waiting];
    assert_eq!(told(&mut master), expected);
    assert_eq!(job_by(&mut master, "1").unwrap().started_at.0, started_at);
}

#[test]
fn long_lists_come_in_pages() {
    let mut master = a_master().build();
    for n in 1..=5u8 {
        master.receives(CLIENT_PEER, submit(n.into(), JobId([n; 16]), &a_spec(2_500)));
        master.receives(CLIENT_PEER, record_file(n.into(), &a_file(&[n])));
    }
    master.receives(CLIENT_PEER, cancel(9, JobId([2; 16]), 0, u32::MAX));

    let jobs = |after, flags| Query {
        after: U64::new(after),
        limit: U32::new(2),
        flags: U32::new(flags),
        ..query(1, Subject::Jobs)
    };
    let mut numbers = |query| {
        let (jobs, next) = ask(&mut master, query, "", JobRecord::decode).unwrap();
        (jobs.iter().map(|job| job.number).collect::<Vec<_>>(), next)
    };
    assert_eq!(numbers(jobs(0, 0)), (vec![1, 3], 3));
    assert_eq!(numbers(jobs(3, 0)), (vec![4, 5], 0));
    assert_eq!(numbers(jobs(0, QUERY_ALL)), (vec![1, 2], 2));

    let (mut after, mut chunks) = (0, Vec::new());
    loop {
        let query = Query { after: U64::new(after), ..query(1, Subject::Chunks) };
        let (page, next) = ask(&mut master, query, "1", ChunkRecord::decode).unwrap();
        assert!(page.len() <= 1_000);
        chunks.extend(page.iter().map(|chunk| chunk.chunk));
        if next == 0 {
            break;
        }
        after = next;
    }
    assert_eq!(chunks, (0..2_500).collect::<Vec<_>>());

    let files = Query { limit: U32::new(3), ..query(1, Subject::Files) };
    let (page, next) = ask(&mut master, files, "", FileRecord::decode).unwrap();
    assert_eq!((page.len(), next), (3, 3));
    let rest = Query { after: U64::new(next), ..files };
    assert_eq!(ask(&mut master, rest, "", FileRecord::decode).unwrap().0.len(), 2);
}

#[test]
fn a_file_is_found_by_its_uuid() {
    let mut master = a_master().build();
    let file = a_file(b"content");
    master.receives(CLIENT_PEER, record_file(1, &file));
    let of = |id: wire::FileId| Query { uuid: id.into(), ..query(1, Subject::File) };
    let (records, _) = ask(&mut master, of(file.file), "", FileRecord::decode).unwrap();
    assert_eq!((records[0].length, records[0].hash, records[0].copies), (7, file.hash, 1));
    let unknown = wire::FileId([9; 16]);
    let refused = ask(&mut master, of(unknown), "", FileRecord::decode).unwrap_err();
    assert_eq!(refused, (ErrorCode::FileUnknown, format!("no file {unknown}")));
}

#[test]
fn nodes_are_up_while_they_are_heard() {
    let mut master = a_master().build();
    master.enthrones(1);
    master.registers(W1_PEER, &a_node(W1, Role::Worker, 1));
    let nodes = |master: &mut MasterUnderTest| {
        let (nodes, _) = ask(master, query(1, Subject::Nodes), "", NodeRecord::decode).unwrap();
        nodes.iter().map(|n| (n.name.clone(), n.state, n.is_leader, n.is_primary)).collect::<Vec<_>>()
    };
    let w1 = |state| ("worker-11".to_owned(), state, false, false);
    let m1 = ("m1".to_owned(), NodeState::Up, true, false);
    let balancer = |state| ("loadbalancer-b1".to_owned(), state, false, true);
    assert_eq!(nodes(&mut master), [w1(NodeState::Up), m1.clone(), balancer(NodeState::Up)]);
    master.wait(Duration::from_secs(4));
    master.receives(BALANCER_PEER, balancer_heartbeat(boot(1), 1, &[]));
    master.wait(Duration::from_secs(2));
    assert_eq!(nodes(&mut master), [w1(NodeState::Lost), m1, balancer(NodeState::Up)]);
}

#[test]
fn an_answer_reflects_at_least_the_index_that_was_asked_for() {
    let mut master = a_master().build();
    let index = master.core.state().index;
    let from = |index: u64| Query { index: U64::new(index), ..query(1, Subject::Status) };
    assert!(ask(&mut master, from(index), "", StatusRecord::decode).is_ok());
    let (code, _) = ask(&mut master, from(index + 1), "", StatusRecord::decode).unwrap_err();
    assert_eq!(code, ErrorCode::NotReady);
}
