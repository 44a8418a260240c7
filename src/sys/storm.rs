//! For tests of calls that signals interrupt.

use std::{mem, ptr};

/// Has a signal that is handled come to the calling thread every 20 µs; timer_create(2).
pub(super) struct Storm(libc::timer_t);

impl Storm {
    pub(super) fn new() -> Self {
        extern "C" fn ignore(_: libc::c_int) {}
        let signal = libc::SIGRTMIN() + 7;
        let every = libc::timespec { tv_sec: 0, tv_nsec: 20_000 };
        let interval = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: all are plain C structs, for which all-zero is valid, and which live as long as the calls. The handler
        // does nothing.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = mem::zeroed();
            assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer), 0);
            assert_eq!(libc::timer_settime(timer, 0, &raw const interval, ptr::null_mut()), 0);
            Self(timer)
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        // SAFETY: the timer is there until now.
        unsafe { libc::timer_delete(self.0) };
    }
}
