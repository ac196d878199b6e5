//! Receipts, by which a storage node vouches for a file that it made durable, and the key that makes them.
//!
//! A receipt is a MAC, not a signature: who can check one can also make one. So the key is known to storage nodes and
//! masters, and a worker or a client only carries the receipt from the one to the other.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use wire::{FileId, Hash, NodeId};

/// Makes a fresh receipt key.
pub fn new_receipt_key() -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

/// Writes a receipt key to a new file that only its owner can read: 64 hexadecimal digits and a newline.
pub fn save_receipt_key(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", wire::hex(key)).as_bytes())?;
    file.sync_all()
}

/// Reads what `save_receipt_key` wrote.
pub fn load_receipt_key(path: &Path) -> io::Result<[u8; 32]> {
    let text = fs::read_to_string(path)?;
    let key = wire::parse_hex(text.trim()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    key.ok_or_else(|| io::Error::other("a receipt key is 64 hexadecimal digits"))
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
    use crate::hash_bytes;

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

    #[test]
    fn a_key_reads_as_it_was_written_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipt.key");
        let key = new_receipt_key().unwrap();
        assert_ne!(key, new_receipt_key().unwrap());
        save_receipt_key(&path, &key).unwrap();
        assert_eq!(load_receipt_key(&path).unwrap(), key);
        assert!(save_receipt_key(&path, &key).is_err());
        fs::write(&path, "short").unwrap();
        assert!(load_receipt_key(&path).is_err());
    }
}
