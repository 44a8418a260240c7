//! What a pool shows of itself.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::life::WorkerState;
use super::state::{Counts, Shared};

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
}

/// One worker of a pool.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its number in the pool; its process is called by the pool's name and this.
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
}

impl PoolStatus {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        let state = shared.state();
        let details: Vec<_> = state
            .seats
            .iter()
            .map(|seat| {
                let desk = seat.desk();
                WorkerStatus {
                    index: seat.index,
                    pid: desk.pid,
                    state: desk.state,
                    task: desk.first().map(|job| (job.name.clone(), desk.since.elapsed())),
                    ahead: desk.load().saturating_sub(1),
                    done: desk.done,
                }
            })
            .collect();
        let waiting = state.waiting.iter().filter(|job| job.is_wanted()).count();
        let ready = |worker: &&WorkerStatus| {
            matches!(worker.state, WorkerState::Idle | WorkerState::Busy | WorkerState::Draining)
        };
        Self {
            workers: details.iter().filter(ready).count(),
            busy: details.iter().filter(|worker| worker.task.is_some()).count(),
            queued: waiting + state.assigned.len() + details.iter().map(|worker| worker.ahead).sum::<usize>(),
            limit: state.target,
            counts: state.counts,
            details,
        }
    }
}
