//! The system calls by which a store changes its directory, each a step that a test can put a crash before.

use std::ffi::CString;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use wire::Hash;

use super::SEALED_AT;

/// The full hash of a sealed file; recomputed where the filesystem has no user attributes.
const HASH_ATTRIBUTE: &std::ffi::CStr = c"user.zg.blake3";

/// One kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Preallocate,
    Write,
    Truncate,
    SetHash,
    Seal,
    SyncData,
    MakeDirectory,
    Rename,
    SyncDirectory,
    SyncFilesystem,
    Remove,
}

/// The disk under one store, and whether it can still be trusted.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Set by the first failed fsync and never cleared: the kernel may have marked the lost pages clean, so that a second
    /// fsync would succeed over data that is gone.
    bad: AtomicBool,
    #[cfg(test)]
    pub(super) faults: std::sync::Mutex<super::crash_tests::Faults>,
}

impl Disk {
    pub(super) fn is_bad(&self) -> bool {
        self.bad.load(Ordering::Relaxed)
    }

    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "only tests put faults here")
    )]
    fn step(&self, step: Step) -> io::Result<()> {
        #[cfg(test)]
        self.faults.lock().expect("no test panics while it holds the faults").check(step)?;
        let _ = step;
        Ok(())
    }

    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        self.step(Step::Create)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    /// Opens a file for writing as it is, or makes it.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        self.step(Step::Create)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Puts a small file in its place, whole unless the machine dies.
    pub(super) fn replace(&self, temporary: &Path, to: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.create(temporary)?;
        self.write(&file, bytes, 0).and_then(|()| self.rename(temporary, to)).inspect_err(|_| {
            let _ = self.remove(temporary);
        })
    }

    /// Reserves `length` bytes, so that a full disk shows before the first byte and the file lies in one piece.
    pub(super) fn preallocate(&self, file: &File, length: u64) -> io::Result<()> {
        self.step(Step::Preallocate)?;
        if length == 0 {
            return Ok(());
        }
        // Asked for more than there is, a filesystem may first give all it has: nobody else could write meanwhile. And what is
        // large leaves something to the small files that say how a chunk ended, and to a master that shares the disk.
        let left = length.min(node::disk::MASTER_FREE_BYTES_MIN);
        if free_bytes(file)? < length.saturating_add(left) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let length = libc::off_t::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
        let failed = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0;
        let error = io::Error::last_os_error();
        // glibc's posix_fallocate would write zeroes where the filesystem cannot reserve; there a full disk may as well
        // show at the write.
        let unsupported = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
        if failed && !unsupported { Err(error) } else { Ok(()) }
    }

    pub(super) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step(Step::Write)?;
        file.write_all_at(bytes, offset)
    }

    pub(super) fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        self.step(Step::Truncate)?;
        file.set_len(length)
    }

    /// Keeps the full hash beside the content, where the filesystem can; an error is no harm.
    pub(super) fn set_hash(&self, file: &File, hash: Hash) -> io::Result<()> {
        self.step(Step::SetHash)?;
        // SAFETY: the name is a C string and the value is `hash`'s 32 bytes, both alive during the call.
        unsafe { libc::fsetxattr(file.as_raw_fd(), HASH_ATTRIBUTE.as_ptr(), hash.0.as_ptr().cast(), hash.0.len(), 0) };
        Ok(())
    }

    /// The hash that `set_hash` left, if any.
    pub(super) fn hash_of(path: &Path) -> Option<Hash> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut hash = Hash::NIL;
        // SAFETY: both names are C strings and the buffer is `hash`'s 32 bytes, all alive during the call.
        let length =
            unsafe { libc::getxattr(path.as_ptr(), HASH_ATTRIBUTE.as_ptr(), hash.0.as_mut_ptr().cast(), hash.0.len()) };
        (length == 32).then_some(hash)
    }

    /// Takes the right to write away and gives the file the age of all sealed ones.
    pub(super) fn seal(&self, file: &File) -> io::Result<()> {
        self.step(Step::Seal)?;
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + SEALED_AT))
    }

    pub(super) fn sync_data(&self, file: &File) -> io::Result<()> {
        self.step(Step::SyncData).and_then(|()| file.sync_data()).inspect_err(|error| self.mark_bad("fdatasync", error))
    }

    /// Makes a directory of a cache, which need not be durable.
    pub(super) fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.create_directory(path).map(|_| ())
    }

    /// Makes the directory; false = it is there. Whoever wants it durable makes its parent so.
    pub(super) fn create_directory(&self, path: &Path) -> io::Result<bool> {
        if path.is_dir() {
            return Ok(false);
        }
        self.step(Step::MakeDirectory)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(true),
        }
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename)?;
        fs::rename(from, to)
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDirectory)
            .and_then(|()| File::open(path)?.sync_all())
            .inspect_err(|error| self.mark_bad("fsync of a directory", error))
    }

    /// Makes everything durable that was done on the filesystem of `file`. Since Linux 5.8 it fails when a write was lost
    /// after `file` was opened.
    pub(super) fn sync_filesystem(&self, file: &File) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
        let sync =
            || if unsafe { libc::syncfs(file.as_raw_fd()) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        self.step(Step::SyncFilesystem).and_then(|()| sync()).inspect_err(|error| self.mark_bad("syncfs", error))
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove)?;
        fs::remove_file(path)
    }

    fn mark_bad(&self, what: &str, error: &io::Error) {
        tracing::error!(%error, "{what} failed: the store takes and gives nothing any more");
        self.bad.store(true, Ordering::Relaxed);
    }
}

/// Whether a file is of the age of sealed ones, which it is not when somebody has written to it since.
pub(super) fn is_sealed(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.mtime() == SEALED_AT.as_secs() as i64 && metadata.mtime_nsec() == 0
}

/// What users other than root may still fill of the filesystem that `file` lies on.
fn free_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: a zeroed statvfs is a valid one, and the call fills it.
    let mut filesystem: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and the struct is ours, both during the call.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut filesystem) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}
