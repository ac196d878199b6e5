//! A file in a cache, whole or in part: which of its blocks are right, and how it comes to be whole.
//!
//! A block here is like a witness: it is absent, it is claimed by somebody whom nobody has questioned yet, or it has been
//! heard and believed. Whatever an earlier process left is only claimed: the extents of a sparse file, or a whole one under its
//! name. It is checked against the outline before a byte of it is served, so that a crash, a torn write and rot are one
//! case, and nothing of a cache ever needs to be durable. And when the file does not look as our own last act left it,
//! somebody else has been at it, and all that was believed is a claim again.
//!
//! What a storage node on this machine has need not be brought: it is read where it lies, borrowed, after the same questions.
//! Nothing is ever written there: whoever has to write begins a file of its own.

use std::collections::VecDeque;
use std::fs::{self, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, UNIX_EPOCH};

use wire::limit::BLOCK_SIZE;
use wire::{FileId, Hash};

use super::disk::Disk;
use super::layout::Layout;
use super::{Committed, Expected, Store, StoreError, held};
use crate::{Outline, OutlineError, blocks, hash_bytes, outline_file};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Smaller files are brought all the same: what is whole here outlives its lender.
const BORROWED_SIZE_MIN: u64 = 8 * BLOCK;
/// Files of a cache that are kept open although nobody may be reading them: a job may have 10,000 inputs, a process fewer
/// descriptors.
const OPEN_FILES_MAX: usize = 256;
/// When every sealed file of a cache was last modified: 1980-01-02, so that archivers which know no earlier time take it in
/// every zone.
pub const SEALED_AT: Duration = Duration::from_secs(315_619_200);

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    Absent,
    /// The disk says that it is here, and nobody has looked.
    Claimed,
    /// It was right when it was looked at, and nobody is known to have touched it since.
    Held,
}

/// What a block that came has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    More,
    /// Every block is held.
    Last,
}

/// One file of a cache. Every method may be called from any thread.
#[derive(Debug)]
pub struct Cached {
    pub file: FileId,
    /// Of the whole file.
    pub length: u64,
    expected: Expected,
    /// Where it lies when it is sealed; it is looked at often.
    named: PathBuf,
    /// Where it lies when it is borrowed. Once it has been given back it is not borrowed again.
    borrowed: OnceLock<PathBuf>,
    /// As it turned out to be.
    hash: OnceLock<Hash>,
    outline: OnceLock<Outline>,
    /// One bit per block, changed only under `state`. No block is in both.
    held: Box<[AtomicU64]>,
    claimed: Box<[AtomicU64]>,
    state: Mutex<State>,
    /// How often somebody else turned out to have changed its bytes.
    intrusions: AtomicU64,
    /// Apart, so that whoever reads never waits for a write.
    open: Mutex<Weak<File>>,
    surroundings: Arc<Surroundings>,
}

/// What all files of one cache share.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) disk: Arc<Disk>,
    pub(super) layout: Layout,
    /// Of stores on this machine that files are borrowed from.
    pub(super) lenders: OnceLock<Vec<Layout>>,
    /// Opened last at the back.
    pub(super) open: Mutex<VecDeque<(FileId, Arc<File>)>>,
}

#[derive(Debug)]
struct State {
    place: Place,
    /// As our last act left it.
    look: Option<Look>,
    /// How often somebody else turned out to have been at it.
    doubts: u64,
    blocks_held: u64,
}

/// Where the file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Sparse, under `partial/`, or nowhere yet.
    Partial,
    /// Under its name.
    Sealed,
    /// Under its name, and some of it was wrong and is being put right.
    Mending,
    /// In another store: it is only read.
    Borrowed,
}

/// How a file looks that nobody has touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same; nobody can set it, and a change of links or rights counts too.
    changed: (i64, i64),
}

/// What was believed of a file when somebody got it to read it unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Belief {
    intrusions: u64,
    /// `None` = it was not sealed yet.
    sealed: Option<Look>,
    is_borrowed: bool,
}

impl Belief {
    pub fn is_of_sealed(&self) -> bool {
        self.sealed.is_some()
    }
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether only links or rights can have changed between the two, if nobody has put the time back.
    fn has_content_of(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }
}

impl Cached {
    /// What the disk has of a file; all of it is claimed.
    pub(super) fn open(
        file: FileId,
        length: u64,
        expected: Expected,
        is_named: bool,
        surroundings: &Arc<Surroundings>,
    ) -> Result<Self, StoreError> {
        let words = || (0..blocks(length).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let place = if is_named { Place::Sealed } else { Place::Partial };
        let cached = Self {
            file,
            length,
            expected,
            named: surroundings.layout.of(file).1,
            borrowed: OnceLock::new(),
            hash: OnceLock::new(),
            outline: OnceLock::new(),
            held: words(),
            claimed: words(),
            state: Mutex::new(State { place, look: None, doubts: 0, blocks_held: 0 }),
            intrusions: AtomicU64::new(0),
            open: Mutex::default(),
            surroundings: surroundings.clone(),
        };
        let path = cached.path(place);
        match fs::metadata(&path) {
            Ok(_) if is_named => cached.claim(0..length),
            Ok(_) => extents(&File::open(&path)?, |extent| cached.claim(extent))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        // One that is not the file's is as good as none.
        let kept = if length <= BLOCK { Vec::new() } else { fs::read(path.with_extension("out")).unwrap_or_default() };
        let _ = cached.learn(&kept);
        Ok(cached)
    }

    pub fn state(&self, block: u64) -> BlockState {
        let is_in = |words: &[AtomicU64]| {
            words.get((block / 64) as usize).is_some_and(|word| word.load(Ordering::Acquire) >> (block % 64) & 1 == 1)
        };
        match (is_in(&self.held), is_in(&self.claimed)) {
            (true, _) => BlockState::Held,
            (false, true) => BlockState::Claimed,
            (false, false) => BlockState::Absent,
        }
    }

    /// Whether every byte of the range, as far as the file has such bytes, is held.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length).min(self.length);
        (offset / BLOCK..end.div_ceil(BLOCK)).all(|block| self.state(block) == BlockState::Held)
    }

    /// Whether every block is held. Asked at every read, so it waits for nobody.
    pub fn is_whole(&self) -> bool {
        let held: u64 = self.held.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum();
        held == blocks(self.length)
    }

    /// Whether the file is whole under its name and looks as it did when it was found right: then it may be opened by
    /// whoever is to read it unchecked. Where it looks different, what was held is claimed from now on.
    pub fn is_sealed(&self) -> bool {
        self.believed().is_of_sealed()
    }

    /// The same, with what tells later whether it has stayed so.
    pub fn believed(&self) -> Belief {
        // Whoever writes just now looks for itself; a file that is being filled is not worth waiting for.
        let state = if self.holds(0, u64::MAX) { Ok(self.locked()) } else { self.state.try_lock() };
        let (mut sealed, mut is_borrowed) = (None, false);
        if let Ok(mut state) = state
            && self.settle(&mut state).is_ok()
        {
            sealed = state.look.filter(|_| self.is_sealed_in(&state));
            is_borrowed = state.place == Place::Borrowed;
        }
        Belief { intrusions: self.intrusions.load(Ordering::Acquire), sealed, is_borrowed }
    }

    /// Reads the file where a store on this machine has it, if nothing of it is here: then all of it is claimed. False =
    /// nobody lends it.
    pub fn borrow(&self) -> Result<bool, StoreError> {
        let mut state = self.locked();
        self.settle(&mut state)?;
        if state.place != Place::Partial || state.look.is_some() || self.length < BORROWED_SIZE_MIN {
            return Ok(state.place == Place::Borrowed);
        }
        let lenders = self.surroundings.lenders.get().map_or(&[][..], Vec::as_slice);
        let is_it = |path: &PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == self.length)
        };
        let Some(path) = lenders.iter().map(|lender| lender.of(self.file).1).find(is_it) else { return Ok(false) };
        // Its outline lies beside it, and is checked like any other.
        let outline = fs::read(path.with_extension("out")).unwrap_or_default();
        if self.borrowed.set(path).is_err() {
            return Ok(false);
        }
        state.place = Place::Borrowed;
        self.settle(&mut state)?;
        (0..blocks(self.length)).for_each(|block| self.mark(&mut state, block, BlockState::Claimed));
        drop(state);
        let _ = self.learn(&outline);
        Ok(true)
    }

    pub(super) fn is_borrowed(&self) -> bool {
        self.locked().place == Place::Borrowed
    }

    /// Whether somebody else has changed the bytes of the file since that was believed, or has put another in its place: what
    /// was read unchecked meanwhile may be wrong. Links, and who may read it, may have changed. It waits for nobody, but where
    /// the file was not sealed for a block that is being written.
    pub fn was_changed_since(&self, belief: &Belief) -> bool {
        let is_as_it_was = match &belief.sealed {
            Some(sealed) => {
                let borrowed = self.borrowed.get().filter(|_| belief.is_borrowed);
                let found = fs::symlink_metadata(borrowed.unwrap_or(&self.named));
                found.is_ok_and(|found| Look::of(&found).has_content_of(sealed))
            }
            None => self.settle(&mut self.locked()).is_ok(),
        };
        // After the look: what was put right again meanwhile was counted before.
        !is_as_it_was || self.intrusions.load(Ordering::Acquire) != belief.intrusions
    }

    /// The same, and links and rights have not changed either: where nobody gives links away, whoever has put the time back has
    /// changed at least that.
    pub fn was_touched_since(&self, belief: &Belief) -> bool {
        let is_as_it_was = belief.sealed.is_none_or(|sealed| {
            let borrowed = self.borrowed.get().filter(|_| belief.is_borrowed);
            fs::symlink_metadata(borrowed.unwrap_or(&self.named)).is_ok_and(|found| Look::of(&found) == sealed)
        });
        !is_as_it_was || self.was_changed_since(belief)
    }

    /// The hash of the whole file, once it is certain.
    pub fn hash(&self) -> Option<Hash> {
        self.hash.get().copied()
    }

    /// What its blocks have to be; a file of one block always has one.
    pub fn outline(&self) -> Option<&Outline> {
        self.outline.get()
    }

    /// Takes the outline, which may come from anybody, and keeps it beside the file.
    pub fn take_outline(&self, bytes: &[u8]) -> Result<(), OutlineError> {
        let is_new = self.outline.get().is_none();
        self.learn(bytes)?;
        let place = self.locked().place;
        if is_new && !bytes.is_empty() && place != Place::Borrowed {
            let temporary = self.layout().staging().join(format!("{}.out", self.file));
            let kept = self
                .disk()
                .make_directory(&self.layout().partial())
                .and_then(|()| self.disk().replace(&temporary, &self.path(place).with_extension("out"), bytes));
            if let Err(error) = kept {
                tracing::warn!(%error, file = %self.file, "its outline is not kept");
            }
        }
        Ok(())
    }

    /// Fills `bytes` with what is at `offset`; whoever asks has seen that it is held.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file()?.read_exact_at(bytes, offset)
    }

    /// The file itself, to be read only.
    pub fn file(&self) -> io::Result<Arc<File>> {
        if let Some(file) = held(&self.open).upgrade() {
            return Ok(file);
        }
        let state = self.locked();
        let is_written = matches!(state.place, Place::Partial | Place::Mending);
        let file = OpenOptions::new().read(true).write(is_written).open(self.path(state.place))?;
        Ok(self.keep_open(file))
    }

    /// Takes a block, if its bytes are right; wrong ones are an error, and nothing is written.
    pub fn fill(&self, block: u64, bytes: &[u8]) -> Result<Filled, StoreError> {
        let outline = self.outline.get().ok_or(StoreError::OutlineUnknown(self.file))?;
        if !outline.holds(block, bytes) {
            return Err(StoreError::Mismatch(format!("block {block} of {} is not what came", self.file)));
        }
        let mut state = self.locked();
        self.settle(&mut state)?;
        if self.state(block) != BlockState::Held {
            let file = self.writable(&mut state)?;
            let written = self.disk().write(&file, bytes, block * BLOCK);
            // Also after an error: something may have been written.
            state.look = Some(Look::of(&file.metadata()?));
            written?;
            self.mark(&mut state, block, BlockState::Held);
            self.learn_hash(outline, bytes);
            if state.blocks_held == blocks(self.length).div_ceil(2) && blocks(self.length) > 2 {
                // What is half here will be read to its end. A disk that has no room for it says so when it is full.
                let _ = self.disk().preallocate(&file, self.length);
                state.look = Some(Look::of(&file.metadata()?));
            }
        }
        Ok(if state.blocks_held == blocks(self.length) { Filled::Last } else { Filled::More })
    }

    /// Reserves room for all of it, for whoever means to fetch all of it: then it lies in one piece.
    pub fn reserve(&self) -> Result<(), StoreError> {
        let mut state = self.locked();
        self.settle(&mut state)?;
        let file = self.writable(&mut state)?;
        let reserved = self.disk().preallocate(&file, self.length);
        state.look = Some(Look::of(&file.metadata()?));
        Ok(reserved?)
    }

    /// Looks at a claimed block: afterwards it is held (true) or absent, or still claimed where somebody else wrote meanwhile.
    pub fn recheck(&self, block: u64) -> Result<bool, StoreError> {
        let outline = self.outline.get().ok_or(StoreError::OutlineUnknown(self.file))?;
        let doubts = {
            let mut state = self.locked();
            self.settle(&mut state)?;
            if self.state(block) != BlockState::Claimed {
                return Ok(self.state(block) == BlockState::Held);
            }
            state.doubts
        };
        let mut bytes = vec![0; (self.length - block * BLOCK).min(BLOCK) as usize];
        let is_right = match self.read_at(&mut bytes, block * BLOCK) {
            Ok(()) => outline.holds(block, &bytes),
            // Something cut it short, or the disk cannot read it.
            Err(_) => false,
        };
        let mut state = self.locked();
        self.settle(&mut state)?;
        if state.doubts != doubts || self.state(block) != BlockState::Claimed {
            return Ok(self.state(block) == BlockState::Held);
        }
        if is_right {
            self.mark(&mut state, block, BlockState::Held);
            self.learn_hash(outline, &bytes);
        } else {
            tracing::warn!(file = %self.file, block, "a cached block is not what it should be and is fetched again");
            // Not what an earlier process left: that nobody has read yet.
            if state.doubts > 1 {
                self.intrusions.fetch_add(1, Ordering::AcqRel);
            }
            self.mark(&mut state, block, BlockState::Absent);
        }
        Ok(is_right)
    }

    /// Looks at everything that is claimed; whether the file is sealed and right then. It also gets the age of all sealed
    /// files, which whoever gets a link to it sees.
    pub fn check(&self) -> Result<bool, StoreError> {
        {
            let mut state = self.locked();
            self.settle(&mut state)?;
            if self.is_sealed_in(&state) {
                return Ok(true);
            }
            if state.place == Place::Sealed && state.look.is_some() {
                self.seal_file(&mut state, &self.path(Place::Sealed))?;
            }
        }
        if self.outline.get().is_none() && !self.outline_of_claims()? {
            return Ok(false);
        }
        for block in 0..blocks(self.length) {
            if !self.recheck(block)? {
                return Ok(false);
            }
        }
        Ok(self.is_sealed())
    }

    /// Lets `place` link or copy the sealed file; `None` = it is not as it was, and what was placed is not to be used.
    pub fn place(&self, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<Option<Belief>> {
        // Held all the while: two links at once would each look like a change to the other.
        let mut state = self.locked();
        self.settle(&mut state)?;
        let Some(before) = state.look.filter(|_| self.is_sealed_in(&state)) else { return Ok(None) };
        let path = self.path(state.place);
        place(&path)?;
        let after = Look::of(&fs::symlink_metadata(&path)?);
        if after.has_content_of(&before) {
            state.look = Some(after);
        }
        self.settle(&mut state)?;
        let sealed = state.look.filter(|_| self.is_sealed_in(&state));
        let (intrusions, is_borrowed) = (self.intrusions.load(Ordering::Acquire), state.place == Place::Borrowed);
        Ok(sealed.map(|sealed| Belief { intrusions, sealed: Some(sealed), is_borrowed }))
    }

    pub(super) fn seal(&self, store: &Store) -> Result<Committed, StoreError> {
        let _publishing = held(&store.publishing);
        let mut state = self.locked();
        self.settle(&mut state)?;
        let (true, Some(hash)) = (state.blocks_held == blocks(self.length), self.hash()) else {
            let here = state.blocks_held;
            return Err(StoreError::Mismatch(format!("{here} of {} blocks are here", blocks(self.length))));
        };
        let committed = Committed { file: self.file, hash, length: self.length, already_there: false };
        if matches!(state.place, Place::Sealed | Place::Borrowed) {
            return Ok(Committed { already_there: true, ..committed });
        }
        let from = self.path(state.place);
        self.disk().set_hash(&*self.writable(&mut state)?, hash)?;
        self.seal_file(&mut state, &from)?;
        let (directories, to) = self.layout().of(self.file);
        if from != to {
            for directory in std::iter::once(&self.layout().files()).chain(&directories) {
                self.disk().make_directory(directory)?;
            }
            let outline = from.with_extension("out");
            if self.disk().rename(&outline, &to.with_extension("out")).is_err() {
                // Without it the file is only slower.
                let _ = self.disk().remove(&outline);
            }
            self.disk().rename(&from, &to)?;
        }
        state.place = Place::Sealed;
        self.close();
        state.look = Some(Look::of(&fs::symlink_metadata(&to)?));
        held(&store.files).insert(self.file, self.length);
        Ok(committed)
    }

    /// Believes a sealed file that was verified just now and that nobody else has seen.
    pub(super) fn believe(&self, hash: Hash) -> Result<(), StoreError> {
        let mut state = self.locked();
        self.settle(&mut state)?;
        self.seal_file(&mut state, &self.path(Place::Sealed))?;
        (0..blocks(self.length)).for_each(|block| self.mark(&mut state, block, BlockState::Held));
        let _ = self.hash.set(hash);
        Ok(())
    }

    /// Whether this is what is asked for, as far as is known.
    pub(super) fn may_be(&self, hash: Option<Hash>, length: u64) -> bool {
        self.length == length
            && hash.is_none_or(|asked| self.hash().map_or(self.expected == Expected::Hash(asked), |is| is == asked))
    }

    fn learn(&self, bytes: &[u8]) -> Result<(), OutlineError> {
        let outline = Outline::decode(bytes, self.length, self.expected)?;
        if self.length > BLOCK
            && let Some(root) = outline.root()
        {
            let _ = self.hash.set(root);
        }
        let _ = self.outline.set(outline);
        Ok(())
    }

    /// Takes the hash of a file of one block from its block, which is right.
    fn learn_hash(&self, outline: &Outline, block: &[u8]) {
        if self.hash.get().is_none() {
            let _ = self.hash.set(outline.root().unwrap_or_else(|| hash_bytes(block)));
        }
    }

    /// Makes the outline from what is claimed, where all is and it is right.
    fn outline_of_claims(&self) -> Result<bool, StoreError> {
        let is_complete = (0..blocks(self.length)).all(|block| self.state(block) != BlockState::Absent);
        if !is_complete {
            return Ok(false);
        }
        let path = self.path(self.locked().place);
        let outline = outline_file(File::open(path)?)?;
        if outline.length() == self.length && self.take_outline(&outline.encode()).is_ok() {
            return Ok(true);
        }
        let mut state = self.locked();
        (0..blocks(self.length)).for_each(|block| self.mark(&mut state, block, BlockState::Absent));
        Ok(false)
    }

    /// Finds out whether somebody else has been at the file.
    fn settle(&self, state: &mut State) -> io::Result<()> {
        let look = match fs::symlink_metadata(self.path(state.place)) {
            Ok(metadata) => Some(Look::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if look == state.look {
            return Ok(());
        }
        // Nobody has a link to what is not whole: there any other change is one of its bytes.
        let has_links = matches!(state.place, Place::Sealed | Place::Borrowed);
        let is_same = |known: Look| look.is_some_and(|look| has_links && look.has_content_of(&known));
        if state.look.is_some_and(|known| !is_same(known)) {
            self.intrusions.fetch_add(1, Ordering::AcqRel);
        }
        if state.look.map(|look| look.inode) != look.map(|look| look.inode) {
            self.close();
        }
        for (held, claimed) in self.held.iter().zip(&self.claimed) {
            let were_held = held.swap(0, Ordering::AcqRel);
            match look {
                Some(_) => claimed.fetch_or(were_held, Ordering::AcqRel),
                None => claimed.swap(0, Ordering::AcqRel),
            };
        }
        if look.is_none() {
            state.place = Place::Partial;
        }
        state.look = look;
        state.doubts += 1;
        state.blocks_held = 0;
        if state.place != Place::Partial && look.is_some_and(|look| look.length != self.length) {
            // Whoever brings its last block makes it as long as it has to be.
            self.mark(state, blocks(self.length) - 1, BlockState::Absent);
        }
        Ok(())
    }

    /// The file open for writing and as long as it has to be; made if need be.
    fn writable(&self, state: &mut State) -> io::Result<Arc<File>> {
        if state.place == Place::Borrowed {
            // It is given back, and with it all that was believed of it.
            self.close();
            state.place = Place::Partial;
            (0..blocks(self.length)).for_each(|block| self.mark(state, block, BlockState::Absent));
            state.look = None;
        }
        if state.place == Place::Sealed {
            fs::set_permissions(self.path(Place::Sealed), Permissions::from_mode(0o600))?;
            state.place = Place::Mending;
            self.close();
        }
        let open = held(&self.open).upgrade();
        let file = match open {
            Some(file) => file,
            None => {
                self.disk().make_directory(&self.layout().partial())?;
                let file = self.disk().open(&self.path(state.place))?;
                self.keep_open(file)
            }
        };
        if file.metadata()?.len() != self.length {
            self.disk().truncate(&file, self.length)?;
        }
        Ok(file)
    }

    fn keep_open(&self, file: File) -> Arc<File> {
        let file = Arc::new(file);
        *held(&self.open) = Arc::downgrade(&file);
        let mut open = held(&self.surroundings.open);
        if open.len() == OPEN_FILES_MAX {
            open.pop_front();
        }
        open.push_back((self.file, file.clone()));
        file
    }

    fn close(&self) {
        *held(&self.open) = Weak::new();
        held(&self.surroundings.open).retain(|(file, _)| *file != self.file);
    }

    /// Takes the right to write away and gives it the age of all sealed files.
    fn seal_file(&self, state: &mut State, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        self.disk().seal(&file)?;
        file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + SEALED_AT))?;
        state.look = Some(Look::of(&file.metadata()?));
        Ok(())
    }

    fn mark(&self, state: &mut State, block: u64, to: BlockState) {
        let (at, bit) = ((block / 64) as usize, 1 << (block % 64));
        if self.held[at].fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            state.blocks_held -= 1;
        }
        self.claimed[at].fetch_and(!bit, Ordering::AcqRel);
        match to {
            BlockState::Held => {
                self.held[at].fetch_or(bit, Ordering::AcqRel);
                state.blocks_held += 1;
            }
            BlockState::Claimed => {
                self.claimed[at].fetch_or(bit, Ordering::AcqRel);
            }
            BlockState::Absent => {}
        }
    }

    /// Claims the blocks that lie wholly in the range.
    fn claim(&self, range: std::ops::Range<u64>) {
        let end = if range.end >= self.length { blocks(self.length) } else { range.end / BLOCK };
        let mut state = self.locked();
        (range.start.div_ceil(BLOCK)..end).for_each(|block| self.mark(&mut state, block, BlockState::Claimed));
    }

    pub(super) fn is_named(&self) -> bool {
        matches!(self.locked().place, Place::Sealed | Place::Mending)
    }

    fn is_sealed_in(&self, state: &State) -> bool {
        matches!(state.place, Place::Sealed | Place::Borrowed) && state.blocks_held == blocks(self.length)
    }

    fn path(&self, place: Place) -> PathBuf {
        match place {
            Place::Partial => self.layout().part_of(self.file),
            Place::Sealed | Place::Mending => self.named.clone(),
            Place::Borrowed => self.borrowed.get().expect("it was set before").clone(),
        }
    }

    fn disk(&self) -> &Disk {
        &self.surroundings.disk
    }

    fn layout(&self) -> &Layout {
        &self.surroundings.layout
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        held(&self.state)
    }
}

/// The parts of a sparse file that have been written. Where the filesystem cannot tell, that is all of it.
fn extents(file: &File, mut take: impl FnMut(std::ops::Range<u64>)) -> io::Result<()> {
    let seek = |from: u64, whence: libc::c_int| {
        // SAFETY: the descriptor is open; no memory is passed.
        match unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) } {
            -1 => Err(io::Error::last_os_error()),
            found => Ok(found as u64),
        }
    };
    let mut at = 0;
    loop {
        let start = match seek(at, libc::SEEK_DATA) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            start => start?,
        };
        at = seek(start, libc::SEEK_HOLE)?;
        take(start..at);
    }
}
