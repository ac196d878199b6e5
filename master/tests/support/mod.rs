//! Builders, and a master whose disk answers at once or when told.

pub mod frames;
