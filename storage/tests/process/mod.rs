//! A real `zg-storage` in a directory of its own, with keys for those who talk to it.

#![allow(dead_code, reason = "each test file uses a part of the vocabulary")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use content::{Holder, HolderAddress};
use node::{Certificate, PeerClass};
use wire::{BootNonce, ClientKey, NodeId, Role};

/// A directory with a storage node's files, keys and settings.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub node: NodeId,
    pub storage_key: ClientKey,
    pub client: Certificate,
    pub receipt_key: [u8; 32],
}

/// A running storage node; dropped = killed.
pub struct Running {
    pub child: Child,
    pub control: String,
    pub bulk: String,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let keys = dir.path().join("keys");
        std::fs::create_dir(&keys).expect("made");
        let node = NodeId::random();
        let storage = Certificate::new().with("role", Role::Storage).with("node", node).with("name", "s1");
        storage.save_secret(dir.path().join("s1.key_secret")).expect("saved");
        storage.save_public(dir.path().join("s1.key")).expect("saved");
        let client = Certificate::new().with("role", Role::Client).with("name", "c1");
        client.save_public(keys.join("c1.key")).expect("saved");
        let receipt_key = content::new_receipt_key().expect("random bytes");
        content::save_receipt_key(&dir.path().join("receipt.key"), &receipt_key).expect("saved");
        Self { dir, node, storage_key: storage.public, client, receipt_key }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self, bind: &str) -> PathBuf {
        let settings = format!(
            "dir = 'data'\nnode = '{}'\nname = 's1'\ncertificate = 's1.key_secret'\ncertificates_dir = 'keys'\n\
             bind = '{bind}'\nbulk_bind = 'ipc://{}'\nreceipt_key = 'receipt.key'\n",
            self.node,
            self.path("bulk").display()
        );
        let path = self.path("storage.toml");
        std::fs::write(&path, settings).expect("written");
        path
    }

    /// Starts a storage node at `bind` and waits until peers can connect.
    pub fn start(&self, bind: &str) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zg-storage"))
            .arg(self.settings(bind))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says that it is ready");
        let mut words = line.trim().strip_prefix("ready: ").unwrap_or_else(|| panic!("it said {line:?}")).split(' ');
        let mut next = || words.next().expect("two addresses").to_owned();
        Running { control: next(), bulk: next(), child }
    }

    /// A client's connection to the control socket.
    pub fn connect(&self, running: &Running) -> Holder {
        let address = HolderAddress {
            endpoint: running.control.clone(),
            key: Some(self.storage_key),
            role: Role::Storage,
            class: PeerClass::Control,
        };
        Holder::connect(NodeId::random(), BootNonce::new(1, 1), self.client.clone(), &address).expect("an endpoint")
    }

    /// A client's connection to the bulk socket.
    pub fn connect_bulk(&self, running: &Running) -> Holder {
        let address =
            HolderAddress { endpoint: running.bulk.clone(), key: None, role: Role::Storage, class: PeerClass::Bulk };
        Holder::connect(NodeId::random(), BootNonce::new(1, 1), self.client.clone(), &address).expect("an endpoint")
    }

    /// Bytes that uploads have brought so far.
    pub fn staged(&self) -> u64 {
        let Ok(parts) = std::fs::read_dir(self.path("data/staging")) else { return 0 };
        // The file is reserved whole at once, so what counts is where its data ends: ask how much is not a hole.
        parts.flatten().map(|part| written(&part.path())).sum()
    }
}

/// Where the data of a file ends that is being written from its start on: unwritten reserved space reads as a hole.
fn written(path: &Path) -> u64 {
    use std::os::fd::AsRawFd;
    let Ok(file) = std::fs::File::open(path) else { return 0 };
    // SAFETY: the descriptor is open; plain numbers go in and out.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE) };
    u64::try_from(hole).unwrap_or(0)
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

/// `length` bytes that do not repeat from block to block.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
