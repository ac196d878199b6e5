//! The worker role: runs programs in its slots and reports how they ended. It talks to load balancers and to storage,
//! and never decides which chunk runs where.

pub mod slot;
