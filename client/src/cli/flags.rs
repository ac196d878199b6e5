//! The flags of a job, as `zg submit`, `zg run` and the `#ZG` lines of a script take them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use client::quantity::{parse_cpus_milli, parse_duration_ms, parse_size};
use wire::{ArraySpec, Cause, JobId};

/// What a job asks for.
#[derive(Args, Clone, Default)]
pub struct Flags {
    /// What people call the job
    #[arg(short = 'J', long)]
    pub name: Option<OsString>,
    /// One chunk for each number: 1-1000, 1-1000:2, 1,3,5-8; with %N at most N run at once
    #[arg(short, long, value_name = "LIST", allow_hyphen_values = true, value_parser = ArraySpec::parse)]
    pub array: Option<ArraySpec>,
    /// One chunk for each line of a file; the program finds its line in $ZG_ENTRY
    #[arg(long, value_name = "FILE")]
    pub each_line: Option<PathBuf>,
    /// What standard input reads: a file here, or the address of a stored one
    #[arg(long, value_name = "FILE")]
    pub stdin: Option<OsString>,
    /// The working directory [default: a fresh one for each chunk]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// An environment variable; without a value, the one it has here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Cpus that a chunk needs, as 2 or 0.5 [default: 1]
    #[arg(short, long, value_name = "N", value_parser = parse_cpus_milli)]
    pub cpus: Option<u32>,
    /// Memory that a chunk needs, as 4GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub mem: Option<u64>,
    /// How long a chunk may run, as 90s, 1h30m or HH:MM:SS
    #[arg(short, long, value_name = "TIME", value_parser = parse_time_limit)]
    pub time_limit: Option<u64>,
    /// A higher number is more important [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// How often a failed chunk is tried again [default: 0]
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,
    /// Which failures are tried again: exit, exit=CODE, signal, oom, timeout [default: all of them]
    #[arg(long, value_name = "CAUSES", value_parser = parse_retry_on)]
    pub retry_on: Option<RetryOn>,
    /// Lost workers until a chunk fails [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub crash_limit: Option<u32>,
    /// Abort the job when more chunks than this have failed
    #[arg(long, value_name = "N")]
    pub max_fails: Option<u32>,
    /// A file or directory that each chunk finds in $ZG_INPUT_DIR: one here, or the address of a stored one
    #[arg(long, value_name = "SRC[:DST]")]
    pub input: Vec<OsString>,
    /// Fetch all of the inputs before they are read, however large they are
    #[arg(long)]
    pub prefetch: bool,
    /// Files of the working directory to keep; no match fails the chunk. `zg --json chunk list` gives their addresses
    #[arg(long, value_name = "GLOB")]
    pub output: Vec<OsString>,
    /// The job's uuid: the same submit again is the same job
    #[arg(long, value_name = "UUID")]
    pub idempotency_key: Option<JobId>,
}

/// The failures that are tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// Bits of `Cause`.
    pub causes: u32,
    /// The exit codes meant; empty = any.
    pub exit_codes: Vec<u8>,
}

impl Flags {
    /// These flags where they are given, else those of `script`; what may be repeated adds up.
    pub fn over(self, script: Flags) -> Flags {
        let added = |mut below: Vec<OsString>, above: Vec<OsString>| {
            below.extend(above);
            below
        };
        Flags {
            name: self.name.or(script.name),
            array: self.array.or(script.array),
            each_line: self.each_line.or(script.each_line),
            stdin: self.stdin.or(script.stdin),
            cwd: self.cwd.or(script.cwd),
            env: added(script.env, self.env),
            cpus: self.cpus.or(script.cpus),
            mem: self.mem.or(script.mem),
            time_limit: self.time_limit.or(script.time_limit),
            priority: self.priority.or(script.priority),
            retries: self.retries.or(script.retries),
            retry_on: self.retry_on.or(script.retry_on),
            crash_limit: self.crash_limit.or(script.crash_limit),
            max_fails: self.max_fails.or(script.max_fails),
            input: added(script.input, self.input),
            prefetch: self.prefetch || script.prefetch,
            output: added(script.output, self.output),
            idempotency_key: self.idempotency_key.or(script.idempotency_key),
        }
    }
}

/// Milliseconds; in a request zero would mean no limit.
fn parse_time_limit(text: &str) -> Result<u64, String> {
    match parse_duration_ms(text) {
        Ok(0) => Err("a chunk needs some time: leave the flag out for no limit".into()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_retry_on(text: &str) -> Result<RetryOn, String> {
    let mut retry_on = RetryOn::default();
    let mut any_exit = false;
    for item in text.split(',') {
        let cause = match item.split_once('=') {
            Some(("exit", code)) => {
                let code = code.parse().ok().filter(|code| *code != 0);
                retry_on.exit_codes.push(code.ok_or(format!("'{item}' names no exit code from 1 to 255"))?);
                Cause::Exit
            }
            None if item == "exit" => {
                any_exit = true;
                Cause::Exit
            }
            None if item == "signal" => Cause::Signal,
            None if item == "oom" => Cause::Oom,
            None if item == "timeout" => Cause::Timeout,
            None if item == "input_missing" => Cause::InputMissing,
            _ => {
                let causes = "exit, exit=CODE, signal, oom, timeout or input_missing";
                return Err(format!("'{item}' is not a cause: expected {causes}"));
            }
        };
        retry_on.causes |= cause.bit();
    }
    if any_exit {
        retry_on.exit_codes.clear();
    }
    Ok(retry_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_to_retry_are_listed() {
        let read = parse_retry_on("exit=1,signal,exit=75").unwrap();
        assert_eq!(read, RetryOn { causes: Cause::Exit.bit() | Cause::Signal.bit(), exit_codes: vec![1, 75] });
        assert_eq!(parse_retry_on("input_missing").unwrap().causes, Cause::InputMissing.bit());
        assert!(parse_retry_on("exit=1,exit").unwrap().exit_codes.is_empty());
        for text in ["", "exit=0", "exit=256", "worker_lost", "Signal"] {
            assert!(parse_retry_on(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_limit_is_not_zero() {
        assert_eq!(parse_time_limit("500ms"), Ok(500));
        for text in ["0s", "0ms", "00:00:00", "0.0001s"] {
            assert!(parse_time_limit(text).is_err_and(|error| error.contains("needs some time")), "{text}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_script_and_lists_add_up() {
        let script = Flags { cpus: Some(2000), priority: Some(1), env: vec!["A=1".into()], ..Flags::default() };
        let line = Flags { cpus: Some(500), env: vec!["B=2".into()], ..Flags::default() };
        let flags = line.over(script);
        assert_eq!((flags.cpus, flags.priority), (Some(500), Some(1)));
        assert_eq!(flags.env, ["A=1", "B=2"]);
    }
}
