//! The project's own tools, in Rust and without dependencies, so that a bare machine needs nothing but a toolchain.
//!
//! `cargo xtask test` is everything that CI runs. Each subcommand is a file beside this one; what they share, running
//! a command and saying so, is here.

mod cluster;
mod demo;
mod json;
mod nemesis;
mod setup;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask <command>

  demo      count the words of a dictionary on a real cluster, beside the plain pipeline
  nemesis   kill and stop the masters of a real cluster under load, and check what clients were told;
            --kills N of the leader (20), --minutes M at least, --seed S, --out DIR for the report
  test      everything CI runs: setup, tidy, clippy, build, all tests
  tidy      hold the layout: crate edges, package homes, pure cores, names, documents, format
  setup     install what the build and the tests need (Debian packages, cargo-nextest), if missing
  wire-doc  write doc/wire.md again from the wire crate";

/// Ends a command early with a message for a person.
type Outcome<T = ()> = Result<T, String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["test"] => test::test(),
        ["tidy"] => tidy::tidy(),
        ["setup"] => setup::setup(),
        ["demo"] => demo::demo(),
        ["nemesis", ref options @ ..] => nemesis::nemesis(options),
        ["wire-doc"] => test::wire_doc(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The repository, wherever the command was started in it.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Cargo's target folder: this program lies in a profile's folder in it.
fn target() -> Outcome<PathBuf> {
    let program = std::env::current_exe().map_err(|error| format!("cannot tell where this program lies: {error}"))?;
    program.ancestors().nth(2).map(Path::to_owned).ok_or(format!("{} lies in no target folder", program.display()))
}

/// A command that runs in the repository's root.
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command in the root, shown first, with this terminal; fails when it fails.
fn run(program: &str, arguments: &[&str]) -> Outcome {
    let line = format!("{program} {}", arguments.join(" "));
    eprintln!("+ {line}");
    let status = command(program, arguments).status().map_err(|error| format!("cannot start {program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed ({status})")) }
}

/// Runs a command in the root unseen and returns its standard output; fails when it fails.
fn output(program: &str, arguments: &[&str]) -> Outcome<String> {
    let line = format!("{program} {}", arguments.join(" "));
    let output = command(program, arguments).output().map_err(|error| format!("cannot start {program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{line}` failed ({}): {}", output.status, said.trim()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("`{line}` printed something that is not UTF-8"))
}

/// Reads a file of the repository by its path from the root.
fn read(path: impl AsRef<Path>) -> Outcome<String> {
    let path: PathBuf = root().join(path);
    std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
