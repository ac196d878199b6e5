//! `zg file`: files in and out of the cluster's storage.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use client::quantity::size_text;
use client::{ClientError, Connection, LocalTree, ReadError, Trust};
use wire::record::FileRecord;
use wire::tree::CLASS_TREE;
use wire::{FileAddress, FileId};

use super::command::{self, local_failure};
use super::failure::Failure;
use super::output::{Output, cell};
use super::{Context, Outcome, shape};

#[derive(Subcommand)]
pub enum FileVerb {
    /// Store a file, or a directory with all that is in it; `-` stores what standard input gives
    Put { path: PathBuf },
    /// Copy a stored file, a piece of one, or a stored directory to this machine
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
            FileVerb::Put { path } => put(&mut connection, output, &path),
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
            return put_tree(connection, output, path);
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

fn put_tree(connection: &mut Connection, output: &Output, path: &Path) -> Outcome {
    let tree = LocalTree::read(path)?;
    let staged = tree.staged();
    if connection.put_tree(&tree, Trust::Nothing)? {
        output.note(&format!("stored {} ({})", path.display(), shape::tree_text(tree.tree())));
    }
    let mut value = shape::put_file(staged.file, staged.length, staged.hash);
    value["tree"] = shape::tree(tree.tree());
    output.value("file", value, || staged.file.to_string());
    Ok(0)
}

fn get(connection: &mut Connection, output: &Output, address: FileAddress, path: Option<PathBuf>) -> Outcome {
    let path = path.unwrap_or_else(|| address.file.to_string().into());
    if path.as_os_str() == "-" {
        return cat(connection, address);
    }
    if address.piece.is_none()
        && let Some(record) = connection.file(address.file)?
        && record.class == CLASS_TREE
    {
        return get_tree(connection, output, &record, &path);
    }
    if path.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())).hint("Name the file to write"));
    }
    let length = write_to(connection, address, &path)?;
    let value = serde_json::json!({ "id": address.to_string(), "length": length, "path": path.to_string_lossy() });
    output.value("file", value, || format!("{} ({})", cell(path.as_os_str().as_bytes()), size_text(length)));
    Ok(0)
}

fn get_tree(connection: &mut Connection, output: &Output, record: &FileRecord, path: &Path) -> Outcome {
    if path.symlink_metadata().is_ok() {
        let message = format!("{} is there already", path.display());
        return Err(Failure::usage(message).hint("Name a path that is not there yet"));
    }
    let tree = connection.tree(record.file, record.length)?;
    let failed = |error: io::Error| command::local_trouble(path, format!("cannot write {}: {error}", path.display()));
    // Whole or not at all, also when it is interrupted.
    let fresh = beside(path, &std::process::id().to_string());
    connection.catch_signals();
    let written = connection.get_tree(&tree, &fresh).map_err(Failure::from);
    let written = written.and_then(|()| std::fs::rename(&fresh, path).map_err(failed));
    if let Err(failure) = written {
        // What is wrong is told already.
        let _ = std::fs::remove_dir_all(&fresh);
        return Err(failure);
    }
    let mut value = serde_json::json!({ "id": record.file.to_string(), "path": path.to_string_lossy() });
    value["tree"] = shape::tree(&tree);
    output.value("file", value, || format!("{} ({})", cell(path.as_os_str().as_bytes()), shape::tree_text(&tree)));
    Ok(0)
}

/// Where what will be `path` is until it is whole.
fn beside(path: &Path, mark: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".zg-{mark}"));
    name.into()
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
    let (fresh, mut file) = open_part(path, address).map_err(failed)?;
    let copied = match address.piece {
        None => connection.read_rest(address.file, &mut file),
        Some(_) => connection.read_to(address, &mut file),
    };
    let is_cut = matches!(
        copied,
        Err(ReadError::Client(ClientError::NoStorage { .. } | ClientError::NoMaster { .. } | ClientError::Interrupted))
    );
    let copied = copied.map_err(Failure::from);
    let copied = copied.and_then(|length| std::fs::rename(&fresh, path).map(|()| length).map_err(failed));
    if copied.is_err() && (!is_cut || address.piece.is_some()) {
        // What is wrong is told already.
        let _ = std::fs::remove_file(&fresh);
    }
    copied
}

/// Where the bytes of what will be `path` go: of a whole file, behind those that an earlier try has left there. Of several
/// that write to one path at once each has its own.
fn open_part(path: &Path, address: FileAddress) -> io::Result<(PathBuf, File)> {
    if address.piece.is_none() {
        let name = address.file.to_string();
        let part = beside(path, &name[..8]);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&part)?;
        // Whoever had the lock may have given the file its name just now.
        let is_ours = || part.metadata().is_ok_and(|named| file.metadata().is_ok_and(|ours| named.ino() == ours.ino()));
        if file.try_lock().is_ok() && is_ours() {
            return Ok((part, file));
        }
    }
    let part = beside(path, &std::process::id().to_string());
    let file = File::options().read(true).write(true).create_new(true).open(&part)?;
    Ok((part, file))
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
    let mut value = shape::file(&record);
    let mut lines = vec![
        ("file", record.file.to_string()),
        ("length", format!("{} ({})", record.length, size_text(record.length))),
        ("blake3", record.hash.to_string()),
        ("class", shape::class(record.class).to_owned()),
        ("copies", record.copies.to_string()),
        ("stored", shape::time(record.stored_at).unwrap_or_else(|| "-".into())),
    ];
    if record.class == CLASS_TREE {
        connection.on_progress = None;
        let tree = connection.tree(file, record.length)?;
        value["tree"] = shape::tree(&tree);
        lines.push(("lists", shape::tree_text(&tree)));
    }
    output.value("file", value, || lines.iter().map(|(name, value)| format!("{name:<8}  {value}\n")).collect());
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
