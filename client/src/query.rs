//! Reading the cluster's state: jobs, chunks, files, nodes, status; page by page until all is here.

use wire::record::{ChunkRecord, FileRecord, JobRecord, NodeInputs, NodeRecord, StatusRecord};
use wire::{
    DecodeError, ErrorCode, FileId, FixedPart, JobId, Message, NodeId, QUERY_ALL, Query, Reader, Subject, U16, U32,
    U64, UuidHalves,
};

use crate::{ClientError, Connection, JobSelector};

/// Records asked for at once.
const PAGE_RECORDS_MAX: u32 = 10_000;

/// One question; the rest of it is the page.
#[derive(Clone, Copy)]
struct Question<'a> {
    subject: Subject,
    flags: u32,
    uuid: UuidHalves,
    selector: &'a str,
}

impl<'a> Question<'a> {
    fn about(subject: Subject) -> Self {
        Self { subject, flags: 0, uuid: UuidHalves::default(), selector: "" }
    }

    fn frame(&self, sender: NodeId, index: u64, after: u64, limit: u32, request: u64) -> Vec<u8> {
        let fixed = Query {
            request: U64::new(request),
            subject: U16::new(self.subject as u16),
            flags: U32::new(self.flags),
            uuid: self.uuid,
            after: U64::new(after),
            limit: U32::new(limit),
            index: U64::new(index),
            ..Query::DEFAULT
        };
        fixed.frame(sender, self.selector.as_bytes())
    }
}

type Decode<T> = fn(&mut Reader<'_>) -> Result<T, DecodeError>;

impl Connection {
    /// Jobs in the order of their numbers; `all` = ended ones too.
    pub fn jobs(&mut self, all: bool) -> Result<Vec<JobRecord>, ClientError> {
        let flags = if all { QUERY_ALL } else { 0 };
        self.query_all(Question { flags, ..Question::about(Subject::Jobs) }, JobRecord::decode)
    }

    /// The job that `selector` names: a number, a uuid, a unique prefix of one, or `last`.
    pub fn job(&mut self, selector: &str) -> Result<JobRecord, ClientError> {
        let question = Question { selector, ..Question::about(Subject::Job) };
        let (mut jobs, _) = self.query(question, 0, 1, JobRecord::decode)?;
        jobs.pop().ok_or_else(|| ClientError::NotFound(format!("no job '{selector}'")))
    }

    /// The jobs that `selector` names. Of `all`, those that have not ended unless `ended_too`.
    pub fn select_jobs(&mut self, selector: &JobSelector, ended_too: bool) -> Result<Vec<JobRecord>, ClientError> {
        match selector {
            JobSelector::One(text) => Ok(vec![self.job(text)?]),
            JobSelector::All => self.jobs(ended_too),
            JobSelector::Numbers(numbers) => {
                let mut jobs = self.jobs(true)?;
                // A range takes what there is; a number by itself names one job.
                let mut named = numbers.parts.iter().filter(|(first, last, _)| first == last).map(|(first, ..)| *first);
                if let Some(missing) = named.find(|number| jobs.iter().all(|job| job.number != *number)) {
                    return Err(ClientError::NotFound(format!("no job '{missing}'")));
                }
                jobs.retain(|job| numbers.index(job.number).is_some());
                if jobs.is_empty() {
                    return Err(ClientError::NotFound(format!("no job '{selector}'")));
                }
                Ok(jobs)
            }
        }
    }

    /// At most `limit` chunks of a job from index `first` on, in order.
    pub fn chunks_from(&mut self, job: JobId, first: u32, limit: u32) -> Result<Vec<ChunkRecord>, ClientError> {
        let question = Question { uuid: job.into(), ..Question::about(Subject::Chunks) };
        Ok(self.query(question, first.into(), limit, ChunkRecord::decode)?.0)
    }

    /// All chunks of a job.
    pub fn chunks(&mut self, job: JobId) -> Result<Vec<ChunkRecord>, ClientError> {
        self.query_all(Question { uuid: job.into(), ..Question::about(Subject::Chunks) }, ChunkRecord::decode)
    }

    /// The record of a file; `None` = the masters know no such file.
    pub fn file(&mut self, file: FileId) -> Result<Option<FileRecord>, ClientError> {
        let question = Question { uuid: file.into(), ..Question::about(Subject::File) };
        match self.query(question, 0, 1, FileRecord::decode) {
            Ok((mut files, _)) => Ok(files.pop()),
            Err(ClientError::Refused { code: ErrorCode::FileUnknown, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As `file`, of several at once.
    pub(crate) fn each_file(&mut self, files: &[FileId]) -> Result<Vec<Option<FileRecord>>, ClientError> {
        let (sender, index) = (self.cluster.node, self.index);
        let about = |file: FileId| Question { uuid: file.into(), ..Question::about(Subject::File) };
        let answers = self.ask_each(files.len(), |at, request| about(files[at]).frame(sender, index, 0, 1, request));
        let mut records = Vec::with_capacity(files.len());
        for (file, answer) in files.iter().zip(answers) {
            let record = match answer.as_deref().map(Message::decode) {
                Some(Ok(Message::Answer(answer, body))) if answer.num_records.get() == 1 => {
                    self.index = self.index.max(answer.index.get());
                    Some(FileRecord::decode(&mut Reader::new(body))?)
                }
                Some(Ok(Message::Error(error, _))) if error.code.get() == ErrorCode::FileUnknown as u16 => None,
                _ => self.file(*file)?,
            };
            records.push(record);
        }
        Ok(records)
    }

    /// All files.
    pub fn files(&mut self) -> Result<Vec<FileRecord>, ClientError> {
        self.query_all(Question::about(Subject::Files), FileRecord::decode)
    }

    /// All nodes.
    pub fn nodes(&mut self) -> Result<Vec<NodeRecord>, ClientError> {
        self.query_all(Question::about(Subject::Nodes), NodeRecord::decode)
    }

    /// How workers' programs have read their inputs.
    pub fn inputs(&mut self) -> Result<Vec<NodeInputs>, ClientError> {
        self.query_all(Question::about(Subject::Inputs), NodeInputs::decode)
    }

    /// The state of the whole.
    pub fn status(&mut self) -> Result<StatusRecord, ClientError> {
        let (mut status, _) = self.query(Question::about(Subject::Status), 0, 1, StatusRecord::decode)?;
        status.pop().ok_or_else(|| ClientError::Protocol("the status has no record".into()))
    }

    fn query_all<T>(&mut self, question: Question<'_>, decode: Decode<T>) -> Result<Vec<T>, ClientError> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let (records, next) = self.query(question, after, PAGE_RECORDS_MAX, decode)?;
            all.extend(records);
            if next == 0 {
                return Ok(all);
            }
            if next <= after {
                return Err(ClientError::Protocol(format!("a list goes back from {after} to {next}")));
            }
            after = next;
        }
    }

    /// One page: its records and the key to continue after, 0 at the end.
    fn query<T>(
        &mut self,
        question: Question<'_>,
        after: u64,
        limit: u32,
        decode: Decode<T>,
    ) -> Result<(Vec<T>, u64), ClientError> {
        let (sender, index) = (self.cluster.node, self.index);
        let frame = self.ask_within(self.timeout.min(self.query_timeout), |request| {
            question.frame(sender, index, after, limit, request)
        })?;
        let Message::Answer(answer, body) = Message::decode(&frame)? else {
            return Err(ClientError::Protocol("a query is answered by another message".into()));
        };
        self.index = self.index.max(answer.index.get());
        let mut from = Reader::new(body);
        let mut records = Vec::new();
        for _ in 0..answer.num_records.get() {
            records.push(decode(&mut from)?);
        }
        Ok((records, answer.next.get()))
    }
}
