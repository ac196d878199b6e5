//! The small closed sets of the protocol: roles, states, causes, error codes; each with its number and its word.

use std::fmt;

/// Declares an enum of one byte with stable numbers and the words that people and JSON see.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $number),* }

        impl $name {
            /// Every value with its number and word, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

numbered!(
    /// What a certificate lets its holder do.
    Role { Master = 1 "master", LoadBalancer = 2 "loadbalancer", Worker = 3 "worker", Storage = 4 "storage",
        Gateway = 5 "gateway", Client = 6 "client" }
);

numbered!(
    /// `worker_status.state`.
    StatusState { Idle = 0 "idle", Accepted = 1 "accepted", Fetching = 2 "fetching", Running = 3 "running",
        WritingBack = 4 "writing_back", Succeeded = 5 "succeeded", Failed = 6 "failed", Canceled = 7 "canceled",
        Killed = 8 "killed", Lost = 9 "lost" }
);

numbered!(
    /// The state of a chunk.
    ChunkState { Waiting = 0 "waiting", Running = 1 "running", Finished = 2 "finished", Failed = 3 "failed",
        Canceled = 4 "canceled", Aborted = 5 "aborted" }
);

impl ChunkState {
    /// True for the states that a chunk never leaves.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Waiting | Self::Running => false,
            Self::Finished | Self::Failed | Self::Canceled | Self::Aborted => true,
        }
    }
}

numbered!(
    /// The state of a job: `waiting` while all its chunks wait, `running` while any waits or runs, then the first of
    /// canceled, aborted, failed, finished that holds for a chunk.
    JobState { Waiting = 0 "waiting", Running = 1 "running", Finished = 2 "finished", Failed = 3 "failed",
        Canceled = 4 "canceled", Aborted = 5 "aborted" }
);

impl JobState {
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Waiting | Self::Running => false,
            Self::Finished | Self::Failed | Self::Canceled | Self::Aborted => true,
        }
    }
}

numbered!(
    /// Why a chunk failed. `None` = it did not; `InputMissing` = it was refused an input, or may have read something else,
    /// however its program ended.
    Cause { None = 0 "none", Exit = 1 "exit", Signal = 2 "signal", Oom = 3 "oom", Timeout = 4 "timeout",
        WorkerLost = 5 "worker_lost", InputMissing = 6 "input_missing", Policy = 7 "policy" }
);

impl Cause {
    /// The bit of this cause in `retry_on`.
    pub fn bit(self) -> u32 {
        1 << (self as u8)
    }
}

numbered!(
    /// What masters believe of a node.
    NodeState { Up = 0 "up", Draining = 1 "draining", Lost = 2 "lost" }
);

/// Codes of the `error` message: append-only. The word is what people and REST see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u16)]
pub enum ErrorCode {
    Malformed = 1,
    UnknownType = 2,
    NotAllowed = 3,
    NotLeader = 4,
    Busy = 5,
    UnknownJob = 6,
    FileUnknown = 7,
    ExistsDifferent = 8,
    InvalidRequest = 9,
    Impossible = 10,
    TooLarge = 11,
    HashMismatch = 12,
    UploadUnknown = 13,
    DiskFull = 14,
    StaleEpoch = 15,
    NotReady = 16,
    ReceiptInvalid = 17,
    UnknownNode = 18,
}

impl ErrorCode {
    pub const ALL: &'static [ErrorCode] = &[
        Self::Malformed,
        Self::UnknownType,
        Self::NotAllowed,
        Self::NotLeader,
        Self::Busy,
        Self::UnknownJob,
        Self::FileUnknown,
        Self::ExistsDifferent,
        Self::InvalidRequest,
        Self::Impossible,
        Self::TooLarge,
        Self::HashMismatch,
        Self::UploadUnknown,
        Self::DiskFull,
        Self::StaleEpoch,
        Self::NotReady,
        Self::ReceiptInvalid,
        Self::UnknownNode,
    ];

    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| *code as u16 == number)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownType => "unknown_type",
            Self::NotAllowed => "not_allowed",
            Self::NotLeader => "not_leader",
            Self::Busy => "busy",
            Self::UnknownJob => "unknown_job",
            Self::FileUnknown => "file_unknown",
            Self::ExistsDifferent => "exists_different",
            Self::InvalidRequest => "invalid_request",
            Self::Impossible => "impossible",
            Self::TooLarge => "too_large",
            Self::HashMismatch => "hash_mismatch",
            Self::UploadUnknown => "upload_unknown",
            Self::DiskFull => "disk_full",
            Self::StaleEpoch => "stale_epoch",
            Self::NotReady => "not_ready",
            Self::ReceiptInvalid => "receipt_invalid",
            Self::UnknownNode => "unknown_node",
        }
    }

    /// What the number means, for doc/wire.md.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Malformed => "the message breaks its layout",
            Self::UnknownType => "this receiver does not know the message type",
            Self::NotAllowed => "the sender's certificate does not allow this message or this node_uuid",
            Self::NotLeader => "ask the master that the detail names",
            Self::Busy => "a limit is reached; send the same again later",
            Self::UnknownJob => "no such job; a worker that answers so wants the job's body",
            Self::FileUnknown => "no such file",
            Self::ExistsDifferent => "the id is taken by other content",
            Self::InvalidRequest => "the request contradicts itself or a rule",
            Self::Impossible => "no worker can ever meet the request",
            Self::TooLarge => "above a limit that the detail names",
            Self::HashMismatch => "the bytes are not those that the hash names",
            Self::UploadUnknown => "no such upload; begin again",
            Self::DiskFull => "no room on the disk",
            Self::StaleEpoch => "a newer epoch has been granted",
            Self::NotReady => "the receiver is starting; send the same again",
            Self::ReceiptInvalid => "the storage receipt does not prove that the file is stored",
            Self::UnknownNode => "no such node",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
