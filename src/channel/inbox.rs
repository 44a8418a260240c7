//! The receiving end of a stream of frames: what came and is not yet taken lives here, not in a future.
//!
//! So a future that is dropped loses nothing. It does not know what the frames mean.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use super::socket::Socket;
use crate::error::RecvError;
use crate::sys::socket::{self, MAX_FDS_PER_CALL, Ready};
use crate::wire::frame::{Decoder, Frame};

/// How much is read at once where no larger frame is under way.
const READ: usize = 64 * 1024;

/// The most that is read at once into a large frame.
const LARGE_READ: usize = 4 * 1024 * 1024;

/// How the stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// It ended between two frames.
    Ended,
    /// It ended inside a frame.
    Cut,
    /// What came is no frame; nothing behind it can be trusted.
    Broken(Breach),
}

/// What the peer did, so that it can be said again at each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breach {
    TooLarge { len: u64, max: u64 },
    Protocol(&'static str),
}

impl From<Breach> for RecvError {
    fn from(breach: Breach) -> Self {
        match breach {
            Breach::TooLarge { len, max } => Self::TooLarge { len, max },
            Breach::Protocol(reason) => Self::Protocol { reason },
        }
    }
}

/// Frames that are arriving.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: BytesMut,
    fds: VecDeque<OwnedFd>,
    decoder: Decoder,
    state: State,
}

impl Inbox {
    pub(crate) fn new(max_body: usize) -> Self {
        Self { bytes: BytesMut::new(), fds: VecDeque::new(), decoder: Decoder::new(max_body), state: State::Open }
    }

    /// The next frame, or `None` once the stream has ended between two frames. After the end and after an error, the
    /// same again.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
    ) -> Poll<Result<Option<Frame>, RecvError>> {
        loop {
            if let Some(frame) = self.buffered().transpose() {
                return Poll::Ready(frame.map(Some));
            }
            if self.state != State::Open {
                return Poll::Ready(self.end());
            }
            let read = ready!(socket.poll_when(cx, Ready::Read, || self.read(socket)));
            self.took(read)?;
        }
    }

    /// As [`poll_frame`](Self::poll_frame).
    ///
    /// # Cancel safety
    /// Cancel-safe: what came stays in the inbox.
    pub(crate) async fn frame(&mut self, socket: &Socket) -> Result<Option<Frame>, RecvError> {
        std::future::poll_fn(|cx| self.poll_frame(cx, socket)).await
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

    /// The next frame that lies in the buffer whole.
    fn buffered(&mut self) -> Result<Option<Frame>, RecvError> {
        if matches!(self.state, State::Broken(_)) {
            return Ok(None);
        }
        match self.decoder.decode(&mut self.bytes) {
            Ok(None) => Ok(None),
            Ok(Some((head, body))) => {
                // The fds of a frame come with its first byte at the latest, so they are here before its last one.
                if self.fds.len() < head.fds {
                    return Err(self.broken(Breach::Protocol("announced file descriptors did not come")));
                }
                let fds = self.fds.drain(..head.fds).collect();
                Ok(Some(Frame { kind: head.kind, id: head.id, body, fds }))
            }
            Err(RecvError::TooLarge { len, max }) => Err(self.broken(Breach::TooLarge { len, max })),
            Err(RecvError::Protocol { reason }) => Err(self.broken(Breach::Protocol(reason))),
            Err(other) => Err(other),
        }
    }

    /// Reads once. The buffer is only grown in proportion to what has come, whatever a header announced.
    fn read(&mut self, socket: &Socket) -> io::Result<usize> {
        let missing = self.decoder.missing(&self.bytes);
        let want = if missing > READ { missing.min(LARGE_READ).min(self.bytes.len().max(READ)) } else { READ };
        self.bytes.reserve(want);
        socket::recv_into(socket, &mut self.bytes, want, &mut self.fds)
    }

    /// Notes what a read gave.
    fn took(&mut self, read: io::Result<usize>) -> Result<(), RecvError> {
        let ended = match read {
            Ok(0) => true,
            // The peer went with bytes of ours unread. What it had sent has been read before this.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
            Ok(_) => false,
            Err(error) => return Err(error.into()),
        };
        if ended {
            self.state = if self.decoder.at_boundary(&self.bytes) { State::Ended } else { State::Cut };
            self.fds.clear();
        } else if self.fds.len() > MAX_FDS_PER_CALL {
            return Err(self.broken(Breach::Protocol("file descriptors that no frame announced")));
        }
        Ok(())
    }

    fn broken(&mut self, breach: Breach) -> RecvError {
        self.state = State::Broken(breach);
        self.bytes = BytesMut::new();
        self.fds.clear();
        breach.into()
    }

    fn end(&self) -> Result<Option<Frame>, RecvError> {
        match self.state {
            State::Open | State::Ended => Ok(None),
            State::Cut => Err(RecvError::Truncated),
            State::Broken(breach) => Err(breach.into()),
        }
    }
}
