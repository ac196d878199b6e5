//! What is taken back from a worker is neither lost nor run twice.

use sim::client::Plan;
use sim::network::Host;
use sim::process::Behaviour;
use sim::scenario::Cluster;
use sim::world::{FilterId, LOAD_BALANCER, MASTER};
use wire::{ChunkRange, Duration, JobId, Kind, Message, Retract};

const SECOND: Duration = Duration::from_secs(1);

/// One worker has the six chunks of a job, of which two run; the other worker has just come and idles, so that the load
/// balancer takes some back. `before` is called before the other worker comes.
fn taking_back<R>(before: impl FnOnce(&mut Cluster, Host) -> R) -> (Cluster, JobId, Host, Host, R) {
    let mut cluster = Cluster::with_workers(2);
    let (w1, w2) = (cluster.world.worker(1), cluster.world.worker(2));
    cluster.crash(w2);
    // Its old boot is forgotten, so that all goes to the other.
    cluster.run(4 * SECOND);
    let held = before(&mut cluster, w1);
    let job = cluster.submit(Plan::new(6, Behaviour::lasting(SECOND)));
    cluster.until("all is given to one worker", |cluster| (0..6).all(|chunk| cluster.was_asked(w1, job, chunk)));
    cluster.restart(w2);
    cluster.until("something is taken back", |cluster| !retracts(cluster, w1).is_empty());
    (cluster, job, w1, w2, held)
}

fn retracts(cluster: &Cluster, worker: Host) -> Vec<Retract> {
    let of_frame = |sent: &sim::world::Sent| match Message::decode(&sent.frame) {
        Ok(Message::Retract(retract, _)) => Some(*retract),
        _ => None,
    };
    cluster.sent(LOAD_BALANCER, worker, Kind::Retract).into_iter().filter_map(of_frame).collect()
}

fn range(retract: &Retract) -> ChunkRange {
    ChunkRange::new(retract.first.get(), retract.count.get())
}

fn each_ran_once(cluster: &Cluster, job: JobId) {
    for chunk in 0..6 {
        assert_eq!(cluster.runs(job, chunk).len(), 1, "chunk {chunk} ran {:?}", cluster.history(job, chunk));
    }
}

#[test]
fn retract_crosses_start() {
    let hold = |cluster: &mut Cluster, w1| cluster.hold(LOAD_BALANCER, w1, Kind::Retract);
    let (mut cluster, job, w1, w2, filter) = taking_back(hold);
    let range = range(&retracts(&cluster, w1)[0]);
    cluster.until("all of it has started", |cluster| range.chunks().all(|chunk| cluster.runs(job, chunk).len() == 1));
    cluster.release(filter);
    cluster.until("it is answered", |cluster| !cluster.sent(w1, LOAD_BALANCER, Kind::RetractAnswer).is_empty());
    cluster.run(Duration::from_millis(100));
    assert!(range.chunks().all(|chunk| cluster.counts_as_held(w1, job, chunk)), "what has started is not given back");
    cluster.settle();
    assert!(range.chunks().all(|chunk| cluster.history(job, chunk) == [(w1, 1)] && !cluster.was_asked(w2, job, chunk)));
    each_ran_once(&cluster, job);
}

#[test]
fn retract_overtakes_request() {
    let hold = |cluster: &mut Cluster, w1| cluster.hold(LOAD_BALANCER, w1, Kind::WorkerRequest);
    let (mut cluster, job, w1, _, filter) = taking_back(hold);
    cluster.run(2 * SECOND);
    assert!(retracts(&cluster, w1).len() > 1, "it arrives, and is said again");
    assert!(cluster.sent(w1, LOAD_BALANCER, Kind::RetractAnswer).is_empty(), "a number before it is missing");
    let range = range(&retracts(&cluster, w1)[0]);
    assert!(range.chunks().all(|chunk| cluster.counts_as_held(w1, job, chunk)));
    cluster.release(filter);
    cluster.settle();
    each_ran_once(&cluster, job);
}

#[test]
fn retract_answer_waits_for_log() {
    let hold = |cluster: &mut Cluster, w1| cluster.hold(LOAD_BALANCER, w1, Kind::Retract);
    let (mut cluster, job, w1, w2, retract) = taking_back(hold);
    let range = range(&retracts(&cluster, w1)[0]);
    let batches: FilterId = cluster.hold(MASTER, LOAD_BALANCER, Kind::WatchBatch);
    cluster.until("it has run and is forgotten", |cluster| {
        cluster.worker(w1).core.unconfirmed_count() == 0
            && range.chunks().all(|chunk| cluster.ended(job, chunk).is_some())
    });
    // The worker holds nothing of the range now; the load balancer has not seen why.
    cluster.release(retract);
    cluster.until("it is answered", |cluster| !cluster.sent(w1, LOAD_BALANCER, Kind::RetractAnswer).is_empty());
    cluster.run(3 * SECOND);
    assert!(range.chunks().all(|chunk| cluster.counts_as_held(w1, job, chunk)), "an answer ahead of the log counts");
    assert!(range.chunks().all(|chunk| !cluster.was_asked(w2, job, chunk)));
    cluster.release(batches);
    cluster.settle();
    each_ran_once(&cluster, job);
}

#[test]
fn lost_retract_answer_is_asked_again() {
    let lose = |cluster: &mut Cluster, w1| cluster.lose(w1, LOAD_BALANCER, Kind::RetractAnswer);
    let (mut cluster, job, w1, w2, filter) = taking_back(lose);
    let first = retracts(&cluster, w1)[0];
    // The next number tells that this one was processed; its answer is lost all the same.
    cluster.run(SECOND);
    let range = range(&first);
    let queued =
        |cluster: &Cluster| range.chunks().all(|chunk| cluster.worker(w1).core.holding_of(job, chunk).is_none());
    assert!(queued(&cluster), "the worker gave it back");
    assert!(range.chunks().all(|chunk| cluster.counts_as_held(w1, job, chunk) && !cluster.was_asked(w2, job, chunk)));
    cluster.release(filter);
    cluster.until("it is given to the other", |cluster| range.chunks().all(|chunk| cluster.was_asked(w2, job, chunk)));
    let again = retracts(&cluster, w1).iter().filter(|retract| retract.sequence == first.sequence).count();
    assert!(again > 1, "it was not asked again");
    cluster.settle();
    assert!(range.chunks().all(|chunk| cluster.history(job, chunk) == [(w2, 1)]));
    each_ran_once(&cluster, job);
}
