//! Submitting and canceling jobs.

use wire::job::{JobBody, JobSpec};
use wire::{
    CancelJob, ChunkRange, ErrorCode, FileId, FixedPart, JobId, Message, NodeState, Role, SubmitJob, U32, U64, limit,
};

use crate::{ClientError, Connection};

/// A job that has not been submitted.
#[derive(Debug, Clone)]
pub struct JobDraft {
    /// Its name for ever, and the idempotency key: the same draft submitted again is the same job.
    pub job: JobId,
    pub spec: JobSpec,
    /// The program's bytes, if they travel in the request.
    pub program: Vec<u8>,
    /// The files of `spec.inputs`, in that order.
    pub inputs: Vec<FileId>,
}

/// A job that is in the log of a majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    pub job: JobId,
    pub number: u64,
    /// The log index by which it is there.
    pub index: u64,
}

impl JobDraft {
    /// A draft of one chunk that runs `arguments`.
    pub fn new(arguments: Vec<Vec<u8>>) -> Self {
        let spec = JobSpec { arguments, ..JobSpec::default() };
        Self { job: JobId::now(), spec, program: Vec::new(), inputs: Vec::new() }
    }

    /// How many chunks the array lists.
    pub fn chunk_count(&self) -> Result<u32, ClientError> {
        let count = self.spec.array.count();
        u32::try_from(count).map_err(|_| {
            ClientError::Request(format!("the array has {count} chunks, the limit is {}", limit::CHUNKS_MAX))
        })
    }

    /// Checks every rule that does not need the cluster, before anything is copied or sent.
    pub fn check(&self) -> Result<(), ClientError> {
        let size = self.size();
        // The rules below name the part that is too large, if one alone is.
        let body = JobBody { program: &self.program, inputs: &self.inputs, spec: &[] };
        self.spec.check(&body, self.chunk_count()?)?;
        if size > limit::SUBMIT_SIZE_MAX {
            let max = limit::SUBMIT_SIZE_MAX;
            let what = "program, arguments, environment, lines and inputs together";
            return Err(ClientError::Request(format!("{what} take {size} bytes, the limit is {max}")));
        }
        Ok(())
    }

    /// Bytes of the request, counted without building it; a little more than they will be.
    fn size(&self) -> usize {
        const LENGTH_SIZE_MAX: usize = 5;
        const FIXED_SIZE_MAX: usize = 1024;
        let spec = &self.spec;
        let lists = [&spec.arguments, &spec.entries, &spec.outputs];
        let lists = lists.into_iter().flatten().map(|item| item.len() + LENGTH_SIZE_MAX);
        let pairs = spec.environment.iter().map(|(key, value)| key.len() + value.len() + 2 * LENGTH_SIZE_MAX);
        let inputs = spec.inputs.iter().map(|input| input.path.len() + 96);
        let array = spec.array.parts.len() * 30;
        let texts = spec.name.len() + spec.cwd.len() + spec.submit_dir.len();
        FIXED_SIZE_MAX + self.program.len() + texts + array + lists.chain(pairs).chain(inputs).sum::<usize>()
    }
}

impl Connection {
    /// Fails when no worker that is up can ever run a chunk of `draft`; the masters decide it again.
    pub fn check_fit(&mut self, draft: &JobDraft) -> Result<(), ClientError> {
        let nodes = self.nodes()?;
        let workers = nodes.iter().filter(|node| node.role == Role::Worker && node.state == NodeState::Up);
        match draft.spec.misfit(workers) {
            Some(detail) => Err(ClientError::Refused { code: ErrorCode::Impossible, detail }),
            None => Ok(()),
        }
    }

    /// Submits a job; returns when a majority has it in its log. Its files have to be known to the masters.
    pub fn submit(&mut self, draft: &JobDraft) -> Result<Submitted, ClientError> {
        draft.check()?;
        let chunk_count = draft.chunk_count()?;
        let sender = self.cluster.node;
        let body = JobBody::encode(&draft.program, &draft.inputs, &draft.spec);
        let frame = self.ask(|request| {
            let fixed = SubmitJob {
                job_uuid: draft.job.into(),
                program_length: U64::new(draft.program.len() as u64),
                num_input_files: U64::new(draft.inputs.len() as u64),
                request: U64::new(request),
                chunk_count: U32::new(chunk_count),
                ..SubmitJob::DEFAULT
            };
            fixed.frame(sender, &body)
        })?;
        let Message::JobAccepted(accepted, _) = Message::decode(&frame)? else {
            return Err(ClientError::Protocol("a submit is answered by another message".into()));
        };
        self.index = self.index.max(accepted.index.get());
        Ok(Submitted { job: draft.job, number: accepted.number.get(), index: accepted.index.get() })
    }

    /// Cancels the chunks of `range` that have not ended, or all; returns how many.
    pub fn cancel(&mut self, job: JobId, range: Option<ChunkRange>) -> Result<u64, ClientError> {
        let sender = self.cluster.node;
        let range = range.unwrap_or(ChunkRange::new(0, u32::MAX));
        let frame = self.ask(|request| {
            let fixed = CancelJob {
                request: U64::new(request),
                job_uuid: job.into(),
                first: U32::new(range.first),
                count: U32::new(range.count),
                ..CancelJob::DEFAULT
            };
            fixed.frame(sender, &[])
        })?;
        let Message::Committed(committed, _) = Message::decode(&frame)? else {
            return Err(ClientError::Protocol("a cancel is answered by another message".into()));
        };
        self.index = self.index.max(committed.index.get());
        Ok(committed.changed.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ArraySpec;

    fn a_draft() -> JobDraft {
        JobDraft::new(vec![b"true".to_vec()])
    }

    #[test]
    fn a_plain_command_may_be_submitted() {
        a_draft().check().unwrap();
    }

    #[test]
    fn arguments_beyond_the_limit_are_refused_with_size_and_limit() {
        let mut draft = a_draft();
        draft.spec.arguments.push(vec![b'x'; 2 << 20]);
        let error = draft.check().unwrap_err().to_string();
        assert!(error.contains("arguments and environment take 2097158 bytes, the limit is 1048576"), "{error}");
    }

    #[test]
    fn lines_beyond_the_limit_are_refused_with_size_and_limit() {
        let mut draft = a_draft();
        draft.spec.entries = vec![vec![b'x'; 1000]; 3000];
        draft.spec.array = ArraySpec::plain(3000);
        let error = draft.check().unwrap_err().to_string();
        assert!(error.contains("lines") && error.contains("the limit is 2031616"), "{error}");
    }

    #[test]
    fn the_size_is_counted_and_never_too_low() {
        let mut draft = a_draft();
        draft.spec.entries = vec![b"line".to_vec(); 500];
        draft.spec.environment = vec![(b"K".to_vec(), vec![b'v'; 300])];
        draft.program = vec![0; 999];
        let built = JobBody::encode(&draft.program, &draft.inputs, &draft.spec).len();
        assert!(draft.size() >= built && draft.size() < built + 8192, "{} {built}", draft.size());
    }
}
