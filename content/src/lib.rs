//! Stored bytes: the content store on disk, and both ends of file transfer.
//!
//! A file is immutable and named by its content, so whoever has bytes that hash to the name has the file; everything
//! here follows from that. Storage nodes, workers, masters and clients keep and move files with the same code.

mod fetch;
mod hash;
mod holder;
mod outline;
mod put;
mod quota;
mod receipt;
mod serve;
mod store;
mod supply;
mod tree;

pub use fetch::{Fetch, FetchAnswer, FetchError, FetchSettings};
pub use hash::{Hasher, hash_bytes, hash_file};
pub use holder::{Fetched, Holder, HolderAddress};
pub use outline::{Outline, OutlineError, OutlineHasher, blocks, outline_file, outline_size};
pub use put::{Part, Put, PutAction, PutContent, PutError, PutSettings, Source, upload_number};
pub use quota::Quota;
pub use receipt::{load_receipt_key, new_receipt_key, receipt, save_receipt_key, verify_receipt};
pub use serve::{Ask, AskRange, Refusal, Served};
pub use store::{Belief, BlockState, Cached, Commit, Committed, Expected, Filled, SEALED_AT, Stat, Store, StoreError};
pub use supply::{Fetching, Need, Outcome, Supply, SupplyAction, SupplyEvent, SupplySettings, Ticket, Wanted, Work};
pub use tree::{WriteTree, finish_entry, write_entry, write_tree};
