//! Chunks: a range, a set, and the numbers that `--array` gives them.

use std::fmt;

use roaring::RoaringBitmap;

use crate::DecodeError;

/// `count` chunks of one job from index `first` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkRange {
    pub first: u32,
    pub count: u32,
}

impl ChunkRange {
    pub fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }

    pub fn one(chunk: u32) -> Self {
        Self { first: chunk, count: 1 }
    }

    /// One past the last index, as u64 since a range may end at 2^32.
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    pub fn contains(self, chunk: u32) -> bool {
        chunk >= self.first && u64::from(chunk) < self.end()
    }

    pub fn is_within(self, chunk_count: u32) -> bool {
        self.end() <= u64::from(chunk_count)
    }

    /// The chunks that are in both; `None` = there are none.
    pub fn within(self, other: ChunkRange) -> Option<ChunkRange> {
        let first = self.first.max(other.first);
        let count = self.end().min(other.end()).checked_sub(u64::from(first)).filter(|count| *count > 0)?;
        u32::try_from(count).ok().map(|count| ChunkRange::new(first, count))
    }

    pub fn chunks(self) -> impl Iterator<Item = u32> {
        (u64::from(self.first)..self.end()).map(|chunk| chunk as u32)
    }
}

/// A set of chunk indexes as a compressed bitmap: a million chunks in one run take a few bytes.
#[derive(Clone, PartialEq, Default)]
pub struct ChunkSet(RoaringBitmap);

impl fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges().map(|r| (r.first, r.end()))).finish()
    }
}

impl ChunkSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// All chunks of a job.
    pub fn full(chunk_count: u32) -> Self {
        let mut set = Self::new();
        set.insert(ChunkRange::new(0, chunk_count));
        set
    }

    pub fn insert(&mut self, range: ChunkRange) {
        if range.count > 0 {
            self.0.insert_range(range.first..=(range.end() - 1).min(u64::from(u32::MAX)) as u32);
        }
    }

    pub fn remove(&mut self, range: ChunkRange) {
        if range.count > 0 {
            self.0.remove_range(range.first..=(range.end() - 1).min(u64::from(u32::MAX)) as u32);
        }
    }

    pub fn contains(&self, chunk: u32) -> bool {
        self.0.contains(chunk)
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many chunks of `range` are in the set.
    pub fn count_in(&self, range: ChunkRange) -> u64 {
        if range.count == 0 {
            0
        } else {
            self.0.range_cardinality(range.first..=(range.end() - 1).min(u64::from(u32::MAX)) as u32)
        }
    }

    /// The lowest chunk.
    pub fn first(&self) -> Option<u32> {
        self.0.min()
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    /// The chunks from `from` on, in order.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        self.0.range(from..)
    }

    /// The set as runs of neighbours, in order.
    pub fn ranges(&self) -> impl Iterator<Item = ChunkRange> + '_ {
        let mut iter = self.0.iter();
        std::iter::from_fn(move || iter.next_range().map(|r| ChunkRange::new(*r.start(), r.end() - r.start() + 1)))
    }

    /// The runs of neighbours within `within`, in order.
    pub fn ranges_in(&self, within: ChunkRange) -> impl Iterator<Item = ChunkRange> + '_ {
        // A bitmap has no range that ends before it begins; an empty one is answered below.
        let last = (within.end().max(1) - 1).min(u64::from(u32::MAX)) as u32;
        let mut iter = self.0.range(within.first..=last.max(within.first));
        let empty = within.count == 0;
        std::iter::from_fn(move || {
            if empty {
                return None;
            }
            iter.next_range().map(|r| ChunkRange::new(*r.start(), r.end() - r.start() + 1))
        })
    }

    pub fn union_with(&mut self, other: &ChunkSet) {
        self.0 |= &other.0;
    }

    pub fn subtract(&mut self, other: &ChunkSet) {
        self.0 -= &other.0;
    }

    /// Takes the lowest run of neighbours out, at most `count_max` of it.
    pub fn take_first(&mut self, count_max: u32) -> Option<ChunkRange> {
        let run = self.ranges().next()?;
        let taken = ChunkRange::new(run.first, run.count.min(count_max));
        self.remove(taken);
        Some(taken)
    }

    /// Roaring's portable format, made smallest first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bitmap = self.0.clone();
        bitmap.optimize();
        let mut bytes = Vec::with_capacity(bitmap.serialized_size());
        bitmap.serialize_into(&mut bytes).expect("writing into memory does not fail");
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        RoaringBitmap::deserialize_from(bytes)
            .map(Self)
            .map_err(|_| DecodeError::Body { what: "a chunk set is malformed" })
    }
}

impl FromIterator<ChunkRange> for ChunkSet {
    fn from_iter<I: IntoIterator<Item = ChunkRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

/// What `--array` says: `1-1000:2%50`, or `1,3,5-8`. Index `i` of the job is the i-th number it lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArraySpec {
    /// `(first, last, step)` in the order given; numbers never repeat.
    pub parts: Vec<(u64, u64, u64)>,
    /// At most that many chunks run at once; 0 = no cap.
    pub running_max: u32,
}

/// Says why a text is not an array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArraySpecError {
    #[error("'{value}' is not an array: expected e.g. 1-1000, 1-1000:2%50 or 1,3,5-8")]
    Syntax { value: String },
    #[error("array '{value}' is empty: its last number is below its first")]
    Empty { value: String },
    #[error("array '{value}' has {count} chunks, the limit is {max}", max = crate::limit::CHUNKS_MAX)]
    TooMany { value: String, count: u128 },
    #[error("array '{value}' lists {number} twice")]
    Twice { value: String, number: u64 },
}

impl ArraySpec {
    pub fn parse(value: &str) -> Result<Self, ArraySpecError> {
        let syntax = || ArraySpecError::Syntax { value: value.into() };
        let number = |text: &str| -> Result<u64, ArraySpecError> {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(syntax());
            }
            text.parse().map_err(|_| syntax())
        };
        let (list, cap) = match value.split_once('%') {
            Some((list, cap)) => (list, number(cap)?),
            None => (value, 0),
        };
        if value.contains('%') && cap == 0 {
            return Err(syntax());
        }
        let mut parts = Vec::new();
        for part in list.split(',') {
            let (range, step) = match part.split_once(':') {
                Some((range, step)) => (range, number(step)?),
                None => (part, 1),
            };
            let (first, last) = match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(range)?, number(range)?),
            };
            if step == 0 {
                return Err(syntax());
            }
            if last < first {
                return Err(ArraySpecError::Empty { value: value.into() });
            }
            parts.push((first, last, step));
        }
        let spec = Self { parts, running_max: u32::try_from(cap).map_err(|_| syntax())? };
        let count: u128 = spec.parts.iter().map(|(first, last, step)| u128::from((last - first) / step) + 1).sum();
        if count > u128::from(crate::limit::CHUNKS_MAX) {
            return Err(ArraySpecError::TooMany { value: value.into(), count });
        }
        spec.check_distinct(value)?;
        Ok(spec)
    }

    fn check_distinct(&self, value: &str) -> Result<(), ArraySpecError> {
        for (i, a) in self.parts.iter().enumerate() {
            for b in &self.parts[..i] {
                // Overlapping hulls may still interleave (1-9:2,2-8:2): only then is each number looked at.
                let (low, high) = (a.0.max(b.0), a.1.min(b.1));
                if low > high {
                    continue;
                }
                let start = a.0 + (low - a.0).div_ceil(a.2) * a.2;
                let twice = (0..b.2).map_while(|k| start.checked_add(k.checked_mul(a.2)?)).take_while(|n| *n <= high);
                if let Some(number) = twice.into_iter().find(|n| (n - b.0).is_multiple_of(b.2)) {
                    return Err(ArraySpecError::Twice { value: value.into(), number });
                }
            }
        }
        Ok(())
    }

    /// `count` chunks numbered from 0.
    pub fn plain(count: u32) -> Self {
        if count == 0 { Self::default() } else { Self { parts: vec![(0, u64::from(count) - 1, 1)], running_max: 0 } }
    }

    pub fn count(&self) -> u64 {
        self.parts.iter().map(|(first, last, step)| (last - first) / step + 1).sum()
    }

    /// The number that people and programs see for chunk `index`.
    pub fn number(&self, index: u32) -> u64 {
        let mut index = u64::from(index);
        for (first, last, step) in &self.parts {
            let count = (last - first) / step + 1;
            if index < count {
                return first + index * step;
            }
            index -= count;
        }
        index
    }

    /// The index of the chunk that people call `number`.
    pub fn index(&self, number: u64) -> Option<u32> {
        let mut before = 0;
        for (first, last, step) in &self.parts {
            if number >= *first && number <= *last && (number - first).is_multiple_of(*step) {
                return Some((before + (number - first) / step) as u32);
            }
            before += (last - first) / step + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_gives_its_own_numbers() {
        let spec = ArraySpec::parse("5-10:2,1%3").unwrap();
        assert_eq!(spec.count(), 4);
        assert_eq!((0..4).map(|i| spec.number(i)).collect::<Vec<_>>(), [5, 7, 9, 1]);
        assert_eq!((spec.index(9), spec.index(1), spec.index(6)), (Some(2), Some(3), None));
        assert_eq!(spec.running_max, 3);
    }

    #[test]
    fn bad_arrays_say_what_is_wrong() {
        for text in ["", "-", "1-", "a", "1-2-3", "1:0", "1-5%", "1-5%0", "-1", "1,,2", "1-5%x", "+1"] {
            assert!(matches!(ArraySpec::parse(text), Err(ArraySpecError::Syntax { .. })), "{text}");
        }
        assert!(matches!(ArraySpec::parse("5-1"), Err(ArraySpecError::Empty { .. })));
        assert!(matches!(ArraySpec::parse("0-1099511627775"), Err(ArraySpecError::TooMany { .. })));
        assert!(matches!(ArraySpec::parse("0-18446744073709551615"), Err(ArraySpecError::TooMany { .. })));
        assert_eq!(ArraySpec::parse("1-5,4"), Err(ArraySpecError::Twice { value: "1-5,4".into(), number: 4 }));
        assert!(ArraySpec::parse("1-9:2,2-8:2").is_ok());
    }

    #[test]
    fn a_chunk_set_keeps_runs_and_survives_its_bytes() {
        let mut set = ChunkSet::full(10);
        set.remove(ChunkRange::new(3, 2));
        assert_eq!(set.ranges().collect::<Vec<_>>(), [ChunkRange::new(0, 3), ChunkRange::new(5, 5)]);
        assert_eq!(
            set.ranges_in(ChunkRange::new(2, 4)).collect::<Vec<_>>(),
            [ChunkRange::new(2, 1), ChunkRange::new(5, 1)]
        );
        assert_eq!(set.ranges_in(ChunkRange::new(5, 0)).count(), 0);
        assert_eq!(set.ranges_in(ChunkRange::new(u32::MAX, u32::MAX)).count(), 0);
        assert_eq!(set.take_first(2), Some(ChunkRange::new(0, 2)));
        assert_eq!(ChunkSet::from_bytes(&set.to_bytes()).unwrap(), set);
        assert!(ChunkSet::from_bytes(&[1, 2, 3]).is_err());
        assert!(ChunkSet::full(1_000_000).to_bytes().len() < 300);
    }

    #[test]
    fn the_largest_job_fits() {
        let set = ChunkSet::full(u32::MAX);
        assert_eq!(set.len(), u64::from(u32::MAX));
        assert!(!set.contains(u32::MAX));
    }
}
