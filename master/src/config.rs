//! The settings of a master: what its TOML file says, and what its core is given.
//!
//! ```toml
//! dir = "/var/lib/ziggurat/m1"            # data directory: identity, members, log, snapshots
//! name = "m1"                             # what people call it; default: "master"
//! bind = "tcp://127.0.0.1:7001"           # where everybody connects to; port 0 or * lets the system pick
//! advertise = "tcp://10.0.0.1:7001"       # what others are told to connect to; default: the bound address
//! certificate = "/etc/ziggurat/m1.key"    # its own certificate, with the secret key; not needed for ipc://
//! certificates_dir = "/etc/ziggurat/known" # public certificates of those who may connect; needed for tcp://
//! receipt_key = "/etc/ziggurat/receipt.key" # 32 bytes, or 64 hexadecimal digits: shared with the storage nodes
//! init = true                             # an empty data directory becomes a new group of one; default: false
//! node = "8d1c6d0e-..."                   # its uuid at the first start; default: a fresh one
//! free_bytes_min = 67108864               # below that much free disk nothing new is accepted
//!
//! [timings]                               # each may be left out
//! tick_ms = 30                            # a tick of Raft
//! grace_ms = 5000                         # how long a silent worker is not called lost
//! load_balancer_silence_ms = 600          # after that another load balancer may become primary
//! epoch_hold_down_ms = 3000               # at least that long between two such grants
//! watch_hold_ms = 1000                    # how long a watch waits for something to tell
//! snapshot_entries = 10000                # entries after which the state is saved and the log cut
//! ```

use std::path::PathBuf;

use serde::Deserialize;
use wire::limit::MIB;
use wire::{BootNonce, ClientKey, Duration, NodeId};

/// The settings file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub dir: PathBuf,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default = "default_name")]
    pub name: String,
    pub bind: String,
    #[serde(default)]
    pub advertise: Option<String>,
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    #[serde(default)]
    pub certificates_dir: Option<PathBuf>,
    pub receipt_key: PathBuf,
    #[serde(default)]
    pub init: bool,
    #[serde(default = "default_free_bytes_min")]
    pub free_bytes_min: u64,
    #[serde(default)]
    pub timings: Timings,
}

fn default_name() -> String {
    "master".into()
}

fn default_free_bytes_min() -> u64 {
    64 * MIB as u64
}

/// Durations, and how often the log is cut.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timings {
    #[serde(with = "node::settings::milliseconds")]
    pub tick_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub grace_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub load_balancer_silence_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub epoch_hold_down_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub watch_hold_ms: Duration,
    pub snapshot_entries: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            tick_ms: Duration::from_millis(30),
            grace_ms: Duration::from_secs(5),
            load_balancer_silence_ms: Duration::from_millis(600),
            epoch_hold_down_ms: Duration::from_secs(3),
            watch_hold_ms: Duration::from_secs(1),
            snapshot_entries: 10_000,
        }
    }
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeId,
    pub boot: BootNonce,
    /// The voters of the group; today the node alone.
    pub members: Vec<NodeId>,
    /// Election timeouts are drawn from it, so that a simulated run can be replayed.
    pub seed: u64,
    /// How the master is listed among the nodes.
    pub name: String,
    pub endpoint: String,
    pub public_key: ClientKey,
    pub pid: u32,
    /// Shared with the storage nodes: their receipts are checked with it.
    pub receipt_key: [u8; 32],
    pub timings: Timings,
    pub limits: Limits,
}

impl Config {
    /// A group of one with every default.
    pub fn new(node: NodeId, boot: BootNonce, receipt_key: [u8; 32]) -> Self {
        Self {
            node,
            boot,
            members: vec![node],
            seed: boot.0,
            name: default_name(),
            endpoint: String::new(),
            public_key: ClientKey::default(),
            pid: 0,
            receipt_key,
            timings: Timings::default(),
            limits: Limits::default(),
        }
    }
}

/// What a core holds at most; beyond it the answer is `busy`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests that are proposed and not yet applied.
    pub backlog_max: usize,
    /// Bytes of them.
    pub backlog_bytes_max: usize,
    /// Bytes of one log entry, unless one request alone is larger.
    pub entry_bytes_max: usize,
    /// Registered nodes.
    pub nodes_max: usize,
    /// Watches that wait.
    pub watches_max: usize,
    /// Bytes of past events for watchers that come back.
    pub event_bytes_max: usize,
    /// Bytes of entries after which the state is saved and the log cut.
    pub snapshot_log_bytes_max: usize,
    /// Entries kept in memory behind a snapshot, for followers that are a little late.
    pub log_entries_kept: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backlog_max: 65_536,
            backlog_bytes_max: 32 * MIB,
            entry_bytes_max: MIB,
            nodes_max: 65_536,
            watches_max: 65_536,
            event_bytes_max: 64 * MIB,
            snapshot_log_bytes_max: 64 * MIB,
            log_entries_kept: 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_settings_load() {
        let documented: String = include_str!("config.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .skip_while(|line| *line != "```toml")
            .skip(1)
            .take_while(|line| *line != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.toml");
        std::fs::write(&path, documented).unwrap();
        let settings: Settings = node::settings::load(&path).unwrap();
        assert_eq!((settings.name.as_str(), settings.init), ("m1", true));
        assert_eq!(settings.timings.grace_ms, Duration::from_secs(5));
    }
}
