//! The main job, shown: a cluster on this machine counts the words of a dictionary, in front of the reader's eyes.
//!
//! Sixteen map chunks count a sixteenth of the text each, which they read through their worker's mount, a reduce job adds
//! up what they wrote, and the plain
//! `tr | sort | uniq -c` over the whole text has to come to the same twenty words. Nothing stays behind but
//! `target/demo`, which keeps the text for the next time.

mod corpus;

use crate::cluster::{self, Cluster, Inputs, seconds_of};
use crate::json::Value;
use crate::{Outcome, setup};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MAP_CHUNKS: usize = 16;
const WORKERS: usize = 2;

/// Splits text from standard input into lower-case words, one a line.
const WORDS: &str = r"LC_ALL=C; export LC_ALL; tr -cs A-Za-z '\n' | tr A-Z a-z | sed '/^$/d'";

/// Puts the most frequent words first, ties in the order of the alphabet.
const TOP: &str = "sort -k1,1nr -k2 | head -n 20";

/// What one step took.
struct Step {
    name: &'static str,
    wall: Duration,
    /// From the first program's start to the last one's end.
    programs: Option<Duration>,
    cpu: Option<Duration>,
    inputs: Option<Inputs>,
}

impl Step {
    /// One of which nothing else is known.
    fn timed(name: &'static str, wall: Duration) -> Step {
        Step { name, wall, programs: None, cpu: None, inputs: None }
    }
}

/// Runs the whole demo; fails when the cluster's answer is not the plain pipeline's.
pub(crate) fn demo() -> Outcome {
    setup::setup()?;
    let corpus = corpus::fetch()?;
    cluster::build(&["--bins"])?;

    println!("\n{}", corpus.description);
    let mut steps = Vec::new();
    let (plain, wall) = plain_count(&corpus.path)?;
    let plain_step = Step::timed("plain tr | sort | uniq -c", wall);

    println!("Starting one master, one load balancer, one storage node and {WORKERS} workers.");
    // As from another machine, so that there is something to be moved.
    let (cluster, wall) = timed(|| Cluster::start("demo", &["--workers", &WORKERS.to_string(), "--no-borrow"]))?;
    steps.push(Step::timed("start the cluster", wall));
    let counted = count(&cluster, &corpus.path, &mut steps);
    let stopped = timed(|| cluster.stop());
    let counted = counted?;
    let ((), wall) = stopped?;
    steps.push(Step::timed("stop it, nothing left", wall));
    steps.push(plain_step);

    print_times(&steps);
    print_words(&counted, &plain);
    if counted == plain {
        println!("\nBoth ways came to the same {} words and counts.", plain.len());
        Ok(())
    } else {
        Err("the cluster's counts are not the plain pipeline's".to_owned())
    }
}

/// Puts the text into the cluster, maps, reduces, and returns the most frequent words.
fn count(cluster: &Cluster, corpus: &Path, steps: &mut Vec<Step>) -> Outcome<Vec<(String, u64)>> {
    let (put, wall) = timed(|| cluster.json(&["file", "put", &corpus.to_string_lossy()]))?;
    steps.push(Step::timed("put the text on storage", wall));
    let file = expect_text(put.at("file"), "id")?;

    // Without splitting a line, `split -n l/K/N` prints the Kth Nth of a file, and reads no more than that of it.
    let map = format!(
        "split -n \"l/$ZG_CHUNK/$ZG_CHUNK_COUNT\" \"$ZG_INPUT_DIR/corpus.txt\" | ({WORDS} | sort | uniq -c) \
         > \"$ZG_OUTPUT_DIR/counts\""
    );
    let array = format!("1-{MAP_CHUNKS}");
    let input = format!("{file}:corpus.txt");
    println!("Mapping: {MAP_CHUNKS} chunks, each: {map}");
    let flags = ["--name", "map", "--array", &array, "--input", &input];
    let chunks = run_job(cluster, "map, 16 chunks", &flags, &map, steps)?;

    let mut flags = vec!["--name".to_owned(), "reduce".to_owned()];
    for (index, chunk) in chunks.iter().enumerate() {
        let counts = chunk.at("outputs").list().iter().find(|output| output.at("name").text() == Some("counts"));
        let counts = counts.ok_or_else(|| format!("chunk {} has no output `counts`", index + 1))?;
        flags.extend(["--input".to_owned(), format!("{}:counts-{}", expect_text(counts, "file")?, index + 1)]);
    }
    let sum = "awk '{ count[$2] += $1 } END { for (word in count) print count[word], word }'";
    let reduce = format!("LC_ALL=C; export LC_ALL; cat \"$ZG_INPUT_DIR\"/counts-* | {sum} | {TOP}");
    println!("Reducing: {reduce}");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let chunks = run_job(cluster, "reduce, 1 chunk", &flags, &reduce, steps)?;
    let chunk = chunks.first().ok_or("the reduce job has no chunk")?;
    words(&cluster.zg(&["file", "cat", expect_text(chunk, "stdout")?])?)
}

/// Submits a shell script as a job, waits for it, notes its times, and returns its chunks.
fn run_job(
    cluster: &Cluster,
    name: &'static str,
    flags: &[&str],
    script: &str,
    steps: &mut Vec<Step>,
) -> Outcome<Vec<Value>> {
    let submit = [&["submit"], flags, &["--", "sh", "-c", script]].concat();
    let before = cluster.inputs()?;
    let submitted = cluster.json(&submit)?;
    let job = expect_text(submitted.at("job"), "id")?;
    cluster.zg(&["job", "wait", job])?;
    // The last results have brought their numbers along.
    let inputs = cluster.inputs()?.since(before);
    let info = cluster.json(&["job", "info", job])?;
    let info = info.at("job");
    let chunks = cluster.json(&["chunk", "list", job])?.at("chunks").list().to_vec();
    let wall = seconds_of(expect_text(info, "finished_at")?)? - seconds_of(expect_text(info, "submitted_at")?)?;
    let (mut first_start, mut last_end, mut cpu_us) = (f64::INFINITY, f64::NEG_INFINITY, 0.0);
    for chunk in &chunks {
        first_start = seconds_of(expect_text(chunk, "started_at")?)?.min(first_start);
        last_end = seconds_of(expect_text(chunk, "finished_at")?)?.max(last_end);
        cpu_us += chunk.at("cpu_us").number().ok_or("a finished chunk has no cpu_us")?;
    }
    steps.push(Step {
        name,
        wall: Duration::from_secs_f64(wall.max(0.0)),
        programs: Some(Duration::from_secs_f64((last_end - first_start).max(0.0))),
        cpu: Some(Duration::from_secs_f64(cpu_us / 1e6)),
        inputs: Some(inputs),
    });
    Ok(chunks)
}

/// Counts the same words without a cluster.
fn plain_count(corpus: &Path) -> Outcome<(Vec<(String, u64)>, Duration)> {
    let script = format!("({WORDS} | sort | uniq -c | {TOP}) < \"$1\"");
    println!("Plain, without a cluster: {script}");
    let (output, wall) = timed(|| {
        let output = Command::new("sh").args(["-c", &script, "sh"]).arg(corpus).output();
        output.map_err(|error| format!("cannot start sh: {error}"))
    })?;
    Ok((words(&String::from_utf8_lossy(&output.stdout))?, wall))
}

/// Reads lines of count and word.
fn words(text: &str) -> Outcome<Vec<(String, u64)>> {
    let read = |line: &str| {
        let (count, word) = line.trim().split_once(' ')?;
        Some((word.to_owned(), count.parse().ok()?))
    };
    text.lines().map(|line| read(line).ok_or_else(|| format!("not a count and a word: `{line}`"))).collect()
}

fn expect_text<'a>(object: &'a Value, name: &str) -> Outcome<&'a str> {
    object.at(name).text().ok_or_else(|| format!("zg printed no `{name}` in {object:?}"))
}

/// Does something and says how long it took.
#[expect(clippy::disallowed_methods, reason = "no core here: the demo shows how long things take")]
fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Duration)> {
    let start = std::time::Instant::now();
    let done = work()?;
    Ok((done, start.elapsed()))
}

fn print_times(steps: &[Step]) {
    let seconds = |duration: Option<Duration>| duration.map_or(String::new(), |d| format!("{:.3}", d.as_secs_f64()));
    println!("\n{:64} {:^26}", "", "opens of inputs");
    println!(
        "{:<26} {:>8} {:>10} {:>7} {:>9} {:>8} {:>8} {:>8}",
        "where the time went", "wall s", "programs s", "cpu s", "moved MB", "past", "through", "waited"
    );
    for step in steps {
        let (wall, programs, cpu) = (seconds(Some(step.wall)), seconds(step.programs), seconds(step.cpu));
        let counts = step.inputs.map_or(Default::default(), |inputs| {
            let Inputs { bytes_fetched, opens_past, opens_through, opens_waited } = inputs;
            let opens = [opens_past, opens_through, opens_waited].map(|count| count.to_string());
            (format!("{:.1}", bytes_fetched / 1e6), opens)
        });
        let (moved, [past, through, waited]): (String, [String; 3]) = counts;
        println!("{:<26} {wall:>8} {programs:>10} {cpu:>7} {moved:>9} {past:>8} {through:>8} {waited:>8}", step.name);
    }
    println!(
        "Moved from storage to the workers. Files were opened past the worker or through it; some of both waited."
    );
}

fn print_words(counted: &[(String, u64)], plain: &[(String, u64)]) {
    println!("\n{:>4}  {:<12} {:>9}   {:<12} {:>9}", "", "ziggurat", "count", "plain", "count");
    let nothing = (String::new(), 0);
    for rank in 0..counted.len().max(plain.len()) {
        let (word, count) = counted.get(rank).unwrap_or(&nothing);
        let (plain_word, plain_count) = plain.get(rank).unwrap_or(&nothing);
        println!("{:>4}  {word:<12} {count:>9}   {plain_word:<12} {plain_count:>9}", rank + 1);
    }
}
