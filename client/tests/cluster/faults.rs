//! Processes die outright in the middle of a job: it ends all the same, and nothing runs that need not.
//!
//! Chunks keep a journal: one line when they start and one when they end, appended to one file, so that it tells what
//! really ran however the cluster remembers it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use node::Clock;
use serde_json::json;

use crate::dev::{Dev, mounts_of, short_folder, until};
use crate::marks::{Mark, processes_of};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
const CHUNKS: u64 = 200;

/// A job of `CHUNKS` chunks that write a journal.
struct Journal {
    path: PathBuf,
    job: String,
    mark: Mark,
}

/// One run of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    chunk: u64,
    node: String,
    is_end: bool,
}

impl Journal {
    fn submit(dev: &Dev) -> Journal {
        let path = dev.folder().join("journal");
        let mark = Mark::new();
        let script = r#"echo "$ZG_CHUNK $ZG_NODE_ID start" >>"$0"; sleep 0.1; echo "$ZG_CHUNK $ZG_NODE_ID end" >>"$0""#;
        let array = format!("1-{CHUNKS}");
        let words = ["--array", &array, "--env", mark.variable(), "--", "sh", "-c", script, &path.to_string_lossy()];
        Journal { job: dev.submit(&words), path, mark }
    }

    fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let read = |line: &str| {
            let [chunk, node, what] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            Line { chunk: chunk.parse().expect("a number"), node: node.to_owned(), is_end: what == "end" }
        };
        text.lines().map(read).collect()
    }

    /// How often each chunk started, on the nodes that `counts` says.
    fn starts(&self, counts: impl Fn(&str) -> bool) -> BTreeMap<u64, u32> {
        let mut starts = BTreeMap::new();
        for line in self.lines().iter().filter(|line| !line.is_end && counts(&line.node)) {
            *starts.entry(line.chunk).or_default() += 1;
        }
        starts
    }

    /// Waits until between 30 and 70 % of the chunks have ended.
    fn reach_the_middle(&self, dev: &Dev) {
        let there = until(LONG, || {
            let ended = self.lines().iter().filter(|line| line.is_end).count() as u64;
            (ended >= CHUNKS * 3 / 10).then_some(ended)
        });
        let ended = there.unwrap_or_else(|| panic!("{}\n{}", dev.job(&self.job), dev.logs()));
        assert!(ended < CHUNKS * 7 / 10, "{ended} chunks had ended when it was looked at: too late");
    }

    /// Waits for the job's end: every chunk has exactly one accepted result, and nothing is left of any.
    fn expect_finished(&self, dev: &Dev) {
        let record = dev.wait(&self.job, LONG);
        assert_eq!(record["state"], "finished", "{record}");
        assert_eq!(record["chunks"]["finished"], CHUNKS);
        let chunks = dev.chunks(&self.job);
        let numbers: Vec<u64> = chunks.iter().filter_map(|chunk| chunk["chunk"].as_u64()).collect();
        assert_eq!(numbers, (1..=CHUNKS).collect::<Vec<_>>());
        assert!(chunks.iter().all(|chunk| chunk["exit_code"] == 0 && chunk["state"] == "finished"));
        self.mark.expect_gone(SOON);
    }
}

#[test]
fn a_worker_dies_and_the_other_reruns_nothing_that_it_held() {
    let dev = Dev::start(2);
    let victim = dev.node("worker1")["id"].as_str().expect("an id").to_owned();
    let journal = Journal::submit(&dev);
    journal.reach_the_middle(&dev);
    dev.kill("worker1");
    journal.expect_finished(&dev);
    let survivor = journal.starts(|node| node != victim);
    let twice: Vec<_> = survivor.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "the survivor ran these more than once: {twice:?}");
    let all = journal.starts(|_| true);
    let rerun = all.values().filter(|count| **count > 1).count();
    assert!(all.len() as u64 == CHUNKS && rerun < 100, "{rerun} chunks ran more than once");
    // What the survivor had started before is never given to the victim's next boot.
    let lines = journal.lines();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_end && line.node != victim) {
        let later =
            lines[index..].iter().find(|later| !later.is_end && later.chunk == line.chunk && later.node == victim);
        assert_eq!(later, None, "chunk {} ran on the survivor first", line.chunk);
    }
    dev.stop();
}

/// A job whose first attempt reads its input until `signals` have come to its worker; its next one finds it all the same.
fn reads_again_after(signals: &[i32]) {
    let dev = Dev::start(1);
    if mounts_of(&dev.cluster).is_empty() {
        return eprintln!("skipped: nothing can be mounted here");
    }
    std::fs::write(dev.folder().join("big"), vec![7; 9 << 20]).expect("written");
    let said = dev.folder().join("said");
    let script = r#"cd "$ZG_INPUT_DIR"; echo $ZG_ATTEMPT >>"$0"
        [ $ZG_ATTEMPT = 1 ] && { while cat big >/dev/null; do :; done; exit 3; }; cksum <big"#;
    let job = dev.submit(&["--input", "big", "--", "sh", "-c", script, &said.to_string_lossy()]);
    until(SOON, || std::fs::read(&said).is_ok_and(|said| !said.is_empty()).then_some(())).expect("it reads");
    let worker = dev.node("worker1")["pid"].as_i64().expect("a pid") as libc::pid_t;
    for (number, signal) in signals.iter().enumerate() {
        if number > 0 {
            until(SOON, || mounts_of(&dev.cluster).is_empty().then_some(())).expect("the mount is taken away");
            // Until all think that it is lost.
            until(SOON, || (dev.node("worker1")["state"] == "lost").then_some(())).expect("it is missed");
        }
        // SAFETY: kill takes no pointers.
        assert_eq!(unsafe { libc::kill(worker, *signal) }, 0);
    }
    let record = dev.wait(&job, LONG);
    assert_eq!(record["state"], "finished", "{record} {:?}\n{}", dev.chunks(&job), dev.logs());
    assert_eq!(std::fs::read_to_string(&said).expect("it said"), "1\n2\n", "the next attempt finds its input at once");
    let sum = std::process::Command::new("sh").args(["-c", "cksum <big"]).current_dir(dev.folder()).output();
    let printed = dev.zg(&["job", "logs", &job]).expect_success();
    assert_eq!(printed.stdout, sum.expect("it runs").stdout);
    dev.stop();
}

#[test]
fn what_a_killed_worker_read_is_read_again_by_the_next_attempt() {
    reads_again_after(&[libc::SIGKILL]);
}

#[test]
fn what_a_stopped_worker_read_is_read_again_by_the_next_attempt() {
    reads_again_after(&[libc::SIGSTOP, libc::SIGCONT]);
}

#[test]
fn a_killed_worker_leaves_no_orphan() {
    let dev = Dev::start(1);
    let mark = Mark::new();
    let job = dev.submit(&["--env", mark.variable(), "--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]);
    mark.expect_count(3, SOON);
    let before = mark.processes();
    dev.kill("worker1");
    let gone = until(SOON, || mark.processes().iter().all(|pid| !before.contains(pid)).then_some(()));
    assert!(gone.is_some(), "of {before:?} there still are {:?}", mark.processes());
    dev.zg(&["job", "cancel", &job]).expect_success();
    dev.wait(&job, SOON);
    mark.expect_gone(SOON);
    dev.stop();
}

#[test]
fn a_chunk_that_kills_its_worker_fails_at_the_crash_limit() {
    let dev = Dev::start(1);
    // The worker is the parent of the slot process, which is the parent of the program.
    let script = r#"slot=$PPID; worker=$(awk '/^PPid:/ {print $2}' /proc/$slot/status); kill -9 $worker; sleep 100"#;
    let job = dev.submit(&["--crash-limit", "2", "--", "sh", "-c", script]);
    let record = dev.wait(&job, LONG);
    assert_eq!(record["state"], "failed");
    assert_eq!(dev.chunks(&job)[0]["cause"], "worker_lost");
    dev.stop();
}

#[test]
fn a_master_dies_and_nothing_runs_twice() {
    dies_without_reruns("master1");
}

#[test]
fn a_load_balancer_dies_and_nothing_runs_twice() {
    dies_without_reruns("loadbalancer1");
}

#[test]
fn a_leader_of_three_masters_dies_and_nothing_runs_twice() {
    let dev = Dev::start_with(short_folder(), 2, &["--masters", "3"]);
    let leader = leader_of(&dev).expect("one leads");
    goes_on_without(&dev, &leader);
    assert_ne!(leader_of(&dev), Some(leader), "another has led since");
    dev.stop();
}

#[test]
fn when_all_three_masters_die_at_once_every_acknowledged_job_is_there() {
    let dev = Dev::start_with(short_folder(), 1, &["--masters", "3"]);
    let jobs: Vec<String> = (0..20).map(|_| dev.submit(&["--array", "1-3", "--", "true"])).collect();
    let pids: Vec<i64> = (1..=3).map(|n| dev.node(&format!("master{n}"))["pid"].as_i64().expect("a pid")).collect();
    for pid in pids {
        // SAFETY: kill takes no pointers.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
    }
    for job in &jobs {
        let record = dev.wait(job, LONG);
        assert_eq!((&record["state"], &record["chunks"]["finished"]), (&json!("finished"), &json!(3)), "{record}");
    }
    dev.stop();
}

#[test]
fn a_master_that_lost_its_directory_does_not_come_back_and_the_others_go_on() {
    let dev = Dev::start_with(short_folder(), 1, &["--masters", "3"]);
    let leader = leader_of(&dev).expect("one leads");
    let victim = (1..=3).map(|n| format!("master{n}")).find(|name| *name != leader).expect("three");
    let job = dev.submit(&["--array", "1-3", "--", "true"]);
    std::fs::rename(dev.cluster.join(&victim), dev.cluster.join("lost")).expect("renamed");
    dev.kill(&victim);
    let log = dev.cluster.join(format!("{victim}.log"));
    let said = until(SOON, || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("must not come back under its uuid")).then_some(())
    });
    assert!(said.is_some(), "{}", dev.logs());
    assert!(!dev.cluster.join(&victim).join("MEMBERS").exists());
    assert_eq!(dev.wait(&job, SOON)["state"], "finished");
    let after = dev.submit(&["--", "true"]);
    assert_eq!(dev.wait(&after, SOON)["state"], "finished");
    // Brought back as it was it is a member again.
    let _ = std::fs::remove_dir_all(dev.cluster.join(&victim));
    std::fs::rename(dev.cluster.join("lost"), dev.cluster.join(&victim)).expect("renamed");
    dev.kill(&leader);
    let after = dev.submit(&["--", "true"]);
    assert_eq!(dev.wait(&after, LONG)["state"], "finished");
    dev.stop();
}

/// The name of the master that leads.
fn leader_of(dev: &Dev) -> Option<String> {
    let nodes = dev.json(&["node", "list"]);
    let leader = nodes["nodes"].as_array()?.iter().find(|node| node["is_leader"] == true)?;
    leader["name"].as_str().map(str::to_owned)
}

fn dies_without_reruns(victim: &str) {
    let dev = Dev::start(2);
    goes_on_without(&dev, victim);
    dev.stop();
}

/// Kills a role in the middle of a job: each chunk has run once in the end, and what is submitted meanwhile runs.
fn goes_on_without(dev: &Dev, victim: &str) {
    let journal = Journal::submit(dev);
    journal.reach_the_middle(dev);
    dev.kill(victim);
    let after = dev.submit(&["--", "true"]);
    journal.expect_finished(dev);
    let starts = journal.starts(|_| true);
    assert!(starts.values().all(|count| *count == 1), "{starts:?}");
    assert_eq!(starts.len() as u64, CHUNKS);
    assert_eq!(dev.wait(&after, SOON)["state"], "finished");
}

#[test]
fn storage_dies_and_the_job_ends() {
    let dev = Dev::start(2);
    let path = dev.folder().join("before");
    std::fs::write(&path, "kept").expect("written");
    let file = dev.json(&["file", "put", "before"])["file"]["id"].as_str().expect("an id").to_owned();
    let job = dev.submit(&["--array", "1-200", "--", "sh", "-c", "echo $ZG_CHUNK; sleep 0.05"]);
    let middle = until(LONG, || (dev.job(&job)["chunks"]["finished"].as_u64() >= Some(60)).then_some(()));
    assert!(middle.is_some(), "{}", dev.logs());
    dev.kill("storage1");
    assert_eq!(dev.wait(&job, LONG)["state"], "finished");
    let expected: String = (1..=200).map(|number| format!("{number}\n")).collect();
    assert_eq!(dev.zg(&["job", "logs", &job]).expect_success().text(), expected);
    assert_eq!(dev.zg(&["file", "cat", &file]).expect_success().text(), "kept");
    dev.stop();
}

#[test]
fn a_stopped_cluster_leaves_nothing_and_goes_on_where_it_was() {
    let dev = Dev::start(1);
    let (dir, mark) = (dev.cluster.clone(), Mark::new());
    std::fs::write(dev.folder().join("kept"), "kept").expect("written");
    let file = dev.json(&["file", "put", "kept"])["file"]["id"].as_str().expect("an id").to_owned();
    dev.zg(&["run", "--", "true"]).expect_success();
    let job = dev.submit(&["--env", mark.variable(), "--", "sleep", "1000"]);
    mark.expect_count(1, SOON);
    let folder = dev.stop();
    assert_eq!(processes_of(&dir), [""; 0]);
    assert_eq!(mark.processes(), [0; 0]);

    let dev = Dev::start_in(folder, 1);
    assert_eq!(dev.zg(&["file", "cat", &file]).expect_success().text(), "kept");
    assert_eq!(dev.job("1")["state"], "finished");
    assert_eq!(dev.job(&job)["exit"], json!(null), "an acknowledged job survives");
    mark.expect_count(1, SOON);
    dev.zg(&["job", "cancel", &job]).expect_success();
    mark.expect_gone(SOON);
    dev.stop();
}

#[test]
fn a_killed_zg_dev_takes_its_cluster_along() {
    let mut dev = Dev::start(2);
    let mark = Mark::new();
    dev.submit(&["--array", "1-2", "--env", mark.variable(), "--", "sleep", "1000"]);
    let mut run = dev.command(&["run", "--", "sleep", "1000"]).stderr(Stdio::piped()).spawn().expect("it starts");
    mark.expect_count(1, SOON);
    until(SOON, || (dev.json(&["job", "list"])["jobs"].as_array()?.len() == 2).then_some(())).expect("both are there");
    let dir = dev.cluster.clone();
    dev.kill_dev();
    let clock = Clock::new();
    let begun = clock.now();
    let mut told = String::new();
    BufReader::new(run.stderr.take().expect("piped")).read_line(&mut told).expect("text");
    assert!(told.contains("waiting for a master at tcp://") && told.contains("zg job info 2"), "{told}");
    assert!(clock.now().since(begun) < wire::Duration::from_secs(5), "whoever waits is told soon");
    run.kill().expect("it runs");
    run.wait().expect("it is ours");
    let gone = until(SOON, || processes_of(&dir).is_empty().then_some(()));
    assert!(gone.is_some(), "still there: {:?}", processes_of(&dir));
    assert!(until(SOON, || mounts_of(&dir).is_empty().then_some(())).is_some(), "{:?}", mounts_of(&dir));
    mark.expect_gone(SOON);
}

#[test]
fn a_temporary_cluster_removes_its_directory_and_is_found_while_it_runs() {
    let folder = short_folder();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_zg"))
        .args(["dev", "--workers", "1"])
        .env("TMPDIR", folder.path())
        .env("XDG_RUNTIME_DIR", folder.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("zg starts");
    let found = until(LONG, || {
        let mut zg = crate::dev::zg(&["run", "--", "echo", "found"]);
        let said = crate::dev::run(zg.env("XDG_RUNTIME_DIR", folder.path()).current_dir(folder.path()));
        (said.code == Some(0)).then(|| said.text())
    });
    // SAFETY: kill takes no pointers; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    let status = crate::dev::ended_within(&mut child, SOON).expect("zg dev stops");
    assert_eq!(found.as_deref(), Some("found\n"));
    assert!(status.success(), "{status}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("it is there").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
