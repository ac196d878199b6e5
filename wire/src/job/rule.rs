//! The rules that a job has to keep: checked by the client before it sends, and by the masters because clients err.

use super::{JobBody, JobSpec, PlaceholderError, check_placeholders};
use crate::{bytes_text, limit};

/// Says which rule a job breaks, with the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("the array is empty: a job has at least one chunk")]
    NoChunks,
    #[error("the array lists {listed} chunks, the request says {chunk_count}")]
    CountDiffers { listed: u64, chunk_count: u32 },
    #[error("there are {entries} lines for {chunk_count} chunks")]
    EntriesDiffer { entries: usize, chunk_count: u32 },
    #[error("no command is given")]
    NoCommand,
    #[error("{what} '{value}' contains a NUL byte")]
    Nul { what: &'static str, value: String },
    #[error("{what} take {size} bytes, the limit is {max}")]
    TooLarge { what: &'static str, size: usize, max: usize },
    #[error("{what} '{value}' is not a name: {why}")]
    Name { what: &'static str, value: String, why: &'static str },
    #[error("two inputs would be '{path}'")]
    InputTwice { path: String },
    #[error("there are {inputs} inputs, the limit is {}: give them as a directory", limit::INPUTS_MAX)]
    TooManyInputs { inputs: usize },
    #[error("{inputs} inputs are described, {uuids} are named")]
    InputsDiffer { inputs: usize, uuids: usize },
    #[error("{what} names input {position}, there are {inputs}")]
    NoSuchInput { what: &'static str, position: u32, inputs: usize },
    #[error("the piece {offset}+{length} is beyond the input of {file_length} bytes")]
    PieceBeyondFile { offset: u64, length: u64, file_length: u64 },
    #[error("input '{path}' is a directory: it has no piece and is not {what}")]
    TreeMisused { path: String, what: &'static str },
    #[error("environment name '{value}' is empty or contains '='")]
    EnvironmentName { value: String },
    #[error("{0}")]
    Placeholder(#[from] PlaceholderError),
    #[error("a chunk needs some cpu: 0 was asked")]
    NoCpu,
}

impl JobSpec {
    /// Checks the whole job as `submit_job` carries it.
    pub fn check(&self, body: &JobBody<'_>, chunk_count: u32) -> Result<(), SpecError> {
        self.check_chunks(chunk_count)?;
        self.check_command(body)?;
        self.check_inputs(body)?;
        for path in [&self.cwd, &self.submit_dir].into_iter().chain(&self.outputs) {
            no_nul("path", path)?;
            check_placeholders(path)?;
        }
        if self.name.len() > limit::NAME_SIZE_MAX {
            return Err(SpecError::TooLarge {
                what: "the job's name",
                size: self.name.len(),
                max: limit::NAME_SIZE_MAX,
            });
        }
        no_nul("name", &self.name)
    }

    fn check_chunks(&self, chunk_count: u32) -> Result<(), SpecError> {
        if chunk_count == 0 {
            return Err(SpecError::NoChunks);
        }
        let listed = self.array.count();
        if listed != u64::from(chunk_count) {
            return Err(SpecError::CountDiffers { listed, chunk_count });
        }
        if !self.entries.is_empty() && self.entries.len() as u64 != u64::from(chunk_count) {
            return Err(SpecError::EntriesDiffer { entries: self.entries.len(), chunk_count });
        }
        if self.cpus_milli == 0 { Err(SpecError::NoCpu) } else { Ok(()) }
    }

    fn check_command(&self, body: &JobBody<'_>) -> Result<(), SpecError> {
        if body.program.is_empty()
            && self.program_input.is_none()
            && self.arguments.first().is_none_or(|name| name.is_empty())
        {
            return Err(SpecError::NoCommand);
        }
        if body.program.len() > limit::PROGRAM_SIZE_MAX {
            return Err(SpecError::TooLarge {
                what: "the program",
                size: body.program.len(),
                max: limit::PROGRAM_SIZE_MAX,
            });
        }
        let mut size = 0usize;
        for argument in &self.arguments {
            no_nul("argument", argument)?;
            check_placeholders(argument)?;
            size = size.saturating_add(argument.len() + 1);
        }
        for (key, value) in &self.environment {
            if key.is_empty() || key.contains(&b'=') {
                return Err(SpecError::EnvironmentName { value: bytes_text(key) });
            }
            no_nul("environment variable", key)?;
            no_nul("environment value", value)?;
            size = size.saturating_add(key.len() + value.len() + 2);
        }
        self.entries.iter().try_for_each(|entry| no_nul("line", entry))?;
        if size > limit::ARGUMENTS_SIZE_MAX {
            return Err(SpecError::TooLarge {
                what: "arguments and environment",
                size,
                max: limit::ARGUMENTS_SIZE_MAX,
            });
        }
        Ok(())
    }

    fn check_inputs(&self, body: &JobBody<'_>) -> Result<(), SpecError> {
        if self.inputs.len() != body.inputs.len() {
            return Err(SpecError::InputsDiffer { inputs: self.inputs.len(), uuids: body.inputs.len() });
        }
        if self.inputs.len() > limit::INPUTS_MAX {
            return Err(SpecError::TooManyInputs { inputs: self.inputs.len() });
        }
        let mut paths: Vec<&[u8]> = Vec::new();
        for input in &self.inputs {
            check_path("input", &input.path)?;
            if let Some((offset, length)) = input.piece
                && offset.checked_add(length).is_none_or(|end| end > input.file_length)
            {
                return Err(SpecError::PieceBeyondFile { offset, length, file_length: input.file_length });
            }
            if input.is_tree && (input.piece.is_some() || input.executable) {
                return Err(SpecError::TreeMisused { path: bytes_text(&input.path), what: "executable" });
            }
            paths.push(&input.path);
        }
        paths.sort_by(|a, b| a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/')));
        // Component by component, so that a path and what is under it are neighbours; both cannot exist.
        for pair in paths.windows(2) {
            if pair[1].strip_prefix(pair[0]).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")) {
                return Err(SpecError::InputTwice { path: bytes_text(pair[1]) });
            }
        }
        for (what, position) in [("standard input", self.stdin_input), ("the program", self.program_input)] {
            let Some(position) = position else { continue };
            match self.inputs.get(position as usize) {
                None => return Err(SpecError::NoSuchInput { what, position, inputs: self.inputs.len() }),
                Some(input) if input.is_tree => {
                    return Err(SpecError::TreeMisused { path: bytes_text(&input.path), what });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn no_nul(what: &'static str, value: &[u8]) -> Result<(), SpecError> {
    if value.contains(&0) { Err(SpecError::Nul { what, value: bytes_text(value) }) } else { Ok(()) }
}

/// A relative path whose every component is a name: not empty, `.` or `..`, no NUL.
fn check_path(what: &'static str, path: &[u8]) -> Result<(), SpecError> {
    let wrong = |why| Err(SpecError::Name { what, value: bytes_text(path), why });
    if path.len() > limit::PATH_SIZE_MAX {
        return wrong("it is longer than 4096 bytes");
    }
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" => return wrong("a component is empty"),
            b"." | b".." => return wrong("`.` and `..` are not names"),
            name if name.contains(&0) => return wrong("it contains a NUL byte"),
            name if name.len() > limit::NAME_SIZE_MAX => return wrong("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::*;
    use crate::{ArraySpec, FileId};

    fn a_spec(words: &[&str]) -> JobSpec {
        JobSpec { arguments: words.iter().map(|word| word.as_bytes().to_vec()).collect(), ..JobSpec::default() }
    }

    fn an_input(path: &str) -> Input {
        Input { file_length: 10, path: path.into(), ..Input::default() }
    }

    fn check(spec: &JobSpec, chunk_count: u32) -> Result<(), SpecError> {
        let inputs = vec![FileId([1; 16]); spec.inputs.len()];
        spec.check(&JobBody { program: b"", inputs: &inputs, spec: b"" }, chunk_count)
    }

    #[test]
    fn a_plain_command_is_fine() {
        assert_eq!(check(&a_spec(&["echo", "{}", "%{CHUNK}"]), 1), Ok(()));
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(check(&a_spec(&[]), 1), Err(SpecError::NoCommand));
        assert_eq!(check(&a_spec(&["x"]), 0), Err(SpecError::NoChunks));
        assert_eq!(check(&a_spec(&["x"]), 2), Err(SpecError::CountDiffers { listed: 1, chunk_count: 2 }));
        assert!(matches!(check(&a_spec(&["x", "%{NO}"]), 1), Err(SpecError::Placeholder(_))));
        assert!(matches!(check(&a_spec(&["x\0"]), 1), Err(SpecError::Nul { .. })));
        let large = "x".repeat(limit::ARGUMENTS_SIZE_MAX);
        assert!(matches!(check(&a_spec(&["x", &large]), 1), Err(SpecError::TooLarge { .. })));
        let array = JobSpec { array: ArraySpec::parse("1-3").unwrap(), entries: vec![vec![]], ..a_spec(&["x"]) };
        assert_eq!(check(&array, 3), Err(SpecError::EntriesDiffer { entries: 1, chunk_count: 3 }));
    }

    #[test]
    fn inputs_are_relative_paths_that_do_not_meet() {
        let with = |paths: &[&str]| JobSpec { inputs: paths.iter().map(|p| an_input(p)).collect(), ..a_spec(&["x"]) };
        assert_eq!(check(&with(&["a b", "d/e\n", "d/f", "ä"]), 1), Ok(()));
        for path in ["", "/a", "a//b", "../a", "a/.", "a\0", "a/"] {
            assert!(matches!(check(&with(&[path]), 1), Err(SpecError::Name { .. })), "{path:?}");
        }
        assert!(matches!(check(&with(&["a", "a"]), 1), Err(SpecError::InputTwice { .. })));
        assert!(matches!(check(&with(&["a", "a/b"]), 1), Err(SpecError::InputTwice { .. })));
        let many: Vec<String> = (0..=limit::INPUTS_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(check(&with(&many[1..]), 1), Ok(()));
        assert_eq!(check(&with(&many), 1), Err(SpecError::TooManyInputs { inputs: limit::INPUTS_MAX + 1 }));
        let mut piece = with(&["a"]);
        piece.inputs[0].piece = Some((5, u64::MAX));
        assert!(matches!(check(&piece, 1), Err(SpecError::PieceBeyondFile { .. })));
    }

    #[test]
    fn a_directory_is_neither_run_nor_read_nor_cut() {
        let tree = Input { is_tree: true, ..an_input("d") };
        let plain = JobSpec { inputs: vec![tree.clone()], ..a_spec(&["x"]) };
        assert_eq!(check(&plain, 1), Ok(()));
        let wrong = [
            JobSpec { stdin_input: Some(0), ..plain.clone() },
            JobSpec { program_input: Some(0), ..plain.clone() },
            JobSpec { inputs: vec![Input { piece: Some((0, 1)), ..tree.clone() }], ..a_spec(&["x"]) },
            JobSpec { inputs: vec![Input { executable: true, ..tree }], ..a_spec(&["x"]) },
        ];
        for spec in wrong {
            assert!(matches!(check(&spec, 1), Err(SpecError::TreeMisused { .. })), "{:?}", check(&spec, 1));
        }
    }
}
