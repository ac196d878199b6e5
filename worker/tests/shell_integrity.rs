//! What a chunk may have read that was not its input makes it fail, whatever its program made of it.
//!
//! On a machine where nothing can be mounted the tests that need it say so and end.

mod site;

use std::fs;
use std::path::Path;
use std::time::Duration;

use site::mounted::{MIB, Mounted, bytes, flip, script_over, signal, stored, wait_until};
use wire::job::{Input, JobSpec};
use wire::{ArraySpec, Cause, FileId, JobId};

const SUM: &str = "cksum <\"$ZG_INPUT_DIR/f\"";

/// A script that says a word in `said`, and goes on when `go` is there.
fn waits(said: &Path, go: &Path) -> String {
    format!("echo begun >'{}'; until [ -e '{}' ]; do sleep 0.01; done", said.display(), go.display())
}

/// Gives a range of a job of several chunks, numbered from 0.
fn assign(mounted: &mut Mounted, job: JobId, first: u32, count: u32, inputs: &[(FileId, Input)], script: &str) {
    let array = ArraySpec::parse("0-9").expect("an array");
    let spec = JobSpec { array, ..script_over(inputs, script) };
    let files: Vec<FileId> = inputs.iter().map(|(file, _)| *file).collect();
    mounted.site.assign(job, first, count, b"", &files, &spec);
}

fn cause(mounted: &mut Mounted, job: JobId, chunk: u32) -> Cause {
    mounted.site.until("the result", |site| site.results.contains_key(&(job, chunk)));
    mounted.site.results[&(job, chunk)].cause
}

#[test]
fn a_chunk_whose_input_is_changed_under_its_open_file_has_missed_it() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let inputs = [(b"f", 9 * MIB), (b"p", 24 * MIB), (b"s", 40_000)];
    let inputs = inputs.map(|(name, length)| mounted.input(&bytes(length), name));
    let sum = "cd \"$ZG_INPUT_DIR\"; dd if=p bs=1M skip=10 count=1 status=none | cksum; cksum f s";
    let (_, right, _) = mounted.run(&inputs, sum);
    let (_, right_sum, _) = mounted.run(&inputs, SUM);
    // Whoever reads what is wrong says so; that it was missed has to be known all the same.
    let is_right = format!("[ \"$(cksum <&3)\" = '{}' ] || exit 9", right_sum.trim());
    let closed = format!("{is_right}; exec 3<&-; sleep 0.3");
    let (said, go) = (mounted.site.path("said"), mounted.site.path("go"));
    let part = mounted.site.path("data/cache/partial").join(format!("{}.part", inputs[1].0));
    // Past us; past us and closed long before the end; through us, in part; through us and whole, where it is looked at.
    let ways = [
        (&inputs[0], "exec 3<f", &*is_right, Cause::InputMissing),
        (&inputs[0], "exec 3<f", &closed, Cause::InputMissing),
        (&inputs[1], "exec 3<p", "dd bs=1M skip=10 count=1 <&3 >/dev/null; true", Cause::InputMissing),
        (&inputs[2], "dd if=s iflag=nocache count=0 status=none; exec 3<s", "cksum f s >&2 <&3; true", Cause::None),
    ];
    for (input, open, read, expected) in ways {
        let script = format!("cd \"$ZG_INPUT_DIR\"; {open}; {}; {read}", waits(&said, &go));
        let job = JobId::now();
        assign(&mut mounted, job, 0, 1, &inputs, &script);
        mounted.site.until("it is open", |_| said.exists());
        let path = if input.1.path == b"p" { part.clone() } else { stored(&mounted, input) };
        flip(&path, 10 * MIB as u64 % input.1.file_length + 5);
        fs::write(&go, "").expect("written");
        assert_eq!(cause(&mut mounted, job, 0), expected, "{read}");
        let _ = (fs::remove_file(&said), fs::remove_file(&go));
        assert_eq!(mounted.run(&inputs, sum), (Cause::None, right.clone(), String::new()), "the next has it whole");
    }
    // A chunk that read what was right until its end has missed nothing.
    assert_eq!(mounted.run(&inputs, sum), (Cause::None, right, String::new()));
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn whoever_changes_an_open_input_and_puts_the_time_back_is_found_out() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    let (_, right, _) = mounted.run(&inputs, SUM);
    let (said, go) = (mounted.site.path("said"), mounted.site.path("go"));
    let job = JobId::now();
    let is_right = format!("[ \"$(cksum <&3)\" = '{}' ] || exit 9", right.trim());
    let script = format!("exec 3<\"$ZG_INPUT_DIR/f\"; {}; {is_right}", waits(&said, &go));
    assign(&mut mounted, job, 0, 1, &inputs, &script);
    mounted.site.until("it is open", |_| said.exists());
    let path = stored(&mounted, &inputs[0]);
    let modified = fs::metadata(&path).and_then(|it| it.modified()).expect("it has a time");
    flip(&path, 5 * MIB as u64);
    let times = fs::FileTimes::new().set_modified(modified);
    fs::File::open(&path).and_then(|file| file.set_times(times)).expect("it is ours");
    fs::write(&go, "").expect("written");
    assert_eq!(cause(&mut mounted, job, 0), Cause::InputMissing);
    assert_eq!(mounted.run(&inputs, SUM), (Cause::None, right, String::new()), "the next has it whole");
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_written_out_input_that_a_program_changes_is_missed_by_all_who_had_it_and_by_nobody_after() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster_with("fuse = false");
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    let (_, right, _) = mounted.run(&inputs, SUM);
    let (said, go) = (mounted.site.path("said"), mounted.site.path("go"));
    let reader = JobId::now();
    let script = format!("[ $ZG_CHUNK = 0 ] && {{ {}; }}; {SUM}", waits(&said, &go));
    assign(&mut mounted, reader, 0, 1, &inputs, &script);
    mounted.site.until("it runs", |_| said.exists());
    let write = "cd \"$ZG_INPUT_DIR\"; printf x | dd of=f bs=1 seek=5000 conv=notrunc status=none";
    let (written, _, stderr) = mounted.run(&inputs, write);
    assert_eq!((written, &*stderr), (Cause::InputMissing, ""));
    fs::write(&go, "").expect("written");
    assert_eq!(cause(&mut mounted, reader, 0), Cause::InputMissing);
    // Of the same job, and of another.
    assign(&mut mounted, reader, 1, 1, &inputs, &script);
    assert_eq!(cause(&mut mounted, reader, 1), Cause::None);
    let bundle = mounted.site.results[&(reader, 1)].bundle;
    assert_eq!(mounted.site.streams(bundle).stdout(), right);
    assert_eq!(mounted.run(&inputs, SUM), (Cause::None, right, String::new()));
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn chunks_of_a_stopped_worker_have_missed_their_inputs_and_the_next_finds_them() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let inputs = [mounted.input(&bytes(9 * MIB), b"f")];
    let (_, right, _) = mounted.run(&inputs, SUM);
    let said = mounted.site.path("said");
    let read = "while cat \"$ZG_INPUT_DIR/f\" >/dev/null 2>&1; do :; done";
    let script = format!("[ $ZG_CHUNK = 2 ] && exec {SUM}; echo >>'{}'; {read}; exit $ZG_CHUNK", said.display());
    let job = JobId::now();
    // There are two slots: the third starts as soon as one of the others has ended.
    assign(&mut mounted, job, 0, 3, &inputs, &script);
    mounted.site.until("they read", |_| fs::read(&said).is_ok_and(|said| said.len() == 2));
    signal(running.child.id(), libc::SIGSTOP);
    wait_until("the mount is gone", Duration::from_secs(15), || mounted.listed().is_empty());
    std::thread::sleep(Duration::from_secs(1));
    signal(running.child.id(), libc::SIGCONT);
    for chunk in [0, 1] {
        assert_eq!(cause(&mut mounted, job, chunk), Cause::InputMissing, "{chunk}");
    }
    assert_eq!(cause(&mut mounted, job, 2), Cause::None);
    let bundle = mounted.site.results[&(job, 2)].bundle;
    assert_eq!(mounted.site.streams(bundle).stdout(), right);
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn only_the_chunk_that_was_refused_its_input_has_missed_it() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut running = mounted.site.start_in_cluster();
    let (said, go) = (mounted.site.path("said"), mounted.site.path("go"));
    // Too large to be here before it is read.
    let inputs = [mounted.input(&bytes(9 * MIB), b"f"), mounted.input(b"text", b"g")];
    let [reader, idle, later] = [
        format!("setsid {SUM}; exit 0"),
        format!("until [ -e '{}2' ]; do sleep 0.01; done", go.display()),
        "exec cat \"$ZG_INPUT_DIR/g\"".to_owned(),
    ];
    let script = format!(
        "[ $ZG_CHUNK = 2 ] && {later}; echo >>'{}'; until [ -e '{}' ]; do sleep 0.01; done
         [ $ZG_CHUNK = 0 ] && {{ {reader}; }}; {idle}",
        said.display(),
        go.display()
    );
    let job = JobId::now();
    assign(&mut mounted, job, 0, 2, &inputs, &script);
    mounted.site.until("both run", |_| fs::read(&said).is_ok_and(|said| said.len() == 2));
    mounted.site.store.evict(inputs[0].0).expect("it is there");
    fs::write(&go, "").expect("written");
    assert_eq!(cause(&mut mounted, job, 0), Cause::InputMissing);
    assign(&mut mounted, job, 2, 1, &inputs, &script);
    assert_eq!(cause(&mut mounted, job, 2), Cause::None, "it came after");
    fs::write(mounted.site.path("go2"), "").expect("written");
    assert_eq!(cause(&mut mounted, job, 1), Cause::None, "it has read nothing");
    assert_eq!(running.terminate(), Some(0));
}
