//! A socket that can be waited for: by a task, by a thread, in one runtime after another.
//!
//! It knows nothing of frames; see `inbox.rs` and `outbox.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};

use crate::sys::socket::{self, Ready};

/// A socket, and its place in the reactor of the runtime that last waited for it.
///
/// Made outside a runtime it costs no registration; used in another runtime than before, it moves there.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: Arc<OwnedFd>,
    registration: Mutex<Option<Registration>>,
}

#[derive(Debug)]
struct Registration {
    runtime: Id,
    readiness: Arc<AsyncFd<Arc<OwnedFd>>>,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), registration: Mutex::new(None) }
    }

    /// Runs `io` until it does not say `WouldBlock`, and waits for readiness in between.
    ///
    /// Tries before it waits: what is there already costs no trip through the reactor. Any number of tasks may wait.
    ///
    /// # Cancel safety
    /// Cancel-safe if `io` is all or nothing: nothing is held between two calls of it.
    pub(crate) async fn when<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        match io() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        let readiness = self.readiness()?;
        loop {
            let mut guard = readiness.ready(ready.into()).await?;
            if let Ok(result) = guard.try_io(|_| io()) {
                return result;
            }
        }
    }

    /// As [`when`](Self::when), for the one task that waits in this direction.
    pub(crate) fn poll_when<R>(
        &self,
        cx: &mut Context<'_>,
        ready: Ready,
        mut io: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        match io() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        let readiness = self.readiness()?;
        loop {
            let mut guard = ready!(match ready {
                Ready::Read => readiness.poll_read_ready(cx),
                Ready::Write => readiness.poll_write_ready(cx),
            })?;
            if let Ok(result) = guard.try_io(|_| io()) {
                return Poll::Ready(result);
            }
        }
    }

    /// As [`when`](Self::when), on this thread.
    pub(crate) fn block_when<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket::wait(self, ready)?,
                result => return result,
            }
        }
    }

    /// The fd, if nobody else holds it.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        drop(self.registration);
        Arc::into_inner(self.fd)
    }

    fn readiness(&self) -> io::Result<Arc<AsyncFd<Arc<OwnedFd>>>> {
        let current = Handle::try_current().ok().map(|handle| handle.id());
        let mut registration = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registered) = &*registration
            && Some(registered.runtime) == current
        {
            return Ok(Arc::clone(&registered.readiness));
        }
        let readiness = Arc::new(socket::register(Arc::clone(&self.fd))?);
        if let Some(runtime) = current {
            *registration = Some(Registration { runtime, readiness: Arc::clone(&readiness) });
        }
        Ok(readiness)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
