//! After a take-over nothing that was done is done again, and nobody obeys the one before.

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::Cluster;
use sim::world::{LOAD_BALANCER, MASTER};
use wire::{ChunkState, Duration, ErrorCode, Kind, Message, StatusState};

const SECOND: Duration = Duration::from_secs(1);

/// A new boot of the load balancer takes over.
fn take_over(cluster: &mut Cluster) {
    cluster.crash(LOAD_BALANCER);
    cluster.run(SECOND / 2);
    cluster.restart(LOAD_BALANCER);
    cluster.until_ready();
}

#[test]
fn result_of_an_old_epoch_counts() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(3 * SECOND)));
    cluster.run(SECOND);
    take_over(&mut cluster);
    assert_eq!((cluster.epoch(), cluster.ended(job, 0)), (Some(2), None));
    cluster.settle();
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
    let epochs = cluster.sent(w1, MASTER, Kind::WorkerStatus).into_iter().filter_map(|sent| {
        match Message::decode(&sent.frame) {
            Ok(Message::WorkerStatus(status, _)) if status.num_runs.get() > 0 => Some(status.epoch.get()),
            _ => None,
        }
    });
    assert_eq!(epochs.collect::<Vec<_>>(), [1], "the result carries the epoch that assigned it");
}

#[test]
fn attempts_survive_take_over() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let behaviour = Behaviour { fail_attempt_max: 9, ..Behaviour::lasting(SECOND) };
    let mut plan = Plan::new(1, behaviour);
    plan.spec.retries = 2;
    let job = cluster.submit(plan);
    // It fails while nobody commands: only the log knows that the next attempt is the second.
    cluster.run(SECOND / 2);
    cluster.crash(LOAD_BALANCER);
    cluster.until("the failure is in the log", |cluster| cluster.attempt(job, 0) == 2);
    cluster.restart(LOAD_BALANCER);
    cluster.until("the second attempt runs", |cluster| cluster.runs(job, 0).len() == 2);
    take_over(&mut cluster);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1), (w1, 2), (w1, 3)]);
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Failed));
}

#[test]
fn poison_chunk_dies_after_take_over() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(1, Behaviour { is_poison: true, ..Behaviour::lasting(SECOND) }));
    cluster.until("the first worker has died of it", |cluster| cluster.attempt(job, 0) == 2);
    take_over(&mut cluster);
    cluster.settle();
    let attempts: Vec<u32> = cluster.runs(job, 0).iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3], "the crash before the take-over counts against the limit of three");
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Failed));
    assert!(cluster.world.checker.history.state.jobs[&job].lost.contains(0));
}

#[test]
fn load_balancer_restart_needs_new_epoch() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    cluster.crash(LOAD_BALANCER);
    // It cannot register, but it hears the log, which names an earlier boot of it as primary.
    let hello = cluster.hold(LOAD_BALANCER, MASTER, Kind::NodeHello);
    cluster.restart(LOAD_BALANCER);
    let job = cluster.submit(Plan::new(4, Behaviour::default()));
    cluster.run(3 * SECOND);
    let index = cluster.load_balancer().expect("it is up").core.index();
    assert_eq!(index, cluster.index(), "its view of the log is complete");
    assert_eq!(cluster.epoch(), None);
    assert_eq!(cluster.requests(w1, job).len(), 0, "it commands without an epoch");
    cluster.release(hello);
    cluster.settle();
    let requests = cluster.requests(w1, job);
    assert!(!requests.is_empty() && requests.iter().all(|request| request.epoch.get() == 2));
}

#[test]
fn late_report_of_old_epoch_is_dropped() {
    let mut cluster = Cluster::with_workers(2);
    let reports = cluster.world.hold(|envelope| match Message::decode(&envelope.frames[0]) {
        Ok(Message::WorkerStatus(status, _)) => status.state == StatusState::Accepted as u8,
        _ => false,
    });
    let behaviour = Behaviour { fail_attempt_max: 1, ..Behaviour::lasting(2 * SECOND) };
    let mut plan = Plan::new(1, behaviour);
    plan.spec.retries = 1;
    let job = cluster.submit(plan);
    cluster.until("the first attempt runs", |cluster| cluster.runs(job, 0).len() == 1);
    let first = cluster.runs(job, 0)[0].host;
    assert_eq!(cluster.world.held(reports).len(), 1, "the report that the chunk was accepted is held back");
    cluster.crash(LOAD_BALANCER);
    cluster.until("the first attempt has failed", |cluster| cluster.attempt(job, 0) == 2);
    // What comes now tells nothing of the chunk; only the old report would.
    cluster.restart(LOAD_BALANCER);
    cluster.until_ready();
    cluster.until("the second attempt is given out", |cluster| cluster.holder_in(2, job).is_some());
    let asked = |cluster: &Cluster| cluster.sent(LOAD_BALANCER, first, Kind::InventoryRequest).len();
    let before = asked(&cluster);
    cluster.release(reports);
    cluster.run(3 * SECOND / 2);
    let second = cluster.holder_in(2, job).expect("it was given out");
    assert!(second == first || !cluster.counts_as_held(first, job, 0), "the old report counts");
    // An item below the current attempt would be asked about.
    assert_eq!(asked(&cluster), before, "the old report counts");
    cluster.settle();
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
}

#[test]
fn stale_item_is_asked_again() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let behaviour = Behaviour { fail_attempt_max: 1, ..Behaviour::lasting(SECOND) };
    let mut plan = Plan::new(1, behaviour);
    plan.spec.retries = 1;
    let job = cluster.submit(plan);
    let results = cluster.hold_results(w1);
    cluster.until("the first attempt has failed", |cluster| cluster.worker(w1).core.unconfirmed_count() == 1);
    cluster.crash(LOAD_BALANCER);
    cluster.restart(LOAD_BALANCER);
    // The inventory of the new epoch is composed while the worker keeps the failure ...
    let inventory = cluster.hold(w1, LOAD_BALANCER, Kind::Inventory);
    cluster.until("the inventory of epoch 2 is on its way", |cluster| {
        cluster.inventories(w1).iter().any(|inventory| inventory.epoch.get() == 2)
    });
    // ... and arrives when the failure is confirmed and forgotten.
    cluster.release(results);
    cluster.until("the failure is forgotten", |cluster| cluster.worker(w1).core.unconfirmed_count() == 0);
    cluster.until("the load balancer has seen the failure", |cluster| {
        cluster.load_balancer().is_some_and(|shell| shell.core.index() == cluster.index())
    });
    let stale = cluster.world.held(inventory).len();
    assert!(stale > 0);
    let asked = cluster.sent(LOAD_BALANCER, w1, Kind::InventoryRequest).len();
    cluster.release(inventory);
    cluster.run(Duration::from_millis(2));
    assert!(cluster.counts_as_held(w1, job, 0), "an item below the current attempt counts as held");
    cluster.until("the second attempt runs", |cluster| cluster.runs(job, 0).len() == 2);
    assert!(cluster.sent(LOAD_BALANCER, w1, Kind::InventoryRequest).len() > asked, "it was not asked again");
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1), (w1, 2)]);
}

#[test]
fn failure_in_a_gap_of_the_log_is_asked_again() {
    let mut cluster = Cluster::with_forgetful_master(1);
    let w1 = cluster.world.worker(1);
    let behaviour = Behaviour { fail_attempt_max: 1, ..Behaviour::lasting(SECOND) };
    let mut plan = Plan::new(1, behaviour);
    plan.spec.retries = 1;
    let job = cluster.submit(plan);
    cluster.until("the first attempt runs", |cluster| cluster.runs(job, 0).len() == 1);
    let batches = cluster.lose(MASTER, LOAD_BALANCER, Kind::WatchBatch);
    let confirmations = cluster.hold(MASTER, w1, Kind::ResultConfirmed);
    cluster.until("it has failed", |cluster| cluster.attempt(job, 0) == 2);
    // The load balancer is behind, gets a snapshot, and so misses who was freed.
    cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.release(batches);
    let listed = cluster.inventories(w1).len();
    cluster.until("the worker tells that it keeps the failure", |cluster| {
        cluster.inventories(w1)[listed..].iter().any(|inventory| inventory.num_items.get() == 1)
    });
    // It comes before the worker says the failure again, so that no other entry frees the chunk.
    cluster.run(SECOND / 4);
    cluster.release(confirmations);
    cluster.until("the second attempt runs", |cluster| cluster.runs(job, 0).len() == 2);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1), (w1, 2)]);
}

#[test]
fn snapshot_does_not_end_the_grace_period() {
    let mut cluster = Cluster::with_forgetful_master(2);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(20 * SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let holder = cluster.runs(job, 0)[0].host;
    cluster.isolate(holder);
    cluster.crash(LOAD_BALANCER);
    cluster.restart(LOAD_BALANCER);
    cluster.until("there is a primary again", |cluster| cluster.epoch() == Some(2));
    // It falls behind and gets a snapshot, which lists the silent worker once more.
    let batches = cluster.lose(MASTER, LOAD_BALANCER, Kind::WatchBatch);
    cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.release(batches);
    cluster.run(4 * SECOND);
    assert_eq!(cluster.history(job, 0), [(holder, 1)], "a silent worker's chunk was given away too early");
    cluster.until("it is given away at last", |cluster| cluster.runs(job, 0).len() == 2);
    cluster.settle();
}

#[test]
fn request_of_an_old_epoch_is_refused() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let old = cluster.hold(LOAD_BALANCER, w1, Kind::WorkerRequest);
    let job = cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.until("it is asked for", |cluster| cluster.was_asked(w1, job, 0));
    cluster.crash(LOAD_BALANCER);
    let first = cluster.world.held(old)[0].clone();
    cluster.restart(LOAD_BALANCER);
    cluster.until_ready();
    // Its number is the next in the new epoch too.
    cluster.world.network.deliver(first, cluster.world.now);
    cluster.run(SECOND / 100);
    assert_eq!(cluster.runs(job, 0).len(), 0, "a request of an epoch that is over was obeyed");
    let refused = cluster.sent(w1, LOAD_BALANCER, Kind::Error).into_iter().any(|sent| {
        matches!(Message::decode(&sent.frame), Ok(Message::Error(e, _)) if e.code.get() == ErrorCode::StaleEpoch as u16)
    });
    assert!(refused);
    cluster.world.forget(old);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
    assert!(cluster.requests(w1, job).iter().any(|request| request.epoch.get() == 2));
}
