//! The job body: what `submit_job` and `worker_request` carry after their fixed part.
//!
//! First the program's bytes (none if the spec names the program), then the uuids of the input files, 16 bytes each,
//! as the seed has them; then the spec: everything that the seed's struct has no room for. The same bytes travel from
//! the client through the log to the load balancer and the worker; nobody on the way writes them anew.

mod fit;
mod placeholder;
mod rule;

pub use placeholder::{ExpandContext, PlaceholderError, check_placeholders, expand};
pub use rule::SpecError;

use crate::{ArraySpec, Cause, DecodeError, FileId, Hash, Reader, Writer};

/// A job body cut into its three parts, where they lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobBody<'a> {
    pub program: &'a [u8],
    pub inputs: &'a [FileId],
    /// Empty from a peer that knows only the seed's struct.
    pub spec: &'a [u8],
}

impl<'a> JobBody<'a> {
    /// Cuts `body`; the lengths come from the fixed part.
    pub fn decode(body: &'a [u8], program_length: u64, num_input_files: u64) -> Result<Self, DecodeError> {
        let beyond = |_| DecodeError::Body { what: "program or inputs are beyond the body" };
        let mut from = Reader::new(body);
        let program = from.raw(usize::try_from(program_length).map_err(beyond)?)?;
        let inputs = from.slice::<FileId>(usize::try_from(num_input_files).map_err(beyond)?)?;
        Ok(Self { program, inputs, spec: from.rest() })
    }

    /// The bytes that `decode` cuts.
    pub fn encode(program: &[u8], inputs: &[FileId], spec: &JobSpec) -> Vec<u8> {
        let mut to = Writer::new();
        to.raw(program);
        inputs.iter().for_each(|input| {
            to.plain(input);
        });
        spec.encode(&mut to);
        to.bytes
    }
}

/// An environment variable: name and value.
pub type Variable = (Vec<u8>, Vec<u8>);

/// An input as the program sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Input {
    /// The whole file's hash; nil when the client does not know it.
    pub hash: Hash,
    /// The whole file's length in bytes.
    pub file_length: u64,
    /// The piece meant, `(offset, length)`; `None` = the whole file.
    pub piece: Option<(u64, u64)>,
    /// Relative path under `$ZG_INPUT_DIR`.
    pub path: Vec<u8>,
    /// Permission bits that matter: 0o111 set = executable.
    pub executable: bool,
    /// The file is a tree, and what it lists is found under `path`.
    pub is_tree: bool,
}

/// Everything about a job but its program's bytes and its inputs' uuids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// What people call it; may be empty.
    pub name: Vec<u8>,
    /// The command: the program's name (looked up on the worker unless the body carries the program), then arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Added to the worker's base environment.
    pub environment: Vec<Variable>,
    /// Empty = the run's private scratch directory.
    pub cwd: Vec<u8>,
    /// Where `zg submit` was called.
    pub submit_dir: Vec<u8>,
    pub array: ArraySpec,
    /// `--each-line`: one for each chunk, or none.
    pub entries: Vec<Vec<u8>>,
    /// In the order of the uuids in the body.
    pub inputs: Vec<Input>,
    /// The position in `inputs` of what standard input reads; `None` = /dev/null.
    pub stdin_input: Option<u32>,
    /// The position in `inputs` of the program, when it is a stored file.
    pub program_input: Option<u32>,
    /// `--output GLOB`: each has to match in the working directory.
    pub outputs: Vec<Vec<u8>>,
    /// Thousandths of a cpu that one chunk needs.
    pub cpus_milli: u32,
    /// Bytes that one chunk needs; 0 = not said.
    pub memory: u64,
    /// Higher is more important.
    pub priority: i32,
    /// Milliseconds a chunk may run; 0 = no limit.
    pub time_limit_ms: u64,
    /// How often a failure whose cause is in `retry_on` is tried again.
    pub retries: u32,
    /// Bits of `Cause`.
    pub retry_on: u32,
    /// Exit codes that `retry_on` `exit` is limited to; empty = any.
    pub retry_exit_codes: Vec<u8>,
    /// Lost attempts until the chunk fails.
    pub crash_limit: u32,
    /// The job is aborted when more chunks than this have failed; `None` = never.
    pub max_fails: Option<u32>,
    /// Bytes of outputs that one chunk may keep; 0 = the worker's own limit.
    pub output_size_max: u64,
    /// Inputs are fetched whole before they are asked for, however large.
    pub prefetch: bool,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            name: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            cwd: Vec::new(),
            submit_dir: Vec::new(),
            array: ArraySpec::plain(1),
            entries: Vec::new(),
            inputs: Vec::new(),
            stdin_input: None,
            program_input: None,
            outputs: Vec::new(),
            cpus_milli: 1000,
            memory: 0,
            priority: 0,
            time_limit_ms: 0,
            retries: 0,
            retry_on: Cause::Exit.bit() | Cause::Signal.bit() | Cause::Oom.bit() | Cause::Timeout.bit(),
            retry_exit_codes: Vec::new(),
            crash_limit: 3,
            max_fails: None,
            output_size_max: 0,
            prefetch: false,
        }
    }
}

/// The version of the spec's layout, first in it.
const VERSION: u8 = 1;

impl JobSpec {
    fn encode(&self, to: &mut Writer) {
        to.raw(&[VERSION]).string(&self.name);
        encode_list(&self.arguments, to);
        to.varint(self.environment.len() as u64);
        for (key, value) in &self.environment {
            to.string(key).string(value);
        }
        to.string(&self.cwd).string(&self.submit_dir);
        encode_array(&self.array, to);
        encode_list(&self.entries, to);
        to.varint(self.inputs.len() as u64);
        self.inputs.iter().for_each(|input| encode_input(input, to));
        encode_option(self.stdin_input, to);
        encode_option(self.program_input, to);
        encode_list(&self.outputs, to);
        to.varint(self.cpus_milli.into())
            .varint(self.memory)
            .raw(&self.priority.to_le_bytes())
            .varint(self.time_limit_ms);
        to.varint(self.retries.into()).varint(self.retry_on.into()).string(&self.retry_exit_codes);
        to.varint(self.crash_limit.into());
        encode_option(self.max_fails, to);
        to.varint(self.output_size_max).raw(&[u8::from(self.prefetch)]);
    }

    /// Reads the spec; what follows it is of a newer version and skipped. Empty bytes = the seed's struct alone.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let from = &mut Reader::new(bytes);
        if from.raw(1)?[0] != VERSION {
            return Err(DecodeError::Body { what: "the job's spec is of another version" });
        }
        Ok(Self {
            name: from.string()?.to_vec(),
            arguments: decode_list(from)?,
            environment: decode_pairs(from)?,
            cwd: from.string()?.to_vec(),
            submit_dir: from.string()?.to_vec(),
            array: decode_array(from)?,
            entries: decode_list(from)?,
            inputs: decode_inputs(from)?,
            stdin_input: decode_option(from)?,
            program_input: decode_option(from)?,
            outputs: decode_list(from)?,
            cpus_milli: from.varint32()?,
            memory: from.varint()?,
            priority: i32::from_le_bytes(from.raw(4)?.try_into().expect("four bytes were read")),
            time_limit_ms: from.varint()?,
            retries: from.varint32()?,
            retry_on: from.varint32()?,
            retry_exit_codes: from.string()?.to_vec(),
            crash_limit: from.varint32()?,
            max_fails: decode_option(from)?,
            output_size_max: from.varint()?,
            // An older client's spec ends here.
            prefetch: !from.is_empty() && from.raw(1)?[0] & 1 != 0,
        })
    }
}

fn encode_list(list: &[Vec<u8>], to: &mut Writer) {
    to.varint(list.len() as u64);
    list.iter().for_each(|item| {
        to.string(item);
    });
}

fn decode_list(from: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, DecodeError> {
    let count = from.varint()?;
    // Each item takes a byte at least, so a false count ends with the bytes, not with the memory.
    (0..count).map(|_| Ok(from.string()?.to_vec())).collect()
}

fn decode_pairs(from: &mut Reader<'_>) -> Result<Vec<Variable>, DecodeError> {
    let count = from.varint()?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        pairs.push((from.string()?.to_vec(), from.string()?.to_vec()));
    }
    Ok(pairs)
}

fn encode_option(value: Option<u32>, to: &mut Writer) {
    to.varint(value.map_or(0, |value| u64::from(value) + 1));
}

fn decode_option(from: &mut Reader<'_>) -> Result<Option<u32>, DecodeError> {
    let value = from.varint()?.checked_sub(1).map(u32::try_from).transpose();
    value.map_err(|_| DecodeError::Body { what: "a number is larger than 32 bits" })
}

fn encode_input(input: &Input, to: &mut Writer) {
    let flags = u8::from(input.executable) | u8::from(input.piece.is_some()) << 1 | u8::from(input.is_tree) << 2;
    to.plain(&input.hash).varint(input.file_length).raw(&[flags]);
    if let Some((offset, length)) = input.piece {
        to.varint(offset).varint(length);
    }
    to.string(&input.path);
}

fn decode_inputs(from: &mut Reader<'_>) -> Result<Vec<Input>, DecodeError> {
    let count = from.varint()?;
    let mut inputs = Vec::new();
    for _ in 0..count {
        let (hash, file_length, flags) = (*from.plain()?, from.varint()?, from.raw(1)?[0]);
        let piece = if flags & 2 != 0 { Some((from.varint()?, from.varint()?)) } else { None };
        let path = from.string()?.to_vec();
        let (executable, is_tree) = (flags & 1 != 0, flags & 4 != 0);
        inputs.push(Input { hash, file_length, piece, path, executable, is_tree });
    }
    Ok(inputs)
}

pub(crate) fn encode_array(array: &ArraySpec, to: &mut Writer) {
    to.varint(array.parts.len() as u64);
    for (first, last, step) in &array.parts {
        to.varint(*first).varint(last - first).varint(*step);
    }
    to.varint(array.running_max.into());
}

pub(crate) fn decode_array(from: &mut Reader<'_>) -> Result<ArraySpec, DecodeError> {
    let wrong = DecodeError::Body { what: "an array is malformed" };
    let count = from.varint()?;
    let mut parts = Vec::new();
    let mut chunks = 0u128;
    for _ in 0..count {
        let (first, span, step) = (from.varint()?, from.varint()?, from.varint()?);
        let last = first.checked_add(span).ok_or(wrong)?;
        chunks += u128::from(span.checked_div(step).ok_or(wrong)?) + 1;
        parts.push((first, last, step));
    }
    if chunks > u128::from(crate::limit::CHUNKS_MAX) {
        return Err(wrong);
    }
    Ok(ArraySpec { parts, running_max: from.varint32()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_body_gives_back_its_parts() {
        let spec = JobSpec {
            name: b"count".to_vec(),
            arguments: vec![b"sh".to_vec(), b"-c".to_vec(), b"a\nb \xff".to_vec()],
            environment: vec![(b"K".to_vec(), b"V=1".to_vec())],
            array: ArraySpec::parse("1-10:3%2").unwrap(),
            inputs: vec![Input {
                hash: Hash([3; 32]),
                file_length: 9,
                piece: Some((1, 2)),
                path: b"in put".to_vec(),
                executable: true,
                is_tree: true,
            }],
            stdin_input: Some(0),
            priority: -5,
            max_fails: Some(0),
            prefetch: true,
            ..JobSpec::default()
        };
        let inputs = [FileId([7; 16])];
        let body = JobBody::encode(b"#!/bin/sh\n", &inputs, &spec);
        let parts = JobBody::decode(&body, 10, 1).unwrap();
        assert_eq!((parts.program, parts.inputs), (&b"#!/bin/sh\n"[..], &inputs[..]));
        assert_eq!(JobSpec::decode(parts.spec).unwrap(), spec);
    }

    #[test]
    fn a_spec_from_before_prefetch_asks_for_none() {
        let mut to = Writer::new();
        JobSpec::default().encode(&mut to);
        assert_eq!(to.bytes.pop(), Some(0));
        assert_eq!(JobSpec::decode(&to.bytes).unwrap(), JobSpec::default());
    }

    #[test]
    fn the_seeds_struct_alone_is_one_plain_chunk() {
        let body = JobBody::decode(b"prog", 4, 0).unwrap();
        assert_eq!(JobSpec::decode(body.spec).unwrap(), JobSpec::default());
        assert!(JobBody::decode(b"prog", u64::MAX, 0).is_err());
        assert!(JobBody::decode(b"prog", 0, u64::MAX).is_err());
    }
}
