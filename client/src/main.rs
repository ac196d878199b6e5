//! `zg`: the command line of a cluster.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    // Rust ignores SIGPIPE; `zg job list | head` has to end as other programs do.
    // SAFETY: no other thread runs yet, and the default action needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    cli::main()
}
