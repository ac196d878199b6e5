//! Decoding a message allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use wire::{KINDS, Message};

/// Counts this thread's allocations; the test harness allocates on others.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counter itself does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
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

#[test]
fn decoding_any_message_allocates_nothing() {
    for row in KINDS {
        for size in [row.size_min, row.size, row.size + 10] {
            let mut frame = vec![0u8; size + 50];
            frame[0] = row.kind as u8;
            frame[17..25].copy_from_slice(&(size as u64).to_le_bytes());
            let before = ALLOCATIONS.with(Cell::get);
            let message = Message::decode(&frame).expect("the lengths are right");
            assert_eq!(message.kind(), row.kind);
            assert_eq!(ALLOCATIONS.with(Cell::get), before, "{}", row.name);
        }
    }
}
