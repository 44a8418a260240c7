//! Taking back what a worker was sent and has not begun: because another one is idle, because nobody wants it any more,
//! because the worker takes too long for what comes before it, or because it is not to be trusted with it.
//!
//! It can't be begun from then on, whatever its worker does; see `sys/ledger.rs`.

use std::cmp::Reverse;
use std::sync::Arc;

use super::counts::Ending;
use super::job::Job;
use super::life::WorkerState;
use super::seat::Seat;
use super::state::{Phase, Shared, State};
use crate::error::TaskError;

/// What a look at a worker's tasks found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Review {
    Fine,
    /// The task that it has begun is not wanted any more, or the whole pool is not.
    Unwanted,
    /// All of its tasks were taken away before it had begun one.
    Unloaded,
    /// It does not begin its task, and has had time enough.
    Stuck,
}

impl Shared {
    /// Takes the tasks that were sent ahead back from the worker that has most of them: somebody else is idle.
    pub(super) fn unload_busiest(state: &mut State) {
        let mut loads: Vec<_> = state.seats.iter().map(|seat| (seat.desk().load(), Arc::clone(seat))).collect();
        loads.sort_by_key(|(load, _)| Reverse(*load));
        // What it has done, and nobody has heard of, counts among them; so it may have nothing to give, and the next one has.
        if !loads.iter().any(|(_, seat)| Self::unload(state, seat)) {
            state.sent_ahead = false;
        }
    }

    /// Takes the tasks that were sent ahead back from all workers, for others that are to come.
    pub(super) fn unload_all(state: &mut State) {
        if state.sent_ahead {
            for seat in state.seats.clone() {
                Self::unload(state, &seat);
            }
        }
    }

    /// Takes back what a worker has ahead. Says whether there was anything.
    fn unload(state: &mut State, seat: &Arc<Seat>) -> bool {
        let mut desk = seat.desk();
        let back = if desk.load() > 1 { desk.take_back() } else { Vec::new() };
        if back.is_empty() {
            return false;
        }
        let begun = desk.load() > 0;
        drop(desk);
        Self::put_back(state, back);
        if begun {
            return true;
        }
        // It has not begun even the first of them, so that one stays.
        while let Some(job) = state.next_wanted() {
            let Err(why) = seat.desk().send(job, seat) else {
                state.after.write(Arc::clone(seat));
                break;
            };
            state.unsent(why);
        }
        seat.bell.notify_one();
        true
    }

    /// Puts tasks that were sent and not begun back into the queue.
    pub(super) fn put_back(state: &mut State, jobs: Vec<Arc<Job>>) {
        for job in jobs.into_iter().rev() {
            if job.take_back() {
                state.waiting.put_back(job);
            } else {
                state.counts.add(Ending::Cancelled);
            }
        }
    }

    /// As [`put_back`](Self::put_back), from a worker that has ended, or is about to. Where it had begun nothing the first of them
    /// may have been the reason; those behind it never are.
    pub(super) fn put_back_from(
        state: &mut State,
        mut jobs: Vec<Arc<Job>>,
        begun: bool,
        ending: Ending,
        error: impl Fn(&Job) -> TaskError,
    ) {
        if !begun && !jobs.is_empty() {
            let first = jobs.remove(0);
            // Of a chunk it is the next call that would be the reason.
            if first.bounce() || ending != Ending::Cancelled && first.fail_part(|| error(&first)) {
                state.waiting.put_back(first);
            } else {
                state.counts.add(if first.is_wanted() { ending } else { Ending::Cancelled });
                let error = error(&first);
                state.after.resolve.push((first, error));
            }
        }
        Self::put_back(state, jobs);
    }

    /// Whether a worker's task has run for longer than it may. If so it is the last one that the worker has begun, and there is none
    /// behind it that could be begun by the time that the worker is ended. `None`: it has no task.
    pub(super) fn is_too_long(self: &Arc<Self>, seat: &Arc<Seat>) -> Option<bool> {
        let mut state = self.state();
        let mut desk = seat.desk();
        let timeout = desk.first()?.timeout();
        if !timeout.is_some_and(|timeout| desk.is_too_long(timeout)) {
            return Some(false);
        }
        let back = desk.take_back();
        // With another one behind it that is begun it has ended just now, and its answer is on its way. That is so once.
        let is_last = desk.load() == 1 || !desk.excuse();
        if desk.load() == 0 {
            seat.bell.notify_one();
        }
        drop(desk);
        Self::put_back(&mut state, back);
        self.dispatch(&mut state);
        Some(is_last)
    }

    /// Takes back all that a worker has not begun, which is not to have it any more: it says what can't be. From now on it is
    /// given no task.
    pub(super) fn disown(self: &Arc<Self>, seat: &Arc<Seat>, error: impl Fn(&Job) -> TaskError) {
        let mut state = self.state();
        state.take_idle(seat);
        let mut desk = seat.desk();
        let back = desk.take_back();
        let begun = desk.load() > 0;
        drop(desk);
        Self::put_back_from(&mut state, back, begun, Ending::Died, error);
        self.dispatch(&mut state);
    }

    /// Looks whether a worker's tasks are still wanted, and not too long in coming to. If not, all that was not begun goes
    /// elsewhere, or nowhere.
    pub(super) fn review(self: &Arc<Self>, seat: &Arc<Seat>) -> Review {
        let mut state = self.state();
        if state.phase == Phase::Cancelled {
            let back = seat.desk().take_back();
            Self::put_back(&mut state, back);
            return Review::Unwanted;
        }
        let mut desk = seat.desk();
        if desk.is_late() || desk.jobs().any(|job| !job.is_wanted()) {
            let back = desk.take_back();
            drop(desk);
            Self::put_back(&mut state, back);
            self.dispatch(&mut state);
            desk = seat.desk();
        }
        if desk.is_stuck() {
            return Review::Stuck;
        }
        if desk.is_overdue() && desk.state == WorkerState::Busy {
            if desk.first().is_some_and(|job| job.stays()) {
                drop(desk);
                Self::unload(&mut state, seat);
                self.dispatch(&mut state);
                return Review::Fine;
            }
            // What it does not come to takes the next free slot; the worker keeps its own until it is heard of.
            let back = desk.recall();
            drop(desk);
            Self::put_back(&mut state, back);
            self.dispatch(&mut state);
            return Review::Fine;
        }
        match desk.first() {
            // With another one behind it that is begun, it has ended, and its answer is on its way.
            Some(job) if !job.is_wanted() && !desk.is_before_first() && (desk.load() == 1 || desk.is_long()) => {
                Review::Unwanted
            }
            None if desk.state == WorkerState::Busy => Review::Unloaded,
            _ => Review::Fine,
        }
    }
}
