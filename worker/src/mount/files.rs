//! Opens and reads: how a question of the kernel is answered, whichever package brings it.
//!
//! Names and lengths are answered from memory, at once. Bytes of a file that is whole in the cache are none of our business
//! where the kernel can read past us; elsewhere they are read and handed over, and the kernel keeps them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use content::{Belief, BlockState, Cached, FetchError, Fetching, Need, Wanted};
use wire::FileId;

use super::kernel::Kernel;
use super::parking::{Arrival, Parking};
use super::policy::{Facts, Handles, Recency, Way};
use super::view::{Content, Looked, View};
use super::{Counts, Missed};
use crate::slot::{Below, below_which_child};
use crate::supply::{Block, Shelf, Supplier};

/// How long an open or a look for a file by its id may take: whoever waits there cannot be ended.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Files that nobody has open and that stay known to the kernel all the same: to open one again is cheaper.
const KEPT_MAX: usize = 1024;

/// What the answers come from. It outlives the connection to the kernel, which may have to be made anew.
pub(super) struct Shared<K: Kernel> {
    view: RwLock<View>,
    shelf: Arc<dyn Shelf>,
    supplier: Supplier,
    parking: Arc<Parking>,
    /// How long a read may take.
    read_timeout: Duration,
    /// Who did not get what it was to read. As many as run, or are here.
    pub(super) missed: Mutex<BTreeSet<Missed>>,
    pub(super) counts: Counts,
    pub(super) may_pass: AtomicBool,
    open: Mutex<Open<K>>,
}

/// Who has what open.
struct Open<K: Kernel> {
    next: u64,
    handles: BTreeMap<u64, Arc<Handle>>,
    nodes: BTreeMap<u64, Arc<Mutex<Node<K>>>>,
    /// Nodes that have a backing and nobody who has them open.
    idle: Recency,
    /// Nodes of which the kernel may have pages that are wrong; it drops them at the next open.
    spoiled: BTreeSet<u64>,
}

/// A file that can be read past us.
struct Node<K: Kernel> {
    handles: Handles,
    /// One for all who have it open: the kernel refuses a second. With the cache file that it is.
    backing: Option<(K::Backing, FileNumber)>,
}

impl<K: Kernel> Node<K> {
    fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { handles: Handles::default(), backing: None }))
    }
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

impl<K: Kernel> Shared<K> {
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
            open: Mutex::new(Open::new(0)),
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
        if is_looked_at || !cached.was_touched_since(belief) {
            return;
        }
        let file = handle.content.file;
        let jobs: Vec<Missed> = self.view().jobs_with(file).map(Missed::Job).collect();
        {
            // Whoever finds that it is known already has to find who missed it as well.
            let mut missed = held(&self.missed);
            if handle.is_spoiled.swap(true, Ordering::Relaxed) {
                return;
            }
            missed.extend(jobs);
        }
        tracing::error!(%file, "somebody has written to an input while it was open: whoever reads it has missed it");
        Counts::add(&self.counts.failed, 1);
        held(&self.open).spoiled.insert(handle.inode);
    }

    /// Forgets what an earlier connection had open.
    pub(super) fn begin_anew(&self) {
        let next = held(&self.open).next;
        *held(&self.open) = Open::new(next);
    }

    pub(super) fn open(self: &Arc<Self>, inode: u64, reader: u32, has_waited: bool, opening: K::Opening) {
        let Some(content) = self.view().content(inode) else { return K::refuse_opening(opening, libc::ENOENT) };
        if content.length == 0 {
            return self.opened(opening, Handle::new(inode, content, None, None, None), None);
        }
        // Before anything is believed of it: what goes from the cache then looks as if somebody had been at it.
        let kept = Kept::new(&self.shelf, content.file);
        let cached = match self.shelf.store().cached(content.file, content.hash, content.file_length) {
            Ok(cached) => cached,
            Err(error) => {
                self.failed(content.file, reader, &error);
                return K::refuse_opening(opening, libc::EIO);
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
            return self.opened(opening, handle, None);
        }
        let shared = {
            let mut open = held(&self.open);
            open.idle.remove(inode);
            open.nodes.entry(inode).or_insert_with(Node::new).clone()
        };
        let mut node = held(&shared);
        let mut way = node.handles.decide(facts);
        if way == Way::Wait {
            drop(node);
            return self.open_later(inode, reader, &content, opening);
        }
        if way == Way::Passthrough {
            match self.back(&mut node, &cached, facts.is_sealed, &opening) {
                Backed::Yes => {}
                Backed::Not => way = Way::Cached,
                Backed::Changed => {
                    drop(node);
                    self.failed(content.file, reader, &"somebody wrote to it while it was open");
                    return K::refuse_opening(opening, libc::EIO);
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
        self.opened(opening, handle, node.backing.as_ref().map(|(backing, _)| backing));
    }

    /// Opens when the whole file is here, or has taken too long.
    fn open_later(self: &Arc<Self>, inode: u64, reader: u32, content: &Content, opening: K::Opening) {
        Counts::add(&self.counts.waited, 1);
        let shared = self.clone();
        // If it fails, whoever reads hears why.
        let then = move |_: Result<Arrival<'_>, &FetchError>| shared.open(inode, reader, true, opening);
        self.ask(wanted(content), Need::Whole, OPEN_TIMEOUT, then);
    }

    /// Sees to it that the kernel has the cache file to read.
    fn back(&self, node: &mut Node<K>, cached: &Cached, is_sealed: bool, opening: &K::Opening) -> Backed {
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
        let backed = opened.and_then(|(file, number)| Ok((K::back(opening, &file)?, number)));
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

    fn opened(&self, opening: K::Opening, handle: Handle, backing: Option<&K::Backing>) {
        let way = handle.way();
        let (number, keeps_pages) = {
            let mut open = held(&self.open);
            let keeps_pages = way == Way::Passthrough || !open.spoiled.remove(&handle.inode);
            open.next += 1;
            let number = open.next;
            open.handles.insert(number, Arc::new(handle));
            (number, keeps_pages)
        };
        match (way, backing) {
            (Way::Passthrough, Some(backing)) => {
                Counts::add(&self.counts.passthrough, 1);
                K::opened_past(opening, number, backing);
            }
            (Way::Passthrough | Way::Cached | Way::Wait, _) => {
                Counts::add(&self.counts.cached, 1);
                K::opened(opening, number, keeps_pages);
            }
        }
    }

    pub(super) fn release(&self, number: u64) {
        // Before it is gone from there: whoever looks at all that is open finds it, or what is told of it.
        let handle = held(&self.open).handles.get(&number).cloned();
        handle.iter().for_each(|handle| self.look_at(handle));
        let Some(handle) = held(&self.open).handles.remove(&number) else { return };
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

    pub(super) fn read(self: &Arc<Self>, number: u64, reader: u32, offset: u64, size: u32, mut reading: K::Reading) {
        let handle = held(&self.open).handles.get(&number).cloned();
        let Some(handle) = handle else { return K::refuse_reading(reading, libc::EBADF) };
        let left = handle.content.length.saturating_sub(offset);
        let size = u64::from(size).min(left) as usize;
        let Some((cached, belief)) = handle.cached.as_ref().filter(|_| size > 0) else { return K::read(reading, &[]) };
        let (content, offset) = (handle.content, handle.content.offset + offset);
        if cached.holds(offset, size as u64) {
            match self.hand_over(cached, belief, offset, size, None, reading) {
                Ok(()) => {
                    if !cached.is_whole() {
                        self.supplier.touched(content.file, offset, size as u64);
                    }
                    return;
                }
                // It was removed or changed since it was opened.
                Err((back, error)) => {
                    tracing::debug!(file = %content.file, %error, "a cached file is brought again");
                    reading = back;
                }
            }
        }
        let shared = self.clone();
        let then = move |came: Result<Arrival<'_>, &FetchError>| {
            let came = match came {
                Ok(came) => came,
                Err(why) => {
                    shared.failed(content.file, reader, why);
                    return K::refuse_reading(reading, libc::EIO);
                }
            };
            let handed = match shared.shelf.store().cached(content.file, content.hash, content.file_length) {
                Ok(cached) => shared.hand_over(&cached, &cached.believed(), offset, size, came.at_hand, reading),
                Err(error) => Err((reading, io::Error::other(error))),
            };
            if let Err((reading, error)) = handed {
                shared.failed(content.file, reader, &error);
                K::refuse_reading(reading, libc::EIO);
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
        reading: K::Reading,
    ) -> Result<(), (K::Reading, io::Error)> {
        let covering = came.is_none().then(|| self.supplier.at_hand(cached.file, offset)).flatten();
        let found = came.or(covering.as_ref()).and_then(|block| Some((block, block.covers(offset, size)?)));
        if let Some((block, bytes)) = found {
            K::read(reading, bytes);
            if block.offset + block.bytes.len() as u64 == offset + size as u64 {
                self.supplier.let_go(block);
            }
        } else {
            let mut buffer = BUFFER.take();
            // It grows to the largest request of the kernel, a MiB, and is used for every one after that.
            buffer.resize(buffer.len().max(size), 0);
            let read = cached.read_at(&mut buffer[..size], offset);
            // Looked at after it is read: the kernel keeps what it is told.
            let is_changed = belief.is_of_sealed() && cached.was_touched_since(belief);
            let read = if is_changed { Err(io::Error::other("somebody has written to it")) } else { read };
            if let Err(error) = read {
                return Err((reading, error));
            }
            K::read(reading, &buffer[..size]);
            BUFFER.set(buffer);
        }
        Counts::add(&self.counts.bytes_served, size as u64);
        Ok(())
    }

    pub(super) fn lookup(self: &Arc<Self>, reader: u32, parent: u64, name: &[u8], looking: K::Looking) {
        let looked = self.view().lookup(parent, name);
        match looked {
            Looked::Found(attr) => K::found(looking, Some(&attr)),
            Looked::Absent => K::found(looking, None),
            Looked::NotNow => K::refuse_looking(looking, libc::ENOENT),
            Looked::Ask(file) => self.look_by_id(file, reader, looking),
        }
    }

    /// Shows a file by its id when its length is known.
    fn look_by_id(self: &Arc<Self>, file: FileId, reader: u32, looking: K::Looking) {
        let shared = self.clone();
        let then = move |came: Result<Arrival<'_>, &FetchError>| match came {
            Ok(came) => {
                let attr = shared.view_mut().learn(Content::whole(file, None, came.length));
                K::found(looking, Some(&attr));
            }
            Err(FetchError::FileUnknown(_)) => K::refuse_looking(looking, libc::ENOENT),
            Err(why) => {
                shared.failed(file, reader, why);
                K::refuse_looking(looking, libc::EIO);
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

impl<K: Kernel> Open<K> {
    fn new(next: u64) -> Self {
        let (handles, nodes, spoiled) = Default::default();
        Self { next, handles, nodes, idle: Recency::default(), spoiled }
    }

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

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
