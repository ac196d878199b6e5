//! One file on its way here: what of it is held, what is in line, and who waits.

use std::collections::BTreeMap;
use std::ops::Range;

use wire::limit::BLOCK_SIZE;
use wire::{Instant, PeerId};

use super::doubt::Doubts;
use super::{Fetching, Need, Ticket, Wanted};
use crate::{BlockState, FetchError};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Readers of one file whose place is remembered.
const STREAMS_MAX: usize = 8;
/// A read this many blocks further on still goes on from the last one.
const STRIDE_MAX: u64 = 3;

/// For whom a block is fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Demand,
    Ahead,
    Whole,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Block {
    Absent,
    Claimed,
    InLine {
        class: Class,
        is_claimed: bool,
    },
    /// A holder has been asked for it.
    Asked,
    /// It is being checked.
    Working,
    Held,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Length {
    Unknown,
    /// By whoever wants the file.
    Told(u64),
    /// By a holder, who may be wrong.
    Learned(u64, PeerId),
}

impl Length {
    pub(super) fn known(self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Told(length) | Self::Learned(length, _) => Some(length),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Holders have to tell the length.
    Length {
        is_asked: bool,
    },
    /// The driver opens the file or checks its outline.
    Working,
    /// A holder has to send the outline; `of` has sent what is before `offset`.
    Outline {
        of: Option<PeerId>,
        offset: u64,
        is_asked: bool,
    },
    /// Blocks can be fetched and checked.
    Ready,
    /// All blocks are held; the driver makes the file durable.
    Sealing,
    Sealed,
}

/// Somebody who reads the file from one end to the other.
#[derive(Clone, Copy, Debug)]
struct Stream {
    last: u64,
    /// Blocks to have ahead; 1 = it has not been seen to go on yet.
    window: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) length: Length,
    pub(super) stage: Stage,
    /// The driver has it open, or has been told to open it.
    pub(super) is_open: bool,
    pub(super) is_unsealable: bool,
    pub(super) how: Fetching,
    /// Empty until the file is open.
    pub(super) blocks: Vec<Block>,
    pub(super) held: u64,
    /// Everything before it has been begun for `Fetching::Whole`.
    pub(super) cursor: u64,
    pub(super) tickets: BTreeMap<Ticket, Need>,
    pub(super) doubts: Doubts,
    /// Who sent a block last.
    pub(super) preferred: Option<PeerId>,
    /// Until when reads fail at once, and with what.
    pub(super) muted: Option<(Instant, FetchError)>,
    /// The one that moved last is at the back.
    streams: Vec<Stream>,
}

impl Entry {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            length: wanted.length.map_or(Length::Unknown, Length::Told),
            stage: Stage::Working,
            is_open: false,
            is_unsealable: false,
            how: Fetching::Lazily,
            blocks: Vec::new(),
            held: 0,
            cursor: 0,
            tickets: BTreeMap::new(),
            doubts: Doubts::default(),
            preferred: None,
            muted: None,
            streams: Vec::new(),
        }
    }

    /// Forgets what was done for it.
    pub(super) fn reset(&mut self) {
        self.length = self.wanted.length.map_or(Length::Unknown, Length::Told);
        self.stage = Stage::Working;
        self.is_unsealable = false;
        self.blocks.clear();
        self.held = 0;
        self.cursor = 0;
    }

    pub(super) fn opened(&mut self, blocks: &[BlockState]) {
        let block = |block: &BlockState| match block {
            BlockState::Absent => Block::Absent,
            BlockState::Claimed => Block::Claimed,
            BlockState::Held => Block::Held,
        };
        self.blocks = blocks.iter().map(block).collect();
        self.held = blocks.iter().filter(|block| **block == BlockState::Held).count() as u64;
    }

    pub(super) fn set(&mut self, block: u64, to: Block) {
        let slot = &mut self.blocks[block as usize];
        assert!(*slot != Block::Held, "block {block} is held already");
        *slot = to;
    }

    pub(super) fn hold(&mut self, block: u64) {
        self.set(block, Block::Held);
        self.held += 1;
    }

    pub(super) fn lose(&mut self, block: u64) {
        self.set(block, Block::Absent);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.held == self.blocks.len() as u64
    }

    /// Whether all that is left is to look.
    pub(super) fn is_all_here(&self) -> bool {
        self.blocks.iter().all(|block| matches!(block, Block::Claimed | Block::Held))
    }

    /// Bytes of a block.
    pub(super) fn size_of(&self, block: u64) -> u64 {
        let length = self.length.known().unwrap_or(0);
        length.saturating_sub(block.saturating_mul(BLOCK)).min(BLOCK)
    }

    /// Whether what a ticket waits for is here.
    pub(super) fn is_met(&self, need: Need) -> bool {
        match need {
            Need::Whole => self.stage == Stage::Sealed,
            Need::Length if matches!(self.length, Length::Told(_)) => true,
            // A holder said so: not before its block, or an outline that has as many values, turns out right.
            Need::Length if self.blocks.len() == 1 => self.stage == Stage::Sealed || self.is_complete(),
            Need::Length => self.is_checkable(),
            Need::Range { .. } => self.is_checkable() && self.missing(need).is_empty(),
        }
    }

    fn is_checkable(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Sealing | Stage::Sealed)
    }

    /// The blocks that a ticket waits for.
    pub(super) fn missing(&self, need: Need) -> Vec<u64> {
        if self.stage != Stage::Ready {
            return Vec::new();
        }
        let of = self.blocks_of(need);
        of.filter(|block| self.blocks[*block as usize] != Block::Held).collect()
    }

    /// The blocks of a need that somebody cannot do without now.
    fn blocks_of(&self, need: Need) -> Range<u64> {
        let count = self.blocks.len() as u64;
        match need {
            Need::Range { offset, length } => {
                let end = offset.saturating_add(length).div_ceil(BLOCK).min(count);
                (offset / BLOCK).min(end)..if length == 0 { 0 } else { end }
            }
            Need::Length if count == 1 => 0..1,
            Need::Length | Need::Whole => 0..0,
        }
    }

    pub(super) fn is_awaited(&self, block: u64) -> bool {
        self.tickets.values().any(|need| self.blocks_of(*need).contains(&block))
    }

    /// Everybody who cannot do without the block.
    pub(super) fn who_awaits(&self, block: u64) -> Vec<Ticket> {
        let awaits = |need: &Need| *need == Need::Whole || self.blocks_of(*need).contains(&block);
        self.tickets.iter().filter(|(_, need)| awaits(need)).map(|(ticket, _)| *ticket).collect()
    }

    /// Puts a block in line, or in a better one; false = it is where it belongs already.
    pub(super) fn put_in_line(&mut self, block: u64, class: Class) -> bool {
        if self.stage != Stage::Ready {
            return false;
        }
        let Some(slot) = self.blocks.get_mut(block as usize) else { return false };
        let is_claimed = match *slot {
            Block::Absent => false,
            Block::Claimed => true,
            Block::InLine { class: Class::Ahead, is_claimed } if class == Class::Demand => is_claimed,
            Block::InLine { .. } | Block::Asked | Block::Working | Block::Held => return false,
        };
        *slot = Block::InLine { class, is_claimed };
        true
    }

    pub(super) fn leave_lines(&mut self) {
        for block in &mut self.blocks {
            if let Block::InLine { is_claimed, .. } = *block {
                *block = if is_claimed { Block::Claimed } else { Block::Absent };
            }
        }
    }

    /// The next block that nobody has begun.
    pub(super) fn next_for_whole(&mut self) -> Option<u64> {
        let rest = &self.blocks[self.cursor as usize..];
        let skipped = rest.iter().take_while(|block| !matches!(block, Block::Absent | Block::Claimed)).count();
        self.cursor += skipped as u64;
        (self.cursor < self.blocks.len() as u64).then_some(self.cursor)
    }

    /// Notes a read; returns the blocks that the reader will want next.
    pub(super) fn touched(&mut self, offset: u64, length: u64, window_max: u64) -> Range<u64> {
        let first = offset / BLOCK;
        let last = offset.saturating_add(length.max(1)).div_ceil(BLOCK) - 1;
        let goes_on = |stream: &Stream| first <= stream.last + STRIDE_MAX && last + STRIDE_MAX >= stream.last;
        let Some(at) = self.streams.iter().rposition(goes_on) else {
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            self.streams.push(Stream { last, window: 1 });
            return 0..0;
        };
        let mut stream = self.streams.remove(at);
        let moved = last > stream.last;
        if moved {
            stream = Stream { last, window: (stream.window * 2).min(window_max) };
        }
        self.streams.push(stream);
        if moved { last + 1..last + 1 + stream.window } else { 0..0 }
    }
}
