//! The settings of a master: what its TOML file says, and what its core is given.
//!
//! ```toml
//! dir = "/var/lib/ziggurat/master"         # identity, members, log, snapshots
//! name = "m1"                              # for people
//! # node = "6e4cd0a6-…"                    # only to give a new directory a certain uuid
//! certificate = "keys/m1.key_secret"       # its own, with the secret key (ZeroMQ certificate file)
//! certificates_dir = "keys"                # public certificates (*.key) of those who may connect
//! bind = "tcp://0.0.0.0:7001"              # control socket, for everybody
//! # endpoint = "tcp://10.0.0.1:7001"       # how others reach it, where that is not `bind`
//! # raft_bind = "tcp://0.0.0.0:7002"      # where the other masters connect, in a group of several
//! receipt_key = "receipt.key"              # 64 hexadecimal digits, the same for all storage nodes and masters
//! init = true                              # an empty directory becomes one of a new group; else it is refused
//! # free_bytes_min = 67108864              # below that much free disk no new jobs, below a quarter of it nothing at all
//!
//! # [[masters]]                            # each of the others, in a group of several
//! # node = "00112233-4455-6677-8899-aabbccddeeff"
//! # endpoint = "tcp://10.0.0.2:7002"       # its raft_bind, as it is reached from here
//! # key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # its public key
//!
//! # [timings]                              # milliseconds; what is left out is as here
//! # tick_ms = 30                           # a tick of Raft
//! # grace_ms = 5000                        # a worker unheard for so long may count as lost
//! # load_balancer_silence_ms = 600         # after that another load balancer may become primary
//! # epoch_hold_down_ms = 3000              # at least so long between two such grants
//! # watch_hold_ms = 1000                   # how long a watch waits for something to tell
//! # results_interval_ms = 5                # results that come faster share an entry
//! # snapshot_entries = 10000               # entries after which the state is saved and the log cut
//! ```
//!
//! Relative paths are relative to the directory of the settings file.

use std::path::{Path, PathBuf};

use node::SettingsError;
use serde::Deserialize;
use wire::limit::MIB;
use wire::{BootNonce, ClientKey, Duration, NodeId};

/// Settings as the file has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub dir: PathBuf,
    #[serde(default, deserialize_with = "node::settings::optional_node")]
    pub node: Option<NodeId>,
    pub name: String,
    pub certificate: PathBuf,
    pub certificates_dir: PathBuf,
    pub bind: String,
    pub endpoint: Option<String>,
    pub raft_bind: Option<String>,
    pub receipt_key: PathBuf,
    /// The others of its group.
    #[serde(default)]
    pub masters: Vec<Master>,
    #[serde(default)]
    pub init: bool,
    #[serde(default = "default_free_bytes_min")]
    pub free_bytes_min: u64,
    #[serde(default)]
    pub timings: Timings,
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut config: Self = node::settings::load(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.dir, &mut config.certificate, &mut config.certificates_dir, &mut config.receipt_key] {
            *path = base.join(&path);
        }
        Ok(config)
    }
}

/// Another master, as it is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Master {
    #[serde(deserialize_with = "node::settings::text::deserialize")]
    pub node: NodeId,
    pub endpoint: String,
    #[serde(deserialize_with = "node::settings::public_key")]
    pub key: ClientKey,
}

fn default_free_bytes_min() -> u64 {
    node::disk::MASTER_FREE_BYTES_MIN
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
    #[serde(with = "node::settings::milliseconds")]
    pub results_interval_ms: Duration,
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
            results_interval_ms: Duration::from_millis(5),
            snapshot_entries: 10_000,
        }
    }
}

/// What a core is made of.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub node: NodeId,
    pub boot: BootNonce,
    /// The voters of the group, the node among them.
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

impl CoreConfig {
    /// A group of one with every default.
    pub fn new(node: NodeId, boot: BootNonce, receipt_key: [u8; 32]) -> Self {
        Self {
            node,
            boot,
            members: vec![node],
            seed: boot.0,
            name: String::from("master"),
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
    /// Questions that wait until it is sure that their answer is current.
    pub reads_max: usize,
    /// Bytes of past events for watchers that come back.
    pub event_bytes_max: usize,
    /// Bytes of entries after which the state is saved and the log cut.
    pub snapshot_log_bytes_max: usize,
    /// Entries kept in memory behind a snapshot, for followers that are a little late.
    pub log_entries_kept: u64,
    /// Bytes of the log above which nothing is kept for a follower that is heard and very late: it gets a snapshot.
    pub log_bytes_kept_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backlog_max: 65_536,
            backlog_bytes_max: 32 * MIB,
            entry_bytes_max: MIB,
            nodes_max: 65_536,
            watches_max: 65_536,
            reads_max: 65_536,
            event_bytes_max: 64 * MIB,
            snapshot_log_bytes_max: 64 * MIB,
            log_entries_kept: 1_000,
            log_bytes_kept_max: 128 * MIB,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example at the head of this file.
    fn example() -> String {
        let source = include_str!("config.rs");
        let inside = source.split("//! ```").nth(1).expect("the example is fenced");
        inside.lines().skip(1).map(|line| line.trim_start_matches("//!")).collect::<Vec<_>>().join("\n")
    }

    fn load(text: &str) -> Result<Config, SettingsError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("master.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path)
    }

    #[test]
    fn the_documented_example_is_a_settings_file() {
        let config = load(&example()).expect("it reads");
        assert_eq!((config.name.as_str(), config.init, config.node), ("m1", true, None));
        assert!(config.certificates_dir.ends_with("keys"));
        assert!(load(&format!("bidn = 1\n{}", example())).expect_err("a misspelt key").to_string().contains("bidn"));
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let example = example();
        let lines = example.lines().map(|line| line.strip_prefix(" # ").unwrap_or(line));
        let lines: Vec<&str> = lines.filter(|line| !line.starts_with("node = \"6e4c")).collect();
        let given = load(&lines.join("\n")).expect("it reads");
        assert_eq!(format!("{:?}", given.timings), format!("{:?}", Timings::default()));
        assert_eq!(given.free_bytes_min, default_free_bytes_min());
    }
}
