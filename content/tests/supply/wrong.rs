//! What holders send wrong: what is wrong is asked of somebody else, nothing else suffers, and nobody waits for what all have
//! wrong.

use content::{BlockState, Fetching, Need, Outcome};
use wire::{Duration, ErrorCode};

use crate::desk::{A, B, BLOCK, a_desk};

const S: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_wrong_block_is_asked_of_another_holder() {
    let mut desk = a_desk().blocks(40).holders(&[A, B]).ready();
    assert_eq!(desk.reads(1, 1, 1), ["A: block 1"]);
    assert_eq!(desk.sends(A, 1), ["fill 1"]);
    assert_eq!(desk.done("fill 1", Outcome::Wrong), ["distrust A", "B: block 1"]);
    assert_eq!(desk.reads(2, 20, 1), ["B: block 20"], "all of it, as long as there is somebody else");
    assert_eq!(desk.sends(B, 1), ["fill 1"]);
    assert_eq!(desk.done("fill 1", Outcome::Right), ["answer 1"]);
    assert_eq!(desk.holders(&[A]), ["A: block 20"], "one wrong block does not make all wrong");
}

#[test]
fn a_block_that_is_wrong_at_every_holder_fails_at_once_and_says_where() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    assert_eq!(desk.reads(1, 1, 1), ["A: block 1"]);
    desk.reads(2, 1, 1);
    desk.sends(A, 1);
    desk.done("fill 1", Outcome::Wrong);
    desk.sends(B, 1);
    assert_eq!(
        desk.done("fill 1", Outcome::Wrong),
        ["distrust B", "fail 1: Wrong from A and B", "fail 2: Wrong from A and B"]
    );
    assert_eq!(desk.reads(3, 1, 1), ["fail 3: Wrong from A and B"], "nobody is asked for it again and again");
}

#[test]
fn a_block_that_is_wrong_here_and_absent_there_fails_at_once() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    desk.reads(1, 1, 1);
    desk.sends(A, 1);
    assert_eq!(desk.done("fill 1", Outcome::Wrong), ["distrust A", "B: block 1"]);
    assert_eq!(desk.refuses(B, 1, ErrorCode::FileUnknown), ["fail 1: Wrong from A"]);
}

#[test]
fn a_block_that_is_wrong_here_is_waited_for_while_another_holder_is_away() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    desk.asks(1, Need::Whole, S(600));
    for block in 0..4 {
        desk.sends(A, block);
        let is_wrong = block == 2;
        desk.done(&format!("fill {block}"), if is_wrong { Outcome::Wrong } else { Outcome::Right });
    }
    assert_eq!(desk.passes(S(2)), ["B: block 2"], "it is silent, and asked again");
    assert_eq!(desk.passes(S(2)), ["A: block 2"], "some time has passed");
    desk.sends(A, 2);
    assert_eq!(desk.done("fill 2", Outcome::Wrong), ["distrust A", "B: block 2"]);
    desk.sends(B, 2);
    assert_eq!(desk.done("fill 2", Outcome::Right), ["seal"]);
    assert_eq!(desk.done("seal", Outcome::Right), ["answer 1", "close"]);
}

#[test]
fn a_wrong_block_that_comes_late_is_in_line_once() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    desk.reads(1, 1, 1);
    assert_eq!(desk.refuses(A, 1, ErrorCode::Busy), ["B: block 1"]);
    assert_eq!(desk.refuses(B, 1, ErrorCode::Busy), [] as [&str; 0]);
    assert_eq!(desk.sends(A, 1), ["fill 1"], "it had been asked before");
    assert_eq!(desk.done("fill 1", Outcome::Wrong), ["distrust A"]);
    assert_eq!(desk.passes(Duration::from_millis(50)), ["B: block 1"]);
}

#[test]
fn one_wrong_block_of_ten_is_all_that_is_missed() {
    let mut desk = a_desk().blocks(10).ready();
    desk.asks(1, Need::Whole, S(600));
    for block in 0..10 {
        desk.sends(A, block);
        if block == 5 {
            assert_eq!(desk.done("fill 5", Outcome::Wrong), ["distrust A", "fail 1: Wrong from A"]);
        } else {
            assert_eq!(desk.done(&format!("fill {block}"), Outcome::Right), [] as [&str; 0]);
        }
    }
    assert_eq!(desk.reads(2, 0, 5), ["answer 2"]);
    assert_eq!(desk.reads(3, 6, 4), ["answer 3"]);
    assert_eq!(desk.reads(4, 4, 3), ["fail 4: Wrong from A"]);
    desk.passes(S(3));
    assert_eq!(desk.reads(5, 5, 1), ["A: block 5"], "it may have been put right");
    desk.sends(A, 5);
    assert_eq!(desk.done("fill 5", Outcome::Right), ["answer 5", "seal"]);
}

#[test]
fn one_rotten_file_holds_up_no_other() {
    let mut desk = a_desk().length(5).build();
    desk.asks(0, Need::Whole, S(600));
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    desk.sends(A, 0);
    assert_eq!(desk.done("fill 0", Outcome::Wrong), ["distrust A", "fail 0: Wrong from A"]);
    for number in 1..=100 {
        desk.turns_to(number, 5);
        assert_eq!(desk.asks(number, Need::Whole, S(600)), ["open"]);
        assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
        desk.sends(A, 0);
        assert_eq!(desk.done("fill 0", Outcome::Right), ["seal"]);
        assert_eq!(desk.done("seal", Outcome::Right), [format!("answer {number}"), "close".into()]);
    }
}

#[test]
fn a_rotten_file_does_not_stand_in_the_line_of_others() {
    let mut desk = a_desk().length(5).flying(1).build();
    desk.wants(Fetching::Whole);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    desk.sends(A, 0);
    // Nobody waits for it, and it is not asked for again and again.
    assert_eq!(desk.done("fill 0", Outcome::Wrong), ["distrust A"]);
    assert_eq!(desk.passes(S(60)), [] as [&str; 0]);
    desk.turns_to(1, 6);
    desk.wants(Fetching::Whole);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
}

#[test]
fn a_job_that_begins_has_what_was_wrong_tried_again_at_once() {
    let mut desk = a_desk().blocks(40).ready();
    desk.reads(1, 7, 1);
    desk.sends(A, 7);
    assert_eq!(desk.done("fill 7", Outcome::Wrong), ["distrust A", "fail 1: Wrong from A"]);
    assert_eq!(desk.reads(2, 7, 1), ["fail 2: Wrong from A"]);
    assert_eq!(desk.asks(3, Need::Length, S(600)), ["answer 3"], "which is what is asked before a large input is read");
    assert_eq!(desk.reads(4, 7, 1), ["A: block 7"]);
}

#[test]
fn who_wants_the_whole_has_it_tried_again_at_once() {
    let mut desk = a_desk().length(5).build();
    desk.asks(1, Need::Whole, S(600));
    desk.opened(&[BlockState::Absent], false);
    desk.sends(A, 0);
    assert_eq!(desk.done("fill 0", Outcome::Wrong), ["distrust A", "fail 1: Wrong from A"]);
    assert_eq!(desk.reads(2, 0, 1), ["fail 2: Wrong from A"]);
    assert_eq!(desk.asks(3, Need::Whole, S(600)), ["A: block 0"], "it may have been put right since");
    desk.sends(A, 0);
    assert_eq!(desk.done("fill 0", Outcome::Wrong), ["distrust A", "fail 3: Wrong from A"]);
    desk.asks(4, Need::Whole, S(600));
    desk.sends(A, 0);
    assert_eq!(desk.done("fill 0", Outcome::Right), ["seal"]);
    assert_eq!(desk.done("seal", Outcome::Right), ["answer 4", "close"]);
}

#[test]
fn a_holder_that_sends_wrong_things_of_many_files_is_asked_last_but_asked() {
    let mut desk = a_desk().length(5).holders(&[A, B]).build();
    for number in 1..=4 {
        desk.turns_to(number, 5);
        desk.reads(number, 0, 1);
        assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
        desk.sends(A, 0);
        let rests = if number == 4 { &["rest A"][..] } else { &[] };
        let done = desk.done("fill 0", Outcome::Wrong);
        assert_eq!(done, [&["distrust A"], rests, &["B: block 0"]].concat());
    }
    desk.turns_to(5, 5);
    desk.reads(5, 0, 1);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["B: block 0"]);
    desk.sends(B, 0);
    desk.done("fill 0", Outcome::Right);
    desk.holders(&[A]);
    desk.turns_to(6, 5);
    desk.reads(6, 0, 1);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"], "there is nobody else");
    desk.sends(A, 0);
    desk.done("fill 0", Outcome::Right);
    desk.holders(&[A, B]);
    desk.passes(S(15));
    desk.turns_to(7, 5);
    desk.reads(7, 0, 1);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
}

#[test]
fn a_file_whose_only_outline_is_wrong_fails_at_once_and_comes_when_it_is_put_right() {
    let mut desk = a_desk().blocks(4).build();
    desk.reads(1, 1, 1);
    assert_eq!(desk.opened(&[BlockState::Absent; 4], false), ["A: outline 0"]);
    desk.sends_outline(A, 0);
    assert_eq!(desk.done("outline", Outcome::Wrong), ["distrust A", "fail 1: Wrong from A"]);
    assert_eq!(desk.reads(2, 1, 1), ["fail 2: Wrong from A"]);
    desk.passes(S(3));
    assert_eq!(desk.reads(3, 1, 1), ["A: outline 0"]);
    desk.sends_outline(A, 0);
    assert_eq!(desk.done("outline", Outcome::Right), ["A: block 1"]);
}

#[test]
fn a_holder_without_outlines_is_no_reason_to_wait() {
    let mut desk = a_desk().blocks(4).build();
    desk.asks(1, Need::Whole, S(600));
    assert_eq!(desk.opened(&[BlockState::Absent; 4], false), ["A: outline 0"]);
    // It does not know the word, and sends what it knows.
    assert_eq!(desk.sends_instead_of_outline(A), ["distrust A", "fail 1: Wrong from A"]);
}

#[test]
fn a_file_whose_length_a_holder_told_keeps_it_while_blocks_in_its_middle_are_wrong() {
    let mut desk = a_desk().blocks(3).unknown_length().build();
    desk.asks(1, Need::Length, S(2));
    desk.tells_length(A, 3 * BLOCK - 1);
    desk.opened(&[BlockState::Absent; 3], false);
    desk.sends_outline(A, 0);
    assert_eq!(desk.done("outline", Outcome::Right), ["answer 1"]);
    desk.reads(2, 1, 1);
    desk.sends(A, 1);
    assert_eq!(desk.done("fill 1", Outcome::Wrong), ["distrust A", "fail 2: Wrong from A"]);
    assert_eq!(desk.reads(3, 0, 1), ["A: block 0"]);
    desk.reads(4, 2, 1);
    desk.sends(A, 2);
    assert_eq!(desk.done("fill 2", Outcome::Wrong), ["close", "fail 3: Wrong from A", "fail 4: Wrong from A"]);
}

#[test]
fn a_block_of_another_size_or_file_is_a_lie_too() {
    let mut desk = a_desk().blocks(4).holders(&[A, B]).ready();
    desk.reads(1, 1, 1);
    assert_eq!(desk.sends_bytes(A, 1, 7), ["distrust A", "B: block 1"]);
    let mut desk = a_desk().blocks(4).holders(&[A, B]).build();
    desk.reads(1, 1, 1);
    desk.opened(&[BlockState::Absent; 4], false);
    desk.sends_outline(A, 0);
    assert_eq!(desk.done("outline", Outcome::Wrong), ["distrust A", "B: outline 0"]);
}

#[test]
fn a_wrong_length_is_unlearned() {
    let mut desk = a_desk().blocks(2).unknown_length().holders(&[A, B]).build();
    assert_eq!(desk.asks(1, Need::Length, S(2)), ["A: length"]);
    assert_eq!(desk.tells_length(A, 5), ["open"]);
    assert_eq!(desk.opened(&[BlockState::Absent], false), ["A: block 0"]);
    assert_eq!(desk.sends(A, 0), ["fill 0"]);
    assert_eq!(desk.done("fill 0", Outcome::Wrong), ["distrust A", "close", "B: length"]);
}
