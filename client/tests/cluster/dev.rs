//! One `zg dev` and the commands that are run against it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use node::Clock;
use serde_json::Value;

const ZG: &str = env!("CARGO_BIN_EXE_zg");
/// No single command may take longer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A running cluster; dropped, it is killed with everything it started.
pub struct Dev {
    child: Child,
    drain: Option<JoinHandle<()>>,
    /// Of the test: the cluster is in `cluster`, what commands print lies beside it.
    folder: tempfile::TempDir,
    pub cluster: PathBuf,
}

/// What a command came to.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts that the command failed with `code` and named all of `words`.
    pub fn expect_error(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' is not named: {self:?}");
        }
    }

    /// Asserts that the command succeeded.
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }
}

impl Dev {
    pub fn start(workers: u32) -> Dev {
        Self::start_in(short_folder(), workers)
    }

    /// Starts in `folder/cluster`, which may be of an earlier start.
    pub fn start_in(folder: tempfile::TempDir, workers: u32) -> Dev {
        Self::start_with(folder, workers, &[])
    }

    /// Starts with further arguments for `zg dev`.
    pub fn start_with(folder: tempfile::TempDir, workers: u32, arguments: &[&str]) -> Dev {
        expect_programs();
        let cluster = folder.path().join("cluster");
        let log = File::create(folder.path().join("dev.log")).expect("a log");
        let mut child = Command::new(ZG)
            .args(["dev", "--phase", "1", "--workers", &workers.to_string(), "--dir"])
            .arg(&cluster)
            .args(arguments)
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("ZG_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("zg starts");
        let mut printed = BufReader::new(child.stdout.take().expect("it is piped"));
        let (tx, rx) = std::sync::mpsc::channel();
        let drain = std::thread::spawn(move || {
            let mut line = String::new();
            while printed.read_line(&mut line).is_ok_and(|length| length > 0) {
                // The first line is waited for; nobody reads the others.
                let _ = tx.send(std::mem::take(&mut line));
            }
        });
        let mut dev = Dev { child, drain: Some(drain), folder, cluster };
        let Ok(line) = rx.recv_timeout(READY_TIMEOUT) else {
            panic!("zg dev is not ready: {}", dev.logs());
        };
        let said = line.trim_end().strip_prefix("ready: ZG_CLUSTER=").map(PathBuf::from);
        let said = said.unwrap_or_else(|| panic!("zg dev said: {line}"));
        dev.cluster = said;
        dev
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A `zg` command for this cluster, with its output to be collected.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = zg(arguments);
        command.env("ZG_CLUSTER", &self.cluster).current_dir(self.folder.path());
        command
    }

    pub fn zg(&self, arguments: &[&str]) -> Said {
        run(&mut self.command(arguments))
    }

    /// Runs with `--json` and reads what it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = self.zg(&[&["--json"], arguments].concat());
        assert_eq!(said.code, Some(0), "{arguments:?}: {}\n{}", said.stderr, self.logs());
        let value: Value = serde_json::from_slice(&said.stdout).expect("it is JSON");
        assert_eq!(value["schema_version"], 1);
        value
    }

    /// Submits and returns the job's number.
    pub fn submit(&self, arguments: &[&str]) -> String {
        self.json(&[&["submit"], arguments].concat())["job"]["number"].to_string()
    }

    pub fn job(&self, job: &str) -> Value {
        self.json(&["job", "info", job])["job"].clone()
    }

    pub fn chunks(&self, job: &str) -> Vec<Value> {
        self.json(&["chunk", "list", job])["chunks"].as_array().expect("a list").clone()
    }

    /// Waits until the job has ended, `limit` at most, and returns its record.
    pub fn wait(&self, job: &str, limit: Duration) -> Value {
        let timeout = format!("{}ms", limit.as_millis());
        let mut command = self.command(&["job", "wait", job, "--timeout", &timeout, "--ignore-failures"]);
        let said = run_within(&mut command, limit + COMMAND_TIMEOUT);
        assert_eq!(said.code, Some(0), "{}\n{}\n{}", said.stderr, self.job(job), self.logs());
        self.job(job)
    }

    pub fn node(&self, name: &str) -> Value {
        let nodes = self.json(&["node", "list"]);
        let nodes = nodes["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no node {name}")).clone()
    }

    /// Kills a role outright, as a power cut would.
    pub fn kill(&self, name: &str) {
        let pid = self.node(name)["pid"].as_i64().expect("a pid");
        // SAFETY: kill takes no pointers.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
    }

    /// Kills `zg dev` itself, and nothing else.
    pub fn kill_dev(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }

    /// Stops the cluster as Ctrl-C does, and gives its folder back.
    pub fn stop(mut self) -> tempfile::TempDir {
        // SAFETY: kill takes no pointers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGINT) }, 0);
        let status = ended_within(&mut self.child, STOP_TIMEOUT).expect("zg dev stops");
        assert!(status.success(), "{status}: {}", self.logs());
        assert_eq!(mounts_of(&self.cluster), [""; 0], "a mount is left over");
        std::mem::replace(&mut self.folder, short_folder())
    }

    /// The ends of all logs, for messages of failed tests.
    pub fn logs(&self) -> String {
        let tail = |path: PathBuf| {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
            format!("== {}\n{text}\n", path.display())
        };
        let entries = std::fs::read_dir(self.folder.path().join("cluster")).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.chain([self.folder.path().join("dev.log")]).map(tail).collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(drain) = self.drain.take() {
            let _ = drain.join();
        }
    }
}

/// `zg` without any cluster.
pub fn zg(arguments: &[&str]) -> Command {
    let mut command = Command::new(ZG);
    command.args(arguments).stdin(Stdio::null()).env_remove("ZG_CLUSTER");
    // Neither a cluster of the person who runs the tests nor his settings are found.
    command.env("XDG_RUNTIME_DIR", "/nonexistent").env("HOME", "/nonexistent").env("NO_COLOR", "1");
    command
}

pub fn run(command: &mut Command) -> Said {
    run_within(command, COMMAND_TIMEOUT)
}

pub fn run_within(command: &mut Command, limit: Duration) -> Said {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let file = |name: &str| File::create(path(name)).expect("a file");
    let mut child = command.stdout(file("out")).stderr(file("err")).spawn().expect("it starts");
    let Some(status) = ended_within(&mut child, limit) else {
        child.kill().expect("it runs");
        child.wait().expect("it is ours");
        let stderr = std::fs::read_to_string(path("err")).unwrap_or_default();
        panic!("{command:?} has not ended after {limit:?}: {stderr}");
    };
    Said {
        code: status.code(),
        stdout: std::fs::read(path("out")).expect("it was written"),
        stderr: String::from_utf8_lossy(&std::fs::read(path("err")).expect("it was written")).into_owned(),
    }
}

/// Waits for a child, `limit` at most.
pub fn ended_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    until(limit, || child.try_wait().expect("it is ours"))
}

/// Looks again and again until `look` finds something, `limit` at most.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let clock = Clock::new();
    let deadline = clock.now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if clock.now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder whose path is short enough for sockets in it.
pub fn short_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("zg-test-").tempdir_in("/tmp").expect("a folder")
}

fn expect_programs() {
    for role in ["master", "loadbalancer", "storage", "worker"] {
        let path = Path::new(ZG).with_file_name(format!("zg-{role}"));
        assert!(path.exists(), "{} is missing: cargo build --workspace --bins --profile test", path.display());
    }
}

/// The mounts of a cluster's workers, as the kernel lists them.
pub fn mounts_of(cluster: &Path) -> Vec<String> {
    let settings = std::fs::read_dir(cluster).into_iter().flatten().flatten().map(|entry| entry.path());
    let settings = settings.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let texts: Vec<String> = settings.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let nodes: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.lines().filter_map(|line| line.strip_prefix("node = \"")?.strip_suffix('"')))
        .collect();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("it is text");
    mounts.lines().filter(|line| nodes.iter().any(|node| line.contains(node))).map(str::to_owned).collect()
}
