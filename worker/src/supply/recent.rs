//! The blocks that came last, as they came: whoever reads a file in order asks for them soon, and what is at hand need not be
//! copied from the pages of the cache file once more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use node::Frame;
use wire::FileId;
use wire::limit::BLOCK_SIZE;

/// As many as are fetched ahead of one reader, and some that it has not taken yet.
const BLOCKS_MAX: usize = 20;

/// A block that came and was right.
#[derive(Debug)]
pub struct Block {
    pub file: FileId,
    /// Where it lies in the file.
    pub offset: u64,
    pub bytes: Frame,
}

impl Block {
    /// The bytes of the range, if all are in it.
    pub fn covers(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let begin = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(begin..begin.checked_add(length)?)
    }
}

/// The last blocks, the newest at the back.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Arc<Block>>>);

impl Recent {
    pub(super) fn add(&self, block: Arc<Block>) {
        let mut blocks = self.blocks();
        let oldest = if blocks.len() == BLOCKS_MAX { blocks.pop_front() } else { None };
        blocks.push_back(block);
        drop(blocks);
        // To free a MiB takes a while.
        drop(oldest);
    }

    /// The block of the file that this byte lies in.
    pub(super) fn find(&self, file: FileId, offset: u64) -> Option<Arc<Block>> {
        let start = offset - offset % BLOCK_SIZE as u64;
        self.blocks().iter().rfind(|block| block.file == file && block.offset == start).cloned()
    }

    /// Lets go of a block.
    pub(super) fn let_go(&self, block: &Arc<Block>) {
        let mut blocks = self.blocks();
        let at = blocks.iter().position(|known| Arc::ptr_eq(known, block));
        let gone = at.and_then(|at| blocks.remove(at));
        drop(blocks);
        drop(gone);
    }

    fn blocks(&self) -> MutexGuard<'_, VecDeque<Arc<Block>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = BLOCK_SIZE as u64;

    #[test]
    fn only_the_last_blocks_are_at_hand_and_only_to_whoever_wants_nothing_else() {
        let (one, other) = (FileId([1; 16]), FileId([2; 16]));
        let recent = Recent::default();
        for number in 0..=BLOCKS_MAX as u64 {
            let bytes = Frame::from(vec![number as u8; 100]);
            recent.add(Arc::new(Block { file: one, offset: number * MIB, bytes }));
        }
        assert!(recent.find(one, 99).is_none() && recent.find(other, MIB).is_none());
        let first = recent.find(one, MIB + 99).expect("it is one of the last");
        assert_eq!(first.covers(MIB + 98, 2), Some(&[1, 1][..]));
        assert_eq!((first.covers(MIB + 98, 3), first.covers(MIB - 1, 2)), (None, None));
        recent.let_go(&first);
        assert!(recent.find(one, MIB).is_none() && recent.find(one, 2 * MIB).is_some());
    }
}
