//! The tests of the load balancer, one file for each subject.

mod chance;
mod dispatch;
mod link;
mod protocol;
mod support;
