//! A socket that can be waited for: by a task, by a thread, in one runtime after another.
//!
//! It knows nothing of frames; see `inbox.rs` and `outbox.rs`.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::runtime::{Handle, Id};
use tokio::task::{coop, yield_now};

use super::background::{self, PAUSE};
use super::flusher::is_fd_congestion;
use super::turns::Turns;
use crate::sys::home::Home;
use crate::sys::reactor::Registered;
use crate::sys::socket::{self, Ready};

/// How many idle registrations are kept: one to read in a program's own runtime, one to write in the flusher's.
const IDLE: usize = 2;

/// From how many on it is looked whose runtime has ended. They gather where futures were dropped that waited, each in another
/// runtime.
const MANY: usize = 16;

/// A socket, and its places in the reactors of the runtimes that wait for it.
///
/// Made outside a runtime it costs no registration; it can be used in one runtime after another, and in many at once. A place
/// where somebody may wait stays for as long as its runtime: who is idle there would not learn that it was given up.
///
/// Reading and writing are registered apart, and writing only once a write has to wait: a registration to write wakes this
/// process each time that the peer reads. Where that is welcome, see [`wake_early`](Self::wake_early).
#[derive(Debug)]
pub(crate) struct Socket {
    fd: Arc<OwnedFd>,
    /// Who made it.
    home: Home,
    /// Whether who waits to read is woken, too, when the peer reads.
    wakes_early: AtomicBool,
    /// At most one a runtime and direction.
    registrations: Mutex<Vec<Registration>>,
}

#[derive(Debug)]
struct Registration {
    runtime: Id,
    ready: Ready,
    readiness: Arc<Readiness>,
}

#[derive(Debug)]
struct Readiness {
    fd: Registered,
    /// Whether a task waits in [`Socket::poll_read`]: it has left its waker here, and holds nothing.
    is_waited_for: AtomicBool,
}

/// The place in the reactor of a reader that is always polled in one and the same runtime: it is looked up once.
#[derive(Debug, Default)]
pub(crate) struct Berth(Option<Arc<Readiness>>);

impl Registration {
    /// Whether its runtime has ended: then whoever waited there has been told.
    fn is_over(&self) -> bool {
        self.readiness.fd.ready(self.ready.into()).now_or_never().is_some_and(|ready| ready.is_err())
    }
}

/// A place in the reactor that is given up when nobody waits there any more, if it is one to write.
struct Place<'a> {
    socket: &'a Socket,
    ready: Ready,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.ready == Ready::Write {
            self.socket.rest_from_writing();
        }
    }
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd: Arc::new(fd),
            home: Home::here(),
            wakes_early: AtomicBool::new(false),
            registrations: Mutex::default(),
        }
    }

    /// Whether this is a copy that fork(2) made of the process that made it. Both have the one connection, and what a copy says
    /// there by dropping something is taken for the original's word.
    pub(super) fn is_forked_copy(&self) -> bool {
        self.home.is_elsewhere()
    }

    /// Refuses to go on in such a copy.
    pub(super) fn no_forked_copy(&self) -> io::Result<()> {
        self.home.check("whose connection it is")
    }

    /// Gives up the places in all reactors where nobody waits just now. What else happens to it wakes nobody then.
    pub(crate) fn rest(&self) {
        self.give_up(|_| true);
    }

    /// As [`rest`](Self::rest), of those places that are to write.
    pub(super) fn rest_from_writing(&self) {
        self.give_up(|ready| ready == Ready::Write);
    }

    /// Has this process's reactor woken, too, whenever the peer reads, or not any more: for what is answered soon after that, by a
    /// peer that has a processor of its own. Who waits already is not touched; whose berth it is looks for
    /// its place anew.
    pub(crate) fn wake_early(&self, early: bool, berth: &mut Berth) {
        if self.wakes_early.load(Ordering::Relaxed) != early {
            self.wakes_early.store(early, Ordering::Relaxed);
            *berth = Berth::default();
            // It is registered anew by who waits next, who is told of what had come by then.
            self.registrations().retain(|registered| {
                registered.ready != Ready::Read
                    || Arc::strong_count(&registered.readiness) > 1
                    || registered.readiness.is_waited_for.load(Ordering::Relaxed)
            });
        }
    }

    #[cfg(test)]
    pub(crate) fn is_woken_early(&self) -> bool {
        self.wakes_early.load(Ordering::Relaxed)
    }

    /// Runs `io` until it does not say `WouldBlock`, and waits for readiness in between. That too many fds are under way
    /// ([`is_fd_congestion`]) passes, too, and nothing says when: then it tries again after a pause.
    ///
    /// Tries before it waits: what is there already costs no trip through the reactor. Any number of tasks may wait. A wait that was
    /// begun in one runtime may go on in another one: it doesn't depend on the first one's reactor any more.
    ///
    /// # Cancel safety
    /// Cancel-safe if `io` is all or nothing: nothing is held between two calls of it.
    pub(crate) async fn when<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            let result = match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _place = Place { socket: self, ready };
                    self.when_ready(ready, &mut io).await
                }
                result => result,
            };
            match result {
                Err(error) if is_fd_congestion(&error) => background::pause().await?,
                result => return result,
            }
        }
    }

    /// As [`when`](Self::when), for whoever waits often: a registration to write stays, too, until
    /// [`rest_from_writing`](Self::rest_from_writing).
    pub(super) async fn when_often<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        match io() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.when_ready(ready, io).await,
            result => result,
        }
    }

    async fn when_ready<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            let readiness = self.readiness_in_time(ready).await?;
            // It may be polled elsewhere by then.
            let mut guard = tokio::select! {
                biased;
                () = left(runtime()) => continue,
                guard = readiness.fd.ready(ready.into()) => guard?,
            };
            if let Ok(result) = guard.try_io(|_| io()) {
                return result;
            }
        }
    }

    /// As [`when`](Self::when), where many tasks wait for the same and each is to have its turn.
    ///
    /// The kernel says that there is room once most is free, and until then nothing at all: whoever waits for some tries again now
    /// and then.
    pub(super) async fn when_in_turn<R>(
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
        let _place = Place { socket: self, ready };
        loop {
            let readiness = self.readiness_in_time(ready).await?;
            // A `Stream` and a `Sink` keep their wait from one poll to the next, and may be polled elsewhere by then.
            let mut guard = tokio::select! {
                biased;
                () = left(runtime()) => continue,
                guard = readiness.fd.ready(ready.into()) => guard?,
                () = turn.when_again(), if ready == Ready::Write => match io() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    result => return result,
                },
            };
            // To go back and wait without a try is always sound: only a try that fails clears the readiness.
            if turn.give_way().await {
                match guard.try_io(|_| io()) {
                    Ok(result) => return result,
                    Err(_) => turn.found_nothing(),
                }
            }
        }
    }

    /// Runs `read` until it does not say `WouldBlock`, for the one task that waits for it, which keeps its berth while one runtime
    /// polls it. `drained` says that the last read has left nothing, and so does what `read` gives besides its result: then a new one
    /// waits for readiness first.
    #[inline(always)]
    pub(crate) fn poll_read<R>(
        &self,
        cx: &mut Context<'_>,
        berth: &mut Berth,
        drained: bool,
        mut read: impl FnMut() -> io::Result<(R, bool)>,
    ) -> Poll<io::Result<R>> {
        let mut waits = drained;
        loop {
            let mut told = match waits.then(|| self.berthed(berth)) {
                None => Ok(None),
                Some(Ok(readiness)) => {
                    readiness.is_waited_for.store(true, Ordering::Relaxed);
                    Ok(Some((readiness, ready!(readiness.fd.poll_read_ready(cx))?)))
                }
                // What is there can be taken all the same. Outside a runtime waiting is an error.
                Some(Err(error)) => Err(error),
            };
            let result = read();
            let is_empty = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            if let Ok(Some((readiness, guard))) = &mut told {
                // What comes from now on makes it ready again; and an end of the stream is never cleared.
                if is_empty || matches!(result, Ok((_, true))) {
                    guard.clear_ready();
                }
                if !is_empty {
                    readiness.is_waited_for.store(false, Ordering::Relaxed);
                }
            }
            match told {
                _ if !is_empty => return Poll::Ready(result.map(|(read, _)| read)),
                Err(error) => return poll_again(cx, error),
                Ok(_) => waits = true,
            }
        }
    }

    /// The readiness to read, which stays in the berth.
    fn berthed<'a>(&self, berth: &'a mut Berth) -> io::Result<&'a Readiness> {
        let readiness = match berth.0.take() {
            Some(readiness) => readiness,
            None => self.readiness(Ready::Read)?,
        };
        Ok(berth.0.insert(readiness))
    }

    /// Waits until nothing more can come than is there, for the one task that reads. What comes meanwhile is not told of any
    /// more: the next read has to try first.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let readiness = match self.readiness(Ready::Read) {
            Ok(readiness) => readiness,
            Err(error) => return poll_again(cx, error),
        };
        readiness.is_waited_for.store(true, Ordering::Relaxed);
        loop {
            let mut guard = ready!(readiness.fd.poll_read_ready(cx))?;
            if guard.ready().is_read_closed() {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }

    /// As [`when`](Self::when), on this thread.
    pub(crate) fn block_when<R>(&self, ready: Ready, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket::wait(self, ready)?,
                Err(error) if is_fd_congestion(&error) => thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// As [`block_when`](Self::block_when), to write, where the kernel says too late that there is some room.
    pub(crate) fn block_for_room<R>(&self, mut io: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket::wait_within(self, Ready::Write, PAUSE)?;
                }
                Err(error) if is_fd_congestion(&error) => thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// Gives up the place in a runtime's reactor, where nobody waits any more.
    pub(crate) fn forget(&self, runtime: Id) {
        let mut registrations = self.registrations();
        registrations
            .retain(|registered| registered.runtime != runtime || Arc::strong_count(&registered.readiness) > 1);
    }

    /// As [`readiness`](Self::readiness), and waits where this process has no fd left for it.
    async fn readiness_in_time(&self, ready: Ready) -> io::Result<Arc<Readiness>> {
        loop {
            match self.readiness(ready) {
                Err(error) if is_fd_shortage(&error) => background::pause().await?,
                result => return result,
            }
        }
    }

    fn readiness(&self, ready: Ready) -> io::Result<Arc<Readiness>> {
        let current = runtime();
        let mut registrations = self.registrations();
        let mut here = registrations.iter().filter(|registered| Some(registered.runtime) == current).peekable();
        // A second registration of one fd in one epoll(7) instance is an error; one of a duplicate is none.
        let second = here.peek().is_some();
        if let Some(registered) = here.find(|registered| registered.ready == ready) {
            return Ok(Arc::clone(&registered.readiness));
        }
        let fd = if second { Arc::new(socket::duplicate(&self.fd)?) } else { Arc::clone(&self.fd) };
        let early = ready == Ready::Read && self.wakes_early.load(Ordering::Relaxed);
        let interest = if early { Interest::READABLE | Interest::WRITABLE } else { ready.into() };
        let fd = socket::register(fd, interest)?;
        let readiness = Arc::new(Readiness { fd, is_waited_for: AtomicBool::new(false) });
        if let Some(runtime) = current {
            if registrations.len() >= IDLE {
                // Clones are only made under this lock, so what nobody else holds now stays unused.
                registrations.retain(|registered| {
                    Arc::strong_count(&registered.readiness) > 1
                        || registered.readiness.is_waited_for.load(Ordering::Relaxed)
                });
            }
            if registrations.len() >= MANY {
                registrations.retain(|registered| !registered.is_over());
            }
            registrations.push(Registration { runtime, ready, readiness: Arc::clone(&readiness) });
        }
        Ok(readiness)
    }

    /// Gives up those places where nobody waits.
    fn give_up(&self, which: impl Fn(Ready) -> bool) {
        self.registrations()
            .retain(|registered| !which(registered.ready) || Arc::strong_count(&registered.readiness) > 1);
    }

    fn registrations(&self) -> MutexGuard<'_, Vec<Registration>> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this process, or the whole system, has no fd left.
fn is_fd_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Has who is polled try again after a pause, where what kept it from waiting is that there was no fd. That passes, and an error
/// would be the end of whoever reads.
fn poll_again<R>(cx: &Context<'_>, error: io::Error) -> Poll<io::Result<R>> {
    if is_fd_shortage(&error) && background::wake_after_pause(cx.waker().clone()).is_ok() {
        return Poll::Pending;
    }
    Poll::Ready(Err(error))
}

/// The runtime that polls.
fn runtime() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Resolves when it is polled by another runtime than this one.
async fn left(here: Option<Id>) {
    poll_fn(|_| if runtime() == here { Poll::Pending } else { Poll::Ready(()) }).await;
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
