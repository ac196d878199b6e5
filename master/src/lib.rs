//! The master role: the replicated log of what users were promised, and the decisions made from it.
//!
//! Masters own what must survive: jobs, the one accepted result of each chunk, files, nodes, and which load balancer
//! commands. They hear clients, load balancers, workers and storage nodes, and tell whoever watches. They never touch
//! users' bytes and never choose a worker.

pub mod config;
pub mod core;
pub mod shell;

pub use config::{Config, CoreConfig, Limits, Timings};
