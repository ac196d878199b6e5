//! Bugs on purpose, for the simulator to find.
//!
//! A smoke detector is tested with smoke: each bug is a line in a core that asks `is` whether it shall misbehave, and a
//! simulator that does not find it would not find its like either. Without the feature `built-in` the answer is a
//! constant, and nothing of it is in the program.

/// A bug in a core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bug {
    /// A follower says that it has entries before its disk does.
    AppendedBeforeDurable,
    /// A vote is given before the disk has it.
    VotedBeforeDurable,
    /// The disk never gets the vote, only its term.
    VoteNotPersisted,
    /// A leader counts itself among those who have an entry before its disk does.
    LeaderCountsUnwritten,
    /// A request is acknowledged when it is proposed.
    AcknowledgedBeforeCommit,
    /// After a restart what was committed is taken for applied.
    CommittedTakenForApplied,
    /// Of several committed entries the last is not applied.
    LastOfBatchSkipped,
    /// A request that comes again is taken for a new one.
    RepetitionNotKnown,
    /// Whoever was elected answers before it has applied what was committed before.
    LeadsBeforeCurrent,
    /// A question is answered without asking the others whether this is still the leader.
    ReadWithoutAsking,
    /// A leader that was replaced still answers those who wait, by the entries of its successor.
    AnswersForSuccessor,
    /// A snapshot says that it is one entry older than it is.
    SnapshotIndexTooLow,
    /// A snapshot leaves out the jobs that have ended, by which repetitions are known.
    SnapshotForgetsEnded,
    /// The log on disk is cut up to its end, not to what the snapshot holds.
    CompactedTooFar,
    /// What is applied depends on the clock of the machine.
    LocalTimeInState,
    /// A result of an epoch that is over is dropped and confirmed.
    ResultsFencedByEpoch,
    /// A load balancer is believed that a worker is lost which the leader has just heard.
    LossAlwaysBelieved,
    /// An epoch belongs to a node: its next boot goes on in it, and is granted no other.
    EpochOfEarlierBoot,
    /// An inventory, or what a retract left, is acted on before the log is known up to where it was composed.
    InventoryBeforeItsIndex,
    /// A worker that has more room is taken to have finished something.
    CreditTakenForCompletion,
    /// A new primary does not wait for silent workers to say what they hold.
    GraceNotWaited,
    /// A worker takes the epoch of any command for the one that counts.
    StaleEpochObeyed,
    /// A worker obeys a number that it has obeyed before.
    NumberObeyedAgain,
}

impl Bug {
    pub const ALL: [Self; 23] = [
        Self::AppendedBeforeDurable,
        Self::VotedBeforeDurable,
        Self::VoteNotPersisted,
        Self::LeaderCountsUnwritten,
        Self::AcknowledgedBeforeCommit,
        Self::CommittedTakenForApplied,
        Self::LastOfBatchSkipped,
        Self::RepetitionNotKnown,
        Self::LeadsBeforeCurrent,
        Self::ReadWithoutAsking,
        Self::AnswersForSuccessor,
        Self::SnapshotIndexTooLow,
        Self::SnapshotForgetsEnded,
        Self::CompactedTooFar,
        Self::LocalTimeInState,
        Self::ResultsFencedByEpoch,
        Self::LossAlwaysBelieved,
        Self::EpochOfEarlierBoot,
        Self::InventoryBeforeItsIndex,
        Self::CreditTakenForCompletion,
        Self::GraceNotWaited,
        Self::StaleEpochObeyed,
        Self::NumberObeyedAgain,
    ];
}

/// True where bugs can be planted.
pub const IS_BUILT_IN: bool = cfg!(feature = "built-in");

#[cfg(feature = "built-in")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// True while this bug is planted.
#[cfg(feature = "built-in")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// True while this bug is planted: never, here.
#[cfg(not(feature = "built-in"))]
pub const fn is(_bug: Bug) -> bool {
    false
}

/// From now on the cores that run on this thread have this bug, or none.
#[cfg(feature = "built-in")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
