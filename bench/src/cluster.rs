//! A whole cluster of this build, as `zg dev` starts it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs until it is dropped.
pub struct Cluster {
    dev: Child,
    dir: PathBuf,
    zg: PathBuf,
}

impl Cluster {
    /// Starts `zg dev` with these options, and returns when a job can run.
    pub fn start(options: &[&str]) -> Self {
        let zg = binaries().join("zg");
        assert!(zg.exists(), "{} is missing; run: cargo build --release", zg.display());
        let mut dev = Command::new(&zg).arg("dev").args(options).stdout(Stdio::piped()).spawn().expect("zg dev starts");
        let mut line = String::new();
        BufReader::new(dev.stdout.take().expect("it is piped")).read_line(&mut line).expect("zg dev prints a line");
        let dir = line.trim().strip_prefix("ready: ZG_CLUSTER=").unwrap_or_else(|| panic!("zg dev said: {line}"));
        Self { dev, dir: dir.into(), zg }
    }

    /// The cluster directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `zg` for this cluster, with its results thrown away.
    pub fn zg(&self) -> Command {
        let mut zg = Command::new(&self.zg);
        zg.env("ZG_CLUSTER", &self.dir).arg("--quiet").stdin(Stdio::null()).stdout(Stdio::null());
        zg
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.dev.id().to_string()]).status();
        let _ = self.dev.wait();
    }
}

/// The directory of this build's binaries: benchmarks lie in `deps/` under it.
fn binaries() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this process");
    own.parent().and_then(Path::parent).expect("it lies in deps/").to_owned()
}
