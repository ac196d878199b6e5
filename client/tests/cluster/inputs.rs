//! Inputs as programs find them: of any size, under any name, through the mount and without it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::dev::{Dev, short_folder, until};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

/// Prints the hash of every file in the working directory.
const HASHES: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

/// Sizes around a block, and one that is not fetched whole unless it is asked for.
const SIZES: [(&str, usize); 6] = [
    ("empty", 0),
    ("a byte", 1),
    ("it's \"one\" short", MIB - 1),
    ("a block\nwith a line end", MIB),
    ("häuser/ein Byte mehr 🦀", MIB + 1),
    ("$(large) \\*", 9 * MIB + 7),
];

/// Bytes that repeat nowhere near, and differ from those of another `seed`.
fn bytes(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|at| ((at ^ seed).wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

fn sh(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh starts");
    String::from_utf8(output.stdout).expect("text")
}

fn may_mount() -> bool {
    // SAFETY: plain system call.
    Path::new("/dev/fuse").exists() && unsafe { libc::geteuid() } == 0
}

fn inputs_of(dev: &Dev, node: &str) -> Value {
    dev.json(&["node", "info", node])["node"]["inputs"].clone()
}

/// Has jobs hash files of all sizes, each stored anew: as they are read, and fetched before.
fn files_come_as_they_are(dev: &Dev, is_mounted: bool) {
    for (seed, flags) in [(1, &[][..]), (2, &["--prefetch"][..])] {
        let folder = dev.folder().join(format!("files{seed}"));
        fs::create_dir_all(folder.join("häuser")).expect("made");
        let mut arguments = vec!["run".to_owned()];
        for (name, size) in SIZES {
            fs::write(folder.join(name), bytes(size, seed)).expect("written");
            arguments.extend(["--input".to_owned(), format!("files{seed}/{name}:{name}")]);
        }
        // The largest under a second name, in a directory of its own.
        let (name, size) = SIZES[SIZES.len() - 1];
        arguments.extend(["--input".to_owned(), format!("files{seed}/{name}:again/{name}")]);
        let script = format!("cd \"$ZG_INPUT_DIR\" && stat -f -c %T . >&2 && {HASHES}");
        let command = [flags, &["--", "sh", "-c", &script]].concat();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(command).collect();
        let said = dev.zg(&arguments).expect_success();
        assert_eq!(said.stderr.contains("fuse"), is_mounted, "{}", said.stderr);

        fs::create_dir(folder.join("again")).expect("made");
        fs::hard_link(folder.join(name), folder.join("again").join(name)).expect("linked");
        assert_eq!(said.text(), sh(&folder, HASHES), "with {flags:?}");
        let fetched: usize = SIZES.iter().map(|(_, size)| *size).sum::<usize>() * seed as usize;
        assert_eq!(inputs_of(dev, "worker1")["bytes_fetched"], fetched, "one name or two, {size} bytes come once");
    }
}

#[test]
fn inputs_of_every_size_and_name_come_as_they_are() {
    let dev = Dev::start_with(short_folder(), 1, &["--no-borrow"]);
    files_come_as_they_are(&dev, may_mount());
    dev.stop();
}

#[test]
fn without_a_mount_inputs_of_every_size_and_name_come_as_they_are() {
    let dev = Dev::start_with(short_folder(), 1, &["--no-fuse"]);
    files_come_as_they_are(&dev, false);
    dev.stop();
}

#[test]
fn jobs_that_share_a_file_have_one_inode_and_fetch_it_once() {
    let two_slots = std::thread::available_parallelism().is_ok_and(|count| count.get() >= 2);
    if !may_mount() || !two_slots {
        eprintln!("skipped: this needs /dev/fuse, root and two slots");
        return;
    }
    let dev = Dev::start_with(short_folder(), 1, &["--no-borrow"]);
    fs::write(dev.folder().join("shared"), bytes(9 * MIB, 3)).expect("written");
    let go = dev.folder().join("go");
    let look = "stat -c '%d %i' \"$ZG_INPUT_DIR/$1\" && cat \"$ZG_INPUT_DIR/$1\" | sha256sum";
    // The first keeps it open until the second has seen it too.
    let hold = format!(
        "exec 3<\"$ZG_INPUT_DIR/$1\"; {look}; touch '{0}.is'; until test -e '{0}'; do sleep 0.01; done",
        go.display()
    );
    let first = dev.submit(&["--input", "shared:one", "--", "sh", "-c", &hold, "sh", "one"]);
    until(SOON, || go.with_extension("is").exists().then_some(())).expect("it has read");
    let second =
        dev.zg(&["run", "--input", "shared:another", "--", "sh", "-c", look, "sh", "another"]).expect_success();
    assert_eq!(inputs_of(&dev, "worker1")["bytes_fetched"], 9 * MIB, "the second has moved nothing");
    fs::write(&go, "").expect("written");
    assert_eq!(dev.wait(&first, SOON)["state"], "finished");
    assert_eq!(dev.zg(&["job", "logs", &first]).text(), second.text(), "one inode: one place in the page cache");
    assert_eq!(second.text().lines().count(), 2);

    // And when nobody has it open any more.
    let third = dev.zg(&["run", "--input", "shared", "--", "sh", "-c", look, "sh", "shared"]).expect_success();
    assert_eq!(third.text().lines().nth(1), second.text().lines().nth(1));
    assert_eq!(inputs_of(&dev, "worker1")["bytes_fetched"], 9 * MIB);
    dev.stop();
}

#[test]
fn what_the_storage_node_of_this_machine_has_is_read_where_it_lies() {
    if !may_mount() {
        eprintln!("skipped: this needs /dev/fuse and root");
        return;
    }
    let dev = Dev::start(1);
    fs::write(dev.folder().join("large"), bytes(20 * MIB, 4)).expect("written");
    let hashed = sh(dev.folder(), "sha256sum <large");
    let id = dev.json(&["file", "put", "large"])["file"]["id"].as_str().expect("an id").to_owned();
    let input = format!("{id}:it");
    let hash = || dev.zg(&["run", "--input", &input, "--", "sh", "-c", "sha256sum <\"$ZG_INPUT_DIR/it\""]);
    assert_eq!(hash().expect_success().text(), hashed);
    assert_eq!(inputs_of(&dev, "worker1")["bytes_fetched"], 0);
    // A byte of the only copy is another: nobody is shown it, and a good one that is put again is found.
    let stored = dev.cluster.join("storage1/files").join(&id[..2]).join(&id[2..4]).join(format!("{id}.dat"));
    let script = r#"chmod 600 "$0" && printf X | dd of="$0" bs=1 seek=9000000 conv=notrunc 2>&1"#;
    assert!(Command::new("sh").args(["-c", script]).arg(&stored).status().expect("sh starts").success());
    let said = hash();
    assert!(said.code != Some(0) || said.text() == hashed, "{said:?}");
    dev.zg(&["file", "put", "large"]).expect_success();
    assert_eq!(hash().expect_success().text(), hashed);
    dev.stop();
}
