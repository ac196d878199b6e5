//! Who this process is: the node uuid and the boot counter, kept in its data directory.
//!
//! The uuid is the node's name for ever; the counter tells its boots apart and which came first. `NODE` and `BOOT` are
//! one line of text each. BOOT is written first, so a NODE without a BOOT is a damaged directory and not a crash at the
//! first start: counting from 1 again would make this boot look older than those before.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use wire::{BootNonce, NodeId};

/// A node's identity in this boot. While it lives, no other process can open the same directory.
#[derive(Debug)]
pub struct NodeIdentity {
    pub node: NodeId,
    pub boot: BootNonce,
    _lock: File,
}

/// Says why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("data directory {} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    #[error("data directory {}: {what}: {source}", dir.display())]
    Io { dir: PathBuf, what: &'static str, source: io::Error },
    #[error("{} holds '{value}', expected {expected}", path.display())]
    Damaged { path: PathBuf, value: String, expected: &'static str },
    #[error("{} is missing beside NODE: restore it, or start with an empty data directory as a new node", path.display())]
    BootMissing { path: PathBuf },
    #[error("data directory {} belongs to node {found}, but the settings say {wanted}", dir.display())]
    OtherNode { dir: PathBuf, found: NodeId, wanted: NodeId },
}

impl NodeIdentity {
    /// Opens or makes the data directory, and counts this boot. A directory without a node takes `preset`, else a fresh
    /// uuid; one that belongs to another node than `preset` is refused.
    pub fn open(dir: impl AsRef<Path>, preset: Option<NodeId>) -> Result<NodeIdentity, IdentityError> {
        let dir = dir.as_ref();
        let failed = |what| move |source| IdentityError::Io { dir: dir.to_owned(), what, source };
        create(dir).map_err(failed("cannot create"))?;
        let lock = lock(dir)?;

        let (node_path, boot_path) = (dir.join("NODE"), dir.join("BOOT"));
        let node_text = read_line(&node_path).map_err(failed("cannot read NODE"))?;
        let boot_text = read_line(&boot_path).map_err(failed("cannot read BOOT"))?;

        let known = match &node_text {
            None => None,
            Some(text) => Some(text.parse::<NodeId>().map_err(|_| IdentityError::Damaged {
                path: node_path.clone(),
                value: text.clone(),
                expected: "a uuid",
            })?),
        };
        if let (Some(found), Some(wanted)) = (known, preset)
            && found != wanted
        {
            return Err(IdentityError::OtherNode { dir: dir.to_owned(), found, wanted });
        }
        let boots_before = match &boot_text {
            None if known.is_some() => return Err(IdentityError::BootMissing { path: boot_path }),
            None => 0,
            Some(text) => text.parse::<u32>().ok().filter(|count| *count < u32::MAX).ok_or_else(|| {
                let expected = "a start counter below 4294967295";
                IdentityError::Damaged { path: boot_path.clone(), value: text.clone(), expected }
            })?,
        };

        let start_counter = boots_before + 1;
        replace(dir, "BOOT", &format!("{start_counter}\n")).map_err(failed("cannot write BOOT"))?;
        let node = match known {
            Some(node) => node,
            None => {
                let node = preset.unwrap_or_else(NodeId::random);
                replace(dir, "NODE", &format!("{node}\n")).map_err(failed("cannot write NODE"))?;
                node
            }
        };
        let boot = BootNonce::new(start_counter, random_bits().map_err(failed("cannot draw random bits"))?);
        Ok(NodeIdentity { node, boot, _lock: lock })
    }
}

/// Makes the directory and those above it that are missing, so that after return none of them can vanish in a crash.
fn create(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    create(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        // Somebody else made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made?,
    }
    File::open(parent)?.sync_all()
}

fn lock(dir: &Path) -> Result<File, IdentityError> {
    let failed = |source| IdentityError::Io { dir: dir.to_owned(), what: "cannot lock LOCK", source };
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("LOCK")).map_err(failed)?;
    // SAFETY: flock on a descriptor that we own. It ends with the process, however that ends.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(file);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Err(IdentityError::InUse { dir: dir.to_owned() }),
        error => Err(failed(error)),
    }
}

fn read_line(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces `dir/name` so that after a crash it is either the old file or the new one, and after return the new one.
fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let fresh = dir.join(format!("{name}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, dir.join(name))?;
    File::open(dir)?.sync_all()
}

fn random_bits() -> io::Result<u32> {
    let mut bits = [0u8; 4];
    // SAFETY: `bits` has room for the 4 bytes asked for.
    let count = unsafe { libc::getrandom(bits.as_mut_ptr().cast(), bits.len(), 0) };
    if count == 4 { Ok(u32::from_ne_bytes(bits)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_stays_and_the_boot_rises() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("cluster/worker-1");
        let first = NodeIdentity::open(&dir, None).unwrap();
        let (node, boot) = (first.node, first.boot);
        drop(first);
        let second = NodeIdentity::open(&dir, None).unwrap();
        assert_eq!(second.node, node);
        assert!(second.boot > boot);
        assert_eq!(second.boot.0 >> 32, 2);
        assert_eq!(fs::read_to_string(dir.join("NODE")).unwrap(), format!("{node}\n"));
    }

    #[test]
    fn two_processes_cannot_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeIdentity::open(dir.path(), None).unwrap();
        let refused = NodeIdentity::open(dir.path(), None).unwrap_err();
        assert!(matches!(refused, IdentityError::InUse { .. }), "{refused}");
        // The refused start did not count.
        drop(first);
        assert_eq!(NodeIdentity::open(dir.path(), None).unwrap().boot.0 >> 32, 2);
    }

    #[test]
    fn a_preset_node_fills_an_empty_directory_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = NodeId([7; 16]);
        assert_eq!(NodeIdentity::open(dir.path(), Some(wanted)).unwrap().node, wanted);
        let refused = NodeIdentity::open(dir.path(), Some(NodeId([8; 16]))).unwrap_err();
        assert!(matches!(refused, IdentityError::OtherNode { .. }), "{refused}");
    }

    #[test]
    fn a_damaged_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(NodeIdentity::open(dir.path(), None).unwrap());
        fs::write(dir.path().join("BOOT"), "many").unwrap();
        let refused = NodeIdentity::open(dir.path(), None).unwrap_err().to_string();
        assert!(refused.contains("BOOT") && refused.contains("many"), "{refused}");
        fs::remove_file(dir.path().join("BOOT")).unwrap();
        assert!(matches!(NodeIdentity::open(dir.path(), None), Err(IdentityError::BootMissing { .. })));
    }
}
