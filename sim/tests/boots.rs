//! A worker that starts again is another: what its old boot held is free at once, and its old words are void.

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::{Cluster, range_of};
use sim::world::{LOAD_BALANCER, MASTER};
use wire::{ChunkState, Duration, Kind, Message};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn new_boot_frees_old_ranges() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let job = cluster.submit(Plan::new(2, Behaviour::lasting(2 * SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 1).len() == 1);
    cluster.crash(w1);
    cluster.run(SECOND / 10);
    cluster.restart(w1);
    let since = cluster.world.now;
    cluster.until("it runs again", |cluster| cluster.runs(job, 0).len() == 2 && cluster.runs(job, 1).len() == 2);
    assert!(cluster.world.now.since(since) < SECOND, "it waited for the grace period of a boot that is gone");
    assert_eq!(cluster.history(job, 0), [(w1, 1), (w1, 2)]);
    let flags =
        cluster.sent(LOAD_BALANCER, MASTER, Kind::Lost).into_iter().map(|sent| match Message::decode(&sent.frame) {
            Ok(Message::Lost(lost, _)) => lost.flags.get(),
            other => panic!("{other:?}"),
        });
    assert_eq!(flags.collect::<Vec<_>>(), [wire::LOST_NEWER_BOOT]);
    cluster.settle();
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
}

#[test]
fn late_report_of_old_boot_is_dropped() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(4 * SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let first = cluster.runs(job, 0)[0].host;
    // The old boot says that it holds the chunk, and the message takes its time.
    let late = cluster.hold(first, LOAD_BALANCER, Kind::Inventory);
    cluster.reconnect(first);
    cluster.run(SECOND / 100);
    let items: u32 = cluster.inventories(first).last().expect("one was sent").num_items.get();
    assert_eq!((cluster.world.held(late).len(), items), (1, 1));
    let inventory = cluster.world.held(late)[0].clone();
    cluster.release(late);
    cluster.run(SECOND / 100);
    cluster.crash(first);
    cluster.until("it runs elsewhere", |cluster| cluster.runs(job, 0).len() == 2);
    cluster.restart(first);
    cluster.until_ready();
    // The new boot has its first number, so that the old boot's fits in.
    let other = cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.until("the other job has ended", |cluster| !cluster.is_live(other));
    assert_eq!(cluster.history(other, 0)[0].0, first);
    cluster.world.network.deliver(inventory, cluster.world.now);
    cluster.run(SECOND / 10);
    assert_ne!(cluster.runs(job, 0)[1].host, first);
    assert!(!cluster.counts_as_held(first, job, 0), "a dead boot's word counts");
    cluster.settle();
    assert_eq!(cluster.runs(job, 0).len(), 2);
}

#[test]
fn empty_number_fills_gap() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    // The first copy of the request is lost, and then its job is canceled.
    let requests = cluster.lose(LOAD_BALANCER, w1, Kind::WorkerRequest);
    let canceled = cluster.submit(Plan::new(2, Behaviour::default()));
    cluster.until("it is asked for", |cluster| cluster.was_asked(w1, canceled, 0));
    cluster.cancel(canceled);
    cluster.run(SECOND / 100);
    cluster.release(requests);
    let next = cluster.submit(Plan::new(1, Behaviour::default()));
    let since = cluster.world.now;
    cluster.until("the next job has ended", |cluster| !cluster.is_live(next));
    assert!(cluster.world.now.since(since) < 3 * SECOND, "the worker waits for a number that never comes");
    let numbers = cluster.requests(w1, canceled);
    let lost = numbers.iter().find(|request| range_of(request).count == 2).expect("it was sent once").sequence;
    assert!(numbers.iter().any(|request| request.sequence == lost && range_of(request).count == 0));
    cluster.settle();
    assert_eq!(cluster.runs(canceled, 0).len(), 0);
    assert_eq!(cluster.history(next, 0), [(w1, 1)]);
}
