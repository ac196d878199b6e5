//! The processes below a slot process: finding them in `/proc` and signalling them.
//!
//! A walk over `/proc` is a photograph of a crowd: by the time it is looked at, some have left and some have come. So a
//! signal goes only to a process that still has the parent it was found under, nothing is believed to be complete until
//! a second look finds nobody new, and whoever must not multiply meanwhile is first stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use libc::pid_t;

/// How often the tree is looked at again while it still grows. Each look stops everyone it sees, so only a program that
/// forks faster than this in between gets to the next one.
const STOP_PASSES_MAX: u32 = 64;

/// More than any program's processes are from its slot's. It also ends a walk over processes that come and go.
const GENERATIONS_MAX: u32 = 10_000;

/// Processes found, each with the parent it was found under.
pub(super) type Tree = BTreeMap<pid_t, pid_t>;

/// Where one process stands, as `/proc/<pid>/stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: pid_t,
    session: pid_t,
}

/// Everything below the process `root`, itself not included. Zombies are included.
pub(super) fn descendants(root: pid_t) -> Tree {
    let mut tree = Tree::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        let Some(children) = children_of(parent) else {
            return descendants_by_scan(root);
        };
        for child in children {
            if tree.insert(child, parent).is_none() {
                parents.push(child);
            }
        }
    }
    tree
}

/// Bytes of the disk `device` that the processes below `root` hold in open files without a name: no look at directories
/// finds them, and they go with the last who has them open.
pub(super) fn held_without_name(root: pid_t, device: u64) -> u64 {
    let mut seen = BTreeSet::new();
    let mut held = 0;
    for pid in descendants(root).into_keys() {
        // Who has ended meanwhile holds nothing.
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(file) = fs::metadata(descriptor.path()) else { continue };
            if file.is_file() && file.nlink() == 0 && file.dev() == device && seen.insert(file.ino()) {
                held += file.blocks() * 512;
            }
        }
    }
    held
}

/// Sends a signal once to everything in the tree.
pub(super) fn signal(tree: &Tree, signal: i32) {
    for (pid, parent) in tree {
        signal_one(*pid, *parent, signal);
    }
}

/// Kills everything below this process except `spared`, and returns whom it found there. They are still to be reaped,
/// and a caller repeats this until it finds nobody.
pub(super) fn kill_descendants(spared: &Tree) -> Tree {
    let root = own_pid();
    let mut found = Tree::new();
    // A stopped process cannot fork, so the walk catches up with a program that forks faster than it is killed.
    for _ in 0..STOP_PASSES_MAX {
        let mut fresh = descendants(root);
        fresh.retain(|pid, _| !found.contains_key(pid) && !spared.contains_key(pid));
        if fresh.is_empty() {
            break;
        }
        signal(&fresh, libc::SIGSTOP);
        found.append(&mut fresh);
    }
    signal(&found, libc::SIGKILL);
    found
}

/// Kills every process of a session, for a parent whose slot process died and can no longer do it. A process that
/// made itself a session of its own escapes this.
pub(super) fn kill_session(session: pid_t) {
    for _ in 0..STOP_PASSES_MAX {
        let mut members = all_processes();
        members.retain(|(_, stat)| stat.session == session && stat.state != b'Z');
        if members.is_empty() {
            return;
        }
        for (pid, stat) in members {
            signal_one(pid, stat.parent, libc::SIGKILL);
        }
    }
}

pub(super) fn own_pid() -> pid_t {
    pid_t::try_from(std::process::id()).expect("a process id is a positive pid_t")
}

/// Below whom a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// It is, or comes from, this child of ours.
    Child(u32),
    /// It is none of ours, as far as can be seen.
    Nobody,
    /// It has ended.
    Gone,
}

/// Finds out from which child of this process a process or thread comes.
pub fn below_which_child(of: u32) -> Below {
    let mut at = of as pid_t;
    for generation in 0..GENERATIONS_MAX {
        match stat_of(at) {
            Some(stat) if generation == 0 && matches!(stat.state, b'Z' | b'X') => return Below::Gone,
            Some(stat) if stat.parent == own_pid() => return Below::Child(at as u32),
            Some(stat) if stat.parent > 1 => at = stat.parent,
            None if generation == 0 && of != 0 => return Below::Gone,
            Some(_) | None => return Below::Nobody,
        }
    }
    Below::Nobody
}

/// The children of every thread of a process; `None` if this kernel does not list them.
fn children_of(parent: pid_t) -> Option<Vec<pid_t>> {
    let mut children = Vec::new();
    // A process that is gone has no children.
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return Some(children) };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<pid_t>().ok())),
            // The thread has ended, or the kernel was built without these lists.
            Err(_) if !thread.path().exists() => (),
            Err(_) => return None,
        }
    }
    Some(children)
}

/// The same as [`descendants`] from the parents of all processes, for kernels built without lists of children.
fn descendants_by_scan(root: pid_t) -> Tree {
    let processes = all_processes();
    let mut tree = Tree::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for (pid, stat) in &processes {
            if stat.parent == parent && tree.insert(*pid, parent).is_none() {
                parents.push(*pid);
            }
        }
    }
    tree
}

fn all_processes() -> Vec<(pid_t, Stat)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<pid_t>().ok());
    pids.filter_map(|pid| Some((pid, stat_of(pid)?))).collect()
}

fn stat_of(pid: pid_t) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The second field is the program's name in parentheses; it may itself contain parentheses and spaces.
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&line[name_end + 1..]).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, parent, session })
}

/// Signals a process if it still is the one that was found under `parent`.
fn signal_one(pid: pid_t, parent: pid_t, signal: i32) {
    let own = own_pid();
    if parent == own {
        // SAFETY: plain system call. A child of ours keeps its number until we reap it, so this reaches no other.
        unsafe { libc::kill(pid, signal) };
        return;
    }
    // SAFETY: plain system calls. The descriptor is checked, used here only, and closed here.
    unsafe {
        let handle = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if handle < 0 {
            return;
        }
        // The number could have gone to a stranger since it was found. The handle is of whoever has it now, and it is
        // one of ours only if it has the parent it had, or had that parent die and became our child.
        let is_ours = stat_of(pid).is_some_and(|stat| stat.parent == parent || stat.parent == own);
        if is_ours {
            libc::syscall(libc::SYS_pidfd_send_signal, handle, signal, std::ptr::null::<libc::siginfo_t>(), 0);
        }
        libc::close(handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_from_a_child_of_ours_is_told_from_strangers_and_the_dead() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        let mut child = Command::new("sh")
            .args(["-c", "(setsid sh -c 'echo $$; exec sleep 1000' & wait); exit"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says");
        let deep: u32 = line.trim().parse().expect("a number");
        assert_eq!(below_which_child(deep), Below::Child(child.id()));
        assert_eq!(below_which_child(child.id()), Below::Child(child.id()));
        assert_eq!(below_which_child(1), Below::Nobody);
        assert_eq!(below_which_child(0), Below::Nobody);
        signal(&[(deep as pid_t, stat_of(deep as pid_t).expect("it runs").parent)].into(), libc::SIGKILL);
        child.kill().expect("it runs");
        // Not waited for yet, it is there as a zombie.
        while below_which_child(child.id()) != Below::Gone {
            std::thread::yield_now();
        }
        child.wait().expect("it ended");
        assert_eq!(below_which_child(child.id()), Below::Gone);
    }

    #[test]
    fn a_name_full_of_parentheses_does_not_hide_the_parent() {
        let stat = parse_stat(b"42 (a) R 1 (b)) S 17 42 16 0 -1 4194560 120");
        assert_eq!(stat, Some(Stat { state: b'S', parent: 17, session: 16 }));
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"42 (sh) S 17"), None);
    }
}
