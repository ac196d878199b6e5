//! A batch of results: the body of a `worker_status` with `num_runs` > 0.
//!
//! One job, one outcome, one attempt; the chunks come as runs of neighbours with packed columns, so that a thousand
//! short chunks are a few bytes each, and a run, not a chunk, is what the log and the masters' memory count.

use crate::record::{ChunkResult, StoredFile, earliest_start};
use crate::{ChunkRange, DecodeError, FileId, Reader, WallTime, Writer};

/// The results of neighbours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub first: u32,
    /// One for each chunk from `first` on, never empty.
    pub results: Vec<ChunkResult>,
}

impl Run {
    pub fn range(&self) -> ChunkRange {
        ChunkRange::new(self.first, self.results.len() as u32)
    }
}

/// Builds the body: the files that the bundles name, a base time, then the runs.
pub fn encode_results(files: &[StoredFile], runs: &[Run]) -> Vec<u8> {
    let base = earliest_start(runs.iter().flat_map(|run| &run.results)).unwrap_or_default();
    let mut to = Writer::new();
    files.iter().for_each(|file| file.encode(&mut to));
    to.varint(base.0);
    for run in runs {
        to.varint(run.first.into()).varint(run.results.len() as u64);
        run.results.iter().for_each(|result| result.encode(base, &mut to));
    }
    to.bytes
}

/// Reads the body; `num_files` and `num_runs` are in the fixed part.
pub fn decode_results(body: &[u8], num_files: u32, num_runs: u32) -> Result<(Vec<StoredFile>, Vec<Run>), DecodeError> {
    let mut from = Reader::new(body);
    let mut files = Vec::new();
    for _ in 0..num_files {
        files.push(StoredFile::decode(&mut from)?);
    }
    let ids: Vec<FileId> = files.iter().map(|file| file.file).collect();
    let base = WallTime(from.varint()?);
    let mut runs = Vec::new();
    for _ in 0..num_runs {
        runs.push(decode_run(base, &ids, &mut from)?);
    }
    from.end()?;
    Ok((files, runs))
}

fn decode_run(base: WallTime, ids: &[FileId], from: &mut Reader<'_>) -> Result<Run, DecodeError> {
    let (first, count) = (from.varint32()?, from.varint32()?);
    if count == 0 || ChunkRange::new(first, count).end() > u64::from(u32::MAX) {
        return Err(DecodeError::Body { what: "a run is empty or beyond the last chunk" });
    }
    let mut results = Vec::new();
    for _ in 0..count {
        let result = ChunkResult::decode(base, ids, from)?;
        if result.bundle.is_some_and(|bundle| bundle.file == FileId::NIL) {
            return Err(DecodeError::Body { what: "a bundle names a file that the batch does not have" });
        }
        results.push(result);
    }
    Ok(Run { first, results })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Bundle, Receipt};
    use crate::{Cause, Hash};

    fn a_result(started_at: u64) -> ChunkResult {
        ChunkResult {
            started_at: WallTime(started_at),
            duration_us: 900,
            cpu_us: 700,
            max_rss_kib: 1500,
            exit_code: Some(0),
            signal: None,
            cause: Cause::None,
            bundle: None,
        }
    }

    #[test]
    fn a_batch_gives_back_its_results() {
        let file = FileId([9; 16]);
        let bundle = Bundle {
            file,
            file_index: 0,
            offset: 3,
            index_length: 0,
            stdout_length: 5,
            stderr_length: 0,
            outputs_length: 0,
        };
        let files = [StoredFile {
            file,
            hash: Hash([8; 32]),
            length: 10,
            class: 1,
            receipts: vec![Receipt { mac: [1; 32], ..Default::default() }],
        }];
        let killed = ChunkResult { exit_code: None, signal: Some(9), cause: Cause::Signal, ..a_result(2_000) };
        let written = ChunkResult { bundle: Some(bundle), ..a_result(1_000) };
        let runs = [Run { first: 4, results: vec![written, killed] }, Run { first: 9, results: vec![a_result(1_500)] }];
        let body = encode_results(&files, &runs);
        assert_eq!(decode_results(&body, 1, 2).unwrap(), (files.to_vec(), runs.to_vec()));
        assert_eq!(bundle.stdout().unwrap().piece, Some((3, 5)));
        assert_eq!(bundle.stderr(), None);
    }

    #[test]
    fn a_short_chunk_costs_a_few_bytes() {
        let run = Run { first: 0, results: (0..1000).map(|i| a_result(1_795_513_666_000_000 + i * 100)).collect() };
        assert!(encode_results(&[], &[run]).len() < 12_000);
    }

    #[test]
    fn a_chunk_that_never_started_comes_back_so_and_costs_the_others_nothing() {
        let started: Vec<ChunkResult> = (0..1000).map(|i| a_result(1_795_513_666_000_000 + i * 100)).collect();
        let never = ChunkResult { exit_code: None, cause: Cause::Policy, ..a_result(0) };
        let runs = [Run { first: 0, results: [&started[..], &[never]].concat() }];
        let body = encode_results(&[], &runs);
        assert!(body.len() < 12_000, "{} bytes", body.len());
        assert_eq!(decode_results(&body, 0, 1).unwrap().1, runs);

        let runs = [Run { first: 0, results: vec![never, never] }];
        assert_eq!(decode_results(&encode_results(&[], &runs), 0, 1).unwrap().1, runs);
    }

    #[test]
    fn counts_beyond_the_body_are_refused_before_anything_is_allocated() {
        assert!(decode_results(&[], u32::MAX, 0).is_err());
        assert!(decode_results(&[0], 0, u32::MAX).is_err());
        assert!(decode_results(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f], 0, 1).is_err());
    }
}
