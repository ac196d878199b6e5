//! Who imports whom, and which crate is whose home.
//!
//! The crates stand in layers; an arrow that is not in the table below is a shortcut that somebody regrets later. A
//! package that only one crate uses can be replaced there; the comment beside its version in the root manifest names
//! that crate.

use super::Violations;
use std::collections::BTreeMap;

/// Which of our crates each may import. Roles never import one another.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("node", &["wire"]),
    ("content", &["node", "wire"]),
    ("planted", &[]),
    ("ledger", &["wire"]),
    ("master", &["ledger", "content", "node", "planted", "wire"]),
    ("loadbalancer", &["content", "node", "planted", "wire"]),
    ("storage", &["content", "node", "wire"]),
    ("worker", &["content", "node", "planted", "wire"]),
    ("client", &["content", "node", "wire"]),
    ("gateway", &["client", "content", "node", "wire"]),
    ("sim", &["master", "loadbalancer", "storage", "worker", "ledger", "content", "planted", "wire"]),
    ("bench", &["master", "loadbalancer", "storage", "worker", "ledger", "client", "content", "node", "wire"]),
    ("xtask", &[]),
];

/// Measures our crates against the bare packages, so it imports those too.
const WITHOUT_HOMES: &str = "bench";

/// The workspace's crates, as its manifest lists them.
pub(super) fn members(workspace: &str) -> Vec<String> {
    let list = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Which crate may use each package: the first word of the comment beside its version, if that is a crate of ours.
pub(super) fn homes(workspace: &str, members: &[String]) -> BTreeMap<String, String> {
    let mut homes = BTreeMap::new();
    for (_, name, line) in dependencies(workspace) {
        let home =
            line.rsplit_once('#').map(|(_, comment)| comment.trim().split([':', ' ']).next().unwrap_or_default());
        if let Some(home) = home.filter(|home| members.iter().any(|member| member == home)) {
            homes.insert(name.to_owned(), home.to_owned());
        }
    }
    homes
}

/// Checks one crate's dependencies, of every kind.
pub(super) fn check_manifest(
    member: &str,
    path: &str,
    manifest: &str,
    members: &[String],
    homes: &BTreeMap<String, String>,
    violations: &mut Violations,
) {
    let Some((_, may_import)) = MAY_IMPORT.iter().find(|(name, _)| *name == member) else {
        violations.push(format!("{path}:1: `{member}` has no place in the layout (MAY_IMPORT in xtask)"));
        return;
    };
    for (line_number, name, line) in dependencies(manifest) {
        if members.iter().any(|member| member == name) && !may_import.contains(&name) {
            violations.push(format!("{path}:{line_number}: `{member}` must not import `{name}`"));
        }
        if let Some(home) = homes.get(name).filter(|home| *home != member && member != WITHOUT_HOMES) {
            violations.push(format!("{path}:{line_number}: `{name}` has its home in `{home}`"));
        }
        if !line.contains("workspace = true") {
            violations.push(format!("{path}:{line_number}: the version of `{name}` belongs in the root Cargo.toml"));
        }
    }
}

/// The entries of all dependency tables: line number, package, line.
fn dependencies(manifest: &str) -> Vec<(usize, &str, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim_end().ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once('=').filter(|_| inside && !line.starts_with('#')) {
            let name = name.trim().trim_end_matches(".workspace");
            found.push((index + 1, name, line));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = "[workspace]\nmembers = [\"wire\", \"node\", \"worker\", \"storage\", \"bench\"]\n\
        [workspace.dependencies]\nzmq = \"0.10\"   # node\nlibc = \"0.2\"\nwire = { path = \"wire\" }\n";

    fn check(member: &str, dependencies: &str) -> Violations {
        let members = members(WORKSPACE);
        let mut violations = Vec::new();
        let manifest = format!("[package]\nname = \"{member}\"\n[dependencies]\n{dependencies}\n");
        check_manifest(member, "x/Cargo.toml", &manifest, &members, &homes(WORKSPACE, &members), &mut violations);
        violations
    }

    #[test]
    fn a_role_may_import_the_layers_below_it() {
        assert_eq!(check("worker", "node.workspace = true\nwire.workspace = true\nlibc.workspace = true"), [""; 0]);
    }

    #[test]
    fn a_role_that_imports_a_role_is_found() {
        let expected = ["x/Cargo.toml:4: `worker` must not import `storage`"];
        assert_eq!(check("worker", "storage.workspace = true"), expected);
    }

    #[test]
    fn a_package_away_from_home_is_found_except_where_it_is_measured() {
        let expected = ["x/Cargo.toml:4: `zmq` has its home in `node`"];
        assert_eq!(check("worker", "zmq.workspace = true"), expected);
        assert_eq!(check("bench", "zmq.workspace = true"), [""; 0]);
    }

    #[test]
    fn a_version_outside_the_root_manifest_is_found() {
        let expected = ["x/Cargo.toml:4: the version of `libc` belongs in the root Cargo.toml"];
        assert_eq!(check("worker", "libc = \"0.2\""), expected);
    }

    #[test]
    fn a_crate_without_a_place_in_the_layout_is_found() {
        let expected = ["x/Cargo.toml:1: `blob` has no place in the layout (MAY_IMPORT in xtask)"];
        assert_eq!(check("blob", ""), expected);
    }
}
