//! Finds the files that a pattern names: `*`, `?` and `[…]` within a component, as a shell does.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The relative names, in order, of what matches `pattern` under `directory`. A pattern that leaves it matches nothing.
pub(super) fn find(directory: &Path, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let components: Vec<&[u8]> =
        pattern.split(|byte| *byte == b'/').filter(|component| !matches!(*component, b"" | b".")).collect();
    if pattern.starts_with(b"/") || components.is_empty() || components.contains(&&b".."[..]) {
        return Ok(Vec::new());
    }
    let mut found = vec![Vec::new()];
    for component in components {
        let mut next = Vec::new();
        for parent in found {
            step(directory, &parent, component, &mut next)?;
        }
        found = next;
    }
    found.sort();
    Ok(found)
}

/// Appends what `component` matches in `parent`.
fn step(directory: &Path, parent: &[u8], component: &[u8], found: &mut Vec<Vec<u8>>) -> io::Result<()> {
    let at = directory.join(std::ffi::OsStr::from_bytes(parent));
    let child = |name: &[u8]| if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() };
    if !component.iter().any(|byte| b"*?[".contains(byte)) {
        if fs::symlink_metadata(at.join(std::ffi::OsStr::from_bytes(component))).is_ok() {
            found.push(child(component));
        }
        return Ok(());
    }
    let entries = match fs::read_dir(&at) {
        Ok(entries) => entries,
        // A file, or nothing, where the pattern wants a directory: it does not match.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name().into_vec();
        let is_hidden = name.starts_with(b".") && !component.starts_with(b".");
        if !is_hidden && matches(component, &name) {
            found.push(child(&name));
        }
    }
    Ok(())
}

/// Whether the whole of `name` matches `pattern`. Takes at most their product in steps.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last `*` does not match: it then takes one byte more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], name[n]) {
            p += length;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The length of the first element of `pattern` if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => match class(pattern, byte) {
            Some((length, is_in)) => is_in.then_some(length),
            // Without its end it is an ordinary character.
            None => (byte == b'[').then_some(1),
        },
        literal => (literal == byte).then_some(1),
    }
}

/// The length of the class that `pattern` starts with, and whether `byte` is in it.
fn class(pattern: &[u8], byte: u8) -> Option<(usize, bool)> {
    let is_negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = 1 + usize::from(is_negated);
    // A bracket that comes first is a member.
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|byte| *byte == b']')?;
    let members = &pattern[start..end];
    let mut is_in = false;
    let mut at = 0;
    while at < members.len() {
        if at + 2 < members.len() && members[at + 1] == b'-' {
            is_in |= (members[at]..=members[at + 2]).contains(&byte);
            at += 3;
        } else {
            is_in |= members[at] == byte;
            at += 1;
        }
    }
    Some((end + 1, is_in != is_negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name) in [
            ("a", "a"),
            ("*", "any"),
            ("*.txt", "a.txt"),
            ("a*b*c", "axxbyybzc"),
            ("?", "x"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]x]", "]"),
            ("[a-]", "-"),
            ("a[", "a["),
            ("**", ""),
            ("ä*", "äpfel"),
        ] {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "b"), ("a", "ab"), ("?", ""), ("*.txt", "a.tx"), ("[a-c]", "d"), ("[!a]", "a")] {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        let long = "a".repeat(5_000);
        assert!(!matches(b"*a*a*a*a*b", long.as_bytes()));
    }

    #[test]
    fn a_pattern_finds_files_in_order_and_stays_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["b.txt", "a.txt", ".hidden.txt", "sub/c.txt", "sub/d.log", "with space"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, "x").expect("written");
        }
        let found = |pattern: &str| {
            let found = find(dir.path(), pattern.as_bytes()).expect("it reads");
            found.into_iter().map(|name| String::from_utf8(name).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(found("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(found("./*/?.*"), ["sub/c.txt", "sub/d.log"]);
        assert_eq!(found(".*.txt"), [".hidden.txt"]);
        assert_eq!(found("with space"), ["with space"]);
        assert_eq!(found("sub"), ["sub"]);
        for nothing in ["*.png", "a.txt/*", "../*", "/etc/*", "", "."] {
            assert_eq!(found(nothing), [""; 0], "{nothing}");
        }
    }
}
