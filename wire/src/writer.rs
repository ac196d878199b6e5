//! Building and reading bodies: checked cursors over bytes, with varints and length-prefixed strings.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::DecodeError;

/// Appends the parts of a body in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends plain bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a packed struct.
    pub fn plain<T: IntoBytes + Immutable>(&mut self, value: &T) -> &mut Self {
        self.raw(value.as_bytes())
    }

    /// Appends a u64 in 7-bit groups, lowest first (LEB128).
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
        self
    }

    /// Appends a varint length, then the bytes.
    pub fn string(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64).raw(bytes)
    }
}

/// Reads the parts of a body in order; every step is checked against what is left.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn raw(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (part, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Body { what: "it ends too early" })?;
        self.rest = rest;
        Ok(part)
    }

    pub fn plain<T: FromBytes + KnownLayout + Immutable + Unaligned>(&mut self) -> Result<&'a T, DecodeError> {
        let (part, rest) =
            T::ref_from_prefix(self.rest).map_err(|_| DecodeError::Body { what: "it ends too early" })?;
        self.rest = rest;
        Ok(part)
    }

    /// `count` packed structs where they lie.
    pub fn slice<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &mut self,
        count: usize,
    ) -> Result<&'a [T], DecodeError> {
        let (part, rest) = <[T]>::ref_from_prefix_with_elems(self.rest, count)
            .map_err(|_| DecodeError::Body { what: "it has fewer records than its count says" })?;
        self.rest = rest;
        Ok(part)
    }

    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for group in 0..10 {
            let byte = self.raw(1)?[0];
            if group == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Body { what: "a varint is longer than 64 bits" })
    }

    /// A varint that has to fit u32.
    pub fn varint32(&mut self) -> Result<u32, DecodeError> {
        self.varint()?.try_into().map_err(|_| DecodeError::Body { what: "a number is larger than 32 bits" })
    }

    pub fn string(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.varint()?;
        self.raw(usize::try_from(length).map_err(|_| DecodeError::Body { what: "a length is beyond the body" })?)
    }

    /// Fails unless everything has been read.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Body { what: "bytes are left over" }) }
    }
}
