//! Simulated disks: what was asked of them is done later, and what was not done by a crash may be lost.

mod master;
mod storage;

pub use master::{MasterDisk, Write, Written};
pub use storage::{StorageDisk, StorageWork};
