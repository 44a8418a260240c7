//! How a job ends: with an outcome, or because nobody wants one.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::{Cell, Job, Outcome, Stage};
use crate::error::TaskError;
use crate::pool::seat::Seat;
use crate::task::unheeded;

impl Job {
    /// Resolves it, if nothing has before.
    pub(in crate::pool) fn resolve(&self, outcome: Outcome) {
        let cell = self.cell();
        if cell.is_pending() {
            self.settle(cell, || Stage::Resolved(outcome));
        }
    }

    /// Gives the outcome up: the task need not run, or be finished. Gives the worker that has it, to be told.
    pub(in crate::pool) fn abandon(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Gone)
    }

    /// Cancels it: whoever awaits it gets `Cancelled`. Gives the worker that has it, to be told.
    pub(in crate::pool) fn cancel(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Resolved(Err(TaskError::Cancelled.into())))
    }

    fn end_early(&self, stage: Stage) -> Option<Arc<Seat>> {
        let cell = self.cell();
        let seat = match &cell.stage {
            Stage::Resolved(_) | Stage::Gone => return None,
            Stage::Sent(seat) => Some(Arc::clone(seat)),
            Stage::Queued | Stage::Assigned => None,
        };
        self.settle(cell, || stage);
        seat
    }

    /// Ends it. Then, with the lock gone, as all that is other people's code: wakes whoever waits, ends the span, and lets go of
    /// what it carried.
    ///
    /// The stage is made where it stays: to move what was just written takes longer than all else here.
    #[inline]
    fn settle(&self, mut cell: MutexGuard<'_, Cell>, stage: impl FnOnce() -> Stage) {
        self.is_over.store(true, Ordering::Release);
        if cell.is_with_no_worker() {
            // Before anybody hears of it. Where a worker has it, it is seen when it comes off that one's desk whether it was begun.
            cell.leave_ends();
        }
        cell.stage = stage();
        let how = match &cell.stage {
            Stage::Resolved(Ok(_)) => "ok",
            Stage::Resolved(Err(error)) => error.kind(),
            _ => "cancelled",
        };
        cell.span.note_outcome(how);
        let waker = cell.waker.take();
        let span = mem::take(&mut cell.span);
        let body = mem::take(&mut cell.body);
        let rest = cell.rare.as_mut().map(|rare| {
            rare.inputs = None;
            (mem::take(&mut rare.more), mem::take(&mut rare.fds))
        });
        drop(cell);
        span.end();
        // No panic of theirs must keep others from their outcome.
        if let Some(waker) = waker {
            unheeded(|| waker.wake());
        }
        drop(body);
        // Bytes that may have an owner.
        if rest.is_some() {
            unheeded(|| drop(rest));
        }
    }
}
