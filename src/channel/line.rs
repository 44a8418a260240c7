//! The state of a sending side: what is under way, who moves it, and who waits for what. All of it is behind one lock, in
//! `sending.rs`, so nothing here runs other people's code.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::task::Waker;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::flusher::{self, Debt, is_fd_congestion};
use super::gather::Gathering;
use super::moved::{self, Moved};
use super::outbox::Outbox;
use super::socket::Socket;
use crate::error::SendError;
use crate::sys::socket;

/// A frame is let in while less than this many bytes are under way.
const ROOM: usize = 64 * 1024;

/// After so many writes that have found room, a socket is no longer taken for one that is now and then full. It is full with
/// some 200 to 300 small ones that nobody has read.
pub(super) const FREE: u32 = 1024;

/// The ticket of the one `Sink` that an end is; futures have tickets from 1.
pub(super) const SINK: u64 = 0;

/// What is behind the lock of a [`Sending`](super::sending::Sending).
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) outbox: Outbox,
    pub(super) gathering: Gathering,
    pub(super) state: State,
    /// Whether another process has this end now.
    pub(super) moved: Moved,
    pub(super) mover: Mover,
    /// The flusher's task for this end, while it is the mover.
    pub(super) task: Option<AbortHandle>,
    /// While the flusher is to send something.
    debt: Option<Debt<'static>>,
    /// Who waits, by ticket: in the order in which they came.
    pub(super) waiting: BTreeMap<u64, Waiting>,
    tickets: u64,
    /// Something happened since those who wait were last looked at.
    pub(super) news: bool,
    /// What stopped the last flush was not a full socket but [`is_fd_congestion`].
    pub(super) congested: bool,
    /// How many writes in a row have found room.
    free: u32,
    /// Something that was let in did not leave before the end.
    pub(super) lost: bool,
    /// Others' bytes that have left: to let go of them runs their code, once the line is free.
    pub(super) spent: Vec<Bytes>,
}

/// How the sending side stands, here and where it is sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    #[default]
    Open,
    /// Nobody can receive any more, or this end said that it is done.
    Closed,
    /// The system failed us in a way that may have cut a frame; the raw error.
    Failed(i32),
}

/// Who waits for the socket and moves what is under way, once the socket was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mover {
    #[default]
    None,
    Flusher,
    /// A thread in a blocking send. Nobody else writes meanwhile: it waits in poll(2), where nobody could tell it that
    /// its frame has left.
    Thread,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) until: Until,
    pub(super) waker: Waker,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Room,
    /// This position in the stream has left.
    Left(u64),
    /// Whoever can run now has run.
    Return,
}

/// What an attempt gives: what is still to be waited for, or how it has ended.
pub(super) type Attempt = ControlFlow<Result<(), SendError>, Until>;

impl Line {
    pub(super) fn new(state: State) -> Self {
        Self { state, ..Self::default() }
    }

    pub(super) fn check(&self) -> Result<(), SendError> {
        if self.moved.is_set() {
            return Err(moved::away().into());
        }
        match self.state {
            State::Open => Ok(()),
            State::Closed => Err(SendError::Closed),
            State::Failed(error) => Err(io::Error::from_raw_os_error(error).into()),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open && !self.moved.is_set()
    }

    /// Waits for `until`, after moving what can be moved.
    #[inline(always)]
    pub(super) fn attempt(&mut self, socket: &Socket, until: Until) -> Attempt {
        if self.is_met(until) {
            return ControlFlow::Break(Ok(()));
        }
        if self.mover != Mover::Thread && self.is_open() {
            // Whatever it says, the state and the outbox say it too.
            let _ = self.flush(socket);
        }
        self.outcome(until).map_or(ControlFlow::Continue(until), ControlFlow::Break)
    }

    fn is_met(&self, until: Until) -> bool {
        match until {
            Until::Room => self.outbox.len() < ROOM && self.is_open(),
            Until::Left(end) => self.outbox.sent() >= end,
            Until::Return => false,
        }
    }

    /// Whether what was let in last may stay for a moment.
    pub(super) fn may_gather(&self) -> bool {
        self.mover == Mover::None && self.outbox.len() < ROOM
    }

    /// How the wait ended, if it has.
    pub(super) fn outcome(&self, until: Until) -> Option<Result<(), SendError>> {
        if self.is_met(until) { Some(Ok(())) } else { self.check().err().map(Err) }
    }

    /// Sends what leaves without waiting. `WouldBlock` and [`is_fd_congestion`] mean that some is still here; any other
    /// error has ended this side.
    #[inline(always)]
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        self.gathering.end();
        let before = self.outbox.sent();
        let result = self.outbox.flush_into(socket, &mut self.spent);
        self.news |= self.outbox.sent() != before;
        self.congested = result.as_ref().is_err_and(is_fd_congestion);
        self.free = if result.is_ok() { self.free.wrapping_add(1) } else { 0 };
        if self.free % FREE == FREE - 1 {
            // Where the flusher has waited, its thread is woken each time that the peer reads.
            socket.rest_from_writing();
        }
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::WouldBlock
            && !self.congested
        {
            self.end(socket, error);
        }
        result
    }

    pub(super) fn end(&mut self, socket: &Socket, error: &io::Error) {
        if !self.is_open() {
            return;
        }
        self.state = match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => State::Closed,
            _ => State::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.lost |= !self.outbox.is_empty();
        self.outbox.abandon(&mut self.spent);
        self.mover = Mover::None;
        self.task = None;
        self.news = true;
        // A peer in the middle of a frame learns that it is cut.
        let _ = socket::end_sending(socket);
    }

    pub(super) fn appoint_flusher(&mut self) -> bool {
        let free = self.mover == Mover::None;
        if free {
            self.mover = Mover::Flusher;
        }
        free
    }

    /// An exit waits for what the flusher is to send, and no longer: others may have sent it.
    pub(super) fn account(&mut self) {
        let owes = self.mover == Mover::Flusher && !self.outbox.is_empty();
        if owes != self.debt.is_some() {
            self.debt = owes.then(flusher::owe);
        }
    }

    /// Gives what waited under this ticket before, which is dropped when the line is free: a waker is other people's code.
    #[must_use]
    pub(super) fn wait(&mut self, ticket: &mut Option<u64>, until: Until, waker: Waker) -> Option<Waiting> {
        let ticket = *ticket.get_or_insert_with(|| {
            self.tickets += 1;
            self.tickets
        });
        self.waiting.insert(ticket, Waiting { until, waker })
    }
}
