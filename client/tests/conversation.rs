//! What a client says to masters, and what it makes of their answers: real sockets, masters that follow a script.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use client::{ClientError, Cluster, Connection, JobDraft};
use node::settings::Server;
use node::{Bind, Certificate, Clock, Endpoint, EndpointConfig, PeerClass};
use wire::event::LogEvent;
use wire::record::{ChunkCounts, FileRecord, JobRecord};
use wire::{
    Answer, ArraySpec, BootNonce, Duration, ErrorCode, FileId, FixedPart, JobAccepted, JobId, JobState, Kind, Message,
    NodeId, Subject, U32, U64, WallTime, WatchBatch, Writer, error_frame,
};

/// Frames to answer a message with; the number says how many have come before it.
type Script = Box<dyn FnMut(Message<'_>, usize) -> Vec<Vec<u8>> + Send>;

const MASTER: NodeId = NodeId([1; 16]);
const CLIENT: NodeId = NodeId([2; 16]);
const JOB: JobId = JobId([3; 16]);

/// A master that answers by a script, in a thread.
struct ScriptedMaster {
    server: Server,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    is_over: Arc<AtomicBool>,
    bell: node::Bell,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedMaster {
    fn start(certificates: &Path, mut script: Script) -> ScriptedMaster {
        let own = Certificate::new();
        let key = own.public;
        let mut config = EndpointConfig::new(MASTER, BootNonce::new(1, 1), own);
        config.binds = vec![Bind { address: "tcp://127.0.0.1:*".into(), class: PeerClass::Control }];
        config.certificates_dir = Some(certificates.to_owned());
        let mut endpoint = Endpoint::open(config).expect("it opens");
        let server = Server { endpoint: endpoint.bound().remove(0), key };
        let (heard, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let bell = endpoint.bell();
        let thread = std::thread::spawn({
            let (heard, is_over) = (heard.clone(), is_over.clone());
            move || {
                while !is_over.load(Ordering::SeqCst) {
                    endpoint.wait(None);
                    let mut answers = Vec::new();
                    endpoint.drain(64, &mut |peer, _, frames| {
                        let mut heard = heard.lock().expect("no panic");
                        let message = Message::decode(&frames[0]).expect("it is a message");
                        answers.extend(script(message, heard.len()).into_iter().map(|answer| (peer, answer)));
                        heard.push(frames[0].to_vec());
                    });
                    for (peer, answer) in answers {
                        endpoint.send(peer, answer).expect("it goes out");
                    }
                }
            }
        });
        ScriptedMaster { server, heard, is_over, bell, thread: Some(thread) }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("no panic").clone()
    }
}

impl Drop for ScriptedMaster {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the script has failed the test already.
            let _ = thread.join();
        }
    }
}

/// A folder of certificates with the client's in it, and the client's.
fn certificates() -> (tempfile::TempDir, Certificate) {
    let folder = tempfile::tempdir().expect("a folder");
    let own = Certificate::new().with("role", "client").with("node", CLIENT);
    own.save_public(folder.path().join("client.key")).expect("written");
    (folder, own)
}

fn connect(own: Certificate, masters: &[&ScriptedMaster]) -> Connection {
    let masters = masters.iter().map(|master| master.server.clone()).collect();
    Connection::open(Cluster { dir: "/test".into(), masters, certificate: own, node: CLIENT }).expect("it opens")
}

fn request_of(message: Message<'_>) -> u64 {
    match message {
        Message::Query(query, _) => query.request.get(),
        Message::SubmitJob(submit, _) => submit.request.get(),
        Message::Watch(watch, _) => watch.request.get(),
        other => panic!("{:?} was not expected", other.kind()),
    }
}

fn accepted(request: u64) -> Vec<u8> {
    let fixed = JobAccepted { request: U64::new(request), number: U64::new(7), ..JobAccepted::DEFAULT };
    JobAccepted { job_uuid: JOB.into(), index: U64::new(5), ..fixed }.frame(MASTER, &[])
}

fn refused(request: u64, code: ErrorCode, detail: &str) -> Vec<u8> {
    error_frame(MASTER, code, Some(Kind::Query), request, JobId::NIL, detail)
}

fn a_job(number: u64, state: JobState) -> JobRecord {
    JobRecord {
        job: JOB,
        number,
        state,
        counts: ChunkCounts { waiting: 1, ..ChunkCounts::default() },
        submitted_at: WallTime(1),
        started_at: WallTime(0),
        finished_at: WallTime(0),
        name: Vec::new(),
        array: ArraySpec::plain(1),
        command: Vec::new(),
    }
}

fn jobs(request: u64, next: u64, jobs: &[JobRecord]) -> Vec<u8> {
    let mut body = Writer::new();
    jobs.iter().for_each(|job| job.encode(&mut body));
    let fixed = Answer { request: U64::new(request), next: U64::new(next), index: U64::new(5), ..Answer::DEFAULT };
    Answer { num_records: U32::new(jobs.len() as u32), ..fixed }.frame(MASTER, &body.bytes)
}

#[test]
fn of_many_questions_at_once_only_what_was_refused_or_lost_is_asked_again() {
    let (folder, own) = certificates();
    let files: Vec<std::path::PathBuf> = (0..4).map(|number| folder.path().join(number.to_string())).collect();
    files.iter().for_each(|path| std::fs::write(path, path.to_string_lossy().as_bytes()).expect("written"));
    let paths = files.clone();
    let script = move |message: Message<'_>, before| {
        let Message::Query(query, _) = message else { panic!("{:?} was not expected", message.kind()) };
        if query.subject.get() == Subject::Nodes as u16 {
            // Who stores them is asked when the masters know all of them.
            return vec![Answer { request: query.request, index: U64::new(5), ..Answer::DEFAULT }.frame(MASTER, b"")];
        }
        let content = |path: &std::path::PathBuf| content::hash_bytes(path.to_string_lossy().as_bytes());
        let hash =
            paths.iter().map(content).find(|hash| FileId::of(*hash) == query.uuid.file()).expect("it is one of ours");
        match before {
            // The second is refused for now, and the third gets lost.
            1 => return vec![refused(query.request.get(), ErrorCode::Busy, "the backlog is full")],
            2 => return vec![],
            _ => {}
        }
        let record =
            FileRecord { file: FileId::of(hash), hash, length: 1, class: 0, copies: 1, stored_at: WallTime(1) };
        let mut body = Writer::new();
        record.encode(&mut body);
        let fixed = Answer { request: query.request, index: U64::new(5), ..Answer::DEFAULT };
        vec![Answer { num_records: U32::new(1), ..fixed }.frame(MASTER, &body.bytes)]
    };
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let mut connection = connect(own, &[&master]);
    let described: Vec<_> = files
        .iter()
        .map(|path| {
            let source = client::InputSource::Local(path.clone());
            (path.as_path(), connection.describe(&source).expect("it is read"))
        })
        .collect();
    let without_storage = connection.upload_each(&described).expect_err("nobody stores them");
    assert!(without_storage.to_string().contains("storage"), "{without_storage}");
    let is_of_file = |frame: &&Vec<u8>| matches!(Message::decode(frame), Ok(Message::Query(query, _)) if query.subject.get() == Subject::File as u16);
    assert_eq!(master.heard().iter().filter(is_of_file).count(), 6, "two were asked about again, by themselves");
}

#[test]
fn a_lost_request_is_sent_again_unchanged() {
    let (folder, own) = certificates();
    let script = |message: Message<'_>, before| if before == 0 { vec![] } else { vec![accepted(request_of(message))] };
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let submitted = connect(own, &[&master]).submit(&JobDraft::new(vec![b"true".to_vec()])).expect("accepted");
    assert_eq!((submitted.number, submitted.index), (7, 5));
    let heard = master.heard();
    assert_eq!(heard.len(), 2);
    assert!(heard[0] == heard[1], "the same bytes");
}

#[test]
fn the_leader_that_a_follower_names_is_asked() {
    let (folder, own) = certificates();
    let leader = ScriptedMaster::start(folder.path(), Box::new(|message, _| vec![jobs(request_of(message), 0, &[])]));
    let named = leader.server.endpoint.clone();
    let script = move |message: Message<'_>, _| {
        vec![refused(request_of(message), ErrorCode::NotLeader, &format!("ask {named}"))]
    };
    let follower = ScriptedMaster::start(folder.path(), Box::new(script));
    let mut connection = connect(own, &[&follower, &leader]);
    assert_eq!(connection.jobs(true).expect("answered"), []);
    assert_eq!(connection.jobs(true).expect("answered"), []);
    assert_eq!((follower.heard().len(), leader.heard().len()), (1, 2));
}

#[test]
fn a_follower_that_names_a_silent_leader_is_asked_again_when_it_may_lead() {
    let (folder, own) = certificates();
    let stopped = ScriptedMaster::start(folder.path(), Box::new(|_, _| vec![]));
    let named = stopped.server.endpoint.clone();
    let script = move |message: Message<'_>, before| match before {
        0 => vec![refused(request_of(message), ErrorCode::NotLeader, &named)],
        _ => vec![jobs(request_of(message), 0, &[])],
    };
    let follower = ScriptedMaster::start(folder.path(), Box::new(script));
    let mut connection = connect(own, &[&follower, &stopped]);
    assert_eq!(connection.jobs(true).expect("answered"), []);
    assert!(!stopped.heard().is_empty(), "who was named was asked first");
}

#[test]
fn when_the_connection_to_the_leader_breaks_another_is_asked_at_once() {
    let (folder, own) = certificates();
    let script = || -> Script { Box::new(|message, _| vec![jobs(request_of(message), 0, &[])]) };
    let [leader, next] = [script(), script()].map(|script| ScriptedMaster::start(folder.path(), script));
    let mut connection = connect(own, &[&leader, &next]);
    assert_eq!(connection.jobs(true).expect("answered"), []);
    assert_eq!(leader.heard().len(), 1);
    drop(leader);
    let begun = connection.clock().now();
    assert_eq!(connection.jobs(true).expect("answered"), []);
    let waited = connection.clock().now().since(begun);
    assert!(waited < Duration::from_millis(900), "{waited:?}, as for one that is silent");
}

#[test]
fn a_busy_master_is_asked_again_and_told_of_at_the_deadline() {
    let (folder, own) = certificates();
    let script = |message: Message<'_>, before| match before {
        0..3 => vec![refused(request_of(message), ErrorCode::Busy, "the backlog is full")],
        3 => vec![jobs(request_of(message), 0, &[])],
        _ => vec![refused(request_of(message), ErrorCode::Busy, "the backlog is full")],
    };
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let mut connection = connect(own, &[&master]);
    assert_eq!(connection.jobs(true).expect("answered"), []);
    connection.timeout = Duration::from_millis(100);
    let error = connection.jobs(true).expect_err("it stays busy");
    assert!(matches!(error, ClientError::Refused { code: ErrorCode::Busy, .. }), "{error:?}");
}

#[test]
fn a_wait_for_a_silent_or_busy_master_is_told_once_with_the_reason() {
    let (folder, own) = certificates();
    let busy = |message: Message<'_>, _| vec![refused(request_of(message), ErrorCode::Busy, "the disk is full")];
    for (script, reason) in [(Box::new(busy) as Script, "the disk is full"), (Box::new(|_, _| vec![]), "tcp://")] {
        let master = ScriptedMaster::start(folder.path(), script);
        let mut connection = connect(own.clone(), &[&master]);
        connection.query_timeout = Duration::from_millis(2500);
        let told = Arc::new(Mutex::new(Vec::new()));
        connection.on_waiting = Some(Box::new({
            let told = told.clone();
            move |why| told.lock().expect("no panic").push(why.to_owned())
        }));
        let begun = connection.clock().now();
        let error = connection.jobs(true).expect_err("it stays so");
        assert!(connection.clock().now().since(begun) < Duration::from_secs(5), "a question is given up early");
        let told = told.lock().expect("no panic");
        assert!(told.len() == 1 && told[0].contains(reason), "{told:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_refusal_is_told_at_once_in_the_masters_words() {
    let (folder, own) = certificates();
    let script = |message: Message<'_>, _| vec![refused(request_of(message), ErrorCode::UnknownJob, "no job '9'")];
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let error = connect(own, &[&master]).job("9").expect_err("there is none");
    assert_eq!((error.code(), error.to_string().as_str()), ("unknown_job", "no job '9'"));
    assert_eq!(master.heard().len(), 1);
}

#[test]
fn lists_are_read_page_by_page() {
    let (folder, own) = certificates();
    let script = |message: Message<'_>, before: usize| {
        let Message::Query(query, _) = message else { panic!("a query is expected") };
        assert_eq!(query.after.get(), before as u64);
        let next = if before == 2 { 0 } else { before as u64 + 1 };
        // An answer to somebody else's request is nobody's here.
        let request = query.request.get();
        vec![jobs(request ^ 1, 0, &[]), jobs(request, next, &[a_job(before as u64, JobState::Waiting)])]
    };
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let listed = connect(own, &[&master]).jobs(false).expect("answered");
    assert_eq!(listed.iter().map(|job| job.number).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_wait_ends_with_the_job_or_at_its_own_limit() {
    let (folder, own) = certificates();
    let mut has_ended = false;
    let script = move |message: Message<'_>, before| match message {
        Message::Query(query, _) => {
            let state = if has_ended { JobState::Finished } else { JobState::Running };
            vec![jobs(query.request.get(), 0, &[a_job(1, state)])]
        }
        // The first wait meets a master that has nothing to tell.
        Message::Watch(..) if before < 2 => vec![],
        Message::Watch(watch, _) => {
            has_ended = true;
            let mut body = Writer::new();
            LogEvent::JobEnded { job: JOB, state: JobState::Finished, at: WallTime(9) }.encode(&mut body);
            let fixed = WatchBatch { request: watch.request, after: watch.after, ..WatchBatch::DEFAULT };
            vec![WatchBatch { index: U64::new(6), num_events: U32::new(1), ..fixed }.frame(MASTER, &body.bytes)]
        }
        other => panic!("{:?} was not expected", other.kind()),
    };
    let master = ScriptedMaster::start(folder.path(), Box::new(script));
    let mut connection = connect(own, &[&master]);
    let deadline = Clock::new().now() + Duration::from_millis(100);
    let error = connection.wait_job(JOB, Some(deadline), |_| ()).expect_err("it does not end");
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    let record = connection.wait_job(JOB, None, |_| ()).expect("it ends");
    assert_eq!(record.state, JobState::Finished);
}
