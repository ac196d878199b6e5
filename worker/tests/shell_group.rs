//! Control groups: a run that takes more memory than it may ends for that, and nothing of a slot is left.

mod bench;

use std::fs;
use std::path::PathBuf;
use std::process::Command as Program;

use bench::{Bench, EXECUTABLE, is_alive, report, run, started, until};
use wire::NodeId;
use worker::slot::{Ended, Groups, Report, SlotEvent, SlotLink};

const MIB: u64 = 1 << 20;

/// Takes as many bytes of memory as it is told, and writes how many it had.
const TAKE: &str = "take() { head -c $1 /dev/zero | tail | wc -c; }";

/// `None` where there is nothing to test: only root is sure to be let.
fn some_groups(node: NodeId) -> Option<Groups> {
    match Groups::open(node) {
        Ok(groups) => Some(groups),
        // SAFETY: plain system call.
        Err(error) if unsafe { libc::geteuid() } == 0 => panic!("root makes no groups: {error}"),
        Err(_) => None,
    }
}

fn slot_in(groups: &Groups, slot: u32) -> SlotLink {
    let group = groups.slot(slot).expect("it can be made");
    assert!(group.is_some());
    SlotLink::spawn(EXECUTABLE.as_ref(), group).expect("the worker's executable is there")
}

/// The directories of a worker's groups in all trees.
fn groups_of(node: NodeId) -> Vec<PathBuf> {
    let found = Program::new("find").arg("/sys/fs/cgroup").args(["-name", &format!("zg-{node}")]).output();
    let found = String::from_utf8(found.expect("find is there").stdout).expect("text");
    found.lines().map(PathBuf::from).collect()
}

#[test]
fn a_run_that_takes_more_memory_than_it_may_ends_for_that_and_what_waits_for_its_victim_too() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let slot_process = slot.pid();

    let mut start = bench.script(&format!("{TAKE}; take 200000000; sleep 1000"));
    start.memory = 64 * MIB;
    let over = run(&mut slot, start);
    assert_eq!(over.ended, Ended::OutOfMemory);
    assert!((60 * MIB..=64 * MIB).contains(&over.memory_peak_bytes), "{over:?}");

    let mut start = bench.script(&format!("{TAKE}; take 20000000"));
    start.memory = 64 * MIB;
    let within = run(&mut slot, start);
    assert_eq!((within.ended, within.memory_peak_bytes), (Ended::Code(0), 0));
    assert_eq!(bench.stdout(), b"20000000\n");

    // The limit was that run's, not the slot's.
    assert_eq!(run(&mut slot, bench.script(&format!("{TAKE}; take 200000000"))).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"200000000\n");
    assert_eq!(slot.pid(), slot_process);
    assert!(is_alive(slot_process));
}

#[test]
fn a_victim_whose_parent_says_that_all_is_well_counts() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let mut start = bench.script(&format!("{TAKE}; take 200000000; exit 0"));
    start.memory = 32 * MIB;
    assert_eq!(run(&mut slot, start).ended, Ended::OutOfMemory);
}

#[test]
fn however_small_its_processes_are_it_is_a_run_that_dies_and_not_its_slot() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    for _ in 0..3 {
        let mut start = bench.script("while :; do sleep 1000 & done");
        start.memory = 24 * MIB;
        assert_eq!(run(&mut slot, start).ended, Ended::OutOfMemory);
    }
    assert_eq!(bench::children(slot.pid()), "");
    assert_eq!(slot.try_recv(), None);
}

#[test]
fn files_in_memory_that_a_run_leaves_do_not_take_its_slot_with_them() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let path = format!("/dev/shm/zg-{node}");
    let mut start =
        bench.script(&format!("head -c 50000000 /dev/zero >{path}; exec tail -c +1 {path} | tail >{path}2"));
    start.memory = 32 * MIB;
    let ended = run(&mut slot, start).ended;
    // To hear of the next run, the slot's process needs memory itself.
    let long = vec![b'x'; 100_000];
    let arguments = [&[&b"-c"[..], b"exit 3"], &[&long[..]; 20][..]].concat();
    let after = run(&mut slot, bench.program("/bin/sh", &arguments)).ended;
    let _ = (fs::remove_file(&path), fs::remove_file(format!("{path}2")));
    assert_eq!((ended, after), (Ended::OutOfMemory, Ended::Code(3)));
}

#[test]
fn a_limit_below_what_is_in_use_is_no_start() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let mut start = bench.script("exit 0");
    start.memory = 1;
    slot.start(start).expect("short enough");
    let Report::Failed { exit_code: 126, errno: libc::EBUSY, message, .. } = report(&mut slot) else {
        panic!("a byte is not enough for anything")
    };
    assert!(message.contains("cannot bound memory to 1 bytes"), "{message}");
    assert_eq!(run(&mut slot, bench.script("exit 0")).ended, Ended::Code(0));
}

#[test]
fn a_fork_bomb_ends_at_the_fence() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let mut fences = groups_of(node).into_iter().map(|home| home.join("0/pids.max")).filter(|path| path.exists());
    let fence = fences.next().expect("processes are counted here");
    assert_eq!(fs::read_to_string(&fence).expect("a file"), "4096\n");
    // The machine is spared the real number.
    fs::write(&fence, "50").expect("ours");
    let start = bench.script("while :; do sleep 1000 & done");
    // The shell gives up when it cannot fork.
    assert_eq!(run(&mut slot, start).ended, Ended::Code(2));
    assert_eq!(bench::children(slot.pid()), "");
    assert_eq!(run(&mut slot, bench.script("exit 0")).ended, Ended::Code(0));
}

#[test]
fn what_left_the_session_of_a_slot_process_dies_with_it() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let start = bench.script("setsid sh -c 'echo $$ >daemon; exec sleep 1000' & sleep 1000");
    let main = started(&mut slot, start);
    let daemon = bench.pid_in("daemon");
    Program::new("kill").arg("-9").arg(slot.pid().to_string()).status().expect("kill is there");
    let died = slot.recv().expect("a link can be waited for");
    let Some(SlotEvent::Died { is_stillborn: false, is_out_of_memory: false, .. }) = died else { panic!("{died:?}") };
    assert_eq!([main, daemon].map(is_alive), [false; 2]);
    // The group is used again.
    let mut slot = slot_in(&groups, 0);
    assert_eq!(run(&mut slot, bench.script("exit 0")).ended, Ended::Code(0));
}

#[test]
fn a_slot_process_that_never_was_one_is_told_apart() {
    let mut slot = SlotLink::spawn("/bin/false".as_ref(), None).expect("it is there");
    let died = slot.recv().expect("a link can be waited for");
    let Some(SlotEvent::Died { is_stillborn: true, .. }) = died else { panic!("{died:?}") };
}

#[test]
fn the_groups_go_with_the_last_who_needs_them() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let other = slot_in(&groups, 1);
    // A program may make groups of its own, and hide there.
    let homes = groups_of(node);
    let inner = homes[0].join("0/inner");
    let hide = format!("mkdir {0}; echo 0 >{0}/cgroup.procs; echo $$ >hidden; sleep 1000", inner.display());
    let start = bench.script(&hide);
    let hidden = started(&mut slot, start);
    assert_eq!(bench.pid_in("hidden"), hidden);
    drop(slot);
    assert!(!is_alive(hidden));
    assert!(homes.iter().all(|home| !home.join("0").exists() && home.join("1").exists()), "{homes:?}");
    drop(other);
    drop(groups);
    assert!(groups_of(node).is_empty());
}

#[test]
fn the_next_start_ends_what_was_left() {
    let node = NodeId::random();
    let Some(groups) = some_groups(node) else { return };
    let (mut bench, mut slot) = (Bench::new(), slot_in(&groups, 0));
    let main = started(&mut slot, bench.script("setsid sleep 1000 & sleep 1000"));
    // The worker and its slot's process are killed in one moment: nobody is left to see to it.
    Program::new("kill").arg("-9").arg(slot.pid().to_string()).status().expect("kill is there");
    std::mem::forget((slot, groups));
    assert!(is_alive(main));
    let groups = some_groups(node).expect("it was possible before");
    until(|| !is_alive(main));
    assert!(groups_of(node).iter().all(|home| !home.join("0").exists()));
    let mut slot = slot_in(&groups, 0);
    assert_eq!(run(&mut slot, bench.script("exit 0")).ended, Ended::Code(0));
}
