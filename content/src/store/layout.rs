//! Where a store keeps what, and what it does with a directory that it finds at its start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use wire::{FileId, NodeId};

use super::StoreError;

/// The format of this directory; a store of another format is refused.
const VERSION: &str = "1\n";

/// The paths inside one store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    pub(super) fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    pub(super) fn part(&self, upload: u64) -> PathBuf {
        self.staging().join(format!("{upload:016x}.part"))
    }

    pub(super) fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    pub(super) fn partial(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(super) fn part_of(&self, file: FileId) -> PathBuf {
        self.partial().join(format!("{file}.part"))
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.dir.join("trash")
    }

    /// The directories of `file`, outermost first, and its path.
    pub(super) fn of(&self, file: FileId) -> ([PathBuf; 2], PathBuf) {
        let name = file.to_string();
        let outer = self.files().join(&name[0..2]);
        let inner = outer.join(&name[2..4]);
        let path = inner.join(format!("{name}.dat"));
        ([outer, inner], path)
    }

    pub(super) fn outline(&self, file: FileId) -> PathBuf {
        self.of(file).1.with_extension("out")
    }

    /// Makes or checks the directory for `node`; the returned lock keeps every other process out while it is open.
    pub(super) fn open(dir: &Path, node: NodeId) -> Result<(Self, File), StoreError> {
        let layout = Self { dir: dir.to_path_buf() };
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |error| StoreError::Unusable { path, why: io::Error::to_string(&error) }
        };
        for directory in [dir, &layout.staging(), &layout.files(), &layout.trash()] {
            fs::create_dir_all(directory).map_err(fail(directory))?;
        }
        layout.check("VERSION", VERSION, "the format")?;
        let lock = layout.lock().map_err(fail(dir))?;
        layout.check("NODE", &format!("{node}\n"), "the node")?;
        Ok((layout, lock))
    }

    fn lock(&self) -> io::Result<File> {
        // Not the file LOCK: a role may keep its identity, which has one, in the same directory.
        let lock = File::open(self.dir.join("VERSION"))?;
        // SAFETY: the descriptor is open; no memory is passed. The lock ends with the process, however that ends.
        let failed = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0;
        if failed { Err(io::Error::other("another process has this store open")) } else { Ok(lock) }
    }

    /// Holds the content of the file `name` against `expected`, or makes it so when there is none.
    fn check(&self, name: &str, expected: &str, what: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => {
                let why = format!("{what} is {:?}, and {:?} was expected", found.trim(), expected.trim());
                Err(StoreError::Unusable { path, why })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self
                .write_whole(&path, expected)
                .map_err(|error| StoreError::Unusable { path: path.clone(), why: error.to_string() }),
            Err(error) => Err(StoreError::Unusable { path, why: error.to_string() }),
        }
    }

    /// A crash leaves either no file or the whole file.
    fn write_whole(&self, path: &Path, text: &str) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes what uploads left behind when the last process ended.
    pub(super) fn sweep_staging(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.staging())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Makes everything that is here durable: the last process may have died between a rename and its fsync, and what
    /// this one finds it will vouch for.
    pub(super) fn sync_all(&self) -> io::Result<()> {
        let dir = File::open(&self.dir)?;
        // SAFETY: the descriptor is open; no memory is passed.
        if unsafe { libc::syncfs(dir.as_raw_fd()) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Every stored file with its length. Outlines of files that are not here are removed.
    pub(super) fn scan(&self) -> io::Result<BTreeMap<FileId, u64>> {
        let (mut found, mut outlines) = (BTreeMap::new(), Vec::new());
        for outer in directories(&self.files())? {
            for inner in directories(&outer)? {
                for entry in fs::read_dir(inner)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    match kind_of(&name) {
                        Some((id, "dat")) if entry.path() == self.of(id).1 => {
                            found.insert(id, entry.metadata()?.len());
                        }
                        Some((id, "out")) if entry.path() == self.outline(id) => outlines.push(id),
                        Some(_) | None => tracing::warn!(path = %entry.path().display(), "not a file of the store"),
                    }
                }
            }
        }
        for id in outlines.into_iter().filter(|id| !found.contains_key(id)) {
            fs::remove_file(self.outline(id))?;
        }
        Ok(found)
    }

    /// Every file of which some is here. Outlines of files of which nothing is here are removed.
    pub(super) fn scan_partial(&self) -> io::Result<Vec<FileId>> {
        let entries = match fs::read_dir(self.partial()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            match kind_of(&entry.file_name()) {
                Some((id, "part")) => found.push(id),
                Some((id, "out")) if !self.part_of(id).exists() => fs::remove_file(path)?,
                Some((_, "out")) => {}
                Some(_) | None => tracing::warn!(path = %path.display(), "not a file of the store"),
            }
        }
        Ok(found)
    }
}

/// The files' ids and what kind each is.
fn kind_of(name: &std::ffi::OsStr) -> Option<(FileId, &str)> {
    let (id, kind) = name.to_str()?.rsplit_once('.')?;
    Some((id.parse().ok()?, kind))
}

fn directories(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
