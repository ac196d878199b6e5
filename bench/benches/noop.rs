//! How many chunks that do nothing get done a second, submit to last result, over a bare posix_spawn loop on the same slots?
//!
//! Both start the same program, `/bin/true`; the baseline only starts it and waits for it, on as many threads as the
//! cluster has slots. The cluster is phase 1 as `zg dev` starts it, with a log that is fsynced.

#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bench::Pair;

const SLOTS: usize = 2;
const CHUNKS: usize = 4_000;

/// The directory of this build's binaries: benchmarks lie in `deps/` under it.
fn binaries() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this process");
    own.parent().and_then(Path::parent).expect("it lies in deps/").to_owned()
}

struct Cluster {
    dev: Child,
    dir: String,
    zg: PathBuf,
}

impl Cluster {
    /// One worker for each slot would measure their rivalry; one worker with two slots is what a machine has.
    fn start() -> Self {
        let zg = binaries().join("zg");
        assert!(zg.exists(), "{} is missing; run: cargo build --release", zg.display());
        let mut dev = Command::new(&zg)
            .args(["dev", "--phase", "1", "--workers", "1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("zg dev starts");
        let mut line = String::new();
        BufReader::new(dev.stdout.take().expect("it is piped")).read_line(&mut line).expect("zg dev prints a line");
        let dir =
            line.trim().strip_prefix("ready: ZG_CLUSTER=").unwrap_or_else(|| panic!("zg dev said: {line}")).to_owned();
        Self { dev, dir, zg }
    }

    fn run(&self, chunks: usize) {
        let array = format!("1-{chunks}");
        let status = Command::new(&self.zg)
            .env("ZG_CLUSTER", &self.dir)
            .args(["--quiet", "submit", "--array", &array, "--wait", "--", "/bin/true"])
            .stdout(Stdio::null())
            .status()
            .expect("zg submit starts");
        assert!(status.success(), "the job failed: {status}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.dev.id().to_string()]).status();
        let _ = self.dev.wait();
    }
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
    let cluster = Cluster::start();
    let pair = Pair::measure(|| spawn_loop(CHUNKS), || cluster.run(CHUNKS));
    let per_second = |total: std::time::Duration| CHUNKS as f64 / total.as_secs_f64();
    println!("| what | chunks/s | ratio |\n|---|---|---|");
    println!("| bare posix_spawn loop, {SLOTS} threads | {:.0} | 1 |", per_second(pair.baseline));
    println!("| zg submit --wait, phase 1, fsynced | {:.0} | {:.2} |", per_second(pair.candidate), pair.speed_ratio());
    println!("\nspread of the second: {:.2} (slowest round over fastest)", pair.spread);
    let start = Instant::now();
    cluster.run(1);
    println!("one small job, submit to result seen: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}
