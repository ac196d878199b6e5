//! How a storage node makes itself known to the masters, through `step`.

mod scenario;

use wire::{Duration, ErrorCode, FixedPart, JobId, LeaderHeartbeat, NodeId, NodeWelcome, PeerId, U32};

use scenario::*;

const MASTER: NodeId = NodeId([8; 16]);

fn with_two_masters() -> Scenario {
    a_storage_node(limits(), vec![(M1, "tcp://m1:1".into()), (M2, "tcp://m2:1".into())])
}

fn welcome(node: &mut Scenario, from: PeerId) -> Vec<String> {
    words(node.receives(from, &NodeWelcome::DEFAULT.frame(MASTER, &[]), None))
}

fn leader_heartbeat(node: &mut Scenario, from: PeerId, flags: u32) -> Vec<String> {
    let fixed = LeaderHeartbeat { flags: U32::new(flags), ..LeaderHeartbeat::DEFAULT };
    words(node.receives(from, &fixed.frame(MASTER, &[]), None))
}

fn not_leader(node: &mut Scenario, from: PeerId, leader: &str) -> Vec<String> {
    let frame = wire::error_frame(MASTER, ErrorCode::NotLeader, None, 0, JobId::NIL, leader);
    words(node.receives(from, &frame, None))
}

#[test]
fn hello_is_said_to_the_masters_in_turn_until_one_welcomes() {
    let mut node = with_two_masters();
    assert_eq!(words(node.passes(Duration::ZERO)), ["to 101: hello 1 boot 7"]);
    assert_eq!(words(node.passes(Duration::from_secs(1))), ["to 102: hello 2 boot 7"]);
    assert!(!node.storage.is_registered());
    assert_eq!(welcome(&mut node, M2), ["to 102: status 0 boot 7"]);
    assert!(node.storage.is_registered());
    for _ in 0..2 {
        assert_eq!(words(node.passes(Duration::from_secs(1))), ["to 102: status 0 boot 7"]);
    }
}

#[test]
fn a_follower_names_the_leader_and_is_followed() {
    let mut node = with_two_masters();
    node.passes(Duration::ZERO);
    assert_eq!(not_leader(&mut node, M1, "tcp://m1:1"), [""; 0]);
    assert_eq!(words(node.passes(Duration::from_millis(100))), ["to 101: hello 2 boot 7"]);
    assert_eq!(not_leader(&mut node, M1, "tcp://m2:1"), [""; 0]);
    assert_eq!(words(node.passes(Duration::from_millis(100))), ["to 102: hello 3 boot 7"]);
}

#[test]
fn a_leader_that_falls_silent_or_steps_down_is_looked_for_again() {
    let mut node = with_two_masters();
    node.passes(Duration::ZERO);
    welcome(&mut node, M1);
    for _ in 0..5 {
        node.passes(Duration::from_secs(1));
        leader_heartbeat(&mut node, M1, wire::HEARTBEAT_LEADER);
    }
    assert!(node.storage.is_registered());
    for _ in 0..2 {
        node.passes(Duration::from_secs(1));
    }
    assert!(node.storage.is_registered());
    node.passes(Duration::from_secs(1));
    assert!(!node.storage.is_registered());
    assert_eq!(words(node.passes(Duration::from_millis(100))), ["to 102: hello 2 boot 7"]);
    welcome(&mut node, M2);
    leader_heartbeat(&mut node, M2, 0);
    assert!(!node.storage.is_registered());
    assert_eq!(words(node.until_deadline()), ["to 101: hello 3 boot 7"]);
}

#[test]
fn a_master_that_does_not_know_us_hears_hello_again() {
    let mut node = with_two_masters();
    node.passes(Duration::ZERO);
    welcome(&mut node, M1);
    let frame = wire::error_frame(MASTER, ErrorCode::UnknownNode, None, 0, JobId::NIL, "who?");
    assert_eq!(words(node.receives(M1, &frame, None)), [""; 0]);
    assert!(!node.storage.is_registered());
    assert_eq!(words(node.passes(Duration::from_secs(1))), ["to 102: hello 2 boot 7"]);
}

#[test]
fn without_masters_a_node_serves_by_itself() {
    let mut node = a_storage_node(limits(), vec![]);
    assert_eq!(words(node.passes(Duration::from_secs(10))), [""; 0]);
}
