//! Answers libzmq's question for every CURVE connection: is this key one of ours?
//!
//! The keys are the public certificates `*.key` of one directory. A certificate that is dropped in later counts from the
//! next question on, one that is removed is refused. Each endpoint has its own list, found by its ZAP domain; a domain
//! without a list gets no one in. Whoever is not admitted gets status 300, "try later", not 400: libzmq's client gives
//! up for ever on 400, and then a node that was started before its certificate arrived would never connect. (libzmq ends
//! a connection that got 300 at the latest when its handshake time is over.)

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fs, io};

use wire::{ClientKey, Instant, NodeId, Role};

use crate::certificate::{Certificate, z85};
use crate::clock::Clock;

pub(crate) const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// At most this often is the directory read again because of a key that is not known.
const REREAD_INTERVAL: Duration = Duration::from_secs(1);
/// File systems stamp in steps; a directory changed this recently may change again under the same stamp.
const STAMP_STEP_NS: i64 = 50_000_000;

/// The certificates that an endpoint admits.
#[derive(Debug)]
pub struct AllowList {
    dir: PathBuf,
    state: Mutex<State>,
    /// Counts changes, so that the endpoint looks again at connections that it knows.
    version: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<ClientKey, Entry>,
    nodes: BTreeMap<NodeId, ClientKey>,
    /// The directory's modification stamp in ns when it was last read; `None` = read again.
    stamp: Option<i64>,
    read_at: Option<Instant>,
}

/// What the directory says of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub role: Option<Role>,
    pub node: Option<NodeId>,
}

impl AllowList {
    /// Reads the directory, which must exist.
    pub fn open(dir: &Path) -> io::Result<AllowList> {
        fs::read_dir(dir)?;
        let list = AllowList { dir: dir.to_owned(), state: Mutex::default(), version: AtomicU64::new(0) };
        list.refresh();
        Ok(list)
    }

    /// Reads the directory again if it has changed.
    pub fn refresh(&self) {
        self.refresh_locked(&mut self.lock());
    }

    /// Looks up a key, and if it is not there looks again at the directory.
    pub fn find(&self, key: ClientKey) -> Option<Entry> {
        let mut state = self.lock();
        if !state.entries.contains_key(&key) {
            // A certificate may have been written over without a trace in the directory's stamp.
            let is_old = state.read_at.is_none_or(|read_at| Clock.now().since(read_at) >= REREAD_INTERVAL);
            if is_old {
                state.stamp = None;
            }
            self.refresh_locked(&mut state);
        }
        state.entries.get(&key).copied()
    }

    /// The key that `node` is bound to.
    pub fn owner(&self, node: NodeId) -> Option<ClientKey> {
        self.lock().nodes.get(&node).copied()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the list")
    }

    fn refresh_locked(&self, state: &mut State) {
        // A directory that cannot be read admits nobody.
        let stamp = fs::metadata(&self.dir).map(|found| found.mtime() * 1_000_000_000 + found.mtime_nsec()).ok();
        if stamp.is_some() && stamp == state.stamp {
            return;
        }
        let is_settled = stamp.is_some_and(|stamp| Clock.wall().0 as i64 * 1_000 - stamp > STAMP_STEP_NS);
        let (entries, nodes) = read_dir(&self.dir);
        state.stamp = stamp.filter(|_| is_settled);
        state.read_at = Some(Clock.now());
        if entries != state.entries {
            tracing::info!(dir = %self.dir.display(), keys = entries.len(), "certificates read");
            state.entries = entries;
            state.nodes = nodes;
            self.version.fetch_add(1, Ordering::Release);
        }
    }
}

fn read_dir(dir: &Path) -> (BTreeMap<ClientKey, Entry>, BTreeMap<NodeId, ClientKey>) {
    let (mut entries, mut nodes) = (BTreeMap::new(), BTreeMap::new());
    let mut paths: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(files) => files.flatten().map(|file| file.path()).collect(),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot read certificates: nobody is admitted");
            return (entries, nodes);
        }
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "key"));
    // In the order of names, so that of two that contradict each other the same one counts every time.
    paths.sort();
    for path in paths {
        let certificate = match Certificate::load(&path) {
            Ok(certificate) => certificate,
            Err(error) => {
                tracing::warn!(%error, "certificate is left out");
                continue;
            }
        };
        if entries.contains_key(&certificate.public) {
            tracing::warn!(path = %path.display(), "certificate is left out: another file has this key");
            continue;
        }
        let entry = Entry { role: certificate.role(), node: certificate.node() };
        if entry.node.is_none() && entry.role.is_some_and(|role| role != Role::Client) {
            tracing::warn!(path = %path.display(), "certificate has a role but no node: seed-level messages only");
        }
        entries.insert(certificate.public, entry);
        if let Some(node) = entry.node {
            nodes.insert(node, certificate.public);
        }
    }
    (entries, nodes)
}

/// Who is asked in which ZAP domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domains(Arc<Mutex<BTreeMap<String, Arc<AllowList>>>>);

impl Domains {
    pub(crate) fn insert(&self, domain: String, list: Arc<AllowList>) {
        self.lock().insert(domain, list);
    }

    pub(crate) fn remove(&self, domain: &str) {
        self.lock().remove(domain);
    }

    fn find(&self, domain: &str) -> Option<Arc<AllowList>> {
        self.lock().get(domain).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AllowList>>> {
        self.0.lock().expect("no thread panics while it holds the domains")
    }
}

/// Answers on `socket` until `stop` is readable. Runs on its own thread; if it ended early no one could connect.
pub(crate) fn serve(socket: &zmq::Socket, stop: &OwnedFd, domains: &Domains) -> Result<(), zmq::Error> {
    let mut refused = HashSet::new();
    loop {
        let mut items = [socket.as_poll_item(zmq::POLLIN), zmq::PollItem::from_fd(stop.as_raw_fd(), zmq::POLLIN)];
        match zmq::poll(&mut items, -1) {
            Ok(_) | Err(zmq::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
        if items[1].is_readable() {
            return Ok(());
        }
        if !items[0].is_readable() {
            continue;
        }
        let question = socket.recv_multipart(0)?;
        let [version, request, ..] = &question[..] else {
            tracing::error!(frames = question.len(), "libzmq asked a question without a number");
            continue;
        };
        let (status, text, user) = match judge(&question, domains) {
            Ok(key) => ("200", "OK", z85(&key.0)),
            Err(reason) => {
                note_refusal(&question, reason, &mut refused);
                ("300", reason, String::new())
            }
        };
        let answer: [&[u8]; 6] = [version, request, status.as_bytes(), text.as_bytes(), user.as_bytes(), b""];
        socket.send_multipart(answer, 0)?;
    }
}

fn judge(question: &[Vec<u8>], domains: &Domains) -> Result<ClientKey, &'static str> {
    let [version, _request, domain, _address, _identity, mechanism, credentials @ ..] = question else {
        return Err("the question has too few frames");
    };
    if version != b"1.0" {
        return Err("not ZAP 1.0");
    }
    let (b"CURVE", [key]) = (&mechanism[..], credentials) else { return Err("only CURVE is admitted") };
    let key = ClientKey(key.as_slice().try_into().map_err(|_| "a CURVE key has 32 bytes")?);
    let list = std::str::from_utf8(domain).ok().and_then(|domain| domains.find(domain)).ok_or("unknown domain")?;
    list.find(key).map(|_| key).ok_or("unknown key")
}

/// Logs the first refusal of each key; the peer tries again every second.
fn note_refusal(question: &[Vec<u8>], reason: &str, refused: &mut HashSet<Vec<u8>>) {
    const REMEMBERED_MAX: usize = 1024;
    let key = question.get(6).cloned().unwrap_or_default();
    if refused.len() == REMEMBERED_MAX {
        refused.clear();
    }
    if refused.insert(key.clone()) {
        let key = key.as_slice().try_into().map_or_else(|_| "none".to_owned(), z85);
        let address = question.get(3).map(|address| String::from_utf8_lossy(address).into_owned()).unwrap_or_default();
        tracing::warn!(address, key, reason, "connection refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(domain: &str, mechanism: &str, key: &[u8]) -> Vec<Vec<u8>> {
        let parts: [&[u8]; 7] = [b"1.0", b"1", domain.as_bytes(), b"127.0.0.1", b"", mechanism.as_bytes(), key];
        parts.iter().map(|part| part.to_vec()).collect()
    }

    #[test]
    fn only_a_listed_key_of_the_right_domain_gets_in() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (Certificate::new(), Certificate::new());
        ours.save_public(dir.path().join("ours.key")).unwrap();
        other.save_public(dir.path().join("other.txt")).unwrap();
        fs::write(dir.path().join("broken.key"), "curve\n").unwrap();
        let domains = Domains::default();
        domains.insert("a".into(), Arc::new(AllowList::open(dir.path()).unwrap()));

        assert_eq!(judge(&question("a", "CURVE", &ours.public.0), &domains), Ok(ours.public));
        assert!(judge(&question("a", "CURVE", &other.public.0), &domains).is_err());
        assert!(judge(&question("b", "CURVE", &ours.public.0), &domains).is_err());
        assert!(judge(&question("a", "NULL", &ours.public.0), &domains).is_err());
        assert!(judge(&question("a", "CURVE", &[1; 31]), &domains).is_err());
        assert!(judge(&question("a", "CURVE", &ours.public.0)[..6], &domains).is_err());
        domains.remove("a");
        assert!(judge(&question("a", "CURVE", &ours.public.0), &domains).is_err());
    }

    #[test]
    fn the_directory_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let list = AllowList::open(dir.path()).unwrap();
        let node = NodeId([3; 16]);
        let late = Certificate::new().with("role", Role::Worker).with("node", node);
        assert_eq!(list.find(late.public), None);
        let path = dir.path().join("late.key");
        late.save_public(&path).unwrap();
        assert_eq!(list.find(late.public), Some(Entry { role: Some(Role::Worker), node: Some(node) }));
        assert_eq!(list.owner(node), Some(late.public));
        let version = list.version();
        fs::remove_file(&path).unwrap();
        list.refresh();
        assert_eq!(list.find(late.public), None);
        assert_eq!(list.owner(node), None);
        assert_ne!(list.version(), version);
        drop(dir);
        list.refresh();
        assert_eq!(list.find(late.public), None);
    }
}
