//! The tests of the master, one file for each subject.

mod apply;
mod support;
