//! The consumer's side of an acked queue.

use std::any::type_name;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use serde::de::DeserializeOwned;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ACK, AGAIN, ASK, BACK, END, LEAVE, word};
use crate::channel::receiving::Receiving;
use crate::channel::sending::Sending;
use crate::channel::socket::Socket;
use crate::channel::travel::{BothIn, BothOut};
use crate::channel::value;
use crate::error::{RecvError, SendError};
use crate::wire::frame::{Frame, Limits, REFUSAL, VALUE};

/// Why an item went back whose fds this process had no room for.
const NO_ROOM: &str = "file descriptors of the item could not be taken in: too many are open here, and it went back";

/// A consumer of an [`AckedQueue`](crate::AckedQueue), made by its [`receiver`](crate::AckedQueue::receiver).
///
/// It asks for one item at a time, so a slow consumer holds back nobody's work. It is a [`Stream`] too. Dropping it gives
/// back what it has not handed out; deliveries that it has handed out can still be acknowledged.
///
/// It is a value that can be sent to another process, which moves it. It is refused while a [`Delivery`] of its own is out.
pub struct AckedReceiver<T> {
    sending: Arc<Sending>,
    receiving: Receiving,
    stage: Stage,
    /// The stream of items has given an error that is its end.
    over: bool,
    /// One more for each delivery that is out.
    out: Arc<()>,
    item: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    Idle,
    /// An item is under way, or will be when there is one.
    Asked,
    /// No more items come: all are done, or the queue is gone.
    Over,
}

impl<T> AckedReceiver<T> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let socket = Arc::new(Socket::new(fd));
        let receiving = Receiving::new(Arc::clone(&socket), Limits::default());
        Self::with(Sending::new(socket), receiving, Stage::Idle)
    }

    fn with(sending: Sending, receiving: Receiving, stage: Stage) -> Self {
        Self { sending: Arc::new(sending), receiving, stage, over: false, out: Arc::default(), item: PhantomData }
    }

    /// Bounds each item to `bytes` when encoded; 2 GiB by default and at the most.
    ///
    /// A larger one ends this receiver, [`RecvError::TooLarge`], and goes back to the queue when that is dropped.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.receiving.set_limits(self.receiving.limits().with_body(bytes));
        self
    }

    /// Bounds the file descriptors in each item; 64 by default and at the most.
    ///
    /// An item with more ends this receiver, [`RecvError::Protocol`], and goes back to the queue when that is dropped.
    #[must_use]
    pub fn max_fds(mut self, count: usize) -> Self {
        self.receiving.set_limits(self.receiving.limits().with_fds(count));
        self
    }

    fn ask(&mut self) {
        // If it can't be said, nobody is there, which the read sees; or this was moved, which may yet be called off.
        if self.stage == Stage::Idle && self.sending.post(word(ASK, 0)).is_ok() {
            self.stage = Stage::Asked;
        }
    }
}

impl<T: DeserializeOwned> AckedReceiver<T> {
    /// Receives an item, which is this consumer's until it is acknowledged or dropped; `None` once all items of the queue
    /// are done and no more will come.
    ///
    /// # Errors
    ///
    /// `Decode` for an item that can't be decoded: nobody could, so it counts as done. `Truncated` if the process of the
    /// queue ended. `Io` if the system refuses, here or there. That is also said of an item with fds where this process has too
    /// many open to take them in: it goes back to the queue, and may come here again when the next one is asked for. So do that
    /// when there is room, or leave it to others; the `Stream` ends. Where it is the process of the queue that has too many open
    /// for what it sends and keeps, such an item waits there until it has not.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: an item that is under way is given out by the next call, and goes back to the
    /// queue when the receiver is dropped.
    pub async fn recv(&mut self) -> Result<Option<Delivery<T>>, RecvError> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// As [`recv`](Self::recv), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<Delivery<T>>, RecvError> {
        if self.stage == Stage::Over {
            return Ok(None);
        }
        self.ask();
        let frame = self.receiving.blocking_frame();
        self.delivery(frame)
    }

    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Delivery<T>>, RecvError>> {
        if self.stage == Stage::Over {
            return Poll::Ready(Ok(None));
        }
        self.ask();
        let frame = ready!(self.receiving.poll_frame(cx));
        Poll::Ready(self.delivery(frame))
    }

    fn delivery(&mut self, frame: Result<Option<Frame>, RecvError>) -> Result<Option<Delivery<T>>, RecvError> {
        match frame? {
            Some(frame) if matches!(frame.kind, VALUE | AGAIN) => {
                self.stage = Stage::Idle;
                let again = frame.kind == AGAIN;
                // First: where the item's own decoder panics, it goes back.
                let claim = Claim { id: frame.id, sending: Arc::clone(&self.sending), _out: Arc::clone(&self.out) };
                let lost = frame.fds_lost;
                match value::decode(frame) {
                    Ok(item) => Ok(Some(Delivery { item, claim, again })),
                    // Another one may have room. An error that ends the `Stream`, else it would get the item again at once,
                    // and for ever.
                    Err(_) if lost => Err(io::Error::other(NO_ROOM).into()),
                    Err(error) => {
                        let _ = claim.give_up(ACK);
                        Err(error)
                    }
                }
            }
            Some(frame) if frame.kind == END => {
                self.stage = Stage::Over;
                Ok(None)
            }
            Some(frame) if frame.kind == REFUSAL => {
                let reason: String = value::decode(frame)?;
                Err(io::Error::other(format!("the process of the queue cannot listen to this one: {reason}")).into())
            }
            Some(_) => Err(self.receiving.refuse("a frame that is no item")),
            None => Err(RecvError::Truncated),
        }
    }
}

impl<T: DeserializeOwned> Stream for AckedReceiver<T> {
    type Item = Result<Delivery<T>, RecvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let delivery = ready!(self.poll_delivery(cx));
        // The stage stays: what was asked for may be here, and goes back when this is dropped.
        self.over = !matches!(delivery, Ok(_) | Err(RecvError::Decode(_)));
        Poll::Ready(delivery.transpose())
    }
}

impl<T> Serialize for AckedReceiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // What becomes of an item is said through this end, which is another's then.
        if Arc::strong_count(&self.out) > 1 {
            return Err(S::Error::custom(
                "an item of this receiver is still out: acknowledge or drop it before sending the receiver",
            ));
        }
        (BothOut(&self.sending, &self.receiving), self.stage).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for AckedReceiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (BothIn(sending, receiving), stage) = Deserialize::deserialize(deserializer)?;
        Ok(Self::with(sending, receiving, stage))
    }
}

impl<T> fmt::Debug for AckedReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckedReceiver").field("item", &type_name::<T>()).finish_non_exhaustive()
    }
}

impl<T> Drop for AckedReceiver<T> {
    fn drop(&mut self) {
        // Deliveries may keep the socket open for a while, so its end does not say this.
        if self.stage == Stage::Asked && !self.sending.socket().is_forked_copy() {
            let _ = self.sending.post(word(LEAVE, 0));
        }
    }
}

/// An item that a consumer works on; see [`AckedReceiver::recv`].
///
/// It derefs to the item. [`ack`](Self::ack) says that it is done; dropping it without that gives it back to the queue.
#[must_use = "dropped, the item goes back to the queue"]
pub struct Delivery<T> {
    item: T,
    claim: Claim,
    again: bool,
}

impl<T> Delivery<T> {
    /// Says that the item is done. It does not wait.
    ///
    /// # Errors
    ///
    /// `Closed` if the process of the queue has ended; `Io` if the system refuses. Even after an `Ok` the item may be
    /// delivered again, if this process dies before the word has left.
    pub fn ack(self) -> Result<(), SendError> {
        self.claim.give_up(ACK)
    }

    /// Whether it was delivered before: to a consumer that died or dropped it, and may have done some or all of the work.
    pub fn is_redelivered(&self) -> bool {
        self.again
    }
}

impl<T> Deref for Delivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> DerefMut for Delivery<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.item
    }
}

impl<T: fmt::Debug> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("item", &self.item).field("redelivered", &self.again).finish_non_exhaustive()
    }
}

/// That an item is ours, until we say what becomes of it.
struct Claim {
    id: u64,
    sending: Arc<Sending>,
    /// Given up last, when all is said.
    _out: Arc<()>,
}

impl Claim {
    /// Items have ids from 1.
    const SETTLED: u64 = 0;

    fn give_up(mut self, kind: u8) -> Result<(), SendError> {
        let id = std::mem::replace(&mut self.id, Self::SETTLED);
        self.sending.post(word(kind, id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In a forked copy it is the original's, which works on it.
        if self.id != Self::SETTLED && !self.sending.socket().is_forked_copy() {
            let _ = self.sending.post(word(BACK, self.id));
        }
    }
}
