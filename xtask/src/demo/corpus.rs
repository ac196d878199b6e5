//! The text whose words are counted: a dictionary of English that Debian ships.
//!
//! GCIDE is Webster's of 1913 with additions, 40 MB of plain text. Its package depends on a dictionary server, which
//! would listen on a port from then on; so the package is only unpacked into `target/demo`, not installed.

use crate::{Outcome, command, output, target};
use std::fs::File;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "dict-gcide";
const LICENCE: &str = "GPL-2 or later";

pub(super) struct Corpus {
    pub(super) path: PathBuf,
    /// One line for the reader: what it is, from where, under which licence.
    pub(super) description: String,
}

/// Returns the text, fetched and unpacked if this is the first time.
pub(super) fn fetch() -> Outcome<Corpus> {
    let folder = target()?.join("demo");
    let path = folder.join("corpus.txt");
    if !path.exists() {
        unpack(&folder, &path)?;
    }
    let length = path.metadata().map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    let description = format!(
        "The text: the Collaborative International Dictionary of English, {:.1} MB, Debian's {PACKAGE} ({LICENCE}).",
        length as f64 / 1e6
    );
    Ok(Corpus { path, description })
}

fn unpack(folder: &Path, path: &Path) -> Outcome {
    let cannot = |what: &Path, error: std::io::Error| format!("cannot write {}: {error}", what.display());
    let package = folder.join("package");
    // What an interrupted try left would be taken for this one's.
    if package.exists() {
        std::fs::remove_dir_all(&package).map_err(|error| cannot(&package, error))?;
    }
    std::fs::create_dir_all(&package).map_err(|error| cannot(&package, error))?;
    eprintln!("downloading {PACKAGE}");
    // A machine without package lists knows no package yet; with them, asking Debian again would only cost time.
    if !download(&package)? {
        output("apt-get", &["update", "-qq"])?;
        if !download(&package)? {
            return Err(format!("apt-get cannot download {PACKAGE}, which holds the demo's text"));
        }
    }
    let downloaded = std::fs::read_dir(&package).map_err(|error| cannot(&package, error))?.next();
    let deb = downloaded.and_then(Result::ok).ok_or(format!("apt-get downloaded no {PACKAGE}"))?.path();
    output("dpkg-deb", &["--extract", &deb.to_string_lossy(), &package.to_string_lossy()])?;

    let compressed = package.join("usr/share/dictd/gcide.dict.dz");
    let started = path.with_extension("started");
    let status = command("gzip", &["--decompress", "--stdout"])
        .stdin(File::open(&compressed).map_err(|error| format!("cannot read {}: {error}", compressed.display()))?)
        .stdout(File::create(&started).map_err(|error| cannot(&started, error))?)
        .status()
        .map_err(|error| format!("cannot start gzip: {error}"))?;
    if !status.success() {
        return Err(format!("gzip cannot unpack {} ({status})", compressed.display()));
    }
    std::fs::rename(&started, path).map_err(|error| cannot(path, error))?;
    std::fs::remove_dir_all(&package).map_err(|error| cannot(&package, error))
}

/// Whether apt-get downloaded the package into this folder.
fn download(folder: &Path) -> Outcome<bool> {
    let output = command("apt-get", &["-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE])
        .current_dir(folder)
        .output()
        .map_err(|error| format!("cannot start apt-get, which fetches the demo's text: {error}"))?;
    Ok(output.status.success())
}
