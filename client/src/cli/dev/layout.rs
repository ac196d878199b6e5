//! The cluster directory of `zg dev`: keys, settings and data of every process, made once and kept with `--dir`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use node::Certificate;
use node::certificate::z85;
use node::disk::free_bytes;
use serde::Deserialize;
use wire::{NodeId, Role};

use crate::cli::failure::Failure;

/// A Unix socket's path ends here: 108 bytes with the zero.
const IPC_PATH_SIZE_MAX: usize = 107;

/// What is free at the start, in bytes: what has to stay free for workers to start anything, and a little to work with.
const FREE_BYTES_MIN: u64 = node::disk::WORKER_FREE_BYTES_MIN + (32 << 20);

/// Where the storage node listens for the bytes of files.
const BULK_SOCKET: &str = "storage1/bulk.ipc";

/// Where it is, all masters have been up.
const FOUNDED: &str = "FOUNDED";

/// How workers come by the inputs of jobs.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    pub are_mounted: bool,
    /// What the storage node has is read where it lies.
    pub are_borrowed: bool,
}

/// One process of the cluster.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub name: String,
    pub role: Role,
    /// Its TOML file.
    pub settings: PathBuf,
    pub log: PathBuf,
}

/// A cluster directory that is ready to start in.
#[derive(Debug)]
pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
    /// In the order to start them.
    pub nodes: Vec<NodePlan>,
    is_temporary: bool,
    /// Held while we run: two clusters in one directory would spoil each other.
    _lock: File,
}

impl Layout {
    /// Makes the directory at `dir`, or a temporary one, or completes what is there.
    pub fn make(dir: Option<&Path>, masters: u8, workers: u16, inputs: Inputs) -> Result<Layout, Failure> {
        let is_temporary = dir.is_none();
        let dir = match dir {
            Some(dir) => make_kept(dir)?,
            None => make_temporary()?,
        };
        let made = check_room(&dir, free_bytes(&dir))
            .and_then(|()| Self::fill(dir.clone(), masters, workers, inputs, is_temporary));
        if made.is_err() && is_temporary {
            // What went wrong is told already.
            let _ = fs::remove_dir_all(&dir);
        }
        made
    }

    fn fill(dir: PathBuf, masters: u8, workers: u16, inputs: Inputs, is_temporary: bool) -> Result<Layout, Failure> {
        let text = dir
            .to_str()
            .ok_or_else(|| Failure::usage(format!("the directory {} is not named in UTF-8", dir.display())))?;
        check_length(&dir)?;
        let lock = lock(&dir)?;
        for (name, mode) in [("certificates", 0o755), ("keys", 0o700)] {
            make_dir(&dir.join(name), mode)?;
        }
        make_receipt_key(&dir.join("receipt.key"))?;
        check_masters(&dir, masters)?;
        let is_founded = dir.join(FOUNDED).exists();

        let mut names: Vec<_> = (1..=masters).map(|number| (format!("master{number}"), Role::Master)).collect();
        names.push(("loadbalancer1".to_owned(), Role::LoadBalancer));
        names.push(("storage1".to_owned(), Role::Storage));
        names.extend((1..=workers).map(|number| (format!("worker{number}"), Role::Worker)));
        certificate(&dir, "client", Role::Client)?;
        let mut certificates = BTreeMap::new();
        for (name, role) in &names {
            certificates.insert(name.clone(), certificate(&dir, name, *role)?);
        }
        let mut ports = Ports::default();
        let nodes: Vec<NodePlan> = names
            .into_iter()
            .map(|(name, role)| NodePlan {
                settings: dir.join(format!("{name}.toml")),
                log: dir.join(format!("{name}.log")),
                name,
                role,
            })
            .collect();
        let mut group = Vec::new();
        for plan in nodes.iter().filter(|plan| plan.role == Role::Master) {
            let Bound { bind, raft_bind } = ports.of(&plan.settings)?;
            let raft_bind = raft_bind.map_or_else(|| ports.free(), Ok)?;
            let own = &certificates[&plan.name];
            group.push(MasterPlan { node: node_of(own, &plan.name)?, key: z85(&own.public.0), bind, raft_bind });
        }
        let listed =
            group.iter().map(|master| format!("{{ endpoint = \"{}\", key = \"{}\" }}", master.bind, master.key));
        let listed = listed.collect::<Vec<_>>().join(", ");
        for plan in &nodes {
            let node = node_of(&certificates[&plan.name], &plan.name)?;
            let bind = match group.iter().find(|master| master.node == node) {
                Some(master) => master.bind.clone(),
                None => ports.of(&plan.settings)?.bind,
            };
            make_dir(&dir.join(&plan.name), 0o700)?;
            write(&plan.settings, &settings(plan, node, &bind, text, &listed, &group, inputs, is_founded), 0o600)?;
        }
        // Last: a directory with a cluster.toml is a whole one.
        write(&dir.join("cluster.toml"), &format!("masters = [{listed}]\n"), 0o600)?;
        Ok(Layout { dir, nodes, is_temporary, _lock: lock })
    }

    /// The cluster has been up: a master that finds its directory empty from now on has lost it, and does not come back.
    pub fn found(&self) -> Result<(), Failure> {
        for plan in self.nodes.iter().filter(|plan| plan.role == Role::Master) {
            let text = fs::read_to_string(&plan.settings).map_err(|error| failed(&plan.settings, &error))?;
            write(&plan.settings, &text.replace("\ninit = true\n", "\ninit = false\n"), 0o600)?;
        }
        write(&self.dir.join(FOUNDED), "", 0o600)
    }

    pub fn remove_if_temporary(self) -> io::Result<()> {
        if self.is_temporary { fs::remove_dir_all(&self.dir) } else { Ok(()) }
    }
}

/// A master, as the others need to know it.
struct MasterPlan {
    node: NodeId,
    key: String,
    bind: String,
    raft_bind: String,
}

fn node_of(certificate: &Certificate, name: &str) -> Result<NodeId, Failure> {
    let unnamed = || Failure::new("cluster_invalid", format!("the certificate of {name} names no node"));
    certificate.node().ok_or_else(unnamed)
}

/// A group is founded once: to start it with other members would forget what it acknowledged.
fn check_masters(dir: &Path, masters: u8) -> Result<(), Failure> {
    let has = (1..=u8::MAX).take_while(|number| dir.join(format!("master{number}.toml")).exists()).count();
    if has == 0 || has == usize::from(masters) {
        return Ok(());
    }
    let message = format!("the cluster in {} has {has} masters, not {masters}", dir.display());
    Err(Failure::usage(message).hint(format!("Start it with --masters {has}, or name a new directory")))
}

/// The settings file of one process; paths in it are relative to it.
fn settings(
    plan: &NodePlan,
    node: NodeId,
    bind: &str,
    dir: &str,
    masters: &str,
    group: &[MasterPlan],
    inputs: Inputs,
    is_founded: bool,
) -> String {
    let name = &plan.name;
    let mut text = format!(
        "dir = \"{name}\"\nname = \"{name}\"\nnode = \"{node}\"\ncertificate = \"keys/{name}.key_secret\"\n\
         certificates_dir = \"certificates\"\nbind = \"{bind}\"\n"
    );
    match plan.role {
        Role::Master => {
            text += &format!("receipt_key = \"receipt.key\"\ninit = {}\n", !is_founded);
            for master in group.iter().filter(|master| master.node == node && group.len() > 1) {
                text += &format!("raft_bind = \"{}\"\n", master.raft_bind);
            }
            for MasterPlan { node, key, raft_bind, .. } in group.iter().filter(|master| master.node != node) {
                text += &format!("[[masters]]\nnode = \"{node}\"\nendpoint = \"{raft_bind}\"\nkey = \"{key}\"\n");
            }
        }
        Role::Storage => {
            let bulk = quoted(&format!("ipc://{dir}/{BULK_SOCKET}"));
            text += &format!("receipt_key = \"receipt.key\"\nbulk_bind = {bulk}\nmasters = [{masters}]\n");
        }
        Role::LoadBalancer => text += &format!("masters = [{masters}]\n"),
        Role::Worker => {
            let lenders = if inputs.are_borrowed { "\"storage1\"" } else { "" };
            text += &format!("fuse = {}\nstorage_dirs = [{lenders}]\nmasters = [{masters}]\n", inputs.are_mounted);
        }
        Role::Gateway | Role::Client => {}
    }
    text
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\U{:08X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// The secret certificate of `name`: the one that is there, else a fresh one of a fresh node.
fn certificate(dir: &Path, name: &str, role: Role) -> Result<Certificate, Failure> {
    let failed = |error: node::CertificateError| Failure::new("cluster_invalid", error.to_string());
    let path = dir.join(format!("keys/{name}.key_secret"));
    let certificate = if path.exists() {
        Certificate::load(&path).map_err(failed)?
    } else {
        let fresh = Certificate::new().with("role", role).with("node", NodeId::random()).with("name", name);
        fresh.save_secret(&path).map_err(failed)?;
        fresh
    };
    certificate.save_public(dir.join(format!("certificates/{name}.key"))).map_err(failed)?;
    Ok(certificate)
}

/// Addresses to bind. All free ports are held until every one is picked, so that none is picked twice.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
}

#[derive(Deserialize)]
struct Bound {
    bind: String,
    raft_bind: Option<String>,
}

impl Ports {
    /// The addresses in the settings at `path` if there are any: peers may remember them. Else one that is free now.
    fn of(&mut self, path: &Path) -> Result<Bound, Failure> {
        if path.exists() {
            return node::settings::load(path).map_err(|error| Failure::new("cluster_invalid", error.to_string()));
        }
        Ok(Bound { bind: self.free()?, raft_bind: None })
    }

    fn free(&mut self) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::new("system", format!("no free port on 127.0.0.1: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        self.held.push(listener);
        Ok(format!("tcp://{address}"))
    }
}

/// On a disk with less room a cluster would come up and then run nothing.
fn check_room(dir: &Path, free: u64) -> Result<(), Failure> {
    if free >= FREE_BYTES_MIN {
        return Ok(());
    }
    let [free, needed] = [free, FREE_BYTES_MIN].map(|bytes| bytes >> 20);
    let message = format!("the disk of {} has {free} MiB free, and a cluster needs {needed} MiB", dir.display());
    Err(Failure::new("disk_full", message).hint("Free some, or name a directory on another disk with --dir or TMPDIR"))
}

/// Sockets lie in the directory, and their paths are short.
fn check_length(dir: &Path) -> Result<(), Failure> {
    let socket = dir.join(BULK_SOCKET);
    let (length, max) = (socket.as_os_str().len(), IPC_PATH_SIZE_MAX);
    if length <= max {
        return Ok(());
    }
    let socket = socket.display();
    let message =
        format!("the directory is too long: the socket {socket} would have {length} bytes, at most {max} work");
    Err(Failure::usage(message).hint("Name a shorter one with --dir or TMPDIR"))
}

fn make_kept(dir: &Path) -> Result<PathBuf, Failure> {
    check_length(&std::path::absolute(dir).map_err(|error| failed(dir, &error))?)?;
    let is_used = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    // The lock is the first file that we make: with it alone, an earlier start was cut short.
    let is_ours = dir.join("cluster.toml").exists() || dir.join("lock").exists();
    if is_used && !is_ours {
        let message = format!("the directory {} is not empty and has no cluster in it", dir.display());
        return Err(Failure::usage(message).hint("Name a new one"));
    }
    if dir.exists() && !dir.is_dir() {
        return Err(
            Failure::usage(format!("{} is not a directory", dir.display())).hint("Name one, or a name that is free")
        );
    }
    make_dir(dir, 0o700)?;
    dir.canonicalize().map_err(|error| failed(dir, &error))
}

fn make_temporary() -> Result<PathBuf, Failure> {
    let temporary = std::env::temp_dir();
    loop {
        let name = format!("zg-{}", &NodeId::random().to_string()[..8]);
        let dir = temporary.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return dir.canonicalize().map_err(|error| failed(&dir, &error)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&dir, &error)),
        }
    }
}

/// Makes a directory, or gives the one that is there its mode.
fn make_dir(dir: &Path, mode: u32) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode))).map_err(|error| failed(dir, &error))
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|error| failed(&path, &error))?;
    // SAFETY: flock on a descriptor that we own.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let message = format!("another zg dev runs in {}", dir.display());
        return Err(Failure::new("in_use", message).hint(format!("Use it: ZG_CLUSTER={}", dir.display())));
    }
    Ok(file)
}

fn make_receipt_key(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let mut key = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut key))
        .map_err(|error| failed(path, &error))?;
    write(path, &wire::hex(&key), 0o600)
}

/// Replaces a file in one step.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new("local_file", format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTED: Inputs = Inputs { are_mounted: true, are_borrowed: true };

    fn make(dir: &Path, workers: u16) -> Layout {
        Layout::make(Some(dir), 1, workers, MOUNTED).unwrap_or_else(|error| panic!("{error:?}"))
    }

    #[test]
    fn a_directory_is_a_cluster_that_a_client_can_use() {
        let dir = tempfile::tempdir().unwrap();
        let layout = make(&dir.path().join("c"), 2);
        let names: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["master1", "loadbalancer1", "storage1", "worker1", "worker2"]);
        let cluster = client::Cluster::load(&layout.dir).unwrap();
        let master = Certificate::load(layout.dir.join("certificates/master1.key")).unwrap();
        assert_eq!(cluster.masters[0].key, master.public);
        assert_eq!(fs::metadata(&layout.dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_kept_directory_keeps_keys_and_ports() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        drop(make(dir.path(), 1));
        let files = ["cluster.toml", "worker1.toml", "keys/worker1.key_secret", "receipt.key"];
        let before = files.map(read);
        drop(make(dir.path(), 2));
        assert_eq!(files.map(read), before);
        assert!(dir.path().join("worker2.toml").exists());
        assert!(before[1].contains("\nfuse = true\n"), "{}", before[1]);
        drop(Layout::make(Some(dir.path()), 1, 1, Inputs { are_mounted: false, are_borrowed: false }));
        assert!(read("worker1.toml").contains("\nfuse = false\n"), "each start says whether inputs are mounted");
    }

    #[test]
    fn masters_know_each_other_and_stay_as_many_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let start = |masters| Layout::make(Some(dir.path()), masters, 1, MOUNTED);
        drop(start(3));
        let settings: Vec<_> =
            (1..=3).map(|n| fs::read_to_string(dir.path().join(format!("master{n}.toml"))).unwrap()).collect();
        let bound = |text: &str| toml_value(text, "raft_bind");
        for (n, text) in settings.iter().enumerate() {
            for other in (0..3).filter(|other| *other != n) {
                assert!(text.contains(&format!("endpoint = \"{}\"", bound(&settings[other]))), "{text}");
            }
        }
        assert_eq!(client::Cluster::load(dir.path()).unwrap().masters.len(), 3);
        let refused = format!("{:?}", start(1).unwrap_err());
        assert!(refused.contains("has 3 masters, not 1") && refused.contains("--masters 3"), "{refused}");
        drop(start(3).unwrap());
    }

    fn toml_value(text: &str, key: &str) -> String {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).expect("it is there");
        line.trim_matches('"').to_owned()
    }

    #[test]
    fn a_directory_is_for_one_cluster_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _running = make(dir.path(), 1);
        let refused = Layout::make(Some(dir.path()), 1, 1, MOUNTED).unwrap_err();
        assert!(format!("{refused:?}").contains("another zg dev"), "{refused:?}");
    }

    #[test]
    fn directories_that_cannot_work_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let refused = |dir: &Path| format!("{:?}", Layout::make(Some(dir), 1, 1, MOUNTED).unwrap_err());
        assert!(refused(dir.path()).contains("is not empty"));
        assert!(refused(&dir.path().join("thesis.tex")).contains("thesis.tex is not a directory"));
        let long = dir.path().join("x".repeat(90));
        assert!(refused(&long).contains("too long"), "{}", refused(&long));
    }

    #[test]
    fn a_disk_without_room_for_a_cluster_is_refused_with_what_it_has_and_what_is_needed() {
        let refused = check_room(Path::new("/small"), 60 << 20).unwrap_err();
        let said = format!("{refused:?}");
        for word in ["/small", "60 MiB", "160 MiB", "--dir"] {
            assert!(said.contains(word), "'{word}' is not named: {said}");
        }
        assert!(check_room(Path::new("/large"), 160 << 20).is_ok());
    }

    #[test]
    fn a_toml_string_hides_what_would_end_it() {
        assert_eq!(quoted("a\"b\\\n"), "\"a\\\"b\\\\\\U0000000A\"");
    }
}
