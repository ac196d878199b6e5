//! A directory to run programs in, and the words to start them in a slot and to hear how they ended.

#![allow(dead_code, reason = "each test file uses a part of the vocabulary")]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use worker::slot::{Ended, Report, SlotEvent, SlotLink, Start};

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_zg-worker");

pub fn string(bytes: impl AsRef<[u8]>) -> CString {
    CString::new(bytes.as_ref()).expect("no NUL in it")
}

/// A directory with the slot's spool files, and the starts of programs in it.
pub struct Bench {
    pub directory: TempDir,
    pub runs: u64,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { directory: TempDir::new().expect("a temporary directory"), runs: 0 }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn program(&mut self, program: impl AsRef<[u8]>, arguments: &[&[u8]]) -> Start {
        self.runs += 1;
        let path = |name| string(self.path(name).as_os_str().as_bytes());
        let program = string(program);
        let mut argv = vec![program.clone()];
        argv.extend(arguments.iter().map(string));
        Start {
            run: self.runs,
            program,
            arguments: argv,
            variables: vec![string("PATH=/usr/bin:/bin")],
            directory: string(self.directory.path().as_os_str().as_bytes()),
            stdin: string("/dev/null"),
            stdout: path("stdout"),
            stderr: path("stderr"),
            memory: 0,
        }
    }

    pub fn script(&mut self, script: &str) -> Start {
        self.program("/bin/sh", &[b"-c", script.as_bytes()])
    }

    pub fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the temporary directory is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        path
    }

    pub fn stdout(&self) -> Vec<u8> {
        fs::read(self.path("stdout")).expect("a run made it")
    }

    /// The process id that a program writes to this file, once it has.
    pub fn pid_in(&self, name: &str) -> u32 {
        let mut pid = None;
        until(|| {
            pid = fs::read_to_string(self.path(name)).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok());
            pid.is_some()
        });
        pid.expect("the loop ends with one")
    }
}

/// How a run ended, with what of a report the tests look at.
#[derive(Debug)]
pub struct End {
    pub ended: Ended,
    pub cpu: Duration,
    pub rss_max_bytes: u64,
    pub duration: Duration,
    pub memory_peak_bytes: u64,
}

pub fn a_slot() -> SlotLink {
    SlotLink::spawn(Path::new(EXECUTABLE), None).expect("the worker's executable is there")
}

pub fn report(slot: &mut SlotLink) -> Report {
    match slot.recv().expect("a link can be waited for") {
        Some(SlotEvent::Reported(report)) => report,
        other => panic!("a report was due, not {other:?}"),
    }
}

pub fn started(slot: &mut SlotLink, start: Start) -> u32 {
    let expected = start.run;
    slot.start(start).expect("short enough");
    match report(slot) {
        Report::Started { run, pid } if run == expected => pid,
        other => panic!("run {expected} was to start, not {other:?}"),
    }
}

pub fn end(slot: &mut SlotLink, expected: u64) -> End {
    match report(slot) {
        Report::Exited { run, ended, cpu_us, rss_max_bytes, duration_us, memory_peak_bytes } if run == expected => {
            End {
                ended,
                memory_peak_bytes,
                cpu: Duration::from_micros(cpu_us),
                rss_max_bytes,
                duration: Duration::from_micros(duration_us),
            }
        }
        other => panic!("run {expected} was to end, not {other:?}"),
    }
}

pub fn run(slot: &mut SlotLink, start: Start) -> End {
    let run = start.run;
    started(slot, start);
    end(slot, run)
}

/// The exit code and message of a start that has to fail.
pub fn failure(slot: &mut SlotLink, start: Start) -> (i32, String) {
    let expected = start.run;
    slot.start(start).expect("short enough");
    match report(slot) {
        Report::Failed { run, exit_code, errno: _, message } if run == expected => (exit_code, message),
        other => panic!("run {expected} was not to start, but {other:?}"),
    }
}

/// Waits for something that another process is about to do.
pub fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not happen within 30 s");
}

/// Whether a process still does or holds anything.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().next()).is_some_and(|state| state != "Z")
}

pub fn children(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs")
}
