//! Which attempt each chunk of a job is at, kept only where it is not the first.
//!
//! A lost worker raises the attempts of whole ranges, so ranges are what is kept: the cost is that of the losses, not
//! of the chunks.

use std::collections::BTreeMap;

use wire::{ChunkRange, DecodeError, Reader, Writer};

/// How often a chunk has been tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tries {
    /// From 1; it names the run that counts now.
    pub attempt: u32,
    /// How many attempts were lost with their worker.
    pub crashes: u32,
}

impl Tries {
    pub const FIRST: Tries = Tries { attempt: 1, crashes: 0 };
}

/// The tries of all chunks of a job.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TryMap {
    /// By first chunk: `(count, tries)`; they neither meet nor hold `Tries::FIRST`.
    segments: BTreeMap<u32, (u32, Tries)>,
}

impl TryMap {
    pub fn of(&self, chunk: u32) -> Tries {
        match self.segments.range(..=chunk).next_back() {
            Some((first, (count, tries))) if ChunkRange::new(*first, *count).contains(chunk) => *tries,
            _ => Tries::FIRST,
        }
    }

    /// `range` cut into pieces of equal tries, in order and without gaps.
    pub fn pieces(&self, range: ChunkRange) -> Vec<(ChunkRange, Tries)> {
        let mut pieces = Vec::new();
        let mut at = u64::from(range.first);
        let before = self.segments.range(..range.first).next_back();
        let within = self.segments.range(range.first..).take_while(|(first, _)| u64::from(**first) < range.end());
        for (first, (count, tries)) in before.into_iter().chain(within) {
            let segment = ChunkRange::new(*first, *count);
            let (start, end) = (u64::from(*first).max(at), segment.end().min(range.end()));
            if start >= end {
                continue;
            }
            push(&mut pieces, at, start, Tries::FIRST);
            push(&mut pieces, start, end, *tries);
            at = end;
        }
        push(&mut pieces, at, range.end(), Tries::FIRST);
        pieces
    }

    /// Sets the tries of every chunk of `range`.
    pub fn set(&mut self, range: ChunkRange, tries: Tries) {
        if range.count == 0 {
            return;
        }
        // Neighbours that touch the range are taken along, so that what is equal becomes one segment.
        let low = range.first.saturating_sub(1);
        let from = self.segments.range(..=low).next_back().map_or(low, |(first, _)| *first);
        let touched: Vec<(u32, (u32, Tries))> = self
            .segments
            .range(from..)
            .take_while(|(first, _)| u64::from(**first) <= range.end())
            .map(|(first, segment)| (*first, *segment))
            .collect();
        let mut pieces: Vec<(ChunkRange, Tries)> = Vec::new();
        for (first, (count, old)) in touched {
            let end = ChunkRange::new(first, count).end();
            self.segments.remove(&first);
            push(&mut pieces, u64::from(first), end.min(u64::from(range.first)), old);
            push(&mut pieces, u64::from(first).max(range.end()), end, old);
        }
        push(&mut pieces, u64::from(range.first), range.end(), tries);
        pieces.sort_by_key(|(piece, _)| piece.first);
        for (piece, tries) in pieces.into_iter().filter(|(_, tries)| *tries != Tries::FIRST) {
            match self.segments.range_mut(..piece.first).next_back() {
                Some((first, (count, before)))
                    if *before == tries && ChunkRange::new(*first, *count).end() == u64::from(piece.first) =>
                {
                    *count += piece.count;
                }
                _ => {
                    self.segments.insert(piece.first, (piece.count, tries));
                }
            }
        }
    }

    /// What is not at its first attempt, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ChunkRange, Tries)> + '_ {
        self.segments.iter().map(|(first, (count, tries))| (ChunkRange::new(*first, *count), *tries))
    }

    pub fn encode(&self, to: &mut Writer) {
        to.varint(self.segments.len() as u64);
        for (range, tries) in self.iter() {
            to.varint(range.first.into()).varint(range.count.into());
            to.varint(tries.attempt.into()).varint(tries.crashes.into());
        }
    }

    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut map = Self::default();
        for _ in 0..from.varint()? {
            let range = ChunkRange::new(from.varint32()?, from.varint32()?);
            map.set(range, Tries { attempt: from.varint32()?, crashes: from.varint32()? });
        }
        Ok(map)
    }
}

/// Appends the chunks `[start, end)`, unless there are none.
fn push(pieces: &mut Vec<(ChunkRange, Tries)>, start: u64, end: u64, tries: Tries) {
    if start < end {
        pieces.push((ChunkRange::new(start as u32, (end - start) as u32), tries));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Tries = Tries { attempt: 2, crashes: 1 };

    #[test]
    fn a_range_of_four_billion_chunks_is_one_segment() {
        let mut map = TryMap::default();
        map.set(ChunkRange::new(0, u32::MAX), SECOND);
        assert_eq!(map.segments.len(), 1);
        assert_eq!((map.of(0), map.of(u32::MAX - 1), map.of(u32::MAX)), (SECOND, SECOND, Tries::FIRST));
        map.set(ChunkRange::new(7, 1), Tries::FIRST);
        let expected =
            [(ChunkRange::new(6, 1), SECOND), (ChunkRange::one(7), Tries::FIRST), (ChunkRange::one(8), SECOND)];
        assert_eq!(map.pieces(ChunkRange::new(6, 3)), expected);
    }

    proptest! {
        #[test]
        fn the_map_says_what_a_plain_array_says(
            sets in proptest::collection::vec((0u32..40, 0u32..12, 1u32..4), 0..30),
            asked in (0u32..50, 0u32..20),
        ) {
            let mut map = TryMap::default();
            let mut plain = [Tries::FIRST; 80];
            for (first, count, attempt) in sets {
                let tries = Tries { attempt, crashes: attempt - 1 };
                map.set(ChunkRange::new(first, count), tries);
                plain[first as usize..(first + count) as usize].fill(tries);
            }
            prop_assert!((0..80).all(|chunk| map.of(chunk) == plain[chunk as usize]));
            // As few segments as can be: neighbours differ.
            let segments: Vec<_> = map.iter().collect();
            prop_assert!(segments.windows(2).all(|w| w[0].1 != w[1].1 || w[0].0.end() < u64::from(w[1].0.first)));
            let pieces = map.pieces(ChunkRange::new(asked.0, asked.1));
            let chunks: Vec<_> =
                pieces.iter().flat_map(|(range, tries)| range.chunks().map(|chunk| (chunk, *tries))).collect();
            let expected: Vec<_> = (asked.0..asked.0 + asked.1).map(|chunk| (chunk, plain[chunk as usize])).collect();
            prop_assert_eq!(chunks, expected);
            let mut to = Writer::new();
            map.encode(&mut to);
            prop_assert_eq!(TryMap::decode(&mut Reader::new(&to.bytes)).unwrap(), map);
        }
    }
}
