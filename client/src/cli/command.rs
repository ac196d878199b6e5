//! Makes a job of flags and a command: reads what is here, looks up what is stored, uploads what is missing.
//!
//! In that order, so that whatever is wrong is found before the first byte has been sent.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use client::quantity::size_text;
use client::{ClientError, Connection, InputSource, JobDraft, LocalTree, Staged, Trust};
use wire::job::Input;
use wire::{ArraySpec, FileAddress, FileId, JobId, bytes_text, limit};

use super::failure::Failure;
use super::flags::Flags;
use super::output::Output;
use super::{script, shape};

/// Names that the program and standard input have among the inputs; no `--input` may be called so.
const PROGRAM_PATH: &[u8] = b".zg/program";
const STDIN_PATH: &[u8] = b".zg/stdin";
/// Stored files that are told one by one.
const NOTES_MAX: usize = 20;

/// A job on its way: the draft, and the files of this machine that it needs.
struct Builder<'a> {
    connection: &'a mut Connection,
    draft: JobDraft,
    /// What each source is, so that one that is named twice is read once.
    known: BTreeMap<InputSource, Known>,
}

/// A source that has been looked at.
enum Known {
    File(Staged),
    Tree(LocalTree),
}

impl Known {
    fn staged(&self) -> Staged {
        match self {
            Known::File(staged) => *staged,
            Known::Tree(tree) => tree.staged(),
        }
    }
}

/// Makes the job that `flags` and `command` ask for, with its files stored.
pub fn prepare(
    connection: &mut Connection,
    flags: Flags,
    command: &[OsString],
    output: &Output,
) -> Result<JobDraft, Failure> {
    let arguments = arguments(command)?;
    let program = Program::of(&command[0])?;
    let flags = match &program {
        Program::Shipped { path, head } => flags.over(script::flags(path, head)?),
        Program::Named => flags,
    };
    let mut builder = Builder { connection, draft: JobDraft::new(arguments), known: BTreeMap::new() };
    builder.set_plain(&flags)?;
    builder.set_chunks(&flags)?;
    if let Program::Shipped { path, head } = program {
        builder.set_program(path, head)?;
    }
    builder.set_inputs(&flags)?;
    builder.draft.check()?;
    builder.upload(output)?;
    Ok(builder.draft)
}

/// The command as bytes. What can never fit is refused before it is copied.
fn arguments(command: &[OsString]) -> Result<Vec<Vec<u8>>, Failure> {
    let size: usize = command.iter().map(|word| word.len() + 1).sum();
    if size > limit::ARGUMENTS_SIZE_MAX {
        let max = limit::ARGUMENTS_SIZE_MAX;
        return Err(Failure::usage(format!("the arguments take {size} bytes, the limit is {max}"))
            .hint("Write them to a file, and pass it with --input, or with --each-line for one chunk a line"));
    }
    Ok(command.iter().map(|word| word.as_bytes().to_vec()).collect())
}

/// Where the program is.
enum Program {
    /// A file here that travels with the job; `head` = its first bytes, all of them if they fit in a request.
    Shipped { path: PathBuf, head: Vec<u8> },
    /// Looked up on the worker.
    Named,
}

impl Program {
    /// A relative path with a `/` that is a readable file is shipped; everything else is the worker's to find.
    fn of(word: &OsStr) -> Result<Program, Failure> {
        let path = Path::new(word);
        let is_local = path.is_relative() && word.as_bytes().contains(&b'/') && path.is_file();
        if !is_local {
            return Ok(Program::Named);
        }
        let mut head = Vec::new();
        let failed = |error| ClientError::Local { what: path.display().to_string(), why: format!("{error}") };
        let file = File::open(path).map_err(failed)?;
        file.take(limit::PROGRAM_SIZE_MAX as u64 + 1).read_to_end(&mut head).map_err(failed)?;
        Ok(Program::Shipped { path: path.to_owned(), head })
    }
}

impl Builder<'_> {
    fn set_plain(&mut self, flags: &Flags) -> Result<(), Failure> {
        let here = std::env::current_dir()
            .map_err(|error| Failure::new("local_file", format!("the current directory is not known: {error}")))?;
        self.draft.job = flags.idempotency_key.unwrap_or_else(JobId::now);
        let spec = &mut self.draft.spec;
        spec.name = flags.name.clone().unwrap_or_default().into_vec();
        spec.environment = flags.env.iter().map(|pair| environment(pair)).collect::<Result<_, _>>()?;
        spec.cwd = flags.cwd.as_ref().map_or(Vec::new(), |cwd| here.join(cwd).into_os_string().into_vec());
        spec.submit_dir = here.into_os_string().into_vec();
        spec.outputs = flags.output.iter().map(|glob| output_glob(glob)).collect::<Result<_, _>>()?;
        spec.cpus_milli = flags.cpus.unwrap_or(spec.cpus_milli);
        spec.memory = flags.mem.unwrap_or(0);
        spec.priority = flags.priority.unwrap_or(0);
        spec.time_limit_ms = flags.time_limit.unwrap_or(0);
        spec.retries = flags.retries.unwrap_or(0);
        if let Some(retry_on) = &flags.retry_on {
            spec.retry_on = retry_on.causes;
            spec.retry_exit_codes = retry_on.exit_codes.clone();
        }
        spec.crash_limit = flags.crash_limit.unwrap_or(spec.crash_limit);
        spec.max_fails = flags.max_fails;
        spec.prefetch = flags.prefetch;
        Ok(())
    }

    fn set_chunks(&mut self, flags: &Flags) -> Result<(), Failure> {
        let spec = &mut self.draft.spec;
        if let Some(path) = &flags.each_line {
            spec.entries = lines(path)?;
            if spec.entries.is_empty() {
                let message = format!("{} has no lines: a job has at least one chunk", path.display());
                return Err(Failure::usage(message));
            }
            spec.array = ArraySpec::plain(u32::try_from(spec.entries.len()).unwrap_or(u32::MAX));
        }
        if let Some(array) = &flags.array {
            spec.array = array.clone();
        }
        Ok(())
    }

    fn set_program(&mut self, path: PathBuf, head: Vec<u8>) -> Result<(), Failure> {
        if head.is_empty() {
            return Err(Failure::usage(format!("the program {} is empty", path.display())));
        }
        if head.len() <= limit::PROGRAM_SIZE_MAX {
            self.draft.program = head;
            return Ok(());
        }
        let position = self.add(InputSource::Local(path), PROGRAM_PATH.to_vec())?;
        self.draft.spec.inputs[position as usize].executable = true;
        self.draft.spec.program_input = Some(position);
        Ok(())
    }

    fn set_inputs(&mut self, flags: &Flags) -> Result<(), Failure> {
        // The program and standard input travel as inputs too.
        let count = flags.input.len() + self.draft.inputs.len() + usize::from(flags.stdin.is_some());
        if count > limit::INPUTS_MAX {
            let max = limit::INPUTS_MAX;
            return Err(Failure::usage(format!("{count} inputs are given, the limit is {max}"))
                .hint("Give them as one directory: --input DIR"));
        }
        if let Some(word) = &flags.stdin {
            let position = self.add(source(word)?, STDIN_PATH.to_vec())?;
            if self.draft.spec.inputs[position as usize].is_tree {
                let message = format!("{} is a directory: standard input reads a file", Path::new(word).display());
                return Err(Failure::usage(message).hint("Pass it with --input, and read it in $ZG_INPUT_DIR"));
            }
            self.draft.spec.stdin_input = Some(position);
        }
        for word in &flags.input {
            let (source, path) = source_and_path(word)?;
            self.add(source, path)?;
        }
        Ok(())
    }

    /// Adds an input and returns its position.
    fn add(&mut self, source: InputSource, path: Vec<u8>) -> Result<u32, Failure> {
        let staged = match self.known.get(&source) {
            Some(known) => known.staged(),
            None => {
                let known = match &source {
                    InputSource::Local(path) if path.is_dir() => Known::Tree(LocalTree::read(path)?),
                    InputSource::Local(_) | InputSource::Stored(_) => Known::File(self.connection.describe(&source)?),
                };
                let staged = known.staged();
                self.known.insert(source, known);
                staged
            }
        };
        let position = self.draft.inputs.len() as u32;
        self.draft.inputs.push(staged.file);
        self.draft.spec.inputs.push(Input {
            hash: staged.hash,
            file_length: staged.length,
            piece: staged.piece,
            path,
            executable: staged.executable,
            is_tree: staged.is_tree,
        });
        Ok(position)
    }

    /// Stores what the masters do not know yet; each content once.
    fn upload(&mut self, output: &Output) -> Result<(), Failure> {
        if self.known.keys().any(|source| matches!(source, InputSource::Local(_))) {
            // The masters would say so too, but only after the files are stored.
            self.connection.check_fit(&self.draft)?;
        }
        let mut files: Vec<(&Path, Staged)> = Vec::new();
        let mut trees: Vec<(&Path, &LocalTree)> = Vec::new();
        let mut seen: BTreeSet<FileId> = BTreeSet::new();
        for (source, known) in &self.known {
            let InputSource::Local(path) = source else { continue };
            match known {
                _ if !seen.insert(known.staged().file) => {}
                Known::File(staged) => files.push((path, *staged)),
                Known::Tree(tree) => trees.push((path, tree)),
            }
        }
        self.connection.on_progress = output.transfer_progress(self.connection.clock());
        let is_new = self.connection.upload_each(&files)?;
        let new: Vec<_> = files.iter().zip(is_new).filter(|(_, is_new)| *is_new).map(|(file, _)| file).collect();
        if new.len() > NOTES_MAX {
            let size = size_text(new.iter().map(|(_, staged)| staged.length).sum());
            output.note(&format!("stored {} files ({size})", new.len()));
        } else {
            for (path, staged) in new {
                let size = size_text(staged.length);
                output.note(&format!("stored {} ({size}) as {}", path.display(), staged.file));
            }
        }
        for (path, tree) in trees {
            self.connection.on_progress = output.transfer_progress(self.connection.clock());
            if self.connection.put_tree(tree, Trust::Known)? {
                let (size, file) = (shape::tree_text(tree.tree()), tree.staged().file);
                output.note(&format!("stored {} ({size}) as {file}", path.display()));
            }
        }
        self.connection.on_progress = None;
        Ok(())
    }
}

/// A pattern that something in the working directory can match.
fn output_glob(glob: &OsStr) -> Result<Vec<u8>, Failure> {
    let bytes = glob.as_bytes();
    let refused = |why: &str, hint: &str| {
        Err(Failure::usage(format!("--output '{}': {why}", bytes_text(bytes)))
            .hint(format!("{hint}, as --output '*.txt'")))
    };
    let inside = "Name files by their place in the working directory";
    if bytes.is_empty() {
        return refused("it names nothing", inside);
    }
    if bytes.starts_with(b"/") || bytes.split(|byte| *byte == b'/').any(|component| component == b"..") {
        return refused("only what lies in the chunk's working directory is kept", inside);
    }
    if bytes.split(|byte| *byte == b'/').any(has_open_bracket) {
        return refused("a '[' is not closed", "Close it, or write [[] for the character");
    }
    Ok(bytes.to_vec())
}

/// True when a class has no end. A bracket that comes first in a class is a member of it, as in a shell.
fn has_open_bracket(component: &[u8]) -> bool {
    let mut rest = component;
    while let Some(open) = rest.iter().position(|byte| *byte == b'[') {
        rest = &rest[open + 1..];
        rest = rest.strip_prefix(b"!").or(rest.strip_prefix(b"^")).unwrap_or(rest);
        match rest.iter().skip(1).position(|byte| *byte == b']') {
            Some(close) => rest = &rest[close + 2..],
            None => return true,
        }
    }
    false
}

/// `NAME=VALUE`, or the value that `NAME` has here.
fn environment(pair: &OsStr) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let bytes = pair.as_bytes();
    if matches!(bytes.first(), None | Some(b'=')) {
        return Err(Failure::usage(format!("--env '{}' names no variable", bytes_text(bytes)))
            .hint("Give it a name and a value: --env NAME=VALUE"));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == b'=') {
        return Ok((bytes[..at].to_vec(), bytes[at + 1..].to_vec()));
    }
    let value = std::env::var_os(pair).ok_or_else(|| {
        Failure::usage(format!("--env {}: there is no such variable here", bytes_text(bytes)))
            .hint("Give it a value: --env NAME=VALUE")
    })?;
    Ok((bytes.to_vec(), value.into_vec()))
}

/// The lines of a file without their ends. One that cannot fit in a request is not read to its end.
fn lines(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| local_failure(path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let max = limit::SUBMIT_SIZE_MAX as u64;
    let too_large = |length: u64| {
        Failure::usage(format!("the lines of {} take {length} bytes, the limit is {max}", path.display()))
            .hint("Store the file and pass it with --input; each chunk finds its part by $ZG_CHUNK")
    };
    if length > max {
        return Err(too_large(length));
    }
    let mut text = Vec::new();
    // A pipe tells no length.
    (&mut file).take(max + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > max {
        return Err(too_large(text.len() as u64));
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    } else if text.is_empty() {
        return Ok(Vec::new());
    }
    Ok(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect())
}

/// A file here, or the address of a stored one.
fn source(word: &OsStr) -> Result<InputSource, Failure> {
    if let Some(address) = word.to_str().and_then(|text| text.parse::<FileAddress>().ok()) {
        return Ok(InputSource::Stored(address));
    }
    let path = Path::new(word);
    match path.metadata() {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => Ok(InputSource::Local(path.to_owned())),
        Ok(_) => {
            let message = format!("{} is neither a regular file nor a directory", path.display());
            Err(Failure::usage(message).hint(format!("See: ls -la {}", path.display())))
        }
        Err(error) => Err(local_failure(path, &error)),
    }
}

/// Cuts `SRC[:DST]`. A `:` may be part of a file's name, so a whole word that names a file is one.
fn source_and_path(word: &OsStr) -> Result<(InputSource, Vec<u8>), Failure> {
    let bytes = word.as_bytes();
    let is_address = |bytes: &[u8]| str::from_utf8(bytes).is_ok_and(|text| text.parse::<FileAddress>().is_ok());
    let colon = match bytes.iter().position(|byte| *byte == b':') {
        Some(first) if is_address(&bytes[..first]) => Some(first),
        Some(_) if Path::new(word).exists() => None,
        Some(_) => bytes.iter().rposition(|byte| *byte == b':'),
        None => None,
    };
    if let Some(at) = colon {
        return Ok((source(OsStr::from_bytes(&bytes[..at]))?, bytes[at + 1..].to_vec()));
    }
    let source = source(word)?;
    let path = match &source {
        // `.` is called as the directory that it is.
        InputSource::Local(path) => match path.file_name() {
            Some(name) => name.as_bytes().to_vec(),
            None => path.canonicalize().ok().as_deref().and_then(Path::file_name).unwrap_or(word).as_bytes().to_vec(),
        },
        InputSource::Stored(address) => address.file.to_string().into_bytes(),
    };
    Ok((source, path))
}

/// A file of this machine cannot be read.
pub fn local_failure(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => local_trouble(path, format!("no file {}", path.display())).exit(3),
        _ => local_trouble(path, format!("cannot read {}: {error}", path.display())),
    }
}

/// Something is wrong with a file of this machine.
pub fn local_trouble(path: &Path, message: String) -> Failure {
    // The nearest folder that is there.
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    Failure::new("local_file", message).hint(format!("See: ls -la {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "ffffffff-ffff-8fff-bfff-ffffffffffff@1+2";

    #[test]
    fn an_input_has_the_name_of_its_file_unless_another_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("a b");
        let colon = dir.path().join("c:d");
        std::fs::write(&plain, "").unwrap();
        std::fs::write(&colon, "").unwrap();
        let name_of = |word: &OsStr| source_and_path(word).unwrap_or_else(|error| panic!("{error:?}")).1;
        assert_eq!(name_of(plain.as_os_str()), b"a b");
        assert_eq!(name_of(colon.as_os_str()), b"c:d");
        let mut named = plain.into_os_string();
        named.push(":x/y");
        assert_eq!(name_of(&named), b"x/y");
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        assert_eq!(name_of(sub.join("").as_os_str()), b"sub");
        assert_eq!(name_of(sub.join("../sub/.").as_os_str()), b"sub");
        assert_eq!(name_of(OsStr::new(ADDRESS)), b"ffffffff-ffff-8fff-bfff-ffffffffffff");
        assert_eq!(name_of(OsStr::new(&format!("{ADDRESS}:z"))), b"z");
    }

    #[test]
    fn an_input_that_is_not_there_is_told_by_name() {
        let error = source_and_path(OsStr::new("/nowhere/x:y")).unwrap_err();
        assert!(format!("{error:?}").contains("no file /nowhere/x"), "{error:?}");
        assert!(format!("{error:?}").contains("See: ls -la /\""), "{error:?}");
        assert!(source(OsStr::new("/dev/null")).is_err(), "it is neither a file nor a directory");
    }

    #[test]
    fn what_no_file_can_match_is_refused_with_the_pattern() {
        let refused = |glob: &str| output_glob(OsStr::new(glob)).err().map(|error| format!("{error:?}"));
        for glob in ["*.txt", "a/[0-9]*", "[!]x]", "[[]", "a..b", "[]]", "]"] {
            assert_eq!(refused(glob), None, "{glob}");
        }
        for glob in ["", "[", "a/[!", "[]", "[a]/[b", "/etc/passwd", "../x", "a/.."] {
            let error = refused(glob).unwrap_or_else(|| panic!("'{glob}' is taken"));
            assert!(error.contains(&format!("'{glob}'")), "{error}");
        }
    }

    #[test]
    fn a_variable_has_a_name() {
        let named = environment(OsStr::new("A=b=c")).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(named, (b"A".to_vec(), b"b=c".to_vec()));
        for pair in ["", "=", "=x"] {
            let error = format!("{:?}", environment(OsStr::new(pair)).unwrap_err());
            assert!(error.contains(&format!("--env '{pair}' names no variable")), "{error}");
        }
    }

    #[test]
    fn lines_are_cut_at_newlines_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            lines(&path).unwrap_or_else(|error| panic!("{error:?}"))
        };
        assert_eq!(read("a b\n\nc\r\nd"), [&b"a b"[..], b"", b"c\r", b"d"]);
        assert_eq!(read("one\n"), [b"one"]);
        assert_eq!(read("\n"), [b""]);
        assert_eq!(read(""), [b""; 0]);
    }

    #[test]
    fn a_file_of_lines_beyond_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        File::create(&path).unwrap().set_len(3 << 30).unwrap();
        let error = format!("{:?}", lines(&path).unwrap_err());
        assert!(error.contains("take 3221225472 bytes, the limit is 2031616"), "{error}");
    }
}
