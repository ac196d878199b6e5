//! Where a worker keeps what on disk, and how what is left over goes away.
//!
//! ```text
//! NODE  BOOT  LOCK            its identity
//! cache/                      input files, whole (a content store)
//! jobs/<uuid>/in/…  program   a job's inputs under their names, and its program
//! empty/                      the input directory of jobs without inputs
//! slot/<n>/work  out          private to one run; reused
//! slot/<n>/spool/             standard output and error of the run, and what it writes as its error
//! outbox/<run>/               outputs that are not confirmed yet
//! trash/<n>                   on its way out
//! ```
//!
//! Everything but the identity and the cache belongs to one boot: the next one finds it stale and removes it.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wire::JobId;

use super::sweep::Sweeper;

/// The paths under a worker's directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Sweeps what the last boot left, and makes what this one needs. The path becomes absolute: programs see it.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let directory = Self { root: root.canonicalize()? };
        for stale in ["slot", "jobs", "outbox", "trash", "empty"] {
            remove_tree(&directory.root.join(stale))?;
        }
        for fresh in ["slot", "jobs", "outbox", "trash", "empty"] {
            fs::create_dir(directory.root.join(fresh))?;
        }
        fs::set_permissions(directory.empty(), Permissions::from_mode(0o555))?;
        Ok(directory)
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    pub(super) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    pub(super) fn job(&self, job: JobId) -> PathBuf {
        self.root.join("jobs").join(job.to_string())
    }

    pub(super) fn inputs(&self, job: JobId) -> PathBuf {
        self.job(job).join("in")
    }

    pub(super) fn program(&self, job: JobId) -> PathBuf {
        self.job(job).join("program")
    }

    pub(super) fn slot(&self, slot: u32) -> PathBuf {
        self.root.join("slot").join(slot.to_string())
    }

    pub(super) fn outbox(&self, run: u64) -> PathBuf {
        self.root.join("outbox").join(run.to_string())
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// Makes `path` an empty directory of ours again, whatever a program made of it.
pub(super) fn make_empty(path: &Path, sweeper: &mut Sweeper) -> io::Result<()> {
    match is_empty(path) {
        Ok(true) => return Ok(()),
        Ok(false) => sweeper.discard(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir(path)
}

/// Whether `path` is a directory with something in it. A link to one is not: a program may have put it there.
pub(super) fn has_entries(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir() && !is_empty(path)?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `path` is a directory with nothing in it. A link to one is not.
fn is_empty(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(false);
    }
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        // Its owner may take its own rights away; it goes to the trash with the rest.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a file or a whole tree, also where its owner has taken the rights to it away. What is not there is removed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            allow_removal(path)?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

/// Gives every directory of a tree the rights that its removal needs.
fn allow_removal(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Not followed: a link may point anywhere.
        if entry.file_type()?.is_dir() {
            allow_removal(&entry.path())?;
        }
    }
    Ok(())
}
