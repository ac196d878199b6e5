//! Mounts of ours as the kernel lists them, and how they go.
//!
//! A worker that is killed leaves its mount behind, and whoever touches one that nobody answers for fails, or hangs. So no
//! path of a mount is ever looked at here: the kernel's list says where they are, and they are taken away unseen. A forced
//! unmount ends the waiting of whoever waits there; a lazy one goes also while somebody reads on.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use wire::NodeId;

/// Mounts stack; so many at one place are somebody's mistake.
const STACKED_MAX: usize = 100;

/// A mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub path: PathBuf,
    pub source: String,
    /// The minor number of its device, by which the kernel calls its connection.
    pub connection: u32,
}

/// What the mount of a node is called in the kernel's list, in one boot.
pub fn source(node: NodeId, boot: impl std::fmt::Display) -> String {
    format!("{}{boot}", prefix(node))
}

fn prefix(node: NodeId) -> String {
    format!("ziggurat:{node}:")
}

/// Takes away what earlier boots of the node left mounted; returns where.
pub fn remove(node: NodeId) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for _ in 0..STACKED_MAX {
        let Some(mount) = listed()?.into_iter().find(|mount| mount.source.starts_with(&prefix(node))) else {
            return Ok(removed);
        };
        unmount(&mount.path)?;
        if !removed.contains(&mount.path) {
            removed.push(mount.path);
        }
    }
    Err(io::Error::other("mounts of an earlier start come back again and again"))
}

/// The mount that is called so, if there is one.
pub fn find(source: &str) -> io::Result<Option<Listed>> {
    Ok(listed()?.into_iter().find(|mount| mount.source == source))
}

/// Takes the uppermost mount at `path` away, whoever uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the string lives until the call returns.
    let failed = unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn listed() -> io::Result<Vec<Listed>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Reads lines such as `36 35 0:98 / /mnt rw,noatime shared:1 - fuse.zg ziggurat:… rw`, the last mounted first.
fn parse(mounts: &[u8]) -> Vec<Listed> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        let path = unescape(fields.nth(1)?);
        fields.find(|field| *field == b"-")?;
        let source = String::from_utf8(unescape(fields.nth(1)?)).ok()?;
        let connection = device.split_once(':')?.1.parse().ok()?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        source.starts_with("ziggurat:").then_some(Listed { path, source, connection })
    };
    mounts.split(|byte| *byte == b'\n').rev().filter_map(line).collect()
}

/// The kernel writes blanks and the like as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found_among_others_the_last_first() {
        let mounts = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            36 22 0:98 / /run/a\\040b\\134 ro shared:1 master:2 - fuse.zg ziggurat:n:1 rw,user_id=0\n\
            37 22 0:99 / /mnt rw - fuse.sshfs host: rw\n\
            38 22 0:100 / /run/c ro - fuse.zg ziggurat:n:2 rw\nnonsense\n";
        let found: Vec<_> =
            parse(mounts).into_iter().map(|mount| (mount.path, mount.source, mount.connection)).collect();
        let expected = [("/run/c", "ziggurat:n:2", 100), ("/run/a b\\", "ziggurat:n:1", 98)];
        assert_eq!(found, expected.map(|(path, source, minor)| (PathBuf::from(path), source.to_owned(), minor)));
    }
}
