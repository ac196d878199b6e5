//! One `zg dev` and what it left, which must be nothing.

use crate::json::Value;
use crate::{Outcome, run, target};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// The crates whose programs a cluster is made of.
const ROLES: &[&str] = &["client", "master", "loadbalancer", "storage", "worker"];

/// Builds what a cluster is made of; `targets` says which of cargo's targets.
pub(crate) fn build(targets: &[&str]) -> Outcome {
    let mut build = vec!["build", "--locked", "--release"];
    build.extend(targets);
    build.extend(ROLES.iter().flat_map(|role| ["--package", role]));
    run("cargo", &build)
}

/// A running cluster. Dropped, it is stopped and its folder removed, whatever went wrong before.
pub(crate) struct Cluster {
    dev: Child,
    /// Reads what `zg dev` prints after its ready line, so that it never waits for a reader.
    drain: Option<JoinHandle<()>>,
    zg: PathBuf,
    /// Holds the cluster's own folder and the log of `zg dev`.
    folder: PathBuf,
    cluster: String,
}

impl Cluster {
    /// Starts `zg dev` with these options, in a temporary folder named after `purpose`, and returns when it says that a job
    /// can run.
    pub(crate) fn start(purpose: &str, options: &[&str]) -> Outcome<Cluster> {
        let zg = target()?.join("release/zg");
        // Short, because a socket's path may not be longer than some hundred bytes.
        let folder = std::env::temp_dir().join(format!("zg-{purpose}-{}", std::process::id()));
        let log = folder.join("dev.log");
        std::fs::create_dir(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        let stderr = File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        let dev = Command::new(&zg)
            .arg("dev")
            .args(options)
            .arg("--dir")
            .arg(folder.join("cluster"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", zg.display()))?;
        let mut cluster = Cluster { dev, drain: None, zg, folder, cluster: String::new() };
        let mut printed = BufReader::new(cluster.dev.stdout.take().expect("its standard output is piped"));
        loop {
            let mut line = String::new();
            let length = printed.read_line(&mut line).map_err(|error| format!("cannot read from zg dev: {error}"))?;
            if length == 0 {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("zg dev ended before it was ready: {}", said.trim()));
            }
            if let Some(folder) = line.trim().strip_prefix("ready: ZG_CLUSTER=") {
                cluster.cluster = folder.to_owned();
                break;
            }
        }
        cluster.drain = Some(std::thread::spawn(move || drain(printed)));
        Ok(cluster)
    }

    /// The cluster directory.
    pub(crate) fn dir(&self) -> &str {
        &self.cluster
    }

    /// The programs' logs, by the names of their files.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.cluster).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect()
    }

    /// Runs `zg` against this cluster and returns what it prints.
    pub(crate) fn zg(&self, arguments: &[&str]) -> Outcome<String> {
        let output = Command::new(&self.zg)
            .args(arguments)
            .env("ZG_CLUSTER", &self.cluster)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot start {}: {error}", self.zg.display()))?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(|_| "zg printed something that is not UTF-8".to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let verbs: Vec<&str> = arguments.iter().copied().take(2).collect();
        Err(format!("`zg {}` failed ({}): {}", verbs.join(" "), output.status, said.trim()))
    }

    /// The same with `--json`, read.
    pub(crate) fn json(&self, arguments: &[&str]) -> Outcome<Value> {
        Value::parse(&self.zg(&[&["--json"], arguments].concat())?)
    }

    /// What its workers' programs have read of their inputs so far.
    pub(crate) fn inputs(&self) -> Outcome<Inputs> {
        let nodes = self.json(&["node", "list"])?;
        let workers = nodes.at("nodes").list().iter().filter(|node| node.at("role").text() == Some("worker"));
        let mut sum = Inputs::default();
        for worker in workers {
            let id = worker.at("id").text().ok_or("a node without an id")?;
            let info = self.json(&["node", "info", id])?;
            let inputs = info.at("node").at("inputs");
            if *inputs == Value::Null {
                // It has not spoken yet, and so has run nothing.
                continue;
            }
            let count = |name: &str| inputs.at(name).number().ok_or(format!("worker {id} tells no {name}"));
            sum.bytes_fetched += count("bytes_fetched")?;
            sum.opens_past += count("opens_passthrough")?;
            sum.opens_through += count("opens_cached")?;
            sum.opens_waited += count("opens_waited")?;
        }
        Ok(sum)
    }

    /// Stops the cluster as Ctrl-C does; fails when anything of it is left but its folder.
    pub(crate) fn stop(mut self) -> Outcome {
        let nodes = nodes_of(&self.folder.join("cluster"));
        if nodes.is_empty() {
            return Err(format!("no node has its settings in {}", self.folder.display()));
        }
        let status = self.interrupt()?;
        if !status.success() {
            let said = std::fs::read_to_string(self.folder.join("dev.log")).unwrap_or_default();
            return Err(format!("zg dev ended badly ({status}): {}", said.trim()));
        }
        let left = left_behind(&self.folder, &nodes);
        if left.is_empty() { Ok(()) } else { Err(format!("zg dev left behind: {}", left.join(", "))) }
    }

    fn interrupt(&mut self) -> Outcome<std::process::ExitStatus> {
        // The shell's own kill: not every machine has a program of that name.
        let kill = Command::new("sh").args(["-c", "kill -INT \"$1\"", "sh", &self.dev.id().to_string()]).status();
        kill.map_err(|error| format!("cannot start sh: {error}"))?;
        self.dev.wait().map_err(|error| format!("cannot wait for zg dev: {error}"))
    }
}

/// What programs have read of their inputs: bytes from storage, and files by the way in which they were opened.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inputs {
    pub(crate) bytes_fetched: f64,
    /// Past the worker, straight from its cache.
    pub(crate) opens_past: f64,
    pub(crate) opens_through: f64,
    /// Of both, those that waited for the file first.
    pub(crate) opens_waited: f64,
}

impl Inputs {
    pub(crate) fn since(self, before: Inputs) -> Inputs {
        Inputs {
            bytes_fetched: self.bytes_fetched - before.bytes_fetched,
            opens_past: self.opens_past - before.opens_past,
            opens_through: self.opens_through - before.opens_through,
            opens_waited: self.opens_waited - before.opens_waited,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(None) = self.dev.try_wait()
            && let Err(error) = self.interrupt()
        {
            eprintln!("warning: {error}");
        }
        if let Some(drain) = self.drain.take()
            && drain.join().is_err()
        {
            eprintln!("warning: the reader of zg dev's output panicked");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("warning: cannot remove {}: {error}", self.folder.display());
        }
    }
}

fn drain(mut printed: impl Read) {
    // A read that fails is the end of what there is to read.
    let _ = std::io::copy(&mut printed, &mut std::io::sink());
}

/// The ids of a cluster's nodes, as their settings have them.
fn nodes_of(cluster: &Path) -> Vec<String> {
    let settings = std::fs::read_dir(cluster).into_iter().flatten().flatten().map(|entry| entry.path());
    let settings = settings.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let texts = settings.filter_map(|path| std::fs::read_to_string(path).ok());
    let node = |line: &str| Some(line.strip_prefix("node = \"")?.strip_suffix('"')?.to_owned());
    texts.flat_map(|text| text.lines().filter_map(node).collect::<Vec<_>>()).collect()
}

/// Processes that name the folder in their arguments or work in it, mounts in it, and mounts, their directories and
/// control groups that are named after the nodes.
fn left_behind(folder: &Path, nodes: &[String]) -> Vec<String> {
    let name = folder.to_string_lossy();
    let mut left = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        // A process may end while it is looked at; then it is not left.
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let works_here = std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if arguments.contains(&*name) || works_here {
            left.push(format!("process {} ({})", process.file_name().to_string_lossy(), arguments.trim()));
        }
    }
    let is_named = |text: &str| nodes.iter().any(|node| text.contains(node.as_str()));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mounts = mounts.filter(|point| point.starts_with(&*name) || is_named(point));
    left.extend(mounts.map(|point| format!("mount {point}")));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("ziggurat"));
    for dir in runtime.into_iter().chain(["/run/ziggurat".into(), "/sys/fs/cgroup".into()]) {
        directories_below(&dir, &mut |path| {
            if path.file_name().is_some_and(|name| is_named(&name.to_string_lossy())) {
                left.push(format!("directory {}", path.display()));
            }
        });
    }
    left
}

/// Shows every directory below one, of its own file system or another.
fn directories_below(dir: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // One may go while it is looked at; then it is not left.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(&entry.path());
            directories_below(&entry.path(), see);
        }
    }
}

/// Seconds since 1970 of an RFC 3339 time in UTC, as zg prints them.
pub(crate) fn seconds_of(time: &str) -> Outcome<f64> {
    parse_time(time).ok_or_else(|| format!("`{time}` is not a time like 2026-01-31T12:00:00.5Z"))
}

fn parse_time(time: &str) -> Option<f64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let date: Vec<i64> = date.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let clock: Vec<f64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let ([year, month, day], [hours, minutes, seconds]) = (date[..].try_into().ok()?, clock[..].try_into().ok()?);
    let (year, month, day): (i64, i64, i64) = (year, month, day);
    // Years that begin in March have their leap day last; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    let (hours, minutes, seconds): (f64, f64, f64) = (hours, minutes, seconds);
    Some(days as f64 * 86_400.0 + hours * 3_600.0 + minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn times_are_seconds_since_1970() {
        assert_eq!(seconds_of("1970-01-01T00:00:00Z"), Ok(0.0));
        assert_eq!(seconds_of("2000-02-29T00:00:01.5Z"), Ok(951_782_401.5));
        assert_eq!(seconds_of("2026-11-24T10:02:30Z"), Ok(1_795_514_550.0));
        assert!(seconds_of("yesterday").is_err() && seconds_of("2026-11T00:00Z").is_err());
    }

    #[test]
    fn a_process_that_works_in_the_folder_is_seen() {
        let folder = std::env::temp_dir().join(format!("zg-left-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let nodes = ["0193-none".to_owned()];
        assert_eq!(left_behind(&folder, &nodes), [""; 0]);
        let mut command = Command::new("cat");
        let mut cat = command.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Linux shows a new program's arguments a moment after spawn returns; once it answers, they are there.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(left_behind(&folder, &nodes), [format!("process {} (cat)", cat.id())]);
        drop(cat.stdin.take());
        cat.wait().unwrap();
        std::fs::remove_dir(&folder).unwrap();
    }
}
