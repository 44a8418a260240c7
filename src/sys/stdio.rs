//! 0, 1 and 2 in a host that has closed some of them: what is opened next would get such a number.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

/// Whether 0, 1 and 2 are all open; `F_GETFD` in fcntl(2).
pub(crate) fn has_stdio() -> bool {
    // SAFETY: on a number that may be no open fd it is harmless: it fails with EBADF, which is the question here.
    (0..3).all(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0)
}

/// Keeps 0, 1 and 2 occupied in a host that closed some of them, until it is dropped.
///
/// std puts a child's pipes wherever there is a free fd, and then duplicates them onto 0, 1 and 2 one after the other: a
/// pipe that was born as 0 would be overwritten before its turn. What fills the gaps is close-on-exec, so the child still
/// finds closed what the host closed.
#[must_use]
#[derive(Debug)]
pub(crate) struct StdioHeld(());

/// What fills the gaps, for all who hold them: who comes second finds them filled, and needs them for longer, maybe.
static HELD: Mutex<Held> = Mutex::new(Held { holders: 0, fds: Vec::new() });

struct Held {
    holders: usize,
    fds: Vec<OwnedFd>,
}

impl StdioHeld {
    pub(crate) fn new() -> io::Result<Self> {
        let this = Self(());
        let mut held = held();
        held.holders += 1;
        while !has_stdio() {
            let fd = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            held.fds.push(fd);
        }
        Ok(this)
    }
}

impl Drop for StdioHeld {
    fn drop(&mut self) {
        let mut held = held();
        held.holders -= 1;
        if held.holders == 0 {
            // Under the lock, or somebody could find them still open.
            held.fds.clear();
        }
    }
}

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd as _;
    use std::process::{Command, exit};

    const ALONE: &str = "MULTIPROC_TEST_STDIO_ALONE";

    /// The second found what the first one held, and had nothing when the first one had gone.
    #[test]
    fn stdio_is_held_until_the_last_of_those_who_hold_it_is_gone() {
        if std::env::var_os(ALONE).is_none() {
            let test = "sys::stdio::tests::stdio_is_held_until_the_last_of_those_who_hold_it_is_gone";
            let mut command = Command::new(std::env::current_exe().unwrap());
            let output = command.args([test, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
            assert_eq!(output.status.code(), Some(47), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        for fd in [0, 1] {
            // SAFETY: nothing in this process uses it but std, which does not mind.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        for _ in 0..2 {
            let first = StdioHeld::new().unwrap();
            let second = StdioHeld::new().unwrap();
            drop(first);
            assert!(has_stdio());
            drop(second);
            assert!(!has_stdio());
        }
        exit(47);
    }
}
