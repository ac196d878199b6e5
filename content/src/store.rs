//! The content store: immutable files on a local filesystem, each named by the hash of its content.
//!
//! ```text
//! VERSION  NODE                    the format (locked while a process has the store open), and whose store this is
//! staging/<upload>.part            on the way in; swept at start
//! files/ab/cd/<uuid>.dat           sealed: verified, durable, read-only
//! files/ab/cd/<uuid>.out           its outline, if it has several blocks; made again when it is missing or wrong
//! partial/<uuid>.part .out         in a cache: a sparse file of which some blocks are here, and its outline
//! trash/                           what was found not to be what its name says
//! ```
//!
//! A store is like a press: type is set on the stone, proofread, locked, and only then printed; nobody ever reads the
//! stone. A file is written and verified in `staging/`, made durable there, and becomes visible by one rename; only when the
//! directory is durable too is it acknowledged. After a crash at any point a file is absent or whole. Waiting for the disk
//! is what takes the time, and it takes as long for many files as for one: uploads that end together are made durable
//! together.
//!
//! Every file is a file of its own here, small ones too. The full hash lies beside the content in a user attribute and can
//! always be computed again; so can the outline, which is why nobody waits until it is durable. A sealed file is of one day
//! in 1980: whoever writes to it changes that, and then it is not believed until it has been read again. What rots beneath
//! the filesystem changes nothing; it is found by who reads it, or by a `check`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use memmap2::Mmap;
use wire::{ErrorCode, FileId, Hash, NodeId};

use crate::{Outline, OutlineHasher, hash_file, outline_file, outline_size};

mod cached;
#[cfg(test)]
mod cached_tests;
#[cfg(test)]
mod crash_tests;
mod disk;
mod layout;
#[cfg(test)]
mod tests;
mod upload;

use cached::Surroundings;
pub use cached::{Belief, BlockState, Cached, Filled, SEALED_AT};
use disk::Disk;
use layout::Layout;
use upload::Upload;

/// Files kept mapped after a send, so that the ranges of one file share a mapping.
const MAPS_MAX: usize = 32;

/// Directories that are made durable one by one: as many as one new file may change.
const DIRECTORIES_SYNCED_MAX: usize = 3;

/// The unit of `Metadata::blocks`.
const BYTES_PER_DISK_BLOCK: u64 = 512;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {why}", path = path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("an fsync has failed: this store is bad and takes and gives nothing until it is opened again")]
    Bad,
    #[error("no room on the disk")]
    DiskFull,
    #[error("no file {0} here")]
    FileUnknown(FileId),
    #[error("the copy of {0} here is not as it was stored and is read again first")]
    Unchecked(FileId),
    #[error("the outline of {0} is not known yet")]
    OutlineUnknown(FileId),
    #[error("no upload {0:016x} here")]
    UploadUnknown(u64),
    #[error("{file} is here with the hash {here}: other content, {asked}, cannot have the same name")]
    ExistsDifferent { file: FileId, here: Hash, asked: Hash },
    #[error("the content is not what was announced: {0}")]
    Mismatch(String),
    #[error("the range {offset}+{length} is outside the {file_length} bytes of {file}")]
    OutOfRange { file: FileId, offset: u64, length: u64, file_length: u64 },
    #[error(transparent)]
    Io(io::Error),
}

impl StoreError {
    /// What a peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unusable { .. } | Self::Bad | Self::Unchecked(_) | Self::OutlineUnknown(_) | Self::Io(_) => {
                ErrorCode::NotReady
            }
            Self::DiskFull => ErrorCode::DiskFull,
            Self::FileUnknown(_) => ErrorCode::FileUnknown,
            Self::UploadUnknown(_) => ErrorCode::UploadUnknown,
            Self::ExistsDifferent { .. } => ErrorCode::ExistsDifferent,
            Self::Mismatch(_) => ErrorCode::HashMismatch,
            Self::OutOfRange { .. } => ErrorCode::InvalidRequest,
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::DiskFull,
            Some(_) | None => Self::Io(error),
        }
    }
}

/// What is known of a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub length: u64,
    pub hash: Hash,
}

/// What an upload has to turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Content with this hash.
    Hash(Hash),
    /// Content that this id names; 122 bits of its hash are checked.
    Id(FileId),
    /// Whatever was written; for bytes that were made here.
    Anything,
}

impl Expected {
    pub fn is_met_by(self, hash: Hash) -> bool {
        match self {
            Self::Hash(expected) => expected == hash,
            Self::Id(file) => file.names(hash),
            Self::Anything => true,
        }
    }
}

/// An upload that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub upload: u64,
    pub expected: Expected,
    pub length: u64,
}

/// A file that is in the store, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub file: FileId,
    pub hash: Hash,
    pub length: u64,
    /// It was here before.
    pub already_there: bool,
}

/// One directory of files. Every method may be called from any thread.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    disk: Arc<Disk>,
    files: Mutex<BTreeMap<FileId, u64>>,
    /// Hashes that were computed, of files as they were sealed: the filesystem may not keep them.
    hashes: Mutex<BTreeMap<FileId, Hash>>,
    uploads: Mutex<BTreeMap<u64, Arc<Mutex<Upload>>>>,
    /// Those that `cached` has told of.
    cached: Mutex<BTreeMap<FileId, Arc<Cached>>>,
    surroundings: Arc<Surroundings>,
    /// Used last at the back.
    maps: Mutex<VecDeque<(FileId, Arc<Mmap>)>>,
    /// Held over "is it here" and the rename that answers it, so that two commits of one name take turns.
    publishing: Mutex<()>,
    /// Locked while the store is open. By it the kernel tells of writes that were lost since the last sync of them all.
    lock: File,
}

/// A file that is verified and complete under a name that nobody reads.
struct Ready {
    file: Arc<File>,
    from: PathBuf,
    hash: Hash,
    outline: Outline,
}

impl Store {
    /// Opens the store in `dir`, which is made if need be, for `node`: sweeps what uploads left and finds the files.
    pub fn open(dir: &Path, node: NodeId) -> Result<Self, StoreError> {
        let (layout, lock) = Layout::open(dir, node)?;
        let unusable = |error: io::Error| StoreError::Unusable { path: dir.to_path_buf(), why: error.to_string() };
        layout.sweep_staging().map_err(unusable)?;
        layout.sync_all().map_err(unusable)?;
        let files = Mutex::new(layout.scan().map_err(unusable)?);
        let disk = Arc::<Disk>::default();
        Ok(Self {
            disk: disk.clone(),
            surroundings: Arc::new(Surroundings {
                disk,
                layout: layout.clone(),
                lenders: OnceLock::new(),
                open: Mutex::default(),
            }),
            layout,
            cached: Mutex::default(),
            files,
            hashes: Mutex::default(),
            uploads: Mutex::default(),
            maps: Mutex::default(),
            publishing: Mutex::default(),
            lock,
        })
    }

    /// True when the whole file is here.
    pub fn have(&self, file: FileId) -> bool {
        !self.disk.is_bad() && held(&self.files).contains_key(&file)
    }

    /// The length of a stored file.
    pub fn length(&self, file: FileId) -> Result<u64, StoreError> {
        self.check_disk()?;
        held(&self.files).get(&file).copied().ok_or(StoreError::FileUnknown(file))
    }

    /// Length and full hash; the hash is computed again where the filesystem did not keep it.
    pub fn stat(&self, file: FileId) -> Result<Stat, StoreError> {
        let length = self.length(file)?;
        match self.kept_hash(file, length) {
            Some(hash) => Ok(Stat { length, hash }),
            None => self.check(file),
        }
    }

    /// As `stat`, for whoever vouches for the file: one that does not look as it was sealed, or whose hash is known only when
    /// all of it has been read, is to be checked first. Soon answered.
    pub fn sealed(&self, file: FileId) -> Result<Stat, StoreError> {
        let length = self.length(file)?;
        let kept = if self.looks_sealed(file) { self.kept_hash(file, length) } else { None };
        kept.map(|hash| Stat { length, hash }).ok_or(StoreError::Unchecked(file))
    }

    /// Whether the file is here and looks as it was sealed.
    pub fn looks_sealed(&self, file: FileId) -> bool {
        let Ok(length) = self.length(file) else { return false };
        let found = fs::symlink_metadata(self.layout.of(file).1);
        let is_as_sealed = found.is_ok_and(|found| found.len() == length && disk::is_sealed(&found));
        if !is_as_sealed {
            held(&self.hashes).remove(&file);
        }
        is_as_sealed
    }

    /// The outline of a stored file. One that is missing, or is not the file's, is made again and kept.
    pub fn outline(&self, file: FileId) -> Result<Outline, StoreError> {
        match self.kept_outline(file) {
            Err(StoreError::OutlineUnknown(_)) => self.read_whole(file).map(|(_, outline)| outline),
            kept => kept,
        }
    }

    /// The outline that lies beside a stored file, if it is the file's.
    pub fn kept_outline(&self, file: FileId) -> Result<Outline, StoreError> {
        let Stat { length, hash } = self.stat(file)?;
        let kept = if outline_size(length) == 0 { Ok(Vec::new()) } else { fs::read(self.layout.outline(file)) };
        let outline = kept.ok().and_then(|kept| Outline::decode(&kept, length, Expected::Hash(hash)).ok());
        outline.ok_or(StoreError::OutlineUnknown(file))
    }

    /// Reads the whole file again, whatever is noted of it: afterwards it is as it was sealed, with its outline. One that is
    /// not what its name says is taken out of the store and is unknown: somebody else could write to it.
    pub fn check(&self, file: FileId) -> Result<Stat, StoreError> {
        self.read_whole(file).map(|(stat, _)| stat)
    }

    /// Every stored file with its length, in order of ids.
    pub fn list(&self) -> Vec<(FileId, u64)> {
        held(&self.files).iter().map(|(file, length)| (*file, *length)).collect()
    }

    /// Where the store lies.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// Where a stored file lies; nobody may write there, and it is a complete file for whoever opens it.
    pub fn path(&self, file: FileId) -> Result<PathBuf, StoreError> {
        self.length(file)?;
        Ok(self.layout.of(file).1)
    }

    /// Begins an upload under a number of the caller's choice, and reserves `length` bytes when it is known. Returns the
    /// bytes already held: more than zero when this upload was begun before.
    pub fn begin(&self, upload: u64, length: Option<u64>) -> Result<u64, StoreError> {
        self.check_disk()?;
        if let Some(known) = held(&self.uploads).get(&upload) {
            return Ok(held(known).held);
        }
        let path = self.layout.part(upload);
        let file = Arc::new(self.disk.create(&path)?);
        if let Some(length) = length
            && let Err(error) = self.disk.preallocate(&file, length)
        {
            let _ = self.disk.remove(&path);
            return Err(error.into());
        }
        let new = Upload { file, path, length, held: 0, hasher: OutlineHasher::default(), is_ending: false };
        held(&self.uploads).insert(upload, Arc::new(Mutex::new(new)));
        Ok(0)
    }

    /// Writes `bytes` at `offset`; returns the bytes held from the start on. Bytes held already are skipped, and after a gap
    /// nothing is written: the returned number says what to send next. Pieces of 256 KiB and more make files that read fast.
    /// An upload that the disk or its announced length has no room for is given up.
    pub fn write(&self, upload: u64, offset: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        self.check_disk()?;
        let shared = held(&self.uploads).get(&upload).cloned().ok_or(StoreError::UploadUnknown(upload))?;
        let mut state = held(&shared);
        let news = state.news(offset, bytes);
        if news.is_empty() || state.is_ending {
            return Ok(state.held);
        }
        let end = state.held + news.len() as u64;
        if let Some(length) = state.length.filter(|length| *length < end) {
            drop(state);
            self.abort(upload);
            return Err(StoreError::Mismatch(format!("{length} bytes were announced, and {end} came")));
        }
        if let Err(error) = self.disk.write(&state.file, news, state.held) {
            drop(state);
            self.abort(upload);
            return Err(error.into());
        }
        state.held = end;
        state.hasher.update(news);
        Ok(end)
    }

    /// Ends an upload: verifies it, makes it durable and visible. When the expected content is here already that is
    /// success, whether or not the upload is. An upload that does not turn out as expected is given up.
    pub fn commit(&self, upload: u64, expected: Expected, length: u64) -> Result<Committed, StoreError> {
        self.commit_each(&[Commit { upload, expected, length }]).pop().expect("there is an answer for each")
    }

    /// As `commit`, for several uploads that wait for the disk only once; an answer for each.
    pub fn commit_each(&self, commits: &[Commit]) -> Vec<Result<Committed, StoreError>> {
        let mut ready = Vec::with_capacity(commits.len());
        let found: Vec<_> = commits.iter().map(|commit| self.end(commit, &mut ready)).collect();
        let mut published = self.publish(&ready).into_iter();
        let mut answers = Vec::with_capacity(commits.len());
        for (commit, found) in commits.iter().zip(found) {
            let answer = match found {
                Ok(None) => published.next().expect("there is an answer for each"),
                Ok(Some(found)) => Ok(found),
                Err(error) => Err(error),
            };
            match &answer {
                Ok(Committed { already_there: false, .. }) => {
                    held(&self.uploads).remove(&commit.upload);
                }
                // Somebody else may be ending it.
                Err(StoreError::UploadUnknown(_)) => {}
                Ok(_) | Err(_) => self.abort(commit.upload),
            }
            answers.push(answer);
        }
        answers
    }

    /// Finds what is here already, or verifies an upload and adds it to `ready`.
    fn end(&self, commit: &Commit, ready: &mut Vec<Ready>) -> Result<Option<Committed>, StoreError> {
        self.check_disk()?;
        let Commit { upload, expected, length } = *commit;
        let found = match expected {
            Expected::Hash(hash) => self.find(hash)?,
            Expected::Id(file) if self.have(file) => self.find(self.stat(file)?.hash)?,
            Expected::Id(_) | Expected::Anything => None,
        };
        if found.is_some() {
            return Ok(found);
        }
        let shared = held(&self.uploads).get(&upload).cloned().ok_or_else(|| match expected {
            Expected::Hash(hash) if self.have(FileId::of(hash)) => StoreError::Unchecked(FileId::of(hash)),
            Expected::Hash(_) | Expected::Id(_) | Expected::Anything => StoreError::UploadUnknown(upload),
        })?;
        let mut state = held(&shared);
        if state.is_ending {
            return Err(StoreError::UploadUnknown(upload));
        }
        let (hash, outline) = self.verify(&state, expected, length)?;
        if state.length.is_some_and(|reserved| reserved != length) {
            self.disk.truncate(&state.file, length)?;
        }
        state.is_ending = true;
        ready.push(Ready { file: state.file.clone(), from: state.path.clone(), hash, outline });
        Ok(None)
    }

    /// Gives an upload up; unknown ones are given up already.
    pub fn abort(&self, upload: u64) {
        let Some(state) = held(&self.uploads).remove(&upload) else { return };
        if let Err(error) = self.disk.remove(&held(&state).path) {
            tracing::warn!(%error, upload, "a given-up upload stays in staging until the next start");
        }
    }

    /// Takes a complete local file into the store by renaming it, without a copy. The file lies on the store's filesystem and
    /// nobody has it open for writing; from now on it belongs to this process's user. Symlinks and special files are refused.
    pub fn adopt(&self, path: &Path) -> Result<Committed, StoreError> {
        self.check_disk()?;
        // A FIFO would otherwise hold us until somebody writes to it.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(StoreError::Unusable { path: path.to_path_buf(), why: "it is not a regular file".into() });
        }
        let outline = outline_file(&file)?;
        // Who owned it could make it writable again.
        // SAFETY: geteuid has no preconditions.
        std::os::unix::fs::fchown(&file, Some(unsafe { libc::geteuid() }), None)?;
        let hash = outline.root().expect("an outline that was made here has a root");
        let ready = Ready { file: Arc::new(file), from: path.to_path_buf(), hash, outline };
        let committed = self.publish(&[ready]).pop().expect("there is an answer for each")?;
        if committed.already_there {
            self.disk.remove(path)?;
        }
        Ok(committed)
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the file's end.
    pub fn read(&self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let file_length = self.length(file)?;
        let rest = file_length.checked_sub(offset).ok_or(StoreError::OutOfRange {
            file,
            offset,
            length: length as u64,
            file_length,
        })?;
        let mut bytes = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(length)];
        File::open(self.path(file)?)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Maps a stored file, for sending without a copy.
    pub fn map(&self, file: FileId) -> Result<Arc<Mmap>, StoreError> {
        let path = self.path(file)?;
        let mut maps = held(&self.maps);
        if let Some(at) = maps.iter().position(|(id, _)| *id == file) {
            let found = maps.remove(at).expect("the position was found above");
            maps.push_back(found.clone());
            return Ok(found.1);
        }
        let open = File::open(path)?;
        // SAFETY: sealed files are read-only and only this store writes its directory; it never changes or truncates one.
        let map = Arc::new(unsafe { Mmap::map(&open) }?);
        if maps.len() == MAPS_MAX {
            maps.pop_front();
        }
        maps.push_back((file, map.clone()));
        Ok(map)
    }

    /// The file of `length` bytes, as a cache has it: some of it, all, or nothing yet. All who ask for it share it.
    pub fn cached(&self, file: FileId, hash: Option<Hash>, length: u64) -> Result<Arc<Cached>, StoreError> {
        let mut all = held(&self.cached);
        if let Some(known) = all.get(&file) {
            match (known.hash(), hash) {
                _ if known.may_be(hash, length) => return Ok(known.clone()),
                (Some(here), Some(asked)) if here != asked => {
                    return Err(StoreError::ExistsDifferent { file, here, asked });
                }
                (Some(_), _) => {
                    let why = format!("{file} has {} bytes, not {length}", known.length);
                    return Err(StoreError::Mismatch(why));
                }
                // Nothing of it was ever right, so its description may be what is wrong.
                (None, _) => {}
            }
        }
        let expected = hash.map_or(Expected::Id(file), Expected::Hash);
        let is_named = held(&self.files).contains_key(&file);
        let new = Arc::new(Cached::open(file, length, expected, is_named, &self.surroundings)?);
        all.insert(file, new.clone());
        Ok(new)
    }

    /// The stores on this machine that larger files are borrowed from instead of being brought; said once.
    pub fn borrow_from(&self, dirs: &[PathBuf]) {
        let lenders = dirs.iter().map(|dir| Layout { dir: dir.clone() }).collect();
        let _ = self.surroundings.lenders.set(lenders);
    }

    /// A file that is borrowed, all of it seen to be right.
    pub fn borrowed(&self, file: FileId) -> Option<Arc<Cached>> {
        let known = held(&self.cached).get(&file).cloned();
        known.filter(|cached| cached.is_borrowed() && cached.is_sealed())
    }

    /// Tells of a file that was put into the store just now and that nobody has a link to: it is held without another look.
    pub fn cached_new(&self, committed: &Committed) -> Result<Arc<Cached>, StoreError> {
        let Committed { file, hash, length, .. } = *committed;
        let mut all = held(&self.cached);
        // Somebody else may have been faster, and have given links away.
        if let Some(known) = all.get(&file).filter(|known| known.is_named()) {
            return Ok(known.clone());
        }
        let new = Arc::new(Cached::open(file, length, Expected::Hash(hash), true, &self.surroundings)?);
        new.believe(hash)?;
        all.insert(file, new.clone());
        Ok(new)
    }

    /// Gives a file of which every block is held its name. It is not made durable: a cache looks before it believes.
    pub fn seal(&self, cached: &Cached) -> Result<Committed, StoreError> {
        cached.seal(self)
    }

    /// Every file that is here, whole or in part, with the bytes of the disk that it has; those read longest ago first.
    pub fn usage(&self) -> Result<Vec<(FileId, u64)>, StoreError> {
        let partial = self.layout.scan_partial()?;
        let whole: Vec<FileId> = held(&self.files).keys().copied().collect();
        let mut found = Vec::with_capacity(partial.len() + whole.len());
        let paths = whole.into_iter().map(|file| (file, self.layout.of(file).1));
        for (file, path) in paths.chain(partial.into_iter().map(|file| (file, self.layout.part_of(file)))) {
            // What goes meanwhile has nothing.
            let Ok(metadata) = fs::symlink_metadata(path) else { continue };
            found.push((metadata.atime(), file, metadata.blocks() * BYTES_PER_DISK_BLOCK));
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, file, bytes)| (file, bytes)).collect())
    }

    /// Removes what was taken out of the store; a cache has no use for it.
    pub fn empty_trash(&self) -> Result<(), StoreError> {
        for entry in fs::read_dir(self.layout.trash())? {
            self.disk.remove(&entry?.path())?;
        }
        Ok(())
    }

    /// The bytes of the disk that a file has here, whole or in part.
    pub fn size_on_disk(&self, file: FileId) -> u64 {
        let paths = [self.layout.of(file).1, self.layout.part_of(file)];
        let size = |path| fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * BYTES_PER_DISK_BLOCK);
        paths.into_iter().map(size).sum()
    }

    /// Removes a file, whole or in part, and returns the bytes of the disk that it had.
    pub fn evict(&self, file: FileId) -> Result<u64, StoreError> {
        let _publishing = held(&self.publishing);
        held(&self.cached).remove(&file);
        held(&self.files).remove(&file);
        held(&self.hashes).remove(&file);
        held(&self.maps).retain(|(id, _)| *id != file);
        held(&self.surroundings.open).retain(|(id, _)| *id != file);
        let mut freed = 0;
        for path in [self.layout.of(file).1, self.layout.part_of(file)] {
            for path in [path.with_extension("out"), path] {
                match fs::symlink_metadata(&path) {
                    Ok(metadata) => {
                        self.disk.remove(&path)?;
                        freed += metadata.blocks() * BYTES_PER_DISK_BLOCK;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(freed)
    }

    fn check_disk(&self) -> Result<(), StoreError> {
        if self.disk.is_bad() { Err(StoreError::Bad) } else { Ok(()) }
    }

    /// The stored file with this hash, if there is one that looks as it was sealed; other content under the same name is an
    /// error.
    fn find(&self, hash: Hash) -> Result<Option<Committed>, StoreError> {
        let file = FileId::of(hash);
        match self.sealed(file) {
            Ok(stat) if stat.hash == hash => {
                Ok(Some(Committed { file, hash, length: stat.length, already_there: true }))
            }
            Ok(stat) => {
                tracing::error!(%file, here = %stat.hash, asked = %hash, "two contents with one name: somebody made a pair");
                Err(StoreError::ExistsDifferent { file, here: stat.hash, asked: hash })
            }
            // What was verified just now takes the place of what may be wrong.
            Err(StoreError::FileUnknown(_) | StoreError::Unchecked(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The full hash of a stored file, if it is known without reading more than a block of it.
    fn kept_hash(&self, file: FileId, length: u64) -> Option<Hash> {
        let path = self.layout.of(file).1;
        if let Some(hash) = Disk::hash_of(&path).filter(|hash| file.names(*hash)) {
            return Some(hash);
        }
        if !self.looks_sealed(file) {
            return None;
        }
        if let Some(hash) = held(&self.hashes).get(&file) {
            return Some(*hash);
        }
        let hash = if outline_size(length) > 0 {
            let kept = fs::read(self.layout.outline(file)).ok()?;
            Outline::decode(&kept, length, Expected::Id(file)).ok()?.root()?
        } else {
            let (hash, _) = File::open(&path).and_then(hash_file).ok()?;
            Some(hash).filter(|hash| file.names(*hash))?
        };
        held(&self.hashes).insert(file, hash);
        Some(hash)
    }

    fn verify(&self, state: &Upload, expected: Expected, length: u64) -> Result<(Hash, Outline), StoreError> {
        if state.held != length {
            return Err(StoreError::Mismatch(format!("{} of {length} bytes are here", state.held)));
        }
        let hash = state.hasher.hash();
        if expected.is_met_by(hash) {
            return Ok((hash, state.hasher.finish()));
        }
        let expected = match expected {
            Expected::Hash(expected) => expected.to_string(),
            Expected::Id(file) => file.to_string(),
            Expected::Anything => "anything".into(),
        };
        Err(StoreError::Mismatch(format!("{expected} was expected, and the bytes hash to {hash}")))
    }

    /// The commit proper, with an answer for each. The order is the whole point: contents durable under names nobody reads,
    /// then the real names, then the real names durable, then the answers.
    fn publish(&self, ready: &[Ready]) -> Vec<Result<Committed, StoreError>> {
        let sealed: Vec<_> = ready.iter().map(|ready| self.seal_content(ready)).collect();
        let contents: Vec<&File> =
            ready.iter().zip(&sealed).filter(|(_, is)| is.is_ok()).map(|(it, _)| &*it.file).collect();
        let is_durable = self.sync_contents(&contents).is_ok();
        let _publishing = held(&self.publishing);
        let (mut placed, mut changed) = (BTreeMap::new(), BTreeSet::new());
        let mut answers = Vec::with_capacity(ready.len());
        for (ready, sealed) in ready.iter().zip(sealed) {
            answers.push(match sealed {
                Ok(()) if is_durable => self.place(ready, &mut placed, &mut changed),
                Ok(()) => Err(StoreError::Bad),
                Err(error) => Err(error.into()),
            });
        }
        // Also what a failure has left: whoever comes next takes a directory that is there for durable.
        if self.sync_directories(&changed).is_err() {
            answers.iter_mut().for_each(|answer| *answer = Err(StoreError::Bad));
        }
        for committed in answers.iter().flatten().filter(|committed| !committed.already_there) {
            held(&self.files).insert(committed.file, committed.length);
            // It may have taken the place of another.
            held(&self.maps).retain(|(id, _)| *id != committed.file);
        }
        answers
    }

    fn seal_content(&self, ready: &Ready) -> io::Result<()> {
        self.disk.set_hash(&ready.file, ready.hash)?;
        self.disk.seal(&ready.file)
    }

    /// Gives a durable content its name, and adds the directories that have to be made durable for it to `changed`. `placed`
    /// has the contents that wait for the same.
    fn place(
        &self,
        ready: &Ready,
        placed: &mut BTreeMap<FileId, Committed>,
        changed: &mut BTreeSet<PathBuf>,
    ) -> Result<Committed, StoreError> {
        let Ready { from, hash, outline, .. } = ready;
        let (hash, id) = (*hash, FileId::of(*hash));
        if let Some(found) = self.find(hash)? {
            return Ok(found);
        }
        if let Some(twin) = placed.get(&id) {
            let (here, asked) = (twin.hash, hash);
            let found = Committed { already_there: true, ..*twin };
            return if here == asked { Ok(found) } else { Err(StoreError::ExistsDifferent { file: id, here, asked }) };
        }
        let (directories, path) = self.layout.of(id);
        let mut parent = self.layout.files();
        for directory in directories {
            if self.disk.create_directory(&directory)? {
                changed.insert(parent);
            }
            parent = directory;
        }
        self.keep_outline(id, outline);
        self.disk.rename(from, &path)?;
        changed.insert(parent);
        let committed = Committed { file: id, hash, length: outline.length(), already_there: false };
        placed.insert(id, committed);
        Ok(committed)
    }

    /// Several at once are made durable with all else on their filesystem, which is as long a wait as for one of them.
    fn sync_contents(&self, contents: &[&File]) -> io::Result<()> {
        match contents {
            [] => Ok(()),
            [content] => self.disk.sync_data(content),
            _ => self.disk.sync_filesystem(&self.lock),
        }
    }

    fn sync_directories(&self, changed: &BTreeSet<PathBuf>) -> io::Result<()> {
        if changed.len() > DIRECTORIES_SYNCED_MAX {
            return self.disk.sync_filesystem(&self.lock);
        }
        changed.iter().try_for_each(|directory| self.disk.sync_directory(directory))
    }

    /// Keeps an outline beside where the file is or will be. Without it the store is only slower: one that a crash tears is
    /// no outline of the file, and is made again.
    fn keep_outline(&self, file: FileId, outline: &Outline) {
        let bytes = outline.encode();
        if bytes.is_empty() {
            return;
        }
        let temporary = self.layout.staging().join(format!("{file}.out"));
        if let Err(error) = self.disk.replace(&temporary, &self.layout.outline(file), &bytes) {
            tracing::warn!(%error, %file, "its outline is not kept");
        }
    }

    fn read_whole(&self, file: FileId) -> Result<(Stat, Outline), StoreError> {
        let path = self.path(file)?;
        let look =
            |open: &File| open.metadata().map(|found| (found.ino(), found.mtime(), found.mtime_nsec(), found.len()));
        let read = File::open(&path).and_then(|open| {
            let before = look(&open)?;
            let outline = outline_file(&open)?;
            Ok((before == look(&open)?, before.0, open, outline))
        });
        let (inode, wrong) = match read {
            // Somebody writes to it just now.
            Ok((false, ..)) => return Err(StoreError::Unchecked(file)),
            Ok((true, inode, open, outline)) => match outline.root().filter(|hash| file.names(*hash)) {
                Some(hash) => {
                    let stat = Stat { length: outline.length(), hash };
                    self.found_right(file, stat, &open, &outline)?;
                    return Ok((stat, outline));
                }
                None => (Some(inode), "the stored bytes are not what their name says"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, "the stored file is gone"),
            Err(error) => return Err(error.into()),
        };
        let _publishing = held(&self.publishing);
        if fs::symlink_metadata(&path).ok().map(|found| found.ino()) != inode {
            // Another has taken its place meanwhile.
            return Err(StoreError::Unchecked(file));
        }
        self.discard(file, &path, wrong);
        Err(StoreError::FileUnknown(file))
    }

    /// Notes what was read, and has the file look as it was sealed.
    fn found_right(&self, file: FileId, stat: Stat, open: &File, outline: &Outline) -> Result<(), StoreError> {
        if !disk::is_sealed(&open.metadata()?) {
            self.disk.set_hash(open, stat.hash)?;
            self.disk.seal(open)?;
        }
        let _publishing = held(&self.publishing);
        if !held(&self.files).contains_key(&file) {
            return Err(StoreError::FileUnknown(file));
        }
        held(&self.files).insert(file, stat.length);
        held(&self.hashes).insert(file, stat.hash);
        held(&self.maps).retain(|(id, _)| *id != file);
        let kept = fs::read(self.layout.outline(file)).unwrap_or_default();
        if kept != outline.encode() {
            self.keep_outline(file, outline);
        }
        Ok(())
    }

    /// Takes a file out of the store that is not what its name says.
    fn discard(&self, file: FileId, path: &Path, why: &str) {
        tracing::error!(%file, "{why}: moved to the trash");
        held(&self.files).remove(&file);
        held(&self.hashes).remove(&file);
        held(&self.maps).retain(|(id, _)| *id != file);
        let to = self.layout.trash().join(format!("{file}.dat"));
        match self.disk.rename(path, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, %file, "it could not be moved");
            }
            Ok(()) | Err(_) => {}
        }
        let _ = self.disk.remove(&self.layout.outline(file));
    }
}

/// Locks; a thread that panicked while it held the lock has left nothing half-done that is not a bug already.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
