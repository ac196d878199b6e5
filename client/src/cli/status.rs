//! `zg status` and `zg version`.

use serde_json::json;

use super::output::cell;
use super::{Context, Outcome, shape};

pub fn execute(context: &Context) -> Outcome {
    let mut connection = context.connect()?;
    let status = connection.status()?;
    let nodes = connection.nodes()?;
    let name = |id: wire::NodeId| {
        let node = nodes.iter().find(|node| node.node == id);
        node.map_or_else(|| shape::node_id(id).unwrap_or_else(|| "none".into()), |node| cell(node.name.as_bytes()))
    };
    let value = json!({
        "leader": shape::node_id(status.leader),
        "term": status.term,
        "commit_index": status.commit_index,
        "epoch": status.epoch,
        "primary": shape::node_id(status.primary),
        "primary_index": status.primary_index,
        "jobs": { "live": status.jobs_live, "total": status.jobs_total },
        "chunks": { "running": status.chunks_running, "waiting": status.chunks_waiting },
        "files": status.files,
        "log_first_index": status.log_first_index,
        "snapshot_index": status.snapshot_index,
    });
    context.output.value("status", value, || {
        let lines = [
            ("cluster", connection.cluster().dir.display().to_string()),
            ("leader", format!("{} (term {}, log index {})", name(status.leader), status.term, status.commit_index)),
            (
                "primary",
                format!("{} (epoch {}, log index {})", name(status.primary), status.epoch, status.primary_index),
            ),
            ("jobs", format!("{} live of {}", status.jobs_live, status.jobs_total)),
            ("chunks", format!("{} running, {} waiting", status.chunks_running, status.chunks_waiting)),
            ("files", status.files.to_string()),
            ("log", format!("from index {}, snapshot at {}", status.log_first_index, status.snapshot_index)),
        ];
        lines.iter().map(|(name, value)| format!("{name:<8}  {value}\n")).collect()
    });
    Ok(0)
}

pub fn version(context: &Context) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    context.output.value("version", version.into(), || format!("zg {version}"));
    Ok(0)
}
