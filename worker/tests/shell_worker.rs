//! A real worker runs real programs: for a peer that knows only the seed's structs, and for a cluster made by hand.

mod site;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use site::{Site, is_alive};
use wire::job::{Input, JobSpec};
use wire::record::ChunkResult;
use wire::{ArraySpec, Cause, FixedPart, JobId, PeerId, U64, WorkerRequest};

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn array(text: &str) -> ArraySpec {
    ArraySpec::parse(text).expect("an array")
}

fn ended(result: &ChunkResult) -> (Option<u8>, Option<u8>, Cause) {
    (result.exit_code, result.signal, result.cause)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test waits for other processes")]
    let now = Instant::now;
    let deadline = now() + Duration::from_secs(30);
    while !is_so() {
        assert!(now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a bare 57-byte worker_request with a program, and returns the first 42 bytes of every status that answers it,
/// up to the last one.
fn run_as_a_seed_peer(site: &mut Site, worker: PeerId, job: JobId, program: &[u8]) -> Vec<Vec<u8>> {
    let request = WorkerRequest {
        job_uuid: job.into(),
        program_length: U64::new(program.len() as u64),
        ..WorkerRequest::DEFAULT
    };
    let node = site.load_balancer.node;
    site.load_balancer.send(worker, request.seed_frame(node, program));
    let job_bytes = { [job.halves().0.to_le_bytes(), job.halves().1.to_le_bytes()].concat() };
    let mut statuses = Vec::new();
    wait_until("the job has ended", || {
        for came in site.load_balancer.hear() {
            let frame = &came.frames[0];
            if frame[0] == 2 && frame[25..41] == job_bytes {
                statuses.push(frame[..42].to_vec());
            }
        }
        statuses.last().is_some_and(|status| status[41] >= 5)
    });
    statuses
}

/// The worker's connection, by its first words: a status of state 0.
fn first_words(site: &mut Site) -> PeerId {
    let mut worker = None;
    wait_until("the worker speaks", || {
        for came in site.load_balancer.hear() {
            assert_eq!((came.frames[0][0], came.frames[0][41]), (2, 0));
            worker = Some(came.from);
        }
        worker.is_some()
    });
    worker.expect("the loop ends with one")
}

#[test]
fn a_peer_that_knows_only_the_seeds_structs_has_its_program_run() {
    let mut site = Site::new();
    let mut running = site.start_alone();
    let worker = first_words(&mut site);
    let proof = site.path("proof");
    let program = format!("#!/bin/sh\necho $ZG_CHUNK $ZG_CHUNK_COUNT $ZG_ATTEMPT >'{}'\n", proof.display());
    let job = JobId::now();
    let statuses = run_as_a_seed_peer(&mut site, worker, job, program.as_bytes());
    assert_eq!(fs::read_to_string(&proof).expect("the program wrote it"), "0 1 1\n");
    let states: Vec<u8> = statuses.iter().map(|status| status[41]).collect();
    assert_eq!(states, [1, 3, 5], "accepted, running, succeeded");
    for status in &statuses {
        let node: wire::NodeId = fs::read_to_string(site.path("node")).expect("written").parse().expect("a uuid");
        assert_eq!(status[1..9], node.halves().0.to_le_bytes());
        assert_eq!(status[9..17], node.halves().1.to_le_bytes());
        assert!(u64::from_le_bytes(status[17..25].try_into().expect("eight bytes")) >= 42);
    }
    let statuses = run_as_a_seed_peer(&mut site, worker, job, b"#!/bin/sh\nexit 3\n");
    assert_eq!(statuses.last().expect("one")[41], 6, "failed");
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn many_programs_one_after_the_other_are_never_busy() {
    let mut site = Site::new();
    let _running = site.start_alone();
    let worker = first_words(&mut site);
    for _ in 0..60 {
        let statuses = run_as_a_seed_peer(&mut site, worker, JobId::now(), b"#!/bin/sh\nexit 0\n");
        assert_eq!(statuses.last().expect("one")[41], 5);
    }
}

#[test]
fn a_killed_worker_leaves_no_orphan() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let pids = site.path("pids");
    let script = format!(
        "echo $$ >>'{0}'; setsid sh -c 'echo $$ >>\"{0}\"; trap \"\" TERM; while :; do sleep 100; done' & wait",
        pids.display()
    );
    let spec = JobSpec { arguments: words(&["sh", "-c", &script]), ..JobSpec::default() };
    site.assign(JobId::now(), 0, 1, b"", &[], &spec);
    let lines = || fs::read_to_string(&pids).unwrap_or_default();
    wait_until("both processes run", || lines().lines().count() == 2);
    running.kill();
    wait_until("nothing is left", || !lines().lines().any(is_alive));
}

#[test]
fn sigterm_ends_programs_and_the_worker() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    let pid = site.path("pid");
    let script = format!("echo $$ >'{}'; exec sleep 1000", pid.display());
    let spec = JobSpec { arguments: words(&["sh", "-c", &script]), ..JobSpec::default() };
    site.assign(JobId::now(), 0, 1, b"", &[], &spec);
    let line = || fs::read_to_string(&pid).unwrap_or_default();
    wait_until("the program runs", || line().ends_with('\n'));
    assert_eq!(running.terminate(), Some(0));
    assert!(!is_alive(line().trim()));
}

#[test]
fn chunks_that_write_nothing_are_reported_and_those_that_write_are_stored_first() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let quiet = JobSpec { arguments: words(&["true"]), array: array("0-199"), ..JobSpec::default() };
    let job = site.run(b"", &[], &quiet);
    assert!(site.results.values().all(|result| result.bundle.is_none() && result.cause == Cause::None));
    assert_eq!(site.results.range((job, 0)..).count(), 200);

    let script = "echo chunk {}; echo oops >&2; [ $ZG_CHUNK != 3 ]";
    let loud = JobSpec { arguments: words(&["sh", "-c", script]), array: array("1-40"), ..JobSpec::default() };
    let job = site.run(b"", &[], &loud);
    for chunk in 0..40 {
        let result = site.results[&(job, chunk)];
        let streams = site.streams(result.bundle);
        assert_eq!((streams.stdout(), streams.stderr()), (&*format!("chunk {}\n", chunk + 1), "oops\n"));
        assert_eq!(result.cause, if chunk == 2 { Cause::Exit } else { Cause::None });
        assert!(result.started_at.0 > 0 && result.max_rss_kib > 0);
    }
    assert_eq!(site.repeated, 0);
}

#[test]
fn an_output_that_does_not_keep_still_harms_no_other() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let live = site.path("live");
    std::fs::write(&live, [0; 4096]).expect("written");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = std::fs::OpenOptions::new().write(true).open(&live).expect("opened");
            let clock = node::Clock::new();
            let until = clock.now() + Duration::from_secs(60);
            let mut round = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && clock.now() < until {
                round += 1;
                file.write_all_at(&round.to_le_bytes(), 0).expect("written");
            }
        });
        let link =
            format!("[ {{}} != 2 ] || ln {} $ZG_OUTPUT_DIR/live; echo {{}} > $ZG_OUTPUT_DIR/own", live.display());
        let spec = JobSpec { arguments: words(&["sh", "-c", &link]), array: array("1-6"), ..JobSpec::default() };
        let job = site.run(b"", &[], &spec);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let still: Vec<u32> = (0..6).filter(|chunk| site.results[&(job, *chunk)].cause == Cause::None).collect();
        assert!([0, 2, 3, 4, 5].iter().all(|chunk| still.contains(chunk)), "{still:?}");
        assert!(still.iter().all(|chunk| site.results[&(job, *chunk)].bundle.is_some()));
    });
}

#[test]
fn a_program_sees_what_it_was_promised() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let (first, first_hash) = site.store(b"0123456789");
    let (second, second_hash) = site.store(b"#!/bin/sh\necho ran \"$1\"\n");
    let input = |hash, file_length, path: &str| {
        let path = path.as_bytes().to_vec();
        Input { hash, file_length, path, ..Input::default() }
    };
    let spec = JobSpec {
        arguments: words(&["./my prog", "{}|%{ATTEMPT}|ä\n"]),
        array: array("7-9:2"),
        entries: words(&["line one", "line two"]),
        environment: vec![(b"MINE".to_vec(), b"a b=c".to_vec())],
        inputs: vec![
            input(first_hash, 10, "in put/whole"),
            Input { piece: Some((3, 4)), ..input(first_hash, 10, "piece") },
            Input { executable: true, ..input(second_hash, 24, "tool") },
        ],
        stdin_input: Some(0),
        ..JobSpec::default()
    };
    let program = b"#!/bin/sh\nprintf '%s' \"$0|$1\" >&2
        cat; cat \"$ZG_INPUT_DIR/piece\"; \"$ZG_INPUT_DIR/tool\" \"$MINE\"; echo \"$ZG_ENTRY $ZG_CHUNK $ZG_JOB_NUMBER\"
        [ \"$PWD\" = \"$ZG_SCRATCH_DIR\" ] && echo here; ls; touch litter
        echo result >\"$ZG_OUTPUT_DIR/r\"; mkdir \"$ZG_OUTPUT_DIR/d\"; echo two >\"$ZG_OUTPUT_DIR/d/x y\"\n";
    let job = site.run(program, &[first, first, second], &spec);
    for (chunk, number, line) in [(0, 7, "line one"), (1, 9, "line two")] {
        let result = site.results[&(job, chunk)];
        let streams = site.streams(result.bundle);
        assert_eq!(ended(&result), (Some(0), None, Cause::None), "{streams:?}");
        let expected = format!("01234567893456ran a b=c\n{line} {number} 4\nhere\n");
        assert_eq!(streams.stdout(), expected);
        assert!(streams.stderr().ends_with(&format!("program|{number}|1|ä\n")), "{streams:?}");
        let outputs: Vec<_> = streams.outputs.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        assert_eq!(outputs, [("d/x y", &b"two\n"[..]), ("r", b"result\n")]);
    }
    let script = "stat -c %a \"$ZG_INPUT_DIR/piece\"";
    let arguments = words(&["sh", "-c", script]);
    let job = site.run(b"", &[first], &JobSpec { arguments, inputs: vec![spec.inputs[1].clone()], ..spec });
    assert_eq!(site.streams(site.results[&(job, 0)].bundle).stdout(), "444\n");
}

#[test]
fn an_input_that_a_program_writes_to_is_whole_again_for_the_next_job() {
    let mut site = Site::new();
    // In the mount nobody can write to it.
    let mut running = site.start_in_cluster_with("fuse = false");
    let (file, hash) = site.store(b"original");
    let input = Input { hash, file_length: 8, path: b"f".to_vec(), ..Input::default() };
    let run = |site: &mut Site, script: &str| {
        let arguments = words(&["sh", "-c", script]);
        let spec = JobSpec { arguments, inputs: vec![input.clone()], ..JobSpec::default() };
        let job = site.run(b"", &[file], &spec);
        site.streams(site.results[&(job, 0)].bundle)
    };
    let read = "cat \"$ZG_INPUT_DIR/f\"";
    // As long as before, as old as before, and with the rights of before: the program may be root, or the worker's user.
    // The pause is a tick of older kernels' clock of changes.
    let forge = "sleep 0.02; cd \"$ZG_INPUT_DIR\"; touch -r f \"$ZG_SCRATCH_DIR/old\"; chmod u+w f
        printf FORGED!! >f; chmod a-w f; touch -r \"$ZG_SCRATCH_DIR/old\" f; cat f";
    for change in [forge, "cd \"$ZG_INPUT_DIR\"; chmod u+w f; printf '!' >>f; cat f", "printf '' >\"$ZG_INPUT_DIR/f\""]
    {
        assert_ne!(run(&mut site, change).stdout(), "original", "{change}");
        assert_eq!(run(&mut site, read).stdout(), "original", "{change}");
    }
    // What was changed while no worker looked.
    run(&mut site, forge);
    assert_eq!(running.terminate(), Some(0));
    let _running = site.start_in_cluster_with("fuse = false");
    assert_eq!(run(&mut site, read).stdout(), "original");
}

#[test]
fn each_failure_has_its_cause_and_its_words() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let (result, streams) = site.shell("echo why >&2; echo more >\"$ZG_ERROR_FILE\"; exit 9", JobSpec::default());
    assert_eq!((ended(&result), streams.stderr()), ((Some(9), None, Cause::Exit), "why\nmore\n"));
    let (result, _) = site.shell("kill -11 $$", JobSpec::default());
    assert_eq!(ended(&result), (None, Some(11), Cause::Signal));

    let unknown = JobSpec { arguments: words(&["no-such-program"]), ..JobSpec::default() };
    let job = site.run(b"", &[], &unknown);
    let result = site.results[&(job, 0)];
    assert_eq!(ended(&result), (Some(127), None, Cause::Exit));
    let said = site.streams(result.bundle);
    assert!(said.stderr().starts_with("zg: ") && said.stderr().contains("no-such-program"), "{said:?}");
    let directory = JobSpec { arguments: words(&["/tmp"]), ..JobSpec::default() };
    let job = site.run(b"", &[], &directory);
    assert_eq!(site.results[&(job, 0)].exit_code, Some(126));

    let limited = JobSpec { time_limit_ms: 200, ..JobSpec::default() };
    let (result, streams) = site.shell("trap '' TERM; echo begun; sleep 100; sleep 100", limited);
    assert_eq!((result.cause, streams.stdout()), (Cause::Timeout, "begun\n"));

    let declared = JobSpec { outputs: words(&["*.txt"]), ..JobSpec::default() };
    let (result, streams) = site.shell("echo text >a.txt; echo other >b.log", declared.clone());
    let names: Vec<&str> = streams.outputs.keys().map(String::as_str).collect();
    assert_eq!((result.cause, names), (Cause::None, vec!["a.txt"]));
    let (result, streams) = site.shell("echo done", declared);
    assert_eq!(ended(&result), (Some(0), None, Cause::Policy));
    assert_eq!((streams.stdout(), streams.stderr()), ("done\n", "zg: no output matches '*.txt'\n"));

    let missing = Input { file_length: 1, path: b"x".to_vec(), ..Input::default() };
    let spec = JobSpec { arguments: words(&["true"]), inputs: vec![missing], ..JobSpec::default() };
    let job = site.run(b"", &[wire::FileId([1; 16])], &spec);
    assert_eq!(site.results[&(job, 0)].cause, Cause::InputMissing);
}

#[test]
fn a_large_standard_output_arrives_whole() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let (result, streams) = site.shell("head -c 104857600 /dev/zero; echo end", JobSpec::default());
    assert_eq!(result.bundle.expect("it wrote").stdout_length, 104_857_604);
    assert!(streams.stdout.ends_with(b"\0end\n"));
    wait_until("nothing is left of it", || {
        fs::read_dir(site.path("data/outbox")).expect("it is there").next().is_none()
    });
}

#[test]
fn a_run_leaves_nothing_to_the_next() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    for script in [
        "touch a .b; mkdir -p c/d; chmod 0 c; ln -s / out-link",
        "rm -rf \"$ZG_OUTPUT_DIR\"; ln -s /etc \"$ZG_OUTPUT_DIR\"",
        "cd /; rmdir \"$ZG_SCRATCH_DIR\" \"$ZG_OUTPUT_DIR\"",
        "setsid sleep 1000 & echo away",
    ] {
        // Once in each slot.
        for _ in 0..2 {
            let (result, streams) = site.shell(script, JobSpec::default());
            assert_eq!((result.cause, streams.outputs.len()), (Cause::None, 0), "{script}");
            let look = "ls -A . \"$ZG_OUTPUT_DIR\"/ | grep -v : ; [ -L \"$ZG_OUTPUT_DIR\" ] && echo link; true";
            let (_, streams) = site.shell(look, JobSpec::default());
            assert_eq!(streams.stdout().trim(), "", "after {script}");
        }
    }
}

#[test]
fn a_worker_that_is_started_again_is_a_new_boot_with_a_clean_desk() {
    let mut site = Site::new();
    let mut running = site.start_in_cluster();
    site.shell("echo x >\"$ZG_OUTPUT_DIR/x\"; echo y >y", JobSpec::default());
    let boot = site.boot;
    running.kill();
    let _running = site.start_in_cluster();
    assert!(site.boot > boot);
    assert_eq!(fs::read_dir(site.path("data/jobs")).expect("it is there").count(), 0);
    let (result, streams) = site.shell("echo again", JobSpec::default());
    assert_eq!((result.cause, streams.stdout()), (Cause::None, "again\n"));
}

#[test]
fn a_stored_program_runs_and_may_run_elsewhere() {
    let mut site = Site::new();
    let _running = site.start_in_cluster();
    let text = b"#!/bin/sh\necho \"$PWD $1\"; echo kept >kept-$ZG_CHUNK.txt\n";
    let (file, hash) = site.store(text);
    let tool = Input { hash, file_length: text.len() as u64, path: b"bin/tool".to_vec(), ..Input::default() };
    let elsewhere = site.path("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    let spec = JobSpec {
        arguments: words(&["tool", "%{CHUNK}"]),
        array: array("3"),
        inputs: vec![tool],
        program_input: Some(0),
        cwd: elsewhere.as_os_str().as_encoded_bytes().to_vec(),
        outputs: words(&["kept-%{CHUNK}.*"]),
        ..JobSpec::default()
    };
    let job = site.run(b"", &[file], &spec);
    let result = site.results[&(job, 0)];
    let streams = site.streams(result.bundle);
    assert_eq!((result.cause, streams.stdout()), (Cause::None, &*format!("{} 3\n", elsewhere.display())));
    assert_eq!(streams.outputs["kept-3.txt"], b"kept\n");
    assert!(elsewhere.join("kept-3.txt").exists(), "a file in a directory of the user's stays there");
}
