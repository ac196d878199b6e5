//! The disk threads: they perform the core's orders one after the other and bring back what became of them.
//!
//! There are three, so that nobody who reads waits behind an fsync, and nobody at all until a large file has been read again:
//! one for what changes the store, in order, one for what only looks, and one that checks whole files. The first takes all orders that wait at once: the uploads that end among them share their fsyncs.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use content::{Commit, Expected, Refusal, Store, StoreError};
use node::channel::{self, Inbox, Orders, Outbox, Receiver};
use node::{Bell, Frame};
use wire::FileId;

use crate::core::{Order, Outcome, Ticket};

/// Orders that a thread has before it besides the one it works on; more wait on our side, bounded by the core's limits.
const ORDERS_MAX: usize = 64;
/// What has become of orders and was not fetched yet.
const DONE_MAX: usize = 256;

/// One order with the bytes that it writes.
struct Job {
    ticket: Ticket,
    order: Order,
    payload: Option<Frame>,
}

/// What became of an order, with the bytes that it read.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) ticket: Ticket,
    pub(super) outcome: Outcome,
    pub(super) content: Vec<Frame>,
}

/// One thread and what waits for it.
struct Desk {
    /// `None` = no more orders.
    orders: Option<Orders<Job>>,
    waiting: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Disk {
    writer: Desk,
    reader: Desk,
    checker: Desk,
    done: Option<Inbox<Done>>,
}

impl Disk {
    pub(super) fn start(store: &Arc<Store>, bell: &Bell) -> io::Result<Self> {
        let (outbox, done) = channel::to_owner(DONE_MAX, bell);
        let desk = |name, work: fn(&Store, &Receiver<Job>, &Outbox<Done>)| {
            let (store, outbox) = (store.clone(), outbox.clone());
            Desk::start(name, move |jobs| work(&store, &jobs, &outbox))
        };
        let (writer, reader) = (desk("disk-write", write)?, desk("disk-read", read)?);
        Ok(Self { writer, reader, checker: desk("disk-check", read)?, done: Some(done) })
    }

    /// Gives an order; never waits.
    pub(super) fn order(&mut self, ticket: Ticket, order: Order, payload: Option<Frame>) {
        let desk = match &order {
            Order::Begin { .. } | Order::Write { .. } | Order::Commit { .. } | Order::Abort { .. } => &mut self.writer,
            Order::Read { .. } | Order::Have { .. } => &mut self.reader,
            Order::Check { .. } => &mut self.checker,
        };
        desk.waiting.push_back(Job { ticket, order, payload });
        desk.hand_over();
    }

    /// The next order that is done.
    pub(super) fn next_done(&mut self) -> Option<Done> {
        let done = self.done.as_ref()?.try_recv().ok()?;
        // Whoever finished has room.
        self.writer.hand_over();
        self.reader.hand_over();
        self.checker.hand_over();
        Some(done)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Without an inbox the threads end after the order they are at.
        self.done = None;
        self.checker.orders = None;
        // A check changes nothing until its end, and nobody waits for that any more.
        for desk in [&mut self.writer, &mut self.reader] {
            desk.orders = None;
            if let Some(thread) = desk.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Desk {
    fn start(name: &str, work: impl FnOnce(Receiver<Job>) + Send + 'static) -> io::Result<Self> {
        let (orders, jobs) = channel::to_helper::<Job>(ORDERS_MAX);
        let thread = std::thread::Builder::new().name(name.into()).spawn(|| work(jobs))?;
        Ok(Self { orders: Some(orders), waiting: VecDeque::new(), thread: Some(thread) })
    }

    fn hand_over(&mut self) {
        let Some(orders) = &self.orders else { return };
        while let Some(job) = self.waiting.pop_front() {
            if let Err(full) = orders.try_send(job) {
                self.waiting.push_front(full.into_inner());
                return;
            }
        }
    }
}

/// Performs orders until nobody gives or wants any more.
fn read(store: &Store, jobs: &Receiver<Job>, done: &Outbox<Done>) {
    for Job { ticket, order, payload } in jobs {
        let (outcome, content) = perform(store, order, payload.as_deref().unwrap_or(&[]));
        if done.send(Done { ticket, outcome, content }).is_err() {
            return;
        }
    }
}

/// As `read`, but commits wait until the orders that came meanwhile are done.
fn write(store: &Store, jobs: &Receiver<Job>, done: &Outbox<Done>) {
    while let Ok(first) = jobs.recv() {
        let mut commits: Vec<(Ticket, Commit)> = Vec::new();
        for Job { ticket, order, payload } in std::iter::once(first).chain(jobs.try_iter().take(ORDERS_MAX)) {
            if let Order::Commit { upload, hash, length } = order {
                commits.push((ticket, Commit { upload, expected: Expected::Hash(hash), length }));
                continue;
            }
            let (outcome, content) = perform(store, order, payload.as_deref().unwrap_or(&[]));
            if done.send(Done { ticket, outcome, content }).is_err() {
                return;
            }
        }
        let all: Vec<Commit> = commits.iter().map(|(_, commit)| *commit).collect();
        for ((ticket, _), committed) in commits.iter().zip(store.commit_each(&all)) {
            let outcome = committed.map_or_else(
                |error| match error {
                    StoreError::Unchecked(file) => Outcome::Unchecked { file },
                    error => failed(error.into()),
                },
                |committed| Outcome::Committed { file: committed.file, hash: committed.hash, length: committed.length },
            );
            if done.send(Done { ticket: *ticket, outcome, content: Vec::new() }).is_err() {
                return;
            }
        }
    }
}

fn perform(store: &Store, order: Order, payload: &[u8]) -> (Outcome, Vec<Frame>) {
    let mut content = Vec::new();
    let outcome = match order {
        Order::Begin { upload, length, hash, is_result, is_checked } => match here(store, hash, is_checked) {
            Some(outcome) => outcome,
            None => begin(store, upload, length, is_result),
        },
        Order::Write { upload, offset, .. } => store
            .write(upload, offset, payload)
            .map(|contiguous| Outcome::Written { contiguous })
            .map_err(Refusal::from),
        Order::Commit { .. } => unreachable!("commits are performed together"),
        Order::Abort { upload } => {
            store.abort(upload);
            Ok(Outcome::Aborted)
        }
        Order::Read { ask } => match ask.at_hand(store) {
            Err(StoreError::Unchecked(file)) => Ok(Outcome::Unchecked { file }),
            Ok(()) | Err(_) => ask.read(store).map(|served| {
                content = served.frames;
                Outcome::Read { file_length: served.file_length }
            }),
        },
        Order::Check { file } => {
            tracing::info!(%file, "a file is read again");
            if let Err(error) = store.check(file) {
                tracing::warn!(%file, %error, "it is not as it was stored");
            }
            Ok(Outcome::Checked)
        }
        Order::Have { files } => Ok(Outcome::Had { bits: have(store, &files) }),
    };
    match outcome {
        Ok(outcome) => (outcome, content),
        Err(refusal) => (failed(refusal), Vec::new()),
    }
}

fn failed(refusal: Refusal) -> Outcome {
    let Refusal { code, detail } = refusal;
    tracing::debug!(%code, detail, "refused");
    Outcome::Failed { code, detail }
}

/// What there is to say about a content that is here already.
fn here(store: &Store, hash: wire::Hash, is_checked: bool) -> Option<Result<Outcome, Refusal>> {
    let file = FileId::of(hash);
    match store.sealed(file) {
        _ if hash.is_nil() => None,
        Err(StoreError::FileUnknown(_)) => None,
        Ok(stat) if stat.hash != hash => {
            Some(Err(StoreError::ExistsDifferent { file, here: stat.hash, asked: hash }.into()))
        }
        Ok(_) if is_checked => Some(Ok(Outcome::Unchecked { file })),
        Ok(stat) => Some(Ok(Outcome::Exists { length: stat.length })),
        Err(StoreError::Unchecked(file)) => Some(Ok(Outcome::Unchecked { file })),
        Err(error) => Some(Err(error.into())),
    }
}

fn begin(store: &Store, upload: u64, length: Option<u64>, is_result: bool) -> Result<Outcome, Refusal> {
    // Files that no job has asked for yet must not take the room without which workers start nothing, nor be stored when
    // the masters will not record them.
    let free = node::disk::free_bytes(store.dir());
    if !is_result && free < node::disk::STORAGE_FREE_BYTES_MIN.saturating_add(length.unwrap_or(0)) {
        tracing::warn!(free, length, "no room for a file and what has to stay free beside it");
        return Err(StoreError::DiskFull.into());
    }
    store.begin(upload, length)?;
    Ok(Outcome::Begun)
}

/// One bit per file, lowest first.
fn have(store: &Store, files: &[FileId]) -> Vec<u8> {
    let mut bits = vec![0; files.len().div_ceil(8)];
    for (at, file) in files.iter().enumerate() {
        bits[at / 8] |= u8::from(store.looks_sealed(*file)) << (at % 8);
    }
    bits
}
