//! How people name jobs and chunks: `5`, `1,3,5-8`, `2-10:2`, `all`, `last`, a prefix of a uuid; `36.1`, `36.[1-3]`.

use std::fmt;
use std::str::FromStr;

use wire::{ArraySpec, JobId};

/// Says why a text names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{value}' names no {what}: expected e.g. {examples}")]
pub struct SelectorError {
    pub value: String,
    pub what: &'static str,
    pub examples: &'static str,
}

/// Which jobs are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobSelector {
    /// A number, a uuid, a unique prefix of one, or `last`; the masters resolve it.
    One(String),
    /// Job numbers.
    Numbers(ArraySpec),
    All,
}

/// Which chunks of one job are meant, by the numbers that its array gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSelector {
    pub job: String,
    /// `None` = all of them.
    pub chunks: Option<ArraySpec>,
}

/// The shortest prefix of a uuid that the masters take.
const PREFIX_LENGTH_MIN: usize = 4;

impl FromStr for JobSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        match text {
            "all" => return Ok(Self::All),
            "last" => return Ok(Self::One(text.into())),
            _ => {}
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // Uuids of our time begin with 0, numbers of jobs never do: so `0192-3` is a prefix and `5-8` a range.
        let is_prefix = text.parse::<JobId>().is_ok()
            || text.len() >= PREFIX_LENGTH_MIN
                && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
                && (text.starts_with('0') || text.bytes().any(|byte| byte.is_ascii_alphabetic()));
        if is_number || is_prefix {
            return Ok(Self::One(text.into()));
        }
        let examples = "5, 1,3,5-8, all, last, or 4 or more digits of its uuid";
        let wrong = || SelectorError { value: text.into(), what: "job", examples };
        if text.contains('%') {
            return Err(wrong());
        }
        ArraySpec::parse(text).map(Self::Numbers).map_err(|_| wrong())
    }
}

impl FromStr for ChunkSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let examples = "36 (all of job 36), 36.1, 36.[1-3,7] or last.1";
        let wrong = || SelectorError { value: text.into(), what: "chunk", examples };
        let names_one = |job: &str| matches!(job.parse(), Ok(JobSelector::One(_)));
        let Some((job, chunks)) = text.split_once('.') else {
            return if names_one(text) { Ok(Self { job: text.into(), chunks: None }) } else { Err(wrong()) };
        };
        let list = match chunks.strip_prefix('[') {
            Some(inside) => inside.strip_suffix(']').ok_or_else(wrong)?,
            None if chunks.bytes().all(|byte| byte.is_ascii_digit()) => chunks,
            None => return Err(wrong()),
        };
        if !names_one(job) || list.contains('%') {
            return Err(wrong());
        }
        Ok(Self { job: job.into(), chunks: Some(ArraySpec::parse(list).map_err(|_| wrong())?) })
    }
}

impl ChunkSelector {
    /// True when the chunk that people call `number` is meant.
    pub fn includes(&self, number: u64) -> bool {
        self.chunks.as_ref().is_none_or(|chunks| chunks.index(number).is_some())
    }
}

impl fmt::Display for JobSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::Numbers(array) => f.write_str(&array_text(array)),
            Self::All => f.write_str("all"),
        }
    }
}

/// An array as `--array` would take it.
pub fn array_text(array: &ArraySpec) -> String {
    let part = |(first, last, step): &(u64, u64, u64)| match (first == last, step) {
        (true, _) => first.to_string(),
        (false, 1) => format!("{first}-{last}"),
        (false, step) => format!("{first}-{last}:{step}"),
    };
    let cap = if array.running_max == 0 { String::new() } else { format!("%{}", array.running_max) };
    array.parts.iter().map(part).collect::<Vec<_>>().join(",") + &cap
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> JobSelector {
        JobSelector::Numbers(ArraySpec::parse(text).unwrap())
    }

    #[test]
    fn a_job_is_named_by_number_uuid_prefix_or_last() {
        for text in ["5", "12", "last", "0192", "0192-7", "01927a3e-0000-7000-8000-000000000001", "beef"] {
            assert_eq!(text.parse(), Ok(JobSelector::One(text.into())), "{text}");
        }
        assert_eq!("all".parse(), Ok(JobSelector::All));
    }

    #[test]
    fn several_jobs_are_named_by_their_numbers() {
        for text in ["1,3,5-8", "2-10:2", "5-8"] {
            assert_eq!(text.parse(), Ok(numbers(text)), "{text}");
            assert_eq!(text.parse::<JobSelector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_names_nothing_is_told_with_examples() {
        for text in ["", "x", "1,,2", "8-5", "1-3%2", "beg", "-"] {
            let error = text.parse::<JobSelector>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}' names no job")) && error.contains("last"), "{error}");
        }
    }

    #[test]
    fn chunks_are_named_within_a_job() {
        let one: ChunkSelector = "36.1".parse().unwrap();
        assert!(one.includes(1) && !one.includes(2) && one.job == "36");
        let some: ChunkSelector = "last.[1-3,7]".parse().unwrap();
        assert!(some.includes(3) && some.includes(7) && !some.includes(4) && some.job == "last");
        let all: ChunkSelector = "0192".parse().unwrap();
        assert!(all.includes(99) && all.job == "0192");
        for text in ["36.", "36.[", "36.[1", "36.x", ".1", "36.1-3", "36.[1%2]", "all", "1,2", "x.1"] {
            assert!(text.parse::<ChunkSelector>().is_err(), "{text}");
        }
    }
}
