//! The accepted results of a job's chunks, kept packed.
//!
//! A million short chunks end as a million results that hardly anybody reads. So they stay as the columns in which they
//! came, a few bytes each, and are unpacked when somebody asks.

use std::collections::BTreeMap;

use wire::record::{Bundle, ChunkResult, earliest_start};
use wire::{ChunkRange, DecodeError, FileId, NodeId, Reader, WallTime, Writer};

/// Neighbours join a run until it has that many bytes: longer ones make reading one chunk slow.
const RUN_BYTES_MAX: usize = 4096;

/// The results of one job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResultRuns {
    /// By first chunk; they never meet, since a chunk has one result.
    runs: BTreeMap<u32, PackedRun>,
    /// Whose results these are; runs name them by position.
    workers: Vec<NodeId>,
    /// The files that bundles lie in; results name them by position.
    files: Vec<FileId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct PackedRun {
    count: u32,
    attempt: u32,
    worker: u32,
    /// Not later than any start in the run; zero = none of its chunks started.
    base: WallTime,
    columns: Box<[u8]>,
}

/// The accepted result of a chunk and where it came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accepted {
    pub chunk: u32,
    pub attempt: u32,
    pub worker: NodeId,
    pub result: ChunkResult,
}

impl ResultRuns {
    /// Keeps the results of the chunks from `first` on, none of which has one yet.
    pub fn keep(&mut self, worker: NodeId, attempt: u32, first: u32, results: &[ChunkResult]) {
        if results.is_empty() {
            return;
        }
        let earliest = earliest_start(results);
        let worker = position(&mut self.workers, worker);
        // The run that ends where this one begins takes it in, if it can.
        let before = self.runs.range_mut(..first).next_back().filter(|(start, run)| {
            ChunkRange::new(**start, run.count).end() == u64::from(first)
                && (run.worker, run.attempt) == (worker, attempt)
                && earliest.is_none_or(|earliest| run.base != WallTime(0) && run.base <= earliest)
                && run.columns.len() < RUN_BYTES_MAX
        });
        let base = before.as_ref().map_or(earliest.unwrap_or_default(), |(_, run)| run.base);
        let mut to = Writer::new();
        for result in results {
            pack(result, base, &mut self.files, &mut to);
        }
        match before {
            Some((_, run)) => {
                run.columns = [&run.columns[..], &to.bytes].concat().into();
                run.count += results.len() as u32;
            }
            None => {
                let columns = to.bytes.into_boxed_slice();
                self.runs.insert(first, PackedRun { count: results.len() as u32, attempt, worker, base, columns });
            }
        }
    }

    /// The results of the chunks of `range` that have one, in order.
    pub fn read(&self, range: ChunkRange) -> Vec<Accepted> {
        let mut read = Vec::new();
        let before = self.runs.range(..range.first).next_back();
        let within = self.runs.range(range.first..).take_while(|(first, _)| u64::from(**first) < range.end());
        for (first, run) in before.into_iter().chain(within) {
            let mut from = Reader::new(&run.columns);
            for chunk in ChunkRange::new(*first, run.count).chunks().take_while(|c| u64::from(*c) < range.end()) {
                let result = ChunkResult::decode(run.base, &self.files, &mut from)
                    .expect("the columns are those that were packed");
                if range.contains(chunk) {
                    let worker = self.workers[run.worker as usize];
                    read.push(Accepted { chunk, attempt: run.attempt, worker, result });
                }
            }
        }
        read
    }

    /// How many chunks have a result.
    pub fn count(&self) -> u64 {
        self.runs.values().map(|run| u64::from(run.count)).sum()
    }

    pub fn encode(&self, to: &mut Writer) {
        to.varint(self.workers.len() as u64);
        self.workers.iter().for_each(|worker| {
            to.plain(worker);
        });
        to.varint(self.files.len() as u64);
        self.files.iter().for_each(|file| {
            to.plain(file);
        });
        to.varint(self.runs.len() as u64);
        for (first, run) in &self.runs {
            to.varint((*first).into()).varint(run.count.into()).varint(run.attempt.into());
            to.varint(run.worker.into()).varint(run.base.0).string(&run.columns);
        }
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut results = Self::default();
        for _ in 0..from.varint()? {
            results.workers.push(*from.plain()?);
        }
        for _ in 0..from.varint()? {
            results.files.push(*from.plain()?);
        }
        let mut end = 0;
        for _ in 0..from.varint()? {
            let (first, count, attempt) = (from.varint32()?, from.varint32()?, from.varint32()?);
            let (worker, base, columns) = (from.varint32()?, WallTime(from.varint()?), from.string()?);
            let mut columns_from = Reader::new(columns);
            for _ in 0..count {
                ChunkResult::decode(base, &results.files, &mut columns_from)?;
            }
            columns_from.end()?;
            if u64::from(first) < end || worker as usize >= results.workers.len() {
                return Err(DecodeError::Body { what: "a run of results is out of place" });
            }
            end = ChunkRange::new(first, count).end();
            results.runs.insert(first, PackedRun { count, attempt, worker, base, columns: columns.into() });
        }
        Ok(results)
    }
}

/// The position of `value` in `list`, to whose end it is put if it is not there. New values come late, so it is looked
/// for from the end.
pub(super) fn position<T: PartialEq>(list: &mut Vec<T>, value: T) -> u32 {
    let found = list.iter().rposition(|known| *known == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    });
    found as u32
}

fn pack(result: &ChunkResult, base: WallTime, files: &mut Vec<FileId>, to: &mut Writer) {
    let bundle = result.bundle.map(|bundle| Bundle { file_index: position(files, bundle.file), ..bundle });
    ChunkResult { bundle, ..*result }.encode(base, to);
}

#[cfg(test)]
mod tests {
    use wire::Cause;

    use super::*;

    fn a_result(started_at: u64, file: Option<FileId>) -> ChunkResult {
        let bundle = file.map(|file| Bundle {
            file,
            file_index: 77,
            offset: started_at,
            index_length: 0,
            stdout_length: 3,
            stderr_length: 0,
            outputs_length: 0,
        });
        ChunkResult {
            started_at: WallTime(started_at),
            duration_us: 900,
            cpu_us: 800,
            max_rss_kib: 1500,
            exit_code: Some(0),
            signal: None,
            cause: Cause::None,
            bundle,
        }
    }

    #[test]
    fn results_come_back_with_their_worker_and_file() {
        let (worker, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let (file, next) = (FileId([8; 16]), FileId([9; 16]));
        let mut results = ResultRuns::default();
        results.keep(worker, 1, 4, &[a_result(20, Some(file)), a_result(10, None)]);
        results.keep(worker, 1, 6, &[a_result(30, Some(next))]);
        results.keep(other, 2, 0, &[a_result(5, None)]);
        assert_eq!((results.runs.len(), results.count()), (2, 4));

        let read = results.read(ChunkRange::new(0, 100));
        assert_eq!(read.iter().map(|accepted| accepted.chunk).collect::<Vec<_>>(), [0, 4, 5, 6]);
        assert_eq!((read[0].worker, read[0].attempt), (other, 2));
        assert_eq!(read[1].result.started_at, WallTime(20));
        assert_eq!(read[1].result.bundle.unwrap().file, file);
        assert_eq!(read[3].result.bundle.unwrap().file, next);
        assert_eq!(results.read(ChunkRange::one(5)), [read[2]]);

        let mut to = Writer::new();
        results.encode(&mut to);
        assert_eq!(ResultRuns::decode(&mut Reader::new(&to.bytes)).unwrap(), results);
    }

    #[test]
    fn chunks_that_never_started_do_not_make_the_others_larger() {
        const START: u64 = 1_795_513_666_000_000;
        let never = ChunkResult { exit_code: None, cause: Cause::Policy, ..a_result(0, None) };
        let mut results = ResultRuns::default();
        let kept: Vec<ChunkResult> =
            (0..100).map(|i| if i % 3 == 0 { never } else { a_result(START + i * 500, None) }).collect();
        for (chunk, result) in (0..).zip(&kept) {
            results.keep(NodeId([1; 16]), 1, chunk, &[*result]);
        }
        let read: Vec<ChunkResult> = results.read(ChunkRange::new(0, 100)).iter().map(|found| found.result).collect();
        assert_eq!(read, kept);
        let bases: Vec<WallTime> = results.runs.values().map(|run| run.base).collect();
        assert_eq!(bases, [WallTime(0), WallTime(START + 500)]);
    }

    #[test]
    fn a_hundred_thousand_results_take_a_few_bytes_each() {
        let mut results = ResultRuns::default();
        for chunk in 0..100_000 {
            results.keep(NodeId([1; 16]), 1, chunk, &[a_result(1_795_513_666_000_000 + u64::from(chunk) * 500, None)]);
        }
        let columns: usize = results.runs.values().map(|run| run.columns.len()).sum();
        assert!(columns < 1_200_000 && results.runs.len() < 400, "{columns} bytes in {} runs", results.runs.len());
    }
}
