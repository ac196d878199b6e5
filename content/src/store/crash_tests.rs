//! Crashes and disk errors before every step of a commit: afterwards a file is absent or whole, and what was
//! acknowledged is there.

use std::io;
use std::path::Path;

use proptest::prelude::*;
use wire::{FileId, NodeId};

use super::disk::Step;
use super::{Committed, Expected, Store, StoreError};
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
