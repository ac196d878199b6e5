//! How long does it take to parse and to build a message, and how often does it allocate?
//!
//! Baseline: copying the same frame, the least that a parser which does not work in place would do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use bench::Pair;
use criterion::{BatchSize, Criterion};
use wire::{FileRequest, FixedPart, JobId, KINDS, Kind, Message, NodeId, U64, WorkerRequest, WorkerStatus};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Messages per round of a pair.
const MESSAGES: u32 = 200_000;

/// A frame of this kind at its full size, with a body of 64 bytes.
fn a_frame(kind: Kind) -> Vec<u8> {
    let row = KINDS.iter().find(|row| row.kind == kind).expect("every kind has a row");
    let mut frame = vec![0; row.size + 64];
    frame[0] = kind as u8;
    frame[17..25].copy_from_slice(&(row.size as u64).to_le_bytes());
    frame
}

fn allocations(work: impl Fn()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

fn parse(frame: &[u8]) {
    black_box(Message::decode(black_box(frame)).expect("the frame is whole"));
}

fn build_worker_request() -> Vec<u8> {
    let job = JobId([1; 16]);
    WorkerRequest { job_uuid: job.into(), program_length: U64::new(0), ..WorkerRequest::DEFAULT }
        .frame(NodeId([2; 16]), &[0; 64])
}

fn build_worker_status() -> Vec<u8> {
    WorkerStatus { job_uuid: JobId([1; 16]).into(), state: 3, ..WorkerStatus::DEFAULT }.frame(NodeId([2; 16]), &[])
}

fn build_file_request() -> Vec<u8> {
    FileRequest { offset: U64::new(7), ..FileRequest::DEFAULT }.frame(NodeId([2; 16]), &[])
}

fn table() {
    println!("| message | parse ns | allocations | copy of the frame ns | speed, copy = 1 |");
    println!("|---|---|---|---|---|");
    for row in KINDS {
        let frame = a_frame(row.kind);
        let pair = Pair::measure(
            || (0..MESSAGES).for_each(|_| drop(black_box(black_box(&frame).clone()))),
            || (0..MESSAGES).for_each(|_| parse(&frame)),
        );
        let ns = |total: std::time::Duration| total.as_nanos() as f64 / f64::from(MESSAGES);
        let count = allocations(|| parse(&frame));
        println!(
            "| {} | {:.1} | {count} | {:.1} | {:.1} |",
            row.name,
            ns(pair.candidate),
            ns(pair.baseline),
            pair.speed_ratio()
        );
    }
    println!();
    for (name, build) in [
        ("worker_request", build_worker_request as fn() -> Vec<u8>),
        ("worker_status", build_worker_status),
        ("file_request", build_file_request),
    ] {
        println!("build {name}: {} allocation", allocations(|| drop(black_box(build()))));
    }
}

fn main() {
    table();
    let mut criterion = Criterion::default().configure_from_args();
    for row in KINDS {
        let frame = a_frame(row.kind);
        criterion.bench_function(&format!("parse/{}", row.name), |b| b.iter(|| parse(&frame)));
    }
    criterion.bench_function("build/worker_request", |b| b.iter(build_worker_request));
    criterion.bench_function("build/worker_status", |b| b.iter(build_worker_status));
    criterion.bench_function("build/file_request", |b| b.iter(build_file_request));
    let frame = a_frame(Kind::WorkerRequest);
    criterion.bench_function("copy/worker_request", |b| {
        b.iter_batched(|| (), |()| black_box(frame.clone()), BatchSize::SmallInput)
    });
    criterion.final_summary();
}
