//! A load balancer written in another language from the seed's text alone has a program run on a real worker.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use node::Certificate;
use wire::{NodeId, Role};

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the peer with the system's Python, which has pyzmq (`cargo xtask setup`).
fn start_peer(dir: &Path, program: &str) -> (Running, Lines<BufReader<ChildStdout>>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seed_load_balancer.py");
    let mut command = Command::new("/usr/bin/python3");
    let mut child =
        command.arg(script).arg(dir).arg(program).stdout(Stdio::piped()).spawn().expect("there is a python3");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    (Running(child), lines)
}

/// Points a worker with nothing else, no master and no storage, at the peer.
fn start_worker(dir: &Path, endpoint: &str, key: &str) -> Running {
    let node = NodeId::random();
    let own = Certificate::new().with("role", Role::Worker).with("node", node);
    own.save_secret(dir.join("worker.key_secret")).expect("saved");
    let settings = format!(
        "dir = 'data'\nname = 'w'\nnode = '{node}'\ncertificate = 'worker.key_secret'\nslots = 1\n\
         loadbalancers = [{{ endpoint = '{endpoint}', key = '{key}' }}]\n"
    );
    std::fs::write(dir.join("worker.toml"), settings).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_zg-worker"));
    let child = command.arg(dir.join("worker.toml")).env("ZG_LOG", "warn").stdout(Stdio::null()).spawn();
    Running(child.expect("it starts"))
}

/// Runs `program` through the peer; returns the states that it was told, each with the first 42 bytes in hexadecimal.
fn states_of(program: &str) -> Vec<(u8, String)> {
    let dir = tempfile::tempdir().expect("a directory");
    let (_peer, mut lines) = start_peer(dir.path(), program);
    let bound = lines.next().expect("it says where it is").expect("it is text");
    let [_, endpoint, key] = bound.split(' ').collect::<Vec<_>>().try_into().expect("three words");
    let _worker = start_worker(dir.path(), endpoint, key);
    let mut states = Vec::new();
    for line in lines.map(|line| line.expect("it is text")) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["hello", bytes] => assert!(bytes.starts_with("02"), "{line}"),
            ["status", state, bytes] => states.push((state.parse().expect("a number"), bytes.to_owned())),
            _ => panic!("the peer says: {line}"),
        }
    }
    states
}

#[test]
fn a_bare_worker_request_runs_and_is_answered_by_the_seeds_statuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("mark");
    let states =
        states_of(&format!("#!/bin/sh\necho \"$ZG_CHUNK $ZG_CHUNK_COUNT $ZG_ATTEMPT\" > {}\n", mark.display()));
    let numbers: Vec<u8> = states.iter().map(|(state, _)| *state).collect();
    assert_eq!(numbers, [1, 3, 5], "accepted, running, succeeded");
    for (state, bytes) in &states {
        assert_eq!(bytes.len(), 2 * 42);
        assert!(bytes.starts_with("02") && bytes.ends_with(&format!("{state:02x}")), "{bytes}");
    }
    assert_eq!(std::fs::read_to_string(mark).expect("the program wrote it"), "0 1 1\n");
}

#[test]
fn a_program_that_fails_is_told_as_failed() {
    let states = states_of("#!/bin/sh\nexit 3\n");
    assert_eq!(states.last().expect("some state").0, 6);
}
