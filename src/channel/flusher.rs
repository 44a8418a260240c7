//! The thread that sends what an end still owes when its socket is full.
//!
//! It is one thread with a runtime of its own, begun when a socket is first full. A task on the caller's runtime would be
//! cheaper by a few microseconds, but would stop when that runtime does, and the peer would wait in the middle of a frame.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::sending::Sending;
use crate::sys::home::Home;
use crate::sys::process::SignalMask;
use crate::sys::socket::Ready;
use crate::task::unheeded;

/// How long to wait before fds are tried again, or anything else of which nothing tells when.
pub(super) const FD_PAUSE: Duration = Duration::from_millis(5);

/// How long an exit waits while nothing at all moves: a peer may be waiting for that very exit before it reads.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the user has as many fds under way in sockets as one process may have open; `ETOOMANYREFS` in unix(7). It
/// passes when receivers receive, and nothing tells when.
pub(crate) fn is_fd_congestion(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// Waits until fds may be tried again. The caller's own runtime may have no timers.
pub(crate) async fn pause() -> io::Result<()> {
    if let Ok(runtime) = runtime() {
        // A sleep belongs to the runtime in which it is made.
        return runtime.spawn(async { tokio::time::sleep(FD_PAUSE).await }).await.map_err(io::Error::other);
    }
    // As in `start`: it may be for want of fds that there is none.
    let (sleeps, over) = oneshot::channel::<()>();
    spawn_thread(move || {
        thread::sleep(FD_PAUSE);
        drop(sleeps);
    })?;
    let _ = over.await;
    Ok(())
}

/// As [`pause`], for who is polled: wakes it then.
pub(super) fn wake_after_pause(waker: Waker) -> io::Result<()> {
    if let Ok(runtime) = runtime() {
        runtime.spawn(async {
            tokio::time::sleep(FD_PAUSE).await;
            waker.wake();
        });
        return Ok(());
    }
    spawn_thread(|| {
        thread::sleep(FD_PAUSE);
        waker.wake();
    })
}

/// Calls something every few milliseconds, until it says that this is enough.
pub(super) fn repeat(mut call: impl FnMut() -> bool + Send + 'static) -> io::Result<()> {
    if let Ok(runtime) = runtime() {
        runtime.spawn(async move {
            tokio::time::sleep(FD_PAUSE).await;
            while call() {
                tokio::time::sleep(FD_PAUSE).await;
            }
        });
        return Ok(());
    }
    spawn_thread(move || {
        thread::sleep(FD_PAUSE);
        while call() {
            thread::sleep(FD_PAUSE);
        }
    })
}

/// Sends what is under way until nothing is. Gives what ends that sooner. `None`: there is no runtime for it, which has fds of its
/// own, and there may be none just now.
pub(super) fn start(sending: &Arc<Sending>) -> Option<AbortHandle> {
    runtime().ok().map(|runtime| runtime.spawn(flush(Arc::clone(sending))).abort_handle())
}

/// As [`start`], on a thread of its own. If there can be none, the sending side fails.
pub(super) fn start_alone(sending: &Arc<Sending>) {
    let theirs = Arc::clone(sending);
    if let Err(error) = spawn_thread(move || flush_alone(&theirs)) {
        sending.fail(&error);
    }
}

/// Waits until this process owes nothing; for its exit, which takes the thread along. It gives up when nothing at all has
/// moved for [`PATIENCE`].
pub(crate) fn finish() {
    OWED.settle(PATIENCE);
}

/// Something is left to the thread from now on. Others may send it sooner: a socket that has some room says so only once it
/// has much, and until then the thread waits.
pub(super) fn owe() -> Debt<'static> {
    OWED.begin()
}

/// Says that something has moved, so that [`finish`] goes on waiting.
pub(super) fn moved() {
    OWED.change(|count| count.moves += 1);
}

async fn flush(sending: Arc<Sending>) {
    loop {
        // Where the socket was full once it soon is again.
        match sending.socket().when_often(Ready::Write, || sending.advance()).await {
            Ok(()) => return,
            Err(error) if is_fd_congestion(&error) => tokio::time::sleep(FD_PAUSE).await,
            Err(error) => return sending.fail(&error),
        }
    }
}

/// As [`flush`], on a thread for this end alone.
fn flush_alone(sending: &Arc<Sending>) {
    if let Err(error) = sending.socket().block_when(Ready::Write, || sending.advance()) {
        sending.fail(&error);
    }
}

static OWED: Owed = Owed::new();

/// What is left to the thread.
#[derive(Debug)]
struct Owed {
    count: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug)]
struct Count {
    /// The ends that have something under way.
    ends: usize,
    /// How often anything has moved.
    moves: u64,
}

/// What one end owes, until it is dropped.
#[derive(Debug)]
pub(super) struct Debt<'a>(&'a Owed);

impl Owed {
    const fn new() -> Self {
        Self { count: Mutex::new(Count { ends: 0, moves: 0 }), changed: Condvar::new() }
    }

    fn begin(&self) -> Debt<'_> {
        self.change(|count| count.ends += 1);
        Debt(self)
    }

    fn change(&self, change: impl FnOnce(&mut Count)) {
        change(&mut self.count());
        self.changed.notify_all();
    }

    /// Waits until nothing is owed. Says whether it came to that.
    fn settle(&self, patience: Duration) -> bool {
        let mut count = self.count();
        while count.ends > 0 {
            let moves = count.moves;
            let still = |count: &mut Count| count.ends > 0 && count.moves == moves;
            let waited = self.changed.wait_timeout_while(count, patience, still);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return false;
            }
            count = next;
        }
        true
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        self.0.change(|count| {
            count.ends -= 1;
            count.moves += 1;
        });
    }
}

/// Refuses what needs the thread in a copy of the process that it is in: nobody would ever answer there, and what a copy says
/// through ends that it has with the original is taken for the original's.
pub(super) fn no_forked_copy() -> io::Result<()> {
    if HOME.is_elsewhere() { settle() } else { Ok(()) }
}

static HOME: Home = Home::new();

fn settle() -> io::Result<()> {
    HOME.settle().map_err(|process| {
        io::Error::other(format!(
            "this process is a copy that process {process} forked, without the thread that sends and answers"
        ))
    })
}

/// The runtime of that thread, which is there whatever becomes of the program's own. What runs on it must never block.
pub(super) fn runtime() -> io::Result<Handle> {
    static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);
    settle()?;
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*slot {
        return Ok(handle.clone());
    }
    let runtime = Arc::new(Builder::new_current_thread().enable_all().build()?);
    let theirs = Arc::clone(&runtime);
    let started = spawn_thread(move || theirs.block_on(std::future::pending::<()>()));
    match started {
        Ok(()) => Ok(slot.insert(runtime.handle().clone()).clone()),
        Err(error) => {
            // To drop it is a panic in a runtime, where our callers are.
            if let Some(runtime) = Arc::into_inner(runtime) {
                runtime.shutdown_background();
            }
            Err(error)
        }
    }
}

/// Drops what runs somebody else's code, which may block and panic, away from that thread, on one that nobody waits for.
pub(super) fn let_go<T: Send + 'static>(spent: T) {
    unheeded(|| {
        // Where there can be no thread, that is a panic, or an error, and it is dropped here.
        if let Ok(runtime) = runtime() {
            runtime.spawn_blocking(move || drop(spent));
        }
    });
}

fn spawn_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("multiproc-flush".into()).stack_size(128 << 10);
    thread
        .spawn(|| {
            // The program's signal handlers run on its own threads.
            SignalMask::full().install();
            work();
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It made the timer in the caller's runtime.
    #[test]
    fn a_pause_needs_no_timers_of_who_pauses_and_no_runtime() {
        Builder::new_current_thread().enable_io().build().unwrap().block_on(pause()).unwrap();
        crate::channel::block::block_on(pause()).unwrap();
    }

    #[test]
    fn an_exit_waits_for_what_is_owed_and_gives_up_when_nothing_moves() {
        let owed = Owed::new();
        assert!(owed.settle(Duration::ZERO), "nothing was owed");
        let debt = owed.begin();
        assert!(!owed.settle(Duration::from_millis(1)), "nothing has moved");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| owed.settle(Duration::from_mins(1)));
            owed.change(|count| count.moves += 1);
            drop(debt);
            assert!(waiting.join().unwrap());
        });
    }
}
