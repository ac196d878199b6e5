//! Input trees where nothing is mounted: written out below the job's inputs, from what the cache holds.
//!
//! Files have the times that the tree gives them, because programs compare them: Python compiles a module again whose source
//! is not of the time that it was compiled for. A file too large for that to matter is a link into the cache, as plain
//! inputs are, and has the age of those.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use content::{WriteTree, finish_entry, write_entry, write_tree};
use wire::tree::{Entry, PACK_SIZE_MAX, SIZE_MAX, Tree, TreeFile};
use wire::{FileId, Hash, JobId};

use super::cache::Cache;

/// How often a cached file may turn out not to be as it was before it is read.
const READS_MAX: u32 = 4;

/// Writes the tree `file` for the job as the directory `to`, which is not there yet. All that it needs is brought by `bring`; `gate` is
/// held while something that can be executed is open for writing.
pub(super) fn write_out(
    cache: &Cache,
    job: JobId,
    (file, hash): (FileId, Option<Hash>),
    to: &Path,
    gate: &Mutex<()>,
    bring: impl FnMut(FileId, Option<Hash>) -> Result<(), String>,
) -> Result<(), String> {
    let mut from = FromCache { cache, job, gate, bring };
    let bytes = from.read(file, hash, SIZE_MAX)?;
    let tree = Tree::decode(bytes).map_err(|error| error.to_string())?;
    write_tree(&tree, to, &mut from)
}

struct FromCache<'a, B> {
    cache: &'a Cache,
    job: JobId,
    gate: &'a Mutex<()>,
    bring: B,
}

impl<B: FnMut(FileId, Option<Hash>) -> Result<(), String>> FromCache<'_, B> {
    /// All bytes of a cached file, of `size_max` at most.
    fn read(&mut self, file: FileId, hash: Option<Hash>, size_max: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        self.with_cached(file, hash, false, |path| {
            let length = path.metadata()?.len();
            if length > size_max {
                return Err(io::Error::other(format!("{length} bytes are more than the {size_max} that it may have")));
            }
            bytes = fs::read(path)?;
            Ok(())
        })
        .map_err(|why| format!("{file}: {why}"))?;
        Ok(bytes)
    }

    /// Gives the path of a cached file to `use_it`, again when the file was written to meanwhile. `is_lent` = it makes a link.
    fn with_cached(
        &mut self,
        file: FileId,
        hash: Option<Hash>,
        is_lent: bool,
        mut use_it: impl FnMut(&Path) -> io::Result<()>,
    ) -> Result<(), String> {
        for _ in 0..READS_MAX {
            (self.bring)(file, hash)?;
            let placed = match is_lent {
                true => self.cache.lend(self.job, file, &mut use_it),
                false => self.cache.place(file, &mut use_it),
            };
            if placed.map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
        Err("a program writes to it again and again".into())
    }
}

impl<B: FnMut(FileId, Option<Hash>) -> Result<(), String>> WriteTree for FromCache<'_, B> {
    type Error = String;

    fn read_pack(&mut self, pack: &TreeFile) -> Result<Vec<u8>, String> {
        self.read(pack.file(), Some(pack.hash), PACK_SIZE_MAX)
    }

    fn write_whole(&mut self, file: &TreeFile, entry: &Entry, path: &Path) -> Result<(), String> {
        let gate = self.gate;
        let is_lent = !entry.is_executable() && entry.length() > PACK_SIZE_MAX;
        let placed = self.with_cached(file.file(), Some(file.hash), is_lent, |cached| {
            if path.symlink_metadata().is_ok() {
                // The last one was written to while it was placed.
                fs::remove_file(path)?;
            }
            if is_lent {
                match fs::hard_link(cached, path) {
                    // As many links as the file system allows.
                    Err(error) if error.raw_os_error() == Some(libc::EMLINK) => {}
                    linked => return linked,
                }
            }
            let _gate = entry.is_executable().then(|| gate.lock().unwrap_or_else(PoisonError::into_inner));
            fs::copy(cached, path)?;
            finish_entry(&File::open(path)?, entry, true)
        });
        placed.map_err(|why| format!("{}: {why}", path.display()))
    }

    fn write_piece(&mut self, bytes: &[u8], entry: &Entry, path: &Path) -> Result<(), String> {
        // A copy of the descriptor in a program that starts just now would keep this one from being executed.
        let _gate = entry.is_executable().then(|| self.gate.lock().unwrap_or_else(PoisonError::into_inner));
        write_entry(bytes, entry, path, true).map_err(|error| self.failed(path, error))
    }

    fn failed(&self, path: &Path, error: io::Error) -> String {
        format!("{}: {error}", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use content::{Expected, Store, hash_bytes};
    use std::os::unix::fs::MetadataExt;
    use wire::NodeId;
    use wire::tree::TreeWriter;

    fn store(cache: &Cache, bytes: &[u8]) -> (FileId, Option<Hash>) {
        cache.store.begin(1, Some(bytes.len() as u64)).expect("room");
        for (at, block) in bytes.chunks(1 << 20).enumerate() {
            cache.store.write(1, (at << 20) as u64, block).expect("room");
        }
        let stored = cache.store.commit(1, Expected::Anything, bytes.len() as u64).expect("it is right");
        cache.seal(stored.file).expect("it is here");
        (stored.file, Some(stored.hash))
    }

    #[test]
    fn a_tree_is_written_out_of_the_cache() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(Store::open(&dir.path().join("cache"), NodeId([1; 16])).expect("a store"), 1 << 30)
            .expect("a cache");
        let pack = b"#!/bin/sh\nonetwo";
        let large = vec![7; PACK_SIZE_MAX as usize + 1];
        let (middle, hash) = (vec![5; 100_000], hash_bytes(&large));
        let mut to = TreeWriter::new(1);
        to.add_stored(hash_bytes(pack), pack.len() as u64);
        to.add_stored(hash, large.len() as u64);
        to.add_stored(hash_bytes(&middle), middle.len() as u64);
        store(&cache, pack);
        store(&cache, &middle);
        to.open_directory(0);
        let files = [(&b"large"[..], large.len()), (b"middle", middle.len()), (b"one", 3), (b"run", 10)]
            .map(|(name, length)| to.add_file(name, 1234, name == b"run", length as u64));
        to.close_directory(0);
        to.set_content(files[0], hash, Some((1, 0)));
        to.set_content(files[1], hash_bytes(&middle), Some((2, 0)));
        to.set_content(files[2], hash_bytes(b"one"), Some((0, 10)));
        to.set_content(files[3], hash_bytes(b"#!/bin/sh\n"), Some((0, 0)));
        let tree = store(&cache, &to.finish());

        let (root, gate) = (dir.path().join("in"), Mutex::new(()));
        let mut asked = Vec::new();
        let mut bring = |file: FileId, _| {
            asked.push(file);
            if file == FileId::of(hash) && !cache.holds(file, Some(hash)) {
                assert_eq!(store(&cache, &large).1, Some(hash));
            }
            Ok(())
        };
        write_out(&cache, JobId::NIL, tree, &root, &gate, &mut bring).expect("it is written");
        assert_eq!(asked.len(), 4, "the tree, its pack and two files, each once");
        assert_eq!(fs::read(root.join("one")).expect("it is there"), b"one");
        let look = |name: &str| root.join(name).metadata().expect("it is there");
        assert_eq!((look("run").mode() & 0o777, look("run").mtime()), (0o555, 1234));
        assert_eq!((look("middle").mode() & 0o777, look("middle").mtime()), (0o444, 1234));
        assert_eq!((look("large").nlink(), look("large").len()), (2, PACK_SIZE_MAX + 1), "a link into the cache");
        assert!(cache.holds(FileId::of(hash), None), "and the cache is as it was");
    }

    #[test]
    fn what_is_no_tree_is_told_in_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(Store::open(&dir.path().join("cache"), NodeId([1; 16])).expect("a store"), 1 << 30)
            .expect("a cache");
        let plain = store(&cache, b"plain text, and nothing that looks like a tree");
        let why = write_out(&cache, JobId::NIL, plain, &dir.path().join("in"), &Mutex::new(()), |_, _| Ok(()));
        assert_eq!(why, Err("it is no tree: it does not begin as one".into()));
        let gone =
            write_out(&cache, JobId::NIL, plain, &dir.path().join("in"), &Mutex::new(()), |_, _| Err("gone".into()));
        assert_eq!(gone, Err(format!("{}: gone", plain.0)));
    }
}
