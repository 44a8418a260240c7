//! The receiving end of a queue.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures::Stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::packet;
use crate::channel::socket::Socket;
use crate::channel::turns::Turns;
use crate::channel::{travel, value};
use crate::error::{RecvError, TryRecvError};
use crate::sys::socket::Ready;
use crate::wire::frame::{Frame, Limits};

/// The receiving end of a queue; see [`queue`](crate::queue).
///
/// Clones share one fd, and any number of tasks, threads and processes may wait for items; sending it to another process
/// duplicates the fd. Whoever waits longest is told first, and whoever asks while there are items gets one. It is also a
/// [`Stream`].
pub struct QueueReceiver<T> {
    shared: Arc<Shared>,
    limits: Limits,
    /// What the `Stream` waits in.
    arriving: Option<Arriving>,
    item: PhantomData<fn() -> T>,
}

struct Shared {
    socket: Socket,
    buffer: Mutex<BytesMut>,
    turns: Turns,
}

/// What was taken out of the socket; `None` is the end.
type Taken = Option<Result<Frame, RecvError>>;

type Arriving = Pin<Box<dyn Future<Output = io::Result<Taken>> + Send + Sync>>;

impl<T> QueueReceiver<T> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self::with(Arc::new(Shared::new(Socket::new(fd))), Limits::default())
    }

    fn with(shared: Arc<Shared>, limits: Limits) -> Self {
        Self { shared, limits, arriving: None, item: PhantomData }
    }

    /// Bounds each item to `bytes` when encoded; 2 GiB by default and at the most. A larger one is a `Decode` error.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.limits = self.limits.with_body(bytes);
        self
    }

    /// Bounds the file descriptors in each item; 64 by default and at the most. An item with more is a `Decode` error, and they
    /// are closed.
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        self.limits = self.limits.with_fds(count);
        self
    }
}

impl<T: DeserializeOwned> QueueReceiver<T> {
    /// Takes the next item; `None` once every sender is gone, in every process, and all items have been taken.
    ///
    /// # Errors
    ///
    /// `Decode` for an item that can't be decoded, or whose fds this process could not take in because it has too many
    /// open: that item is lost, and the next call takes the next one. `Io` if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes no item.
    pub async fn recv(&self) -> Result<Option<T>, RecvError> {
        decode(self.shared.recv(self.limits).await?)
    }

    /// As [`recv`](Self::recv), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn blocking_recv(&self) -> Result<Option<T>, RecvError> {
        decode(self.shared.socket.block_when(Ready::Read, || self.shared.take(self.limits))?)
    }

    /// Takes the next item if there is one now.
    ///
    /// # Errors
    ///
    /// `Empty` and `Closed`; `Failed` as for [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match self.shared.take(self.limits) {
            Ok(taken) => decode(taken).map_err(TryRecvError::Failed)?.ok_or(TryRecvError::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(TryRecvError::Empty),
            Err(error) => Err(TryRecvError::Failed(error.into())),
        }
    }
}

impl Shared {
    fn new(socket: Socket) -> Self {
        Self { socket, buffer: Mutex::default(), turns: Turns::default() }
    }

    fn take(&self, limits: Limits) -> io::Result<Taken> {
        packet::recv(&self.socket, &self.buffer, limits)
    }

    async fn recv(&self, limits: Limits) -> io::Result<Taken> {
        self.socket.when_in_turn(Ready::Read, &self.turns, || self.take(limits)).await
    }
}

fn decode<T: DeserializeOwned>(taken: Taken) -> Result<Option<T>, RecvError> {
    taken.map(|frame| value::decode(frame?)).transpose()
}

impl<T: DeserializeOwned> Stream for QueueReceiver<T> {
    type Item = Result<T, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let arriving = this.arriving.get_or_insert_with(|| {
            let (shared, limits) = (Arc::clone(&this.shared), this.limits);
            Box::pin(async move { shared.recv(limits).await })
        });
        let taken = ready!(arriving.as_mut().poll(cx));
        this.arriving = None;
        Poll::Ready(taken.map_err(RecvError::from).and_then(decode).transpose())
    }
}

impl<T> Clone for QueueReceiver<T> {
    fn clone(&self) -> Self {
        Self::with(Arc::clone(&self.shared), self.limits)
    }
}

impl<T> Serialize for QueueReceiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        travel::serialize_shared(&self.shared.socket, self.limits, serializer)
    }
}

impl<'de, T> Deserialize<'de> for QueueReceiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (socket, limits) = travel::deserialize_shared(deserializer)?;
        Ok(Self::with(Arc::new(Shared::new(socket)), limits))
    }
}

impl<T> fmt::Debug for QueueReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueReceiver").field("item", &type_name::<T>()).finish_non_exhaustive()
    }
}
