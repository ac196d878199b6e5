//! How fast does a program read its inputs, warm and cold, over reading the same bytes from the disk's page cache?
//!
//! A job holds its inputs while this process reads them where the job finds them. Warm: sealed in the worker's cache and in
//! the page cache; beside the mount stand the cache file itself, the inputs of a worker that writes them out, and bindfs,
//! which passes each read through a process of its own. Cold: the worker has nothing, storage is on the same machine, and its
//! files are read where they lie or brought; beside it stand one TCP stream of the same bytes into a file, and writing out.
//! Run it as root: without, the kernel reads nothing past the worker. It takes 6 GiB of the temporary directory, which should
//! lie on a disk. Named as arguments, only the parts `warm`, `cold`, `lazily` are run.

#![allow(clippy::disallowed_methods)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bench::{Cluster, Rounds, in_turns, time};
use content::Store;
use memmap2::Mmap;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const BIG: u64 = 1 << 30;
const HUGE: u64 = 10 << 30;
/// Files of one page: in a directory, which is stored as a tree, and as inputs by themselves.
const TREE_FILES: usize = 1_000;
const PLAIN_FILES: usize = 200;
const RANDOM_READS_WARM: u64 = 100_000;
const RANDOM_READS_COLD: u64 = 500;
const COLD_ROUNDS: usize = 5;
/// What is waited for comes long before that, or never.
const PATIENCE: Duration = Duration::from_secs(60);
/// The magic number of file systems in user space.
const FUSE: u64 = 0x6573_5546;

/// A way to read; each takes what lies at the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Sequential,
    Random(u64),
    Mapped,
    /// Every file of a directory: open, read, close.
    Small,
}

impl Way {
    fn read(self, path: &Path) {
        match self {
            Way::Sequential => {
                let mut buffer = vec![0; MIB];
                let mut file = open(path);
                while file.read(&mut buffer).expect("it is read") > 0 {}
            }
            Way::Random(reads) => {
                let file = open(path);
                let pages = file.metadata().expect("it has a length").len() / PAGE as u64;
                let (mut page, mut numbers) = ([0; PAGE], Numbers::new(1));
                for _ in 0..reads {
                    file.read_exact_at(&mut page, numbers.next() % pages * PAGE as u64).expect("it is read");
                }
                black_box(page);
            }
            Way::Mapped => {
                black_box(sum_of_map(&open(path)));
            }
            Way::Small => {
                let mut page = [0; PAGE];
                for entry in fs::read_dir(path).expect("a directory") {
                    open(&entry.expect("an entry").path()).read_exact(&mut page).expect("it is read");
                }
                black_box(page);
            }
        }
    }
}

/// Reads each line of the processor's cache once.
fn sum_of_map(file: &File) -> u64 {
    // SAFETY: whatever is measured here never changes.
    let map = unsafe { Mmap::map(file) }.expect("it can be mapped");
    let first = |line: &[u8]| u64::from_ne_bytes(line[..8].try_into().expect("eight bytes"));
    map.chunks_exact(64).map(first).fold(0, u64::wrapping_add)
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Numbers without a pattern, the same each time.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.next().to_ne_bytes()));
    }
}

/// Makes what is read: `big`, the directory `tree`, the directory `plain`.
fn make_inputs(dir: &Path) {
    let (mut numbers, mut block) = (Numbers::new(2), vec![0; MIB]);
    let mut big = File::create(dir.join("big")).expect("made");
    for _ in 0..BIG / MIB as u64 {
        numbers.fill(&mut block);
        big.write_all(&block).expect("written");
    }
    for (name, files) in [("tree", TREE_FILES), ("plain", PLAIN_FILES)] {
        fs::create_dir(dir.join(name)).expect("made");
        for number in 0..files {
            numbers.fill(&mut block[..PAGE]);
            fs::write(dir.join(name).join(format!("f{number}")), &block[..PAGE]).expect("written");
        }
    }
}

/// A cluster whose files stay when it stops: one worker, which mounts inputs or writes them out.
struct Site {
    dir: PathBuf,
    mounts: bool,
    /// What storage has is read where it lies; else it is brought as from another machine.
    borrows: bool,
    running: Option<Cluster>,
}

impl Site {
    fn start(dir: PathBuf, mounts: bool) -> Self {
        let mut site = Self { dir, mounts, borrows: false, running: None };
        site.resume();
        site
    }

    fn resume(&mut self) {
        let dir = self.dir.to_str().expect("a name in UTF-8");
        let mut options = vec!["--phase", "1", "--workers", "1", "--dir", dir];
        if !self.mounts {
            options.push("--no-fuse");
        }
        if !self.borrows {
            options.push("--no-borrow");
        }
        self.running = Some(Cluster::start(&options));
    }

    fn stop(&mut self) {
        self.running = None;
    }

    fn cluster(&self) -> &Cluster {
        self.running.as_ref().expect("it runs")
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("worker1/cache")
    }

    /// Stops it and throws the worker's cache away; nothing is left to be written to the disk either.
    fn make_cold(&mut self) {
        self.stop();
        if self.cache().exists() {
            fs::remove_dir_all(self.cache()).expect("the cache goes");
        }
        // SAFETY: it takes nothing and returns nothing.
        unsafe { libc::sync() };
    }

    /// Stores a file or a directory; returns its id.
    fn put(&self, path: &Path) -> String {
        let mut zg = self.cluster().zg();
        let put = zg.args(["file", "put"]).arg(path).stdout(Stdio::piped()).output().expect("zg starts");
        assert!(put.status.success(), "zg file put {} failed", path.display());
        String::from_utf8(put.stdout).expect("an id").trim().to_owned()
    }

    /// Where the store in `store` keeps a file that is whole.
    fn stored(store: &Path, id: &str) -> PathBuf {
        store.join("files").join(&id[..2]).join(&id[2..4]).join(format!("{id}.dat"))
    }
}

/// A job that runs until this is dropped, and holds its inputs as long.
struct Holding {
    submit: Child,
    /// Two files for talking to it.
    talk: tempfile::TempDir,
    /// Where it finds its inputs.
    inputs: PathBuf,
}

const HOLD: &str = "echo \"$ZG_INPUT_DIR\" > $1/new; mv $1/new $1/said; while [ -e $1/held ]; do sleep 0.2; done";

impl Holding {
    /// Returns as soon as the program runs. An input is `SOURCE:NAME`.
    fn start(cluster: &Cluster, inputs: &[String]) -> Self {
        let talk = tempfile::tempdir().expect("a directory");
        fs::write(talk.path().join("held"), "").expect("written");
        let mut zg = cluster.zg();
        zg.args(["submit", "--wait"]);
        for input in inputs {
            zg.args(["--input", input]);
        }
        zg.args(["--", "sh", "-c", HOLD, "sh"]).arg(talk.path());
        let mut submit = zg.spawn().expect("zg submit starts");
        let said = talk.path().join("said");
        wait_for("the job to start", || {
            assert!(submit.try_wait().expect("it is ours").is_none(), "the job has ended");
            said.exists()
        });
        let inputs = fs::read_to_string(said).expect("it is read");
        Self { submit, talk, inputs: inputs.trim_end().into() }
    }

    fn input(&self, name: &str) -> PathBuf {
        self.inputs.join(name)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.talk.path().join("held"));
        let _ = self.submit.wait();
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A file system of Debian's packages that passes everything through a process: the same directory once more.
struct Bindfs {
    process: Child,
    of: PathBuf,
    at: tempfile::TempDir,
}

impl Bindfs {
    /// `None` where it is not installed. It keeps in the kernel what it may: the data, the names and the attributes.
    fn start(of: &Path) -> Option<Self> {
        let at = tempfile::tempdir().expect("a directory");
        let mut bindfs = Command::new("bindfs");
        bindfs.args(["-f", "-r", "--multithreaded", "-o", "kernel_cache,attr_timeout=3600,entry_timeout=3600"]);
        let process = bindfs.arg(of).arg(at.path()).spawn().ok()?;
        let bindfs = Self { process, of: of.to_owned(), at };
        wait_for("bindfs to mount", || is_fuse(bindfs.at.path()));
        Some(bindfs)
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.at.path().join(path.strip_prefix(&self.of).expect("it lies in what is mounted"))
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_fuse(path: &Path) -> bool {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path without a zero");
    // SAFETY: a structure of numbers, all of which may be zero.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero, and `about` is as large as it is taken for.
    let failed = unsafe { libc::statfs(path.as_ptr(), &mut about) } != 0;
    !failed && about.f_type as u64 == FUSE
}

/// Bytes of the disk that a directory takes.
fn taken(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// One stream over the loopback into a file.
fn stream(from: &Path, to: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has one");
    thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: nobody changes it.
            let map = unsafe { Mmap::map(&open(from)) }.expect("it can be mapped");
            let mut stream = TcpStream::connect(address).expect("it connects");
            map.chunks(MIB).for_each(|block| stream.write_all(block).expect("it is taken"));
        });
        let (mut stream, _) = listener.accept().expect("somebody connects");
        let (mut file, mut buffer) = (File::create(to).expect("made"), vec![0; MIB]);
        loop {
            let count = stream.read(&mut buffer).expect("it comes");
            if count == 0 {
                return;
            }
            file.write_all(&buffer[..count]).expect("written");
        }
    });
}

fn gib_per_second(taken: Duration) -> String {
    format!("{:.2} GiB/s", BIG as f64 / taken.as_secs_f64() / (1u64 << 30) as f64)
}

fn milliseconds(taken: Duration) -> String {
    format!("{:.1} ms", taken.as_secs_f64() * 1e3)
}

fn ratio(base: Rounds, other: Rounds) -> String {
    format!("{:.2}", base.median.as_secs_f64() / other.median.as_secs_f64())
}

/// Where the sides find the same thing.
struct Places {
    own: PathBuf,
    mounted: PathBuf,
    written: PathBuf,
    bindfs: Option<PathBuf>,
}

fn warm_table(rows: &[(&str, Way, &Places, &str)]) {
    println!("| warm | page cache | mount | spread | written out | bindfs | judged |\n|---|---|---|---|---|---|---|");
    for (what, way, places, judged) in rows {
        let mut paths = vec![&places.own, &places.mounted, &places.written];
        paths.extend(&places.bindfs);
        let sides = in_turns(paths.len(), |side| way.read(paths[side]));
        let own = match way {
            Way::Sequential | Way::Mapped => gib_per_second(sides[0].median),
            Way::Random(reads) => format!("{:.2} us", sides[0].median.as_secs_f64() * 1e6 / *reads as f64),
            Way::Small => {
                let files = fs::read_dir(&places.own).expect("a directory").count();
                format!("{:.2} us", sides[0].median.as_secs_f64() * 1e6 / files as f64)
            }
        };
        let others: Vec<String> = sides[1..].iter().map(|side| ratio(sides[0], *side)).collect();
        let bindfs = others.get(2).map_or("not installed", String::as_str);
        println!("| {what} | {own} | {} | {:.2} | {} | {bindfs} | {judged} |", others[0], sides[1].spread, others[1]);
    }
}

fn warm(dir: &Path, mounting: &Site, writing: &Site, ids: &[String; 2]) {
    let mut inputs = vec![format!("{}:big", ids[0]), format!("{}:tree", ids[1])];
    for number in 0..PLAIN_FILES {
        inputs.push(format!("{}:plain/f{number}", dir.join(format!("plain/f{number}")).display()));
    }
    let [mounted, written] = [mounting, writing].map(|site| Holding::start(site.cluster(), &inputs));
    let cached = Site::stored(&mounting.cache(), &ids[0]);
    Way::Sequential.read(&mounted.input("big"));
    wait_for("the cache to have all of it", || cached.exists());
    let bindfs = Bindfs::start(dir);
    let places = |own: PathBuf, name: &str| Places {
        bindfs: bindfs.as_ref().map(|bindfs| bindfs.path(&own)),
        own,
        mounted: mounted.input(name),
        written: written.input(name),
    };
    let [big, tree, plain] =
        [places(cached, "big"), places(dir.join("tree"), "tree"), places(dir.join("plain"), "plain")];
    warm_table(&[
        ("1 GiB in order, 1 MiB at a time", Way::Sequential, &big, ">= 0.9"),
        ("random 4 KiB", Way::Random(RANDOM_READS_WARM), &big, ">= 0.8"),
        ("1 GiB mapped", Way::Mapped, &big, ">= 0.9"),
        ("open, read, close of 4 KiB: a tree's files", Way::Small, &tree, ""),
        ("open, read, close of 4 KiB: inputs", Way::Small, &plain, ""),
    ]);
}

/// Reads an input of a worker that has nothing; returns when it began to open it, and when it had all, since the submit.
/// `None` = it had all before the program started.
fn read_cold(site: &mut Site, id: &str, way: Way, length: u64) -> (Option<Duration>, Duration) {
    site.make_cold();
    site.resume();
    let inputs = [format!("{id}:it")];
    let start = Instant::now();
    let job = Holding::start(site.cluster(), &inputs);
    let submitted = start.elapsed();
    // A look at the disk takes less than a millisecond, and counts.
    let is_here = taken(&site.cache()) >= length;
    way.read(&job.input("it"));
    let read = start.elapsed();
    ((!is_here).then(|| read - submitted), read)
}

fn cold(dir: &Path, mounting: &mut Site, writing: &mut Site, ids: &[String; 2]) {
    let columns = ["one TCP stream into a file", "written out, from submit", "mount, from submit", "mount, from open"];
    let steady = "fastest and spread of the stream, of the mount";
    println!("\n| cold | {} | {steady} |\n|---|---|---|---|---|---|", columns.join(" | "));
    let rows = [
        ("1 GiB in order, read where storage has it (judged: >= 0.5 from open)", Way::Sequential, &ids[0], BIG, true),
        ("1 GiB in order, brought", Way::Sequential, &ids[0], BIG, false),
        ("1 GiB mapped, read where storage has it", Way::Mapped, &ids[0], BIG, true),
        ("1 GiB mapped, brought", Way::Mapped, &ids[0], BIG, false),
        ("random 4 KiB, 500 times in 1 GiB, brought", Way::Random(RANDOM_READS_COLD), &ids[0], BIG, false),
        ("open, read, close of 4 KiB: a tree's 1,000 files", Way::Small, &ids[1], (TREE_FILES * PAGE) as u64, false),
    ];
    let streamed = dir.join("streamed");
    for (what, way, id, length, borrows) in rows {
        mounting.borrows = borrows;
        let (mut tcp, mut written, mut submitted, mut opened) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..COLD_ROUNDS {
            if length == BIG {
                // SAFETY: it takes nothing and returns nothing.
                unsafe { libc::sync() };
                tcp.push(time(|| stream(&dir.join("big"), &streamed)));
                fs::remove_file(&streamed).expect("it goes");
            }
            written.push(read_cold(writing, id, way, length).1);
            writing.make_cold();
            let (open, submit) = read_cold(mounting, id, way, length);
            opened.extend(open);
            submitted.push(submit);
        }
        let [written, submitted] = [written, submitted].map(Rounds::of);
        let opened = (opened.len() == COLD_ROUNDS).then(|| Rounds::of(opened));
        let base = if tcp.is_empty() { written } else { Rounds::of(tcp.clone()) };
        let cell = |side: Rounds| format!("{} ({})", milliseconds(side.median), ratio(base, side));
        let stream = if tcp.is_empty() { "-".to_owned() } else { cell(base) };
        let open_said = opened.map_or("all was fetched before the program started".to_owned(), cell);
        let steady = [base, opened.unwrap_or(submitted)]
            .map(|side| format!("{} x {:.2}", milliseconds(side.fastest), side.spread))
            .join(", ");
        println!("| {what} | {stream} | {} | {} | {open_said} | {steady} |", cell(written), cell(submitted));
    }
}

/// What ten reads of a large input move; `None` = the mount fetched all of it before the program started.
fn ten_reads(site: &mut Site, id: &str) -> Option<u64> {
    const BLOCKS: [u64; 10] = [3, 117, 240, 377, 512, 600, 701, 777, 850, 999];
    site.make_cold();
    site.resume();
    let job = Holding::start(site.cluster(), &[format!("{id}:it")]);
    if taken(&site.cache()) >= BIG {
        return None;
    }
    let (file, mut block) = (open(&job.input("it")), vec![0; MIB]);
    BLOCKS.iter().for_each(|at| file.read_exact_at(&mut block, at * MIB as u64).expect("it is read"));
    // What was asked for ahead, if anything, comes too.
    thread::sleep(Duration::from_secs(1));
    Some(taken(&site.cache()))
}

/// How long it takes from the open of an input to its first byte. The file is all holes, also on storage, into whose store
/// it is moved: the disk need not have room for it.
fn first_byte(dir: &Path) -> Rounds {
    let huge = dir.join("huge");
    File::create(&huge).and_then(|file| file.set_len(HUGE)).expect("made");
    let mut site = Site::start(dir.join("h"), true);
    site.stop();
    let storage = site.dir.join("storage1");
    let node = fs::read_to_string(storage.join("NODE")).expect("a node's id");
    let store = Store::open(&storage, node.trim().parse().expect("a node's id")).expect("it is free");
    let id = store.adopt(&huge).expect("it is taken").file.to_string();
    drop(store);
    site.resume();
    assert_eq!(site.put(&Site::stored(&storage, &id)), id);
    let rounds = (0..COLD_ROUNDS).map(|_| {
        site.make_cold();
        site.resume();
        let job = Holding::start(site.cluster(), &[format!("{id}:it")]);
        time(|| open(&job.input("it")).read_exact(&mut [0]).expect("it is read"))
    });
    Rounds::of(rounds.collect())
}

fn main() {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = temporary.path();
    make_inputs(dir);
    let (mut mounting, mut writing) = (Site::start(dir.join("m"), true), Site::start(dir.join("w"), false));
    let ids = ["big", "tree"].map(|name| {
        let id = writing.put(&dir.join(name));
        assert_eq!(mounting.put(&dir.join(name)), id);
        id
    });
    {
        let job = Holding::start(mounting.cluster(), &[format!("{}:tree", ids[1])]);
        assert!(
            is_fuse(&job.inputs),
            "nothing can be mounted here: inputs are written out, and there is nothing to compare"
        );
    }
    // SAFETY: it takes a number.
    let is_first = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_FIFO;
    println!(
        "scheduled {}; ratios are speeds, the first column = 1\n",
        if is_first { "before all others" } else { "as usual" }
    );
    let named: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    if is_wanted("warm") {
        warm(dir, &mounting, &writing, &ids);
    }
    mounting.make_cold();
    writing.make_cold();
    if is_wanted("cold") {
        cold(dir, &mut mounting, &mut writing, &ids);
    }
    drop(writing);
    if is_wanted("lazily") {
        lazily(dir, mounting, &ids[0]);
    }
}

fn lazily(dir: &Path, mut mounting: Site, id: &str) {
    println!("\n| lazily | | judged |\n|---|---|---|");
    let moved = ten_reads(&mut mounting, id);
    drop(mounting);
    let said = moved
        .map_or("all, before the program starts".to_owned(), |moved| format!("{:.1} MiB", moved as f64 / MIB as f64));
    println!("| ten reads of an aligned MiB of 1 GiB fetch | {said} | <= 20 MiB |");
    let said = match moved {
        Some(_) => milliseconds(first_byte(dir).median),
        // It would take the disk that the holes save.
        None => "not run: it would be fetched whole".to_owned(),
    };
    println!("| the first byte of 10 GiB comes after | {said} | <= 100 ms |");
}
