//! Crashes and disk errors before every step of a commit: afterwards a file is absent or whole, and what was
//! acknowledged is there.

use std::io;
use std::path::Path;

use proptest::prelude::*;
use wire::{FileId, NodeId};

use super::disk::Step;
use super::{Commit, Committed, Expected, Store, StoreError};
use crate::hash_bytes;

/// What goes wrong, and before which step, counted from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The process is gone: this step and all after it do nothing.
    Crash { step: usize },
    /// The disk refuses this one step.
    Refuse { step: usize, errno: i32 },
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Option<Fault>,
    taken: Vec<Step>,
    pub(super) hit: bool,
}

impl Faults {
    pub(super) fn plan(fault: Fault) -> Self {
        Self { planned: Some(fault), ..Self::default() }
    }

    pub(super) fn check(&mut self, step: Step) -> io::Result<()> {
        let number = self.taken.len();
        self.taken.push(step);
        let errno = match self.planned {
            Some(Fault::Crash { step }) if step <= number => libc::EIO,
            Some(Fault::Refuse { step, errno }) if step == number => errno,
            Some(_) | None => return Ok(()),
        };
        self.hit = true;
        Err(io::Error::from_raw_os_error(errno))
    }
}

const NODE: NodeId = NodeId([1; 16]);

fn open(dir: &Path) -> Store {
    Store::open(dir, NODE).expect("a store that crashed opens again")
}

/// Puts `content` in pieces of `piece` bytes.
fn put(store: &Store, upload: u64, content: &[u8], piece: usize) -> Result<Committed, StoreError> {
    store.begin(upload, Some(content.len() as u64))?;
    for (number, bytes) in content.chunks(piece).enumerate() {
        store.write(upload, (number * piece) as u64, bytes)?;
    }
    store.commit(upload, Expected::Hash(hash_bytes(content)), content.len() as u64)
}

/// Puts them all at once, in uploads from `upload` on.
fn put_each(store: &Store, upload: u64, contents: &[Vec<u8>]) -> Vec<Result<Committed, StoreError>> {
    let mut commits = Vec::new();
    for (upload, content) in (upload..).zip(contents) {
        let length = content.len() as u64;
        // What is refused here is unknown at its commit.
        let _ = store.begin(upload, Some(length)).and_then(|_| store.write(upload, 0, content));
        commits.push(Commit { upload, expected: Expected::Hash(hash_bytes(content)), length });
    }
    store.commit_each(&commits)
}

fn is_whole(store: &Store, content: &[u8]) -> bool {
    let file = FileId::of(hash_bytes(content));
    match store.read(file, 0, content.len() + 1) {
        Ok(bytes) => {
            assert_eq!(bytes, content, "a visible file is whole");
            assert_eq!(store.stat(file).expect("it is here").hash, hash_bytes(content));
            true
        }
        Err(StoreError::FileUnknown(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

fn staging_is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("staging")).expect("staging is there").next().is_none()
}

/// One put under one fault, then a restart. Returns whether the fault was reached.
fn survives(content: &[u8], piece: usize, fault: Fault) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let before = b"acknowledged before".as_slice();
    let (hit, result, bad) = {
        let store = open(dir.path());
        put(&store, 1, before, 64).expect("no fault yet");
        *store.disk.faults.lock().expect("no panic") = Faults::plan(fault);
        let result = put(&store, 2, content, piece);
        if store.disk.is_bad() {
            assert!(matches!(store.begin(3, None), Err(StoreError::Bad)), "a bad store takes nothing");
            assert!(matches!(store.stat(FileId::of(hash_bytes(before))), Err(StoreError::Bad)), "and gives nothing");
        }
        let hit = store.disk.faults.lock().expect("no panic").hit;
        (hit, result, store.disk.is_bad())
    };
    let store = open(dir.path());
    assert!(!store.disk.is_bad(), "a restart asks the disk again");
    assert!(staging_is_empty(dir.path()));
    assert!(is_whole(&store, before), "what was acknowledged stays");
    let there = is_whole(&store, content);
    assert!(there || result.is_err(), "what was acknowledged is there");
    assert!(!bad || result.is_err(), "a failed fsync is never acknowledged");
    let again = put(&store, 4, content, piece).expect("the disk works again");
    assert_eq!(again.already_there, there);
    assert!(is_whole(&store, content));
    hit
}

#[test]
fn a_crash_before_any_step_leaves_a_file_absent_or_whole() {
    let steps = (0..).take_while(|step| survives(b"some bytes to keep", 7, Fault::Crash { step: *step })).count();
    // Create, reserve, 3 writes, hash, seal, sync, 2 directories with 2 syncs, rename, sync.
    assert_eq!(steps, 14);
}

#[test]
fn a_full_disk_at_any_step_leaves_nothing_half_done() {
    let refuse = |step: &usize| survives(b"some bytes to keep", 7, Fault::Refuse { step: *step, errno: libc::ENOSPC });
    assert_eq!((0..).take_while(refuse).count(), 14);
}

/// Several puts that end together under one fault, then a restart. Returns whether the fault was reached.
fn survive_together(contents: &[Vec<u8>], fault: Fault) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let (hit, answers, bad) = {
        let store = open(dir.path());
        *store.disk.faults.lock().expect("no panic") = Faults::plan(fault);
        let answers = put_each(&store, 1, contents);
        for content in contents {
            let file = FileId::of(hash_bytes(content));
            let is_acknowledged = answers.iter().flatten().any(|committed| committed.file == file);
            assert_eq!(store.have(file), is_acknowledged, "what is not durable is not shown");
        }
        let hit = store.disk.faults.lock().expect("no panic").hit;
        (hit, answers, store.disk.is_bad())
    };
    let store = open(dir.path());
    assert!(staging_is_empty(dir.path()));
    for (content, answer) in contents.iter().zip(&answers) {
        assert!(is_whole(&store, content) || answer.is_err(), "what was acknowledged is there");
        assert!(!bad || answer.is_err(), "a failed sync is never acknowledged");
    }
    for answer in put_each(&store, 9, contents) {
        answer.expect("the disk works again");
    }
    assert!(contents.iter().all(|content| is_whole(&store, content)));
    hit
}

fn some_contents() -> [Vec<u8>; 4] {
    [b"one".to_vec(), Vec::new(), b"three".to_vec(), b"one".to_vec()]
}

#[test]
fn a_crash_before_any_step_of_a_common_commit_loses_nothing_acknowledged() {
    let steps = (0..).take_while(|step| survive_together(&some_contents(), Fault::Crash { step: *step })).count();
    // Create and reserve 4, 3 writes, hash and seal 4, sync, 6 directories and 3 renames, sync, the part of the twin goes.
    assert_eq!(steps, 4 * 2 + 3 + 4 * 2 + 1 + 6 + 3 + 1 + 1);
}

#[test]
fn a_disk_that_refuses_any_step_of_a_common_commit_fails_those_that_it_concerns() {
    for errno in [libc::ENOSPC, libc::EIO] {
        let refuse = |step: &usize| survive_together(&some_contents(), Fault::Refuse { step: *step, errno });
        assert_eq!((0..).take_while(refuse).count(), 31);
    }
}

#[test]
fn of_several_that_end_together_each_gets_its_own_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let here = put(&store, 1, b"here", 64).expect("it is stored");
    let contents = [b"new".to_vec(), b"here".to_vec(), b"new".to_vec()];
    for (upload, content) in (2..).zip(&contents) {
        store.begin(upload, None).expect("begun");
        store.write(upload, 0, content).expect("written");
    }
    let commit = |upload, content: &[u8]| {
        let (expected, length) = (Expected::Hash(hash_bytes(content)), content.len() as u64);
        Commit { upload, expected, length }
    };
    let commits =
        [commit(2, b"new"), commit(3, b"here"), commit(4, b"new"), commit(2, b"new"), commit(5, b"no"), commit(6, b"")];
    store.begin(5, None).expect("begun");
    let answers = store.commit_each(&commits);
    let [Ok(new), Ok(known), Ok(twin), Err(again), Err(wrong), Err(unknown)] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!((new.file, new.already_there), (FileId::of(hash_bytes(b"new")), false));
    assert_eq!(*known, Committed { already_there: true, ..here });
    assert_eq!(*twin, Committed { already_there: true, ..*new });
    assert!(matches!(again, StoreError::UploadUnknown(2)), "it ends just now");
    assert!(matches!(wrong, StoreError::Mismatch(_)) && matches!(unknown, StoreError::UploadUnknown(6)));
    assert_eq!(store.list().len(), 2);
    assert!(staging_is_empty(dir.path()));
}

#[test]
fn a_full_disk_is_told_and_frees_what_was_reserved() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let fault = Fault::Refuse { step: 1, errno: libc::ENOSPC };
    *store.disk.faults.lock().expect("no panic") = Faults::plan(fault);
    assert!(matches!(store.begin(1, Some(10)), Err(StoreError::DiskFull)));
    assert!(staging_is_empty(dir.path()));
    assert_eq!(store.begin(1, Some(10)).expect("there is room again"), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_content_survives_any_fault(
        content in proptest::collection::vec(any::<u8>(), 0..5_000),
        piece in 1_000usize..6_000,
        step in 0usize..20,
        errno in prop_oneof![Just(0), Just(libc::EIO), Just(libc::ENOSPC)],
    ) {
        let fault = if errno == 0 { Fault::Crash { step } } else { Fault::Refuse { step, errno } };
        survives(&content, piece, fault);
    }
}
