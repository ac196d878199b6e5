//! Following a job through the log: every chunk is told to end, once, and then the job.

use wire::event::LogEvent;
use wire::{
    BATCH_SNAPSHOT, ChunkSet, Duration, FixedPart, Instant, JobId, NodeId, Reader, U16, U64, Watch, WatchBatch,
};
use wire::{ChunkRange, WatchSubject};

/// A watch that is not answered is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

#[derive(Debug)]
pub struct Watcher {
    job: JobId,
    chunk_count: u32,
    /// The number of the watch that is out.
    pub request: u64,
    /// How far the log is known.
    after: u64,
    /// Chunks that are known to have ended.
    ended: ChunkSet,
    pub again_at: Instant,
    pub is_done: bool,
}

impl Watcher {
    /// Follows a job from the entry that accepted it.
    pub fn new(job: JobId, chunk_count: u32, accepted_at: u64) -> Self {
        Self {
            job,
            chunk_count,
            request: 0,
            after: accepted_at,
            ended: ChunkSet::new(),
            again_at: Instant::default(),
            is_done: false,
        }
    }

    /// The next question.
    pub fn ask(&mut self, sender: NodeId, request: u64, now: Instant) -> Vec<u8> {
        self.request = request;
        self.again_at = now + ANSWER_TIMEOUT;
        let fixed = Watch {
            request: U64::new(request),
            after: U64::new(self.after),
            subject: U16::new(WatchSubject::Job as u16),
            uuid: self.job.into(),
            ..Watch::DEFAULT
        };
        fixed.frame(sender, &[])
    }

    /// Takes the answer to the question that is out.
    pub fn receive(&mut self, batch: &WatchBatch, body: &[u8]) {
        assert_eq!(batch.parts.get(), 1, "jobs here are small");
        let is_snapshot = batch.flags.get() & BATCH_SNAPSHOT != 0;
        if is_snapshot {
            self.ended = ChunkSet::new();
        } else {
            assert_eq!(batch.after.get(), self.after, "an answer does not begin where the question does");
        }
        assert!(batch.index.get() >= self.after, "the log of job {} goes back", self.job);
        self.after = batch.index.get();
        let mut from = Reader::new(body);
        for _ in 0..batch.num_events.get() {
            match LogEvent::decode(&mut from).expect("a master's events are well formed") {
                Some(LogEvent::ChunksEnded { job, ranges, .. }) if job == self.job => self.end(&ranges),
                Some(LogEvent::JobSnapshot { ended, .. }) => {
                    for (_, set) in ended {
                        let ranges: Vec<ChunkRange> = ChunkSet::from_bytes(&set).expect("a set").ranges().collect();
                        self.end(&ranges);
                    }
                }
                Some(LogEvent::JobEnded { job, .. }) if job == self.job => {
                    let told = self.ended.len();
                    assert_eq!(
                        told,
                        u64::from(self.chunk_count),
                        "job {job} ended, and only {told} chunks were told of"
                    );
                    self.is_done = true;
                }
                // Other events tell of attempts and holders.
                Some(_) | None => {}
            }
        }
    }

    fn end(&mut self, ranges: &[ChunkRange]) {
        for range in ranges {
            assert_eq!(self.ended.count_in(*range), 0, "{range:?} of job {} is told to have ended twice", self.job);
            self.ended.insert(*range);
        }
    }
}
