//! Stored bytes: the content store on disk, and both ends of file transfer.
//!
//! A file is immutable and named by its content, so whoever has bytes that hash to the name has the file; everything
//! here follows from that. Storage nodes, workers, masters and clients keep and move files with the same code.

mod fetch;
mod hash;
mod put;
mod store;

pub use fetch::{Fetch, FetchAnswer, FetchError, FetchSettings};
pub use hash::{Hasher, hash_bytes, hash_file, receipt, verify_receipt};
pub use put::{Part, Put, PutAction, PutContent, PutError, PutSettings, Source};
pub use store::{Committed, Expected, Stat, Store, StoreError};
