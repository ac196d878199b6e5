//! The bytes of the seed's structs, exactly; and how fixed parts of other ages are read.

use wire::record::{InputCounts, NodeInputs};
use wire::{
    DecodeError, ErrorCode, FileRequest, FileResponse, FixedPart, JobId, Kind, Message, NodeId, Reader, U32, U64,
    WorkerRequest, WorkerStatus, Writer, error_frame, hex, parse_hex,
};

fn node() -> NodeId {
    "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap()
}

fn job() -> JobId {
    "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap()
}

const NODE: &str = "7766554433221100ffeeddccbbaa9988";
const JOB: &str = "efcdab8967452301efcdab8967452301";

#[test]
fn worker_status_is_the_worked_example_of_the_specification() {
    let status = WorkerStatus { job_uuid: job().into(), state: 3, ..WorkerStatus::DEFAULT };
    assert_eq!(hex(&status.seed_frame(node(), b"")), format!("02{NODE}2a00000000000000{JOB}03"));
    let full = status.frame(node(), b"");
    assert_eq!(hex(&full[..17]), format!("02{NODE}"));
    assert_eq!(hex(&full[25..42]), format!("{JOB}03"));
}

#[test]
fn what_a_worker_counts_of_inputs_ends_its_status() {
    let counts = InputCounts {
        opens_passthrough: 1,
        opens_cached: 2,
        opens_waited: 3,
        reads_failed: 4,
        bytes_served: 5,
        bytes_fetched: 6,
    };
    let frame = counts.tell(WorkerStatus::DEFAULT).frame(node(), b"");
    let numbers: String = (1..=6).map(|number| format!("0{number}00000000000000")).collect();
    assert_eq!((hex(&frame[110..]), frame.len()), (numbers, 158));
    let Ok(Message::WorkerStatus(status, _)) = Message::decode(&frame) else { panic!("not a worker_status") };
    assert_eq!(InputCounts::told(&status), counts);
    let mut record = Writer::new();
    NodeInputs { node: node(), counts }.encode(&mut record);
    assert_eq!(hex(&record.bytes), format!("{}010203040506", hex(&node().0)));
    let told = NodeInputs::decode(&mut Reader::new(&record.bytes));
    assert_eq!(told, Ok(NodeInputs { node: node(), counts }));
}

#[test]
fn worker_request_begins_with_the_seeds_fields() {
    let request = WorkerRequest { job_uuid: job().into(), program_length: U64::new(2), ..WorkerRequest::DEFAULT };
    let frame = request.seed_frame(node(), b"#!");
    assert_eq!(hex(&frame), format!("01{NODE}3900000000000000{JOB}020000000000000000000000000000002321"));
}

#[test]
fn file_messages_have_the_seeds_and_the_ranged_sizes() {
    let file = wire::FileId(job().0);
    let request = FileRequest { file_uuid: file.into(), ..FileRequest::DEFAULT };
    assert_eq!(hex(&request.seed_frame(node(), b"")), format!("03{NODE}2900000000000000{JOB}"));
    let outline = FileRequest {
        offset: U64::new(32),
        length: U64::new(64),
        request: U64::new(7),
        part: U32::new(wire::PART_OUTLINE),
        ..request
    };
    let fields = "20000000000000004000000000000000070000000000000001000000";
    assert_eq!(hex(&outline.frame(node(), b"")), format!("03{NODE}4500000000000000{JOB}{fields}"));
    let response = FileResponse { file_uuid: file.into(), file_length: U64::new(5), ..FileResponse::DEFAULT };
    assert_eq!(hex(&response.seed_frame(node(), b"")), format!("04{NODE}3100000000000000{JOB}0500000000000000"));
    assert_eq!(response.frame(node(), b"").len(), 73);
}

#[test]
fn a_peer_that_knows_only_the_seed_gets_the_documented_defaults() {
    let frame = WorkerRequest { job_uuid: job().into(), ..WorkerRequest::DEFAULT }.seed_frame(node(), b"body");
    let Ok(Message::WorkerRequest(request, body)) = Message::decode(&frame) else { panic!("not a worker_request") };
    assert_eq!((request.first.get(), request.count.get(), request.chunk_count.get()), (0, 1, 1));
    assert_eq!((request.attempt.get(), request.epoch.get(), body), (1, 0, &b"body"[..]));
    assert_eq!(request.header.node_uuid.node(), node());
}

#[test]
fn a_field_that_is_only_half_there_has_its_default() {
    let request = WorkerRequest { first: U32::new(7), count: U32::new(9), ..WorkerRequest::DEFAULT };
    let mut frame = request.frame(node(), b"");
    // `first` ends at 61, `count` at 65: cut in the middle of `count`.
    frame.truncate(63);
    frame[17..25].copy_from_slice(&63u64.to_le_bytes());
    let Ok(Message::WorkerRequest(request, _)) = Message::decode(&frame) else { panic!("not a worker_request") };
    assert_eq!((request.first.get(), request.count.get()), (7, 1));
}

#[test]
fn fields_of_a_newer_peer_are_skipped() {
    let mut frame = FileRequest { offset: U64::new(3), ..FileRequest::DEFAULT }.frame(node(), b"");
    frame.extend_from_slice(b"newer fields, then ");
    let header_length = frame.len() as u64;
    frame[17..25].copy_from_slice(&header_length.to_le_bytes());
    frame.extend_from_slice(b"body");
    let Ok(Message::FileRequest(request, body)) = Message::decode(&frame) else { panic!("not a file_request") };
    assert_eq!((request.offset.get(), body), (3, &b"body"[..]));
}

#[test]
fn lengths_that_lie_are_refused() {
    assert_eq!(Message::decode(b"").unwrap_err(), DecodeError::Short { length: 0 });
    assert_eq!(Message::decode(&[2; 24]).unwrap_err(), DecodeError::Short { length: 24 });
    let mut frame = FileRequest::DEFAULT.seed_frame(node(), b"");
    frame[17..25].copy_from_slice(&40u64.to_le_bytes());
    assert_eq!(
        Message::decode(&frame).unwrap_err(),
        DecodeError::HeaderShort { kind: Kind::FileRequest, header_length: 40, min: 41 }
    );
    for length in [42, u64::MAX] {
        frame[17..25].copy_from_slice(&length.to_le_bytes());
        let error = DecodeError::HeaderBeyondFrame { kind: Kind::FileRequest, header_length: length, length: 41 };
        assert_eq!(Message::decode(&frame).unwrap_err(), error);
    }
}

#[test]
fn unknown_numbers_are_errors_and_not_crashes() {
    for number in (0..=255u8).filter(|number| Kind::from_number(*number).is_none()) {
        let mut frame = vec![0; 100];
        frame[0] = number;
        assert_eq!(Message::decode(&frame).unwrap_err(), DecodeError::UnknownType { number });
    }
    assert!(Kind::from_number(0).is_none());
}

#[test]
fn an_error_names_its_code_and_detail() {
    let frame = error_frame(node(), ErrorCode::UnknownJob, Some(Kind::WorkerRequest), 9, job(), "no job 5");
    let Ok(Message::Error(error, detail)) = Message::decode(&frame) else { panic!("not an error") };
    assert_eq!(ErrorCode::from_number(error.code.get()), Some(ErrorCode::UnknownJob));
    assert_eq!((error.regarding, error.request.get(), error.job_uuid.job(), detail), (1, 9, job(), &b"no job 5"[..]));
}

#[test]
fn hexadecimal_is_read_as_it_is_printed() {
    assert_eq!(parse_hex("00ff10").unwrap(), [0, 255, 16]);
    assert_eq!(parse_hex("0"), None);
    assert_eq!(parse_hex("zz"), None);
}
