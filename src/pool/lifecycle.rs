//! When workers come and go: starts that fail, processes that end, closing, cancelling, resizing.
//!
//! What happens to a worker is decided here, under the pool's lock; the supervisor does it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::counts::{Counts, Ending};
use super::job::Job;
use super::life::{Event, WorkerState};
use super::seat::Seat;
use super::state::{End, Next, Phase, Shared, State};
use crate::error::{SpawnError, TaskError};

impl Shared {
    /// A process is ready.
    pub(super) fn started(self: &Arc<Self>, seat: &Arc<Seat>) {
        let mut state = self.state();
        seat.desk().apply(Event::Ready);
        state.failures = 0;
        state.last_cause = None;
        Self::ring_surplus(&state);
        state.after.changed = true;
    }

    /// Counts what a worker has answered that is given no more tasks, and lets chunks go on elsewhere.
    pub(super) fn take_in(self: &Arc<Self>, answered: &mut Counts, unfinished: impl IntoIterator<Item = Arc<Job>>) {
        let mut state = self.state();
        state.take_in(answered, unfinished);
        self.dispatch(&mut state);
    }

    /// A worker's process has ended: counts what it had still answered, resolves the tasks that it had begun, and puts
    /// those that it had not back into the queue. Says whether it had ever begun one.
    pub(super) fn lost(
        self: &Arc<Self>,
        seat: &Arc<Seat>,
        answered: &mut Counts,
        unfinished: impl IntoIterator<Item = Arc<Job>>,
        ending: Ending,
        error: impl Fn(&Job) -> TaskError,
    ) -> bool {
        let mut state = self.state();
        state.take_in(answered, unfinished);
        let mut desk = seat.desk();
        desk.apply(Event::Ended);
        let (begun, rest) = desk.take_all();
        let worked = desk.done > 0 || !begun.is_empty();
        if let Some(pid) = desk.pid() {
            self.times.note(desk.clock.since, desk.clock.since.elapsed(), begun.iter().map(|job| &**job), pid);
        }
        if std::mem::take(&mut desk.holds_permit) {
            self.release(&mut state);
        }
        desk.clear(&mut state.after.spent);
        drop(desk);
        Self::put_back_from(&mut state, rest, !begun.is_empty(), ending, &error);
        for job in begun.into_iter().rev() {
            if ending == Ending::Died && job.take_retry() {
                state.waiting.put_back(job);
            } else if ending != Ending::Cancelled && job.fail_part(|| error(&job)) {
                state.counts.add(ending);
                state.waiting.put_back(job);
            } else {
                state.counts.add(ending);
                let error = error(&job);
                state.after.resolve.push((job, error));
            }
        }
        self.dispatch(&mut state);
        worked
    }

    /// Takes a worker that is idle for too long out of the pool. `false`: it was given a task in this moment, or is one
    /// of those that stay.
    pub(super) fn withdraw_idle(self: &Arc<Self>, seat: &Arc<Seat>) -> bool {
        let mut state = self.state();
        if state.staying() <= self.settings.min_workers || !state.take_idle(seat) {
            return false;
        }
        seat.desk().apply(Event::Retire);
        true
    }

    /// A ready process is about to be ended, or has ended: from now on it is given no task.
    pub(super) fn withdraw(self: &Arc<Self>, seat: &Arc<Seat>) {
        self.state().take_idle(seat);
    }

    /// A ready process has ended. Says whether another one takes its place.
    pub(super) fn ended(self: &Arc<Self>, seat: &Arc<Seat>, end: End) -> Next {
        let mut state = self.state();
        if let End::Fruitless { status, pid } = end {
            // For `start`, which would otherwise wait for workers that are never ready at the same time.
            state.last_cause = Some(Arc::new(SpawnError::Exited { status, pid }));
            state.after.changed = true;
        }
        let wanted = match state.phase {
            // What waits for a slot, too: it may be that of a task which is still being encoded.
            Phase::Open if end == End::TooLongIdle => state.seats.len() <= state.target && state.has_work(),
            Phase::Open => state.seats.len() <= state.target,
            Phase::Closing => state.has_work(),
            Phase::Cancelled => false,
        };
        if wanted {
            seat.desk().restart();
            state.counts.restarts += 1;
            Next::Restart
        } else {
            self.leave(&mut state, seat);
            Next::Leave
        }
    }

    /// A start failed. Past the restart limit the pool is broken, and what waits learns why.
    pub(super) fn start_failed(self: &Arc<Self>, seat: &Arc<Seat>, cause: Arc<SpawnError>) -> Next {
        let mut state = self.state();
        {
            // Nothing is kept of a process that is gone until there is another one.
            let mut desk = seat.desk();
            desk.clear(&mut state.after.spent);
            desk.restart();
        }
        if state.needs_no_start() {
            // It was given up, or may as well have been.
            self.leave(&mut state, seat);
            return Next::Leave;
        }
        if matches!(*cause, SpawnError::Cancelled) {
            // It was given up, and what for has changed since.
            return Next::Restart;
        }
        // However long they took: a start that fails slowly, again and again, must not keep its tasks for ever.
        state.failures = state.failures.saturating_add(1);
        state.failed_at = Instant::now();
        // An end in the start task that is gone says less than how the task went that had it.
        let says_less = matches!(*cause, SpawnError::Encode(_))
            && matches!(state.last_cause.as_deref(), Some(SpawnError::StartTask(_)));
        if !says_less {
            state.last_cause = Some(cause);
        }
        // For `start`, whether it is tried again or not.
        state.after.changed = true;
        let over = state.failures > self.settings.restart_limit.0;
        let wanted = match state.phase {
            Phase::Open => true,
            Phase::Closing => state.has_work(),
            Phase::Cancelled => false,
        };
        if wanted && !over {
            return Next::Restart;
        }
        self.leave(&mut state, seat);
        Next::Leave
    }

    /// Why no worker can live at the moment: the restart limit was passed within its window. After that starts count anew.
    pub(super) fn broken(&self, state: &mut State) -> Option<Arc<SpawnError>> {
        let (limit, window) = self.settings.restart_limit;
        if state.failures <= limit {
            return None;
        }
        if state.failed_at.elapsed() > window {
            state.failures = 0;
            return None;
        }
        state.last_cause.clone()
    }

    /// A seat is given up; if it was the last one, nobody is left to do what waits.
    pub(super) fn leave(&self, state: &mut State, seat: &Arc<Seat>) {
        Self::remove(state, seat);
        if state.seats.is_empty() {
            let cause = state.last_cause.clone();
            for _ in 0..state.assigned.len() {
                self.release(state);
            }
            let jobs: Vec<_> = state.assigned.drain(..).chain(state.waiting.take()).collect();
            for job in jobs {
                let error = no_worker(cause.as_ref());
                let is_cancelled = matches!(error, TaskError::Cancelled) || !job.is_wanted();
                state.counts.add(if is_cancelled { Ending::Cancelled } else { Ending::Failed });
                state.after.resolve.push((job, error));
            }
        }
    }

    fn remove(state: &mut State, seat: &Arc<Seat>) {
        state.seats.retain(|other| !Arc::ptr_eq(other, seat));
        state.idle.retain(|other| !Arc::ptr_eq(other, seat));
        state.after.changed = true;
    }

    /// A supervisor was dropped in the middle: its runtime has ended. The tasks that its worker had begun end with it. The others
    /// go on where the last task came from, if that is another runtime, or else in the workers that are left in others.
    pub(super) fn abandoned(self: &Arc<Self>, seat: &Arc<Seat>) {
        let mut state = self.state();
        let mut desk = seat.desk();
        let (begun, rest) = desk.take_all();
        if desk.holds_permit {
            self.release(&mut state);
        }
        desk.clear(&mut state.after.spent);
        drop(desk);
        state.counts.cancelled += begun.len() as u64;
        state.after.resolve.extend(begun.into_iter().map(|job| (job, TaskError::Cancelled)));
        Self::put_back(&mut state, rest);
        // If that was the last one, there is none until somebody submits from another, or looks at workers in one: see `watch.rs`.
        state.runtime.take_if(|last| seat.is_in(last.id()));
        if state.runtime.is_some() && state.phase != Phase::Cancelled {
            Self::remove(&mut state, seat);
            self.dispatch(&mut state);
            self.open_seats(&mut state);
            return;
        }
        state.last_cause = Some(Arc::new(SpawnError::Cancelled));
        self.leave(&mut state, seat);
        // Nobody starts a worker for more than that.
        if !state.idle.is_empty() {
            self.dispatch(&mut state);
        }
    }

    /// A supervisor has ended, and with it all that was left of its worker.
    pub(super) fn supervisor_ended(self: &Arc<Self>) {
        self.state().supervisors -= 1;
        self.changes.tell();
    }

    /// Takes nothing new any more.
    pub(super) fn begin_close(self: &Arc<Self>) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        // What nobody wants must not keep the idle ones.
        state.sweep();
        Self::retire_unneeded(&mut state);
        for seat in &state.seats {
            seat.bell.notify_one();
        }
        state.after.changed = true;
    }

    /// Resolves all that waits, and has every worker killed.
    pub(super) fn begin_cancel(self: &Arc<Self>) {
        let mut state = self.state();
        state.phase = Phase::Cancelled;
        let mut jobs = Vec::from(state.waiting.take());
        while let Some(job) = state.assigned.pop_front() {
            self.release(&mut state);
            jobs.push(job);
        }
        state.counts.cancelled += jobs.len() as u64;
        let mut processes = Vec::new();
        for seat in &state.seats {
            let desk = seat.desk();
            jobs.extend(desk.jobs().cloned());
            processes.extend(desk.child().map(|child| (child.clone(), desk.load() == 0)));
            drop(desk);
            seat.bell.notify_one();
        }
        drop(state);
        for job in jobs {
            job.cancel();
        }
        // Here, and not by the supervisors alone: their runtime may be one that nothing drives any more. A grace is for tasks.
        let grace = self.settings.cancel_grace;
        for (process, is_idle) in processes {
            if is_idle || grace.is_zero() {
                let _ = process.signal_group(libc::SIGKILL);
            } else {
                process.kill_group_in(grace);
            }
        }
        self.changes.tell();
    }

    /// Sets how many workers there may be. Idle ones retire at once, busy ones after their task.
    pub(super) fn resize(self: &Arc<Self>, workers: usize) {
        let workers = workers.min(Semaphore::MAX_PERMITS);
        let mut state = self.state();
        let before = std::mem::replace(&mut state.target, workers);
        if workers > before {
            let more = workers - before;
            let owed = state.surplus.min(more);
            state.surplus -= owed;
            self.permits.add_permits(more - owed);
            Self::unload_all(&mut state);
            self.dispatch(&mut state);
            self.open_seats(&mut state);
        } else {
            let fewer = before - workers;
            state.surplus += fewer - self.permits.forget_permits(fewer);
            let excess = state.staying().saturating_sub(workers);
            Self::retire_idle(&mut state, excess);
            Self::ring_surplus(&state);
        }
    }

    /// Has those that are starting look whether they are still needed, if there are to be fewer workers.
    fn ring_surplus(state: &State) {
        if state.seats.len() > state.target {
            for seat in state.seats.iter().filter(|seat| seat.desk().state == WorkerState::Starting) {
                seat.bell.notify_one();
            }
        }
    }

    /// While the pool closes, idle workers end as soon as no task waits.
    pub(super) fn retire_unneeded(state: &mut State) {
        if state.phase == Phase::Closing && state.waiting.is_empty() && state.assigned.is_empty() {
            Self::retire_idle(state, usize::MAX);
        }
    }

    /// Has up to `count` idle workers retire, the one that has been idle longest first.
    fn retire_idle(state: &mut State, count: usize) {
        let count = count.min(state.idle.len());
        for seat in state.idle.drain(..count) {
            seat.desk().apply(Event::Retire);
            seat.bell.notify_one();
        }
    }
}

/// Whether a start that failed had got so far that there was a process. Where it had not, a try costs next to nothing.
pub(super) fn had_a_process(cause: &SpawnError) -> bool {
    !matches!(cause, SpawnError::Io(_) | SpawnError::Directory { .. } | SpawnError::Executable(_))
}

fn no_worker(cause: Option<&Arc<SpawnError>>) -> TaskError {
    match cause {
        Some(cause) if !matches!(**cause, SpawnError::Cancelled) => {
            TaskError::Broken(Box::new(SpawnError::Worker(Arc::clone(cause))))
        }
        _ => TaskError::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::ProcessPool;

    /// It was counted off a second time, so that the other one's start was one too few.
    #[test]
    fn a_worker_that_has_ended_and_is_not_started_again_yet_does_not_count_as_starting() {
        let pool = ProcessPool::new(2);
        let shared = pool.shared();
        let (ended, starting) = {
            let mut state = shared.state();
            Shared::open_seat(&mut state);
            Shared::open_seat(&mut state);
            // Nobody is to start them.
            state.after.supervise.clear();
            (Arc::clone(&state.seats[0]), Arc::clone(&state.seats[1]))
        };
        shared.started(&ended);
        shared.lost(&ended, &mut Counts::default(), [], Ending::Died, |_| TaskError::Cancelled);
        shared.abandoned(&ended);
        assert_eq!(shared.state().starting(), 1);
        shared.started(&starting);
        assert_eq!(shared.state().starting(), 0);
    }
}
