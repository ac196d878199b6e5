//! A slot process runs real programs: it says how they ended, measures them, and leaves nothing of them behind.

mod bench;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use bench::{Bench, EXECUTABLE, a_slot, children, end, failure, is_alive, report, run, started, string};
use worker::slot::{Command, Ended, Report, SlotEvent};

#[test]
fn a_program_that_does_nothing_exits_with_0() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let end = run(&mut slot, bench.program("/bin/true", &[]));
    assert_eq!(end.ended, Ended::Code(0));
    assert!(end.rss_max_bytes > 0 && end.duration > Duration::ZERO, "{end:?}");
    assert!(slot.is_idle());
    assert_eq!(slot.try_recv(), None);
}

#[test]
fn an_exit_code_and_a_signal_are_told_apart() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    assert_eq!(run(&mut slot, bench.script("exit 137")).ended, Ended::Code(137));
    assert_eq!(run(&mut slot, bench.script("kill -9 $$")).ended, Ended::Signal(libc::SIGKILL));
    assert_eq!(run(&mut slot, bench.script("exit 255")).ended, Ended::Code(255));
}

#[test]
fn a_program_that_is_not_there_fails_with_127() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let missing = [&b"/no/such/program"[..], b"no-such-program", b"./no-such-program", b""];
    for program in missing {
        let (exit_code, message) = failure(&mut slot, bench.program(program, &[]));
        assert_eq!((exit_code, message.contains("No such file")), (127, true), "{message}");
    }
    assert_eq!(run(&mut slot, bench.script("")).ended, Ended::Code(0));
}

#[test]
fn a_program_that_cannot_be_run_fails_with_126_and_says_why() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    bench.file("data", "", 0o644);
    let (exit_code, message) = failure(&mut slot, bench.program("./data", &[]));
    assert_eq!((exit_code, message.contains("Permission denied")), (126, true), "{message}");
    let (exit_code, message) = failure(&mut slot, bench.program("/tmp", &[]));
    assert_eq!((exit_code, message.contains("/tmp")), (126, true), "{message}");

    let mut start = bench.program("/bin/true", &[]);
    start.directory = string("/no/such/directory");
    let (exit_code, message) = failure(&mut slot, start);
    assert_eq!((exit_code, message.contains("/no/such/directory")), (126, true), "{message}");

    let mut start = bench.program("/bin/true", &[]);
    start.stdin = string("/no/such/input");
    let (exit_code, message) = failure(&mut slot, start);
    assert_eq!((exit_code, message.contains("standard input")), (126, true), "{message}");

    // More than any kernel takes, and one argument longer than any kernel takes.
    let many = vec![&[b'x'; 1000][..]; 7000];
    for arguments in [&many[..], &[&[b'x'; 200_000]]] {
        let (exit_code, message) = failure(&mut slot, bench.program("/bin/true", arguments));
        assert_eq!((exit_code, message.contains("Argument list too long")), (126, true), "{message}");
    }
    assert_eq!(run(&mut slot, bench.script("")).ended, Ended::Code(0));
}

#[test]
fn a_script_that_names_no_interpreter_runs_in_the_shell() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    bench.file("script", "printf '%s,' \"$@\"; exit 3\n", 0o755);
    assert_eq!(run(&mut slot, bench.program("./script", &[b"a b", b"c"])).ended, Ended::Code(3));
    assert_eq!(bench.stdout(), b"a b,c,");
}

#[test]
fn a_bare_name_is_found_in_the_path_of_the_run() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    fs::create_dir_all(bench.path("bin/true")).expect("the temporary directory is writable");
    fs::create_dir(bench.path("own")).expect("the temporary directory is writable");
    bench.file("own/true", "#!/bin/sh\necho own\n", 0o755);
    let mut start = bench.program("true", &[]);
    start.variables = vec![string("PATH=/nowhere:bin:own:/bin")];
    assert_eq!(run(&mut slot, start).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"own\n");
}

#[test]
fn arguments_and_variables_arrive_byte_for_byte() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let words = [&b"two words"[..], b"", b"new\nline", b"\xff\xfe", b"'\"$x\\"];
    let mut arguments = vec![&b"-c"[..], b"printf '%s\\0' \"$@\" \"$ODD\"; env | wc -l", b"sh"];
    arguments.extend(words);
    let mut start = bench.program("/bin/sh", &arguments);
    start.variables = vec![string("PATH=/bin:/usr/bin"), string(b"ODD=\xfe\tx"), string("PWD=/")];
    assert_eq!(run(&mut slot, start).ended, Ended::Code(0));
    let mut expected = words.join(&0);
    // Nothing of the environment of the worker is among the three.
    expected.extend_from_slice(b"\0\xfe\tx\x003\n");
    assert_eq!(bench.stdout(), expected);
}

#[test]
fn a_megabyte_of_arguments_arrives() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let mut arguments = vec![&b"-c"[..], b"echo $#", b"sh"];
    arguments.extend(vec![&[b'x'; 1000][..]; 1000]);
    assert_eq!(run(&mut slot, bench.program("/bin/sh", &arguments)).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"1000\n");
}

#[test]
fn a_program_starts_with_no_signal_blocked_or_ignored_and_only_its_three_files() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    // ls itself holds the directory it lists.
    let script = "sed -n 's/^Sig\\(Blk\\|Ign\\):\t//p' /proc/self/status; ls /proc/self/fd | wc -l; nice";
    assert_eq!(run(&mut slot, bench.script(script)).ended, Ended::Code(0));
    let stdout = String::from_utf8(bench.stdout()).expect("numbers");
    let [blocked, ignored, files, niceness] = stdout.lines().collect::<Vec<_>>()[..] else { panic!("{stdout}") };
    let signals = |mask| u64::from_str_radix(mask, 16).expect("a hexadecimal mask");
    // glibc's posix_spawn ignores the two real-time signals that glibc keeps for itself.
    assert_eq!((signals(blocked), signals(ignored) & !0x1_8000_0000, files), (0, 0, "4"));
    let own = Program::new("nice").output().expect("nice is there");
    let own: i32 = String::from_utf8_lossy(&own.stdout).trim().parse().expect("a number");
    assert_eq!(niceness, (own + 5).min(19).to_string());
}

#[test]
fn a_spool_file_holds_the_output_of_the_last_run_only() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    assert_eq!(run(&mut slot, bench.script("echo a long line; echo error >&2")).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"a long line\n");
    assert_eq!(fs::read(bench.path("stderr")).expect("a run made it"), b"error\n");
    assert_eq!(run(&mut slot, bench.script("echo b")).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"b\n");
    assert_eq!(fs::read(bench.path("stderr")).expect("a run made it"), b"");

    let mut both = bench.script("echo c; echo d >&2; echo e");
    both.stderr = both.stdout.clone();
    assert_eq!(run(&mut slot, both).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"c\nd\ne\n");
}

#[test]
fn standard_input_comes_from_its_file() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let mut start = bench.program("/bin/cat", &[]);
    start.stdin = string(bench.file("input", "given", 0o644).as_os_str().as_bytes());
    assert_eq!(run(&mut slot, start).ended, Ended::Code(0));
    assert_eq!(bench.stdout(), b"given");
}

#[test]
fn a_daemon_is_gone_when_its_run_is_reported() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    // A double fork into a new session that keeps standard output open and ignores what it can.
    bench.file("daemon.sh", "#!/bin/sh\ntrap '' TERM HUP\nsleep 1000 &\necho $$ >daemon\nwait\n", 0o755);
    let start = bench.script("setsid sh -c './daemon.sh &' & while [ ! -s daemon ]; do sleep 0.01; done");
    assert_eq!(run(&mut slot, start).ended, Ended::Code(0));
    let daemon = bench.pid_in("daemon");
    assert!(!Path::new(&format!("/proc/{daemon}")).exists());
    assert_eq!(children(slot.pid()), "");
}

#[test]
fn a_program_that_forks_and_exits_for_ever_is_caught() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    bench.file("runner", "#!/bin/sh\n./runner &\n./runner2 &\n", 0o755);
    bench.file("runner2", "#!/bin/sh\necho here >ran\nsleep 0.01\nexec ./runner2\n", 0o755);
    let end = run(&mut slot, bench.program("./runner", &[]));
    assert_eq!(end.ended, Ended::Code(0));
    assert_eq!(children(slot.pid()), "");
    assert!(end.duration < Duration::from_secs(2), "{end:?}");
}

#[test]
fn a_terminated_program_may_end_in_its_own_way() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let start = bench.script("trap 'exit 7' TERM; sleep 1000 & echo $$ >ready; wait");
    let run = start.run;
    started(&mut slot, start);
    bench.pid_in("ready");
    slot.terminate(run);
    assert_eq!(end(&mut slot, run).ended, Ended::Code(7));
}

#[test]
fn a_program_that_ignores_terminate_dies_of_kill() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let start =
        bench.script("trap '' TERM; sh -c 'echo $$ >child; exec sleep 1000' & echo $$ >ready; while :; do wait; done");
    let run = start.run;
    let pid = started(&mut slot, start);
    assert_eq!(bench.pid_in("ready"), pid);
    let child = bench.pid_in("child");
    slot.terminate(run);
    slot.kill(run);
    assert_eq!(end(&mut slot, run).ended, Ended::Signal(libc::SIGKILL));
    assert_eq!((is_alive(pid), is_alive(child)), (false, false));
    // Commands that cross the report change nothing.
    slot.kill(run);
    assert_eq!(self::run(&mut slot, bench.script("exit 4")).ended, Ended::Code(4));
}

#[test]
fn a_run_that_waits_starts_after_the_one_before_or_not_at_all() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let first = started(&mut slot, bench.script("sleep 1000"));
    slot.start(bench.script("exit 2")).expect("short enough");
    slot.start(bench.script("exit 3")).expect("short enough");
    slot.terminate(2);
    assert_eq!(end(&mut slot, 2).ended, Ended::Signal(libc::SIGTERM));
    assert!(is_alive(first));
    slot.kill(1);
    assert_eq!(end(&mut slot, 1).ended, Ended::Signal(libc::SIGKILL));
    assert!(matches!(report(&mut slot), Report::Started { run: 3, .. }));
    assert_eq!(end(&mut slot, 3).ended, Ended::Code(3));
}

#[test]
fn the_cpu_time_of_every_descendant_counts() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    bench.file("busy", "#!/bin/sh\ni=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $$ >done\n", 0o755);
    // Nobody but the slot process reaps the busy one.
    let orphan = "(setsid ./busy &) ; while [ ! -s done ]; do sleep 0.01; done";
    let nothing = run(&mut slot, bench.script("while [ ! -s /etc/passwd ]; do sleep 0.01; done"));
    let end = run(&mut slot, bench.script(orphan));
    assert_eq!(end.ended, Ended::Code(0));
    assert!(end.cpu > nothing.cpu + Duration::from_millis(20), "{end:?} {nothing:?}");
    // The next run starts from nothing.
    let next = run(&mut slot, bench.script(""));
    assert!(next.cpu < Duration::from_millis(20), "{next:?}");
}

#[test]
fn closing_the_link_ends_the_slot_process_and_all_it_started() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let start = bench.script("setsid sh -c 'echo $$ >daemon; exec sleep 1000' & sleep 1000");
    let pids = [started(&mut slot, start), bench.pid_in("daemon"), slot.pid()];
    drop(slot);
    assert_eq!(pids.map(is_alive), [false; 3]);
}

#[test]
fn killing_the_process_that_holds_the_link_ends_all_it_started() {
    let mut bench = Bench::new();
    let (link, other) = UnixStream::pair().expect("a socket pair");
    let mut slot = Program::new(EXECUTABLE).arg("slot").stdin(OwnedFd::from(other)).spawn().expect("it is there");
    let start =
        bench.script("trap '' TERM HUP; setsid sh -c 'echo $$ >daemon; exec sleep 1000' & echo $$ >main; sleep 1000");
    let mut frame = Vec::new();
    Command::Start(start).append_to(&mut frame).expect("short enough");
    std::io::Write::write_all(&mut &link, &frame).expect("the slot process reads it");
    let pids = [bench.pid_in("main"), bench.pid_in("daemon"), slot.id()];
    // From here on this process alone holds the link, as a worker would.
    let mut worker = Program::new("sleep").arg("1000").stdin(OwnedFd::from(link)).spawn().expect("sleep is there");
    assert_eq!(pids.map(is_alive), [true; 3]);
    worker.kill().expect("it runs");
    worker.wait().expect("it was killed");
    assert!(slot.wait().expect("it ends").success());
    assert_eq!(pids.map(is_alive), [false; 3]);
}

#[test]
fn a_slot_process_that_dies_is_an_event_and_its_run_dies_too() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    let start = bench.script("sleep 1000");
    let run = start.run;
    let pid = started(&mut slot, start);
    Program::new("kill").arg("-9").arg(slot.pid().to_string()).status().expect("kill is there");
    match slot.recv().expect("a link can be waited for") {
        Some(SlotEvent::Died { unfinished, status, is_stillborn: false, is_out_of_memory: false }) => {
            assert_eq!(unfinished, [run]);
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        }
        other => panic!("the slot process died, but {other:?}"),
    }
    assert!(!is_alive(pid));
    assert_eq!(slot.recv().expect("a link can be waited for"), None);
}

#[test]
fn signals_to_the_slot_process_do_not_disturb_it() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    // Before its first words it is still a process like any other.
    assert_eq!(run(&mut slot, bench.script("exit 0")).ended, Ended::Code(0));
    for signal in ["TERM", "INT", "HUP", "USR1", "PIPE", "TSTP"] {
        Program::new("kill").args(["-s", signal, &slot.pid().to_string()]).status().expect("kill is there");
    }
    assert_eq!(run(&mut slot, bench.script("exit 5")).ended, Ended::Code(5));
}

#[test]
fn a_thousand_runs_leave_no_zombie() {
    let (mut bench, mut slot) = (Bench::new(), a_slot());
    for _ in 0..1000 {
        assert_eq!(run(&mut slot, bench.program("/bin/true", &[])).ended, Ended::Code(0));
    }
    assert_eq!(children(slot.pid()), "");
    assert!(slot.is_idle());
}

#[test]
fn without_a_link_a_slot_process_says_so_and_leaves() {
    let output = Program::new(EXECUTABLE).arg("slot").stdin(Stdio::null()).output().expect("it is there");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Socket operation on non-socket"), "{output:?}");
}
