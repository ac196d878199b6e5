//! `zg run`: submit, wait, print what the chunks print, exit as the program does.
//!
//! Each chunk's output is printed whole, as soon as that chunk has ended: in the order in which they end. Ctrl-C, or a
//! reader that goes away, cancels the job.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use client::{ClientError, Connection, Submitted};
use wire::record::ChunkRecord;
use wire::{ArraySpec, Cause, ChunkRange, ChunkSet, ChunkState, Duration};

use super::failure::Failure;
use super::flags::Flags;
use super::output::tell;
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
/// Without any event the state is asked for this often all the same, and when events were missed this soon.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a job that has been printed.
struct Printer<'a> {
    connection: &'a mut Connection,
    submitted: Submitted,
    array: ArraySpec,
    chunk_count: u32,
    unprinted: ChunkSet,
    /// Nobody reads but a program: reasons are told at the end, in one value.
    is_json: bool,
    /// Why the first of those that did not finish did not.
    reason: Option<String>,
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
        super::job::follow(&mut connection, &context.output, submitted.number);
        let mut printer = Printer {
            connection: &mut connection,
            submitted,
            array: draft.spec.array,
            chunk_count,
            unprinted: ChunkSet::full(chunk_count),
            is_json: context.output.is_json(),
            reason: None,
            unfinished: 0,
            exit: 0,
        };
        if let Err(stopped) = printer.print_all() {
            return Err(printer.give_up(stopped));
        }
        let (count, number) = (printer.unfinished, submitted.number);
        let message = format!("{count} of {chunk_count} chunks did not finish");
        let hint = format!("See: zg chunk list {number}");
        if count > 0 && context.output.is_json() && !self.ignore_failures {
            let reason = printer.reason.unwrap_or_default();
            let failure = Failure::new("chunks_failed", format!("{message}: {reason}"));
            return Err(failure.exit(printer.exit).hint(hint));
        }
        if count > 0 && chunk_count > 1 {
            context.output.note(&format!("zg: {message}. {hint}"));
        }
        Ok(if self.ignore_failures { 0 } else { printer.exit })
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
        let mut looked_at = self.connection.clock().now();
        let mut look_at = looked_at;
        while !self.unprinted.is_empty() {
            let change = self.connection.watch_job(self.submitted.job, after, None)?;
            after = change.index;
            for range in change.ended {
                self.print_ended(range)?;
            }
            if change.is_gap {
                look_at = look_at.min(looked_at + LOOK_AGAIN_AFTER);
            }
            let now = self.connection.clock().now();
            if change.job_ended || now >= look_at {
                self.look()?;
                (looked_at, look_at) = (now, now + LOOK_INTERVAL);
            }
        }
        Ok(())
    }

    /// Prints what has ended without our having heard of it.
    fn look(&mut self) -> Result<(), Stopped> {
        let ended = self.connection.job(&self.submitted.job.to_string())?.counts.ended();
        // Most often none: a list of all the others would be long.
        if ended + self.unprinted.len() > u64::from(self.chunk_count) {
            self.print_ended(ChunkRange::new(0, self.chunk_count))?;
        }
        Ok(())
    }

    /// Prints the chunks of `within` that have ended and are not printed yet.
    fn print_ended(&mut self, within: ChunkRange) -> Result<(), Stopped> {
        let unprinted: Vec<ChunkRange> = self.unprinted.ranges_in(within).collect();
        for range in unprinted {
            let mut next = range.first;
            while u64::from(next) < range.end() {
                let count = u32::try_from(range.end() - u64::from(next)).unwrap_or(u32::MAX).min(CHUNKS_PER_LOOK);
                let chunks = self.connection.chunks_from(self.submitted.job, next, count)?;
                let Some(last) = chunks.last() else { break };
                next = last.chunk.saturating_add(1);
                for chunk in chunks.iter().filter(|chunk| chunk.state.is_terminal()) {
                    self.print_chunk(chunk)?;
                    self.unprinted.remove(ChunkRange::one(chunk.chunk));
                }
            }
        }
        Ok(())
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
        let number = self.array.number(chunk.chunk);
        let unsaid = unsaid(chunk);
        if let Some(reason) = unsaid.as_ref().filter(|_| !self.is_json) {
            tell(&format!("zg: chunk {number} {reason}\n"));
        }
        if exit != 0 {
            let reason = unsaid.unwrap_or_else(|| format!("ended with exit code {exit}"));
            self.reason.get_or_insert_with(|| format!("chunk {number} {reason}"));
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
            Stopped::Client(error) => return super::job::lost_sight(error, number),
        };
        self.connection.ignore_signals();
        // Whoever turns away does not wait long.
        self.connection.timeout = CANCEL_TIMEOUT;
        match self.connection.cancel(self.submitted.job, None) {
            Ok(0) => failure.hint(format!("Job {number} had ended before; see: zg job info {number}")),
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
        let (node, started_at, finished_at) = (NodeId::NIL, result.started_at, result.finished_at());
        ChunkRecord { chunk: 0, state, attempt: 1, node, started_at, finished_at, result: Some(result) }
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
