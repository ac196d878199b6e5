//! How far the log is known to be durable, written down beside it.
//!
//! A log that ends in garbage looks the same whether a crash tore a write that nobody had been told of, or the disk
//! spoiled one that somebody had. So writes to the log are numbered, and `SYNCED` holds the number of the last that was
//! synced: a log that ends below it has lost what was acknowledged. The mark is overwritten in place and not synced
//! itself, which would double the cost of a write. So it is exact after the process is killed; after a power loss it may
//! lag by what the kernel had not written back, but it is never ahead of the log.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::data_dir::write_new;

const NAME: &str = "SYNCED";

/// The file.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    /// What it held when it was opened.
    pub(super) synced: u64,
}

impl Mark {
    /// Opens the mark of a directory; makes one that marks nothing if there is none.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(NAME);
        if !path.exists() {
            write_new(&path, &encode(0))?;
        }
        let bytes = std::fs::read(&path)?;
        let synced = decode(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display())))?;
        let file = File::options().write(true).open(&path)?;
        Ok(Self { path, file, synced })
    }

    /// The log is durable up to this write.
    pub(super) fn set(&self, number: u64) {
        if let Err(error) = self.file.write_all_at(&encode(number), 0) {
            // It lags then: a damaged end of the log may be taken for a torn one, but a whole log is never refused.
            tracing::warn!(path = %self.path.display(), %error, "the mark of what is durable was not written");
        }
    }
}

/// The number and its complement, so that garbage is no number.
fn encode(number: u64) -> [u8; 16] {
    (u128::from(number) << 64 | u128::from(!number)).to_le_bytes()
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let number = (u128::from_le_bytes(bytes.try_into().ok()?) >> 64) as u64;
    (encode(number) == *bytes).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_set_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark::open(dir.path()).unwrap();
        assert_eq!(mark.synced, 0);
        mark.set(7);
        mark.set(1 << 40);
        assert_eq!(Mark::open(dir.path()).unwrap().synced, 1 << 40);
    }

    #[test]
    fn a_damaged_mark_is_named() {
        let dir = tempfile::tempdir().unwrap();
        Mark::open(dir.path()).unwrap();
        for damaged in [&[0u8; 16][..], b"", b"7"] {
            std::fs::write(dir.path().join(NAME), damaged).unwrap();
            let refused = Mark::open(dir.path()).err().expect("it is refused").to_string();
            assert!(refused.contains(NAME), "{refused}");
        }
    }
}
