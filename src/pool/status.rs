//! What a pool shows of itself.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::counts::Counts;
use super::life::WorkerState;
use super::serving::resident_memory;
use super::state::Shared;
use super::times::Quantiles;

/// What a pool was doing when [`status`](crate::ProcessPool::status) looked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolStatus {
    /// How many workers have a process that is ready: idle, busy, or about to end.
    pub workers: usize,
    /// How many of them are running a task.
    pub busy: usize,
    /// How many tasks wait: for a slot, for a worker that is being started, or behind another on the way to a worker.
    pub queued: usize,
    /// How many workers there may be.
    pub limit: usize,
    /// Each worker, ready or not.
    pub details: Vec<WorkerStatus>,
    /// How many tasks ended in which way.
    pub counts: Counts,
    /// How long tasks waited, from their submission to their start.
    pub wait: Quantiles,
    /// How long tasks ran, also those that were ended.
    pub run: Quantiles,
}

/// One worker of a pool.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number in the pool, see [`Worker::index`](crate::Worker::index); its process is called by the pool's name and this.
    pub index: usize,
    /// Its process, if it has one that is ready.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: WorkerState,
    /// The name of the task that it runs, and for how long it has.
    pub task: Option<(Cow<'static, str>, Duration)>,
    /// How many more tasks were sent to it ahead. They run elsewhere if it does not come to them.
    pub ahead: usize,
    /// How many tasks its process has answered.
    pub done: u64,
    /// How many bytes of it are in memory (its resident set); `None` if it is not ready, has just ended, or /proc
    /// does not show it.
    pub memory: Option<u64>,
}

/// Whether there is a process that is ready, and has not been killed.
fn is_ready(state: WorkerState) -> bool {
    use WorkerState::{Busy, Draining, Idle, Stalled};
    matches!(state, Idle | Busy | Stalled | Draining)
}

impl PoolStatus {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        let state = shared.state();
        let mut details: Vec<_> = state
            .seats
            .iter()
            .map(|seat| {
                let desk = seat.desk();
                WorkerStatus {
                    index: seat.index,
                    pid: desk.pid().filter(|_| is_ready(desk.state)),
                    state: desk.state,
                    task: desk.first().map(|job| (job.name.clone(), desk.clock.since.elapsed())),
                    ahead: desk.load().saturating_sub(1),
                    done: desk.done,
                    memory: None,
                }
            })
            .collect();
        let waiting = state.waiting.iter().filter(|job| job.is_wanted()).count();
        let assigned = state.assigned.iter().filter(|job| job.is_wanted()).count();
        let (limit, counts) = (state.target, state.counts);
        drop(state);
        // Files are read without the lock. A process that has ended by now has none, unless its number is used again.
        for worker in &mut details {
            worker.memory = worker.pid.and_then(resident_memory);
        }
        let (wait, run) = shared.times.quantiles();
        Self {
            workers: details.iter().filter(|worker| is_ready(worker.state)).count(),
            busy: details.iter().filter(|worker| is_ready(worker.state) && worker.task.is_some()).count(),
            queued: waiting + assigned + details.iter().map(|worker| worker.ahead).sum::<usize>(),
            limit,
            counts,
            wait,
            run,
            details,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pool::ProcessPool;
    use crate::pool::job::{Awaits, Job, Wishes};
    use crate::pool::life::Event;
    use crate::pool::seat::Seat;

    /// Whoever subtracted one from the other got a negative number.
    #[test]
    fn no_more_workers_are_busy_than_are_ready() {
        let pool = ProcessPool::new(1);
        let seat = Seat::new(0, None);
        pool.shared().state().seats.push(Arc::clone(&seat));
        let count = || {
            let status = pool.status();
            (status.workers, status.busy)
        };
        assert_eq!(count(), (0, 0));
        seat.desk().apply(Event::Ready);
        assert_eq!(count(), (1, 0));
        let parcel = crate::task::pack(&crate::call(|()| (), ()), 1024).unwrap();
        let job = Job::new("pool", parcel, Wishes::default(), Awaits::Outcome(None), None);
        seat.give(Arc::clone(&job), false, Instant::now()).unwrap();
        assert_eq!(count(), (1, 1));
        // Its task is on its desk until it has ended.
        seat.desk().apply(Event::Kill);
        assert_eq!((count(), pool.status().details[0].task.is_some()), ((0, 0), true));
        job.abandon();
        pool.shared().state().seats.clear();
    }
}
