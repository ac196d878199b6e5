//! Files in and out of storage, and what they are called.

use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use crate::dev::Dev;

const LONG: Duration = Duration::from_secs(60);

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

/// Where storage keeps a file.
fn copy_of(dev: &Dev, file: &str) -> PathBuf {
    let below = dev.cluster.join("storage1/files").join(&file[0..2]).join(&file[2..4]);
    below.join(format!("{file}.dat"))
}

/// Changes a bit of storage's copy of a file. Beneath the filesystem nobody notes when.
fn rot(dev: &Dev, file: &str, is_beneath: bool) {
    let path = copy_of(dev, file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let open = std::fs::File::options().read(true).write(true).open(&path).expect("it is there");
    let mut byte = [0];
    open.read_exact_at(&mut byte, 70_000).expect("it is as long");
    open.write_all_at(&[byte[0] ^ 1], 70_000).expect("written");
    if is_beneath {
        open.set_modified(UNIX_EPOCH + content::SEALED_AT).expect("it is ours");
    }
}

#[test]
fn a_copy_that_rots_is_put_right_when_the_file_is_put_again() {
    let dev = Dev::start(1);
    let content: Vec<u8> = (0..2_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(dev.folder().join("good"), &content).expect("written");
    let put = dev.json(&["file", "put", "good"]);
    let file = put["file"]["id"].as_str().expect("an id").to_owned();
    let is_right = || dev.zg(&["file", "cat", &file]).stdout == content;
    for is_beneath in [true, false] {
        assert!(is_right());
        rot(&dev, &file, is_beneath);
        assert_ne!(dev.zg(&["file", "cat", &file]).code, Some(0), "what is wrong was told as right");
        let missing = dev.submit(&["--input", &format!("{file}:good"), "--", "sh", "-c", "cat $ZG_INPUT_DIR/good >&2"]);
        assert_eq!(dev.wait(&missing, LONG)["state"], "failed");
        assert_eq!(dev.chunks(&missing)[0]["cause"], "input_missing");
        assert_eq!(dev.json(&["file", "put", "good"]), put);
    }
    assert!(is_right());

    // Whoever submits it does not have to know.
    rot(&dev, &file, false);
    let job = dev.submit(&["--input", "good", "--", "sh", "-c", "cksum <$ZG_INPUT_DIR/good"]);
    assert_eq!(dev.wait(&job, LONG)["state"], "finished");
    assert!(is_right());

    // A directory's small files lie in one pack.
    std::fs::create_dir(dev.folder().join("tree")).expect("made");
    std::fs::write(dev.folder().join("tree/a"), &content[..60_000]).expect("written");
    std::fs::write(dev.folder().join("tree/b"), &content[60_000..120_000]).expect("written");
    let tree = dev.json(&["file", "put", "tree"]);
    let pack = dev.json(&["file", "ls"])["files"].as_array().and_then(|files| {
        let is_pack = |file: &&serde_json::Value| file["length"] == 120_000;
        files.iter().find(is_pack).map(|pack| pack["id"].as_str().expect("an id").to_owned())
    });
    rot(&dev, &pack.expect("it is listed"), true);
    assert_eq!(dev.json(&["file", "put", "tree"]), tree);
    dev.zg(&["file", "get", tree["file"]["id"].as_str().expect("an id"), "back"]).expect_success();
    assert!(std::fs::read(dev.folder().join("back/a")).expect("it is there") == content[..60_000]);
    dev.stop();
}
