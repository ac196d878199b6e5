//! The mount: a job's inputs under their names, and any stored file under its id, as a read-only file system.
//!
//! A mount is a promise to the kernel that somebody answers. Whoever asks while nobody does is stuck, so beside the threads
//! that answer stands a watchdog, a process of its own (`crate::watch`), which takes the mount away when we are gone or have
//! stopped; a keeper tells it each second that we are there, and mounts again when a connection has ended without us.
//! Our own threads never touch a path under the mount: they would wait for themselves.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use node::channel::{self, Orders, Receiver, RecvTimeoutError};
use wire::record::InputCounts;
use wire::{FileId, JobId, NodeId};

use crate::slot::WORKER_EXECUTABLE;
use crate::supply::{Shelf, Supplier};

mod files;
mod kernel;
mod parking;
mod policy;
mod session;
pub mod stale;
mod view;

pub use parking::{Arrival, Parking};
pub use policy::AWAITED_SIZE_MAX;
use session::{Connection, Fuser, Names};
use view::View;
pub use view::{Content, PathTaken, Published, Tree, TreeBytes, What};

/// What is read ahead of whoever reads in order, in KiB; as much as the kernel asks for in one request.
const READ_AHEAD_KIB: u32 = 1024;
type Shared = files::Shared<Fuser>;

/// Names that wait to be forgotten by the kernel. More are remembered until they are shown again.
const FORGOTTEN_MAX: usize = 4096;
/// How often the watchdog hears that we are there.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread that fetches may not have answered before we are as good as stopped.
const BEATS_MISSED_MAX: u64 = 3;
const TRIES_MAX: u32 = 8;

#[derive(Clone, Debug)]
pub struct MountSettings {
    pub node: NodeId,
    /// Tells this boot's mount from those before.
    pub boot: u64,
    /// Where it appears: the directory of all workers' mounts.
    pub dir: PathBuf,
    /// When inputs were last modified, in seconds since 1970.
    pub mtime_s: i64,
    /// How long a read may take.
    pub read_timeout: Duration,
    /// Held while a process is started; see `Benches`.
    pub gate: Arc<Mutex<()>>,
}

impl MountSettings {
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.node.to_string()).join("fs")
    }
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{path}: {source}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("what an earlier start left mounted stays: {0}")]
    Stale(io::Error),
    #[error("it cannot be mounted: {0}")]
    Mount(io::Error),
    #[error("its watchdog cannot be started: {0}")]
    Watchdog(io::Error),
    #[error("its threads cannot be started: {0}")]
    Thread(io::Error),
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Opened to be read past us.
    passthrough: AtomicU64,
    /// Opened to be read through us.
    cached: AtomicU64,
    /// Opens that waited for the whole file first.
    waited: AtomicU64,
    /// Opens and reads that failed.
    failed: AtomicU64,
    bytes_served: AtomicU64,
}

impl Counts {
    fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

/// Who was refused an input, or may have read something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Missed {
    /// What runs below this child of ours.
    Below(u32),
    /// Some run of the job.
    Job(JobId),
}

/// Which mount it is, counted from the first, and the descriptor by which the kernel tells whether it still is.
type Standing = Option<(u64, OwnedFd)>;

/// A job that is shown no longer, and the stored files that no job has now.
struct Withdrawn {
    job: JobId,
    unused: Vec<FileId>,
}

/// A mount that is up. Dropped, it is gone.
pub struct Mount {
    shared: Arc<Shared>,
    path: PathBuf,
    names: Arc<Mutex<Option<Names>>>,
    standing: Arc<Mutex<Standing>>,
    keeper: Mutex<Option<(Orders<Withdrawn>, thread::JoinHandle<()>)>>,
}

impl Mount {
    /// Mounts, after what earlier starts left is taken away.
    pub fn open(
        settings: MountSettings,
        shelf: Arc<dyn Shelf>,
        supplier: Supplier,
        parking: Arc<Parking>,
    ) -> Result<Self, MountError> {
        let view = View::new(settings.mtime_s);
        let shared = Arc::new(Shared::new(view, shelf, supplier, parking, settings.read_timeout));
        let path = settings.path();
        let mut keeper =
            Keeper { settings, shared, names: Arc::default(), standing: Arc::default(), mounts: 0, up: None };
        keeper.begin()?;
        let (forgotten, waiting) = channel::to_helper(FORGOTTEN_MAX);
        let (shared, names, standing) = (keeper.shared.clone(), keeper.names.clone(), keeper.standing.clone());
        let run = thread::Builder::new().name("mount".into()).spawn(move || keeper.run(&waiting));
        let keeper = Mutex::new(Some((forgotten, run.map_err(MountError::Thread)?)));
        Ok(Self { shared, path, names, standing, keeper })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which mount it is that stands, counted from the first; `None` = none does, and whoever looks for an input finds nothing.
    pub fn standing(&self) -> Option<u64> {
        let standing = held(&self.standing);
        let (number, device) = standing.as_ref()?;
        let mut poll = libc::pollfd { fd: device.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: `poll` lives until the call returns.
        let cut = unsafe { libc::poll(&mut poll, 1, 0) };
        (cut == 0).then_some(*number)
    }

    /// Looks whether all that is open to be read unchecked is as it was; `missed` tells of what is not.
    pub fn look_at_open(&self) {
        self.shared.look_at_open();
    }

    /// Who did not get what it was to read, since the last call. It is known here before it is known to them.
    pub fn missed(&self) -> BTreeSet<Missed> {
        std::mem::take(&mut held(&self.shared.missed))
    }

    /// How programs have read their inputs so far.
    pub fn counts(&self) -> InputCounts {
        let Counts { passthrough, cached, waited, failed, bytes_served } = &self.shared.counts;
        let [opens_passthrough, opens_cached, opens_waited, reads_failed, bytes_served] =
            [passthrough, cached, waited, failed, bytes_served].map(|count| count.load(Ordering::Relaxed));
        let bytes_fetched = self.shared.supplier().bytes_fetched();
        InputCounts { opens_passthrough, opens_cached, opens_waited, reads_failed, bytes_served, bytes_fetched }
    }

    /// Shows a job's inputs, in the place of what it had before. Not for threads that answer the kernel, and not for the loop.
    pub fn publish(&self, job: JobId, inputs: Vec<Published>) -> Result<(), PathTaken> {
        self.shared.view_mut().withdraw(job);
        if let Some(names) = &*held(&self.names) {
            names.forget_job(job);
        }
        self.shared.view_mut().publish(job, inputs)
    }

    /// Shows the job no longer. Returns at once.
    pub fn withdraw(&self, job: JobId) {
        let unused = self.shared.view_mut().withdraw(job);
        // Where there is no room the kernel goes on knowing a name that leads nowhere.
        if let Some((forgotten, _)) = &*held(&self.keeper) {
            let _ = forgotten.try_send(Withdrawn { job, unused });
        }
    }

    /// Takes the mount away, whoever uses it.
    pub fn close(&self) {
        let Some((forgotten, keeper)) = held(&self.keeper).take() else { return };
        drop(forgotten);
        if keeper.join().is_err() {
            tracing::error!("the keeper of the mount has ended badly");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.close();
    }
}

/// Keeps the mount up: a thread's work.
struct Keeper {
    settings: MountSettings,
    shared: Arc<Shared>,
    names: Arc<Mutex<Option<Names>>>,
    standing: Arc<Mutex<Standing>>,
    /// How often it was mounted.
    mounts: u64,
    up: Option<(Connection, Watchdog)>,
}

impl Keeper {
    fn begin(&mut self) -> Result<(), MountError> {
        let node = self.settings.node;
        for path in stale::remove(node).map_err(MountError::Stale)? {
            tracing::warn!(path = %path.display(), "a mount was left over and is taken away");
        }
        let path = self.settings.path();
        let source = stale::source(node, self.settings.boot);
        let connection = self.mount(&path, &source)?;
        let watchdog = {
            let _gate = held(&self.settings.gate);
            Watchdog::start(&path, &source)
        };
        let watchdog = match watchdog {
            Ok(watchdog) => watchdog,
            Err(error) => {
                take_away(&path, &source);
                let _ = connection.join();
                return Err(MountError::Watchdog(error));
            }
        };
        read_ahead(&source);
        *held(&self.names) = Some(connection.names());
        self.mounts += 1;
        // Without a descriptor more there is no mount that anything could rely on.
        *held(&self.standing) = connection.device().ok().map(|device| (self.mounts, device));
        self.up = Some((connection, watchdog));
        Ok(())
    }

    fn mount(&self, path: &Path, source: &str) -> Result<Connection, MountError> {
        let mut tries = 0;
        loop {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(|source| MountError::Directory { path: path.to_owned(), source })?;
            match Connection::open(path, source, &self.shared) {
                Ok(connection) => return Ok(connection),
                // The watchdog of an earlier start may just have removed the directory.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && path.parent().is_some_and(|it| !it.exists())
                        && tries < TRIES_MAX =>
                {
                    tries += 1
                }
                Err(error) => {
                    remove_directories(path);
                    return Err(MountError::Mount(error));
                }
            }
        }
    }

    fn run(mut self, forgotten: &Receiver<Withdrawn>) {
        loop {
            match forgotten.recv_timeout(BEAT_INTERVAL) {
                Ok(Withdrawn { job, unused }) => {
                    if let Some(names) = &*held(&self.names) {
                        names.forget_job(job);
                    }
                    self.shared.forget(&unused);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.up.as_ref().is_some_and(|(connection, _)| connection.has_ended()) {
                tracing::error!("the mount was taken away, and is made anew");
                self.end();
            }
            match &mut self.up {
                Some((_, watchdog)) => {
                    // Whoever waits for a thread that is stuck is as lost as with a process that is stopped.
                    let is_stuck = self.shared.supplier().beat() >= BEATS_MISSED_MAX;
                    if !is_stuck && !watchdog.beat() {
                        tracing::error!("the watchdog of the mount has ended, and is started anew");
                        self.watch_again();
                    }
                }
                None => {
                    // Said once, above.
                    if let Err(error) = self.begin() {
                        tracing::debug!(%error, "still without the mount");
                    }
                }
            }
        }
        self.end();
    }

    fn watch_again(&mut self) {
        let (path, source) = (self.settings.path(), stale::source(self.settings.node, self.settings.boot));
        let started = {
            let _gate = held(&self.settings.gate);
            Watchdog::start(&path, &source)
        };
        match (started, &mut self.up) {
            (Ok(started), Some((_, watchdog))) => *watchdog = started,
            (Ok(_), None) => {}
            (Err(error), _) => tracing::error!(%error, "the mount has no watchdog"),
        }
    }

    fn end(&mut self) {
        *held(&self.names) = None;
        *held(&self.standing) = None;
        let Some((connection, watchdog)) = self.up.take() else { return };
        let path = self.settings.path();
        take_away(&path, &stale::source(self.settings.node, self.settings.boot));
        if let Err(error) = connection.join() {
            tracing::debug!(%error, "the connection of the mount was cut");
        }
        drop(watchdog);
        remove_directories(&path);
    }
}

/// Takes the mount that is called so away, however often it is there.
pub fn take_away(path: &Path, source: &str) {
    for _ in 0..TRIES_MAX {
        match stale::find(source) {
            Ok(None) => return,
            Ok(Some(mount)) => {
                if let Err(error) = stale::unmount(&mount.path) {
                    tracing::error!(path = %mount.path.display(), %error, "the mount stays");
                    return;
                }
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the mount may stay");
                return;
            }
        }
    }
}

/// Removes the mount's own directories; the next start makes them again.
pub fn remove_directories(path: &Path) {
    for directory in [Some(path), path.parent()].into_iter().flatten() {
        let _ = fs::remove_dir(directory);
    }
}

/// Has the kernel read as much ahead as it asks for in one request.
fn read_ahead(source: &str) {
    let set = stale::find(source).and_then(|mount| match mount {
        Some(mount) => {
            let path = format!("/sys/class/bdi/0:{}/read_ahead_kb", mount.connection);
            fs::write(path, READ_AHEAD_KIB.to_string())
        }
        None => Err(io::ErrorKind::NotFound.into()),
    });
    if let Err(error) = set {
        tracing::info!(%error, "the kernel reads little ahead of those who read inputs");
    }
}

/// The process that takes the mount away when we cannot. Dropped, it is gone.
struct Watchdog {
    child: Child,
    beats: ChildStdin,
}

impl Watchdog {
    fn start(path: &Path, source: &str) -> io::Result<Self> {
        let mut command = Command::new(WORKER_EXECUTABLE);
        command.arg("watch").arg(path).arg(source);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let beats = child.stdin.take().expect("it is piped");
        // SAFETY: the descriptor is open, and no memory is passed.
        if unsafe { libc::fcntl(beats.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { child, beats })
    }

    /// Says that we are there; false = nobody listens.
    fn beat(&mut self) -> bool {
        match self.beats.write_all(b".") {
            Ok(()) => true,
            // It is stopped. When it goes on it finds what it has missed.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The mount is gone, and it would find nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
