//! What the mount shows: which names there are, and which bytes stand behind them.
//!
//! ```text
//! 1 /                    2 by-id/<file uuid>          3 job/<job uuid>/in/<path of an input>
//! ```
//!
//! Numbers are like the shelf marks of a library: a book keeps its mark for ever, whoever asks for it, so that the kernel
//! can remember for years what it was told. A file has one number for each way of showing it (whole or a piece, to be run
//! or not), and two jobs that share a file share its number and with it the kernel's pages of it. A tree has a run of
//! numbers, one for each entry, found by counting and not in a table; only its larger files have those of files.
//! Directories of jobs come and go, and no number of theirs comes twice.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use wire::tree::{Entry, EntryKind, PACKED_SIZE_MAX, TreeError};
use wire::{FileId, Hash, JobId, bytes_text};

pub const ROOT: u64 = 1;
pub const BY_ID: u64 = 2;
pub const JOBS: u64 = 3;
/// Below are the fixed ones.
const FIRST: u64 = 16;

/// What a directory of ours has in it for the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    pub inode: u64,
    pub kind: EntryKind,
    /// Bytes of a file or of a symlink's target.
    pub length: u64,
    pub is_executable: bool,
    /// Seconds since 1970.
    pub mtime_s: i64,
}

/// The bytes behind a file that is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Content {
    pub file: FileId,
    /// `None` while only the id says what the bytes are.
    pub hash: Option<Hash>,
    /// Bytes of the stored file.
    pub file_length: u64,
    /// Where what is shown begins in it.
    pub offset: u64,
    /// Bytes that are shown.
    pub length: u64,
}

impl Content {
    pub fn whole(file: FileId, hash: Option<Hash>, length: u64) -> Self {
        Self { file, hash, file_length: length, offset: 0, length }
    }

    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.length == self.file_length
    }
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looked {
    Found(Attr),
    /// It is not there, and will never be.
    Absent,
    /// It is not there now.
    NotNow,
    /// Any stored file can be had by its id; whoever knows its length calls `learn`.
    Ask(FileId),
}

/// Something that a job finds under its inputs.
#[derive(Clone, Debug)]
pub struct Published {
    /// Relative, of names that `wire` has checked.
    pub path: Vec<u8>,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    File { content: Content, is_executable: bool },
    Tree(Arc<Tree>),
}

/// Bytes of a tree, mapped or in memory.
#[derive(Clone)]
pub struct TreeBytes(pub Arc<dyn AsRef<[u8]> + Send + Sync>);

impl AsRef<[u8]> for TreeBytes {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for TreeBytes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} bytes", self.as_ref().len())
    }
}

/// A tree that is shown.
#[derive(Debug)]
pub struct Tree {
    file: FileId,
    tree: wire::tree::Tree<TreeBytes>,
    /// Positions of the files that are stored as files of their own.
    large: Vec<u32>,
}

impl Tree {
    /// Checks the bytes of the stored file `file`.
    pub fn decode(file: FileId, bytes: TreeBytes) -> Result<Self, TreeError> {
        let tree = wire::tree::Tree::decode(bytes)?;
        let is_large = |entry: &Entry| entry.kind() == EntryKind::File && entry.length() > PACKED_SIZE_MAX;
        let large = tree.entries().iter().enumerate().filter(|(_, entry)| is_large(entry));
        let large = large.map(|(at, _)| at as u32).collect();
        Ok(Self { file, tree, large })
    }

    /// The stored files that have the bytes, with their hashes and lengths.
    pub fn files(&self) -> impl Iterator<Item = (FileId, Hash, u64)> {
        self.tree.files().iter().map(|file| (file.file(), file.hash, file.length.get()))
    }

    fn content(&self, entry: &Entry) -> Content {
        let stored = entry.place().and_then(|(at, offset)| Some((self.tree.files().get(at as usize)?, offset)));
        match stored {
            Some((stored, offset)) => Content {
                file: stored.file(),
                hash: Some(stored.hash),
                file_length: stored.length.get(),
                offset,
                length: entry.length(),
            },
            None => Content::whole(FileId::of(entry.hash()), Some(entry.hash()), 0),
        }
    }

    fn attr(&self, entry: &Entry, inode: u64) -> Attr {
        Attr {
            inode,
            kind: entry.kind(),
            length: if entry.kind() == EntryKind::Directory { 0 } else { entry.length() },
            is_executable: entry.is_executable() || entry.kind() == EntryKind::Directory,
            mtime_s: entry.mtime_s(),
        }
    }
}

/// Two inputs of a job cannot be shown under these names.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{path}': another input has this path, or lies on it or below it")]
pub struct PathTaken {
    path: String,
}

/// What has one number, or for a tree a run of them.
#[derive(Debug)]
enum Node {
    /// Ascending by name.
    Directory(Vec<(Vec<u8>, u64)>),
    File {
        content: Content,
        is_executable: bool,
        mtime_s: i64,
    },
    Tree {
        count: u64,
        shown: Option<Shown>,
    },
}

/// A tree that some job has.
#[derive(Debug)]
struct Shown {
    tree: Arc<Tree>,
    /// Numbers of the entries that have those of files.
    large: BTreeMap<u32, u64>,
    uses: u32,
}

#[derive(Debug)]
struct JobView {
    inode: u64,
    directories: Vec<u64>,
    trees: Vec<u64>,
    files: Vec<FileId>,
}

/// All that is shown now, and the numbers of what has ever been.
#[derive(Debug)]
pub struct View {
    next: u64,
    /// When inputs and directories of ours were last modified.
    mtime_s: i64,
    nodes: BTreeMap<u64, Node>,
    /// The times of a tree's entries are its own, so they are part of how a file is shown.
    files: BTreeMap<(FileId, u64, u64, bool, i64), u64>,
    trees: BTreeMap<FileId, u64>,
    jobs: BTreeMap<JobId, JobView>,
    /// How many inputs of jobs are, or are in, the stored file.
    uses: BTreeMap<FileId, u32>,
}

/// A job's directories before they have numbers.
enum Building {
    Directory(BTreeMap<Vec<u8>, Building>),
    Leaf(u64),
}

impl View {
    pub fn new(mtime_s: i64) -> Self {
        Self {
            next: FIRST,
            mtime_s,
            nodes: BTreeMap::new(),
            files: BTreeMap::new(),
            trees: BTreeMap::new(),
            jobs: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }

    /// Shows a job's inputs, which has none that are shown.
    pub fn publish(&mut self, job: JobId, inputs: Vec<Published>) -> Result<(), PathTaken> {
        assert!(!self.jobs.contains_key(&job), "{job} is shown already");
        let mut root = BTreeMap::new();
        let (mut trees, mut files) = (Vec::new(), Vec::new());
        for Published { path, what } in inputs {
            let leaf = match what {
                What::File { content, is_executable } => {
                    files.push(content.file);
                    self.number(content, is_executable, self.mtime_s)
                }
                What::Tree(tree) => {
                    files.push(tree.file);
                    files.extend(tree.files().map(|(file, _, _)| file));
                    let inode = self.show_tree(tree);
                    trees.push(inode);
                    inode
                }
            };
            if place(&mut root, &path, leaf).is_none() {
                trees.into_iter().for_each(|tree| self.hide_tree(tree));
                return Err(PathTaken { path: bytes_text(&path) });
            }
        }
        let mut directories = Vec::new();
        let inputs = self.directory(root, &mut directories);
        let inode = self.add(Node::Directory(vec![(b"in".to_vec(), inputs)]));
        directories.push(inode);
        for file in &files {
            *self.uses.entry(*file).or_default() += 1;
        }
        self.jobs.insert(job, JobView { inode, directories, trees, files });
        Ok(())
    }

    /// Shows the job no longer; returns the stored files that no job has now. A job that is not shown has none.
    pub fn withdraw(&mut self, job: JobId) -> Vec<FileId> {
        let Some(view) = self.jobs.remove(&job) else { return Vec::new() };
        for directory in view.directories {
            self.nodes.remove(&directory);
        }
        view.trees.into_iter().for_each(|tree| self.hide_tree(tree));
        let mut unused = view.files;
        unused.retain(|file| match self.uses.get_mut(file) {
            Some(uses) if *uses > 1 => {
                *uses -= 1;
                false
            }
            Some(_) => self.uses.remove(file).is_some(),
            None => false,
        });
        unused
    }

    /// The jobs that have the stored file among their inputs, by itself or for a tree.
    pub fn jobs_with(&self, file: FileId) -> impl Iterator<Item = JobId> {
        self.jobs.iter().filter(move |(_, view)| view.files.contains(&file)).map(|(job, _)| *job)
    }

    /// Shows a stored file by its id.
    pub fn learn(&mut self, content: Content) -> Attr {
        let inode = self.number(content, false, self.mtime_s);
        self.attr(inode).expect("it has just been numbered")
    }

    pub fn lookup(&self, parent: u64, name: &[u8]) -> Looked {
        match parent {
            ROOT => match name {
                b"by-id" => self.found(BY_ID),
                b"job" => self.found(JOBS),
                _ => Looked::Absent,
            },
            BY_ID => {
                let Some(file) = parsed::<FileId>(name) else { return Looked::Absent };
                let shown = self.whole(file).and_then(|inode| self.attr(inode));
                shown.map_or(Looked::Ask(file), Looked::Found)
            }
            JOBS => {
                let Some(job) = parsed::<JobId>(name) else { return Looked::Absent };
                self.jobs.get(&job).map_or(Looked::NotNow, |view| self.found(view.inode))
            }
            parent => self.lookup_below(parent, name),
        }
    }

    fn lookup_below(&self, parent: u64, name: &[u8]) -> Looked {
        match self.node(parent) {
            Some((_, Node::Directory(children))) => {
                match children.binary_search_by(|(child, _)| child.as_slice().cmp(name)) {
                    Ok(at) => self.found(children[at].1),
                    Err(_) => Looked::Absent,
                }
            }
            Some((base, Node::Tree { shown: Some(shown), .. })) => {
                let tree = &shown.tree.tree;
                let child = tree.entries().get((parent - base) as usize).and_then(|entry| tree.find(entry, name));
                child.map_or(Looked::Absent, |child| self.found(shown.inode(base, child)))
            }
            Some((_, Node::File { .. } | Node::Tree { shown: None, .. })) | None => Looked::NotNow,
        }
    }

    /// What has this number; `None` = nothing that is shown now.
    pub fn attr(&self, inode: u64) -> Option<Attr> {
        let directory =
            Attr { inode, kind: EntryKind::Directory, length: 0, is_executable: true, mtime_s: self.mtime_s };
        if matches!(inode, ROOT | BY_ID | JOBS) {
            return Some(directory);
        }
        match self.node(inode)? {
            (_, Node::Directory(_)) => Some(directory),
            (_, Node::File { content, is_executable, mtime_s }) => Some(Attr {
                inode,
                kind: EntryKind::File,
                length: content.length,
                is_executable: *is_executable,
                mtime_s: *mtime_s,
            }),
            (base, Node::Tree { shown, .. }) => {
                let tree = &shown.as_ref()?.tree;
                Some(tree.attr(tree.tree.entries().get((inode - base) as usize)?, inode))
            }
        }
    }

    /// Where a symlink leads.
    pub fn target(&self, inode: u64) -> Option<&[u8]> {
        let (base, Node::Tree { shown: Some(shown), .. }) = self.node(inode)? else { return None };
        let tree = &shown.tree.tree;
        let entry = tree.entries().get((inode - base) as usize)?;
        (entry.kind() == EntryKind::Symlink).then(|| tree.target(entry))
    }

    /// The bytes behind a file.
    pub fn content(&self, inode: u64) -> Option<Content> {
        match self.node(inode)? {
            (_, Node::File { content, .. }) => Some(*content),
            (base, Node::Tree { shown: Some(shown), .. }) => {
                let entry = shown.tree.tree.entries().get((inode - base) as usize)?;
                (entry.kind() == EntryKind::File).then(|| shown.tree.content(entry))
            }
            (_, Node::Directory(_) | Node::Tree { shown: None, .. }) => None,
        }
    }

    /// What is in a directory from position `from` on, until `add` says that it is full. False = it is no directory.
    pub fn entries(&self, inode: u64, from: u64, add: &mut dyn FnMut(u64, &[u8], &Attr) -> bool) -> bool {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let mut add = |at: usize, name: &[u8], child: u64| {
            let Some(attr) = self.attr(child) else { return false };
            add(at as u64 + 1, name, &attr)
        };
        match inode {
            ROOT => {
                let names: [(&[u8], u64); 2] = [(b"by-id", BY_ID), (b"job", JOBS)];
                let _ = names.iter().enumerate().skip(from).any(|(at, (name, child))| add(at, name, *child));
                return true;
            }
            BY_ID => return true,
            JOBS => {
                let jobs = self.jobs.iter().enumerate().skip(from);
                for (at, (job, view)) in jobs {
                    if add(at, job.to_string().as_bytes(), view.inode) {
                        break;
                    }
                }
                return true;
            }
            _ => {}
        }
        match self.node(inode) {
            Some((_, Node::Directory(children))) => {
                let _ = children.iter().enumerate().skip(from).any(|(at, (name, child))| add(at, name, *child));
                true
            }
            Some((base, Node::Tree { shown: Some(shown), .. })) => {
                let tree = &shown.tree.tree;
                let Some(entry) = tree.entries().get((inode - base) as usize) else { return false };
                for (at, child) in tree.children(entry).enumerate().skip(from) {
                    if add(at, tree.name(&tree.entries()[child]), shown.inode(base, child)) {
                        break;
                    }
                }
                entry.kind() == EntryKind::Directory
            }
            Some((_, Node::File { .. } | Node::Tree { shown: None, .. })) | None => false,
        }
    }

    fn found(&self, inode: u64) -> Looked {
        self.attr(inode).map_or(Looked::NotNow, Looked::Found)
    }

    fn whole(&self, file: FileId) -> Option<u64> {
        let shown = self.files.range((file, 0, 0, false, i64::MIN)..=(file, 0, u64::MAX, false, self.mtime_s));
        let mut shown = shown.filter(|((_, offset, _, is_executable, mtime_s), inode)| {
            let is_whole = matches!(self.nodes.get(inode), Some(Node::File { content, .. }) if content.is_whole());
            is_whole && *offset == 0 && !is_executable && *mtime_s == self.mtime_s
        });
        shown.next().map(|(_, inode)| *inode)
    }

    /// What has the number, and where its run of numbers begins.
    fn node(&self, inode: u64) -> Option<(u64, &Node)> {
        let (base, node) = self.nodes.range(..=inode).next_back()?;
        let count = if let Node::Tree { count, .. } = node { *count } else { 1 };
        (inode - base < count).then_some((*base, node))
    }

    fn add(&mut self, node: Node) -> u64 {
        let inode = self.next;
        self.next += if let Node::Tree { count, .. } = &node { *count } else { 1 };
        self.nodes.insert(inode, node);
        inode
    }

    /// The number of a file that is shown so.
    fn number(&mut self, content: Content, is_executable: bool, mtime_s: i64) -> u64 {
        let key = (content.file, content.offset, content.length, is_executable, mtime_s);
        let Some(inode) = self.files.get(&key).copied() else {
            let inode = self.add(Node::File { content, is_executable, mtime_s });
            self.files.insert(key, inode);
            return inode;
        };
        // Whoever knows more of it than the last has it known.
        if let (Some(Node::File { content: known, .. }), Some(_)) = (self.nodes.get_mut(&inode), content.hash) {
            known.hash = content.hash;
        }
        inode
    }

    fn show_tree(&mut self, tree: Arc<Tree>) -> u64 {
        let count = tree.tree.entries().len() as u64;
        let base = match self.trees.get(&tree.file) {
            Some(base) => *base,
            None => {
                let base = self.add(Node::Tree { count, shown: None });
                self.trees.insert(tree.file, base);
                base
            }
        };
        if let Some(Node::Tree { shown: Some(shown), .. }) = self.nodes.get_mut(&base) {
            shown.uses += 1;
            return base;
        }
        let mut large = BTreeMap::new();
        for at in &tree.large {
            let entry = &tree.tree.entries()[*at as usize];
            large.insert(*at, self.number(tree.content(entry), entry.is_executable(), entry.mtime_s()));
        }
        if let Some(Node::Tree { shown, .. }) = self.nodes.get_mut(&base) {
            *shown = Some(Shown { tree, large, uses: 1 });
        }
        base
    }

    fn hide_tree(&mut self, base: u64) {
        if let Some(Node::Tree { shown, .. }) = self.nodes.get_mut(&base)
            && let Some(uses) = shown.as_mut().map(|shown| &mut shown.uses)
        {
            *uses -= 1;
            if *uses == 0 {
                *shown = None;
            }
        }
    }

    fn directory(&mut self, children: BTreeMap<Vec<u8>, Building>, directories: &mut Vec<u64>) -> u64 {
        let mut numbered = Vec::with_capacity(children.len());
        for (name, child) in children {
            let inode = match child {
                Building::Leaf(inode) => inode,
                Building::Directory(children) => self.directory(children, directories),
            };
            numbered.push((name, inode));
        }
        let inode = self.add(Node::Directory(numbered));
        directories.push(inode);
        inode
    }
}

impl Shown {
    fn inode(&self, base: u64, entry: usize) -> u64 {
        self.large.get(&(entry as u32)).copied().unwrap_or(base + entry as u64)
    }
}

/// Puts a leaf under its path; `None` = something else stands there.
fn place(mut directory: &mut BTreeMap<Vec<u8>, Building>, path: &[u8], leaf: u64) -> Option<()> {
    let mut names = path.split(|byte| *byte == b'/');
    let last = names.next_back()?;
    for name in names {
        let child = directory.entry(name.to_vec()).or_insert_with(|| Building::Directory(BTreeMap::new()));
        match child {
            Building::Directory(children) => directory = children,
            Building::Leaf(_) => return None,
        }
    }
    let is_new = !directory.contains_key(last);
    is_new.then(|| directory.insert(last.to_vec(), Building::Leaf(leaf)))?;
    Some(())
}

/// The id that is written so, and in no other way: a name that the kernel keeps has to be found again.
fn parsed<T: FromStr + ToString>(name: &[u8]) -> Option<T> {
    let id: T = std::str::from_utf8(name).ok()?.parse().ok()?;
    (id.to_string().as_bytes() == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tree::TreeWriter;

    const JOB: JobId = JobId([1; 16]);

    fn content(number: u8, length: u64) -> Content {
        let hash = Hash([number; 32]);
        Content::whole(FileId::of(hash), Some(hash), length)
    }

    fn file(path: &[u8], number: u8) -> Published {
        let what = What::File { content: content(number, 10), is_executable: false };
        Published { path: path.to_vec(), what }
    }

    /// A tree of a small file, a larger one, an empty one, a symlink, and a directory with the small one again.
    fn a_tree() -> Tree {
        let mut to = TreeWriter::new(50);
        let pack = to.add_stored(Hash([8; 32]), 30);
        let whole = to.add_stored(Hash([9; 32]), PACKED_SIZE_MAX + 1);
        to.open_directory(0);
        let deep = to.add_directory(b"d", 51);
        let empty = to.add_file(b"empty", 52, false, 0);
        let large = to.add_file(b"large", 54, true, PACKED_SIZE_MAX + 1);
        to.add_symlink(b"link", 53, b"d/small");
        let small = to.add_file(b"small", 55, false, 7);
        to.close_directory(0);
        to.open_directory(deep);
        let again = to.add_file(b"small", 56, true, 7);
        to.close_directory(deep);
        to.set_content(empty, Hash([7; 32]), None);
        to.set_content(large, Hash([9; 32]), Some((whole, 0)));
        to.set_content(small, Hash([6; 32]), Some((pack, 20)));
        to.set_content(again, Hash([6; 32]), Some((pack, 20)));
        Tree::decode(FileId::of(Hash([5; 32])), TreeBytes(Arc::new(to.finish()))).expect("it is one")
    }

    fn find(view: &View, path: &str) -> Option<Attr> {
        let mut found = view.attr(ROOT);
        for name in path.split('/') {
            found = match view.lookup(found?.inode, name.as_bytes()) {
                Looked::Found(attr) => Some(attr),
                Looked::Absent | Looked::NotNow | Looked::Ask(_) => None,
            };
        }
        found
    }

    fn inputs(job: JobId, path: &str) -> String {
        format!("job/{job}/in/{path}")
    }

    fn names(view: &View, inode: u64, at_once: usize) -> Vec<String> {
        let (mut names, mut from) = (Vec::new(), 0);
        loop {
            let mut taken = 0;
            let is_directory = view.entries(inode, from, &mut |next, name, attr| {
                assert_eq!(view.lookup(inode, name), Looked::Found(*attr));
                if taken == at_once {
                    return true;
                }
                taken += 1;
                from = next;
                names.push(bytes_text(name));
                false
            });
            assert!(is_directory);
            if taken == 0 {
                return names;
            }
        }
    }

    #[test]
    fn inputs_are_found_under_their_names_and_by_their_ids() {
        let mut view = View::new(77);
        let odd = b"a b/\xff\n'\"";
        view.publish(JOB, vec![file(b"x", 1), file(odd, 2), file(b"a b/c", 1)]).expect("no two are the same");
        let x = find(&view, &inputs(JOB, "x")).expect("it is shown");
        assert_eq!((x.kind, x.length, x.mtime_s), (EntryKind::File, 10, 77));
        assert_eq!(view.content(x.inode), Some(content(1, 10)));
        let directory = find(&view, &inputs(JOB, "a b")).expect("it is shown");
        assert!(matches!(view.lookup(directory.inode, &odd[4..]), Looked::Found(attr) if attr.inode != x.inode));
        assert_eq!(find(&view, &inputs(JOB, "a b/c")), Some(x), "the same file under two names");
        assert_eq!(find(&view, &format!("by-id/{}", content(1, 10).file)), Some(x));
        for at_once in [1, 2, 9] {
            assert_eq!(names(&view, directory.inode, at_once), ["c".to_owned(), bytes_text(&odd[4..])]);
            assert_eq!(names(&view, ROOT, at_once), ["by-id", "job"]);
            assert_eq!(names(&view, JOBS, at_once), [JOB.to_string()]);
        }
        assert!(names(&view, BY_ID, 1).is_empty());
        assert!(!view.entries(x.inode, 0, &mut |_, _, _| false));
    }

    #[test]
    fn only_what_can_never_be_is_absent_for_ever() {
        let mut view = View::new(0);
        view.publish(JOB, vec![file(b"x", 1)]).expect("it is one");
        let job = find(&view, &format!("job/{JOB}")).expect("it is shown").inode;
        assert_eq!(view.lookup(job, b"out"), Looked::Absent);
        assert_eq!(view.lookup(ROOT, b"proc"), Looked::Absent);
        assert_eq!(view.lookup(JOBS, b"x"), Looked::Absent);
        assert_eq!(view.lookup(JOBS, JobId([2; 16]).to_string().as_bytes()), Looked::NotNow);
        let upper = FileId([0xab; 16]).to_string().to_uppercase();
        assert_eq!(view.lookup(BY_ID, upper.as_bytes()), Looked::Absent, "it is found under one name");
        assert_eq!(view.lookup(BY_ID, FileId([0xab; 16]).to_string().as_bytes()), Looked::Ask(FileId([0xab; 16])));
        let learnt = view.learn(Content::whole(FileId([0xab; 16]), None, 5));
        assert_eq!(view.lookup(BY_ID, FileId([0xab; 16]).to_string().as_bytes()), Looked::Found(learnt));
    }

    #[test]
    fn jobs_come_and_go_and_files_keep_their_numbers() {
        let mut view = View::new(0);
        view.publish(JOB, vec![file(b"x", 1)]).expect("it is one");
        let (directory, x) = (find(&view, &inputs(JOB, "x")), find(&view, &format!("job/{JOB}")));
        let other = JobId([2; 16]);
        view.publish(other, vec![file(b"y", 1)]).expect("it is one");
        assert_eq!(find(&view, &inputs(other, "y")), directory);
        assert_eq!(view.withdraw(JOB), [], "the other has it");
        assert_eq!(view.withdraw(JOB), []);
        assert_eq!(find(&view, &format!("job/{JOB}")), None);
        assert_eq!(view.attr(x.expect("it was shown").inode), None);
        view.publish(JOB, vec![file(b"x", 1)]).expect("it is one");
        assert_eq!(find(&view, &inputs(JOB, "x")), directory);
        assert_ne!(find(&view, &format!("job/{JOB}")), x);
        assert_eq!(view.withdraw(other), []);
        assert_eq!(view.withdraw(JOB), [content(1, 10).file]);
    }

    #[test]
    fn two_inputs_cannot_have_one_path() {
        let mut view = View::new(0);
        for (first, second) in [(&b"a"[..], &b"a"[..]), (b"a", b"a/b"), (b"a/b", b"a"), (b"a/b/c", b"a/b")] {
            let refused = view.publish(JOB, vec![file(first, 1), file(second, 2)]);
            assert_eq!(refused, Err(PathTaken { path: bytes_text(second) }));
            assert_eq!(find(&view, &format!("job/{JOB}")), None);
        }
    }

    #[test]
    fn a_tree_is_shown_as_what_it_was_made_of() {
        let mut view = View::new(0);
        let tree = Arc::new(a_tree());
        let plain = Published { path: b"t".to_vec(), what: What::Tree(tree.clone()) };
        view.publish(JOB, vec![plain.clone(), file(b"x", 1)]).expect("no two are the same");
        let at = |view: &View, path: &str| find(view, &inputs(JOB, path)).expect("it is shown");
        assert_eq!(names(&view, at(&view, "t").inode, 2), ["d", "empty", "large", "link", "small"]);
        let small = at(&view, "t/small");
        assert_eq!((small.length, small.mtime_s, small.is_executable), (7, 55, false));
        let hash = Hash([8; 32]);
        let expected = Content { file: FileId::of(hash), hash: Some(hash), file_length: 30, offset: 20, length: 7 };
        assert_eq!(view.content(small.inode), Some(expected));
        assert_eq!(view.content(at(&view, "t/d/small").inode), Some(expected));
        assert!(at(&view, "t/d/small").is_executable);
        assert_eq!(view.content(at(&view, "t/empty").inode).map(|content| content.length), Some(0));
        assert_eq!(view.target(at(&view, "t/link").inode), Some(&b"d/small"[..]));
        assert_eq!(view.target(small.inode), None);
        let large = at(&view, "t/large");
        assert!(view.content(large.inode).expect("it is a file").is_whole() && large.is_executable);
        assert_eq!(view.lookup(at(&view, "t/d").inode, b"none"), Looked::Absent);

        // As long as some job has it.
        let other = JobId([2; 16]);
        view.publish(other, vec![plain.clone(), Published { path: b"u".to_vec(), ..plain }]).expect("two names");
        assert_eq!(find(&view, &inputs(other, "u/small")), Some(small));
        assert_eq!(find(&view, &inputs(other, "t/large")), Some(large));
        assert_eq!(view.jobs_with(FileId::of(hash)).collect::<Vec<_>>(), [JOB, other]);
        assert_eq!(view.jobs_with(content(1, 10).file).collect::<Vec<_>>(), [JOB]);
        assert_eq!(view.withdraw(JOB), [content(1, 10).file]);
        assert_eq!(view.attr(small.inode), Some(small));
        assert_eq!(view.withdraw(other).len(), 3, "the tree, its pack and its large file");
        assert_eq!(view.attr(small.inode), None);
        let again = Published { path: b"again".to_vec(), what: What::Tree(tree) };
        view.publish(JOB, vec![again]).expect("it is one");
        assert_eq!(at(&view, "again/small"), small, "the kernel may have pages of it");
    }
}
