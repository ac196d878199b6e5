//! A core does no input or output, reads no clock, draws no lots, starts no thread and iterates no randomly ordered map.
//!
//! That is what lets the simulator replay a whole cluster from one number; one import is enough to lose it.

use super::Violations;
use super::source::{code_only, has_word};

/// Paths that a core must not name, each with what it would bring in.
const IMPURE_PATHS: &[(&str, &str)] = &[
    ("std::fs", "files"),
    ("std::net", "sockets"),
    ("std::os", "the operating system"),
    ("std::thread", "threads"),
    ("std::process", "processes"),
    ("std::env", "the environment"),
    ("std::sync", "threads"),
    ("std::time::Instant", "a clock (use wire::Instant)"),
    ("std::time::SystemTime", "a clock (wall time is a field of events)"),
    ("std::collections::HashMap", "random order (use BTreeMap)"),
    ("std::collections::HashSet", "random order (use BTreeSet)"),
];

/// Words that a core must not use wherever they come from.
const IMPURE_WORDS: &[(&str, &str)] = &[
    ("HashMap", "random order (use BTreeMap)"),
    ("HashSet", "random order (use BTreeSet)"),
    ("SystemTime", "a clock (wall time is a field of events)"),
    ("zmq", "sockets"),
    ("crossbeam", "threads"),
    ("libc", "system calls"),
    ("rand", "chance"),
    ("getrandom", "chance"),
    ("new_v4", "chance"),
    ("now_v7", "chance and a clock"),
    ("tracing", "output (a decision is logged at the shell)"),
    ("print!", "output"),
    ("println!", "output"),
    ("eprint!", "output"),
    ("eprintln!", "output"),
    ("dbg!", "output"),
];

/// So that a new message shows every place to think.
const MATCH_LINTS: &str = "#![warn(clippy::wildcard_enum_match_arm, clippy::match_wildcard_for_single_variants)]";

/// Checks one file if it lies in a core. Tests at its foot may do what they like.
pub(super) fn check_file(path: &str, text: &str, violations: &mut Violations) {
    if !path.contains("/src/core/") {
        return;
    }
    if path.ends_with("/src/core/mod.rs") && !text.contains(MATCH_LINTS) {
        violations.push(format!("{path}:1: a core opens with {MATCH_LINTS}"));
    }
    let code = code_only(text);
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut say = |line_number: usize, name: &str, brings: &str| {
        violations.push(format!("{path}:{line_number}: a core must not name `{name}`: it brings in {brings}"));
    };
    for (index, line) in code.lines().enumerate() {
        for (word, brings) in IMPURE_WORDS.iter().filter(|(word, _)| has_word(line, word)) {
            say(index + 1, word, brings);
        }
        let is_import = line.trim_start().trim_start_matches("pub ").starts_with("use ");
        for (path, brings) in IMPURE_PATHS.iter().filter(|(path, _)| !is_import && has_word(line, path)) {
            say(index + 1, path, brings);
        }
    }
    for (line_number, imported) in imports(code) {
        let is_under = |path: &str| imported == path || imported.starts_with(&format!("{path}::"));
        let by_word = |path: &str| IMPURE_WORDS.iter().any(|(word, _)| path.ends_with(word));
        for (path, brings) in IMPURE_PATHS.iter().filter(|(path, _)| is_under(path) && !by_word(path)) {
            say(line_number, path, brings);
        }
    }
}

/// Every path that a `use` names, groups taken apart, with the line where its statement starts.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut line_number = 1;
    // The only semicolons at the start of a statement that begins with `use` end it.
    for statement in code.split_inclusive(';') {
        let start =
            statement.find("use ").filter(|start| !statement[..*start].ends_with(|c: char| c.is_alphanumeric()));
        if let Some(start) = start {
            let tree: String = statement[start + 4..].trim_end_matches(';').split_whitespace().collect();
            let line_number = line_number + statement[..start].matches('\n').count();
            found.extend(expand("", &tree).into_iter().map(|path| (line_number, path)));
        }
        line_number += statement.matches('\n').count();
    }
    found
}

/// Takes a use tree without spaces apart: `a::{b,c::{d}}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let mut depth = 0;
    let branches = tree.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    });
    let mut found = Vec::new();
    for branch in branches.filter(|branch| !branch.is_empty()) {
        match branch.split_once('{') {
            Some((head, group)) => {
                found.extend(expand(&format!("{prefix}{head}"), group.strip_suffix('}').unwrap_or(group)));
            }
            None => found.push(format!("{prefix}{branch}")),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Violations {
        let mut violations = Vec::new();
        check_file(path, text, &mut violations);
        violations
    }

    fn check_core(text: &str) -> Violations {
        check("worker/src/core/slots.rs", text)
    }

    #[test]
    fn a_pure_core_passes() {
        let text = "//! Slots; no std::fs.\nuse std::collections::BTreeMap;\nuse wire::{Instant, NodeId};\nfn f() {}\n";
        assert_eq!(check_core(text), [""; 0]);
    }

    #[test]
    fn impurity_is_found_in_groups_and_in_full_paths() {
        let said = "worker/src/core/slots.rs";
        let text =
            "use std::{\n    collections::BTreeMap,\n    time::{Duration, Instant},\n};\nfn f() { std::fs::read(x) }\n";
        assert_eq!(
            check_core(text),
            [
                format!("{said}:5: a core must not name `std::fs`: it brings in files"),
                format!(
                    "{said}:1: a core must not name `std::time::Instant`: it brings in a clock (use wire::Instant)"
                ),
            ]
        );
    }

    #[test]
    fn an_impure_word_is_found_once_wherever_it_comes_from() {
        let found = check_core("use std::collections::HashMap;\nfn f() { println!(\"x\") }\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains(":1: ") && found[0].contains("`HashMap`"));
        assert!(found[1].contains(":2: ") && found[1].contains("`println!`"));
    }

    #[test]
    fn shells_and_tests_at_the_foot_are_free() {
        assert_eq!(check("worker/src/shell.rs", "use std::fs;\n"), [""; 0]);
        assert_eq!(check_core("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"), [""; 0]);
    }

    #[test]
    fn a_core_without_the_match_lints_is_found() {
        let found = check("worker/src/core/mod.rs", "//! The core.\n");
        assert_eq!(found, [format!("worker/src/core/mod.rs:1: a core opens with {MATCH_LINTS}")]);
        assert_eq!(check("worker/src/core/mod.rs", &format!("//! The core.\n{MATCH_LINTS}\n")), [""; 0]);
    }
}
