//! What a put reads: bytes and pieces of files, one after the other, as one content.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use wire::Hash;
use wire::limit::MIB;

use crate::Hasher;

use super::PutError;

/// One part of a content.
#[derive(Debug)]
pub enum Part {
    Bytes(Vec<u8>),
    /// `length` bytes of the file at `path` from `offset` on.
    File {
        path: PathBuf,
        offset: u64,
        length: u64,
    },
    /// The first `length` bytes of an open file.
    Open {
        file: File,
        length: u64,
    },
}

impl Part {
    /// Bytes.
    pub fn length(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File { length, .. } | Part::Open { length, .. } => *length,
        }
    }
}

/// A content to put, readable at any offset and as often as a lost connection demands.
#[derive(Debug)]
pub struct Source {
    parts: Vec<Part>,
    /// Where each part begins.
    starts: Vec<u64>,
    length: u64,
    /// The file read last: a bundle may have more files than a process may have open.
    open: Option<(PathBuf, File)>,
}

impl Source {
    pub fn new(parts: Vec<Part>) -> Self {
        let mut length = 0;
        let mut starts = Vec::with_capacity(parts.len());
        for part in &parts {
            starts.push(length);
            length += part.length();
        }
        Self { parts, starts, length, open: None }
    }

    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self::new(vec![Part::Bytes(bytes)])
    }

    /// The whole regular file at `path`, as long as it is now.
    pub fn of_file(path: &Path) -> Result<Self, PutError> {
        let open = || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_file() {
                Ok((file, metadata.len()))
            } else {
                Err(io::Error::other("it is not a regular file"))
            }
        };
        let (file, length) = open().map_err(|error| local(path.display(), &error))?;
        drop(file);
        Ok(Self::new(vec![Part::File { path: path.to_path_buf(), offset: 0, length }]))
    }

    /// All that `reader` gives, of whatever length: it is kept in an unnamed temporary file first, because a put reads its
    /// content once for the hash and again after every loss, and a pipe gives it only once.
    pub fn of_reader(mut reader: impl Read) -> Result<Self, PutError> {
        let mut spool = || {
            let mut file = unnamed_file()?;
            let length = io::copy(&mut reader, &mut file)?;
            file.flush()?;
            Ok((file, length))
        };
        let (file, length) = spool().map_err(|error: io::Error| {
            let dir = std::env::temp_dir();
            local(format!("keeping the content in {} (TMPDIR names another place)", dir.display()), &error)
        })?;
        Ok(Self::new(vec![Part::Open { file, length }]))
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads everything once for its hash.
    pub fn hash(&mut self) -> Result<Hash, PutError> {
        let mut hasher = Hasher::default();
        let mut offset = 0;
        while offset < self.length {
            let length = (self.length - offset).min(MIB as u64) as usize;
            hasher.update(&self.read(offset, length)?);
            offset += length as u64;
        }
        Ok(hasher.finish())
    }

    /// The `length` bytes at `offset`, which lie within the content.
    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, PutError> {
        let mut bytes = vec![0; length];
        let mut at = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let mut filled = 0;
        while filled < length {
            let within = offset + filled as u64 - self.starts[at];
            let rest = self.parts[at].length() - within;
            let count = rest.min((length - filled) as u64) as usize;
            self.read_part(at, within, &mut bytes[filled..filled + count])?;
            filled += count;
            at += 1;
        }
        Ok(bytes)
    }

    fn read_part(&mut self, at: usize, within: u64, into: &mut [u8]) -> Result<(), PutError> {
        match &self.parts[at] {
            Part::Bytes(bytes) => {
                into.copy_from_slice(&bytes[within as usize..within as usize + into.len()]);
                Ok(())
            }
            Part::Open { file, .. } => {
                file.read_exact_at(into, within).map_err(|error| local("reading the content again", &error))
            }
            Part::File { path, offset, .. } => {
                let at = offset + within;
                let mut read = || {
                    if self.open.as_ref().is_none_or(|(open, _)| open != path) {
                        self.open = Some((path.clone(), File::open(path)?));
                    }
                    let (_, file) = self.open.as_ref().expect("it was opened above");
                    file.read_exact_at(into, at)
                };
                read().map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => local(path.display(), "it became shorter while it was read"),
                    _ => local(path.display(), &error),
                })
            }
        }
    }
}

pub(super) fn local(what: impl std::fmt::Display, why: impl std::fmt::Display) -> PutError {
    PutError::Local { what: what.to_string(), why: why.to_string() }
}

/// A file that ends with its descriptor, in the directory for temporary files.
fn unnamed_file() -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!("zg-put-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
            // A process with our number was killed here once.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_bytes;

    #[test]
    fn parts_read_as_one_content_at_any_offset() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"xxcdefxx").expect("written");
        let file = Part::File { path, offset: 2, length: 4 };
        let empty = || Part::Bytes(Vec::new());
        let mut source =
            Source::new(vec![empty(), Part::Bytes(b"ab".to_vec()), empty(), file, Part::Bytes(b"gh".to_vec())]);
        assert_eq!(source.length(), 8);
        for from in 0..=8 {
            for to in from..=8 {
                assert_eq!(source.read(from as u64, to - from).expect("it is there"), &b"abcdefgh"[from..to]);
            }
        }
        assert_eq!(source.hash().expect("it is there"), hash_bytes(b"abcdefgh"));
    }

    #[test]
    fn what_a_pipe_gave_can_be_read_again() {
        let mut source = Source::of_reader(&b"once"[..]).expect("it is kept");
        assert_eq!(source.hash().expect("it is there"), hash_bytes(b"once"));
        assert_eq!(source.read(1, 3).expect("it is there"), b"nce");
        assert_eq!(
            Source::of_reader(io::empty()).expect("nothing is a content").hash().expect("here"),
            hash_bytes(b"")
        );
    }

    #[test]
    fn a_file_that_shrinks_is_told_by_its_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("shrinking");
        std::fs::write(&path, b"abc").expect("written");
        let mut source = Source::of_file(&path).expect("it is there");
        std::fs::write(&path, b"a").expect("written");
        let error = source.read(0, 3).expect_err("it is shorter now").to_string();
        assert!(error.contains("shrinking") && error.contains("shorter"), "{error}");
        assert!(Source::of_file(dir.path()).is_err(), "a directory is not a content");
    }
}
