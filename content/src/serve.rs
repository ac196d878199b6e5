//! The giving end of a transfer: what a `file_request` asks for, and the frames that answer it.
//!
//! There are two forms. The bare one is the seed's: it gets the whole content behind one `file_response`, up to a size that
//! can be held in memory while the peer takes it. The ranged one gets one range of at most 1 MiB, of the content or of its
//! outline, and its sender decides how many it has on the way.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{Advice, Mmap};
use node::{Frame, Frames};
use wire::limit::{BLOCK_SIZE, WHOLE_FILE_SIZE_MAX};
use wire::{ErrorCode, FileId, FileRequest, FileResponse, Fixed, FixedPart, JobId, Kind, NodeId, U32, U64};

use crate::{Store, StoreError, outline_size};

/// Header lengths from here on have both offset and length, so a shorter one is the bare form.
const RANGED_HEADER_SIZE_MIN: u64 = 57;

/// What one `file_request` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub file: FileId,
    /// Echoed in the answer; 0 in the bare form.
    pub request: u64,
    pub range: AskRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskRange {
    Whole,
    Part {
        offset: u64,
        length: u64,
    },
    /// Of the outline.
    Outline {
        offset: u64,
        length: u64,
    },
    /// Something that a newer peer knows.
    Unknown {
        part: u32,
    },
}

/// Why an ask is not met, as the peer is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Refusal {
    pub code: ErrorCode,
    pub detail: String,
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self { code: error.code(), detail: error.to_string() }
    }
}

/// The content that meets an ask: frames that share a mapping of the file.
#[derive(Debug)]
pub struct Served {
    pub file_length: u64,
    pub frames: Vec<Frame>,
}

impl Ask {
    pub fn of(request: &Fixed<'_, FileRequest>) -> Self {
        let (offset, length) = (request.offset.get(), request.length.get());
        let range = match request.part.get() {
            _ if request.header.header_length.get() < RANGED_HEADER_SIZE_MIN => AskRange::Whole,
            0 => AskRange::Part { offset, length },
            wire::PART_OUTLINE => AskRange::Outline { offset, length },
            part => AskRange::Unknown { part },
        };
        Self { file: request.file_uuid.file(), request: request.request.get(), range }
    }

    /// The most bytes that the answer may have.
    pub fn size_max(&self) -> u64 {
        match self.range {
            AskRange::Whole => WHOLE_FILE_SIZE_MAX,
            AskRange::Part { length, .. } | AskRange::Outline { length, .. } => length.min(BLOCK_SIZE as u64),
            AskRange::Unknown { .. } => 0,
        }
    }

    /// The `file_response` before the content: the seed's 49 bytes for the bare form, else with our fields.
    pub fn response(&self, sender: NodeId, file_length: u64) -> Vec<u8> {
        let fixed = FileResponse {
            file_uuid: self.file.into(),
            file_length: U64::new(file_length),
            request: U64::new(self.request),
            ..FileResponse::DEFAULT
        };
        match self.range {
            AskRange::Whole => fixed.seed_frame(sender, &[]),
            AskRange::Part { offset, .. } => FileResponse { offset: U64::new(offset), ..fixed }.frame(sender, &[]),
            AskRange::Outline { offset, .. } => {
                let flags = U32::new(wire::RESPONSE_OUTLINE);
                FileResponse { offset: U64::new(offset), flags, ..fixed }.frame(sender, &[])
            }
            AskRange::Unknown { .. } => unreachable!("what is not known is refused"),
        }
    }

    /// The `error` that refuses it.
    pub fn refusal(&self, sender: NodeId, refusal: &Refusal) -> Vec<u8> {
        wire::error_frame(sender, refusal.code, Some(Kind::FileRequest), self.request, JobId::NIL, &refusal.detail)
    }

    /// Whether what is asked for can be read soon: whoever vouches for it checks first what is not as it was stored, or has no
    /// outline.
    pub fn at_hand(&self, store: &Store) -> Result<(), StoreError> {
        store.sealed(self.file)?;
        match self.range {
            AskRange::Whole | AskRange::Part { .. } | AskRange::Unknown { .. } => Ok(()),
            AskRange::Outline { .. } => match store.kept_outline(self.file) {
                Err(StoreError::OutlineUnknown(file)) => Err(StoreError::Unchecked(file)),
                kept => kept.map(|_| ()),
            },
        }
    }

    /// Reads what is asked for. The pages are brought into memory here, on the caller's thread: a page fault on the
    /// sockets' I/O thread would stall every peer.
    pub fn read(&self, store: &Store) -> Result<Served, Refusal> {
        let file_length = store.length(self.file)?;
        let range = match self.range {
            AskRange::Whole if file_length > WHOLE_FILE_SIZE_MAX => {
                let detail = format!(
                    "file {} has {file_length} bytes, above the {WHOLE_FILE_SIZE_MAX} that go in one message: ask for ranges \
                     (a file_request with offset and length, 65 bytes)",
                    self.file
                );
                return Err(Refusal { code: ErrorCode::TooLarge, detail });
            }
            AskRange::Whole => 0..file_length,
            AskRange::Part { offset, length } => self.range(offset, length, file_length, "file")?,
            AskRange::Outline { offset, length } => {
                let range = self.range(offset, length, outline_size(file_length), "the outline of file")?;
                let outline = store.outline(self.file)?.encode();
                let frames = vec![Frame::Bytes(outline[range.start as usize..range.end as usize].to_vec())];
                return Ok(Served { file_length, frames });
            }
            AskRange::Unknown { part } => {
                let detail =
                    format!("the part {part} of file {}: there are 0, the content, and 1, the outline", self.file);
                return Err(Refusal { code: ErrorCode::InvalidRequest, detail });
            }
        };
        Ok(Served { file_length, frames: frames(store.map(self.file)?, range.start, range.end - range.start) })
    }

    /// What of `size` bytes is asked for.
    fn range(&self, offset: u64, length: u64, size: u64, of: &str) -> Result<Range<u64>, Refusal> {
        if length > BLOCK_SIZE as u64 || offset > size {
            let detail = format!(
                "the range {offset}+{length} of {of} {} with {size} bytes: a range begins within it and has at most {BLOCK_SIZE} \
                 bytes",
                self.file
            );
            return Err(Refusal { code: ErrorCode::InvalidRequest, detail });
        }
        Ok(offset..offset + length.min(size - offset))
    }

    /// Reads, and makes the whole answer: for whoever serves files without a core of its own for it.
    pub fn answer(&self, store: &Store, sender: NodeId) -> Frames {
        match self.read(store) {
            Ok(served) => {
                let mut frames = vec![Frame::from(self.response(sender, served.file_length))];
                frames.extend(served.frames);
                Frames(frames)
            }
            Err(refusal) => self.refusal(sender, &refusal).into(),
        }
    }
}

/// `length` bytes at `offset` as frames of at most a block; an empty content is one empty frame.
fn frames(map: Arc<Mmap>, offset: u64, length: u64) -> Vec<Frame> {
    let (start, end) = (offset as usize, (offset + length) as usize);
    if length > 0 {
        // Kernels before 5.14 do not know it; then the pages come when they are sent.
        let _ = map.advise_range(Advice::PopulateRead, start, end - start);
    }
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = map;
    let mut frames: Vec<Frame> =
        (start..end).step_by(BLOCK_SIZE).map(|at| Frame::shared(owner.clone(), at..end.min(at + BLOCK_SIZE))).collect();
    if frames.is_empty() {
        frames.push(Frame::Bytes(Vec::new()));
    }
    frames
}
