//! The supply, by itself: what it asks of whom, whom it answers, and that nobody waits for ever.

#[path = "supply/desk.rs"]
mod desk;
#[path = "supply/world.rs"]
mod world;
#[path = "supply/wrong.rs"]
mod wrong;

use content::{BlockState, Fetching, Need, Outcome, SupplySettings};
use desk::{A, B, a_desk};
use wire::{Duration, ErrorCode};

const S: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn the_outline_comes_first_and_then_the_block_that_is_read() {
    let mut desk = a_desk().blocks(3).build();
    assert_eq!(desk.reads(1, 2, 1), ["open"]);
    assert_eq!(desk.opened(&[BlockState::Absent; 3], false), ["A: outline 0"]);
    assert_eq!(desk.sends_outline(A, 0), ["append 0", "outline"]);
    assert_eq!(desk.done("outline", Outcome::Right), ["A: block 2"]);
    assert_eq!(desk.sends(A, 2), ["fill 2"]);
    assert_eq!(desk.done("fill 2", Outcome::Right), ["answer 1"]);
}

#[test]
fn a_file_of_one_block_needs_no_outline_and_is_sealed_when_it_has_come() {
    let mut desk = a_desk().length(5).build();
    assert_eq!(desk.reads(1, 0, 1), ["open"]);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    assert_eq!(desk.sends(A, 0), ["fill 0"]);
    assert_eq!(desk.done("fill 0", Outcome::Right), ["answer 1", "seal"]);
    assert_eq!(desk.asks(2, Need::Whole, S(9)), [] as [&str; 0]);
    assert_eq!(desk.done("seal", Outcome::Right), ["answer 2", "close"]);
}

#[test]
fn an_empty_file_is_believed_only_when_its_empty_block_is_right() {
    let mut desk = a_desk().length(0).unknown_length().build();
    assert_eq!(desk.asks(1, Need::Length, S(2)), ["A: length"]);
    assert_eq!(desk.tells_length(A, 0), ["open"]);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    assert_eq!(desk.sends(A, 0), ["fill 0"]);
    assert_eq!(desk.done("fill 0", Outcome::Right), ["answer 1", "seal"]);
}

#[test]
fn two_readers_of_a_block_join() {
    let mut desk = a_desk().blocks(4).ready();
    assert_eq!(desk.reads(1, 1, 1), ["A: block 1"]);
    assert_eq!(desk.reads(2, 1, 1), [] as [&str; 0]);
    assert_eq!(desk.sends(A, 1), ["fill 1"]);
    assert_eq!(desk.reads(3, 1, 1), [] as [&str; 0], "also while it is being checked");
    assert_eq!(desk.done("fill 1", Outcome::Right), ["answer 1", "answer 2", "answer 3"]);
    assert_eq!(desk.reads(4, 1, 1), ["answer 4"]);
}

#[test]
fn a_read_over_the_edge_of_blocks_is_answered_when_both_are_here() {
    let mut desk = a_desk().blocks(4).ready();
    assert_eq!(desk.reads(1, 1, 2), ["A: block 1", "A: block 2"]);
    assert_eq!(desk.sends(A, 2), ["fill 2"]);
    assert_eq!(desk.done("fill 2", Outcome::Right), [] as [&str; 0]);
    assert_eq!(desk.sends(A, 1), ["fill 1"]);
    assert_eq!(desk.done("fill 1", Outcome::Right), ["answer 1"]);
    assert_eq!(desk.reads(2, 9, 1), ["answer 2"], "nothing is missed beyond the end");
}

#[test]
fn a_sequential_reader_gets_a_window_that_doubles_and_a_jump_ends_it() {
    let mut desk = a_desk().blocks(100).flying(64).ready();
    assert_eq!(desk.reads_through(1, 0), ["A: block 0"]);
    assert_eq!(desk.reads_through(2, 1), ["A: block 1", "A: block 2", "A: block 3"]);
    assert_eq!(desk.touches(2), ["A: block 4", "A: block 5", "A: block 6"]);
    assert_eq!(desk.touches(3).len(), 5);
    desk.deliver_all(A);
    assert_eq!(desk.reads_through(3, 50), ["A: block 50"]);
    assert_eq!(desk.reads_through(4, 70), ["A: block 70"]);
    // The first reader is still known.
    assert_eq!(desk.touches(4).last().map(String::as_str), Some("A: block 20"));
    assert_eq!(desk.touches(5), ["A: block 21"], "sixteen ahead and no more");
}

#[test]
fn ten_reads_here_and_there_fetch_ten_blocks() {
    let mut desk = a_desk().blocks(1024).ready();
    for (ticket, block) in [900, 17, 503, 256, 100, 777, 3, 611, 340, 420].into_iter().enumerate() {
        assert_eq!(desk.reads_through(ticket as u64, block), [format!("A: block {block}")]);
    }
}

#[test]
fn who_waits_is_served_before_what_is_fetched_ahead_and_that_before_the_rest() {
    let mut desk = a_desk().blocks(30).flying(4).ready();
    assert_eq!(desk.wants(Fetching::Whole), ["A: block 0", "A: block 1", "A: block 2", "A: block 3"]);
    assert_eq!(desk.touches(10), [] as [&str; 0]);
    assert_eq!(desk.touches(11), [] as [&str; 0]);
    assert_eq!(desk.reads(1, 20, 1), ["A: block 20"], "there is always room for those who wait");
    assert_eq!(desk.sends(A, 0), ["fill 0"]);
    assert_eq!(desk.done("fill 0", Outcome::Right), [] as [&str; 0], "only those who wait have more than four");
    assert_eq!(desk.sends(A, 1), ["fill 1"]);
    assert_eq!(desk.done("fill 1", Outcome::Right), ["A: block 12"]);
    assert_eq!(desk.reads(2, 25, 1), ["A: block 25"]);
    for block in [2, 3] {
        desk.sends(A, block);
        desk.done(&format!("fill {block}"), Outcome::Right);
    }
    desk.sends(A, 12);
    assert_eq!(desk.done("fill 12", Outcome::Right), ["A: block 4"]);
}

#[test]
fn a_holder_that_falls_silent_is_passed_over() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    assert_eq!(desk.reads(1, 1, 1), ["A: block 1"]);
    assert_eq!(desk.next_deadline(), desk.now() + S(2));
    assert_eq!(desk.passes(S(2)), ["B: block 1"]);
    assert_eq!(desk.reads(2, 3, 1), ["B: block 3"]);
    // What comes late is as good, and what then comes a second time is nothing.
    assert_eq!(desk.sends(A, 1), ["fill 1"]);
    assert_eq!(desk.done("fill 1", Outcome::Right), ["answer 1"]);
    assert_eq!(desk.sends(B, 1), [] as [&str; 0]);
}

#[test]
fn a_line_that_moves_is_not_late_but_what_was_skipped_in_it_is() {
    let mut desk = a_desk().blocks(40).ready();
    assert_eq!(desk.reads(1, 0, 3), ["A: block 0", "A: block 1", "A: block 2"]);
    desk.passes(S(1));
    desk.sends(A, 1);
    assert_eq!(desk.passes(Duration::from_millis(1_900)), [] as [&str; 0]);
    desk.sends(A, 2);
    // Block 0 was overtaken 2 s ago although something came meanwhile.
    assert_eq!(desk.passes(Duration::from_millis(100)), ["A: block 0"]);
}

#[test]
fn after_a_deadline_reads_fail_at_once_until_a_block_comes() {
    let mut desk = a_desk().blocks(99).ready();
    assert_eq!(desk.reads(1, 1, 1), ["A: block 1"]);
    assert_eq!(desk.passes(S(2)), ["A: block 1"]);
    desk.passes(S(7));
    assert_eq!(desk.passes(S(1)), ["fail 1: Deadline"]);
    assert_eq!(desk.reads(2, 1, 1), ["fail 2: Deadline"]);
    assert_eq!(desk.reads(3, 40, 1), ["fail 3: Deadline", "A: block 40"], "it is tried, but nobody waits");
    assert_eq!(desk.sends(A, 40), ["fill 40"]);
    assert_eq!(desk.done("fill 40", Outcome::Right), [] as [&str; 0]);
    assert_eq!(desk.reads(4, 50, 1), ["A: block 50"], "a block has come");
    desk.passes(S(10));
    assert_eq!(desk.reads(5, 50, 1)[..1], ["fail 5: Deadline"]);
    desk.passes(S(5));
    assert_eq!(desk.reads(6, 60, 1), ["A: block 60"], "and after five seconds it is tried again");
}

#[test]
fn a_busy_holder_gets_a_pause_or_another_the_work() {
    let mut desk = a_desk().blocks(4).ready();
    desk.reads(1, 1, 1);
    assert_eq!(desk.refuses(A, 1, ErrorCode::Busy), [] as [&str; 0]);
    assert_eq!(desk.next_deadline(), desk.now() + Duration::from_millis(50));
    assert_eq!(desk.passes(Duration::from_millis(50)), ["A: block 1"]);
    desk.holders(&[A, B]);
    assert_eq!(desk.refuses(A, 1, ErrorCode::Busy), ["B: block 1"]);
}

#[test]
fn a_file_that_a_holder_has_not_ready_yet_holds_up_no_other() {
    let mut desk = a_desk().blocks(4).ready();
    desk.reads(1, 1, 1);
    assert_eq!(desk.refuses(A, 1, ErrorCode::NotReady), [] as [&str; 0], "it is waited for");
    assert_eq!(desk.next_deadline(), desk.now() + Duration::from_millis(50));
    desk.turns_to(1, 5);
    desk.reads(2, 0, 1);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    assert_eq!(desk.passes(Duration::from_millis(50)), ["A: block 1"]);
}

#[test]
fn a_holder_that_has_several_files_not_ready_gets_a_pause() {
    let mut desk = a_desk().build();
    for number in 1..=5 {
        desk.turns_to(number, 5);
        desk.reads(number, 0, 1);
        let asked = desk.opened(&[BlockState::Absent], false);
        if number == 5 {
            assert_eq!(asked, [] as [&str; 0]);
            break;
        }
        assert_eq!(asked, ["A: block 0"]);
        desk.refuses(A, 0, ErrorCode::NotReady);
    }
    assert_eq!(desk.passes(Duration::from_millis(50)).len(), 5);
}

#[test]
fn a_file_that_nobody_has_fails_at_once() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).build();
    desk.reads(1, 1, 1);
    assert_eq!(desk.opened(&[BlockState::Absent; 4], false), ["A: outline 0"]);
    assert_eq!(desk.refuses_outline(A, ErrorCode::FileUnknown), ["B: outline 0"]);
    assert_eq!(desk.refuses_outline(B, ErrorCode::FileUnknown), ["fail 1: FileUnknown"]);
    assert_eq!(desk.reads(2, 1, 1), ["fail 2: FileUnknown"]);
    desk.passes(S(3));
    assert_eq!(desk.reads(3, 1, 1), ["A: outline 0"], "it may have come since");
}

#[test]
fn what_is_only_claimed_is_looked_at_before_it_is_served() {
    let mut desk = a_desk().blocks(3).build();
    desk.reads(1, 1, 1);
    let claimed = [BlockState::Absent, BlockState::Claimed, BlockState::Claimed];
    assert_eq!(desk.opened(&claimed, true), ["check 1"]);
    assert_eq!(desk.done("check 1", Outcome::Right), ["answer 1"]);
    assert_eq!(desk.reads(2, 2, 1), ["check 2"]);
    assert_eq!(desk.done("check 2", Outcome::Wrong), ["A: block 2"], "no holder is to blame");
}

#[test]
fn a_file_that_is_all_claimed_is_looked_through_and_sealed() {
    let mut desk = a_desk().blocks(2).build();
    assert_eq!(desk.wants(Fetching::Lazily), ["open"]);
    assert_eq!(desk.opened(&[BlockState::Claimed; 2], true), ["check 0", "check 1"]);
    desk.done("check 1", Outcome::Right);
    assert_eq!(desk.done("check 0", Outcome::Right), ["seal"]);
    assert_eq!(desk.done("seal", Outcome::Right), ["close"]);
}

#[test]
fn what_fails_here_is_told_to_all_who_wait_and_no_holder_is_blamed() {
    let mut desk = a_desk().blocks(3).ready();
    desk.reads(1, 1, 1);
    desk.asks(2, Need::Whole, S(60));
    desk.sends(A, 1);
    assert_eq!(desk.done("fill 1", Outcome::Failed("no room on the disk".into())), ["fail 1: Local", "fail 2: Local"]);
    assert_eq!(desk.reads(3, 1, 1)[..1], ["fail 3: Local"]);
}

#[test]
fn forgetting_a_file_ends_what_was_under_way_for_it() {
    let mut desk = a_desk().blocks(3).ready();
    desk.reads(1, 1, 1);
    desk.sends(A, 1);
    desk.reads(2, 2, 1);
    assert_eq!(desk.forgets(), ["fail 1: Local", "fail 2: Local", "close"]);
    assert_eq!(desk.sends(A, 2), [] as [&str; 0]);
    assert_eq!(desk.reads(3, 1, 1), ["open"]);
    assert_eq!(desk.done("fill 1", Outcome::Right), [] as [&str; 0], "what comes back now belongs to nobody");
}

#[test]
fn a_file_that_somebody_was_at_is_looked_at_afresh_and_nobody_is_lost() {
    let mut desk = a_desk().blocks(2).ready();
    desk.reads(1, 0, 1);
    assert_eq!(desk.doubts(), ["close", "open"]);
    assert_eq!(desk.opened(&[BlockState::Claimed, BlockState::Absent], true), ["check 0"]);
    assert_eq!(desk.done("check 0", Outcome::Right), ["answer 1"]);
}

#[test]
fn tickets_have_a_limit() {
    let mut desk = a_desk().blocks(3).ready();
    let max = SupplySettings::default().tickets_max as u64;
    (0..max).for_each(|ticket| drop(desk.reads(ticket, 1, 1)));
    assert_eq!(desk.reads(max, 1, 1), ["fail 1024: Local"]);
}

#[test]
fn a_slow_holder_gets_less_to_do() {
    let mut desk = a_desk().blocks(100).ready();
    desk.wants(Fetching::Whole);
    for block in 0..60 {
        desk.sends(A, block);
        desk.done(&format!("fill {block}"), Outcome::Right);
    }
    assert_eq!(desk.flying(), 16);
    for block in 60..90 {
        desk.passes(Duration::from_millis(1_100));
        desk.sends(A, block);
        desk.done(&format!("fill {block}"), Outcome::Right);
    }
    assert!(desk.flying() <= 4, "{} in flight", desk.flying());
}

#[test]
fn a_hash_or_length_that_contradicts_what_is_known_is_refused() {
    let mut desk = a_desk().blocks(3).ready();
    let other = content::Wanted { length: Some(7), ..desk.wanted() };
    assert_eq!(desk.asks_for(1, other, Need::Length, S(2)), ["fail 1: Mismatch"]);
    let other = content::Wanted { hash: Some(content::hash_bytes(b"other")), ..desk.wanted() };
    assert_eq!(desk.asks_for(2, other, Need::Length, S(2)), ["fail 2: Mismatch"]);
}

#[test]
fn who_waits_has_room_where_other_files_are_only_fetched_for_later() {
    let mut desk = a_desk().files_max(1).blocks(3).ready();
    desk.wants(Fetching::Whole);
    let other = content::hash_bytes(b"other");
    let other = content::Wanted { file: wire::FileId::of(other), hash: Some(other), length: Some(5) };
    assert_eq!(desk.wants_file(other, Fetching::Whole), [] as [&str; 0], "that can wait");
    assert_eq!(desk.asks_for(1, other, Need::Length, S(2)), ["close", "open", "answer 1"]);
    assert_eq!(desk.asks(2, Need::Whole, S(2)), ["close", "open"]);
    assert_eq!(
        desk.asks_for(3, other, Need::Whole, S(2)),
        ["fail 3: Local"],
        "somebody waits for the one that is here"
    );
}
