//! The simulator: the cores of all roles in one thread under one seed, with every fault that a cluster meets.
//!
//! It is a flight simulator for the protocol: the instruments (cores) are the real ones, the weather (network, disks,
//! programs, crashes) is made up, and a chief instructor (`checker`) stops the flight at the first broken rule. Nothing
//! here reads a clock or opens a socket, so a seed flies the same course every time.

pub mod chance;
pub mod checker;
pub mod client;
pub mod disk;
pub mod faults;
pub mod many;
pub mod network;
pub mod process;
pub mod scenario;
pub mod seed;
pub mod shell;
pub mod trace;
pub mod transfer;
pub mod world;
