//! The seed's header, and the rule by which fixed parts grow without breaking older peers.
//!
//! A message is a fixed part, then a body. The fixed part begins with `generic_message`, whose `header_length` is the
//! length of the whole fixed part: the seed's fields, then the fields that we have appended since. A receiver takes any
//! length from the kind's first size upwards. Fields that are not there (or only half there) have their documented
//! default; bytes that it does not know are skipped. So two peers of different ages always understand each other.

use std::ops::Deref;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{FileId, JobId, Kind, NodeId, U64};

/// Size of the seed's `generic_message`.
pub const HEADER_SIZE: usize = 25;

/// A uuid as the seed's structs carry it: the two big-endian halves of RFC 9562, each a little-endian u64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C, packed)]
pub struct UuidHalves {
    pub upper: U64,
    pub lower: U64,
}

macro_rules! halves_of {
    ($($id:ident, $name:ident);*) => { $(
        impl From<$id> for UuidHalves {
            fn from(id: $id) -> Self {
                let (upper, lower) = id.halves();
                Self { upper: U64::new(upper), lower: U64::new(lower) }
            }
        }
        impl UuidHalves {
            pub fn $name(self) -> $id {
                $id::from_halves(self.upper.get(), self.lower.get())
            }
        }
    )* };
}
halves_of!(NodeId, node; JobId, job; FileId, file);

/// The header of every message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C, packed)]
pub struct GenericMessage {
    pub message_type: u8,
    /// The sender.
    pub node_uuid: UuidHalves,
    /// Length of the whole fixed part, this header included.
    pub header_length: U64,
}

const _: () = assert!(size_of::<GenericMessage>() == HEADER_SIZE);

impl GenericMessage {
    /// The header at the start of `frame`, whatever its kind; for admission, before the message itself is decoded.
    pub fn peek(frame: &[u8]) -> Result<&GenericMessage, DecodeError> {
        GenericMessage::ref_from_prefix(frame)
            .map(|(header, _)| header)
            .map_err(|_| DecodeError::Short { length: frame.len() })
    }
}

/// Says why a frame is not a message. Its text goes back to the peer in an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a frame of {length} bytes is shorter than the 25-byte header")]
    Short { length: usize },
    #[error("message type {number} is not known here")]
    UnknownType { number: u8 },
    #[error("header_length {header_length} of {kind:?} is below its smallest, {min}")]
    HeaderShort { kind: Kind, header_length: u64, min: usize },
    #[error("header_length {header_length} of {kind:?} is beyond the frame of {length} bytes")]
    HeaderBeyondFrame { kind: Kind, header_length: u64, length: usize },
    #[error("the body is not well formed: {what}")]
    Body { what: &'static str },
}

/// The fixed part of one kind of message.
pub trait FixedPart: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Copy + 'static {
    const KIND: Kind;
    /// The kind's first size: what the seed, or our first version, defined.
    const SIZE_MIN: usize;
    /// Where each field ends, in order; a fixed part is cut only there.
    const FIELD_ENDS: &'static [usize];
    /// Every field at its documented default; the base of every message we build.
    const DEFAULT: Self;

    /// The message with this fixed part and `body`, sent by `sender`.
    fn frame(mut self, sender: NodeId, body: &[u8]) -> Vec<u8> {
        let header = GenericMessage {
            message_type: Self::KIND as u8,
            node_uuid: sender.into(),
            header_length: U64::new(size_of::<Self>() as u64),
        };
        self.as_mut_bytes()[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        let mut frame = Vec::with_capacity(size_of::<Self>() + body.len());
        frame.extend_from_slice(self.as_bytes());
        frame.extend_from_slice(body);
        frame
    }

    /// The seed's form: only the fields up to the kind's first size, then `body`. Peers of any age understand it.
    fn seed_frame(self, sender: NodeId, body: &[u8]) -> Vec<u8> {
        let mut frame = self.frame(sender, &[]);
        frame.truncate(Self::SIZE_MIN);
        frame[HEADER_SIZE - 8..HEADER_SIZE].copy_from_slice(&(Self::SIZE_MIN as u64).to_le_bytes());
        frame.extend_from_slice(body);
        frame
    }
}

/// A decoded fixed part: in place where the sender had all our fields, else a copy filled up with defaults.
#[derive(Clone, Copy, Debug)]
pub enum Fixed<'a, T> {
    InPlace(&'a T),
    Filled(T),
}

impl<T> Deref for Fixed<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Fixed::InPlace(fixed) => fixed,
            Fixed::Filled(fixed) => fixed,
        }
    }
}

impl<'a, T: FixedPart> Fixed<'a, T> {
    /// Splits a frame of kind `T` into its fixed part and its body.
    pub(crate) fn decode(frame: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let header_length = GenericMessage::peek(frame)?.header_length.get();
        if header_length < T::SIZE_MIN as u64 {
            return Err(DecodeError::HeaderShort { kind: T::KIND, header_length, min: T::SIZE_MIN });
        }
        if header_length > frame.len() as u64 {
            return Err(DecodeError::HeaderBeyondFrame { kind: T::KIND, header_length, length: frame.len() });
        }
        let (fixed, body) = frame.split_at(header_length as usize);
        if let Ok((fixed, _unknown)) = T::ref_from_prefix(fixed) {
            return Ok((Fixed::InPlace(fixed), body));
        }
        // The sender is older than we are: take the fields it has whole, the others are at their defaults.
        let known = T::FIELD_ENDS.iter().rev().find(|end| **end <= fixed.len()).copied().unwrap_or(0);
        let mut filled = T::DEFAULT;
        filled.as_mut_bytes()[..known].copy_from_slice(&fixed[..known]);
        Ok((Fixed::Filled(filled), body))
    }
}

/// The default of a field that has no other.
pub(crate) trait Zero {
    const ZERO: Self;
}
macro_rules! zero {
    ($($type:ty = $zero:expr),* $(,)?) => { $( impl Zero for $type { const ZERO: Self = $zero; } )* };
}
zero!(
    u8 = 0,
    crate::U16 = crate::U16::ZERO,
    crate::U32 = crate::U32::ZERO,
    crate::I32 = crate::I32::ZERO,
    U64 = U64::ZERO,
    UuidHalves = UuidHalves { upper: U64::ZERO, lower: U64::ZERO },
    crate::Hash = crate::Hash::NIL,
    crate::ClientKey = crate::ClientKey([0; 32]),
    GenericMessage = GenericMessage {
        message_type: 0,
        node_uuid: UuidHalves { upper: U64::ZERO, lower: U64::ZERO },
        header_length: U64::ZERO,
    },
);
