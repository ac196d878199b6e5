//! A worker goes on whatever programs do to its directories, and whatever happens to its slot processes.

mod site;

use std::fs;

use site::Site;
use wire::job::JobSpec;
use wire::{Cause, JobId};

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Runs the script once in each slot, then a program that writes, twice.
fn runs_go_on_after(site: &mut Site, script: &str) {
    for _ in 0..2 {
        site.shell(script, JobSpec::default());
    }
    for _ in 0..2 {
        let (result, streams) = site.shell("echo out; echo err >&2; echo x >\"$ZG_OUTPUT_DIR/x\"", JobSpec::default());
        assert_eq!(result.cause, Cause::None, "after {script}: {streams:?}");
        assert_eq!((streams.stdout(), streams.stderr()), ("out\n", "err\n"), "after {script}");
        assert_eq!(streams.outputs["x"], b"x\n", "after {script}");
    }
}

#[test]
fn a_program_that_removes_its_slot_or_the_trash_takes_nothing_with_it() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    for script in [
        "rm -rf \"$ZG_OUTPUT_DIR/..\"",
        "rm -rf \"$ZG_OUTPUT_DIR/../..\"",
        "rm -rf \"$ZG_OUTPUT_DIR/../../../trash\"; touch \"$ZG_OUTPUT_DIR/x\"",
        "rm -rf \"$ZG_OUTPUT_DIR/../../../trash\" \"$ZG_OUTPUT_DIR\"; touch \"$ZG_OUTPUT_DIR\"",
        "rm -rf \"$ZG_OUTPUT_DIR/../spool\"; touch \"$ZG_OUTPUT_DIR/../spool\"",
    ] {
        runs_go_on_after(&mut site, script);
    }
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_spool_path_that_is_no_file_does_not_poison_its_slot() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    for what in ["mkdir -p %/x", "mkfifo %", "ln -s /nowhere %", "ln -s /etc/passwd %"] {
        for name in ["stdout", "stderr", "error"] {
            let path = format!("\"$(dirname \"$ZG_ERROR_FILE\")/{name}\"");
            runs_go_on_after(&mut site, &format!("rm -f {path}; {}", what.replace('%', &path)));
        }
    }
}

#[test]
fn a_slot_that_cannot_be_cleaned_is_closed_until_it_can_be() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let script = "cd /; slots=${ZG_OUTPUT_DIR%/*/out}; rm -rf \"$slots\"; touch \"$slots\"";
    let spec = JobSpec { arguments: words(&["sh", "-c", script]), ..JobSpec::default() };
    let job = JobId::now();
    site.assign(job, 0, 1, b"", &[], &spec);
    let slots = site.path("data/slot");
    site.until("the program is there", |_| slots.is_file());
    for _ in 0..100 {
        site.serve();
    }
    assert!(!site.results.contains_key(&(job, 0)), "its slot cannot be cleaned");
    assert_eq!(running.child.try_wait().expect("it is ours"), None, "the worker has ended");
    fs::remove_file(&slots).expect("it is there");
    site.until("the result", |site| site.results.contains_key(&(job, 0)));
    runs_go_on_after(&mut site, "true");
}

#[test]
fn outputs_ten_thousand_directories_deep_fail_their_chunk_and_nothing_else() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let script = "echo out; exec perl -e 'chdir $ENV{ZG_OUTPUT_DIR}; for (1..10000) { mkdir q(d); chdir q(d) }'";
    let (result, streams) = site.shell(script, JobSpec::default());
    assert_eq!((result.cause, result.exit_code), (Cause::Policy, Some(0)));
    assert_eq!(streams.stdout(), "out\n");
    assert_eq!(streams.stderr(), "zg: the outputs lie more than 256 directories deep\n");
    runs_go_on_after(&mut site, "true");
    // Whoever removes the site could not follow it down.
    let is_gone = |name: &str| fs::read_dir(site.path(name)).is_ok_and(|mut entries| entries.next().is_none());
    let clock = node::Clock::new();
    let deadline = clock.now() + std::time::Duration::from_secs(30);
    while !(is_gone("data/outbox") && is_gone("data/trash")) {
        assert!(clock.now() < deadline, "it is not removed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_worker_outlives_its_slot_processes() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    // The first chunk dies with its slot process; others end in the same moment and start where it died.
    let script = "[ $ZG_CHUNK = 0 ] || exec true; kill -9 $PPID; sleep 100";
    for _ in 0..10 {
        let spec = JobSpec {
            arguments: words(&["sh", "-c", script]),
            array: wire::ArraySpec::parse("0-7").expect("an array"),
            ..JobSpec::default()
        };
        let job = site.run(b"", &[], &spec);
        assert_eq!(site.results[&(job, 0)].cause, Cause::Signal);
        assert_eq!(site.results[&(job, 7)].cause, Cause::None);
    }
    // The worker has ended if it says nothing more.
    let (result, _) = site.shell("true", JobSpec { time_limit_ms: 10_000, ..JobSpec::default() });
    assert_eq!(result.cause, Cause::None);
    assert_eq!(running.terminate(), Some(0));
}

/// How many files the process may have open.
fn limit_files(pid: i32, soft: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: 1024 };
    // SAFETY: `limit` lives until the call returns, and nothing is written back.
    let status = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_machine_without_room_for_a_program_is_asked_again_before_the_program_has_failed() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let (_, streams) = site.shell("echo $PPID", JobSpec::default());
    let slot: i32 = streams.stdout().trim().parse().expect("a number");
    // The slot process has its link open already, and can open nothing more.
    limit_files(slot, 4);
    let spec = JobSpec { arguments: words(&["true"]), ..JobSpec::default() };
    let job = JobId::now();
    site.assign(job, 0, 1, b"", &[], &spec);
    for _ in 0..30 {
        site.serve();
    }
    assert!(!site.results.contains_key(&(job, 0)), "it is tried again");
    limit_files(slot, 1024);
    site.until("the result", |site| site.results.contains_key(&(job, 0)));
    assert_eq!(site.results[&(job, 0)].cause, Cause::None);

    limit_files(slot, 4);
    let (result, streams) = site.shell("true", JobSpec::default());
    assert_eq!((result.cause, result.exit_code), (Cause::Exit, Some(126)));
    assert!(streams.stderr().contains("Too many open files"), "{streams:?}");
}
