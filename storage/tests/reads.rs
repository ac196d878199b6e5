//! Questions through `step`: files, ranges, which files are here, and what is not a question at all.

mod scenario;

use content::hash_bytes;
use storage::{Action, Outcome};
use wire::limit::WHOLE_FILE_SIZE_MAX;
use wire::{ErrorCode, FileId, FileRequest, FixedPart, Message, PeerId, U32, U64};

use scenario::*;

fn file() -> FileId {
    FileId::of(hash_bytes(b"a file"))
}

fn ranged(request: u64, offset: u64, length: u64) -> Vec<u8> {
    let fixed = FileRequest {
        file_uuid: file().into(),
        offset: U64::new(offset),
        length: U64::new(length),
        request: U64::new(request),
        ..FileRequest::DEFAULT
    };
    fixed.frame(CLIENT, &[])
}

fn bare() -> Vec<u8> {
    let frame = FileRequest { file_uuid: file().into(), ..FileRequest::DEFAULT }.seed_frame(CLIENT, &[]);
    assert_eq!(frame.len(), 41);
    frame
}

#[test]
fn the_bare_request_gets_the_seeds_response_and_the_whole_content() {
    let limits = storage::Limits { read_bytes_max: WHOLE_FILE_SIZE_MAX, ..limits() };
    let mut node = a_storage_node(limits, vec![]);
    assert_eq!(words(node.receives(C, &bare(), None)), ["#1 read Whole"]);
    let answered = words(node.performed(1, Outcome::Read { file_length: 17 }));
    assert_eq!(answered, ["to 1: response of 49 request 0 offset 0 file_length 17 with content of #1"]);
}

#[test]
fn a_ranged_request_gets_its_range_with_its_number() {
    let mut node = a_storage_node(limits(), vec![]);
    let ordered = words(node.receives(C, &ranged(77, 5, 10), None));
    assert_eq!(ordered, ["#1 read Part { offset: 5, length: 10 }"]);
    let answered = words(node.performed(1, Outcome::Read { file_length: 17 }));
    assert_eq!(answered, ["to 1: response of 73 request 77 offset 5 file_length 17 with content of #1"]);
}

#[test]
fn an_outline_is_asked_for_like_content_and_says_that_it_is_one() {
    let mut node = a_storage_node(limits(), vec![]);
    let mut fixed = FileRequest { request: U64::new(77), part: U32::new(wire::PART_OUTLINE), ..FileRequest::DEFAULT };
    fixed.length = U64::new(64);
    let ordered = words(node.receives(C, &fixed.frame(CLIENT, &[]), None));
    assert_eq!(ordered, ["#1 read Outline { offset: 0, length: 64 }"]);
    let [Action::SendContent { frame, .. }] = &node.performed(1, Outcome::Read { file_length: 17 })[..] else {
        panic!("one answer");
    };
    let Ok(Message::FileResponse(response, _)) = Message::decode(frame) else { panic!("not a file_response") };
    assert_eq!((response.flags.get(), response.file_length.get()), (wire::RESPONSE_OUTLINE, 17));
    fixed.part = U32::new(2);
    assert_eq!(words(node.receives(C, &fixed.frame(CLIENT, &[]), None)), ["#2 read Unknown { part: 2 }"]);
}

#[test]
fn what_the_disk_cannot_give_is_refused_with_the_requests_number() {
    let mut node = a_storage_node(limits(), vec![]);
    node.receives(C, &ranged(77, 5, 10), None);
    let failed = Outcome::Failed { code: ErrorCode::FileUnknown, detail: "none".into() };
    assert_eq!(words(node.performed(1, failed)), ["to 1: error file_unknown request 77 regarding 3"]);
}

#[test]
fn reads_beyond_the_limits_are_busy_and_counted_per_peer() {
    let mut node = a_storage_node(limits(), vec![]);
    for request in 0..2 {
        assert_eq!(words(node.receives(C, &ranged(request, 0, BLOCK), None)).len(), 1);
    }
    let busy = |peer| format!("to {peer}: error busy request 9 regarding 3");
    assert_eq!(words(node.receives(C, &ranged(9, 0, 1), None)), [busy(1)], "two for one peer");
    assert_eq!(words(node.receives(PeerId(2), &ranged(8, 0, BLOCK), None)).len(), 1);
    assert_eq!(words(node.receives(PeerId(2), &ranged(9, 0, 1), None)), [busy(2)], "three blocks for all");
    node.performed(1, Outcome::Read { file_length: BLOCK });
    assert_eq!(words(node.receives(C, &ranged(9, 0, 1), None)).len(), 1);
}

#[test]
fn a_have_request_is_answered_bit_by_bit() {
    let mut node = a_storage_node(limits(), vec![]);
    assert_eq!(words(node.receives(C, &have(3, 2, &[file(), FileId::NIL]), None)), ["#1 have 2"]);
    let answered = words(node.performed(1, Outcome::Had { bits: vec![0b01] }));
    assert_eq!(answered, ["to 1: had 2 request 3 [1]"]);
    let malformed = words(node.receives(C, &have(3, 3, &[file()]), None));
    assert_eq!(malformed, ["to 1: error malformed request 3 regarding 36"]);
}

#[test]
fn what_is_no_question_for_storage_is_told_so_and_errors_are_not_answered() {
    let mut node = a_storage_node(limits(), vec![]);
    let submit = wire::SubmitJob::DEFAULT.frame(CLIENT, &[]);
    let refused = words(node.receives(C, &submit, None));
    assert_eq!(refused, ["to 1: error invalid_request request 0 regarding 20"]);
    let refused = words(node.receives(C, &[0; 25], None));
    assert_eq!(refused, ["to 1: error unknown_type request 0 regarding 0"]);
    let refused = words(node.receives(C, b"garbage", None));
    assert_eq!(refused, ["to 1: error malformed request 0 regarding 0"]);
    let error = wire::error_frame(CLIENT, ErrorCode::Malformed, None, 0, wire::JobId::NIL, "you are wrong");
    assert_eq!(words(node.receives(C, &error, None)), [""; 0]);
}

#[test]
fn a_file_that_is_not_as_it_was_stored_is_read_again_once_and_its_readers_come_back() {
    let mut node = a_storage_node(limits(), vec![]);
    let unchecked = |file| Outcome::Unchecked { file };
    node.receives(C, &ranged(1, 0, 10), None);
    node.receives(C, &ranged(2, 10, 10), None);
    let refused = words(node.performed(1, unchecked(file())));
    assert_eq!(refused, ["#3 check", "to 1: error not_ready request 1 regarding 3"]);
    assert_eq!(words(node.performed(2, unchecked(file()))), ["to 1: error not_ready request 2 regarding 3"]);
    // No more than one may wait here; whoever wants another asks again.
    node.receives(C, &ranged(3, 0, 10), None);
    let other = FileId::of(hash_bytes(b"another"));
    assert_eq!(words(node.performed(4, unchecked(other))), ["to 1: error not_ready request 3 regarding 3"]);
    assert_eq!(words(node.performed(3, Outcome::Checked)), [""; 0]);
    node.receives(C, &ranged(4, 0, 10), None);
    let refused = words(node.performed(5, unchecked(other)));
    assert_eq!(refused, ["#6 check", "to 1: error not_ready request 4 regarding 3"]);
}
