//! `zg dev`: a whole cluster on this machine, in one terminal.
//!
//! It makes the cluster directory, starts the per-role programs that lie beside `zg`, says `ready:` when a job can run, and
//! watches: a role that ends is reported and started again. Ctrl-C or SIGTERM stops them, workers first, and leaves
//! nothing. Should this process be killed outright, the kernel kills the roles with it.

mod layout;
mod process;
mod signals;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use client::{ClientError, Cluster, Connection, cluster};
use node::disk::free_bytes;
use node::{Certificate, Endpoint, EndpointConfig};
use wire::{BootNonce, ClientKey, NodeId, NodeState, Role};

use super::failure::Failure;
use super::output::{print, tell};
use super::{Context, Outcome};
use layout::{Inputs, Layout};
use process::Roles;
use signals::Signals;

#[derive(Args)]
pub struct Dev {
    /// 1: one master, one load balancer, one storage node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    phase: u8,
    /// How many masters: any minority of them may fail
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = masters)]
    masters: u8,
    /// How many workers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    workers: u16,
    /// Keep the cluster here, and go on with it the next time [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Have workers write inputs out instead of mounting them
    #[arg(long)]
    no_fuse: bool,
    /// Have workers bring inputs from the storage node as if it were on another machine
    #[arg(long)]
    no_borrow: bool,
}

/// How often we ask whether a job can run.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// How long one such question may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
/// How often the disk is looked at, to say why nothing starts.
const ROOM_INTERVAL: Duration = Duration::from_secs(5);
/// A cluster that is not ready by then never will be.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

impl Dev {
    pub fn execute(self, context: &Context) -> Outcome {
        if self.phase != 1 {
            let message = format!("phase {} is not there yet: only phase 1 is", self.phase);
            return Err(Failure::usage(message).hint("Try: zg dev --phase 1 --workers 2"));
        }
        process::check_programs()?;
        // Before any thread starts, so that every thread leaves the signals to us.
        let signals = Signals::take()?;
        check_library()?;
        let inputs = Inputs { are_mounted: !self.no_fuse, are_borrowed: !self.no_borrow };
        let layout = Layout::make(self.dir.as_deref(), self.masters, self.workers, inputs)?;
        context.output.note(&format!("cluster directory: {}", layout.dir.display()));
        let mut roles = Roles::new(&layout);
        let outcome = watch(&layout, &mut roles, &signals);
        roles.stop(&signals);
        let forgotten = cluster::forget_running(&cluster::notes_dir(), std::process::id());
        let removed = layout.remove_if_temporary();
        outcome?;
        forgotten.and(removed).map_err(|error| Failure::new("local_file", format!("cannot clean up: {error}")))?;
        Ok(0)
    }
}

/// An even number would need as many for a majority as the next odd one.
fn masters(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        Ok(_) | Err(_) => Err("1, 3 or 5 masters make a group".into()),
    }
}

/// Fails where libzmq cannot make keys, as one that was built without the repository's settings cannot.
fn check_library() -> Result<(), Failure> {
    let nobody = Certificate { public: ClientKey::default(), secret: None, metadata: BTreeMap::new() };
    let config = EndpointConfig::new(NodeId::NIL, BootNonce::NONE, nobody);
    let opened = Endpoint::open(config).map(drop);
    opened.map_err(|error| Failure::new("library", error.to_string()).hint("Run cargo in the repository's directory"))
}

/// Keeps the roles running until a signal asks to stop; says `ready:` once.
fn watch(layout: &Layout, roles: &mut Roles, signals: &Signals) -> Result<(), Failure> {
    roles.start_all()?;
    let cluster = Cluster::load(&layout.dir)?;
    let mut connection = Connection::open(cluster)?;
    connection.timeout = PROBE_TIMEOUT;
    let begun = connection.clock().now();
    while !can_run(&mut connection, layout)? {
        if signals.wait(Some(PROBE_INTERVAL)) {
            return Ok(());
        }
        roles.look_after(true)?;
        if connection.clock().now().since(begun) > READY_TIMEOUT {
            let message = format!("the cluster is not ready after {} s", READY_TIMEOUT.as_secs());
            return Err(Failure::new("timed_out", message).hint(roles.last_lines()));
        }
    }
    drop(connection);
    layout.found()?;
    // Only a default for those who name no cluster: they name one if this does not work.
    if let Err(error) = cluster::note_running(&cluster::notes_dir(), std::process::id(), &layout.dir) {
        tell(&format!("warning: zg without --cluster will not find this cluster: {error}\n"));
    }
    print(&format!("ready: ZG_CLUSTER={}", layout.dir.display()));
    let mut was_low = false;
    loop {
        let pause = roles.next_start().map_or(ROOM_INTERVAL, |start| start.min(ROOM_INTERVAL));
        if signals.wait(Some(pause)) {
            return Ok(());
        }
        roles.look_after(false)?;
        let (free, needed) = (free_bytes(&layout.dir), node::disk::WORKER_FREE_BYTES_MIN);
        if free < needed && !was_low {
            let (dir, free, needed) = (layout.dir.display(), free >> 20, needed >> 20);
            tell(&format!(
                "warning: the disk of {dir} has {free} MiB free; no chunk starts until it has {needed} MiB\n"
            ));
        }
        was_low = free < needed;
    }
}

/// True when every worker is registered, storage is up and a load balancer leads and knows it.
fn can_run(connection: &mut Connection, layout: &Layout) -> Result<bool, Failure> {
    let (nodes, status) = match connection.nodes().and_then(|nodes| Ok((nodes, connection.status()?))) {
        Ok(told) => told,
        // A master that starts is silent, or says that it is not ready.
        Err(ClientError::NoMaster { .. } | ClientError::Refused { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let is_up = |name: &str| nodes.iter().any(|node| node.name == name && node.state == NodeState::Up);
    let has_primary = nodes.iter().any(|node| node.role == Role::LoadBalancer && node.is_primary);
    Ok(has_primary && status.primary_index > 0 && layout.nodes.iter().all(|node| is_up(&node.name)))
}
