//! A site with a mount, on machines that mount; and what its tests are told in.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use node::Clock;
use wire::job::{Input, JobSpec};
use wire::{Cause, FileId, JobId};

use super::Site;

pub const MIB: usize = 1 << 20;

/// A site whose mount is taken away at the end, also of a test that fails.
pub struct Mounted {
    pub site: Site,
}

impl Mounted {
    /// `None` = this machine mounts nothing.
    pub fn new() -> Option<Self> {
        // SAFETY: plain system call.
        let can = fs::metadata("/dev/fuse").is_ok() && unsafe { libc::geteuid() } == 0;
        if !can {
            eprintln!("skipped: this needs /dev/fuse, and root");
        }
        can.then(|| Self { site: Site::new() })
    }

    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/run/ziggurat").join(self.site.node())
    }

    /// The lines of the kernel's list that are ours.
    pub fn listed(&self) -> Vec<String> {
        let node = self.site.node();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("it is text");
        mounts.lines().filter(|line| line.contains(&node)).map(str::to_owned).collect()
    }

    pub fn input(&mut self, bytes: &[u8], path: &[u8]) -> (FileId, Input) {
        let (file, hash) = self.site.store(bytes);
        (file, Input { hash, file_length: bytes.len() as u64, path: path.to_vec(), ..Input::default() })
    }

    /// Runs a shell script over the inputs; returns how it ended, and its standard output and error.
    pub fn run(&mut self, inputs: &[(FileId, Input)], script: &str) -> (Cause, String, String) {
        let spec = script_over(inputs, script);
        let files: Vec<FileId> = inputs.iter().map(|(file, _)| *file).collect();
        let job = self.site.run(b"", &files, &spec);
        let result = self.site.results[&(job, 0)];
        let streams = self.site.streams(result.bundle);
        (result.cause, streams.stdout().to_owned(), streams.stderr().to_owned())
    }

    /// Starts a job that goes on, and waits for its first line in `file`.
    pub fn begin(&mut self, inputs: &[(FileId, Input)], script: &str, file: &str) -> JobId {
        let path = self.site.path(file);
        let script = format!("exec >'{}'; {script}", path.display());
        let spec = script_over(inputs, &script);
        let files: Vec<FileId> = inputs.iter().map(|(file, _)| *file).collect();
        let job = JobId::now();
        self.site.assign(job, 0, 1, b"", &files, &spec);
        self.site.until("the program runs", |_| fs::read(&path).is_ok_and(|said| said.contains(&b'\n')));
        job
    }
}

/// A job of one shell script.
pub fn script_over(inputs: &[(FileId, Input)], script: &str) -> JobSpec {
    JobSpec {
        arguments: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
        inputs: inputs.iter().map(|(_, input)| input.clone()).collect(),
        ..JobSpec::default()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for line in self.listed() {
            let path = line.split(' ').nth(4).expect("a place");
            let _ = Command::new("umount").args(["-f", "-l", path]).status();
        }
        // A worker that is killed while it mounts leaves them to its next start.
        let _ = (fs::remove_dir(self.dir().join("fs")), fs::remove_dir(self.dir()));
    }
}

pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let clock = Clock::new();
    let deadline = clock.now() + limit;
    while !is_so() {
        assert!(clock.now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that no two places share.
pub fn bytes(length: usize) -> Vec<u8> {
    (0..length.div_ceil(8))
        .flat_map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(length)
        .collect()
}

pub fn signal(process: u32, signal: i32) {
    // SAFETY: a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(process as libc::pid_t, signal) }, 0);
}

/// Where the worker's cache has an input.
pub fn stored(mounted: &Mounted, (file, _): &(FileId, Input)) -> PathBuf {
    let id = file.to_string();
    mounted.site.path("data/cache/files").join(&id[..2]).join(&id[2..4]).join(format!("{id}.dat"))
}

/// Turns one bit of a cached file over, as root may.
pub fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("root may write");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is there");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}
