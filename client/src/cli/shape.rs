//! The JSON objects of jobs, chunks, files and nodes, field by field as programs rely on them.

use client::quantity::size_text;
use serde_json::{Value, json};
use wire::record::{ChunkRecord, FileRecord, InputCounts, JobRecord, NodeRecord, OutputEntry};
use wire::tree::{CLASS_TREE, EntryKind, Tree};
use wire::{ArraySpec, Cause, ChunkState, FileAddress, FileId, Hash, JobState, NodeId, WallTime};

/// What `zg job wait` exits with for a job, once it has ended: 1 if a chunk did not finish.
pub fn job_exit(job: &JobRecord) -> Option<u8> {
    match job.state {
        JobState::Waiting | JobState::Running => None,
        JobState::Finished => Some(0),
        JobState::Failed | JobState::Canceled | JobState::Aborted => Some(1),
    }
}

pub fn job(job: &JobRecord) -> Value {
    let counts = &job.counts;
    json!({
        "id": job.job.to_string(),
        "number": job.number,
        "name": String::from_utf8_lossy(&job.name),
        "state": job.state.word(),
        "exit": job_exit(job),
        "chunks": {
            "total": counts.total(),
            "waiting": counts.waiting,
            "running": counts.running,
            "finished": counts.finished,
            "failed": counts.failed,
            "canceled": counts.canceled,
            "aborted": counts.aborted,
        },
        "submitted_at": time(job.submitted_at),
        "started_at": time(job.started_at),
        "finished_at": time(job.finished_at),
        "command": String::from_utf8_lossy(&job.command),
    })
}

/// `outputs` = the lines of its bundle's index, if it has one.
pub fn chunk(array: &ArraySpec, chunk: &ChunkRecord, outputs: &[OutputEntry]) -> Value {
    let result = chunk.result.as_ref();
    let bundle = result.and_then(|result| result.bundle);
    let address = |address: Option<FileAddress>| address.map(|address| address.to_string());
    let mut offset = bundle.map_or(0, |bundle| bundle.outputs_offset());
    let mut outputs_json = Vec::new();
    for output in outputs {
        let piece = (output.length > 0).then_some(FileAddress {
            file: bundle.map_or(FileId::NIL, |bundle| bundle.file),
            piece: Some((offset, output.length)),
        });
        outputs_json.push(json!({
            "name": String::from_utf8_lossy(&output.name),
            "file": address(piece),
            "length": output.length,
            "blake3": output.hash.to_string(),
        }));
        offset += output.length;
    }
    json!({
        "chunk": array.number(chunk.chunk),
        "state": chunk.state.word(),
        "cause": cause(chunk),
        "attempt": chunk.attempt,
        "exit_code": result.and_then(|result| result.exit_code),
        "signal": result.and_then(|result| result.signal),
        "node": node_id(chunk.node),
        "cpu_us": result.map(|result| result.cpu_us),
        "max_rss_bytes": result.map(|result| result.max_rss_kib.saturating_mul(1024)),
        "started_at": time(chunk.started_at),
        "finished_at": time(chunk.finished_at),
        "stdout": address(bundle.and_then(|bundle| bundle.stdout())),
        "stderr": address(bundle.and_then(|bundle| bundle.stderr())),
        "outputs": outputs_json,
    })
}

/// Why a chunk failed, if it did.
pub fn cause(chunk: &ChunkRecord) -> Option<&'static str> {
    let told = chunk.result.as_ref().map_or(Cause::None, |result| result.cause);
    match (chunk.state, told) {
        // The only failure that no worker reports.
        (ChunkState::Failed, Cause::None) => Some(Cause::WorkerLost.word()),
        (ChunkState::Failed, cause) => Some(cause.word()),
        (
            ChunkState::Waiting
            | ChunkState::Running
            | ChunkState::Finished
            | ChunkState::Canceled
            | ChunkState::Aborted,
            _,
        ) => None,
    }
}

/// A file just put: its record may not be read back yet.
pub fn put_file(file: FileId, length: u64, hash: Hash) -> Value {
    json!({ "id": file.to_string(), "length": length, "blake3": hash.to_string() })
}

pub fn file(file: &FileRecord) -> Value {
    let mut value = put_file(file.file, file.length, file.hash);
    value["class"] = class(file.class).into();
    value["copies"] = file.copies.into();
    value["stored_at"] = json!(time(file.stored_at));
    value
}

pub fn class(number: u8) -> &'static str {
    match number {
        0 => "input",
        1 => "result",
        2 => "temp",
        CLASS_TREE => "tree",
        _ => "other",
    }
}

/// What a tree lists.
pub fn tree<B: AsRef<[u8]>>(tree: &Tree<B>) -> Value {
    let of_kind = |kind| tree.entries().iter().filter(|entry| entry.kind() == kind).count();
    json!({
        "files": of_kind(EntryKind::File),
        "directories": of_kind(EntryKind::Directory),
        "symlinks": of_kind(EntryKind::Symlink),
        "length": tree.length(),
        "stored_files": tree.files().len(),
    })
}

/// The same in a few words.
pub fn tree_text<B: AsRef<[u8]>>(tree: &Tree<B>) -> String {
    let files = tree.entries().iter().filter(|entry| entry.kind() == EntryKind::File).count();
    format!("{files} files, {}", size_text(tree.length()))
}

pub fn node(node: &NodeRecord) -> Value {
    json!({
        "id": node.node.to_string(),
        "role": node.role.word(),
        "name": node.name,
        "state": node.state.word(),
        "endpoint": Some(&node.endpoint).filter(|endpoint| !endpoint.is_empty()),
        "pid": Some(node.pid).filter(|pid| *pid != 0),
        "is_leader": node.is_leader,
        "is_primary": node.is_primary,
        "cpus": f64::from(node.cpus_milli) / 1000.0,
        "memory_bytes": node.memory,
    })
}

/// How a worker's programs have read their inputs.
pub fn inputs(counts: &InputCounts) -> Value {
    json!({
        "opens_passthrough": counts.opens_passthrough,
        "opens_cached": counts.opens_cached,
        "opens_waited": counts.opens_waited,
        "reads_failed": counts.reads_failed,
        "bytes_served": counts.bytes_served,
        "bytes_fetched": counts.bytes_fetched,
    })
}

pub fn node_id(node: NodeId) -> Option<String> {
    (!node.is_nil()).then(|| node.to_string())
}

/// Zero = not known.
pub fn time(time: WallTime) -> Option<String> {
    (time != WallTime(0)).then(|| time.rfc3339())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::record::{Bundle, ChunkCounts, ChunkResult};
    use wire::{BootNonce, ClientKey, JobId, NodeState, Role};

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn a_job_has_the_fields_that_are_promised() {
        let record = JobRecord {
            job: JobId([1; 16]),
            number: 7,
            state: JobState::Running,
            counts: ChunkCounts { waiting: 1, running: 2, finished: 3, ..ChunkCounts::default() },
            submitted_at: WallTime(1_000_000),
            started_at: WallTime(0),
            finished_at: WallTime(0),
            name: b"n".to_vec(),
            array: ArraySpec::plain(6),
            command: b"true".to_vec(),
        };
        let value = job(&record);
        let promised = ["id", "number", "state", "exit", "chunks", "submitted_at", "started_at", "finished_at"];
        assert!(promised.iter().all(|key| keys(&value).contains(key)));
        let counts = ["total", "waiting", "running", "finished", "failed", "canceled", "aborted"];
        assert_eq!(keys(&value["chunks"]), counts);
        assert_eq!(value["chunks"]["total"], 6);
        assert_eq!((&value["exit"], &value["started_at"]), (&Value::Null, &Value::Null));
        assert_eq!(value["submitted_at"], "1970-01-01T00:00:01.000000Z");
        assert_eq!(job(&JobRecord { state: JobState::Failed, ..record })["exit"], 1);
    }

    #[test]
    fn a_chunk_has_the_fields_that_are_promised_and_addresses_of_what_it_wrote() {
        let file = FileId::of(Hash([9; 32]));
        let bundle = Bundle {
            file,
            file_index: 0,
            offset: 10,
            index_length: 4,
            stdout_length: 5,
            stderr_length: 0,
            outputs_length: 7,
        };
        let result = ChunkResult {
            started_at: WallTime(1_000_000),
            duration_us: 500_000,
            cpu_us: 20,
            max_rss_kib: 3,
            exit_code: Some(0),
            signal: None,
            cause: Cause::None,
            bundle: Some(bundle),
        };
        let node = NodeId([2; 16]);
        let record = ChunkRecord {
            chunk: 1,
            state: ChunkState::Finished,
            attempt: 1,
            node,
            started_at: result.started_at,
            finished_at: result.finished_at(),
            result: Some(result),
        };
        let output = |name: &[u8], length| OutputEntry { name: name.to_vec(), length, hash: Hash::NIL, mode: 0o644 };
        let outputs = [output(b"a", 3), output(b"empty", 0), output(b"b", 4)];
        let value = chunk(&ArraySpec::parse("5-6").unwrap(), &record, &outputs);
        let promised = [
            "chunk",
            "state",
            "cause",
            "attempt",
            "exit_code",
            "signal",
            "node",
            "cpu_us",
            "max_rss_bytes",
            "started_at",
            "finished_at",
            "stdout",
            "stderr",
            "outputs",
        ];
        assert_eq!(keys(&value), promised);
        assert_eq!((&value["chunk"], &value["max_rss_bytes"]), (&json!(6), &json!(3072)));
        assert_eq!(value["stdout"], format!("{file}@14+5"));
        assert_eq!(value["stderr"], Value::Null);
        assert_eq!(value["outputs"][0]["file"], format!("{file}@19+3"));
        assert_eq!(value["outputs"][1]["file"], Value::Null);
        assert_eq!(value["outputs"][2]["file"], format!("{file}@22+4"));
        assert_eq!(value["finished_at"], "1970-01-01T00:00:01.500000Z");
    }

    #[test]
    fn a_chunk_without_a_result_has_nulls_and_a_lost_one_its_cause() {
        let record = ChunkRecord {
            chunk: 0,
            state: ChunkState::Waiting,
            attempt: 1,
            node: NodeId::NIL,
            started_at: WallTime(0),
            finished_at: WallTime(0),
            result: None,
        };
        let value = chunk(&ArraySpec::plain(1), &record, &[]);
        assert_eq!((&value["node"], &value["exit_code"], &value["cause"]), (&Value::Null, &Value::Null, &Value::Null));
        let lost = ChunkRecord { state: ChunkState::Failed, ..record };
        assert_eq!(chunk(&ArraySpec::plain(1), &lost, &[])["cause"], "worker_lost");
    }

    #[test]
    fn a_node_has_the_fields_that_are_promised() {
        let record = NodeRecord {
            node: NodeId([3; 16]),
            role: Role::LoadBalancer,
            state: NodeState::Up,
            boot: BootNonce(1),
            public_key: ClientKey([0; 32]),
            pid: 12,
            cpus_milli: 2000,
            memory: 0,
            is_leader: false,
            is_primary: true,
            name: "loadbalancer1".into(),
            endpoint: "tcp://127.0.0.1:1".into(),
            bulk_endpoint: String::new(),
        };
        let value = node(&record);
        let promised = ["id", "role", "name", "state", "endpoint", "pid", "is_leader", "is_primary"];
        assert_eq!(keys(&value)[..8], promised);
        assert_eq!((&value["role"], &value["state"]), (&json!("loadbalancer"), &json!("up")));
    }

    #[test]
    fn a_put_file_has_exactly_the_fields_that_are_promised() {
        assert_eq!(keys(&put_file(FileId::NIL, 0, Hash::NIL)), ["id", "length", "blake3"]);
    }
}
