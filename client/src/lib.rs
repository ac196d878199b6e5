//! The client library: everything that `zg` does, for programs.
//!
//! A `Cluster` says where the masters are and who we are; a `Connection` asks them and moves files to and from storage. A
//! client keeps no state that matters: once a submit is acknowledged it may go, and whatever it asks it may ask again.

mod batch;
pub mod cluster;
mod connection;
mod error;
mod file;
mod job;
pub mod quantity;
mod query;
mod selector;
mod tree;
mod watch;

pub use batch::Trust;
pub use cluster::Cluster;
pub use connection::{Connection, OnProgress, OnWaiting, Position};
pub use error::ClientError;
pub use file::{InputSource, ReadError, Staged};
pub use job::{JobDraft, Submitted};
pub use selector::{ChunkSelector, JobSelector, SelectorError, array_text};
pub use tree::LocalTree;
pub use watch::Change;
