//! Who waits for a job: for its slot, and for its outcome.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Cell, Job, Outcome, Stage};
use crate::error::TaskError;
use crate::pool::seat::Seat;
use crate::task::Answer;

impl Job {
    /// Waits until it has a slot. An error: it has ended without one.
    pub(in crate::pool) fn poll_assigned(&self, cx: &mut Context<'_>) -> Poll<Result<(), Box<TaskError>>> {
        let mut waker = Some(cx.waker().clone());
        let mut cell = self.cell();
        match &mut cell.stage {
            Stage::Queued => {
                mem::swap(&mut cell.waker, &mut waker);
                Poll::Pending
            }
            Stage::Failed(_) if !self.had_slot.load(Ordering::Relaxed) => Poll::Ready(cell.take_outcome().map(|_| ())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Nobody will wait for it, and it is to run all the same.
    pub(in crate::pool) fn detach(&self) {
        let waker = self.cell().waker.take();
        drop(waker);
    }

    /// The worker that has it.
    pub(in crate::pool) fn seat(&self) -> Option<Arc<Seat>> {
        match &self.cell().stage {
            Stage::Sent(seat) => Some(Arc::clone(seat)),
            _ => None,
        }
    }

    /// Who waits for the outcome of what a worker has, and is to be woken.
    pub(in crate::pool) fn take_waker(&self) -> Option<Waker> {
        let mut cell = self.cell();
        if matches!(cell.stage, Stage::Sent(_)) { cell.waker.take() } else { None }
    }

    /// Waits for the outcome, and takes it in where that is possible here.
    #[inline(always)]
    pub(in crate::pool) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        // To clone a waker, and to drop one, is somebody else's code, which may use this task: not under the lock, which goes first.
        let mut waker = None;
        let mut cell = self.cell();
        if let Some(seat) = cell.news() {
            // Nobody is woken for what is taken in here and now.
            waker = cell.waker.take();
            drop(cell);
            seat.drive_here();
            cell = self.cell();
        }
        if cell.is_pending() {
            drop(cell);
            waker = Some(cx.waker().clone());
            cell = self.cell();
        }
        if cell.is_pending() {
            mem::swap(&mut cell.waker, &mut waker);
            return Poll::Pending;
        }
        Poll::Ready(cell.take_outcome())
    }

    /// The outcome, for who alone has it.
    #[inline]
    pub(in crate::pool) fn into_outcome(self) -> Outcome {
        let mut cell = self.cell.into_inner().unwrap_or_else(PoisonError::into_inner);
        cell.take_outcome()
    }
}

impl Cell {
    #[inline(always)]
    fn take_outcome(&mut self) -> Outcome {
        match mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Done { fds, fds_lost } => Ok(Answer { body: mem::take(&mut self.body), fds, fds_lost }),
            Stage::Failed(error) => Err(error),
            _ => Err(TaskError::Cancelled.into()),
        }
    }

    /// The worker that has it, if there is something to be heard of that.
    fn news(&self) -> Option<Arc<Seat>> {
        match &self.stage {
            Stage::Sent(seat) if seat.has_news() => Some(Arc::clone(seat)),
            _ => None,
        }
    }
}
