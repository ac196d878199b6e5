//! Answers the kernel: the only file that knows the package which talks to it.
//!
//! Names and lengths are answered from memory, at once. Bytes of a file that is whole in the cache are none of our business
//! where the kernel can read past us; elsewhere they are read and handed over, and the kernel keeps them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, UNIX_EPOCH};

use content::{Belief, BlockState, Cached, FetchError, Fetching, Need, Wanted};
use fuser::{
    BackgroundSession, BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request, Session, SessionACL,
};
use wire::limit::MIB;
use wire::tree::EntryKind;
use wire::{FileId, JobId};

use super::parking::{Arrival, Parking};
use super::policy::{Facts, Handles, Recency, Way};
use super::view::{Attr, Content, JOBS, Looked, View};
use super::{Counts, Missed};
use crate::slot::{Below, below_which_child};
use crate::supply::{Block, Shelf, Supplier};

/// Nothing that is shown changes; what goes is taken back by name.
const TTL: Duration = Duration::from_secs(365 * 86_400);
/// How long an open or a look for a file by its id may take: whoever waits there cannot be ended.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Threads that answer.
const THREADS: usize = 3;
/// Requests that the kernel asks for ahead of time, at most.
const BACKGROUND_MAX: u16 = 64;
/// Files that nobody has open and that stay known to the kernel all the same: to open one again is cheaper.
const KEPT_MAX: usize = 1024;
/// File systems above each other that the kernel reads past us: a cache directory must not lie on another such one.
const STACK_DEPTH: u32 = 1;

/// What the answers come from. It outlives the connection to the kernel, which may have to be made anew.
pub(super) struct Shared {
    view: RwLock<View>,
    shelf: Arc<dyn Shelf>,
    supplier: Supplier,
    parking: Arc<Parking>,
    /// How long a read may take.
    read_timeout: Duration,
    /// Who did not get what it was to read. As many as run, or are here.
    pub(super) missed: Mutex<BTreeSet<Missed>>,
    pub(super) counts: Counts,
    may_pass: AtomicBool,
    open: Mutex<Open>,
}

/// Who has what open.
#[derive(Default)]
struct Open {
    next: u64,
    handles: BTreeMap<u64, Arc<Handle>>,
    nodes: BTreeMap<u64, Arc<Mutex<Node>>>,
    /// Nodes that have a backing and nobody who has them open.
    idle: Recency,
    /// Nodes of which the kernel may have pages that are wrong; it drops them at the next open.
    spoiled: BTreeSet<u64>,
}

/// A file that can be read past us.
#[derive(Default)]
struct Node {
    handles: Handles,
    /// One for all who have it open: the kernel refuses a second. With the cache file that it is.
    backing: Option<(BackingId, FileNumber)>,
}

/// What a file is to the file system that it lies on: device and inode.
type FileNumber = (u64, u64);

/// One open file.
struct Handle {
    inode: u64,
    content: Content,
    /// As long as somebody has it open it stays in the cache.
    _kept: Option<Kept>,
    /// `None` = it is empty. With what was believed of it when it was opened.
    cached: Option<(Arc<Cached>, Belief)>,
    /// `None` = it does not count who has it open which way.
    counted: Option<Way>,
    /// It is known that it was changed.
    is_spoiled: AtomicBool,
}

/// Keeps a file in the cache.
struct Kept {
    shelf: Arc<dyn Shelf>,
    file: FileId,
}

impl Kept {
    fn new(shelf: &Arc<dyn Shelf>, file: FileId) -> Self {
        shelf.opened(file);
        Self { shelf: shelf.clone(), file }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.shelf.closed(self.file);
    }
}

impl Shared {
    pub(super) fn new(
        view: View,
        shelf: Arc<dyn Shelf>,
        supplier: Supplier,
        parking: Arc<Parking>,
        read_timeout: Duration,
    ) -> Self {
        Self {
            view: RwLock::new(view),
            shelf,
            supplier,
            parking,
            read_timeout,
            missed: Mutex::default(),
            counts: Counts::default(),
            may_pass: AtomicBool::new(false),
            open: Mutex::default(),
        }
    }

    pub(super) fn supplier(&self) -> &Supplier {
        &self.supplier
    }

    pub(super) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that whoever waits for the file is about to be told that it cannot be read. `reader` = who it is to the kernel.
    fn failed(&self, file: FileId, reader: u32, error: &dyn fmt::Display) {
        tracing::error!(%file, %error, "an input cannot be read");
        Counts::add(&self.counts.failed, 1);
        match below_which_child(reader) {
            Below::Child(child) => drop(held(&self.missed).insert(Missed::Below(child))),
            Below::Nobody => held(&self.missed).extend(self.view().jobs_with(file).map(Missed::Job)),
            // Nobody is told.
            Below::Gone => {}
        }
    }

    /// Looks whether all that is open to be read unchecked is as it was.
    pub(super) fn look_at_open(&self) {
        let open: Vec<Arc<Handle>> = held(&self.open).handles.values().cloned().collect();
        open.iter().for_each(|handle| self.look_at(handle));
    }

    /// Looks whether a file is as it was when it was opened, where what is read is not looked at.
    fn look_at(&self, handle: &Handle) {
        let Some((cached, belief)) = &handle.cached else { return };
        let is_looked_at = belief.is_of_sealed() && handle.way() != Way::Passthrough;
        if is_looked_at || !cached.was_changed_since(belief) || handle.is_spoiled.swap(true, Ordering::Relaxed) {
            return;
        }
        let file = handle.content.file;
        tracing::error!(%file, "somebody has written to an input while it was open: whoever reads it has missed it");
        Counts::add(&self.counts.failed, 1);
        held(&self.open).spoiled.insert(handle.inode);
        held(&self.missed).extend(self.view().jobs_with(file).map(Missed::Job));
    }

    /// Forgets what an earlier connection had open.
    fn begin_anew(&self) {
        let next = held(&self.open).next;
        *held(&self.open) = Open { next, ..Open::default() };
    }

    fn open(self: &Arc<Self>, inode: u64, reader: u32, has_waited: bool, reply: ReplyOpen) {
        let Some(content) = self.view().content(inode) else { return reply.error(Errno::ENOENT) };
        if content.length == 0 {
            return self.opened(reply, Handle::new(inode, content, None, None, None), None);
        }
        // Before anything is believed of it: what goes from the cache then looks as if somebody had been at it.
        let kept = Kept::new(&self.shelf, content.file);
        let cached = match self.shelf.store().cached(content.file, content.hash, content.file_length) {
            Ok(cached) => cached,
            Err(error) => {
                self.failed(content.file, reader, &error);
                return reply.error(Errno::EIO);
            }
        };
        let belief = cached.believed();
        let facts = Facts {
            length: content.length,
            is_piece: !content.is_whole(),
            is_sealed: belief.is_of_sealed(),
            may_pass: self.may_pass.load(Ordering::Relaxed),
            has_waited,
        };
        if !facts.may_ever_pass() {
            let handle = Handle::new(inode, content, Some(kept), Some((cached, belief)), None);
            return self.opened(reply, handle, None);
        }
        let shared = {
            let mut open = held(&self.open);
            open.idle.remove(inode);
            open.nodes.entry(inode).or_default().clone()
        };
        let mut node = held(&shared);
        let mut way = node.handles.decide(facts);
        if way == Way::Wait {
            drop(node);
            return self.open_later(inode, reader, &content, reply);
        }
        if way == Way::Passthrough {
            match self.back(&mut node, &cached, facts.is_sealed, &reply) {
                Backed::Yes => {}
                Backed::Not => way = Way::Cached,
                Backed::Changed => {
                    drop(node);
                    self.failed(content.file, reader, &"somebody wrote to it while it was open");
                    return reply.error(Errno::EIO);
                }
            }
        }
        match way {
            Way::Passthrough => node.handles.passthrough += 1,
            Way::Cached | Way::Wait => node.handles.cached += 1,
        }
        if !facts.is_sealed && is_all_here(&cached) {
            // An earlier boot left it: once it has been looked at it is read past us.
            self.supplier.want(wanted(&content), Fetching::Whole);
        }
        let handle = Handle::new(inode, content, Some(kept), Some((cached, belief)), Some(way));
        // Under the node's lock: nobody may come in between with the other way.
        self.opened(reply, handle, node.backing.as_ref().map(|(backing, _)| backing));
    }

    /// Opens when the whole file is here, or has taken too long.
    fn open_later(self: &Arc<Self>, inode: u64, reader: u32, content: &Content, reply: ReplyOpen) {
        Counts::add(&self.counts.waited, 1);
        let shared = self.clone();
        // If it fails, whoever reads hears why.
        let then = move |_: Result<Arrival<'_>, &FetchError>| shared.open(inode, reader, true, reply);
        self.ask(wanted(content), Need::Whole, OPEN_TIMEOUT, then);
    }

    /// Sees to it that the kernel has the cache file to read.
    fn back(&self, node: &mut Node, cached: &Cached, is_sealed: bool, reply: &ReplyOpen) -> Backed {
        let opened = cached.file().and_then(|file| {
            let metadata = file.metadata()?;
            Ok((file, (metadata.dev(), metadata.ino())))
        });
        let known = node.backing.as_ref().map(|(_, number)| *number);
        if !is_sealed || known.is_some() && opened.as_ref().ok().map(|(_, number)| *number) != known {
            if !node.handles.is_idle() {
                return Backed::Changed;
            }
            node.backing = None;
        }
        if node.backing.is_some() {
            return Backed::Yes;
        }
        let backed = opened.and_then(|(file, number)| Ok((reply.open_backing(&*file)?, number)));
        match backed {
            Ok(backed) => {
                node.backing = Some(backed);
                Backed::Yes
            }
            Err(error) => {
                if self.may_pass.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "the kernel does not read cache files past us: inputs are read through us");
                }
                Backed::Not
            }
        }
    }

    fn opened(&self, reply: ReplyOpen, handle: Handle, backing: Option<&BackingId>) {
        let way = handle.way();
        let mut keep_cache = FopenFlags::FOPEN_KEEP_CACHE;
        let number = {
            let mut open = held(&self.open);
            if way != Way::Passthrough && open.spoiled.remove(&handle.inode) {
                keep_cache = FopenFlags::empty();
            }
            open.next += 1;
            let number = open.next;
            open.handles.insert(number, Arc::new(handle));
            FileHandle(number)
        };
        match (way, backing) {
            (Way::Passthrough, Some(backing)) => {
                Counts::add(&self.counts.passthrough, 1);
                reply.opened_passthrough(number, FopenFlags::FOPEN_NOFLUSH, backing);
            }
            (Way::Passthrough | Way::Cached | Way::Wait, _) => {
                Counts::add(&self.counts.cached, 1);
                reply.opened(number, keep_cache | FopenFlags::FOPEN_NOFLUSH);
            }
        }
    }

    fn release(&self, number: FileHandle) {
        // Before it is gone from there: whoever looks at all that is open finds it, or what is told of it.
        let handle = held(&self.open).handles.get(&number.0).cloned();
        handle.iter().for_each(|handle| self.look_at(handle));
        let Some(handle) = held(&self.open).handles.remove(&number.0) else { return };
        let (inode, Some(way)) = (handle.inode, handle.counted) else { return };
        let Some(shared) = held(&self.open).nodes.get(&inode).cloned() else { return };
        let keeps_backing = {
            let mut node = held(&shared);
            match way {
                Way::Passthrough => node.handles.passthrough -= 1,
                Way::Cached | Way::Wait => node.handles.cached -= 1,
            }
            node.backing.is_some() && node.handles.is_idle()
        };
        drop(shared);
        let mut open = held(&self.open);
        if keeps_backing {
            open.idle.touch(inode);
        }
        let mut gone = open.idle.pop_over(KEPT_MAX);
        if !keeps_backing {
            gone = gone.or(Some(inode));
        }
        if let Some(gone) = gone {
            open.let_go(gone);
        }
    }

    fn read(self: &Arc<Self>, number: FileHandle, reader: u32, offset: u64, size: u32, mut reply: ReplyData) {
        let handle = held(&self.open).handles.get(&number.0).cloned();
        let Some(handle) = handle else { return reply.error(Errno::EBADF) };
        let left = handle.content.length.saturating_sub(offset);
        let size = u64::from(size).min(left) as usize;
        let Some((cached, belief)) = handle.cached.as_ref().filter(|_| size > 0) else { return reply.data(&[]) };
        let (content, offset) = (handle.content, handle.content.offset + offset);
        if cached.holds(offset, size as u64) {
            match self.hand_over(cached, belief, offset, size, None, reply) {
                Ok(()) => {
                    if !cached.is_whole() {
                        self.supplier.touched(content.file, offset, size as u64);
                    }
                    return;
                }
                // It was removed or changed since it was opened.
                Err((back, error)) => {
                    tracing::debug!(file = %content.file, %error, "a cached file is brought again");
                    reply = back;
                }
            }
        }
        let shared = self.clone();
        let then = move |came: Result<Arrival<'_>, &FetchError>| {
            let came = match came {
                Ok(came) => came,
                Err(why) => {
                    shared.failed(content.file, reader, why);
                    return reply.error(Errno::EIO);
                }
            };
            let handed = match shared.shelf.store().cached(content.file, content.hash, content.file_length) {
                Ok(cached) => shared.hand_over(&cached, &cached.believed(), offset, size, came.at_hand, reply),
                Err(error) => Err((reply, io::Error::other(error))),
            };
            if let Err((reply, error)) = handed {
                shared.failed(content.file, reader, &error);
                reply.error(Errno::EIO);
            }
        };
        let need = Need::Range { offset, length: size as u64 };
        self.ask(wanted(&content), need, self.read_timeout, then);
    }

    /// Answers with what the cache holds, from memory where it has just come.
    fn hand_over(
        &self,
        cached: &Cached,
        belief: &Belief,
        offset: u64,
        size: usize,
        came: Option<&Arc<Block>>,
        reply: ReplyData,
    ) -> Result<(), (ReplyData, io::Error)> {
        let covering = came.is_none().then(|| self.supplier.at_hand(cached.file, offset)).flatten();
        let found = came.or(covering.as_ref()).and_then(|block| Some((block, block.covers(offset, size)?)));
        if let Some((block, bytes)) = found {
            reply.data(bytes);
            if block.offset + block.bytes.len() as u64 == offset + size as u64 {
                self.supplier.let_go(block);
            }
        } else {
            let mut buffer = BUFFER.take();
            // It grows to the largest request of the kernel, a MiB, and is used for every one after that.
            buffer.resize(buffer.len().max(size), 0);
            let read = cached.read_at(&mut buffer[..size], offset);
            // Looked at after it is read: the kernel keeps what it is told.
            let is_changed = belief.is_of_sealed() && cached.was_changed_since(belief);
            let read = if is_changed { Err(io::Error::other("somebody has written to it")) } else { read };
            if let Err(error) = read {
                return Err((reply, error));
            }
            reply.data(&buffer[..size]);
            BUFFER.set(buffer);
        }
        Counts::add(&self.counts.bytes_served, size as u64);
        Ok(())
    }

    fn lookup(self: &Arc<Self>, reader: u32, parent: u64, name: &[u8], reply: ReplyEntry) {
        let looked = self.view().lookup(parent, name);
        match looked {
            Looked::Found(attr) => reply.entry(&TTL, &file_attr(&attr), Generation(0)),
            // An entry without a number is one that the kernel remembers as absent.
            Looked::Absent => reply.entry(&TTL, &file_attr(&ABSENT), Generation(0)),
            Looked::NotNow => reply.error(Errno::ENOENT),
            Looked::Ask(file) => self.look_by_id(file, reader, reply),
        }
    }

    /// Shows a file by its id when its length is known.
    fn look_by_id(self: &Arc<Self>, file: FileId, reader: u32, reply: ReplyEntry) {
        let shared = self.clone();
        let then = move |came: Result<Arrival<'_>, &FetchError>| match came {
            Ok(came) => {
                let attr = shared.view_mut().learn(Content::whole(file, None, came.length));
                reply.entry(&TTL, &file_attr(&attr), Generation(0));
            }
            Err(FetchError::FileUnknown(_)) => reply.error(Errno::ENOENT),
            Err(why) => {
                shared.failed(file, reader, why);
                reply.error(Errno::EIO);
            }
        };
        let wanted = Wanted { file, hash: None, length: None };
        self.ask(wanted, Need::Length, OPEN_TIMEOUT, then);
    }

    /// Has `then` called when what is needed is here, or has not come in time.
    fn ask(
        &self,
        wanted: Wanted,
        need: Need,
        timeout: Duration,
        then: impl FnOnce(Result<Arrival<'_>, &FetchError>) + Send + 'static,
    ) {
        let ticket = self.supplier.ticket();
        self.parking.park(ticket, then);
        if !self.supplier.ask(ticket, wanted, need, timeout) {
            let (what, why) = (wanted.file.to_string(), "too many wait already".to_owned());
            self.parking.fail(ticket, &FetchError::Local { what, why });
        }
    }

    /// Ends the fetching of files that no job has, and has the kernel let go of all that nobody has open: whatever of them is
    /// removed gives its room back.
    pub(super) fn forget(&self, unused: &[FileId]) {
        unused.iter().for_each(|file| self.supplier.forget(*file));
        let mut open = held(&self.open);
        while let Some(inode) = open.idle.pop_over(0) {
            open.let_go(inode);
        }
    }
}

thread_local! {
    /// One thread's room for what it hands over.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whether the kernel has the cache file.
enum Backed {
    Yes,
    /// It does not take it.
    Not,
    /// It has another, which is open.
    Changed,
}

fn wanted(content: &Content) -> Wanted {
    Wanted { file: content.file, hash: content.hash, length: Some(content.file_length) }
}

/// Whether all of it is in the cache, though nobody may have looked.
fn is_all_here(cached: &Cached) -> bool {
    (0..content::blocks(cached.length)).all(|block| cached.state(block) != BlockState::Absent)
}

impl Handle {
    fn new(
        inode: u64,
        content: Content,
        kept: Option<Kept>,
        cached: Option<(Arc<Cached>, Belief)>,
        counted: Option<Way>,
    ) -> Self {
        Self { inode, content, _kept: kept, cached, counted, is_spoiled: AtomicBool::new(false) }
    }

    fn way(&self) -> Way {
        self.counted.unwrap_or(Way::Cached)
    }
}

impl Open {
    /// Forgets a node if nobody has it open.
    fn let_go(&mut self, inode: u64) {
        // Whoever has a reference is about to open or to close it, and comes by here again.
        let node = self.nodes.get_mut(&inode).and_then(Arc::get_mut);
        let node = node.map(|node| node.get_mut().unwrap_or_else(PoisonError::into_inner));
        if node.is_some_and(|node| node.handles.is_idle()) {
            self.nodes.remove(&inode);
        }
    }
}

const ABSENT: Attr = Attr { inode: 0, kind: EntryKind::File, length: 0, is_executable: false, mtime_s: 0 };

fn file_attr(attr: &Attr) -> FileAttr {
    let time = match u64::try_from(attr.mtime_s) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(attr.mtime_s.unsigned_abs())).unwrap_or(UNIX_EPOCH),
    };
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.length,
        blocks: attr.length.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: match (attr.kind, attr.is_executable) {
            (EntryKind::Symlink, _) => 0o777,
            (EntryKind::File, false) => 0o444,
            (EntryKind::File | EntryKind::Directory, _) => 0o555,
        },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: MIB as u32,
        flags: 0,
    }
}

fn file_type(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::File => FileType::RegularFile,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
    }
}

/// One connection to the kernel.
struct Files {
    shared: Arc<Shared>,
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_ABORT_ERROR,
        ] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "this kernel cannot");
            }
        }
        let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.shared.may_pass.store(passes, Ordering::Relaxed);
        // A larger or smaller number than we ask for is as good.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(MIB as u32);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.lookup(request.pid(), parent.0, name.as_bytes(), reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.view().attr(inode.0) {
            Some(attr) => reply.attr(&TTL, &file_attr(&attr)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.shared.view().target(inode.0) {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.shared.open(inode.0, request.pid(), false, reply);
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.read(handle, request.pid(), offset, size, reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.release(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps the listing of what does not change.
        let flags = if inode.0 <= JOBS {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let is_directory = self.shared.view().entries(inode.0, offset, &mut |next, name, attr| {
            reply.add(INodeNo(attr.inode), next, file_type(attr.kind), OsStr::from_bytes(name))
        });
        if is_directory { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let is_directory = self.shared.view().entries(inode.0, offset, &mut |next, name, attr| {
            let inode = INodeNo(attr.inode);
            reply.add(inode, next, OsStr::from_bytes(name), &TTL, &file_attr(attr), Generation(0))
        });
        if is_directory { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let block = MIB as u32;
        reply.statfs(0, 0, 0, 0, 0, block, wire::limit::NAME_SIZE_MAX as u32, block);
    }
}

/// A mounted connection; its threads run until it is unmounted.
pub(super) struct Connection {
    session: BackgroundSession,
    /// Has an error as soon as the connection is cut.
    device: OwnedFd,
}

impl Connection {
    /// Mounts at `path`, which is an empty directory.
    pub(super) fn open(path: &Path, source: &str, shared: &Arc<Shared>) -> io::Result<Self> {
        shared.begin_anew();
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::FSName(source.to_owned()),
            MountOption::Subtype("zg".to_owned()),
        ];
        // Programs run under other users.
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = Session::new(Files { shared: shared.clone() }, path, &config)?;
        let device = session.as_fd().try_clone_to_owned()?;
        Ok(Self { session: session.spawn()?, device })
    }

    /// The connection was ended by somebody else.
    pub(super) fn has_ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// The descriptor that has an error as soon as the connection is cut.
    pub(super) fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// What forgets names in the kernel, from any thread but those that answer it.
    pub(super) fn names(&self) -> Names {
        Names(self.session.notifier())
    }

    /// Waits for the threads of a connection that is unmounted.
    pub(super) fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Has the kernel forget names.
pub(super) struct Names(Notifier);

impl Names {
    pub(super) fn forget_job(&self, job: JobId) {
        // The kernel may never have heard of it.
        let _ = self.0.inval_entry(INodeNo(JOBS), OsStr::new(&job.to_string()));
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
