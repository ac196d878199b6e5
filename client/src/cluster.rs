//! A cluster directory: where the masters are, who we are, and the keys of everyone.
//!
//! `cluster.toml` names the masters' endpoints and public keys; `keys/client.key_secret` is the client's own certificate.
//! That is all a client needs. The one that `zg dev` makes holds more: `certificates/` of every node, `keys/` of the nodes it
//! starts, `receipt.key`, and each process's settings, log and data directory.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use node::Certificate;
use node::settings::Server;
use serde::Deserialize;
use wire::{NodeId, Role};

use crate::ClientError;

/// Names the cluster directory.
pub const CLUSTER_VARIABLE: &str = "ZG_CLUSTER";

/// A cluster as a client knows it.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub dir: PathBuf,
    /// Their control sockets.
    pub masters: Vec<Server>,
    /// Our own certificate, with its secret key.
    pub certificate: Certificate,
    /// The node that our certificate is bound to.
    pub node: NodeId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    masters: Vec<Server>,
}

impl Cluster {
    /// Reads the cluster directory at `dir`.
    pub fn load(dir: &Path) -> Result<Self, ClientError> {
        let broken = |why: String| ClientError::Cluster { path: dir.to_owned(), why };
        let path = dir.join("cluster.toml");
        if !path.exists() {
            let why = if dir.exists() { "it has no cluster.toml" } else { "it does not exist" };
            return Err(broken(why.into()));
        }
        let file: ClusterFile = node::settings::load(&path).map_err(|error| broken(error.to_string()))?;
        if file.masters.is_empty() {
            return Err(broken("cluster.toml names no masters".into()));
        }
        let path = dir.join("keys/client.key_secret");
        let certificate = Certificate::load(&path).map_err(|error| broken(error.to_string()))?;
        if certificate.secret.is_none() {
            return Err(broken(format!("{} has no secret key", path.display())));
        }
        if certificate.role() != Some(Role::Client) {
            return Err(broken(format!("{} is not a client's certificate", path.display())));
        }
        let node = certificate.node().ok_or_else(|| broken(format!("{} names no node", path.display())))?;
        Ok(Self { dir: dir.to_owned(), masters: file.masters, certificate, node })
    }

    /// The directory that is meant when the caller has named `given`: that, else `ZG_CLUSTER`, else the one of the running
    /// `zg dev`, else `~/.config/ziggurat`.
    pub fn find(given: Option<&Path>) -> Result<PathBuf, ClientError> {
        if let Some(dir) = given {
            return Ok(dir.to_owned());
        }
        if let Some(dir) = std::env::var_os(CLUSTER_VARIABLE).filter(|dir| !dir.is_empty()) {
            return Ok(dir.into());
        }
        if let Some(dir) = running_dir() {
            return Ok(dir);
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/ziggurat"));
        home.filter(|dir| dir.join("cluster.toml").exists()).ok_or(ClientError::NoCluster)
    }
}

/// Where the running `zg dev` of this user notes its directory: a file of one line in a directory of the user's own.
pub fn note_path() -> PathBuf {
    // SAFETY: getuid only reads the process's credentials.
    let user = unsafe { libc::getuid() };
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("ziggurat/current"),
        None => PathBuf::from(format!("/tmp/ziggurat-{user}/current")),
    }
}

/// Notes `dir` as the running cluster's.
pub fn note_running(dir: &Path) -> std::io::Result<()> {
    let path = note_path();
    let parent = path.parent().expect("the note lies in a directory");
    match fs::DirBuilder::new().mode(0o700).create(parent) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_ours(parent) {
        return Err(std::io::Error::other(format!("{} belongs to another user", parent.display())));
    }
    let fresh = path.with_extension(std::process::id().to_string());
    fs::write(&fresh, dir.as_os_str().as_encoded_bytes())?;
    fs::rename(&fresh, &path)
}

/// Takes the note back if it still names `dir`; another `zg dev` may have written its own since.
pub fn forget_running(dir: &Path) -> std::io::Result<()> {
    let path = note_path();
    if fs::read(&path).is_ok_and(|noted| noted == dir.as_os_str().as_encoded_bytes()) {
        fs::remove_file(&path)?;
    }
    match path.parent().map(fs::remove_dir) {
        // Another cluster's note may be there.
        Some(Err(error)) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Some(outcome) => outcome,
        None => Ok(()),
    }
}

fn running_dir() -> Option<PathBuf> {
    let path = note_path();
    // In /tmp anyone could lead us to a cluster of his.
    if !is_ours(path.parent()?) {
        return None;
    }
    let noted = fs::read_to_string(path).ok()?;
    Some(PathBuf::from(noted)).filter(|dir| dir.join("cluster.toml").exists())
}

fn is_ours(dir: &Path) -> bool {
    // SAFETY: getuid only reads the process's credentials.
    let user = unsafe { libc::getuid() };
    fs::symlink_metadata(dir).is_ok_and(|dir| dir.is_dir() && dir.uid() == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_cluster(dir: &Path) -> Certificate {
        let master = Certificate::new();
        let text = format!(
            "masters = [{{ endpoint = \"tcp://127.0.0.1:1\", key = \"{}\" }}]\n",
            node::certificate::z85(&master.public.0)
        );
        fs::write(dir.join("cluster.toml"), text).unwrap();
        fs::create_dir(dir.join("keys")).unwrap();
        let certificate =
            Certificate::new().with("role", "client").with("node", NodeId([7; 16])).with("name", "client");
        certificate.save_secret(dir.join("keys/client.key_secret")).unwrap();
        master
    }

    #[test]
    fn a_cluster_is_its_masters_and_our_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let master = a_cluster(dir.path());
        let cluster = Cluster::load(dir.path()).unwrap();
        assert_eq!(cluster.masters, [Server { endpoint: "tcp://127.0.0.1:1".into(), key: master.public }]);
        assert_eq!(cluster.node, NodeId([7; 16]));
    }

    #[test]
    fn what_is_wrong_with_a_directory_is_told_by_name() {
        let told = |dir: &Path| Cluster::load(dir).unwrap_err().to_string();
        assert!(told(Path::new("/nowhere/at all")).contains("/nowhere/at all: it does not exist"));
        let dir = tempfile::tempdir().unwrap();
        assert!(told(dir.path()).contains("no cluster.toml"));
        a_cluster(dir.path());
        fs::write(dir.path().join("cluster.toml"), "masters = []").unwrap();
        assert!(told(dir.path()).contains("no masters"));
        fs::write(dir.path().join("cluster.toml"), "masters = [{ endpoint = 'x', key = 'short' }]").unwrap();
        assert!(told(dir.path()).contains("'short'"));
    }
}
