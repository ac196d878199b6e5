//! A peer that holds files, as somebody who can wait uses it: fetch, put, and ask, each until a deadline.
//!
//! It drives the decisions of `fetch` and `put` over an endpoint of its own, so that bulk never stands in line with
//! heartbeats, and keeps what those do not touch: the bytes. Use it from a thread that may block, never from one that owns
//! a core.

use std::collections::BTreeMap;
use std::io;

use node::{Certificate, Clock, Endpoint, EndpointConfig, EndpointError, Frame, Frames, PeerClass};
use wire::record::StoredFile;
use wire::{
    BootNonce, ClientKey, Duration, ErrorCode, FileAddress, FileId, FileRequest, FixedPart, Hash, HaveRequest, Instant,
    Message, NodeId, PeerId, Role, U32, U64,
};

use crate::{
    Fetch, FetchAnswer, FetchError, FetchSettings, Hasher, Put, PutAction, PutContent, PutError, PutSettings, Source,
    upload_number,
};

/// Messages taken from the socket in one go: a window of blocks.
const MESSAGES_PER_TURN_MAX: usize = 32;
/// When a single question is asked again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Every conversation numbers its messages from a block of its own.
const NUMBERS_PER_CONVERSATION: u64 = 1 << 32;

/// Where a holder is and who asks it.
#[derive(Clone, Debug)]
pub struct HolderAddress {
    /// `tcp://…` or `ipc://…`.
    pub endpoint: String,
    /// Its CURVE key; `None` for an `ipc://` socket.
    pub key: Option<ClientKey>,
    pub role: Role,
    pub class: PeerClass,
}

/// What came of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Of the whole file; `None` for a piece, whose bytes cannot be checked by the file's hash.
    pub hash: Option<Hash>,
    /// Bytes fetched.
    pub length: u64,
}

/// One connection to one holder.
pub struct Holder {
    endpoint: Endpoint,
    peer: PeerId,
    clock: Clock,
    next_number: u64,
    pub fetch_settings: FetchSettings,
    pub put_settings: PutSettings,
}

impl Holder {
    /// Makes a connection; it stands, or is made again, as long as this lives.
    pub fn connect(
        node: NodeId,
        boot: BootNonce,
        certificate: Certificate,
        address: &HolderAddress,
    ) -> Result<Self, EndpointError> {
        let mut endpoint = Endpoint::open(EndpointConfig::new(node, boot, certificate))?;
        let peer = endpoint.connect(&address.endpoint, address.key, address.role, address.class)?;
        let random = NodeId::random().halves().0;
        Ok(Self {
            endpoint,
            peer,
            clock: Clock::new(),
            // Numbers of an earlier process of this node must not be taken for ours.
            next_number: random,
            fetch_settings: FetchSettings::default(),
            put_settings: PutSettings::default(),
        })
    }

    /// Fetches a file or a piece and gives its bytes to `to` in order. A whole file is verified against `hash`, without it
    /// against the 122 bits of its id, and only then is this a success; of a piece only the length can be checked.
    pub fn fetch(
        &mut self,
        address: FileAddress,
        hash: Option<Hash>,
        timeout: Duration,
        to: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Fetched, FetchError> {
        let deadline = self.clock.now() + timeout;
        let mut fetch = Fetch::new(self.endpoint.node(), address, 0, None, self.number(), self.fetch_settings);
        let start = address.piece.map_or(0, |(offset, _)| offset);
        let mut arrived = Arrived { next: start, early: BTreeMap::new(), hasher: Hasher::default() };
        while !fetch.is_complete() {
            let now = self.clock.now();
            if deadline <= now {
                return Err(FetchError::Deadline { address, held: arrived.next - start });
            }
            for frame in fetch.requests(now) {
                // What is not taken is lost, and silence brings it again.
                let _ = self.endpoint.send(self.peer, frame);
            }
            for frames in self.receive(fetch.next_deadline().map_or(deadline, |at| at.min(deadline))) {
                let Ok(message) = Message::decode(&frames[0]) else { continue };
                let payload_length = frames[1..].iter().map(|frame| frame.len() as u64).sum();
                if let FetchAnswer::Bytes { offset } = fetch.receive(&message, payload_length, self.clock.now())? {
                    arrived.take(offset, frames, to).map_err(|error| local_error(&address, &error))?;
                }
            }
        }
        let length = arrived.next - start;
        if address.piece.is_some() {
            return Ok(Fetched { hash: None, length });
        }
        let found = arrived.hasher.finish();
        let is_right = hash.map_or(address.file.names(found), |expected| expected == found);
        if is_right { Ok(Fetched { hash: Some(found), length }) } else { Err(FetchError::Mismatch { address }) }
    }

    /// Fetches into memory; for small files and pieces.
    pub fn fetch_bytes(
        &mut self,
        address: FileAddress,
        hash: Option<Hash>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        self.fetch(address, hash, timeout, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The length of a file there.
    pub fn file_length(&mut self, file: FileId, timeout: Duration) -> Result<u64, FetchError> {
        let address = FileAddress { file, piece: None };
        let number = self.number();
        let fixed = FileRequest {
            file_uuid: file.into(),
            length: U64::new(0),
            request: U64::new(number),
            ..FileRequest::DEFAULT
        };
        let frame = fixed.frame(self.endpoint.node(), &[]);
        self.ask(address, number, &frame, timeout, |message| match message {
            Message::FileResponse(response, _) if response.request.get() == number => Some(response.file_length.get()),
            _ => None,
        })
    }

    /// Which of `files` are there; at most 100,000 at once.
    pub fn have(&mut self, files: &[FileId], timeout: Duration) -> Result<Vec<bool>, FetchError> {
        let number = self.number();
        let fixed = HaveRequest {
            request: U64::new(number),
            num_files: U32::new(u32::try_from(files.len()).unwrap_or(u32::MAX)),
            ..HaveRequest::DEFAULT
        };
        let body: Vec<u8> = files.iter().flat_map(|file| file.0).collect();
        let frame = fixed.frame(self.endpoint.node(), &body);
        let first = FileAddress { file: files.first().copied().unwrap_or(FileId::NIL), piece: None };
        self.ask(first, number, &frame, timeout, |message| match message {
            Message::HaveResponse(response, bits)
                if response.request.get() == number && bits.len() * 8 >= files.len() =>
            {
                Some((0..files.len()).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect())
            }
            _ => None,
        })
    }

    /// Puts a content of this class (0 input, 1 result, 2 temp); returns it with the receipts that masters want to see.
    /// What is there already is not sent, nor what an earlier try of this node brought there and the holder has not yet
    /// forgotten. Gives up when `timeout` passes without progress.
    pub fn put(&mut self, source: &mut Source, class: u8, timeout: Duration) -> Result<StoredFile, PutError> {
        let hash = source.hash()?;
        self.put_hashed(source, hash, class, timeout)
    }

    /// As `put`, for a content whose hash is known.
    pub fn put_hashed(
        &mut self,
        source: &mut Source,
        hash: Hash,
        class: u8,
        timeout: Duration,
    ) -> Result<StoredFile, PutError> {
        let start = self.clock.now();
        let content = PutContent { hash, length: source.length(), class: class.into(), is_checked: false };
        let mut put = Put::new(self.endpoint.node(), upload_number(hash), content, self.put_settings);
        loop {
            let deadline = put.progressed_at().unwrap_or(start) + timeout;
            let now = self.clock.now();
            for action in put.actions(now) {
                let frames = match action {
                    PutAction::Send { frame } => Frames::from(frame),
                    PutAction::SendBlock { frame, offset, length } => [frame, source.read(offset, length)?].into(),
                };
                // What is not taken is lost, and silence brings it again.
                let _ = self.endpoint.send(self.peer, frames);
            }
            if let Some(receipts) = put.receipts() {
                let (file, length) = (FileId::of(hash), content.length);
                return Ok(StoredFile { file, hash, length, class, receipts: receipts.to_vec() });
            }
            if deadline <= now {
                return Err(PutError::Deadline { file: FileId::of(hash), held: put.held(), length: content.length });
            }
            for frames in self.receive(put.next_deadline().map_or(now, |at| at.min(deadline))) {
                if let Ok(message) = Message::decode(&frames[0]) {
                    put.receive(&message, self.clock.now())?;
                }
            }
        }
    }

    /// Asks until `find` finds the answer, an error comes, or time is up.
    fn ask<T>(
        &mut self,
        address: FileAddress,
        number: u64,
        frame: &[u8],
        timeout: Duration,
        find: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<T, FetchError> {
        let deadline = self.clock.now() + timeout;
        let mut again = self.clock.now();
        loop {
            let now = self.clock.now();
            if deadline <= now {
                return Err(FetchError::Deadline { address, held: 0 });
            }
            if again <= now {
                let _ = self.endpoint.send(self.peer, frame.to_vec());
                again = now + QUESTION_TIMEOUT;
            }
            for frames in self.receive(again.min(deadline)) {
                let Ok(message) = Message::decode(&frames[0]) else { continue };
                if let Some(answer) = find(&message) {
                    return Ok(answer);
                }
                let Message::Error(error, detail) = message else { continue };
                if error.request.get() != number {
                    continue;
                }
                match ErrorCode::from_number(error.code.get()) {
                    Some(ErrorCode::Busy | ErrorCode::NotReady) => again = now + self.fetch_settings.busy_pause,
                    Some(ErrorCode::FileUnknown) => return Err(FetchError::FileUnknown(address)),
                    Some(code) => return Err(FetchError::Refused { code, detail: wire::bytes_text(detail) }),
                    None => return Err(FetchError::Protocol { address, what: "its error code is unknown" }),
                }
            }
        }
    }

    /// Sleeps until something comes or `deadline`; returns what has come.
    fn receive(&mut self, deadline: Instant) -> Vec<Vec<Frame>> {
        self.endpoint.wait(Some(deadline));
        let mut messages = Vec::new();
        self.endpoint.drain(MESSAGES_PER_TURN_MAX, &mut |_, _, frames| messages.push(frames));
        messages
    }

    fn number(&mut self) -> u64 {
        self.next_number = self.next_number.wrapping_add(NUMBERS_PER_CONVERSATION);
        self.next_number
    }
}

/// Puts what has come into order.
struct Arrived {
    /// The offset of the first byte that has not been handed on.
    next: u64,
    /// Came before its turn; at most a window.
    early: BTreeMap<u64, Vec<Frame>>,
    hasher: Hasher,
}

impl Arrived {
    /// Takes a message with content at `offset`, and hands on what is in order now.
    fn take(&mut self, offset: u64, frames: Vec<Frame>, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.early.insert(offset, frames);
        while let Some(frames) = self.early.remove(&self.next) {
            let mut is_empty = true;
            for frame in &frames[1..] {
                self.hasher.update(frame);
                to(frame)?;
                self.next += frame.len() as u64;
                is_empty &= frame.is_empty();
            }
            if is_empty {
                break;
            }
        }
        Ok(())
    }
}

fn local_error(what: &dyn std::fmt::Display, why: &dyn std::fmt::Display) -> FetchError {
    FetchError::Local { what: what.to_string(), why: why.to_string() }
}
