//! The worker's end of the link to one slot process: starts it, sends it commands, and reads its reports.
//!
//! Nothing here blocks except `recv` and dropping. A loop that polls waits for [`SlotLink::as_fd`] to be readable (and
//! writable while [`SlotLink::wants_write`]), then calls [`SlotLink::try_recv`] until it answers `None`.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use libc::pid_t;

use super::group::Memory;
use super::{Command, Ended, Group, RUNS_MAX, Report, Start, TooLong, first_frame, frame_size, now, tree};

/// The running executable, also after its file has been replaced by a newer one.
pub const WORKER_EXECUTABLE: &str = "/proc/self/exe";

/// How long a slot process may take to leave when its link is closed; more than it gives a killed tree.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);

/// What is read at once, in bytes; some reports.
const READ_SIZE: usize = 1024;

/// What comes from a slot.
#[derive(Debug, PartialEq, Eq)]
pub enum SlotEvent {
    Reported(Report),
    /// The slot process is gone and what it ran was killed. These runs will not be reported; nothing else follows.
    Died {
        unfinished: Vec<u64>,
        status: ExitStatus,
        /// It never came to take a command: not what it ran ended it.
        is_stillborn: bool,
        /// The kernel killed it, or what it ran, for want of memory.
        is_out_of_memory: bool,
    },
}

impl SlotEvent {
    /// Whether a run has ended with it, or several.
    pub fn is_end(&self) -> bool {
        match self {
            SlotEvent::Reported(Report::Ready | Report::Started { .. }) => false,
            SlotEvent::Reported(Report::Exited { .. } | Report::Failed { .. }) | SlotEvent::Died { .. } => true,
        }
    }
}

/// One slot process, and what is under way to it and from it. Dropping it kills what runs there, and waits for that.
#[derive(Debug)]
pub struct SlotLink {
    socket: UnixStream,
    child: Child,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    reports: VecDeque<Report>,
    /// Runs given to the slot process and not yet reported as ended; at most RUNS_MAX.
    unfinished: BTreeSet<u64>,
    state: State,
    group: Option<Group>,
    memory: Option<Memory>,
    is_ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The other end is gone; what it said before may still be unread.
    Closed,
    /// `Died` has been told and the process reaped.
    Reaped,
}

impl SlotLink {
    /// Starts a slot process from a worker's executable, in general [`WORKER_EXECUTABLE`]; with a group, inside it.
    pub fn spawn(executable: &Path, group: Option<Group>) -> io::Result<SlotLink> {
        let memory = group.as_ref().map_or(Ok(None), Group::memory)?;
        // Both ends close on exec; the child gets its own as standard input and finds nothing else open.
        let (socket, other) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let child = std::process::Command::new(executable)
            .arg("slot")
            .args(group.iter().flat_map(Group::directories))
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(SlotLink {
            socket,
            child,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            reports: VecDeque::new(),
            unfinished: BTreeSet::new(),
            state: State::Open,
            group,
            memory,
            is_ready: false,
        })
    }

    /// The process id of the slot process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether a run would start at once rather than wait for another to end.
    pub fn is_idle(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// Has the slot process start a program when the runs before it have ended. On a link that has died, `Died` will
    /// name this run too. At most RUNS_MAX runs may be unfinished.
    pub fn start(&mut self, start: Start) -> Result<(), TooLong> {
        let run = start.run;
        assert!(self.state != State::Reaped, "run {run} given to a slot that was told to have died");
        assert!(self.unfinished.len() < RUNS_MAX, "run {run} is one too many for its slot");
        self.send(&Command::Start(start))?;
        assert!(self.unfinished.insert(run), "run {run} was given to its slot twice");
        Ok(())
    }

    /// Asks the whole tree of a run to end. The run's report says whether it did.
    pub fn terminate(&mut self, run: u64) {
        self.send_if_unfinished(run, &Command::Terminate { run });
    }

    /// Ends the whole tree of a run; its report follows when nothing is left of it.
    pub fn kill(&mut self, run: u64) {
        self.send_if_unfinished(run, &Command::Kill { run });
    }

    /// Bytes of the disk `device` that what runs here holds in open files without a name.
    pub fn held_without_name(&self, device: u64) -> u64 {
        tree::held_without_name(pid_t::try_from(self.pid()).expect("a process id is a positive pid_t"), device)
    }

    /// Whether commands wait for the link to be writable. `try_recv` sends them on.
    pub fn wants_write(&self) -> bool {
        self.state == State::Open && !self.outgoing.is_empty()
    }

    /// The next event, if there is one now.
    pub fn try_recv(&mut self) -> Option<SlotEvent> {
        self.write();
        if self.reports.is_empty() {
            self.read();
        }
        if let Some(report) = self.reports.pop_front() {
            match &report {
                Report::Ready => {
                    self.is_ready = true;
                    return self.try_recv();
                }
                Report::Started { .. } => (),
                Report::Exited { run, ended, .. } => {
                    self.unfinished.remove(run);
                    // What has been told is not told again by the death.
                    if *ended == Ended::OutOfMemory {
                        self.memory.as_mut().map(Memory::has_killed);
                    }
                }
                Report::Failed { run, .. } => {
                    self.unfinished.remove(run);
                }
            }
            return Some(SlotEvent::Reported(report));
        }
        match self.state {
            State::Open | State::Reaped => None,
            State::Closed => {
                self.state = State::Reaped;
                let status = self.bury();
                let unfinished = std::mem::take(&mut self.unfinished).into_iter().collect();
                let is_out_of_memory = self.memory.as_mut().is_some_and(Memory::has_killed);
                Some(SlotEvent::Died { unfinished, status, is_stillborn: !self.is_ready, is_out_of_memory })
            }
        }
    }

    /// The next event, however long it takes; `None` once the slot process has died and that has been told.
    pub fn recv(&mut self) -> io::Result<Option<SlotEvent>> {
        loop {
            if let Some(event) = self.try_recv() {
                return Ok(Some(event));
            }
            if self.state == State::Reaped {
                return Ok(None);
            }
            let events = if self.wants_write() { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            wait_for(&self.socket, events, None)?;
        }
    }

    fn send_if_unfinished(&mut self, run: u64, command: &Command) {
        // The end of the run has been reported; the caller's command crossed it.
        if !self.unfinished.contains(&run) {
            return;
        }
        self.send(command).expect("a command without strings is never too long");
    }

    fn send(&mut self, command: &Command) -> Result<(), TooLong> {
        command.append_to(&mut self.outgoing)?;
        self.write();
        Ok(())
    }

    fn write(&mut self) {
        while self.wants_write() {
            match self.socket.write(&self.outgoing) {
                // Commands are all but always sent whole, so nothing is moved here.
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // Reading finds out what happened, after what was said before.
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; READ_SIZE];
        while self.state == State::Open && self.reports.is_empty() {
            match self.socket.read(&mut bytes) {
                Ok(0) => self.state = State::Closed,
                Ok(length) => self.take(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(_) => self.state = State::Closed,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        let mut taken = 0;
        loop {
            match first_frame(&self.incoming[taken..])
                .and_then(|body| body.map(|body| Ok((frame_size(body), Report::decode(body)?))).transpose())
            {
                Ok(None) => break,
                Ok(Some((size, report))) => {
                    taken += size;
                    self.reports.push_back(report);
                }
                // Whatever talks there, it is no slot process.
                Err(_) => {
                    self.state = State::Closed;
                    break;
                }
            }
        }
        self.incoming.drain(..taken);
    }

    /// Sees to it that the slot process is dead and takes with it what it can no longer kill itself.
    fn bury(&mut self) -> ExitStatus {
        // Fails only if it is dead already. Its number stays its own, and so does its session's, until it is reaped.
        let _ = self.child.kill();
        match &self.group {
            Some(group) => group.kill(),
            None => tree::kill_session(pid_t::try_from(self.child.id()).expect("a process id is a positive pid_t")),
        }
        self.child.wait().expect("a child that nobody else reaps can be waited for")
    }
}

impl AsFd for SlotLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SlotLink {
    fn drop(&mut self) {
        if self.state == State::Reaped {
            return;
        }
        // The slot process reads the end of the link as its order to kill and leave; it closes its own end by leaving.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        let deadline = now() + LEAVE_TIME_MAX;
        while self.state == State::Open {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() || wait_for(&self.socket, libc::POLLIN, Some(left)).is_err() {
                break;
            }
            self.reports.clear();
            self.read();
        }
        if self.state == State::Open {
            self.bury();
        } else {
            let _ = self.child.wait();
        }
    }
}

/// Waits until one of `events` happens on the socket, or the timeout is over, or a signal came.
fn wait_for(socket: &UnixStream, events: libc::c_short, timeout: Option<Duration>) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let timeout_ms = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis() + 1).unwrap_or(i32::MAX));
    // SAFETY: the one entry lives until the call returns.
    if unsafe { libc::poll(&mut poll, 1, timeout_ms) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}
