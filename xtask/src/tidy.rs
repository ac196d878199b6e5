//! Holds what the compiler does not: who imports whom, that cores are pure, how things are named, that documents tell
//! the truth about the layout.
//!
//! Each check takes text and appends violations, `path:line: what is wrong`; nothing is repaired, nothing is fatal
//! before all have been seen.

mod cores;
mod crates;
mod documents;
mod source;

use crate::{Outcome, read, root, run};
use std::path::Path;

/// What is wrong, one `path:line: message` each.
type Violations = Vec<String>;

/// Checks the whole repository, then its format.
pub(crate) fn tidy() -> Outcome {
    let mut violations = Violations::new();
    let workspace = read("Cargo.toml")?;
    let members = crates::members(&workspace);
    let homes = crates::homes(&workspace, &members);
    for member in &members {
        let path = format!("{member}/Cargo.toml");
        crates::check_manifest(member, &path, &read(&path)?, &members, &homes, &mut violations);
    }
    let mut paths = Vec::new();
    list(root(), "", &mut paths)?;
    for path in paths.iter().filter(|path| path.ends_with(".rs")) {
        let text = read(path)?;
        source::check_file(path, &text, &mut violations);
        cores::check_file(path, &text, &mut violations);
    }
    for path in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        documents::check_paths(path, &read(path)?, &|named| root().join(named).exists(), &mut violations);
    }
    documents::check_members("ARCHITECTURE.md", &read("ARCHITECTURE.md")?, &members, "`", "`", &mut violations);
    let diagram = "doc/system-diagram.svg";
    documents::check_members(diagram, &read(diagram)?, &members, "<g id=\"", "\"", &mut violations);
    if !violations.is_empty() {
        return Err(format!("{} untidy places\n{}", violations.len(), violations.join("\n")));
    }
    run("cargo", &["fmt", "--check"])
}

/// Lists the repository's files by their paths from the root, in order, without what git or cargo keep there.
fn list(folder: &Path, prefix: &str, paths: &mut Vec<String>) -> Outcome {
    let cannot_list = |error: std::io::Error| format!("cannot list {}: {error}", folder.display());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot_list)? {
        let entry = entry.map_err(cannot_list)?;
        entries.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type().map_err(cannot_list)?));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, kind) in entries {
        let is_ours = !name.starts_with('.') && name != "target" && !(prefix.is_empty() && name == "shared");
        if is_ours && kind.is_dir() {
            list(&folder.join(&name), &format!("{prefix}{name}/"), paths)?;
        } else if is_ours && kind.is_file() {
            paths.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}
