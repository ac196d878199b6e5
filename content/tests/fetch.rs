//! The fetching end, by itself: which ranges it asks for, and what it makes of answers.

use content::{Fetch, FetchAnswer, FetchError, FetchSettings};
use wire::limit::{BLOCK_SIZE, MIB};
use wire::{
    Duration, ErrorCode, FileAddress, FileId, FileResponse, FixedPart, Instant, Kind, Message, NodeId, U32, U64,
};

const BLOCK: u64 = BLOCK_SIZE as u64;
const ME: NodeId = NodeId([1; 16]);
const THEM: NodeId = NodeId([2; 16]);
const FILE: FileId = FileId([3; 16]);

fn settings() -> FetchSettings {
    FetchSettings {
        ranges_in_flight_max: 4,
        range_timeout: Duration::from_secs(1),
        busy_pause: Duration::from_millis(10),
    }
}

fn a_fetch(piece: Option<(u64, u64)>, known_length: Option<u64>) -> Fetch {
    Fetch::new(ME, FileAddress { file: FILE, piece }, 0, known_length, 100, settings())
}

/// The requests as (request, offset, length).
fn asked(fetch: &mut Fetch, now: Instant) -> Vec<(u64, u64, u64)> {
    let asked = fetch.requests(now).into_iter().map(|frame| match Message::decode(&frame).expect("we made it") {
        Message::FileRequest(fixed, _) => (fixed.request.get(), fixed.offset.get(), fixed.length.get()),
        other => panic!("{other:?}"),
    });
    asked.collect()
}

fn answer(
    fetch: &mut Fetch,
    request: u64,
    offset: u64,
    length: u64,
    file_length: u64,
    now: Instant,
) -> Result<FetchAnswer, FetchError> {
    let fixed = FileResponse {
        file_uuid: FILE.into(),
        file_length: U64::new(file_length),
        offset: U64::new(offset),
        request: U64::new(request),
        status: U32::new(0),
        ..FileResponse::DEFAULT
    };
    let frame = fixed.frame(THEM, &[]);
    fetch.receive(&Message::decode(&frame).expect("we made it"), length, now)
}

fn refuse(fetch: &mut Fetch, request: u64, code: ErrorCode, now: Instant) -> Result<FetchAnswer, FetchError> {
    let frame = wire::error_frame(THEM, code, Some(Kind::FileRequest), request, wire::JobId::NIL, "no");
    fetch.receive(&Message::decode(&frame).expect("we made it"), 0, now)
}

#[test]
fn the_first_range_tells_the_length_and_then_the_window_opens() {
    let now = Instant(0);
    let mut fetch = a_fetch(None, None);
    assert_eq!(asked(&mut fetch, now), [(100, 0, BLOCK)]);
    assert_eq!(asked(&mut fetch, now), []);
    let length = 6 * BLOCK + 5;
    assert_eq!(answer(&mut fetch, 100, 0, BLOCK, length, now), Ok(FetchAnswer::Bytes { offset: 0 }));
    let window = (1..=4).map(|n| (100 + n, n * BLOCK, BLOCK)).collect::<Vec<_>>();
    assert_eq!(asked(&mut fetch, now), window);
    // Out of order, and the last range is what is left.
    for n in [2, 1, 4, 3] {
        answer(&mut fetch, 100 + n, n * BLOCK, BLOCK, length, now).expect("it is good");
    }
    assert_eq!(asked(&mut fetch, now), [(105, 5 * BLOCK, BLOCK), (106, 6 * BLOCK, 5)]);
    answer(&mut fetch, 105, 5 * BLOCK, BLOCK, length, now).expect("it is good");
    assert!(!fetch.is_complete());
    answer(&mut fetch, 106, 6 * BLOCK, 5, length, now).expect("it is good");
    assert!(fetch.is_complete());
    assert_eq!(fetch.length(), Some(length));
    assert_eq!(fetch.next_deadline(), None);
    assert_eq!(asked(&mut fetch, now), []);
}

#[test]
fn files_of_every_size_around_a_block_come_whole() {
    for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1] {
        let now = Instant(0);
        let mut fetch = a_fetch(None, None);
        let mut came = 0;
        while !fetch.is_complete() {
            for (request, offset, asked) in asked(&mut fetch, now) {
                let got = asked.min(length - offset);
                answer(&mut fetch, request, offset, got, length, now).expect("it is good");
                came += got;
            }
        }
        assert_eq!((came, fetch.length()), (length, Some(length)));
    }
}

#[test]
fn a_piece_is_asked_for_from_its_first_byte_to_its_last() {
    let now = Instant(0);
    let mut fetch = a_fetch(Some((BLOCK - 1, BLOCK + 2)), None);
    assert_eq!(asked(&mut fetch, now), [(100, BLOCK - 1, 1), (101, BLOCK, BLOCK), (102, 2 * BLOCK, 1)]);
    assert_eq!(
        answer(&mut fetch, 100, BLOCK - 1, 1, BLOCK, now),
        Err(FetchError::OutOfRange {
            address: FileAddress { file: FILE, piece: Some((BLOCK - 1, BLOCK + 2)) },
            file_length: BLOCK
        })
    );
    assert!(a_fetch(Some((7, 0)), None).is_complete(), "an empty piece is here already");
}

#[test]
fn a_fetch_resumes_after_what_is_held() {
    let address = FileAddress { file: FILE, piece: None };
    let mut fetch = Fetch::new(ME, address, 3 * BLOCK, Some(4 * BLOCK), 1, settings());
    assert_eq!(asked(&mut fetch, Instant(0)), [(1, 3 * BLOCK, BLOCK)]);
}

#[test]
fn only_a_lost_range_is_asked_for_again() {
    let mut now = Instant(0);
    let length = 3 * BLOCK;
    let mut fetch = a_fetch(None, Some(length));
    assert_eq!(asked(&mut fetch, now).len(), 3);
    now = now + Duration::from_millis(900);
    answer(&mut fetch, 100, 0, BLOCK, length, now).expect("it is good");
    answer(&mut fetch, 102, 2 * BLOCK, BLOCK, length, now).expect("it is good");
    // While the line moves nobody in it is late.
    assert_eq!(fetch.next_deadline(), Some(now + Duration::from_secs(1)));
    now = now + Duration::from_millis(999);
    assert_eq!(asked(&mut fetch, now), []);
    now = now + Duration::from_millis(1);
    assert_eq!(asked(&mut fetch, now), [(103, BLOCK, BLOCK)]);
    // The answer to the first request was only late; the second then counts for nothing.
    assert_eq!(answer(&mut fetch, 101, BLOCK, BLOCK, length, now), Ok(FetchAnswer::Bytes { offset: BLOCK }));
    assert_eq!(answer(&mut fetch, 103, BLOCK, BLOCK, length, now), Ok(FetchAnswer::Ignored));
    assert!(fetch.is_complete());
}

#[test]
fn a_short_answer_is_completed() {
    let now = Instant(0);
    let mut fetch = a_fetch(None, Some(BLOCK));
    assert_eq!(asked(&mut fetch, now), [(100, 0, BLOCK)]);
    answer(&mut fetch, 100, 0, 7, BLOCK, now).expect("it is good");
    assert_eq!(asked(&mut fetch, now), [(101, 7, BLOCK - 7)]);
}

#[test]
fn a_busy_sender_is_left_alone_for_a_pause() {
    let mut now = Instant(0);
    let mut fetch = a_fetch(None, None);
    assert_eq!(asked(&mut fetch, now), [(100, 0, BLOCK)]);
    assert_eq!(refuse(&mut fetch, 100, ErrorCode::Busy, now), Ok(FetchAnswer::Ignored));
    assert_eq!(asked(&mut fetch, now), []);
    now = fetch.next_deadline().expect("it waits");
    assert_eq!(now, Instant(0) + Duration::from_millis(10));
    assert_eq!(asked(&mut fetch, now), [(101, 0, BLOCK)]);
}

#[test]
fn an_unknown_file_is_told_and_other_errors_are_not_ours() {
    let now = Instant(0);
    let mut fetch = a_fetch(None, None);
    assert_eq!(asked(&mut fetch, now).len(), 1);
    assert_eq!(refuse(&mut fetch, 99, ErrorCode::FileUnknown, now), Ok(FetchAnswer::Ignored));
    let address = FileAddress { file: FILE, piece: None };
    assert_eq!(refuse(&mut fetch, 100, ErrorCode::FileUnknown, now), Err(FetchError::FileUnknown(address)));
}

#[test]
fn a_sender_that_contradicts_itself_is_found_out() {
    let now = Instant(0);
    let contradicts = |offset, got, first_length, second_length| {
        let mut fetch = a_fetch(None, None);
        assert_eq!(asked(&mut fetch, now).len(), 1);
        answer(&mut fetch, 100, 0, BLOCK, first_length, now).expect("it is good");
        asked(&mut fetch, now);
        matches!(answer(&mut fetch, 101, offset, got, second_length, now), Err(FetchError::Protocol { .. }))
    };
    assert!(contradicts(BLOCK, 1, 2 * BLOCK, 2 * BLOCK + 1), "another length");
    assert!(contradicts(BLOCK, 0, 2 * BLOCK, 2 * BLOCK), "no bytes");
    assert!(contradicts(BLOCK, 2 * MIB as u64, 2 * BLOCK, 2 * BLOCK), "too many bytes");
}
