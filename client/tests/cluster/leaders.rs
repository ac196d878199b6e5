//! Leaders that die or stop while somebody submits without pause: what was acknowledged stays, and nobody waits long.
//!
//! `cargo xtask nemesis` does the same for minutes, with more of everything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Cluster, Connection, JobDraft, Position};
use node::Clock;
use wire::{ArraySpec, ChunkState, JobId};

use crate::dev::{Dev, short_folder, until};

const SOON: Duration = Duration::from_secs(30);
const CHUNKS: u32 = 2;
/// Acknowledgements between two faults.
const BETWEEN: usize = 30;

/// What a submit was told.
struct Told {
    job: JobId,
    number: u64,
    position: Position,
    waited: Duration,
}

/// Submits one job after the other until `is_over`.
fn submit_until(dev: &Dev, is_over: &AtomicBool, told: &std::sync::Mutex<Vec<Told>>) {
    let mut connection = Connection::open(Cluster::load(&dev.cluster).expect("a cluster")).expect("it opens");
    while !is_over.load(Ordering::SeqCst) {
        let mut draft = JobDraft::new(vec![b"true".to_vec()]);
        draft.spec.array = ArraySpec::plain(CHUNKS);
        let begun = connection.clock().now();
        let submitted = connection.submit(&draft).expect("acknowledged");
        let waited = connection.clock().now().since(begun);
        let (job, number, position) = (draft.job, submitted.number, connection.position());
        told.lock().expect("no panic").push(Told { job, number, position, waited });
    }
}

/// Name and process of the master that leads, once all three are up, each as the process that it is now.
fn leader_of_three(dev: &Dev, gone: &[i32]) -> (String, i32) {
    let found = until(SOON, || {
        let said = dev.zg(&["--json", "node", "list"]);
        let nodes: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
        let masters =
            nodes["nodes"].as_array()?.iter().filter(|node| node["role"] == "master" && node["state"] == "up");
        let masters: Vec<_> = masters.filter(|node| !gone.iter().any(|pid| node["pid"] == *pid)).collect();
        let leader = masters.iter().find(|node| node["is_leader"] == true)?;
        let pid = i32::try_from(leader["pid"].as_i64()?).ok()?;
        (masters.len() == 3).then(|| (leader["name"].as_str().unwrap_or_default().to_owned(), pid))
    });
    found.unwrap_or_else(|| panic!("not all masters come back\n{}", dev.logs()))
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn what_is_acknowledged_while_leaders_die_and_stop_stays() {
    let dev = Dev::start_with(short_folder(), 2, &["--masters", "3"]);
    let (is_over, told) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    let count = || told.lock().expect("no panic").len();
    std::thread::scope(|scope| {
        let submitter = scope.spawn(|| submit_until(&dev, &is_over, &told));
        let mut gone = Vec::new();
        for fault in [libc::SIGKILL, libc::SIGSTOP, libc::SIGKILL] {
            let (name, pid) = leader_of_three(&dev, &gone);
            signal(pid, fault);
            let before = count();
            let goes_on = until(SOON, || (count() >= before + BETWEEN || submitter.is_finished()).then_some(()));
            assert!(goes_on.is_some(), "nothing is acknowledged without {name}\n{}", dev.logs());
            if fault == libc::SIGSTOP {
                signal(pid, libc::SIGCONT);
            } else {
                gone.push(pid);
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let told = told.into_inner().expect("no panic");
    for pair in told.windows(2) {
        assert!(pair[0].number < pair[1].number, "{} {}", pair[0].number, pair[1].number);
        assert!(pair[0].position.index < pair[1].position.index, "{:?} {:?}", pair[0].position, pair[1].position);
        assert!(pair[0].position.term <= pair[1].position.term, "{:?} {:?}", pair[0].position, pair[1].position);
    }
    let longest = told.iter().map(|told| told.waited).max().expect("some");
    assert!(longest < Duration::from_secs(10), "{longest:?}");

    let mut connection = Connection::open(Cluster::load(&dev.cluster).expect("a cluster")).expect("it opens");
    let deadline = Clock::new().now() + SOON;
    for told in &told {
        let record = connection.wait_job(told.job, Some(deadline), |_| {}).expect("it ends");
        assert_eq!((record.number, record.counts.finished), (told.number, CHUNKS.into()), "{:?}", record.counts);
        let chunks = connection.chunks(told.job).expect("answered");
        let states: BTreeMap<u32, ChunkState> = chunks.iter().map(|chunk| (chunk.chunk, chunk.state)).collect();
        assert_eq!((chunks.len(), states.len()), (CHUNKS as usize, CHUNKS as usize), "one result each");
    }
    let jobs = connection.jobs(true).expect("answered");
    assert_eq!(jobs.len(), told.len(), "nothing that nobody submitted");
    dev.stop();
}
