//! Limits that two roles must agree about. A limit of one role alone is in that role.

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// The largest ZeroMQ frame that any socket takes (`ZMQ_MAXMSGSIZE`): a command, or a block and its header.
pub const FRAME_SIZE_MAX: usize = 2 * MIB;
/// The largest piece of file content in one frame, and the unit of transfer.
pub const BLOCK_SIZE: usize = MIB;
/// Frames of one multipart message: the header and, for a bare `file_request`, at most 64 MiB of content.
pub const FRAMES_MAX: usize = 1 + 64;
/// The largest file that a bare 41-byte `file_request` is answered with in one multipart message.
pub const WHOLE_FILE_SIZE_MAX: u64 = 64 * MIB as u64;

/// Chunks of a job: indexes fit u32 and so does their number.
pub const CHUNKS_MAX: u64 = u32::MAX as u64;
/// A program that travels in the request; a larger one is a stored file.
pub const PROGRAM_SIZE_MAX: usize = MIB;
/// Inputs of a job, if their names leave room for them in a request; more are a directory.
pub const INPUTS_MAX: usize = 10_000;
/// Arguments and environment of a job together, in bytes: below Linux's 2 MiB for both, and within one frame.
pub const ARGUMENTS_SIZE_MAX: usize = MIB;
/// One submit, whole, so that it fits a frame with room for the watch's own header.
pub const SUBMIT_SIZE_MAX: usize = FRAME_SIZE_MAX - 64 * KIB;
/// A name of a job, a node or an input.
pub const NAME_SIZE_MAX: usize = 255;
/// Path of an input under the input directory.
pub const PATH_SIZE_MAX: usize = 4096;
/// Bytes of events in one `watch_batch`, unless a single log entry has more.
pub const WATCH_BATCH_SIZE_MAX: usize = 256 * KIB;
/// Runs of chunks in one `worker_status` batch, and its size.
pub const RESULT_RUNS_MAX: usize = 1024;
pub const RESULT_BATCH_SIZE_MAX: usize = 256 * KIB;
/// Ranges in an inventory: more are sent in several parts.
pub const INVENTORY_ITEMS_MAX: usize = 8192;
