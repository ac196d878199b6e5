//! A worker bounds the memory of what it runs, and leaves no control group behind.

mod site;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};

use site::{Running, Site, groups_of, is_alive};
use wire::Cause;
use wire::job::JobSpec;

const MIB: u64 = 1 << 20;
/// Needs as much memory as bytes go through it: there is no end of a line.
const TAKE_200_MB: &str = "head -c 200000000 /dev/zero | tail | wc -c";

/// Only root is sure to be let make groups; without them most here is about nothing.
fn may_make_groups() -> bool {
    // SAFETY: plain system call.
    unsafe { libc::geteuid() == 0 }
}

fn with_memory(memory: u64) -> JobSpec {
    JobSpec { memory, ..JobSpec::default() }
}

fn children(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs")
}

fn kill(pids: &str) {
    Command::new("kill").arg("-9").args(pids.split_whitespace()).status().expect("kill is there");
}

/// Waits for the end of a worker that nobody told to end.
fn ended(site: &mut Site, running: &mut Running) -> ExitStatus {
    let mut status = None;
    site.until("the worker's end", |_| {
        status = running.child.try_wait().expect("it is ours");
        status.is_some()
    });
    status.expect("the loop ends with one")
}

#[test]
fn a_chunk_beyond_its_memory_fails_for_that_and_says_how_much_it_was() {
    if !may_make_groups() {
        return;
    }
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let (result, streams) = site.shell(&format!("echo begun >&2; {TAKE_200_MB}; exit 0"), with_memory(64 * MIB));
    assert_eq!((result.cause, result.exit_code, result.signal), (Cause::Oom, None, Some(9)));
    let said = streams.stderr().lines().collect::<Vec<_>>();
    let last = said[said.len() - 1];
    assert_eq!(said[0], "begun");
    assert!(last.starts_with("zg: killed: out of memory: 6"), "{said:?}");
    assert!(last.ends_with(" bytes used (limit: 67108864 bytes)"), "{said:?}");

    let (result, streams) = site.shell(TAKE_200_MB, with_memory(512 * MIB));
    assert_eq!((result.cause, streams.stdout()), (Cause::None, "200000000\n"));
    let (result, _) = site.shell(TAKE_200_MB, with_memory(0));
    assert_eq!(result.cause, Cause::None);
    assert!(!groups_of(site.node()).is_empty());
    assert_eq!(running.terminate(), Some(0));
    assert!(groups_of(site.node()).is_empty());
}

#[test]
fn without_groups_programs_run_and_nothing_bounds_them() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster_with("groups = false");
    let (result, streams) = site.shell(TAKE_200_MB, with_memory(64 * MIB));
    assert_eq!((result.cause, streams.stdout()), (Cause::None, "200000000\n"));
    assert!(groups_of(site.node()).is_empty());
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_killed_worker_leaves_neither_process_nor_group() {
    if !may_make_groups() {
        return;
    }
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let pids = start_a_daemon(&mut site);
    running.kill();
    site.until("nothing is left", |site| !pids.iter().any(|pid| is_alive(pid)) && groups_of(site.node()).is_empty());
}

#[test]
fn what_a_worker_and_its_slots_leave_when_all_are_killed_ends_with_the_next_start() {
    if !may_make_groups() {
        return;
    }
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let pids = start_a_daemon(&mut site);
    let slots = children(running.child.id());
    // Stopped, the slots' processes cannot see to it when the worker dies first.
    Command::new("kill").arg("-STOP").args(slots.split_whitespace()).status().expect("kill is there");
    running.kill();
    kill(&slots);
    assert!(pids.iter().all(|pid| is_alive(pid)), "nobody was left to end them");
    assert!(!groups_of(site.node()).is_empty());
    let mut running = site.start_in_cluster();
    site.until("nothing is left", |_| !pids.iter().any(|pid| is_alive(pid)));
    assert_eq!(site.shell("true", with_memory(64 * MIB)).0.cause, Cause::None);
    assert_eq!(running.terminate(), Some(0));
    assert!(groups_of(site.node()).is_empty());
}

/// Starts a chunk that does not end, with a daemon; returns the process ids of both.
fn start_a_daemon(site: &mut Site) -> Vec<String> {
    let path = site.path("pids");
    let script = format!(
        "echo $$ >{0}.1; setsid sh -c 'echo $$ >{0}.2; mv {0}.1 {0}; cat {0}.2 >>{0}; exec sleep 1000' & sleep 1000",
        path.display()
    );
    let arguments = [&b"sh"[..], b"-c", script.as_bytes()].map(<[u8]>::to_vec).to_vec();
    let spec = JobSpec { arguments, ..JobSpec::default() };
    site.assign(wire::JobId::now(), 0, 1, b"", &[], &spec);
    let mut pids = Vec::new();
    site.until("both run", |_| {
        pids = fs::read_to_string(Path::new(&path)).unwrap_or_default().lines().map(str::to_owned).collect();
        pids.len() == 2
    });
    pids
}

#[test]
fn a_program_that_kills_its_slot_again_and_again_does_not_end_the_worker() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    for _ in 0..8 {
        let spec = JobSpec { array: wire::ArraySpec::parse("0-3").expect("an array"), ..JobSpec::default() };
        let (result, _) = site.shell("kill -9 $PPID", spec);
        assert_eq!(result.cause, Cause::Signal);
    }
    assert_eq!(site.shell("true", JobSpec::default()).0.cause, Cause::None);
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_worker_whose_slots_cannot_live_ends_and_blames_no_chunk() {
    let mut site = Site::new();
    // Its children are its slots alone: no watchdog of a mount, which is started anew again and again.
    let mut running = site.start_in_cluster_with("fuse = false");
    assert_eq!(site.shell("true", JobSpec::default()).0.cause, Cause::None);
    // As while the machine is being upgraded: from now on the executable does not load.
    fs::create_dir(site.path("lib")).expect("made");
    fs::write(site.path("lib/libzmq.so.5"), "half of a library").expect("written");
    kill(&children(running.child.id()));
    site.until("the worker has noticed", |_| children(running.child.id()).is_empty());
    let job = wire::JobId::now();
    site.assign(job, 0, 1, b"", &[], &JobSpec { arguments: vec![b"true".to_vec()], ..JobSpec::default() });
    assert_eq!(ended(&mut site, &mut running).code(), Some(1));
    assert!(!site.results.contains_key(&(job, 0)), "it has not even begun");
    assert!(groups_of(site.node()).is_empty());
}
