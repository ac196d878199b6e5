//! loadbalancer
