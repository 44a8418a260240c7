//! Which task goes to which worker, and when workers come and go: the pool's one lock.
//!
//! Nothing here waits. Tasks wait in `waiting` for a permit of the semaphore, which bounds what is under way; with a
//! permit they go to the worker that was idle last, or wait in `assigned` for one that is being started. The order of
//! locks is: this state, then a seat's desk, then a job's cell.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::builder::Settings;
use super::job::Job;
use super::life::{Event, WorkerState};
use super::seat::Seat;
use super::supervisor;
use crate::error::{SpawnError, TaskError};

/// The shortest queue that is swept.
const SWEEP_AT: usize = 64;

/// What all handles, futures and supervisors of a pool share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    /// A permit a task under way. Permits are forgotten when taken and added when the task ends.
    permits: Semaphore,
    state: Mutex<State>,
    /// Rings when something changed that `start`, `close` or `cancel` may wait for.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Tasks without a slot, oldest first. Bounded by about twice the futures that callers hold, each of which owns its
    /// task: see `sweep_at`.
    pub(super) waiting: VecDeque<Arc<Job>>,
    /// How long `waiting` may get before the tasks that nobody wants any more are taken out of it.
    sweep_at: usize,
    /// Tasks with a slot, for which no worker is ready yet.
    pub(super) assigned: VecDeque<Arc<Job>>,
    /// Every worker that has a supervisor.
    pub(super) seats: Vec<Arc<Seat>>,
    /// Those that wait for a task; the last one worked last.
    idle: Vec<Arc<Seat>>,
    /// How many of `seats` have no ready process.
    pub(super) starting: usize,
    /// How many workers there may be.
    pub(super) target: usize,
    /// Permits to swallow, because the pool shrank while they were out.
    surplus: usize,
    next_index: usize,
    /// When starts failed lately, oldest first; at most one more than the restart limit.
    failures: VecDeque<Instant>,
    pub(super) last_cause: Option<Arc<SpawnError>>,
    pub(super) counts: Counts,
    /// Whether some worker may have tasks that it has not begun.
    sent_ahead: bool,
    /// The runtime that the last task came from; supervisors of new seats run there.
    runtime: Option<Handle>,
    /// What is to be done once the lock is gone.
    after: After,
}

/// What would run other people's code, which must not happen under the lock.
#[derive(Debug, Default)]
struct After {
    supervise: Vec<Arc<Seat>>,
    resolve: Vec<(Arc<Job>, TaskError)>,
    wake: Vec<Waker>,
}

impl After {
    fn is_empty(&self) -> bool {
        self.supervise.is_empty() && self.resolve.is_empty() && self.wake.is_empty()
    }
}

/// The state, locked. When it is dropped, the lock goes first and then what it left to do is done.
pub(super) struct Locked<'a> {
    shared: &'a Arc<Shared>,
    state: Option<MutexGuard<'a, State>>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("only drop takes it")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("only drop takes it")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        if state.after.is_empty() {
            return;
        }
        let After { supervise, resolve, wake } = std::mem::take(&mut state.after);
        let runtime = state.runtime.clone();
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        for (job, error) in resolve {
            job.resolve(Err(error));
        }
        for seat in supervise {
            supervisor::spawn(runtime.as_ref(), Arc::clone(self.shared), seat);
        }
    }
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

/// How many tasks ended in which way, since the pool was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Gave a result.
    pub done: u64,
    /// Panicked, or had arguments or a result that could not be sent.
    pub failed: u64,
    /// Lost their worker.
    pub died: u64,
    /// Ran too long.
    pub timed_out: u64,
    /// Were cancelled after they were submitted.
    pub cancelled: u64,
    /// Processes that were started in the place of one that ended.
    pub restarts: u64,
}

impl Counts {
    fn add(&mut self, ending: Ending) {
        *match ending {
            Ending::Done => &mut self.done,
            Ending::Failed => &mut self.failed,
            Ending::Died => &mut self.died,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Cancelled => &mut self.cancelled,
        } += 1;
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done,
    Failed,
    Died,
    TimedOut,
    Cancelled,
}

/// Why a ready process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It had nothing to do for the pool's idle timeout.
    TooLongIdle,
    /// It died before it had begun a task. The next start waits, or a process that dies at once would be started on and on.
    Fruitless,
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
            state: Mutex::new(State {
                phase: Phase::Open,
                waiting: VecDeque::new(),
                sweep_at: SWEEP_AT,
                assigned: VecDeque::new(),
                seats: Vec::new(),
                idle: Vec::new(),
                starting: 0,
                target,
                surplus: 0,
                next_index: 0,
                failures: VecDeque::new(),
                last_cause: None,
                counts: Counts::default(),
                sent_ahead: false,
                runtime: None,
                after: After::default(),
            }),
            changed: Notify::new(),
            settings,
        })
    }

    pub(super) fn state(self: &Arc<Self>) -> Locked<'_> {
        Locked { shared: self, state: Some(self.state.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Takes a task in, and sends it if a slot is free.
    pub(super) fn submit(self: &Arc<Self>, job: Arc<Job>) -> Result<(), TaskError> {
        let mut state = self.state();
        self.admit(&mut state)?;
        if state.waiting.len() >= state.sweep_at {
            state.sweep();
        }
        state.waiting.push_back(job);
        self.dispatch(&mut state);
        Ok(())
    }

    /// Takes a slot for a task that would not wait for one. `false`: there is none free.
    pub(super) fn try_reserve(self: &Arc<Self>) -> Result<bool, TaskError> {
        let mut state = self.state();
        self.admit(&mut state)?;
        Ok(state.waiting.is_empty() && self.take_permit())
    }

    /// Gives a slot back that was not used.
    pub(super) fn unreserve(self: &Arc<Self>) {
        let mut state = self.state();
        self.release(&mut state);
        self.dispatch(&mut state);
    }

    /// Sends a task for which a slot was taken.
    pub(super) fn submit_reserved(self: &Arc<Self>, job: &Arc<Job>) {
        let mut state = self.state();
        if job.assign(&mut state.after.wake) {
            self.place(&mut state, Arc::clone(job));
        } else {
            self.release(&mut state);
        }
    }

    /// Whether the pool takes tasks.
    fn admit(&self, state: &mut State) -> Result<(), TaskError> {
        if state.phase != Phase::Open {
            return Err(TaskError::Closed);
        }
        let Ok(runtime) = Handle::try_current() else {
            return Err(SpawnError::Io(std::io::Error::other("not in a tokio runtime")).into());
        };
        if state.runtime.as_ref().is_none_or(|known| known.id() != runtime.id()) {
            state.runtime = Some(runtime);
        }
        match self.broken(state) {
            Some(cause) if state.ready() == 0 => Err(TaskError::Broken(Box::new(cause))),
            _ => Ok(()),
        }
    }

    /// Sends waiting tasks for as long as there are slots.
    pub(super) fn dispatch(self: &Arc<Self>, state: &mut State) {
        while let Some(job) = state.waiting.front() {
            if !job.is_wanted() {
                state.waiting.pop_front();
                state.counts.add(Ending::Cancelled);
                continue;
            }
            if !self.take_permit() {
                return;
            }
            let job = state.waiting.pop_front().expect("it was at the front, and the lock is held");
            if job.assign(&mut state.after.wake) {
                self.place(state, job);
            } else {
                self.release(state);
            }
        }
    }

    /// Gives a task with a slot to a worker: the one that was idle last, or one that is still to be started.
    fn place(self: &Arc<Self>, state: &mut State, job: Arc<Job>) {
        if let Some(seat) = state.idle.pop() {
            if !seat.give(&job) {
                state.idle.push(seat);
                self.release(state);
            }
            return;
        }
        state.assigned.push_back(job);
        // Where starts fail without end, the workers that live do what there is.
        if !state.seats.is_empty() && self.broken(state).is_some() {
            return;
        }
        while state.starting < state.assigned.len() && state.seats.len() < state.target {
            Self::open_seat(state);
        }
    }

    /// Starts all workers.
    pub(super) fn warm_up(self: &Arc<Self>) -> Result<(), SpawnError> {
        let mut state = self.state();
        match self.admit(&mut state) {
            Ok(()) => {}
            Err(TaskError::Spawn(error)) => return Err(error),
            Err(_) => return Err(state.last_cause.clone().map_or(SpawnError::Cancelled, SpawnError::Worker)),
        }
        // What failed before is no failure of this start.
        state.last_cause = None;
        while state.seats.len() < state.target {
            Self::open_seat(&mut state);
        }
        Ok(())
    }

    fn open_seat(state: &mut State) {
        let seat = Seat::new(state.next_index);
        state.next_index += 1;
        state.seats.push(Arc::clone(&seat));
        state.starting += 1;
        state.after.supervise.push(seat);
    }

    /// A worker is ready: gives it a task, or lets it wait, or tells it to end.
    pub(super) fn next_task(self: &Arc<Self>, seat: &Arc<Seat>) -> Turn {
        self.turn(&mut self.state(), seat)
    }

    /// A worker has answered tasks. If it has none left, or is to get more ahead, it gets them; a worn one ends instead.
    pub(super) fn answered(self: &Arc<Self>, seat: &Arc<Seat>, endings: &[Ending], worn: bool) -> Turn {
        let mut state = self.state();
        for &ending in endings {
            state.counts.add(ending);
        }
        let surplus = state.seats.len() > state.target && state.staying() > state.target;
        let mut desk = seat.desk();
        let over = worn || surplus || desk.state == WorkerState::Draining || state.phase == Phase::Cancelled;
        if over {
            let back = desk.take_back();
            Self::put_back(&mut state, back);
        }
        if desk.load() > 0 {
            if worn || surplus {
                desk.apply(Event::Retire);
            }
            drop(desk);
            if over {
                self.dispatch(&mut state);
            } else {
                self.send_ahead(&mut state, seat);
            }
            return Turn::Busy;
        }
        desk.apply(Event::Replied);
        if std::mem::take(&mut desk.holds_permit) {
            self.release(&mut state);
        }
        let retires = worn || desk.state == WorkerState::Draining;
        if retires {
            desk.apply(Event::Retire);
        }
        drop(desk);
        if retires {
            self.dispatch(&mut state);
            return Turn::Retire;
        }
        self.turn(&mut state, seat)
    }

    /// What an idle worker does next.
    fn turn(self: &Arc<Self>, state: &mut State, seat: &Arc<Seat>) -> Turn {
        if state.phase == Phase::Cancelled {
            return Turn::End;
        }
        if state.seats.len() > state.target && state.staying() > state.target {
            // From now on it is none of those that stay, which the next one that asks has to know.
            seat.desk().apply(Event::Retire);
            self.dispatch(state);
            return Turn::Retire;
        }
        while let Some(job) = state.assigned.pop_front() {
            if seat.give(&job) {
                // Tasks that were given up in between have freed their slots.
                self.dispatch(state);
                self.send_ahead(state, seat);
                return Turn::Busy;
            }
            self.release(state);
        }
        if state.waiting.is_empty() && state.sent_ahead {
            Self::unload_busiest(state);
        }
        state.idle.push(Arc::clone(seat));
        self.dispatch(state);
        if !state.idle.iter().any(|idle| Arc::ptr_eq(idle, seat)) {
            self.send_ahead(state, seat);
            return Turn::Busy;
        }
        if state.phase == Phase::Closing {
            state.take_idle(seat);
            return Turn::Retire;
        }
        self.changed.notify_waiters();
        Turn::Idle
    }

    /// Sends a busy worker as many of the waiting tasks as keep it busy for a moment, in one write.
    ///
    /// Never more than its share: what one worker has ahead, another would have to wait for.
    fn send_ahead(&self, state: &mut State, seat: &Arc<Seat>) {
        if state.waiting.is_empty() {
            return;
        }
        let mut desk = seat.desk();
        let mut room = desk.room().min(state.waiting.len().div_ceil(2 * state.target));
        if let Some(most) = self.settings.max_tasks {
            room = room
                .min(usize::try_from(most.saturating_sub(desk.done)).unwrap_or(usize::MAX).saturating_sub(desk.load()));
        }
        let mut any = false;
        while room > 0
            && let Some(job) = state.waiting.pop_front_if(|job| job.may_go_ahead() || !job.is_wanted())
        {
            if desk.send(&job, seat) {
                room -= 1;
                any = true;
            } else {
                state.counts.add(Ending::Cancelled);
            }
        }
        if any {
            state.sent_ahead = true;
            if !desk.write() {
                seat.bell.notify_one();
            }
        }
    }

    /// Takes the tasks that were sent ahead back from the worker that has most of them: somebody else is idle.
    fn unload_busiest(state: &mut State) {
        let Some(seat) = state.seats.iter().max_by_key(|seat| seat.desk().load()).cloned() else { return };
        let mut desk = seat.desk();
        let back = if desk.load() > 1 { desk.take_back() } else { Vec::new() };
        if back.is_empty() {
            state.sent_ahead = false;
            return;
        }
        let begun = desk.load() > 0;
        drop(desk);
        Self::put_back(state, back);
        if begun {
            return;
        }
        // It has not begun even the first of them, so that one stays.
        while let Some(job) = state.waiting.pop_front() {
            let mut desk = seat.desk();
            if desk.send(&job, &seat) {
                desk.write();
                break;
            }
        }
        seat.bell.notify_one();
    }

    /// Puts tasks that were sent and not begun back at the head of the queue.
    fn put_back(state: &mut State, jobs: Vec<Arc<Job>>) {
        for job in jobs.into_iter().rev() {
            if job.take_back() {
                state.waiting.push_front(job);
            } else {
                state.counts.add(Ending::Cancelled);
            }
        }
    }

    /// Looks whether a worker's tasks are still wanted. Those that were not begun and are not wanted go; if there are any,
    /// all that was not begun goes elsewhere.
    pub(super) fn review(self: &Arc<Self>, seat: &Arc<Seat>) -> Review {
        let mut state = self.state();
        if state.phase == Phase::Cancelled {
            return Review::Unwanted;
        }
        let mut desk = seat.desk();
        if desk.jobs().any(|job| !job.is_wanted()) {
            let back = desk.take_back();
            drop(desk);
            Self::put_back(&mut state, back);
            self.dispatch(&mut state);
            desk = seat.desk();
        }
        match desk.first() {
            Some(job) if !job.is_wanted() => Review::Unwanted,
            None if desk.state == WorkerState::Busy => Review::Unloaded,
            _ => Review::Fine,
        }
    }

    /// A process is ready.
    pub(super) fn started(self: &Arc<Self>) {
        let mut state = self.state();
        state.starting -= 1;
        state.failures.clear();
        state.last_cause = None;
        self.changed.notify_waiters();
    }

    /// A worker's process has ended: counts what it had still answered, resolves the tasks that it had begun, and puts
    /// those that it had not back at the head of the queue. Says whether it had ever begun one.
    pub(super) fn lost(
        self: &Arc<Self>,
        seat: &Arc<Seat>,
        answered: &[Ending],
        ending: Ending,
        error: impl Fn(&Job) -> TaskError,
    ) -> bool {
        let mut state = self.state();
        for &ending in answered {
            state.counts.add(ending);
        }
        let mut desk = seat.desk();
        desk.apply(Event::Ended);
        let (begun, rest) = desk.take_all();
        let worked = desk.done > 0 || !begun.is_empty();
        if std::mem::take(&mut desk.holds_permit) {
            self.release(&mut state);
        }
        desk.clear();
        drop(desk);
        // Where nothing was begun, the first task may have been the reason; those behind it never are.
        let suspect = begun.is_empty();
        for (place, job) in rest.into_iter().enumerate().rev() {
            let again = if suspect && place == 0 { job.bounce() } else { job.take_back() };
            if again {
                state.waiting.push_front(job);
            } else {
                state.counts.add(if job.is_wanted() { ending } else { Ending::Cancelled });
                let error = error(&job);
                state.after.resolve.push((job, error));
            }
        }
        for job in begun.into_iter().rev() {
            if ending == Ending::Died && job.take_retry() {
                state.waiting.push_front(job);
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
        let wanted = match state.phase {
            Phase::Open if end == End::TooLongIdle => !state.assigned.is_empty(),
            Phase::Open => state.seats.len() <= state.target,
            Phase::Closing => state.has_work(),
            Phase::Cancelled => false,
        };
        if wanted {
            state.starting += 1;
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
        let now = Instant::now();
        let (limit, window) = self.settings.restart_limit;
        state.failures.push_back(now);
        while state.failures.front().is_some_and(|&at| now.duration_since(at) > window) {
            state.failures.pop_front();
        }
        state.last_cause = Some(cause);
        let over = state.failures.len() > limit as usize;
        let wanted = match state.phase {
            Phase::Open => true,
            Phase::Closing => state.has_work(),
            Phase::Cancelled => false,
        };
        if wanted && !over {
            return Next::Restart;
        }
        while state.failures.len() > limit as usize + 1 {
            state.failures.pop_front();
        }
        state.starting -= 1;
        self.leave(&mut state, seat);
        Next::Leave
    }

    /// Why no worker can live at the moment: the restart limit is reached within its window.
    fn broken(&self, state: &State) -> Option<Arc<SpawnError>> {
        let (limit, window) = self.settings.restart_limit;
        let recent = state.failures.iter().filter(|at| at.elapsed() <= window).count();
        if recent > limit as usize { state.last_cause.clone() } else { None }
    }

    /// A seat is given up; if it was the last one, nobody is left to do what waits.
    fn leave(&self, state: &mut State, seat: &Arc<Seat>) {
        state.seats.retain(|other| !Arc::ptr_eq(other, seat));
        state.idle.retain(|other| !Arc::ptr_eq(other, seat));
        if state.seats.is_empty() {
            let cause = state.last_cause.clone();
            for _ in 0..state.assigned.len() {
                self.release(state);
            }
            let jobs: Vec<_> = state.assigned.drain(..).chain(state.waiting.drain(..)).collect();
            let failed = jobs.into_iter().map(|job| (job, no_worker(cause.as_ref())));
            state.after.resolve.extend(failed);
        }
        self.changed.notify_waiters();
    }

    /// A supervisor was dropped in the middle: its runtime has ended.
    pub(super) fn abandoned(self: &Arc<Self>, seat: &Arc<Seat>) {
        let mut state = self.state();
        let mut desk = seat.desk();
        if desk.state == WorkerState::Starting {
            state.starting = state.starting.saturating_sub(1);
        }
        let (begun, rest) = desk.take_all();
        if desk.holds_permit {
            self.release(&mut state);
        }
        desk.clear();
        drop(desk);
        state.after.resolve.extend(begun.into_iter().chain(rest).map(|job| (job, TaskError::Cancelled)));
        state.last_cause = Some(Arc::new(SpawnError::Cancelled));
        self.leave(&mut state, seat);
    }

    /// Takes nothing new any more.
    pub(super) fn begin_close(self: &Arc<Self>) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        if state.waiting.is_empty() && state.assigned.is_empty() {
            Self::retire_idle(&mut state, usize::MAX);
        }
        for seat in &state.seats {
            seat.bell.notify_one();
        }
        self.changed.notify_waiters();
    }

    /// Resolves all that waits, and has every worker killed.
    pub(super) fn begin_cancel(self: &Arc<Self>) {
        let mut state = self.state();
        state.phase = Phase::Cancelled;
        let mut jobs: Vec<_> = state.waiting.drain(..).collect();
        while let Some(job) = state.assigned.pop_front() {
            self.release(&mut state);
            jobs.push(job);
        }
        state.counts.cancelled += jobs.len() as u64;
        for seat in &state.seats {
            let desk = seat.desk();
            jobs.extend(desk.jobs().cloned());
            drop(desk);
            seat.bell.notify_one();
        }
        drop(state);
        for job in jobs {
            job.cancel();
        }
        self.changed.notify_waiters();
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
            self.dispatch(&mut state);
        } else {
            let fewer = before - workers;
            state.surplus += fewer - self.permits.forget_permits(fewer);
            let excess = state.staying().saturating_sub(workers);
            Self::retire_idle(&mut state, excess);
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

    fn take_permit(&self) -> bool {
        self.permits.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    fn release(&self, state: &mut State) {
        if state.surplus > 0 {
            state.surplus -= 1;
        } else {
            self.permits.add_permits(1);
        }
    }
}

impl State {
    /// How many workers have a ready process.
    pub(super) fn ready(&self) -> usize {
        self.seats.len() - self.starting
    }

    /// How many workers are not about to end in order.
    fn staying(&self) -> usize {
        self.seats.iter().filter(|seat| seat.desk().state != WorkerState::Draining).count()
    }

    /// Whether a task waits that somebody wants done.
    fn has_work(&self) -> bool {
        self.assigned.iter().chain(&self.waiting).any(|job| job.is_wanted())
    }

    /// Whether a process that is not ready yet is of no use any more.
    pub(super) fn needs_no_start(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closing => !self.has_work(),
            Phase::Cancelled => true,
        }
    }

    /// Takes a worker out of those that wait for a task. `false`: it is not one of them.
    fn take_idle(&mut self, seat: &Arc<Seat>) -> bool {
        let before = self.idle.len();
        self.idle.retain(|idle| !Arc::ptr_eq(idle, seat));
        before != self.idle.len()
    }

    /// Takes the tasks that were given up out of the queue. Each time the queue may then grow to twice what is left, so a
    /// task costs a constant number of looks.
    fn sweep(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|job| job.is_wanted());
        self.counts.cancelled += (before - self.waiting.len()) as u64;
        self.sweep_at = SWEEP_AT.max(2 * self.waiting.len());
    }
}

/// What a look at a worker's tasks found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Review {
    Fine,
    /// The task that it has begun is not wanted any more, or the whole pool is not.
    Unwanted,
    /// All of its tasks were taken away before it had begun one.
    Unloaded,
}

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Busy,
    Idle,
    Retire,
    End,
}

fn no_worker(cause: Option<&Arc<SpawnError>>) -> TaskError {
    match cause {
        Some(cause) if !matches!(**cause, SpawnError::Cancelled) => TaskError::Broken(Box::new(Arc::clone(cause))),
        _ => TaskError::Cancelled,
    }
}
