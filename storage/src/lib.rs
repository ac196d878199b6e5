//! The storage role: owns file bytes, gives them to whoever may ask, and vouches to masters for what it made durable.
//!
//! It talks to anyone who puts and gets files, and to the masters, whom it tells that it is there. It never knows about
//! jobs, and it never decides that a file may go.

pub mod config;
pub mod core;
pub mod shell;

pub use config::Config;
pub use core::{Action, CoreConfig, Event, Limits, Order, Outcome, Payload, Storage, Ticket};
