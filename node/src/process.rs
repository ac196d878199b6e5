//! What all endpoints of a process share: one ZeroMQ context and the thread that answers for its CURVE connections.
//!
//! It comes with the first endpoint and goes with the last, and then waits, for as long as the sockets linger, until
//! what they still had to send is sent.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use crate::endpoint::EndpointError;
use crate::zap::{self, Domains};

/// Older releases have holes that an unauthenticated peer can use.
const VERSION_MIN: (i32, i32, i32) = (4, 3, 4);

static CURRENT: Mutex<Weak<Process>> = Mutex::new(Weak::new());

pub(crate) struct Process {
    pub(crate) context: zmq::Context,
    pub(crate) domains: Domains,
    stop: File,
    handler: Option<JoinHandle<()>>,
}

impl Process {
    /// The process's context; made, with its ZAP handler listening, if there is none.
    pub(crate) fn shared() -> Result<Arc<Process>, EndpointError> {
        let mut current = CURRENT.lock().expect("no thread panics while it opens the context");
        if let Some(process) = current.upgrade() {
            return Ok(process);
        }
        let process = Arc::new(Process::start()?);
        *current = Arc::downgrade(&process);
        Ok(process)
    }

    fn start() -> Result<Process, EndpointError> {
        let version = zmq::version();
        if version < VERSION_MIN {
            return Err(EndpointError::LibraryTooOld { found: format!("{}.{}.{}", version.0, version.1, version.2) });
        }
        if zmq::has("curve") != Some(true) {
            return Err(EndpointError::LibraryWithoutCurve);
        }
        raise_file_limit();
        tracing::debug!(?version, "libzmq");

        let context = zmq::Context::new();
        let socket = context.socket(zmq::REP)?;
        socket.set_linger(0)?;
        // Bound here, before any socket that needs it; the thread only takes it over.
        socket.bind(zap::ENDPOINT)?;
        let domains = Domains::default();
        let stop = eventfd().map_err(EndpointError::Thread)?;
        let told = stop.try_clone().map_err(EndpointError::Thread)?;
        let asked = domains.clone();
        let handler = std::thread::Builder::new()
            .name("zap".into())
            .spawn(move || {
                let _fuse = AbortOnPanic;
                let told = OwnedFd::from(told);
                if let Err(error) = zap::serve(&socket, &told, &asked) {
                    // Without it no connection is ever admitted again: better to be restarted.
                    tracing::error!(%error, "the ZAP handler failed");
                    std::process::abort();
                }
            })
            .map_err(EndpointError::Thread)?;
        Ok(Process { context, domains, stop, handler: Some(handler) })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An eventfd write of 1 cannot fail while its count is 0.
        let _ = self.stop.write_all(&1u64.to_ne_bytes());
        if let Some(handler) = self.handler.take() {
            let _ = handler.join();
        }
    }
}

/// A panic of the handler ends the process like any other failure of it.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn eventfd() -> io::Result<File> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// libzmq aborts the process when it has no descriptor left, so take all that the system allows.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to fill.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur == limit.rlim_max {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit to read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "cannot raise the limit of open files");
    }
}
