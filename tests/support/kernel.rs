//! What this kernel can do.

#![allow(dead_code, reason = "each test crate uses its own part of this")]
#![allow(unsafe_code, reason = "io_uring_setup(2) has no safe form in std")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use multiproc::Fd;

/// Before Linux 6.9 a group can't be reached without its leader. Where that is so it is said, for who asks skips something then.
pub(crate) fn has_group_signals() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let has = (numbers.next(), numbers.next()) >= (Some(6), Some(9));
    if !has {
        eprintln!("skipped: Linux {} can't signal a group whose leader has gone", release.trim_end());
    }
    has
}

/// An io_uring(7): the kernel carries none in a message. Where this process may have none that is said, as above.
pub(crate) fn io_uring() -> Option<Fd> {
    // SAFETY: the parameters are 120 bytes, all of which may be zero, and outlive the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, [0_u64; 15].as_mut_ptr()) };
    if ring < 0 {
        eprintln!("skipped: no io_uring here: {}", io::Error::last_os_error());
        return None;
    }
    // SAFETY: it is new, and nobody else's.
    Some(Fd::from(unsafe { OwnedFd::from_raw_fd(ring.try_into().unwrap()) }))
}
