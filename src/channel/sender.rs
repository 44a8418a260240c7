//! The sending end of a one-way channel.

use std::any::type_name;
use std::fmt;
use std::future::{self, Future};
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Sink;
use futures::future::Either;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::sending::Sending;
use super::socket::Socket;
use super::{travel, value};
use crate::error::SendError;
use crate::wire::frame::Limits;

/// The sending end of a channel; see [`channel`](crate::channel).
///
/// [`send`](Self::send) takes `&self`, so any number of tasks and threads may send through one reference; each message
/// leaves whole, and what waits together leaves in one write. It is also a [`Sink`], which gathers fed messages.
///
/// Dropping it is how the receiver learns that nothing more comes: it receives what was sent, and then the end. Messages
/// that a `Sink` was fed and that have not left are still sent, in the background. A process that ends because its task has
/// returned waits for that while the receiver takes anything, unless it is killed: a host gives it a few seconds to exit, so
/// read what it sends before or while you join it. `std::process::exit` does not wait, nor does the end of the host's `main`:
/// flush or close the sink before those.
///
/// It is a value that can be sent itself. That moves it: the sender that was encoded refuses to go on. It is refused while
/// a message of its own is under way. One that is closed is closed where it goes, too.
pub struct Sender<T> {
    side: Arc<Sending>,
    limits: Limits,
    message: PhantomData<fn(T)>,
}

impl<T> Sender<T> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self::with(Sending::new(Arc::new(Socket::new(fd))), Limits::default())
    }

    fn with(side: Sending, limits: Limits) -> Self {
        Self { side: Arc::new(side), limits, message: PhantomData }
    }

    /// Bounds each message to `bytes` when encoded; 2 GiB by default and at the most.
    ///
    /// It bounds what this end sends; what the receiver takes is the receiver's to bound.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.limits = self.limits.with_body(bytes);
        self
    }

    /// Bounds the file descriptors in each message: files, sockets, ends of channels; 64 by default and at the most.
    ///
    /// It bounds what this end sends: more is a [`SendError::Encode`]. What the receiver takes is the receiver's to bound.
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        self.limits = self.limits.with_fds(count);
        self
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a message. Resolves when it has left this process, which may be before it is received.
    ///
    /// It waits while the receiver is behind. The message is encoded at once, by the caller. Sends at the same time, of one
    /// task or of several, gather and leave in one write: for that a send may let the tasks go first that can run at once, and
    /// it never waits for a time.
    ///
    /// # Errors
    ///
    /// `Closed` if nobody can receive any more; then every later send says so too. `Encode` and `TooLarge` for a message
    /// that can't be sent: nothing left, and the channel goes on. `Io` if the system refuses, which is final too.
    ///
    /// # Cancel safety
    ///
    /// A send that is dropped sends either all or nothing: nothing before the message was let in behind the others, which is
    /// when it is first polled while less than 64 KiB are under way, and all after that, in the background. A message is never
    /// cut. A send that was let in and is kept but not polled any more can delay its own message, until something else is
    /// sent or the sender is dropped; never another one.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, mut rx) = multiproc::channel()?;
    /// tokio::try_join!(tx.send(1), tx.send(2))?;
    /// drop(tx);
    /// assert_eq!(rx.recv().await?, Some(1));
    /// assert_eq!(rx.recv().await?, Some(2));
    /// assert_eq!(rx.recv().await?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send(&self, message: T) -> impl Future<Output = Result<(), SendError>> + Send {
        // Begun here and not when it is first polled, so that those who send at the same time know of it.
        let departure = value::encode_within(&message, self.limits).map(|frame| self.side.send(frame));
        drop(message);
        // An async block would hold it twice, and move it once more.
        departure.map_or_else(|error| Either::Right(future::ready(Err(error))), Either::Left)
    }

    /// As [`send`](Self::send), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn blocking_send(&self, message: T) -> Result<(), SendError> {
        let frame = value::encode_within(&message, self.limits)?;
        drop(message);
        self.side.blocking_send(frame)
    }
}

/// Feeding gathers messages, up to 64 KiB; flushing sends them. Closing sends them too, and then the receiver reads the
/// end.
impl<T: Serialize> Sink<T> for Sender<T> {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.side.poll_room(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: T) -> Result<(), SendError> {
        self.side.push(value::encode_within(&message, self.limits)?)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.side.poll_left(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.side.poll_left(cx))?;
        Poll::Ready(self.side.close())
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        travel::serialize_sending(&self.side, self.limits, serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (side, limits) = travel::deserialize_sending(deserializer)?;
        Ok(Self::with(side, limits))
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("message", &type_name::<T>()).finish_non_exhaustive()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.side.let_go();
    }
}
