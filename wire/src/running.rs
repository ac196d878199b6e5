//! What runs on a worker: the body of its heartbeat.
//!
//! The ranges come first, where load balancers look for what they can give away; then, for those who show people since
//! when a chunk runs, the age of each. An age, not a time: it needs no two clocks to agree.

use crate::record::{ChunkItem, records_bytes, records_of};
use crate::{DecodeError, Duration, JobId, Reader, Writer};

/// A chunk that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunningChunk {
    pub job: JobId,
    pub chunk: u32,
    pub attempt: u32,
    /// For how long it has run.
    pub age: Duration,
}

/// Builds the body; `ages` has one for each chunk of the items, in their order.
pub fn encode_running(items: &[ChunkItem], ages: impl IntoIterator<Item = Duration>) -> Vec<u8> {
    let mut to = Writer::new();
    to.raw(records_bytes(items));
    for age in ages {
        to.varint(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
    }
    to.bytes
}

/// The chunks of the items whose age is told; a worker may leave them out, from the last on.
pub fn decode_running(body: &[u8], num_items: u32) -> Result<impl Iterator<Item = RunningChunk> + '_, DecodeError> {
    let items = records_of::<ChunkItem>(body, num_items)?;
    let mut ages = Reader::new(&body[size_of_val(items)..]);
    let chunks = items.iter().flat_map(|item| {
        let (job, attempt) = (item.job(), item.attempt);
        item.range().chunks().map(move |chunk| (job, chunk, attempt))
    });
    Ok(chunks.map_while(move |(job, chunk, attempt)| {
        let age = Duration::from_micros(ages.varint().ok()?);
        Some(RunningChunk { job, chunk, attempt, age })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkRange, record::holding};

    #[test]
    fn each_chunk_has_its_age_as_far_as_they_are_told() {
        let job = JobId([1; 16]);
        let item = |range, attempt| ChunkItem::new(job, range, attempt, holding::RUNNING);
        let items =
            [item(ChunkRange::new(4, 2), 1), item(ChunkRange::one(9), 3), item(ChunkRange::new(0, u32::MAX), 1)];
        let body = encode_running(&items, [7, 900, 5].map(Duration::from_micros));
        let told: Vec<_> = decode_running(&body, 3).unwrap().map(|r| (r.chunk, r.attempt, r.age.as_micros())).collect();
        assert_eq!(told, [(4, 1, 7), (5, 1, 900), (9, 3, 5)]);
        assert_eq!(decode_running(records_bytes(&items), 3).unwrap().count(), 0);
        assert!(decode_running(&body, 4).is_err());
    }
}
