//! The receiving end of a one-way channel.

use std::any::type_name;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::receiving::Receiving;
use super::socket::Socket;
use super::travel;
use crate::error::RecvError;
use crate::wire::frame::Limits;

/// The receiving end of a channel; see [`channel`](crate::channel).
///
/// It is also a [`Stream`], which ends after the first error but `Decode`. Dropping it makes every send fail with
/// [`SendError::Closed`](crate::SendError::Closed).
///
/// It is a value that can be sent itself, together with what it has received and not yet given out. That moves it: the
/// receiver that was encoded refuses to go on. It is refused once it has ended with `TooLarge` or `Protocol`, and while it has
/// received a message with as many [`Fd`](crate::Fd)s as one may have: with its own that is one too many.
pub struct Receiver<T> {
    side: Receiving,
    message: PhantomData<fn() -> T>,
}

impl<T> Receiver<T> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self::with(Receiving::new(Arc::new(Socket::new(fd)), Limits::default()))
    }

    fn with(side: Receiving) -> Self {
        Self { side, message: PhantomData }
    }

    /// Bounds each message to `bytes` when encoded; 2 GiB by default and at the most.
    ///
    /// It bounds the memory that a message takes while it arrives, and also what it becomes: the values of a message may take
    /// 16 MiB and 256 bytes for each of its bytes, else it is a `Decode` error; so there is no other budget to set.
    ///
    /// A sender that announces a longer message than `bytes` ends the channel: [`RecvError::TooLarge`].
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.side.set_limits(self.side.limits().with_body(bytes));
        self
    }

    /// Bounds the file descriptors in each message: files, sockets, ends of channels; 64 by default and at the most.
    ///
    /// A sender that sends more in one message ends the channel: [`RecvError::Protocol`]. They are closed.
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        self.side.set_limits(self.side.limits().with_fds(count));
        self
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives the next message; `None` once the sender is gone and all that it sent has been received.
    ///
    /// # Errors
    ///
    /// `Decode` for a message that can't be decoded; the next one can be received. `Truncated` if the sender ended in the
    /// middle of a message, `TooLarge` and `Protocol` for what is no message within the limit: these are final, and the
    /// next call says the same. `Io` if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: what has arrived stays here, and the next call goes on.
    pub async fn recv(&mut self) -> Result<Option<T>, RecvError> {
        poll_fn(|cx| self.side.poll_value(cx)).await
    }

    /// As [`recv`](Self::recv), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<T>, RecvError> {
        self.side.blocking_value()
    }
}

impl<T: DeserializeOwned> Stream for Receiver<T> {
    type Item = Result<T, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.side.poll_item(cx)
    }
}

impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        travel::serialize_receiving(&self.side, serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        travel::deserialize_receiving(deserializer).map(Self::with)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("message", &type_name::<T>()).finish_non_exhaustive()
    }
}
