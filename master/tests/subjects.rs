//! The tests of the master, one file for each subject.

mod apply;
mod group;
mod leader;
mod query;
mod raft;
mod shell_master;
mod support;
mod watch;
