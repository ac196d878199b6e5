//! Whose data directory this is: the node, and the group that it is a member of.
//!
//! A master that starts with an empty directory has forgotten every vote and every promise, so it must be told that
//! this is meant (`init`). `MEMBERS` is one uuid a line, written last: where it is, identity and log were there before.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use node::{IdentityError, NodeIdentity};
use wire::NodeId;

/// The folder of the log, in the data directory.
pub(super) const LOG: &str = "log";
const MEMBERS: &str = "MEMBERS";

/// Says why a directory is not this master's.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "{} holds no master: set `init = true` to found a new cluster in it, or correct `dir`", dir.display()
    )]
    Empty { dir: PathBuf },
    #[error(
        "{} is empty, and this master is one of a group: it has forgotten what it promised, and must not come back under \
         its uuid. The others go on without it, as long as they are a majority; restore the directory from a copy",
        dir.display()
    )]
    Forgotten { dir: PathBuf },
    #[error(
        "{} is missing, but {} says that this was a master's directory: restore it from a copy; a master that forgot \
         what it acknowledged must not start", missing.display(), beside.display()
    )]
    Torn { missing: PathBuf, beside: PathBuf },
    #[error("{} holds '{value}', expected one uuid a line", path.display())]
    Damaged { path: PathBuf, value: String },
    #[error("{}: {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A directory that may be started from.
pub(super) struct DataDir {
    dir: PathBuf,
    pub(super) identity: NodeIdentity,
    members: Option<Vec<NodeId>>,
}

impl DataDir {
    /// Opens the directory. Nothing is made in one that holds no master unless `init` says so.
    pub(super) fn open(dir: &Path, node: Option<NodeId>, init: bool, is_lone: bool) -> Result<Self, DataDirError> {
        let members_path = dir.join(MEMBERS);
        let members = read_members(&members_path)?;
        match &members {
            Some(_) => {
                for needed in ["NODE", LOG] {
                    let missing = dir.join(needed);
                    if !missing.exists() {
                        return Err(DataDirError::Torn { missing, beside: members_path });
                    }
                }
            }
            None if !init && is_lone => return Err(DataDirError::Empty { dir: dir.to_owned() }),
            None if !init => return Err(DataDirError::Forgotten { dir: dir.to_owned() }),
            None => {}
        }
        Ok(Self { dir: dir.to_owned(), identity: NodeIdentity::open(dir, node)?, members })
    }

    /// The group: at the first start this master and `others`, which is written down, so identity and log have to be
    /// there by now; later, whatever was written.
    pub(super) fn members(&self, others: &[NodeId]) -> Result<Vec<NodeId>, DataDirError> {
        if let Some(members) = &self.members {
            return Ok(members.clone());
        }
        let mut members: Vec<NodeId> = std::iter::once(self.identity.node).chain(others.iter().copied()).collect();
        members.sort();
        let path = self.dir.join(MEMBERS);
        let text: String = members.iter().map(|member| format!("{member}\n")).collect();
        write_new(&path, text.as_bytes()).map_err(|source| DataDirError::Io { path, what: "cannot write", source })?;
        Ok(members)
    }
}

fn read_members(path: &Path) -> Result<Option<Vec<NodeId>>, DataDirError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::Io { path: path.to_owned(), what: "cannot read", source }),
    };
    let members: Result<Vec<NodeId>, _> = text.lines().map(str::parse).collect();
    match members {
        Ok(members) if !members.is_empty() => Ok(Some(members)),
        Ok(_) | Err(_) => Err(DataDirError::Damaged { path: path.to_owned(), value: text.trim().to_owned() }),
    }
}

/// Makes a file so that after a crash it is whole or not there, and after return it is there.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let dir = path.parent().expect("a file lies in a directory");
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_taken_only_when_that_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let refused = DataDir::open(dir.path(), None, false, true).err().expect("it is refused").to_string();
        assert!(refused.contains("init = true"), "{refused}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let first = DataDir::open(dir.path(), None, true, true).unwrap();
        fs::create_dir(dir.path().join(LOG)).unwrap();
        let members = first.members(&[]).unwrap();
        assert_eq!(members, [first.identity.node]);
        drop(first);
        assert_eq!(DataDir::open(dir.path(), None, false, true).unwrap().members(&[]).unwrap(), members);
    }

    #[test]
    fn a_member_without_its_log_or_identity_is_refused() {
        for lost in ["NODE", LOG] {
            let dir = tempfile::tempdir().unwrap();
            let first = DataDir::open(dir.path(), None, true, true).unwrap();
            fs::create_dir(dir.path().join(LOG)).unwrap();
            first.members(&[]).unwrap();
            drop(first);
            let path = dir.path().join(lost);
            if lost == LOG {
                fs::remove_dir(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
            let refused = DataDir::open(dir.path(), None, true, true).err().expect("it is refused").to_string();
            assert!(refused.contains(path.to_str().unwrap()), "{refused}");
        }
    }

    #[test]
    fn a_damaged_list_of_members_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MEMBERS), "m1\n").unwrap();
        let refused = DataDir::open(dir.path(), None, true, true).err().expect("it is refused").to_string();
        assert!(refused.contains("MEMBERS") && refused.contains("m1"), "{refused}");
    }
}
