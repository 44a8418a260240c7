//! The thread that is there whatever becomes of the program's own runtimes: it sends, answers, listens, and wakes who waits for
//! what nothing tells of.
//!
//! It is one for the whole process, with a runtime of its own, begun when something first needs it. There is none in a copy that
//! fork(2) makes of the process.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use crate::sys::home::Home;
use crate::sys::process::SignalMask;
use crate::task::unheeded;

/// How long to wait before fds are tried again, or anything else of which nothing tells when.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Waits until fds may be tried again. The caller's own runtime may have no timers.
pub(crate) async fn pause() -> io::Result<()> {
    let over = Arc::new(Notify::new());
    let theirs = Arc::clone(&over);
    repeat(move || {
        theirs.notify_one();
        false
    })?;
    over.notified().await;
    Ok(())
}

/// As [`pause`], for who is polled: wakes it then.
pub(super) fn wake_after_pause(waker: Waker) -> io::Result<()> {
    repeat(move || {
        waker.wake_by_ref();
        false
    })
}

/// Calls something every few milliseconds, until it says that this is enough.
pub(super) fn repeat(mut call: impl FnMut() -> bool + Send + 'static) -> io::Result<()> {
    if let Ok(runtime) = runtime() {
        runtime.spawn(async move {
            tokio::time::sleep(PAUSE).await;
            while call() {
                tokio::time::sleep(PAUSE).await;
            }
        });
        return Ok(());
    }
    // The runtime has fds of its own, and it may be for want of these that there is none.
    spawn_thread(move || {
        thread::sleep(PAUSE);
        while call() {
            thread::sleep(PAUSE);
        }
    })
}

static HOME: Home = Home::new();

/// Refuses what needs the thread in a copy of the process that it is in: nobody would ever answer there, and what a copy says
/// through ends that it has with the original is taken for the original's.
pub(super) fn no_forked_copy() -> io::Result<()> {
    HOME.check("without the thread that sends and answers")
}

/// The runtime of that thread. What runs on it must never block.
pub(super) fn runtime() -> io::Result<Handle> {
    static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);
    HOME.settle();
    no_forked_copy()?;
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*slot {
        return Ok(handle.clone());
    }
    let runtime = Arc::new(Builder::new_current_thread().enable_all().build()?);
    let theirs = Arc::clone(&runtime);
    let started = spawn_thread(move || {
        IS_HERE.set(true);
        theirs.block_on(std::future::pending::<()>());
    });
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

thread_local! {
    static IS_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is that thread.
pub(super) fn is_here() -> bool {
    IS_HERE.get()
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

/// A thread for something that the runtime is not there for, or must not do.
pub(super) fn spawn_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
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
}
