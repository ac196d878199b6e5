//! The signals that end `zg dev`, and those that say that a child has, read one by one in its only loop.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::cli::failure::Failure;

/// SIGINT, SIGTERM, SIGHUP and SIGCHLD, blocked for the whole process and read here.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Takes the signals over; threads started later leave them to us.
    pub fn take() -> Result<Signals, Failure> {
        let failed = || Failure::new("system", format!("cannot take signals: {}", io::Error::last_os_error()));
        // SAFETY: the set is initialised by `sigemptyset` before it is used; the calls keep no pointer to it.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(&mut set, signal);
            }
            // A write to a terminal or pipe that is gone must not end us before the roles are stopped.
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(failed());
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(failed());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Waits for a signal, `timeout` at most; true when one of those that have come asks us to stop.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let timeout_ms = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis() + 1).unwrap_or(i32::MAX));
        let mut item = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut item, 1, timeout_ms) };
        let mut is_asked = false;
        loop {
            // SAFETY: plain numbers, which the read fills.
            let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: `info` has the `size` bytes that the read may fill.
            let count = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size) };
            if count != size as isize {
                return is_asked;
            }
            is_asked |= info.ssi_signo != libc::SIGCHLD as u32;
        }
    }
}
