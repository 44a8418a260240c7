//! Queues whose items are done only when a consumer says so: what it had when it died goes to another one.
//!
//! ```text
//!  AckedQueue ─ send ─▶ broker ─ item ──▶ AckedReceiver ─ recv ─▶ Delivery
//!                         ▲   ▲                                      │
//!                         │   └── Ask: one item at a time            │
//!                         └────── Ack, Back ─────────────────────────┘
//! ```
//!
//! The broker is in the process that made the queue, and each receiver has a socket of its own to it. So there is nothing
//! that consumers share, and the end of a socket is how the broker learns that a consumer is gone.

mod broker;
mod receiver;

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;

pub use receiver::{AckedReceiver, Delivery};

use self::broker::Broker;
use super::block::block_on;
use super::sending::Sending;
use super::socket::Socket;
use super::{background, value};
use crate::error::SendError;
use crate::sys::socket as sys;
use crate::wire::frame::{Frame, Limits};

/// From the receiver: it wants one item.
const ASK: u8 = 4;
/// From the receiver: the item of this id is done.
const ACK: u8 = 5;
/// From the receiver: the item of this id is to go to somebody.
const BACK: u8 = 6;
/// From the receiver: it does not want what it asked for, and if that is under way has not looked at it.
const LEAVE: u8 = 7;
/// From the broker: an item that was delivered before; the first time its kind is `VALUE`.
const AGAIN: u8 = 8;
/// From the broker: all items are done, and no more will come.
const END: u8 = 9;

/// A frame that is only a word about an item.
fn word(kind: u8, id: u64) -> Frame {
    Frame { kind, id, ..Frame::default() }
}

/// A queue whose items are done when a consumer acknowledges them, and not when it takes them.
///
/// Consumers are [receivers](Self::receiver) in any processes; each item is with one of them at a time. A consumer that
/// dies, or drops an item without [`ack`](Delivery::ack), gives it back, and it is delivered to another one, marked as
/// [redelivered](Delivery::is_redelivered). So no item is lost with a consumer, and one may be worked on twice: by a
/// consumer that died between its work and its `ack`.
///
/// What is in an item comes again with it. An end of a channel, a client, or an object of [`sync`](crate::sync) in an item that
/// [`is_redelivered`](Delivery::is_redelivered) is the very one that the consumer before had, who may have left it in mid-message,
/// or holding a permit: write to it, or wait for it, only if that can't have been. An end of a [`queue`](crate::queue) as a job's
/// way back is as good as new.
///
/// The items that are not done are kept by the process that made the queue. They are lost if that process ends: then the
/// receivers get `Truncated`. This handle can be used by many tasks, and does not travel; to feed the queue from other
/// processes, let them send to a [`queue`](crate::queue) of this one.
///
/// Dropping it says that no more items come. What was sent is still delivered; receivers read the end when all is done.
///
/// # Examples
///
/// ```
/// use multiproc::{AckedQueue, AckedReceiver, spawn_process, task};
///
/// fn work(mut jobs: AckedReceiver<u32>) {
///     while let Some(job) = jobs.blocking_recv().unwrap() {
///         if *job == 3 && !job.is_redelivered() {
///             std::process::abort();
///         }
///         job.ack().unwrap();
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let jobs = AckedQueue::new();
/// let first = spawn_process(task!(work(jobs.receiver()?))).await?;
/// let second = spawn_process(task!(work(jobs.receiver()?))).await?;
/// for n in 1..=5 {
///     jobs.send(n).await?;
/// }
/// jobs.finished().await; // All five are done, though one of the processes is not there any more.
/// drop(jobs);
/// assert!(first.join().await.is_ok() != second.join().await.is_ok());
/// # Ok(())
/// # }
/// ```
pub struct AckedQueue<T> {
    broker: Arc<Broker>,
    limits: Limits,
    item: PhantomData<fn(T)>,
}

impl<T> AckedQueue<T> {
    /// Makes a queue with no items and no receivers. It needs no runtime.
    pub fn new() -> Self {
        Self { broker: Arc::default(), limits: Limits::default(), item: PhantomData }
    }

    /// Bounds each item to `bytes` when encoded; 2 GiB by default and at the most.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.limits = self.limits.with_body(bytes);
        self
    }

    /// Bounds the file descriptors in each item; 64 by default and at the most. More are an `Encode` error.
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        self.limits = self.limits.with_fds(count);
        self
    }

    /// Makes a receiver, for this process or any other.
    ///
    /// # Errors
    ///
    /// If the system gives no sockets, or no thread for what serves the receivers.
    pub fn receiver(&self) -> io::Result<AckedReceiver<T>> {
        let (ours, theirs) = sys::stream_pair()?;
        let ours = Arc::new(Sending::new(Arc::new(Socket::new(ours))));
        background::runtime()?.spawn(Arc::clone(&self.broker).serve(ours));
        Ok(AckedReceiver::new(theirs))
    }

    /// Resolves when every item that was sent is done. More may be sent after that.
    ///
    /// # Cancel safety
    ///
    /// It only looks.
    pub async fn finished(&self) {
        self.broker.finished().await;
    }
}

impl<T: Serialize> AckedQueue<T> {
    /// Sends an item. Resolves when the queue has it.
    ///
    /// It waits while 1,024 items, or items of 16 MiB, wait for a receiver. The item is encoded at once, by the caller.
    ///
    /// # Errors
    ///
    /// `Encode` and `TooLarge` for an item that can't be sent. `Io` in a copy that fork(2) has made of the process of the queue.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it resolves, the item is not sent.
    pub fn send(&self, item: T) -> impl Future<Output = Result<(), SendError>> + Send {
        let frame = value::encode_within(&item, self.limits);
        drop(item);
        async move {
            let frame = frame?;
            // One that a copy gave to a receiver nobody would know of.
            background::no_forked_copy()?;
            self.broker.put(frame).await;
            Ok(())
        }
    }

    /// As [`send`](Self::send), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn blocking_send(&self, item: T) -> Result<(), SendError> {
        block_on(self.send(item))
    }
}

impl<T> Default for AckedQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for AckedQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckedQueue").field("item", &type_name::<T>()).finish_non_exhaustive()
    }
}

impl<T> Drop for AckedQueue<T> {
    fn drop(&mut self) {
        // In a forked copy the receivers are the original's, and a lock may be held for good.
        if background::no_forked_copy().is_ok() {
            self.broker.close();
        }
    }
}
