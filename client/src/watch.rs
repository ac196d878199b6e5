//! Following one job: watch its events from a log index on, ask for its state when they say that it changed.

use wire::event::LogEvent;
use wire::record::JobRecord;
use wire::{
    BATCH_SNAPSHOT, ChunkRange, Duration, FixedPart, Instant, JobId, Message, Reader, U16, U64, Watch, WatchSubject,
};

use crate::{ClientError, Connection};

/// A master answers a watch after its hold time of 1 s at the latest.
const WATCH_RESEND_INTERVAL: Duration = Duration::from_millis(1500);

/// What a watch has told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Where to go on.
    pub index: u64,
    /// Chunks that have ended.
    pub ended: Vec<ChunkRange>,
    /// The job has ended.
    pub job_ended: bool,
    /// Something may have been missed: ask for the state.
    pub is_gap: bool,
}

impl Connection {
    /// Waits, a second or two at most and not beyond `end`, for something to happen to `job` after log index `after`.
    pub fn watch_job(&mut self, job: JobId, after: u64, end: Option<Instant>) -> Result<Change, ClientError> {
        let sender = self.cluster.node;
        let frame = self.ask_until(end, WATCH_RESEND_INTERVAL, self.timeout, |request| {
            let fixed = Watch {
                request: U64::new(request),
                after: U64::new(after),
                subject: U16::new(WatchSubject::Job as u16),
                uuid: job.into(),
                ..Watch::DEFAULT
            };
            fixed.frame(sender, &[])
        })?;
        let Some(frame) = frame else { return Ok(Change { index: after, ..Change::default() }) };
        let Message::WatchBatch(batch, body) = Message::decode(&frame)? else {
            return Err(ClientError::Protocol("a watch is answered by another message".into()));
        };
        // The other parts of a large answer are not waited for: asking for the state tells the same.
        let is_gap = batch.flags.get() & BATCH_SNAPSHOT != 0 || batch.parts.get() > 1;
        let mut change = Change { index: batch.index.get().max(after), is_gap, ..Change::default() };
        let mut from = Reader::new(body);
        for _ in 0..batch.num_events.get() {
            match LogEvent::decode(&mut from)? {
                Some(LogEvent::ChunksEnded { job: of, ranges, .. }) if of == job => change.ended.extend(ranges),
                Some(LogEvent::JobEnded { job: of, .. }) if of == job => change.job_ended = true,
                // Other events, and kinds that only newer masters know, do not end anything of this job.
                _ => {}
            }
        }
        self.index = self.index.max(change.index);
        Ok(change)
    }

    /// Waits until a job has ended and returns its record; `deadline` = until when.
    pub fn wait_job(
        &mut self,
        job: JobId,
        deadline: Option<Instant>,
        mut progress: impl FnMut(&JobRecord),
    ) -> Result<JobRecord, ClientError> {
        const LOOK_INTERVAL: Duration = Duration::from_secs(1);
        let begun = self.clock.now();
        loop {
            let record = self.job(&job.to_string())?;
            progress(&record);
            if record.state.is_terminal() {
                return Ok(record);
            }
            // A job of many chunks changes all the time: while it does, a look every second is enough.
            let look_at = self.clock.now() + LOOK_INTERVAL;
            let mut after = self.index;
            loop {
                let now = self.clock.now();
                if deadline.is_some_and(|deadline| now >= deadline) {
                    let what = format!("job {} has not ended", record.number);
                    return Err(ClientError::TimedOut { what, waited: now.since(begun) });
                }
                let change = self.watch_job(job, after, deadline)?;
                after = change.index;
                if change.job_ended || change.is_gap || self.clock.now() >= look_at {
                    break;
                }
            }
        }
    }
}
