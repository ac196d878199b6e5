//! Decisions that operators want to see: the shell writes each as a line of its log.

use std::fmt;

use wire::{BootNonce, DecodeError, NodeId};

/// One decision, or one thing that has become known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The masters know this boot.
    Registered {
        index: u64,
    },
    EpochGained {
        epoch: u64,
        index: u64,
    },
    EpochLost {
        epoch: u64,
    },
    /// A new boot of a worker.
    WorkerMet {
        worker: NodeId,
        boot: BootNonce,
    },
    LossProposed {
        worker: NodeId,
        boot: BootNonce,
        chunks: u64,
    },
    /// What `workers` silent ones may hold is given away.
    GraceOver {
        workers: usize,
    },
    /// The view of the log has begun anew.
    Snapshot {
        index: u64,
        jobs: usize,
    },
    BatchMalformed {
        detail: DecodeError,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Registered { index } => write!(f, "registered with the masters at index {index}"),
            Note::EpochGained { epoch, index } => write!(f, "primary: epoch {epoch} is ours at index {index}"),
            Note::EpochLost { epoch } => write!(f, "not primary any more: epoch {epoch} is another's"),
            Note::WorkerMet { worker, boot } => write!(f, "worker {worker} is here with boot {:x}", boot.0),
            Note::LossProposed { worker, boot, chunks } => {
                write!(f, "worker {worker}: proposing that the {chunks} chunks of its boot {:x} are lost", boot.0)
            }
            Note::GraceOver { workers } => {
                write!(f, "the grace period is over: what {workers} silent workers may hold is given away")
            }
            Note::Snapshot { index, jobs } => write!(f, "snapshot of the log at index {index} with {jobs} live jobs"),
            Note::BatchMalformed { detail } => write!(f, "what a master told of the log is malformed: {detail}"),
        }
    }
}
