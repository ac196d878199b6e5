//! The load balancer: decides which worker runs which chunk now.
//!
//! It watches the masters' log for jobs and for what has ended, hears from the workers what they hold and how much room
//! they have, and gives ranges of chunks to those that have some, while the log says that the epoch is its own. All that
//! it knows is soft and can be asked for again. It never holds anything that would be missed, never touches the bytes of
//! users' files, and never takes a worker's word for the end of a chunk: only the log's.

pub mod config;
pub mod core;
pub mod shell;
