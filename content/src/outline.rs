//! The outline of a file: a value for each of its blocks, by which every block can be checked by itself.
//!
//! BLAKE3 hashes a file as a tree. An outline is that tree sawn off at the height of blocks: whoever has it knows that it
//! belongs to the file, because what lies above the cut grows back to the file's hash, and can then hold any block against
//! its value without having the others. A file of at most one block has no outline: its hash is the value of its block.

use std::io::{self, Read};

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use wire::Hash;
use wire::limit::BLOCK_SIZE;

use crate::{Expected, hash_bytes};

/// Bytes of one value.
const VALUE_SIZE: usize = 32;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// These bytes are not the outline of that file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outline of {length} bytes does not belong to the file")]
pub struct OutlineError {
    pub length: u64,
}

/// What each block of one file has to hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    length: u64,
    /// Known by its hash or, in a file of one block that has not come yet, perhaps only by its id.
    whole: Expected,
    /// One for each block, if there are several.
    values: Vec<[u8; VALUE_SIZE]>,
}

impl Outline {
    /// Takes an outline that came from anywhere, if it is that of the file of `length` bytes that is expected.
    pub fn decode(bytes: &[u8], length: u64, expected: Expected) -> Result<Self, OutlineError> {
        let wrong = OutlineError { length };
        if bytes.len() as u64 != outline_size(length) {
            return Err(wrong);
        }
        let values: Vec<_> = bytes.as_chunks().0.to_vec();
        if values.is_empty() {
            return Ok(Self { length, whole: expected, values });
        }
        let root = root_of(&values);
        if expected.is_met_by(root) { Ok(Self { length, whole: Expected::Hash(root), values }) } else { Err(wrong) }
    }

    /// The bytes that travel and are kept; none for a file of one block.
    pub fn encode(&self) -> Vec<u8> {
        self.values.concat()
    }

    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The hash of the whole file; `None` while only its id says what it will be.
    pub fn root(&self) -> Option<Hash> {
        match self.whole {
            Expected::Hash(hash) => Some(hash),
            Expected::Id(_) | Expected::Anything => None,
        }
    }

    /// Whether `bytes` are the whole of the block with this number.
    pub fn holds(&self, block: u64, bytes: &[u8]) -> bool {
        let Some(start) = block.checked_mul(BLOCK).filter(|_| block < blocks(self.length)) else { return false };
        if bytes.len() as u64 != (self.length - start).min(BLOCK) {
            return false;
        }
        match self.values.get(block as usize) {
            Some(value) => value_of(block, bytes) == *value,
            None => self.whole.is_met_by(hash_bytes(bytes)),
        }
    }
}

/// Blocks of a file of `length` bytes; an empty file is one empty block.
pub fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK).max(1)
}

/// Bytes of the outline of a file of `length` bytes.
pub fn outline_size(length: u64) -> u64 {
    if length <= BLOCK { 0 } else { blocks(length) * VALUE_SIZE as u64 }
}

/// Hashes a file that comes in pieces, block by block: one pass gives its hash and its outline.
#[derive(Clone, Debug, Default)]
pub struct OutlineHasher {
    values: Vec<[u8; VALUE_SIZE]>,
    /// The block that is not complete, or may yet turn out to be the only one.
    block: blake3::Hasher,
}

impl OutlineHasher {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.block.count() == BLOCK {
                self.values.push(self.block.finalize_non_root());
                self.block = blake3::Hasher::new();
                self.block.set_input_offset(self.values.len() as u64 * BLOCK);
            }
            let room = (BLOCK - self.block.count()) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.update(now);
            bytes = later;
        }
    }

    /// The hash of all bytes so far.
    pub fn hash(&self) -> Hash {
        if self.values.is_empty() { Hash(*self.block.finalize().as_bytes()) } else { root_of(&self.all_values()) }
    }

    /// The outline of all bytes so far.
    pub fn finish(&self) -> Outline {
        let length = self.values.len() as u64 * BLOCK + self.block.count();
        let values = if self.values.is_empty() { Vec::new() } else { self.all_values() };
        Outline { length, whole: Expected::Hash(self.hash()), values }
    }

    fn all_values(&self) -> Vec<[u8; VALUE_SIZE]> {
        let mut values = self.values.clone();
        values.push(self.block.finalize_non_root());
        values
    }
}

/// Reads `source` to its end; its outline knows its hash and its length.
pub fn outline_file(mut source: impl Read) -> io::Result<Outline> {
    let mut hasher = OutlineHasher::default();
    let mut buffer = vec![0; BLOCK_SIZE];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn value_of(block: u64, bytes: &[u8]) -> [u8; VALUE_SIZE] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(block * BLOCK).update(bytes);
    hasher.finalize_non_root()
}

/// The hash of the file whose blocks have these values, at least two.
fn root_of(values: &[[u8; VALUE_SIZE]]) -> Hash {
    let (left, right) = values.split_at(left_of(values.len()));
    Hash(*merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes())
}

fn subtree(values: &[[u8; VALUE_SIZE]]) -> [u8; VALUE_SIZE] {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_of(values.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The left half of a BLAKE3 tree is full, and as large as it can be while something is left for the right.
fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::FileId;
    use wire::limit::MIB;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn outline(content: &[u8], piece: usize) -> Outline {
        let mut hasher = OutlineHasher::default();
        content.chunks(piece).for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn files_of_every_size_around_a_block_have_their_hash_as_root() {
        let edges = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 3 * MIB + 7, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1];
        for length in edges.into_iter().chain([7 * MIB, 8 * MIB, 8 * MIB + 1, 9 * MIB, 17 * MIB - 1]) {
            let content = bytes(length);
            let hash = Hash(*blake3::hash(&content).as_bytes());
            let whole = outline(&content, 300_007);
            assert_eq!(whole.root(), Some(hash), "{length}");
            assert_eq!(whole, outline_file(&content[..]).expect("it is in memory"), "{length}");
            let encoded = whole.encode();
            assert_eq!(encoded.len() as u64, outline_size(length as u64));
            for expected in [Expected::Hash(hash), Expected::Id(FileId::of(hash))] {
                let decoded = Outline::decode(&encoded, length as u64, expected).expect("it belongs to the file");
                for (block, bytes) in content.chunks(MIB).enumerate() {
                    assert!(decoded.holds(block as u64, bytes), "{length} {block}");
                }
            }
        }
    }

    #[test]
    fn a_block_that_is_not_the_files_is_not_held() {
        let content = bytes(3 * MIB + 7);
        let whole = outline(&content, MIB);
        let block = &content[MIB..2 * MIB];
        assert!(whole.holds(1, block));
        assert!(
            !whole.holds(0, block) && !whole.holds(2, block) && !whole.holds(4, block) && !whole.holds(u64::MAX, block)
        );
        assert!(!whole.holds(1, &block[1..]));
        let mut flipped = block.to_vec();
        flipped[MIB - 1] ^= 1;
        assert!(!whole.holds(1, &flipped));
        let small = Outline::decode(&[], 3, Expected::Id(FileId::of(hash_bytes(b"abc")))).expect("there is none");
        assert!(small.holds(0, b"abc") && !small.holds(0, b"abd") && !small.holds(0, b"ab") && !small.holds(1, b"abc"));
        assert!(outline(b"", 1).holds(0, b""));
    }

    #[test]
    fn an_outline_of_another_file_is_refused() {
        let content = bytes(3 * MIB);
        let whole = outline(&content, MIB);
        let (encoded, length) = (whole.encode(), content.len() as u64);
        let expected = Expected::Hash(whole.root().expect("it is known"));
        assert!(Outline::decode(&encoded, length, expected).is_ok());
        for at in [0, 40, 95] {
            let mut flipped = encoded.clone();
            flipped[at] ^= 0x80;
            assert_eq!(Outline::decode(&flipped, length, expected), Err(OutlineError { length }));
        }
        for cut in [0, 1, 32, 95] {
            assert!(Outline::decode(&encoded[..cut], length, expected).is_err());
        }
        assert!(Outline::decode(&encoded, u64::MAX, expected).is_err());
        assert!(Outline::decode(&encoded, length + 1, expected).is_err(), "it would have another block");
        assert!(Outline::decode(&encoded, 3, expected).is_err());
        assert!(Outline::decode(&encoded, length, Expected::Hash(hash_bytes(b"other"))).is_err());
    }
}
