//! A storage node's disk: files that were committed stay, uploads go with the process.

use std::collections::BTreeMap;

use content::{AskRange, OutlineHasher, hash_bytes};
use storage::{Order, Outcome, Ticket};
use wire::{Duration, ErrorCode, FileId, Instant};

use crate::chance::Chance;

/// What became of an order.
#[derive(Debug)]
pub struct StorageWork {
    pub ticket: Ticket,
    pub outcome: Outcome,
    /// What was read.
    pub content: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    order: Order,
    payload: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct StorageDisk {
    files: BTreeMap<FileId, Vec<u8>>,
    uploads: BTreeMap<u64, Vec<u8>>,
    /// Orders that are not performed, in order.
    pending: BTreeMap<u64, Pending>,
    orders: u64,
    /// When the last order is done: the disk does one after the other.
    busy_until: Instant,
}

impl StorageDisk {
    pub fn has(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// A process begins with it: there are no uploads.
    pub fn start(&mut self) {
        self.uploads.clear();
        self.pending.clear();
        self.busy_until = Instant::default();
    }

    /// Takes an order; the number is for `perform`.
    pub fn order(&mut self, ticket: Ticket, order: Order, payload: Vec<u8>) -> u64 {
        self.orders += 1;
        self.pending.insert(self.orders, Pending { ticket, order, payload });
        self.orders
    }

    /// When an order that takes so long is done.
    pub fn ready_at(&mut self, now: Instant, takes: Duration) -> Instant {
        self.busy_until = self.busy_until.max(now) + takes;
        self.busy_until
    }

    /// Performs an order.
    pub fn perform(&mut self, number: u64) -> StorageWork {
        let Pending { ticket, order, payload } = self.pending.remove(&number).expect("each order is performed once");
        let (outcome, content) = self.outcome(order, &payload);
        StorageWork { ticket, outcome, content }
    }

    fn outcome(&mut self, order: Order, payload: &[u8]) -> (Outcome, Vec<Vec<u8>>) {
        let failed = |code| Outcome::Failed { code, detail: "simulated".into() };
        let outcome = match order {
            Order::Begin { upload, length: _, hash, is_result: _, is_checked: _ } => {
                match self.files.get(&FileId::of(hash)) {
                    Some(bytes) if !hash.is_nil() => Outcome::Exists { length: bytes.len() as u64 },
                    Some(_) | None => {
                        self.uploads.insert(upload, Vec::new());
                        Outcome::Begun
                    }
                }
            }
            Order::Write { upload, offset, payload: _ } => match self.uploads.get_mut(&upload) {
                Some(bytes) => {
                    if offset as usize <= bytes.len() {
                        bytes.truncate(offset as usize);
                        bytes.extend_from_slice(payload);
                    }
                    Outcome::Written { contiguous: bytes.len() as u64 }
                }
                None => failed(ErrorCode::UploadUnknown),
            },
            Order::Commit { upload, hash, length } => self.commit(upload, hash, length),
            Order::Abort { upload } => {
                self.uploads.remove(&upload);
                Outcome::Aborted
            }
            Order::Read { ask } => match self.files.get(&ask.file) {
                Some(bytes) => {
                    let range = |of: &[u8], offset: u64, length: u64| {
                        let start = (offset as usize).min(of.len());
                        of[start..(start + length as usize).min(of.len())].to_vec()
                    };
                    let part = match ask.range {
                        AskRange::Whole => bytes.clone(),
                        AskRange::Part { offset, length } => range(bytes, offset, length),
                        AskRange::Outline { offset, length } => {
                            let mut hasher = OutlineHasher::default();
                            hasher.update(bytes);
                            range(&hasher.finish().encode(), offset, length)
                        }
                        AskRange::Unknown { .. } => return (failed(ErrorCode::InvalidRequest), Vec::new()),
                    };
                    return (Outcome::Read { file_length: bytes.len() as u64 }, vec![part]);
                }
                None => failed(ErrorCode::FileUnknown),
            },
            // Nothing rots here.
            Order::Check { file: _ } => Outcome::Checked,
            Order::Have { files } => {
                let mut bits = vec![0; files.len().div_ceil(8)];
                for (at, file) in files.iter().enumerate() {
                    bits[at / 8] |= u8::from(self.has(*file)) << (at % 8);
                }
                Outcome::Had { bits }
            }
        };
        (outcome, Vec::new())
    }

    fn commit(&mut self, upload: u64, hash: wire::Hash, length: u64) -> Outcome {
        let file = FileId::of(hash);
        let bytes = self.uploads.remove(&upload);
        if self.has(file) {
            return Outcome::Committed { file, hash, length };
        }
        let Some(bytes) = bytes else {
            return Outcome::Failed { code: ErrorCode::UploadUnknown, detail: "simulated".into() };
        };
        if hash_bytes(&bytes) != hash || bytes.len() as u64 != length {
            let detail = format!("simulated: {} bytes are here, {length} are announced", bytes.len());
            return Outcome::Failed { code: ErrorCode::HashMismatch, detail };
        }
        self.files.insert(file, bytes);
        Outcome::Committed { file, hash, length }
    }

    /// Any number of the orders under way are done, in order, and nobody learns of it.
    pub fn crash(&mut self, chance: &mut Chance) {
        let done = chance.between(0, self.pending.len() as u64 + 1);
        let numbers: Vec<u64> = self.pending.keys().copied().take(done as usize).collect();
        for number in numbers {
            self.perform(number);
        }
        self.start();
    }
}
