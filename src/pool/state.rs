//! What a pool's handles, futures and supervisors share: its settings, its permits, and its one lock.
//!
//! Nothing here decides anything: see `dispatch.rs` and `recall.rs` for which task goes where, `lifecycle.rs` for when workers
//! come and go, and `after.rs` for what is done once the lock is gone. The order of locks is: this state, then a seat's desk,
//! then a job's cell.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::runtime::{Handle, Id};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::after::{After, Locked};
use super::builder::Settings;
use super::changes::Changes;
use super::counts::{Counts, Ending};
use super::glance::Expected;
use super::job::{Job, Unsent};
use super::life::WorkerState;
use super::queue::Queue;
use super::seat::Seat;
use super::times::Times;
use crate::error::{SpawnError, TaskError};
use crate::sys::affinity::allowed;

/// The shortest queue that is swept.
const SWEEP_AT: usize = 64;

/// So many runtimes are known by their numbers.
const KNOWN: usize = 32;

/// For each processor so many workers get their tasks from who has these, at once. A pool whose tasks wait for something else has
/// several, and to be told by a supervisor takes some microseconds longer.
const CROWD: usize = 4;

/// What all handles, futures and supervisors of a pool share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// A permit a task under way. Permits are forgotten when taken and added when the task ends.
    pub(super) permits: Semaphore,
    pub(super) times: Times,
    state: Mutex<State>,
    /// How many tasks were submitted. Who changes it holds the lock of the state.
    submitted: AtomicU64,
    /// That something has changed which somebody may wait for, see [`when`](Self::when).
    pub(super) changes: Changes,
    /// Until when somebody looks for an outcome, see [`Look`](super::look::Look).
    pub(super) look: Mutex<Option<Instant>>,
    /// Whether there was more than one processor when the last worker was ready: else nobody looks.
    pub(super) may_look: AtomicBool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Tasks without a slot, oldest first. Bounded by about twice the futures that callers hold, each of which owns its
    /// task: see `sweep_at`.
    pub(super) waiting: Queue,
    /// How long `waiting` may get before the tasks that nobody wants any more are taken out of it.
    pub(super) sweep_at: usize,
    /// Tasks with a slot, for which no worker is ready yet.
    pub(super) assigned: VecDeque<Arc<Job>>,
    /// Every worker, by its index.
    pub(super) seats: Vec<Arc<Seat>>,
    /// How many supervisors there are: one a seat, and those of seats that were given up and have printed what was not told yet.
    pub(super) supervisors: usize,
    /// Those that wait for a task; the last one worked last.
    pub(super) idle: Vec<Arc<Seat>>,
    /// How many workers there may be.
    pub(super) target: usize,
    /// How many may be busy before [a caller leaves it to their supervisors](Self::is_crowded) to write.
    crowd: usize,
    /// Permits to swallow, because the pool shrank while they were out.
    pub(super) surplus: usize,
    /// How many starts in a row have failed, and when the last one did.
    pub(super) failures: u32,
    pub(super) failed_at: Instant,
    pub(super) last_cause: Option<Arc<SpawnError>>,
    pub(super) counts: Counts,
    /// Whether some worker may have tasks that it has not begun.
    pub(super) sent_ahead: bool,
    /// The runtime that the last task came from, which is that of the next new seat; if it has ended, any where a worker lives.
    pub(super) runtime: Option<Handle>,
    /// Those that tasks came from last, and that have what a worker needs.
    pub(super) known: VecDeque<Id>,
    /// Slots that were taken for tasks that are still being encoded.
    pub(super) reserved: usize,
    /// The runtimes in which somebody looks at the workers from time to time: see `watch.rs`.
    pub(super) watched: Vec<Id>,
    /// Whether somebody looks for workers that are silent, as there may be some that have tasks ahead.
    pub(super) watched_ahead: bool,
    /// What is to be done once the lock is gone.
    pub(super) after: After,
    /// When the answer is to be expected to the task that an idle worker was given last.
    pub(super) expected: Expected,
    /// When it was in this access to the state, if somebody has asked: see [`now`](Self::now).
    pub(super) now: Option<Instant>,
}

/// How the pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// It takes nothing new, and finishes what it has.
    Closing,
    /// It ends everything at once.
    Cancelled,
}

/// Why a ready process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It had nothing to do for the pool's idle timeout.
    TooLongIdle,
    /// It died before it had begun a task. The next start waits, or a process that dies at once would be started on and on.
    Fruitless { status: Option<ExitStatus>, pid: u32 },
    /// Anything else: it was recycled, killed, or died.
    Other,
}

/// What a supervisor does after its process has ended or could not be started.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Restart,
    Leave,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        let target = settings.workers.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            permits: Semaphore::new(target),
            times: Times::new(),
            state: Mutex::new(State {
                phase: Phase::Open,
                waiting: Queue::default(),
                sweep_at: SWEEP_AT,
                assigned: VecDeque::new(),
                seats: Vec::new(),
                supervisors: 0,
                idle: Vec::new(),
                target,
                crowd: allowed().map_or(usize::MAX, |processors| CROWD.saturating_mul(processors)),
                surplus: 0,
                failures: 0,
                failed_at: Instant::now(),
                last_cause: None,
                counts: Counts::default(),
                sent_ahead: false,
                reserved: 0,
                runtime: None,
                known: VecDeque::new(),
                watched: Vec::new(),
                watched_ahead: false,
                after: After::default(),
                expected: Expected::Sometime,
                now: None,
            }),
            submitted: AtomicU64::new(0),
            changes: Changes::default(),
            look: Mutex::default(),
            may_look: AtomicBool::new(false),
            settings,
        })
    }

    pub(super) fn state(self: &Arc<Self>) -> Locked<'_> {
        Locked::new(self, self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of the task that was submitted last.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// The number of one that is submitted now, by who holds the lock.
    pub(super) fn next_number(&self, _state: &mut State) -> u64 {
        let number = self.submitted() + 1;
        self.submitted.store(number, Ordering::Relaxed);
        number
    }

    pub(super) fn take_permit(&self) -> bool {
        self.permits.try_acquire().map(SemaphorePermit::forget).is_ok()
    }

    pub(super) fn release(&self, state: &mut State) {
        if state.surplus > 0 {
            state.surplus -= 1;
        } else {
            self.permits.add_permits(1);
        }
    }
}

impl State {
    /// How many workers have no process yet that is ready.
    pub(super) fn starting(&self) -> usize {
        self.seats.iter().filter(|seat| seat.desk().state == WorkerState::Starting).count()
    }

    /// How many workers live, and are not about to end. One that is starting may never be ready.
    pub(super) fn staying(&self) -> usize {
        use WorkerState::{Busy, Idle, Stalled};
        self.seats.iter().filter(|seat| matches!(seat.desk().state, Idle | Busy | Stalled)).count()
    }

    /// Whether so many workers are busy that the next one to get a task is not woken by who has that.
    ///
    /// A worker that is woken where all processors have something to do takes the one of who wakes it, more often than not, and is
    /// done with a tiny task before that goes on, who then finds it idle and wakes it again: each task costs two switches, and
    /// nothing gathers, neither tasks nor answers. The supervisors write when the caller lets them, or on another thread meanwhile.
    pub(super) fn is_crowded(&self) -> bool {
        self.seats.len() - self.idle.len() > self.crowd
    }

    /// Whether there is nothing to wait for before all workers are ready: none is being started, and none that has nothing to do any
    /// more is about to end, in whose place another one may be.
    pub(super) fn is_settled(&self) -> bool {
        use WorkerState::{Dead, Draining, Dying, Starting};
        let is_on_its_way = |seat: &Arc<Seat>| {
            let desk = seat.desk();
            matches!(desk.state, Starting | Dying | Dead) || desk.state == Draining && desk.load() == 0
        };
        !self.seats.iter().any(is_on_its_way)
    }

    /// That runtime was looked at, which costs more than a task does, and has what a worker needs.
    pub(super) fn know(&mut self, runtime: Id) {
        self.known.truncate(KNOWN - 1);
        self.known.push_front(runtime);
    }

    /// Counts what a worker has answered, and lets its chunks go on.
    pub(super) fn take_in(&mut self, answered: &mut Counts, unfinished: impl IntoIterator<Item = Arc<Job>>) {
        self.counts.take_in(answered);
        self.resume(unfinished);
    }

    /// Puts chunks that are to go on back into the queue.
    fn resume(&mut self, unfinished: impl IntoIterator<Item = Arc<Job>>) {
        for job in unfinished {
            if self.phase == Phase::Cancelled {
                // It was nowhere to be found when the others were cancelled.
                self.counts.add(Ending::Cancelled);
                self.after.resolve.push((job, TaskError::Cancelled));
            } else {
                self.waiting.put_back(job);
            }
        }
    }

    /// What time it is. It stands still for as long as the lock is held: to look at the clock takes longer than most of what is done
    /// under it.
    pub(super) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Whether who submitted a task last is in the runtime of this worker's supervisor.
    pub(super) fn is_nearby(&self, seat: &Seat) -> bool {
        self.runtime.as_ref().is_some_and(|runtime| seat.is_in(runtime.id()))
    }

    /// A task was given to a worker: from now on somebody looks whether it comes to it, in the runtime of its supervisor.
    pub(super) fn watch(&mut self, seat: &Seat) {
        if let Some(runtime) = &seat.runtime
            && !self.watched.contains(&runtime.id())
        {
            self.watched.push(runtime.id());
            self.after.watch.push(runtime.clone());
        }
    }

    /// Nobody looks any more in that runtime.
    pub(super) fn unwatch(&mut self, runtime: Id) {
        self.watched.retain(|&watched| watched != runtime);
    }

    /// Some worker has tasks ahead, and may answer them without a word.
    pub(super) fn watch_ahead(&mut self) {
        self.sent_ahead = true;
        if !self.watched_ahead {
            self.watched_ahead = true;
            self.after.watch_ahead = true;
        }
    }

    /// Whether a task waits that somebody wants done.
    pub(super) fn has_work(&self) -> bool {
        self.assigned.iter().chain(self.waiting.iter()).any(|job| job.is_wanted())
    }

    /// Whether a process that is not ready yet is of no use any more.
    pub(super) fn needs_no_start(&self) -> bool {
        match self.phase {
            // There are to be fewer workers than there are, and those that live are enough.
            Phase::Open => self.seats.len() > self.target && self.staying() >= self.target,
            Phase::Closing => !self.has_work(),
            Phase::Cancelled => true,
        }
    }

    /// A task was not sent, and is in no queue any more.
    pub(super) fn unsent(&mut self, why: Unsent) {
        match why {
            Unsent::Unwanted => self.counts.add(Ending::Cancelled),
            Unsent::Failed(job, error) => {
                self.counts.add(Ending::Failed);
                self.after.resolve.push((job, error));
            }
        }
    }

    /// Takes a worker out of those that wait for a task. `false`: it is not one of them.
    pub(super) fn take_idle(&mut self, seat: &Arc<Seat>) -> bool {
        let before = self.idle.len();
        self.idle.retain(|idle| !Arc::ptr_eq(idle, seat));
        before != self.idle.len()
    }

    /// Takes the tasks that were given up out of the front of the queue.
    pub(super) fn drop_unwanted(&mut self) {
        while self.waiting.pop_unwanted().is_some() {
            self.counts.add(Ending::Cancelled);
        }
    }

    /// Takes the next task that somebody wants out of the queue, for a slot.
    pub(super) fn next_wanted(&mut self) -> Option<Arc<Job>> {
        while let Some(job) = self.waiting.pop() {
            // Whether somebody wants it is seen when it is sent, which is next if nobody is to be told of its slot.
            if !job.wants_slot && !self.idle.is_empty() || job.assign(&mut self.after.wake) {
                return Some(job);
            }
            self.counts.add(Ending::Cancelled);
        }
        None
    }

    /// Takes the tasks that were given up out of the queue. Each time the queue may then grow to twice what is left, so a
    /// task costs a constant number of looks.
    pub(super) fn sweep(&mut self) {
        self.counts.cancelled += self.waiting.sweep() as u64;
        self.sweep_at = SWEEP_AT.max(2 * self.waiting.len());
    }
}

#[cfg(test)]
mod tests;
