//! What can go wrong for a client, by what its caller can do about it.

use std::path::PathBuf;

use wire::job::SpecError;
use wire::{ArraySpecError, DecodeError, Duration, ErrorCode, FileAddress};

use crate::quantity::QuantityError;
use crate::selector::SelectorError;

/// Why a client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody has said which cluster, and none runs here.
    #[error("no cluster is given and none runs here")]
    NoCluster,
    /// A cluster directory cannot be used.
    #[error("cluster directory {}: {why}", path.display())]
    Cluster { path: PathBuf, why: String },
    /// No master has answered; whether a request was carried out is not known. The same request may be sent again.
    #[error("no master answers at {endpoints} after {} s", waited.as_secs())]
    NoMaster { endpoints: String, waited: Duration, dir: PathBuf },
    /// A storage node is needed and none answers.
    #[error("{what}")]
    NoStorage { what: String },
    /// The request cannot be right: change it.
    #[error("{0}")]
    Request(String),
    /// A piece of a stored file that it does not have.
    #[error("{address}: {why}")]
    OutOfRange { address: FileAddress, why: String },
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// A master or storage node has refused.
    #[error("{detail}")]
    Refused { code: ErrorCode, detail: String },
    /// A file of this machine cannot be read or written.
    #[error("{what}: {why}")]
    Local { what: String, why: String },
    /// A file or directory of this machine is none that can be stored.
    #[error("cannot store {}: {why}", path.display())]
    NotStorable { path: PathBuf, why: String },
    /// A wait has reached its own limit.
    #[error("{what} after {} s", waited.as_secs_f64())]
    TimedOut { what: String, waited: Duration },
    /// The caller was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A peer's answer breaks the protocol.
    #[error("the cluster's answer is not understood: {0}")]
    Protocol(String),
}

impl ClientError {
    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCluster => "cluster_unknown",
            Self::Cluster { .. } => "cluster_invalid",
            Self::NoMaster { .. } => "no_leader",
            Self::NoStorage { .. } => "no_storage",
            Self::Request(_) | Self::OutOfRange { .. } => "invalid_request",
            Self::NotFound(_) => "not_found",
            Self::Refused { code, .. } => code.word(),
            Self::Local { .. } | Self::NotStorable { .. } => "local_file",
            Self::TimedOut { .. } => "timed_out",
            Self::Interrupted => "interrupted",
            Self::Protocol(_) => "protocol",
        }
    }

    pub(crate) fn local(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Local { what: what.to_string(), why: why.to_string() }
    }
}

impl From<SpecError> for ClientError {
    fn from(error: SpecError) -> Self {
        Self::Request(error.to_string())
    }
}

impl From<ArraySpecError> for ClientError {
    fn from(error: ArraySpecError) -> Self {
        Self::Request(error.to_string())
    }
}

impl From<SelectorError> for ClientError {
    fn from(error: SelectorError) -> Self {
        Self::Request(error.to_string())
    }
}

impl From<QuantityError> for ClientError {
    fn from(error: QuantityError) -> Self {
        Self::Request(error.to_string())
    }
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}
