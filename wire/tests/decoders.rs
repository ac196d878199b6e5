//! Every decoder against arbitrary and against damaged bytes: it answers, it never panics.

use proptest::prelude::*;
use wire::job::{Input, JobBody, JobSpec};
use wire::record::{ChunkItem, ChunkRecord, FileRecord, JobRecord, NodeInputs, NodeRecord, StatusRecord, StoredFile};
use wire::{ArraySpec, ChunkSet, FileId, Hash, KINDS, Message, Reader, event::LogEvent, log, record, run, running};

/// Feeds `bytes` to every decoder of the crate.
fn decode_all(bytes: &[u8]) {
    let _ = Message::decode(bytes);
    let _ = log::decode_entry(bytes);
    let _ = JobSpec::decode(bytes);
    let _ = ChunkSet::from_bytes(bytes);
    let _ = record::decode_output_index(bytes);
    let _ = record::records::<ChunkItem>(bytes);
    let _ = record::records_of::<ChunkItem>(bytes, u32::MAX);
    for num_items in [0, 1, 3, u32::MAX] {
        let _ = running::decode_running(bytes, num_items).map(|chunks| chunks.count());
    }
    for (first, second) in [(0, 1), (1, 1), (1, 0), (u64::MAX, u64::MAX)] {
        let _ = run::decode_results(bytes, first as u32, second as u32);
        if let Ok(body) = JobBody::decode(bytes, first, second)
            && let Ok(spec) = JobSpec::decode(body.spec)
        {
            let _ = spec.check(&body, 1);
        }
    }
    let _ = LogEvent::decode(&mut Reader::new(bytes));
    let _ = StoredFile::decode(&mut Reader::new(bytes));
    let _ = NodeRecord::decode(&mut Reader::new(bytes));
    let _ = JobRecord::decode(&mut Reader::new(bytes));
    let _ = ChunkRecord::decode(&mut Reader::new(bytes));
    let _ = FileRecord::decode(&mut Reader::new(bytes));
    let _ = StatusRecord::decode(&mut Reader::new(bytes));
    let _ = NodeInputs::decode(&mut Reader::new(bytes));
}

fn a_body() -> Vec<u8> {
    let spec = JobSpec {
        name: b"name".to_vec(),
        arguments: vec![b"sh".to_vec(), b"-c".to_vec()],
        array: ArraySpec::parse("1-9:2,2").unwrap(),
        entries: vec![b"line".to_vec(); 6],
        inputs: vec![Input {
            hash: Hash([1; 32]),
            file_length: 5,
            piece: Some((1, 2)),
            path: b"a/b".to_vec(),
            ..Input::default()
        }],
        ..JobSpec::default()
    };
    JobBody::encode(b"program", &[FileId([1; 16])], &spec)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_all(&bytes);
    }

    #[test]
    fn any_kind_with_any_length_is_answered(kind in 0usize..KINDS.len(), length in any::<u64>(), small in 0u64..400, rest in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut frame = vec![KINDS[kind].kind as u8; 25];
        for header_length in [length, small, KINDS[kind].size as u64] {
            frame.truncate(25);
            frame[17..25].copy_from_slice(&header_length.to_le_bytes());
            frame.extend_from_slice(&rest);
            if let Ok(message) = Message::decode(&frame) {
                prop_assert_eq!(message.kind(), KINDS[kind].kind);
                prop_assert!(header_length <= frame.len() as u64);
            }
        }
    }

    #[test]
    fn a_damaged_job_body_is_answered(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut body = a_body();
        let at = at.index(body.len());
        body[at] = byte;
        decode_all(&body);
        body.truncate(cut.index(body.len()));
        decode_all(&body);
        if let Ok(parts) = JobBody::decode(&body, 7, 1) {
            let _ = JobSpec::decode(parts.spec);
        }
    }
}
