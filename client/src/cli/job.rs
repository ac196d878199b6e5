//! `zg job`: jobs as their submitters see them.

use std::io::{self, IsTerminal, Write};

use clap::Subcommand;
use client::quantity::parse_duration_ms;
use client::{ChunkSelector, ClientError, Connection, JobSelector, array_text};
use serde_json::{Value, json};
use wire::record::JobRecord;
use wire::{Duration, JobState};

use super::failure::Failure;
use super::output::{Output, cell, tell};
use super::{Context, Outcome, shape};

#[derive(Subcommand)]
pub enum Job {
    /// List jobs that have not ended
    List {
        /// List ended jobs too
        #[arg(long)]
        all: bool,
        /// List jobs in these states, ended or not: failed,canceled
        #[arg(long, value_name = "STATES", value_delimiter = ',', value_parser = parse_state)]
        filter: Vec<JobState>,
    },
    /// Show jobs
    Info {
        /// 5, 1,3,5-8, all, last, or digits of a uuid
        job: JobSelector,
    },
    /// Wait until jobs have ended; fails if a chunk failed
    Wait {
        /// 5, 1,3,5-8, all, last, or digits of a uuid
        job: JobSelector,
        /// Wait this long at most, then exit with 124
        #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
        timeout: Option<u64>,
        /// Exit with 0 though a chunk failed
        #[arg(long)]
        ignore_failures: bool,
    },
    /// Cancel the chunks of jobs that have not ended
    Cancel {
        /// 5, 1,3,5-8, all, last, or digits of a uuid
        job: JobSelector,
    },
    /// Print what chunks have written to standard output
    Logs {
        /// A job, or chunks of one: 36, 36.1, 36.[1-3]
        chunks: ChunkSelector,
        /// What they have written to standard error instead
        #[arg(long)]
        stderr: bool,
    },
}

impl Job {
    pub fn execute(self, context: &Context) -> Outcome {
        let mut connection = context.connect()?;
        let output = &context.output;
        match self {
            Job::List { all, filter } => list(&mut connection, output, all, &filter),
            Job::Info { job } => info(&mut connection, output, &job),
            Job::Wait { job, timeout, ignore_failures } => {
                wait(&mut connection, output, &job, timeout, ignore_failures)
            }
            Job::Cancel { job } => cancel(&mut connection, output, &job),
            Job::Logs { chunks, stderr } => logs(&mut connection, &chunks, stderr),
        }
    }
}

fn list(connection: &mut Connection, output: &Output, all: bool, filter: &[JobState]) -> Outcome {
    let mut jobs = connection.jobs(all || !filter.is_empty())?;
    if !filter.is_empty() {
        jobs.retain(|job| filter.contains(&job.state));
    }
    if jobs.is_empty() && !all && filter.is_empty() {
        output.note("no job waits or runs. See: zg job list --all");
    }
    output.value("jobs", jobs.iter().map(shape::job).collect(), || {
        let rows: Vec<Vec<String>> = jobs.iter().map(list_row).collect();
        let headers = [">JOB", "NAME", "STATE", ">CHUNKS", ">RUNNING", ">ENDED", ">FAILED", "SUBMITTED", "COMMAND"];
        output.table(&headers, &rows)
    });
    Ok(0)
}

fn list_row(job: &JobRecord) -> Vec<String> {
    let counts = &job.counts;
    let number = |number: u64| number.to_string();
    vec![
        number(job.number),
        cell(&job.name),
        job.state.word().into(),
        number(counts.total()),
        number(counts.running),
        number(counts.ended()),
        number(counts.failed),
        shape::time(job.submitted_at).unwrap_or_default(),
        cell(&job.command),
    ]
}

fn info(connection: &mut Connection, output: &Output, selector: &JobSelector) -> Outcome {
    let jobs = connection.select_jobs(selector, true)?;
    let (key, value) = one_or_all(selector, jobs.iter().map(shape::job).collect());
    output.value(key, value, || jobs.iter().map(|job| info_text(output, job)).collect::<Vec<_>>().join("\n"));
    Ok(0)
}

/// The object of the job that was named, or the list of those that were.
fn one_or_all(selector: &JobSelector, mut values: Vec<Value>) -> (&'static str, Value) {
    match selector {
        JobSelector::One(_) => ("job", values.pop().unwrap_or_default()),
        JobSelector::Numbers(_) | JobSelector::All => ("jobs", values.into()),
    }
}

fn info_text(output: &Output, job: &JobRecord) -> String {
    let counts = &job.counts;
    let time = |time| shape::time(time).unwrap_or_else(|| "-".into());
    let lines = [
        ("job", job.number.to_string()),
        ("id", job.job.to_string()),
        ("name", cell(&job.name)),
        ("state", output.state(job.state.word(), 0)),
        ("command", cell(&job.command)),
        ("array", array_text(&job.array)),
        ("chunks", counts.total().to_string()),
        ("  waiting", counts.waiting.to_string()),
        ("  running", counts.running.to_string()),
        ("  finished", counts.finished.to_string()),
        ("  failed", counts.failed.to_string()),
        ("  canceled", counts.canceled.to_string()),
        ("  aborted", counts.aborted.to_string()),
        ("submitted", time(job.submitted_at)),
        ("started", time(job.started_at)),
        ("finished", time(job.finished_at)),
    ];
    lines.iter().map(|(name, value)| format!("{name:<10}  {value}\n")).collect()
}

fn wait(
    connection: &mut Connection,
    output: &Output,
    selector: &JobSelector,
    timeout_ms: Option<u64>,
    ignore_failures: bool,
) -> Outcome {
    let deadline = timeout_ms.map(|timeout| connection.clock().now() + Duration::from_millis(timeout));
    let jobs = connection.select_jobs(selector, false)?;
    let mut ended = Vec::new();
    for job in jobs {
        follow(connection, output, job.number);
        let mut waiting = Waiting::new(output);
        let record = connection.wait_job(job.job, deadline, |record| waiting.show(record));
        waiting.end();
        ended.push(record.map_err(|error| lost_sight(error, job.number))?);
    }
    if output.is_json() {
        let (key, value) = one_or_all(selector, ended.iter().map(shape::job).collect());
        output.value(key, value, String::new);
    }
    conclude(output, &ended, ignore_failures)
}

/// From now on the connection is about a job that goes on without us: a cluster that starts again is waited for.
pub fn follow(connection: &mut Connection, output: &Output, number: u64) {
    connection.query_timeout = connection.timeout;
    connection.on_waiting =
        output.waiting(&format!("; the job does not need this command, see later: zg job info {number}"));
}

/// Why a job's end was not seen.
pub fn lost_sight(error: ClientError, number: u64) -> Failure {
    match error {
        ClientError::TimedOut { .. } => Failure::from(error).hint(format!("See: zg job info {number}")),
        ClientError::NoMaster { ref dir, .. } => {
            let hint = format!(
                "The job goes on when the cluster does (zg dev --dir {}); see: zg job info {number}",
                dir.display()
            );
            Failure::from(error).hint(hint)
        }
        _ => Failure::from(error),
    }
}

/// Tells of the jobs that did not end well, and what to exit with.
pub fn conclude(output: &Output, ended: &[JobRecord], ignore_failures: bool) -> Outcome {
    let failed: Vec<&JobRecord> = ended.iter().filter(|record| shape::job_exit(record) != Some(0)).collect();
    let Some(first) = failed.first() else { return Ok(0) };
    if output.is_json() && !ignore_failures {
        let message = failed.iter().map(|record| how_it_ended(record)).collect::<Vec<_>>().join("; ");
        return Err(Failure::new("chunks_failed", message).hint(format!("See: zg chunk list {}", first.number)));
    }
    for record in failed {
        output.note(&format!("{}. See: zg chunk list {}", how_it_ended(record), record.number));
    }
    Ok(u8::from(!ignore_failures))
}

fn how_it_ended(record: &JobRecord) -> String {
    let counts = &record.counts;
    let parts = [(counts.failed, "failed"), (counts.canceled, "canceled"), (counts.aborted, "aborted")];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let (number, total) = (record.number, counts.total());
    let parts = parts.collect::<Vec<_>>().join(", ");
    format!("job {number} {}: of {total} chunks {parts}", record.state)
}

fn cancel(connection: &mut Connection, output: &Output, selector: &JobSelector) -> Outcome {
    let jobs = connection.select_jobs(selector, false)?;
    let mut canceled = Vec::new();
    for job in jobs {
        let count = connection.cancel(job.job, None)?;
        canceled.push((job, count));
    }
    if canceled.is_empty() {
        output.note("no job waits or runs: nothing to cancel");
    }
    let values = canceled.iter().map(|(job, count)| canceled_json(job, *count)).collect();
    let (key, value) = one_or_all(selector, values);
    output.value(key, value, || {
        let line = |(job, count): &(JobRecord, u64)| format!("job {}: {count} chunks canceled\n", job.number);
        canceled.iter().map(line).collect()
    });
    Ok(0)
}

fn canceled_json(job: &JobRecord, count: u64) -> Value {
    json!({ "id": job.job.to_string(), "number": job.number, "canceled": count })
}

fn logs(connection: &mut Connection, selector: &ChunkSelector, stderr: bool) -> Outcome {
    let job = connection.job(&selector.job)?;
    let chunks = super::chunk::selected(connection, &job, selector)?;
    let mut stdout = io::stdout().lock();
    for chunk in chunks {
        let bundle = chunk.result.and_then(|result| result.bundle);
        let address = bundle.and_then(|bundle| if stderr { bundle.stderr() } else { bundle.stdout() });
        if let Some(address) = address {
            connection.read_to(address, &mut stdout)?;
        }
    }
    stdout.flush().map_err(|error| Failure::new("local_file", format!("cannot print: {error}")))?;
    Ok(0)
}

fn parse_state(word: &str) -> Result<JobState, String> {
    let words = || JobState::ALL.iter().map(|state| state.word()).collect::<Vec<_>>().join(", ");
    JobState::from_word(word).ok_or_else(|| format!("expected one of {}", words()))
}

/// Shows on a terminal how far a job is while someone waits for it.
pub struct Waiting {
    is_shown: bool,
    is_begun: bool,
}

impl Waiting {
    pub fn new(output: &Output) -> Self {
        Self { is_shown: output.shows_progress() && io::stderr().is_terminal(), is_begun: false }
    }

    pub fn show(&mut self, job: &JobRecord) {
        if !self.is_shown {
            return;
        }
        let counts = &job.counts;
        tell(&format!(
            "\r\x1b[Kjob {}: {} of {} chunks ended, {} running, {} failed",
            job.number,
            counts.ended(),
            counts.total(),
            counts.running,
            counts.failed
        ));
        self.is_begun = true;
    }

    /// Leaves the line as if nothing had been there.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.is_begun) {
            tell("\r\x1b[K");
        }
    }
}
