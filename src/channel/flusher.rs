//! What sends what an end still owes when its socket is full: a task an end, on the thread of `background.rs`.
//!
//! One on the caller's runtime would be cheaper by a few microseconds, but would stop when that runtime does, and the peer would
//! wait in the middle of a frame.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::background::{self, PAUSE};
use super::sending::Sending;
use crate::sys::socket::Ready;

/// How long an exit waits while nothing at all moves: a peer may be waiting for that very exit before it reads.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the user has as many fds under way in sockets as one process may have open; `ETOOMANYREFS` in unix(7). It
/// passes when receivers receive, and nothing tells when.
pub(crate) fn is_fd_congestion(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// Sends what is under way until nothing is. Gives what ends that sooner. `None`: there is no runtime for it, which has fds of its
/// own, and there may be none just now.
pub(super) fn start(sending: &Arc<Sending>) -> Option<AbortHandle> {
    background::runtime().ok().map(|runtime| runtime.spawn(flush(Arc::clone(sending))).abort_handle())
}

/// As [`start`], on a thread of its own. If there can be none, the sending side fails.
pub(super) fn start_alone(sending: &Arc<Sending>) {
    let theirs = Arc::clone(sending);
    if let Err(error) = background::spawn_thread(move || flush_alone(&theirs)) {
        sending.fail(&error);
    }
}

/// Waits until this process owes nothing; for its exit, which takes the thread along. It gives up when nothing at all has
/// moved for [`PATIENCE`].
pub(crate) fn finish() {
    OWED.settle(PATIENCE);
}

/// Something is left to the flusher from now on. Others may send it sooner: a socket that has some room says so only once it
/// has much, and until then the flusher waits.
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
            Err(error) if is_fd_congestion(&error) => tokio::time::sleep(PAUSE).await,
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

/// What is left to the flusher.
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
    /// How many threads wait for either: without one there is nobody to be told, which takes a system call.
    waiting: usize,
}

/// What one end owes, until it is dropped.
#[derive(Debug)]
pub(super) struct Debt<'a>(&'a Owed);

impl Owed {
    const fn new() -> Self {
        Self { count: Mutex::new(Count { ends: 0, moves: 0, waiting: 0 }), changed: Condvar::new() }
    }

    fn begin(&self) -> Debt<'_> {
        self.change(|count| count.ends += 1);
        Debt(self)
    }

    fn change(&self, change: impl FnOnce(&mut Count)) {
        let mut count = self.count();
        change(&mut count);
        if count.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits until nothing is owed. Says whether it came to that.
    fn settle(&self, patience: Duration) -> bool {
        let mut count = self.count();
        while count.ends > 0 {
            let moves = count.moves;
            let still = |count: &mut Count| count.ends > 0 && count.moves == moves;
            count.waiting += 1;
            let waited = self.changed.wait_timeout_while(count, patience, still);
            let (mut next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            next.waiting -= 1;
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

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
