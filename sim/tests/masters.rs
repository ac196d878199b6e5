//! A change of leader loses nothing and repeats nothing, and the group needs none of the other tiers.

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::Cluster;
use sim::world::STORAGE;
use wire::{ChunkState, Duration, Kind, Message};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn duplicate_result_after_leader_change() {
    let mut cluster = Cluster::with_three_masters(1);
    let w1 = cluster.world.worker(1);
    let confirmed =
        cluster.world.lose(move |envelope| envelope.to == w1 && envelope.frames[0][0] == Kind::ResultConfirmed as u8);
    let job = cluster.submit(Plan::new(1, Behaviour::lasting(SECOND)));
    cluster.until("the result is in the log", |cluster| cluster.ended(job, 0).is_some());
    let old = cluster.leader().expect("one leads");
    cluster.crash(old);
    cluster.until("another leads", |cluster| cluster.leader().is_some());
    let new = cluster.leader().expect("one leads");
    let is_result = |sent: &&sim::world::Sent| matches!(Message::decode(&sent.frame), Ok(Message::WorkerStatus(status, _)) if status.num_runs.get() > 0);
    let told =
        |cluster: &Cluster, master| cluster.sent(w1, master, Kind::WorkerStatus).into_iter().filter(is_result).count();
    cluster.until("the worker says it again to the new leader", |cluster| told(cluster, new) > 0);
    assert!(told(&cluster, old) > 0);
    cluster.release(confirmed);
    cluster.settle();
    assert_eq!(cluster.history(job, 0), [(w1, 1)]);
    assert_eq!(cluster.ended(job, 0), Some(ChunkState::Finished));
    assert_eq!(cluster.world.checker.history.state.jobs[&job].results.count(), 1);
}

#[test]
fn snapshot_while_storage_is_down() {
    let mut cluster = Cluster::with_three_masters(1);
    cluster.crash(STORAGE);
    let leader = cluster.leader().expect("one leads");
    let late = cluster.world.masters().into_iter().find(|master| *master != leader).expect("there are three");
    cluster.crash(late);
    let before = cluster.index();
    // Each job is an entry at least, and a log of so many has been cut.
    for _ in 0..500 {
        cluster.submit(Plan::new(1, Behaviour::default()));
    }
    assert!(cluster.index() > before + 500);
    cluster.restart(late);
    cluster.until("the late one has what all have", |cluster| cluster.applied(late) == cluster.index());
    let sent = cluster.world.sent.as_ref().expect("a scenario keeps what is sent");
    let pieces = sent.iter().filter(|sent| sent.from == late && sent.frame[0] == Kind::FileRequest as u8);
    assert!(pieces.clone().count() > 0 && pieces.clone().all(|sent| sent.to != STORAGE), "it came from a master");
    cluster.settle();
}
