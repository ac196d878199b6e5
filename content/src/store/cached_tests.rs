//! Files of a cache: lazily filled, found again, damaged, written to by others, cut off by a crash before any step.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::limit::MIB;
use wire::{FileId, Hash, NodeId};

use super::crash_tests::{Fault, Faults};
use super::*;
use crate::{OutlineHasher, hash_bytes};

const NODE: NodeId = NodeId([1; 16]);

/// A file that some storage node has.
struct Remote {
    content: Vec<u8>,
    hash: Hash,
    file: FileId,
    outline: Vec<u8>,
}

impl Remote {
    fn new(length: usize) -> Self {
        let content: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
        let mut hasher = OutlineHasher::default();
        hasher.update(&content);
        let hash = hash_bytes(&content);
        Self { hash, file: FileId::of(hash), outline: hasher.finish().encode(), content }
    }

    fn in_cache(&self, store: &Store) -> Arc<Cached> {
        store.cached(self.file, Some(self.hash), self.content.len() as u64).expect("the cache is fine")
    }

    fn block(&self, block: u64) -> &[u8] {
        self.content.chunks(MIB).nth(block as usize).unwrap_or(&[])
    }

    /// What whoever fetches does: looks at claims, and brings what is missing.
    fn bring(&self, store: &Store) -> Result<Arc<Cached>, StoreError> {
        let cached = self.in_cache(store);
        cached.take_outline(&self.outline).expect("it is the file's");
        for block in 0..crate::blocks(cached.length) {
            if cached.state(block) == BlockState::Claimed {
                cached.recheck(block)?;
            }
            if cached.state(block) == BlockState::Absent {
                cached.fill(block, self.block(block))?;
            }
        }
        store.seal(&cached)?;
        Ok(cached)
    }

    fn is_read_right(&self, cached: &Cached) -> bool {
        let mut bytes = vec![0; self.content.len()];
        cached.read_at(&mut bytes, 0).expect("it is here");
        bytes == self.content
    }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, NODE).expect("it opens")
}

fn part(dir: &Path, remote: &Remote) -> PathBuf {
    dir.join("partial").join(format!("{}.part", remote.file))
}

/// Changes a byte as a disk might, or a program that is root.
fn flip(path: &Path, at: u64) {
    let rights = fs::metadata(path).expect("it is there").permissions();
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("it is ours");
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it is ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is there");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
    fs::set_permissions(path, rights).expect("it is ours");
}

#[test]
fn a_file_is_filled_block_by_block_in_any_order_and_read_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let remote = Remote::new(3 * MIB + 7);
    let cached = remote.in_cache(&store);
    assert!(!part(dir.path(), &remote).exists(), "what nobody reads takes nothing");
    assert!(matches!(cached.fill(3, remote.block(3)), Err(StoreError::OutlineUnknown(_))));
    assert!(cached.take_outline(&remote.outline[1..]).is_err());
    cached.take_outline(&remote.outline).expect("it is the file's");
    assert_eq!(cached.hash(), Some(remote.hash));
    assert_eq!(cached.fill(3, remote.block(3)).expect("it is right"), Filled::More);
    assert!(matches!(cached.fill(1, remote.block(0)), Err(StoreError::Mismatch(_))));
    assert_eq!(cached.state(1), BlockState::Absent, "what is wrong is not written");
    assert_eq!(cached.fill(1, remote.block(1)).expect("it is right"), Filled::More);
    assert!(cached.holds(MIB as u64 + 5, 100) && cached.holds(3 * MIB as u64, 1 << 40) && !cached.holds(0, 4 << 20));
    assert!(!cached.holds(2 * MIB as u64 - 1, 2) && !cached.is_whole() && !cached.is_sealed());
    let mut bytes = [0; 7];
    cached.read_at(&mut bytes, 3 * MIB as u64).expect("it is held");
    assert_eq!(bytes, remote.content[3 * MIB..]);
    assert!(matches!(store.seal(&cached), Err(StoreError::Mismatch(_))), "half a file is not sealed");
    cached.fill(0, remote.block(0)).expect("it is right");
    assert_eq!(cached.fill(2, remote.block(2)).expect("it is right"), Filled::Last);
    assert!(!cached.is_sealed());
    let committed = store.seal(&cached).expect("it is whole");
    assert_eq!((committed.file, committed.hash, committed.length), (remote.file, remote.hash, cached.length));
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    let metadata = fs::metadata(store.path(remote.file).expect("it is here")).expect("it is there");
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o444, 315_619_200));
    assert_eq!(store.outline(remote.file).expect("it is kept").encode(), remote.outline);
    assert_eq!(fs::read_dir(dir.path().join("partial")).expect("it is there").count(), 0);
}

#[test]
fn files_of_every_size_around_a_block_are_cached() {
    let dir = tempfile::tempdir().expect("a directory");
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB] {
        let store = open(dir.path());
        let remote = Remote::new(length);
        let cached = remote.bring(&store).expect("it comes");
        assert!(cached.is_sealed() && remote.is_read_right(&cached), "{length}");
        drop(store);
        let store = open(dir.path());
        let cached = remote.in_cache(&store);
        assert!(!cached.is_sealed());
        assert!(cached.check().expect("it is looked at"), "{length}");
    }
}

#[test]
fn a_file_of_one_block_needs_only_its_id() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let remote = Remote::new(100);
    let cached = store.cached(remote.file, None, 100).expect("the cache is fine");
    assert!(matches!(cached.fill(0, &[7; 100]), Err(StoreError::Mismatch(_))));
    assert_eq!(cached.fill(0, &remote.content).expect("it is right"), Filled::Last);
    assert_eq!(store.seal(&cached).expect("it is whole").hash, remote.hash);
}

#[test]
fn what_was_filled_survives_a_restart_as_a_claim() {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = Remote::new(5 * MIB);
    {
        let store = open(dir.path());
        let cached = remote.in_cache(&store);
        cached.take_outline(&remote.outline).expect("it is the file's");
        for block in [1, 4] {
            cached.fill(block, remote.block(block)).expect("it is right");
        }
        let room = fs::metadata(part(dir.path(), &remote)).expect("it is there").blocks() * 512;
        assert!(room < 3 * MIB as u64, "only what is here takes room: {room}");
    }
    let store = open(dir.path());
    let cached = remote.in_cache(&store);
    let states: Vec<BlockState> = (0..5).map(|block| cached.state(block)).collect();
    use BlockState::{Absent, Claimed, Held};
    assert_eq!(states, [Absent, Claimed, Absent, Absent, Claimed]);
    assert!(!cached.holds(MIB as u64, 1), "nothing is served before it is looked at");
    assert!(cached.outline().is_some(), "nobody has to be asked again");
    assert!(cached.recheck(1).expect("it is looked at") && !cached.recheck(0).expect("it is absent"));
    assert_eq!(cached.state(1), Held);
}

#[test]
fn rot_in_a_part_is_found_at_the_next_look_and_mended() {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = Remote::new(3 * MIB);
    let fill = |store: &Store| {
        let cached = remote.in_cache(store);
        cached.take_outline(&remote.outline).expect("it is the file's");
        for block in 0..2 {
            cached.fill(block, remote.block(block)).expect("it is right");
        }
    };
    fill(&open(dir.path()));
    flip(&part(dir.path(), &remote), 77);
    let store = open(dir.path());
    let cached = remote.in_cache(&store);
    assert!(!cached.recheck(0).expect("it is looked at") && cached.recheck(1).expect("it is looked at"));
    assert_eq!(cached.state(0), BlockState::Absent);
    // The same while the process lives: whoever wrote has left a trace.
    cached.fill(0, remote.block(0)).expect("it is right");
    assert!(cached.holds(0, 2 * MIB as u64));
    flip(&part(dir.path(), &remote), MIB as u64);
    assert!(!cached.is_sealed());
    assert_eq!((cached.state(0), cached.state(1)), (BlockState::Claimed, BlockState::Claimed));
    assert!(cached.recheck(0).expect("it is looked at") && !cached.recheck(1).expect("it is looked at"));
    remote.bring(&store).expect("it comes");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
}

#[test]
fn a_sealed_file_that_was_damaged_loses_only_the_wrong_block() {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = Remote::new(3 * MIB);
    let store = open(dir.path());
    let cached = remote.bring(&store).expect("it comes");
    let path = store.path(remote.file).expect("it is here");
    let inode = fs::metadata(&path).expect("it is there").ino();
    flip(&path, MIB as u64 + 9);
    assert!(!cached.is_sealed() && !cached.holds(0, 1));
    assert!(!cached.check().expect("it is looked at"));
    assert_eq!((cached.state(0), cached.state(1)), (BlockState::Held, BlockState::Absent));
    remote.bring(&store).expect("one block comes");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    let metadata = fs::metadata(&path).expect("it is there");
    assert_eq!((metadata.ino(), metadata.permissions().mode() & 0o7777), (inode, 0o444));
    // Shorter than it was, and gone.
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(10)).expect("cut");
    assert!(!cached.is_sealed());
    remote.bring(&store).expect("it comes");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    // Longer, with every byte that it should have.
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"!")).expect("appended");
    assert!(!cached.is_sealed() && !cached.check().expect("it is looked at"));
    remote.bring(&store).expect("one block comes");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    assert_eq!(fs::metadata(&path).expect("it is there").len(), cached.length);
    fs::remove_file(&path).expect("removed");
    assert!(!cached.is_sealed());
    assert_eq!(cached.state(0), BlockState::Absent);
    remote.bring(&store).expect("it comes");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
}

#[test]
fn what_the_extents_claim_and_the_data_are_not_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = Remote::new(3 * MIB);
    {
        let store = open(dir.path());
        let cached = remote.in_cache(&store);
        cached.take_outline(&remote.outline).expect("it is the file's");
        cached.reserve().expect("there is room");
        cached.fill(0, remote.block(0)).expect("it is right");
    }
    // A machine that died may leave a block of zeroes, or half of one.
    let path = part(dir.path(), &remote);
    let file = OpenOptions::new().write(true).open(&path).expect("it is ours");
    file.write_all_at(&vec![0; MIB], MIB as u64).expect("written");
    file.write_all_at(&remote.block(2)[..MIB / 2], 2 * MIB as u64).expect("written");
    let store = open(dir.path());
    let cached = remote.in_cache(&store);
    assert_eq!((cached.state(1), cached.state(2)), (BlockState::Claimed, BlockState::Absent));
    assert!(cached.recheck(0).expect("it is looked at") && !cached.recheck(1).expect("it is looked at"));
    remote.bring(&store).expect("it comes");
    assert!(remote.is_read_right(&cached));
}

#[test]
fn a_sealed_file_without_its_outline_makes_it_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let remote = Remote::new(2 * MIB + 1);
    for is_right in [true, false] {
        let path = {
            let store = open(dir.path());
            remote.bring(&store).expect("it comes");
            store.path(remote.file).expect("it is here")
        };
        fs::remove_file(path.with_extension("out")).expect("it is there");
        if !is_right {
            flip(&path, 5);
        }
        let store = open(dir.path());
        let cached = remote.in_cache(&store);
        assert!(cached.outline().is_none());
        assert_eq!(cached.check().expect("it is looked at"), is_right);
        assert_eq!(path.with_extension("out").exists(), is_right);
    }
}

#[test]
fn an_evicted_file_gives_its_room_back_and_can_come_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let (whole, lazy) = (Remote::new(2 * MIB), Remote::new(3 * MIB));
    whole.bring(&store).expect("it comes");
    let cached = lazy.in_cache(&store);
    cached.take_outline(&lazy.outline).expect("it is the file's");
    cached.fill(0, lazy.block(0)).expect("it is right");
    let used: Vec<(FileId, bool)> =
        store.usage().expect("it looks").into_iter().map(|(file, bytes)| (file, bytes >= MIB as u64)).collect();
    assert_eq!(used.len(), 2);
    assert!(used.contains(&(whole.file, true)) && used.contains(&(lazy.file, true)));
    for (remote, size) in [(&whole, 2 * MIB as u64), (&lazy, MIB as u64)] {
        let freed = store.evict(remote.file).expect("it goes");
        assert!((size..size + 64 * 1024).contains(&freed), "{freed}");
        assert_eq!(store.evict(remote.file).expect("it is gone"), 0);
    }
    assert!(store.list().is_empty() && store.usage().expect("it looks").is_empty());
    assert_eq!(lazy.in_cache(&store).state(0), BlockState::Absent);
    assert!(whole.is_read_right(&whole.bring(&store).expect("it comes again")));
}

#[test]
fn another_hash_or_length_than_the_true_one_is_refused_once_it_is_known() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let remote = Remote::new(2 * MIB);
    let mut other = remote.hash;
    other.0[31] ^= 1;
    assert!(remote.file.names(other));
    let length = remote.content.len() as u64;
    // Somebody describes it wrongly, before anybody has seen a byte of it: nobody else is to suffer.
    let wrong = store.cached(remote.file, Some(other), length).expect("who knows?");
    assert!(wrong.take_outline(&remote.outline).is_err());
    let wrong = store.cached(remote.file, None, 5).expect("who knows?");
    assert!(wrong.fill(0, &remote.content[..5]).is_err());
    let cached = remote.in_cache(&store);
    cached.take_outline(&remote.outline).expect("it is the file's");
    assert!(matches!(store.cached(remote.file, Some(other), length), Err(StoreError::ExistsDifferent { .. })));
    assert!(matches!(store.cached(remote.file, None, 5), Err(StoreError::Mismatch(_))));
    assert!(Arc::ptr_eq(&cached, &store.cached(remote.file, None, length).expect("the same")));
}

#[test]
fn many_files_are_read_with_few_descriptors() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let all: Vec<(Remote, Arc<Cached>)> = (1..400)
        .map(|length| {
            let remote = Remote::new(length);
            let cached = remote.bring(&store).expect("it comes");
            (remote, cached)
        })
        .collect();
    assert!(all.iter().all(|(remote, cached)| remote.is_read_right(cached)));
    let open = fs::read_dir("/proc/self/fd").expect("it lists").count();
    assert!(open < 350, "{open}");
}

/// Fetches a file under one fault, then goes on after a restart. Returns whether the fault was reached.
fn survives(remote: &Remote, fault: Fault) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let hit = {
        let store = open(dir.path());
        *store.disk.faults.lock().expect("no panic") = Faults::plan(fault);
        let brought = remote.bring(&store);
        let hit = store.disk.faults.lock().expect("no panic").hit;
        if let Ok(cached) = brought {
            assert!(remote.is_read_right(&cached));
        } else if !store.disk.is_bad() {
            // Without a restart: what is held is right.
            let cached = remote.in_cache(&store);
            for block in (0..3).filter(|block| cached.state(*block) == BlockState::Held) {
                let mut bytes = vec![0; remote.block(block).len()];
                cached.read_at(&mut bytes, block << 20).expect("it is held");
                assert_eq!(bytes, remote.block(block));
            }
        }
        hit
    };
    let store = open(dir.path());
    let cached = remote.bring(&store).expect("the disk works again");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    assert_eq!(store.list(), [(remote.file, remote.content.len() as u64)]);
    assert_eq!(fs::read_dir(dir.path().join("partial")).expect("it is there").count(), 0);
    hit
}

#[test]
fn a_crash_or_a_full_disk_before_any_step_loses_no_more_than_a_block() {
    let remote = Remote::new(2 * MIB + 1);
    let crash = |step: &usize| survives(&remote, Fault::Crash { step: *step });
    // Directory, outline (create, write, rename), open, size, 3 writes with a reservation between, hash, seal, 2 directories,
    // 2 renames; nothing is synced.
    assert_eq!((0..).take_while(crash).count(), 16);
    let refuse = |step: &usize| survives(&remote, Fault::Refuse { step: *step, errno: libc::ENOSPC });
    assert_eq!((0..).take_while(refuse).count(), 16);
}

#[test]
fn a_link_costs_no_new_look_and_a_write_through_it_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let remote = Remote::new(MIB + 1);
    let cached = remote.bring(&store).expect("it comes");
    let link =
        |name: &str| cached.place(|path| fs::hard_link(path, dir.path().join(name))).expect("it links").is_some();
    assert!(link("a") && link("b"));
    assert!(cached.is_sealed());
    flip(&dir.path().join("a"), 9);
    assert!(!link("c"), "nobody gets it before it is looked at");
    assert!(!cached.check().expect("it is looked at"));
    let cached = {
        store.evict(remote.file).expect("it goes");
        remote.bring(&store).expect("it comes again")
    };
    let copied = cached.place(|path| {
        fs::copy(path, dir.path().join("copy"))?;
        flip(path, 3);
        Ok(())
    });
    assert_eq!(copied.expect("it copies"), None, "somebody wrote meanwhile");
}

#[test]
fn whoever_reads_unchecked_learns_later_that_bytes_were_changed_and_nothing_of_links() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let remote = Remote::new(MIB + 1);
    let cached = remote.in_cache(&store);
    cached.take_outline(&remote.outline).expect("it is the file's");
    cached.fill(0, remote.block(0)).expect("it is right");
    let in_part = cached.believed();
    cached.fill(1, remote.block(1)).expect("it is right");
    store.seal(&cached).expect("all is here");
    let sealed = cached.believed();
    assert!(!in_part.is_of_sealed() && sealed.is_of_sealed());
    let path = store.path(remote.file).expect("it is here");
    fs::hard_link(&path, dir.path().join("a")).expect("linked");
    fs::remove_file(dir.path().join("a")).expect("removed");
    assert!(![in_part, sealed].iter().any(|belief| cached.was_changed_since(belief)));
    flip(&path, 9);
    assert!(cached.was_changed_since(&sealed), "also before anybody else has looked");
    assert!(!cached.check().expect("it is looked at"));
    let cached = remote.bring(&store).expect("it is put right");
    assert!([in_part, sealed].iter().all(|belief| cached.was_changed_since(belief)), "they may have read it");
    let again = cached.believed();
    assert!(again.is_of_sealed() && !cached.was_changed_since(&again));
    store.evict(remote.file).expect("it goes");
    assert!(cached.was_changed_since(&again));
}

#[test]
fn what_was_stored_just_now_is_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    store.begin(1, None).expect("begun");
    store.write(1, 0, b"abc").expect("written");
    let committed = store.commit(1, Expected::Anything, 3).expect("it is stored");
    let cached = store.cached_new(&committed).expect("it is here");
    assert!(cached.is_sealed());
    assert!(Arc::ptr_eq(&cached, &store.cached(committed.file, None, 3).expect("the same")));
}

/// A store that has the file, as one of a storage node on this machine.
fn lender(remote: &Remote) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), NodeId([2; 16])).expect("it opens");
    store.begin(1, None).expect("begun");
    store.write(1, 0, &remote.content).expect("written");
    store.commit(1, Expected::Hash(remote.hash), remote.content.len() as u64).expect("right");
    let path = store.path(remote.file).expect("it is there");
    (dir, path)
}

#[test]
fn a_borrowed_file_is_read_where_it_lies_once_it_was_looked_at_and_nothing_comes_here() {
    let remote = Remote::new(9 * MIB + 7);
    let ((lender, path), dir) = (lender(&remote), tempfile::tempdir().expect("a directory"));
    let store = open(dir.path());
    let cached = remote.in_cache(&store);
    assert!(!cached.borrow().expect("nobody lends"), "nobody has been named");
    store.borrow_from(&[lender.path().to_owned()]);
    assert!(cached.borrow().expect("it is there"));
    assert_eq!(cached.state(3), BlockState::Claimed, "nobody has looked");
    assert!(cached.outline().is_some(), "it lies beside the file");
    assert!(!cached.is_sealed() && store.borrowed(remote.file).is_none());
    let before = fs::metadata(&path).expect("it is there");
    let cached = remote.bring(&store).expect("it is right");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    assert!(store.borrowed(remote.file).is_some());
    let copied = cached.place(|from| fs::copy(from, dir.path().join("copy")).map(drop)).expect("it reads");
    assert!(copied.is_some());
    assert_eq!((store.size_on_disk(remote.file), store.list()), (0, vec![]), "nothing is here");
    let after = fs::metadata(&path).expect("it is there");
    let look = |found: &fs::Metadata| (found.ino(), found.mtime(), found.ctime(), found.nlink(), found.mode());
    assert_eq!(look(&before), look(&after), "nothing there was touched");
    store.evict(remote.file).expect("nothing is to be removed");
    assert_eq!(fs::read(&path).expect("it is there"), remote.content);
}

#[test]
fn what_is_wrong_at_the_lender_is_given_back_and_nothing_is_ever_written_there() {
    let remote = Remote::new(9 * MIB);
    let ((lender, path), dir) = (lender(&remote), tempfile::tempdir().expect("a directory"));
    flip(&path, 5 * MIB as u64);
    let rotten = fs::read(&path).expect("it is there");
    let store = open(dir.path());
    store.borrow_from(&[lender.path().to_owned()]);
    let cached = remote.in_cache(&store);
    assert!(cached.borrow().expect("it is there"));
    assert!(cached.recheck(4).expect("it reads") && !cached.recheck(5).expect("it reads"));
    cached.fill(5, remote.block(5)).expect("it is right");
    assert_eq!((cached.state(5), cached.state(4)), (BlockState::Held, BlockState::Absent), "a file of our own begins");
    assert!(part(dir.path(), &remote).exists() && !cached.borrow().expect("it is here"));
    let cached = remote.bring(&store).expect("it is right");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
    assert_eq!(fs::read(&path).expect("it is there"), rotten, "the lender's is its own affair");
}

#[test]
fn a_borrowed_file_that_is_changed_or_goes_is_not_believed() {
    let remote = Remote::new(9 * MIB);
    let ((lender, path), dir) = (lender(&remote), tempfile::tempdir().expect("a directory"));
    let store = open(dir.path());
    store.borrow_from(&[lender.path().to_owned()]);
    let cached = remote.in_cache(&store);
    assert!(cached.borrow().expect("it is there"));
    remote.bring(&store).expect("it is right");
    let belief = cached.believed();
    assert!(belief.is_of_sealed() && !cached.was_changed_since(&belief));
    flip(&path, 5 * MIB as u64);
    assert!(cached.was_changed_since(&belief) && !cached.is_sealed());
    assert_eq!(cached.state(5), BlockState::Claimed);
    fs::remove_file(&path).expect("removed");
    assert!(!cached.is_sealed() && cached.state(5) == BlockState::Absent);
    let cached = remote.bring(&store).expect("it is brought");
    assert!(cached.is_sealed() && remote.is_read_right(&cached));
}
