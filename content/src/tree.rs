//! Writes a tree out as a plain directory, for whoever cannot or need not mount it.
//!
//! First the directories and links, then the files, pack by pack so that each is read once, then the times of the
//! directories, from the inside out. Where the bytes come from, and how a file is written, is the caller's.

use std::fs::{DirBuilder, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wire::tree::{Entry, EntryKind, Tree, TreeFile};

use crate::hash_bytes;

/// How the files of a tree are written.
pub trait WriteTree {
    type Error;

    /// The bytes of a pack, verified.
    fn read_pack(&mut self, pack: &TreeFile) -> Result<Vec<u8>, Self::Error>;

    /// Makes the entry, which is all of `file`, at `path`, with its mode and times.
    fn write_whole(&mut self, file: &TreeFile, entry: &Entry, path: &Path) -> Result<(), Self::Error>;

    /// Makes the entry, whose bytes these are, at `path`, with its mode and times.
    fn write_piece(&mut self, bytes: &[u8], entry: &Entry, path: &Path) -> Result<(), Self::Error>;

    /// What a failure at `path` is for the caller.
    fn failed(&self, path: &Path, error: io::Error) -> Self::Error;
}

/// Writes `tree` as the directory `root`, which is not there yet.
pub fn write_tree<B: AsRef<[u8]>, W: WriteTree>(tree: &Tree<B>, root: &Path, to: &mut W) -> Result<(), W::Error> {
    let entries = tree.entries();
    let parents = parents(tree);
    let path = |at: usize| path_of(tree, &parents, root, at);
    let mut files: Vec<(u32, usize)> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        match entry.kind() {
            EntryKind::Directory => {
                let path = path(at);
                DirBuilder::new().mode(0o777).create(&path).map_err(|error| to.failed(&path, error))?;
            }
            EntryKind::Symlink => {
                let path = path(at);
                let target = std::ffi::OsStr::from_bytes(tree.target(entry));
                std::os::unix::fs::symlink(target, &path)
                    .and_then(|()| set_link_time(&path, entry.mtime_s()))
                    .map_err(|error| to.failed(&path, error))?;
            }
            EntryKind::File => match entry.place() {
                Some((stored, _)) => files.push((stored, at)),
                None => to.write_piece(&[], entry, &path(at))?,
            },
        }
    }
    files.sort_unstable();
    let mut pack: (u32, Vec<u8>) = (u32::MAX, Vec::new());
    for (stored, at) in files {
        let (entry, file) = (&entries[at], &tree.files()[stored as usize]);
        if entry.length() == file.length.get() {
            to.write_whole(file, entry, &path(at))?;
            continue;
        }
        if pack.0 != stored {
            pack = (stored, to.read_pack(file)?);
        }
        let path = path(at);
        let begin = entry.place().map_or(0, |(_, begin)| begin) as usize;
        let bytes =
            pack.1.get(begin..begin + entry.length() as usize).filter(|bytes| hash_bytes(bytes) == entry.hash());
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "its bytes are not those that the tree names");
        let bytes = bytes.ok_or_else(|| to.failed(&path, wrong()))?;
        to.write_piece(bytes, entry, &path)?;
    }
    for (at, entry) in entries.iter().enumerate().rev().filter(|(_, entry)| entry.kind() == EntryKind::Directory) {
        let path = path(at);
        let times = FileTimes::new().set_modified(time(entry.mtime_s()));
        File::open(&path).and_then(|file| file.set_times(times)).map_err(|error| to.failed(&path, error))?;
    }
    Ok(())
}

/// Writes a new file at `path` with the entry's time; `is_read_only` = nobody may write to it, not even its owner.
pub fn write_entry(bytes: &[u8], entry: &Entry, path: &Path, is_read_only: bool) -> io::Result<()> {
    let mode = if entry.is_executable() { 0o777 } else { 0o666 };
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    finish_entry(&file, entry, is_read_only)
}

/// Gives a file that has the entry's bytes its mode and time.
pub fn finish_entry(file: &File, entry: &Entry, is_read_only: bool) -> io::Result<()> {
    if is_read_only {
        let mode = if entry.is_executable() { 0o555 } else { 0o444 };
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.set_times(FileTimes::new().set_modified(time(entry.mtime_s())))
}

/// The directory that each entry lies in; the root lies in itself.
fn parents<B: AsRef<[u8]>>(tree: &Tree<B>) -> Vec<u32> {
    let mut parents = vec![0; tree.entries().len()];
    for (at, entry) in tree.entries().iter().enumerate() {
        parents[tree.children(entry)].fill(at as u32);
    }
    parents
}

fn path_of<B: AsRef<[u8]>>(tree: &Tree<B>, parents: &[u32], root: &Path, mut at: usize) -> PathBuf {
    let mut names = Vec::new();
    while at != 0 {
        names.push(tree.name(&tree.entries()[at]));
        at = parents[at] as usize;
    }
    let mut path = root.to_owned();
    names.iter().rev().for_each(|name| path.push(std::ffi::OsStr::from_bytes(name)));
    path
}

fn time(mtime_s: i64) -> SystemTime {
    let distance = Duration::from_secs(mtime_s.unsigned_abs());
    let time = if mtime_s >= 0 { UNIX_EPOCH.checked_add(distance) } else { UNIX_EPOCH.checked_sub(distance) };
    // One that no clock of this machine can show.
    time.unwrap_or(UNIX_EPOCH)
}

fn set_link_time(path: &Path, mtime_s: i64) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let time = libc::timespec { tv_sec: mtime_s as libc::time_t, tv_nsec: 0 };
    // SAFETY: the path ends with NUL and the array has the two times that the call reads.
    let done =
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use wire::Hash;
    use wire::tree::TreeWriter;

    /// Stored files by position.
    struct Contents(Vec<Vec<u8>>, Vec<Hash>);

    impl Contents {
        fn bytes(&self, file: &TreeFile) -> &[u8] {
            &self.0[self.1.iter().position(|hash| *hash == file.hash).expect("it is ours")]
        }
    }

    impl WriteTree for Contents {
        type Error = String;

        fn read_pack(&mut self, pack: &TreeFile) -> Result<Vec<u8>, String> {
            self.1.push(pack.hash);
            self.0.push(Vec::new());
            Ok(self.bytes(pack).to_vec())
        }

        fn write_whole(&mut self, file: &TreeFile, entry: &Entry, path: &Path) -> Result<(), String> {
            write_entry(self.bytes(file), entry, path, false).map_err(|error| self.failed(path, error))
        }

        fn write_piece(&mut self, bytes: &[u8], entry: &Entry, path: &Path) -> Result<(), String> {
            write_entry(bytes, entry, path, true).map_err(|error| self.failed(path, error))
        }

        fn failed(&self, path: &Path, error: io::Error) -> String {
            format!("{}: {error}", path.display())
        }
    }

    /// Two packs whose files alternate, a whole file, an empty one, a link and directories.
    fn a_tree(second: &[u8]) -> (Tree<Vec<u8>>, Contents) {
        let contents = vec![b"onethree".to_vec(), b"twofour".to_vec(), b"whole".to_vec()];
        let hashes: Vec<Hash> = contents.iter().map(|bytes| hash_bytes(bytes)).collect();
        let mut to = TreeWriter::new(1_000_000_000);
        for (bytes, hash) in contents.iter().zip(&hashes) {
            to.add_stored(*hash, bytes.len() as u64);
        }
        to.open_directory(0);
        let sub = to.add_directory(b"a \n\xff", 7);
        to.add_symlink(b"link", 8, b"a \n\xff/2");
        let empty = to.add_file(b"nothing", 9, false, 0);
        let whole = to.add_file(b"tool", 10, true, 5);
        to.close_directory(0);
        to.open_directory(sub);
        let pieces: Vec<usize> = [(b"1", 3), (b"2", 3), (b"3", 5), (b"4", 4)]
            .map(|(name, length)| to.add_file(name, -5, false, length))
            .into();
        to.close_directory(sub);
        to.set_content(empty, hash_bytes(b""), None);
        to.set_content(whole, hashes[2], Some((2, 0)));
        for (at, (bytes, place)) in
            [(&b"one"[..], (0, 0)), (second, (1, 0)), (b"three", (0, 3)), (b"four", (1, 3))].into_iter().enumerate()
        {
            to.set_content(pieces[at], hash_bytes(bytes), Some(place));
        }
        (Tree::decode(to.finish()).expect("it is right"), Contents(contents, hashes))
    }

    #[test]
    fn a_tree_is_written_with_names_modes_links_and_times() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("tree");
        let (tree, mut contents) = a_tree(b"two");
        write_tree(&tree, &root, &mut contents).expect("it is written");
        assert_eq!(contents.0.len(), 5, "each pack is read once");
        let sub = root.join(std::ffi::OsStr::from_bytes(b"a \n\xff"));
        let read = |name: &str| fs::read(sub.join(name)).expect("it is there");
        assert_eq!(["1", "2", "3", "4"].map(read), [&b"one"[..], b"two", b"three", b"four"]);
        assert_eq!(fs::read(root.join("link")).expect("it leads there"), b"two");
        assert_eq!(fs::read(root.join("nothing")).expect("it is there"), b"");
        let mtime = |path: &Path| path.symlink_metadata().expect("it is there").mtime();
        let times = [&root, &sub, &root.join("link"), &root.join("tool"), &sub.join("1")].map(|path| mtime(path));
        assert_eq!(times, [1_000_000_000, 7, 8, 10, -5]);
        let mode = |path: &Path| path.metadata().expect("it is there").mode() & 0o777;
        assert_eq!((mode(&root.join("tool")) & 0o111, mode(&sub.join("1"))), (0o111, 0o444));
        assert!(write_tree(&tree, &root, &mut contents).is_err_and(|why| why.contains("File exists")));
    }

    #[test]
    fn bytes_that_are_not_those_of_the_entry_are_told_by_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let (tree, mut contents) = a_tree(b"TWO");
        let why = write_tree(&tree, &dir.path().join("tree"), &mut contents).expect_err("it lies");
        assert!(why.contains("/2: its bytes are not those"), "{why}");
    }
}
