//! Directories: put, listed, read by jobs, and got back as they were.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::dev::Dev;

/// A directory with what trees can have, and times of long ago.
fn make(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).expect("made");
    fs::write(root.join("häuser und\n'wege'"), "names\n").expect("written");
    fs::write(root.join("sub/run"), "#!/bin/sh\necho ran \"$1\"\n").expect("written");
    fs::set_permissions(root.join("sub/run"), Permissions::from_mode(0o755)).expect("ours");
    fs::write(root.join("nothing"), "").expect("written");
    fs::write(root.join("sub/large"), vec![b'x'; 3_000_000]).expect("written");
    for number in 0..50 {
        fs::write(root.join(format!("sub/{number}")), format!("{number}\n")).expect("written");
    }
    symlink("../nothing", root.join("sub/link")).expect("linked");
    symlink("missing", root.join("dangling")).expect("linked");
    let mut touch = Command::new("find");
    touch.arg(root).args(["-exec", "touch", "-h", "-d", "2001-02-03 04:05:06Z", "{}", "+"]);
    assert!(touch.status().expect("find starts").success());
}

/// Every path with what is kept of it.
fn look(root: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("it is there") {
            let path = entry.expect("it is there").path();
            let metadata = path.symlink_metadata().expect("it is there");
            let name = path.strip_prefix(root).expect("it lies in it").to_owned();
            let what = if metadata.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).expect("a link"))
            } else if metadata.is_dir() {
                waiting.push(path);
                "directory".into()
            } else {
                format!("{} {}", content::hash_bytes(&fs::read(&path).expect("it is there")), metadata.mode() & 0o100)
            };
            seen.push(format!("{name:?} {what} {}", metadata.mtime()));
        }
    }
    seen.sort();
    seen
}

#[test]
fn a_directory_comes_back_as_it_went_and_jobs_read_it() {
    let dev = Dev::start(1);
    let source = dev.folder().join("data set");
    make(&source);
    let put = dev.json(&["file", "put", "data set"]);
    let tree = put["file"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(put["file"]["tree"]["files"], 54);
    assert_eq!(put["file"]["tree"]["stored_files"], 2, "one pack and one large file");
    assert_eq!(dev.json(&["file", "put", "data set"]), put, "the same again is the same tree");
    let stat = dev.json(&["file", "stat", &tree]);
    assert_eq!((&stat["file"]["class"], &stat["file"]["tree"]), (&"tree".into(), &put["file"]["tree"]));
    let files = dev.json(&["file", "ls"])["files"].as_array().expect("a list").clone();
    assert_eq!(files.iter().filter(|file| file["class"] == "tree").count(), 1, "{files:?}");
    assert_eq!(files.len(), 3);

    dev.zg(&["file", "get", &tree, "got"]).expect_success();
    assert_eq!(look(&dev.folder().join("got")), look(&source));
    dev.zg(&["file", "get", &tree, "got"]).expect_error(2, &["got is there already"]);

    // By the path, and by the address of what is stored.
    let script =
        "cd \"$ZG_INPUT_DIR/$1\" && pwd | grep -q '/d$' && sub/run here && cat sub/link sub/49 && stat -c %Y sub/49
        && cat 'häuser und\n'\\''wege'\\''' && find . | wc -l && ! touch new 2>/dev/null || test -w /";
    let script = script.replace("\n        ", " ");
    for input in ["data set:d", &format!("{tree}:d")] {
        let ran =
            dev.zg(&["run", "--input", input, "--prefetch", "--", "sh", "-c", &script, "sh", "d"]).expect_success();
        assert_eq!(ran.text(), "ran here\n49\n981173106\nnames\n60\n", "{}", ran.stderr);
    }
    let default = dev.zg(&["run", "--input", "data set", "--", "sh", "-c", "ls \"$ZG_INPUT_DIR\""]).expect_success();
    assert_eq!(default.text(), "data set\n");
    dev.stop();
}

#[test]
fn what_cannot_be_a_tree_is_told_by_its_path_and_nothing_is_stored() {
    let dev = Dev::start(1);
    let source = dev.folder().join("bad");
    fs::create_dir_all(source.join("sub")).expect("made");
    fs::write(source.join("good"), "good").expect("written");
    symlink("../../etc", source.join("sub/out")).expect("linked");
    dev.zg(&["file", "put", "bad"]).expect_error(1, &["bad/sub/out", "leaves the tree", "ls -la bad/sub/out"]);
    fs::remove_file(source.join("sub/out")).expect("removed");
    let pipe = source.join("sub/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts").success());
    dev.zg(&["submit", "--input", "bad", "--", "true"]).expect_error(1, &["bad/sub/pipe: it is a pipe"]);
    fs::remove_file(&pipe).expect("removed");
    dev.zg(&["submit", "--stdin", "bad", "--", "cat"]).expect_error(2, &["bad is a directory", "--input"]);
    assert_eq!(dev.json(&["file", "ls"])["files"].as_array().map(Vec::len), Some(0), "nothing is half done");
    assert_eq!(dev.json(&["job", "list", "--all"])["jobs"].as_array().map(Vec::len), Some(0));
    // Without what was wrong it goes.
    let job = dev.submit(&["--input", "bad", "--", "test", "-d", "nothing"]);
    dev.wait(&job, Duration::from_secs(30));
    dev.stop();
}
