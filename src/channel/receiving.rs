//! The receiving side of an end: frames become values, one bad value is not the end, and an end stays one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use serde::de::DeserializeOwned;
use tokio::task::coop;

use super::batches::Batch;
use super::inbox::Inbox;
use super::moved::{self, Moved};
use super::socket::Socket;
use super::value;
use crate::error::RecvError;
use crate::sys::socket as sys;
use crate::wire::frame::{Frame, Limits, VALUE};

/// The receiving side of a socket.
#[derive(Debug)]
pub(super) struct Receiving {
    socket: Arc<Socket>,
    inbox: Inbox,
    /// Whether another process has this end now.
    moved: Moved,
    /// The stream of values has given its end, or the error that is one.
    over: bool,
}

impl Receiving {
    pub(super) fn new(socket: Arc<Socket>, limits: Limits) -> Self {
        Self::resume(socket, limits, BytesMut::new(), VecDeque::new())
    }

    /// A side that goes on where another one stood; see [`hand_over`](Self::hand_over).
    pub(super) fn resume(socket: Arc<Socket>, limits: Limits, unread: BytesMut, batches: VecDeque<Batch>) -> Self {
        let inbox = Inbox::resume(limits, unread, batches);
        Self { socket, inbox, moved: Moved::default(), over: false }
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    pub(super) fn limits(&self) -> Limits {
        self.inbox.limits()
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.inbox.set_limits(limits);
    }

    /// The next value; `None` after a clean end.
    ///
    /// # Cancel safety
    /// What came stays here.
    pub(super) fn poll_value<T: DeserializeOwned>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<T>, RecvError>> {
        let frame = ready!(self.poll_frame(cx));
        Poll::Ready(self.value(frame))
    }

    /// As [`poll_value`](Self::poll_value), for a `Stream`: after its end, and after an error that is one, `None`.
    pub(super) fn poll_item<T: DeserializeOwned>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<T, RecvError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let value = ready!(self.poll_value(cx));
        self.over = !matches!(value, Ok(Some(_)) | Err(RecvError::Decode(_)));
        Poll::Ready(value.transpose())
    }

    /// The next frame, whatever it is; `None` after a clean end.
    ///
    /// # Cancel safety
    /// What came stays here.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, RecvError>> {
        self.check()?;
        // A peer that is always ahead must not keep the other tasks of this thread from running.
        let budget = ready!(coop::poll_proceed(cx));
        let frame = ready!(self.inbox.poll_frame(cx, &self.socket));
        budget.made_progress();
        Poll::Ready(self.passed(frame))
    }

    /// Waits until the peer can send nothing more, without reading what it has sent.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inbox.poll_end(cx, &self.socket)
    }

    /// As [`poll_frame`](Self::poll_frame), on this thread.
    pub(super) fn blocking_frame(&mut self) -> Result<Option<Frame>, RecvError> {
        self.check()?;
        let frame = self.inbox.blocking_frame(&self.socket);
        self.passed(frame)
    }

    /// The next frame if it has arrived already: `Ok(None)` says nothing about the end.
    pub(super) fn try_frame(&mut self) -> Result<Option<Frame>, RecvError> {
        self.check()?;
        let frame = self.inbox.try_frame(&self.socket);
        self.passed(frame)
    }

    /// Whether the end was read, behind which nothing comes.
    pub(super) fn is_over(&self) -> bool {
        self.inbox.is_over()
    }

    /// Ends the stream for what the peer did.
    pub(super) fn refuse(&mut self, reason: &'static str) -> RecvError {
        let refused = self.inbox.refuse(reason);
        self.ended(&refused);
        refused
    }

    /// All that is read passes here.
    fn passed(&self, frame: Result<Option<Frame>, RecvError>) -> Result<Option<Frame>, RecvError> {
        frame.inspect_err(|error| self.ended(error))
    }

    /// Tells a peer whose stream has ended for what it did that nobody will read on: a sender that waits for room is not left to
    /// wait for the end of this end.
    fn ended(&self, error: &RecvError) {
        if matches!(error, RecvError::TooLarge { .. } | RecvError::Protocol { .. }) {
            let _ = sys::end_receiving(&*self.socket);
        }
    }

    /// As [`poll_value`](Self::poll_value), on this thread.
    pub(super) fn blocking_value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RecvError> {
        let frame = self.blocking_frame();
        self.value(frame)
    }

    /// Hands this side to another process, by way of `give`, with what has arrived and is not yet taken.
    pub(super) fn hand_over<R, E: serde::ser::Error>(
        &self,
        give: impl FnOnce(BytesMut, &VecDeque<Batch>) -> Result<R, E>,
    ) -> Result<R, E> {
        if self.is_moved() {
            return Err(E::custom(moved::away()));
        }
        let (unread, batches) = self.inbox.unread().map_err(E::custom)?;
        let given = give(unread, batches)?;
        self.moved.set();
        Ok(given)
    }

    /// Whether another process has this side now.
    pub(super) fn is_moved(&self) -> bool {
        self.moved.is_set()
    }

    fn check(&self) -> Result<(), RecvError> {
        if self.is_moved() {
            return Err(moved::away().into());
        }
        Ok(())
    }

    fn value<T: DeserializeOwned>(&mut self, frame: Result<Option<Frame>, RecvError>) -> Result<Option<T>, RecvError> {
        match frame? {
            None => Ok(None),
            Some(frame) if frame.kind == VALUE => value::decode(frame).map(Some),
            Some(_) => Err(self.refuse("a frame that is no value")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::task::Waker;

    use super::*;
    use crate::wire::frame::Head;

    type Take = fn(&mut Receiving) -> Result<Option<Frame>, RecvError>;

    /// Only where values were received it was told. Elsewhere it stayed in the middle of its frame until this end was dropped.
    #[test]
    fn a_peer_is_told_that_nobody_reads_on_whoever_reads() {
        let polled = |side: &mut Receiving| match side.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => taken,
            Poll::Pending => Ok(None),
        };
        let refused = |side: &mut Receiving| {
            side.try_frame().unwrap().expect("it is none to refuse by itself");
            Err(side.refuse("a frame that has no place here"))
        };
        let ways: [(Take, usize, usize); 5] = [
            (polled, 101, 0),
            (Receiving::blocking_frame, 101, 0),
            (Receiving::try_frame, 101, 0),
            (Receiving::try_frame, 100, 2),
            (refused, 0, 0),
        ];
        for (way, (take, len, fds)) in ways.into_iter().enumerate() {
            let (theirs, ours) = sys::stream_pair().unwrap();
            let mut side = Receiving::new(Arc::new(Socket::new(ours)), Limits::new(100, 1));
            let mut bytes = Vec::new();
            Head { len, kind: VALUE, fds, id: 0 }.put(&mut bytes);
            let write = || sys::send(&theirs, &[IoSlice::new(&bytes)], &[]);
            write().unwrap();
            let taken = take(&mut side);
            assert!(matches!(taken, Err(RecvError::TooLarge { .. } | RecvError::Protocol { .. })), "{way}: {taken:?}");
            assert_eq!(write().unwrap_err().kind(), io::ErrorKind::BrokenPipe, "{way}");
        }
    }
}
