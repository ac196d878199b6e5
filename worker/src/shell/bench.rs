//! The slots: each a slot process and its directories, which runs use one after the other.
//!
//! When a program has ended, what it wrote is put aside by renaming, so that the next one can start while it is still on
//! its way to storage; small standard output is simply read. A run that wrote nothing costs a few looks and no change.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::directory::{Directory, Found, held_by_tree, look, make_empty, make_empty_by_force};
use super::outbox::{Kept, Piece};
use super::sweep::Sweeper;
use crate::core::{Order, SlotIndex, Take};
use crate::slot::{Groups, SlotEvent, SlotLink, Start, WORKER_EXECUTABLE};

/// Standard output and error up to this are kept in memory until they are confirmed, in bytes.
const READ_SIZE_MAX: u64 = 16 * 1024;
/// So often in a row may the process of a slot die before it has come to take a run. A machine where that happens can
/// run nothing: the worker gives up, and others get its chunks. What runs there and kills its slot's process counts for
/// nothing, or one bad job would end worker after worker.
const DEATHS_MAX: u32 = 5;
/// Slots that are looked at in one go.
const READY_MAX: usize = 64;

/// What a slot is busy with.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) run: u64,
    pub(super) order: Arc<Order>,
    pub(super) chunk: u32,
    pub(super) attempt: u32,
    /// Where the program ran, unless in the slot's own directory.
    pub(super) foreign_directory: Option<PathBuf>,
    /// Why it was not started.
    pub(super) not_started: Option<String>,
    /// Told at the end of its standard error.
    pub(super) note: Option<String>,
    /// How often the machine had no room to start it.
    pub(super) tries: u32,
    /// Why it has to end: it fills the disk.
    pub(super) overfull: Option<String>,
    /// The mount that its inputs are in.
    pub(super) mount: Option<u64>,
    /// How often there was none when it was to start.
    pub(super) mount_tries: u32,
}

/// One slot.
#[derive(Debug)]
pub(super) struct Bench {
    /// `None` = its process has died, or could not be started yet.
    link: Option<SlotLink>,
    pub(super) path: PathBuf,
    pub(super) current: Option<Current>,
    /// Its directories are as a program is to find them.
    is_clean: bool,
    /// How often in a row its process died before it could take a run.
    deaths: u32,
}

/// All slots that have been used, with one descriptor that is readable when one of them has something to say.
#[derive(Debug)]
pub(super) struct Benches {
    poll: OwnedFd,
    benches: BTreeMap<SlotIndex, Bench>,
    /// Held while a program is written and while a slot process is started: a child that is just being made has a copy of
    /// the open file, and a file open for writing cannot be run.
    gate: Arc<Mutex<()>>,
    /// Goes last, when no slot's process is left.
    groups: Groups,
}

impl Benches {
    pub(super) fn new(gate: Arc<Mutex<()>>, groups: Groups) -> io::Result<Self> {
        // SAFETY: plain system call.
        let poll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if poll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let poll = unsafe { OwnedFd::from_raw_fd(poll) };
        Ok(Self { poll, benches: BTreeMap::new(), gate, groups })
    }

    /// The slot; it need not be ready to start anything.
    pub(super) fn open(&mut self, slot: SlotIndex, directory: &Directory) -> &mut Bench {
        self.benches.entry(slot).or_insert_with(|| Bench {
            link: None,
            path: directory.slot(slot),
            current: None,
            is_clean: false,
            deaths: 0,
        })
    }

    pub(super) fn at(&mut self, slot: SlotIndex) -> &mut Bench {
        self.benches.get_mut(&slot).expect("a slot with a run is open")
    }

    /// The run in the slot that this process is of.
    pub(super) fn run_of(&self, slot_process: u32) -> Option<u64> {
        let is_its = |bench: &&Bench| bench.link.as_ref().is_some_and(|link| link.pid() == slot_process);
        self.benches.values().find(is_its).and_then(|bench| Some(bench.current.as_ref()?.run))
    }

    /// True while any slot is in use.
    pub(super) fn is_busy(&self) -> bool {
        self.benches.values().any(|bench| bench.current.is_some())
    }

    /// The slot of the run that holds most of the disk, with the bytes that it holds; `None` while one that does is still
    /// ending.
    pub(super) fn fullest(&self) -> Option<(SlotIndex, u64)> {
        let busy = || self.benches.iter().filter_map(|(slot, bench)| Some((*slot, bench, bench.current.as_ref()?)));
        if busy().any(|(_, _, current)| current.overfull.is_some()) {
            return None;
        }
        busy().map(|(slot, bench, _)| (slot, bench.held())).max_by_key(|(_, held)| *held)
    }

    /// Sees to it that the slot can start a program: its directories are clean, and its process is there.
    pub(super) fn make_ready(&mut self, slot: SlotIndex, sweeper: &mut Sweeper) -> io::Result<()> {
        let bench = self.at(slot);
        if !bench.is_clean {
            bench.clean(sweeper)?;
        }
        if bench.link.is_none() {
            let link = self.spawn(slot)?;
            // The socket of one that died left the poll when it was closed.
            self.watch(slot, &link, libc::EPOLL_CTL_ADD)?;
            self.at(slot).link = Some(link);
        }
        Ok(())
    }

    fn spawn(&self, slot: SlotIndex) -> io::Result<SlotLink> {
        let group = self.groups.slot(slot)?;
        let _gate = self.gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        SlotLink::spawn(Path::new(WORKER_EXECUTABLE), group)
    }

    /// Starts a run in its slot, which is ready. False = what it is to be told is too long for any program.
    pub(super) fn start(&mut self, slot: SlotIndex, start: Start) -> io::Result<bool> {
        let link = self.at(slot).link.as_mut().expect("a slot that is ready has a process");
        let is_started = link.start(start).is_ok();
        self.watch_writes(slot)?;
        Ok(is_started)
    }

    /// While commands wait for room on the link, its being writable counts too.
    fn watch_writes(&self, slot: SlotIndex) -> io::Result<()> {
        match &self.benches[&slot].link {
            Some(link) if link.wants_write() => self.watch(slot, link, libc::EPOLL_CTL_MOD),
            Some(_) | None => Ok(()),
        }
    }

    fn watch(&self, slot: SlotIndex, link: &SlotLink, operation: i32) -> io::Result<()> {
        let events = if link.wants_write() { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        let mut event = libc::epoll_event { events: events as u32, u64: slot.into() };
        // SAFETY: both descriptors are open, and `event` lives until the call returns.
        let status = unsafe { libc::epoll_ctl(self.poll.as_raw_fd(), operation, link.as_fd().as_raw_fd(), &mut event) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// All that slots have said since the last call.
    pub(super) fn hear(&mut self) -> io::Result<Vec<(SlotIndex, SlotEvent)>> {
        let mut ready = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        // SAFETY: `ready` has room for as many as it is said to have.
        let count = unsafe { libc::epoll_wait(self.poll.as_raw_fd(), ready.as_mut_ptr(), READY_MAX as i32, 0) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
        }
        let mut heard = Vec::new();
        for event in &ready[..count as usize] {
            let slot = event.u64 as SlotIndex;
            let was_writable = event.events & libc::EPOLLOUT as u32 != 0;
            let Some(bench) = self.benches.get_mut(&slot) else { continue };
            while let Some(said) = bench.link.as_mut().and_then(SlotLink::try_recv) {
                match &said {
                    SlotEvent::Reported(_) => bench.deaths = 0,
                    SlotEvent::Died { is_stillborn, .. } => {
                        // At once: what is heard of other slots first may start something here.
                        bench.link = None;
                        bench.deaths = if *is_stillborn { bench.deaths + 1 } else { 0 };
                        if bench.deaths > DEATHS_MAX {
                            return Err(io::Error::other(format!("the process of slot {slot} dies again and again")));
                        }
                    }
                }
                heard.push((slot, said));
            }
            if was_writable && let Some(link) = &self.benches[&slot].link {
                self.watch(slot, link, libc::EPOLL_CTL_MOD)?;
            }
        }
        Ok(heard)
    }
}

impl AsFd for Benches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Bench {
    /// Bytes of the disk that the run holds.
    fn held(&self) -> u64 {
        let device = metadata(&self.path).ok().flatten().map(|directory| directory.dev());
        let nameless = self.link.as_ref().zip(device).map_or(0, |(link, device)| link.held_without_name(device));
        held_by_tree(&self.path) + nameless
    }

    pub(super) fn terminate(&mut self, run: u64) {
        self.link.iter_mut().for_each(|link| link.terminate(run));
    }

    pub(super) fn kill(&mut self, run: u64) {
        self.link.iter_mut().for_each(|link| link.kill(run));
    }

    /// Puts aside what the run wrote, as far as `take` says; the slot is to be cleaned then.
    pub(super) fn collect(&mut self, take: Take, may_read: bool, directory: &Directory) -> Option<Kept> {
        self.is_clean = false;
        let current = self.current.take().expect("a slot is cleaned after its run");
        let mut kept = Kept {
            run: current.run,
            order: current.order,
            chunk: current.chunk,
            attempt: current.attempt,
            stdout: Vec::new(),
            stderr: Vec::new(),
            out: None,
            work: None,
            aside: directory.outbox(current.run),
            failure: None,
        };
        let read_size_max = if may_read { READ_SIZE_MAX } else { 0 };
        let not_started = current.not_started.as_deref();
        let mut aside = Aside { path: kept.aside.clone(), is_made: false, read_size_max };
        let put_aside = match take {
            Take::Nothing => Ok(()),
            Take::Streams => self.put_streams_aside(not_started, &mut aside, &mut kept),
            Take::Heads => self.keep_heads(current.overfull.as_deref().unwrap_or_default(), &mut kept),
            Take::Everything => self
                .put_streams_aside(not_started, &mut aside, &mut kept)
                .and_then(|()| self.put_outputs_aside(current.foreign_directory, &mut aside, &mut kept)),
        };
        if let Err(error) = put_aside {
            // A full disk, most likely. The chunk must not count as done without its outputs.
            tracing::error!(run = kept.run, %error, "outputs could not be put aside");
            kept.failure = Some(format!("the outputs could not be put aside: {error}"));
        }
        if take != Take::Nothing {
            kept.stderr.extend(current.note.map(|note| Piece::Bytes(format!("zg: {note}\n").into_bytes())));
        }
        let is_empty = kept.stdout.is_empty() && kept.stderr.is_empty() && kept.out.is_none() && kept.work.is_none();
        if is_empty && kept.failure.is_none() { None } else { Some(kept) }
    }

    /// Makes the slot's directories as a program is to find them. A program can do anything to them, and to the disk: what
    /// cannot be moved out of the way is removed here and now.
    pub(super) fn clean(&mut self, sweeper: &mut Sweeper) -> io::Result<()> {
        if let Err(error) = self.clean_swiftly(sweeper) {
            tracing::warn!(slot = %self.path.display(), %error, "a slot is cleaned by force");
            sweeper.empty_trash()?;
            for name in ["out", "work", "spool"] {
                make_empty_by_force(&self.path.join(name))?;
            }
        }
        self.is_clean = true;
        Ok(())
    }

    fn clean_swiftly(&self, sweeper: &mut Sweeper) -> io::Result<()> {
        let spool = self.path.join("spool");
        for name in ["stdout", "stderr"] {
            let path = spool.join(name);
            match metadata(&path)? {
                Some(file) if file.is_file() && file.len() <= READ_SIZE_MAX => {}
                // The next run could not write there, or would hang; or it is much, and nobody may start here for long.
                Some(_) => sweeper.discard(&path)?,
                None => fs::create_dir_all(&spool)?,
            }
        }
        sweeper.discard(&spool.join("error"))?;
        for name in ["out", "work"] {
            let path = self.path.join(name);
            make_empty(&path, look(&path)?, sweeper)?;
        }
        Ok(())
    }

    fn put_streams_aside(&self, not_started: Option<&str>, aside: &mut Aside, kept: &mut Kept) -> io::Result<()> {
        if let Some(message) = not_started {
            // The spool files are those of the run before.
            kept.stderr.push(Piece::Bytes(format!("zg: {message}\n").into_bytes()));
            return Ok(());
        }
        for (name, stream) in [("stdout", &mut kept.stdout), ("stderr", &mut kept.stderr)] {
            let path = self.path.join("spool").join(name);
            stream.extend(aside.take_file(&path, name, metadata(&path)?)?);
        }
        // What a program wrote as its error is shown after its standard error.
        let path = self.path.join("spool/error");
        kept.stderr.extend(aside.take_file(&path, "error", metadata(&path)?)?);
        Ok(())
    }

    /// Keeps the beginnings of the streams, and says at the end of them `why` there is no more.
    fn keep_heads(&self, why: &str, kept: &mut Kept) -> io::Result<()> {
        kept.stderr.push(Piece::Bytes(format!("zg: {why}\n").into_bytes()));
        for (name, stream) in [("stderr", &mut kept.stderr), ("stdout", &mut kept.stdout)] {
            let path = self.path.join("spool").join(name);
            if metadata(&path)?.is_some_and(|file| file.is_file()) {
                stream.insert(0, Piece::Bytes(read_head(&path, READ_SIZE_MAX)?));
            }
        }
        Ok(())
    }

    fn put_outputs_aside(
        &self,
        foreign_directory: Option<PathBuf>,
        aside: &mut Aside,
        kept: &mut Kept,
    ) -> io::Result<()> {
        if look(&self.path.join("out"))? == Found::Filled {
            kept.out = Some(aside.take_tree(&self.path, "out")?);
        }
        if !kept.order.spec.outputs.is_empty() {
            kept.work = match foreign_directory {
                Some(foreign) => Some(foreign),
                None => Some(aside.take_tree(&self.path, "work")?),
            };
        }
        Ok(())
    }
}

/// What lies at `path`, not followed; `None` = nothing.
fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first bytes of a file, `size_max` at most.
fn read_head(path: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    File::options().read(true).custom_flags(flags).open(path)?.take(size_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directory of one run's outputs, made when there is something to put into it.
struct Aside {
    path: PathBuf,
    is_made: bool,
    /// Files up to this are read, in bytes.
    read_size_max: u64,
}

impl Aside {
    /// A spool file: nothing if it is empty or no file at all, its bytes if it is small, else the file itself.
    fn take_file(&mut self, from: &Path, name: &str, metadata: Option<Metadata>) -> io::Result<Option<Piece>> {
        let Some(length) = metadata.filter(Metadata::is_file).map(|metadata| metadata.len()) else { return Ok(None) };
        if length == 0 {
            return Ok(None);
        }
        if length <= self.read_size_max {
            return Ok(Some(Piece::Bytes(read_head(from, self.read_size_max)?)));
        }
        let to = self.make()?.join(name);
        fs::rename(from, &to)?;
        Ok(Some(Piece::File { path: to, length }))
    }

    fn take_tree(&mut self, slot: &Path, name: &str) -> io::Result<PathBuf> {
        let to = self.make()?.join(name);
        fs::rename(slot.join(name), &to)?;
        Ok(to)
    }

    fn make(&mut self) -> io::Result<&Path> {
        if !self.is_made {
            fs::create_dir_all(&self.path)?;
            self.is_made = true;
        }
        Ok(&self.path)
    }
}
