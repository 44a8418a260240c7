//! How a job ends: with an outcome, or because nobody wants one.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::{Cell, Job, Outcome, Stage};
use crate::error::TaskError;
use crate::pool::seat::Seat;
use crate::task::{Answer, unheeded};
use crate::wire::held::Held;

impl Job {
    /// Resolves it, if nothing has before.
    pub(in crate::pool) fn resolve(&self, outcome: Outcome) {
        let cell = self.cell();
        if cell.is_pending() {
            match outcome {
                Ok(Answer { body, fds, fds_lost }) => self.settle(cell, Stage::Done { fds, fds_lost }, body),
                Err(error) => self.settle(cell, Stage::Failed(error), Held::default()),
            }
        }
    }

    /// Gives the outcome up: the task need not run, or be finished. Gives the worker that has it, to be told.
    pub(in crate::pool) fn abandon(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Gone)
    }

    /// Cancels it: whoever awaits it gets `Cancelled`. Gives the worker that has it, to be told.
    pub(in crate::pool) fn cancel(&self) -> Option<Arc<Seat>> {
        self.end_early(Stage::Failed(TaskError::Cancelled.into()))
    }

    fn end_early(&self, stage: Stage) -> Option<Arc<Seat>> {
        let cell = self.cell();
        let seat = match &cell.stage {
            Stage::Done { .. } | Stage::Failed(_) | Stage::Gone => return None,
            Stage::Sent(seat) => Some(Arc::clone(seat)),
            Stage::Queued | Stage::Assigned => None,
        };
        self.settle(cell, stage, Held::default());
        seat
    }

    /// Ends it, with its result, if it has one, in the place of its arguments. Then, with the lock gone, as all that is other people's
    /// code: wakes whoever waits, ends the span, and lets go of what it carried.
    #[inline]
    fn settle(&self, mut cell: MutexGuard<'_, Cell>, stage: Stage, result: Held) {
        self.is_over.store(true, Ordering::Release);
        if cell.is_with_no_worker() {
            // Before anybody hears of it. Where a worker has it, it is seen when it comes off that one's desk whether it was begun.
            cell.leave_ends();
        }
        cell.stage = stage;
        let how = match &cell.stage {
            Stage::Done { .. } => "ok",
            Stage::Failed(error) => error.kind(),
            _ => "cancelled",
        };
        cell.span.note_outcome(how);
        let waker = cell.waker.take();
        let span = mem::take(&mut cell.span);
        let body = mem::replace(&mut cell.body, result);
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
