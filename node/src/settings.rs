//! Reads a role's settings from its one TOML file.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Says which settings file is wrong, and where in it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read settings {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The detail shows the line with its key and value.
    #[error("settings {} are wrong: {detail}", path.display())]
    Parse { path: PathBuf, detail: String },
}

/// Reads the settings at `path`. A struct of settings should be `deny_unknown_fields`, so that a misspelt key is told.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, SettingsError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| SettingsError::Parse {
        path: path.to_owned(),
        detail: error.to_string().trim_end().to_owned(),
    })
}

/// A duration written as whole milliseconds: `#[serde(with = "node::settings::milliseconds")]` on a field `.._ms`.
pub mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// An id, or anything else that reads from a word, written as a string: `#[serde(with = "node::settings::text")]`.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A server to connect to: its control socket and the public key in its certificate (40 characters of Z85).
#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub endpoint: String,
    #[serde(deserialize_with = "public_key")]
    pub key: wire::ClientKey,
}

/// A public key as certificates have it: `#[serde(deserialize_with = "node::settings::public_key")]`.
pub fn public_key<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<wire::ClientKey, D::Error> {
    let text: String = serde::Deserialize::deserialize(deserializer)?;
    let key = crate::certificate::parse_z85(&text).map(wire::ClientKey);
    key.ok_or_else(|| serde::de::Error::custom(format!("'{text}' is not a public key: 40 characters of Z85")))
}

/// A node's uuid that may be left out: `#[serde(default, deserialize_with = "node::settings::optional_node")]`.
pub fn optional_node<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<wire::NodeId>, D::Error> {
    text::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(with = "milliseconds")]
        heartbeat_interval_ms: std::time::Duration,
        #[serde(with = "text")]
        node: wire::NodeId,
    }

    fn load_text(text: &str) -> Result<Sample, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.toml");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    const NODE: &str = "node = '00112233-4455-6677-8899-aabbccddeeff'\n";

    #[test]
    fn durations_are_milliseconds_and_ids_are_text() {
        let sample = load_text(&format!("{NODE}heartbeat_interval_ms = 250")).unwrap();
        assert_eq!(sample.heartbeat_interval_ms.as_millis(), 250);
        assert_eq!(sample.node.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn an_error_names_file_key_and_value() {
        let told = |text: &str| load_text(text).unwrap_err().to_string();
        let wrong_type = told(&format!("{NODE}heartbeat_interval_ms = 'soon'"));
        for word in ["worker.toml", "heartbeat_interval_ms", "soon"] {
            assert!(wrong_type.contains(word), "{wrong_type}");
        }
        assert!(told(&format!("{NODE}heartbeat_intervall_ms = 1")).contains("heartbeat_intervall_ms"));
        assert!(told("heartbeat_interval_ms = 1\nnode = 'w3'").contains("w3"));
        assert!(load::<Sample>("/nowhere/x.toml").unwrap_err().to_string().contains("/nowhere/x.toml"));
    }
}
