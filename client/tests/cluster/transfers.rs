//! Transfers that are cut: by a client that dies, by a storage node that dies, by others that do the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::dev::{Dev, ended_within, until};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
const LENGTH: u64 = 300_000_000;
/// What a transfer has moved when it is cut.
const CUT_AFTER: u64 = 30_000_000;

/// A large file that nobody else has, and its content.
fn make(dev: &Dev, name: &str) -> Vec<u8> {
    let content: Vec<u8> =
        (0..LENGTH / 8).flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    fs::write(dev.folder().join(name), &content).expect("written");
    content
}

fn start(dev: &Dev, arguments: &[&str]) -> Child {
    let mut command = dev.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("it starts")
}

/// Bytes that a process has read so far; those of a put are its file once for the hash, and again as it is sent.
fn bytes_read(child: &Child) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.map_or(0, |count| count.parse().expect("a number"))
}

/// Waits until `has_come` is true and kills the child at once.
fn cut(child: &mut Child, mut has_come: impl FnMut(&Child) -> bool) {
    until(LONG, || has_come(child).then_some(())).expect("it begins");
    child.kill().expect("it runs");
    let status = child.wait().expect("it is ours");
    assert_eq!(status.code(), None, "it had ended before it was cut");
}

fn cut_in_the_middle_of_a_put(child: &mut Child) {
    cut(child, |child| bytes_read(child) > LENGTH + CUT_AFTER);
}

/// The files below `root` whose names end so.
fn files_named(root: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found
}

fn inode(path: &Path) -> u64 {
    path.metadata().expect("it is there").ino()
}

#[test]
fn a_put_whose_client_was_killed_goes_on_where_it_was() {
    let dev = Dev::start(1);
    make(&dev, "large");
    cut_in_the_middle_of_a_put(&mut start(&dev, &["file", "put", "large"]));
    let staging = || files_named(&dev.cluster, ".part");
    let [part] = &staging()[..] else { panic!("one upload is open: {:?}", staging()) };
    let begun = inode(part);
    let put = dev.json(&["file", "put", "large"]);
    assert_eq!(put["file"]["length"], LENGTH);
    let stored = files_named(&dev.cluster, &format!("{}.dat", put["file"]["id"].as_str().expect("an id")));
    assert_eq!(
        stored.iter().map(|path| inode(path)).collect::<Vec<_>>(),
        [begun],
        "the upload that was begun was ended"
    );
    assert_eq!(staging(), [] as [PathBuf; 0], "and nothing is left of it");
    dev.stop();
}

#[test]
fn puts_of_one_content_at_once_do_not_hurt_each_other() {
    let dev = Dev::start(1);
    make(&dev, "large");
    let mut puts: Vec<Child> = (0..3).map(|_| start(&dev, &["file", "put", "large"])).collect();
    let said: Vec<String> = puts
        .iter_mut()
        .map(|put| {
            let status = ended_within(put, LONG).expect("it ends");
            assert!(status.success(), "{status}");
            std::io::read_to_string(put.stdout.take().expect("it is piped")).expect("text")
        })
        .collect();
    assert!(said.iter().all(|id| *id == said[0] && id.len() > 30), "{said:?}");
    assert_eq!(files_named(&dev.cluster, ".part"), [] as [PathBuf; 0]);
    dev.stop();
}

#[test]
fn a_put_survives_a_storage_node_that_is_started_again() {
    let dev = Dev::start(1);
    make(&dev, "large");
    let storage = dev.node("storage1")["pid"].as_i64().expect("a pid") as libc::pid_t;
    let mut put = start(&dev, &["file", "put", "large"]);
    until(LONG, || (bytes_read(&put) > LENGTH + CUT_AFTER).then_some(())).expect("it begins");
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(storage, libc::SIGKILL) }, 0);
    assert!(put.try_wait().expect("it is ours").is_none(), "it had ended before the storage node died");
    assert!(ended_within(&mut put, LONG).expect("it ends").success());
    dev.stop();
}

#[test]
fn a_get_that_was_killed_goes_on_where_it_was_and_what_lies_there_is_not_trusted() {
    let dev = Dev::start(1);
    let content = make(&dev, "large");
    let put = dev.json(&["file", "put", "large"]);
    let file = put["file"]["id"].as_str().expect("an id");
    let part = dev.folder().join(format!("got.zg-{}", &file[..8]));
    let has_come = |_: &Child| part.metadata().is_ok_and(|metadata| metadata.len() > CUT_AFTER);
    cut(&mut start(&dev, &["file", "get", file, "got"]), has_come);
    let (begun, held) = (inode(&part), part.metadata().expect("it is there").len());
    let got = dev.folder().join("got");
    assert!(!got.exists() && held < LENGTH, "a name appears only with all its bytes");
    dev.zg(&["file", "get", file, "got"]).expect_success();
    assert!(fs::read(&got).expect("it is there") == content);
    assert_eq!(inode(&got), begun, "what had come was kept");

    // Something else in its place is fetched anew, whatever its length.
    for wrong in [&b"something else"[..], &content[1..], &[&content[..], b"more"].concat()] {
        fs::write(&part, wrong).expect("written");
        dev.zg(&["file", "get", file, "got"]).expect_success();
        assert!(fs::read(&got).expect("it is there") == content);
        assert!(!part.exists());
    }
    // Two at once have a place each.
    let mut gets: Vec<Child> = (0..2).map(|_| start(&dev, &["file", "get", file, "got"])).collect();
    assert!(gets.iter_mut().all(|get| ended_within(get, SOON).expect("it ends").success()));
    assert!(fs::read(&got).expect("it is there") == content);
    assert_eq!(files_named(dev.folder(), &format!(".zg-{}", &file[..8])), [] as [PathBuf; 0]);
    dev.stop();
}

#[test]
fn a_put_of_a_directory_that_was_killed_is_put_again_and_whole() {
    let dev = Dev::start(1);
    let source = dev.folder().join("data");
    fs::create_dir(&source).expect("made");
    make(&dev, "data/large");
    fs::write(source.join("small"), "small").expect("written");
    cut_in_the_middle_of_a_put(&mut start(&dev, &["file", "put", "data"]));
    let trees = |dev: &Dev| {
        let files = dev.json(&["file", "ls"])["files"].as_array().expect("a list").clone();
        files.iter().filter(|file| file["class"] == "tree").count()
    };
    assert_eq!(trees(&dev), 0, "the tree goes last");
    let put = dev.json(&["file", "put", "data"]);
    assert_eq!(trees(&dev), 1);
    dev.zg(&["file", "get", put["file"]["id"].as_str().expect("an id"), "got"]).expect_success();
    assert!(fs::read(dev.folder().join("got/large")).expect("there") == fs::read(source.join("large")).expect("there"));
    dev.stop();
}
