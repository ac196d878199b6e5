//! Every error is clear: it names the value, exits nonzero, and leaves nothing half-done.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::dev::{Dev, run, zg};

#[test]
fn without_a_cluster_zg_says_how_to_start_one() {
    let said = run(&mut zg(&["job", "list"]));
    said.expect_error(1, &["no cluster", "zg dev --phase 1 --workers 2", "ZG_CLUSTER"]);
    let said = run(&mut zg(&["--cluster", "/nowhere", "status"]));
    said.expect_error(1, &["/nowhere", "does not exist"]);
    let said = run(&mut zg(&["--json", "status"]));
    let error: Value = serde_json::from_str(&said.stderr).expect("an error is JSON too");
    assert_eq!(error["error"]["code"], "cluster_unknown");
    assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
}

#[test]
fn wrong_words_are_refused_before_anything_is_asked() {
    let refused = |arguments: &[&str], words: &[&str]| run(&mut zg(arguments)).expect_error(2, words);
    refused(&["submit", "--nonsense", "--", "true"], &["--nonsense"]);
    refused(&["submit", "--array", "0-1099511627775", "--", "true"], &["1099511627776 chunks", "4294967295"]);
    refused(&["submit", "--array", "5-1", "--", "true"], &["'5-1' is empty"]);
    refused(&["submit", "--array", "", "--", "true"], &["--array"]);
    refused(&["submit", "--mem", "4GB", "--", "true"], &["'4GB'"]);
    refused(&["submit", "--array", "-5-1", "--", "true"], &["'-5-1' is not an array"]);
    refused(&["submit", "--time-limit", "0s", "--", "true"], &["'0s'", "needs some time"]);
    refused(&["chunk", "list", "all"], &["'all'", "36.1"]);
    refused(&["submit"], &["COMMAND"]);
    refused(&["dev", "--phase", "2"], &["phase 2", "zg dev --phase 1"]);
    refused(&["job", "wait", "no such"], &["'no such'"]);
}

#[test]
fn what_cannot_be_submitted_leaves_no_job() {
    let dev = Dev::start(1);
    let refused = |code, arguments: &[&str], words: &[&str]| dev.zg(arguments).expect_error(code, words);
    refused(3, &["submit", "--input", "missing file.txt", "--", "true"], &["missing file.txt"]);
    refused(3, &["submit", "--stdin", "/no/such/input", "--", "true"], &["/no/such/input"]);
    let unknown = "ffffffff-ffff-8fff-bfff-ffffffffffff";
    refused(3, &["submit", "--input", unknown, "--", "true"], &[unknown, "zg file ls"]);
    refused(2, &["submit", "--", "echo", "%{CHNUK}"], &["%{CHNUK}", "%{CHUNK}"]);
    refused(2, &["submit", "--cpus", "4000", "--", "true"], &["4000 cpus", "worker1"]);
    refused(2, &["submit", "--cpus", "4000", "--input", "dev.log", "--", "true"], &["4000 cpus", "worker1"]);
    refused(2, &["submit", "--output", "[", "--", "true"], &["--output '['", "not closed"]);
    refused(2, &["submit", "--env", "", "--", "true"], &["--env ''", "NAME=VALUE"]);
    refused(2, &["submit", "--input", "dev.log:../x", "--", "true"], &["../x"]);

    let large = dev.folder().join("arguments");
    File::create(&large).and_then(|file| file.set_len(3 << 30)).expect("a sparse file");
    refused(2, &["submit", "--each-line", "arguments", "--", "echo"], &["3221225472 bytes", "the limit is"]);
    std::fs::write(&large, "").expect("written");
    refused(2, &["submit", "--each-line", "arguments", "--", "echo"], &["arguments", "no lines"]);
    let long = "x".repeat(100_000);
    let words: Vec<&str> = ["submit", "--", "echo"].into_iter().chain([long.as_str(); 12]).collect();
    refused(2, &words, &["1200017 bytes", "the limit is 1048576"]);

    assert_eq!(dev.json(&["job", "list", "--all"])["jobs"], json!([]));
    assert_eq!(dev.json(&["file", "ls"])["files"], json!([]));
    dev.stop();
}

#[test]
fn what_is_not_there_is_told_by_name() {
    let dev = Dev::start(1);
    let unknown = "ffffffff-ffff-8fff-bfff-ffffffffffff";
    dev.zg(&["job", "info", "77"]).expect_error(3, &["77", "zg job list --all"]);
    dev.zg(&["job", "wait", "last"]).expect_error(3, &["last"]);
    dev.zg(&["chunk", "list", "77"]).expect_error(3, &["77"]);
    dev.zg(&["file", "stat", unknown]).expect_error(3, &[unknown]);
    dev.zg(&["file", "cat", unknown]).expect_error(3, &[unknown]);
    let wanted = dev.folder().join("got");
    dev.zg(&["file", "get", unknown, &wanted.to_string_lossy()]).expect_error(3, &[unknown]);
    assert!(!wanted.exists(), "nothing half-done is left");
    dev.zg(&["file", "put", "no such file"]).expect_error(3, &["no such file", "ls -la"]);
    let said = dev.zg(&["--json", "job", "info", "77"]);
    let error: Value = serde_json::from_str(&said.stderr).expect("an error is JSON too");
    assert_eq!(error["error"]["code"], "unknown_job");
    dev.stop();
}

#[test]
fn a_program_that_cannot_start_ends_as_in_a_shell() {
    let dev = Dev::start(1);
    let said = dev.zg(&["run", "--", "no-such-program-anywhere", "x"]);
    said.expect_error(127, &["no-such-program-anywhere"]);
    dev.zg(&["run", "./no-such-program"]).expect_error(127, &["./no-such-program"]);
    let said = dev.zg(&["run", "--", "/etc/passwd"]);
    said.expect_error(126, &["/etc/passwd"]);
    let chunks = dev.chunks("1");
    assert_eq!((&chunks[0]["exit_code"], &chunks[0]["cause"]), (&json!(127), &json!("exit")));
    dev.stop();
}

#[test]
fn a_reader_that_goes_away_ends_a_list_quietly() {
    let dev = Dev::start(1);
    for _ in 0..3 {
        dev.submit(&["--", "true"]);
    }
    let mut child =
        dev.command(&["job", "list", "--all"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a title");
    let output = child.wait_with_output().expect("ends");
    assert!(line.contains("STATE"), "{line}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    dev.stop();
}

#[test]
fn what_cannot_be_printed_is_an_error_and_nobody_on_standard_error_is_none() {
    let full = || File::options().write(true).open("/dev/full").expect("there is one");
    let said = zg(&["--json", "version"]).stdout(full()).output().expect("it starts");
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("cannot print"), "{said:?}");
    let status = zg(&["--cluster", "/nowhere", "status"]).stderr(full()).status().expect("it starts");
    assert_eq!(status.code(), Some(1), "it fails for what it is, not for what it cannot say");
}
