//! What runs inside a slot process: one loop that takes commands, starts programs, reaps, and reports.
//!
//! For a program that ends at once the whole loop is: one read, one `posix_spawn`, `wait4` until there is nobody left,
//! one write. Only when somebody is left after the main process is `/proc` walked and the rest killed, before the end is
//! reported.
//!
//! While a start or an open hangs (a program on a mount that does not answer), no command is read. The worker unhangs it
//! by aborting its mount, as it must anyway to get at a process that is stuck there.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use libc::{pid_t, sigset_t};

use super::group::{Group, Memory, Victim};
use super::spawn::{EXIT_CODE_NOT_STARTABLE, Launcher, NotStarted};
use super::tree::{self, Tree};
use super::{Command, Ended, Malformed, RUNS_MAX, Report, Start, first_frame, frame_size, now};

/// How long a `Started` waits for the end of its run, so that a short run wakes the worker once and not twice.
const STARTED_DELAY: Duration = Duration::from_millis(1);

/// How long a killed tree may take to be gone. What is then left hangs in the kernel, most likely on a dead mount: the
/// run is reported as ended, and what is left is reaped whenever it comes loose.
const KILL_TIME_MAX: Duration = Duration::from_secs(2);

/// How long to wait for somebody killed to end before looking at the tree again.
const KILL_LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How much nicer than the worker programs are, so that full slots do not starve heartbeats.
const NICENESS: i32 = 5;

/// How often a run with a limit is asked whether it ran out of memory: a victim further down the tree is nobody's child
/// here, and what is left must not go on without it.
const MEMORY_LOOK: Duration = Duration::from_millis(200);

/// What is read at once, in bytes; all of an ordinary `Start`.
const READ_SIZE: usize = 4 * 1024;

/// Serves the link on standard input until it closes, then leaves nothing of what it started, nor of its own group.
pub fn run(group: Option<&Group>) -> ! {
    let served = prepare().and_then(|link| {
        group.map_or(Ok(()), Group::enter)?;
        let mut slot = Slot::new(link, group.map_or(Ok(None), Group::memory)?)?;
        slot.tell(&Report::Ready);
        let served = slot.flush().and_then(|_| slot.serve());
        slot.end_tree();
        served
    });
    if let Some(group) = group {
        group.leave();
    }
    match served {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("zg-worker slot: {error}");
            std::process::exit(1)
        }
    }
}

/// The one program that runs, and what has been measured of its tree so far.
struct Running {
    run: u64,
    main: pid_t,
    started: Instant,
    cpu_us: u64,
    rss_max_bytes: u64,
    has_limit: bool,
    is_out_of_memory: bool,
    /// How the main process ended and after how many microseconds, once it has.
    ended: Option<(Ended, u64)>,
}

struct Slot {
    link: UnixStream,
    launcher: Launcher,
    /// `None` = memory is not bounded here.
    memory: Option<Memory>,
    victim: Option<Victim>,
    /// Blocks everything but SIGCHLD: in force exactly while the loop waits, so no end of a child is missed.
    waiting_mask: sigset_t,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Whether `outgoing` has more than a `Started` that may wait.
    is_urgent: bool,
    running: Option<Running>,
    waiting: VecDeque<Start>,
    /// Killed processes of earlier runs that the kernel has not let go of yet. They count for no later run.
    strays: Tree,
}

impl Slot {
    fn new(link: UnixStream, memory: Option<Memory>) -> io::Result<Slot> {
        Ok(Slot {
            link,
            launcher: Launcher::new()?,
            memory,
            victim: Victim::open(),
            waiting_mask: all_signals_but(Some(libc::SIGCHLD)),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            is_urgent: false,
            running: None,
            waiting: VecDeque::new(),
            strays: Tree::new(),
        })
    }

    /// Returns when the worker has closed the link.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            // What is still here was held back in the turn before.
            let is_held = !self.outgoing.is_empty();
            let looks = self.running.as_ref().is_some_and(|running| running.has_limit);
            let timeout = is_held.then_some(STARTED_DELAY).or(looks.then_some(MEMORY_LOOK));
            let is_readable = self.wait(true, timeout)?;
            if is_readable && !self.receive()? {
                return Ok(());
            }
            self.reap();
            if looks && self.has_run_out_of_memory() {
                self.end_tree();
            }
            self.advance();
            if (is_held || self.is_urgent) && !self.flush()? {
                return Ok(());
            }
        }
    }

    /// Waits until the link is readable (the answer), a child ends, or the time is over.
    fn wait(&self, for_link: bool, timeout: Option<Duration>) -> io::Result<bool> {
        let mut link = libc::pollfd { fd: self.link.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: all that is pointed to lives until the call returns.
        let ready = unsafe { libc::ppoll(&mut link, libc::nfds_t::from(for_link), timeout, &self.waiting_mask) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        Ok(ready > 0)
    }

    /// Reads once and obeys every whole command; false once the worker has closed the link.
    fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; READ_SIZE];
        match self.link.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(length) => self.incoming.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        let incoming = std::mem::take(&mut self.incoming);
        let mut rest = &incoming[..];
        while let Some(body) = first_frame(rest).map_err(io::Error::other)? {
            self.obey(Command::decode(body).map_err(io::Error::other)?)?;
            rest = &rest[frame_size(body)..];
        }
        // Copied rather than kept, so that one huge command does not stay in memory for ever.
        self.incoming = if rest.len() == incoming.len() { incoming } else { rest.to_vec() };
        Ok(true)
    }

    fn obey(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Start(start) => {
                if self.waiting.len() + usize::from(self.running.is_some()) == RUNS_MAX {
                    return Err(io::Error::other(Malformed));
                }
                self.waiting.push_back(start);
            }
            Command::Terminate { run } => {
                if self.is_running(run) {
                    let mut tree = tree::descendants(tree::own_pid());
                    tree.retain(|pid, _| !self.strays.contains_key(pid));
                    tree::signal(&tree, libc::SIGTERM);
                }
                self.drop_waiting(run, libc::SIGTERM);
            }
            Command::Kill { run } => {
                if self.is_running(run) {
                    self.end_tree();
                }
                self.drop_waiting(run, libc::SIGKILL);
            }
        }
        Ok(())
    }

    /// Whether this run's main process is there. A command may cross the report that it has ended.
    fn is_running(&self, run: u64) -> bool {
        self.running.as_ref().is_some_and(|running| running.run == run && running.ended.is_none())
    }

    /// Reports a run that has not started as one that was signalled the moment it had.
    fn drop_waiting(&mut self, run: u64, signal: i32) {
        let Some(position) = self.waiting.iter().position(|start| start.run == run) else { return };
        self.waiting.remove(position);
        let ended = Ended::Signal(signal);
        self.tell(&Report::Exited { run, ended, cpu_us: 0, rss_max_bytes: 0, duration_us: 0, memory_peak_bytes: 0 });
    }

    /// Ends the run whose main process has ended, and starts the next.
    fn advance(&mut self) {
        loop {
            match &self.running {
                Some(running) if running.ended.is_none() => return,
                Some(_) => self.finish(),
                None => {
                    let Some(start) = self.waiting.pop_front() else { return };
                    self.start(&start);
                }
            }
        }
    }

    fn start(&mut self, start: &Start) {
        let run = start.run;
        let started = now();
        // A stray may hold the last run's spool files and write to them when it comes loose.
        let fresh_files = !self.strays.is_empty();
        if let Some(memory) = &mut self.memory
            && let Err(error) = memory.limit(start.memory)
        {
            // Most likely less than is in use already: files in memory that an earlier run left, or not even a start.
            let message = format!("cannot bound memory to {} bytes: {error}", start.memory);
            let errno = error.raw_os_error().unwrap_or_default();
            return self.tell(&Report::Failed { run, exit_code: EXIT_CODE_NOT_STARTABLE, errno, message });
        }
        let has_limit = self.memory.is_some() && start.memory > 0;
        match Victim::born(self.victim.as_ref(), || self.launcher.launch(start, fresh_files)) {
            Ok(main) => {
                self.running = Some(Running {
                    run,
                    main,
                    started,
                    cpu_us: 0,
                    rss_max_bytes: 0,
                    has_limit,
                    is_out_of_memory: false,
                    ended: None,
                });
                self.tell(&Report::Started { run, pid: main.unsigned_abs() });
            }
            Err(NotStarted { exit_code, errno, message }) => {
                self.tell(&Report::Failed { run, exit_code, errno, message });
            }
        }
    }

    fn finish(&mut self) {
        let is_out_of_memory = self.has_run_out_of_memory();
        let mut memory_peak_bytes = 0;
        if is_out_of_memory && let Some(memory) = &mut self.memory {
            memory_peak_bytes = memory.peak();
            // Files in memory may fill the group, and then this process would be the next victim.
            if let Err(error) = memory.limit(0) {
                eprintln!("zg-worker slot: cannot lift the limit of memory: {error}");
            }
        }
        self.end_tree();
        let Some(Running { run, cpu_us, rss_max_bytes, has_limit, ended: Some((ended, duration_us)), .. }) =
            self.running.take()
        else {
            unreachable!("the caller saw that the main process has ended, and end_tree would have seen to it");
        };
        let ended = if is_out_of_memory { Ended::OutOfMemory } else { ended };
        let memory_peak_bytes = if has_limit { memory_peak_bytes } else { 0 };
        self.tell(&Report::Exited { run, ended, cpu_us, rss_max_bytes, duration_us, memory_peak_bytes });
    }

    /// Whether the kernel has killed a process of the run for want of memory.
    fn has_run_out_of_memory(&mut self) -> bool {
        let (Some(running), Some(memory)) = (&mut self.running, &mut self.memory) else { return false };
        running.is_out_of_memory |= memory.has_killed();
        running.is_out_of_memory
    }

    /// Kills and reaps everything that was started, the main process too if it still runs.
    fn end_tree(&mut self) {
        let deadline = now() + KILL_TIME_MAX;
        while self.reap() {
            let left = tree::kill_descendants(&self.strays);
            if left.is_empty() {
                break;
            }
            if deadline < now() {
                self.strays.extend(left);
                break;
            }
            // Woken at once by the first that ends.
            if let Err(error) = self.wait(false, Some(KILL_LOOK_AGAIN)) {
                eprintln!("zg-worker slot: cannot wait: {error}");
            }
        }
        if let Some(running) = &mut self.running {
            running.ended.get_or_insert((Ended::Signal(libc::SIGKILL), micros(running.started.elapsed())));
        }
    }

    /// Reaps everybody who has ended; false if no child is left at all.
    fn reap(&mut self) -> bool {
        loop {
            let mut status = 0;
            let mut usage = MaybeUninit::<libc::rusage>::uninit();
            // SAFETY: both are written by the call before it returns a process id.
            let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, usage.as_mut_ptr()) };
            match pid {
                0 => return true,
                ..0 => {
                    self.strays.clear();
                    return false;
                }
                // SAFETY: a child was reaped, so its usage was written.
                1.. => self.count(pid, status, unsafe { usage.assume_init_ref() }),
            }
        }
    }

    /// Adds what a reaped process used to the run it belonged to.
    fn count(&mut self, pid: pid_t, status: i32, usage: &libc::rusage) {
        if self.strays.remove(&pid).is_some() {
            return;
        }
        let Some(running) = &mut self.running else { return };
        running.cpu_us += timeval_us(usage.ru_utime) + timeval_us(usage.ru_stime);
        running.rss_max_bytes = running.rss_max_bytes.max(usage.ru_maxrss.unsigned_abs() * 1024);
        if pid == running.main {
            let ended = if libc::WIFSIGNALED(status) {
                Ended::Signal(libc::WTERMSIG(status))
            } else {
                Ended::Code(libc::WEXITSTATUS(status))
            };
            running.ended = Some((ended, micros(running.started.elapsed())));
        }
    }

    fn tell(&mut self, report: &Report) {
        match report {
            Report::Ready | Report::Started { .. } => (),
            Report::Exited { .. } | Report::Failed { .. } => self.is_urgent = true,
        }
        report.append_to(&mut self.outgoing);
    }

    /// Sends what is to be told; false if the worker is gone. RUNS_MAX keeps this far below what the link holds, so it
    /// never waits for the worker.
    fn flush(&mut self) -> io::Result<bool> {
        let sent = self.link.write_all(&self.outgoing);
        self.outgoing.clear();
        self.is_urgent = false;
        match sent {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Turns a freshly started process into a slot process and returns its link, which comes as standard input.
fn prepare() -> io::Result<UnixStream> {
    isolate_from_signals()?;
    // SAFETY: plain system calls. Nothing in this process has opened a file yet, so nobody loses one by `close_range`;
    // the descriptors that are made here are checked and have one owner each.
    unsafe {
        // The worker opens everything so that it is not inherited; a library of its own might not.
        check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) as i32)?;
        // A session and its process group of its own keep a terminal's signals to the worker away. It fails only if
        // this process leads a group already, which is as good.
        libc::setsid();
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
        check(libc::prctl(libc::PR_SET_NAME, c"zg-slot".as_ptr()))?;
        // Being less nice than asked for is no reason not to run.
        libc::nice(NICENESS);
        // A working directory would keep its file system from being unmounted.
        check(libc::chdir(c"/".as_ptr()))?;
        let link = OwnedFd::from_raw_fd(check(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3))?);
        let null = OwnedFd::from_raw_fd(check(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?);
        check(libc::dup2(null.as_raw_fd(), 0))?;
        check(libc::dup2(null.as_raw_fd(), 1))?;
        // Where the kernel groups tasks by session, niceness counts only within the session, and the session has one of
        // its own. A kernel that does not group has no such file.
        let _ = std::fs::write("/proc/self/autogroup", NICENESS.to_string());
        Ok(UnixStream::from(link))
    }
}

/// Blocks every signal, with default actions: a service manager that signals the whole service does not end a slot
/// before the worker has drained it, and programs start with no signal ignored.
fn isolate_from_signals() -> io::Result<()> {
    extern "C" fn wake(_signal: i32) {}
    let all = all_signals_but(None);
    // SAFETY: the handler does nothing, so it may run anywhere; the sets outlive the calls; a zeroed `sigaction` is a
    // valid one. Signals that cannot be changed are refused, which is as good.
    unsafe {
        check(libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut()))?;
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        // With the default action SIGCHLD would not interrupt a wait.
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wake as extern "C" fn(i32) as libc::sighandler_t;
        check(libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut()))?;
    }
    Ok(())
}

fn all_signals_but(spared: Option<i32>) -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        if let Some(signal) = spared {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn timeval_us(time: libc::timeval) -> u64 {
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("no run takes 500,000 years")
}
