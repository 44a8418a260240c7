//! The sending side of an end: frames go in, whoever can moves them, and each sender learns when its own has left.
//!
//! ```text
//!  send ── room? ──▶ outbox ── flush ──▶ socket           at once, by the sender, or by the first that comes
//!            │          │                                 back of several that gather, see `gather.rs`
//!            │          └─ socket full ─▶ flusher         a task of its own, see `flusher.rs`
//!            └─ wait until less than 64 KiB are under way
//! ```
//!
//! What has begun to leave moves whether or not its sender is still there or is being polled, so no dropped or forgotten
//! future can leave the peer in the middle of a frame. This file knows nothing of values.

use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::departure::Departure;
use super::line::{Attempt, Line, Mover, SINK, State, Until};
use super::socket::Socket;
use super::{background, flusher, moved};
use crate::error::SendError;
use crate::sys::socket;
use crate::task::unheeded;
use crate::wire::frame::Frame;

/// The sending side of a socket.
#[derive(Debug)]
pub(super) struct Sending {
    socket: Arc<Socket>,
    line: Mutex<Line>,
    /// How many sends were begun and have not yet let their frame in.
    pub(super) due: AtomicUsize,
}

impl Sending {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self::resume(socket, State::Open)
    }

    /// A side that goes on where another one stood; see [`hand_over`](Self::hand_over).
    pub(super) fn resume(socket: Arc<Socket>, state: State) -> Self {
        Self { socket, line: Mutex::new(Line::new(state)), due: AtomicUsize::new(0) }
    }

    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Sends a frame. Resolves when it has left.
    ///
    /// # Cancel safety
    /// Dropped before the frame was let in, it is not sent; after that it is sent whole.
    pub(super) fn send(self: &Arc<Self>, frame: Frame) -> Departure<'_> {
        Departure::new(self, frame)
    }

    /// As [`send`](Self::send), on this thread.
    pub(super) fn blocking_send(self: &Arc<Self>, frame: Frame) -> Result<(), SendError> {
        self.send(frame).block()
    }

    /// Sends a frame without waiting, and without regard to how much is under way: for small ones whose number
    /// something else bounds.
    pub(super) fn post(self: &Arc<Self>, frame: Frame) -> Result<(), SendError> {
        let mut line = self.line();
        line.check()?;
        let end = line.outbox.push(frame);
        let attempted = line.attempt(&self.socket, Until::Left(end));
        let start = attempted.is_continue() && line.appoint_flusher();
        self.release(line, start);
        attempted.break_value().unwrap_or(Ok(()))
    }

    /// Whether all that was let in has left.
    pub(super) fn has_left(&self) -> bool {
        self.line().outbox.is_empty()
    }

    /// How many bytes were let in and have not left.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.line().outbox.len()
    }

    /// Takes a ticket out of the line.
    pub(super) fn leave(&self, ticket: u64) {
        let gone = self.line().waiting.remove(&ticket);
        drop(gone);
    }

    /// Waits until a frame may be pushed; for a `Sink`.
    pub(super) fn poll_room(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.settle(cx, &mut Some(SINK), |line, socket, _| line.attempt(socket, Until::Room))
    }

    /// Lets a frame in without sending it; for a `Sink`.
    pub(super) fn push(&self, frame: Frame) -> Result<(), SendError> {
        let mut line = self.line();
        line.check()?;
        line.outbox.push(frame);
        Ok(())
    }

    /// Waits until all that was pushed has left; for a `Sink`.
    pub(super) fn poll_left(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.settle(cx, &mut Some(SINK), |line, socket, _| {
            if line.lost
                && let Err(error) = line.check()
            {
                // Nothing is under way any more, but it did not leave.
                return ControlFlow::Break(Err(error));
            }
            let end = line.outbox.pushed();
            line.attempt(socket, Until::Left(end))
        })
    }

    /// Says to the peer that nothing more will come. What is under way has left before this.
    pub(super) fn close(&self) -> Result<(), SendError> {
        let mut line = self.line();
        if line.is_open() {
            line.state = State::Closed;
            socket::end_sending(&*self.socket)?;
        }
        Ok(())
    }

    /// As [`pass_on`](Self::pass_on), when something is dropped. In a forked copy it is the original that sends what was pushed,
    /// and keeps the socket open for what it likes.
    pub(super) fn let_go(self: &Arc<Self>) -> bool {
        !self.socket.is_forked_copy() && self.pass_on()
    }

    /// Sees to it that what was pushed leaves without whoever pushed it. Says whether somebody keeps the socket open: for what
    /// is still under way, or because it has yet to notice that others have sent it.
    pub(super) fn pass_on(self: &Arc<Self>) -> bool {
        let mut line = self.line();
        if line.mover == Mover::None && !line.outbox.is_empty() {
            // As in `attempt`.
            let _ = line.flush(&self.socket);
        }
        let start = !line.outbox.is_empty() && line.appoint_flusher();
        // Of one that was moved the socket is another process's, too.
        let stays = line.mover != Mover::None && !line.moved.is_set();
        self.release(line, start);
        stays
    }

    /// Hands this side to another process, by way of `give`, with how it stands. Frames that are under way can't go along.
    pub(super) fn hand_over<R, E: serde::ser::Error>(&self, give: impl FnOnce(State) -> Result<R, E>) -> Result<R, E> {
        let mut line = self.line();
        if line.moved.is_set() {
            return Err(E::custom(moved::away()));
        }
        if !line.outbox.is_empty() {
            return Err(E::custom("a message of this end is still under way: await its send before sending the end"));
        }
        let given = give(line.state)?;
        line.moved.set();
        // A flusher whose work others have done waits for much room before it sees that, and keeps the socket open here.
        if let Some(task) = line.task.take() {
            line.mover = Mover::None;
            task.abort();
        }
        Ok(given)
    }

    /// Moves what leaves now; the flusher calls it. `Ok` ends its job.
    pub(super) fn advance(self: &Arc<Self>) -> io::Result<()> {
        let mut line = self.line();
        if line.mover != Mover::Flusher {
            return Ok(());
        }
        let before = line.outbox.sent();
        let result = line.flush(&self.socket);
        let moved = line.outbox.sent() != before;
        if result.is_ok() {
            line.mover = Mover::None;
            line.task = None;
        }
        if moved {
            flusher::moved();
        }
        self.release(line, false);
        result
    }

    /// Ends this side for a failure, and says so to everyone.
    pub(super) fn fail(self: &Arc<Self>, error: &io::Error) {
        let mut line = self.line();
        line.end(&self.socket, error);
        self.release(line, false);
    }

    /// Attempts something, and where it has to wait, sees to it that the wait ends.
    #[inline(always)]
    pub(super) fn settle(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        ticket: &mut Option<u64>,
        mut attempt: impl FnMut(&mut Line, &Socket, &Waker) -> Attempt,
    ) -> Poll<Result<(), SendError>> {
        let mut waker = None;
        let attempted = loop {
            let mut line = self.line();
            let attempted = attempt(&mut line, &self.socket, cx.waker());
            let ControlFlow::Continue(until @ (Until::Room | Until::Left(_))) = attempted else {
                self.release(line, false);
                break attempted;
            };
            // To clone a waker is other people's code, which may use this end, or panic: not under the lock. Most don't wait,
            // so it is cloned when one is to, and then tried once more.
            let Some(waker) = waker.take() else {
                self.release(line, false);
                waker = Some(cx.waker().clone());
                continue;
            };
            let former = line.wait(ticket, until, waker);
            let start = line.appoint_flusher();
            self.release(line, start);
            drop(former);
            break attempted;
        };
        match attempted {
            ControlFlow::Continue(Until::Return) => {
                // Not tokio's `yield_now`, which leaves it to the runtime: a thread of that may be blocked in this very poll.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            ControlFlow::Continue(_) => Poll::Pending,
            ControlFlow::Break(result) => Poll::Ready(result),
        }
    }

    /// Ends an access. With the line free it has the flusher begin, if it was appointed, and runs what is other people's code:
    /// wakes everyone whose wait is over, and lets go of what has left.
    ///
    /// Of those who wait for room that is all: one may never be polled again, and must not keep the room from the others.
    pub(super) fn release(self: &Arc<Self>, mut line: MutexGuard<'_, Line>, start: bool) {
        line.account();
        let is_told = mem::take(&mut line.news) && !line.waiting.is_empty();
        if !start && !is_told && line.spent.is_empty() {
            // Most often there is nothing to do.
            return;
        }
        if start {
            // It begins when the line is free. What ends it is known by then, or who hands the socket over could not.
            line.task = flusher::start(self);
        }
        let alone = start && line.task.is_none();
        let spent = mem::take(&mut line.spent);
        let mut told = Vec::new();
        if is_told {
            let mut waiting = mem::take(&mut line.waiting);
            told.extend(waiting.extract_if(.., |_, waiting| line.outcome(waiting.until).is_some()));
            line.waiting = waiting;
        }
        drop(line);
        if alone {
            flusher::start_alone(self);
        }
        for (_, told) in told {
            // They are out of the line, so a panic of one must not keep the others from it.
            unheeded(|| told.waker.wake());
        }
        let is_background = !spent.is_empty() && background::is_here();
        for bytes in spent {
            // Their owner may wait for what that thread is to do. Bytes with an owner are never said to be unique.
            if is_background && !bytes.is_unique() {
                background::let_go(bytes);
            } else {
                // As little: whoever is to move the rest would be left in the middle of it.
                unheeded(|| drop(bytes));
            }
        }
    }

    pub(super) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
