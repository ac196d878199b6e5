//! The settings of a load balancer: one TOML file.
//!
//! ```toml
//! dir = "/var/lib/ziggurat/loadbalancer"   # this node's identity
//! name = "l1"                              # for people
//! # node = "6e4cd0a6-…"                    # only to give a new directory a certain uuid
//! certificate = "keys/l1.key_secret"       # its own, with the secret key (ZeroMQ certificate file)
//! certificates_dir = "keys"                # public certificates (*.key) of those who may connect
//! bind = "tcp://0.0.0.0:7101"              # control socket, for workers
//! # endpoint = "tcp://10.0.0.4:7101"       # how workers reach it, where that is not `bind`
//!
//! [[masters]]                              # every master
//! endpoint = "tcp://10.0.0.1:7001"
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"   # the public key in its certificate
//!
//! # [timings]                              # milliseconds; what is left out is as here
//! # heartbeat_interval_ms = 200            # to the masters
//! # grace_ms = 5000                        # a worker unheard for so long counts as lost
//! # resend_wait_ms = 200                   # an unanswered request to a worker goes out again, then ever more slowly
//! ```
//!
//! Relative paths are relative to the directory of the settings file.

use std::path::{Path, PathBuf};

use node::SettingsError;
use node::settings::Server;
use serde::Deserialize;
use wire::{Duration, NodeId};

use crate::core::Timings;

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
    pub masters: Vec<Server>,
    #[serde(default)]
    pub timings: TimingSettings,
}

/// The timings that a cluster may want to change.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingSettings {
    #[serde(with = "node::settings::milliseconds")]
    pub heartbeat_interval_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub grace_ms: Duration,
    #[serde(with = "node::settings::milliseconds")]
    pub resend_wait_ms: Duration,
}

impl Default for TimingSettings {
    fn default() -> Self {
        let Timings { heartbeat_interval, grace, resend_wait, .. } = Timings::default();
        Self { heartbeat_interval_ms: heartbeat_interval, grace_ms: grace, resend_wait_ms: resend_wait }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut config: Self = node::settings::load(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.dir, &mut config.certificate, &mut config.certificates_dir] {
            *path = base.join(&path);
        }
        Ok(config)
    }

    /// How long the core waits for what.
    pub fn timings(&self) -> Timings {
        let TimingSettings { heartbeat_interval_ms, grace_ms, resend_wait_ms } = self.timings;
        Timings {
            heartbeat_interval: heartbeat_interval_ms,
            grace: grace_ms,
            resend_wait: resend_wait_ms,
            ..Timings::default()
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
        let path = dir.path().join("loadbalancer.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path)
    }

    #[test]
    fn the_documented_example_is_a_settings_file() {
        let config = load(&example()).expect("it reads");
        assert_eq!((config.name.as_str(), config.masters.len(), config.node), ("l1", 1, None));
        assert!(config.certificates_dir.ends_with("keys"));
        assert!(load(&format!("bidn = 1\n{}", example())).expect_err("a misspelt key").to_string().contains("bidn"));
    }

    #[test]
    fn the_documented_timings_are_the_defaults() {
        let given = example().replace("# [timings]", "[timings]").replace(" # heartbeat", " heartbeat");
        let given = given.replace(" # grace", " grace").replace(" # resend", " resend");
        let (given, defaults) = (load(&given).expect("it reads").timings(), Timings::default());
        assert_eq!(
            (given.heartbeat_interval, given.grace, given.resend_wait),
            (defaults.heartbeat_interval, defaults.grace, defaults.resend_wait)
        );
    }
}
