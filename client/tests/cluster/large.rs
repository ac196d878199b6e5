//! A job of very many chunks.

use std::time::Duration;

use crate::dev::Dev;

#[test]
fn very_many_chunks_are_one_job() {
    // A build without optimization does the same, slowly.
    let count: u64 = if cfg!(debug_assertions) { 20_000 } else { 100_000 };
    let dev = Dev::start(2);
    let job = dev.submit(&["--array", &format!("1-{count}"), "--", "true"]);
    let record = dev.wait(&job, Duration::from_secs(300));
    assert_eq!(record["state"], "finished", "{record}");
    assert_eq!(record["chunks"]["finished"], count);
    let chunks = dev.chunks(&job);
    assert_eq!(chunks.len() as u64, count);
    assert!(chunks.iter().zip(1..).all(|(chunk, number)| chunk["chunk"] == number && chunk["state"] == "finished"));
    println!("{count} chunks, submitted {}, finished {}", record["submitted_at"], record["finished_at"]);
    dev.stop();
}

#[test]
fn a_million_chunks_are_submitted_at_once_and_canceled() {
    let dev = Dev::start(1);
    let job = dev.submit(&["--array", "1-1000000", "--", "sleep", "1"]);
    assert_eq!(dev.job(&job)["chunks"]["total"], 1_000_000);
    dev.zg(&["job", "cancel", &job]).expect_success();
    let record = dev.wait(&job, Duration::from_secs(60));
    assert_eq!(record["state"], "canceled");
    dev.stop();
}
