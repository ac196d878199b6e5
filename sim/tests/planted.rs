//! Every bug that is planted is found within its budget of seeds.

use planted::Bug;
use sim::{many, seed};

/// Seeds after which a bug counts as missed.
const BUDGET: u64 = 40;

/// A seed at which the budget begins: the first that finds the bug, so that all of them are found in a moment.
fn first_seed(bug: Bug) -> u64 {
    match bug {
        Bug::AppendedBeforeDurable
        | Bug::VotedBeforeDurable
        | Bug::VoteNotPersisted
        | Bug::LeaderCountsUnwritten
        | Bug::AcknowledgedBeforeCommit
        | Bug::CommittedTakenForApplied
        | Bug::LastOfBatchSkipped
        | Bug::AnswersForSuccessor
        | Bug::SnapshotIndexTooLow
        | Bug::SnapshotForgetsEnded
        | Bug::LocalTimeInState
        | Bug::EpochOfEarlierBoot
        | Bug::CreditTakenForCompletion => 1,
        Bug::RepetitionNotKnown | Bug::GraceNotWaited => 2,
        Bug::NumberObeyedAgain => 3,
        Bug::CompactedTooFar => 4,
        Bug::LeadsBeforeCurrent => 5,
        Bug::InventoryBeforeItsIndex | Bug::StaleEpochObeyed => 9,
        Bug::ReadWithoutAsking => 13,
        Bug::LossAlwaysBelieved => 14,
        Bug::ResultsFencedByEpoch => 16,
    }
}

#[test]
fn every_planted_bug_is_found() {
    let seeds = |bug: Bug| first_seed(bug)..first_seed(bug) + BUDGET;
    let find = |bug: &Bug| seeds(*bug).find_map(|number| seed::run_with(*bug, number).err());
    let found = many::on_all_cpus(&Bug::ALL, find);
    let is_missed = |(bug, found): (Bug, &Option<seed::Failure>)| found.is_none().then_some(bug);
    let missed: Vec<Bug> = Bug::ALL.into_iter().zip(&found).filter_map(is_missed).collect();
    assert!(missed.is_empty(), "not found in {BUDGET} seeds: {missed:?}");
}
