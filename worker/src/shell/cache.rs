//! The cached inputs: whole files that jobs get links to, and whether they still are what they were.
//!
//! A program that is root, or runs as the worker's user, can write to an input, and the link that it writes through leads
//! into the cache. Nothing here forbids it; the next job is not to suffer from it. So each cached file is sealed: its
//! modification time is set to one that no write leaves, and the time of its last change, which nobody can set, is noted
//! behind every link of ours. A file that does not look as noted is read again before it is used again. A link that
//! somebody else makes or removes, we ourselves when a job is forgotten, costs such a reading too and no more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use content::Store;
use wire::{FileId, Hash};

/// When every input was last modified: 1980-01-02, so that archivers which know no earlier time take it in every zone.
pub(super) const SEALED_AT: Duration = Duration::from_secs(315_619_200);

/// How often a file may turn out not to be as it was while it is opened.
const OPENINGS_MAX: u32 = 4;

/// How a file looks that nobody has touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seal {
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same; a change of links or rights counts too.
    changed: (i64, i64),
}

impl Seal {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether only links or rights can have changed between the two, if nobody has put the time back.
    fn has_content_of(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }
}

/// A content store whose files others can write to.
pub(super) struct Cache {
    pub(super) store: Store,
    /// Of this boot: what an earlier one has left is read before it is used.
    seals: Mutex<BTreeMap<FileId, Seal>>,
}

impl Cache {
    pub(super) fn new(store: Store) -> Self {
        Self { store, seals: Mutex::default() }
    }

    /// Whether the content is here. What is not as it was is read again, and is gone if it is wrong.
    pub(super) fn holds(&self, file: FileId, hash: Option<Hash>) -> bool {
        let Ok(path) = self.store.path(file) else { return false };
        let seal = self.seals().get(&file).copied();
        let is_untouched = seal.is_some() && Seal::of(&path).ok() == seal;
        let stat = if is_untouched { self.store.stat(file) } else { self.check(file, &path) };
        stat.is_ok_and(|stat| hash.is_none_or(|hash| hash == stat.hash))
    }

    fn check(&self, file: FileId, path: &Path) -> Result<content::Stat, content::StoreError> {
        tracing::debug!(%file, "a cached file may have been changed and is read");
        self.seals().remove(&file);
        // Before it is read, so that whoever writes to it meanwhile leaves another time.
        let sealed = seal_file(path, false).and_then(|()| Seal::of(path));
        let stat = self.store.check(file)?;
        let (before, after) = (sealed?, Seal::of(path)?);
        if after.has_content_of(&before) {
            self.seals().insert(file, after);
        }
        Ok(stat)
    }

    /// Takes what has just been fetched, and nobody has a link to, as it is.
    pub(super) fn seal(&self, file: FileId) -> Result<(), content::StoreError> {
        let path = self.store.path(file)?;
        if let Entry::Vacant(vacant) = self.seals().entry(file) {
            seal_file(&path, false)?;
            vacant.insert(Seal::of(&path)?);
        }
        Ok(())
    }

    /// Lets `place` link or copy the file; false = it is not as it was, and what was placed is not to be used.
    pub(super) fn place(&self, file: FileId, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
        // Held all the while: two links at once would each look like a change to the other.
        let mut seals = self.seals();
        let (Some(seal), Ok(path)) = (seals.get_mut(&file), self.store.path(file)) else { return Ok(false) };
        if Seal::of(&path).ok() != Some(*seal) {
            return Ok(false);
        }
        place(&path)?;
        let after = Seal::of(&path)?;
        let is_same = after.has_content_of(seal);
        if is_same {
            *seal = after;
        }
        Ok(is_same)
    }

    /// Opens the file for reading, if it is as it was; what is not is read again first.
    pub(super) fn open(&self, file: FileId, hash: Option<Hash>) -> io::Result<File> {
        for _ in 0..OPENINGS_MAX {
            let mut opened = None;
            let is_placed = self.place(file, |path| {
                opened = Some(File::open(path)?);
                Ok(())
            })?;
            match opened {
                Some(opened) if is_placed => return Ok(opened),
                Some(_) | None if self.holds(file, hash) => {}
                Some(_) | None => return Err(io::Error::other("it is not in the cache")),
            }
        }
        Err(io::Error::other("somebody writes to it again and again"))
    }

    fn seals(&self) -> MutexGuard<'_, BTreeMap<FileId, Seal>> {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the right to write to an input away, and gives it the age of all inputs.
pub(super) fn seal_file(path: &Path, is_executable: bool) -> io::Result<()> {
    let file = File::open(path)?;
    file.set_permissions(Permissions::from_mode(if is_executable { 0o555 } else { 0o444 }))?;
    let modified: SystemTime = UNIX_EPOCH + SEALED_AT;
    file.set_times(FileTimes::new().set_modified(modified))
}

#[cfg(test)]
mod tests {
    use super::*;
    use content::Expected;
    use wire::NodeId;

    fn a_cache(dir: &Path) -> (Cache, FileId) {
        let cache = Cache::new(Store::open(&dir.join("cache"), NodeId([1; 16])).expect("a store"));
        let file = fetch(&cache);
        cache.seal(file).expect("it is here");
        (cache, file)
    }

    fn fetch(cache: &Cache) -> FileId {
        cache.store.begin(1, Some(3)).expect("room");
        cache.store.write(1, 0, b"abc").expect("room");
        cache.store.commit(1, Expected::Anything, 3).expect("it is right").file
    }

    fn link(cache: &Cache, file: FileId, to: &Path) -> bool {
        cache.place(file, |path| fs::hard_link(path, to)).expect("it links")
    }

    /// Writes through a link and leaves everything that can be set as it was.
    fn forge(path: &Path, content: &[u8]) {
        // Older kernels' clock of changes ticks every 10 ms at the least.
        let other = path.with_extension("other");
        let changed = Seal::of(path).expect("it is there").changed;
        while fs::write(&other, "").and_then(|()| Seal::of(&other)).expect("written").changed <= changed {}
        fs::remove_file(&other).expect("removed");
        let modified = fs::metadata(path).expect("it is there").modified().expect("a time");
        fs::set_permissions(path, Permissions::from_mode(0o644)).expect("it is ours");
        fs::write(path, content).expect("written");
        fs::set_permissions(path, Permissions::from_mode(0o444)).expect("it is ours");
        File::open(path).and_then(|file| file.set_times(FileTimes::new().set_modified(modified))).expect("it is ours");
    }

    #[test]
    fn a_file_that_was_written_to_through_its_link_is_not_held() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, file) = a_cache(dir.path());
        let input = dir.path().join("input");
        assert!(link(&cache, file, &input));
        assert!(cache.holds(file, None));
        forge(&input, b"abd");
        assert!(!link(&cache, file, &dir.path().join("next")), "nobody gets it before it is looked at");
        assert!(!cache.holds(file, None));
        assert!(!cache.store.have(file));
        // Whoever wrote keeps what it wrote, and a new one has nothing to do with it.
        assert_eq!(fs::read(&input).expect("it is there"), b"abd");
        assert_eq!(fetch(&cache), file);
        cache.seal(file).expect("it is here");
        forge(&input, b"abe");
        assert!(cache.holds(file, None));
        assert!(link(&cache, file, &dir.path().join("next")));
        assert_eq!(fs::read(dir.path().join("next")).expect("it is there"), b"abc");
    }

    #[test]
    fn a_file_is_held_whose_links_come_and_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, file) = a_cache(dir.path());
        let input = dir.path().join("input");
        for _ in 0..3 {
            assert!(cache.holds(file, None));
            assert!(link(&cache, file, &input));
            let modified = fs::metadata(&input).expect("it is there").modified().expect("a time");
            assert_eq!(modified, UNIX_EPOCH + SEALED_AT);
            fs::remove_file(&input).expect("removed");
        }
        assert!(!cache.holds(file, Some(Hash([9; 32]))), "another content");
    }

    #[test]
    fn a_file_that_is_written_to_while_it_is_placed_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, file) = a_cache(dir.path());
        let copy = dir.path().join("copy");
        let placed = cache.place(file, |path| {
            fs::copy(path, &copy)?;
            fs::set_permissions(path, Permissions::from_mode(0o644))?;
            fs::write(path, b"abd")
        });
        assert!(!placed.expect("it copies"));
        assert!(!cache.holds(file, None));
    }

    #[test]
    fn what_an_earlier_boot_left_is_read_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, file) = a_cache(dir.path());
        let path = cache.store.path(file).expect("it is here");
        drop(cache);
        let reopen = || Cache::new(Store::open(&dir.path().join("cache"), NodeId([1; 16])).expect("a store"));
        let cache = reopen();
        assert!(cache.holds(file, None));
        assert!(link(&cache, file, &dir.path().join("input")));
        drop(cache);
        forge(&path, b"abd");
        assert!(!reopen().holds(file, None));
    }
}
