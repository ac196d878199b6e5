//! Turns SIGTERM and SIGINT into a flag that the loop sees.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::bell::{Bell, Clapper};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static CLAPPER: AtomicPtr<Clapper> = AtomicPtr::new(ptr::null_mut());

/// Says whether the process has been asked to end. Children that it spawns must be given SIGPIPE's default back.
#[derive(Clone, Copy, Debug)]
pub struct Stop(());

impl Stop {
    /// From now on SIGTERM and SIGINT set the flag and ring `bell`, and SIGPIPE is ignored.
    pub fn install(bell: &Bell) -> Stop {
        // The handler may run at any later time, so this clapper is never freed.
        CLAPPER.store(Arc::into_raw(bell.0.clone()).cast_mut(), Ordering::SeqCst);
        set_action(libc::SIGTERM, on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t);
        set_action(libc::SIGINT, on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t);
        set_action(libc::SIGPIPE, libc::SIG_IGN);
        Stop(())
    }

    pub fn requested(&self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: __errno_location points to this thread's errno.
    let errno = unsafe { *libc::__errno_location() };
    REQUESTED.store(true, Ordering::SeqCst);
    let clapper = CLAPPER.load(Ordering::SeqCst);
    // SAFETY: null, or a clapper that `install` leaked; ringing is atomics and write(2), which handlers may do.
    if let Some(clapper) = unsafe { clapper.as_ref() } {
        clapper.ring();
    }
    // SAFETY: as above; the interrupted code must find its own errno.
    unsafe { *libc::__errno_location() = errno };
}

fn set_action(signal: libc::c_int, handler: libc::sighandler_t) {
    // SAFETY: a zeroed sigaction is a valid one; handler, flags and mask are then set.
    let status = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut())
    };
    assert_eq!(status, 0, "SIGTERM, SIGINT and SIGPIPE can be caught");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_sets_the_flag_and_rings() {
        let bell = Bell::new().unwrap();
        let stop = Stop::install(&bell);
        assert!(!stop.requested());
        // SAFETY: raise runs the handler installed above in this thread.
        unsafe { libc::raise(libc::SIGTERM) };
        assert!(stop.requested());
        assert!(!bell.fall_asleep());
    }
}
