//! Random histories: whatever is lost, repeated, reordered or dies, every chunk ends, and none is run twice in vain.

use proptest::prelude::*;

use crate::support::world::{Faults, World};
use crate::support::*;

/// One history: 30 s with faults, then without until all is done.
fn play(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, 3, faults);
    world.submit(j(1), 60);
    world.run(world.now + ms(2_000));
    world.submit(j(2), 25);
    world.run(world.now + ms(30_000));
    world.heal();
    let give_up_at = world.now + ms(60_000);
    while !world.is_settled() {
        assert!(world.now < give_up_at, "seed {seed}: {}", world.what_is_left());
        world.run(world.now + ms(500));
    }
    world
}

#[test]
fn without_faults_every_chunk_starts_once() {
    assert_eq!(play(1, Faults::default()).starts, 85);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_that_are_lost_repeated_and_reordered_harm_nothing(seed: u64, losses in 0u64..300, repeats in 0u64..300) {
        let world = play(seed, Faults { losses, repeats, ..Faults::default() });
        prop_assert_eq!(world.starts, 85);
    }

    #[test]
    fn failures_and_crashes_of_workers_leave_no_chunk_behind(seed: u64, losses in 0u64..150, failures in 0u64..300) {
        play(seed, Faults { losses, repeats: 50, failures, worker_crashes: 4, ..Faults::default() });
    }

    #[test]
    fn a_load_balancer_that_restarts_finds_everything_again(seed: u64, losses in 0u64..100) {
        let faults = Faults { losses, repeats: 50, failures: 50, load_balancer_restarts: 3, ..Faults::default() };
        play(seed, faults);
    }

    #[test]
    fn everything_at_once(seed: u64, losses in 0u64..100) {
        let faults = Faults { losses, repeats: 100, failures: 100, worker_crashes: 3, load_balancer_restarts: 2, cancels: 2, cuts: 0 };
        play(seed, faults);
    }

    #[test]
    fn a_worker_cut_off_is_not_robbed(seed: u64, losses in 0u64..100) {
        play(seed, Faults { losses, repeats: 50, failures: 50, worker_crashes: 1, cuts: 3, cancels: 1, ..Faults::default() });
    }
}
