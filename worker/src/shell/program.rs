//! What a program is started with: its arguments, its environment, its directory and its three files.

use std::ffi::{CString, NulError, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use wire::job::{ExpandContext, expand};
use wire::{NodeId, bytes_text};

use super::directory::Directory;
use crate::core::Order;
use crate::slot::Start;

/// What of the worker's own environment programs get, and what they get where it has none.
const INHERITED: &[(&str, &str)] = &[("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/"), ("LANG", "C.UTF-8")];

/// What a program is called that came without a name.
const NAMELESS: &[u8] = b"program";

/// One run of one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunOf<'a> {
    pub(super) order: &'a Order,
    pub(super) run: u64,
    pub(super) chunk: u32,
    pub(super) attempt: u32,
}

/// The part of every program's environment that is the same on this worker.
#[derive(Debug)]
pub(super) struct Surroundings {
    node: String,
    inherited: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Surroundings {
    pub(super) fn new(node: NodeId) -> Self {
        let inherited = INHERITED.iter().map(|(name, default)| {
            let value = std::env::var_os(name).unwrap_or_else(|| (*default).into());
            (name.as_bytes().to_vec(), value.into_vec())
        });
        Self { node: node.to_string(), inherited: inherited.collect() }
    }

    /// What the slot at `slot` has to be told to start this run, or why it cannot be started.
    pub(super) fn start(&self, of: RunOf<'_>, directory: &Directory, slot: &Path) -> Result<Start, String> {
        let spec = &of.order.spec;
        let inputs = inputs_of(of.order, directory);
        let words = self.words(of);
        let context = words.context(of, &self.node);
        let mut arguments: Vec<Vec<u8>> =
            spec.arguments.iter().map(|argument| expand(argument, true, &context)).collect();
        if arguments.is_empty() {
            arguments.push(NAMELESS.to_vec());
        }
        let carries_program = !of.order.program.is_empty() || spec.program_input.is_some();
        let program = if carries_program {
            directory.program(of.order.job).into_os_string().into_vec()
        } else {
            arguments[0].clone()
        };
        let stdin = match spec.stdin_input.and_then(|position| spec.inputs.get(position as usize)) {
            Some(input) => inputs.join(OsStr::from_bytes(&input.path)),
            None => "/dev/null".into(),
        };
        let path = |path: PathBuf| string(path.into_os_string().into_vec());
        Ok(Start {
            run: of.run,
            program: string(program)?,
            arguments: arguments.into_iter().map(string).collect::<Result<_, _>>()?,
            variables: self.variables(of, &words, &inputs, slot)?,
            directory: path(self.working_directory(of, slot))?,
            stdin: path(stdin)?,
            stdout: path(slot.join("spool/stdout"))?,
            stderr: path(slot.join("spool/stderr"))?,
            memory: spec.memory,
        })
    }

    /// Where the program runs.
    pub(super) fn working_directory(&self, of: RunOf<'_>, slot: &Path) -> PathBuf {
        let spec = &of.order.spec;
        if spec.cwd.is_empty() {
            return slot.join("work");
        }
        let expanded = self.expand_path(of, &spec.cwd);
        // One that is not absolute is meant from where the job was submitted.
        Path::new(OsStr::from_bytes(&spec.submit_dir)).join(OsStr::from_bytes(&expanded))
    }

    /// A path of the job with its placeholders replaced.
    pub(super) fn expand_path(&self, of: RunOf<'_>, path: &[u8]) -> Vec<u8> {
        expand(path, false, &self.words(of).context(of, &self.node))
    }

    fn words(&self, of: RunOf<'_>) -> Words {
        Words { job: of.order.job.to_string(), number: of.order.spec.array.number(of.chunk) }
    }

    fn variables(&self, of: RunOf<'_>, words: &Words, inputs: &Path, slot: &Path) -> Result<Vec<CString>, String> {
        let spec = &of.order.spec;
        let mut variables = Variables::default();
        self.inherited.iter().chain(&spec.environment).for_each(|(name, value)| variables.set(name, value));
        let path = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let cpus = u64::from(spec.cpus_milli);
        let own: [(&str, Vec<u8>); 14] = [
            ("ZG_JOB_ID", words.job.clone().into()),
            ("ZG_JOB_NUMBER", of.order.number.to_string().into()),
            ("ZG_CHUNK", words.number.to_string().into()),
            ("ZG_CHUNK_COUNT", of.order.chunk_count.to_string().into()),
            ("ZG_ATTEMPT", of.attempt.to_string().into()),
            ("ZG_INPUT_DIR", path(inputs)),
            ("ZG_OUTPUT_DIR", path(&slot.join("out"))),
            ("ZG_SCRATCH_DIR", path(&slot.join("work"))),
            ("ZG_ERROR_FILE", path(&slot.join("spool/error"))),
            ("ZG_CPUS", thousandths(cpus).into()),
            ("ZG_MEM", spec.memory.to_string().into()),
            ("ZG_NODE_ID", self.node.clone().into()),
            ("ZG_SUBMIT_DIR", spec.submit_dir.clone()),
            ("OMP_NUM_THREADS", (cpus / 1000).max(1).to_string().into()),
        ];
        let is_users = |name: &str| spec.environment.iter().any(|(key, _)| key == name.as_bytes());
        for (name, value) in own {
            // How many threads are best is for the user to say; the rest is ours.
            if name != "OMP_NUM_THREADS" || !is_users(name) {
                variables.set(name.as_bytes(), &value);
            }
        }
        if let Some(entry) = spec.entries.get(of.chunk as usize) {
            variables.set(b"ZG_ENTRY", entry);
        }
        variables.0.into_iter().map(|(name, value)| string([&name[..], b"=", &value[..]].concat())).collect()
    }
}

/// What a run's placeholders stand for.
struct Words {
    job: String,
    /// The number that the array gives the chunk.
    number: u64,
}

impl Words {
    fn context<'a>(&'a self, of: RunOf<'_>, node: &'a str) -> ExpandContext<'a> {
        ExpandContext { job: &self.job, chunk: self.number, attempt: of.attempt, node }
    }
}

/// Where the inputs of a job lie.
fn inputs_of(order: &Order, directory: &Directory) -> PathBuf {
    if order.inputs.is_empty() { directory.empty() } else { directory.inputs(order.job) }
}

/// Variables in the order in which they were first set; the last value counts.
#[derive(Default)]
struct Variables(Vec<(Vec<u8>, Vec<u8>)>);

impl Variables {
    fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
    }
}

/// `1500` thousandths are `1.5`.
fn thousandths(count: u64) -> String {
    let text = format!("{}.{:03}", count / 1000, count % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn string(bytes: Vec<u8>) -> Result<CString, String> {
    CString::new(bytes).map_err(|error: NulError| {
        let value = bytes_text(&error.into_vec());
        format!("'{value}' contains a NUL byte")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::job::JobSpec;
    use wire::{ArraySpec, JobId};

    #[test]
    fn thousandths_of_cpus_read_as_people_write_them() {
        let read: Vec<String> = [1000, 1500, 2000, 250, 10].into_iter().map(thousandths).collect();
        assert_eq!(read, ["1", "1.5", "2", "0.25", "0.01"]);
    }

    fn an_order(spec: JobSpec) -> Order {
        Order { job: JobId([1; 16]), number: 7, chunk_count: 3, program: Vec::new(), inputs: Vec::new(), spec }
    }

    fn start_of(order: &Order) -> Start {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(root.path()).expect("it is ours");
        let surroundings = Surroundings::new(NodeId([2; 16]));
        let of = RunOf { order, run: 1, chunk: 1, attempt: 2 };
        surroundings.start(of, &directory, Path::new("/slot/0")).expect("it has no NUL")
    }

    fn variable(start: &Start, name: &str) -> Option<String> {
        let text = |variable: &CString| variable.to_str().expect("ours are text").to_owned();
        start.variables.iter().map(text).find_map(|it| it.strip_prefix(&format!("{name}=")).map(str::to_owned))
    }

    #[test]
    fn a_program_sees_its_chunk_by_the_arrays_number() {
        let spec = JobSpec {
            arguments: vec![b"echo".to_vec(), b"{} %{ATTEMPT}".to_vec()],
            array: ArraySpec::parse("5-9:2").expect("an array"),
            entries: vec![b"a".to_vec(), b"b c".to_vec(), b"d".to_vec()],
            environment: vec![(b"LANG".to_vec(), b"de".to_vec()), (b"ZG_CHUNK".to_vec(), b"no".to_vec())],
            cpus_milli: 1500,
            ..JobSpec::default()
        };
        let start = start_of(&an_order(spec));
        assert_eq!(start.program.as_c_str(), c"echo");
        assert_eq!(start.arguments[1].as_c_str(), c"7 2");
        let values = ["ZG_CHUNK", "ZG_ENTRY", "ZG_JOB_NUMBER", "ZG_CHUNK_COUNT", "ZG_CPUS", "OMP_NUM_THREADS", "LANG"]
            .map(|name| variable(&start, name).unwrap_or_default());
        assert_eq!(values, ["7", "b c", "7", "3", "1.5", "1", "de"]);
        assert_eq!(variable(&start, "ZG_OUTPUT_DIR").as_deref(), Some("/slot/0/out"));
        assert_eq!(start.directory.as_c_str(), c"/slot/0/work");
        assert_eq!(start.stdin.as_c_str(), c"/dev/null");
    }

    #[test]
    fn a_program_that_came_with_the_job_runs_under_the_name_it_was_given() {
        let mut order = an_order(JobSpec { arguments: vec![b"./count".to_vec()], ..JobSpec::default() });
        order.program = b"#!/bin/sh".to_vec();
        let start = start_of(&order);
        assert!(start.program.to_str().expect("text").ends_with("/program"), "{start:?}");
        assert_eq!(start.arguments[0].as_c_str(), c"./count");
        order.spec.arguments.clear();
        assert_eq!(start_of(&order).arguments[0].as_c_str(), c"program");
    }

    #[test]
    fn a_relative_directory_is_meant_from_where_the_job_was_submitted() {
        let spec = JobSpec { cwd: b"a/%{CHUNK}".to_vec(), submit_dir: b"/home/u".to_vec(), ..JobSpec::default() };
        let array = ArraySpec::parse("1-3").expect("an array");
        let start = start_of(&an_order(JobSpec { array, ..spec }));
        assert_eq!(start.directory.as_c_str(), c"/home/u/a/2");
    }
}
