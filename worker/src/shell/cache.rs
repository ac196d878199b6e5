//! The cached inputs: whole files that jobs get links to, and whether they still are what they were.
//!
//! A program that is root, or runs as the worker's user, can write to an input, and the link that it writes through leads
//! into the cache. Nothing here forbids it. The next job is not to suffer from it: `content::Cached` notices, and what turns
//! out to be wrong goes as a whole, because whoever wrote may have it open still. And those that have the link already are
//! found when one of their chunks ends: what it read may not have been its input. A link that somebody else makes or removes,
//! we ourselves when a job is forgotten, costs a reading and no more. What no job needs and nobody has open goes when the
//! cache has grown too large.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use content::{Belief, Cached, Quota, SEALED_AT, Store, StoreError};
use wire::limit::MIB;
use wire::{FileId, Hash, JobId};

use crate::supply::Shelf;

/// As much is removed at a time when the disk is full.
const ROOM_MIN: u64 = 64 * MIB as u64;
/// How often a file may turn out not to be as it was while it is opened.
const OPENINGS_MAX: u32 = 4;

/// A content store whose files others can write to.
pub(super) struct Cache {
    pub(super) store: Store,
    needs: Mutex<Needs>,
    /// What jobs have links to, as it was when they got them.
    lent: Mutex<BTreeMap<JobId, Vec<Lent>>>,
}

type Lent = (Arc<Cached>, Belief);

/// Who needs what.
struct Needs {
    quota: Quota,
    jobs: BTreeMap<JobId, BTreeSet<FileId>>,
}

impl Cache {
    /// Takes the cache that an earlier boot left, as much of it as `size_max` bytes allow.
    pub(super) fn new(store: Store, size_max: u64) -> Result<Self, StoreError> {
        store.empty_trash()?;
        let mut quota = Quota::new(size_max, size_max / 10 * 9);
        for (file, bytes) in store.usage()? {
            quota.set(file, bytes);
        }
        let cache = Self { store, needs: Mutex::new(Needs { quota, jobs: BTreeMap::new() }), lent: Mutex::default() };
        cache.evict(&mut cache.needs());
        Ok(cache)
    }

    /// Whether the content is here. What is not as it was is read again, and is gone if it is wrong.
    pub(super) fn holds(&self, file: FileId, hash: Option<Hash>) -> bool {
        if let Some(borrowed) = self.store.borrowed(file) {
            return hash.is_none() || borrowed.hash() == hash;
        }
        let Ok(stat) = self.store.stat(file) else { return false };
        if hash.is_some_and(|hash| hash != stat.hash) {
            return false;
        }
        match self.store.cached(file, Some(stat.hash), stat.length).and_then(|cached| cached.check()) {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!(%file, "a cached file is not what its name says and is removed");
                self.remove(file);
                false
            }
            Err(error) => {
                tracing::warn!(%file, %error, "a cached file cannot be read");
                false
            }
        }
    }

    /// Takes what has just been committed, and nobody has a link to, as it is.
    #[cfg(test)]
    pub(super) fn seal(&self, file: FileId) -> Result<(), StoreError> {
        let stat = self.store.stat(file)?;
        self.store.cached_new(&content::Committed {
            file,
            hash: stat.hash,
            length: stat.length,
            already_there: false,
        })?;
        let mut needs = self.needs();
        needs.quota.set(file, self.store.size_on_disk(file));
        self.evict(&mut needs);
        Ok(())
    }

    /// Keeps a file, which may not be here yet, as long as the job is known.
    pub(super) fn keep(&self, job: JobId, file: FileId) {
        let mut needs = self.needs();
        if needs.jobs.entry(job).or_default().insert(file) {
            needs.quota.pin(file);
        }
    }

    /// Lets go of what only this job needs.
    pub(super) fn release(&self, job: JobId) {
        self.take_back(job);
        let mut needs = self.needs();
        for file in needs.jobs.remove(&job).unwrap_or_default() {
            needs.quota.unpin(file);
        }
        self.evict(&mut needs);
    }

    /// Lets `place` copy or read the file; false = it is not as it was, and what was placed is not to be used.
    pub(super) fn place(&self, file: FileId, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
        Ok(self.try_place(file, place)?.is_some())
    }

    /// The same where `place` gives the job a link to it, so that it has to stay as it is.
    pub(super) fn lend(
        &self,
        job: JobId,
        file: FileId,
        place: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<bool> {
        let Some(lent) = self.try_place(file, place)? else { return Ok(false) };
        held(&self.lent).entry(job).or_default().push(lent);
        Ok(true)
    }

    /// The job has no links any more.
    pub(super) fn take_back(&self, job: JobId) {
        held(&self.lent).remove(&job);
    }

    /// Of all that these jobs have links to, some may have been changed: returns whoever has such a link.
    pub(super) fn spoiled(&self, jobs: &BTreeSet<JobId>) -> Vec<JobId> {
        let lent = held(&self.lent);
        let is_changed = |(cached, belief): &&Lent| cached.was_changed_since(belief);
        let of_jobs = jobs.iter().filter_map(|job| lent.get(job)).flatten();
        let changed: BTreeSet<FileId> = of_jobs.filter(is_changed).map(|(cached, _)| cached.file).collect();
        for file in &changed {
            tracing::error!(%file, "somebody has written to an input: whoever has it written out has missed it");
        }
        let is_meant = |(cached, _): &&Lent| changed.contains(&cached.file);
        let is_spoiled = |lent: &Vec<Lent>| lent.iter().filter(is_meant).any(|lent| is_changed(&lent));
        lent.iter().filter(|(_, lent)| is_spoiled(lent)).map(|(job, _)| *job).collect()
    }

    fn try_place(&self, file: FileId, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<Option<Lent>> {
        let known = self.store.length(file).and_then(|length| self.store.cached(file, None, length));
        let Some(cached) = known.ok().or_else(|| self.store.borrowed(file)) else { return Ok(None) };
        Ok(cached.place(place)?.map(|belief| (cached, belief)))
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

    /// Removes some of what no job needs; false = there is nothing of the kind.
    pub(super) fn remove_idle(&self) -> bool {
        let mut needs = self.needs();
        let gone = needs.quota.make_room(ROOM_MIN);
        let some = !gone.is_empty();
        self.remove_all(gone);
        some
    }

    fn evict(&self, needs: &mut Needs) {
        self.remove_all(needs.quota.evict());
        if needs.quota.is_full() {
            tracing::warn!(bytes = needs.quota.used(), "the jobs that are here need more than cache_size_max");
        }
    }

    fn remove_all(&self, files: Vec<FileId>) {
        for file in files {
            match self.store.evict(file) {
                Ok(bytes) => tracing::debug!(%file, bytes, "no job needs it, and the room is needed: removed"),
                Err(error) => tracing::warn!(%file, %error, "a cached file cannot be removed"),
            }
        }
    }

    fn remove(&self, file: FileId) {
        let mut needs = self.needs();
        match self.store.evict(file) {
            Ok(_) => needs.quota.remove(file),
            Err(error) => tracing::warn!(%file, %error, "a cached file cannot be removed"),
        }
    }

    fn needs(&self) -> MutexGuard<'_, Needs> {
        held(&self.needs)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf for Cache {
    fn store(&self) -> &Store {
        &self.store
    }

    fn grown(&self, file: FileId) {
        let mut needs = self.needs();
        needs.quota.set(file, self.store.size_on_disk(file));
        self.evict(&mut needs);
    }

    fn opened(&self, file: FileId) {
        self.needs().quota.pin(file);
    }

    fn closed(&self, file: FileId) {
        let mut needs = self.needs();
        needs.quota.unpin(file);
        self.remove_all(needs.quota.evict());
    }

    fn make_room(&self, file: FileId) {
        let mut needs = self.needs();
        needs.quota.pin(file);
        let gone = needs.quota.make_room(ROOM_MIN);
        needs.quota.unpin(file);
        self.remove_all(gone);
    }
}

/// Takes the right to write to an input away, and gives it the age of all inputs.
pub(super) fn seal_file(path: &Path, is_executable: bool) -> io::Result<()> {
    let file = File::open(path)?;
    file.set_permissions(Permissions::from_mode(if is_executable { 0o555 } else { 0o444 }))?;
    file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + SEALED_AT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use content::Expected;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use wire::NodeId;

    fn open(dir: &Path, size_max: u64) -> Cache {
        let store = Store::open(&dir.join("cache"), NodeId([1; 16])).expect("a store");
        Cache::new(store, size_max).expect("a cache")
    }

    fn a_cache(dir: &Path) -> (Cache, FileId) {
        let cache = open(dir, 1 << 30);
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
        let changed = |path: &Path| {
            let metadata = fs::metadata(path).expect("it is there");
            (metadata.ctime(), metadata.ctime_nsec())
        };
        let before = changed(path);
        while {
            fs::write(&other, "").expect("written");
            changed(&other) <= before
        } {}
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
    fn all_who_have_a_link_to_what_was_written_to_have_it_spoiled_until_they_get_another() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, file) = a_cache(dir.path());
        let jobs = [1, 2, 3].map(|number| JobId([number; 16]));
        let path = |job: JobId| dir.path().join(job.to_string());
        let lend = |job| cache.lend(job, file, |from| fs::hard_link(from, path(job))).expect("it links");
        assert!(lend(jobs[0]) && lend(jobs[1]));
        cache.keep(jobs[2], file);
        let spoiled = |job| cache.spoiled(&BTreeSet::from([job]));
        assert_eq!(spoiled(jobs[0]), []);
        fs::remove_file(path(jobs[1])).expect("removed");
        assert_eq!(spoiled(jobs[0]), [], "a link that is gone");
        fs::write(path(jobs[0]), b"abd").expect("root may write");
        assert_eq!(spoiled(jobs[1]), jobs[..2]);
        assert_eq!(spoiled(jobs[2]), [], "it has none");
        assert!(!lend(jobs[1]) && !cache.holds(file, None));
        assert_eq!(fetch(&cache), file);
        cache.seal(file).expect("it is here");
        cache.take_back(jobs[1]);
        assert!(lend(jobs[1]));
        assert_eq!(spoiled(jobs[1]), []);
        assert_eq!(spoiled(jobs[0]), jobs[..1], "and the other has a new one");
        cache.release(jobs[0]);
        assert_eq!(spoiled(jobs[0]), []);
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
        let reopen = || open(dir.path(), 1 << 30);
        let cache = reopen();
        assert!(cache.holds(file, None));
        assert!(link(&cache, file, &dir.path().join("input")));
        drop(cache);
        forge(&path, b"abd");
        assert!(!reopen().holds(file, None));
    }

    fn fetch_large(cache: &Cache, filling: u8) -> FileId {
        let content = vec![filling; 1 << 20];
        cache.store.begin(2, Some(1 << 20)).expect("room");
        cache.store.write(2, 0, &content).expect("room");
        let file = cache.store.commit(2, Expected::Anything, 1 << 20).expect("it is right").file;
        cache.seal(file).expect("it is here");
        file
    }

    #[test]
    fn what_no_job_needs_goes_when_the_cache_is_too_large() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = open(dir.path(), 5 << 19);
        let (job, other) = (JobId([1; 16]), JobId([2; 16]));
        let needed = fetch_large(&cache, 1);
        cache.keep(job, needed);
        cache.keep(other, needed);
        let idle = fetch_large(&cache, 2);
        let new = fetch_large(&cache, 3);
        assert_eq!([needed, idle, new].map(|file| cache.holds(file, None)), [true, false, true]);
        cache.keep(job, new);
        cache.release(other);
        let too_much = fetch_large(&cache, 4);
        assert_eq!([needed, new, too_much].map(|file| cache.holds(file, None)), [true, true, false]);
        cache.release(job);
        let last = fetch_large(&cache, 5);
        assert_eq!([needed, new, last].map(|file| cache.holds(file, None)), [false, true, true]);
    }

    #[test]
    fn files_that_are_here_in_part_count_with_what_is_here_of_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = open(dir.path(), 5 << 19);
        let content = vec![7; 10 << 20];
        let outline = content::outline_file(&content[..]).expect("it is in memory");
        let hash = outline.root().expect("it is known");
        let whole = fetch_large(&cache, 1);
        let part = cache.store.cached(FileId::of(hash), Some(hash), 10 << 20).expect("room");
        part.take_outline(&outline.encode()).expect("it is right");
        for block in [3, 8] {
            part.fill(block, &content[..1 << 20]).expect("it is right");
            cache.grown(part.file);
        }
        assert_eq!((cache.holds(whole, None), cache.store.size_on_disk(part.file)), (false, 2 << 20));
        fetch_large(&cache, 2);
        assert_eq!(cache.store.size_on_disk(part.file), 0, "and it goes like any other");
    }

    #[test]
    fn a_full_disk_takes_what_no_job_needs_but_not_what_is_being_filled() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = open(dir.path(), 1 << 30);
        let files = [fetch_large(&cache, 1), fetch_large(&cache, 2), fetch_large(&cache, 3)];
        cache.keep(JobId([1; 16]), files[0]);
        cache.make_room(files[1]);
        assert_eq!(files.map(|file| cache.holds(file, None)), [true, true, false]);
        cache.make_room(files[1]);
        assert!(cache.holds(files[1], None) && cache.remove_idle() && !cache.remove_idle(), "only that one is left");
    }

    #[test]
    fn a_start_keeps_of_a_cache_what_it_may_and_empties_its_trash() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = open(dir.path(), 1 << 30);
        let files = [fetch_large(&cache, 1), fetch_large(&cache, 2), fetch_large(&cache, 3)];
        drop(cache);
        let trash = dir.path().join("cache/trash/old.dat");
        fs::write(&trash, "damaged").expect("written");
        let cache = open(dir.path(), 5 << 19);
        assert_eq!(files.iter().filter(|file| cache.holds(**file, None)).count(), 2);
        assert!(!trash.exists());
    }
}
