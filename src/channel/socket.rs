//! A socket that can be waited for: by a task, by a thread, in one runtime after another.
//!
//! It knows nothing of frames; see `inbox.rs` and `outbox.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id};
use tokio::task::{coop, yield_now};

use super::turns::Turns;
use crate::sys::socket::{self, Ready};

/// How many runtimes keep an idle registration: a program's own, and the flusher's.
const IDLE: usize = 2;

/// How many keep one in all. More only gather where futures were dropped that waited, each in another runtime.
const MOST: usize = 16;

/// A socket, and its places in the reactors of the runtimes that wait for it.
///
/// Made outside a runtime it costs no registration; it can be used in one runtime after another, and in two at once.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: Arc<OwnedFd>,
    /// At most one a runtime: a second registration of one fd in one epoll(7) instance is an error.
    registrations: Mutex<Vec<Registration>>,
}

#[derive(Debug)]
struct Registration {
    runtime: Id,
    readiness: Arc<Readiness>,
}

#[derive(Debug)]
struct Readiness {
    fd: AsyncFd<Arc<OwnedFd>>,
    /// Whether a task waits in [`Socket::poll_when`], by direction: it has left its waker here, and holds nothing.
    waits: [AtomicBool; 2],
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), registrations: Mutex::new(Vec::new()) }
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
            let mut guard = readiness.fd.ready(ready.into()).await?;
            if let Ok(result) = guard.try_io(|_| io()) {
                return result;
            }
        }
    }

    /// As [`when`](Self::when), where many tasks wait for the same and each is to have its turn.
    pub(crate) async fn when_in_turn<R>(
        &self,
        ready: Ready,
        turns: &Turns,
        mut io: impl FnMut() -> io::Result<R>,
    ) -> io::Result<R> {
        // An endless supply must not keep the other tasks of this thread from running.
        coop::consume_budget().await;
        let turn = turns.enter();
        if turn.is_first() {
            match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        } else {
            yield_now().await;
        }
        let readiness = self.readiness()?;
        loop {
            let mut guard = readiness.fd.ready(ready.into()).await?;
            // To go back and wait without a try is always sound: only a try that fails clears the readiness.
            if turn.give_way().await {
                match guard.try_io(|_| io()) {
                    Ok(result) => return result,
                    Err(_) => turn.found_nothing(),
                }
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
        let waits = &readiness.waits[ready as usize];
        waits.store(true, Ordering::Relaxed);
        loop {
            let mut guard = ready!(match ready {
                Ready::Read => readiness.fd.poll_read_ready(cx),
                Ready::Write => readiness.fd.poll_write_ready(cx),
            })?;
            if let Ok(result) = guard.try_io(|_| io()) {
                waits.store(false, Ordering::Relaxed);
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

    /// Gives up the place in a runtime's reactor, where nobody waits any more.
    pub(crate) fn forget(&self, runtime: Id) {
        let mut registrations = self.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        registrations.retain(|registered| registered.runtime != runtime);
    }

    fn readiness(&self) -> io::Result<Arc<Readiness>> {
        let current = Handle::try_current().ok().map(|handle| handle.id());
        let mut registrations = self.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registered) = registrations.iter().find(|registered| Some(registered.runtime) == current) {
            return Ok(Arc::clone(&registered.readiness));
        }
        let fd = socket::register(Arc::clone(&self.fd))?;
        let readiness = Arc::new(Readiness { fd, waits: [const { AtomicBool::new(false) }; 2] });
        if let Some(runtime) = current {
            if registrations.len() >= IDLE {
                // Clones are only made under this lock, so what nobody else holds now stays unused.
                registrations.retain(|registered| {
                    Arc::strong_count(&registered.readiness) > 1 || registered.readiness.is_waited_for()
                });
            }
            if registrations.len() >= MOST {
                registrations.remove(0);
            }
            registrations.push(Registration { runtime, readiness: Arc::clone(&readiness) });
        }
        Ok(readiness)
    }
}

impl Readiness {
    fn is_waited_for(&self) -> bool {
        self.waits.iter().any(|waits| waits.load(Ordering::Relaxed))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
