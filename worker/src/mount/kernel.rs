//! What the mount needs of whoever brings the kernel's questions, so that the package that does can be replaced.

use std::fs::File;
use std::io;

use super::view::Attr;

/// How the questions are answered that cannot always be answered at once. Whoever asks waits until one of these is called,
/// from any thread, once; errors are those of the system (`libc::EIO`).
pub(super) trait Kernel: Sized + 'static {
    /// A cache file that the kernel reads past us, until this is dropped.
    type Backing: Send + Sync;
    /// Who waits for a file to be opened.
    type Opening: Send;
    /// Who waits for bytes.
    type Reading: Send;
    /// Who waits for what a name leads to.
    type Looking: Send;

    /// Gives the kernel a cache file to read.
    fn back(opening: &Self::Opening, file: &File) -> io::Result<Self::Backing>;
    /// The file is open and read through us. `keeps_pages`: the kernel goes on with those that it has of it.
    fn opened(opening: Self::Opening, handle: u64, keeps_pages: bool);
    /// The file is open and read past us.
    fn opened_past(opening: Self::Opening, handle: u64, backing: &Self::Backing);
    fn refuse_opening(opening: Self::Opening, error: i32);
    fn read(reading: Self::Reading, bytes: &[u8]);
    fn refuse_reading(reading: Self::Reading, error: i32);
    /// `None` = there is no such name, and never will be.
    fn found(looking: Self::Looking, attr: Option<&Attr>);
    fn refuse_looking(looking: Self::Looking, error: i32);
}
