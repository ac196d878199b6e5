//! What a store promises when nothing crashes.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use wire::limit::MIB;

use super::*;
use crate::hash_bytes;

const NODE: NodeId = NodeId([1; 16]);

fn a_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), NODE).expect("an empty directory becomes a store");
    (dir, store)
}

fn put(store: &Store, content: &[u8]) -> Result<Committed, StoreError> {
    let upload = 7;
    assert_eq!(store.begin(upload, Some(content.len() as u64))?, 0);
    for (number, block) in content.chunks(MIB).enumerate() {
        store.write(upload, (number * MIB) as u64, block)?;
    }
    store.commit(upload, Expected::Hash(hash_bytes(content)), content.len() as u64)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn files_of_every_size_around_a_block_come_back() {
    let (_dir, store) = a_store();
    for length in [0, 1, MIB - 1, MIB, MIB + 1] {
        let content = bytes(length);
        let committed = put(&store, &content).expect("it is stored");
        assert_eq!(committed.file, FileId::of(hash_bytes(&content)));
        assert_eq!((committed.length, committed.already_there), (length as u64, false));
        assert_eq!(store.read(committed.file, 0, 2 * MIB).expect("it is here"), content);
        assert_eq!(&store.map(committed.file).expect("it maps")[..], &content[..]);
        assert_eq!(
            store.stat(committed.file).expect("it is here"),
            Stat { length: length as u64, hash: hash_bytes(&content) }
        );
    }
    assert_eq!(store.list().len(), 5);
}

#[test]
fn a_stored_file_is_read_only_at_the_path_of_its_name() {
    let (dir, store) = a_store();
    let file = put(&store, b"abc").expect("it is stored").file;
    let name = file.to_string();
    let path = dir.path().join("files").join(&name[0..2]).join(&name[2..4]).join(format!("{name}.dat"));
    assert_eq!(store.path(file).expect("it is here"), path);
    assert_eq!(fs::metadata(path).expect("it is there").permissions().mode() & 0o7777, 0o444);
}

#[test]
fn storing_the_same_content_again_is_success() {
    let (_dir, store) = a_store();
    assert!(!put(&store, b"abc").expect("it is stored").already_there);
    assert!(put(&store, b"abc").expect("it is stored").already_there);
    // The answer was lost, and the upload is long gone.
    let again = store.commit(99, Expected::Hash(hash_bytes(b"abc")), 3).expect("it is here");
    assert!(again.already_there);
}

#[test]
fn content_that_is_not_what_was_announced_is_refused_and_forgotten() {
    let (dir, store) = a_store();
    store.begin(1, Some(3)).expect("begun");
    store.write(1, 0, b"abc").expect("written");
    assert!(matches!(store.commit(1, Expected::Hash(hash_bytes(b"abd")), 3), Err(StoreError::Mismatch(_))));
    assert!(matches!(store.write(1, 0, b"abc"), Err(StoreError::UploadUnknown(1))));
    store.begin(2, Some(3)).expect("begun");
    assert!(matches!(store.write(2, 0, b"abcd"), Err(StoreError::Mismatch(_))));
    store.begin(3, None).expect("begun");
    store.write(3, 0, b"ab").expect("written");
    assert!(matches!(store.commit(3, Expected::Id(FileId::of(hash_bytes(b"abc"))), 3), Err(StoreError::Mismatch(_))));
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("it is there").count(), 0);
}

#[test]
fn a_name_taken_by_other_content_is_refused() {
    let (_dir, store) = a_store();
    let (here, path) = {
        let file = put(&store, b"abc").expect("it is stored").file;
        (file, store.path(file).expect("it is here"))
    };
    // Make the pair that an attacker would need 2^61 hashes for: same 122 bits, another full hash.
    let mut other = hash_bytes(b"abc");
    other.0[31] ^= 1;
    assert!(here.names(other));
    assert!(matches!(store.commit(5, Expected::Hash(other), 3), Err(StoreError::ExistsDifferent { .. })));
    assert_eq!(fs::read(path).expect("it is there"), b"abc");
}

#[test]
fn repetitions_overlaps_and_gaps_do_not_disturb_an_upload() {
    let (_dir, store) = a_store();
    assert_eq!(store.begin(1, None).expect("begun"), 0);
    assert_eq!(store.write(1, 0, b"abc").expect("written"), 3);
    assert_eq!(store.write(1, 0, b"abc").expect("a repetition"), 3);
    assert_eq!(store.write(1, 5, b"fgh").expect("a gap"), 3);
    assert_eq!(store.begin(1, None).expect("begun again"), 3);
    assert_eq!(store.write(1, 1, b"bcde").expect("an overlap"), 5);
    assert_eq!(store.write(1, u64::MAX, b"x").expect("far away"), 5);
    let committed = store.commit(1, Expected::Anything, 5).expect("it is stored");
    assert_eq!(store.read(committed.file, 0, 9).expect("it is here"), b"abcde");
}

#[test]
fn a_store_opened_again_has_its_files_and_no_half_ones() {
    let (dir, store) = a_store();
    let file = put(&store, b"abc").expect("it is stored").file;
    store.begin(8, Some(100)).expect("begun");
    store.write(8, 0, b"half").expect("written");
    drop(store);
    let store = Store::open(dir.path(), NODE).expect("it opens again");
    assert_eq!(store.list(), [(file, 3)]);
    assert!(matches!(store.write(8, 4, b"more"), Err(StoreError::UploadUnknown(8))));
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("it is there").count(), 0);
}

#[test]
fn a_store_belongs_to_one_node_one_format_and_one_process() {
    let (dir, store) = a_store();
    assert!(matches!(Store::open(dir.path(), NODE), Err(StoreError::Unusable { .. })), "it is open already");
    drop(store);
    assert!(matches!(Store::open(dir.path(), NodeId([2; 16])), Err(StoreError::Unusable { .. })));
    fs::write(dir.path().join("VERSION"), "2\n").expect("written");
    assert!(matches!(Store::open(dir.path(), NODE), Err(StoreError::Unusable { .. })));
}

#[test]
fn a_local_file_is_adopted_without_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let (dir, store) = a_store();
    let path = dir.path().join("output");
    fs::write(&path, b"made here").expect("written");
    let inode = fs::metadata(&path).expect("it is there").ino();
    let committed = store.adopt(&path).expect("it is taken");
    assert_eq!(committed.hash, hash_bytes(b"made here"));
    assert_eq!(fs::metadata(store.path(committed.file).expect("it is here")).expect("there").ino(), inode);
    assert!(!path.exists());
    fs::write(&path, b"made here").expect("written");
    assert!(store.adopt(&path).expect("it is here").already_there);
    assert!(!path.exists());
    std::os::unix::fs::symlink("/etc/passwd", &path).expect("linked");
    assert!(store.adopt(&path).is_err(), "a symlink is not content");
}

#[test]
fn a_range_of_a_large_sparse_file_is_read_where_it_lies() {
    let (dir, store) = a_store();
    let path = dir.path().join("sparse");
    let length = 64 * MIB as u64 + 5;
    let file = File::create(&path).expect("made");
    file.set_len(length).expect("sized");
    file.write_all_at(b"needle", length - 6).expect("written");
    let committed = store.adopt(&path).expect("it is taken");
    assert_eq!(store.read(committed.file, length - 6, MIB).expect("it is here"), b"needle");
    assert_eq!(store.read(committed.file, 3, 2).expect("it is here"), [0, 0]);
    assert_eq!(store.read(committed.file, length, 2).expect("the end is a place"), []);
    assert!(matches!(store.read(committed.file, length + 1, 1), Err(StoreError::OutOfRange { .. })));
}

#[test]
fn damage_is_noticed_when_the_hash_is_computed_again() {
    let (dir, store) = a_store();
    let file = put(&store, b"abc").expect("it is stored").file;
    let path = store.path(file).expect("it is here");
    fs::remove_file(&path).expect("removed");
    fs::write(&path, b"abd").expect("damaged, and the attribute is gone");
    assert!(matches!(store.stat(file), Err(StoreError::FileUnknown(_))));
    assert!(!store.have(file));
    assert_eq!(fs::read_dir(dir.path().join("trash")).expect("it is there").count(), 1);
    assert!(!put(&store, b"abc").expect("it is stored again").already_there);
}

#[test]
fn an_outline_lies_beside_its_file_and_is_made_again_when_it_is_gone_or_wrong() {
    let (dir, store) = a_store();
    let content = bytes(2 * MIB + 9);
    let file = put(&store, &content).expect("it is stored").file;
    let path = store.path(file).expect("it is here").with_extension("out");
    let kept = fs::read(&path).expect("it is there");
    assert_eq!(kept.len(), 96);
    let outline = store.outline(file).expect("it is here");
    assert_eq!((outline.encode(), outline.root()), (kept.clone(), Some(hash_bytes(&content))));
    for wrong in [None, Some(b"torn".to_vec()), Some(vec![7; 96])] {
        fs::remove_file(&path).expect("it is there");
        wrong.into_iter().for_each(|wrong| fs::write(&path, wrong).expect("written"));
        assert_eq!(store.outline(file).expect("it is made"), outline);
        assert_eq!(fs::read(&path).expect("it is kept"), kept);
    }
    drop(store);
    fs::remove_file(path.with_extension("dat")).expect("it is there");
    let store = Store::open(dir.path(), NODE).expect("it opens again");
    assert!(!path.exists(), "nobody keeps the outline of nothing");
    assert!(matches!(store.outline(file), Err(StoreError::FileUnknown(_))));
    let small = put(&store, b"abc").expect("it is stored").file;
    assert_eq!(store.outline(small).expect("it is here").root(), Some(hash_bytes(b"abc")));
    assert!(!store.path(small).expect("it is here").with_extension("out").exists());
}

#[test]
fn an_outline_of_damage_is_not_made() {
    let (_dir, store) = a_store();
    let file = put(&store, &bytes(MIB + 1)).expect("it is stored").file;
    let path = store.path(file).expect("it is here");
    fs::remove_file(path.with_extension("out")).expect("it is there");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::OpenOptions::new().write(true).open(&path).and_then(|to| to.write_all_at(b"x", 77)).expect("damaged");
    assert!(matches!(store.outline(file), Err(StoreError::FileUnknown(_))));
    assert!(!store.have(file));
}

#[test]
fn a_check_believes_the_bytes_alone() {
    let (_dir, store) = a_store();
    let file = put(&store, b"abc").expect("it is stored").file;
    let path = store.path(file).expect("it is here");
    assert_eq!(store.check(file).expect("it is whole"), Stat { length: 3, hash: hash_bytes(b"abc") });
    // In place, so that the attribute stays.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&path, b"abd").expect("damaged");
    assert!(matches!(store.check(file), Err(StoreError::FileUnknown(_))));
    assert!(!store.have(file));
    put(&store, b"abc").expect("it is stored again");
    fs::remove_file(&path).expect("removed");
    assert!(matches!(store.check(file), Err(StoreError::FileUnknown(_))));
    assert!(!put(&store, b"abc").expect("it is stored again").already_there);
}

/// Somebody with the right to do so writes one byte.
fn flip(path: &std::path::Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is as long");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

fn forget_hash(path: &std::path::Path) {
    let path = std::ffi::CString::new(path.to_str().expect("plain")).expect("no zero");
    // SAFETY: both are C strings.
    unsafe { libc::removexattr(path.as_ptr(), c"user.zg.blake3".as_ptr()) };
}

#[test]
fn a_file_that_somebody_wrote_to_is_vouched_for_only_after_it_was_read_again() {
    let (dir, store) = a_store();
    let content = bytes(2 * MIB);
    let (hash, file) = (hash_bytes(&content), put(&store, &content).expect("it is stored").file);
    let (path, stat) = (store.path(file).expect("it is here"), Stat { length: content.len() as u64, hash });
    let is_unchecked = || {
        !store.looks_sealed(file)
            && matches!(store.sealed(file), Err(StoreError::Unchecked(unchecked)) if unchecked == file)
    };
    assert_eq!(store.sealed(file).expect("it is as it was"), stat);
    flip(&path, 5);
    assert!(is_unchecked());
    let again = store.commit(99, Expected::Hash(hash), stat.length);
    assert!(matches!(again, Err(StoreError::Unchecked(_))), "{again:?}");
    flip(&path, 5);
    assert!(is_unchecked(), "it may have other bytes");
    assert_eq!(store.check(file).expect("it is right again"), stat);
    assert_eq!(store.sealed(file).expect("it was looked at"), stat);
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o444);
    flip(&path, 5);
    assert!(matches!(store.check(file), Err(StoreError::FileUnknown(_))));
    assert!(matches!(store.sealed(file), Err(StoreError::FileUnknown(_))));
    assert_eq!(fs::read_dir(dir.path().join("trash")).expect("it is there").count(), 1);
    // One that was cut is not sent from a mapping: the end of it would kill who reads it.
    put(&store, &content).expect("it is stored again");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::OpenOptions::new().write(true).open(&path).and_then(|to| to.set_len(9)).expect("cut");
    assert!(is_unchecked());
}

#[test]
fn what_was_verified_just_now_takes_the_place_of_what_may_be_wrong() {
    let (dir, store) = a_store();
    let content = bytes(MIB + 1);
    let file = put(&store, &content).expect("it is stored").file;
    assert_eq!(&store.map(file).expect("it maps")[..], &content[..]);
    flip(&store.path(file).expect("it is here"), 7);
    assert!(!put(&store, &content).expect("it is stored again").already_there);
    assert_eq!(&store.map(file).expect("it maps")[..], &content[..], "nobody is sent what was there before");
    assert_eq!(store.sealed(file).expect("it is right").hash, hash_bytes(&content));
    assert!(put(&store, &content).expect("it is here").already_there);
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("it is there").count(), 0);
}

#[test]
fn where_no_attribute_is_kept_a_file_is_read_once_at_most() {
    let (dir, store) = a_store();
    let content = bytes(2 * MIB + 9);
    let file = put(&store, &content).expect("it is stored").file;
    let small = put(&store, b"abc").expect("it is stored").file;
    let path = store.path(file).expect("it is here");
    drop(store);
    forget_hash(&path);
    let store = Store::open(dir.path(), NODE).expect("it opens again");
    forget_hash(&store.path(small).expect("it is here"));
    assert_eq!(store.sealed(small).expect("it has one block").hash, hash_bytes(b"abc"));
    let stat = Stat { length: content.len() as u64, hash: hash_bytes(&content) };
    assert_eq!(store.sealed(file).expect("the outline has it"), stat);
    drop(store);
    fs::remove_file(path.with_extension("out")).expect("it is there");
    let store = Store::open(dir.path(), NODE).expect("it opens again");
    assert!(matches!(store.sealed(file), Err(StoreError::Unchecked(_))), "all of it would have to be read");
    store.check(file).expect("it is right");
    forget_hash(&path);
    fs::remove_file(path.with_extension("out")).expect("it was made");
    assert_eq!(store.sealed(file).expect("it is remembered"), stat);
    flip(&path, 5);
    assert!(matches!(store.sealed(file), Err(StoreError::Unchecked(_))), "and only as long as nobody writes to it");
}
