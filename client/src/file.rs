//! Files to and from storage: what a local file is, whether the cluster has it, its bytes there and back.
//!
//! Bytes go straight to a storage node, never through a master; the masters learn of a file by its receipt. What to send
//! and what to ask for again is decided by `content`; here the frames go out and the bytes come in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use content::{Fetch, FetchAnswer, FetchError, FetchSettings, Hasher, PutError, Source};
use node::Frame;
use wire::record::{Bundle, OutputEntry, decode_output_index};
use wire::tree::CLASS_TREE;
use wire::{ErrorCode, FileAddress, FileId, Hash, Message};

use crate::batch::Trust;
use crate::{ClientError, Connection};

/// An index of outputs that is larger is damaged: it is some hundred bytes per output.
const OUTPUT_INDEX_SIZE_MAX: u64 = 256 << 20;

/// Where an input comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InputSource {
    /// A file of this machine.
    Local(PathBuf),
    /// A stored file, or a piece of one.
    Stored(FileAddress),
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    pub file: FileId,
    /// Of the whole file.
    pub hash: Hash,
    /// Of the whole file, in bytes.
    pub length: u64,
    /// `(offset, length)`; `None` = the whole file.
    pub piece: Option<(u64, u64)>,
    pub executable: bool,
    /// It lists what a directory has.
    pub is_tree: bool,
}

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The caller's writer takes no more.
    #[error("cannot write: {0}")]
    Output(std::io::Error),
}

/// What of a whole file is here already: its first bytes.
#[derive(Default)]
pub(crate) struct Begun {
    held: u64,
    hasher: Hasher,
}

impl Connection {
    /// What `source` is: a local file is read for its hash, a stored one has to be known to the masters.
    pub fn describe(&mut self, source: &InputSource) -> Result<Staged, ClientError> {
        match source {
            InputSource::Local(path) => {
                let mut content = Source::of_file(path).map_err(put_failed)?;
                let hash = content.hash().map_err(put_failed)?;
                let mode =
                    path.metadata().map_err(|error| ClientError::local(path.display(), error))?.permissions().mode();
                Ok(Staged { executable: mode & 0o111 != 0, ..whole(hash, content.length()) })
            }
            InputSource::Stored(address) => {
                let record = self.file(address.file)?.ok_or_else(|| file_unknown(address.file))?;
                if let Some((offset, length)) = address.piece
                    && offset.checked_add(length).is_none_or(|end| end > record.length)
                {
                    return Err(ClientError::OutOfRange {
                        address: *address,
                        why: format!("the file has {} bytes", record.length),
                    });
                }
                let is_tree = record.class == CLASS_TREE && address.piece.is_none();
                Ok(Staged { file: address.file, piece: address.piece, is_tree, ..whole(record.hash, record.length) })
            }
        }
    }

    /// Stores a local file. A copy that storage has is read again there, and replaced if it is wrong.
    pub fn put_file(&mut self, path: &Path) -> Result<Staged, ClientError> {
        let staged = self.describe(&InputSource::Local(path.to_owned()))?;
        let content = Source::of_file(path).map_err(put_failed)?;
        self.store(content, &staged)?;
        Ok(staged)
    }

    /// As `put_file`, of all that `reader` gives.
    pub fn put_reader(&mut self, reader: impl Read) -> Result<Staged, ClientError> {
        let mut content = Source::of_reader(reader).map_err(put_failed)?;
        let hash = content.hash().map_err(put_failed)?;
        let staged = whole(hash, content.length());
        self.store(content, &staged)?;
        Ok(staged)
    }

    /// Stores those of several local files, which `describe` has read, that are not there; says which the masters did not know.
    pub fn upload_each(&mut self, files: &[(&Path, Staged)]) -> Result<Vec<bool>, ClientError> {
        let staged: Vec<Staged> = files.iter().map(|(_, staged)| *staged).collect();
        self.expect_bytes(staged.iter().map(|staged| staged.length).sum());
        let stored = self.store_each(&staged, Trust::Known, |at| Source::of_file(files[at].0).map_err(put_failed));
        self.expect_nothing();
        stored
    }

    fn store(&mut self, content: Source, staged: &Staged) -> Result<(), ClientError> {
        let mut content = Some(content);
        let content = |_| Ok(content.take().expect("one is asked for once"));
        self.store_each(&[*staged], Trust::Nothing, content).map(|_| ())
    }

    /// Writes a stored file, or a piece of one, to `into`; returns its length. A whole file is held against its hash, so
    /// what was written is right only after success.
    pub fn read_to(&mut self, address: FileAddress, into: &mut dyn Write) -> Result<u64, ReadError> {
        let mut expected = None;
        if address.piece.is_none() {
            let record = self.file(address.file)?.ok_or_else(|| file_unknown(address.file))?;
            expected = Some((record.hash, record.length));
        }
        self.read_verified(address, expected, Begun::default(), into)
    }

    /// Brings what `part` does not have yet of a stored file; returns the file's length. What is there and does not belong to
    /// it is fetched again.
    pub fn read_rest(&mut self, file: FileId, part: &mut File) -> Result<u64, ReadError> {
        let record = self.file(file)?.ok_or_else(|| file_unknown(file))?;
        let (address, expected) = (FileAddress { file, piece: None }, Some((record.hash, record.length)));
        let mut begun = Begun::default();
        // Reading it leaves the file at its end, where the rest goes.
        begun.held = std::io::copy(part, &mut begun.hasher).map_err(ReadError::Output)?;
        if begun.held > 0 && begun.held <= record.length {
            match self.read_verified(address, expected, begun, part) {
                Err(ReadError::Client(ClientError::Protocol(_))) => {}
                other => return other,
            }
        }
        part.set_len(0).and_then(|()| part.rewind()).map_err(ReadError::Output)?;
        self.read_verified(address, expected, Begun::default(), part)
    }

    /// As `read_to`, for a whole file whose hash and length are known, or a piece.
    pub(crate) fn read_verified(
        &mut self,
        address: FileAddress,
        expected: Option<(Hash, u64)>,
        begun: Begun,
        into: &mut dyn Write,
    ) -> Result<u64, ReadError> {
        let storage = self.storage()?;
        let first_request = self.next_request();
        let settings = FetchSettings::default();
        let known_length = expected.map(|(_, length)| length);
        let mut fetch = Fetch::new(self.cluster.node, address, begun.held, known_length, first_request, settings);
        let mut hasher = begun.hasher;
        // Blocks that came before those in front of them; at most as many as may be in flight.
        let mut early: BTreeMap<u64, Vec<Frame>> = BTreeMap::new();
        let begin = address.piece.map_or(0, |(offset, _)| offset);
        let mut next = begin + begun.held;
        let mut heard_at = self.clock.now();
        while !fetch.is_complete() {
            self.check_signals()?;
            let now = self.clock.now();
            for frame in fetch.requests(now) {
                // As in `put`.
                let _ = self.endpoint.send(storage, frame);
            }
            let deadline = heard_at + self.timeout;
            if now >= deadline {
                return Err(self.silent_storage("get", address.file).into());
            }
            self.endpoint.wait(Some(fetch.next_deadline().map_or(deadline, |at| at.min(deadline))));
            for mut frames in self.messages_from(storage) {
                heard_at = self.clock.now();
                let header = frames.remove(0);
                let Ok(message) = Message::decode(&header) else { continue };
                let length: usize = frames.iter().map(|frame| frame.len()).sum();
                match fetch.receive(&message, length as u64, heard_at).map_err(|error| fetch_failed(address, error))? {
                    FetchAnswer::Bytes { offset } => {
                        early.insert(offset, frames);
                    }
                    FetchAnswer::Ignored => {}
                }
            }
            while let Some(frames) = early.remove(&next) {
                for frame in frames {
                    hasher.update(&frame);
                    into.write_all(&frame).map_err(ReadError::Output)?;
                    next += frame.len() as u64;
                }
            }
            self.tell_progress(next - begin, fetch.length());
        }
        if expected.is_some_and(|(hash, _)| hasher.finish() != hash) {
            return Err(fetch_failed(address, FetchError::Mismatch { address }).into());
        }
        Ok(next - begin)
    }

    /// The outputs in a chunk's bundle.
    pub fn outputs(&mut self, bundle: &Bundle) -> Result<Vec<OutputEntry>, ClientError> {
        let Some(address) = bundle.index() else { return Ok(Vec::new()) };
        if bundle.index_length > OUTPUT_INDEX_SIZE_MAX {
            return Err(ClientError::Protocol(format!("an index of {} bytes", bundle.index_length)));
        }
        let index = self.read_bytes(address)?;
        Ok(decode_output_index(&index)?)
    }

    pub(crate) fn read_bytes(&mut self, address: FileAddress) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        self.read_to(address, &mut bytes).map_err(|error| match error {
            ReadError::Client(error) => error,
            ReadError::Output(error) => ClientError::local("memory", error),
        })?;
        Ok(bytes)
    }

    /// What moves until `expect_nothing` is a part of `total` bytes.
    pub(crate) fn expect_bytes(&mut self, total: u64) {
        self.moved_of = Some((0, total));
    }

    /// Says that so much more of it has gone.
    pub(crate) fn have_moved(&mut self, bytes: u64) {
        if let Some((moved, _)) = &mut self.moved_of {
            *moved += bytes;
            self.tell_progress(0, None);
        }
    }

    pub(crate) fn expect_nothing(&mut self) {
        self.moved_of = None;
    }

    pub(crate) fn tell_progress(&mut self, done: u64, total: Option<u64>) {
        let (done, total) = match self.moved_of {
            Some((before, all)) => (before + done, Some(all)),
            None => (done, total),
        };
        if let Some(on_progress) = &mut self.on_progress {
            on_progress(done, total);
        }
    }

    pub(crate) fn silent_storage(&self, verb: &str, file: FileId) -> ClientError {
        let what = format!("cannot {verb} {file}: the storage node does not answer");
        ClientError::NoStorage { what: format!("{what} since {} s", self.timeout.as_secs()) }
    }
}

pub(crate) fn whole(hash: Hash, length: u64) -> Staged {
    Staged { file: FileId::of(hash), hash, length, piece: None, executable: false, is_tree: false }
}

fn file_unknown(file: FileId) -> ClientError {
    ClientError::Refused { code: ErrorCode::FileUnknown, detail: format!("no file {file}") }
}

pub(crate) fn put_failed(error: PutError) -> ClientError {
    match error {
        PutError::Refused { code, detail } => {
            ClientError::Refused { code, detail: format!("the storage node does not take it: {detail}") }
        }
        PutError::Local { what, why } => ClientError::Local { what, why },
        error @ (PutError::Protocol { .. } | PutError::Deadline { .. }) => ClientError::Protocol(error.to_string()),
    }
}

fn fetch_failed(address: FileAddress, error: FetchError) -> ClientError {
    match error {
        FetchError::FileUnknown(address) => file_unknown(address.file),
        // A piece is all that a reader chooses.
        FetchError::Refused { code: ErrorCode::InvalidRequest, detail } => {
            ClientError::OutOfRange { address, why: detail }
        }
        FetchError::Refused { code, detail } => ClientError::Refused { code, detail },
        FetchError::OutOfRange { address, file_length } => {
            ClientError::OutOfRange { address, why: format!("the file has {file_length} bytes") }
        }
        FetchError::Local { what, why } => ClientError::Local { what, why },
        error @ (FetchError::Protocol { .. }
        | FetchError::Mismatch { .. }
        | FetchError::Wrong { .. }
        | FetchError::Deadline { .. }) => ClientError::Protocol(error.to_string()),
    }
}
