//! `zg file`: files in and out of the cluster's storage.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use client::Connection;
use client::quantity::size_text;
use wire::record::FileRecord;
use wire::{FileAddress, FileId};

use super::command::{self, local_failure};
use super::failure::Failure;
use super::output::Output;
use super::{Context, Outcome, shape};

#[derive(Subcommand)]
pub enum FileVerb {
    /// Store a file; `-` stores what standard input gives
    Put { file: PathBuf },
    /// Copy a stored file, or a piece of one, to this machine
    Get {
        /// <uuid> or <uuid>@<offset>+<length>
        address: FileAddress,
        /// Where to; `-` is standard output [default: the uuid, here]
        path: Option<PathBuf>,
    },
    /// Print a stored file, or a piece of one
    Cat {
        /// <uuid> or <uuid>@<offset>+<length>
        address: FileAddress,
    },
    /// Show what is known about a stored file
    Stat { file: FileId },
    /// List stored files
    Ls,
}

impl FileVerb {
    pub fn execute(self, context: &Context) -> Outcome {
        let mut connection = context.connect()?;
        let output = &context.output;
        connection.on_progress = output.transfer_progress(connection.clock());
        match self {
            FileVerb::Put { file } => put(&mut connection, output, &file),
            FileVerb::Get { address, path } => get(&mut connection, output, address, path),
            FileVerb::Cat { address } => cat(&mut connection, address),
            FileVerb::Stat { file } => stat(&mut connection, output, file),
            FileVerb::Ls => list(&mut connection, output),
        }
    }
}

fn put(connection: &mut Connection, output: &Output, path: &Path) -> Outcome {
    let staged = if path.as_os_str() == "-" {
        connection.put_reader(io::stdin().lock())?
    } else {
        let metadata = path.metadata().map_err(|error| local_failure(path, &error))?;
        if metadata.is_dir() {
            return Err(Failure::usage(format!("{} is a directory", path.display())).hint(command::PACK_HINT));
        }
        if !metadata.is_file() {
            let hint = format!("Pipe it: zg file put - < {}", path.display());
            return Err(Failure::usage(format!("{} is not a regular file", path.display())).hint(hint));
        }
        connection.put_file(path)?
    };
    output.value("file", shape::put_file(staged.file, staged.length, staged.hash), || staged.file.to_string());
    Ok(0)
}

fn get(connection: &mut Connection, output: &Output, address: FileAddress, path: Option<PathBuf>) -> Outcome {
    let path = path.unwrap_or_else(|| address.file.to_string().into());
    if path.as_os_str() == "-" {
        return cat(connection, address);
    }
    if path.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())).hint("Name the file to write"));
    }
    let length = write_to(connection, address, &path)?;
    let value = serde_json::json!({ "id": address.to_string(), "length": length, "path": path.to_string_lossy() });
    output.value("file", value, || format!("{} ({})", path.display(), size_text(length)));
    Ok(0)
}

/// Writes the file to `path` and returns its length.
fn write_to(connection: &mut Connection, address: FileAddress, path: &Path) -> Result<u64, Failure> {
    let failed = |error: io::Error| command::local_trouble(path, format!("cannot write {}: {error}", path.display()));
    // A link to something is followed, as by cp.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        // A device or a pipe takes bytes. A rename would put a file in its place: root would lose /dev/null.
        let mut device = std::fs::File::options().write(true).open(path).map_err(failed)?;
        return connection.read_to(address, &mut device).map_err(Failure::from);
    }
    // Whole or not at all: a name appears only with all its bytes.
    let mut fresh = path.clone().into_os_string();
    fresh.push(format!(".zg-{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let mut file = std::fs::File::options().write(true).create_new(true).open(&fresh).map_err(failed)?;
    let copied = connection.read_to(address, &mut file).map_err(Failure::from);
    let copied = copied.and_then(|length| std::fs::rename(&fresh, path).map(|()| length).map_err(failed));
    if copied.is_err() {
        // What is wrong is told already.
        let _ = std::fs::remove_file(&fresh);
    }
    copied
}

fn cat(connection: &mut Connection, address: FileAddress) -> Outcome {
    // The terminal is for the file.
    connection.on_progress = None;
    let mut stdout = io::stdout().lock();
    connection.read_to(address, &mut stdout)?;
    stdout.flush().map_err(|error| Failure::new("local_file", format!("cannot print: {error}")))?;
    Ok(0)
}

fn stat(connection: &mut Connection, output: &Output, file: FileId) -> Outcome {
    let record = connection.file(file)?;
    let unknown = || Failure::not_found("file_unknown", format!("no file {file}")).hint("See: zg file ls");
    let record = record.ok_or_else(unknown)?;
    output.value("file", shape::file(&record), || {
        let lines = [
            ("file", record.file.to_string()),
            ("length", format!("{} ({})", record.length, size_text(record.length))),
            ("blake3", record.hash.to_string()),
            ("class", shape::class(record.class).to_owned()),
            ("copies", record.copies.to_string()),
            ("stored", shape::time(record.stored_at).unwrap_or_else(|| "-".into())),
        ];
        lines.iter().map(|(name, value)| format!("{name:<8}  {value}\n")).collect()
    });
    Ok(0)
}

fn list(connection: &mut Connection, output: &Output) -> Outcome {
    let files = connection.files()?;
    output.value("files", files.iter().map(shape::file).collect(), || {
        let row = |file: &FileRecord| {
            vec![
                file.file.to_string(),
                file.length.to_string(),
                shape::class(file.class).to_owned(),
                file.copies.to_string(),
                shape::time(file.stored_at).unwrap_or_default(),
            ]
        };
        let rows: Vec<Vec<String>> = files.iter().map(row).collect();
        output.table(&["FILE", ">BYTES", "CLASS", ">COPIES", "STORED"], &rows)
    });
    Ok(0)
}
