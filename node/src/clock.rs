//! The process's clock: the only place where time enters.

use wire::{Instant, WallTime};

/// Reads the machine's clocks; a shell does so once per turn and hands the result to its core.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    pub fn new() -> Clock {
        Clock
    }

    /// Microseconds since the machine booted; steps of the wall clock do not reach it.
    pub fn now(&self) -> Instant {
        Instant(microseconds(libc::CLOCK_MONOTONIC))
    }

    /// Microseconds since 1970 UTC, for stamps that people read.
    pub fn wall(&self) -> WallTime {
        WallTime(microseconds(libc::CLOCK_REALTIME))
    }
}

fn microseconds(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    let status = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(status, 0, "Linux has CLOCK_MONOTONIC and CLOCK_REALTIME");
    // A wall clock set before 1970 reads as 1970.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_steps_back() {
        let clock = Clock::new();
        let readings: Vec<Instant> = (0..1_000).map(|_| clock.now()).collect();
        assert!(readings.is_sorted());
    }

    #[test]
    fn wall_time_is_after_this_test_was_written() {
        assert!(Clock::new().wall() > WallTime(1_735_689_600_000_000));
    }
}
