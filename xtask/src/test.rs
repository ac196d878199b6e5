//! Everything CI runs, in the order that finds a fault soonest, and the documents made from code.

use crate::{Outcome, output, root, run, setup, tidy};

/// Runs every check; nextest comes last, so that its summary is the last thing printed.
pub(crate) fn test() -> Outcome {
    setup::setup()?;
    tidy::tidy()?;
    run("cargo", &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    // Tests of whole clusters start the per-role binaries; the test profile shares the build with the tests.
    run("cargo", &["build", "--locked", "--workspace", "--bins", "--profile", "test"])?;
    run("cargo", &["nextest", "run", "--locked", "--workspace"])?;
    // By itself: with bugs built in, the programs that people run do not compile.
    run("cargo", &["nextest", "run", "--locked", "--package", "sim", "--features", "planted", "--test", "planted"])
}

/// Writes doc/wire.md from the wire crate; a test of that crate holds the two equal.
pub(crate) fn wire_doc() -> Outcome {
    let document = output("cargo", &["run", "--quiet", "--package", "wire", "--example", "wire_doc"])?;
    let path = root().join("doc/wire.md");
    std::fs::write(&path, document).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
