//! The sending end of a queue.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Sink;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::packet::Packet;
use crate::channel::socket::Socket;
use crate::channel::turns::Turns;
use crate::channel::{background, flusher, travel};
use crate::error::{SendError, TrySendError};
use crate::sys::socket::Ready;
use crate::wire::frame::Limits;

/// The sending end of a queue; see [`queue`](crate::queue).
///
/// Clones share one fd; sending it to another process duplicates that. It is also a [`Sink`] of one item at a time; closing
/// that counts as dropping this clone.
pub struct QueueSender<T> {
    /// `None` once it is closed as a `Sink`.
    shared: Option<Arc<Shared>>,
    limits: Limits,
    /// What the `Sink` was given and could not send at once.
    leaving: Option<Leaving>,
    item: PhantomData<fn(T)>,
}

struct Shared {
    socket: Socket,
    turns: Turns,
}

type Leaving = Pin<Box<dyn Future<Output = Result<(), SendError>> + Send + Sync>>;

impl<T> QueueSender<T> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self::with(Some(Arc::new(Shared::new(Socket::new(fd)))), Limits::default())
    }

    fn with(shared: Option<Arc<Shared>>, limits: Limits) -> Self {
        Self { shared, limits, leaving: None, item: PhantomData }
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

    fn shared(&self) -> Result<&Arc<Shared>, SendError> {
        self.shared.as_ref().ok_or(SendError::Closed)
    }

    fn poll_leaving(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if let Some(leaving) = &mut self.leaving {
            let result = ready!(leaving.as_mut().poll(cx));
            self.leaving = None;
            result?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Serialize> QueueSender<T> {
    /// Sends an item. Resolves when it is in the queue, where it stays even if this process ends.
    ///
    /// It waits while the queue is full, and looks for room every few milliseconds: the kernel says that there is some when three
    /// quarters are free. Whoever sends or tries to just then, here or in another process, may be quicker. The item is encoded at
    /// once, by the caller.
    ///
    /// # Errors
    ///
    /// `Closed` if no receiver is left; `Encode` and `TooLarge` for an item that can't be sent; `Io` if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it resolves, the item is not sent.
    pub fn send(&self, item: T) -> impl Future<Output = Result<(), SendError>> + Send {
        let packet = Packet::new(&item, self.limits);
        drop(item);
        async move { self.shared()?.send(packet?).await }
    }

    /// As [`send`](Self::send), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`send`](Self::send).
    pub fn blocking_send(&self, item: T) -> Result<(), SendError> {
        let mut packet = Packet::new(&item, self.limits)?;
        drop(item);
        let socket = &self.shared()?.socket;
        socket.block_for_room(|| packet.send(socket)).map_err(sent)
    }

    /// Sends an item if there is room for it now, also where others wait for some.
    ///
    /// # Errors
    ///
    /// `Full` and `Closed` give it back as it was; `Refused` for an item that can't be sent.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::TrySendError;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (tx, rx) = multiproc::queue()?;
    /// let mut held = 0;
    /// while let Ok(()) = tx.try_send(held) {
    ///     held += 1;
    /// }
    /// assert!(matches!(tx.try_send(held), Err(TrySendError::Full(_))));
    /// assert_eq!(rx.try_recv()?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let Some(shared) = &self.shared else { return Err(TrySendError::Closed(item)) };
        // Whether there is room says only the send itself: other processes send, too.
        let mut packet = Packet::new(&item, self.limits).map_err(TrySendError::Refused)?;
        let Err(error) = packet.send(&shared.socket) else { return Ok(()) };
        drop(packet);
        if error.kind() == io::ErrorKind::WouldBlock || flusher::is_fd_congestion(&error) {
            return Err(TrySendError::Full(item));
        }
        match sent(error) {
            SendError::Closed => Err(TrySendError::Closed(item)),
            error => Err(TrySendError::Refused(error)),
        }
    }
}

impl Shared {
    fn new(socket: Socket) -> Self {
        Self { socket, turns: Turns::default() }
    }

    async fn send(&self, mut packet: Packet) -> Result<(), SendError> {
        loop {
            match self.socket.when_in_turn(Ready::Write, &self.turns, || packet.send(&self.socket)).await {
                Err(error) if flusher::is_fd_congestion(&error) => background::pause().await?,
                result => return result.map_err(sent),
            }
        }
    }
}

/// Says what a failed send means.
fn sent(error: io::Error) -> SendError {
    match error.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotConnected => SendError::Closed,
        _ => error.into(),
    }
}

/// Each item leaves when it is given, or waits alone until there is room. What waits is lost with this clone: if that is dropped, or
/// sent to another process, before a flush, a close or the next item has seen it leave. Closing it gives this clone up, once what
/// waits has left: later sends through it fail with `Closed`, and the queue ends with its last sender.
impl<T: Serialize> Sink<T> for QueueSender<T> {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_leaving(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, item: T) -> Result<(), SendError> {
        let mut packet = Packet::new(&item, self.limits)?;
        let shared = Arc::clone(self.shared()?);
        match packet.send(&shared.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || flusher::is_fd_congestion(&error) => {
                self.leaving = Some(Box::pin(async move { shared.send(packet).await }));
                Ok(())
            }
            result => result.map_err(sent),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_leaving(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let closed = ready!(self.poll_leaving(cx));
        self.shared = None;
        Poll::Ready(closed)
    }
}

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> Self {
        Self::with(self.shared.clone(), self.limits)
    }
}

impl<T> Serialize for QueueSender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shared = self.shared().map_err(serde::ser::Error::custom)?;
        travel::serialize_shared(&shared.socket, self.limits, serializer)
    }
}

impl<'de, T> Deserialize<'de> for QueueSender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (socket, limits) = travel::deserialize_shared(deserializer)?;
        Ok(Self::with(Some(Arc::new(Shared::new(socket))), limits))
    }
}

impl<T> fmt::Debug for QueueSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSender").field("item", &type_name::<T>()).finish_non_exhaustive()
    }
}
