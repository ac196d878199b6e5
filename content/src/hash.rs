//! BLAKE3 of contents, and the receipts by which a storage node vouches for a file that it made durable.

use std::io::{self, Read};

use wire::{FileId, Hash, NodeId};

/// Hashes bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes so far.
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// The BLAKE3-256 of `bytes`: plain, without key or context, so that `b3sum` can check us.
pub fn hash_bytes(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// Reads `source` to its end; returns the hash and the number of bytes.
pub fn hash_file(mut source: impl Read) -> io::Result<(Hash, u64)> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 * wire::limit::KIB];
    let mut length = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), length)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The receipt of `storage` for a durable copy of a file: a MAC over node uuid, file uuid, hash and length (u64,
/// little-endian) under the cluster's receipt key, which storage nodes and masters hold and nobody else.
pub fn receipt(key: &[u8; 32], storage: NodeId, file: FileId, hash: Hash, length: u64) -> [u8; 32] {
    let mut mac = blake3::Hasher::new_keyed(key);
    mac.update(&storage.0).update(&file.0).update(&hash.0).update(&length.to_le_bytes());
    *mac.finalize().as_bytes()
}

/// True when `claimed` is the receipt for exactly this; takes the same time whether or not it is.
pub fn verify_receipt(
    key: &[u8; 32],
    storage: NodeId,
    file: FileId,
    hash: Hash,
    length: u64,
    claimed: &[u8; 32],
) -> bool {
    // blake3::Hash compares in constant time.
    blake3::Hash::from_bytes(receipt(key, storage, file, hash, length)) == blake3::Hash::from_bytes(*claimed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = Hasher::default();
        hasher.update(b"he");
        hasher.update(b"llo");
        assert_eq!(hasher.finish(), hash_bytes(b"hello"));
        assert_eq!(hash_file(&b"hello"[..]).unwrap(), (hash_bytes(b"hello"), 5));
    }

    #[test]
    fn the_hash_is_plain_blake3() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash_bytes(b"").to_string(), empty);
    }

    #[test]
    fn a_receipt_holds_for_one_node_file_hash_and_length() {
        let (key, node, hash) = ([7; 32], NodeId([1; 16]), hash_bytes(b"x"));
        let file = FileId::of(hash);
        let good = receipt(&key, node, file, hash, 1);
        assert!(verify_receipt(&key, node, file, hash, 1, &good));
        assert!(!verify_receipt(&[8; 32], node, file, hash, 1, &good));
        assert!(!verify_receipt(&key, NodeId([2; 16]), file, hash, 1, &good));
        assert!(!verify_receipt(&key, node, FileId([0; 16]), hash, 1, &good));
        assert!(!verify_receipt(&key, node, file, hash_bytes(b"y"), 1, &good));
        assert!(!verify_receipt(&key, node, file, hash, 2, &good));
    }
}
