//! Trees: a directory as one stored file, which lists names and says in which other files the bytes lie.
//!
//! ```text
//! "zgtree1\n" | files u32 | entries u32 | names_length u64 | files.. | entries.. | names
//! ```
//!
//! It is like the index of a library: who holds the index knows every book, its place and its size without fetching one.
//! Entries stand breadth first: the root, what is in it, what is in those, so that the children of a directory lie together,
//! ascending by their bytes, and a name is found by bisection where it lies. Small files lie one behind the other in packs;
//! a larger one is a file of its own.
//!
//! A tree comes from whoever put it, so `decode` checks everything once: ranges, names, order, and that no symlink leads out.
//! After that nothing fails, not even when the bytes change under us: then they say something else.

use zerocopy::little_endian::I64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limit::{MIB, NAME_SIZE_MAX, PATH_SIZE_MAX};
use crate::{FileId, Hash, U16, U32, U64, Writer, bytes_text};

/// The first bytes of every tree.
pub const MAGIC: &[u8; 8] = b"zgtree1\n";
/// Entries of a tree, the root among them.
pub const ENTRIES_MAX: usize = 10_000_000;
/// Directories inside each other: with names of a letter or two that is as long as a path may be.
pub const DEPTH_MAX: usize = 1024;
/// A file of a tree that is not larger lies in a pack.
pub const PACKED_SIZE_MAX: u64 = 64 * 1024;
/// A pack is not larger, so that it is fetched whole.
pub const PACK_SIZE_MAX: u64 = 8 * MIB as u64;
/// Bytes of a tree: ten million entries with names of some length.
pub const SIZE_MAX: u64 = 2 << 30;
/// `Entry::file` of what has no bytes: directories, symlinks and empty files.
pub const NO_FILE: u32 = u32::MAX;
/// The class of a stored file that is a tree.
pub const CLASS_TREE: u8 = 3;

/// A stored file in which entries' bytes lie. 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TreeFile {
    pub hash: Hash,
    pub length: U64,
}

impl TreeFile {
    pub fn file(&self) -> FileId {
        FileId::of(self.hash)
    }
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
}

/// One name of a tree. 80 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Entry {
    /// In the names.
    name_offset: U64,
    name_length: U16,
    /// 0 file, 1 directory, 2 symlink.
    kind: u8,
    executable: u8,
    /// Position of the stored file that has the bytes; `NO_FILE` = none.
    file: U32,
    /// Where the bytes begin in the stored file; the first child; where the target begins in the names.
    first: U64,
    /// Bytes; children; bytes of the target.
    length: U64,
    /// Seconds since 1970.
    mtime_s: I64,
    /// Zero.
    reserved: U64,
    /// Of the bytes; nil for what is no file.
    hash: Hash,
}

const HEADER_SIZE: usize = 24;
const _: () = assert!(size_of::<TreeFile>() == 40);
const _: () = assert!(size_of::<Entry>() == 80);
const _: () = assert!(PACKED_SIZE_MAX <= PACK_SIZE_MAX);

impl Entry {
    pub fn kind(&self) -> EntryKind {
        match self.kind {
            0 => EntryKind::File,
            1 => EntryKind::Directory,
            _ => EntryKind::Symlink,
        }
    }

    pub fn is_executable(&self) -> bool {
        self.executable != 0
    }

    /// Bytes of a file; children of a directory; bytes of a symlink's target.
    pub fn length(&self) -> u64 {
        self.length.get()
    }

    /// Seconds since 1970.
    pub fn mtime_s(&self) -> i64 {
        self.mtime_s.get()
    }

    /// Of a file's bytes.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The position in `Tree::files` of what has the bytes, and where they begin there; `None` = there are none.
    pub fn place(&self) -> Option<(u32, u64)> {
        let has_bytes = self.kind == 0 && self.file.get() != NO_FILE;
        has_bytes.then_some((self.file.get(), self.first.get()))
    }
}

/// Says why bytes are no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("it is no tree: {what}")]
    Layout { what: &'static str },
    #[error("entry {entry} of the tree is malformed: {what}")]
    Entry { entry: usize, what: &'static str },
    #[error("'{name}' in the tree is refused: {why}")]
    Name { name: String, why: &'static str },
}

/// A tree, read where its bytes lie.
#[derive(Clone, Copy, Debug)]
pub struct Tree<B> {
    bytes: B,
    files: usize,
    entries: usize,
}

/// The fixed head of the bytes. 24 bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    files: U32,
    entries: U32,
    names_length: U64,
}

const _: () = assert!(size_of::<Head>() == HEADER_SIZE);

impl<B: AsRef<[u8]>> Tree<B> {
    /// Checks the bytes; they stay where they are.
    pub fn decode(bytes: B) -> Result<Self, TreeError> {
        let layout = |what| TreeError::Layout { what };
        let all = bytes.as_ref();
        if all.len() as u64 > SIZE_MAX {
            return Err(layout("it is larger than 2 GiB"));
        }
        let (head, _) = Head::ref_from_prefix(all).map_err(|_| layout("it is too short"))?;
        if &head.magic != MAGIC {
            return Err(layout("it does not begin as one"));
        }
        let (files, entries) = (head.files.get() as usize, head.entries.get() as usize);
        if entries == 0 || entries > ENTRIES_MAX {
            return Err(layout("it has no entries or too many"));
        }
        // Both counts are below 2^32: 64 bits hold the sum.
        let names_at = HEADER_SIZE as u64 + files as u64 * 40 + entries as u64 * 80;
        if names_at.checked_add(head.names_length.get()) != Some(all.len() as u64) {
            return Err(layout("its length is not what its counts come to"));
        }
        let tree = Self { files, entries, bytes };
        tree.check_files()?;
        tree.check_entries()?;
        Ok(tree)
    }

    /// What it is read from.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// The stored files that hold the bytes.
    pub fn files(&self) -> &[TreeFile] {
        let end = HEADER_SIZE + self.files * 40;
        let bytes = self.bytes.as_ref().get(HEADER_SIZE..end).unwrap_or_default();
        <[TreeFile]>::ref_from_bytes(bytes).unwrap_or_default()
    }

    /// All entries; the first is the root.
    pub fn entries(&self) -> &[Entry] {
        let begin = HEADER_SIZE + self.files * 40;
        let bytes = self.bytes.as_ref().get(begin..begin + self.entries * 80).unwrap_or_default();
        <[Entry]>::ref_from_bytes(bytes).unwrap_or_default()
    }

    /// The entry's own name; the root's is empty.
    pub fn name(&self, entry: &Entry) -> &[u8] {
        self.text(entry.name_offset.get(), entry.name_length.get().into()).unwrap_or_default()
    }

    /// Where a symlink leads.
    pub fn target(&self, entry: &Entry) -> &[u8] {
        match entry.kind() {
            EntryKind::Symlink => self.text(entry.first.get(), entry.length.get()).unwrap_or_default(),
            EntryKind::File | EntryKind::Directory => &[],
        }
    }

    /// The positions of a directory's children; empty for what is none.
    pub fn children(&self, entry: &Entry) -> std::ops::Range<usize> {
        match entry.kind() {
            EntryKind::Directory => {
                let first = usize::try_from(entry.first.get()).unwrap_or(usize::MAX).min(self.entries);
                let count = usize::try_from(entry.length.get()).unwrap_or(usize::MAX);
                first..first.saturating_add(count).min(self.entries)
            }
            EntryKind::File | EntryKind::Symlink => 0..0,
        }
    }

    /// The position of the child of `directory` that is called `name`.
    pub fn find(&self, directory: &Entry, name: &[u8]) -> Option<usize> {
        let range = self.children(directory);
        let children = self.entries().get(range.clone())?;
        let at = children.binary_search_by(|child| self.name(child).cmp(name)).ok()?;
        Some(range.start + at)
    }

    /// Bytes of all files.
    pub fn length(&self) -> u64 {
        let files = self.entries().iter().filter(|entry| entry.kind() == EntryKind::File);
        files.fold(0u64, |sum, entry| sum.saturating_add(entry.length()))
    }

    fn text(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let names = self.bytes.as_ref().get(HEADER_SIZE + self.files * 40 + self.entries * 80..)?;
        let begin = usize::try_from(offset).ok()?;
        names.get(begin..begin.checked_add(usize::try_from(length).ok()?)?)
    }

    fn check_files(&self) -> Result<(), TreeError> {
        if self.files().iter().any(|file| file.hash.is_nil() || file.length.get() == 0) {
            return Err(TreeError::Layout { what: "one of its files has no hash or no bytes" });
        }
        Ok(())
    }

    fn check_entries(&self) -> Result<(), TreeError> {
        let entries = self.entries();
        if entries[0].kind != 1 || entries[0].name_length.get() != 0 {
            return Err(TreeError::Entry { entry: 0, what: "the root is a directory without a name" });
        }
        // Where the children of the next directory begin, and where those of this depth end.
        let (mut next, mut depth, mut depth_end) = (1u64, 0, 1u64);
        for (at, entry) in entries.iter().enumerate() {
            let wrong = |what| Err(TreeError::Entry { entry: at, what });
            if at as u64 == depth_end {
                (depth, depth_end) = (depth + 1, next);
            }
            if at as u64 >= next {
                return wrong("it is in no directory");
            }
            if entry.executable > 1 || entry.reserved.get() != 0 {
                return wrong("it has bits that mean nothing");
            }
            match entry.kind {
                0 => self.check_file(at, entry)?,
                1 => {
                    if entry.first.get() != next || entry.length.get() > self.entries as u64 - next {
                        return wrong("its children are elsewhere");
                    }
                    if depth >= DEPTH_MAX {
                        return wrong("it is too many directories deep");
                    }
                    next += entry.length.get();
                    self.check_names(entry)?;
                }
                2 => self.check_link(at, entry, depth)?,
                _ => return wrong("it is of an unknown kind"),
            }
            if entry.kind != 0 && (entry.file.get() != NO_FILE || entry.executable != 0 || !entry.hash.is_nil()) {
                return wrong("only a file has bytes");
            }
        }
        if next == self.entries as u64 { Ok(()) } else { Err(TreeError::Layout { what: "entries are left over" }) }
    }

    fn check_file(&self, at: usize, entry: &Entry) -> Result<(), TreeError> {
        let wrong = |what| Err(TreeError::Entry { entry: at, what });
        if entry.hash.is_nil() {
            return wrong("it has no hash");
        }
        if entry.length.get() == 0 {
            let is_plain = entry.file.get() == NO_FILE && entry.first.get() == 0;
            return if is_plain { Ok(()) } else { wrong("an empty file has no place") };
        }
        let Some(file) = self.files().get(entry.file.get() as usize) else { return wrong("its bytes are in no file") };
        let end = entry.first.get().checked_add(entry.length.get());
        if end.is_none_or(|end| end > file.length.get()) {
            return wrong("its bytes are beyond their file");
        }
        match entry.length == file.length {
            true if entry.hash != file.hash => wrong("it has another hash than its file"),
            false if file.length.get() > PACK_SIZE_MAX => wrong("it is a piece of a file that is too large for a pack"),
            true | false => Ok(()),
        }
    }

    fn check_names(&self, directory: &Entry) -> Result<(), TreeError> {
        let mut last: &[u8] = b"";
        for child in &self.entries()[self.children(directory)] {
            let name = self.text(child.name_offset.get(), child.name_length.get().into());
            let name = name.ok_or(TreeError::Layout { what: "a name is beyond its end" })?;
            check_name(name)?;
            if name <= last {
                return Err(TreeError::Name { name: bytes_text(name), why: "it is not in its place or there twice" });
            }
            last = name;
        }
        Ok(())
    }

    fn check_link(&self, at: usize, entry: &Entry, depth: usize) -> Result<(), TreeError> {
        let Some(target) = self.text(entry.first.get(), entry.length.get()) else {
            return Err(TreeError::Entry { entry: at, what: "its target is beyond the names" });
        };
        // The root is at depth 0, so what lies in it at 1.
        check_target(target, depth - 1).map_err(|why| TreeError::Name { name: bytes_text(self.name(entry)), why })
    }
}

/// Whether `name` can be the name of an entry.
pub fn check_name(name: &[u8]) -> Result<(), TreeError> {
    let wrong = |why| Err(TreeError::Name { name: bytes_text(name), why });
    match name {
        b"" => wrong("a name is not empty"),
        b"." | b".." => wrong("`.` and `..` are not names"),
        _ if name.len() > NAME_SIZE_MAX => wrong("it is longer than 255 bytes"),
        _ if name.contains(&0) => wrong("it contains a NUL byte"),
        _ if name.contains(&b'/') => wrong("it contains a `/`"),
        _ => Ok(()),
    }
}

/// Whether a symlink with this target stays in its tree, when the directory that it lies in is `depth` below the root.
///
/// Going up is allowed at the beginning only, where every step is over a directory and can be counted; after a name it could
/// begin wherever a further symlink has led. So by induction over the steps no chain of such symlinks ever leaves the tree.
pub fn check_target(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() || target.len() >= PATH_SIZE_MAX {
        return Err("a symlink leads to a path of 1 to 4095 bytes");
    }
    if target.contains(&0) {
        return Err("its target contains a NUL byte");
    }
    if target.starts_with(b"/") {
        return Err("the symlink is absolute, so it leaves the tree");
    }
    let (mut up, mut is_below) = (0, false);
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if is_below => return Err("the symlink goes up after a name, so it may leave the tree"),
            b".." => up += 1,
            _ => is_below = true,
        }
    }
    if up > depth { Err("the symlink leaves the tree") } else { Ok(()) }
}

/// Builds a tree: the root first, then for each directory in the order of the entries what is in it.
#[derive(Debug)]
pub struct TreeWriter {
    files: Vec<TreeFile>,
    entries: Vec<Entry>,
    names: Vec<u8>,
}

impl TreeWriter {
    /// A tree with an empty root.
    pub fn new(mtime_s: i64) -> Self {
        let mut writer = Self { files: Vec::new(), entries: Vec::new(), names: Vec::new() };
        writer.push(b"", 1, mtime_s);
        writer
    }

    /// Entries so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// False: a tree has its root at least.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry so far.
    pub fn entry(&self, entry: usize) -> &Entry {
        &self.entries[entry]
    }

    pub fn name(&self, entry: usize) -> &[u8] {
        let entry = &self.entries[entry];
        &self.names[entry.name_offset.get() as usize..][..entry.name_length.get().into()]
    }

    /// What is added until the next call lies in this directory; names have to ascend.
    pub fn open_directory(&mut self, entry: usize) {
        self.entries[entry].first = U64::new(self.entries.len() as u64);
    }

    /// Ends the directory that was opened last.
    pub fn close_directory(&mut self, entry: usize) {
        let count = self.entries.len() as u64 - self.entries[entry].first.get();
        self.entries[entry].length = U64::new(count);
    }

    /// Adds a directory and returns its position.
    pub fn add_directory(&mut self, name: &[u8], mtime_s: i64) -> usize {
        self.push(name, 1, mtime_s)
    }

    /// Adds a symlink and returns its position.
    pub fn add_symlink(&mut self, name: &[u8], mtime_s: i64, target: &[u8]) -> usize {
        let at = self.push(name, 2, mtime_s);
        self.entries[at].first = U64::new(self.names.len() as u64);
        self.entries[at].length = U64::new(target.len() as u64);
        self.names.extend_from_slice(target);
        at
    }

    /// Adds a file of `length` bytes and returns its position; where its bytes lie is told by `set_content`.
    pub fn add_file(&mut self, name: &[u8], mtime_s: i64, is_executable: bool, length: u64) -> usize {
        let at = self.push(name, 0, mtime_s);
        self.entries[at].executable = is_executable.into();
        self.entries[at].length = U64::new(length);
        at
    }

    /// Adds a stored file that has entries' bytes and returns its position.
    pub fn add_stored(&mut self, hash: Hash, length: u64) -> u32 {
        self.files.push(TreeFile { hash, length: U64::new(length) });
        (self.files.len() - 1) as u32
    }

    /// Says what the stored file at this position is, which was added before that was known.
    pub fn set_stored(&mut self, stored: u32, hash: Hash, length: u64) {
        self.files[stored as usize] = TreeFile { hash, length: U64::new(length) };
    }

    /// Says what a file's bytes are and where they lie; an empty one has no place.
    pub fn set_content(&mut self, entry: usize, hash: Hash, place: Option<(u32, u64)>) {
        let entry = &mut self.entries[entry];
        entry.hash = hash;
        let (file, first) = place.unwrap_or((NO_FILE, 0));
        (entry.file, entry.first) = (U32::new(file), U64::new(first));
    }

    /// The bytes of the tree.
    pub fn finish(self) -> Vec<u8> {
        let head = Head {
            magic: *MAGIC,
            files: U32::new(self.files.len() as u32),
            entries: U32::new(self.entries.len() as u32),
            names_length: U64::new(self.names.len() as u64),
        };
        let mut to = Writer::new();
        to.plain(&head).raw(self.files.as_bytes()).raw(self.entries.as_bytes()).raw(&self.names);
        to.bytes
    }

    fn push(&mut self, name: &[u8], kind: u8, mtime_s: i64) -> usize {
        self.entries.push(Entry {
            name_offset: U64::new(self.names.len() as u64),
            name_length: U16::new(name.len() as u16),
            kind,
            executable: 0,
            file: U32::new(NO_FILE),
            first: U64::new(0),
            length: U64::new(0),
            mtime_s: I64::new(mtime_s),
            reserved: U64::new(0),
            hash: Hash::NIL,
        });
        self.names.extend_from_slice(name);
        self.entries.len() - 1
    }
}
