//! What programs see of their inputs, through a real mount; and what becomes of the mount, whatever becomes of the worker.
//!
//! On a machine where nothing can be mounted the tests that need it say so and end.

mod site;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use node::Clock;
use site::Running;
use site::mounted::{MIB, Mounted, bytes, signal, stored, wait_until};
use wire::job::Input;
use wire::{Cause, JobId};

/// A process that reads a path to its end, in no way that the worker knows of.
fn reader(command: &str) -> Child {
    Command::new("sh").args(["-c", command]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn state(process: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn inputs_are_read_through_the_mount_under_any_name_and_of_any_size() {
    let Some(mut mounted) = Mounted::new() else { return };
    let running = mounted.site.start_in_cluster();
    let sizes = [0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 7];
    let names: [&[u8]; 6] = [b"empty", b"a b/one", b"line\nfeed", b"it's \"quoted\"", b"\xff\xfe", "ä/ö".as_bytes()];
    let mut inputs = Vec::new();
    let mut expected = String::new();
    for (size, name) in sizes.into_iter().zip(names) {
        inputs.push(mounted.input(&bytes(size), name));
        expected += &format!("{} {size}\n", content::hash_bytes(&bytes(size)));
    }
    inputs.push((inputs[4].0, Input { path: b"again".to_vec(), ..inputs[4].1.clone() }));
    expected += &format!("{} {}\n", content::hash_bytes(&bytes(MIB + 1)), MIB + 1);
    let by_id = inputs[5].0;
    let read = mounted.site.path("read");
    let script = format!(
        "set -e; cd \"$ZG_INPUT_DIR\"; case $PWD in /run/ziggurat/*/in) ;; *) echo $PWD; exit 9;; esac
         find . -type f -printf x | wc -c; stat -c '%a %Y %s' again; cmp again \"$(printf \"it's \\\"quoted\\\"\")\" >&2 || :
         tar -cf '{0}' .; cmp \"ä/ö\" ../../../by-id/{by_id}; ls ../../../by-id | wc -l
         touch x 2>/dev/null && exit 8; rm -f again 2>/dev/null && exit 7; ( : >>again ) 2>/dev/null && exit 6; :",
        read.display()
    );
    let (cause, stdout, stderr) = mounted.run(&inputs, &script);
    assert_eq!((cause, &*stdout), (Cause::None, "7\n444 315619200 1048577\n0\n"), "{stderr}");
    let unpacked = mounted.site.path("unpacked");
    fs::create_dir(&unpacked).expect("made");
    assert!(Command::new("tar").arg("-xf").arg(read).arg("-C").arg(&unpacked).status().expect("it runs").success());
    let mut found = String::new();
    for (_, input) in &inputs {
        use std::os::unix::ffi::OsStrExt;
        let read = fs::read(unpacked.join(std::ffi::OsStr::from_bytes(&input.path))).expect("it was read");
        found += &format!("{} {}\n", content::hash_bytes(&read), read.len());
    }
    assert_eq!(found, expected);
    drop(running);
}

#[test]
fn an_end_takes_the_mount_away_whoever_sits_in_it() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    let job = mounted.begin(&inputs, "cd \"$ZG_INPUT_DIR\"; exec 3<f; echo begun; exec sleep 1000", "said");
    assert_eq!(mounted.listed().len(), 1);
    // Somebody of whom the worker knows nothing.
    let mut stranger =
        reader(&format!("cd {}/fs/job/{job}/in; exec 3<f; echo in; exec sleep 1000", mounted.dir().display()));
    wait_until("the stranger is in", Duration::from_secs(10), || {
        fs::read_link(format!("/proc/{}/fd/3", stranger.id())).is_ok()
    });
    assert_eq!(running.terminate(), Some(0));
    assert_eq!(mounted.listed(), [""; 0]);
    assert!(!mounted.dir().exists());
    stranger.kill().expect("it runs");
    stranger.wait().expect("it ends");
}

#[test]
fn a_killed_worker_leaves_no_mount_and_nobody_waiting() {
    let Some(mut mounted) = Mounted::new() else { return };
    let inputs = [mounted.input(&bytes(64 * MIB), b"f")];
    let mut running = mounted.site.start_in_cluster();
    let read = "cat \"$ZG_INPUT_DIR/f\" >/dev/null; echo begun; exec sleep 1000";
    let job = mounted.begin(&inputs, read, "said");
    let path = format!("{}/fs/job/{job}/in/f", mounted.dir().display());
    // Straight from the cache file: it need not even notice.
    let mut passing = reader(&format!("exec 3<{path}; echo; sleep 2; exec cksum <&3"));
    wait_until("it is open", Duration::from_secs(10), || fs::read_link(format!("/proc/{}/fd/3", passing.id())).is_ok());
    let mut readers: Vec<Child> =
        (0..8).map(|_| reader(&format!("while cat {path} >/dev/null 2>&1; do :; done"))).collect();
    running.kill();
    wait_until("the mount is gone", Duration::from_secs(5), || mounted.listed().is_empty());
    wait_until("its directories are gone", Duration::from_secs(5), || !mounted.dir().exists());
    for reader in &mut readers {
        assert_ne!(state(reader.id()), Some('D'));
        wait_until("it has failed", Duration::from_secs(15), || reader.try_wait().expect("it is ours").is_some());
    }
    let read = passing.wait_with_output_of();
    let expected =
        Command::new("cksum").stdin(fs::File::open(stored(&mounted, &inputs[0])).expect("it is there")).output();
    assert_eq!(read, expected.expect("it runs").stdout);
}

trait OutputOf {
    /// What it writes after its first line.
    fn wait_with_output_of(&mut self) -> Vec<u8>;
}

impl OutputOf for Child {
    fn wait_with_output_of(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        std::io::Read::read_to_end(self.stdout.as_mut().expect("piped"), &mut said).expect("it says");
        self.wait().expect("it ends");
        said.split_off(said.iter().position(|byte| *byte == b'\n').expect("a line") + 1)
    }
}

#[test]
fn the_next_start_clears_what_was_left_mounted() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    // Neither is there to do it.
    for process in watchdogs(&running) {
        signal(process, libc::SIGKILL);
    }
    running.kill();
    assert_eq!(mounted.listed().len(), 1);
    let mut running = mounted.site.start_in_cluster();
    assert_eq!(mounted.listed().len(), 1);
    let inputs = [mounted.input(b"text", b"f")];
    let (cause, stdout, _) = mounted.run(&inputs, "cat \"$ZG_INPUT_DIR/f\"");
    assert_eq!((cause, &*stdout), (Cause::None, "text"));
    assert_eq!(running.terminate(), Some(0));
    assert_eq!(mounted.listed(), [""; 0]);
}

/// The watchdogs of a worker.
fn watchdogs(running: &Running) -> Vec<u32> {
    let mut tasks: Vec<u32> = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", running.child.id())).expect("it runs").flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        tasks.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    let is_one = |process: &u32| {
        fs::read(format!("/proc/{process}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"watch"))
    };
    tasks.into_iter().filter(is_one).collect()
}

#[test]
fn a_stopped_worker_holds_nobody_for_long_and_mounts_anew_when_it_goes_on() {
    let Some(mut mounted) = Mounted::new() else { return };
    let running = mounted.site.start_in_cluster();
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    mounted.begin(&inputs, "echo begun; exec sleep 1000", "said");
    signal(running.child.id(), libc::SIGSTOP);
    // What the kernel has not been told yet it has to ask for.
    let mut waiting = reader(&format!("ls -l {}/fs/job/{}", mounted.dir().display(), JobId::now()));
    wait_until("it is let go", Duration::from_secs(15), || waiting.try_wait().expect("it is ours").is_some());
    assert_eq!(mounted.listed(), [""; 0]);
    signal(running.child.id(), libc::SIGCONT);
    wait_until("it is mounted again", Duration::from_secs(10), || mounted.listed().len() == 1);
    // It was gone for so long that it is connected anew.
    mounted.site.worker = None;
    mounted.site.until("the worker speaks", |site| site.worker.is_some());
    let (cause, stdout, stderr) = mounted.run(&inputs, "cksum <\"$ZG_INPUT_DIR/f\" | wc -l");
    assert_eq!((cause, &*stdout), (Cause::None, "1\n"), "{stderr}");
}

#[test]
fn without_a_mount_programs_find_the_same_under_their_input_directory() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut inputs: Vec<_> = [(&b"a"[..], 5), (b"d/b c", MIB + 1), (b"d/e/f", 0)]
        .map(|(name, size)| mounted.input(&bytes(size), name))
        .into();
    inputs.push((inputs[1].0, Input { path: b"piece".to_vec(), piece: Some((10, 2000)), ..inputs[1].1.clone() }));
    inputs.push((inputs[0].0, Input { path: b"tool".to_vec(), executable: true, ..inputs[0].1.clone() }));
    let script = "cd \"$ZG_INPUT_DIR\"; find . -type f -printf '%p %m %s %T@\\n' | sort; find . -type d | sort
        find . -type f -print0 | sort -z | xargs -0 cksum; case $PWD in /run/*) exit 1;; esac";
    let mut running = mounted.site.start_in_cluster();
    let (cause, with, _) = mounted.run(&inputs, script);
    assert_eq!(cause, Cause::Exit, "it is mounted");
    assert_eq!(running.terminate(), Some(0));
    let mut running = mounted.site.start_in_cluster_with("fuse = false");
    assert_eq!(mounted.listed(), [""; 0]);
    let (cause, without, stderr) = mounted.run(&inputs, script);
    assert_eq!(cause, Cause::None, "{stderr}");
    assert_eq!(with, without);
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_cached_input_that_was_changed_is_never_shown() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    let sum = "cksum <\"$ZG_INPUT_DIR/f\"";
    let (_, right, _) = mounted.run(&inputs, sum);
    let path = stored(&mounted, &inputs[0]);
    let flip = || {
        let mut bytes = fs::read(&path).expect("it is there");
        bytes[5 * MIB] ^= 1;
        fs::write(&path, bytes).expect("root may write");
    };
    for round in 0..3 {
        flip();
        if round == 2 {
            assert_eq!(running.terminate(), Some(0));
            running = mounted.site.start_in_cluster();
        }
        assert_eq!(mounted.run(&inputs, sum), (Cause::None, right.clone(), String::new()), "round {round}");
    }
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_program_that_is_refused_an_input_has_missed_it_whatever_it_makes_of_that() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let go = mounted.site.path("go");
    for (number, end) in ["", "; true"].into_iter().enumerate() {
        // Too large to be here before it is read.
        let inputs = [mounted.input(&bytes(9 * MIB + number), b"f")];
        let wait = format!("echo begun; until [ -e '{}' ]; do sleep 0.01; done; cat \"$ZG_INPUT_DIR/f\"", go.display());
        let job = mounted.begin(&inputs, &(wait + end), "said");
        mounted.site.store.evict(inputs[0].0).expect("it is there");
        fs::write(&go, "").expect("written");
        mounted.site.until("the result", |site| site.results.contains_key(&(job, 0)));
        assert_eq!(mounted.site.results[&(job, 0)].cause, Cause::InputMissing, "{end}");
        let _ = (fs::remove_file(&go), fs::remove_file(mounted.site.path("said")));
    }
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn only_what_is_read_is_fetched() {
    let Some(mut mounted) = Mounted::new() else { return };
    let content = bytes(200 * MIB);
    // Before the worker is there: it would take a peer that is busy for so long for gone.
    let inputs = [mounted.input(&content, b"f")];
    let mut running = mounted.site.start_in_cluster();
    let before = mounted.site.bytes_asked;
    let script = "for at in 150 3 77 120 41 9 190 60 100 30; do
        dd if=\"$ZG_INPUT_DIR/f\" bs=1M skip=$at count=1 2>/dev/null; done | cksum";
    let (cause, sum, stderr) = mounted.run(&inputs, script);
    let ten = [150, 3, 77, 120, 41, 9, 190, 60, 100, 30].map(|at| &content[at * MIB..(at + 1) * MIB]).concat();
    let piece = mounted.site.path("piece");
    fs::write(&piece, ten).expect("written");
    let expected = Command::new("cksum").stdin(fs::File::open(&piece).expect("it is there")).output().expect("it runs");
    assert_eq!((cause, sum.as_bytes()), (Cause::None, &*expected.stdout), "{stderr}");
    let moved = mounted.site.bytes_asked - before;
    assert!(moved <= 20 * MIB as u64, "{moved}");
    // What is here is not fetched again, not even by the next start; what is read to its end is whole then.
    assert_eq!(running.terminate(), Some(0));
    let mut running = mounted.site.start_in_cluster();
    let (cause, whole, _) = mounted.run(&inputs, "cksum <\"$ZG_INPUT_DIR/f\"");
    fs::write(&piece, content).expect("written");
    let expected = Command::new("cksum").stdin(fs::File::open(&piece).expect("it is there")).output().expect("it runs");
    assert_eq!((cause, whole.as_bytes()), (Cause::None, &*expected.stdout));
    let moved = mounted.site.bytes_asked - before;
    assert!(moved <= 220 * MIB as u64, "{moved}");
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn storage_that_falls_silent_holds_nobody_beyond_the_deadline_of_a_read() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster_with("read_timeout_ms = 2000");
    let inputs = [mounted.input(&bytes(9 * MIB), b"f"), mounted.input(&bytes(10 * MIB), b"g")];
    let go = mounted.site.path("go");
    let script = format!(
        "echo begun; until [ -e '{}' ]; do sleep 0.01; done; cd \"$ZG_INPUT_DIR\"
         cat f >/dev/null; perl -e 'open(F, q(<), q(g)) && read(F, $x, 1) or exit 5'; echo $?",
        go.display()
    );
    let job = mounted.begin(&inputs, &script, "said");
    mounted.site.is_storage_silent = true;
    let clock = Clock::new();
    let begun = clock.now();
    fs::write(&go, "").expect("written");
    mounted.site.until("the result", |site| site.results.contains_key(&(job, 0)));
    let took = clock.now().since(begun);
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert_eq!(fs::read_to_string(mounted.site.path("said")).expect("it said"), "begun\n5\n");
    mounted.site.is_storage_silent = false;
    // The job is not what is to blame. For a while whoever asks again is told so at once.
    let begun = clock.now();
    while mounted.run(&inputs, "cat \"$ZG_INPUT_DIR\"/* | wc -c").0 != Cause::None {
        assert!(clock.now().since(begun) < Duration::from_secs(15), "storage answers again");
    }
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_tree_is_shown_and_its_bytes_come_when_they_are_read() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let (pack, large) = (b"onetwo#!/bin/sh\necho ran".to_vec(), bytes(3 * MIB));
    let mut to = wire::tree::TreeWriter::new(1000);
    let packed = to.add_stored(mounted.site.store(&pack).1, pack.len() as u64);
    let whole = to.add_stored(mounted.site.store(&large).1, large.len() as u64);
    to.open_directory(0);
    let directory = to.add_directory(b"d", 1);
    let tool = to.add_file(b"tool", 1_700_000_000, true, 18);
    let two = to.add_file(b"two", -5, false, 3);
    to.close_directory(0);
    to.open_directory(directory);
    let big = to.add_file(b"large", 7, false, large.len() as u64);
    to.add_symlink(b"link", 7, b"../two");
    to.close_directory(directory);
    to.set_content(tool, content::hash_bytes(&pack[6..]), Some((packed, 6)));
    to.set_content(two, content::hash_bytes(b"two"), Some((packed, 3)));
    to.set_content(big, content::hash_bytes(&large), Some((whole, 0)));
    let (file, input) = mounted.input(&to.finish(), b"tree");
    let inputs = [(file, Input { is_tree: true, ..input })];
    let script = "cd \"$ZG_INPUT_DIR/tree\"; find . -mindepth 1 -printf '%p %y %m %s %T@ %l\n' | sort
        cat d/link; ./tool; wc -c <d/large; cksum <d/large";
    let (cause, with, stderr) = mounted.run(&inputs, script);
    assert_eq!((cause, &*stderr), (Cause::None, ""));
    assert!(with.contains("./two f 444 3 -5.0000000000 \n") && with.contains("\ntworan\n3145728\n"), "{with}");
    assert_eq!(running.terminate(), Some(0));
    let _running = mounted.site.start_in_cluster_with("fuse = false");
    let (cause, without, stderr) = mounted.run(&inputs, script);
    assert_eq!((cause, &*stderr), (Cause::None, ""));
    let plain = |said: &str| {
        said.lines()
            .filter(|line| !line.contains(" d ") && !line.contains(" l "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(plain(&with), plain(&without));
}

/// What becomes of those who wait for bytes when the worker gets a signal that it cannot act upon.
fn waiting_readers_are_let_go_after(killing: i32) {
    let Some(mut mounted) = Mounted::new() else { return };
    let inputs = [mounted.input(&bytes(64 * MIB), b"f")];
    let running = mounted.site.start_in_cluster_with("read_timeout_ms = 60000");
    let job = mounted.begin(&inputs, "echo begun; exec sleep 1000", "said");
    mounted.site.is_storage_silent = true;
    let path = format!("{}/fs/job/{job}/in/f", mounted.dir().display());
    let mut readers: Vec<Child> = (0..8)
        .map(|number| match number % 2 {
            0 => reader(&format!("exec dd if={path} bs=4k skip={} count=1 status=none", number * 1000)),
            _ => reader(&format!("exec grep -c x {path}")),
        })
        .collect();
    // They have come as far as they can.
    std::thread::sleep(Duration::from_secs(1));
    assert!(readers.iter_mut().all(|reader| reader.try_wait().expect("it is ours").is_none()), "they wait");
    signal(running.child.id(), killing);
    for reader in &mut readers {
        wait_until("it is let go", Duration::from_secs(15), || reader.try_wait().expect("it is ours").is_some());
        assert!(!reader.wait().expect("it ended").success());
    }
    wait_until("the mount is gone", Duration::from_secs(2), || mounted.listed().is_empty());
    if killing == libc::SIGSTOP {
        signal(running.child.id(), libc::SIGCONT);
    }
}

#[test]
fn those_who_wait_for_bytes_of_a_killed_worker_are_let_go() {
    waiting_readers_are_let_go_after(libc::SIGKILL);
}

#[test]
fn those_who_wait_for_bytes_of_a_stopped_worker_are_let_go() {
    waiting_readers_are_let_go_after(libc::SIGSTOP);
}

#[test]
fn a_bit_that_flips_in_a_part_of_the_cache_is_never_seen_and_one_in_storage_is_an_error() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let content = bytes(24 * MIB);
    let inputs = [mounted.input(&content, b"f")];
    let some = "dd if=\"$ZG_INPUT_DIR/f\" bs=1M skip=10 count=2 status=none | cksum";
    let (cause, right, _) = mounted.run(&inputs, some);
    assert_eq!(cause, Cause::None);
    assert_eq!(running.terminate(), Some(0));
    let part = mounted.site.path("data/cache/partial").join(format!("{}.part", inputs[0].0));
    {
        use std::os::unix::fs::FileExt;
        let part = fs::File::options().read(true).write(true).open(&part).expect("it is here in part");
        let mut byte = [0];
        part.read_exact_at(&mut byte, 10 * MIB as u64 + 5).expect("it is there");
        part.write_all_at(&[byte[0] ^ 1], 10 * MIB as u64 + 5).expect("it is ours");
    }
    let running = mounted.site.start_in_cluster_with("read_timeout_ms = 3000");
    assert_eq!(mounted.run(&inputs, some), (Cause::None, right, String::new()));
    // Storage has something else under the name: it is never shown.
    let file = inputs[0].0;
    let id = file.to_string();
    let stored = mounted.site.path("store/files").join(&id[..2]).join(&id[2..4]).join(format!("{id}.dat"));
    {
        use std::os::unix::fs::FileExt;
        let stored = fs::File::options().write(true).open(&stored).expect("it is there");
        stored.write_all_at(&[content[20 * MIB + 5] ^ 1], 20 * MIB as u64 + 5).expect("it is ours");
    }
    let other = "dd if=\"$ZG_INPUT_DIR/f\" bs=1M skip=20 count=1 status=none | cksum;                  dd if=\"$ZG_INPUT_DIR/f\" of=/dev/null bs=1M skip=20 count=1";
    let (cause, stdout, stderr) = mounted.run(&inputs, other);
    assert_eq!((cause, &*stdout), (Cause::InputMissing, "4294967295 0\n"), "{stderr}");
    assert!(stderr.contains("Input/output error"), "{stderr}");
    drop(running);
}
