//! Whom a worker talks to, and what it may say before the leader has told where the log stands.

mod support;

use support::{LB1, LB2, MASTER, MASTER2, a_node, a_worker, job};
use wire::{Duration, ErrorCode, FixedPart, JobId, Kind, LeaderHeartbeat, PeerId, Role, U32, U64};
use worker::core::{Event, RunEnd};

const MS: Duration = Duration::from_millis(1);

#[test]
fn the_first_words_are_a_hello_and_a_status() {
    let mut worker = a_worker().not_welcome_yet().with_one_load_balancer().build();
    let again = |endpoint: &'static str, peer, role| Event::Connected { peer, role, endpoint };
    assert_eq!(worker.step(again("lb1", LB1, Role::LoadBalancer)), ["lb1: idle credit 6"]);
    assert_eq!(worker.step(again("master", MASTER, Role::Master)), ["master: hello 1"]);
    assert_eq!(worker.step(again("lb9", PeerId(9), Role::LoadBalancer)), ["disconnect peer 9"], "nobody asked for it");
}

#[test]
fn a_hello_is_repeated_ever_less_often_until_it_is_welcome() {
    let mut worker = a_worker().not_welcome_yet().build();
    let hellos = |worker: &mut support::Bench, ms: u32| {
        let mut said = worker.wait(ms * MS);
        said.retain(|word| word.contains("hello"));
        said
    };
    let both = ["master: hello 1", "master2: hello 1"];
    assert_eq!(hellos(&mut worker, 1_000), both);
    assert_eq!(hellos(&mut worker, 1_999), [""; 0]);
    assert_eq!(hellos(&mut worker, 1), both);
    assert_eq!(hellos(&mut worker, 4_000), both);
    assert_eq!(hellos(&mut worker, 5_000), both);
    assert_eq!(worker.welcome_to(9, 4, &[]), [""; 0], "an answer to something else");
    worker.welcome(4, &[]);
    assert_eq!(hellos(&mut worker, 20_000), [""; 0]);
}

#[test]
fn new_boot_waits_for_leader_index() {
    let mut worker = a_worker().not_welcome_yet().build();
    // A primary asks at once; the epoch counts, but nothing is said before the log's index is known.
    assert_eq!(worker.ask_inventory(LB1, 3), [""; 0]);
    assert_eq!(worker.worker.epoch(), 3);
    assert_eq!(
        worker.welcome(17, &[]),
        [
            "0 storage nodes",
            "lb1: inventory epoch 3 seen 0 confirmed 17 credit 6",
            "lb2: inventory epoch 3 seen 0 confirmed 17 credit 6",
        ]
    );
    // A later welcome of the same boot settles nothing.
    worker.step(Event::Connected { peer: MASTER, role: Role::Master, endpoint: "master" });
    assert_eq!(worker.welcome_to(2, 30, &[]), ["0 storage nodes"]);
    assert_eq!(worker.ask_inventory(LB1, 3), ["lb1: inventory epoch 3 seen 0 confirmed 17 credit 6"]);
}

#[test]
fn a_worker_that_the_leader_does_not_know_registers_again() {
    let mut worker = a_worker().build();
    worker.tick();
    let unknown = wire::error_frame(support::ME, ErrorCode::UnknownNode, Some(Kind::WorkerStatus), 0, JobId::NIL, "");
    assert_eq!(worker.receives(MASTER, unknown), [""; 0]);
    assert_eq!(worker.tick(), ["master: hello 2"]);
}

#[test]
fn a_hello_on_a_new_connection_is_repeated_until_it_is_answered() {
    let mut worker = a_worker().build();
    let hellos = |said: Vec<String>| said.into_iter().filter(|word| word.contains("hello")).collect::<Vec<_>>();
    worker.welcome_to(1, 5, &[]);
    let back = Event::Connected { peer: MASTER, role: Role::Master, endpoint: "master" };
    assert_eq!(worker.step(back), ["master: hello 2"]);
    assert_eq!(hellos(worker.wait(1_000 * MS)), ["master: hello 2"]);
    worker.welcome_to(2, 5, &[]);
    assert_eq!(hellos(worker.wait(20_000 * MS)), [""; 0]);
}

#[test]
fn without_masters_nothing_is_waited_for() {
    let mut worker = a_worker().without_masters().build();
    assert_eq!(worker.ask_inventory(LB1, 3), ["lb1: inventory epoch 3 seen 0 confirmed 0 credit 6"]);
}

#[test]
fn heartbeats_go_to_the_leader_and_both_load_balancers_with_what_runs() {
    let mut worker = a_worker().build();
    worker.assign(1, job(1), 0, 3);
    let heartbeat = |to: &str, age: u32| format!("{to}: idle credit 3, r 0+2 for {age} {age} ms");
    assert_eq!(worker.wait(1_000 * MS), ["master", "lb1", "lb2"].map(|to| heartbeat(to, 1_000)));
    worker.leads(MASTER2, 2);
    assert_eq!(worker.wait(1_000 * MS), ["master2", "lb1", "lb2"].map(|to| heartbeat(to, 2_000)));
    // It falls silent: whoever leads now will say so.
    let later = worker.wait(4_000 * MS);
    assert_eq!(later[later.len() - 4..], ["master", "master2", "lb1", "lb2"].map(|to| heartbeat(to, 6_000)));
}

#[test]
fn a_leader_that_leads_no_more_is_left() {
    let mut worker = a_worker().build();
    let follower = LeaderHeartbeat { term: U64::new(3), ..LeaderHeartbeat::DEFAULT };
    worker.receives(MASTER, follower.frame(support::ME, &[]));
    let said = worker.wait(1_000 * MS);
    assert_eq!(said[..2], ["master: idle credit 6", "master2: idle credit 6"]);
}

#[test]
fn the_masters_list_of_load_balancers_is_followed() {
    let mut worker = a_worker().not_welcome_yet().with_one_load_balancer().build();
    let nodes = [a_node(Role::LoadBalancer, "lb1"), a_node(Role::LoadBalancer, "third"), a_node(Role::Storage, "s")];
    let done = worker.welcome(4, &nodes);
    assert_eq!(
        done,
        ["connect loadbalancer third", "1 storage nodes", "lb1: inventory epoch 0 seen 0 confirmed 4 credit 6"]
    );
    let third = Event::Connected { peer: LB2, role: Role::LoadBalancer, endpoint: "third" };
    assert_eq!(worker.step(third), ["lb2: idle credit 6", "lb2: inventory epoch 0 seen 0 confirmed 4 credit 6"]);
    // The list has changed: it is asked for again, and what it does not name is left, except what the settings name.
    let changed = LeaderHeartbeat {
        term: U64::new(1),
        flags: U32::new(wire::HEARTBEAT_LEADER),
        nodes_version: U64::new(2),
        ..LeaderHeartbeat::DEFAULT
    };
    worker.receives(MASTER, changed.frame(support::ME, &[]));
    assert_eq!(worker.tick(), ["master: hello 2"]);
    assert_eq!(worker.welcome_to(2, 5, &[]), ["disconnect lb2", "0 storage nodes"]);
    assert!(worker.assign_as(LB2, 9, 1, job(1), 0, 1, 1)[0].contains("not_allowed"));
    assert_eq!(worker.assign_as(LB1, 9, 1, job(1), 0, 1, 1).len(), 3);
}

#[test]
fn a_connection_that_never_stood_ends_when_its_load_balancer_moves() {
    let mut worker = a_worker().not_welcome_yet().with_one_load_balancer().build();
    worker.welcome(4, &[a_node(Role::LoadBalancer, "third")]);
    worker.step(Event::Connecting { peer: LB2, role: Role::LoadBalancer, endpoint: "third" });
    worker.step(Event::Connected { peer: MASTER, role: Role::Master, endpoint: "master" });
    let done = worker.welcome_to(2, 5, &[a_node(Role::LoadBalancer, "elsewhere")]);
    assert_eq!(done[..2], ["disconnect lb2", "connect loadbalancer elsewhere"]);
    // The same when the list was faster than the connection's number.
    let late = Event::Connecting { peer: PeerId(9), role: Role::LoadBalancer, endpoint: "third" };
    assert_eq!(worker.step(late), ["disconnect peer 9"]);
}

#[test]
fn a_load_balancer_that_comes_back_gets_an_inventory() {
    let mut worker = a_worker().with_one_load_balancer().build();
    worker.assign(1, job(1), 0, 3);
    worker.ends(job(1), 0, RunEnd::Code(0));
    let back = Event::Connected { peer: LB1, role: Role::LoadBalancer, endpoint: "lb1" };
    assert_eq!(
        worker.step(back),
        ["lb1: idle credit 4", "lb1: inventory epoch 1 seen 1 confirmed 5 credit 4, r 2+1 r 1+1 well 0+1"]
    );
}

#[test]
fn a_welcome_that_is_cut_is_not_taken() {
    let mut worker = a_worker().not_welcome_yet().build();
    let welcome = wire::NodeWelcome { request: U64::new(1), ..wire::NodeWelcome::DEFAULT };
    assert_eq!(worker.receives(MASTER, welcome.frame(support::ME, &[1; 7])), [""; 0]);
    assert_eq!(worker.ask_inventory(LB1, 1), [""; 0]);
}
