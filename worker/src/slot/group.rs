//! Control groups: what bounds the memory and the number of a slot's processes, and finds every one of them.
//!
//! A group is like a fenced yard: whoever is born in it stays in it, so the fence is put up once per slot and no run pays
//! for it. The worker makes one for each slot below the group that it runs in itself (`zg-NODE/SLOT`); the slot's process
//! enters it first thing, and with it, by birth, all that it starts. A limit is written when a run asks for another one
//! than the last. Whoever ends last takes the groups away: a slot's process its own when it leaves, the worker what is
//! left, and the worker's next start what neither could.
//!
//! The kernel has two kinds: version 1 with a tree for each controller, version 2 with one tree for all. In version 2 a
//! group that hands controllers on may hold no process itself, so the worker then steps aside into `zg-NODE/worker`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::pid_t;
use wire::NodeId;

use super::{now, tree};

/// Processes and threads of one slot: enough for what is meant, and a fork bomb leaves room for the machine.
const TASKS_MAX: u32 = 4096;
/// How long the killed members of a group may take to be gone.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two looks at a group whose members have been killed.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

const MEMORY: &str = "memory";
const PIDS: &str = "pids";

const MEMBERS: &str = "cgroup.procs";
/// Lists the controllers that a group hands on; of version 2 only.
const HANDED_ON: &str = "cgroup.subtree_control";
/// Where the worker itself goes in version 2.
const ASIDE: &str = "worker";

/// The groups of one worker. Dropped, they are gone, and whoever was in them.
#[derive(Debug)]
pub struct Groups(Vec<Home>);

/// Where one tree has the worker's groups.
#[derive(Debug)]
struct Home {
    /// `zg-NODE`; each slot's group lies in it.
    path: PathBuf,
    /// The worker stepped aside, and hands on these controllers.
    handed_on: Option<Vec<&'static str>>,
}

/// The group of one slot: one directory in each tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(Vec<PathBuf>);

impl Groups {
    /// Makes room for the groups of the worker `node`, and ends what an earlier start of it left there.
    pub fn open(node: NodeId) -> io::Result<Groups> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut groups = Groups(Vec::new());
        for controller in [MEMORY, PIDS] {
            let opened = match own_group(&own, &mounts, controller) {
                Some(base) => groups.add(&base, node, controller),
                None => Err(io::Error::other(format!("this machine has no {controller} controller for us"))),
            };
            // Of what is bounded, memory is what programs ask for; without it there is nothing to have groups for.
            if controller == MEMORY {
                opened?;
            }
        }
        Ok(groups)
    }

    /// No groups: programs run without these limits.
    pub fn none() -> Groups {
        Groups(Vec::new())
    }

    fn add(&mut self, base: &Path, node: NodeId, controller: &'static str) -> io::Result<()> {
        let path = base.join(format!("zg-{node}"));
        if let Some(home) = self.0.iter_mut().find(|home| home.path == path) {
            return home.hand_on(base, controller);
        }
        if path.is_dir() {
            end(&path);
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(with_path(error, &path)),
            Ok(()) | Err(_) => (),
        }
        // From here on dropping removes it.
        self.0.push(Home { path, handed_on: None });
        self.0.last_mut().expect("just added").hand_on(base, controller)
    }

    /// The group of a slot, made and without the limits of whatever ran there; `None` if there are no groups.
    pub fn slot(&self, slot: u32) -> io::Result<Option<Group>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let group = Group(self.0.iter().map(|home| home.path.join(slot.to_string())).collect());
        for directory in &group.0 {
            fs::create_dir_all(directory).map_err(|error| with_path(error, directory))?;
            if let Some(mut memory) = Memory::open(directory)? {
                memory.limit(0)?;
            }
            let tasks = directory.join("pids.max");
            if tasks.exists() {
                fs::write(&tasks, TASKS_MAX.to_string()).map_err(|error| with_path(error, &tasks))?;
            }
            let swap = directory.join("memory.swap.max");
            if swap.exists() {
                // In version 1 the limit counts both together; here each has its own.
                fs::write(&swap, "0").map_err(|error| with_path(error, &swap))?;
            }
        }
        Ok(Some(group))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for home in &self.0 {
            home.step_back();
            end(&home.path);
        }
    }
}

impl Home {
    /// Has the controller at work in the groups to come. In version 1 it always is.
    fn hand_on(&mut self, base: &Path, controller: &'static str) -> io::Result<()> {
        if !is_version_2(base) {
            return Ok(());
        }
        let wanted = format!("+{controller}");
        let of_base = base.join(HANDED_ON);
        let is_handed_on = fs::read_to_string(&of_base)?.split_ascii_whitespace().any(|name| name == controller);
        if !is_handed_on {
            if self.handed_on.is_none() {
                let aside = self.path.join(ASIDE);
                fs::create_dir_all(&aside).map_err(|error| with_path(error, &aside))?;
                enter(&aside)?;
                self.handed_on = Some(Vec::new());
            }
            fs::write(&of_base, &wanted).map_err(|error| {
                let path = of_base.display();
                io::Error::new(error.kind(), format!("{path}: {error} (the worker's group must be its own alone)"))
            })?;
            self.handed_on.as_mut().expect("set above").push(controller);
        }
        let own = self.path.join(HANDED_ON);
        fs::write(&own, &wanted).map_err(|error| with_path(error, &own))
    }

    /// Undoes `hand_on`, as far as the groups of slots allow.
    fn step_back(&self) {
        let Some(controllers) = &self.handed_on else { return };
        // The slots' groups keep the controllers busy.
        for slot in below(&self.path).filter(|path| !path.ends_with(ASIDE)) {
            end(&slot);
        }
        let Some(base) = self.path.parent() else { return };
        for controller in controllers {
            for path in [&*self.path, base] {
                let _ = fs::write(path.join(HANDED_ON), format!("-{controller}"));
            }
        }
        let _ = enter(base);
    }
}

impl Group {
    /// The group in these directories, as they are given to a slot's process.
    pub fn at(directories: Vec<PathBuf>) -> Option<Group> {
        if directories.is_empty() { None } else { Some(Group(directories)) }
    }

    pub fn directories(&self) -> &[PathBuf] {
        &self.0
    }

    /// Brings this process into the group.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|directory| enter(directory))
    }

    /// Brings this process, the last of the group, out of it, and removes the group.
    pub(super) fn leave(&self) {
        for directory in &self.0 {
            let Some(home) = directory.parent() else { continue };
            // Where the worker stepped aside there is no place above; else there is none aside.
            let mut outside = [Some(home.join(ASIDE)), home.parent().map(Path::to_owned)].into_iter().flatten();
            if outside.any(|outside| enter(&outside).is_ok()) {
                end(directory);
                // Only the last one to leave can.
                let _ = fs::remove_dir(home);
            }
        }
    }

    /// Kills whoever is in the group.
    pub(super) fn kill(&self) {
        // Nobody is born any more while they are killed.
        self.0.iter().for_each(|directory| stop_births(directory));
        let deadline = now() + END_TIME_MAX;
        while self.0.iter().any(|directory| kill_members(directory)) && now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The memory of the group, to bound it and to watch it; `None` if no tree does that.
    pub(super) fn memory(&self) -> io::Result<Option<Memory>> {
        for directory in &self.0 {
            if let Some(memory) = Memory::open(directory)? {
                return Ok(Some(memory));
            }
        }
        Ok(None)
    }
}

/// The memory of a slot's group. The files stay open: a look costs a microsecond.
#[derive(Debug)]
pub(super) struct Memory {
    /// In the order in which a limit may be lowered.
    limits: Vec<fs::File>,
    unlimited: &'static str,
    /// The most that was used; writing to it begins anew.
    peak: Option<fs::File>,
    /// Has a line `oom_kill N`.
    events: fs::File,
    /// 0 = none; `None` = whatever it is, it is not ours.
    limit: Option<u64>,
    /// Processes killed for want of memory, as far as they are known.
    kills: u64,
}

impl Memory {
    /// `None` if the directory's tree does not bound memory.
    fn open(directory: &Path) -> io::Result<Option<Memory>> {
        let open = |name: &str| match fs::File::options().read(true).write(true).open(directory.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(with_path(error, &directory.join(name))),
        };
        let (limits, unlimited, events, peak) = if let Some(limit) = open("memory.max")? {
            (vec![limit], "max", "memory.events", open("memory.peak").unwrap_or_default())
        } else if let Some(limit) = open("memory.limit_in_bytes")? {
            let limits = [limit].into_iter().chain(open("memory.memsw.limit_in_bytes")?).collect();
            (limits, "-1", "memory.oom_control", open("memory.max_usage_in_bytes")?)
        } else {
            return Ok(None);
        };
        let events = fs::File::open(directory.join(events)).map_err(|error| with_path(error, directory))?;
        let mut memory = Memory { limits, unlimited, peak, events, limit: None, kills: 0 };
        memory.has_killed();
        Ok(Some(memory))
    }

    /// Bounds what all processes of the group use together, in bytes; 0 = not at all.
    pub(super) fn limit(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > 0 {
            // Some kernels cannot begin anew; then the most since long ago is told.
            self.peak.iter().for_each(|peak| drop(write(peak, "0")));
        }
        if self.limit.replace(bytes) == Some(bytes) {
            return Ok(());
        }
        let text = if bytes == 0 { self.unlimited.to_owned() } else { bytes.to_string() };
        // Memory with swap is never bounded below memory alone. A limit between the old ones needs one order, and an
        // order that is wrong is refused without harm.
        let raised = self.limits.iter().rev().try_for_each(|limit| write(limit, &text));
        let written = raised.or_else(|_| self.limits.iter().try_for_each(|limit| write(limit, &text)));
        if written.is_err() {
            self.limit = None;
        }
        written
    }

    /// Whether the kernel killed a member for want of memory since this was last asked.
    pub(super) fn has_killed(&mut self) -> bool {
        let known = self.kills;
        let line = |text: &str| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        self.kills = read(&self.events, line).unwrap_or(known);
        known < self.kills
    }

    /// The most that was used, in bytes, since a limit was last given.
    pub(super) fn peak(&self) -> u64 {
        self.peak.as_ref().and_then(|peak| read(peak, |text| text.trim().parse().ok())).unwrap_or(0)
    }
}

/// Makes a program a likelier victim than the slot's process it is started from, when memory runs out.
#[derive(Debug)]
pub(super) struct Victim {
    file: fs::File,
    own: String,
}

impl Victim {
    /// `None` where the kernel gives no say in it.
    pub(super) fn open() -> Option<Victim> {
        let path = "/proc/self/oom_score_adj";
        let own = fs::read_to_string(path).ok()?;
        Some(Victim { file: fs::File::options().write(true).open(path).ok()?, own })
    }

    /// What `start` makes is born the first victim, and this process stays what it was. The other way round, to make
    /// this process the last one, takes a privilege.
    pub(super) fn born<T>(this: Option<&Victim>, start: impl FnOnce() -> T) -> T {
        let Some(victim) = this else { return start() };
        let _ = write(&victim.file, "1000");
        let started = start();
        let _ = write(&victim.file, &victim.own);
        started
    }
}

/// The directory of this process's own group in the tree that has the controller; `None` if there is no such tree here.
fn own_group(own: &str, mounts: &str, controller: &str) -> Option<PathBuf> {
    let mut unified = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        if controllers.split(',').any(|name| name == controller) {
            return mounted(mounts, "cgroup", controller, group);
        }
        if controllers.is_empty() {
            unified = mounted(mounts, "cgroup2", "", group);
        }
    }
    let is_in = |path: &PathBuf| {
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_ascii_whitespace().any(|name| name == controller)
    };
    unified.filter(is_in)
}

/// Where a group of a tree is found, by `/proc/self/mountinfo`.
fn mounted(mounts: &str, kind: &str, controller: &str, group: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, tree) = line.split_once(" - ")?;
        let mut tree = tree.split(' ');
        let is_it =
            tree.next()? == kind && (controller.is_empty() || tree.nth(1)?.split(',').any(|it| it == controller));
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        // A path above the root of the mount begins with `/..`; such a group is not to be seen from here.
        let inside = Path::new(group).strip_prefix(root).ok().filter(|inside| !inside.starts_with(".."))?;
        is_it.then(|| Path::new(point).join(inside))
    })
}

fn is_version_2(directory: &Path) -> bool {
    directory.join(HANDED_ON).exists()
}

/// Brings this process into the group at `directory`.
fn enter(directory: &Path) -> io::Result<()> {
    fs::write(directory.join(MEMBERS), "0").map_err(|error| with_path(error, directory))
}

/// Kills whoever is in the group at `directory` and in those below, and removes them, as far as can be.
fn end(directory: &Path) {
    stop_births(directory);
    let deadline = now() + END_TIME_MAX;
    loop {
        for inner in below(directory) {
            end(&inner);
        }
        kill_members(directory);
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            Ok(()) | Err(_) => return,
        }
    }
}

fn stop_births(directory: &Path) {
    let tasks = directory.join("pids.max");
    if tasks.exists() {
        let _ = fs::write(tasks, "0");
    }
}

/// Kills the members of the group at `directory`, and of those that they made below it; false if there was nobody.
fn kill_members(directory: &Path) -> bool {
    let mut is_any = false;
    for inner in below(directory) {
        is_any |= kill_members(&inner);
    }
    let members = fs::read_to_string(directory.join(MEMBERS)).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse::<pid_t>().ok()) {
        // 0 stands for members that cannot be seen from here, and to `kill` for ourselves.
        if pid != 0 && pid != tree::own_pid() {
            // SAFETY: plain system call. Numbers are given out in a circle, so one that was just read is no stranger's.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            is_any = true;
        }
    }
    is_any
}

/// The groups directly below one.
fn below(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// What `parse` makes of a kernel's short file.
fn read<T>(file: &fs::File, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let mut bytes = [0; 512];
    // SAFETY: `bytes` has room for as many as are asked for.
    let length = unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    parse(std::str::from_utf8(bytes.get(..usize::try_from(length).ok()?)?).ok()?)
}

/// Writes at the start of a kernel's file.
fn write(file: &fs::File, text: &str) -> io::Result<()> {
    // SAFETY: the text lives until the call returns.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), text.as_ptr().cast(), text.len(), 0) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn with_path(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn a_group_is_found_by_its_controller_below_the_root_of_its_mount() {
        let found = |own: &str, controller: &str| own_group(own, MOUNTS, controller);
        let own = "4:memory:/docker/abc/service\n3:cpu,cpuacct:/user:1000\n0::/init.scope\n";
        assert_eq!(found(own, "memory").as_deref(), Some(Path::new("/sys/fs/cgroup/memory/service")));
        assert_eq!(found(own, "cpuacct").as_deref(), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/user:1000")));
        assert_eq!(found("4:memory:/docker/abc\n", "memory").as_deref(), Some(Path::new("/sys/fs/cgroup/memory/")));
        // What lies outside of the mount cannot be reached, nor what is above this name space.
        for outside in
            ["4:memory:/docker/other\n", "4:memory:/docker/abc/../other\n", "4:memory:/../x\n", "4:pids:/x\n", ""]
        {
            assert_eq!(found(outside, "memory"), None, "{outside}");
        }
        let unified = mounted(MOUNTS, "cgroup2", "", "/system.slice/zg.service");
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/system.slice/zg.service")));
    }
}
