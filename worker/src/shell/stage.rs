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

use content::{FetchError, Fetching, Need, Wanted};
use node::channel::Outbox;
use node::{Clock, channel};
use wire::limit::{BLOCK_SIZE, MIB};
use wire::tree::SIZE_MAX;
use wire::{Duration, FileAddress, FileId, Hash, Instant, JobId};

use super::cache::{Cache, seal_file};
use super::directory::{Directory, remove_tree};
use super::storage::StorageList;
use super::tree;
use crate::core::Order;
use crate::mount::{AWAITED_SIZE_MAX, Content, Mount, Published, Tree, TreeBytes, What};
use crate::supply::Supplier;

/// Threads: one slow input must not hold up all other jobs.
const STAGERS: usize = 2;
/// Jobs that wait for a stager; the core keeps no more jobs than that.
const ORDERS_MAX: usize = crate::core::JOBS_MAX;
/// Inputs that are here before their job's first chunk starts, in bytes together; those above come while it runs.
const AWAITED_TOTAL_MAX: u64 = 64 * MIB as u64;
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
    pub(super) supplier: Supplier,
    /// `None` = inputs are written out.
    pub(super) mount: Option<Arc<Mount>>,
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
                let mut stager = Stager { stage, clock: Clock::new(), job: JobId::NIL };
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
    clock: Clock,
    /// Whose inputs are being brought.
    job: JobId,
}

/// A file or piece that a job wants, and under which name.
struct Listed {
    address: FileAddress,
    hash: Option<Hash>,
    /// Of the whole file, if the job says.
    file_length: Option<u64>,
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
        self.stage.cache.take_back(order.job);
        let in_directory = |error: io::Error| format!("{}: {error}", directory.display());
        // An earlier try may have been cut short.
        remove_tree(&directory).and_then(|()| fs::create_dir(&directory)).map_err(in_directory)?;
        let deadline = self.clock.now() + self.stage.timeout;
        if let Some(mount) = self.stage.mount.clone() {
            if !order.inputs.is_empty() {
                self.publish(order, &mount, deadline)?;
            }
            if let Some(file) = order.spec.program_input.and_then(|position| order.inputs.get(position as usize)) {
                self.cache(*file, None, deadline).map_err(|why| format!("the program: {why}"))?;
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

    /// Shows the inputs in the mount. What is small is here then; larger ones come as they are read.
    fn publish(&self, order: &Order, mount: &Mount, deadline: Instant) -> Result<(), String> {
        let listed = self.wanted(order);
        let mut awaited = 0;
        let mut is_awaited = Vec::with_capacity(listed.len());
        for listed in &listed {
            let length = listed.file_length.unwrap_or(0);
            let is_small = length <= AWAITED_SIZE_MAX && awaited + length <= AWAITED_TOTAL_MAX;
            awaited += if is_small { length } else { 0 };
            is_awaited.push(is_small);
            let file = listed.address.file;
            self.stage.cache.keep(self.job, file);
            if length <= AWAITED_SIZE_MAX || order.spec.prefetch {
                // All at once: each waits for the one before it otherwise.
                let wanted = Wanted { file, hash: listed.hash, length: listed.file_length };
                self.stage.supplier.want(wanted, Fetching::Whole);
            }
        }
        let mut inputs = Vec::with_capacity(listed.len());
        for (listed, is_awaited) in listed.into_iter().zip(is_awaited) {
            let shown = self.shown(&listed, is_awaited, order.spec.prefetch, deadline);
            let what = shown.map_err(|why| format!("{}: {why}", listed.address))?;
            inputs.push(Published { path: listed.name, what });
        }
        mount.publish(order.job, inputs).map_err(|error| error.to_string())
    }

    /// What the mount shows of an input.
    fn shown(&self, listed: &Listed, is_awaited: bool, prefetch: bool, deadline: Instant) -> Result<What, String> {
        let (FileAddress { file, piece }, hash) = (listed.address, listed.hash);
        if listed.is_tree {
            let mut bytes = Vec::new();
            self.cache(file, hash, deadline)?;
            let read =
                self.stage.cache.open(file, hash).and_then(|open| open.take(SIZE_MAX + 1).read_to_end(&mut bytes));
            read.map_err(|error| error.to_string())?;
            let tree = Tree::decode(file, TreeBytes(Arc::new(bytes))).map_err(|error| error.to_string())?;
            for (file, hash, length) in tree.files() {
                self.stage.cache.keep(self.job, file);
                if prefetch {
                    let wanted = Wanted { file, hash: Some(hash), length: Some(length) };
                    self.stage.supplier.want(wanted, Fetching::Whole);
                }
            }
            return Ok(What::Tree(Arc::new(tree)));
        }
        // One that nobody has is missed now, not when it is read.
        let need = if is_awaited { Need::Whole } else { Need::Length };
        let file_length = self.fetch_from_storage(file, hash, listed.file_length, need, deadline)?;
        let (offset, length) = piece.unwrap_or((0, file_length));
        if offset.checked_add(length).is_none_or(|end| end > file_length) {
            return Err(format!("it has {file_length} bytes, and {offset}+{length} are asked for"));
        }
        let content = Content { file, hash, file_length, offset, length };
        Ok(What::File { content, is_executable: listed.is_executable })
    }

    fn wanted(&self, order: &Order) -> Vec<Listed> {
        let inputs = self.stage.directory.staged_inputs(order.job);
        let describe = |(position, file): (usize, &FileId)| match order.spec.inputs.get(position) {
            Some(input) => Listed {
                address: FileAddress { file: *file, piece: input.piece },
                hash: (!input.hash.is_nil()).then_some(input.hash),
                // One who does not know the content does not know its length either.
                file_length: (!input.hash.is_nil()).then_some(input.file_length),
                name: input.path.clone(),
                path: inputs.join(OsStr::from_bytes(&input.path)),
                is_executable: input.executable || order.spec.program_input == Some(position as u32),
                is_tree: input.is_tree,
            },
            // The seed's words alone give no names.
            None => Listed {
                address: FileAddress { file: *file, piece: None },
                hash: None,
                file_length: None,
                name: file.to_string().into_bytes(),
                path: inputs.join(file.to_string()),
                is_executable: false,
                is_tree: false,
            },
        };
        order.inputs.iter().enumerate().map(describe).collect()
    }

    fn fetch(&self, wanted: &Listed, deadline: Instant) -> Result<(), String> {
        let parent = wanted.path.parent().expect("an input lies in the input directory");
        fs::create_dir_all(parent).map_err(|error| error.to_string())?;
        if let Some(piece) = wanted.address.piece {
            return self.write_piece(wanted, piece, deadline);
        }
        let file = wanted.address.file;
        if wanted.is_tree {
            let (cache, gate) = (self.stage.cache.clone(), self.stage.gate.clone());
            let bring = |file, hash| self.cache(file, hash, deadline);
            return tree::write_out(&cache, self.job, (file, wanted.hash), &wanted.path, &gate, bring);
        }
        for _ in 0..PLACINGS_MAX {
            self.cache(file, wanted.hash, deadline)?;
            if self.place(wanted).map_err(|error| error.to_string())? {
                return Ok(());
            }
        }
        Err("a program writes to it again and again".into())
    }

    /// Sees to it that the cache has the whole file.
    fn cache(&self, file: FileId, hash: Option<Hash>, deadline: Instant) -> Result<(), String> {
        self.stage.cache.keep(self.job, file);
        if self.stage.cache.holds(file, hash) {
            return Ok(());
        }
        self.fetch_from_storage(file, hash, None, Need::Whole, deadline).map(drop)
    }

    /// Waits until the cache has what is needed of the file; returns the length of the whole.
    fn fetch_from_storage(
        &self,
        file: FileId,
        hash: Option<Hash>,
        length: Option<u64>,
        need: Need,
        deadline: Instant,
    ) -> Result<u64, String> {
        if !self.stage.may_learn_storage && self.stage.storage.addresses().is_empty() {
            return Err("this worker knows no storage node".into());
        }
        let timeout = deadline.since(self.clock.now());
        match self.stage.supplier.fetch(Wanted { file, hash, length }, need, timeout) {
            Ok(length) => Ok(length),
            Err(FetchError::FileUnknown(_)) => Err("no storage node has it".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Writes a piece of a file out; the file itself need not be here.
    fn write_piece(&self, wanted: &Listed, (offset, length): (u64, u64), deadline: Instant) -> Result<(), String> {
        let (file, hash) = (wanted.address.file, wanted.hash);
        self.stage.cache.keep(self.job, file);
        let need = Need::Range { offset, length };
        let file_length = self.fetch_from_storage(file, hash, wanted.file_length, need, deadline)?;
        let end = offset.checked_add(length).filter(|end| *end <= file_length);
        let end = end.ok_or_else(|| format!("it has {file_length} bytes, and {offset}+{length} are asked for"))?;
        let cached = self.stage.cache.store.cached(file, hash, file_length).map_err(|error| error.to_string())?;
        let write = || {
            let mut to = File::create(&wanted.path)?;
            let mut buffer = vec![0; BLOCK_SIZE];
            let mut at = offset;
            while at < end {
                let size = (end - at).min(buffer.len() as u64) as usize;
                cached.read_at(&mut buffer[..size], at)?;
                to.write_all(&buffer[..size])?;
                at += size as u64;
            }
            seal_file(&wanted.path, wanted.is_executable)
        };
        let _gate = wanted.is_executable.then(|| self.stage.gate.lock().unwrap_or_else(PoisonError::into_inner));
        write().map_err(|error: io::Error| error.to_string())
    }

    /// Puts a cached file under the name that the job gives it; false = it was written to meanwhile.
    fn place(&self, wanted: &Listed) -> io::Result<bool> {
        let copy = |cached: &Path| {
            fs::copy(cached, &wanted.path)?;
            seal_file(&wanted.path, wanted.is_executable)
        };
        let (cache, file) = (&self.stage.cache, wanted.address.file);
        let is_placed = if wanted.is_executable {
            cache.place(file, |cached| {
                // The cached file has no such right, and must not be open for writing anywhere when it is run.
                let _gate = self.stage.gate.lock().unwrap_or_else(PoisonError::into_inner);
                copy(cached)
            })?
        } else {
            cache.lend(self.job, file, |cached| match fs::hard_link(cached, &wanted.path) {
                // As many links as the file system allows.
                Err(error) if error.raw_os_error() == Some(libc::EMLINK) => copy(cached),
                linked => linked,
            })?
        };
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
