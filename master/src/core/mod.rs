//! What a master decides. No sockets, clocks, threads, files or chance.
#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]

pub mod entry;
pub mod state;
