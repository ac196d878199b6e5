//! The supply over real sockets, from stores that are honest, silent or lie, into a real cache.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use content::{Ask, Expected, FetchError, Fetching, HolderAddress, Need, Store, SupplySettings, Wanted, hash_bytes};
use node::{Bind, Certificate, Clock, Endpoint, EndpointConfig, Frame, PeerClass};
use wire::limit::MIB;
use wire::{BootNonce, Duration, FileId, Message, NodeId, Role};
use worker::mount::Parking;
use worker::supply::{Shelf, Supplier};

const HONEST: u8 = 0;
const LYING: u8 = 1;
const SILENT: u8 = 2;
const END: u8 = 3;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A storage node made by hand.
struct Storage {
    address: HolderAddress,
    mood: Arc<AtomicU8>,
    blocks_asked: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
    store: Arc<Store>,
}

impl Storage {
    fn start(dir: &Path, name: &str) -> Self {
        let store = Arc::new(Store::open(&dir.join(name), NodeId::random()).expect("a store"));
        let endpoint = format!("ipc://{}", dir.join(format!("{name}.ipc")).display());
        let bind = Bind { address: endpoint.clone(), class: PeerClass::Bulk };
        let mut socket = Endpoint::open(EndpointConfig {
            binds: vec![bind],
            ..EndpointConfig::new(NodeId::random(), BootNonce::new(1, 1), Certificate::new())
        })
        .expect("a socket");
        let (mood, blocks_asked) = (Arc::new(AtomicU8::new(HONEST)), Arc::new(AtomicU64::new(0)));
        let (its_mood, its_store, count) = (mood.clone(), store.clone(), blocks_asked.clone());
        let thread = thread::spawn(move || {
            let clock = Clock::new();
            while its_mood.load(Ordering::Relaxed) != END {
                socket.wait(Some(clock.now() + Duration::from_millis(20)));
                let mut came = Vec::new();
                socket.drain(64, &mut |from, _, frames| came.push((from, frames)));
                for (from, frames) in came {
                    let Ok(Message::FileRequest(request, _)) = Message::decode(&frames[0]) else { continue };
                    if request.length.get() > 0 && request.part.get() == 0 {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    let mut answer = Ask::of(&request).answer(&its_store, NodeId([9; 16]));
                    match its_mood.load(Ordering::Relaxed) {
                        SILENT => continue,
                        LYING if answer.0.len() > 1 && !answer.0[1].is_empty() => {
                            let mut bytes = answer.0[1].to_vec();
                            bytes[0] ^= 1;
                            answer.0[1] = Frame::from(bytes);
                        }
                        _ => {}
                    }
                    socket.send(from, answer).expect("room");
                }
            }
        });
        let address = HolderAddress { endpoint, key: None, role: Role::Storage, class: PeerClass::Bulk };
        Self { address, mood, blocks_asked, thread: Some(thread), store }
    }

    fn put(&self, bytes: &[u8]) {
        let upload = u64::from_le_bytes(*hash_bytes(bytes).0.first_chunk().expect("32 bytes"));
        self.store.begin(upload, Some(bytes.len() as u64)).expect("room");
        self.store.write(upload, 0, bytes).expect("room");
        self.store.commit(upload, Expected::Anything, bytes.len() as u64).expect("it is right");
    }

    fn becomes(&self, mood: u8) {
        self.mood.store(mood, Ordering::Relaxed);
    }

    fn blocks_asked(&self) -> u64 {
        self.blocks_asked.load(Ordering::Relaxed)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.becomes(END);
        let _ = self.thread.take().expect("it runs until here").join();
    }
}

struct Cache {
    store: Store,
    /// What nobody needs.
    idle: Mutex<Vec<FileId>>,
}

impl Shelf for Cache {
    fn store(&self) -> &Store {
        &self.store
    }

    fn grown(&self, _: FileId) {}

    fn opened(&self, _: FileId) {}

    fn closed(&self, _: FileId) {}

    fn make_room(&self, _: FileId) {
        let mut idle = self.idle.lock().expect("nobody has panicked");
        for file in idle.drain(..) {
            self.store.evict(file).expect("it goes");
        }
    }
}

struct Site {
    storages: Vec<Storage>,
    cache: Arc<Cache>,
    parking: Arc<Parking>,
    supplier: Supplier,
    // Last, so that everything in it is closed first.
    dir: tempfile::TempDir,
}

fn a_site(storages: usize) -> Site {
    let dir = tempfile::tempdir().expect("a directory");
    let storages: Vec<Storage> = (0..storages).map(|at| Storage::start(dir.path(), &format!("s{at}"))).collect();
    let cache = a_cache(dir.path());
    site_of(storages, cache, dir)
}

fn a_cache(dir: &Path) -> Arc<Cache> {
    let store = Store::open(&dir.join("cache"), NodeId([1; 16])).expect("a store");
    Arc::new(Cache { store, idle: Mutex::default() })
}

/// A file system in memory; unmounted when it goes.
struct SmallDisk(CString);

impl SmallDisk {
    /// `None` where nobody lets us mount.
    fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir(path).expect("made");
        let [target, kind] = [path.as_os_str().as_bytes(), b"tmpfs"].map(|it| CString::new(it).expect("no NUL"));
        let data = CString::new(format!("size={mebibytes}m")).expect("no NUL");
        // SAFETY: all strings outlive the call.
        let failed =
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) != 0 };
        if failed {
            eprintln!("not tested: nothing can be mounted here: {}", std::io::Error::last_os_error());
        }
        (!failed).then_some(Self(target))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // SAFETY: the string outlives the call. What fails leaves a directory in /tmp.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

fn site_of(storages: Vec<Storage>, cache: Arc<Cache>, dir: tempfile::TempDir) -> Site {
    let (node, boot) = (NodeId([1; 16]), BootNonce::new(1, 1));
    let (parking, settings) = (Arc::new(Parking::default()), SupplySettings::default());
    let supplier = Supplier::start(node, boot, Certificate::new(), cache.clone(), parking.clone(), settings);
    let supplier = supplier.expect("threads");
    supplier.holders(storages.iter().map(|storage| storage.address.clone()).collect());
    Site { storages, cache, parking, supplier, dir }
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

impl Site {
    /// A file of `length` bytes that every storage node has.
    fn file(&self, length: usize) -> (Vec<u8>, Wanted) {
        let content = bytes(length, length as u64);
        self.storages.iter().for_each(|storage| storage.put(&content));
        let hash = hash_bytes(&content);
        (content, Wanted { file: FileId::of(hash), hash: Some(hash), length: Some(length as u64) })
    }

    fn read(&self, wanted: Wanted, offset: u64, length: usize) -> Result<Vec<u8>, FetchError> {
        let need = Need::Range { offset, length: length as u64 };
        let file_length = self.supplier.fetch(wanted, need, TIMEOUT)?;
        let cached = self.cache.store.cached(wanted.file, wanted.hash, file_length).expect("it is there");
        let mut bytes = vec![0; length];
        cached.read_at(&mut bytes, offset).expect("it is held");
        Ok(bytes)
    }
}

#[test]
fn files_of_every_size_around_a_block_come_whole_and_are_sealed() {
    let site = a_site(1);
    for length in [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 7] {
        let (content, wanted) = site.file(length);
        for wanted in [Wanted { hash: None, length: None, ..wanted }, wanted] {
            assert_eq!(site.supplier.fetch(wanted, Need::Whole, TIMEOUT), Ok(length as u64));
        }
        let path = site.cache.store.path(wanted.file).expect("it is in the store");
        assert!(fs::read(path).expect("it is there") == content, "{length}");
    }
}

#[test]
fn a_read_fetches_what_it_reads_and_the_block_is_at_hand() {
    let site = a_site(1);
    let (content, wanted) = site.file(40 * MIB);
    for block in [30, 3, 17] {
        let (tx, rx) = mpsc::channel();
        let offset = (block * MIB + 77) as u64;
        let ticket = site.supplier.ticket();
        site.parking.park(ticket, move |came| {
            let bytes =
                came.expect("it comes").at_hand.and_then(|block| block.covers(offset, 5)).expect("it has just come");
            tx.send(bytes.to_vec()).expect("somebody waits");
        });
        assert!(site.supplier.ask(ticket, wanted, Need::Range { offset, length: 5 }, TIMEOUT));
        let got = rx.recv_timeout(TIMEOUT).expect("it is answered");
        assert_eq!(got, content[offset as usize..offset as usize + 5]);
        // For the next read too, until somebody has read it to its end.
        let block = site.supplier.at_hand(wanted.file, offset + 5).expect("it is one of the last");
        assert_eq!(block.covers(offset + 5, 5), Some(&content[offset as usize + 5..offset as usize + 10]));
        site.supplier.let_go(&block);
        assert!(site.supplier.at_hand(wanted.file, offset + 5).is_none());
    }
    assert_eq!(site.storages[0].blocks_asked(), 3);
    assert_eq!(site.supplier.bytes_fetched(), 3 * MIB as u64);
}

#[test]
fn a_node_that_lies_or_is_silent_is_passed_over_and_no_wrong_byte_is_kept() {
    let site = a_site(2);
    let (content, wanted) = site.file(3 * MIB + 1);
    site.storages[0].becomes(LYING);
    assert!(site.read(wanted, MIB as u64, MIB).expect("the other has it") == content[MIB..2 * MIB]);
    let (content, wanted) = site.file(2 * MIB + 1);
    site.storages[0].becomes(HONEST);
    site.storages[1].becomes(SILENT);
    site.supplier.holders(vec![site.storages[1].address.clone(), site.storages[0].address.clone()]);
    assert!(site.read(wanted, 2 * MIB as u64, 1).expect("the other has it") == content[2 * MIB..]);
}

#[test]
fn where_all_lie_or_nobody_has_it_the_read_fails() {
    let site = a_site(1);
    let (_, wanted) = site.file(2 * MIB);
    site.storages[0].becomes(LYING);
    let need = Need::Range { offset: 0, length: 9 };
    let failed = site.supplier.fetch(wanted, need, TIMEOUT).expect_err("every byte of it is wrong");
    let FetchError::Wrong { holders, .. } = &failed else { panic!("{failed:?}") };
    assert_eq!(holders, &[site.storages[0].address.endpoint.clone()]);
    let hash = hash_bytes(b"nobody has it");
    let unknown = Wanted { file: FileId::of(hash), hash: Some(hash), length: None };
    let other = a_site(1);
    let failed = other.supplier.fetch(unknown, Need::Length, TIMEOUT);
    assert!(matches!(failed, Err(FetchError::FileUnknown(_))), "{failed:?}");
}

#[test]
fn a_rotten_file_fails_at_once_others_come_and_so_does_it_once_it_is_put_right() {
    let site = a_site(1);
    let clock = Clock::new();
    let (content, rotten) = site.file(3 * MIB);
    let path = site.storages[0].store.path(rotten.file).expect("it is stored");
    let write = |byte| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("it is there");
        file.write_all_at(&[byte], MIB as u64).expect("written");
    };
    write(content[MIB] ^ 1);
    let good: Vec<Wanted> = (1..100).map(|length| site.file(length).1).collect();
    site.supplier.want(rotten, Fetching::Whole);
    let started = clock.now();
    let failed = site.supplier.fetch(rotten, Need::Whole, TIMEOUT);
    assert!(matches!(failed, Err(FetchError::Wrong { .. })), "{failed:?}");
    for wanted in good {
        assert_eq!(site.supplier.fetch(wanted, Need::Whole, TIMEOUT), Ok(wanted.length.expect("it is told")));
    }
    assert!(clock.now().since(started) < Duration::from_secs(10), "somebody waited for a file that is rotten");
    assert!(site.read(rotten, 0, MIB).expect("that block is right") == content[..MIB]);
    assert!(site.storages[0].blocks_asked() <= 99 + 4, "what was right was kept");
    write(content[MIB]);
    assert_eq!(site.supplier.fetch(rotten, Need::Whole, TIMEOUT), Ok(3 * MIB as u64));
}

#[test]
fn what_was_fetched_before_a_restart_is_looked_at_and_not_fetched_again() {
    let site = a_site(1);
    let (content, wanted) = site.file(6 * MIB);
    for block in [4, 0, 2] {
        site.read(wanted, (block * MIB) as u64, 1).expect("it comes");
    }
    let Site { storages, cache, parking: _, supplier, dir } = site;
    drop(supplier);
    // The threads let go of the cache when they end.
    while Arc::strong_count(&cache) > 1 {
        thread::yield_now();
    }
    drop(cache);
    let part = dir.path().join(format!("cache/partial/{}.part", wanted.file));
    // A bit of one block has rotted meanwhile.
    let file = fs::OpenOptions::new().write(true).open(part).expect("it is there");
    file.write_all_at(&[content[2 * MIB] ^ 1], 2 * MIB as u64).expect("written");
    let cache = a_cache(dir.path());
    let site = site_of(storages, cache, dir);
    let before = site.storages[0].blocks_asked();
    for (block, asked) in [(0, 0), (4, 0), (2, 1)] {
        assert!(site.read(wanted, (block * MIB) as u64, MIB).expect("it comes") == content[block * MIB..][..MIB]);
        assert_eq!(site.storages[0].blocks_asked() - before, asked, "block {block}");
    }
}

#[test]
fn a_file_that_is_removed_while_it_is_read_comes_again() {
    let site = a_site(1);
    let (content, wanted) = site.file(3 * MIB);
    assert!(site.read(wanted, 0, 9).expect("it comes") == content[..9]);
    site.cache.store.evict(wanted.file).expect("it goes");
    assert!(site.read(wanted, 0, 9).expect("it comes") == content[..9]);
    assert_eq!(site.storages[0].blocks_asked(), 2);
}

#[test]
fn a_full_disk_makes_room_once_and_then_fails_the_file_clearly() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(_disk) = SmallDisk::mount(&dir.path().join("disk"), 8) else { return };
    let storages = vec![Storage::start(dir.path(), "s0")];
    let cache = a_cache(&dir.path().join("disk"));
    let site = site_of(storages, cache, dir);
    let (_, idle) = site.file(4 * MIB);
    let (content, wanted) = site.file(6 * MIB);
    let (_, too_large) = site.file(9 * MIB);
    assert_eq!(site.supplier.fetch(idle, Need::Whole, TIMEOUT), Ok(4 * MIB as u64));
    site.cache.idle.lock().expect("nobody has panicked").push(idle.file);
    assert_eq!(site.supplier.fetch(wanted, Need::Whole, TIMEOUT), Ok(6 * MIB as u64));
    assert!(site.read(wanted, 0, 6 * MIB).expect("it is here") == content);
    assert!(!site.cache.store.have(idle.file));
    let failed = site.supplier.fetch(too_large, Need::Whole, TIMEOUT).expect_err("there is no room");
    assert!(failed.to_string().ends_with("no room on the disk"), "{failed}");
    assert!(site.read(wanted, 0, 6 * MIB).expect("it is here still") == content);
}

#[test]
fn what_is_wanted_comes_without_anybody_waiting() {
    let site = a_site(1);
    let (_, wanted) = site.file(20 * MIB);
    site.supplier.want(wanted, Fetching::Whole);
    assert_eq!(site.supplier.fetch(wanted, Need::Whole, TIMEOUT), Ok(20 * MIB as u64));
    assert_eq!(site.storages[0].blocks_asked(), 20);
}

#[test]
fn a_thread_that_is_stuck_leaves_beats_unanswered() {
    let site = a_site(1);
    let (_, wanted) = site.file(9);
    assert_eq!(site.supplier.beat(), 0);
    let (free, waits) = mpsc::channel::<()>();
    let (stuck, is_stuck) = mpsc::channel();
    let ticket = site.supplier.ticket();
    site.parking.park(ticket, move |_| {
        stuck.send(()).expect("somebody waits");
        // An error says that the test has failed already.
        let _ = waits.recv();
    });
    assert!(site.supplier.ask(ticket, wanted, Need::Length, TIMEOUT));
    is_stuck.recv_timeout(TIMEOUT).expect("it is answered");
    site.supplier.beat();
    let missed = site.supplier.beat();
    assert_eq!(site.supplier.beat(), missed + 1);
    free.send(()).expect("it waits");
    site.supplier.fetch(wanted, Need::Length, TIMEOUT).expect("it goes on");
    assert_eq!(site.supplier.beat(), 0);
}
