//! Every kind of message: its number, fixed part, defaults, body, and who may send it.
//!
//! This table is the only place where a message is defined; `doc/wire.md` is generated from it. Numbers are append-only
//! and never reused. The seed's kinds are 1 to 4, with the seed's fields first and ours appended.

use std::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::Zero;
use crate::{ClientKey, DecodeError, Fixed, FixedPart, GenericMessage, Hash, Role, U16, U32, U64, UuidHalves};

/// One field of a fixed part, for doc/wire.md.
#[derive(Clone, Copy, Debug)]
pub struct FieldRow {
    pub name: &'static str,
    pub type_name: &'static str,
    pub offset: usize,
    pub size: usize,
    /// The default's source text; empty = zero.
    pub default: &'static str,
    pub doc: &'static str,
}

/// One kind of message, for doc/wire.md.
#[derive(Clone, Copy, Debug)]
pub struct KindRow {
    pub kind: Kind,
    pub name: &'static str,
    pub doc: &'static str,
    pub size_min: usize,
    pub size: usize,
    pub fields: &'static [FieldRow],
    pub body: &'static str,
}

macro_rules! default_of {
    ($type:ty,) => {
        <$type as Zero>::ZERO
    };
    ($type:ty, $default:expr) => {
        $default
    };
}

macro_rules! messages {
    ($(
        $(#[doc = $doc:literal])*
        $number:literal $kind:ident $name:literal from [$($role:ident)*] min $min:literal {
            $($(#[doc = $fdoc:literal])* $field:ident: $type:ty $(= $default:expr)?;)*
        } body $body:literal
    )*) => {
        /// The number of a message kind.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Kind { $($kind = $number),* }

        impl Kind {
            pub fn from_number(number: u8) -> Option<Kind> {
                match number { $($number => Some(Kind::$kind),)* _ => None }
            }

            /// The roles whose certificates may send this kind. Seed-level kinds are open to every admitted peer.
            pub fn senders(self) -> &'static [Role] {
                match self { $(Kind::$kind => &[$(Role::$role),*]),* }
            }

            /// True for the four kinds of the seed: all that a peer may send whose certificate is bound to no node.
            pub fn is_seed_level(self) -> bool {
                (self as u8) <= 4
            }
        }

        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
            #[repr(C, packed)]
            pub struct $kind {
                pub header: GenericMessage,
                $($(#[doc = $fdoc])* pub $field: $type,)*
            }

            impl FixedPart for $kind {
                const KIND: Kind = Kind::$kind;
                const SIZE_MIN: usize = $min;
                const FIELD_ENDS: &'static [usize] =
                    &[crate::HEADER_SIZE, $(offset_of!($kind, $field) + size_of::<$type>()),*];
                const DEFAULT: Self = Self {
                    header: <GenericMessage as Zero>::ZERO,
                    $($field: default_of!($type, $($default)?),)*
                };
            }

            // The first size of a kind ends at a field: a layout proves itself.
            const _: () = {
                let ends = <$kind as FixedPart>::FIELD_ENDS;
                let mut found = false;
                let mut i = 0;
                while i < ends.len() {
                    found = found || ends[i] == $min;
                    i += 1;
                }
                assert!(found, concat!("min size of ", $name, " is not the end of a field"));
            };

            impl $kind {
                /// The default of every field.
                pub const DEFAULT: Self = <Self as FixedPart>::DEFAULT;
            }
        )*

        /// A decoded message: its fixed part, and its body where it lies in the frame.
        #[derive(Clone, Copy, Debug)]
        pub enum Message<'a> { $($kind(Fixed<'a, $kind>, &'a [u8])),* }

        impl<'a> Message<'a> {
            /// Decodes a frame where it lies: no allocation, no panic, whatever the bytes.
            pub fn decode(frame: &'a [u8]) -> Result<Self, DecodeError> {
                let number = GenericMessage::peek(frame)?.message_type;
                let kind = Kind::from_number(number).ok_or(DecodeError::UnknownType { number })?;
                match kind {
                    $(Kind::$kind => Fixed::decode(frame).map(|(fixed, body)| Message::$kind(fixed, body))),*
                }
            }

            pub fn kind(&self) -> Kind {
                match self { $(Message::$kind(..) => Kind::$kind),* }
            }

            /// The header: the sender and the length of the fixed part as it came.
            pub fn header(&self) -> &GenericMessage {
                match self { $(Message::$kind(fixed, _) => match fixed {
                    Fixed::InPlace(fixed) => &fixed.header,
                    Fixed::Filled(fixed) => &fixed.header,
                }),* }
            }
        }

        /// All kinds in the order of their numbers.
        pub const KINDS: &[KindRow] = &[$(KindRow {
            kind: Kind::$kind,
            name: $name,
            doc: concat!($($doc, "\n"),*),
            size_min: $min,
            size: size_of::<$kind>(),
            fields: &[$(FieldRow {
                name: stringify!($field),
                type_name: stringify!($type),
                offset: offset_of!($kind, $field),
                size: size_of::<$type>(),
                default: concat!($(stringify!($default))?),
                doc: concat!($($fdoc),*),
            }),*],
            body: $body,
        }),*];
    };
}

messages! {
    /// Asks a worker to run a range of chunks of one job. `count` 0 = the number's range is gone: only answer it.
    1 WorkerRequest "worker_request" from [LoadBalancer] min 57 {
        job_uuid: UuidHalves;
        /// Bytes of the program in the body; 0 = the job's spec names it.
        program_length: U64;
        num_input_files: U64;
        /// Index of the first chunk.
        first: U32;
        count: U32 = U32::new(1);
        /// Chunks of the whole job.
        chunk_count: U32 = U32::new(1);
        attempt: U32 = U32::new(1);
        /// The reign under which it is assigned; 0 = a peer that knows only the seed's struct.
        epoch: U64;
        /// Dense per (epoch, worker boot) from 1; 0 = not numbered.
        sequence: U64;
        /// The worker's boot that is meant; 0 = any.
        worker_boot: U64;
        /// The number that people call the job by.
        job_number: U64;
        /// Bit 0, `known`: the body is left out, this boot has it.
        flags: U32;
    } body "The job body (see below) unless `known` or `count` is 0: program, input uuids, spec."

    /// Tells the state of a node (job zero) or of chunks of a job. To masters with `num_runs` > 0: a batch of results of one job, one outcome, one attempt.
    2 WorkerStatus "worker_status" from [Worker LoadBalancer Storage] min 42 {
        job_uuid: UuidHalves;
        /// 0 idle, 1 accepted, 2 fetching, 3 running, 4 writing_back, 5 succeeded, 6 failed, 7 canceled, 8 killed, 9 lost.
        state: u8;
        boot: U64;
        /// The epoch that assigned it, or, in a heartbeat, the highest seen.
        epoch: U64;
        /// The highest sequence processed in that epoch.
        seen_sequence: U64;
        /// The highest log index by which this worker has forgotten a result.
        confirmed_index: U64;
        /// Names a batch of results until it is confirmed.
        batch: U64;
        attempt: U32 = U32::new(1);
        first: U32;
        count: U32 = U32::new(1);
        /// Chunks that the worker has room for beyond what it holds.
        credit: U32;
        num_runs: U32;
        num_files: U32;
        /// Ranges that run now, in the body of a heartbeat (job zero).
        num_items: U32;
        /// Of inputs since this boot, in heartbeats and results, here and below: opened to be read past the worker.
        opens_passthrough: U64;
        /// Opened to be read through the worker.
        opens_cached: U64;
        /// Opens that waited for the file first.
        opens_waited: U64;
        /// Opens and reads that failed.
        reads_failed: U64;
        /// Bytes that the worker handed over.
        bytes_served: U64;
        /// Bytes that came from storage.
        bytes_fetched: U64;
    } body "Results: `num_files` stored files with receipts, then `num_runs` runs (see below). Heartbeat: `num_items` chunk items, then for each of their chunks for how many us it has run, as a varint (from the last on they may be left out)."

    /// Asks for a file, or a range of one. The bare 41-byte form is answered with the whole content in one multipart message.
    3 FileRequest "file_request" from [Master LoadBalancer Worker Storage Gateway Client] min 41 {
        file_uuid: UuidHalves;
        offset: U64;
        /// Bytes wanted, at most 1 MiB.
        length: U64 = U64::new(crate::limit::BLOCK_SIZE as u64);
        /// Chosen by the sender, echoed in the answer.
        request: U64;
        /// 0 = content; 1 = the outline, to which offset and length apply: the 32-byte BLAKE3 chaining value of each block of
        /// 1 MiB, nothing for a file of one block.
        part: U32;
    } body "None."

    /// Answers a `file_request`: the content follows in further frames of at most 1 MiB.
    4 FileResponse "file_response" from [Master Worker Storage] min 49 {
        file_uuid: UuidHalves;
        /// Length of the whole file.
        file_length: U64;
        offset: U64;
        request: U64;
        /// 0 = the range follows; else an error code.
        status: U32;
        /// Bit 0: the range is of the outline.
        flags: U32;
    } body "None; content in further frames."

    /// Says that a message was refused, and why.
    5 Error "error" from [Master LoadBalancer Worker Storage Gateway Client] min 52 {
        /// The request that is refused, 0 if it had no number.
        request: U64;
        /// See the error codes.
        code: U16;
        /// The kind of the refused message.
        regarding: u8;
        job_uuid: UuidHalves;
    } body "The detail as UTF-8: names the value."

    /// Registers a boot of a node with the masters, who log it if it is new.
    6 NodeHello "node_hello" from [Master LoadBalancer Worker Storage Gateway] min 106 {
        request: U64;
        boot: U64;
        role: u8;
        /// CURVE key of its sockets.
        public_key: ClientKey;
        pid: U32;
        /// Thousandths of a cpu.
        cpus_milli: U32;
        /// Bytes.
        memory: U64;
        /// The node_uuid again, so that a forwarded copy still names its subject.
        subject: UuidHalves;
    } body "Three strings: name, control endpoint, bulk endpoint."

    /// Answers `node_hello` once the boot is in the log. A worker's `confirmed_index` starts at `index`.
    7 NodeWelcome "node_welcome" from [Master] min 65 {
        request: U64;
        /// The leader's commit index.
        index: U64;
        term: U64;
        epoch: U64;
        /// Counts changes of the node list.
        nodes_version: U64;
    } body "Node records of all load balancers and storage nodes."

    /// All that a worker holds, for a load balancer: sent on connecting, on a newer epoch, and when asked.
    8 Inventory "inventory" from [Worker] min 77 {
        boot: U64;
        epoch: U64;
        seen_sequence: U64;
        confirmed_index: U64;
        credit: U32;
        cpus_milli: U32;
        /// Bytes.
        memory: U64;
        num_items: U32;
    } body "`num_items` chunk items: queued, running, and ended but unconfirmed."

    /// Announces the epoch of a primary and asks for the worker's inventory.
    9 InventoryRequest "inventory_request" from [LoadBalancer] min 41 {
        epoch: U64;
        /// Boot of the load balancer.
        boot: U64;
    } body "None."

    /// Takes back what has not started of a range.
    10 Retract "retract" from [LoadBalancer] min 73 {
        job_uuid: UuidHalves;
        first: U32;
        count: U32;
        epoch: U64;
        sequence: U64;
        worker_boot: U64;
    } body "None."

    /// What of the range the worker still holds.
    11 RetractAnswer "retract_answer" from [Worker] min 93 {
        job_uuid: UuidHalves;
        first: U32;
        count: U32;
        boot: U64;
        epoch: U64;
        /// The number of the retract that this answers.
        sequence: U64;
        seen_sequence: U64;
        confirmed_index: U64;
        credit: U32;
    } body "Chunk items held in the range, to the end of the body."

    /// Stops for good: every attempt of the range is killed and forgotten. Repeated until answered.
    12 Kill "kill" from [LoadBalancer] min 77 {
        request: U64;
        job_uuid: UuidHalves;
        first: U32;
        count: U32;
        epoch: U64;
        /// The log index by which these chunks ended; the worker's `confirmed_index` rises to it.
        index: U64;
        flags: U32;
    } body "None."

    /// Answers `kill` when nothing of the range is queued or running here.
    13 Killed "killed" from [Worker] min 45 {
        request: U64;
        boot: U64;
        credit: U32;
    } body "None."

    /// Tells a worker that a batch of results is committed: it may forget them.
    14 ResultConfirmed "result_confirmed" from [Master] min 57 {
        batch: U64;
        job_uuid: UuidHalves;
        /// The leader's commit index.
        index: U64;
    } body "None."

    /// A load balancer's statement that a worker's boot is lost with what it held.
    15 Lost "lost" from [LoadBalancer] min 85 {
        request: U64;
        worker_uuid: UuidHalves;
        worker_boot: U64;
        epoch: U64;
        /// Boot of the load balancer.
        boot: U64;
        num_items: U32;
        /// Bit 0: a newer boot of the worker has been heard, so the old one is surely gone.
        flags: U32;
        reserved: U32;
    } body "`num_items` chunk items."

    /// A load balancer is alive. The body is its view of what runs.
    16 LoadBalancerHeartbeat "load_balancer_heartbeat" from [LoadBalancer] min 57 {
        boot: U64;
        epoch: U64;
        /// The index that its view of the log has reached.
        index: U64;
        workers_seen: U32;
        num_items: U32;
    } body "`num_items` running items: job, first, count, attempt, worker."

    /// A master's answer to heartbeats.
    17 LeaderHeartbeat "leader_heartbeat" from [Master] min 61 {
        term: U64;
        /// The commit index.
        index: U64;
        /// The current epoch.
        epoch: U64;
        nodes_version: U64;
        /// Bit 0: the sender leads.
        flags: U32;
    } body "None."

    /// Submits a job. Its uuid is the idempotency key.
    20 SubmitJob "submit_job" from [Client Gateway] min 73 {
        job_uuid: UuidHalves;
        program_length: U64;
        num_input_files: U64;
        request: U64;
        chunk_count: U32;
        flags: U32;
    } body "The job body (see below): program, input uuids, spec."

    /// The job is in the log of a majority.
    21 JobAccepted "job_accepted" from [Master] min 73 {
        request: U64;
        job_uuid: UuidHalves;
        /// Masters number jobs 1, 2, 3 in log order.
        number: U64;
        term: U64;
        index: U64;
    } body "None."

    /// Makes every chunk of the range that has not ended `canceled`.
    22 CancelJob "cancel_job" from [Client Gateway] min 57 {
        request: U64;
        job_uuid: UuidHalves;
        first: U32;
        count: U32 = U32::new(u32::MAX);
    } body "None."

    /// The request is in the log of a majority and applied.
    23 Committed "committed" from [Master] min 57 {
        request: U64;
        term: U64;
        index: U64;
        /// How many chunks, files or records it changed.
        changed: U64;
    } body "None."

    /// Registers a stored file with the masters on its receipts.
    24 RecordFile "record_file" from [Client Gateway Worker Storage] min 33 {
        request: U64;
    } body "One stored file with receipts."

    /// Reads the state. Subjects: 1 jobs, 2 job, 3 chunks, 4 files, 5 file, 6 nodes, 7 status.
    25 Query "query" from [Master LoadBalancer Worker Storage Gateway Client] min 75 {
        request: U64;
        subject: U16;
        /// Jobs: bit 0 = ended ones too.
        flags: U32;
        /// The job or file meant, where a uuid names it.
        uuid: UuidHalves;
        /// Continue after this key of the answer before; 0 = from the start.
        after: U64;
        limit: U32 = U32::new(1000);
        /// The least log index that the answer has to reflect.
        index: U64;
    } body "Job and chunks: the selector as text (number, uuid, unique prefix, `last`) when `uuid` is zero."

    /// Answers `query`.
    26 Answer "answer" from [Master] min 61 {
        request: U64;
        /// The log index that it reflects.
        index: U64;
        /// Key to continue after; 0 = this is all.
        next: U64;
        subject: U16;
        num_records: U32;
        reserved: U16;
        term: U32;
    } body "`num_records` records of the subject."

    /// Asks for what happened in the log after an index. Answered when there is something, or after the hold time with nothing.
    27 Watch "watch" from [LoadBalancer Gateway Client Worker] min 63 {
        request: U64;
        after: U64;
        /// 0 = everything that dispatch needs, 1 = one job.
        subject: U16;
        uuid: UuidHalves;
        /// Bit 0: the watcher has no state; begin with a snapshot.
        flags: U32;
    } body "None."

    /// Answers `watch`: the events of the entries `(after, index]`, or a snapshot as of `index`.
    28 WatchBatch "watch_batch" from [Master] min 69 {
        request: U64;
        after: U64;
        index: U64;
        term: U64;
        /// Bit 0: a snapshot: what was known before is void.
        flags: U32;
        num_events: U32;
        /// An answer larger than a frame comes in `parts` messages, all with this request.
        part: U16;
        parts: U16 = U16::new(1);
    } body "`num_events` events (see below)."

    /// Begins or resumes an upload. The same upload number again is the same upload.
    30 PutBegin "put_begin" from [Master Worker Storage Gateway Client] min 89 {
        request: U64;
        /// Chosen by the sender.
        upload: U64;
        /// Bytes; u64::MAX = not known yet.
        file_length: U64 = U64::new(u64::MAX);
        /// Zero = not known yet.
        hash: Hash;
        class: U16;
        /// Bit 0: a copy that is there is to be read again before it counts.
        flags: U16;
        reserved: U32;
    } body "None."

    /// Leave to send blocks of an upload.
    31 PutGrant "put_grant" from [Storage] min 57 {
        request: U64;
        upload: U64;
        /// Bytes held without a gap from the start.
        contiguous: U64;
        /// Blocks that may be in flight.
        credit: U32;
        /// Bit 0: the file is here already, commit at once.
        flags: U32;
    } body "None."

    /// A block of an upload; its bytes are the second frame. An `error` about it has the upload's number as its request.
    32 PutBlock "put_block" from [Master Worker Storage Gateway Client] min 41 {
        upload: U64;
        offset: U64;
    } body "None; at most 1 MiB in the second frame."

    /// How far an upload has come.
    33 PutAck "put_ack" from [Storage] min 45 {
        upload: U64;
        contiguous: U64;
        credit: U32;
    } body "None."

    /// Ends an upload: verify, make durable, give a receipt.
    34 PutCommit "put_commit" from [Master Worker Storage Gateway Client] min 81 {
        request: U64;
        upload: U64;
        file_length: U64;
        hash: Hash;
    } body "None."

    /// The file is durable.
    35 PutDone "put_done" from [Storage] min 97 {
        request: U64;
        upload: U64;
        file_uuid: UuidHalves;
        file_length: U64;
        hash: Hash;
    } body "Receipts, to the end of the body."

    /// Which of these files are here?
    36 HaveRequest "have_request" from [Master Worker Storage Gateway Client] min 37 {
        request: U64;
        num_files: U32;
    } body "`num_files` uuids of 16 bytes."

    /// One bit per file, lowest first.
    37 HaveResponse "have_response" from [Storage Worker] min 45 {
        request: U64;
        num_files: U32;
        /// Seconds for which the answer holds.
        lease_s: U64;
    } body "ceil(num_files / 8) bytes."

    /// One step of agreement, from one master to another over their own sockets. The numbers are those of Raft.
    40 RaftMessage "raft_message" from [Master] min 169 {
        to_uuid: UuidHalves;
        term: U64;
        log_term: U64;
        index: U64;
        commit: U64;
        commit_term: U64;
        reject_hint: U64;
        request_snapshot: U64;
        /// Of a snapshot that the receiver has to fetch from the sender first.
        snapshot_index: U64;
        snapshot_term: U64;
        snapshot_length: U64;
        context_length: U32;
        num_entries: U32;
        num_members: U32;
        /// Raft's number of the kind of step.
        step: u8;
        /// 1 = refused.
        reject: u8;
        reserved: U16;
        /// BLAKE3 of the snapshot.
        snapshot_hash: Hash;
    } body "`context_length` bytes; then `num_members` members as of the snapshot: u64 Raft number, u8 (1 = learner); \
            then `num_entries` entries: varint term, varint index, u8 kind, context and data as strings."

    /// What a master's state has come to, for the others to compare with theirs.
    41 StateHash "state_hash" from [Master] min 65 {
        /// The last entry in it.
        index: U64;
        /// BLAKE3 chained over every entry, what it was answered, and what it did.
        hash: Hash;
    } body "None."
}

const _: () = assert!(<WorkerRequest as FixedPart>::SIZE_MIN == 57 && size_of::<GenericMessage>() == 25);
const _: () = assert!(<WorkerStatus as FixedPart>::SIZE_MIN == 42);
const _: () = assert!(<FileRequest as FixedPart>::SIZE_MIN == 41 && size_of::<FileRequest>() == 69);
const _: () = assert!(<FileResponse as FixedPart>::SIZE_MIN == 49 && size_of::<FileResponse>() == 73);

/// `file_request.part`: the outline.
pub const PART_OUTLINE: u32 = 1;
/// `file_response.flags`: the range is of the outline.
pub const RESPONSE_OUTLINE: u32 = 1;
/// `worker_request.flags`: the body is left out.
pub const REQUEST_KNOWN: u32 = 1;
/// `lost.flags`: a newer boot has been heard.
pub const LOST_NEWER_BOOT: u32 = 1;
/// `leader_heartbeat.flags`: the sender leads.
pub const HEARTBEAT_LEADER: u32 = 1;
/// `watch.flags`: begin with a snapshot.
pub const WATCH_FRESH: u32 = 1;
/// `watch_batch.flags`: this is a snapshot.
pub const BATCH_SNAPSHOT: u32 = 1;
/// `put_begin.flags`: a copy that is there is to be read again before it counts.
pub const PUT_CHECKED: u16 = 1;
/// `put_grant.flags`: the file is here already.
pub const GRANT_EXISTS: u32 = 1;
/// `query.flags` for jobs: ended ones too.
pub const QUERY_ALL: u32 = 1;

/// `query.subject`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Subject {
    Jobs = 1,
    Job = 2,
    Chunks = 3,
    Files = 4,
    File = 5,
    Nodes = 6,
    Status = 7,
    Inputs = 8,
}

impl Subject {
    pub fn from_number(number: u16) -> Option<Self> {
        [Self::Jobs, Self::Job, Self::Chunks, Self::Files, Self::File, Self::Nodes, Self::Status, Self::Inputs]
            .into_iter()
            .find(|subject| *subject as u16 == number)
    }
}

/// `watch.subject`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum WatchSubject {
    Dispatch = 0,
    Job = 1,
}

/// Builds the `error` that answers a message.
pub fn error_frame(
    sender: crate::NodeId,
    code: crate::ErrorCode,
    regarding: Option<Kind>,
    request: u64,
    job: crate::JobId,
    detail: &str,
) -> Vec<u8> {
    let fixed = Error {
        request: U64::new(request),
        code: U16::new(code as u16),
        regarding: regarding.map_or(0, |kind| kind as u8),
        job_uuid: job.into(),
        ..Error::DEFAULT
    };
    fixed.frame(sender, detail.as_bytes())
}
