//! The watchdog of a mount: a process that takes it away when nobody is there to answer for it.
//!
//! Whoever reads from a mount waits for the worker. One that is killed leaves a mount that fails; one that is stopped leaves
//! one that hangs, and with it every program that comes near. So the worker says each second that it is there. When it is
//! gone the mount goes at once; when it is silent, only once somebody has been waiting for it: a worker that is held for a
//! moment while nobody reads does no harm. The mount itself is never touched here: that would hang too.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::mount::{remove_directories, stale, take_away};

/// How long it is waited for a sign before it is counted as missing, in milliseconds.
const LOOK_INTERVAL_MS: i32 = 1000;
/// So many missing in a row are silence.
const MISSED_MAX: u32 = 8;

/// Watches the mount at `path` that is called `source`, until it is gone.
pub fn run(path: &Path, source: &str) {
    stand_alone();
    let mut missed = 0;
    loop {
        match hear() {
            Heard::Sign => missed = 0,
            Heard::Nothing => missed += 1,
            Heard::End => {
                take_away(path, source);
                return remove_directories(path);
            }
        }
        let is_silent = missed >= MISSED_MAX;
        if is_silent && is_awaited(path, source) {
            tracing::error!(path = %path.display(), "the worker is silent and somebody waits: its mount is taken away");
            // The worker makes it anew, with another watchdog, when it goes on.
            take_away(path, source);
            return remove_directories(path);
        }
    }
}

/// What ends the worker and its programs does not end us: we are there for after that.
fn stand_alone() {
    // SAFETY: plain system calls with a string that lives for ever; no handler of ours is ever run.
    unsafe {
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

enum Heard {
    Sign,
    Nothing,
    /// The worker is gone.
    End,
}

fn hear() -> Heard {
    let mut poll = libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` lives until the call returns.
    let ready = unsafe { libc::poll(&mut poll, 1, LOOK_INTERVAL_MS) };
    if ready <= 0 {
        // Also when it was interrupted: then a sign counts as missing too early, by less than one.
        return Heard::Nothing;
    }
    let mut signs = [0u8; 4096];
    // SAFETY: the buffer has room for as many bytes as it is said to have.
    match unsafe { libc::read(libc::STDIN_FILENO, signs.as_mut_ptr().cast(), signs.len()) } {
        1.. => Heard::Sign,
        0 => Heard::End,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Heard::Nothing,
        _ => Heard::End,
    }
}

/// Whether the kernel has requests that nobody answers. Where that cannot be known it counts as so.
fn is_awaited(path: &Path, source: &str) -> bool {
    let Ok(Some(mount)) = stale::find(source) else { return true };
    let waiting = |connections: &Path| {
        let waiting = fs::read_to_string(connections.join(mount.connection.to_string()).join("waiting"))?;
        Ok::<bool, io::Error>(waiting.trim() != "0")
    };
    let public = waiting(Path::new("/sys/fs/fuse/connections"));
    public.or_else(|_| in_private_control(path, waiting)).unwrap_or(true)
}

/// Mounts the control file system of the kernel beside the mount for as long as it is looked into.
fn in_private_control(path: &Path, look: impl Fn(&Path) -> io::Result<bool>) -> io::Result<bool> {
    let directory = path.with_file_name("control");
    fs::create_dir_all(&directory)?;
    let target = CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: all strings live until the call returns, and this file system takes no data.
    let failed = unsafe {
        libc::mount(c"none".as_ptr(), target.as_ptr(), c"fusectl".as_ptr(), libc::MS_RDONLY, std::ptr::null())
    };
    let looked = if failed == 0 { look(&directory) } else { Err(io::Error::last_os_error()) };
    if failed == 0 {
        stale::unmount(&directory)?;
    }
    fs::remove_dir(&directory)?;
    looked
}
