//! What runs wrote and nobody has confirmed, and how it becomes a bundle.
//!
//! A bundle is an index of the outputs, then standard output, then standard error, then the outputs. Directories are not
//! kept for themselves, only the files in them; links and special files are not kept, and a line at the end of standard
//! error says so.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{Part, hash_file};
use wire::record::{Bundle, OutputEntry, encode_output_index};
use wire::{FileId, bytes_text};

use super::glob;
use super::program::{RunOf, Surroundings};
use crate::core::Order;

/// Files that one chunk may keep.
const OUTPUTS_MAX: usize = 65_536;
/// Directories in one another that outputs may lie in. No stack holds the ten thousand that a program may leave.
const DEPTH_MAX: usize = 256;

/// What is kept of the streams of a run for which there is no room, in bytes.
const HEADS_SIZE_MAX: u64 = 32 * 1024;

/// Part of a stream.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    File { path: PathBuf, length: u64 },
}

/// What one run wrote, until it is confirmed.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) run: u64,
    pub(super) order: Arc<Order>,
    pub(super) chunk: u32,
    pub(super) attempt: u32,
    pub(super) stdout: Vec<Piece>,
    pub(super) stderr: Vec<Piece>,
    /// What was the output directory.
    pub(super) out: Option<PathBuf>,
    /// Where the declared outputs are to be found.
    pub(super) work: Option<PathBuf>,
    /// The directory of everything that was put aside, if there is one.
    pub(super) aside: PathBuf,
    /// Why not all of it could be put aside.
    pub(super) failure: Option<String>,
}

/// The parts of a bundle, and where each lies in it.
pub(super) struct Packed {
    pub(super) parts: Vec<Part>,
    /// With the offset and the file still to be set.
    pub(super) bundle: Bundle,
    /// A declared output is missing, cannot be read, or there is too much: only the streams are kept.
    pub(super) is_refused: bool,
}

impl Packed {
    /// Bytes.
    pub(super) fn length(&self) -> u64 {
        let bundle = &self.bundle;
        bundle.index_length + bundle.stdout_length + bundle.stderr_length + bundle.outputs_length
    }
}

/// An output that was found.
struct Output {
    name: Vec<u8>,
    path: PathBuf,
    length: u64,
    mode: u32,
}

/// Finds the outputs of a run.
#[derive(Default)]
struct Found {
    outputs: Vec<Output>,
    is_too_deep: bool,
    names: BTreeSet<Vec<u8>>,
    length: u64,
    /// Told at the end of standard error.
    notes: Vec<String>,
}

impl Kept {
    /// Bytes that it holds in memory.
    pub(super) fn memory(&self) -> usize {
        let memory = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::File { .. } => 0,
        };
        self.stdout.iter().chain(&self.stderr).map(memory).sum()
    }

    /// Makes a bundle of what was kept; the files stay where they are.
    pub(super) fn pack(&self, surroundings: &Surroundings, output_size_max: u64) -> Packed {
        let size_max = self.size_max(output_size_max);
        let mut found = Found::default();
        let read = self.find(surroundings, size_max, &mut found).and_then(|refusal| match refusal {
            Some(refusal) => Ok(Err(refusal)),
            None => found.entries().map(Ok),
        });
        match read {
            Ok(Ok(entries)) => self.bundle(found, &entries, size_max, false),
            Ok(Err(refusal)) => self.without_outputs(found.notes, refusal, size_max),
            Err(error) => self.without_outputs(found.notes, format!("the outputs cannot be read: {error}"), size_max),
        }
    }

    /// Makes a bundle of the streams alone, which says `why` there is no more.
    pub(super) fn pack_streams(&self, why: String, output_size_max: u64) -> Packed {
        self.without_outputs(Vec::new(), why, self.size_max(output_size_max))
    }

    /// The same with no more than the beginnings of the streams.
    pub(super) fn pack_heads(&self, why: String) -> Packed {
        self.without_outputs(Vec::new(), why, HEADS_SIZE_MAX)
    }

    /// Bytes that the run may keep.
    fn size_max(&self, output_size_max: u64) -> u64 {
        let of_job = self.order.spec.output_size_max;
        if of_job > 0 { of_job } else { output_size_max }
    }

    fn without_outputs(&self, mut notes: Vec<String>, refusal: String, size_max: u64) -> Packed {
        notes.push(refusal);
        self.bundle(Found { notes, ..Found::default() }, &[], size_max, true)
    }

    fn bundle(&self, mut found: Found, entries: &[OutputEntry], size_max: u64, is_refused: bool) -> Packed {
        let (stdout_length, stderr_length) = (length_of(&self.stdout), length_of(&self.stderr));
        // A stream may have more than half only of what the other leaves: a flood on one does not drown the other.
        let stdout_kept = stdout_length.min(size_max - stderr_length.min(size_max / 2));
        let stderr_kept = stderr_length.min(size_max - stdout_kept);
        for (stream, kept, length) in [("output", stdout_kept, stdout_length), ("error", stderr_kept, stderr_length)] {
            if kept < length {
                found.notes.push(format!("standard {stream} is cut: {} bytes more are not kept", length - kept));
            }
        }
        let index = if entries.is_empty() { Vec::new() } else { encode_output_index(entries) };
        let notes: String = found.notes.iter().map(|note| format!("zg: {note}\n")).collect();
        let bundle = Bundle {
            file: FileId::NIL,
            file_index: 0,
            offset: 0,
            index_length: index.len() as u64,
            stdout_length: stdout_kept,
            stderr_length: stderr_kept + notes.len() as u64,
            outputs_length: found.outputs.iter().map(|output| output.length).sum(),
        };
        let mut parts = vec![Part::Bytes(index)];
        parts.extend(head(&self.stdout, stdout_kept).chain(head(&self.stderr, stderr_kept)));
        parts.push(Part::Bytes(notes.into_bytes()));
        let files = found.outputs.into_iter();
        parts.extend(files.map(|output| Part::File { path: output.path, offset: 0, length: output.length }));
        Packed { parts, bundle, is_refused }
    }

    /// Finds everything that is to be kept; an answer says why it cannot be.
    fn find(&self, surroundings: &Surroundings, size_max: u64, found: &mut Found) -> io::Result<Option<String>> {
        if self.failure.is_some() {
            return Ok(self.failure.clone());
        }
        if let Some(out) = &self.out {
            found.add_tree(out, Vec::new())?;
        }
        let spec = &self.order.spec;
        if let Some(work) = &self.work {
            let of = RunOf { order: &self.order, run: self.run, chunk: self.chunk, attempt: self.attempt };
            for pattern in &spec.outputs {
                let pattern = surroundings.expand_path(of, pattern);
                let names = glob::find(work, &pattern)?;
                if names.is_empty() {
                    return Ok(Some(format!("no output matches '{}'", bytes_text(&pattern))));
                }
                for name in names {
                    self.add_declared(work, name, found)?;
                }
            }
        }
        if found.is_too_deep {
            return Ok(Some(format!("the outputs lie more than {DEPTH_MAX} directories deep")));
        }
        let length = found.length + length_of(&self.stdout) + length_of(&self.stderr);
        if length > size_max {
            return Ok(Some(format!("the outputs have {length} bytes, at most {size_max} are kept")));
        }
        if found.outputs.len() > OUTPUTS_MAX {
            return Ok(Some(format!("there are more than {OUTPUTS_MAX} output files")));
        }
        Ok(None)
    }

    /// Adds what a pattern matched. A file that is not in a directory of our own is copied, lest somebody changes it.
    fn add_declared(&self, work: &Path, name: Vec<u8>, found: &mut Found) -> io::Result<()> {
        let mut matched = Found::default();
        matched.add(&work.join(OsStr::from_bytes(&name)), name)?;
        let is_own = work.starts_with(&self.aside);
        for mut output in matched.outputs {
            if found.names.contains(&output.name) {
                continue;
            }
            if !is_own {
                let copies = self.aside.join("copies");
                fs::create_dir_all(&copies)?;
                let copy = copies.join(found.outputs.len().to_string());
                output.length = fs::copy(&output.path, &copy)?;
                output.path = copy;
            }
            found.push(output);
        }
        found.is_too_deep |= matched.is_too_deep;
        found.notes.append(&mut matched.notes);
        Ok(())
    }
}

impl Found {
    fn add_tree(&mut self, directory: &Path, prefix: Vec<u8>) -> io::Result<()> {
        let mut names: Vec<Vec<u8>> =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().into_vec())).collect::<io::Result<_>>()?;
        // Equal outputs make equal bundles.
        names.sort();
        for name in names {
            let path = directory.join(OsStr::from_bytes(&name));
            let name = if prefix.is_empty() { name } else { [&prefix[..], b"/", &name[..]].concat() };
            self.add(&path, name)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: Vec<u8>) -> io::Result<()> {
        // More would be refused anyway; a program may leave millions.
        if self.outputs.len() > OUTPUTS_MAX || self.is_too_deep {
            return Ok(());
        }
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_dir() {
            self.is_too_deep = name.iter().filter(|byte| **byte == b'/').count() >= DEPTH_MAX;
            return if self.is_too_deep { Ok(()) } else { self.add_tree(path, name) };
        }
        if !metadata.is_file() {
            self.notes.push(format!("'{}' is {} and is not kept", bytes_text(&name), kind(&metadata)));
            return Ok(());
        }
        let mode = metadata.permissions().mode() & 0o777;
        self.push(Output { name, path: path.to_path_buf(), length: metadata.len(), mode });
        Ok(())
    }

    /// What the index says of the outputs.
    fn entries(&self) -> io::Result<Vec<OutputEntry>> {
        let entry = |output: &Output| {
            let (hash, length) = hash_file(File::open(&output.path)?)?;
            if length != output.length {
                return Err(io::Error::other(format!("'{}' changes still", bytes_text(&output.name))));
            }
            Ok(OutputEntry { name: output.name.clone(), length, hash, mode: output.mode })
        };
        self.outputs.iter().map(entry).collect()
    }

    fn push(&mut self, output: Output) {
        self.length += output.length;
        self.names.insert(output.name.clone());
        self.outputs.push(output);
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_symlink() { "a symbolic link" } else { "no regular file" }
}

fn length_of(pieces: &[Piece]) -> u64 {
    let length = |piece: &Piece| match piece {
        Piece::Bytes(bytes) => bytes.len() as u64,
        Piece::File { length, .. } => *length,
    };
    pieces.iter().map(length).sum()
}

/// The first `rest` bytes of a stream, or all of it.
fn head(pieces: &[Piece], mut rest: u64) -> impl Iterator<Item = Part> {
    pieces.iter().map(move |piece| {
        let part = match piece {
            Piece::Bytes(bytes) => Part::Bytes(bytes[..bytes.len().min(rest as usize)].to_vec()),
            Piece::File { path, length } => Part::File { path: path.clone(), offset: 0, length: rest.min(*length) },
        };
        rest -= part.length();
        part
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use content::Source;
    use wire::job::JobSpec;
    use wire::record::decode_output_index;
    use wire::{JobId, NodeId};

    fn a_kept(aside: &Path, outputs: &[&str]) -> Kept {
        let spec = JobSpec { outputs: outputs.iter().map(|it| it.as_bytes().to_vec()).collect(), ..JobSpec::default() };
        let (job, program, inputs) = (JobId([1; 16]), Vec::new(), Vec::new());
        Kept {
            run: 1,
            order: Arc::new(Order { job, number: 1, chunk_count: 1, program, inputs, spec }),
            chunk: 0,
            attempt: 1,
            stdout: vec![Piece::Bytes(b"out".to_vec())],
            stderr: Vec::new(),
            out: None,
            work: None,
            aside: aside.to_path_buf(),
            failure: None,
        }
    }

    fn pack(kept: &Kept, size_max: u64) -> (Bundle, Vec<u8>, bool) {
        let packed = kept.pack(&Surroundings::new(NodeId([2; 16])), size_max);
        let length = packed.length();
        let mut source = Source::new(packed.parts);
        assert_eq!(source.length(), length);
        (packed.bundle, source.read(0, length as usize).expect("it reads"), packed.is_refused)
    }

    #[test]
    fn a_bundle_is_index_streams_and_outputs() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = a_kept(dir.path(), &[]);
        let out = dir.path().join("out");
        fs::create_dir_all(out.join("sub")).expect("made");
        fs::write(out.join("sub/b c"), "second").expect("written");
        fs::write(out.join("a"), "first").expect("written");
        fs::set_permissions(out.join("a"), fs::Permissions::from_mode(0o755)).expect("it is ours");
        std::os::unix::fs::symlink("/etc/passwd", out.join("link")).expect("made");
        kept.out = Some(out);
        let (bundle, bytes, is_refused) = pack(&kept, 1_000);
        assert!(!is_refused);
        let (index, rest) = bytes.split_at(bundle.index_length as usize);
        assert_eq!(rest, b"outzg: 'link' is a symbolic link and is not kept\nfirstsecond");
        assert_eq!((bundle.stdout_length, bundle.outputs_length), (3, 11));
        let entries = decode_output_index(index).expect("it is an index");
        let told: Vec<_> = entries.iter().map(|it| (&it.name[..], it.length, it.mode)).collect();
        assert_eq!(told, [(&b"a"[..], 5, 0o755), (b"sub/b c", 6, 0o644)]);
    }

    #[test]
    fn declared_outputs_are_found_and_files_of_others_are_copied() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = a_kept(&dir.path().join("aside"), &["*.txt"]);
        let work = dir.path().join("elsewhere");
        fs::create_dir(&work).expect("made");
        fs::write(work.join("a.txt"), "text").expect("written");
        kept.work = Some(work.clone());
        let packed = kept.pack(&Surroundings::new(NodeId([2; 16])), 1_000);
        fs::write(work.join("a.txt"), "changed").expect("written");
        let length = packed.length();
        let bytes = Source::new(packed.parts).read(0, length as usize).expect("it reads");
        assert!(bytes.ends_with(b"outtext"));
    }

    #[test]
    fn a_missing_or_too_large_output_is_refused_and_streams_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = a_kept(dir.path(), &["*.png"]);
        kept.work = Some(dir.path().to_path_buf());
        let (bundle, bytes, is_refused) = pack(&kept, 1_000);
        assert!(is_refused);
        assert_eq!(bytes, b"outzg: no output matches '*.png'\n");
        assert_eq!((bundle.index_length, bundle.outputs_length), (0, 0));
        let mut kept = a_kept(dir.path(), &[]);
        fs::create_dir(dir.path().join("out")).expect("made");
        fs::write(dir.path().join("out/large"), "large").expect("written");
        kept.out = Some(dir.path().join("out"));
        assert_eq!(pack(&kept, 7).1, b"outzg: the outputs have 8 bytes, at most 7 are kept\n");
    }

    #[test]
    fn outputs_that_lie_too_deep_are_refused_without_going_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = a_kept(dir.path(), &[]);
        let out = dir.path().join("out");
        let deepest = out.join("d/".repeat(DEPTH_MAX));
        fs::create_dir_all(&deepest).expect("made");
        fs::write(deepest.join("kept"), "kept").expect("written");
        kept.out = Some(out);
        assert!(pack(&kept, 10_000).1.ends_with(b"outkept"));
        // An empty one too: who knows what lies in it.
        fs::create_dir(deepest.join("d")).expect("made");
        let refusal = format!("outzg: the outputs lie more than {DEPTH_MAX} directories deep\n");
        let (bundle, bytes, is_refused) = pack(&kept, 10_000);
        assert_eq!((String::from_utf8(bytes).expect("text"), bundle.outputs_length, is_refused), (refusal, 0, true));
        let mut kept = a_kept(&dir.path().join("aside"), &["out"]);
        kept.work = Some(dir.path().to_path_buf());
        assert!(pack(&kept, 10_000).2, "a declared output is no different");
    }

    #[test]
    fn streams_beyond_the_limit_are_cut_and_standard_error_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = dir.path().join("spool");
        fs::write(&spool, "0123456789").expect("written");
        let mut kept = a_kept(dir.path(), &[]);
        kept.stdout.push(Piece::File { path: spool, length: 10 });
        kept.stderr = vec![Piece::Bytes(b"err".to_vec())];
        let (bundle, bytes, is_refused) = pack(&kept, 16);
        assert!(!is_refused);
        assert_eq!(bytes, b"out0123456789err");
        let (bundle_cut, bytes, is_refused) = pack(&kept, 8);
        assert!(is_refused);
        let notes = "zg: the outputs have 16 bytes, at most 8 are kept\nzg: standard output is cut: 8 bytes more are not kept\n";
        assert_eq!(String::from_utf8(bytes).expect("text"), format!("out01err{notes}"));
        assert_eq!((bundle.stdout_length, bundle_cut.stdout_length), (13, 5));
        // Both are too long: half each, even when the outputs were not looked for.
        kept.failure = Some("no".into());
        let notes = "zg: no\nzg: standard output is cut: 11 bytes more are not kept\nzg: standard error is cut: 1 bytes more are not kept\n";
        assert_eq!(String::from_utf8(pack(&kept, 4).1).expect("text"), format!("ouer{notes}"));
    }

    #[test]
    fn an_output_that_cannot_be_read_leaves_the_streams_and_a_line_that_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = a_kept(dir.path(), &[]);
        kept.out = Some(dir.path().join("gone"));
        let (_, bytes, is_refused) = pack(&kept, 1_000);
        assert!(is_refused);
        assert!(bytes.starts_with(b"outzg: the outputs cannot be read: "));
    }
}
