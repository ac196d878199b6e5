//! A peer written in another language from the seed's text alone fetches a file from a real storage node.

mod process;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use content::Source;
use wire::FileId;
use wire::limit::MIB;

use process::{Running, Site, bytes};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the peer with the system's Python, which has pyzmq (`cargo xtask setup`).
fn peer(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seed_peer.py");
    Command::new("/usr/bin/python3").arg(script).args(arguments).output().expect("there is a python3")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Makes a certificate as pyzmq does, without our metadata, and has the cluster admit it.
fn admit(site: &Site, name: &str) {
    let made = peer(&["make", text(site.dir.path()), name]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::copy(site.path(&format!("{name}.key")), site.path(&format!("keys/{name}.key"))).expect("copied");
}

fn fetch(site: &Site, running: &Running, file: FileId, more: &[&str]) -> (Option<i32>, String) {
    let (server, mine, output) = (site.path("s1.key"), site.path("seed.key_secret"), site.path("output"));
    let _ = std::fs::remove_file(&output);
    let file = file.to_string();
    let mut arguments = vec!["fetch", &running.control, text(&server), text(&mine), &file, text(&output)];
    arguments.extend(more);
    let fetched = peer(&arguments);
    let said = String::from_utf8_lossy(&fetched.stdout).into_owned();
    assert!(fetched.stderr.is_empty(), "{}", String::from_utf8_lossy(&fetched.stderr));
    (fetched.status.code(), said)
}

#[test]
fn a_peer_that_knows_only_the_seed_fetches_a_file() {
    let site = Site::new();
    admit(&site, "seed");
    let running = site.start("tcp://127.0.0.1:*");
    let mut holder = site.connect(&running);
    for length in [0, 5, 2 * MIB + 1] {
        let content = bytes(length);
        let stored = holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored");
        for socket in ["dealer", "req"] {
            let (status, said) = fetch(&site, &running, stored.file, &[socket]);
            assert_eq!(status, Some(0), "{said}");
            assert!(said.contains(&format!("\"file\": \"{}\"", stored.file)), "{said}");
            assert!(said.contains(&format!("\"file_length\": {length}}}")), "{said}");
            assert!(std::fs::read(site.path("output")).expect("it was written") == content);
        }
    }
}

#[test]
fn a_peer_that_knows_only_the_seed_is_told_what_it_asked_wrongly() {
    let site = Site::new();
    admit(&site, "seed");
    let running = site.start("tcp://127.0.0.1:*");
    let (status, said) = fetch(&site, &running, FileId([7; 16]), &[]);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("\"type\": 5") && said.contains("no file 07070707-0707"), "{said}");
}
