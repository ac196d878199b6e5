//! The disk of a master: one thread for the log, one for snapshots.
//!
//! The log is raft-engine's. Everything that waits when the log thread is free goes into one write and one fsync. An
//! fsync that fails may have lost what it was to keep, so the process ends at once and comes back from what is there. A
//! full disk is another matter, and shows in two steps. Below `free_bytes_min` the core is told that the disk is low: what
//! is left is a reserve for requests that end or free something. Below a part of that nothing is written any more, the core
//! is told that the disk is full, and the thread tries again until there is room. A snapshot can wait, and is not told of.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use node::Bell;
use node::channel::{Inbox, Orders, Outbox, RecvTimeoutError, to_helper, to_owner};
use node::disk::free_bytes;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Engine, LogBatch, MessageExt, ReadableSize};

use crate::core::{Persist, Recovered, Ticket};

use super::data_dir::LOG;
use super::mark::Mark;
use super::snapshot::{self, SnapshotError};

/// A raft-engine can hold many logs; ours is this one.
const GROUP: u64 = 1;
const HARD_STATE: &[u8] = b"hard_state";
/// The number of the last write, little-endian; see `mark`.
const WRITE: &[u8] = b"write";
/// Log files that live longer than that are rewritten and dropped.
const PURGE_THRESHOLD_MIB: u64 = 256;
const TARGET_FILE_SIZE_MIB: u64 = 64;

/// Orders that wait for the log thread in its channel; more wait with the owner.
const ORDERS_MAX: usize = 1_024;
/// Bytes of entries in one write.
const WRITE_SIZE_MAX: usize = 16 * wire::limit::MIB;
/// How often a full disk is looked at again.
const FULL_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// This part of the free room that is asked for is a reserve that nothing uses: a write that fails half-way ends the master.
const UNTOUCHED_PART: u64 = 4;

/// Says why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("log {}: {source}; restore the directory from a copy", path.display())]
    Log { path: PathBuf, source: raft_engine::Error },
    #[error(
        "log {} ends with write {last}, but write {synced} was acknowledged: its end is damaged. Restore the directory \
         from a copy; a master that forgot what it acknowledged must not start", path.display()
    )]
    Short { path: PathBuf, last: u64, synced: u64 },
    #[error("mark of the log: {0}; restore the directory from a copy")]
    Mark(io::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot start the disk threads: {0}")]
    Thread(io::Error),
}

/// What the disk has finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// With everything before.
    Persisted(Ticket),
    SnapshotSaved(Ticket),
    /// There is no room for the log now; it is tried again, so a `Persisted` follows once there is.
    Full,
    /// The disk is down to its reserve, or is so no more.
    Low(bool),
}

enum Order {
    Persist(Persist),
    Compact { index: u64 },
}

struct SaveOrder {
    ticket: Ticket,
    index: u64,
    bytes: Vec<u8>,
}

/// The owner's side.
pub(super) struct Disk {
    orders: Orders<Order>,
    /// What the channel had no room for. The core bounds it: it takes no more requests than its backlog holds.
    waiting: VecDeque<Order>,
    saves: Orders<SaveOrder>,
    /// The core saves one snapshot of its own at a time, and one that it has fetched.
    waiting_saves: VecDeque<SaveOrder>,
    done: Inbox<Done>,
    threads: [JoinHandle<()>; 2],
}

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

impl Disk {
    /// Reads what the disk has, and starts its threads.
    pub(super) fn open(dir: &Path, free_bytes_min: u64, bell: &Bell) -> Result<(Self, Recovered), DiskError> {
        let path = dir.join(LOG);
        let failed = |source| DiskError::Log { path: path.clone(), source };
        let engine = Engine::open(raft_engine::Config {
            dir: path.to_string_lossy().into_owned(),
            purge_threshold: ReadableSize::mb(PURGE_THRESHOLD_MIB),
            target_file_size: ReadableSize::mb(TARGET_FILE_SIZE_MIB),
            enable_log_recycle: true,
            ..raft_engine::Config::default()
        })
        .map_err(failed)?;
        let snapshot = snapshot::load(dir)?;
        let (entries, hard_state) = read_log(&engine).map_err(failed)?;
        let (last_write, mark) = (last_write(&engine), Mark::open(dir).map_err(DiskError::Mark)?);
        if last_write < mark.synced {
            return Err(DiskError::Short { path, last: last_write, synced: mark.synced });
        }

        let (outbox, done) = to_owner(ORDERS_MAX, bell);
        let (orders, order_rx) = to_helper(ORDERS_MAX);
        let (saves, save_rx) = to_helper(1);
        let mut log = LogThread {
            engine,
            last_write,
            mark,
            dir: dir.to_owned(),
            free_bytes_min,
            is_low: false,
            done: outbox.clone(),
        };
        let log_thread = spawn("master-log", move || log.run(&order_rx))?;
        let saver = SnapshotThread { dir: dir.to_owned(), free_bytes_min, done: outbox };
        let snapshot_thread = spawn("master-snapshot", move || saver.run(&save_rx))?;
        let threads = [log_thread, snapshot_thread];
        let disk = Self { orders, waiting: VecDeque::new(), saves, waiting_saves: VecDeque::new(), done, threads };
        Ok((disk, Recovered { snapshot, entries, hard_state }))
    }

    pub(super) fn persist(&mut self, persist: Persist) {
        self.waiting.push_back(Order::Persist(persist));
    }

    pub(super) fn compact(&mut self, index: u64) {
        self.waiting.push_back(Order::Compact { index });
    }

    pub(super) fn save_snapshot(&mut self, ticket: Ticket, index: u64, bytes: Vec<u8>) {
        self.waiting_saves.push_back(SaveOrder { ticket, index, bytes });
    }

    /// Hands over what the threads have room for.
    pub(super) fn push(&mut self) {
        use node::channel::TrySendError::{Disconnected, Full};
        let gone = "the disk threads end only with the process";
        while let Some(order) = self.waiting.pop_front() {
            match self.orders.try_send(order) {
                Ok(()) => {}
                Err(Full(order)) => {
                    self.waiting.push_front(order);
                    break;
                }
                Err(Disconnected(_)) => panic!("{gone}"),
            }
        }
        while let Some(save) = self.waiting_saves.pop_front() {
            match self.saves.try_send(save) {
                Ok(()) => {}
                Err(Full(save)) => {
                    self.waiting_saves.push_front(save);
                    break;
                }
                Err(Disconnected(_)) => panic!("{gone}"),
            }
        }
    }

    pub(super) fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// Waits for what was handed over; whatever was not is of no promise.
    pub(super) fn close(self) {
        let Self { orders, saves, done, threads, .. } = self;
        drop((orders, saves, done));
        for thread in threads {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DiskError> {
    let guarded = move || {
        let _guard = AbortOnPanic;
        work();
    };
    thread::Builder::new().name(name.into()).spawn(guarded).map_err(DiskError::Thread)
}

/// A disk thread that panics (raft-engine does when an fsync fails) takes the process with it: what it had is in doubt.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a disk thread failed; the master ends and comes back from what is durable");
            std::process::abort();
        }
    }
}

fn read_log(engine: &Engine) -> raft_engine::Result<(Vec<Entry>, HardState)> {
    let mut entries = Vec::new();
    if let (Some(first), Some(last)) = (engine.first_index(GROUP), engine.last_index(GROUP)) {
        engine.fetch_entries_to::<Entries>(GROUP, first, last + 1, None, &mut entries)?;
    }
    Ok((entries, engine.get_message(GROUP, HARD_STATE)?.unwrap_or_default()))
}

/// Zero = there was none.
fn last_write(engine: &Engine) -> u64 {
    let number = engine.get(GROUP, WRITE).and_then(|bytes| bytes.try_into().ok());
    number.map_or(0, u64::from_le_bytes)
}

struct LogThread {
    engine: Engine,
    last_write: u64,
    mark: Mark,
    dir: PathBuf,
    free_bytes_min: u64,
    /// What the core was last told.
    is_low: bool,
    done: Outbox<Done>,
}

impl LogThread {
    fn run(&mut self, orders: &node::channel::Receiver<Order>) {
        while let Some(first) = self.next_order(orders) {
            let mut compact = None;
            let mut persists: Vec<Persist> = Vec::new();
            let mut size = 0;
            // Whatever has gathered meanwhile shares the write.
            for order in std::iter::once(first).chain(orders.try_iter()) {
                match order {
                    Order::Persist(persist) => {
                        size += persist.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                        persists.push(persist);
                    }
                    Order::Compact { index } => compact = Some(index),
                }
                if size >= WRITE_SIZE_MAX {
                    break;
                }
            }
            if let Some(last) = persists.last().map(|persist| persist.ticket) {
                if !self.wait_for_room(size as u64) {
                    return;
                }
                self.write(&persists);
                if self.done.send(Done::Persisted(last)).is_err() {
                    return;
                }
            }
            if let Some(index) = compact {
                self.compact(index);
            }
        }
    }

    /// Waits for an order. A disk that is low is looked at again meanwhile: with no jobs taken, nobody may order anything.
    fn next_order(&mut self, orders: &node::channel::Receiver<Order>) -> Option<Order> {
        loop {
            if !self.is_low {
                return orders.recv().ok();
            }
            match orders.recv_timeout(FULL_RETRY_INTERVAL) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    self.look()?;
                }
            }
        }
    }

    /// How much room there is; the core is told when that goes below what is asked for, or above. `None` = it is gone.
    fn look(&mut self) -> Option<u64> {
        let free = free_bytes(&self.dir);
        let is_low = free < self.free_bytes_min;
        if is_low != self.is_low {
            let (dir, free_bytes_min) = (self.dir.display(), self.free_bytes_min);
            if is_low {
                tracing::error!(%dir, free, free_bytes_min, "the disk is almost full: no new jobs and files are taken");
            } else {
                tracing::info!(%dir, free, free_bytes_min, "the disk has room again");
            }
            self.is_low = is_low;
            self.done.send(Done::Low(is_low)).ok()?;
        }
        Some(free)
    }

    /// Waits until the disk has room for a write, and says so while it has not; the write that waits is what ends it for
    /// the core. False = the owner is gone.
    fn wait_for_room(&mut self, size: u64) -> bool {
        let needed = (self.free_bytes_min / UNTOUCHED_PART).saturating_add(size);
        let mut is_told = false;
        loop {
            let Some(free) = self.look() else { return false };
            if free >= needed {
                return true;
            }
            if !is_told {
                tracing::error!(dir = %self.dir.display(), free, needed, "the disk is full: nothing is accepted");
                is_told = true;
            }
            if self.done.send(Done::Full).is_err() {
                return false;
            }
            thread::park_timeout(FULL_RETRY_INTERVAL);
        }
    }

    fn write(&mut self, persists: &[Persist]) {
        let mut batch = LogBatch::default();
        for persist in persists {
            if persist.snapshot.is_some() {
                // With it go the hard state and the number of the write, which are put anew below.
                batch.add_command(GROUP, Command::Clean);
            }
            batch.add_entries::<Entries>(GROUP, &persist.entries).expect("entries of a log fit a batch");
        }
        let hard_state = &persists.last().expect("there is one").hard_state;
        batch.put_message(GROUP, HARD_STATE.to_vec(), hard_state).expect("a hard state is a few bytes");
        self.last_write += 1;
        batch.put(GROUP, WRITE.to_vec(), self.last_write.to_le_bytes().to_vec()).expect("a name of ours");
        self.engine.write(&mut batch, true).expect("what cannot be written for sure ends the process");
        self.mark.set(self.last_write);
    }

    /// Drops entries up to `index`, and the files that nothing needs any more.
    fn compact(&self, index: u64) {
        self.engine.compact_to(GROUP, index + 1);
        if let Err(error) = self.engine.purge_expired_files() {
            // The log is whole; it only takes more room than it should.
            tracing::warn!(%error, "old log files were not dropped");
        }
    }
}

struct SnapshotThread {
    dir: PathBuf,
    free_bytes_min: u64,
    done: Outbox<Done>,
}

impl SnapshotThread {
    fn run(self, orders: &node::channel::Receiver<SaveOrder>) {
        let mut waiting = VecDeque::new();
        while let Some(SaveOrder { ticket, index, bytes }) = waiting.pop_front().or_else(|| orders.recv().ok()) {
            if !self.wait_for_room(bytes.len() as u64, orders, &mut waiting) {
                return;
            }
            snapshot::save(&self.dir, index, bytes).expect("what cannot be written for sure ends the process");
            if self.done.send(Done::SnapshotSaved(ticket)).is_err() {
                return;
            }
        }
    }

    /// Waits until the disk has room for a snapshot. The core is not told: the log, which may have room, goes on, and
    /// only takes more of it than it should. False = the owner is gone.
    fn wait_for_room(
        &self,
        size: u64,
        orders: &node::channel::Receiver<SaveOrder>,
        waiting: &mut VecDeque<SaveOrder>,
    ) -> bool {
        let free_bytes_min = self.free_bytes_min.saturating_add(size);
        let mut is_told = false;
        loop {
            let free = free_bytes(&self.dir);
            if free >= free_bytes_min {
                return true;
            }
            if !is_told {
                tracing::error!(dir = %self.dir.display(), free, free_bytes_min, "no room for a snapshot: it waits");
                is_told = true;
            }
            match orders.recv_timeout(FULL_RETRY_INTERVAL) {
                Ok(order) => waiting.push_back(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_without_room_waits_and_does_not_say_that_the_log_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, done) = to_owner(1, &Bell::new().unwrap());
        let (saves, save_rx) = to_helper(1);
        let order = SaveOrder { ticket: Ticket(1), index: 1, bytes: b"state".to_vec() };
        assert!(saves.try_send(order).is_ok());
        drop(saves);
        SnapshotThread { dir: dir.path().to_owned(), free_bytes_min: u64::MAX / 2, done: outbox }.run(&save_rx);
        assert!(done.try_recv().is_err(), "nothing was said");
    }

    /// Writes `count` entries, each for itself, and gives the log file that has them.
    fn write_entries(dir: &Path, count: u64) -> PathBuf {
        let (mut disk, _) = Disk::open(dir, 0, &Bell::new().unwrap()).unwrap();
        for index in 1..=count {
            let entries = vec![Entry { index, term: 1, data: vec![7; 100].into(), ..Entry::default() }];
            disk.persist(Persist { ticket: Ticket(index), entries, ..Persist::default() });
            disk.push();
            while disk.next_done() != Some(Done::Persisted(Ticket(index))) {
                thread::yield_now();
            }
        }
        disk.close();
        dir.join(LOG).join("0000000000000001.raftlog")
    }

    #[test]
    fn a_damaged_end_that_was_acknowledged_is_refused_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_entries(dir.path(), 3);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.iter().rposition(|byte| *byte == 7).unwrap();
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        for _ in 0..2 {
            let refused = Disk::open(dir.path(), 0, &Bell::new().unwrap()).err().expect("it is refused");
            assert!(matches!(refused, DiskError::Short { last: 2, synced: 3, .. }), "{refused}");
        }
    }

    #[test]
    fn a_snapshot_of_the_leader_stands_for_the_whole_log() {
        let dir = tempfile::tempdir().unwrap();
        write_entries(dir.path(), 3);
        let (mut disk, _) = Disk::open(dir.path(), 0, &Bell::new().unwrap()).unwrap();
        let entry = |index| Entry { index, term: 2, data: vec![8; 100].into(), ..Entry::default() };
        let hard_state = HardState { term: 2, commit: 100, ..HardState::default() };
        let restart = Persist {
            ticket: Ticket(4),
            entries: vec![entry(101)],
            hard_state: hard_state.clone(),
            snapshot: Some((100, 2)),
        };
        let next =
            Persist { ticket: Ticket(5), entries: vec![entry(102)], hard_state: hard_state.clone(), snapshot: None };
        for persist in [restart, next] {
            disk.persist(persist);
        }
        disk.push();
        while disk.next_done() != Some(Done::Persisted(Ticket(5))) {
            thread::yield_now();
        }
        disk.close();
        let (disk, recovered) = Disk::open(dir.path(), 0, &Bell::new().unwrap()).unwrap();
        assert_eq!(recovered.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [101, 102]);
        assert_eq!(recovered.hard_state, hard_state);
        disk.close();
    }

    #[test]
    fn a_torn_end_that_was_not_acknowledged_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_entries(dir.path(), 3);
        let bytes = std::fs::read(&path).unwrap();
        let last = bytes.iter().rposition(|byte| *byte == 7).unwrap();
        std::fs::write(&path, &bytes[..last]).unwrap();
        // As it is when the process is killed in the middle of its third write.
        Mark::open(dir.path()).unwrap().set(2);
        let (disk, recovered) = Disk::open(dir.path(), 0, &Bell::new().unwrap()).unwrap();
        assert_eq!(recovered.entries.len(), 2);
        disk.close();
    }

    #[test]
    fn the_log_says_that_it_is_full_while_a_write_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (mut disk, _) = Disk::open(dir.path(), u64::MAX / 2, &Bell::new().unwrap()).unwrap();
        disk.persist(Persist { ticket: Ticket(1), ..Persist::default() });
        disk.push();
        assert_eq!([next_done(&disk), next_done(&disk)], [Done::Low(true), Done::Full]);
        disk.close();
    }

    fn next_done(disk: &Disk) -> Done {
        loop {
            match disk.next_done() {
                Some(done) => return done,
                None => thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_low_disk_writes_what_comes_and_says_when_it_is_low_no_more() {
        let dir = tempfile::tempdir().unwrap();
        // Half of that is there, and the untouched part of it is less.
        let free_bytes_min = free_bytes(dir.path()) * 2;
        let (outbox, done) = to_owner(8, &Bell::new().unwrap());
        let (orders, order_rx) = to_helper(1);
        let engine = Engine::open(raft_engine::Config {
            dir: dir.path().join(LOG).to_string_lossy().into_owned(),
            ..raft_engine::Config::default()
        });
        let (engine, mark) = (engine.unwrap(), Mark::open(dir.path()).unwrap());
        let dir = dir.path().to_owned();
        let mut log = LogThread { engine, last_write: 0, mark, dir, free_bytes_min, is_low: false, done: outbox };
        let persist = Persist { ticket: Ticket(1), ..Persist::default() };
        assert!(orders.try_send(Order::Persist(persist)).is_ok());
        drop(orders);
        log.run(&order_rx);
        assert_eq!(done.try_recv(), Ok(Done::Low(true)));
        assert_eq!(done.try_recv(), Ok(Done::Persisted(Ticket(1))), "it is not full");
        log.free_bytes_min = 0;
        assert_eq!(log.look().map(|_| done.try_recv()), Some(Ok(Done::Low(false))));
        assert_eq!(log.look().map(|_| done.try_recv().is_err()), Some(true), "it is told once");
    }
}
