//! Stores what runs wrote, beside the loop: what ended meanwhile, of one job, goes into one file.
//!
//! One file costs storage an fsync, however little is in it; so the slower storage is, the more chunks share one.
//!
//! What storage has no room for waits, and what is smaller passes it. But where that is in its own way, because this
//! worker's disk is almost full too or is storage's own, the chunk has failed in the end, and its outputs are let go.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, thread};

use content::{HolderAddress, PutError, Source};
use node::Clock;
use node::channel::{self, Outbox, RecvTimeoutError};
use node::disk::free_bytes;
use wire::record::{Bundle, StoredFile};
use wire::{Duration, ErrorCode, FileId, Hash, Instant, JobId};

use super::outbox::{Kept, Packed};
use super::program::Surroundings;
use super::storage::{Connections, Ourselves, StorageList};
use crate::core::Parcel;

/// Runs that wait for the uploader; more wait in the shell.
const ORDERS_MAX: usize = 1024;
/// A file that has reached this takes no more chunks, in bytes.
const SEGMENT_SIZE_MIN: u64 = 64 << 20;
/// Class of results among stored files.
const CLASS_RESULT: u8 = 1;
/// How long a put may get on not at all before another storage node is asked.
const PUT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often content may turn out to have changed since it was hashed.
const CHANGES_MAX: u32 = 3;
/// Between two rounds of asking all storage nodes.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Between two tries of what storage has no room for.
const FULL_PAUSE: Duration = Duration::from_secs(2);
/// So often it is tried while its own room may be what storage lacks: what else waits for its confirmation goes meanwhile.
const FULL_TRIES_MAX: u32 = 4;

/// What has been stored.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) file: Option<StoredFile>,
    pub(super) parcels: Vec<Parcel>,
}

pub(super) struct Uploader {
    surroundings: Arc<Surroundings>,
    connections: Connections,
    output_size_max: u64,
    disk: OwnDisk,
    clock: Clock,
    /// What storage has no room for, with how often it was tried.
    postponed: Vec<(Arc<Kept>, u32)>,
    retry_at: Instant,
    done: Outbox<Uploaded>,
}

/// Where runs' outputs lie until they are confirmed.
#[derive(Debug, Clone)]
pub(super) struct OwnDisk {
    pub(super) root: PathBuf,
    /// With less free it is almost full.
    pub(super) free_bytes_min: u64,
}

impl OwnDisk {
    /// True when what lies here may itself take the room that these storage nodes lack, or must soon go anyway.
    fn is_in_the_way(&self, nodes: &[HolderAddress]) -> bool {
        let device = |path: &str| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let own = fs::metadata(&self.root).map(|metadata| metadata.dev()).ok();
        let is_shared = |node: &HolderAddress| node.endpoint.strip_prefix("ipc://").is_some_and(|it| device(it) == own);
        free_bytes(&self.root) < self.free_bytes_min || nodes.iter().any(is_shared)
    }
}

impl Uploader {
    pub(super) fn start(
        ourselves: Ourselves,
        storage: StorageList,
        surroundings: Arc<Surroundings>,
        output_size_max: u64,
        disk: OwnDisk,
        done: Outbox<Uploaded>,
    ) -> io::Result<channel::Orders<Arc<Kept>>> {
        let (orders, waiting) = channel::to_helper::<Arc<Kept>>(ORDERS_MAX);
        thread::Builder::new().name("uploader".into()).spawn(move || {
            let connections = Connections::new(ourselves, storage);
            let (postponed, clock, retry_at) = (Vec::new(), Clock::new(), Instant::default());
            let mut uploader =
                Self { surroundings, connections, output_size_max, disk, clock, postponed, retry_at, done };
            while let Ok(first) = uploader.next_order(&waiting) {
                let mut jobs: BTreeMap<JobId, Vec<Arc<Kept>>> = BTreeMap::new();
                for kept in first.into_iter().chain(waiting.try_iter().take(ORDERS_MAX)) {
                    jobs.entry(kept.order.job).or_default().push(kept);
                }
                let stored = jobs.into_values().try_for_each(|of_job| uploader.store(&of_job));
                if stored.and_then(|()| uploader.retry()).is_err() {
                    return;
                }
            }
        })?;
        Ok(orders)
    }

    /// Waits for something to do; an error: the owner is gone.
    fn next_order(&self, waiting: &channel::Receiver<Arc<Kept>>) -> Result<Option<Arc<Kept>>, ()> {
        if self.postponed.is_empty() {
            return waiting.recv().map(Some).map_err(drop);
        }
        match waiting.recv_timeout(self.retry_at.since(self.clock.now())) {
            Ok(kept) => Ok(Some(kept)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(()),
        }
    }

    /// Tries again what storage had no room for.
    fn retry(&mut self) -> Result<(), ()> {
        if self.postponed.is_empty() || self.clock.now() < self.retry_at {
            return Ok(());
        }
        for (kept, tries) in std::mem::take(&mut self.postponed) {
            // Its result is forgotten when nobody else has it: nobody waits for it.
            if Arc::strong_count(&kept) > 1 {
                self.store_one(kept, tries)?;
            }
        }
        Ok(())
    }

    /// Stores what runs of one job wrote, in as few files as the size allows. An error: nobody wants to know any more.
    fn store(&mut self, of_job: &[Arc<Kept>]) -> Result<(), ()> {
        let mut rest = of_job;
        while !rest.is_empty() {
            let mut segment = Segment::default();
            let mut taken = 0;
            while taken < rest.len() && segment.length < SEGMENT_SIZE_MIN {
                segment.add(&rest[taken], &self.surroundings, self.output_size_max);
                taken += 1;
            }
            let (together, after) = rest.split_at(taken);
            self.finish(segment, together)?;
            rest = after;
        }
        Ok(())
    }

    fn finish(&mut self, segment: Segment, together: &[Arc<Kept>]) -> Result<(), ()> {
        match self.put_segment(segment) {
            Ok(uploaded) => self.done.send(uploaded).map_err(drop),
            // One of them cannot be read: killed meanwhile, or still written to. Or it is too large for the room that
            // there is. The others are not to suffer.
            Err(_) => together.iter().try_for_each(|kept| self.store_one(kept.clone(), 0)),
        }
    }

    /// Stores what one run wrote, which was tried so often; or as much of it as can be, or later.
    fn store_one(&mut self, kept: Arc<Kept>, tries: u32) -> Result<(), ()> {
        let run = kept.run;
        let mut segment = Segment::default();
        segment.add(&kept, &self.surroundings, self.output_size_max);
        let uploaded = match self.put_segment(segment) {
            Ok(uploaded) => uploaded,
            Err(error) if is_full(&error) => {
                let nodes = self.connections.endpoints();
                if tries + 1 < FULL_TRIES_MAX || !self.disk.is_in_the_way(&nodes) {
                    tracing::warn!(run, %error, tries, "outputs are not stored yet");
                    self.postponed.push((kept, tries.saturating_add(1)));
                    self.retry_at = self.clock.now() + FULL_PAUSE;
                    return Ok(());
                }
                tracing::error!(run, %error, "outputs are in the way of their own storage and are let go");
                let why = "storage has no room for the outputs of this run, and its worker cannot keep them either";
                self.put_rest(run, kept.pack_heads(why.to_owned()))
            }
            Err(error) => {
                tracing::error!(run, %error, "outputs cannot be read and are lost");
                let why = format!("the outputs cannot be read: {error}");
                self.put_rest(run, kept.pack_streams(why, self.output_size_max))
            }
        };
        self.done.send(uploaded).map_err(drop)
    }

    /// Stores what is left of a run's outputs, if that can be.
    fn put_rest(&mut self, run: u64, rest: Packed) -> Uploaded {
        let mut segment = Segment::default();
        segment.add_packed(run, rest);
        self.put_segment(segment).unwrap_or_else(|error| {
            tracing::error!(run, %error, "its standard output and error neither");
            Uploaded { file: None, parcels: vec![Parcel { run, bundle: None, is_refused: true }] }
        })
    }

    fn put_segment(&mut self, segment: Segment) -> Result<Uploaded, PutError> {
        let Segment { parts, mut parcels, length } = segment;
        if length == 0 {
            return Ok(Uploaded { file: None, parcels });
        }
        let stored = self.put(Source::new(parts))?;
        for bundle in parcels.iter_mut().filter_map(|parcel| parcel.bundle.as_mut()) {
            bundle.file = stored.file;
        }
        Ok(Uploaded { file: Some(stored), parcels })
    }

    /// Puts until it is stored; only what cannot be read here, does not keep still, or finds no room is an error.
    fn put(&mut self, mut source: Source) -> Result<StoredFile, PutError> {
        let mut changes = 0;
        let mut hash = source.hash()?;
        loop {
            let nodes = self.connections.endpoints();
            let mut why = "no storage node is known yet".to_owned();
            let mut full = None;
            let mut full_count = 0;
            // Every worker asks in the order of the hash, so that load spreads over the nodes.
            for at in in_order(hash, nodes.len()) {
                let put = match self.connections.to(&nodes[at]) {
                    Ok(holder) => holder.put_hashed(&mut source, hash, CLASS_RESULT, PUT_TIMEOUT),
                    Err(error) => {
                        why = error.to_string();
                        continue;
                    }
                };
                match put {
                    Ok(stored) => return Ok(stored),
                    Err(error @ PutError::Local { .. }) => return Err(error),
                    // Something still writes to an output, through a hard link say: what is there now is as good.
                    Err(error @ PutError::Refused { code: ErrorCode::HashMismatch, .. }) => {
                        changes += 1;
                        if changes > CHANGES_MAX {
                            return Err(error);
                        }
                        hash = source.hash()?;
                        why = format!("{}: {error}", nodes[at].endpoint);
                        break;
                    }
                    Err(error) if is_full(&error) => {
                        full = Some(error);
                        full_count += 1;
                    }
                    Err(error) => why = format!("{}: {error}", nodes[at].endpoint),
                }
            }
            if let Some(error) = full.filter(|_| full_count == nodes.len()) {
                return Err(error);
            }
            tracing::warn!(file = %FileId::of(hash), why, "outputs are not stored yet");
            thread::sleep(ROUND_PAUSE);
        }
    }
}

fn is_full(error: &PutError) -> bool {
    matches!(error, PutError::Refused { code: ErrorCode::DiskFull, .. })
}

/// Positions `0..count`, begun at one that the hash picks.
fn in_order(hash: Hash, count: usize) -> impl Iterator<Item = usize> {
    let first = usize::from(hash.0[0]);
    (0..count).map(move |at| (first + at) % count)
}

/// A file in the making.
#[derive(Default)]
struct Segment {
    parts: Vec<content::Part>,
    parcels: Vec<Parcel>,
    length: u64,
}

impl Segment {
    fn add(&mut self, kept: &Kept, surroundings: &Surroundings, output_size_max: u64) {
        self.add_packed(kept.run, kept.pack(surroundings, output_size_max));
    }

    fn add_packed(&mut self, run: u64, packed: Packed) {
        let length = packed.length();
        let bundle = (length > 0).then_some(Bundle { offset: self.length, ..packed.bundle });
        self.parts.extend(packed.parts);
        self.length += length;
        self.parcels.push(Parcel { run, bundle, is_refused: packed.is_refused });
    }
}
