//! The settings of a storage node: one TOML file.
//!
//! ```toml
//! dir = "/var/lib/ziggurat/storage"        # files, and this node's identity
//! name = "s1"                              # for people
//! # node = "6e4cd0a6-…"                    # only to give a new directory a certain uuid
//! certificate = "keys/s1.key_secret"       # its own, with the secret key (ZeroMQ certificate file)
//! certificates_dir = "keys"                # public certificates (*.key) of those who may connect
//! bind = "tcp://0.0.0.0:7201"              # control socket
//! bulk_bind = "ipc:///run/zg/s1.bulk"      # bulk socket, tcp:// or ipc://; left out = none
//! # endpoint = "tcp://10.0.0.5:7201"       # how others reach the control socket, where that is not `bind`
//! # bulk_endpoint = "…"                    # the same for the bulk socket
//! receipt_key = "receipt.key"              # 64 hexadecimal digits, the same for all storage nodes and masters
//!
//! [[masters]]                              # every master; none = a storage node by itself
//! endpoint = "tcp://10.0.0.1:7001"
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"   # the public key in its certificate
//! ```
//!
//! Relative paths are relative to the directory of the settings file.

use std::path::{Path, PathBuf};

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
    pub certificates_dir: PathBuf,
    pub bind: String,
    pub bulk_bind: Option<String>,
    pub endpoint: Option<String>,
    pub bulk_endpoint: Option<String>,
    pub receipt_key: PathBuf,
    #[serde(default)]
    pub masters: Vec<Server>,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The example at the head of this file.
    fn example() -> String {
        let source = include_str!("config.rs");
        let inside = source.split("//! ```").nth(1).expect("the example is fenced");
        inside.lines().skip(1).map(|line| line.trim_start_matches("//!")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_documented_example_is_a_settings_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("storage.toml");
        std::fs::write(&path, example()).expect("written");
        let config = Config::load(&path).expect("it reads");
        assert_eq!((config.name.as_str(), config.masters.len(), config.node), ("s1", 1, None));
        assert_eq!(config.receipt_key, dir.path().join("receipt.key"));
        std::fs::write(&path, format!("bidn = 1\n{}", example())).expect("written");
        assert!(Config::load(&path).expect_err("a misspelt key").to_string().contains("bidn"));
    }
}
