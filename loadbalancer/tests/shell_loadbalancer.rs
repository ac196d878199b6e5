//! A real `zg-loadbalancer` between a master and a worker on real sockets: it registers, hands out a job, starts again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use node::certificate::z85;
use node::{Bind, Certificate, Clock, Endpoint, EndpointConfig, PeerClass};
use wire::event::LogEvent;
use wire::job::{JobBody, JobSpec};
use wire::*;

const TIMEOUT: Duration = Duration::from_secs(20);
const JOB: JobId = JobId([7; 16]);

/// One end of a conversation, spoken by the test.
struct Speaker {
    endpoint: Endpoint,
    clock: Clock,
    node: NodeId,
}

impl Speaker {
    fn new(certificate: &Certificate, binds: Vec<Bind>, keys: &Path) -> Speaker {
        let node = certificate.node().expect("it was made for a node");
        let config = EndpointConfig {
            binds,
            certificates_dir: Some(keys.to_owned()),
            ..EndpointConfig::new(node, BootNonce(1 << 32), certificate.clone())
        };
        Speaker { endpoint: Endpoint::open(config).expect("an endpoint"), clock: Clock::new(), node }
    }

    /// Waits for a message of `kind`; what else comes is passed over.
    fn next(&mut self, kind: Kind) -> (PeerId, Vec<u8>) {
        let deadline = self.clock.now() + TIMEOUT;
        let mut found = None;
        while found.is_none() {
            assert!(self.clock.now() < deadline, "no {kind:?} came");
            self.endpoint.wait(Some(deadline));
            self.endpoint.drain(1, &mut |from, _, frames| {
                if frames[0].first() == Some(&(kind as u8)) {
                    found = Some((from, frames[0].to_vec()));
                }
            });
        }
        found.expect("the loop ends with one")
    }

    fn send(&mut self, to: PeerId, frame: Vec<u8>) {
        self.endpoint.send(to, frame).expect("it is taken");
    }

    /// Answers the next watch with these events.
    fn answer_watch(&mut self, index: u64, flags: u32, events: &[LogEvent<'_>]) {
        let (from, frame) = self.next(Kind::Watch);
        let Ok(Message::Watch(watch, _)) = Message::decode(&frame) else { panic!("a watch") };
        assert_eq!(watch.flags.get() & WATCH_FRESH != 0, flags & BATCH_SNAPSHOT != 0);
        let mut body = Writer::new();
        events.iter().for_each(|event| event.encode(&mut body));
        let batch = WatchBatch {
            request: watch.request,
            after: watch.after,
            index: U64::new(index),
            flags: U32::new(flags),
            num_events: U32::new(events.len() as u32),
            ..WatchBatch::DEFAULT
        };
        self.send(from, batch.frame(self.node, &body.bytes));
    }
}

/// A running load balancer; dropped = killed.
struct Running {
    child: Child,
    control: String,
}

impl Running {
    fn start(settings: &Path) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zg-loadbalancer"))
            .arg(settings)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says that it is ready");
        let control = line.trim().strip_prefix("ready: ").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        Running { child, control }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn boot_in_hello(frame: &[u8]) -> (BootNonce, NodeId, u64) {
    let Ok(Message::NodeHello(hello, _)) = Message::decode(frame) else { panic!("a hello") };
    assert_eq!(hello.role, Role::LoadBalancer as u8);
    (BootNonce(hello.boot.get()), hello.subject.node(), hello.request.get())
}

#[test]
fn a_job_goes_from_the_log_to_a_worker_and_a_restart_is_a_new_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).expect("made");
    let [master, us, worker] = [Role::Master, Role::LoadBalancer, Role::Worker].map(|role| {
        let certificate = Certificate::new().with("role", role).with("node", NodeId::random());
        certificate.save_public(keys.join(format!("{role}.key"))).expect("saved");
        certificate
    });
    us.save_secret(dir.path().join("l1.key_secret")).expect("saved");
    let bind = Bind { address: "tcp://127.0.0.1:*".into(), class: PeerClass::Control };
    let mut masters = Speaker::new(&master, vec![bind], &keys);
    let settings = dir.path().join("loadbalancer.toml");
    let text = format!(
        "dir = 'data'\nnode = '{}'\nname = 'l1'\ncertificate = 'l1.key_secret'\ncertificates_dir = 'keys'\n\
         bind = 'tcp://127.0.0.1:*'\n[[masters]]\nendpoint = '{}'\nkey = '{}'\n",
        us.node().expect("it has one"),
        masters.endpoint.bound()[0],
        z85(&master.public.0)
    );
    std::fs::write(&settings, text).expect("written");

    let running = Running::start(&settings);
    let (from, hello) = masters.next(Kind::NodeHello);
    let (boot, load_balancer, request) = boot_in_hello(&hello);
    assert_eq!(Some(load_balancer), us.node());
    let welcome = NodeWelcome { request: U64::new(request), ..NodeWelcome::DEFAULT };
    masters.send(from, welcome.frame(masters.node, &[]));
    masters.answer_watch(1, BATCH_SNAPSHOT, &[]);
    masters.answer_watch(2, 0, &[LogEvent::EpochGranted { load_balancer, boot, epoch: 1 }]);
    let spec = JobSpec { arguments: vec![b"true".to_vec()], ..JobSpec::default() };
    let body = JobBody::encode(b"", &[], &spec);
    let submit = SubmitJob { job_uuid: JOB.into(), chunk_count: U32::new(5), ..SubmitJob::DEFAULT };
    let frame = submit.frame(NodeId([1; 16]), &body);
    masters.answer_watch(3, 0, &[LogEvent::JobAccepted { number: 1, submitted_at: WallTime(0), frame: &frame }]);

    let mut workers = Speaker::new(&worker, Vec::new(), &keys);
    let to = workers
        .endpoint
        .connect(&running.control, Some(us.public), Role::LoadBalancer, PeerClass::Control)
        .expect("it connects");
    let worker_boot = U64::new(1 << 32);
    let status = WorkerStatus { boot: worker_boot, ..WorkerStatus::DEFAULT };
    workers.send(to, status.frame(workers.node, &[]));
    let (from, asked) = workers.next(Kind::InventoryRequest);
    let Ok(Message::InventoryRequest(asked, _)) = Message::decode(&asked) else { panic!("asked") };
    assert_eq!((from, asked.epoch.get()), (to, 1));
    let (epoch, credit, cpus_milli) = (U64::new(1), U32::new(3), U32::new(2_000));
    let inventory = Inventory { boot: worker_boot, epoch, credit, cpus_milli, ..Inventory::DEFAULT };
    workers.send(to, inventory.frame(workers.node, &[]));
    let (_, request) = workers.next(Kind::WorkerRequest);
    let Ok(Message::WorkerRequest(request, came)) = Message::decode(&request) else { panic!("a request") };
    assert_eq!((request.job_uuid.job(), request.first.get(), request.count.get()), (JOB, 0, 3));
    assert_eq!((request.epoch.get(), request.sequence.get(), request.worker_boot), (1, 1, worker_boot));
    assert_eq!(came, body);

    drop(running);
    let _running = Running::start(&settings);
    // A hello of the first process may still lie in the queue.
    let later = loop {
        let (_, hello) = masters.next(Kind::NodeHello);
        let (later, subject, _) = boot_in_hello(&hello);
        assert_eq!(subject, load_balancer);
        if later != boot {
            break later;
        }
    };
    assert!(later > boot);
}

#[test]
fn settings_that_are_wrong_end_it_with_a_word() {
    let dir = tempfile::tempdir().expect("a directory");
    let settings = dir.path().join("loadbalancer.toml");
    std::fs::write(&settings, "name = 'l1'\nbidn = 'tcp://127.0.0.1:1'\n").expect("written");
    let ended = Command::new(env!("CARGO_BIN_EXE_zg-loadbalancer")).arg(&settings).output().expect("it starts");
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("loadbalancer.toml") && said.contains("bidn"), "{said}");
}
