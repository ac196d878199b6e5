//! How many chunks that do nothing get done a second, submit to last result, over a bare posix_spawn loop on the same slots?
//!
//! Both start the same program, `/bin/true`; the baseline only starts it and waits for it, on as many threads as the
//! cluster has slots. The cluster is phase 1 as `zg dev` starts it, with a log that is fsynced.

#![allow(clippy::disallowed_methods)]

use std::process::{Command, Stdio};
use std::time::Instant;

use bench::{Cluster, Pair};

const SLOTS: usize = 2;
const CHUNKS: usize = 4_000;

fn run(cluster: &Cluster, chunks: usize) {
    let array = format!("1-{chunks}");
    let mut zg = cluster.zg();
    zg.args(["submit", "--array", &array, "--wait", "--", "/bin/true"]);
    let status = zg.status().expect("zg submit starts");
    assert!(status.success(), "the job failed: {status}");
}

/// std spawns by posix_spawn when nothing has to happen between fork and exec.
fn spawn_loop(chunks: usize) {
    std::thread::scope(|scope| {
        for _ in 0..SLOTS {
            scope.spawn(|| {
                for _ in 0..chunks / SLOTS {
                    let status = Command::new("/bin/true").stdin(Stdio::null()).status().expect("/bin/true starts");
                    assert!(status.success());
                }
            });
        }
    });
}

fn main() {
    // One worker for each slot would measure their rivalry; one worker with two slots is what a machine has.
    let cluster = Cluster::start(&["--phase", "1", "--workers", "1"]);
    let pair = Pair::measure(|| spawn_loop(CHUNKS), || run(&cluster, CHUNKS));
    let per_second = |total: std::time::Duration| CHUNKS as f64 / total.as_secs_f64();
    println!("| what | chunks/s | ratio |\n|---|---|---|");
    println!("| bare posix_spawn loop, {SLOTS} threads | {:.0} | 1 |", per_second(pair.baseline));
    println!("| zg submit --wait, phase 1, fsynced | {:.0} | {:.2} |", per_second(pair.candidate), pair.speed_ratio());
    println!("\nspread of the second: {:.2} (slowest round over fastest)", pair.spread);
    let start = Instant::now();
    run(&cluster, 1);
    println!("one small job, submit to result seen: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}
