//! How much room a disk has, and how much of it is left alone: roles that share a disk must agree on who yields first.
//!
//! As a disk fills, those who can do without stop first: `zg dev` does not start on it, storage takes no input files, then
//! workers end what fills it, then masters take no new jobs, and only at last nothing at all. So what frees room, a result or a
//! cancellation, still finds some.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Below so much free room, in bytes, a master takes no new jobs and files, unless its settings say otherwise.
pub const MASTER_FREE_BYTES_MIN: u64 = 64 << 20;
/// Below so much a worker starts nothing and ends what fills the disk, unless its settings say otherwise.
pub const WORKER_FREE_BYTES_MIN: u64 = 2 * MASTER_FREE_BYTES_MIN;
/// So much storage leaves beside an input file.
pub const STORAGE_FREE_BYTES_MIN: u64 = WORKER_FREE_BYTES_MIN + (8 << 20);

/// Bytes that users other than root may still write where `path` lies; what cannot be asked counts as room, and the write
/// itself will tell.
pub fn free_bytes(path: &Path) -> u64 {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return u64::MAX };
    // SAFETY: a zeroed statvfs is a valid one for the call to fill; `path` is a C string that outlives it.
    let (status, room) = unsafe {
        let mut room: libc::statvfs64 = std::mem::zeroed();
        (libc::statvfs64(path.as_ptr(), &mut room), room)
    };
    if status == 0 { room.f_bavail.saturating_mul(room.f_frsize) } else { u64::MAX }
}
