//! Where a worker keeps what on disk, and how what is left over goes away.
//!
//! ```text
//! NODE  BOOT  LOCK            its identity
//! cache/                      input files, whole (a content store)
//! jobs/<uuid>/in/…  program   a job's inputs under their names where nothing is mounted, and its program
//! empty/                      the input directory of jobs without inputs
//! slot/<n>/work  out          private to one run; reused
//! slot/<n>/spool/             standard output and error of the run, and what it writes as its error
//! outbox/<run>/               outputs that are not confirmed yet
//! trash/<n>                   on its way out
//! ```
//!
//! Everything but the identity and the cache belongs to one boot: the next one finds it stale and removes it.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wire::JobId;

use super::sweep::Sweeper;

/// The paths under a worker's directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    root: PathBuf,
    /// Where inputs are mounted, if they are.
    pub(super) mount: Option<PathBuf>,
}

impl Directory {
    /// Sweeps what the last boot left, and makes what this one needs. The path becomes absolute: programs see it.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let directory = Self { root: root.canonicalize()?, mount: None };
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

    /// Where programs find the job's inputs; the worker itself never goes there.
    pub(super) fn inputs(&self, job: JobId) -> PathBuf {
        let mounted = self.mount.as_ref().map(|mount| mount.join("job").join(job.to_string()).join("in"));
        mounted.unwrap_or_else(|| self.staged_inputs(job))
    }

    /// Where inputs are written out.
    pub(super) fn staged_inputs(&self, job: JobId) -> PathBuf {
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

/// Entries of a tree that are looked at to tell how much of the disk it holds: who leaves more is large in any case.
const HELD_ENTRIES_MAX: usize = 100_000;

/// Bytes of the disk that a program's tree holds, as far as they can be seen. A file under several names counts in part.
pub(super) fn held_by_tree(path: &Path) -> u64 {
    let mut held = 0;
    let mut waiting = vec![path.to_owned()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        // What cannot be looked into, or is gone meanwhile, counts as nothing.
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            seen += 1;
            if seen > HELD_ENTRIES_MAX {
                return held;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            held += metadata.blocks() * 512 / metadata.nlink().max(1);
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    held
}

/// What is found where a directory of ours should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Empty,
    /// Something is in it, or its owner lets nobody look.
    Filled,
    /// Something else: a program may have put a link or a file there.
    Foreign,
    Absent,
}

/// Looks into the directory at `path` as cheaply as can be: every run ends with two such looks.
pub(super) fn look(path: &Path) -> io::Result<Found> {
    let opened = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
    let directory = match opened {
        Ok(directory) => directory,
        Err(error) => {
            return match (error.kind(), error.raw_os_error()) {
                (ErrorKind::NotFound, _) => Ok(Found::Absent),
                (ErrorKind::PermissionDenied, _) => Ok(Found::Filled),
                (ErrorKind::NotADirectory, _) | (_, Some(libc::ELOOP)) => Ok(Found::Foreign),
                _ => Err(error),
            };
        }
    };
    let mut entries = [0u8; 512];
    loop {
        // SAFETY: the descriptor is open, and `entries` has room for as many bytes as it is said to have.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), entries.as_mut_ptr(), entries.len()) };
        match read {
            0 => return Ok(Found::Empty),
            1.. if has_names(&entries[..read as usize]) => return Ok(Found::Filled),
            1.. => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// Whether `linux_dirent64` records name anything but `.` and `..`. Each is an inode (8 bytes), an offset (8), its own
/// length (2), a type (1) and a name that ends in a zero.
fn has_names(mut records: &[u8]) -> bool {
    const NAME_OFFSET: usize = 19;
    while let Some(length) = records.get(16..18) {
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let name = records.get(NAME_OFFSET..length).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if !matches!(name, b"." | b"..") {
            return true;
        }
        records = &records[length..];
    }
    false
}

/// Makes `path`, where `found` was seen, an empty directory of ours again.
pub(super) fn make_empty(path: &Path, found: Found, sweeper: &mut Sweeper) -> io::Result<()> {
    match found {
        Found::Empty => return Ok(()),
        Found::Filled | Found::Foreign => sweeper.discard(path)?,
        Found::Absent => {}
    }
    fs::create_dir(path)
}

/// The same for when that fails, at once and at any price: what stood there may be all that fills the disk.
pub(super) fn make_empty_by_force(path: &Path) -> io::Result<()> {
    remove_tree(path)?;
    fs::create_dir_all(path)
}

/// So often is a tree gone over that somebody else removes at the same time.
const REMOVE_PASSES_MAX: u32 = 8;

/// Removes a file or a whole tree, also where its owner has taken the rights to it away. What is not there is removed.
///
/// A program may leave directories in one another, ten thousand deep: no stack is deep enough to follow them down, and no
/// path long enough to name the last. So nobody goes down: what lies deeper than one level is first moved up.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    for _ in 1..REMOVE_PASSES_MAX {
        match remove_tree_once(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            removed => return removed,
        }
    }
    remove_tree_once(path)
}

fn remove_tree_once(root: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return gone(fs::remove_file(root));
    }
    let mut number = 0;
    // Directories that lie in the root itself.
    let mut waiting: Vec<OsString> = Vec::new();
    empty_directory(root, |name, _| {
        waiting.push(name);
        Ok(())
    })?;
    while let Some(name) = waiting.pop() {
        let directory = root.join(name);
        empty_directory(&directory, |_, child| {
            // Moving a directory changes its entry `..`, so it takes the right to write to it.
            gone(fs::set_permissions(child, Permissions::from_mode(0o700)))?;
            let name = move_up(child, root, &mut number)?;
            waiting.extend(name);
            Ok(())
        })?;
        gone(fs::remove_dir(&directory))?;
    }
    gone(fs::remove_dir(root))
}

/// Removes the files of a directory and hands its directories, by name and path, to `take`.
fn empty_directory(path: &Path, mut take: impl FnMut(OsString, &Path) -> io::Result<()>) -> io::Result<()> {
    gone(fs::set_permissions(path, Permissions::from_mode(0o700)))?;
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Not followed: a link may point anywhere.
        if entry.file_type()?.is_dir() {
            take(entry.file_name(), &entry.path())?;
        } else {
            gone(fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

/// Moves a directory into `root` under a name that nobody has there; `None` = somebody else was faster.
fn move_up(path: &Path, root: &Path, number: &mut u64) -> io::Result<Option<OsString>> {
    loop {
        *number += 1;
        let name = OsString::from(format!(".zg-{number}"));
        match fs::rename(path, root.join(&name)) {
            Ok(()) => return Ok(Some(name)),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => return Ok(None),
                ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => {}
                _ => return Err(error),
            },
        }
    }
}

/// What is not there any more is as good as removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_what_a_program_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        assert_eq!(look(&path).expect("it looks"), Found::Absent);
        fs::create_dir(&path).expect("made");
        assert_eq!(look(&path).expect("it looks"), Found::Empty);
        fs::write(path.join("..."), "").expect("written");
        assert_eq!(look(&path).expect("it looks"), Found::Filled);
        std::os::unix::fs::symlink(&path, dir.path().join("link")).expect("made");
        assert_eq!(look(&dir.path().join("link")).expect("it looks"), Found::Foreign);
        assert_eq!(look(&path.join("...")).expect("it looks"), Found::Foreign);
        // More than one read takes.
        (0..200).for_each(|number| fs::write(path.join(number.to_string()), "").expect("written"));
        assert_eq!(look(&path).expect("it looks"), Found::Filled);
    }

    #[test]
    fn a_start_sweeps_all_but_the_cache() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["cache/files", "slot/0/work", "jobs/x/in"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        fs::write(dir.path().join("cache/files/f"), "12345").expect("written");
        let names = |name: &str| fs::read_dir(dir.path().join(name)).map_or(0, Iterator::count);
        Directory::open(dir.path()).expect("it is ours");
        assert_eq!((names("cache/files"), names("slot"), names("jobs")), (1, 0, 0));
    }

    #[test]
    fn a_tree_holds_what_its_files_take_on_the_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("a/b")).expect("made");
        let empty = held_by_tree(dir.path());
        fs::write(dir.path().join("a/b/f"), vec![1; 1 << 20]).expect("written");
        // It has a length, and nothing of the disk.
        File::create(dir.path().join("sparse")).and_then(|file| file.set_len(1 << 30)).expect("made");
        std::os::unix::fs::symlink("/", dir.path().join("link")).expect("made");
        let held = held_by_tree(dir.path()) - empty;
        assert!((1 << 20..2 << 20).contains(&held), "{held}");
        assert_eq!(held_by_tree(&dir.path().join("nowhere")), 0);
    }

    #[test]
    fn a_tree_without_rights_is_removed_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("made");
        fs::write(tree.join("a/b/f"), "").expect("written");
        for path in ["a/b", "a", ""] {
            fs::set_permissions(tree.join(path), Permissions::from_mode(0o000)).expect("it is ours");
        }
        remove_tree(&tree).expect("it goes");
        assert!(!tree.exists());
        remove_tree(&tree).expect("it is gone");
    }

    /// A chain of directories that no path can name and no stack can follow.
    fn make_chain(root: &Path, depth: usize) {
        fs::create_dir(root).expect("made");
        // It grows at the top, so that each step is short: the chain so far moves into a new directory.
        fs::create_dir(root.join("chain")).expect("made");
        for _ in 0..depth {
            fs::create_dir(root.join("next")).expect("made");
            fs::rename(root.join("chain"), root.join("next/chain")).expect("moved");
            fs::rename(root.join("next"), root.join("chain")).expect("moved");
        }
    }

    #[test]
    fn a_chain_of_directories_longer_than_any_stack_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        make_chain(&tree, 1_500);
        // Names in the way of those that are moved up.
        fs::write(tree.join(".zg-1"), "").expect("written");
        fs::create_dir_all(tree.join(".zg-2/x")).expect("made");
        fs::create_dir_all(tree.join("chain/.zg-3")).expect("made");
        std::os::unix::fs::symlink("/etc", tree.join("chain/link")).expect("made");
        // As small as the stacks of helpers are.
        let removed = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            remove_tree(&tree).expect("it goes");
            assert!(!tree.exists());
        });
        removed.expect("it starts").join().expect("it ends well");
        assert!(Path::new("/etc/passwd").exists());
    }
}
