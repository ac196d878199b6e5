//! `zg chunk`: what became of each chunk, and where its outputs lie.

use std::collections::BTreeMap;

use clap::Subcommand;
use client::{ChunkSelector, Connection};
use serde_json::Value;
use wire::record::{ChunkRecord, JobRecord, NodeRecord, OutputEntry};
use wire::{NodeId, WallTime};

use super::failure::Failure;
use super::output::{Output, cell};
use super::{Context, Outcome, shape};

#[derive(Subcommand)]
pub enum Chunk {
    /// List the chunks of a job
    List {
        /// A job, or chunks of one: 36, 36.1, 36.[1-3]
        chunks: ChunkSelector,
    },
}

impl Chunk {
    pub fn execute(self, context: &Context) -> Outcome {
        let Chunk::List { chunks: selector } = self;
        let mut connection = context.connect()?;
        let job = connection.job(&selector.job)?;
        let chunks = selected(&mut connection, &job, &selector)?;
        let output = &context.output;
        let mut listed = Vec::new();
        if output.is_json() {
            for chunk in &chunks {
                let outputs = outputs_of(&mut connection, chunk)?;
                listed.push(shape::chunk(&job.array, chunk, &outputs));
            }
        }
        let nodes = if output.is_json() { Vec::new() } else { connection.nodes()? };
        output.value("chunks", Value::Array(listed), || text(output, &job, &chunks, &nodes));
        Ok(0)
    }
}

/// The chunks of `job` that are meant, in the order of their indexes.
pub fn selected(
    connection: &mut Connection,
    job: &JobRecord,
    selector: &ChunkSelector,
) -> Result<Vec<ChunkRecord>, Failure> {
    let Some(numbers) = &selector.chunks else { return Ok(connection.chunks(job.job)?) };
    let missing = |number: u64| {
        let message =
            format!("job {} has no chunk {number} (its array: {})", job.number, client::array_text(&job.array));
        Failure::not_found("not_found", message).hint(format!("See: zg chunk list {}", job.number))
    };
    if numbers.count() == 1 {
        let number = numbers.number(0);
        let index = job.array.index(number).ok_or_else(|| missing(number))?;
        return Ok(connection.chunks_from(job.job, index, 1)?);
    }
    let mut chunks = connection.chunks(job.job)?;
    chunks.retain(|chunk| selector.includes(job.array.number(chunk.chunk)));
    if chunks.is_empty() {
        return Err(missing(numbers.number(0)));
    }
    Ok(chunks)
}

fn outputs_of(connection: &mut Connection, chunk: &ChunkRecord) -> Result<Vec<OutputEntry>, Failure> {
    let bundle = chunk.result.as_ref().and_then(|result| result.bundle);
    match bundle {
        Some(bundle) => Ok(connection.outputs(&bundle)?),
        None => Ok(Vec::new()),
    }
}

fn text(output: &Output, job: &JobRecord, chunks: &[ChunkRecord], nodes: &[NodeRecord]) -> String {
    let none = || "-".to_owned();
    let names: BTreeMap<NodeId, &str> = nodes.iter().map(|node| (node.node, node.name.as_str())).collect();
    let name = |node: NodeId| match names.get(&node) {
        Some(name) => cell(name.as_bytes()),
        None => shape::node_id(node).unwrap_or_else(none),
    };
    let row = |chunk: &ChunkRecord| {
        let result = chunk.result.as_ref();
        let end = match result.map(|result| (result.exit_code, result.signal)) {
            Some((_, Some(signal))) => format!("signal {signal}"),
            Some((Some(code), None)) => code.to_string(),
            Some((None, None)) | None => none(),
        };
        let seconds = |micros: u64| format!("{:.3}", micros as f64 / 1e6);
        // Of a canceled one there is no result, but it may be known when it ran.
        let are_known = chunk.started_at != WallTime(0) && chunk.finished_at != WallTime(0);
        let ran = are_known.then(|| chunk.finished_at.0.saturating_sub(chunk.started_at.0));
        vec![
            format!("{}.{}", job.number, job.array.number(chunk.chunk)),
            chunk.state.word().to_owned(),
            chunk.attempt.to_string(),
            end,
            shape::cause(chunk).map_or_else(none, str::to_owned),
            result.map(|result| result.duration_us).or(ran).map_or_else(none, seconds),
            result.map_or_else(none, |result| seconds(result.cpu_us)),
            result.map_or_else(none, |result| client::quantity::size_text(result.max_rss_kib.saturating_mul(1024))),
            name(chunk.node),
        ]
    };
    let rows: Vec<Vec<String>> = chunks.iter().map(row).collect();
    let headers = ["CHUNK", "STATE", ">ATTEMPT", "EXIT", "CAUSE", ">SECONDS", ">CPU S", ">MAX RSS", "NODE"];
    output.table(&headers, &rows)
}
