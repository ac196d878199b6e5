//! What a store answers to a `file_request`: contents, ranges of them, outlines, and refusals in words.

use content::{Ask, Expected, Outline, Store, hash_bytes, outline_size};
use wire::limit::MIB;
use wire::{ErrorCode, FileId, FileRequest, FixedPart, Message, NodeId, U32, U64};

const NODE: NodeId = NodeId([1; 16]);

fn a_store(content: &[u8]) -> (tempfile::TempDir, Store, FileId) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path(), NODE).expect("an empty directory becomes a store");
    store.begin(1, None).expect("begun");
    store.write(1, 0, content).expect("written");
    let file = store.commit(1, Expected::Anything, content.len() as u64).expect("it is stored").file;
    (dir, store, file)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// The answer's flags, the file's length and the bytes; or the refusal.
fn ask(
    store: &Store,
    file: FileId,
    part: u32,
    offset: u64,
    length: u64,
) -> Result<(u32, u64, Vec<u8>), (ErrorCode, String)> {
    let fixed = FileRequest {
        file_uuid: file.into(),
        offset: U64::new(offset),
        length: U64::new(length),
        request: U64::new(9),
        part: U32::new(part),
        ..FileRequest::DEFAULT
    };
    let frame = fixed.frame(NODE, &[]);
    let Ok(Message::FileRequest(request, _)) = Message::decode(&frame) else { panic!("not a file_request") };
    let frames = Ask::of(&request).answer(store, NODE).0;
    match Message::decode(&frames[0]).expect("a message") {
        Message::FileResponse(response, _) => {
            assert_eq!((response.offset.get(), response.request.get()), (offset, 9));
            let bytes = frames[1..].iter().flat_map(|frame| frame.to_vec()).collect();
            Ok((response.flags.get(), response.file_length.get(), bytes))
        }
        Message::Error(error, detail) => {
            let code = ErrorCode::from_number(error.code.get()).expect("a code");
            Err((code, String::from_utf8_lossy(detail).into_owned()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_outline_is_served_in_ranges_and_checks_the_blocks_that_are_served() {
    let content = bytes(3 * MIB + 7);
    let (_dir, store, file) = a_store(&content);
    let length = content.len() as u64;
    let (flags, file_length, first) = ask(&store, file, wire::PART_OUTLINE, 0, 96).expect("it is here");
    assert_eq!((flags, file_length, first.len()), (wire::RESPONSE_OUTLINE, length, 96));
    let (.., rest) = ask(&store, file, wire::PART_OUTLINE, 96, MIB as u64).expect("it is here");
    let outline = [first, rest].concat();
    assert_eq!(outline.len() as u64, outline_size(length));
    let outline = Outline::decode(&outline, length, Expected::Hash(hash_bytes(&content))).expect("it is the file's");
    for block in 0..4 {
        let (flags, _, bytes) = ask(&store, file, 0, block << 20, MIB as u64).expect("it is here");
        assert_eq!(flags, 0);
        assert!(outline.holds(block, &bytes));
    }
}

#[test]
fn a_file_of_one_block_has_an_empty_outline() {
    let (_dir, store, file) = a_store(b"abc");
    assert_eq!(ask(&store, file, wire::PART_OUTLINE, 0, 64), Ok((wire::RESPONSE_OUTLINE, 3, vec![])));
}

#[test]
fn what_cannot_be_served_is_refused_in_words() {
    let (_dir, store, file) = a_store(&bytes(MIB + 1));
    let refused = |part, offset, length| ask(&store, file, part, offset, length).expect_err("it is refused");
    let (code, detail) = refused(wire::PART_OUTLINE, 65, 1);
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(detail.contains("65+1 of the outline of file") && detail.contains("64 bytes"), "{detail}");
    let (code, detail) = refused(0, 0, MIB as u64 + 1);
    assert_eq!((code, detail.contains("at most 1048576")), (ErrorCode::InvalidRequest, true));
    let (code, detail) = refused(2, 0, 1);
    assert_eq!((code, detail.contains("the part 2 of file")), (ErrorCode::InvalidRequest, true));
    let none = ask(&store, FileId::of(hash_bytes(b"none")), wire::PART_OUTLINE, 0, 64).expect_err("it is not here");
    assert_eq!(none.0, ErrorCode::FileUnknown);
}
