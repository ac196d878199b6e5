//! Jobs of every kind, from submit to their outputs.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::dev::{Dev, ended_within, run, short_folder, until};
use crate::marks::Mark;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn one_command_runs_and_prints_and_its_exit_code_is_passed_on() {
    let dev = Dev::start(1);
    let said = dev.zg(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.code, said.text().as_str()), (Some(7), "out\n"));
    assert!(said.stderr.contains("err\n"), "{said:?}");
    let said = dev.zg(&["--quiet", "run", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(said.code, Some(137));
    let said = dev.zg(&["run", "--ignore-failures", "--", "false"]);
    assert_eq!(said.code, Some(0));

    let chunks = dev.chunks("2");
    assert_eq!((&chunks[0]["signal"], &chunks[0]["cause"]), (&json!(9), &json!("signal")));
    assert_eq!((&chunks[0]["exit_code"], &chunks[0]["stdout"]), (&Value::Null, &Value::Null));
    let job = dev.job("1");
    assert_eq!((&job["state"], &job["exit"], &job["chunks"]["failed"]), (&json!("failed"), &json!(1), &json!(1)));
    dev.stop();
}

#[test]
fn an_array_gives_each_chunk_its_number_and_its_logs_are_in_order() {
    let dev = Dev::start(2);
    let said = dev.zg(&["run", "--array", "3-30:3,1", "--", "echo", "{}", "%{CHUNK}", "%{ATTEMPT}"]).expect_success();
    let expected: String = (1..=10).map(|i| i * 3).chain([1]).map(|n| format!("{n} {n} 1\n")).collect();
    // Each as it ends.
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!((sorted(&said.text()), said.text().len()), (sorted(&expected), expected.len()));
    assert_eq!(dev.zg(&["job", "logs", "last"]).text(), expected);
    assert_eq!(dev.zg(&["job", "logs", "last.[9,12]"]).text(), "9 9 1\n12 12 1\n");
    let numbers: Vec<u64> = dev.chunks("last").iter().filter_map(|chunk| chunk["chunk"].as_u64()).collect();
    assert_eq!(numbers, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 1]);
    dev.zg(&["job", "logs", "last.2"]).expect_error(3, &["chunk 2"]);
    dev.stop();
}

#[test]
fn names_with_spaces_newlines_and_other_scripts_reach_the_program_unchanged() {
    let dev = Dev::start(1);
    let name = "häuser und\nwege";
    std::fs::write(dev.folder().join(name), "content\n").expect("written");
    let script = r#"cat "$ZG_INPUT_DIR/$1" "$ZG_INPUT_DIR/dir/$1"; printf '%s|' "$@" "$K"
        printf made >"$ZG_OUTPUT_DIR/$1"; printf kept >"matched $1.txt"; printf no >ignored"#;
    let renamed = format!("{name}:dir/{name}");
    let arguments = ["--input", name, "--input", &renamed, "--env", "K=v w\nü", "--output", "matched*.txt"];
    let tail = ["--", "sh", "-c", script, "sh", name, "a  b", ""];
    let said = dev.zg(&[&["run"], &arguments[..], &tail].concat()).expect_success();
    assert_eq!(said.text(), format!("content\ncontent\n{name}|a  b||v w\nü|"));
    assert!(said.stderr.contains("stored häuser und\u{fffd}wege (8 B) as "), "no name ends a line: {said:?}");
    dev.zg(&["submit", "--input", "no\n\x1b[2J", "--", "true"])
        .expect_error(3, &["no file no\u{fffd}\u{fffd}[2J. See"]);

    let chunks = dev.chunks("1");
    let outputs = chunks[0]["outputs"].as_array().expect("a list");
    let mut found: Vec<(String, Vec<u8>)> = outputs
        .iter()
        .map(|output| {
            let file = output["file"].as_str().expect("an address");
            (output["name"].as_str().expect("a name").to_owned(), dev.zg(&["file", "cat", file]).stdout)
        })
        .collect();
    found.sort();
    let expected = [(name.to_owned(), b"made".to_vec()), (format!("matched {name}.txt"), b"kept".to_vec())];
    assert_eq!(found, expected);
    dev.stop();
}

#[test]
fn a_node_tells_how_its_programs_have_read_their_inputs() {
    let dev = Dev::start_with(short_folder(), 1, &["--no-borrow"]);
    let write = |name: &str, size: usize| std::fs::write(dev.folder().join(name), vec![7; size]).expect("written");
    write("small", 1000);
    write("middle", 3 << 20);
    write("large", 40 << 20);
    let inputs = ["small", "middle", "large"].map(|name| ["--input", name]).concat();
    let script = "cd $ZG_INPUT_DIR; cat small middle >/dev/null; dd if=large of=/dev/null bs=1M skip=20 count=1 2>&1";
    dev.zg(&[&["run"], &inputs[..], &["--", "sh", "-c", script]].concat()).expect_success();
    // The result has told it.
    let told = dev.json(&["node", "info", "worker1"])["node"]["inputs"].clone();
    let opens = told["opens_cached"].as_u64().zip(told["opens_passthrough"].as_u64());
    assert_eq!(opens.map(|(cached, passthrough)| cached + passthrough), Some(3), "{told}");
    // Where the kernel allows nothing else all is read through the worker.
    let passed = told["opens_passthrough"].as_u64().expect("a number");
    assert!(passed <= 1 && told["reads_failed"] == 0, "{told}");
    let fetched = told["bytes_fetched"].as_u64().expect("a number");
    assert!((4 << 20..12 << 20).contains(&fetched), "{told}");
    let said = dev.zg(&["node", "info", "worker1"]).expect_success();
    assert!(said.text().contains("past the worker"), "{said:?}");
    dev.zg(&["node", "info", "worker9"]).expect_error(3, &["no node 'worker9'", "zg node list"]);
    dev.stop();
}

#[test]
fn outputs_of_one_job_are_inputs_of_the_next() {
    let dev = Dev::start(2);
    let script = "seq $ZG_CHUNK > $ZG_OUTPUT_DIR/numbers; echo chunk $ZG_CHUNK of $ZG_CHUNK_COUNT";
    let map = dev.submit(&["--array", "1-4", "--", "sh", "-c", script]);
    assert_eq!(dev.wait(&map, SOON)["state"], "finished");
    let mut arguments = vec!["run".to_owned()];
    for (index, chunk) in dev.chunks(&map).iter().enumerate() {
        let file = chunk["outputs"][0]["file"].as_str().expect("an address");
        arguments.extend(["--input".to_owned(), format!("{file}:n{index}")]);
        let stdout = chunk["stdout"].as_str().expect("an address");
        assert_eq!(dev.zg(&["file", "cat", stdout]).text(), format!("chunk {} of 4\n", index + 1));
    }
    arguments.extend(["--", "sh", "-c", "cat $ZG_INPUT_DIR/n* | wc -l"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_eq!(dev.zg(&arguments).expect_success().text().trim(), "10");
    dev.stop();
}

#[test]
fn a_script_is_sent_along_with_its_flags() {
    let dev = Dev::start(1);
    let script = "#!/bin/sh\n#ZG --name 'my job' --array 1-2 --env GREETING=hello\necho $GREETING $ZG_CHUNK \"$@\"\n";
    std::fs::write(dev.folder().join("job.sh"), script).expect("written");
    let said = dev.zg(&["run", "--env", "GREETING=hi", "./job.sh", "--flag"]).expect_success();
    // In the order in which they ended.
    let text = said.text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["hi 1 --flag", "hi 2 --flag"]);
    assert_eq!(dev.job("1")["name"], "my job");

    // A program too large for the request travels as a file.
    let large = format!("#!/bin/sh\nwc -c < \"$0\"\nexit\n{}", "#".repeat(2 << 20));
    std::fs::write(dev.folder().join("large.sh"), &large).expect("written");
    let said = dev.zg(&["run", "./large.sh"]).expect_success();
    assert_eq!(said.text().trim(), large.len().to_string());
    dev.stop();
}

#[test]
fn lines_and_standard_input_reach_the_chunks() {
    let dev = Dev::start(1);
    std::fs::write(dev.folder().join("lines"), "one\ntwo words\n\nfour\n").expect("written");
    let script = "printf '%s:%s:' \"$ZG_CHUNK\" \"$ZG_ENTRY\"; cat";
    dev.zg(&["run", "--each-line", "lines", "--stdin", "lines", "--", "sh", "-c", script]).expect_success();
    let said = dev.zg(&["job", "logs", "last"]).expect_success();
    let input = "one\ntwo words\n\nfour\n";
    assert_eq!(said.text(), format!("0:one:{input}1:two words:{input}2::{input}3:four:{input}"));
    dev.stop();
}

#[test]
fn a_hundred_mebibytes_of_output_are_kept_whole() {
    let dev = Dev::start(1);
    let said = dev.zg(&["run", "--", "sh", "-c", "head -c 104857600 /dev/zero | tr '\\0' x"]).expect_success();
    assert!(said.stdout.len() == 104_857_600 && said.stdout.iter().all(|byte| *byte == b'x'));
    let said = dev.zg(&["job", "logs", "1.0"]).expect_success();
    assert_eq!(said.stdout.len(), 104_857_600);
    dev.stop();
}

#[test]
fn a_daemon_that_holds_standard_output_neither_delays_the_job_nor_stays() {
    let dev = Dev::start(1);
    let mark = Mark::new();
    let job = dev.submit(&["--env", mark.variable(), "--", "sh", "-c", "setsid sleep 1000 & echo started"]);
    assert_eq!(dev.wait(&job, SOON)["state"], "finished");
    assert_eq!(dev.zg(&["job", "logs", &job]).text(), "started\n");
    mark.expect_gone(SOON);
    dev.stop();
}

#[test]
fn a_program_that_ignores_sigterm_ends_by_its_time_limit() {
    let dev = Dev::start(1);
    let mark = Mark::new();
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let job = dev.submit(&["--time-limit", "1s", "--env", mark.variable(), "--", "sh", "-c", script]);
    assert_eq!(dev.wait(&job, SOON)["state"], "failed");
    assert_eq!(dev.chunks(&job)[0]["cause"], "timeout");
    mark.expect_gone(SOON);
    dev.zg(&["job", "wait", &job]).expect_error(1, &["1 failed", "zg chunk list"]);
    dev.stop();
}

#[test]
fn a_canceled_job_leaves_nothing_running() {
    let dev = Dev::start(1);
    let mark = Mark::new();
    let job = dev.submit(&["--array", "1-50", "--env", mark.variable(), "--", "sleep", "1000"]);
    mark.expect_count(1, SOON);
    dev.zg(&["job", "wait", &job, "--timeout", "100ms"]).expect_error(124, &["has not ended"]);
    let is_told = |chunk: &Value| chunk["state"] == "running" && chunk["started_at"] != Value::Null;
    let running = until(SOON, || dev.chunks(&job).into_iter().find(is_told)).expect("it is told since when one runs");
    dev.zg(&["job", "cancel", &job]).expect_success();
    let record = dev.wait(&job, SOON);
    assert_eq!((&record["state"], &record["chunks"]["canceled"]), (&json!("canceled"), &json!(50)));
    // Which of them ran, and what of it is known, is told apart from what only waited.
    let chunks = dev.chunks(&job);
    let ran = chunks.iter().find(|chunk| chunk["chunk"] == running["chunk"]).expect("it is listed");
    for field in ["node", "attempt", "started_at"] {
        assert_eq!(ran[field], running[field], "{ran}");
    }
    assert_eq!((&ran["state"], &ran["finished_at"]), (&json!("canceled"), &record["finished_at"]));
    let waited = chunks.last().expect("it is listed");
    assert_eq!(
        (&waited["node"], &waited["started_at"], &waited["finished_at"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    mark.expect_gone(SOON);
    assert_eq!(dev.zg(&["run", "--", "echo", "next"]).text(), "next\n");
    dev.stop();
}

#[test]
fn interrupting_a_run_cancels_its_job() {
    let dev = Dev::start(1);
    let mark = Mark::new();
    let mut command = dev.command(&["run", "--env", mark.variable(), "--", "sleep", "1000"]);
    let thread = std::thread::spawn(move || run(&mut command));
    mark.expect_count(1, SOON);
    let zg = until(SOON, || zg_run(mark.variable())).expect("zg runs");
    // SAFETY: kill takes no pointers.
    assert_eq!(unsafe { libc::kill(zg, libc::SIGINT) }, 0);
    let said = thread.join().expect("no panic");
    said.expect_error(130, &["Job 1 is canceled"]);
    assert_eq!(dev.wait("1", SOON)["state"], "canceled");
    mark.expect_gone(SOON);
    dev.stop();
}

#[test]
fn a_run_prints_a_chunk_as_soon_as_it_has_ended() {
    let dev = Dev::start(1);
    // The first chunk waits for a file that is made once the others' lines have been read.
    let go = dev.folder().join("go");
    let script = "[ $ZG_CHUNK != 1 ] || while [ ! -e \"$0\" ]; do sleep 0.05; done; echo chunk $ZG_CHUNK";
    let path = go.to_string_lossy();
    let words = ["run", "--cpus", "0.1", "--array", "1-3", "--", "sh", "-c", script, &*path];
    let mut child = dev.command(&words).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut printed = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    let mut early: Vec<String> = printed.by_ref().take(2).collect();
    early.sort_unstable();
    assert_eq!(early, ["chunk 2", "chunk 3"]);
    std::fs::write(&go, "").expect("written");
    assert_eq!(printed.collect::<Vec<_>>(), ["chunk 1"]);
    assert!(ended_within(&mut child, SOON).expect("it ends").success());
    dev.stop();
}

#[test]
fn programs_are_told_in_json_how_a_job_failed() {
    let dev = Dev::start(1);
    let told = |arguments: &[&str], code: i32| {
        let said = dev.zg(&[&["--json"], arguments].concat());
        assert_eq!(said.code, Some(code), "{said:?}");
        let error: serde_json::Value = serde_json::from_str(&said.stderr).expect("one value, and nothing else");
        assert_eq!(error["error"]["code"], "chunks_failed", "{error}");
        assert!(error["error"]["hint"].as_str().is_some_and(|hint| hint.contains("zg chunk list")), "{error}");
        error["error"]["message"].as_str().expect("a message").to_owned()
    };
    assert!(told(&["run", "--", "sh", "-c", "exit 3"], 3).contains("chunk 0 ended with exit code 3"));
    assert!(told(&["run", "--", "sh", "-c", "kill -9 $$"], 137).contains("chunk 0 was killed by signal 9"));
    assert!(told(&["run", "--array", "7-8", "--", "false"], 1).contains("2 of 2 chunks did not finish"));
    assert!(told(&["job", "wait", "1"], 1).contains("job 1 failed"));
    dev.zg(&["--json", "run", "--ignore-failures", "--", "false"]).expect_success();

    // Jobs are named one by one, by ranges, or all.
    let numbers = |selector: &str| -> Vec<u64> {
        let jobs = dev.json(&["job", "info", selector])["jobs"].clone();
        jobs.as_array().expect("a list").iter().filter_map(|job| job["number"].as_u64()).collect()
    };
    assert_eq!((numbers("all"), numbers("1,3-9")), (vec![1, 2, 3, 4], vec![1, 3, 4]));
    assert_eq!(dev.json(&["job", "info", "last"])["job"]["number"], 4);
    dev.zg(&["job", "info", "1,99"]).expect_error(3, &["'99'", "zg job list --all"]);
    dev.zg(&["job", "wait", "1,99"]).expect_error(3, &["'99'"]);
    dev.stop();
}

#[test]
fn interrupting_a_run_whose_job_has_ended_does_not_claim_to_cancel_it() {
    let dev = Dev::start(1);
    // More than a pipe and a block hold: `zg` is still printing when the signal comes.
    let mut command = dev.command(&["run", "--", "head", "-c", "16777216", "/dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut printed = child.stdout.take().expect("piped");
    printed.read_exact(&mut [0]).expect("printing has begun");
    // SAFETY: kill takes no pointers; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    std::io::copy(&mut printed, &mut std::io::sink()).expect("read to its end");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("Job 1 had ended before") && !told.contains("is canceled"), "{told}");
    assert_eq!(dev.job("1")["state"], "finished");
    dev.stop();
}

/// The `zg run` that has `word` among its arguments.
fn zg_run(word: &str) -> Option<libc::pid_t> {
    for entry in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        if words.contains(&&b"run"[..]) && words.contains(&word.as_bytes()) {
            return entry.file_name().to_str()?.parse().ok();
        }
    }
    None
}

#[test]
fn failures_are_tried_again_and_too_many_abort_the_job() {
    let dev = Dev::start(1);
    let script = "[ $ZG_ATTEMPT = 3 ]";
    let job = dev.submit(&["--retries", "2", "--retry-on", "exit=1", "--", "sh", "-c", script]);
    assert_eq!(dev.wait(&job, SOON)["state"], "finished");
    assert_eq!(dev.chunks(&job)[0]["attempt"], 3);
    let job = dev.submit(&["--retries", "2", "--retry-on", "signal", "--", "false"]);
    assert_eq!(dev.wait(&job, SOON)["state"], "failed");
    assert_eq!(dev.chunks(&job)[0]["attempt"], 1);

    let job = dev.submit(&["--array", "1-1000", "--max-fails", "3", "--", "sh", "-c", "sleep 0.05; false"]);
    let record = dev.wait(&job, SOON);
    assert_eq!(record["state"], "aborted");
    assert!(
        record["chunks"]["failed"].as_u64() > Some(3) && record["chunks"]["aborted"].as_u64() > Some(0),
        "{record}"
    );
    let job = dev.submit(&["--output", "*.none", "--", "true"]);
    assert_eq!(dev.wait(&job, SOON)["state"], "failed");
    assert_eq!(dev.chunks(&job)[0]["cause"], "policy");
    dev.stop();
}

#[test]
fn the_same_submit_twice_is_one_job() {
    let dev = Dev::start(1);
    let key = "01927a3e-0000-7000-8000-000000000001";
    let first = dev.json(&["submit", "--idempotency-key", key, "--", "echo", "once"]);
    assert_eq!(first["job"]["id"], key);
    assert_eq!(dev.json(&["submit", "--idempotency-key", key, "--", "echo", "once"]), first);
    let other = dev.zg(&["--json", "submit", "--idempotency-key", key, "--", "echo", "twice"]);
    other.expect_error(1, &["exists_different"]);
    dev.wait("1", SOON);
    assert_eq!(dev.json(&["job", "list", "--all"])["jobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(dev.job("0192")["id"], key, "a unique prefix names a job");
    dev.stop();
}

#[test]
fn lists_and_status_show_what_there_is() {
    let dev = Dev::start(2);
    let nodes = dev.json(&["node", "list"]);
    let nodes = nodes["nodes"].as_array().expect("a list");
    let mut names: Vec<&str> = nodes.iter().filter_map(|node| node["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["loadbalancer1", "master1", "storage1", "worker1", "worker2"]);
    assert!(nodes.iter().all(|node| node["state"] == "up" && node["pid"].as_u64() > Some(1)), "{nodes:?}");
    assert_eq!(dev.node("master1")["is_leader"], true);
    assert_eq!(dev.node("loadbalancer1")["is_primary"], true);
    dev.zg(&["run", "--", "true"]).expect_success();
    dev.zg(&["submit", "--wait", "--", "false"]).expect_error(1, &["1 failed"]);
    let failed = dev.json(&["job", "list", "--filter", "failed"]);
    assert_eq!(failed["jobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(dev.json(&["job", "list"])["jobs"], json!([]));
    for verbs in [&["node", "list"][..], &["status"], &["job", "info", "1"], &["chunk", "list", "1"], &["file", "ls"]] {
        assert!(!dev.zg(verbs).expect_success().stdout.is_empty());
    }
    let status = dev.json(&["status"]);
    assert_eq!(status["status"]["jobs"]["total"], 2);
    dev.stop();
}
