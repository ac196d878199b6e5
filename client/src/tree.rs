//! Directories to and from storage: each becomes a tree, and the tree a directory again.
//!
//! A directory is walked, its small files are laid one behind the other in packs, and all is hashed, before a byte is sent;
//! the tree itself goes last, so that whoever finds it finds what it lists. Contents of files are read twice, for the hash and
//! to be sent, and not kept.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use content::{Hasher, Part, Source, WriteTree, finish_entry, hash_bytes, write_entry, write_tree};
use wire::tree::{
    DEPTH_MAX, ENTRIES_MAX, Entry, EntryKind, PACK_SIZE_MAX, PACKED_SIZE_MAX, SIZE_MAX, Tree, TreeFile, TreeWriter,
    check_target,
};
use wire::{FileAddress, FileId, Hash, bytes_text};

use crate::batch::Trust;
use crate::file::{Begun, Staged, put_failed, whole};
use crate::{ClientError, Connection, ReadError};

/// A directory of this machine as it was when it was read.
#[derive(Debug)]
pub struct LocalTree {
    root: PathBuf,
    /// Of each entry, the directory that it lies in.
    parents: Vec<u32>,
    tree: Tree<Vec<u8>>,
    hash: Hash,
    contents: Vec<Content>,
}

/// A stored file on its way: the entries whose bytes it is, one behind the other.
#[derive(Debug)]
struct Content {
    hash: Hash,
    length: u64,
    entries: Vec<u32>,
}

impl LocalTree {
    /// Walks the directory at `root` and reads its files.
    pub fn read(root: &Path) -> Result<Self, ClientError> {
        let mut walk = Walk::new(root)?;
        walk.list_all()?;
        let contents = walk.pack_all()?;
        let bytes = walk.to.finish();
        let hash = hash_bytes(&bytes);
        let tree = Tree::decode(bytes).map_err(|error| not_storable(root, error.to_string()))?;
        Ok(Self { root: root.to_owned(), parents: walk.parents, tree, hash, contents })
    }

    /// What the tree is as a stored file.
    pub fn staged(&self) -> Staged {
        Staged { is_tree: true, ..whole(self.hash, self.tree.bytes().len() as u64) }
    }

    pub fn tree(&self) -> &Tree<Vec<u8>> {
        &self.tree
    }

    /// Bytes to store at most, those of the tree too.
    pub fn stored_length(&self) -> u64 {
        self.contents.iter().map(|content| content.length).sum::<u64>() + self.staged().length
    }

    fn source(&self, content: &Content) -> Source {
        let part = |entry: &u32| {
            let name = |at: usize| self.tree.name(&self.tree.entries()[at]);
            let path = path_of(&self.root, &self.parents, name, *entry as usize);
            Part::File { path, offset: 0, length: self.tree.entries()[*entry as usize].length() }
        };
        Source::new(content.entries.iter().map(part).collect())
    }
}

/// A walk over a directory on its way to be a tree.
struct Walk<'a> {
    root: &'a Path,
    to: TreeWriter,
    parents: Vec<u32>,
    depths: Vec<u16>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path) -> Result<Self, ClientError> {
        let metadata = root.metadata().map_err(|error| ClientError::local(root.display(), error))?;
        Ok(Self { root, to: TreeWriter::new(metadata.mtime()), parents: vec![0], depths: vec![0] })
    }

    fn path(&self, entry: usize) -> PathBuf {
        path_of(self.root, &self.parents, |at| self.to.name(at), entry)
    }

    fn list_all(&mut self) -> Result<(), ClientError> {
        let mut at = 0;
        while at < self.to.len() {
            if self.to.entry(at).kind() == EntryKind::Directory {
                self.list(at)?;
            }
            at += 1;
        }
        Ok(())
    }

    /// Adds what is in a directory.
    fn list(&mut self, directory: usize) -> Result<(), ClientError> {
        let path = self.path(directory);
        let failed = |error: io::Error| ClientError::local(path.display(), error);
        let depth = self.depths[directory];
        if usize::from(depth) >= DEPTH_MAX {
            return Err(not_storable(&path, format!("a tree is at most {DEPTH_MAX} directories deep")));
        }
        let mut children: Vec<(Vec<u8>, Metadata)> = Vec::new();
        for child in fs::read_dir(&path).map_err(failed)? {
            let child = child.map_err(failed)?;
            let metadata = child.metadata().map_err(|error| ClientError::local(child.path().display(), error))?;
            children.push((child.file_name().into_vec(), metadata));
        }
        if self.to.len() + children.len() > ENTRIES_MAX {
            return Err(not_storable(self.root, format!("it has more than {ENTRIES_MAX} entries")));
        }
        children.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.to.open_directory(directory);
        for (name, metadata) in &children {
            self.add(&path, usize::from(depth), name, metadata)?;
            self.parents.push(directory as u32);
            self.depths.push(depth + 1);
        }
        self.to.close_directory(directory);
        Ok(())
    }

    fn add(&mut self, directory: &Path, depth: usize, name: &[u8], metadata: &Metadata) -> Result<(), ClientError> {
        let path = || directory.join(OsStr::from_bytes(name));
        let (kind, mtime_s) = (metadata.file_type(), metadata.mtime());
        if kind.is_dir() {
            self.to.add_directory(name, mtime_s);
        } else if kind.is_file() {
            let is_executable = metadata.permissions().mode() & 0o111 != 0;
            self.to.add_file(name, mtime_s, is_executable, metadata.len());
        } else if kind.is_symlink() {
            let target = fs::read_link(path()).map_err(|error| ClientError::local(path().display(), error))?;
            let target = target.into_os_string().into_vec();
            check_target(&target, depth)
                .map_err(|why| not_storable(&path(), format!("{why}: it leads to '{}'", bytes_text(&target))))?;
            self.to.add_symlink(name, mtime_s, &target);
        } else {
            let what = match () {
                () if kind.is_socket() => "a socket",
                () if kind.is_fifo() => "a pipe",
                () => "a device",
            };
            let why = format!("it is {what}; a tree has files, directories and symlinks");
            return Err(not_storable(&path(), why));
        }
        Ok(())
    }

    /// Reads all files, gives each its place, and says what is to be stored. Equal files have one place.
    fn pack_all(&mut self) -> Result<Vec<Content>, ClientError> {
        let mut packing = Packing::default();
        for entry in 0..self.to.len() {
            if self.to.entry(entry).kind() == EntryKind::File {
                let path = self.path(entry);
                packing.add(&mut self.to, entry, &path)?;
            }
        }
        packing.close(&mut self.to);
        Ok(packing.contents)
    }
}

/// Puts files into packs.
#[derive(Default)]
struct Packing {
    contents: Vec<Content>,
    places: BTreeMap<Hash, (u32, u64)>,
    /// The pack that is being filled, with its position among the tree's files.
    open: Option<(u32, Hasher, Content)>,
}

impl Packing {
    fn add(&mut self, to: &mut TreeWriter, entry: usize, path: &Path) -> Result<(), ClientError> {
        let length = to.entry(entry).length();
        if length == 0 {
            to.set_content(entry, hash_bytes(b""), None);
            return Ok(());
        }
        if length > PACKED_SIZE_MAX {
            let mut source = Source::of_file(path).map_err(put_failed)?;
            if source.length() != length {
                return Err(changed(path));
            }
            let hash = source.hash().map_err(put_failed)?;
            let place = *self.places.entry(hash).or_insert_with(|| {
                self.contents.push(Content { hash, length, entries: vec![entry as u32] });
                (to.add_stored(hash, length), 0)
            });
            to.set_content(entry, hash, Some(place));
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(length as usize + 1);
        let read = File::open(path).and_then(|file| file.take(length + 1).read_to_end(&mut bytes));
        read.map_err(|error| ClientError::local(path.display(), error))?;
        if bytes.len() as u64 != length {
            return Err(changed(path));
        }
        let hash = hash_bytes(&bytes);
        if let Some(place) = self.places.get(&hash) {
            to.set_content(entry, hash, Some(*place));
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|(.., pack)| pack.length + length > PACK_SIZE_MAX) {
            self.close(to);
        }
        let (stored, hasher, pack) = self.open.get_or_insert_with(|| {
            let pack = Content { hash: Hash::NIL, length: 0, entries: Vec::new() };
            (to.add_stored(Hash::NIL, 0), Hasher::default(), pack)
        });
        hasher.update(&bytes);
        let place = (*stored, pack.length);
        pack.entries.push(entry as u32);
        pack.length += length;
        self.places.insert(hash, place);
        to.set_content(entry, hash, Some(place));
        Ok(())
    }

    fn close(&mut self, to: &mut TreeWriter) {
        if let Some((stored, hasher, mut pack)) = self.open.take() {
            pack.hash = hasher.finish();
            to.set_stored(stored, pack.hash, pack.length);
            self.contents.push(pack);
        }
    }
}

impl Connection {
    /// Stores what is not there of a directory that was read; false = the masters knew the tree.
    pub fn put_tree(&mut self, tree: &LocalTree, trust: Trust) -> Result<bool, ClientError> {
        let staged = tree.staged();
        self.expect_bytes(tree.stored_length());
        let parts: Vec<Staged> = tree.contents.iter().map(|content| whole(content.hash, content.length)).collect();
        let stored = self.store_each(&parts, trust, |at| Ok(tree.source(&tree.contents[at])));
        let stored = stored.and_then(|_| {
            // Last: who finds it finds what it lists.
            self.store_each(&[staged], trust, |_| Ok(Source::of_bytes(tree.tree.bytes().clone())))
        });
        self.expect_nothing();
        stored.map(|is_new| is_new[0]).map_err(|error| match error {
            ClientError::Refused { code: wire::ErrorCode::HashMismatch, .. } => changed(&tree.root),
            other => other,
        })
    }

    /// A stored tree.
    pub fn tree(&mut self, file: FileId, length: u64) -> Result<Tree<Vec<u8>>, ClientError> {
        if length > SIZE_MAX {
            return Err(ClientError::Protocol(format!("a tree of {length} bytes")));
        }
        let bytes = self.read_bytes(FileAddress { file, piece: None })?;
        Tree::decode(bytes).map_err(|error| ClientError::Protocol(format!("{file}: {error}")))
    }

    /// Writes a stored tree as the directory `root`, which is not there yet. What has failed is removed.
    pub fn get_tree(&mut self, tree: &Tree<Vec<u8>>, root: &Path) -> Result<(), ReadError> {
        let total = tree.files().iter().map(|file| file.length.get()).sum();
        self.expect_bytes(total);
        let written = write_tree(tree, root, &mut Fetching { connection: self });
        self.expect_nothing();
        written
    }
}

/// Writes entries from what storage has.
struct Fetching<'a> {
    connection: &'a mut Connection,
}

impl Fetching<'_> {
    fn fetch(&mut self, file: &TreeFile, into: &mut dyn Write) -> Result<(), ReadError> {
        let address = FileAddress { file: file.file(), piece: None };
        let expected = Some((file.hash, file.length.get()));
        self.connection.read_verified(address, expected, Begun::default(), into)?;
        self.connection.have_moved(file.length.get());
        Ok(())
    }
}

impl WriteTree for Fetching<'_> {
    type Error = ReadError;

    fn read_pack(&mut self, pack: &TreeFile) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        self.fetch(pack, &mut bytes)?;
        Ok(bytes)
    }

    fn write_whole(&mut self, file: &TreeFile, entry: &Entry, path: &Path) -> Result<(), ReadError> {
        write_entry(b"", entry, path, false).map_err(|error| self.failed(path, error))?;
        let mut to = File::options().write(true).open(path).map_err(|error| self.failed(path, error))?;
        self.fetch(file, &mut to)?;
        finish_entry(&to, entry, false).map_err(|error| self.failed(path, error))
    }

    fn write_piece(&mut self, bytes: &[u8], entry: &Entry, path: &Path) -> Result<(), ReadError> {
        write_entry(bytes, entry, path, false).map_err(|error| self.failed(path, error))
    }

    fn failed(&self, path: &Path, error: io::Error) -> ReadError {
        ClientError::local(path.display(), error).into()
    }
}

fn path_of<'a>(root: &Path, parents: &[u32], name: impl Fn(usize) -> &'a [u8], mut entry: usize) -> PathBuf {
    let mut names = Vec::new();
    while entry != 0 {
        names.push(name(entry));
        entry = parents[entry] as usize;
    }
    let mut path = root.to_owned();
    names.iter().rev().for_each(|name| path.push(OsStr::from_bytes(name)));
    path
}

fn not_storable(path: &Path, why: String) -> ClientError {
    ClientError::NotStorable { path: path.to_owned(), why }
}

fn changed(path: &Path) -> ClientError {
    not_storable(path, "it was changed while it was read; try again".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn a_directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("b/deep")).unwrap();
        fs::write(at("a\nb \u{e4}"), "same").unwrap();
        fs::write(at("b/deep/x"), "same").unwrap();
        fs::write(at("b/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(at("b/run"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(at("b/large"), vec![1; PACKED_SIZE_MAX as usize + 1]).unwrap();
        fs::write(at("b/edge"), vec![2; PACKED_SIZE_MAX as usize]).unwrap();
        fs::write(at("nothing"), "").unwrap();
        symlink("../a\nb \u{e4}", at("b/link")).unwrap();
        dir
    }

    #[test]
    fn a_directory_becomes_a_tree_with_small_files_in_packs_and_equal_ones_once() {
        let dir = a_directory();
        let local = LocalTree::read(dir.path()).unwrap();
        let tree = local.tree();
        let names: Vec<_> = tree.entries().iter().map(|entry| bytes_text(tree.name(entry))).collect();
        let text = |name: &str| bytes_text(name.as_bytes());
        let expected = ["", "a\nb \u{e4}", "b", "nothing", "deep", "edge", "large", "link", "run", "x"].map(text);
        assert_eq!(names, expected, "breadth first, sorted");
        assert_eq!(tree.files().len(), 2, "one pack and one large file: {:?}", tree.files());
        let place = |at: usize| tree.entries()[at].place();
        assert_eq!(place(1), place(9), "equal files lie in one place");
        assert_eq!(place(3), None);
        assert!(tree.entries()[8].is_executable() && !tree.entries()[1].is_executable());
        assert_eq!(tree.entries()[1].mtime_s(), dir.path().join("a\nb \u{e4}").metadata().unwrap().mtime());
        for content in &local.contents {
            assert_eq!(local.source(content).hash().unwrap(), content.hash);
        }
        assert_eq!(LocalTree::read(dir.path()).unwrap().staged(), local.staged(), "the same again is the same tree");
    }

    #[test]
    fn packs_are_not_larger_than_what_is_fetched_whole() {
        let dir = tempfile::tempdir().unwrap();
        let count = PACK_SIZE_MAX / PACKED_SIZE_MAX + 3;
        for number in 0..count {
            let mut bytes = vec![0; PACKED_SIZE_MAX as usize];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            fs::write(dir.path().join(format!("{number:04}")), bytes).unwrap();
        }
        let local = LocalTree::read(dir.path()).unwrap();
        let lengths: Vec<u64> = local.tree().files().iter().map(|file| file.length.get()).collect();
        assert_eq!(lengths, [PACK_SIZE_MAX, 3 * PACKED_SIZE_MAX]);
        assert_eq!(local.tree().length(), count * PACKED_SIZE_MAX);
    }

    #[test]
    fn what_no_tree_can_have_is_told_by_its_path() {
        let refused = |make: &dyn Fn(&Path)| {
            let dir = a_directory();
            make(dir.path());
            LocalTree::read(dir.path()).unwrap_err().to_string()
        };
        let out = refused(&|dir| symlink("../../etc/passwd", dir.join("b/out")).unwrap());
        assert!(out.contains("b/out") && out.contains("leaves the tree: it leads to '../../etc/passwd'"), "{out}");
        let absolute = refused(&|dir| symlink("/etc", dir.join("etc")).unwrap());
        assert!(absolute.contains("/etc: the symlink is absolute"), "{absolute}");
        let socket = refused(&|dir| drop(std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap()));
        assert!(socket.contains("/s: it is a socket"), "{socket}");
    }
}
