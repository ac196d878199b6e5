//! Brings a job's program and inputs here, beside the loop: whole, under the names that the job gives them.
//!
//! Files come into the cache, which verifies them, and the mount shows them from there. Where there is no mount the job's
//! directory holds links to them; two jobs with the same input have it once. Pieces of packed files, and whatever has to be
//! executable, are copies then.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use content::{FetchError, HolderAddress};
use node::channel::Outbox;
use node::{Clock, channel};
use wire::tree::SIZE_MAX;
use wire::{Duration, FileAddress, FileId, Hash, Instant, JobId};

use super::cache::{Cache, seal_file};
use super::directory::{Directory, remove_tree};
use super::storage::{Connections, Ourselves, StorageList};
use super::tree;
use crate::core::Order;
use crate::mount::{Content, Mount, Published, Tree, TreeBytes, What};

/// Threads: one slow input must not hold up all other jobs.
const STAGERS: usize = 2;
/// Jobs that wait for a stager; the core keeps no more jobs than that.
const ORDERS_MAX: usize = crate::core::JOBS_MAX;
/// How long a storage node may take to say that it has a file before the next is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two rounds of asking all of them.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// How often a cached file may turn out not to be as it was before it has its place.
const PLACINGS_MAX: u32 = 4;

/// What a stager has done.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) job: JobId,
    pub(super) result: Result<(), String>,
}

/// What all stagers share.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) directory: Directory,
    pub(super) cache: Arc<Cache>,
    /// `None` = inputs are written out.
    pub(super) mount: Option<Arc<Mount>>,
    pub(super) ourselves: Ourselves,
    pub(super) storage: StorageList,
    /// False where no masters will ever tell of storage nodes.
    pub(super) may_learn_storage: bool,
    pub(super) timeout: Duration,
    /// See `Benches`.
    pub(super) gate: Arc<Mutex<()>>,
}

impl Stage {
    /// Starts the threads; what is ordered is answered to `done`.
    pub(super) fn start(&self, done: &Outbox<Staged>) -> io::Result<channel::Orders<Arc<Order>>> {
        let (orders, waiting) = channel::to_helper::<Arc<Order>>(ORDERS_MAX);
        for _ in 0..STAGERS {
            let (waiting, done, stage) = (waiting.clone(), done.clone(), self.clone());
            thread::Builder::new().name("stager".into()).spawn(move || {
                let connections = Connections::new(stage.ourselves.clone(), stage.storage.clone());
                let mut stager = Stager { stage, connections, clock: Clock::new(), job: JobId::NIL };
                while let Ok(order) = waiting.recv() {
                    let result = stager.bring(&order);
                    if done.send(Staged { job: order.job, result }).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(orders)
    }
}

/// One thread's work.
struct Stager {
    stage: Stage,
    connections: Connections,
    clock: Clock,
    /// Whose inputs are being brought.
    job: JobId,
}

/// A file or piece that a job wants, and under which name.
struct Wanted {
    address: FileAddress,
    hash: Option<Hash>,
    /// Under the job's inputs.
    name: Vec<u8>,
    /// Where it is written out.
    path: PathBuf,
    is_executable: bool,
    is_tree: bool,
}

impl Stager {
    /// Brings everything, or says what could not be had.
    fn bring(&mut self, order: &Order) -> Result<(), String> {
        self.job = order.job;
        let directory = self.stage.directory.job(order.job);
        let in_directory = |error: io::Error| format!("{}: {error}", directory.display());
        // An earlier try may have been cut short.
        remove_tree(&directory).and_then(|()| fs::create_dir(&directory)).map_err(in_directory)?;
        let deadline = self.clock.now() + self.stage.timeout;
        if let Some(mount) = self.stage.mount.clone() {
            if !order.inputs.is_empty() {
                self.publish(order, &mount, deadline)?;
            }
            return self.write_program(order).map_err(|error| format!("the program: {error}"));
        }
        let inputs = self.stage.directory.staged_inputs(order.job);
        fs::create_dir(&inputs).map_err(in_directory)?;
        for wanted in self.wanted(order) {
            self.fetch(&wanted, deadline).map_err(|why| format!("{}: {why}", wanted.address))?;
        }
        self.write_program(order).map_err(|error| format!("the program: {error}"))?;
        seal(&inputs).map_err(in_directory)
    }

    /// Shows the inputs in the mount.
    fn publish(&mut self, order: &Order, mount: &Mount, deadline: Instant) -> Result<(), String> {
        let mut inputs = Vec::with_capacity(order.inputs.len());
        for wanted in self.wanted(order) {
            let what = self.shown(&wanted, deadline).map_err(|why| format!("{}: {why}", wanted.address))?;
            inputs.push(Published { path: wanted.name, what });
        }
        mount.publish(order.job, inputs).map_err(|error| error.to_string())
    }

    /// What the mount shows of an input.
    fn shown(&mut self, wanted: &Wanted, deadline: Instant) -> Result<What, String> {
        let (FileAddress { file, piece }, hash) = (wanted.address, wanted.hash);
        self.cache(file, hash, deadline)?;
        let cache = self.stage.cache.clone();
        if !wanted.is_tree {
            let file_length = cache.store.length(file).map_err(|error| error.to_string())?;
            let (offset, length) = piece.unwrap_or((0, file_length));
            if offset.checked_add(length).is_none_or(|end| end > file_length) {
                return Err(format!("it has {file_length} bytes, and {offset}+{length} are asked for"));
            }
            let content = Content { file, hash, file_length, offset, length };
            return Ok(What::File { content, is_executable: wanted.is_executable });
        }
        let mut bytes = Vec::new();
        let read = cache.open(file, hash).and_then(|open| open.take(SIZE_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| error.to_string())?;
        let tree = Tree::decode(file, TreeBytes(Arc::new(bytes))).map_err(|error| error.to_string())?;
        for (file, hash, _) in tree.files() {
            self.cache(file, Some(hash), deadline).map_err(|why| format!("{file}: {why}"))?;
        }
        Ok(What::Tree(Arc::new(tree)))
    }

    fn wanted(&self, order: &Order) -> Vec<Wanted> {
        let inputs = self.stage.directory.staged_inputs(order.job);
        let describe = |(position, file): (usize, &FileId)| match order.spec.inputs.get(position) {
            Some(input) => Wanted {
                address: FileAddress { file: *file, piece: input.piece },
                hash: (!input.hash.is_nil()).then_some(input.hash),
                name: input.path.clone(),
                path: inputs.join(OsStr::from_bytes(&input.path)),
                is_executable: input.executable || order.spec.program_input == Some(position as u32),
                is_tree: input.is_tree,
            },
            // The seed's words alone give no names.
            None => Wanted {
                address: FileAddress { file: *file, piece: None },
                hash: None,
                name: file.to_string().into_bytes(),
                path: inputs.join(file.to_string()),
                is_executable: false,
                is_tree: false,
            },
        };
        order.inputs.iter().enumerate().map(describe).collect()
    }

    fn fetch(&mut self, wanted: &Wanted, deadline: Instant) -> Result<(), String> {
        let parent = wanted.path.parent().expect("an input lies in the input directory");
        fs::create_dir_all(parent).map_err(|error| error.to_string())?;
        if wanted.address.piece.is_some() {
            self.ask_storage(wanted.address, deadline, |connections, address, timeout| {
                let holder = connections.to(address).map_err(|error| error.to_string())?;
                let fetched = holder.fetch_path(wanted.address, None, timeout, &wanted.path);
                fetched.map(drop).map_err(|error| error.to_string())
            })?;
            return seal_file(&wanted.path, wanted.is_executable).map_err(|error| error.to_string());
        }
        let file = wanted.address.file;
        if wanted.is_tree {
            let (cache, gate) = (self.stage.cache.clone(), self.stage.gate.clone());
            let bring = |file, hash| self.cache(file, hash, deadline);
            return tree::write_out(&cache, (file, wanted.hash), &wanted.path, &gate, bring);
        }
        for _ in 0..PLACINGS_MAX {
            self.cache(file, wanted.hash, deadline)?;
            if self.place(wanted).map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
        Err("a program writes to it again and again".into())
    }

    /// Sees to it that the cache has the file.
    fn cache(&mut self, file: FileId, hash: Option<Hash>, deadline: Instant) -> Result<(), String> {
        let cache = self.stage.cache.clone();
        cache.keep(self.job, file);
        if cache.holds(file, hash) {
            return Ok(());
        }
        let mut is_new = true;
        let address = FileAddress { file, piece: None };
        self.ask_storage(address, deadline, |connections, address, timeout| {
            let holder = connections.to(address).map_err(|error| error.to_string())?;
            let fetched = holder.fetch_store(file, hash, timeout, &cache.store).map_err(|error| error.to_string())?;
            is_new = !fetched.already_there;
            Ok(())
        })?;
        // Another stager may have been faster: a program may have the link already, and have written to it.
        if is_new { cache.seal(file).map_err(|error| error.to_string()) } else { Ok(()) }
    }

    /// Tries the storage nodes in turn, again and again until one gives the file, all say that there is none, or time is up.
    fn ask_storage(
        &mut self,
        address: FileAddress,
        deadline: Instant,
        mut fetch: impl FnMut(&mut Connections, &HolderAddress, Duration) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            let nodes = self.connections.endpoints();
            if nodes.is_empty() && !self.stage.may_learn_storage {
                return Err("this worker knows no storage node".into());
            }
            let mut why = "no storage node is known yet".to_owned();
            let mut unknown = 0;
            for node in &nodes {
                let asked = self.connections.to(node).map_err(|error| error.to_string())?;
                match asked.file_length(address.file, ANSWER_TIMEOUT) {
                    Ok(_) => {}
                    Err(FetchError::FileUnknown(_)) => {
                        unknown += 1;
                        continue;
                    }
                    Err(error) => {
                        why = format!("{}: {error}", node.endpoint);
                        continue;
                    }
                }
                let left = deadline.since(self.clock.now());
                match fetch(&mut self.connections, node, left) {
                    Ok(()) => return Ok(()),
                    Err(error) => why = format!("{}: {error}", node.endpoint),
                }
            }
            if !nodes.is_empty() && unknown == nodes.len() {
                return Err("no storage node has it".into());
            }
            if self.clock.now() >= deadline {
                return Err(why);
            }
            tracing::warn!(%address, why, "an input is not to be had yet");
            thread::sleep(ROUND_PAUSE);
        }
    }

    /// Puts a cached file under the name that the job gives it; false = it was written to meanwhile.
    fn place(&self, wanted: &Wanted) -> io::Result<bool> {
        let copy = |cached: &Path| {
            fs::copy(cached, &wanted.path)?;
            seal_file(&wanted.path, wanted.is_executable)
        };
        let is_placed = self.stage.cache.place(wanted.address.file, |cached| {
            if wanted.is_executable {
                // The cached file has no such right, and must not be open for writing anywhere when it is run.
                let _gate = self.stage.gate.lock().unwrap_or_else(PoisonError::into_inner);
                return copy(cached);
            }
            match fs::hard_link(cached, &wanted.path) {
                // As many links as the file system allows.
                Err(error) if error.raw_os_error() == Some(libc::EMLINK) => copy(cached),
                linked => linked,
            }
        })?;
        if !is_placed {
            remove_tree(&wanted.path)?;
        }
        Ok(is_placed)
    }

    /// Writes the program that came in the request, or gives the one that is an input its place.
    fn write_program(&self, order: &Order) -> io::Result<()> {
        let path = self.stage.directory.program(order.job);
        let position = order.spec.program_input.map(|position| position as usize);
        let input = position.and_then(|at| Some((order.inputs.get(at)?, order.spec.inputs.get(at)?)));
        if let Some((file, input)) = input {
            if self.stage.mount.is_none() {
                let inputs = self.stage.directory.staged_inputs(order.job);
                return fs::hard_link(inputs.join(OsStr::from_bytes(&input.path)), path);
            }
            // It never runs from the mount: what waits for the first page of a program cannot be ended.
            let mut cached = self.stage.cache.open(*file, (!input.hash.is_nil()).then_some(input.hash))?;
            let (offset, length) = input.piece.unwrap_or((0, u64::MAX));
            cached.seek(SeekFrom::Start(offset))?;
            let _gate = self.stage.gate.lock().unwrap_or_else(PoisonError::into_inner);
            io::copy(&mut cached.take(length), &mut File::create(&path)?)?;
            return seal_file(&path, true);
        }
        if order.program.is_empty() {
            return Ok(());
        }
        let _gate = self.stage.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::create(&path)?;
        file.write_all(&order.program)?;
        drop(file);
        fs::set_permissions(&path, Permissions::from_mode(0o555))
    }
}

/// Makes the directories of the inputs read-only.
fn seal(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            seal(&entry.path())?;
        }
    }
    fs::set_permissions(directory, Permissions::from_mode(0o555))
}
