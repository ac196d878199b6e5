//! The names of things: nodes, jobs and files as 16-byte uuids, connections as local numbers.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Says why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' is not a {kind}: expected {expected}")]
pub struct ParseIdError {
    pub value: String,
    pub kind: &'static str,
    pub expected: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
        )]
        #[repr(C)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// All zero: "none", or, in a `worker_status`, "the node itself".
            pub const NIL: Self = Self([0; 16]);

            pub fn is_nil(self) -> bool {
                self == Self::NIL
            }

            /// Makes an id of the two big-endian halves that the seed's structs carry.
            pub fn from_halves(upper: u64, lower: u64) -> Self {
                Self(Uuid::from_u64_pair(upper, lower).into_bytes())
            }

            /// The two big-endian halves, `(upper, lower)`.
            pub fn halves(self) -> (u64, u64) {
                Uuid::from_bytes(self.0).as_u64_pair()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                match Uuid::try_parse(text) {
                    Ok(id) => Ok(Self(id.into_bytes())),
                    Err(_) => Err(ParseIdError { value: text.into(), kind: $kind, expected: "a uuid" }),
                }
            }
        }
    };
}

uuid_id!(
    /// A node of any role, or a client: uuid v4, made at its first start and kept in its data directory.
    NodeId, "node id"
);
uuid_id!(
    /// A job: uuid v7, made by the client. It is the idempotency key: a retried submit is the same job.
    JobId, "job id"
);
uuid_id!(
    /// A file: uuid v8 whose free bits are the first bits of the BLAKE3 of its content.
    FileId, "file id"
);

impl NodeId {
    /// Makes a fresh id; only shells call this, cores are given their ids.
    pub fn random() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }
}

impl JobId {
    /// Makes a fresh time-ordered id; only clients call this.
    pub fn now() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }

    /// The first `bytes` of the id in hexadecimal without hyphens.
    pub fn simple(self) -> String {
        Uuid::from_bytes(self.0).as_simple().to_string()
    }
}

impl FileId {
    /// Names the content whose BLAKE3 is `hash`: its first 16 bytes with version 8 and the RFC 9562 variant set.
    pub fn of(hash: Hash) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.0[..16]);
        Self(Uuid::new_v8(bytes).into_bytes())
    }

    /// True when `hash` is one that this id could name; the other 134 bits are for the file record to check.
    pub fn names(self, hash: Hash) -> bool {
        Self::of(hash) == self
    }
}

/// The BLAKE3-256 of some bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// All zero: the hash is not known.
    pub const NIL: Self = Self([0; 32]);

    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({})", &crate::hex(&self.0)[..12])
    }
}

/// The public key of a CURVE certificate, 32 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ClientKey(pub [u8; 32]);

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKey({})", &crate::hex(&self.0)[..12])
    }
}

/// Tells the boots of one node apart, and which came first: a start counter above, random bits below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BootNonce(pub u64);

impl BootNonce {
    /// No boot yet: older than every boot.
    pub const NONE: Self = Self(0);

    /// The boot number `start_counter` (from 1) with `random` bits that a cloned disk would not repeat.
    pub fn new(start_counter: u32, random: u32) -> Self {
        Self(u64::from(start_counter) << 32 | u64::from(random))
    }
}

/// One connection as a core sees it: a number that its shell gave, never one that travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// A file, or a piece of a packed one: what `<uuid>` and `<uuid>@<offset>+<length>` name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileAddress {
    pub file: FileId,
    /// `None` = the whole file; else `(offset, length)` in bytes.
    pub piece: Option<(u64, u64)>,
}

impl fmt::Display for FileAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.piece {
            None => self.file.fmt(f),
            Some((offset, length)) => write!(f, "{}@{offset}+{length}", self.file),
        }
    }
}

impl FromStr for FileAddress {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError {
            value: text.into(),
            kind: "file address",
            expected: "<uuid> or <uuid>@<offset>+<length>",
        };
        let Some((file, piece)) = text.split_once('@') else {
            return Ok(Self { file: text.parse().map_err(|_| wrong())?, piece: None });
        };
        let (offset, length) = piece.split_once('+').ok_or_else(wrong)?;
        let piece = (offset.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?);
        Ok(Self { file: file.parse().map_err(|_| wrong())?, piece: Some(piece) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_id_is_the_hash_with_version_and_variant_set() {
        let id = FileId::of(Hash([0xff; 32]));
        assert_eq!(id.to_string(), "ffffffff-ffff-8fff-bfff-ffffffffffff");
        assert!(id.names(Hash([0xff; 32])));
        assert!(!id.names(Hash([0; 32])));
    }

    #[test]
    fn halves_are_big_endian() {
        let id: NodeId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(id.halves(), (0x0011_2233_4455_6677, 0x8899_aabb_ccdd_eeff));
        assert_eq!(NodeId::from_halves(id.halves().0, id.halves().1), id);
    }

    #[test]
    fn a_file_address_reads_as_it_prints() {
        for text in ["ffffffff-ffff-8fff-bfff-ffffffffffff", "ffffffff-ffff-8fff-bfff-ffffffffffff@12+0"] {
            assert_eq!(text.parse::<FileAddress>().unwrap().to_string(), text);
        }
        for text in ["", "x", "ffffffff-ffff-8fff-bfff-ffffffffffff@1", "ffffffff-ffff-8fff-bfff-ffffffffffff@-1+2"] {
            assert!(text.parse::<FileAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_later_boot_is_greater_whatever_its_random_bits() {
        assert!(BootNonce::new(2, 0) > BootNonce::new(1, u32::MAX));
        assert!(BootNonce::new(1, 0) > BootNonce::NONE);
    }
}
