//! `zg node`: the processes of the cluster.

use clap::Subcommand;
use client::quantity::{cpus_text, size_text};
use serde_json::Value;
use wire::record::{InputCounts, NodeRecord};

use super::output::cell;
use super::{Context, Failure, Outcome, shape};

#[derive(Subcommand)]
pub enum Node {
    /// List all nodes
    List,
    /// Show one node, and how the programs of a worker have read their inputs
    Info {
        /// Its name or the beginning of its id
        node: String,
    },
}

impl Node {
    pub fn execute(self, context: &Context) -> Outcome {
        match self {
            Node::List => list(context),
            Node::Info { node } => info(context, &node),
        }
    }
}

fn list(context: &Context) -> Outcome {
    let nodes = context.connect()?.nodes()?;
    let output = &context.output;
    output.value("nodes", nodes.iter().map(shape::node).collect(), || {
        let row = |node: &NodeRecord| {
            let duty = match (node.is_leader, node.is_primary) {
                (true, _) => "leader",
                (_, true) => "primary",
                (false, false) => "",
            };
            vec![
                cell(node.name.as_bytes()),
                node.role.word().to_owned(),
                node.state.word().to_owned(),
                duty.to_owned(),
                node.pid.to_string(),
                if node.cpus_milli == 0 { "-".into() } else { cpus_text(node.cpus_milli) },
                if node.memory == 0 { "-".into() } else { size_text(node.memory) },
                cell(node.endpoint.as_bytes()),
                node.node.to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
        let headers = ["NAME", "ROLE", "STATE", "DUTY", ">PID", ">CPUS", ">MEMORY", "ENDPOINT", "ID"];
        output.table(&headers, &rows)
    });
    Ok(0)
}

fn info(context: &Context, name: &str) -> Outcome {
    let mut client = context.connect()?;
    let mut found: Vec<NodeRecord> = client
        .nodes()?
        .into_iter()
        .filter(|node| node.name == name || node.node.to_string().starts_with(name))
        .collect();
    let node = match found.len() {
        1 => found.remove(0),
        0 => return Err(Failure::not_found("node_unknown", format!("no node '{name}'")).hint("See them: zg node list")),
        _ => {
            let message = format!("'{name}' names {} nodes", found.len());
            return Err(Failure::usage(message).hint("See them: zg node list"));
        }
    };
    let inputs = client.inputs()?.into_iter().find(|inputs| inputs.node == node.node).map(|inputs| inputs.counts);
    let mut value = shape::node(&node);
    value["inputs"] = inputs.as_ref().map_or(Value::Null, shape::inputs);
    context.output.value("node", value, || {
        let mut rows = vec![
            ("name", cell(node.name.as_bytes())),
            ("id", node.node.to_string()),
            ("role", node.role.word().to_owned()),
            ("state", node.state.word().to_owned()),
            ("endpoint", cell(node.endpoint.as_bytes())),
        ];
        if let Some(counts) = inputs {
            let InputCounts { opens_passthrough, opens_cached, opens_waited, reads_failed, .. } = counts;
            let opens =
                format!("{opens_passthrough} past the worker, {opens_cached} through it ({opens_waited} waited)");
            rows.push(("opened", opens));
            rows.push(("failed", reads_failed.to_string()));
            rows.push(("served", size_text(counts.bytes_served)));
            rows.push(("fetched", size_text(counts.bytes_fetched)));
        }
        rows.iter().map(|(name, value)| format!("{name:<9} {value}\n")).collect()
    });
    Ok(0)
}
