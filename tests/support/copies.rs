//! Copies that fork(2) makes of this process.

#![allow(unsafe_code, reason = "to fork")]

use std::panic;
use std::time::Duration;

use super::Other;

/// Makes a copy of this process and waits for its end. Says whether this is the copy, which has to [`leave`].
pub(crate) fn is_copy() -> bool {
    // SAFETY: no other thread of this process holds a lock that the copy needs: all of them wait for something to do.
    match unsafe { libc::fork() } {
        0 => {
            // The test's harness is not there.
            panic::set_hook(Box::new(|panic| {
                eprintln!("in a copy, {panic}");
                exit(1);
            }));
            true
        }
        copy => {
            Other::new(copy.try_into().unwrap()).ends_within(Duration::from_secs(30));
            let mut status = 0;
            // SAFETY: `status` is live.
            assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
            assert_eq!(status, 0);
            false
        }
    }
}

/// Ends the copy.
pub(crate) fn leave() -> ! {
    exit(0)
}

fn exit(code: i32) -> ! {
    // SAFETY: it ends this process, and runs nothing of the original's.
    unsafe { libc::_exit(code) }
}
