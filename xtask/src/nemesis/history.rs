//! What clients were told, and whether it can all be true.
//!
//! Every answer names the term and the log index at which it was given. So nothing has to be searched for: an answer to
//! a request that began after another was answered stands behind it in the log, and what an entry did once is what
//! everybody is told for ever.

use super::Harm;
use crate::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// Reads and checks this many contradictions; one is enough to fail.
const WRONG_MAX: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Verb {
    /// Told: the job's number and how many chunks it was submitted with.
    Submit,
    /// Told: how many chunks it canceled.
    Cancel,
    /// Told: the job's number.
    Query,
    /// Told: the results of an ended job.
    Wait,
}

/// An answer. Times are microseconds of one clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) verb: Verb,
    /// When its request was first sent.
    pub(super) begun: u64,
    pub(super) ended: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) job: &'a str,
    told: &'a str,
}

/// A request without an answer, or a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure<'a> {
    verb: Verb,
    job: &'a str,
    code: &'a str,
}

/// What a job has come to, long after.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    number: u64,
    chunks: usize,
    results: &'a str,
}

/// How one harm was felt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    pub(super) harm: Harm,
    /// The longest that a submit waited between this harm and the next.
    pub(super) longest: u64,
}

#[derive(Default, Debug)]
pub(super) struct History<'a> {
    pub(super) answers: Vec<Answer<'a>>,
    pub(super) failures: Vec<Failure<'a>>,
    /// Until the clients stopped.
    pub(super) harms: Vec<(u64, Harm)>,
    ends: BTreeMap<&'a str, End<'a>>,
}

impl<'a> History<'a> {
    /// Reads what the load has printed.
    pub(super) fn read(text: &'a str) -> Outcome<History<'a>> {
        let mut history = History::default();
        for line in text.lines() {
            history.read_line(line).ok_or_else(|| format!("no line of a history: `{line}`"))?;
        }
        Ok(history)
    }

    fn read_line(&mut self, line: &'a str) -> Option<()> {
        let mut words = line.splitn(7, ' ');
        let mut word = || words.next();
        match word()? {
            "harm" => {
                let (at, what) = (word()?.parse().ok()?, word()?);
                // That a stopped one goes on again harms nobody.
                self.harms.extend(Harm::ALL.iter().find(|harm| harm.word() == what).map(|harm| (at, *harm)));
            }
            "failed" => {
                let (_begun, _ended) = (word()?, word()?);
                let (verb, job, code) = (verb(word()?)?, word()?, word()?);
                self.failures.push(Failure { verb, job, code });
            }
            "end" => {
                let (job, number, chunks) = (word()?, word()?.parse().ok()?, word()?.parse().ok()?);
                self.ends.insert(job, End { number, chunks, results: word()? });
            }
            other => {
                let verb = verb(other)?;
                let mut number = || word()?.parse().ok();
                let (begun, ended, term, index) = (number()?, number()?, number()?, number()?);
                self.answers.push(Answer { verb, begun, ended, term, index, job: word()?, told: word()? });
            }
        }
        Some(())
    }

    /// The acknowledged jobs, in the order in which they were.
    pub(super) fn submits(&self) -> impl Iterator<Item = &Answer<'a>> {
        self.answers.iter().filter(|answer| answer.verb == Verb::Submit)
    }

    /// Jobs and chunks that there are in the end.
    pub(super) fn ended(&self) -> (usize, usize) {
        (self.ends.len(), self.ends.values().map(|end| end.chunks).sum())
    }

    /// When the clients began and stopped.
    pub(super) fn span(&self) -> (u64, u64) {
        let begun = self.answers.iter().map(|answer| answer.begun).min();
        let ended = self.answers.iter().map(|answer| answer.ended).max();
        (begun.unwrap_or(0), ended.unwrap_or(0))
    }

    /// How long submits were held up by each harm.
    pub(super) fn stalls(&self) -> Vec<Stall> {
        let next = self.harms.iter().skip(1).map(|(at, _)| *at).chain([u64::MAX]);
        let stall = |((at, harm), next): (&(u64, Harm), u64)| {
            let felt = self.submits().filter(|submit| submit.ended > *at && submit.begun < next);
            let waited = felt.map(|submit| submit.ended.min(next) - submit.begun.max(*at));
            let longest = waited.max().unwrap_or(0);
            Stall { harm: *harm, longest }
        };
        self.harms.iter().zip(next).map(stall).collect()
    }

    /// Everything that cannot be: one line each, the first of them only.
    pub(super) fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.check_order(&mut wrong);
        self.check_numbers(&mut wrong);
        self.check_ends(&mut wrong);
        self.check_told(&mut wrong);
        wrong.truncate(WRONG_MAX);
        wrong
    }

    /// What begins after an answer stands behind it: terms and indices never go back, and a new job has a new entry.
    fn check_order(&self, wrong: &mut Vec<String>) {
        let mut begun: Vec<&Answer> = self.answers.iter().collect();
        let mut ended = begun.clone();
        begun.sort_by_key(|answer| answer.begun);
        ended.sort_by_key(|answer| answer.ended);
        let mut ended = ended.into_iter().peekable();
        let (mut term, mut index) = (0, 0);
        for answer in begun {
            while let Some(before) = ended.next_if(|before| before.ended < answer.begun) {
                (term, index) = (term.max(before.term), index.max(before.index));
            }
            let is_old = if answer.verb == Verb::Submit { answer.index <= index } else { answer.index < index };
            if is_old {
                wrong.push(format!("{answer:?} was asked after somebody had been told of index {index}"));
            }
            if answer.term < term {
                wrong.push(format!("{answer:?} was asked after somebody had been answered in term {term}"));
            }
        }
    }

    /// A job has one number, a number one job, and numbers are given in the order of the log.
    fn check_numbers(&self, wrong: &mut Vec<String>) {
        let mut jobs: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
        for submit in self.submits() {
            let number = numbers(submit.told)[0];
            let (job, index) = *jobs.entry(number).or_insert((submit.job, submit.index));
            if job != submit.job {
                wrong.push(format!("{submit:?} has the number of {job}"));
            }
            if index != submit.index {
                wrong.push(format!("{submit:?} was acknowledged at index {index} before"));
            }
        }
        let in_order: Vec<_> = jobs.iter().collect();
        for pair in in_order.windows(2) {
            if pair[0].1.1 > pair[1].1.1 {
                wrong.push(format!("of jobs {} and {} the later has the smaller index", pair[0].0, pair[1].0));
            }
        }
    }

    /// Every acknowledged job is there in the end, with its number and one result for each of its chunks; nothing else is.
    fn check_ends(&self, wrong: &mut Vec<String>) {
        let mut known: BTreeSet<&str> = self.failures.iter().map(|failure| failure.job).collect();
        for submit in self.submits() {
            known.insert(submit.job);
            let told = numbers(submit.told);
            let Some(end) = self.ends.get(submit.job) else {
                wrong.push(format!("{submit:?} is lost"));
                continue;
            };
            if told != [end.number, end.chunks as u64] {
                wrong.push(format!("{submit:?} has become {end:?}"));
            }
        }
        for (job, end) in &self.ends {
            if !known.contains(job) {
                wrong.push(format!("nobody has submitted {job} {end:?}"));
            }
            let results = states(end.results);
            let is_whole = results.iter().enumerate().all(|(at, (chunk, _))| *chunk == at.to_string());
            let has_ended = results.iter().all(|(_, state)| ["finished", "canceled"].contains(state));
            if results.len() != end.chunks || !is_whole || !has_ended {
                wrong.push(format!("not every chunk of {job} has one good result: {end:?}"));
            }
        }
    }

    /// Whoever asked was told what is still so.
    fn check_told(&self, wrong: &mut Vec<String>) {
        let mut canceled: BTreeMap<&str, u64> = BTreeMap::new();
        for answer in &self.answers {
            let Some(end) = self.ends.get(answer.job) else { continue };
            let is_so = match answer.verb {
                Verb::Submit => true,
                Verb::Query => numbers(answer.told) == [end.number],
                Verb::Wait => answer.told == end.results,
                Verb::Cancel => {
                    *canceled.entry(answer.job).or_default() += numbers(answer.told)[0];
                    true
                }
            };
            if !is_so {
                wrong.push(format!("{answer:?}, and it is {end:?}"));
            }
        }
        canceled.extend(self.failures.iter().filter(|failure| failure.verb == Verb::Cancel).map(|it| (it.job, 0)));
        for (job, end) in &self.ends {
            let there = states(end.results).iter().filter(|(_, state)| *state == "canceled").count() as u64;
            // The answer to the request that did it may be lost, and the next one changes nothing more.
            match canceled.get(job) {
                Some(told) if *told <= there => {}
                None if there == 0 => {}
                told => wrong.push(format!("of {job} {there} chunks are canceled, and told were {told:?}")),
            }
        }
        // Only what has been acknowledged is asked about.
        for failure in self.failures.iter().filter(|failure| ["unknown_job", "not_found"].contains(&failure.code)) {
            wrong.push(format!("{failure:?}, which was acknowledged before"));
        }
    }
}

fn verb(word: &str) -> Option<Verb> {
    match word {
        "submit" => Some(Verb::Submit),
        "cancel" => Some(Verb::Cancel),
        "query" => Some(Verb::Query),
        "wait" => Some(Verb::Wait),
        _ => None,
    }
}

/// The numbers in a text that is nothing else.
fn numbers(text: &str) -> Vec<u64> {
    text.split(' ').map(|word| word.parse().unwrap_or(u64::MAX)).collect()
}

/// Number and state of each chunk, of results like `0:finished:1:…,1:canceled`.
fn states(results: &str) -> Vec<(&str, &str)> {
    let parts = |result| {
        let mut parts = str::split(result, ':');
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    };
    results.split(',').map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two jobs, one after the other, the second through another leader.
    const GOOD: &str = "submit 10 20 1 5 a 1 2\nharm 25 kill-leader\nfailed 22 30 submit b no_leader no master\n\
        query 31 40 2 6 a 1\nsubmit 22 50 2 7 b 2 1\ncancel 51 60 2 8 b 1\nwait 30 70 2 9 a 0:finished:1,1:finished:2\n\
        end a 1 2 0:finished:1,1:finished:2\nend b 2 1 0:canceled\n";

    fn wrong_after(from: &str, to: &str) -> usize {
        assert!(GOOD.contains(from));
        History::read(&GOOD.replacen(from, to, 1)).unwrap().check().len()
    }

    #[test]
    fn a_history_that_can_be_has_nothing_wrong() {
        assert_eq!(History::read(GOOD).unwrap().check(), [""; 0]);
        let stalls = History::read(GOOD).unwrap().stalls();
        assert_eq!((stalls.len(), stalls[0].harm, stalls[0].longest), (1, Harm::KillLeader, 25));
    }

    #[test]
    fn each_promise_that_is_broken_is_seen() {
        let broken = [
            ("end b 2 1 0:canceled\n", "", "a job that was acknowledged is lost"),
            ("end b 2", "end b 3", "it has another number"),
            ("end b 2 1 0:canceled", "end b 2 2 0:canceled,1:canceled", "it has more chunks"),
            ("query 31 40 2 6 a 1", "query 31 40 2 4 a 1", "an answer is older than what somebody was told"),
            ("query 31 40 2 6 a 1", "query 31 40 0 6 a 1", "an answer comes from an earlier term"),
            ("query 31 40 2 6 a 1", "query 31 40 2 6 a 2", "a question is told another number"),
            (
                "failed 22 30 submit b no_leader",
                "failed 22 30 query a unknown_job",
                "what was acknowledged is not known",
            ),
            ("submit 22 50 2 7 b 2 1", "submit 22 50 2 5 b 2 1", "a new job stands where an older one does"),
            ("submit 22 50 2 7 b 2 1", "submit 22 50 2 7 b 1 1", "two jobs have one number"),
            ("wait 30 70 2 9 a 0:finished:1", "wait 30 70 2 9 a 0:finished:2", "a result has changed"),
            ("end a 1 2 0:finished:1,1:finished:2", "end a 1 2 0:finished:1,0:finished:2", "a chunk has two results"),
            ("0:canceled", "0:waiting", "a chunk has not ended"),
            ("cancel 51 60 2 8 b 1\n", "", "a chunk is canceled, and nobody did it"),
            ("cancel 51 60 2 8 b 1", "cancel 51 60 2 8 b 2", "fewer are canceled than was told"),
            ("submit 10 20 1 5 a 1 2\n", "", "there is a job that nobody submitted"),
        ];
        for (from, to, what) in broken {
            assert!(wrong_after(from, to) > 0, "{what}");
        }
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for line in ["submit 1 2 3 4 a", "harm x kill-leader", "walk 1 2 3 4 a b", "end a 1"] {
            assert!(History::read(line).is_err(), "{line}");
        }
    }
}
