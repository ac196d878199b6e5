//! The roles' processes: started, watched, started again, stopped.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use node::Clock;
use wire::{Instant, Role};

use super::layout::{Layout, NodePlan};
use super::signals::Signals;
use crate::cli::failure::Failure;
use crate::cli::output::tell;

/// Before a role that has ended is started again; doubled each time until it has lived for `SETTLED_AFTER`.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A role that ends this often before the cluster was ever ready cannot start.
const FAILED_STARTS_MAX: u32 = 3;
/// Between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of a log that are shown when its role ends.
const LAST_LINES: usize = 5;

/// All roles of the cluster.
pub struct Roles {
    clock: Clock,
    dir: PathBuf,
    roles: Vec<RoleProcess>,
}

struct RoleProcess {
    plan: NodePlan,
    state: State,
    /// Where the log of this run begins.
    log_start: u64,
    pause: Duration,
    failed_starts: u32,
}

enum State {
    Running { child: Child, since: Instant },
    Ended { start_at: Instant },
}

/// The program of a role, beside `zg`.
fn program(role: Role) -> Result<PathBuf, Failure> {
    let unknown = |error: io::Error| Failure::new("system", format!("cannot tell where zg lies: {error}"));
    let zg = std::env::current_exe().and_then(|zg| zg.canonicalize()).map_err(unknown)?;
    Ok(zg.with_file_name(format!("zg-{role}")))
}

/// Fails unless the programs of all roles are there.
pub fn check_programs() -> Result<(), Failure> {
    for role in [Role::Master, Role::LoadBalancer, Role::Storage, Role::Worker] {
        let path = program(role)?;
        if !path.is_file() {
            let message = format!("the program {} is missing", path.display());
            return Err(Failure::new("program_missing", message).hint("Build it: cargo build --workspace --bins"));
        }
    }
    Ok(())
}

impl Roles {
    pub fn new(layout: &Layout) -> Roles {
        let role = |plan: &NodePlan| RoleProcess {
            plan: plan.clone(),
            state: State::Ended { start_at: Instant(0) },
            log_start: 0,
            pause: RESTART_PAUSE,
            failed_starts: 0,
        };
        Roles { clock: Clock::new(), dir: layout.dir.clone(), roles: layout.nodes.iter().map(role).collect() }
    }

    pub fn start_all(&mut self) -> Result<(), Failure> {
        let now = self.clock.now();
        self.roles.iter_mut().try_for_each(|role| role.start(&self.dir, now))
    }

    /// Tells of roles that have ended and starts those whose pause is over. While the cluster `is_starting`, one that
    /// ends again and again is a failure.
    pub fn look_after(&mut self, is_starting: bool) -> Result<(), Failure> {
        let now = self.clock.now();
        for role in &mut self.roles {
            let ended = match &mut role.state {
                State::Running { child, since } => {
                    let status = child.try_wait().map_err(|error| Failure::new("system", error.to_string()))?;
                    status.map(|status| (status, now.since(*since)))
                }
                State::Ended { start_at } if *start_at <= now => {
                    role.start(&self.dir, now)?;
                    None
                }
                State::Ended { .. } => None,
            };
            if let Some((status, lived)) = ended {
                role.on_ended(status, lived, now, is_starting)?;
            }
        }
        Ok(())
    }

    /// How long until the next role is to be started again.
    pub fn next_start(&self) -> Option<Duration> {
        let now = self.clock.now();
        let waits = self.roles.iter().filter_map(|role| match role.state {
            State::Ended { start_at } => Some(start_at.since(now)),
            State::Running { .. } => None,
        });
        waits.min()
    }

    /// The last line of each role's log.
    pub fn last_lines(&self) -> String {
        let lines = self.roles.iter().map(|role| {
            let line = last_lines(&role.plan.log, role.log_start, 1).pop().unwrap_or_else(|| "(nothing)".into());
            format!("\n  {}: {line}", role.plan.name)
        });
        format!("The last lines of the logs:{}", lines.collect::<String>())
    }

    /// Stops everything: workers first, so that they can still give back what they hold; storage and masters last.
    pub fn stop(&mut self, signals: &Signals) {
        for wave in [&[Role::Worker][..], &[Role::LoadBalancer], &[Role::Storage], &[Role::Master]] {
            let mut children: Vec<&mut Child> = Vec::new();
            for role in self.roles.iter_mut().filter(|role| wave.contains(&role.plan.role)) {
                if let State::Running { child, .. } = &mut role.state {
                    children.push(child);
                }
            }
            stop_children(children, &self.clock, signals);
        }
    }
}

impl RoleProcess {
    fn start(&mut self, dir: &Path, now: Instant) -> Result<(), Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::new("system", format!("cannot start {}: {what}: {error}", self.plan.name))
        };
        let log = File::options().create(true).append(true).open(&self.plan.log);
        let log = log.map_err(|error| failed(&self.plan.log.display().to_string(), error))?;
        let errors = log.try_clone().map_err(|error| failed("its log", error))?;
        self.log_start = log.metadata().map_err(|error| failed("its log", error))?.len();
        let program = program(self.plan.role)?;
        let mut command = Command::new(&program);
        command.arg(&self.plan.settings).current_dir(dir);
        // In a group of its own, so that a terminal's Ctrl-C reaches only us, who know the order to stop in.
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls that a signal handler may make too; nothing is allocated.
        unsafe { command.pre_exec(move || follow_parent(parent)) };
        let child = command.spawn().map_err(|error| failed(&program.display().to_string(), error))?;
        self.state = State::Running { child, since: now };
        Ok(())
    }

    fn on_ended(
        &mut self,
        status: ExitStatus,
        lived: Duration,
        now: Instant,
        is_starting: bool,
    ) -> Result<(), Failure> {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        };
        let name = &self.plan.name;
        let lines = last_lines(&self.plan.log, self.log_start, LAST_LINES);
        let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
        let told = format!("{name} ended ({how}); the end of {}:{lines}", self.plan.log.display());
        self.failed_starts += 1;
        if is_starting && self.failed_starts >= FAILED_STARTS_MAX {
            return Err(Failure::new("role_failed", format!("{name} cannot start: {told}")));
        }
        if lived >= SETTLED_AFTER {
            self.pause = RESTART_PAUSE;
        }
        tell(&format!("zg dev: {told}\nzg dev: {name} is started again in {} ms\n", self.pause.as_millis()));
        self.state = State::Ended { start_at: now + self.pause };
        self.pause = (self.pause * 2).min(RESTART_PAUSE_MAX);
        Ok(())
    }
}

/// In the new process: be killed when the parent is, and take signals as any program does.
fn follow_parent(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls on this process; the set is initialised before it is used.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // It may have died before we asked.
        if libc::getppid() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// SIGTERM, a while, SIGKILL; returns when all have ended. Whoever asks a second time does not want to wait.
fn stop_children(mut children: Vec<&mut Child>, clock: &Clock, signals: &Signals) {
    for child in &children {
        // SAFETY: the child has not been waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    }
    let kill_at = clock.now() + STOP_TIMEOUT;
    let mut is_impatient = false;
    loop {
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let rest = kill_at.since(clock.now());
        if children.is_empty() || rest.is_zero() || is_impatient {
            break;
        }
        is_impatient = signals.wait(Some(rest));
    }
    for child in children {
        tell(&format!("zg dev: process {} does not stop: killed\n", child.id()));
        // Both fail only when the child has ended after all.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The last lines of the file from byte `start` on.
fn last_lines(path: &Path, start: u64, count: usize) -> Vec<String> {
    const TAIL_SIZE: u64 = 8 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_SIZE).max(start)))?;
        let mut tail = Vec::new();
        file.take(TAIL_SIZE).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, format!("{}\na\nb\nc\n", "x".repeat(20_000))).unwrap();
        assert_eq!(last_lines(&path, 0, 2), ["b", "c"]);
        assert_eq!(last_lines(&path, 20_005, 2), ["c"]);
        assert_eq!(last_lines(&dir.path().join("none"), 0, 2), [""; 0]);
    }
}
