//! Starts one program with `posix_spawn`, and says as a shell would why it could not.
//!
//! `posix_spawn` borrows the caller's memory until the program replaces it, so a start costs the same however large the
//! caller is. The standard library's `Command` takes the same path but hands on the caller's signal mask, and a slot
//! process blocks every signal.

use std::borrow::Cow;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use libc::{c_char, pid_t};

use super::Start;

/// Where a bare name is looked for if the environment has no `PATH`; as in glibc.
const PATH_DEFAULT: &[u8] = b"/bin:/usr/bin";

/// What runs a script that does not name its interpreter.
const SHELL: &CStr = c"/bin/sh";

const EXIT_CODE_NOT_FOUND: i32 = 127;
pub(super) const EXIT_CODE_NOT_STARTABLE: i32 = 126;

/// Why a program did not start.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) exit_code: i32,
    pub(super) errno: i32,
    pub(super) message: String,
}

impl NotStarted {
    fn not_startable(what: &str, path: &CStr, errno: i32) -> NotStarted {
        let message = format!("{what} {}: {}", path.to_string_lossy(), io::Error::from_raw_os_error(errno));
        NotStarted { exit_code: EXIT_CODE_NOT_STARTABLE, errno, message }
    }
}

/// What is the same for every start: a process group of its own, no signal blocked. Signals have their default actions
/// already, since the slot process has.
pub(super) struct Launcher {
    // Boxed because a `posix_spawnattr_t` must not be moved once it is initialised.
    attributes: Box<libc::posix_spawnattr_t>,
}

impl Launcher {
    pub(super) fn new() -> io::Result<Launcher> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        let flags = libc::POSIX_SPAWN_SETPGROUP | libc::POSIX_SPAWN_SETSIGMASK;
        // SAFETY: `init` initialises the attributes, the others then change them; a zeroed set is overwritten at once.
        unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            let mut attributes = attributes.assume_init();
            let mut mask = MaybeUninit::uninit();
            libc::sigemptyset(mask.as_mut_ptr());
            check(libc::posix_spawnattr_setflags(&mut *attributes, flags as libc::c_short))?;
            check(libc::posix_spawnattr_setpgroup(&mut *attributes, 0))?;
            check(libc::posix_spawnattr_setsigmask(&mut *attributes, mask.as_ptr()))?;
            Ok(Launcher { attributes })
        }
    }

    /// Starts the program and returns its process id. `fresh_files` makes new spool files instead of emptying the old
    /// ones, for when somebody may still hold those open.
    pub(super) fn launch(&self, start: &Start, fresh_files: bool) -> Result<pid_t, NotStarted> {
        let program = find_program(start)?;
        let files = open_files(start, fresh_files)?;
        let actions = FileActions::new(&files, &start.directory)
            .map_err(|errno| NotStarted::not_startable("cannot prepare the start of", &start.program, errno))?;
        let arguments = pointers(start.arguments.iter().map(CString::as_c_str));
        let variables = pointers(start.variables.iter().map(CString::as_c_str));
        let started = match self.spawn(&program, &actions, &arguments, &variables) {
            Err(libc::ENOEXEC) => {
                let rest = start.arguments.iter().skip(1).map(CString::as_c_str);
                let arguments = pointers([SHELL, &program].into_iter().chain(rest));
                self.spawn(SHELL, &actions, &arguments, &variables)
            }
            outcome => outcome,
        };
        started.map_err(|errno| explain(start, errno))
    }

    /// `arguments` and `variables` end in a null pointer and point into strings that outlive the call.
    fn spawn(
        &self,
        program: &CStr,
        actions: &FileActions,
        arguments: &[*const c_char],
        variables: &[*const c_char],
    ) -> Result<pid_t, i32> {
        let mut pid = 0;
        // SAFETY: everything pointed to lives until the call returns, and the call changes none of the strings; its
        // type says otherwise for historical reasons only.
        let errno = unsafe {
            libc::posix_spawn(
                &mut pid,
                program.as_ptr(),
                &*actions.0,
                &*self.attributes,
                arguments.as_ptr().cast(),
                variables.as_ptr().cast(),
            )
        };
        if errno == 0 { Ok(pid) } else { Err(errno) }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, not used afterwards.
        unsafe { libc::posix_spawnattr_destroy(&mut *self.attributes) };
    }
}

/// What the new process does before it becomes the program: take its three files and enter its directory.
struct FileActions(Box<libc::posix_spawn_file_actions_t>);

impl FileActions {
    fn new(files: &[OwnedFd; 3], directory: &CStr) -> Result<FileActions, i32> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: `init` initialises the actions, the others then add to them and copy what they are given.
        unsafe {
            errno_of(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            let mut actions = FileActions(actions.assume_init());
            for (target, file) in (0..).zip(files) {
                errno_of(libc::posix_spawn_file_actions_adddup2(&mut *actions.0, file.as_raw_fd(), target))?;
            }
            errno_of(libc::posix_spawn_file_actions_addchdir_np(&mut *actions.0, directory.as_ptr()))?;
            Ok(actions)
        }
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, not used afterwards.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut *self.0) };
    }
}

/// Opens standard input, output and error. They are opened here rather than in the new process so that a failure names
/// its file.
fn open_files(start: &Start, fresh_files: bool) -> Result<[OwnedFd; 3], NotStarted> {
    // Appending keeps two writers of one file from overwriting each other, as in `program >file 2>&1`.
    // Not waiting keeps a FIFO that a program left there from holding the slot until somebody reads; it means nothing to
    // the regular file that all else is.
    let write = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    if fresh_files {
        for path in [&start.stdout, &start.stderr] {
            // SAFETY: plain system call on a string. That there is no such file is as good.
            unsafe { libc::unlink(path.as_ptr()) };
        }
    }
    let files = [
        open("cannot read standard input from", &start.stdin, libc::O_RDONLY)?,
        open("cannot write standard output to", &start.stdout, write)?,
        open("cannot write standard error to", &start.stderr, write)?,
    ];
    empty(&files[1], &start.stdout)?;
    empty(&files[2], &start.stderr)?;
    Ok(files)
}

fn open(what: &str, path: &CStr, flags: i32) -> Result<OwnedFd, NotStarted> {
    // SAFETY: plain system call on a string; the descriptor is owned by nobody else.
    unsafe {
        let descriptor = libc::open(path.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOCTTY, 0o600);
        if descriptor < 0 {
            return Err(NotStarted::not_startable(what, path, last_errno()));
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Takes the last run's output out of a spool file. Most runs write nothing, and a file system does as much to empty an
/// empty file as a full one (8 µs on ext4, a tenth of what a start costs), so it is looked at first.
fn empty(file: &OwnedFd, path: &CStr) -> Result<(), NotStarted> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: plain system calls on an open file; what is read was written by the successful call before.
    let is_empty = unsafe {
        let is_known = libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) == 0;
        is_known && (stat.assume_init_ref().st_size == 0 || libc::ftruncate(file.as_raw_fd(), 0) == 0)
    };
    if is_empty { Ok(()) } else { Err(NotStarted::not_startable("cannot empty", path, last_errno())) }
}

/// The path to run: the program as given if it is a path, and else the first of that name in the run's own `PATH`.
fn find_program(start: &Start) -> Result<Cow<'_, CStr>, NotStarted> {
    let name = start.program.as_bytes();
    if name.contains(&b'/') {
        return Ok(Cow::Borrowed(&start.program));
    }
    let search = start.variables.iter().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    let mut errno = libc::ENOENT;
    for directory in search.unwrap_or(PATH_DEFAULT).split(|byte| *byte == b':') {
        // A relative element, and an empty one, is meant from the run's working directory, as in a shell.
        let directory = Path::new(OsStr::from_bytes(start.directory.as_bytes())).join(OsStr::from_bytes(directory));
        let path = directory.join(OsStr::from_bytes(name));
        if name.is_empty() || !path.is_file() {
            continue;
        }
        let path = CString::new(path.into_os_string().into_encoded_bytes()).expect("made of strings without NUL");
        // SAFETY: plain system call on a string.
        if unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0 {
            return Ok(Cow::Owned(path));
        }
        errno = libc::EACCES;
    }
    Err(explain(start, errno))
}

/// Says what an error of `posix_spawn` means for this start.
fn explain(start: &Start, errno: i32) -> NotStarted {
    let directory = Path::new(OsStr::from_bytes(start.directory.as_bytes()));
    // Entering the directory and running the program fail with the same numbers.
    match std::fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => (),
        Ok(_) => return NotStarted::not_startable("cannot enter", &start.directory, libc::ENOTDIR),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(errno);
            return NotStarted::not_startable("cannot enter", &start.directory, errno);
        }
    }
    let mut reason = NotStarted::not_startable("cannot run", &start.program, errno);
    if errno == libc::ENOENT {
        reason.exit_code = EXIT_CODE_NOT_FOUND;
    }
    reason
}

fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    strings.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

/// For calls that return their error number.
fn errno_of(returned: i32) -> Result<(), i32> {
    if returned == 0 { Ok(()) } else { Err(returned) }
}

fn check(returned: i32) -> io::Result<()> {
    errno_of(returned).map_err(io::Error::from_raw_os_error)
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().expect("the last error of the system has a number")
}
