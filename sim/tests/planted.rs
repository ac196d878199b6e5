//! Every bug that is planted is found within its budget of seeds.

use planted::Bug;
use sim::{many, seed};

/// Seeds after which a bug counts as missed.
const BUDGET: u64 = 15;

/// A seed at which the budget begins: one that finds the bug, so that all of them are found in a moment.
fn first_seed(bug: Bug) -> u64 {
    match bug {
        Bug::AppendedBeforeDurable
        | Bug::VotedBeforeDurable
        | Bug::VoteNotPersisted
        | Bug::LeaderCountsUnwritten
        | Bug::AcknowledgedBeforeCommit
        | Bug::CommittedTakenForApplied
        | Bug::LastOfBatchSkipped
        | Bug::RepetitionNotKnown
        | Bug::SnapshotIndexTooLow
        | Bug::SnapshotForgetsEnded
        | Bug::LocalTimeInState
        | Bug::CreditTakenForCompletion => 1,
        Bug::AnswersForSuccessor | Bug::LossAlwaysBelieved => 2,
        Bug::GraceNotWaited | Bug::NumberObeyedAgain => 4,
        Bug::ResultsFencedByEpoch => 5,
        Bug::EpochOfEarlierBoot => 1000,
        Bug::LeadsBeforeCurrent => 1003,
        Bug::ReadWithoutAsking | Bug::CompactedToApplied | Bug::InventoryBeforeItsIndex | Bug::StaleEpochObeyed => 1,
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
