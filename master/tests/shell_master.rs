//! A real master process over real sockets and a real disk: what was acknowledged survives `kill -9`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use node::{Certificate, Clock, Endpoint, EndpointConfig, PeerClass};
use wire::record::JobRecord;
use wire::{BootNonce, FixedPart, JobId, Message, NodeId, PeerId, QUERY_ALL, Query, Reader, Role, Subject, U32};

use crate::support::frames::*;

/// Longer than anything here takes on a busy machine; reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with keys and settings of a master, and of the client that talks to it.
struct Site {
    dir: tempfile::TempDir,
    master: Certificate,
    client: Certificate,
}

impl Site {
    fn new(more_settings: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let master = Certificate::new().with("role", "master").with("node", MASTER);
        let client = Certificate::new().with("role", "client");
        std::fs::create_dir(path("certificates")).unwrap();
        master.save_secret(path("master.key_secret")).unwrap();
        client.save_public(path("certificates/client.key")).unwrap();
        content::save_receipt_key(&path("receipt.key"), &RECEIPT_KEY).unwrap();
        let settings = format!(
            "dir = 'data'\nname = 'm1'\nnode = '{MASTER}'\ncertificate = 'master.key_secret'\n\
             certificates_dir = 'certificates'\nbind = 'tcp://127.0.0.1:*'\nreceipt_key = 'receipt.key'\n{more_settings}"
        );
        std::fs::write(path("master.toml"), settings).unwrap();
        Site { dir, master, client }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zg-master"));
        command.arg(self.dir.path().join("master.toml")).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a master and waits until it leads.
    fn start(&self) -> Running {
        let mut child = self.command().stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready: ").unwrap_or_else(|| panic!("it said '{line}'")).to_owned();
        let config = EndpointConfig::new(CLIENT, BootNonce(1), self.client.clone());
        let mut endpoint = Endpoint::open(config).unwrap();
        let peer = endpoint.connect(&address, Some(self.master.public), Role::Master, PeerClass::Control).unwrap();
        Running { child, endpoint, peer }
    }

    /// Starts a master that must not start; what it says.
    fn refused(&self) -> String {
        let mut child = self.command().spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        said.lines().last().unwrap_or_default().to_owned()
    }
}

struct Running {
    child: Child,
    endpoint: Endpoint,
    peer: PeerId,
}

impl Running {
    fn send(&mut self, frame: Vec<u8>) {
        self.endpoint.send(self.peer, frame).unwrap();
    }

    /// The next message from the master.
    fn next(&mut self) -> Vec<u8> {
        let clock = Clock::new();
        let end = clock.now() + PATIENCE;
        let mut next = None;
        while next.is_none() {
            assert!(clock.now() < end, "the master is silent");
            self.endpoint.wait(Some(clock.now() + Duration::from_millis(100)));
            self.endpoint.drain(1, &mut |_, _, frames| next = Some(frames[0].to_vec()));
        }
        next.unwrap()
    }

    fn said(&mut self) -> String {
        let frame = self.next();
        crate::support::said(PeerId(0), &frame)
    }

    /// Every job that the master knows.
    fn jobs(&mut self) -> Vec<JobRecord> {
        let all = Query { flags: U32::new(QUERY_ALL), limit: U32::new(10_000), ..query(9, Subject::Jobs) };
        self.send(all.frame(CLIENT, b""));
        let frame = self.next();
        let Ok(Message::Answer(fixed, body)) = Message::decode(&frame) else {
            panic!("{}", crate::support::said(PeerId(0), &frame))
        };
        let mut from = Reader::new(body);
        (0..fixed.num_records.get()).map(|_| JobRecord::decode(&mut from).unwrap()).collect()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MASTER: NodeId = crate::support::MASTER;

fn job(n: u32) -> JobId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    JobId(id)
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let site = Site::new("init = true\n");
    let mut master = site.start();
    master.send(submit(1, job(1), &a_spec(1_000_000)));
    assert_eq!(master.said(), "0: job_accepted #1 number 1");
    // More than it can have answered when it is killed.
    for n in 2..=400 {
        master.send(submit(n.into(), job(n), &a_spec(3)));
    }
    let acknowledged: Vec<String> = (0..100).map(|_| master.said()).collect();
    assert_eq!(acknowledged[99], "0: job_accepted #101 number 101");
    master.kill();

    let mut master = site.start();
    let jobs = master.jobs();
    assert!(jobs.len() >= 101, "{} jobs came back", jobs.len());
    let numbered = jobs.iter().zip(1..).all(|(record, n)| record.number == u64::from(n) && record.job == job(n));
    assert!(numbered, "jobs keep their numbers");
    assert_eq!(jobs[0].counts.waiting, 1_000_000);
    master.send(submit(77, job(5), &a_spec(3)));
    assert_eq!(master.said(), "0: job_accepted #77 number 5");
}

#[test]
fn a_master_comes_back_from_its_snapshot() {
    let site = Site::new("init = true\n[timings]\nsnapshot_entries = 5\n");
    let mut master = site.start();
    for n in 1..=60 {
        master.send(submit(n.into(), job(n), &a_spec(2)));
        master.said();
    }
    master.send(cancel(99, job(3), 0, 1));
    assert_eq!(master.said(), "0: committed #99 changed 1");
    master.kill();
    assert!(snapshots(&site.data()).len() == 2);

    let mut master = site.start();
    let jobs = master.jobs();
    assert_eq!(jobs.len(), 60);
    assert_eq!((jobs[2].counts.canceled, jobs[2].counts.waiting), (1, 1));
    master.kill();

    let newest = snapshots(&site.data()).pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let said = site.refused();
    assert!(said.contains(newest.to_str().unwrap()) && said.contains("damaged"), "{said}");
}

fn snapshots(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("snapshots")).unwrap();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "snapshot"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn an_empty_directory_is_refused_unless_it_is_meant() {
    let site = Site::new("");
    let said = site.refused();
    assert!(said.contains("init = true") && said.contains("data"), "{said}");
    assert!(!site.data().exists(), "nothing half-done is left");
}

#[test]
fn a_directory_in_use_is_refused() {
    let site = Site::new("init = true\n");
    let _running = site.start();
    let said = site.refused();
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn a_disk_without_room_is_no_crash() {
    let site = Site::new("init = true\nfree_bytes_min = 9000000000000000000\n");
    let mut child = site.command().stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("disk is full")));
    assert!(told.is_some(), "it says why it does not lead");
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    drop(lines);
    assert!(child.wait().unwrap().success());
}

#[test]
fn sigterm_ends_a_master_at_once_and_well() {
    let site = Site::new("init = true\n");
    let mut master = site.start();
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(master.child.id() as libc::pid_t, libc::SIGTERM) };
    assert!(master.child.wait().unwrap().success());
}

/// Three masters' folders in one, with the ports by which they know each other.
struct Trio {
    dir: tempfile::TempDir,
    nodes: [NodeId; 3],
    keys: Vec<Certificate>,
    ports: Vec<u16>,
    client: Certificate,
}

impl Trio {
    fn new() -> Trio {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let nodes = [1, 2, 3].map(|n| NodeId::from_halves(0xA1, n));
        let key = |node: &NodeId| Certificate::new().with("role", "master").with("node", node);
        let keys: Vec<Certificate> = nodes.iter().map(key).collect();
        let client = Certificate::new().with("role", "client");
        std::fs::create_dir(path("certificates")).unwrap();
        client.save_public(path("certificates/client.key")).unwrap();
        content::save_receipt_key(&path("receipt.key"), &RECEIPT_KEY).unwrap();
        // Free at the moment; nobody else takes ports here by number.
        let sockets: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        let trio = Trio { nodes, keys, ports, client, dir };
        for n in 0..3 {
            trio.keys[n].save_secret(trio.dir.path().join(format!("m{n}.key_secret"))).unwrap();
            trio.keys[n].save_public(trio.dir.path().join(format!("certificates/m{n}.key"))).unwrap();
            std::fs::write(trio.dir.path().join(format!("m{n}.toml")), trio.settings(n)).unwrap();
        }
        trio
    }

    fn settings(&self, n: usize) -> String {
        let mut settings = format!(
            "dir = 'data{n}'\nname = 'm{n}'\nnode = '{}'\ncertificate = 'm{n}.key_secret'\n\
             certificates_dir = 'certificates'\nbind = 'tcp://127.0.0.1:*'\nraft_bind = 'tcp://127.0.0.1:{}'\n\
             receipt_key = 'receipt.key'\ninit = true\n",
            self.nodes[n], self.ports[n]
        );
        for other in (0..3).filter(|other| *other != n) {
            let (node, port, key) =
                (self.nodes[other], self.ports[other], node::certificate::z85(&self.keys[other].public.0));
            settings += &format!("[[masters]]\nnode = '{node}'\nendpoint = 'tcp://127.0.0.1:{port}'\nkey = '{key}'\n");
        }
        settings
    }

    fn spawn(&self, n: usize) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zg-master"));
        command.arg(self.dir.path().join(format!("m{n}.toml"))).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Waits until the master leads or follows, and connects to it.
    fn connect(&self, n: usize, mut child: Child) -> Running {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready: ").unwrap_or_else(|| panic!("it said '{line}'")).to_owned();
        let config = EndpointConfig::new(CLIENT, BootNonce(1), self.client.clone());
        let mut endpoint = Endpoint::open(config).unwrap();
        let peer = endpoint.connect(&address, Some(self.keys[n].public), Role::Master, PeerClass::Control).unwrap();
        Running { child, endpoint, peer }
    }

    /// Asks one after the other until one that leads has accepted the job; returns which, and what it said.
    fn submit(&self, masters: &mut [Option<Running>], n: u32) -> (usize, String) {
        for at in (0..masters.len()).cycle().take(10_000) {
            let Some(master) = &mut masters[at] else { continue };
            master.send(submit(n.into(), job(n), &a_spec(3)));
            let said = master.said();
            if !said.contains("not_leader") && !said.contains("not_ready") {
                return (at, said);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        panic!("nobody leads");
    }
}

#[test]
fn three_masters_go_on_when_their_leader_is_killed_and_all_come_back() {
    let trio = Trio::new();
    let children: Vec<Child> = (0..3).map(|n| trio.spawn(n)).collect();
    let mut masters: Vec<Option<Running>> =
        children.into_iter().enumerate().map(|(n, child)| Some(trio.connect(n, child))).collect();
    let (first, said) = trio.submit(&mut masters, 1);
    assert_eq!(said, "0: job_accepted #1 number 1");
    masters[first].take().expect("it led").kill();
    let (_, said) = trio.submit(&mut masters, 2);
    assert_eq!(said, "0: job_accepted #2 number 2");
    // It comes back, and then the others go: what it did not see it has been told.
    masters[first] = Some(trio.connect(first, trio.spawn(first)));
    let (_, said) = trio.submit(&mut masters, 3);
    assert_eq!(said, "0: job_accepted #3 number 3");
    masters.iter_mut().flat_map(Option::take).for_each(Running::kill);
    let children: Vec<Child> = (0..3).map(|n| trio.spawn(n)).collect();
    let mut masters: Vec<Option<Running>> =
        children.into_iter().enumerate().map(|(n, child)| Some(trio.connect(n, child))).collect();
    let (leader, said) = trio.submit(&mut masters, 4);
    assert_eq!(said, "0: job_accepted #4 number 4");
    let numbers: Vec<u64> = masters[leader].as_mut().expect("it leads").jobs().iter().map(|job| job.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}
