//! The slot process and the worker's link to it: what runs programs, one at a time per slot.
//!
//! A slot process is like a foreman with one bench: it is told what to build, it watches everything that happens on its
//! bench, and before it says "done" it sweeps the bench. It is the worker's own executable started again
//! (`zg-worker slot`), single-threaded and small, in its own session and at nice 5. It is the *subreaper* of all it
//! starts: whatever a program leaves behind (daemons, double forks, new sessions) becomes its child, so it can add up
//! the cpu time of all of them and kill all of them. When the link closes, because the worker closed it or died, it
//! kills what runs and exits: `kill -9` of a worker leaves no orphan.
//!
//! The subreaper and a walk over `/proc` find every process of a run. Beside that the slot process sits in a control
//! group of its own (`group.rs`), where the machine lets it: that bounds memory, and finds what was started when the slot
//! process itself was killed. The group belongs to the slot: one created per run would cost 25 to 35 % of the run rate.
//!
//! The link is a socket pair. Each frame is a length, a kind, the run it is about, and a body, all little-endian:
//!
//! ```text
//! u32 length of what follows | u8 kind | u64 run | body
//!   1 Start      u64 memory | u32 arguments | u32 variables | program, directory, stdin, stdout, stderr, arguments..,
//!                variables.. (each string ends in a NUL)
//!   2 Terminate  -
//!   3 Kill       -
//!  16 Ready      - (the run is 0)
//!  17 Started    u32 pid
//!  18 Exited     u8 0 = exited, 1 = killed, 2 = no memory | i32 exit code or signal or 0 | u64 cpu_us |
//!                u64 rss_max_bytes | u64 duration_us | u64 memory_peak_bytes
//!  19 Failed     i32 exit code | i32 errno | message (UTF-8, to the end)
//! ```

pub mod group;
mod link;
pub mod process;
mod spawn;
mod tree;

use std::ffi::{CStr, CString};

pub use group::{Group, Groups};
pub use link::{SlotEvent, SlotLink, WORKER_EXECUTABLE};
pub use tree::{Below, below_which_child};

/// The longest frame. The kernel takes at most 6 MiB of arguments and environment together.
pub const FRAME_SIZE_MAX: usize = 8 * 1024 * 1024;

/// Runs a slot process holds at once: the one that runs and those that wait for it to end.
pub const RUNS_MAX: usize = 4;

/// The longest message of a `Failed` report, in bytes.
pub const MESSAGE_SIZE_MAX: usize = 512;

/// The length field of a frame.
const LENGTH_SIZE: usize = 4;

/// Strings of a `Start` before its arguments.
const FIXED_STRINGS: usize = 5;

/// Everything a slot process needs to know to start one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The worker's number for this run; used again on one link only when it was reported as failed.
    pub run: u64,
    /// A path, or a bare name to be found in the `PATH` of `variables`, as a shell would.
    pub program: CString,
    /// The whole `argv`, its first element included.
    pub arguments: Vec<CString>,
    /// The whole environment, each as `NAME=value`.
    pub variables: Vec<CString>,
    /// The working directory; must exist.
    pub directory: CString,
    /// A file to read, or `/dev/null`.
    pub stdin: CString,
    /// The slot's spool file for standard output; created or emptied.
    pub stdout: CString,
    /// The slot's spool file for standard error; created or emptied; may be the same file as `stdout`.
    pub stderr: CString,
    /// What all its processes together may use of memory, in bytes; 0 = no limit of its own.
    pub memory: u64,
}

/// What the worker tells a slot process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start this as soon as the runs given before it have ended.
    Start(Start),
    /// Ask the whole tree of a run to end (SIGTERM); one that still waits is dropped.
    Terminate { run: u64 },
    /// End the whole tree of a run (SIGKILL, until nothing is left); one that still waits is dropped.
    Kill { run: u64 },
}

/// How a run's main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited by itself with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The kernel killed it, or another process of the run, for want of memory.
    OutOfMemory,
}

/// What a slot process tells the worker: first that it is ready; then each run ends in exactly one `Exited` or `Failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Ready,
    /// The program runs. Told together with the end when that follows within a millisecond.
    Started {
        run: u64,
        pid: u32,
    },
    /// The main process ended, and nothing is left of the run.
    Exited {
        run: u64,
        ended: Ended,
        /// User and system time of every process of the run, in microseconds. The kernel does not account children that
        /// a program lets it discard (SIGCHLD ignored), so those are missing.
        cpu_us: u64,
        /// The largest resident set of any one process of the run. Never below the slot process's own, from which the
        /// program was started.
        rss_max_bytes: u64,
        /// From just before the start to the end of the main process, by the monotonic clock.
        duration_us: u64,
        /// The most that all processes of the run used together, if it had a limit and ran out of memory; else 0.
        memory_peak_bytes: u64,
    },
    /// The program was not started: `exit_code` is 127 if it does not exist and 126 otherwise, as in a shell.
    Failed {
        run: u64,
        exit_code: i32,
        /// The system's reason. EAGAIN, ENOMEM or ENOSPC is this machine's trouble rather than the program's.
        errno: i32,
        message: String,
    },
}

/// A command that no frame can hold; to a program's owner the same as the kernel's E2BIG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("arguments and environment take {size} bytes, more than a program can be given")]
pub struct TooLong {
    pub size: usize,
}

/// Bytes on the link that neither end writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame on a slot's link")]
pub struct Malformed;

/// The monotonic clock, for durations that are reported; instants of the worker's core come from its shell.
#[expect(clippy::disallowed_methods, reason = "a slot process measures for itself; the worker's clock is not in it")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// The body of the first whole frame in `buffer`, or `None` if it has not all come yet. It occupies
/// [`frame_size`] bytes of the buffer.
fn first_frame(buffer: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some(length) = buffer.first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_SIZE_MAX {
        return Err(Malformed);
    }
    Ok(buffer.get(LENGTH_SIZE..LENGTH_SIZE + length))
}

/// What a frame with this body takes on the link.
fn frame_size(body: &[u8]) -> usize {
    LENGTH_SIZE + body.len()
}

/// Appends one frame whose body `write` appends.
fn append_frame(buffer: &mut Vec<u8>, kind: u8, run: u64, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; LENGTH_SIZE]);
    buffer.push(kind);
    buffer.extend_from_slice(&run.to_le_bytes());
    write(buffer);
    let length =
        u32::try_from(buffer.len() - start - LENGTH_SIZE).expect("commands are measured before they are written");
    buffer[start..start + LENGTH_SIZE].copy_from_slice(&length.to_le_bytes());
}

/// Reads a frame's fields in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<CString, Malformed> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Malformed)?;
        self.0 = &self.0[string.count_bytes() + 1..];
        Ok(string.to_owned())
    }

    fn strings(&mut self, count: u32) -> Result<Vec<CString>, Malformed> {
        // A count that the bytes do not bear out fails at the first missing string, before any large allocation.
        (0..count).map(|_| self.string()).collect()
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

impl Start {
    fn strings(&self) -> impl Iterator<Item = &CString> {
        let fixed: [&CString; FIXED_STRINGS] =
            [&self.program, &self.directory, &self.stdin, &self.stdout, &self.stderr];
        fixed.into_iter().chain(&self.arguments).chain(&self.variables)
    }
}

impl Command {
    const START: u8 = 1;
    const TERMINATE: u8 = 2;
    const KILL: u8 = 3;

    /// Appends this command's frame; appends nothing if it is too long.
    pub fn append_to(&self, buffer: &mut Vec<u8>) -> Result<(), TooLong> {
        match self {
            Command::Start(start) => {
                let size = 25 + start.strings().map(|string| string.count_bytes() + 1).sum::<usize>();
                if size > FRAME_SIZE_MAX {
                    return Err(TooLong { size });
                }
                append_frame(buffer, Self::START, start.run, |body| {
                    // Each string takes at least a byte, so their numbers are below FRAME_SIZE_MAX too.
                    body.extend_from_slice(&start.memory.to_le_bytes());
                    body.extend_from_slice(&(start.arguments.len() as u32).to_le_bytes());
                    body.extend_from_slice(&(start.variables.len() as u32).to_le_bytes());
                    for string in start.strings() {
                        body.extend_from_slice(string.to_bytes_with_nul());
                    }
                });
            }
            Command::Terminate { run } => append_frame(buffer, Self::TERMINATE, *run, |_| ()),
            Command::Kill { run } => append_frame(buffer, Self::KILL, *run, |_| ()),
        }
        Ok(())
    }

    /// Decodes the body of one frame.
    pub fn decode(body: &[u8]) -> Result<Command, Malformed> {
        let mut fields = Fields(body);
        let kind = fields.u8()?;
        let run = fields.u64()?;
        let command = match kind {
            Self::START => {
                let memory = fields.u64()?;
                let (arguments, variables) = (fields.u32()?, fields.u32()?);
                Command::Start(Start {
                    run,
                    memory,
                    program: fields.string()?,
                    directory: fields.string()?,
                    stdin: fields.string()?,
                    stdout: fields.string()?,
                    stderr: fields.string()?,
                    arguments: fields.strings(arguments)?,
                    variables: fields.strings(variables)?,
                })
            }
            Self::TERMINATE => Command::Terminate { run },
            Self::KILL => Command::Kill { run },
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(command)
    }
}

impl Report {
    const READY: u8 = 16;
    const STARTED: u8 = 17;
    const EXITED: u8 = 18;
    const FAILED: u8 = 19;

    /// Appends this report's frame.
    pub fn append_to(&self, buffer: &mut Vec<u8>) {
        match self {
            Report::Ready => append_frame(buffer, Self::READY, 0, |_| ()),
            Report::Started { run, pid } => {
                append_frame(buffer, Self::STARTED, *run, |body| body.extend_from_slice(&pid.to_le_bytes()));
            }
            Report::Exited { run, ended, cpu_us, rss_max_bytes, duration_us, memory_peak_bytes } => {
                append_frame(buffer, Self::EXITED, *run, |body| {
                    let (how, value) = match ended {
                        Ended::Code(code) => (0, *code),
                        Ended::Signal(signal) => (1, *signal),
                        Ended::OutOfMemory => (2, 0),
                    };
                    body.push(how);
                    body.extend_from_slice(&value.to_le_bytes());
                    for number in [cpu_us, rss_max_bytes, duration_us, memory_peak_bytes] {
                        body.extend_from_slice(&number.to_le_bytes());
                    }
                });
            }
            Report::Failed { run, exit_code, errno, message } => {
                append_frame(buffer, Self::FAILED, *run, |body| {
                    body.extend_from_slice(&exit_code.to_le_bytes());
                    body.extend_from_slice(&errno.to_le_bytes());
                    body.extend_from_slice(&message.as_bytes()[..message.floor_char_boundary(MESSAGE_SIZE_MAX)]);
                });
            }
        }
    }

    /// Decodes the body of one frame.
    pub fn decode(body: &[u8]) -> Result<Report, Malformed> {
        let mut fields = Fields(body);
        let kind = fields.u8()?;
        let run = fields.u64()?;
        let report = match kind {
            Self::READY => Report::Ready,
            Self::STARTED => Report::Started { run, pid: fields.u32()? },
            Self::EXITED => {
                let ended = match (fields.u8()?, fields.i32()?) {
                    (0, code) => Ended::Code(code),
                    (1, signal) => Ended::Signal(signal),
                    (2, 0) => Ended::OutOfMemory,
                    _ => return Err(Malformed),
                };
                let (cpu_us, rss_max_bytes, duration_us) = (fields.u64()?, fields.u64()?, fields.u64()?);
                let memory_peak_bytes = fields.u64()?;
                Report::Exited { run, ended, cpu_us, rss_max_bytes, duration_us, memory_peak_bytes }
            }
            Self::FAILED => {
                let (exit_code, errno) = (fields.i32()?, fields.i32()?);
                let message = String::from_utf8(fields.rest().to_vec()).map_err(|_| Malformed)?;
                Report::Failed { run, exit_code, errno, message }
            }
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8]) -> CString {
        CString::new(bytes).expect("no NUL in it")
    }

    fn a_start() -> Start {
        Start {
            run: 7,
            program: string(b"/bin/echo"),
            arguments: vec![string(b"echo"), string(b""), string(b"a b\nc\xff")],
            variables: vec![string(b"PATH=/bin")],
            directory: string(b"/"),
            stdin: string(b"/dev/null"),
            stdout: string(b"/tmp/out"),
            stderr: string(b"/tmp/err"),
            memory: 1 << 40,
        }
    }

    #[test]
    fn commands_come_back_as_they_were_sent_and_every_cut_is_malformed() {
        let commands = [Command::Start(a_start()), Command::Terminate { run: 8 }, Command::Kill { run: u64::MAX }];
        for command in commands {
            let mut buffer = Vec::new();
            command.append_to(&mut buffer).expect("short enough");
            let body = first_frame(&buffer).expect("well formed").expect("whole");
            assert_eq!(frame_size(body), buffer.len());
            assert_eq!(Command::decode(body), Ok(command));
            for cut in 0..body.len() {
                assert_eq!(Command::decode(&body[..cut]), Err(Malformed));
                assert_eq!(first_frame(&buffer[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn reports_come_back_as_they_were_sent() {
        let exited =
            |ended| Report::Exited { run: 2, ended, cpu_us: 3, rss_max_bytes: 4, duration_us: 5, memory_peak_bytes: 6 };
        let failed = Report::Failed { run: 6, exit_code: 127, errno: 2, message: "no such program: ü".to_owned() };
        let ends = [Ended::Code(-1), Ended::Signal(9), Ended::OutOfMemory].map(exited);
        let reports = [Report::Ready, Report::Started { run: 1, pid: 99 }, failed].into_iter().chain(ends);
        for report in reports {
            let mut buffer = Vec::new();
            report.append_to(&mut buffer);
            let body = first_frame(&buffer).expect("well formed").expect("whole");
            assert_eq!(Report::decode(body), Ok(report));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut buffer = Vec::new();
        Report::Failed { run: 1, exit_code: 126, errno: 7, message: "€".repeat(MESSAGE_SIZE_MAX) }
            .append_to(&mut buffer);
        let body = first_frame(&buffer).expect("well formed").expect("whole");
        let Ok(Report::Failed { message, .. }) = Report::decode(body) else { panic!("a failure was sent") };
        assert_eq!(message, "€".repeat(MESSAGE_SIZE_MAX / "€".len()));
    }

    #[test]
    fn what_is_too_long_for_a_frame_is_refused_whole() {
        let mut start = a_start();
        start.arguments = vec![string(&vec![b'x'; FRAME_SIZE_MAX])];
        let mut buffer = Vec::new();
        assert!(Command::Start(start).append_to(&mut buffer).is_err());
        assert_eq!(buffer, []);
        assert_eq!(first_frame(&u32::MAX.to_le_bytes()), Err(Malformed));
    }
}
