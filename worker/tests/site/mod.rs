//! A real `zg-worker` in a directory of its own, between a load balancer, a master and a storage node made by hand.

#![allow(dead_code, reason = "each test file uses a part of the vocabulary")]

pub mod mounted;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use content::{Ask, Expected, Store, hash_bytes};
use node::{Bind, Certificate, Clock, Endpoint, EndpointConfig, Frame, PeerClass};
use wire::job::{JobBody, JobSpec};
use wire::record::{Bundle, NodeRecord, Receipt, StoredFile, decode_output_index};
use wire::run::{Run, decode_results};
use wire::{
    BootNonce, FileId, FixedPart, InventoryRequest, JobId, Message, NodeId, NodeState, NodeWelcome, PeerId, PutAck,
    PutDone, PutGrant, ResultConfirmed, Role, U32, U64, WorkerRequest, Writer,
};

/// Longer than anything here takes on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A peer made by hand: a socket that workers connect to.
pub struct Peer {
    pub node: NodeId,
    pub certificate: Certificate,
    pub endpoint: Endpoint,
    pub address: String,
}

/// What came to a peer.
pub struct Came {
    pub from: PeerId,
    pub frames: Vec<Vec<u8>>,
}

impl Peer {
    fn new(site: &std::path::Path, role: Role) -> Peer {
        let node = NodeId::random();
        let certificate = Certificate::new().with("role", role).with("node", node);
        let bind = Bind { address: "tcp://127.0.0.1:*".into(), class: PeerClass::Control };
        let endpoint = Endpoint::open(EndpointConfig {
            binds: vec![bind],
            certificates_dir: Some(site.join("certificates")),
            ..EndpointConfig::new(node, BootNonce::new(1, 1), certificate.clone())
        })
        .expect("a socket");
        let address = endpoint.bound().remove(0);
        Peer { node, certificate, endpoint, address }
    }

    fn server(&self) -> String {
        let key = node::certificate::z85(&self.certificate.public.0);
        format!("[{{ endpoint = '{}', key = '{key}' }}]", self.address)
    }

    /// Waits a moment at most, and returns what has come.
    pub fn hear(&mut self) -> Vec<Came> {
        let clock = Clock::new();
        self.endpoint.wait(Some(clock.now() + Duration::from_millis(5)));
        let mut came = Vec::new();
        self.endpoint.drain(256, &mut |from, _, frames: Vec<Frame>| {
            came.push(Came { from, frames: frames.iter().map(|frame| frame.to_vec()).collect() });
        });
        came
    }

    pub fn send(&mut self, to: PeerId, frame: Vec<u8>) {
        self.endpoint.send(to, frame).expect("the worker is there");
    }
}

/// The directory, the peers, and what they know.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub load_balancer: Peer,
    pub master: Peer,
    pub storage: Peer,
    pub store: Store,
    /// The load balancer's connection to the worker, once it has spoken.
    pub worker: Option<PeerId>,
    pub boot: u64,
    pub sequence: u64,
    pub credit: u32,
    /// Results by chunk, as the master has confirmed them.
    pub results: BTreeMap<(JobId, u32), wire::record::ChunkResult>,
    pub files: BTreeMap<FileId, StoredFile>,
    /// Results that came for a chunk which had one.
    pub repeated: usize,
    /// Storage gives no file.
    pub is_storage_silent: bool,
    /// Bytes of files that storage was asked for.
    pub bytes_asked: u64,
}

/// A running worker; dropped = killed.
pub struct Running {
    pub child: Child,
}

impl Site {
    pub fn new() -> Site {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["certificates", "store"] {
            std::fs::create_dir(dir.path().join(name)).expect("made");
        }
        let node = NodeId::random();
        let own = Certificate::new().with("role", Role::Worker).with("node", node);
        own.save_secret(dir.path().join("worker.key_secret")).expect("saved");
        own.save_public(dir.path().join("certificates/worker.key")).expect("saved");
        let [load_balancer, master, storage] =
            [Role::LoadBalancer, Role::Master, Role::Storage].map(|role| Peer::new(dir.path(), role));
        std::fs::write(dir.path().join("node"), node.to_string()).expect("written");
        let store = Store::open(&dir.path().join("store"), storage.node).expect("a store");
        Site {
            dir,
            load_balancer,
            master,
            storage,
            store,
            worker: None,
            boot: 0,
            sequence: 0,
            credit: 0,
            results: BTreeMap::new(),
            files: BTreeMap::new(),
            repeated: 0,
            is_storage_silent: false,
            bytes_asked: 0,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The worker's own uuid.
    pub fn node(&self) -> String {
        std::fs::read_to_string(self.path("node")).expect("it was written")
    }

    fn start(&self, more: &str) -> Running {
        let node = self.node();
        let settings = format!(
            "dir = 'data'\nname = 'w'\nnode = '{node}'\ncertificate = 'worker.key_secret'\nslots = 2\n\
             kill_grace_ms = 300\n{more}\n"
        );
        std::fs::write(self.path("worker.toml"), settings).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_zg-worker"))
            .arg(self.path("worker.toml"))
            .env("ZG_LOG", "warn")
            // Not there, unless a test makes it.
            .env("LD_LIBRARY_PATH", self.path("lib"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says that it is ready");
        assert!(line.starts_with("ready:"), "{line:?}");
        Running { child }
    }

    /// A worker that knows one load balancer and nobody else.
    pub fn start_alone(&self) -> Running {
        self.start(&format!("loadbalancers = {}", self.load_balancer.server()))
    }

    /// A worker of a whole cluster.
    pub fn start_in_cluster(&mut self) -> Running {
        self.start_in_cluster_with("")
    }

    /// The same with more settings.
    pub fn start_in_cluster_with(&mut self, more: &str) -> Running {
        let running = self.start(&format!("{more}\nmasters = {}", self.master.server()));
        (self.worker, self.sequence) = (None, 0);
        let boot = self.boot;
        self.until("a new boot's inventory", |site| site.worker.is_some() && site.boot != boot);
        running
    }

    /// Serves everything until `is_done`.
    pub fn until(&mut self, what: &str, mut is_done: impl FnMut(&mut Site) -> bool) {
        let clock = Clock::new();
        let deadline = clock.now() + TIMEOUT;
        while !is_done(self) {
            assert!(clock.now() < deadline, "waited too long for {what}");
            self.serve();
        }
    }

    /// One turn of each peer.
    pub fn serve(&mut self) {
        for came in self.load_balancer.hear() {
            self.on_load_balancer(&came);
        }
        for came in self.master.hear() {
            self.on_master(&came);
        }
        for came in self.storage.hear() {
            self.on_storage(&came);
        }
    }

    fn on_load_balancer(&mut self, came: &Came) {
        match Message::decode(&came.frames[0]).expect("a worker speaks well") {
            Message::WorkerStatus(status, _) if status.epoch.get() == 0 => {
                let request = InventoryRequest { epoch: U64::new(1), boot: U64::new(1), ..InventoryRequest::DEFAULT };
                let frame = request.frame(self.load_balancer.node, &[]);
                self.load_balancer.send(came.from, frame);
            }
            Message::WorkerStatus(status, _) => self.credit = status.credit.get(),
            Message::Inventory(inventory, _) if inventory.epoch.get() == 1 => {
                self.worker = Some(came.from);
                self.boot = inventory.boot.get();
                self.credit = inventory.credit.get();
            }
            Message::Inventory(..) | Message::Killed(..) => {}
            other => panic!("the load balancer did not expect {other:?}"),
        }
    }

    fn on_master(&mut self, came: &Came) {
        match Message::decode(&came.frames[0]).expect("a worker speaks well") {
            Message::NodeHello(hello, _) => {
                let welcome = NodeWelcome {
                    request: hello.request,
                    index: U64::new(1),
                    term: U64::new(1),
                    nodes_version: U64::new(1),
                    ..NodeWelcome::DEFAULT
                };
                let mut body = Writer::new();
                record(&self.load_balancer, Role::LoadBalancer).encode(&mut body);
                record(&self.storage, Role::Storage).encode(&mut body);
                let frame = welcome.frame(self.master.node, &body.bytes);
                self.master.send(came.from, frame);
            }
            Message::WorkerStatus(status, body) if status.num_runs.get() > 0 => {
                let (files, runs) =
                    decode_results(body, status.num_files.get(), status.num_runs.get()).expect("well formed");
                self.files.extend(files.into_iter().map(|file| (file.file, file)));
                let job = status.job_uuid.job();
                for Run { first, results } in runs {
                    for (chunk, result) in (first..).zip(results) {
                        self.repeated += usize::from(self.results.insert((job, chunk), result).is_some());
                    }
                }
                let confirmed = ResultConfirmed {
                    batch: status.batch,
                    job_uuid: status.job_uuid,
                    index: U64::new(2),
                    ..ResultConfirmed::DEFAULT
                };
                let frame = confirmed.frame(self.master.node, &[]);
                self.master.send(came.from, frame);
            }
            Message::WorkerStatus(..) => {
                let heartbeat = wire::LeaderHeartbeat {
                    term: U64::new(1),
                    nodes_version: U64::new(1),
                    flags: U32::new(wire::HEARTBEAT_LEADER),
                    ..wire::LeaderHeartbeat::DEFAULT
                };
                let frame = heartbeat.frame(self.master.node, &[]);
                self.master.send(came.from, frame);
            }
            other => panic!("the master did not expect {other:?}"),
        }
    }

    /// A worker that was stopped for long is connected anew, and asks again: that it hears the answer is not sure.
    fn on_storage(&mut self, came: &Came) {
        let node = self.storage.node;
        let answer: Vec<Vec<u8>> = match Message::decode(&came.frames[0]).expect("a worker speaks well") {
            Message::PutBegin(begin, _) => {
                let contiguous = self.store.begin(begin.upload.get(), Some(begin.file_length.get())).expect("room");
                let grant = PutGrant {
                    request: begin.request,
                    upload: begin.upload,
                    contiguous: U64::new(contiguous),
                    credit: U32::new(16),
                    ..PutGrant::DEFAULT
                };
                vec![grant.frame(node, &[])]
            }
            Message::PutBlock(block, _) => {
                let upload = block.upload.get();
                let contiguous = self.store.write(upload, block.offset.get(), &came.frames[1]).expect("room");
                let ack = PutAck {
                    upload: block.upload,
                    contiguous: U64::new(contiguous),
                    credit: U32::new(16),
                    ..PutAck::DEFAULT
                };
                vec![ack.frame(node, &[])]
            }
            Message::PutCommit(commit, _) => {
                let expected = Expected::Hash(commit.hash);
                let committed = self.store.commit(commit.upload.get(), expected, commit.file_length.get());
                let Ok(done) = committed else {
                    let (code, kind) = (wire::ErrorCode::HashMismatch, Some(wire::Kind::PutCommit));
                    let frame = wire::error_frame(node, code, kind, commit.request.get(), JobId::NIL, "changed");
                    return self.storage.send(came.from, frame);
                };
                let fixed = PutDone {
                    request: commit.request,
                    upload: commit.upload,
                    file_uuid: done.file.into(),
                    file_length: U64::new(done.length),
                    hash: done.hash,
                    ..PutDone::DEFAULT
                };
                let mut body = Writer::new();
                body.plain(&Receipt { node, mac: [7; 32] });
                vec![fixed.frame(node, &body.bytes)]
            }
            Message::FileRequest(..) if self.is_storage_silent => return,
            Message::FileRequest(request, _) => {
                self.bytes_asked += request.length.get();
                let answer = Ask::of(&request).answer(&self.store, node);
                self.storage.endpoint.send(came.from, answer).unwrap_or_default();
                return;
            }
            other => panic!("the storage node did not expect {other:?}"),
        };
        self.storage.endpoint.send(came.from, answer).unwrap_or_default();
    }

    /// Stores a file as a client would have.
    pub fn store(&mut self, bytes: &[u8]) -> (FileId, wire::Hash) {
        self.store.begin(1, Some(bytes.len() as u64)).expect("room");
        self.store.write(1, 0, bytes).expect("room");
        let stored = self.store.commit(1, Expected::Anything, bytes.len() as u64).expect("right");
        assert_eq!(stored.hash, hash_bytes(bytes));
        (stored.file, stored.hash)
    }

    /// Assigns a range of a job; the body goes with it.
    pub fn assign(&mut self, job: JobId, first: u32, count: u32, program: &[u8], inputs: &[FileId], spec: &JobSpec) {
        self.sequence += 1;
        let request = WorkerRequest {
            job_uuid: job.into(),
            program_length: U64::new(program.len() as u64),
            num_input_files: U64::new(inputs.len() as u64),
            first: U32::new(first),
            count: U32::new(count),
            chunk_count: U32::new(spec.array.count() as u32),
            epoch: U64::new(1),
            sequence: U64::new(self.sequence),
            worker_boot: U64::new(self.boot),
            job_number: U64::new(4),
            ..WorkerRequest::DEFAULT
        };
        let frame = request.frame(self.load_balancer.node, &JobBody::encode(program, inputs, spec));
        self.load_balancer.send(self.worker.expect("it has spoken"), frame);
    }

    /// Runs all chunks of a job and returns it.
    pub fn run(&mut self, program: &[u8], inputs: &[FileId], spec: &JobSpec) -> JobId {
        let job = JobId::now();
        let count = spec.array.count() as u32;
        self.assign(job, 0, count, program, inputs, spec);
        self.until("all results", |site| site.results.range((job, 0)..=(job, u32::MAX)).count() == count as usize);
        job
    }

    /// Runs one command line by the shell and returns its result.
    pub fn shell(&mut self, script: &str, spec: JobSpec) -> (wire::record::ChunkResult, Streams) {
        let arguments = [&b"sh"[..], b"-c", script.as_bytes()].map(<[u8]>::to_vec).to_vec();
        let job = self.run(b"", &[], &JobSpec { arguments, ..spec });
        let result = self.results[&(job, 0)];
        (result, self.streams(result.bundle))
    }

    /// What a bundle holds.
    pub fn streams(&self, bundle: Option<Bundle>) -> Streams {
        let Some(bundle) = bundle else { return Streams::default() };
        let stored = &self.files[&bundle.file];
        assert_eq!(stored.receipts, [Receipt { node: self.storage.node, mac: [7; 32] }]);
        let read = |address: Option<wire::FileAddress>| {
            let (offset, length) = address.and_then(|address| address.piece).unwrap_or_default();
            self.store.read(bundle.file, offset, length as usize).expect("it is there")
        };
        let mut outputs = BTreeMap::new();
        let mut offset = bundle.outputs_offset();
        let index = read(bundle.index());
        let entries = if index.is_empty() { Vec::new() } else { decode_output_index(&index).expect("an index") };
        for entry in entries {
            let bytes = self.store.read(bundle.file, offset, entry.length as usize).expect("it is there");
            assert_eq!(hash_bytes(&bytes), entry.hash);
            offset += entry.length;
            outputs.insert(String::from_utf8(entry.name).expect("text"), bytes);
        }
        Streams { stdout: read(bundle.stdout()), stderr: read(bundle.stderr()), outputs }
    }
}

/// What a chunk wrote.
#[derive(Default, Debug, PartialEq)]
pub struct Streams {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub outputs: BTreeMap<String, Vec<u8>>,
}

impl Streams {
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    pub fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("text")
    }
}

fn record(peer: &Peer, role: Role) -> NodeRecord {
    NodeRecord {
        node: peer.node,
        role,
        state: NodeState::Up,
        boot: BootNonce::new(1, 1),
        public_key: peer.certificate.public,
        pid: 1,
        cpus_milli: 0,
        memory: 0,
        is_leader: false,
        is_primary: false,
        name: role.to_string(),
        endpoint: peer.address.clone(),
        bulk_endpoint: String::new(),
    }
}

impl Running {
    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM; returns the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        // SAFETY: a process of ours that has not been waited for.
        let status = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        assert_eq!(status, 0);
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directories of a worker's control groups in all trees.
pub fn groups_of(node: impl std::fmt::Display) -> Vec<PathBuf> {
    let found = Command::new("find").arg("/sys/fs/cgroup").args(["-name", &format!("zg-{node}")]).output();
    let found = String::from_utf8(found.expect("find is there").stdout).expect("text");
    found.lines().map(PathBuf::from).collect()
}

/// Whether a process runs (one that nobody has waited for yet does not).
pub fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}
