//! A channel in both directions over one socket.

use std::any::type_name;
use std::fmt;
use std::future::{self, Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::Either;
use futures::{Sink, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::receiving::Receiving;
use super::sending::Sending;
use super::socket::Socket;
use super::travel::{BothIn, BothOut};
use super::value;
use crate::error::{RecvError, SendError};
use crate::sys::socket as sys;
use crate::wire::frame::Limits;

/// Makes a channel in both directions: what one end sends as `A`, the other receives, and the other way round for `B`.
///
/// All that [`channel`](crate::channel) says holds for both directions. Each waits for its own: two ends that both send
/// without end and never receive wait for each other.
///
/// # Errors
///
/// If the system gives no sockets, most often because this process has as many open files as it may.
///
/// # Examples
///
/// ```
/// use multiproc::{Duplex, duplex, spawn_process, task};
///
/// fn square(mut end: Duplex<u64, u32>) {
///     while let Some(n) = end.blocking_recv().unwrap() {
///         end.blocking_send(u64::from(n) * u64::from(n)).unwrap();
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let (mut ours, theirs) = duplex::<u32, u64>()?;
/// let child = spawn_process(task!(square(theirs))).await?;
/// ours.send(12).await?;
/// assert_eq!(ours.recv().await?, Some(144));
/// drop(ours);
/// child.join().await?;
/// # Ok(())
/// # }
/// ```
pub fn duplex<A, B>() -> io::Result<(Duplex<A, B>, Duplex<B, A>)> {
    let (one, other) = sys::stream_pair()?;
    Ok((Duplex::new(one), Duplex::new(other)))
}

/// One end of a channel in both directions: it sends `A` and receives `B`; see [`duplex`].
///
/// It is a [`Sink`] and a [`Stream`] too, and a value that can be sent itself, as [`Sender`](crate::Sender) and
/// [`Receiver`](crate::Receiver) are. Closing it as a `Sink` ends the direction in which it sends and keeps the other, also
/// where it is sent to.
pub struct Duplex<A, B> {
    sides: Sides,
    messages: PhantomData<fn(A) -> B>,
}

/// Both sides of one socket, whatever goes through them.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) sending: Arc<Sending>,
    pub(super) receiving: Receiving,
}

impl Sides {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let socket = Arc::new(Socket::new(fd));
        Self::with(Sending::new(Arc::clone(&socket)), Receiving::new(socket, Limits::default()))
    }

    pub(super) fn with(sending: Sending, receiving: Receiving) -> Self {
        Self { sending: Arc::new(sending), receiving }
    }
}

impl<A, B> Duplex<A, B> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self::over(Sides::new(fd))
    }

    pub(super) fn over(sides: Sides) -> Self {
        Self { sides, messages: PhantomData }
    }

    pub(super) fn sending(&self) -> &Arc<Sending> {
        &self.sides.sending
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        self.sides.receiving.socket()
    }

    pub(super) fn into_sides(self) -> Sides {
        self.sides
    }

    /// Bounds each message, sent or received, to `bytes` when encoded; 2 GiB by default and at the most.
    ///
    /// A peer that announces more than that ends the direction in which it sends: [`RecvError::TooLarge`].
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        let receiving = &mut self.sides.receiving;
        receiving.set_limits(receiving.limits().with_body(bytes));
        self
    }

    /// Bounds the file descriptors in each message, sent or received; 64 by default and at the most.
    ///
    /// A peer that sends more in one message ends the direction in which it sends: [`RecvError::Protocol`].
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        let receiving = &mut self.sides.receiving;
        receiving.set_limits(receiving.limits().with_fds(count));
        self
    }
}

impl<A: Serialize, B> Duplex<A, B> {
    /// Sends a message; see [`Sender::send`](crate::Sender::send).
    ///
    /// # Errors
    ///
    /// As for [`Sender::send`](crate::Sender::send).
    ///
    /// # Cancel safety
    ///
    /// As for [`Sender::send`](crate::Sender::send).
    pub fn send(&self, message: A) -> impl Future<Output = Result<(), SendError>> + Send {
        let frame = value::encode_within(&message, self.sides.receiving.limits());
        let departure = frame.map(|frame| self.sides.sending.send(frame));
        drop(message);
        departure.map_or_else(|error| Either::Right(future::ready(Err(error))), Either::Left)
    }

    /// As [`send`](Self::send), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn blocking_send(&self, message: A) -> Result<(), SendError> {
        let frame = value::encode_within(&message, self.sides.receiving.limits())?;
        drop(message);
        self.sides.sending.blocking_send(frame)
    }
}

impl<A, B: DeserializeOwned> Duplex<A, B> {
    /// Receives the next message; see [`Receiver::recv`](crate::Receiver::recv).
    ///
    /// # Errors
    ///
    /// As for [`Receiver::recv`](crate::Receiver::recv).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: what has arrived stays here, and the next call goes on.
    pub async fn recv(&mut self) -> Result<Option<B>, RecvError> {
        poll_fn(|cx| self.sides.receiving.poll_value(cx)).await
    }

    /// As [`recv`](Self::recv), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<B>, RecvError> {
        self.sides.receiving.blocking_value()
    }
}

impl<A: Serialize, B> Sink<A> for Duplex<A, B> {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sides.sending.poll_room(cx)
    }

    fn start_send(self: Pin<&mut Self>, message: A) -> Result<(), SendError> {
        self.sides.sending.push(value::encode_within(&message, self.sides.receiving.limits())?)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.sides.sending.poll_left(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        ready!(self.sides.sending.poll_left(cx))?;
        Poll::Ready(self.sides.sending.close())
    }
}

impl<A, B: DeserializeOwned> Stream for Duplex<A, B> {
    type Item = Result<B, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.sides.receiving.poll_item(cx)
    }
}

impl<A, B> Serialize for Duplex<A, B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.sides.serialize(serializer)
    }
}

impl<'de, A, B> Deserialize<'de> for Duplex<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Sides::deserialize(deserializer).map(Self::over)
    }
}

impl<A, B> fmt::Debug for Duplex<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplex")
            .field("sends", &type_name::<A>())
            .field("receives", &type_name::<B>())
            .finish_non_exhaustive()
    }
}

impl Serialize for Sides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BothOut(&self.sending, &self.receiving).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BothIn::deserialize(deserializer).map(|BothIn(sending, receiving)| Self::with(sending, receiving))
    }
}

impl Drop for Sides {
    fn drop(&mut self) {
        if self.sending.let_go() {
            // The socket stays open for what is still to leave, and nobody here will receive any more.
            let _ = sys::end_receiving(&**self.receiving.socket());
        }
    }
}
