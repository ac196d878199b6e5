//! The faults of one seed, planned before it begins: what strikes when, and for how long.

use wire::{Duration, Instant};

use crate::chance::Chance;
use crate::network::{Host, Weather};
use crate::shell::DiskPace;
use crate::world::{Change, LOAD_BALANCER, STORAGE, World};

/// When faults may begin, and when the last one ends.
pub const FAULTS_FROM: Instant = Instant(2_000_000);
pub const FAULTS_UNTIL: Instant = Instant(42_000_000);
/// Faults of a seed.
const FAULTS_MIN: u64 = 12;
const FAULTS_MAX: u64 = 32;

/// Plans the faults of a seed; says how many they are.
pub fn plan(world: &mut World) -> u64 {
    let mut chance = Chance::new(world.chance().draw());
    let count = chance.between(FAULTS_MIN, FAULTS_MAX + 1);
    for _ in 0..count {
        let at = Instant(chance.between(FAULTS_FROM.0, FAULTS_UNTIL.0));
        plan_one(world, at, &mut chance);
    }
    count
}

/// Faults last from a blink to twice the grace period.
fn draw_length(chance: &mut Chance) -> Duration {
    let max_ms = [300, 3_000, 12_000][chance.between(0, 3) as usize];
    Duration::from_millis(chance.between(10, max_ms))
}

fn plan_one(world: &mut World, at: Instant, chance: &mut Chance) {
    let end = (at + draw_length(chance)).min(FAULTS_UNTIL);
    match chance.between(0, 100) {
        0..5 => {
            // Longer than its followers wait for it; then it answers what has come meanwhile.
            let pause = Duration::from_millis(chance.between(800, 4_000));
            let cut = pause + Duration::from_millis(chance.between(100, 2_000));
            world.plan(at, Change::Depose { pause, cut });
        }
        5..7 => world.plan(at, Change::PowerCut),
        7..38 => {
            let host = any_host(world, chance);
            world.plan(at, Change::Crash { host });
            world.plan(end, Change::Restart { host });
        }
        38..52 => {
            let host = any_host(world, chance);
            world.plan(at, Change::Pause { host });
            world.plan(end, Change::Resume { host });
        }
        52..80 => plan_cut(world, at, end, chance),
        80..90 => {
            let loss_per_mille = chance.between(0, 300);
            let duplicate_per_mille = chance.between(0, 300);
            let late_per_mille = chance.between(0, 200);
            let keeps_order = chance.once_in_a_thousand(500);
            let storm = Weather { loss_per_mille, duplicate_per_mille, late_per_mille, keeps_order, ..Weather::STORM };
            world.plan(at, Change::Weather(storm));
            world.plan(end, Change::Weather(Weather::CALM));
        }
        90..92 => {
            let host = any_master(world, chance);
            world.plan(at, Change::DiskFull { host, is_full: true });
            world.plan(end, Change::DiskFull { host, is_full: false });
        }
        92..96 => {
            let host = if chance.between(0, 2) == 0 { any_master(world, chance) } else { STORAGE };
            world.plan(at, Change::DiskPace { host, pace: DiskPace::SLOW });
            world.plan(end, Change::DiskPace { host, pace: DiskPace::FAST });
        }
        _ => {
            let host = any_host(world, chance);
            // A day, either way.
            let by_us = chance.between(0, 2 * 86_400_000_000) as i64 - 86_400_000_000;
            world.plan(at, Change::WallJump { host, by_us });
        }
    }
}

/// Cuts a pair of machines that talk to each other, in one direction or both.
fn plan_cut(world: &mut World, at: Instant, end: Instant, chance: &mut Chance) {
    let worker = any_worker(world, chance);
    let client = world.client(1 + chance.between(0, world.settings.clients as u64) as usize);
    let master = any_master(world, chance);
    let masters = world.masters();
    let mut pairs = vec![
        (worker, LOAD_BALANCER),
        (worker, LOAD_BALANCER),
        (worker, master),
        (worker, master),
        (LOAD_BALANCER, master),
        (LOAD_BALANCER, master),
        (worker, STORAGE),
        (client, master),
        (client, STORAGE),
    ];
    let others: Vec<Host> = masters.iter().copied().filter(|other| *other != master).collect();
    pairs.extend(others.iter().map(|other| (master, *other)));
    pairs.extend(others.iter().map(|other| (master, *other)));
    let (a, b) = pairs[chance.between(0, pairs.len() as u64) as usize];
    let directions: &[(Host, Host)] = match chance.between(0, 4) {
        0 => &[(a, b)],
        1 => &[(b, a)],
        _ => &[(a, b), (b, a)],
    };
    for &(from, to) in directions {
        world.plan(at, Change::CutOneWay { from, to });
        world.plan(end, Change::MendOneWay { from, to });
    }
    // Sometimes a master is cut off from the others, and its clients still reach it.
    if chance.once_in_a_thousand(200) {
        for other in others {
            for (from, to) in [(master, other), (other, master)] {
                world.plan(at, Change::CutOneWay { from, to });
                world.plan(end, Change::MendOneWay { from, to });
            }
        }
    }
    // Sometimes a worker is cut off from all that command it.
    if chance.once_in_a_thousand(300) {
        for server in masters.into_iter().chain([LOAD_BALANCER]) {
            for (from, to) in [(worker, server), (server, worker)] {
                world.plan(at, Change::CutOneWay { from, to });
                world.plan(end, Change::MendOneWay { from, to });
            }
        }
    }
}

fn any_master(world: &World, chance: &mut Chance) -> Host {
    let masters = world.masters();
    masters[chance.between(0, masters.len() as u64) as usize]
}

fn any_worker(world: &World, chance: &mut Chance) -> Host {
    world.worker(1 + chance.between(0, world.settings.workers as u64) as usize)
}

/// A machine that may go down: clients stay.
fn any_host(world: &World, chance: &mut Chance) -> Host {
    match chance.between(0, 10) {
        0..2 => any_master(world, chance),
        2..5 => LOAD_BALANCER,
        5..6 => STORAGE,
        _ => any_worker(world, chance),
    }
}
