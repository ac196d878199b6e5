//! A cluster directory: where the masters are, who we are, and the keys of everyone.
//!
//! `cluster.toml` names the masters' endpoints and public keys; `keys/client.key_secret` is the client's own certificate.
//! That is all a client needs. The one that `zg dev` makes holds more: `certificates/` of every node, `keys/` of the nodes it
//! starts, `receipt.key`, and each process's settings, log and data directory.

use std::fs;
use std::io::ErrorKind;
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
        match fs::metadata(dir) {
            Ok(found) if !found.is_dir() => return Err(broken("it is not a directory".into())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(broken("it does not exist".into())),
            Err(error) => return Err(broken(format!("it cannot be read: {error}"))),
        }
        let path = dir.join("cluster.toml");
        match fs::File::open(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(broken("it has no cluster.toml".into())),
            Err(error) => return Err(broken(format!("cluster.toml cannot be read: {error}"))),
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
        if let Some(dir) = running_dir(&notes_dir()) {
            return Ok(dir);
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/ziggurat"));
        home.filter(|dir| dir.join("cluster.toml").exists()).ok_or(ClientError::NoCluster)
    }
}

/// Where each running `zg dev` of this user notes its directory, in a file named by its process number. The directory is
/// the user's own.
pub fn notes_dir() -> PathBuf {
    // SAFETY: getuid only reads the process's credentials.
    let user = unsafe { libc::getuid() };
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("ziggurat"),
        None => PathBuf::from(format!("/tmp/ziggurat-{user}")),
    }
}

/// Notes in `notes`, which is `notes_dir`, that the process `pid` runs the cluster at `dir`.
pub fn note_running(notes: &Path, pid: u32, dir: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(notes) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(std::io::Error::new(error.kind(), format!("{}: {error}", notes.display())));
        }
        _ => {}
    }
    if !is_ours(notes) {
        return Err(std::io::Error::other(format!("{} belongs to another user", notes.display())));
    }
    // Those that were killed could not take theirs back.
    for (pid, note) in noted(notes) {
        if !runs(pid) {
            let _ = fs::remove_file(note);
        }
    }
    let fresh = notes.join(format!("{pid}.new"));
    fs::write(&fresh, dir.as_os_str().as_encoded_bytes())?;
    fs::rename(&fresh, notes.join(pid.to_string()))
}

/// Takes the note of `pid` back.
pub fn forget_running(notes: &Path, pid: u32) -> std::io::Result<()> {
    let is_gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    fs::remove_file(notes.join(pid.to_string())).or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })?;
    match fs::remove_dir(notes) {
        // Another cluster's note may be there.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty || is_gone(&error) => Ok(()),
        outcome => outcome,
    }
}

/// The directory of the newest `zg dev` that is noted in `notes` and still runs.
fn running_dir(notes: &Path) -> Option<PathBuf> {
    // In /tmp anyone could lead us to a cluster of his.
    if !is_ours(notes) {
        return None;
    }
    let mut running: Vec<PathBuf> =
        noted(notes).into_iter().filter(|(pid, _)| runs(*pid)).map(|(_, note)| note).collect();
    running.sort_by_key(|note| fs::metadata(note).and_then(|note| note.modified()).ok());
    let dirs = running.iter().rev().filter_map(|note| fs::read_to_string(note).ok()).map(PathBuf::from);
    dirs.into_iter().find(|dir| dir.join("cluster.toml").exists())
}

/// The notes and whose they are.
fn noted(notes: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(notes).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}

fn runs(pid: u32) -> bool {
    // SAFETY: kill takes no pointers, and signal 0 only asks.
    unsafe { libc::kill(pid as libc::pid_t, 0) == 0 }
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
    fn the_newest_cluster_that_runs_is_found_and_the_older_one_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("notes");
        let [older, newer] = ["older", "newer"].map(|name| folder.path().join(name));
        for dir in [&older, &newer] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("cluster.toml"), "").unwrap();
        }
        // Two processes that live while this test does, and one that has ended.
        let (one, other) = (std::process::id(), std::os::unix::process::parent_id());
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        assert_eq!(running_dir(&notes), None);
        note_running(&notes, one, &older).unwrap();
        let note = fs::File::options().write(true).open(notes.join(one.to_string())).unwrap();
        note.set_modified(std::time::UNIX_EPOCH).unwrap();
        note_running(&notes, other, &newer).unwrap();
        assert_eq!(running_dir(&notes), Some(newer.clone()));
        forget_running(&notes, other).unwrap();
        assert_eq!(running_dir(&notes), Some(older.clone()));

        note_running(&notes, ended.id(), &newer).unwrap();
        assert_eq!(running_dir(&notes), Some(older), "what was killed is not found");
        note_running(&notes, one, &newer).unwrap();
        assert!(!notes.join(ended.id().to_string()).exists(), "nor is its note kept");
        forget_running(&notes, one).unwrap();
        assert!(!notes.exists());
        forget_running(&notes, one).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_directory_is_told_by_name() {
        let told = |dir: &Path| Cluster::load(dir).unwrap_err().to_string();
        assert!(told(Path::new("/nowhere/at all")).contains("/nowhere/at all: it does not exist"));
        let dir = tempfile::tempdir().unwrap();
        assert!(told(dir.path()).contains("no cluster.toml"));
        let (file, looped) = (dir.path().join("file"), dir.path().join("looped"));
        fs::write(&file, "").unwrap();
        assert!(told(&file).contains("file: it is not a directory"));
        // Unreadable for root too, whom permissions do not stop.
        std::os::unix::fs::symlink(&looped, &looped).unwrap();
        assert!(told(&looped).contains("looped: it cannot be read: "), "{}", told(&looped));
        a_cluster(dir.path());
        fs::write(dir.path().join("cluster.toml"), "masters = []").unwrap();
        assert!(told(dir.path()).contains("no masters"));
        fs::write(dir.path().join("cluster.toml"), "masters = [{ endpoint = 'x', key = 'short' }]").unwrap();
        assert!(told(dir.path()).contains("'short'"));
    }
}
