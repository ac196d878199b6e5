//! The settings of a worker: one TOML file.
//!
//! ```toml
//! dir = "/var/lib/ziggurat/worker"         # its identity, its slots, and copies of input files
//! name = "w1"                              # for people
//! # node = "6e4cd0a6-…"                    # only to give a new directory a certain uuid
//! certificate = "keys/w1.key_secret"       # its own, with the secret key (ZeroMQ certificate file)
//! # bind = "tcp://0.0.0.0:7301"            # control socket; left out = nobody connects to this worker
//! # certificates_dir = "certificates"      # public certificates of those who may; needed with `bind`
//! # endpoint = "tcp://10.0.0.7:7301"       # how others reach it, where that is not `bind`
//! # slots = 2                              # left out = the number of cpus
//! # memory = 8589934592                    # bytes for programs; left out = this machine's
//! # kill_grace_ms = 2000                   # from SIGTERM to SIGKILL
//! # stage_timeout_ms = 600000              # how long the inputs of a job are tried to be had
//! # output_size_max = 68719476736          # bytes that one chunk may keep, unless its job says
//! # free_bytes_min = 134217728             # below that much free disk nothing starts, and what fills it is ended
//! # cache_size_max = 68719476736           # bytes of input files; above, those go that no job here needs
//! # groups = true                          # false = no control groups, so no limits of memory
//! # fuse = true                            # false = inputs are written out instead of mounted
//! # read_timeout_ms = 10000                # how long a program waits for bytes of an input before its read fails
//! # storage_dirs = ["/var/lib/ziggurat/storage"]  # of storage nodes on this machine: what they have is read there, not brought
//! # mount_dir = "/run/ziggurat"            # where; left out = that for root, else below $XDG_RUNTIME_DIR
//!
//! [[masters]]                              # every master; none = a worker by itself
//! endpoint = "tcp://10.0.0.1:7001"
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"   # the public key in its certificate
//! ```
//!
//! Load balancers and storage nodes come from the masters. A worker pointed at one load balancer by hand, as at a peer
//! that knows only the seed's structs, has instead of `[[masters]]`:
//!
//! ```toml
//! [[loadbalancers]]
//! endpoint = "tcp://127.0.0.1:7100"
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
//!
//! # [[storage]]                            # where inputs are fetched and outputs put, if anywhere
//! ```
//!
//! Relative paths are relative to the directory of the settings file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use node::SettingsError;
use node::settings::Server;
use serde::Deserialize;
use wire::NodeId;

/// Settings as the file has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub dir: PathBuf,
    #[serde(default, deserialize_with = "node::settings::optional_node")]
    pub node: Option<NodeId>,
    pub name: String,
    pub certificate: PathBuf,
    pub bind: Option<String>,
    pub certificates_dir: Option<PathBuf>,
    pub endpoint: Option<String>,
    pub slots: Option<u32>,
    pub memory: Option<u64>,
    #[serde(default = "kill_grace", with = "node::settings::milliseconds", rename = "kill_grace_ms")]
    pub kill_grace: Duration,
    #[serde(default = "stage_timeout", with = "node::settings::milliseconds", rename = "stage_timeout_ms")]
    pub stage_timeout: Duration,
    #[serde(default = "output_size_max")]
    pub output_size_max: u64,
    #[serde(default = "cache_size_max")]
    pub cache_size_max: u64,
    #[serde(default = "groups")]
    pub groups: bool,
    #[serde(default = "fuse")]
    pub fuse: bool,
    #[serde(default)]
    pub storage_dirs: Vec<PathBuf>,
    pub mount_dir: Option<PathBuf>,
    #[serde(default = "read_timeout", with = "node::settings::milliseconds", rename = "read_timeout_ms")]
    pub read_timeout: Duration,
    #[serde(default = "free_bytes_min")]
    pub free_bytes_min: u64,
    #[serde(default)]
    pub masters: Vec<Server>,
    #[serde(default)]
    pub loadbalancers: Vec<Server>,
    #[serde(default)]
    pub storage: Vec<Server>,
}

fn kill_grace() -> Duration {
    Duration::from_secs(2)
}

fn stage_timeout() -> Duration {
    Duration::from_secs(600)
}

fn output_size_max() -> u64 {
    64 << 30
}

fn cache_size_max() -> u64 {
    64 << 30
}

fn groups() -> bool {
    true
}

fn read_timeout() -> Duration {
    Duration::from_secs(10)
}

fn fuse() -> bool {
    true
}

fn free_bytes_min() -> u64 {
    node::disk::WORKER_FREE_BYTES_MIN
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut config: Self = node::settings::load(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let required = [&mut config.dir, &mut config.certificate];
        let optional = [&mut config.certificates_dir, &mut config.mount_dir].into_iter().flatten();
        for path in required.into_iter().chain(optional).chain(&mut config.storage_dirs) {
            *path = base.join(&path);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples at the head of this file.
    fn example(number: usize) -> String {
        let source = include_str!("config.rs");
        let inside = source.split("//! ```").nth(2 * number + 1).expect("the example is fenced");
        inside.lines().skip(1).map(|line| line.trim_start_matches("//!")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_documented_examples_are_settings() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("worker.toml");
        std::fs::write(&path, example(0)).expect("written");
        let config = Config::load(&path).expect("it reads");
        assert_eq!((config.name.as_str(), config.masters.len(), config.slots), ("w1", 1, None));
        assert_eq!((config.kill_grace, config.free_bytes_min), (Duration::from_secs(2), 134_217_728));
        assert_eq!(config.certificate, dir.path().join("keys/w1.key_secret"));

        let by_hand = format!("dir = 'w'\nname = 'w'\ncertificate = 'k'\nslots = 1\n{}", example(1));
        std::fs::write(&path, &by_hand).expect("written");
        let config = Config::load(&path).expect("it reads");
        assert_eq!((config.masters.len(), config.loadbalancers.len(), config.slots), (0, 1, Some(1)));
        std::fs::write(&path, format!("slotz = 1\n{by_hand}")).expect("written");
        assert!(Config::load(&path).expect_err("a misspelt key").to_string().contains("slotz"));
    }
}
