//! The thread that sends what an end still owes when its socket is full.
//!
//! It is one thread with a runtime of its own, begun when a socket is first full. A task on the caller's runtime would be
//! cheaper by a few microseconds, but would stop when that runtime does, and the peer would wait in the middle of a frame.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

use super::sending::Sending;
use crate::sys::process::SignalMask;
use crate::sys::socket::Ready;

/// How long to wait before fds are tried again.
pub(super) const FD_PAUSE: Duration = Duration::from_millis(5);

/// Whether the user has as many fds under way in sockets as one process may have open; `ETOOMANYREFS` in unix(7). It
/// passes when receivers receive, and nothing tells when.
pub(super) fn is_fd_congestion(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// Waits until fds may be tried again. The caller's own runtime may have no timers.
pub(super) async fn pause() -> io::Result<()> {
    runtime()?.spawn(tokio::time::sleep(FD_PAUSE)).await.map_err(io::Error::other)
}

/// Sends what is under way until nothing is. If there can be no thread, the sending side fails.
pub(super) fn start(sending: Arc<Sending>) {
    match runtime() {
        Ok(runtime) => drop(runtime.spawn(flush(sending))),
        Err(error) => sending.fail(&error),
    }
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

/// The runtime of that thread, which is there whatever becomes of the program's own. What runs on it must never block.
pub(super) fn runtime() -> io::Result<Handle> {
    static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*slot {
        return Ok(handle.clone());
    }
    let runtime = Arc::new(Builder::new_current_thread().enable_all().build()?);
    let theirs = Arc::clone(&runtime);
    let started = thread::Builder::new().name("multiproc-flush".into()).stack_size(128 << 10).spawn(move || {
        // The program's signal handlers run on its own threads.
        SignalMask::full().install();
        theirs.block_on(std::future::pending::<()>());
    });
    match started {
        Ok(_) => Ok(slot.insert(runtime.handle().clone()).clone()),
        Err(error) => {
            // To drop it is a panic in a runtime, where our callers are.
            if let Some(runtime) = Arc::into_inner(runtime) {
                runtime.shutdown_background();
            }
            Err(error)
        }
    }
}
