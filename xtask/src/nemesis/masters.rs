//! The masters of a cluster as processes: which one leads, whether all are up, and signals to them.

use crate::Outcome;
use crate::cluster::Cluster;
use crate::json::Value;
use std::process::Command;
use std::time::Duration;

const NAMES: [&str; 3] = ["master1", "master2", "master3"];
/// Between two looks at the cluster.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A group that is not whole after so many looks never will be.
const LOOKS_MAX: usize = 300;

pub(super) struct Masters<'a> {
    cluster: &'a Cluster,
}

impl Masters<'_> {
    pub(super) fn of(cluster: &Cluster) -> Masters<'_> {
        Masters { cluster }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        NAMES.into_iter()
    }

    pub(super) fn leader(&self) -> Outcome<String> {
        let nodes = self.cluster.json(&["node", "list"])?;
        let leader = nodes.at("nodes").list().iter().find(|node| *node.at("is_leader") == Value::Bool(true));
        let name = leader.and_then(|node| node.at("name").text());
        name.map(str::to_owned).ok_or("no master leads".to_owned())
    }

    /// Waits until every master runs, is up, and is registered as the process that runs now.
    pub(super) fn wait_all_up(&self) -> Outcome {
        for _ in 0..LOOKS_MAX {
            if self.are_all_up()? {
                return Ok(());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Err(format!("after {:?} not all masters are up", LOOK_INTERVAL * LOOKS_MAX as u32))
    }

    fn are_all_up(&self) -> Outcome<bool> {
        let pids = NAMES.map(|name| self.pid(name));
        // The question itself may meet an election.
        let Ok(nodes) = self.cluster.json(&["node", "list"]) else { return Ok(false) };
        let is_up = |(name, pid): (&str, Option<u32>)| {
            let node = nodes.at("nodes").list().iter().find(|node| node.at("name").text() == Some(name));
            let registered = node.filter(|node| node.at("state").text() == Some("up"));
            pid.is_some() && registered.and_then(|node| node.at("pid").number()) == pid.map(f64::from)
        };
        Ok(NAMES.into_iter().zip(pids).all(is_up))
    }

    /// Sends one signal to all of `names` at once, after `first`, which is done when all have been found.
    pub(super) fn signal(&self, signal: &str, names: &[&str], first: impl FnOnce() -> Outcome) -> Outcome {
        let pid = |name: &&str| self.pid(name).map(|pid| pid.to_string()).ok_or(format!("{name} does not run"));
        let pids = names.iter().map(pid).collect::<Outcome<Vec<_>>>()?;
        first()?;
        // The shell's own kill: not every machine has a program of that name.
        let mut shell = Command::new("sh");
        shell.args(["-c", "signal=$1; shift; kill -$signal \"$@\"", "sh", signal]).args(pids);
        let status = shell.status().map_err(|error| format!("cannot start sh: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("kill -{signal} {names:?} failed ({status})")) }
    }

    /// The process whose settings are this master's.
    fn pid(&self, name: &str) -> Option<u32> {
        let settings = format!("{}/{name}.toml", self.cluster.dir());
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).nth(1) == Some(settings.as_bytes())
        })
    }
}
