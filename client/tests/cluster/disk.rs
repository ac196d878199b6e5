//! Full disks: whoever fills one loses, and nobody else does. Each cluster has a small disk of its own.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::dev::{Dev, ended_within, run, short_folder, until, zg};

const SOON: Duration = Duration::from_secs(30);

/// A file system in memory; unmounted when it goes.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None` where nobody lets us mount.
    fn mount(path: PathBuf, mebibytes: u32) -> Option<SmallDisk> {
        fs::create_dir(&path).expect("made");
        let [target, kind] = [path.as_os_str().as_bytes(), b"tmpfs"].map(|it| CString::new(it).expect("no NUL"));
        let data = CString::new(format!("size={mebibytes}m")).expect("no NUL");
        // SAFETY: all strings outlive the call.
        let mounted =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) == 0 };
        if !mounted {
            eprintln!("not tested: nothing can be mounted here: {}", std::io::Error::last_os_error());
        }
        mounted.then_some(SmallDisk { path })
    }

    /// Leaves no room at all.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = File::create(&path).expect("made");
        let filled = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("no disk is endless");
        assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let target = CString::new(self.path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the string outlives the call. What fails leaves a directory in /tmp.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A folder, a small disk in it where the cluster is to be, and the cluster.
fn a_cluster_on_a_small_disk() -> Option<(Dev, SmallDisk)> {
    let folder = short_folder();
    let disk = SmallDisk::mount(folder.path().join("disk"), 256)?;
    std::os::unix::fs::symlink(disk.path.join("c"), folder.path().join("cluster")).expect("linked");
    fs::create_dir(disk.path.join("c")).expect("made");
    Some((Dev::start_in(folder, 2), disk))
}

fn log_has(dev: &Dev, log: &str, words: &str) -> bool {
    fs::read_to_string(dev.cluster.join(log)).expect("a log").contains(words)
}

fn marks(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_chunk_that_fills_the_disk_fails_and_says_why_and_nothing_else_does() {
    let Some((dev, _disk)) = a_cluster_on_a_small_disk() else { return };
    let starts = dev.folder().join("starts");
    let script = format!("echo start >>{}; sleep 3; echo neighbour", starts.display());
    let neighbour = dev.submit(&["--", "sh", "-c", &script]);
    until(SOON, || (marks(&starts).len() == 1).then_some(())).expect("the neighbour runs");
    let floods = [
        "head -c 400000000 /dev/zero",
        "for n in $(seq 400); do head -c 1000000 /dev/zero >\"$ZG_SCRATCH_DIR/$n\" || exit 1; done",
        "head -c 400000000 /dev/zero >\"$ZG_OUTPUT_DIR/x\"; sleep 60",
        // It has no name, so no look at directories finds it.
        "exec 3>x; rm x; head -c 400000000 /dev/zero >&3; sleep 60",
    ];
    for flood in floods {
        let job = dev.submit(&["--retries", "2", "--", "sh", "-c", &format!("echo begun; {flood}")]);
        let record = dev.wait(&job, SOON);
        assert_eq!(record["state"], "failed", "{flood}: {record}");
        let chunks = dev.chunks(&job);
        assert_eq!((&chunks[0]["cause"], &chunks[0]["attempt"]), (&json!("policy"), &json!(1)), "{flood}");
        let logs = dev.zg(&["job", "logs", &job, "--stderr"]).expect_success().text();
        assert!(logs.contains("filled the disk of its worker"), "{flood}: {logs}");
        assert!(dev.zg(&["job", "logs", &job]).expect_success().text().starts_with("begun\n"), "{flood}");
        // The room is back, and the next one runs.
        assert_eq!(dev.zg(&["run", "--", "echo", "next"]).expect_success().text(), "next\n");
    }
    assert_eq!(dev.wait(&neighbour, SOON)["state"], "finished");
    assert_eq!(marks(&starts).len(), 1, "the neighbour ran once");
    dev.stop();
}

#[test]
fn input_files_leave_the_room_that_jobs_need_and_a_refused_one_takes_none() {
    let Some((dev, disk)) = a_cluster_on_a_small_disk() else { return };
    let file = dev.folder().join("large");
    File::create(&file).expect("made").set_len(130_000_000).expect("sparse");
    let before = node::disk::free_bytes(&disk.path);
    for _ in 0..3 {
        dev.zg(&["file", "put", "large"]).expect_error(1, &["disk"]);
    }
    let taken = before.saturating_sub(node::disk::free_bytes(&disk.path));
    assert!(taken < 8 << 20, "three refused puts took {taken} bytes");
    assert_eq!(dev.zg(&["run", "--", "echo", "runs"]).expect_success().text(), "runs\n");
    dev.stop();
}

#[test]
fn outputs_that_find_no_room_on_storage_hold_up_nobody_and_are_let_go_on_a_shared_disk() {
    let Some((dev, _disk)) = a_cluster_on_a_small_disk() else { return };
    // There is room for it once, but not twice with something left.
    let large = dev.submit(&["--", "sh", "-c", "echo begun; head -c 110000000 /dev/zero >\"$ZG_OUTPUT_DIR/x\""]);
    let tries = "outputs are not stored yet";
    let worker_says = |words: &str| ["worker1.log", "worker2.log"].iter().any(|log| log_has(&dev, log, words));
    until(SOON, || worker_says(tries).then_some(())).expect("storage has no room");
    // Both workers have small outputs for it.
    dev.zg(&["run", "--array", "1-8", "--", "echo", "next"]).expect_success();
    assert_ne!(dev.job(&large)["state"], "failed", "it is not given up so soon");
    assert_eq!(dev.wait(&large, SOON)["state"], "failed");
    assert_eq!(dev.chunks(&large)[0]["cause"], "policy");
    let logs = dev.zg(&["job", "logs", &large, "--stderr"]).expect_success().text();
    assert!(logs.contains("storage has no room for the outputs"), "{logs}");
    assert_eq!(dev.zg(&["job", "logs", &large]).expect_success().text(), "begun\n");
    dev.stop();
}

#[test]
fn a_disk_that_somebody_else_fills_accepts_nothing_and_loses_nothing() {
    let Some((dev, disk)) = a_cluster_on_a_small_disk() else { return };
    let before = dev.submit(&["--", "echo", "before"]);
    dev.wait(&before, SOON);
    let running = dev.submit(&["--", "sleep", "300"]);
    until(SOON, || (dev.job(&running)["state"] == "running").then_some(())).expect("it runs");
    let filler = disk.fill();
    // It is in the log, as far as memory goes, and waits to be written.
    let mut waits = dev.command(&["submit", "--", "echo", "waited"]);
    let mut waits = waits.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until(SOON, || (log_has(&dev, "master1.log", "the disk is full")).then_some(())).expect("a write waits");
    dev.zg(&["submit", "--", "true"]).expect_error(1, &["disk is full"]);
    assert_eq!(waits.try_wait().expect("it is ours"), None, "nothing is promised");
    // A little room is enough for what ends something.
    File::options()
        .write(true)
        .open(&filler)
        .and_then(|file| file.set_len(file.metadata()?.len() - (40 << 20)))
        .expect("cut");
    until(SOON, || (dev.zg(&["job", "cancel", &running]).code == Some(0)).then_some(())).expect("it is canceled");
    dev.zg(&["submit", "--", "true"]).expect_error(1, &["disk is full"]);
    fs::remove_file(filler).expect("removed");
    let next = until(SOON, || {
        let said = dev.zg(&["run", "--", "echo", "next"]);
        (said.code == Some(0)).then(|| said.text())
    });
    assert_eq!(next.as_deref(), Some("next\n"));
    assert!(ended_within(&mut waits, SOON).expect("it ends").success(), "what waited is accepted");
    assert_eq!((&dev.job(&before)["state"], &dev.job(&running)["state"]), (&json!("finished"), &json!("canceled")));
    dev.stop();
}

#[test]
fn dev_on_a_disk_without_room_says_so_at_once() {
    let folder = short_folder();
    let Some(disk) = SmallDisk::mount(folder.path().join("disk"), 64) else { return };
    let dir = disk.path.join("c");
    let said = run(&mut zg(&["dev", "--dir", &dir.to_string_lossy()]));
    said.expect_error(1, &[&dir.to_string_lossy(), "64 MiB free", "160 MiB", "--dir"]);
}
