//! The worker role: runs programs in its slots and reports how they ended. It talks to load balancers, masters and
//! storage, and never decides which chunk runs where.

pub mod config;
pub mod core;
pub mod mount;
pub mod shell;
pub mod slot;
pub mod supply;
pub mod watch;

pub use config::Config;
