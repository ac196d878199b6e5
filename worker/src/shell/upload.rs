//! Stores what runs wrote, beside the loop: what ended meanwhile, of one job, goes into one file.
//!
//! One file costs storage an fsync, however little is in it; so the slower storage is, the more chunks share one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use content::{PutError, Source};
use node::channel::{self, Outbox};
use wire::record::{Bundle, StoredFile};
use wire::{Duration, ErrorCode, FileId, Hash, JobId};

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
    done: Outbox<Uploaded>,
}

impl Uploader {
    pub(super) fn start(
        ourselves: Ourselves,
        storage: StorageList,
        surroundings: Arc<Surroundings>,
        output_size_max: u64,
        done: Outbox<Uploaded>,
    ) -> io::Result<channel::Orders<Arc<Kept>>> {
        let (orders, waiting) = channel::to_helper::<Arc<Kept>>(ORDERS_MAX);
        thread::Builder::new().name("uploader".into()).spawn(move || {
            let connections = Connections::new(ourselves, storage);
            let mut uploader = Self { surroundings, connections, output_size_max, done };
            while let Ok(first) = waiting.recv() {
                let mut jobs: BTreeMap<JobId, Vec<Arc<Kept>>> = BTreeMap::new();
                for kept in std::iter::once(first).chain(waiting.try_iter().take(ORDERS_MAX)) {
                    jobs.entry(kept.order.job).or_default().push(kept);
                }
                for of_job in jobs.into_values() {
                    if uploader.store(&of_job).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(orders)
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
        let uploaded = match self.put_segment(segment) {
            Ok(uploaded) => uploaded,
            // One of them cannot be read: killed meanwhile, or still written to. The others are not to suffer.
            Err(_) if together.len() > 1 => {
                return together.iter().try_for_each(|kept| self.store(std::slice::from_ref(kept)));
            }
            Err(error) => {
                let run = together[0].run;
                tracing::error!(run, %error, "outputs cannot be read and are lost");
                let why = format!("the outputs cannot be read: {error}");
                let mut streams = Segment::default();
                streams.add_packed(run, together[0].pack_streams(why, self.output_size_max));
                self.put_segment(streams).unwrap_or_else(|error| {
                    tracing::error!(run, %error, "its standard output and error neither");
                    Uploaded { file: None, parcels: vec![Parcel { run, bundle: None, is_refused: true }] }
                })
            }
        };
        self.done.send(uploaded).map_err(drop)
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

    /// Puts until it is stored; only what cannot be read here, or does not keep still, is an error.
    fn put(&mut self, mut source: Source) -> Result<StoredFile, PutError> {
        let mut changes = 0;
        let mut hash = source.hash()?;
        loop {
            let nodes = self.connections.endpoints();
            let mut why = "no storage node is known yet".to_owned();
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
                    Err(error) => why = format!("{}: {error}", nodes[at].endpoint),
                }
            }
            tracing::warn!(file = %FileId::of(hash), why, "outputs are not stored yet");
            thread::sleep(ROUND_PAUSE);
        }
    }
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
