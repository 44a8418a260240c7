//! The receiving end of a stream of frames: what came and is not yet taken lives here, not in a future.
//!
//! So a future that is dropped loses nothing. It does not know what the frames mean. Which fds are whose is in `batches.rs`.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};

use super::batches::{Batch, Batches};
use super::socket::{Berth, Socket};
use crate::error::RecvError;
use crate::sys::buffer::{Buffer, LARGE};
use crate::sys::socket::{self, Ready, Received, Wait};
use crate::wire::frame::{Broken, Decoder, Frame, Head, Limits};
use crate::wire::held::Held;

/// How much is read at once where no larger frame is under way.
const READ: usize = 64 * 1024;

/// The most that is read at once into a large frame.
const LARGE_READ: usize = 4 * 1024 * 1024;

/// How to wait for what a peer sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Looks again and again for so long, and sleeps in recvmsg(2) then. There it is also woken when the peer reads, as that
    /// makes room: welcome where each has a processor, as the peer often sends next, and we are up by then.
    Read { busy_poll: Duration },
    /// Sleeps in poll(2), which wakes for what comes alone: for who shares his processor with his peer.
    Poll,
}

/// How the stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// It ended between two frames.
    Ended,
    /// It ended inside a frame.
    Cut,
    /// What came is no frame; nothing behind it can be trusted.
    Broken(Broken),
}

fn would_block<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A body in memory of its own, of which pages are taken as bytes come: it is read straight to where it stays.
#[derive(Debug)]
struct Large {
    buffer: Buffer,
    len: usize,
}

impl Large {
    fn missing(&self) -> usize {
        self.len - self.buffer.bytes().len()
    }
}

/// Frames that are arriving.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: BytesMut,
    batches: Batches,
    limits: Limits,
    decoder: Decoder,
    /// The body of a large frame that is under way.
    large: Option<Large>,
    state: State,
    /// Whether the last read took all that was there: the socket then says when there is more, and to try once more before
    /// that would only cost a call.
    drained: bool,
}

impl Inbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Self::resume(limits, BytesMut::new(), VecDeque::new())
    }

    /// An inbox that goes on where another one stood; see [`unread`](Self::unread).
    pub(super) fn resume(limits: Limits, bytes: BytesMut, batches: VecDeque<Batch>) -> Self {
        let decoder = Decoder::new(limits.body);
        Self { bytes, batches: Batches(batches), limits, decoder, large: None, state: State::Open, drained: false }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Bounds what comes from now on.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.decoder.set_max_body(limits.body);
    }

    /// What has arrived and is not yet taken. An end of the stream can be seen again, a breach can't: that is an error.
    pub(super) fn unread(&self) -> Result<(BytesMut, &VecDeque<Batch>), RecvError> {
        match self.state {
            State::Broken(broken) => Err(broken.into()),
            State::Open | State::Ended | State::Cut => Ok((self.decoder.unread(self.here()), &self.batches.0)),
        }
    }

    /// The next frame, or `None` once the stream has ended between two frames. After the end and after an error, the
    /// same again.
    #[inline(always)]
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
    ) -> Poll<Result<Option<Frame>, RecvError>> {
        self.poll_frame_at(cx, socket, &mut Berth::default())
    }

    /// As [`poll_frame`](Self::poll_frame), for who has a berth.
    #[inline(always)]
    pub(crate) fn poll_frame_at(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
        berth: &mut Berth,
    ) -> Poll<Result<Option<Frame>, RecvError>> {
        loop {
            if let Some(frame) = self.buffered().transpose() {
                return Poll::Ready(frame.map(Some));
            }
            if self.state != State::Open {
                return Poll::Ready(self.end());
            }
            let read = ready!(socket.poll_read(cx, berth, self.drained, || {
                let received = self.read_or(socket, Wait::No)?;
                Ok((received, self.drained))
            }));
            self.took(read)?;
        }
    }

    /// Waits until nothing more comes than is in the socket, without taking any of it.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>, socket: &Socket) -> Poll<io::Result<()>> {
        // What comes meanwhile is not told of again.
        self.drained = false;
        socket.poll_end(cx)
    }

    /// As [`poll_frame`](Self::poll_frame).
    ///
    /// # Cancel safety
    /// Cancel-safe: what came stays in the inbox.
    pub(crate) async fn frame(&mut self, socket: &Socket) -> Result<Option<Frame>, RecvError> {
        poll_fn(|cx| self.poll_frame(cx, socket)).await
    }

    /// As [`poll_frame`](Self::poll_frame), on this thread.
    pub(crate) fn blocking_frame(&mut self, socket: &Socket) -> Result<Option<Frame>, RecvError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.state != State::Open {
                return self.end();
            }
            let read = socket.block_when(Ready::Read, || self.read(socket));
            self.took(read)?;
        }
    }

    /// As [`blocking_frame`](Self::blocking_frame), for a socket that nobody else reads: puts the next frame there, and says whether
    /// there was one. Calls `before_waiting` each time that nothing is left to do but wait.
    #[inline(always)]
    pub(crate) fn frame_or_wait(
        &mut self,
        socket: &Socket,
        patience: Patience,
        frame: &mut Frame,
        mut before_waiting: impl FnMut() -> io::Result<()>,
    ) -> Result<bool, RecvError> {
        loop {
            if self.buffered_into(frame)? {
                return Ok(true);
            }
            if self.state != State::Open {
                return self.end().map(|_| false);
            }
            let mut read = Err(io::ErrorKind::WouldBlock.into());
            if !self.drained {
                read = self.read(socket);
            }
            if would_block(&read) {
                before_waiting()?;
                match patience {
                    Patience::Read { busy_poll } => read = self.read_soon(socket, busy_poll),
                    Patience::Poll => socket::wait(socket, Ready::Read)?,
                }
            }
            if would_block(&read) {
                read = self.read_or(socket, Wait::Yes);
            }
            self.took(read)?;
        }
    }

    /// The next frame if it has arrived already, without waiting: `Ok(None)` says nothing about the end.
    pub(crate) fn try_frame(&mut self, socket: &Socket) -> Result<Option<Frame>, RecvError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.state != State::Open {
                return Ok(None);
            }
            match self.read(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                read => self.took(read)?,
            }
        }
    }

    /// Whether the end of the stream was read, or it has broken.
    pub(super) fn is_over(&self) -> bool {
        self.state != State::Open
    }

    /// The next frame that lies in the buffer whole.
    #[inline(always)]
    fn buffered(&mut self) -> Result<Option<Frame>, RecvError> {
        let mut frame = Frame::default();
        Ok(if self.buffered_into(&mut frame)? { Some(frame) } else { None })
    }

    /// Puts it there, and says whether there is one. `false` says nothing about the end.
    #[inline(always)]
    pub(crate) fn buffered_into(&mut self, frame: &mut Frame) -> Result<bool, RecvError> {
        // Of what had come before it is known that it is not whole.
        if self.bytes.is_empty() && self.large.is_none() || matches!(self.state, State::Broken(_)) {
            return Ok(false);
        }
        if self.large.is_some() {
            let Some(head) = self.large_frame(&mut frame.body) else { return self.begin().map(|()| false) };
            return self.finish(&head, frame).map(|()| true);
        }
        match self.decoder.decode_into(&mut self.bytes, &mut frame.body) {
            Ok(Some(head)) => self.finish(&head, frame).map(|()| true),
            Ok(None) => self.begin().map(|()| false),
            Err(broken) => Err(self.broken(broken)),
        }
    }

    /// Gives a frame whose body is here all else that it has.
    #[inline(always)]
    fn finish(&mut self, head: &Head, frame: &mut Frame) -> Result<(), RecvError> {
        (frame.kind, frame.id) = (head.kind, head.id);
        let claimed = self.batches.claim(head, self.limits.fds);
        (frame.fds, frame.fds_lost) = claimed.map_err(|reason| self.refuse(reason))?;
        Ok(())
    }

    /// The large frame, if its body is here whole.
    fn large_frame(&mut self, body: &mut Held) -> Option<Head> {
        let Large { buffer, .. } = self.large.take_if(|large| large.missing() == 0)?;
        *body = buffer.into_bytes().into();
        self.decoder.skip_body()
    }

    /// Refuses the frame that is under way if it has no place here, before the rest of it is awaited, and makes room for a large
    /// one.
    fn begin(&mut self) -> Result<(), RecvError> {
        let head = self.decoder.begun();
        if let Err(reason) = self.batches.check(head, self.limits.fds) {
            return Err(self.refuse(reason));
        }
        if let Some(&Head { len, .. }) = head
            && len >= LARGE
            && self.large.is_none()
        {
            let mut buffer = Buffer::new(len)?;
            buffer.put_slice(&self.bytes);
            self.bytes.clear();
            self.large = Some(Large { buffer, len });
        }
        Ok(())
    }

    /// How long the body is of which the header has come, and it has not.
    pub(crate) fn awaited(&self) -> usize {
        self.decoder.begun().map_or(0, |head| head.len)
    }

    /// What is here of the frame that is under way.
    fn here(&self) -> &[u8] {
        self.large.as_ref().map_or(&self.bytes, |large| large.buffer.bytes())
    }

    /// Reads once, without waiting.
    fn read(&mut self, socket: &Socket) -> io::Result<Received> {
        self.read_or(socket, Wait::No)
    }

    /// Reads as soon as something is there, and for so long at most. In between, whoever else has work for this core has it:
    /// our peer, where there is one core only.
    fn read_soon(&mut self, socket: &Socket, window: Duration) -> io::Result<Received> {
        let mut read = Err(io::ErrorKind::WouldBlock.into());
        if window.is_zero() {
            return read;
        }
        let begin = Instant::now();
        while would_block(&read) && begin.elapsed() < window {
            thread::yield_now();
            read = self.read(socket);
        }
        read
    }

    #[inline(always)]
    fn read_or(&mut self, socket: &Socket, wait: Wait) -> io::Result<Received> {
        let (read, limit) = if let Some(large) = &mut self.large {
            let limit = large.missing().min(LARGE_READ);
            (socket::recv_into(socket, &mut large.buffer, limit, wait), limit)
        } else {
            // The buffer is only grown in proportion to what has come, whatever a header announced.
            let missing = self.decoder.missing(&self.bytes);
            let limit = if missing > READ { missing.min(self.bytes.len().max(READ)) } else { READ };
            self.bytes.reserve(limit);
            (socket::recv_into(socket, &mut self.bytes, limit, wait), limit)
        };
        self.drained = would_block(&read) || matches!(&read, Ok(received) if received.has_drained(limit));
        read
    }

    /// Notes what a read gave.
    fn took(&mut self, read: io::Result<Received>) -> Result<(), RecvError> {
        match read {
            Ok(Received { len: 0, .. }) => self.ended(),
            // The peer went with bytes of ours unread. What it had sent has been read before this.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.ended(),
            Ok(Received { fds, fds_lost: lost, .. }) if !fds.is_empty() || lost => {
                let within = self.decoder.held(self.here());
                self.batches.push(Batch { fds, lost, within }, self.limits.fds);
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.state = if self.decoder.at_boundary(&self.bytes) { State::Ended } else { State::Cut };
        self.batches.0.clear();
    }

    /// Ends the stream for what the peer did.
    pub(super) fn refuse(&mut self, reason: &'static str) -> RecvError {
        self.broken(Broken::Protocol(reason))
    }

    fn broken(&mut self, broken: Broken) -> RecvError {
        self.state = State::Broken(broken);
        self.bytes = BytesMut::new();
        self.large = None;
        self.batches.0.clear();
        broken.into()
    }

    fn end(&self) -> Result<Option<Frame>, RecvError> {
        match self.state {
            State::Open | State::Ended => Ok(None),
            State::Cut => Err(RecvError::Truncated),
            State::Broken(broken) => Err(broken.into()),
        }
    }
}

#[cfg(test)]
mod tests;
