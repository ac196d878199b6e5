//! Snapshot files: the state as bytes, then the BLAKE3 of those bytes.
//!
//! A file is written beside its name and renamed when it is durable, so a name means a whole file. The two newest are
//! kept. One whose hash differs is never skipped: the log no longer holds what it held.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::data_dir::write_new;

const DIR: &str = "snapshots";
const SUFFIX: &str = ".snapshot";
const HASH_SIZE: usize = 32;
/// The newest and the one before.
const KEPT: usize = 2;

/// Says why snapshots cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} is damaged: its hash differs. Restore this file from a copy; a master must not start without it, because \
         the log no longer holds what it held", path.display()
    )]
    Damaged { path: PathBuf },
}

/// The bytes of the newest snapshot; `None` = there is none yet.
pub(super) fn load(dir: &Path) -> Result<Option<Vec<u8>>, SnapshotError> {
    let dir = dir.join(DIR);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SnapshotError::Io { path, source }
    };
    fs::create_dir_all(&dir).map_err(failed(&dir))?;
    let Some(path) = list(&dir).map_err(failed(&dir))?.pop() else { return Ok(None) };
    let mut bytes = fs::read(&path).map_err(failed(&path))?;
    let content_size = bytes.len().checked_sub(HASH_SIZE);
    let is_whole = content_size.is_some_and(|size| content::hash_bytes(&bytes[..size]).0 == bytes[size..]);
    if !is_whole {
        return Err(SnapshotError::Damaged { path });
    }
    bytes.truncate(bytes.len() - HASH_SIZE);
    Ok(Some(bytes))
}

/// Makes the snapshot as of `index` durable, then drops all but the newest two.
pub(super) fn save(dir: &Path, index: u64, mut bytes: Vec<u8>) -> io::Result<()> {
    let dir = dir.join(DIR);
    let hash = content::hash_bytes(&bytes);
    bytes.extend_from_slice(&hash.0);
    // As many digits as the largest index has, so that names sort as indexes do.
    write_new(&dir.join(format!("{index:020}{SUFFIX}")), &bytes)?;
    let snapshots = list(&dir)?;
    for old in &snapshots[..snapshots.len().saturating_sub(KEPT)] {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// The snapshot files, oldest first.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_str().is_some_and(|path| path.ends_with(SUFFIX)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_snapshot_is_loaded_and_two_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for index in [9, 100, 20] {
            save(dir.path(), index, format!("state {index}").into_bytes()).unwrap();
        }
        assert_eq!(load(dir.path()).unwrap().unwrap(), b"state 100");
        assert_eq!(fs::read_dir(dir.path().join(DIR)).unwrap().count(), KEPT);
    }

    #[test]
    fn a_damaged_snapshot_is_named_and_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).unwrap();
        save(dir.path(), 1, b"old".to_vec()).unwrap();
        save(dir.path(), 2, b"new".to_vec()).unwrap();
        let newest = list(&dir.path().join(DIR)).unwrap().pop().unwrap();
        for damaged in [&b"nEw"[..], b""] {
            let mut bytes = fs::read(&newest).unwrap();
            bytes.truncate(bytes.len().min(HASH_SIZE + 3));
            bytes.splice(..bytes.len() - HASH_SIZE, damaged.iter().copied());
            fs::write(&newest, &bytes).unwrap();
            let refused = load(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(newest.to_str().unwrap()), "{refused}");
        }
    }
}
