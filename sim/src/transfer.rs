//! Files on their way to and from the storage node: `content`'s decisions with the bytes beside them.

use content::{Fetch, FetchAnswer, FetchSettings, Put, PutAction, PutContent, PutSettings, hash_bytes};
use wire::record::StoredFile;
use wire::{FileAddress, FileId, Hash, Instant, Message, NodeId};

/// An upload of bytes in memory.
#[derive(Debug)]
pub struct Upload {
    put: Put,
    content: PutContent,
    bytes: Vec<u8>,
}

impl Upload {
    /// `class`: 0 input, 1 result. `number` is one that this node has never used.
    pub fn new(sender: NodeId, number: u64, class: u16, bytes: Vec<u8>) -> Self {
        let content = PutContent { hash: hash_bytes(&bytes), length: bytes.len() as u64, class, is_checked: false };
        Self { put: Put::new(sender, number, content, PutSettings::default()), content, bytes }
    }

    /// The messages to send now.
    pub fn messages(&mut self, now: Instant) -> Vec<Vec<Vec<u8>>> {
        let bytes = &self.bytes;
        let actions = self.put.actions(now).into_iter();
        let message = |action| match action {
            PutAction::Send { frame } => vec![frame],
            PutAction::SendBlock { frame, offset, length } => {
                vec![frame, bytes[offset as usize..offset as usize + length].to_vec()]
            }
        };
        actions.map(message).collect()
    }

    pub fn receive(&mut self, message: &Message<'_>, now: Instant) {
        self.put.receive(message, now).expect("a good file is not refused");
    }

    /// When `messages` wants to be called, if nothing comes first.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.put.next_deadline()
    }

    /// The file with its receipts, once it is durable.
    pub fn stored(&self) -> Option<StoredFile> {
        let receipts = self.put.receipts()?.to_vec();
        let PutContent { hash, length, class, is_checked: _ } = self.content;
        Some(StoredFile { file: FileId::of(hash), hash, length, class: class as u8, receipts })
    }
}

/// A download of a whole file.
#[derive(Debug)]
pub struct Download {
    fetch: Fetch,
    hash: Hash,
    bytes: Vec<u8>,
}

impl Download {
    pub fn new(sender: NodeId, file: FileId, hash: Hash, first_request: u64) -> Self {
        let address = FileAddress { file, piece: None };
        let fetch = Fetch::new(sender, address, 0, None, first_request, FetchSettings::default());
        Self { fetch, hash, bytes: Vec::new() }
    }

    pub fn messages(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.fetch.requests(now)
    }

    /// Takes a message; `Err` = the file cannot be had.
    pub fn receive(&mut self, message: &Message<'_>, content: &[Vec<u8>], now: Instant) -> Result<(), String> {
        let payload = content.concat();
        match self.fetch.receive(message, payload.len() as u64, now) {
            Ok(FetchAnswer::Bytes { offset }) => {
                let end = offset as usize + payload.len();
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[offset as usize..end].copy_from_slice(&payload);
                Ok(())
            }
            Ok(FetchAnswer::Ignored) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// True once all bytes are here; panics when they are not those that were asked for.
    pub fn is_done(&self) -> bool {
        let done = self.fetch.is_complete();
        assert!(!done || hash_bytes(&self.bytes) == self.hash, "a file came with other bytes than it stands for");
        done
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.fetch.next_deadline()
    }
}
