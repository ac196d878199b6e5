//! The bytes of Ziggurat: ids, the header, the message kinds, their layouts and limits.
//!
//! Every message starts with the seed's `generic_message` header and is parsed where it lies: decoding neither
//! allocates nor panics, whatever the bytes. This crate has no sockets, no clock and no files; everything that two
//! roles must agree about byte for byte is here, and nothing else.

mod chunk;
pub mod doc;
pub mod event;
mod header;
mod id;
pub mod job;
pub mod limit;
pub mod log;
mod message;
pub mod record;
pub mod run;
pub mod running;
mod status;
mod text;
mod time;
mod timer;
pub mod tree;
mod writer;

pub use chunk::{ArraySpec, ArraySpecError, ChunkRange, ChunkSet};
pub use header::{DecodeError, Fixed, FixedPart, GenericMessage, HEADER_SIZE, UuidHalves};
pub use id::{BootNonce, ClientKey, FileAddress, FileId, Hash, JobId, NodeId, ParseIdError, PeerId};
pub use message::*;
pub use status::{Cause, ChunkState, ErrorCode, JobState, NodeState, Role, StatusState};
pub use text::{bytes_text, hex, parse_hex};
pub use time::{Duration, Instant, WallTime};
pub use timer::TimerTable;
pub use writer::{Reader, Writer};

/// Little-endian integers of alignment 1, as they stand in every packed struct.
pub use zerocopy::little_endian::{I32, U16, U32, U64};
