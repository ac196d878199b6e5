//! Finds processes by a word in their environment: what a chunk started carries it, wherever it has gone.

use std::time::Duration;

use wire::NodeId;

use crate::dev::until;

/// A word that no other process has.
pub struct Mark {
    word: String,
}

impl Mark {
    pub fn new() -> Mark {
        Mark { word: format!("ZG_TEST_MARK={}", NodeId::random()) }
    }

    /// For `--env`.
    pub fn variable(&self) -> &str {
        &self.word
    }

    /// The processes that carry the mark; `zg` itself has it in its arguments only.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at; then it is not left.
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == self.word.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// Asserts that nothing carries the mark any more, after `limit` at the latest.
    pub fn expect_gone(&self, limit: Duration) {
        let gone = until(limit, || self.processes().is_empty().then_some(()));
        assert!(gone.is_some(), "still there after {limit:?}: {:?}", self.processes());
    }

    /// Waits until `count` processes carry the mark.
    pub fn expect_count(&self, count: usize, limit: Duration) {
        let there = until(limit, || (self.processes().len() >= count).then_some(()));
        assert!(there.is_some(), "{} of {count} processes after {limit:?}", self.processes().len());
    }
}

/// The processes that name a directory in their arguments or work in it.
pub fn processes_of(dir: &std::path::Path) -> Vec<String> {
    let name = dir.to_string_lossy();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let works_there = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if arguments.contains(&*name) || works_there {
            found.push(format!("{} {arguments}", entry.file_name().to_string_lossy()));
        }
    }
    found
}
