//! One frame on its way out: let in, moved, and told when it has left; by a task or by a blocked thread.

use std::future::Future;
use std::mem;
use std::ops::{ControlFlow, Range};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::thread;

use tokio::task::coop;

use super::block;
use super::line::{Attempt, Line, Mover, Until};
use super::sending::Sending;
use super::socket::Socket;
use crate::error::SendError;
use crate::sys::socket::{self, Ready};
use crate::wire::frame::Frame;

/// A frame on its way out; see [`Sending::send`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(super) struct Departure<'a> {
    sending: &'a Arc<Sending>,
    ticket: Option<u64>,
    step: Step,
    /// It has given its result.
    over: bool,
}

#[derive(Debug)]
enum Step {
    Enter(Frame),
    /// These positions in the stream are its own.
    Leave(Range<u64>),
    /// As `Leave`, and it has come back from letting the others come.
    Gathered(Range<u64>),
}

impl Departure<'_> {
    /// Lets the frame in if there is room, and sends it, or leaves it for a moment to those who come after it: see
    /// `gather.rs`. Without a waker, nothing could bring it back for that.
    #[inline(always)]
    fn attempt(&mut self, line: &mut Line, socket: &Socket, waker: Option<&Waker>) -> Attempt {
        if let Step::Enter(frame) = &mut self.step {
            match line.attempt(socket, Until::Room) {
                ControlFlow::Break(Ok(())) => {
                    let begin = line.outbox.pushed();
                    // It is dropped where it lies: most often its bytes are copied, and to move it took longer than that.
                    let (body, fds) = ((&[][..], &frame.body, &frame.more[..]), mem::take(&mut frame.fds));
                    let place = begin..line.outbox.push_shared(frame.kind, frame.id, body, fds);
                    let due = self.sending.due.fetch_sub(1, Ordering::Relaxed) - 1;
                    if waker.is_some_and(|waker| line.may_gather() && line.gathering.join(waker, due)) {
                        self.step = Step::Gathered(place);
                        return ControlFlow::Continue(Until::Return);
                    }
                    self.step = Step::Leave(place);
                }
                other => return other,
            }
        }
        match &self.step {
            Step::Leave(place) | Step::Gathered(place) => line.attempt(socket, Until::Left(place.end)),
            Step::Enter(_) => ControlFlow::Continue(Until::Room),
        }
    }
}

impl<'a> Departure<'a> {
    pub(super) fn new(sending: &'a Arc<Sending>, frame: Frame) -> Self {
        sending.due.fetch_add(1, Ordering::Relaxed);
        Self { sending, ticket: None, step: Step::Enter(frame), over: false }
    }

    /// Whether it was let in: then it leaves whole, or the stream ends.
    pub(super) fn is_in(&self) -> bool {
        !matches!(self.step, Step::Enter(_))
    }

    /// Whether any of it has left.
    pub(super) fn has_begun(&self) -> bool {
        match &self.step {
            Step::Enter(_) => false,
            Step::Leave(place) | Step::Gathered(place) => self.sending.line().outbox.sent() > place.start,
        }
    }

    /// Sends it on this thread, which moves what is under way if nobody does.
    pub(super) fn block(mut self) -> Result<(), SendError> {
        let waker = block::unparker();
        let mut moving = false;
        loop {
            let mut line = self.sending.line();
            if moving {
                line.mover = Mover::None;
            }
            let attempted = self.attempt(&mut line, self.sending.socket(), None);
            let (mut former, mut start) = (None, false);
            moving = attempted.is_continue() && line.mover == Mover::None && !line.congested;
            if moving {
                line.mover = Mover::Thread;
            } else if let ControlFlow::Continue(until) = attempted {
                former = line.wait(&mut self.ticket, until, waker.clone());
                start = line.appoint_flusher();
            }
            self.sending.release(line, start);
            drop(former);
            match attempted {
                ControlFlow::Break(result) => {
                    self.over = true;
                    // What others have let in meanwhile needs somebody else now.
                    self.sending.pass_on();
                    return result;
                }
                ControlFlow::Continue(_) if moving => {
                    if let Err(error) = socket::wait(&**self.sending.socket(), Ready::Write) {
                        self.sending.fail(&error);
                    }
                }
                ControlFlow::Continue(_) => thread::park(),
            }
        }
    }
}

impl Future for Departure<'_> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A socket that always has room must not keep the other tasks of this thread from running. One that has gathered has
        // let them run.
        let budget = match self.step {
            Step::Gathered(_) => None,
            Step::Enter(_) | Step::Leave(_) => Some(coop::poll_proceed(cx)),
        };
        let is_spent = matches!(budget, Some(Poll::Pending));
        if is_spent && self.is_in() {
            return Poll::Pending;
        }
        let sending = self.sending;
        let mut ticket = self.ticket;
        let polled = sending.settle(cx, &mut ticket, |line, socket, waker| self.attempt(line, socket, Some(waker)));
        self.ticket = ticket;
        if is_spent && matches!(polled, Poll::Ready(Ok(()))) {
            // It is in, as it was polled, and is sent if it is dropped now. The others have their turn.
            return Poll::Pending;
        }
        if polled.is_ready() {
            self.over = true;
            if let Some(Poll::Ready(budget)) = budget {
                budget.made_progress();
            }
        }
        polled
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.sending.leave(ticket);
        }
        if !self.is_in() {
            self.sending.due.fetch_sub(1, Ordering::Relaxed);
        } else if !self.over {
            // It may have gathered others that count on it.
            self.sending.let_go();
        }
    }
}
