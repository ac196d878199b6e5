//! What a master decided, as its log lines tell it.

use std::fmt;

use wire::event::LogEvent;
use wire::{BootNonce, ErrorCode, JobId, JobState, Kind, NodeId, Role};

/// One decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    Leading { term: u64, index: u64 },
    Resigned { term: u64, index: u64 },
    SteppingDown,
    Restored { index: u64 },
    SnapshotRefused { from: NodeId, index: u64 },
    StrangerIgnored { node: NodeId },
    JobAccepted { number: u64 },
    JobEnded { job: JobId, state: JobState },
    NodeRegistered { name: String, role: Role, node: NodeId, boot: BootNonce },
    EpochGranted { load_balancer: NodeId, epoch: u64 },
    LostRefused { worker: NodeId, detail: String },
    Refused { kind: Kind, code: ErrorCode, detail: String },
    Snapshot { index: u64, bytes: usize },
}

impl Decision {
    /// The line that an effect of the log is worth; what happens to chunks is not worth one each.
    pub(super) fn of_event(event: &LogEvent<'_>) -> Option<Self> {
        match event {
            LogEvent::JobAccepted { number, .. } => Some(Self::JobAccepted { number: *number }),
            LogEvent::JobEnded { job, state, .. } => Some(Self::JobEnded { job: *job, state: *state }),
            LogEvent::EpochGranted { load_balancer, epoch, .. } => {
                Some(Self::EpochGranted { load_balancer: *load_balancer, epoch: *epoch })
            }
            LogEvent::NodeRegistered { node } => {
                let (name, role, boot) = (node.name.clone(), node.role, node.boot);
                Some(Self::NodeRegistered { name, role, node: node.node, boot })
            }
            LogEvent::ChunksEnded { .. }
            | LogEvent::HolderFreed { .. }
            | LogEvent::ChunksWaiting { .. }
            | LogEvent::JobSnapshot { .. } => None,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leading { term, index } => write!(f, "leading in term {term} from index {index} on"),
            Self::Resigned { term, index } => write!(f, "leading no longer: term {term}, index {index}"),
            Self::SteppingDown => write!(f, "without room on its disk this master has another lead"),
            Self::Restored { index } => write!(f, "goes on from the leader's snapshot as of index {index}"),
            Self::SnapshotRefused { from, index } => {
                write!(f, "the snapshot as of index {index} that master {from} sent is not what it announced")
            }
            Self::StrangerIgnored { node } => write!(f, "node {node} speaks as a master and is no member"),
            Self::JobAccepted { number } => write!(f, "job {number} accepted"),
            Self::JobEnded { job, state } => write!(f, "job {job} ended: {state}"),
            Self::NodeRegistered { name, role, node, boot } => {
                write!(f, "{role} {name} registered: node {node}, boot {}", boot.0 >> 32)
            }
            Self::EpochGranted { load_balancer, epoch } => {
                write!(f, "epoch {epoch} granted to load balancer {load_balancer}")
            }
            Self::LostRefused { worker, detail } => write!(f, "worker {worker} does not count as lost: {detail}"),
            Self::Refused { kind, code, detail } => write!(f, "{kind:?} refused, {code}: {detail}"),
            Self::Snapshot { index, bytes } => write!(f, "snapshot as of index {index}, {bytes} bytes"),
        }
    }
}
