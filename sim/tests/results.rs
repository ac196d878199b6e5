//! One result for each chunk, whatever crosses on the way.

use std::cell::Cell;

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::{Cluster, range_of};
use sim::world::{LOAD_BALANCER, MASTER, STORAGE};
use wire::{ChunkState, Duration, Kind, Message, WallTime};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn lost_confirmation_is_asked_again() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let confirmations = cluster.lose(MASTER, w1, Kind::ResultConfirmed);
    let job = cluster.submit(Plan::new(1, Behaviour::default()));
    cluster.until("it has finished", |cluster| !cluster.is_live(job));
    let index = cluster.index();
    cluster.run(8 * SECOND);
    assert!(results(&cluster, w1) >= 3, "the result is said again until it is confirmed");
    assert_eq!(cluster.worker(w1).core.unconfirmed_count(), 1, "the worker keeps what nobody has confirmed");
    assert_eq!(cluster.index(), index, "a repetition is not worth an entry");
    cluster.release(confirmations);
    cluster.until("it is confirmed", |cluster| cluster.worker(w1).core.unconfirmed_count() == 0);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
}

#[test]
fn cancel_races_finish() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let job = cluster.submit(Plan::new(4, Behaviour::lasting(SECOND)));
    cluster.until("half of it has finished", |cluster| (0..2).all(|chunk| cluster.ended(job, chunk).is_some()));
    // The other half ends well too, but the cancel is in the log first.
    let results = cluster.hold_results(w1);
    let kills = cluster.hold(LOAD_BALANCER, w1, Kind::Kill);
    cluster.until("the other half has ended", |cluster| cluster.worker(w1).core.unconfirmed_count() == 2);
    cluster.cancel(job);
    cluster.release(results);
    cluster.until("the results are forgotten", |cluster| cluster.worker(w1).core.unconfirmed_count() == 0);
    cluster.release(kills);
    cluster.settle();
    let states: Vec<_> = (0..4).map(|chunk| cluster.ended(job, chunk).expect("it has ended")).collect();
    use ChunkState::{Canceled, Finished};
    assert_eq!(states, [Finished, Finished, Canceled, Canceled]);
    assert!((0..4).all(|chunk| cluster.history(job, chunk) == [(w1, 1)]));
}

#[test]
fn canceled_chunks_are_killed() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let job = cluster.submit(Plan::new(6, Behaviour::lasting(30 * SECOND)));
    cluster.until("two run", |cluster| cluster.worker(w1).core.running_count() == 2);
    // They are told of with a heartbeat of the worker and one of the load balancer.
    cluster.run(2 * SECOND);
    let since = cluster.world.now;
    cluster.cancel(job);
    let canceled = &cluster.master().expect("it is up").core.state().jobs[&job].canceled;
    let told: Vec<_> = (0..6).filter_map(|chunk| canceled.of(chunk).map(|run| (chunk, run.started_at))).collect();
    assert!(told.iter().map(|(chunk, _)| *chunk).eq(0..2), "those that ran are told apart: {told:?}");
    assert!(told.iter().all(|(_, started_at)| *started_at != WallTime(0)), "since when is known: {told:?}");
    cluster.until("nothing of it is left", |cluster| {
        cluster.worker(w1).core.running_count() == 0 && cluster.worker(w1).core.queued_count() == 0
    });
    assert!(cluster.world.now.since(since) < 4 * SECOND);
    cluster.settle();
    assert_eq!((2..6).map(|chunk| cluster.runs(job, chunk).len()).sum::<usize>(), 0);
    assert!(!cluster.sent(w1, LOAD_BALANCER, Kind::Killed).is_empty());
}

#[test]
fn kill_is_said_again_after_a_late_request() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let requests = cluster.hold(LOAD_BALANCER, w1, Kind::WorkerRequest);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(60 * SECOND)));
    cluster.until("it is asked for", |cluster| cluster.was_asked(w1, job, 0));
    cluster.cancel(job);
    cluster.until("the worker says that it has nothing", |cluster| {
        !cluster.sent(w1, LOAD_BALANCER, Kind::Killed).is_empty()
    });
    cluster.run(SECOND / 10);
    // The request comes after all.
    cluster.release(requests);
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let since = cluster.world.now;
    cluster.until("it runs no more", |cluster| cluster.worker(w1).core.running_count() == 0);
    assert!(cluster.world.now.since(since) < 5 * SECOND, "what is canceled runs on");
    cluster.settle();
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Canceled));
}

#[test]
fn old_failure_is_confirmed() {
    let mut cluster = Cluster::with_workers(2);
    let behaviour = Behaviour { fail_attempt_max: 1, ..Behaviour::lasting(4 * SECOND) };
    let job = cluster.submit(Plan::new(1, behaviour));
    cluster.until("it runs", |cluster| cluster.runs(job, 0).len() == 1);
    let first = cluster.runs(job, 0)[0].host;
    cluster.isolate(first);
    cluster.until("its worker is lost", |cluster| cluster.attempt(job, 0) == 2);
    cluster.until("the second attempt runs", |cluster| cluster.runs(job, 0).len() == 2);
    assert_eq!(cluster.worker(first).core.unconfirmed_count(), 1, "the first attempt has failed unheard");
    cluster.heal();
    cluster.until("the failure is forgotten", |cluster| cluster.worker(first).core.unconfirmed_count() == 0);
    assert_eq!((cluster.ended(job, 0), cluster.attempt(job, 0)), (None, 2), "it has no effect on the chunk");
    cluster.settle();
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
    assert_eq!(cluster.runs(job, 0).len(), 2);
}

#[test]
fn higher_attempt_meets_kept_failure() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    let confirmations = cluster.lose(MASTER, w1, Kind::ResultConfirmed);
    let behaviour = Behaviour { fail_attempt_max: 1, ..Behaviour::lasting(SECOND / 4) };
    let mut plan = Plan::new(1, behaviour);
    plan.spec.retries = 1;
    let job = cluster.submit(plan);
    cluster.until("the second attempt is asked for", |cluster| {
        cluster.requests(w1, job).iter().any(|request| request.attempt.get() == 2 && range_of(request).count == 1)
    });
    assert_eq!(cluster.worker(w1).core.unconfirmed_count(), 1, "the failure is kept when the request leaves");
    cluster.until("the second attempt runs", |cluster| cluster.runs(job, 0).len() == 2);
    assert_eq!(cluster.worker(w1).core.unconfirmed_count(), 0, "the higher attempt has confirmed the failure");
    cluster.release(confirmations);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1), (w1, 2)]);
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
}

#[test]
fn an_upload_survives_a_storage_node_that_was_started_again_and_had_begun_it_before() {
    let mut cluster = Cluster::with_workers(1);
    let w1 = cluster.world.worker(1);
    // The first beginning comes late; the second one counts.
    let is_first = Cell::new(true);
    let late = cluster.world.hold(move |envelope| {
        (envelope.from, envelope.to) == (w1, STORAGE) && is_begin(&envelope.frames[0]) && is_first.replace(false)
    });
    let commits = cluster.hold(w1, STORAGE, Kind::PutCommit);
    let job = cluster.submit(Plan::new(1, Behaviour { output_per_mille: 1000, ..Behaviour::default() }));
    cluster.until("all of it is there", |cluster| !cluster.world.held(commits).is_empty());
    cluster.crash(STORAGE);
    cluster.restart(STORAGE);
    cluster.release(late);
    cluster.until("it is begun there", |cluster| cluster.sent(STORAGE, w1, Kind::PutGrant).len() == 2);
    cluster.release(commits);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
    assert_eq!(cluster.sent(w1, STORAGE, Kind::PutBlock).len(), 2, "before and after");
}

/// How often a worker has sent results.
fn results(cluster: &Cluster, worker: sim::network::Host) -> usize {
    let has_results = |frame: &[u8]| matches!(Message::decode(frame), Ok(Message::WorkerStatus(status, _)) if status.num_runs.get() > 0);
    cluster.sent(worker, MASTER, Kind::WorkerStatus).into_iter().filter(|sent| has_results(&sent.frame)).count()
}

fn is_begin(frame: &[u8]) -> bool {
    matches!(Message::decode(frame), Ok(Message::PutBegin(..)))
}
