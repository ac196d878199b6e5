//! Documents name only what exists, and leave out no crate.

use super::Violations;

/// Finds paths in backticks or link targets that lead nowhere.
///
/// `exists` answers for a path from the root. In backticks only what has a slash and no space, or a file's ending,
/// counts as a path: a planned crate is written without its slash, the files that each role has without a folder.
pub(super) fn check_paths(path: &str, text: &str, exists: &dyn Fn(&str) -> bool, violations: &mut Violations) {
    let mut in_fence = false;
    for (index, line) in text.lines().enumerate() {
        in_fence ^= line.starts_with("```");
        if in_fence {
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2).filter(|quoted| is_path(quoted));
        let linked = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let linked = linked.filter(|target| !target.is_empty() && !target.contains("://"));
        for named in quoted.chain(linked).filter(|named| !exists(named)) {
            violations.push(format!("{path}:{}: `{named}` does not exist", index + 1));
        }
    }
}

fn is_path(quoted: &str) -> bool {
    let is_plain = quoted.chars().all(|character| character.is_ascii_alphanumeric() || "/._-".contains(character));
    let ends_like_file = [".md", ".toml", ".svg"].iter().any(|ending| quoted.ends_with(ending));
    is_plain && !quoted.starts_with(['/', '.', '-']) && (quoted.contains('/') || ends_like_file)
}

/// Finds crates that a document leaves out: each must stand in it between `open` and `close`, with a slash or without.
pub(super) fn check_members(
    path: &str,
    text: &str,
    members: &[String],
    open: &str,
    close: &str,
    violations: &mut Violations,
) {
    for member in members {
        let is_named = ["", "/"].iter().any(|slash| text.contains(&format!("{open}{member}{slash}{close}")));
        if !is_named {
            violations.push(format!("{path}:1: the crate {open}{member}{close} is missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_nowhere_is_found() {
        let text = "`wire/` and `gateway`, `ledger/src/lib.rs`\n[a](doc/x.svg) [b](https://example.org) [c](#here)\n\
            ```\n`gone/`\n```\n`cargo xtask test` `1/2 x`\n";
        let mut violations = Vec::new();
        check_paths("README.md", text, &|path| path == "wire/", &mut violations);
        let expected = ["README.md:1: `ledger/src/lib.rs` does not exist", "README.md:2: `doc/x.svg` does not exist"];
        assert_eq!(violations, expected);
    }

    #[test]
    fn a_crate_left_out_is_found() {
        let members = ["wire", "node", "sim"].map(str::to_owned);
        let mut violations = Vec::new();
        check_members("A.md", "`wire/` holds `node`, nothing is like sim", &members, "`", "`", &mut violations);
        assert_eq!(violations, ["A.md:1: the crate `sim` is missing"]);
    }
}
