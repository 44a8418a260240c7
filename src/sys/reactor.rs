//! An fd in a runtime's reactor, which a forked copy of this process leaves alone: both have the one epoll(7) instance.

use std::io;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::home::Home;

/// An fd that is registered. It is taken out when this is dropped, and in a forked copy only closed: taken out there, it would be out
/// for the original, too, which nobody would wake any more.
#[derive(Debug)]
pub(crate) struct Registered {
    fd: ManuallyDrop<AsyncFd<Arc<OwnedFd>>>,
    home: Home,
}

impl Registered {
    /// With the current runtime's reactor.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one without I/O.
    pub(crate) fn new(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and always has the same number, and the `Arc` that the `AsyncFd` holds keeps it open for
        // as long as that lives; nobody can take an `OwnedFd` out of an `Arc` that is not the last.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self { fd: ManuallyDrop::new(fd), home: Home::here() })
    }
}

impl Deref for Registered {
    type Target = AsyncFd<Arc<OwnedFd>>;

    fn deref(&self) -> &Self::Target {
        &self.fd
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: it is taken once, and nobody uses it after the drop.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        if self.home.is_elsewhere() {
            // SAFETY: it moves out of what is forgotten right after that, and so is dropped once.
            let closes = unsafe { ptr::read(fd.get_ref()) };
            mem::forget(fd);
            drop(closes);
        }
    }
}
