//! A log entry: the leader's stamp, then the accepted requests as they came.

use crate::{DecodeError, Reader, WallTime, Writer};

/// The version of the layout, first in every entry.
const VERSION: u8 = 1;

/// Builds the data of an entry.
pub fn encode_entry<'a>(stamp: WallTime, frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.raw(&[VERSION]).raw(&stamp.0.to_le_bytes());
    for frame in frames {
        writer.string(frame);
    }
    writer.bytes
}

/// The stamp of an entry and its requests in order. A malformed entry gives an error before its first request is used.
pub fn decode_entry(data: &[u8]) -> Result<(WallTime, Vec<&[u8]>), DecodeError> {
    let mut reader = Reader::new(data);
    if reader.raw(1)?[0] != VERSION {
        return Err(DecodeError::Body { what: "the log entry is of another version" });
    }
    let stamp = reader.raw(8)?.try_into().map(u64::from_le_bytes).expect("eight bytes were read");
    let mut frames = Vec::new();
    while !reader.is_empty() {
        frames.push(reader.string()?);
    }
    Ok((WallTime(stamp), frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_its_requests() {
        let data = encode_entry(WallTime(7), [&b"one"[..], b"", b"three"]);
        assert_eq!(decode_entry(&data).unwrap(), (WallTime(7), vec![&b"one"[..], b"", b"three"]));
        assert!(decode_entry(&data[..data.len() - 1]).is_err());
        assert!(decode_entry(b"").is_err());
    }
}
