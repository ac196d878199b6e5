//! Files in and out of storage, and what they are called.

use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Stdio};

use crate::dev::Dev;

#[test]
fn a_file_comes_back_as_it_went() {
    let dev = Dev::start(1);
    // Larger than the window of a transfer, and not a whole number of blocks.
    let content: Vec<u8> = (0..20_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = dev.folder().join("häuser und\nwege");
    std::fs::write(&path, &content).expect("written");
    let name = path.to_string_lossy().into_owned();
    let put = dev.json(&["file", "put", &name]);
    let file = put["file"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(put["file"]["length"], 20_000_003);
    assert_eq!(put["file"]["blake3"], content::hash_bytes(&content).to_string());
    assert_eq!(dev.json(&["file", "put", &name]), put, "the same again is the same file");

    let stat = dev.json(&["file", "stat", &file]);
    assert_eq!((&stat["file"]["id"], &stat["file"]["copies"]), (&put["file"]["id"], &serde_json::json!(1)));
    assert_eq!(dev.json(&["file", "ls"])["files"].as_array().map(Vec::len), Some(1));

    let got = dev.folder().join("got");
    dev.zg(&["file", "get", &file, &got.to_string_lossy()]).expect_success();
    assert!(std::fs::read(&got).expect("it is there") == content);
    let piece = dev.zg(&["file", "cat", &format!("{file}@1048570+20")]).expect_success();
    assert_eq!(piece.stdout, &content[1_048_570..1_048_590]);
    dev.zg(&["file", "cat", &format!("{file}@20000000+9")]).expect_error(2, &["20000000+9", "zg file stat"]);
    dev.stop();
}

#[test]
fn a_file_is_written_into_a_pipe_and_through_a_link_and_replaces_neither() {
    let dev = Dev::start(1);
    let put = {
        std::fs::write(dev.folder().join("five"), "five\n").expect("written");
        dev.json(&["file", "put", "five"])
    };
    let file = put["file"]["id"].as_str().expect("an id");
    let pipe = dev.folder().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts").success());
    // Open for both, a pipe blocks nobody: a command that fails to write cannot hang the test.
    let mut both = std::fs::File::options().read(true).write(true).open(&pipe).expect("opened");
    dev.zg(&["file", "get", file, "pipe"]).expect_success();
    assert!(pipe.symlink_metadata().expect("it is there").file_type().is_fifo(), "the pipe was replaced");
    let mut got = [0; 5];
    both.read_exact(&mut got).expect("the bytes are in the pipe");
    assert_eq!(&got, b"five\n");

    std::fs::write(dev.folder().join("target"), "old").expect("written");
    std::os::unix::fs::symlink("target", dev.folder().join("link")).expect("linked");
    dev.zg(&["file", "get", file, "link"]).expect_success();
    assert!(dev.folder().join("link").symlink_metadata().expect("it is there").is_symlink());
    assert_eq!(std::fs::read(dev.folder().join("target")).expect("it is there"), b"five\n");

    let wrong = dev.zg(&["file", "get", file, "nowhere/x"]);
    wrong.expect_error(1, &["cannot write nowhere/x: No such file", "ls -la ."]);
    dev.stop();
}

#[test]
fn what_a_pipe_gives_is_stored() {
    let dev = Dev::start(1);
    let mut child = dev
        .command(&["--json", "file", "put", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("piped").write_all(b"from a pipe\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let file = value["file"]["id"].as_str().expect("an id");
    assert_eq!(dev.zg(&["file", "cat", file]).stdout, b"from a pipe\n");

    std::fs::write(dev.folder().join("empty"), "").expect("written");
    let empty = dev.json(&["file", "put", "empty"]);
    let file = empty["file"]["id"].as_str().expect("an id");
    assert_eq!((dev.zg(&["file", "cat", file]).code, &empty["file"]["length"]), (Some(0), &serde_json::json!(0)));
    dev.stop();
}
