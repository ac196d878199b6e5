//! What the masters have promised to clients, held against the log.
//!
//! Every acknowledgement names a log index. So an order of all promises is known without asking anybody: what was
//! promised before something else began has the smaller index.

use std::collections::BTreeMap;

use wire::{Instant, Message};

use super::history::History;
use crate::client::{Client, Request};
use crate::network::Host;
use crate::shell::Process;
use crate::world::Machine;

#[derive(Debug, Default)]
pub struct Promises {
    /// Acknowledgements of each client that were looked at.
    seen: BTreeMap<Host, usize>,
    /// The highest index promised up to each time, in the order of time.
    highest: Vec<(Instant, u64)>,
    /// Submissions, cancels and recorded files that were acknowledged.
    pub acknowledged: u64,
}

impl Promises {
    pub fn on_client(&mut self, host: Host, client: &Client, history: &History) {
        assert_eq!(client.complaints, [""; 0], "a good request was refused");
        let seen = self.seen.entry(host).or_default();
        while let Some(acknowledgement) = client.acknowledgements.get(*seen) {
            *seen += 1;
            let (began_at, index) = (acknowledgement.began_at, acknowledgement.index);
            let before = self.highest.partition_point(|(at, _)| *at < began_at);
            let earlier = before.checked_sub(1).map_or(0, |last| self.highest[last].1);
            let request = &acknowledgement.request;
            match request {
                Request::Submit { job } => {
                    assert!(index > earlier, "{request:?} has index {index}, and {earlier} was promised before it");
                    let known = history.state.jobs.get(job);
                    let known = known.unwrap_or_else(|| panic!("job {job} was acknowledged and is not in the log"));
                    assert_eq!(known.index, index, "job {job} is acknowledged at another index than it has");
                    assert!(is_same_job(&known.frame, &client.jobs[job].frame), "job {job} is not as it was submitted");
                }
                Request::Record { file } => {
                    assert!(index >= earlier, "{request:?} has index {index}, and {earlier} was promised before it");
                    assert!(history.state.files.contains_key(&file.file), "{file:?} was acknowledged and is not known");
                }
                Request::Cancel { job } => {
                    assert!(index >= earlier, "{request:?} has index {index}, and {earlier} was promised before it");
                    assert!(!history.state.jobs[job].is_live(), "job {job} was canceled and is still live");
                }
                Request::Query { .. } => {
                    assert!(index >= earlier, "a read reflects index {index}, and {earlier} was promised before it");
                }
            }
            match request {
                Request::Submit { .. } | Request::Record { .. } | Request::Cancel { .. } => {
                    self.acknowledged += 1;
                    let highest = self.highest.last().map_or(0, |(_, index)| *index).max(index);
                    self.highest.push((acknowledgement.at, highest));
                }
                // A read promises nothing about what is there; it may be ahead of what was acknowledged.
                Request::Query { .. } => {}
            }
        }
    }

    pub fn check_end(&self, machines: &[Machine], history: &History) {
        for machine in machines {
            let Some(Process::Client(client)) = machine.process.as_ref() else { continue };
            assert!(client.is_settled(), "{} has not been answered in the calm", machine.name);
            for (id, job) in &client.jobs {
                let (number, _) = job.accepted.unwrap_or_else(|| panic!("job {id} has not been accepted in the calm"));
                let known = &history.state.jobs[id];
                assert_eq!(known.number, number);
                assert!(is_same_job(&known.frame, &job.frame), "job {id} is not as it was submitted");
            }
        }
    }
}

/// True when two `submit_job`s ask for the same.
fn is_same_job(known: &[u8], submitted: &[u8]) -> bool {
    let (Ok(Message::SubmitJob(a, a_body)), Ok(Message::SubmitJob(b, b_body))) =
        (Message::decode(known), Message::decode(submitted))
    else {
        return false;
    };
    (a.job_uuid, a.chunk_count, a_body) == (b.job_uuid, b.chunk_count, b_body)
}
