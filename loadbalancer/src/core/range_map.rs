//! A map from chunks to values that costs by its runs of equal values, not by its chunks.
//!
//! Like a street directory that says "2 to 98: Miller" once: a job of a million chunks that three workers hold is three
//! lines here.

use std::collections::BTreeMap;

use wire::ChunkRange;

/// Values by chunk, kept as runs that do not overlap; neighbours with equal values are one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeMap<V> {
    /// By first chunk: one past the last, and the value of all.
    runs: BTreeMap<u32, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

fn between(first: u64, end: u64) -> ChunkRange {
    ChunkRange::new(first as u32, (end - first) as u32)
}

impl<V: Copy + PartialEq> RangeMap<V> {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All runs in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ChunkRange, V)> + '_ {
        self.runs.iter().map(|(first, (end, value))| (between(u64::from(*first), *end), *value))
    }

    /// The parts of runs that lie in `range`, in order.
    pub fn pieces(&self, range: ChunkRange) -> impl Iterator<Item = (ChunkRange, V)> + '_ {
        let (first, end) = (u64::from(range.first), range.end());
        // The run that begins before the range may reach into it.
        let start = self.runs.range(..=range.first).next_back().map_or(range.first, |(first, _)| *first);
        let runs = self.runs.range(start..).take_while(move |(run, _)| u64::from(**run) < end);
        runs.filter_map(move |(run, (run_end, value))| {
            let (low, high) = (first.max(u64::from(*run)), end.min(*run_end));
            (low < high).then(|| (between(low, high), *value))
        })
    }

    /// The parts of `range` that no run covers, in order.
    pub fn gaps(&self, range: ChunkRange) -> Vec<ChunkRange> {
        let mut gaps = Vec::new();
        let mut from = u64::from(range.first);
        for (piece, _) in self.pieces(range) {
            if from < u64::from(piece.first) {
                gaps.push(between(from, u64::from(piece.first)));
            }
            from = piece.end();
        }
        if from < range.end() {
            gaps.push(between(from, range.end()));
        }
        gaps
    }

    /// Takes out what lies in `range` and gives it back, in order.
    pub fn remove(&mut self, range: ChunkRange) -> Vec<(ChunkRange, V)> {
        let removed: Vec<_> = self.pieces(range).collect();
        let (Some((low, _)), Some((high, _))) = (removed.first(), removed.last()) else { return removed };
        let (low, high) = (low.first, high.end());
        // What the first and the last run have outside the range stays.
        let before = self.runs.range(..=low).next_back().map(|(first, (_, value))| (*first, *value));
        let after = self.runs.range(..high.min(u64::from(u32::MAX)) as u32).next_back();
        let after = after.map(|(_, (end, value))| (*end, *value)).filter(|(end, _)| *end > high);
        for (piece, _) in &removed {
            self.runs.remove(&piece.first);
        }
        if let Some((first, value)) = before.filter(|(first, _)| *first < low) {
            self.runs.insert(first, (u64::from(low), value));
        }
        if let Some((end, value)) = after {
            self.runs.insert(high as u32, (end, value));
        }
        removed
    }

    /// Gives `value` to every chunk of `range`, whatever it had.
    pub fn insert(&mut self, range: ChunkRange, value: V) {
        if range.count == 0 {
            return;
        }
        self.remove(range);
        let (mut first, mut end) = (range.first, range.end());
        if let Some((left, (left_end, left_value))) = self.runs.range(..first).next_back()
            && *left_end == u64::from(first)
            && *left_value == value
        {
            first = *left;
        }
        if let Ok(next) = u32::try_from(end)
            && let Some((right_end, right_value)) = self.runs.get(&next)
            && *right_value == value
        {
            end = *right_end;
            self.runs.remove(&next);
        }
        self.runs.insert(first, (end, value));
    }

    /// The value at `chunk`, if it has one, and one past the last chunk that shares its lot.
    pub fn run_at(&self, chunk: u32) -> (Option<V>, u64) {
        if let Some((_, (end, value))) = self.runs.range(..=chunk).next_back()
            && u64::from(chunk) < *end
        {
            return (Some(*value), *end);
        }
        let next = self.runs.range(chunk..).next().map_or(u64::MAX, |(first, _)| u64::from(*first));
        (None, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> ChunkRange {
        ChunkRange::new(first, count)
    }

    #[test]
    fn neighbours_of_equal_value_are_one_run() {
        let mut map = RangeMap::default();
        map.insert(range(0, 5), 'a');
        map.insert(range(10, 5), 'a');
        map.insert(range(5, 5), 'a');
        assert_eq!(map.iter().collect::<Vec<_>>(), [(range(0, 15), 'a')]);
        map.insert(range(3, 2), 'b');
        assert_eq!(map.iter().collect::<Vec<_>>(), [(range(0, 3), 'a'), (range(3, 2), 'b'), (range(5, 10), 'a')]);
        assert_eq!(map.remove(range(2, 4)), [(range(2, 1), 'a'), (range(3, 2), 'b'), (range(5, 1), 'a')]);
        assert_eq!(map.gaps(range(0, 20)), [range(2, 4), range(15, 5)]);
        assert_eq!((map.run_at(1), map.run_at(3), map.run_at(15)), ((Some('a'), 2), (None, 6), (None, u64::MAX)));
    }

    #[test]
    fn the_last_chunk_of_all_has_its_place() {
        let mut map = RangeMap::default();
        map.insert(range(0, u32::MAX), 1);
        assert_eq!(map.remove(range(u32::MAX - 2, 2)), [(range(u32::MAX - 2, 2), 1)]);
        map.insert(range(u32::MAX, 1), 2);
        assert_eq!(
            map.pieces(range(u32::MAX - 3, 4)).collect::<Vec<_>>(),
            [(range(u32::MAX - 3, 1), 1), (range(u32::MAX, 1), 2)]
        );
    }

    #[test]
    fn it_says_what_a_map_by_chunk_would_say() {
        let mut map = RangeMap::default();
        let mut plain = [None; 64];
        let mut lot = 1u32;
        for _ in 0..5_000 {
            lot = lot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (first, count, value) = (lot >> 26, lot >> 20 & 7, lot >> 16 & 3);
            let what = range(first, count.min(64 - first));
            let chunks: Vec<usize> = what.chunks().map(|chunk| chunk as usize).collect();
            if value == 0 {
                let removed: u32 = map.remove(what).iter().map(|(piece, _)| piece.count).sum();
                assert_eq!(removed as usize, chunks.iter().filter(|chunk| plain[**chunk].is_some()).count());
                chunks.into_iter().for_each(|chunk| plain[chunk] = None);
            } else {
                map.insert(what, value);
                chunks.into_iter().for_each(|chunk| plain[chunk] = Some(value));
            }
            for (chunk, value) in plain.iter().enumerate() {
                assert_eq!(map.run_at(chunk as u32).0, *value);
            }
            let runs: Vec<_> = map.iter().collect();
            assert!(runs.windows(2).all(|pair| pair[0].0.end() < u64::from(pair[1].0.first) || pair[0].1 != pair[1].1));
        }
    }
}
