//! What processes wait for each other with: [`Semaphore`], [`Event`], [`Barrier`], and [`watch`] for the newest version of a
//! value.
//!
//! Each is kept by the process that made it, on a thread of this library's own, and is a value that can be sent to any other
//! process, again and again. A process that is killed, at whatever moment, gives back what it held and loses its place
//! in every line; nobody else is harmed. When the process that made one has ended, all that wait for it are told, by
//! [`SyncError::Closed`](crate::SyncError::Closed).
//!
//! Each one that was sent, in whatever process and also while it waits in a queue, is a socket of the process that made it,
//! which so bounds how many there are by the files that it may have open: where it can have no more, what it sends is
//! an `Encode` error, and what another process passes on arrives as one that is `Closed`. Other processes can pass on 4,096 of one
//! at a time; one more arrives, but each call of it says [`SyncError::Refused`](crate::SyncError::Refused).
//!
//! What is asked comes after all that one can know of when one asks: that somebody has given a permit back or given up to wait,
//! has asked before, or has ended, be it that a message says so or that [`Process::wait`](crate::Process::wait) has returned.
//!
//! They need no runtime to be made. Each method is a message to that process and back, some ten microseconds. What waits for its
//! answer does so in the runtime that polled it last: where that ends first, it is [`SyncError::Io`](crate::SyncError::Io).

mod barrier;
mod event;
mod semaphore;
mod watch;

pub use barrier::{Barrier, BarrierWait};
pub use event::Event;
pub use semaphore::{Semaphore, SemaphorePermit};
pub use watch::{WatchReceiver, WatchSender, watch};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is locked here is right at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
