//! Installs what the build and the tests need, if it is missing, and is quiet when nothing is.

use crate::{Outcome, command, output, run};

/// Debian's packages, each with its reason.
const PACKAGES: &[&str] = &[
    // The system's libzmq has CURVE; the one that zmq-sys would build has not.
    "libzmq3-dev",
    // The peer that knows only the seed's structs is a Python program, run by Debian's own /usr/bin/python3.
    "python3-zmq",
];

/// Makes the machine ready: Debian packages, the toolchain's clippy and rustfmt, cargo-nextest.
pub(crate) fn setup() -> Outcome {
    install(PACKAGES)?;
    for component in ["clippy", "fmt"] {
        if output("cargo", &[component, "--version"]).is_err() {
            let name = if component == "fmt" { "rustfmt" } else { component };
            run("rustup", &["component", "add", name])?;
        }
    }
    if output("cargo", &["nextest", "--version"]).is_err() {
        run("cargo", &["install", "cargo-nextest", "--locked"])?;
    }
    Ok(())
}

/// Installs those of these Debian packages that are missing.
fn install(packages: &[&str]) -> Outcome {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if output("apt-get", &["--version"]).is_err() {
        return Err(format!("missing: {names} (Debian's names), and this machine has no apt-get to install them"));
    }
    if output("id", &["-u"])?.trim() != "0" {
        return Err(format!("missing: {names}. Install them as root: apt-get install {names}"));
    }
    eprintln!("installing {names}");
    apt_get(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-qq", "--yes", "--no-install-recommends"];
    arguments.extend(missing);
    apt_get(&arguments)
}

fn is_installed(package: &str) -> bool {
    output("dpkg-query", &["--show", "--showformat=${db:Status-Status}", package])
        .is_ok_and(|status| status == "installed")
}

/// Runs apt-get without questions; what it prints matters only when it fails.
fn apt_get(arguments: &[&str]) -> Outcome {
    let line = format!("apt-get {}", arguments.join(" "));
    let output = command("apt-get", arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .map_err(|error| format!("cannot start apt-get: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{line}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
