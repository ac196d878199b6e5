//! Uploads through `step`: credit, repetition, limits, and what is said only when the disk has said it.

mod scenario;

use storage::Outcome;
use wire::{Duration, ErrorCode, PeerId};

use scenario::*;

/// A node with upload 5 of `length` bytes begun; the next ticket is 2.
fn with_an_upload(length: u64) -> Scenario {
    let mut node = a_storage_node(limits(), vec![]);
    let length_text = format!("#1 begin 1 length Some({length})");
    assert_eq!(words(node.receives(C, &begin(5, length), None)), [length_text]);
    let granted = words(node.performed(1, Outcome::Begun));
    assert_eq!(granted, ["to 1: grant 5 request 1005 contiguous 0 credit 4 flags 0"]);
    node
}

#[test]
fn a_put_goes_from_begin_to_receipt() {
    let mut node = with_an_upload(BLOCK + 3);
    assert_eq!(words(node.receives(C, &block(5, 0), Some(BLOCK))), ["#2 write 1 0+1048576"]);
    assert_eq!(words(node.receives(C, &block(5, BLOCK), Some(3))), ["#3 write 1 1048576+3"]);
    let acked = words(node.performed(2, Outcome::Written { contiguous: BLOCK }));
    assert_eq!(acked, ["to 1: ack 5 contiguous 1048576 credit 4"]);
    let acked = words(node.performed(3, Outcome::Written { contiguous: BLOCK + 3 }));
    assert_eq!(acked, ["to 1: ack 5 contiguous 1048579 credit 4"]);
    assert_eq!(words(node.receives(C, &commit(5, BLOCK + 3), None)), ["#4 commit 1 length 1048579"]);
    let (file, hash, length) = content(BLOCK + 3);
    let done = words(node.performed(4, Outcome::Committed { file, hash, length }));
    assert_eq!(done, ["to 1: done 5 request 2005 length 1048579"]);
}

#[test]
fn a_file_that_is_here_is_granted_as_such_and_committed_without_bytes() {
    let mut node = a_storage_node(limits(), vec![]);
    node.receives(C, &begin(5, 7), None);
    let granted = words(node.performed(1, Outcome::Exists { length: 7 }));
    assert_eq!(granted, ["to 1: grant 5 request 1005 contiguous 7 credit 0 flags 1"]);
    assert_eq!(words(node.receives(C, &commit(5, 7), None)), ["#2 commit 2 length 7"]);
    let (file, hash, length) = content(7);
    let done = words(node.performed(2, Outcome::Committed { file, hash, length }));
    assert_eq!(done, ["to 1: done 5 request 2005 length 7"]);
}

#[test]
fn a_repeated_begin_tells_what_is_held_to_where_the_sender_is_now() {
    let mut node = with_an_upload(3 * BLOCK);
    node.receives(C, &block(5, 0), Some(BLOCK));
    node.performed(2, Outcome::Written { contiguous: BLOCK });
    node.receives(C, &block(5, BLOCK), Some(BLOCK));
    // The client's connection broke; its next one has another number.
    let again = PeerId(2);
    let granted = words(node.receives(again, &begin(5, 3 * BLOCK), None));
    assert_eq!(granted, ["to 2: grant 5 request 1005 contiguous 1048576 credit 3 flags 0"]);
    let acked = words(node.performed(3, Outcome::Written { contiguous: 2 * BLOCK }));
    assert_eq!(acked, ["to 2: ack 5 contiguous 2097152 credit 4"]);
}

#[test]
fn a_begin_repeated_before_the_disk_answers_is_busy_and_granted_once() {
    let mut node = a_storage_node(limits(), vec![]);
    assert_eq!(words(node.receives(C, &begin(5, 7), None)).len(), 1);
    assert_eq!(words(node.receives(C, &begin(5, 7), None)), ["to 1: error busy request 1005 regarding 30"]);
    assert_eq!(words(node.receives(C, &block(5, 0), Some(7))), ["to 1: error busy request 5 regarding 32"]);
    assert_eq!(words(node.performed(1, Outcome::Begun)).len(), 1);
}

#[test]
fn a_commit_repeated_while_the_disk_works_is_busy_and_performed_once() {
    let mut node = with_an_upload(0);
    let again = PeerId(2);
    let (file, hash, length) = content(0);
    assert_eq!(words(node.receives(C, &commit(5, 0), None)), ["#2 commit 1 length 0"]);
    let busy = words(node.receives(again, &commit(5, 0), None));
    assert_eq!(busy, ["to 2: error busy request 2005 regarding 34"]);
    let done = words(node.performed(2, Outcome::Committed { file, hash, length }));
    assert_eq!(done, ["to 2: done 5 request 2005 length 0"]);
    // Its receipt was lost: the disk has the file, and the answer is the same.
    assert_eq!(words(node.receives(C, &commit(5, 0), None)), ["#3 commit 2 length 0"]);
    let busy = words(node.receives(again, &commit(5, 0), None));
    assert_eq!(busy, ["to 2: error busy request 2005 regarding 34"]);
    let done = words(node.performed(3, Outcome::Committed { file, hash, length }));
    assert_eq!(done, ["to 2: done 5 request 2005 length 0"]);
}

#[test]
fn blocks_beyond_the_credit_are_refused_and_take_no_memory() {
    let mut node = with_an_upload(100 * BLOCK);
    for number in 0..4 {
        assert_eq!(words(node.receives(C, &block(5, number * BLOCK), Some(BLOCK))).len(), 1);
    }
    let refused = words(node.receives(C, &block(5, 4 * BLOCK), Some(BLOCK)));
    assert_eq!(refused, ["to 1: error busy request 5 regarding 32"]);
}

#[test]
fn uploads_share_the_blocks_that_may_be_in_flight() {
    let mut node = with_an_upload(100 * BLOCK);
    node.receives(C, &begin(6, 100 * BLOCK), None);
    let granted = words(node.performed(2, Outcome::Begun));
    assert_eq!(granted, ["to 1: grant 6 request 1006 contiguous 0 credit 3 flags 0"]);
    let refused = words(node.receives(C, &begin(7, 1), None));
    assert_eq!(refused, ["to 1: error busy request 1007 regarding 30"]);
}

#[test]
fn two_clients_with_one_upload_number_do_not_meet() {
    let mut node = with_an_upload(BLOCK);
    let mut other = begin(5, BLOCK);
    other[1] ^= 0xff;
    assert_eq!(words(node.receives(PeerId(2), &other, None)), ["#2 begin 2 length Some(1048576)"]);
}

#[test]
fn what_nobody_began_is_unknown() {
    let mut node = a_storage_node(limits(), vec![]);
    let refused = words(node.receives(C, &block(5, 0), Some(1)));
    assert_eq!(refused, ["to 1: error upload_unknown request 5 regarding 32"]);
    node.receives(C, &commit(5, 1), None);
    let failed = Outcome::Failed { code: ErrorCode::UploadUnknown, detail: "none".into() };
    assert_eq!(words(node.performed(1, failed)), ["to 1: error upload_unknown request 2005 regarding 34"]);
}

#[test]
fn a_full_disk_ends_the_upload_with_its_reason() {
    let full = || Outcome::Failed { code: ErrorCode::DiskFull, detail: "no room".into() };
    let mut node = a_storage_node(limits(), vec![]);
    node.receives(C, &begin(5, BLOCK), None);
    assert_eq!(words(node.performed(1, full())), ["to 1: error disk_full request 1005 regarding 30"]);

    let mut node = with_an_upload(2 * BLOCK);
    node.receives(C, &block(5, 0), Some(BLOCK));
    node.receives(C, &block(5, BLOCK), Some(BLOCK));
    assert_eq!(words(node.performed(2, full())), ["to 1: error disk_full request 5 regarding 32"]);
    // The block behind it finds the upload given up, which has been said.
    let unknown = Outcome::Failed { code: ErrorCode::UploadUnknown, detail: "none".into() };
    assert_eq!(words(node.performed(3, unknown)), [""; 0]);
}

#[test]
fn blocks_of_an_upload_given_up_do_not_count_for_the_next() {
    let mut node = with_an_upload(2 * BLOCK);
    node.receives(C, &block(5, 0), Some(BLOCK));
    node.receives(C, &block(5, BLOCK), Some(BLOCK));
    node.performed(2, Outcome::Failed { code: ErrorCode::DiskFull, detail: "no room".into() });
    assert_eq!(words(node.receives(C, &begin(5, 2 * BLOCK), None)), ["#4 begin 2 length Some(2097152)"]);
    node.performed(3, Outcome::Failed { code: ErrorCode::UploadUnknown, detail: "none".into() });
    let granted = words(node.performed(4, Outcome::Begun));
    assert_eq!(granted, ["to 1: grant 5 request 1005 contiguous 0 credit 4 flags 0"]);
}

#[test]
fn a_wrong_content_is_refused_at_the_commit() {
    let mut node = with_an_upload(1);
    node.receives(C, &block(5, 0), Some(1));
    node.performed(2, Outcome::Written { contiguous: 1 });
    node.receives(C, &commit(5, 1), None);
    let wrong = Outcome::Failed { code: ErrorCode::HashMismatch, detail: "other bytes".into() };
    assert_eq!(words(node.performed(3, wrong)), ["to 1: error hash_mismatch request 2005 regarding 34"]);
    assert_eq!(words(node.receives(C, &begin(5, 1), None)).len(), 1, "it can be tried again");
}

#[test]
fn blocks_of_no_size_or_too_much_are_refused() {
    let mut node = with_an_upload(3 * BLOCK);
    for payload in [None, Some(0), Some(BLOCK + 1)] {
        let refused = words(node.receives(C, &block(5, 0), payload));
        assert_eq!(refused, ["to 1: error invalid_request request 5 regarding 32"]);
    }
    let refused = words(node.receives(C, &begin(6, 101 * BLOCK), None));
    assert_eq!(refused, ["to 1: error too_large request 1006 regarding 30"]);
}

#[test]
fn an_upload_that_nobody_goes_on_with_is_given_up() {
    let mut node = with_an_upload(3 * BLOCK);
    node.receives(C, &block(5, 0), Some(BLOCK));
    node.passes(Duration::from_secs(61));
    node.performed(2, Outcome::Written { contiguous: BLOCK });
    // While a block waited for the disk it was not idle.
    assert_eq!(words(node.passes(Duration::from_secs(59))), [""; 0]);
    let mut aborted = Vec::new();
    for _ in 0..2 {
        aborted.extend(words(node.until_deadline()));
    }
    assert_eq!(aborted, ["#3 abort 1"]);
    assert_eq!(words(node.performed(3, Outcome::Aborted)), [""; 0]);
    let refused = words(node.receives(C, &block(5, BLOCK), Some(BLOCK)));
    assert_eq!(refused, ["to 1: error upload_unknown request 5 regarding 32"]);
}

#[test]
fn a_sender_that_counts_its_uploads_anew_begins_a_new_one() {
    let mut node = with_an_upload(3 * BLOCK);
    node.receives(C, &block(5, 0), Some(BLOCK));
    let again = words(node.receives(PeerId(2), &begin(5, BLOCK), None));
    assert_eq!(again, ["#3 abort 1", "#4 begin 2 length Some(1048576)"]);
    let unknown = Outcome::Failed { code: ErrorCode::UploadUnknown, detail: "none".into() };
    assert_eq!(words(node.performed(2, unknown)), [""; 0]);
    node.performed(3, Outcome::Aborted);
    let busy = words(node.receives(C, &begin(5, 3 * BLOCK), None));
    assert_eq!(busy, ["to 1: error busy request 1005 regarding 30"], "while the disk begins it");
    let granted = words(node.performed(4, Outcome::Begun));
    assert_eq!(granted, ["to 2: grant 5 request 1005 contiguous 0 credit 4 flags 0"]);
}

#[test]
fn a_copy_that_is_not_as_it_was_stored_is_read_again_before_it_counts() {
    let mut node = a_storage_node(limits(), vec![]);
    node.receives(C, &begin(5, 7), None);
    let unchecked = Outcome::Unchecked { file: content(7).0 };
    assert_eq!(words(node.performed(1, unchecked.clone())), ["#2 check"]);
    // The sender hears that we live.
    assert_eq!(words(node.receives(PeerId(2), &begin(5, 7), None)), ["to 2: error busy request 1005 regarding 30"]);
    assert_eq!(words(node.receives(C, &block(5, 0), Some(7))), ["to 1: error busy request 5 regarding 32"]);
    assert_eq!(words(node.receives(C, &commit(5, 7), None)), ["to 1: error busy request 2005 regarding 34"]);
    assert_eq!(words(node.performed(2, Outcome::Checked)), ["#3 begin 1 length Some(7)"]);
    let granted = words(node.performed(3, Outcome::Exists { length: 7 }));
    assert_eq!(granted, ["to 1: grant 5 request 1005 contiguous 7 credit 0 flags 1"]);
    // Somebody wrote to it after that.
    assert_eq!(words(node.receives(C, &commit(5, 7), None)), ["#4 commit 2 length 7"]);
    let refused = words(node.performed(4, unchecked));
    assert_eq!(refused, ["#5 check", "to 1: error not_ready request 2005 regarding 34"]);
    assert_eq!(words(node.performed(5, Outcome::Checked)), [""; 0], "it is committed again by itself");
}

#[test]
fn a_sender_may_want_the_copy_that_is_here_read_again() {
    let mut node = a_storage_node(limits(), vec![]);
    let begin = put_begin(5, 7, wire::PUT_CHECKED);
    assert_eq!(words(node.receives(C, &begin, None)), ["#1 begin 1 length Some(7) checked"]);
    assert_eq!(words(node.performed(1, Outcome::Unchecked { file: content(7).0 })), ["#2 check"]);
    // Once is enough.
    assert_eq!(words(node.performed(2, Outcome::Checked)), ["#3 begin 1 length Some(7)"]);
    let granted = words(node.performed(3, Outcome::Begun));
    assert_eq!(granted, ["to 1: grant 5 request 1005 contiguous 0 credit 4 flags 0"]);
}
