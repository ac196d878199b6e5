//! BLAKE3 of contents, in one piece, in several, and of whole files.

use std::io::{self, Read};

use wire::Hash;

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

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
}
