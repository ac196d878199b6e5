//! `zg run`: submit, wait, print what the chunks print, exit as the program does.
//!
//! Each chunk's output is printed whole, in the order of the chunks, as soon as all before it have ended. Ctrl-C, or a
//! reader that goes away, cancels the job.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use client::{ClientError, Connection, Submitted};
use wire::record::ChunkRecord;
use wire::{ArraySpec, Cause, ChunkState, Duration};

use super::failure::Failure;
use super::flags::Flags;
use super::{Context, Outcome, command, shape};

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    flags: Flags,
    /// Exit with 0 though a chunk failed
    #[arg(long)]
    ignore_failures: bool,
    /// The command: ./PROGRAM is sent along, any other is looked up on the worker; {} and %{CHUNK} are the chunk's number
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Chunks asked for at once.
const CHUNKS_PER_LOOK: u32 = 256;
/// Without any event the state is asked for this often all the same.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a job that has been printed.
struct Printer<'a> {
    connection: &'a mut Connection,
    submitted: Submitted,
    array: ArraySpec,
    chunk_count: u32,
    /// The first chunk that has not been printed.
    next: u32,
    /// How many of those printed have not finished.
    unfinished: u32,
    /// What to exit with so far.
    exit: u8,
}

impl Run {
    pub fn execute(self, context: &Context) -> Outcome {
        let mut connection = context.connect()?;
        let draft = command::prepare(&mut connection, self.flags, &self.command, &context.output)?;
        connection.catch_signals();
        let chunk_count = draft.chunk_count()?;
        let submitted = connection.submit(&draft)?;
        // Whoever reads the program's standard error by a program does not look for ours in it.
        if io::stderr().is_terminal() {
            context.output.note(&format!("job {} ({})", submitted.number, submitted.job));
        }
        let array = draft.spec.array;
        let mut printer =
            Printer { connection: &mut connection, submitted, array, chunk_count, next: 0, unfinished: 0, exit: 0 };
        let printed = printer.print_all();
        if printed.is_ok() && chunk_count > 1 && printer.unfinished > 0 {
            let (count, number) = (printer.unfinished, submitted.number);
            let what = format!("{count} of {chunk_count} chunks did not finish. See: zg chunk list {number}");
            context.output.note(&format!("zg: {what}"));
        }
        match printed {
            Ok(()) if self.ignore_failures => Ok(0),
            Ok(()) => Ok(printer.exit),
            Err(failure) => Err(printer.give_up(failure)),
        }
    }
}

/// Why printing stopped.
enum Stopped {
    Client(ClientError),
    /// Standard output or error takes no more.
    Output(io::Error),
}

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl Printer<'_> {
    fn print_all(&mut self) -> Result<(), Stopped> {
        let mut after = self.submitted.index;
        let mut look_at = self.connection.clock().now();
        while self.next < self.chunk_count {
            let change = self.connection.watch_job(self.submitted.job, after, None)?;
            after = change.index;
            let now = self.connection.clock().now();
            let concerns_us = change.ended.iter().any(|range| range.contains(self.next));
            if concerns_us || change.job_ended || change.is_gap || now >= look_at {
                self.print_ended()?;
                look_at = now + LOOK_INTERVAL;
            }
        }
        Ok(())
    }

    /// Prints the chunks from the next one on that have ended without a gap.
    fn print_ended(&mut self) -> Result<(), Stopped> {
        loop {
            let chunks = self.connection.chunks_from(self.submitted.job, self.next, CHUNKS_PER_LOOK)?;
            let count = chunks.len() as u32;
            for chunk in chunks {
                // A chunk that waits for its turn may be left out of the list.
                if chunk.chunk != self.next || !chunk.state.is_terminal() {
                    return Ok(());
                }
                self.print_chunk(&chunk)?;
                self.next += 1;
            }
            if count < CHUNKS_PER_LOOK || self.next >= self.chunk_count {
                return Ok(());
            }
        }
    }

    fn print_chunk(&mut self, chunk: &ChunkRecord) -> Result<(), Stopped> {
        let bundle = chunk.result.as_ref().and_then(|result| result.bundle);
        if let Some(address) = bundle.and_then(|bundle| bundle.stdout()) {
            self.connection.read_to(address, &mut io::stdout().lock()).map_err(stopped)?;
            io::stdout().flush().map_err(Stopped::Output)?;
        }
        if let Some(address) = bundle.and_then(|bundle| bundle.stderr()) {
            self.connection.read_to(address, &mut io::stderr().lock()).map_err(stopped)?;
        }
        let exit = chunk_exit(chunk);
        if let Some(reason) = unsaid(chunk) {
            eprintln!("zg: chunk {} {reason}", self.array.number(chunk.chunk));
        }
        self.unfinished += u32::from(exit != 0);
        if self.chunk_count == 1 {
            self.exit = exit;
        } else if exit != 0 {
            self.exit = 1;
        }
        Ok(())
    }

    /// Cancels the job when its user has turned away; what else goes wrong leaves it running.
    fn give_up(&mut self, stopped: Stopped) -> Failure {
        let number = self.submitted.number;
        let failure = match stopped {
            Stopped::Client(ClientError::Interrupted) => Failure::from(ClientError::Interrupted),
            Stopped::Output(error) => Failure::new("local_file", format!("cannot print: {error}")),
            Stopped::Client(error) => {
                return Failure::from(error).hint(format!("The job goes on; see: zg job info {number}"));
            }
        };
        self.connection.ignore_signals();
        // Whoever turns away does not wait long.
        self.connection.timeout = CANCEL_TIMEOUT;
        match self.connection.cancel(self.submitted.job, None) {
            Ok(_) => failure.hint(format!("Job {number} is canceled")),
            Err(error) => failure.hint(format!("Job {number} could not be canceled ({error}): zg job cancel {number}")),
        }
    }
}

fn stopped(error: client::ReadError) -> Stopped {
    match error {
        client::ReadError::Client(error) => Stopped::Client(error),
        client::ReadError::Output(error) => Stopped::Output(error),
    }
}

/// The exit code of the program, 128+n for a signal, 1 for what never ran to its end.
fn chunk_exit(chunk: &ChunkRecord) -> u8 {
    if chunk.state == ChunkState::Finished {
        return 0;
    }
    let Some(result) = chunk.result else { return 1 };
    match (result.exit_code, result.signal) {
        (Some(0) | None, None) => 1,
        (Some(code), None) => code,
        (_, Some(signal)) => 128u8.saturating_add(signal),
    }
}

/// What its own output does not say about a chunk's end.
fn unsaid(chunk: &ChunkRecord) -> Option<String> {
    match chunk.state {
        ChunkState::Canceled | ChunkState::Aborted => return Some(format!("was {}", chunk.state)),
        ChunkState::Waiting | ChunkState::Running | ChunkState::Finished => return None,
        ChunkState::Failed => {}
    }
    let signal = chunk.result.and_then(|result| result.signal);
    match (chunk.result.map_or(Cause::None, |result| result.cause), signal) {
        (Cause::Exit, None) => None,
        (Cause::Exit | Cause::Signal, Some(signal)) => Some(format!("was killed by signal {signal}")),
        _ => Some(format!("failed: {}", shape::cause(chunk).unwrap_or("cause unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::record::ChunkResult;
    use wire::{NodeId, WallTime};

    fn ended(state: ChunkState, exit_code: Option<u8>, signal: Option<u8>, cause: Cause) -> ChunkRecord {
        let result = ChunkResult {
            started_at: WallTime(1),
            duration_us: 1,
            cpu_us: 1,
            max_rss_kib: 1,
            exit_code,
            signal,
            cause,
            bundle: None,
        };
        ChunkRecord { chunk: 0, state, attempt: 1, node: NodeId::NIL, result: Some(result) }
    }

    #[test]
    fn one_chunk_gives_its_own_exit_code() {
        let finished = ended(ChunkState::Finished, Some(0), None, Cause::None);
        assert_eq!((chunk_exit(&finished), unsaid(&finished)), (0, None));
        let failed = ended(ChunkState::Failed, Some(127), None, Cause::Exit);
        assert_eq!((chunk_exit(&failed), unsaid(&failed)), (127, None));
        let killed = ended(ChunkState::Failed, None, Some(9), Cause::Signal);
        assert_eq!((chunk_exit(&killed), unsaid(&killed)), (137, Some("was killed by signal 9".into())));
        let late = ended(ChunkState::Failed, None, Some(15), Cause::Timeout);
        assert_eq!((chunk_exit(&late), unsaid(&late)), (143, Some("failed: timeout".into())));
        let missing = ended(ChunkState::Failed, Some(0), None, Cause::Policy);
        assert_eq!((chunk_exit(&missing), unsaid(&missing)), (1, Some("failed: policy".into())));
        let canceled = ChunkRecord { result: None, ..ended(ChunkState::Canceled, None, None, Cause::None) };
        assert_eq!((chunk_exit(&canceled), unsaid(&canceled)), (1, Some("was canceled".into())));
    }
}
