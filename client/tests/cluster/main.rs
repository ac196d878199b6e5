//! Whole clusters of real processes, driven through `zg` as a person would; each test has its own.

mod dev;
mod disk;
mod errors;
mod faults;
mod files;
mod inputs;
mod jobs;
mod large;
mod leaders;
mod marks;
mod programs;
mod transfers;
mod trees;
