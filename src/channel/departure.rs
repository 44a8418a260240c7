//! One frame on its way out: let in, moved, and told when it has left; by a task or by a blocked thread.

use std::future::Future;
use std::mem;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::task::coop;

use super::sending::{Attempt, Line, Mover, Sending, Until, release};
use super::socket::Socket;
use super::{block, flusher};
use crate::error::SendError;
use crate::sys::socket::{self, Ready};
use crate::wire::frame::Frame;

/// A frame on its way out; see [`Sending::send`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Departure<'a> {
    sending: &'a Arc<Sending>,
    ticket: Option<u64>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Enter(Frame),
    /// These positions in the stream are its own.
    Leave(Range<u64>),
}

impl Step {
    /// Lets the frame in if there is room, and sends it.
    fn attempt(&mut self, line: &mut Line, socket: &Socket) -> Attempt {
        if let Self::Enter(frame) = self {
            match line.attempt(socket, Until::Room) {
                Err(Ok(())) => {
                    let begin = line.outbox.pushed();
                    *self = Self::Leave(begin..line.outbox.push(mem::take(frame)));
                }
                other => return other,
            }
        }
        match self {
            Self::Leave(place) => line.attempt(socket, Until::Left(place.end)),
            Self::Enter(_) => Ok(Until::Room),
        }
    }
}

impl<'a> Departure<'a> {
    pub(super) fn new(sending: &'a Arc<Sending>, frame: Frame) -> Self {
        Self { sending, ticket: None, step: Step::Enter(frame) }
    }

    /// Whether it was let in: then it leaves whole, or the stream ends.
    pub(super) fn is_in(&self) -> bool {
        matches!(self.step, Step::Leave(_))
    }

    /// Whether any of it has left.
    pub(super) fn has_begun(&self) -> bool {
        match &self.step {
            Step::Enter(_) => false,
            Step::Leave(place) => self.sending.line().outbox.sent() > place.start,
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
            let attempted = self.step.attempt(&mut line, self.sending.socket());
            let mut start = false;
            moving = attempted.is_ok() && line.mover == Mover::None && !line.congested;
            if moving {
                line.mover = Mover::Thread;
            } else if let Ok(until) = attempted {
                line.wait(&mut self.ticket, until, &waker);
                start = line.appoint_flusher();
            }
            release(line);
            if start {
                flusher::start(Arc::clone(self.sending));
            }
            match attempted {
                Err(result) => {
                    // What others have let in meanwhile needs somebody else now.
                    self.sending.let_go();
                    return result;
                }
                Ok(_) if moving => {
                    if let Err(error) = socket::wait(&**self.sending.socket(), Ready::Write) {
                        self.sending.fail(&error);
                    }
                }
                Ok(_) => thread::park(),
            }
        }
    }
}

impl Future for Departure<'_> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A socket that always has room must not keep the other tasks of this thread from running.
        let budget = ready!(coop::poll_proceed(cx));
        let Self { sending, ticket, step } = &mut *self;
        let polled = sending.settle(cx, ticket, |line, socket| step.attempt(line, socket));
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.sending.leave(ticket);
        }
    }
}
