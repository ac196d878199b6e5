//! The whole state as bytes, and back.
//!
//! What can be computed from the rest is not written, so that a snapshot cannot contradict itself.

use wire::record::NodeRecord;
use wire::{BootNonce, DecodeError, FileId, Hash, NodeId, Reader, WallTime, Writer};

use super::{Epoch, File, Job, State};

/// The version of the layout, first in every snapshot.
const VERSION: u8 = 3;

impl State {
    /// The bytes of the state: equal for equal states.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.raw(&[VERSION]).varint(self.index).plain(&self.chain).varint(self.stamp.0);
        to.varint(self.epoch.number).plain(&self.epoch.load_balancer).varint(self.epoch.boot.0);
        to.varint(self.nodes_version).varint(self.nodes.len() as u64);
        self.nodes.values().for_each(|node| node.encode(&mut to));
        to.varint(self.files.len() as u64);
        for (id, file) in &self.files {
            to.plain(id).varint(file.number).plain(&file.hash).varint(file.length).raw(&[file.class]);
            to.varint(file.stored_at.0).varint(file.copies.len() as u64);
            file.copies.iter().for_each(|node| {
                to.plain(node);
            });
        }
        to.varint(self.jobs.len() as u64);
        self.jobs.values().for_each(|job| job.encode(&mut to));
        to.bytes
    }

    /// The state whose bytes these are.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let from = &mut Reader::new(bytes);
        if from.raw(1)?[0] != VERSION {
            return Err(DecodeError::Body { what: "the snapshot is of another version" });
        }
        let (index, chain, stamp) = (from.varint()?, *from.plain()?, WallTime(from.varint()?));
        let mut state = Self { index, chain, stamp, ..Self::default() };
        state.epoch = Epoch { number: from.varint()?, load_balancer: *from.plain()?, boot: BootNonce(from.varint()?) };
        state.nodes_version = from.varint()?;
        for _ in 0..from.varint()? {
            let node = NodeRecord::decode(from)?;
            state.nodes.insert(node.node, node);
        }
        for _ in 0..from.varint()? {
            let (id, file) = decode_file(from)?;
            state.files_by_number.insert(file.number, id);
            state.files.insert(id, file);
        }
        for _ in 0..from.varint()? {
            let job = Job::decode(from)?;
            state.jobs_by_number.insert(job.number, job.job);
            if job.is_live() {
                state.jobs_live.insert(job.job);
            }
            state.jobs.insert(job.job, job);
        }
        from.end()?;
        Ok(state)
    }
}

fn decode_file(from: &mut Reader<'_>) -> Result<(FileId, File), DecodeError> {
    let (id, number, hash): (FileId, u64, Hash) = (*from.plain()?, from.varint()?, *from.plain()?);
    let (length, class, stored_at) = (from.varint()?, from.raw(1)?[0], WallTime(from.varint()?));
    let mut copies: Vec<NodeId> = Vec::new();
    for _ in 0..from.varint()? {
        copies.push(*from.plain()?);
    }
    Ok((id, File { number, hash, length, class, copies, stored_at }))
}
