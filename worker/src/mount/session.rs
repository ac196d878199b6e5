//! Talks to the kernel by way of `fuser`: the only file that knows the package.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request, Session, SessionACL,
};
use wire::JobId;
use wire::limit::MIB;
use wire::tree::EntryKind;

use super::files::Shared;
use super::kernel::Kernel;
use super::view::{Attr, JOBS};

/// Nothing that is shown changes; what goes is taken back by name.
const TTL: Duration = Duration::from_secs(365 * 86_400);
/// Threads that answer.
const THREADS: usize = 3;
/// Requests that the kernel asks for ahead of time, at most.
const BACKGROUND_MAX: u16 = 64;
/// File systems above each other that the kernel reads past us: a cache directory must not lie on another such one.
const STACK_DEPTH: u32 = 1;

/// The package, as the mount needs it.
pub(super) struct Fuser;

impl Kernel for Fuser {
    type Backing = BackingId;
    type Opening = ReplyOpen;
    type Reading = ReplyData;
    type Looking = ReplyEntry;

    fn back(opening: &ReplyOpen, file: &File) -> io::Result<BackingId> {
        opening.open_backing(file)
    }

    fn opened(opening: ReplyOpen, handle: u64, keeps_pages: bool) {
        let keep = if keeps_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        opening.opened(FileHandle(handle), keep | FopenFlags::FOPEN_NOFLUSH);
    }

    fn opened_past(opening: ReplyOpen, handle: u64, backing: &BackingId) {
        opening.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, backing);
    }

    fn refuse_opening(opening: ReplyOpen, error: i32) {
        opening.error(Errno::from_i32(error));
    }

    fn read(reading: ReplyData, bytes: &[u8]) {
        reading.data(bytes);
    }

    fn refuse_reading(reading: ReplyData, error: i32) {
        reading.error(Errno::from_i32(error));
    }

    fn found(looking: ReplyEntry, attr: Option<&Attr>) {
        // An entry without a number is one that the kernel remembers as absent.
        looking.entry(&TTL, &file_attr(attr.unwrap_or(&ABSENT)), Generation(0));
    }

    fn refuse_looking(looking: ReplyEntry, error: i32) {
        looking.error(Errno::from_i32(error));
    }
}

const ABSENT: Attr = Attr { inode: 0, kind: EntryKind::File, length: 0, is_executable: false, mtime_s: 0 };

fn file_attr(attr: &Attr) -> FileAttr {
    let time = match u64::try_from(attr.mtime_s) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(attr.mtime_s.unsigned_abs())).unwrap_or(UNIX_EPOCH),
    };
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.length,
        blocks: attr.length.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: match (attr.kind, attr.is_executable) {
            (EntryKind::Symlink, _) => 0o777,
            (EntryKind::File, false) => 0o444,
            (EntryKind::File | EntryKind::Directory, _) => 0o555,
        },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: MIB as u32,
        flags: 0,
    }
}

fn file_type(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::File => FileType::RegularFile,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
    }
}

/// One connection to the kernel.
struct Files {
    shared: Arc<Shared<Fuser>>,
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_ABORT_ERROR,
        ] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "this kernel cannot");
            }
        }
        let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.shared.may_pass.store(passes, Ordering::Relaxed);
        // A larger or smaller number than we ask for is as good.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(MIB as u32);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.shared.lookup(request.pid(), parent.0, name.as_bytes(), reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.view().attr(inode.0) {
            Some(attr) => reply.attr(&TTL, &file_attr(&attr)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.shared.view().target(inode.0) {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.shared.open(inode.0, request.pid(), false, reply);
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.shared.read(handle.0, request.pid(), offset, size, reply);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.release(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps the listing of what does not change.
        let flags = if inode.0 <= JOBS {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let is_directory = self.shared.view().entries(inode.0, offset, &mut |next, name, attr| {
            reply.add(INodeNo(attr.inode), next, file_type(attr.kind), OsStr::from_bytes(name))
        });
        if is_directory { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let is_directory = self.shared.view().entries(inode.0, offset, &mut |next, name, attr| {
            let inode = INodeNo(attr.inode);
            reply.add(inode, next, OsStr::from_bytes(name), &TTL, &file_attr(attr), Generation(0))
        });
        if is_directory { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let block = MIB as u32;
        reply.statfs(0, 0, 0, 0, 0, block, wire::limit::NAME_SIZE_MAX as u32, block);
    }
}

/// A mounted connection; its threads run until it is unmounted.
pub(super) struct Connection {
    session: BackgroundSession,
    /// Has an error as soon as the connection is cut.
    device: OwnedFd,
}

impl Connection {
    /// Mounts at `path`, which is an empty directory.
    pub(super) fn open(path: &Path, source: &str, shared: &Arc<Shared<Fuser>>) -> io::Result<Self> {
        shared.begin_anew();
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::FSName(source.to_owned()),
            MountOption::Subtype("zg".to_owned()),
        ];
        // Programs run under other users.
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = Session::new(Files { shared: shared.clone() }, path, &config)?;
        let device = session.as_fd().try_clone_to_owned()?;
        Ok(Self { session: session.spawn()?, device })
    }

    /// The connection was ended by somebody else.
    pub(super) fn has_ended(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// The descriptor that has an error as soon as the connection is cut.
    pub(super) fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// What forgets names in the kernel, from any thread but those that answer it.
    pub(super) fn names(&self) -> Names {
        Names(self.session.notifier())
    }

    /// Waits for the threads of a connection that is unmounted.
    pub(super) fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Has the kernel forget names.
pub(super) struct Names(Notifier);

impl Names {
    pub(super) fn forget_job(&self, job: JobId) {
        // The kernel may never have heard of it.
        let _ = self.0.inval_entry(INodeNo(JOBS), OsStr::new(&job.to_string()));
    }
}
