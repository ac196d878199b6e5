//! `zg node`: the processes of the cluster.

use clap::Subcommand;
use client::quantity::{cpus_text, size_text};
use wire::record::NodeRecord;

use super::{Context, Outcome, shape};

#[derive(Subcommand)]
pub enum Node {
    /// List all nodes
    List,
}

impl Node {
    pub fn execute(self, context: &Context) -> Outcome {
        let Node::List = self;
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
                    node.name.clone(),
                    node.role.word().to_owned(),
                    node.state.word().to_owned(),
                    duty.to_owned(),
                    node.pid.to_string(),
                    if node.cpus_milli == 0 { "-".into() } else { cpus_text(node.cpus_milli) },
                    if node.memory == 0 { "-".into() } else { size_text(node.memory) },
                    node.endpoint.clone(),
                    node.node.to_string(),
                ]
            };
            let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
            let headers = ["NAME", "ROLE", "STATE", "DUTY", ">PID", ">CPUS", ">MEMORY", "ENDPOINT", "ID"];
            output.table(&headers, &rows)
        });
        Ok(0)
    }
}
