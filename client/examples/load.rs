//! Load for `cargo xtask nemesis`: clients that submit, cancel and ask without pause, and say what they were told.
//!
//! `load CLUSTER` prints the history, one line for each thing that happened, in the words that `Line` has. Lines on
//! standard input are repeated in it with the time at which they came, so that whoever does harm has it told by the same
//! clock. At the end of standard input it waits until all jobs have ended, and prints what each came to.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use client::{ClientError, Cluster, Connection, JobDraft, Position};
use node::Clock;
use wire::{ArraySpec, ChunkState, Duration, Instant, JobId};

/// Clients that submit. One more cancels, one asks, one waits.
const SUBMITTERS: u64 = 4;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(15);
/// Of the jobs that were acknowledged last, one is asked for, waited for or canceled.
const RECENT: usize = 64;
/// A job that has not ended by then, after the last harm, is lost.
const CALM: Duration = Duration::from_secs(90);
/// Chunks in a job are up to so many.
const CHUNKS: u64 = 3;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: load CLUSTER <HARM >HISTORY");
        return ExitCode::from(2);
    };
    match load(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(dir: &Path) -> Result<(), ClientError> {
    let cluster = Cluster::load(dir)?;
    let shared = Shared { clock: Clock::new(), is_over: AtomicBool::new(false), recent: Mutex::default() };
    std::thread::scope(|scope| {
        let clients = (0..SUBMITTERS + 3).map(|number| {
            let (cluster, shared) = (&cluster, &shared);
            scope.spawn(move || Client::open(cluster, shared, number).map(Client::work))
        });
        let clients: Vec<_> = clients.collect();
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            say(&Line::Harm { at: shared.clock.now(), what: &line });
        }
        shared.is_over.store(true, Ordering::SeqCst);
        clients.into_iter().try_for_each(|client| client.join().expect("no client panics"))
    })?;
    tell_end(&cluster, &shared)
}

/// What the clients have in common.
struct Shared {
    clock: Clock,
    is_over: AtomicBool,
    recent: Mutex<VecDeque<JobId>>,
}

/// One line of the history. Times are microseconds of the machine's monotonic clock.
enum Line<'a> {
    /// `harm AT WHAT`
    Harm { at: Instant, what: &'a str },
    /// `VERB BEGUN ENDED TERM INDEX JOB WHAT`: an answer, and when its request was first sent.
    Answer { verb: &'a str, begun: Instant, ended: Instant, position: Position, job: JobId, what: &'a str },
    /// `failed BEGUN ENDED VERB JOB CODE WHY`: whether it was carried out is not known.
    Failed { verb: &'a str, begun: Instant, ended: Instant, job: JobId, why: &'a ClientError },
    /// `end JOB NUMBER CHUNKS WHAT`: what a job came to.
    End { job: JobId, number: u64, chunks: u64, what: &'a str },
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Harm { at, what } => write!(to, "harm {} {what}", at.0),
            Line::Answer { verb, begun, ended, position, job, what } => {
                write!(to, "{verb} {} {} {} {} {job} {what}", begun.0, ended.0, position.term, position.index)
            }
            Line::Failed { verb, begun, ended, job, why } => {
                let (code, why) = (why.code(), why.to_string().replace('\n', " "));
                write!(to, "failed {} {} {verb} {job} {code} {why}", begun.0, ended.0)
            }
            Line::End { job, number, chunks, what } => write!(to, "end {job} {number} {chunks} {what}"),
        }
    }
}

/// Nobody who reads a part of a history can judge it: without a reader we end.
fn say(line: &Line<'_>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

struct Client<'a> {
    connection: Connection,
    shared: &'a Shared,
    number: u64,
    random: u64,
}

impl<'a> Client<'a> {
    fn open(cluster: &Cluster, shared: &'a Shared, number: u64) -> Result<Self, ClientError> {
        let connection = Connection::open(cluster.clone())?;
        let random = shared.clock.now().0 ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Ok(Self { connection, shared, number, random })
    }

    fn work(mut self) {
        while !self.shared.is_over.load(Ordering::SeqCst) {
            match self.number.checked_sub(SUBMITTERS) {
                None => self.submit(),
                Some(0) => self.ask_one("cancel", |connection, job| Ok(connection.cancel(job, None)?.to_string())),
                Some(1) => {
                    self.ask_one("query", |connection, job| Ok(connection.job(&job.to_string())?.number.to_string()))
                }
                Some(_) => self.ask_one("wait", |connection, job| {
                    let deadline = connection.clock().now() + Duration::from_secs(20);
                    connection.wait_job(job, Some(deadline), |_| {})?;
                    results(connection, job)
                }),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn submit(&mut self) {
        let chunks = 1 + self.draw(CHUNKS) as u32;
        let mut draft = JobDraft::new(vec![b"/bin/true".to_vec()]);
        draft.spec.array = ArraySpec::plain(chunks);
        let begun = self.shared.clock.now();
        // The same draft again is the same job, so what is not known may be asked until it is.
        loop {
            let answer = self.connection.submit(&draft).map(|submitted| format!("{} {chunks}", submitted.number));
            let is_known = answer.is_ok();
            self.tell("submit", begun, draft.job, answer);
            if is_known {
                let mut recent = self.shared.recent.lock().expect("no client has panicked");
                recent.push_back(draft.job);
                if recent.len() > RECENT {
                    recent.pop_front();
                }
            }
            if is_known || self.shared.is_over.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Asks something about one of the jobs that were acknowledged last.
    fn ask_one(&mut self, verb: &'static str, ask: impl FnOnce(&mut Connection, JobId) -> Result<String, ClientError>) {
        let random = self.draw(RECENT as u64) as usize;
        let recent = self.shared.recent.lock().expect("no client has panicked");
        let Some(job) = recent.get(random % recent.len().max(1)).copied() else { return };
        drop(recent);
        let begun = self.shared.clock.now();
        let answer = ask(&mut self.connection, job);
        self.tell(verb, begun, job, answer);
    }

    fn tell(&self, verb: &'static str, begun: Instant, job: JobId, answer: Result<String, ClientError>) {
        let ended = self.shared.clock.now();
        let position = self.connection.position();
        match &answer {
            Ok(what) => say(&Line::Answer { verb, begun, ended, position, job, what }),
            Err(why) => say(&Line::Failed { verb, begun, ended, job, why }),
        }
    }

    /// A number below `bound`.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}

/// What became of every chunk of a job that has ended, in one word: it must be the same whenever it is asked.
fn results(connection: &mut Connection, job: JobId) -> Result<String, ClientError> {
    let chunks = connection.chunks(job)?;
    let words = chunks.iter().map(|chunk| {
        let (number, state, attempt) = (chunk.chunk, chunk.state.word(), chunk.attempt);
        match &chunk.result {
            // Where a canceled one ran may be told later.
            Some(result) if chunk.state != ChunkState::Canceled => {
                let (start, length, code) = (result.started_at.0, result.duration_us, result.exit_code);
                format!(
                    "{number}:{state}:{attempt}:{start}:{length}:{}",
                    code.map_or("-".into(), |code| code.to_string())
                )
            }
            Some(_) | None => format!("{number}:{state}"),
        }
    });
    Ok(words.collect::<Vec<_>>().join(","))
}

/// Waits until all jobs have ended, and tells what each came to.
fn tell_end(cluster: &Cluster, shared: &Shared) -> Result<(), ClientError> {
    let mut connection = Connection::open(cluster.clone())?;
    connection.query_timeout = connection.timeout;
    let deadline = shared.clock.now() + CALM;
    for job in connection.jobs(false)? {
        match connection.wait_job(job.job, Some(deadline), |_| {}) {
            Ok(_) | Err(ClientError::TimedOut { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for record in connection.jobs(true)? {
        let what = results(&mut connection, record.job)?;
        say(&Line::End { job: record.job, number: record.number, chunks: record.counts.total(), what: &what });
    }
    Ok(())
}
