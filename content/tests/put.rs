//! The putting end, by itself: what it sends, and what it makes of answers and of silence.

use content::{Put, PutAction, PutContent, PutError, PutSettings, hash_bytes};
use wire::limit::BLOCK_SIZE;
use wire::record::Receipt;
use wire::{
    Duration, ErrorCode, FileId, FixedPart, Instant, JobId, Kind, Message, NodeId, PutAck, PutDone, PutGrant, U32, U64,
    Writer,
};

const BLOCK: u64 = BLOCK_SIZE as u64;
const ME: NodeId = NodeId([1; 16]);
const THEM: NodeId = NodeId([2; 16]);
const UPLOAD: u64 = 77;

fn content(length: u64) -> PutContent {
    PutContent { hash: hash_bytes(b"whatever it is"), length, class: 1, is_checked: false }
}

fn a_put(length: u64) -> Put {
    let settings = PutSettings { answer_timeout: Duration::from_secs(1), busy_pause: Duration::from_millis(10) };
    Put::new(ME, UPLOAD, content(length), settings)
}

/// What is sent, in words.
fn sent(put: &mut Put, now: Instant) -> Vec<String> {
    let words = |action| match action {
        PutAction::Send { frame } => match Message::decode(&frame).expect("we made it") {
            Message::PutBegin(..) => "begin".to_owned(),
            Message::PutCommit(..) => "commit".to_owned(),
            other => panic!("{other:?}"),
        },
        PutAction::SendBlock { offset, length, .. } => format!("{}+{length}", offset / BLOCK),
    };
    put.actions(now).into_iter().map(words).collect()
}

fn block(number: u64) -> String {
    format!("{number}+{BLOCK}")
}

fn grant(put: &mut Put, contiguous: u64, credit: u32, flags: u32, now: Instant) {
    let fixed = PutGrant {
        request: U64::new(UPLOAD),
        upload: U64::new(UPLOAD),
        contiguous: U64::new(contiguous),
        credit: U32::new(credit),
        flags: U32::new(flags),
        ..PutGrant::DEFAULT
    };
    let frame = fixed.frame(THEM, &[]);
    put.receive(&Message::decode(&frame).expect("we made it"), now).expect("it is good");
}

fn ack(put: &mut Put, contiguous: u64, credit: u32, now: Instant) {
    let fixed = PutAck {
        upload: U64::new(UPLOAD),
        contiguous: U64::new(contiguous),
        credit: U32::new(credit),
        ..PutAck::DEFAULT
    };
    let frame = fixed.frame(THEM, &[]);
    put.receive(&Message::decode(&frame).expect("we made it"), now).expect("it is good");
}

fn done(put: &mut Put, length: u64) -> Result<(), PutError> {
    let hash = content(length).hash;
    let fixed = PutDone {
        request: U64::new(UPLOAD),
        upload: U64::new(UPLOAD),
        file_uuid: FileId::of(hash).into(),
        file_length: U64::new(length),
        hash,
        ..PutDone::DEFAULT
    };
    let mut body = Writer::new();
    body.plain(&Receipt { node: THEM, mac: [9; 32] });
    let frame = fixed.frame(THEM, &body.bytes);
    put.receive(&Message::decode(&frame).expect("we made it"), Instant(0))
}

fn refuse(put: &mut Put, kind: Kind, code: ErrorCode, now: Instant) -> Result<(), PutError> {
    let frame = wire::error_frame(THEM, code, Some(kind), UPLOAD, JobId::NIL, "no");
    put.receive(&Message::decode(&frame).expect("we made it"), now)
}

#[test]
fn blocks_go_out_as_credit_allows_and_the_commit_follows_the_last_ack() {
    let now = Instant(0);
    let mut put = a_put(3 * BLOCK + 5);
    assert_eq!(sent(&mut put, now), ["begin"]);
    assert_eq!(sent(&mut put, now), [""; 0]);
    grant(&mut put, 0, 2, 0, now);
    assert_eq!(sent(&mut put, now), [block(0), block(1)]);
    assert_eq!(sent(&mut put, now), [""; 0]);
    ack(&mut put, BLOCK, 2, now);
    assert_eq!(sent(&mut put, now), [block(2)]);
    ack(&mut put, 3 * BLOCK, 2, now);
    assert_eq!(sent(&mut put, now), ["3+5"]);
    ack(&mut put, 3 * BLOCK + 5, 2, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
    assert_eq!(put.receipts(), None);
    done(&mut put, 3 * BLOCK + 5).expect("it is good");
    assert_eq!(put.receipts(), Some(&[Receipt { node: THEM, mac: [9; 32] }][..]));
    assert_eq!((sent(&mut put, now), put.next_deadline()), (vec![], None));
}

#[test]
fn an_empty_content_is_committed_at_once() {
    let now = Instant(0);
    let mut put = a_put(0);
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 16, 0, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
}

#[test]
fn a_content_that_is_there_is_not_sent() {
    let now = Instant(0);
    let mut put = a_put(100 * BLOCK);
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 16, wire::GRANT_EXISTS, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
}

#[test]
fn silence_leads_to_a_new_beginning_from_what_is_held() {
    let mut now = Instant(0);
    let mut put = a_put(4 * BLOCK);
    assert_eq!(sent(&mut put, now), ["begin"]);
    now = put.next_deadline().expect("it waits");
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 2, 0, now);
    assert_eq!(sent(&mut put, now), [block(0), block(1)]);
    now = put.next_deadline().expect("it waits");
    assert_eq!(sent(&mut put, now), ["begin"]);
    // One block arrived, its ack did not.
    grant(&mut put, BLOCK, 2, 0, now);
    assert_eq!(sent(&mut put, now), [block(1), block(2)]);
    ack(&mut put, 3 * BLOCK, 2, now);
    assert_eq!(sent(&mut put, now), [block(3)]);
    ack(&mut put, 4 * BLOCK, 2, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
    now = put.next_deadline().expect("it waits");
    assert_eq!(sent(&mut put, now), ["commit"], "a lost receipt is asked for again");
}

#[test]
fn a_receiver_that_was_started_again_gets_everything_again() {
    let now = Instant(0);
    let mut put = a_put(3 * BLOCK);
    sent(&mut put, now);
    grant(&mut put, 0, 3, 0, now);
    assert_eq!(sent(&mut put, now).len(), 3);
    ack(&mut put, BLOCK, 3, now);
    for _ in 0..2 {
        refuse(&mut put, Kind::PutBlock, ErrorCode::UploadUnknown, now).expect("it is no failure");
    }
    assert_eq!(sent(&mut put, now), ["begin"]);
    assert_eq!(sent(&mut put, now), [""; 0], "one beginning for all the blocks that were refused");
    grant(&mut put, 0, 3, 0, now);
    assert_eq!(sent(&mut put, now), [block(0), block(1), block(2)]);
}

#[test]
fn a_commit_that_met_a_receiver_started_again_costs_one_new_beginning() {
    let now = Instant(0);
    let mut put = a_put(2 * BLOCK);
    sent(&mut put, now);
    // The last word of a receiver that then died; the one that took its place has begun the upload and has nothing of it.
    grant(&mut put, 2 * BLOCK, 2, 0, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
    refuse(&mut put, Kind::PutCommit, ErrorCode::HashMismatch, now).expect("it is no failure yet");
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 2, 0, now);
    assert_eq!((put.held(), sent(&mut put, now)), (0, vec![block(0), block(1)]));
    ack(&mut put, 2 * BLOCK, 2, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
    // All of it came from us this time: it is our bytes that are wrong.
    let refused = PutError::Refused { code: ErrorCode::HashMismatch, detail: "no".into() };
    assert_eq!(refuse(&mut put, Kind::PutCommit, ErrorCode::HashMismatch, now), Err(refused));
}

#[test]
fn a_commit_that_arrives_late_and_ends_the_upload_costs_one_new_beginning() {
    let now = Instant(0);
    let mut put = a_put(2 * BLOCK);
    sent(&mut put, now);
    grant(&mut put, 2 * BLOCK, 2, 0, now);
    assert_eq!(sent(&mut put, now), ["commit"]);
    refuse(&mut put, Kind::PutCommit, ErrorCode::UploadUnknown, now).expect("it is no failure");
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 2, 0, now);
    assert_eq!(sent(&mut put, now).len(), 2);
    // The first commit was sent again before the answer came.
    refuse(&mut put, Kind::PutCommit, ErrorCode::HashMismatch, now).expect("it is no failure yet");
    assert_eq!(sent(&mut put, now), ["begin"]);
    grant(&mut put, 0, 2, 0, now);
    assert_eq!(sent(&mut put, now), [block(0), block(1)]);
}

#[test]
fn a_busy_receiver_is_left_alone_for_a_pause() {
    let now = Instant(0);
    let mut put = a_put(1);
    assert_eq!(sent(&mut put, now), ["begin"]);
    refuse(&mut put, Kind::PutBegin, ErrorCode::Busy, now).expect("it is no failure");
    assert_eq!(sent(&mut put, now), [""; 0]);
    assert_eq!(put.next_deadline(), Some(now + Duration::from_millis(10)));
    assert_eq!(sent(&mut put, now + Duration::from_millis(10)), ["begin"]);
}

#[test]
fn what_cannot_succeed_fails_with_the_receivers_words() {
    let now = Instant(0);
    for code in [ErrorCode::DiskFull, ErrorCode::HashMismatch, ErrorCode::ExistsDifferent] {
        let mut put = a_put(1);
        sent(&mut put, now);
        let refused = PutError::Refused { code, detail: "no".into() };
        assert_eq!(refuse(&mut put, Kind::PutBegin, code, now), Err(refused));
    }
    let mut put = a_put(1);
    assert_eq!(refuse(&mut put, Kind::FileRequest, ErrorCode::DiskFull, now), Ok(()), "not about a put");
    assert!(matches!(done(&mut put, 2), Err(PutError::Protocol { .. })), "a receipt for something else");
}

#[test]
fn without_credit_nothing_is_sent() {
    let now = Instant(0);
    let mut put = a_put(BLOCK);
    sent(&mut put, now);
    grant(&mut put, 0, 0, 0, now);
    assert_eq!(sent(&mut put, now), [""; 0]);
    ack(&mut put, 0, 1, now);
    assert_eq!(sent(&mut put, now), [block(0)]);
}

#[test]
fn answers_that_bring_nothing_are_no_progress() {
    let at = |ms| Instant(0) + Duration::from_millis(ms);
    let mut put = a_put(3 * BLOCK);
    sent(&mut put, at(0));
    grant(&mut put, 0, 2, 0, at(1));
    sent(&mut put, at(1));
    assert_eq!(put.progressed_at(), None);
    ack(&mut put, BLOCK, 2, at(2));
    assert_eq!(put.progressed_at(), Some(at(2)));
    sent(&mut put, at(5_000));
    grant(&mut put, BLOCK, 2, 0, at(5_001));
    assert_eq!(put.progressed_at(), Some(at(2)), "the receiver lives, and has no more than before");
    ack(&mut put, 3 * BLOCK, 2, at(5_002));
    assert_eq!(put.progressed_at(), Some(at(5_002)));
}

#[test]
fn a_receiver_that_is_busy_with_the_commit_is_asked_seldom_and_gets_on() {
    let at = |ms| Instant(0) + Duration::from_millis(ms);
    let mut put = a_put(BLOCK);
    sent(&mut put, at(0));
    grant(&mut put, BLOCK, 2, 0, at(1));
    assert_eq!(sent(&mut put, at(1)), ["commit"]);
    for second in 1..60 {
        assert_eq!(sent(&mut put, at(1 + second * 1_000)), ["commit"]);
        refuse(&mut put, Kind::PutCommit, ErrorCode::Busy, at(1 + second * 1_000)).expect("it is no failure");
        assert_eq!(put.progressed_at(), Some(at(1 + second * 1_000)));
        assert_eq!(sent(&mut put, at(2 + second * 1_000)), [""; 0]);
    }
    done(&mut put, BLOCK).expect("it is good");
}
