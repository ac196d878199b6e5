//! Wakes a sleeping poll loop from any thread.
//!
//! Like a shop's doorbell that works only while the keeper sleeps at the back: while he stands at the counter he sees
//! every customer anyway, so nobody presses it. Whoever has something for the loop pushes it to a channel and *then*
//! rings; the loop clears the bell and *then* drains its channels. One atomic word says whether the loop is awake, has
//! been rung since it last looked, or sleeps; only a ring that finds it asleep pays for a system call.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const RUNG: u8 = 1;
const ASLEEP: u8 = 2;

/// Rings one poll loop; clones ring the same one.
#[derive(Clone, Debug)]
pub struct Bell(pub(crate) Arc<Clapper>);

#[derive(Debug)]
pub(crate) struct Clapper {
    eventfd: OwnedFd,
    state: AtomicU8,
}

impl Bell {
    pub fn new() -> io::Result<Bell> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Bell(Arc::new(Clapper { eventfd, state: AtomicU8::new(AWAKE) })))
    }

    /// Makes the loop look at its channels soon. What it should find there must have been pushed before.
    pub fn ring(&self) {
        self.0.ring();
    }

    /// The loop is about to sleep. False = it was rung since it last looked, so it must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The loop is up and will drain its channels now; a ring from here on counts for the next sleep. `is_readable` is
    /// what poll said of the descriptor: a ring may still be between its two steps, so the state alone does not tell.
    pub(crate) fn wake_up(&self, is_readable: bool) {
        self.0.state.store(AWAKE, Ordering::SeqCst);
        if is_readable {
            let mut count = [0u8; 8];
            // SAFETY: `count` has the 8 bytes that an eventfd read needs. Without a count it returns at once (EAGAIN).
            unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
        }
    }

    /// Becomes readable when a ring finds the loop asleep.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }
}

impl Clapper {
    /// Only atomics and write(2): a signal handler may call it.
    pub(crate) fn ring(&self) {
        if self.state.swap(RUNG, Ordering::SeqCst) == ASLEEP {
            let one = 1u64.to_ne_bytes();
            // SAFETY: `one` is the 8 bytes that an eventfd takes. A write fails only if the count is full: then it rings.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(bell: &Bell) -> bool {
        let mut item = libc::pollfd { fd: bell.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut item, 1, 0) == 1 }
    }

    #[test]
    fn a_ring_while_awake_costs_no_write_but_forbids_sleep() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(!readable(&bell));
        assert!(!bell.fall_asleep());
        bell.wake_up(false);
        assert!(bell.fall_asleep());
    }

    #[test]
    fn a_ring_while_asleep_is_heard_once() {
        let bell = Bell::new().unwrap();
        assert!(bell.fall_asleep());
        bell.ring();
        bell.ring();
        assert!(readable(&bell));
        bell.wake_up(true);
        assert!(!readable(&bell));
        assert!(bell.fall_asleep());
    }
}
