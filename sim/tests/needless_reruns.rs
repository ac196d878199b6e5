//! No chunk runs twice where once was enough.

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::Cluster;
use sim::world::{LOAD_BALANCER, MASTER};
use wire::{ChunkState, Duration, ErrorCode, Kind, Message};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn inventory_ahead_of_the_log_waits() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let (holder, idle) = holder_and_idle(&cluster, job);
    // From here on the load balancer sees nothing of the log.
    let batches = cluster.hold(MASTER, LOAD_BALANCER, Kind::WatchBatch);
    cluster.until("it has finished", |cluster| cluster.ended(job, 0) == Some(ChunkState::Finished));
    cluster.until("the worker has forgotten it", |cluster| cluster.worker(holder).core.unconfirmed_count() == 0);
    cluster.reconnect(holder);
    cluster.run(SECOND);
    let view = cluster.load_balancer().expect("it is up").core.index();
    let inventory = *cluster.inventories(holder).last().expect("one was sent on connecting");
    assert!(inventory.num_items.get() == 0 && inventory.confirmed_index.get() > view, "it is ahead of the view");
    assert!(cluster.counts_as_held(holder, job, 0), "an inventory ahead of the view was acted on");
    cluster.release(batches);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(holder, 1)]);
    assert!(!cluster.was_asked(idle, job, 0));
}

#[test]
fn delayed_assignment_is_not_given_twice() {
    let mut cluster = Cluster::with_workers(2);
    let (w1, w2) = (cluster.world.worker(1), cluster.world.worker(2));
    let filters = [w1, w2].map(|worker| cluster.hold(LOAD_BALANCER, worker, Kind::WorkerRequest));
    let job = cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.until("it is assigned", |cluster| cluster.was_asked(w1, job, 0) || cluster.was_asked(w2, job, 0));
    let (holder, idle) = if cluster.was_asked(w1, job, 0) { (w1, w2) } else { (w2, w1) };
    // The worker says what it holds before the request has reached it.
    let before = cluster.inventories(holder).len();
    cluster.reconnect(holder);
    cluster.run(8 * SECOND);
    assert!(cluster.inventories(holder)[before..].iter().all(|inventory| inventory.num_items.get() == 0));
    assert!(cluster.counts_as_held(holder, job, 0));
    assert!(!cluster.was_asked(idle, job, 0), "the chunk was given away while its request was under way");
    let requests = cluster.requests(holder, job);
    assert!(requests.len() > 1 && requests.iter().all(|request| request.sequence == requests[0].sequence));
    assert_eq!(cluster.runs(job, 0).len(), 0);
    filters.into_iter().for_each(|filter| cluster.release(filter));
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(holder, 1)]);
}

#[test]
fn worker_heard_by_leader_is_not_lost() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(15 * SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    cluster.cut(w1, LOAD_BALANCER);
    cluster.run(12 * SECOND);
    let statements = cluster.sent(LOAD_BALANCER, MASTER, Kind::Lost).len();
    assert!(statements >= 2, "the load balancer believes that the worker is lost");
    let refusals = cluster.sent(MASTER, LOAD_BALANCER, Kind::Error).into_iter().filter(|sent| {
        matches!(Message::decode(&sent.frame), Ok(Message::Error(error, _)) if error.code.get() == ErrorCode::Busy as u16)
    });
    assert_eq!(refusals.count(), statements, "the leader has heard it and refuses");
    assert_eq!((cluster.attempt(job, 0), cluster.ended(job, 0)), (1, None));
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
}

#[test]
fn credit_is_not_completion() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(SECOND / 2)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let (holder, idle) = holder_and_idle(&cluster, job);
    let full = cluster.worker(holder).core.credit();
    let results = cluster.hold_results(holder);
    cluster.run(4 * SECOND);
    assert!(cluster.worker(holder).core.credit() > full, "the worker has room again");
    let told = cluster.sent(holder, LOAD_BALANCER, Kind::WorkerStatus).into_iter().any(|sent| {
        matches!(Message::decode(&sent.frame), Ok(Message::WorkerStatus(status, _)) if status.credit.get() > full)
    });
    assert!(told && cluster.counts_as_held(holder, job, 0), "room was taken for completion");
    assert!(!cluster.was_asked(idle, job, 0));
    cluster.release(results);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(holder, 1)]);
}

#[test]
fn silent_worker_blocks_only_its_ranges() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(60, Behaviour::lasting(SECOND / 4)));
    cluster.run(SECOND / 10);
    let w1 = cluster.world.worker(1);
    let held: Vec<u32> = (0..60).filter(|chunk| cluster.counts_as_held(w1, job, *chunk)).collect();
    assert!(!held.is_empty() && held.len() < 30);
    cluster.isolate(w1);
    cluster.run(4 * SECOND);
    let open = |cluster: &Cluster| (0..60).filter(|chunk| cluster.ended(job, *chunk).is_none()).collect::<Vec<_>>();
    let elsewhere = |cluster: &Cluster, chunk| cluster.runs(job, chunk).iter().any(|run| run.host != w1);
    assert!(held.iter().all(|chunk| !elsewhere(&cluster, *chunk)), "what the silent worker holds is not given away");
    assert!(open(&cluster).len() < 60 - 20, "the others go on meanwhile");
    // A new primary does not know what the silent worker holds; but what was accepted since it cannot hold.
    cluster.crash(LOAD_BALANCER);
    cluster.restart(LOAD_BALANCER);
    cluster.until("there is a primary again", |cluster| cluster.epoch() == Some(2));
    cluster.run(SECOND / 10);
    let since = cluster.world.now;
    let fresh = cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.until("the new job has ended", |cluster| !cluster.is_live(fresh));
    assert!(cluster.world.now.since(since) < SECOND, "a silent worker blocks what it cannot hold");
    assert!(held.iter().all(|chunk| !elsewhere(&cluster, *chunk)), "the grace period is not over");
    cluster.until("its ranges are given away", |cluster| held.iter().all(|chunk| elsewhere(cluster, *chunk)));
    assert!(cluster.world.now.since(since) > 4 * SECOND, "it was given up before the grace period was over");
    cluster.settle();
}

#[test]
fn new_boot_waits_for_leader_index() {
    let mut cluster = Cluster::with_workers(2);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(SECOND)));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let (holder, idle) = holder_and_idle(&cluster, job);
    let batches = cluster.hold(MASTER, LOAD_BALANCER, Kind::WatchBatch);
    cluster.until("it has finished", |cluster| cluster.ended(job, 0) == Some(ChunkState::Finished));
    let (finished_at, before) = (cluster.index(), cluster.inventories(holder).len());
    cluster.crash(holder);
    let welcome = cluster.hold(MASTER, holder, Kind::NodeWelcome);
    cluster.restart(holder);
    cluster.run(3 * SECOND);
    assert_eq!(cluster.inventories(holder).len(), before, "it spoke of what it holds before it had asked the leader");
    cluster.release(welcome);
    cluster.run(2 * SECOND);
    let inventories = &cluster.inventories(holder)[before..];
    assert!(!inventories.is_empty());
    assert!(inventories.iter().all(|inventory| inventory.confirmed_index.get() >= finished_at));
    assert!(!cluster.was_asked(idle, job, 0) && cluster.requests(holder, job).len() == 1);
    cluster.release(batches);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(holder, 1)]);
}

fn holder_and_idle(cluster: &Cluster, job: wire::JobId) -> (sim::network::Host, sim::network::Host) {
    let (w1, w2) = (cluster.world.worker(1), cluster.world.worker(2));
    if cluster.runs(job, 0)[0].host == w1 { (w1, w2) } else { (w2, w1) }
}
