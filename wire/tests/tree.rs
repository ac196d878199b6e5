//! Trees: their bytes exactly, what is refused, and that nothing that was accepted can fail or lead out.

use proptest::prelude::*;
use wire::tree::{EntryKind, PACK_SIZE_MAX, Tree, TreeError, TreeWriter, check_target};
use wire::{Hash, hex};

const HASH: Hash = Hash([0xaa; 32]);
const PACK: Hash = Hash([0xbb; 32]);

/// `a/` with the executable `x`, the link `b` to it, and the empty file `c`.
fn a_tree() -> TreeWriter {
    let mut to = TreeWriter::new(1);
    let pack = to.add_stored(PACK, 9);
    to.open_directory(0);
    let a = to.add_directory(b"a", 2);
    to.add_symlink(b"b", 3, b"a/x");
    let c = to.add_file(b"c", 4, false, 0);
    to.close_directory(0);
    to.open_directory(a);
    let x = to.add_file(b"x", 5, true, 7);
    to.close_directory(a);
    to.set_content(c, HASH, None);
    to.set_content(x, HASH, Some((pack, 2)));
    to
}

/// Uses everything that a decoded tree offers.
fn walk(tree: &Tree<&[u8]>) -> usize {
    let entries = tree.entries();
    for entry in entries {
        let range = tree.children(entry);
        assert!(range.end <= entries.len());
        for at in range {
            assert_eq!(tree.find(entry, tree.name(&entries[at])), Some(at));
        }
        assert_eq!(tree.find(entry, b"not there at all"), None);
        let _ = (tree.target(entry), tree.length(), entry.place(), entry.mtime_s(), entry.is_executable());
    }
    entries.len()
}

#[test]
fn a_trees_bytes_are_these() {
    let nil = "00".repeat(32);
    let none = "ffffffff";
    let word = |value: u64| hex(&value.to_le_bytes());
    let entry =
        |name: u64, name_length: &str, kind: &str, file: &str, first: u64, length: u64, mtime: u64, hash: &str| {
            let numbers = [first, length, mtime, 0].map(word).concat();
            format!("{}{name_length}{kind}{file}{numbers}{hash}", word(name))
        };
    let expected = [
        &hex(b"zgtree1\n"),
        "01000000",
        "05000000",
        &word(7),
        &PACK.to_string(),
        &word(9),
        &entry(0, "0000", "0100", none, 1, 3, 1, &nil),
        &entry(0, "0100", "0100", none, 4, 1, 2, &nil),
        &entry(1, "0100", "0200", none, 2, 3, 3, &nil),
        &entry(5, "0100", "0000", none, 0, 0, 4, &HASH.to_string()),
        &entry(6, "0100", "0001", "00000000", 2, 7, 5, &HASH.to_string()),
        &hex(b"aba/xcx"),
    ];
    assert_eq!(hex(&a_tree().finish()), expected.concat());
}

#[test]
fn what_was_written_is_read() {
    let bytes = a_tree().finish();
    let tree = Tree::decode(&bytes[..]).expect("it is right");
    assert_eq!(walk(&tree), 5);
    let root = &tree.entries()[0];
    let a = &tree.entries()[tree.find(root, b"a").expect("it is there")];
    let x = &tree.entries()[tree.find(a, b"x").expect("it is there")];
    assert_eq!((x.kind(), x.is_executable(), x.place(), x.length()), (EntryKind::File, true, Some((0, 2)), 7));
    assert_eq!((x.hash(), x.mtime_s(), tree.files()[0].hash, tree.length()), (HASH, 5, PACK, 7));
    let b = &tree.entries()[tree.find(root, b"b").expect("it is there")];
    assert_eq!((b.kind(), tree.target(b), tree.children(b)), (EntryKind::Symlink, &b"a/x"[..], 0..0));
    assert_eq!(tree.find(root, b"x"), None);
    let empty = TreeWriter::new(0).finish();
    assert!(Tree::decode(&empty[..]).is_err(), "even an empty root is opened and closed");
}

/// A tree whose root has these symlinks and one directory `d` with these.
fn links(in_root: &[(&str, &str)], in_d: &[(&str, &str)]) -> Result<(), TreeError> {
    let mut to = TreeWriter::new(0);
    to.open_directory(0);
    let d = to.add_directory(b"d", 0);
    in_root.iter().for_each(|(name, target)| _ = to.add_symlink(name.as_bytes(), 0, target.as_bytes()));
    to.close_directory(0);
    to.open_directory(d);
    in_d.iter().for_each(|(name, target)| _ = to.add_symlink(name.as_bytes(), 0, target.as_bytes()));
    to.close_directory(d);
    Tree::decode(&to.finish()[..]).map(drop)
}

#[test]
fn names_and_links_that_lead_out_are_refused_by_name() {
    assert_eq!(links(&[("l", "d/x"), ("m", "missing/./x/")], &[("l", "../l"), ("m", "..")]), Ok(()));
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(matches!(links(&[], &[(name, "x")]), Err(TreeError::Name { .. })), "{name:?}");
    }
    for target in ["", "/etc/passwd", "..", "../x", "d/../..", "d/..", "x\0", &"x".repeat(4096)] {
        let refused = links(&[("l", target)], &[]);
        assert!(matches!(&refused, Err(TreeError::Name { name, .. }) if name == "l"), "{target:?}: {refused:?}");
    }
    assert!(links(&[], &[("l", "../..")]).is_err());
    for pair in [[("l", "x"), ("l", "y")], [("m", "x"), ("l", "y")]] {
        assert!(matches!(links(&[], &pair), Err(TreeError::Name { .. })), "{pair:?}");
    }
    assert_eq!(check_target(b"../../x", 2), Ok(()));
    assert!(check_target(b"../../../x", 2).is_err());
}

#[test]
fn places_outside_of_their_files_are_refused() {
    let with = |place: Option<(u32, u64)>, length: u64| {
        let mut to = TreeWriter::new(0);
        to.add_stored(PACK, 9);
        to.open_directory(0);
        let file = to.add_file(b"f", 0, false, length);
        to.close_directory(0);
        to.set_content(file, HASH, place);
        Tree::decode(&to.finish()[..]).map(drop)
    };
    assert_eq!(with(Some((0, 2)), 7), Ok(()));
    assert_eq!(with(None, 0), Ok(()));
    assert!(with(Some((0, 0)), 9).is_err(), "the whole file has the file's hash");
    let mut to = TreeWriter::new(0);
    let large = to.add_stored(PACK, PACK_SIZE_MAX + 1);
    to.open_directory(0);
    let file = to.add_file(b"f", 0, false, PACK_SIZE_MAX);
    to.close_directory(0);
    to.set_content(file, HASH, Some((large, 0)));
    assert!(
        matches!(Tree::decode(&to.finish()[..]), Err(TreeError::Entry { entry: 1, .. })),
        "nobody fetches that whole"
    );
    for (place, length) in
        [(Some((0, 3)), 7), (Some((1, 0)), 1), (Some((0, u64::MAX)), 2), (None, 1), (Some((0, 0)), 0)]
    {
        assert!(matches!(with(place, length), Err(TreeError::Entry { entry: 1, .. })), "{place:?} {length}");
    }
}

#[test]
fn counts_that_lie_cost_nothing() {
    let mut bytes = a_tree().finish();
    for (at, width) in [(8, 4), (12, 4), (16, 8)] {
        let whole = bytes.clone();
        bytes[at..at + width].fill(0xff);
        assert!(matches!(Tree::decode(&bytes[..]), Err(TreeError::Layout { .. })));
        bytes = whole;
    }
    assert!(Tree::decode(&bytes[..bytes.len() - 1]).is_err());
    bytes.push(0);
    assert!(Tree::decode(&bytes[..]).is_err());
}

#[test]
fn bytes_that_change_after_the_check_say_something_else_and_no_more() {
    struct Changed(std::cell::Cell<bool>, Vec<u8>, Vec<u8>);
    impl AsRef<[u8]> for Changed {
        fn as_ref(&self) -> &[u8] {
            if self.0.get() { &self.2 } else { &self.1 }
        }
    }
    let right = a_tree().finish();
    for wrong in [vec![0xff; right.len()], vec![0; right.len()], Vec::new()] {
        let tree = Tree::decode(Changed(false.into(), right.clone(), wrong)).expect("it is right");
        tree.bytes().0.set(true);
        for entry in tree.entries() {
            let _ = (tree.name(entry), tree.target(entry), tree.find(entry, b"x"), entry.place());
            assert!(tree.children(entry).end <= 5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), entries in 0u8..4) {
        let _ = Tree::decode(&bytes[..]);
        if bytes.len() > 24 {
            bytes[..16].copy_from_slice(&[&b"zgtree1\n\0\0\0\0"[..], &[entries, 0, 0, 0]].concat());
            let names = (bytes.len() as u64 - 24).saturating_sub(80 * u64::from(entries));
            bytes[16..24].copy_from_slice(&names.to_le_bytes());
            if let Ok(tree) = Tree::decode(&bytes[..]) {
                walk(&tree);
            }
        }
    }

    #[test]
    fn a_damaged_tree_is_refused_or_harmless(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = a_tree().finish();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tree) = Tree::decode(&bytes[..]) {
            walk(&tree);
        }
    }

    /// The claim of `check_target`, held against a model of how a path is resolved.
    #[test]
    fn no_chain_of_accepted_links_leaves_the_tree(targets in proptest::collection::vec(proptest::collection::vec(0usize..5, 1..6), 4)) {
        // Directories: 0 the root, 1 = /d, 2 = /d/e; each has the links l and m where they are accepted.
        let parents = [0usize, 0, 1];
        let words = ["..", "d", "e", "l", "m"];
        let places = [(0, "l"), (1, "l"), (2, "l"), (2, "m")];
        let links: Vec<(usize, &str, Vec<&str>)> = places.iter().zip(&targets)
            .map(|((place, name), target)| (*place, *name, target.iter().map(|at| words[*at]).collect::<Vec<_>>()))
            .filter(|(place, _, target)| check_target(target.join("/").as_bytes(), *place).is_ok())
            .collect();
        for (place, _, target) in &links {
            let mut rest: Vec<&str> = target.iter().rev().copied().collect();
            let (mut at, mut left_root, mut steps) = (*place, false, 0);
            while let Some(word) = rest.pop() {
                steps += 1;
                if steps > 200 { break }
                match (at, word) {
                    (0, "..") => { left_root = true; break }
                    (_, "..") => at = parents[at],
                    (0, "d") => at = 1,
                    (1, "e") => at = 2,
                    _ => match links.iter().find(|(place, name, _)| (*place, *name) == (at, word)) {
                        Some((_, _, target)) => rest.extend(target.iter().rev()),
                        None => break,
                    },
                }
            }
            prop_assert!(!left_root, "{links:?}");
        }
    }
}
