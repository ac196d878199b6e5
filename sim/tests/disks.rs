//! A full disk stops what it must, and no more.

use sim::client::Plan;
use sim::process::Behaviour;
use sim::scenario::Cluster;
use sim::shell::DiskPace;
use sim::world::{Change, MASTER};
use wire::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_snapshot_without_room_stops_no_requests() {
    let mut cluster = Cluster::with_workers(1);
    // So that the snapshot is still to be written when the disk fills.
    cluster.world.change(Change::DiskPace { host: MASTER, pace: DiskPace::SLOW });
    let waits = |cluster: &Cluster| cluster.master().expect("it is up").disk.saves_next();
    while !waits(&cluster) {
        cluster.submit(Plan::new(1, Behaviour::lasting(600 * SECOND)));
    }
    cluster.world.change(Change::DiskFull { host: MASTER, is_full: true });
    cluster.run(SECOND);
    assert!(waits(&cluster), "nothing else waits for room");
    cluster.world.change(Change::DiskFull { host: MASTER, is_full: false });
    cluster.submit(Plan::new(1, Behaviour::default()));
}
