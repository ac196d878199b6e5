//! One file on its way into a store: written in order into `staging/`, hashed as it comes.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::OutlineHasher;

/// What has come of one file.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    /// The length that `begin` was told; `None` = not known then.
    pub(super) length: Option<u64>,
    /// Bytes that are here, all from the start on.
    pub(super) held: u64,
    pub(super) hasher: OutlineHasher,
    /// It is verified, and nothing may change any more.
    pub(super) is_ending: bool,
}

impl Upload {
    /// The part of `bytes` at `offset` that is new and continues what is held; empty for a repetition or after a gap.
    pub(super) fn news<'a>(&self, offset: u64, bytes: &'a [u8]) -> &'a [u8] {
        let Some(known) = self.held.checked_sub(offset) else { return &[] };
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(bytes.len());
        &bytes[known..]
    }
}
