//! Which task goes to which worker.
//!
//! Nothing here waits. Tasks wait in `waiting` for a permit of the semaphore, which bounds what runs at once; with a permit
//! they go to the worker that was idle last, or wait in `assigned` for one that is being started. A busy worker is sent more
//! of those that wait, as many as keep it busy for a moment; what it has not begun is taken back when somebody else is idle.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::Handle;

use super::after::Locked;
use super::counts::Counts;
use super::glance::Expected;
use super::job::{Job, Unsent};
use super::life::{Event, WorkerState};
use super::lifecycle::had_a_process;
use super::seat::Seat;
use super::state::{Phase, Shared, State};
use super::supervisor::LAST_PAUSE;
use crate::error::{SpawnError, TaskError};

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Busy,
    Idle,
    Retire,
    End,
}

impl Shared {
    /// Takes a task in, and sends it if a slot is free.
    ///
    /// Gives whether its answer is [to be looked for](super::glance).
    pub(super) fn submit(self: &Arc<Self>, job: Arc<Job>) -> Result<bool, TaskError> {
        let mut state = self.state();
        self.admit(&mut state)?;
        if state.waiting.len() >= state.sweep_at {
            state.sweep();
        }
        self.stamp(&mut state, &job);
        state.waiting.push(job);
        state.expected = Expected::Sometime;
        self.dispatch(&mut state);
        let glances = self.is_worth_a_glance(&state);
        // Here, and not by who drops it: see `sys/socket.rs`.
        state.unlock().carry_out();
        Ok(glances)
    }

    /// Whether the answer to a task that was submitted just now is to be looked for.
    fn is_worth_a_glance(&self, state: &State) -> bool {
        let is_soon = match state.expected {
            Expected::Sometime => false,
            Expected::Soon => true,
            Expected::SoonHere => self.may_look.load(Ordering::Relaxed),
        };
        is_soon && self.has_one_task(state)
    }

    /// Whether there is one task under way, which is with a worker, and none that waits.
    fn has_one_task(&self, state: &State) -> bool {
        state.waiting.is_empty() && state.assigned.is_empty() && self.permits.available_permits() + 1 == state.target
    }

    fn stamp(&self, state: &mut State, job: &Job) {
        let number = self.next_number(state);
        job.set_number(number);
        self.times.stamp(job, state.waiting.len(), number, || state.now());
    }

    /// Takes a slot for a task that would not wait for one. `false`: there is none free.
    pub(super) fn try_reserve(self: &Arc<Self>) -> Result<bool, TaskError> {
        let mut state = self.state();
        self.admit(&mut state)?;
        let reserved = state.waiting.is_empty() && self.take_slot(&mut state);
        state.reserved += usize::from(reserved);
        Ok(reserved)
    }

    /// Takes a slot, if there is one, or if a task has one that nobody wants any more.
    fn take_slot(&self, state: &mut State) -> bool {
        self.take_permit() || self.drop_unwanted_assigned(state) && self.take_permit()
    }

    /// Takes the slots of tasks that were given up before their worker was ready. Says whether there were any.
    fn drop_unwanted_assigned(&self, state: &mut State) -> bool {
        let before = state.assigned.len();
        if before == 0 {
            return false;
        }
        state.assigned.retain(|job| job.is_wanted());
        let dropped = before - state.assigned.len();
        for _ in 0..dropped {
            self.give_up(state, Unsent::Unwanted);
        }
        dropped > 0
    }

    /// Gives a slot back that was not used.
    pub(super) fn unreserve(self: &Arc<Self>) {
        let mut state = self.state();
        self.release(&mut state);
        self.reserved_no_more(&mut state);
    }

    /// Sends a task for which a slot was taken.
    pub(super) fn submit_reserved(self: &Arc<Self>, job: &Arc<Job>) {
        let mut state = self.state();
        self.stamp(&mut state, job);
        if state.phase == Phase::Cancelled {
            // It was nowhere to be found when the others were cancelled.
            self.give_up(&mut state, Unsent::Unwanted);
            state.after.resolve.push((Arc::clone(job), TaskError::Cancelled));
        } else if job.assign(&mut state.after.wake) {
            self.place(&mut state, Arc::clone(job));
        } else {
            self.release(&mut state);
        }
        self.reserved_no_more(&mut state);
    }

    /// A task that had a slot before it was encoded has it no more, or as any other.
    fn reserved_no_more(self: &Arc<Self>, state: &mut State) {
        state.reserved -= 1;
        state.after.changed = true;
        // If the slot is free, it is for what waited for it.
        self.dispatch(state);
        // Idle workers may have been kept for that, and it went elsewhere.
        Self::retire_unneeded(state);
    }

    /// Whether the pool takes tasks.
    pub(super) fn admit(&self, state: &mut State) -> Result<(), TaskError> {
        if state.phase != Phase::Open {
            return Err(TaskError::Closed);
        }
        let Ok(runtime) = Handle::try_current() else {
            return Err(SpawnError::Io(std::io::Error::other("not in a tokio runtime")).into());
        };
        if state.runtime.as_ref().is_none_or(|known| known.id() != runtime.id()) {
            if !state.known.contains(&runtime.id()) {
                needs_drivers();
                state.know(runtime.id());
            }
            state.runtime = Some(runtime);
        }
        // Where there was not even a process, for want of fds say, the shortage may be over: this task's start will tell.
        // And where some worker may yet get ready, it does this task with those that wait; if it does not, they hear of that.
        match self.broken(state).filter(|cause| had_a_process(cause)) {
            Some(cause) if state.seats.is_empty() => Err(TaskError::Broken(Box::new(SpawnError::Worker(cause)))),
            _ => Ok(()),
        }
    }

    /// Sends waiting tasks for as long as there are slots.
    pub(super) fn dispatch(self: &Arc<Self>, state: &mut State) {
        while !state.waiting.is_empty() && self.take_slot(state) {
            let Some(job) = state.next_wanted() else { return self.release(state) };
            self.place(state, job);
        }
    }

    /// Gives a task with a slot to a worker: the one that was idle last, or one that is still to be started.
    pub(super) fn place(self: &Arc<Self>, state: &mut State, job: Arc<Job>) {
        if let Some(seat) = state.idle.pop() {
            match seat.give(job, state.is_nearby(&seat), state.now()) {
                Ok(expected) => {
                    state.expected = expected;
                    state.watch(&seat);
                    if state.is_crowded() {
                        seat.leave();
                    } else {
                        state.after.write(seat);
                    }
                }
                Err(why) => {
                    state.idle.push(seat);
                    self.give_up(state, why);
                }
            }
            return;
        }
        state.assigned.push_back(job);
        self.open_seats(state);
    }

    /// A task that has a slot does not need it after all.
    fn give_up(&self, state: &mut State, why: Unsent) {
        state.unsent(why);
        self.release(state);
    }

    /// Has workers started for the tasks that wait for one, if there is a runtime for them.
    pub(super) fn open_seats(&self, state: &mut State) {
        if state.runtime.is_none() {
            return;
        }
        let most = match self.broken(state) {
            // Where starts fail without end, the workers that live do what there is. Where there was not even a process, one
            // start will tell whether the shortage is over, as often as by a supervisor that goes on trying.
            Some(cause) if !state.seats.is_empty() => {
                usize::from(!had_a_process(&cause) && state.failed_at.elapsed() >= LAST_PAUSE)
            }
            _ => usize::MAX,
        };
        let wanted = state.assigned.len().min(most);
        // Mostly there is none, and those that are starting need not be counted.
        if wanted > 0 {
            let room = state.target.saturating_sub(state.seats.len());
            for _ in 0..wanted.saturating_sub(state.starting()).min(room) {
                Self::open_seat(state);
            }
        }
    }

    /// Starts all workers.
    pub(super) fn warm_up(self: &Arc<Self>) -> Result<(), SpawnError> {
        let mut state = self.state();
        match self.admit(&mut state) {
            Ok(()) => {}
            // Whatever failed before that.
            Err(TaskError::Closed) => return Err(SpawnError::Cancelled),
            Err(TaskError::Spawn(error)) => return Err(error),
            Err(_) => return Err(state.last_cause.clone().map_or(SpawnError::Cancelled, SpawnError::Worker)),
        }
        if state.staying() == 0
            && let Some(cause) = self.broken(&mut state).filter(|cause| had_a_process(cause))
        {
            // Some worker is still being started. Whoever asks again and again must not have all others started each time.
            return Err(SpawnError::Worker(cause));
        }
        // What failed before is no failure of this start.
        state.last_cause = None;
        while state.seats.len() < state.target {
            Self::open_seat(&mut state);
        }
        Ok(())
    }

    pub(super) fn open_seat(state: &mut State) {
        // The first number that is missing: seats are in the order of their numbers.
        let index = state.seats.iter().zip(0..).position(|(seat, index)| seat.index != index);
        let index = index.unwrap_or(state.seats.len());
        let seat = Seat::new(index, state.runtime.clone());
        state.seats.insert(index, Arc::clone(&seat));
        state.supervisors += 1;
        state.after.supervise.push(seat);
    }

    /// A worker is ready: gives it a task, or lets it wait, or tells it to end.
    pub(super) fn next_task(self: &Arc<Self>, seat: &Arc<Seat>) -> Turn {
        self.turn(self.state(), seat)
    }

    /// A worker has answered tasks. If it has none left, or is to get more ahead, it gets them; a worn one ends instead.
    pub(super) fn answered(
        self: &Arc<Self>,
        seat: &Arc<Seat>,
        counts: &mut Counts,
        unfinished: impl IntoIterator<Item = Arc<Job>>,
        worn: bool,
    ) -> Turn {
        let mut state = self.state();
        state.take_in(counts, unfinished);
        let surplus = state.seats.len() > state.target && state.staying() > state.target;
        let mut desk = seat.desk();
        let worn = worn || desk.max_tasks.is_some_and(|most| desk.done >= most);
        let over = worn || surplus || desk.state == WorkerState::Draining || state.phase == Phase::Cancelled;
        if over {
            let back = desk.take_back();
            Self::put_back(&mut state, back);
        }
        if desk.load() > 0 {
            // The bell that rang for it may have been heard together with what was answered before it.
            if state.phase == Phase::Cancelled || desk.first().is_some_and(|job| !job.is_wanted()) {
                seat.bell.notify_one();
            }
            if worn || surplus {
                desk.apply(Event::Retire);
            }
            drop(desk);
            if over {
                self.dispatch(&mut state);
            } else {
                self.send_ahead(state, seat);
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
        self.turn(state, seat)
    }

    /// What an idle worker does next.
    fn turn(self: &Arc<Self>, mut state: Locked<'_>, seat: &Arc<Seat>) -> Turn {
        if state.phase == Phase::Cancelled {
            return Turn::End;
        }
        if state.seats.len() > state.target && state.staying() > state.target {
            // From now on it is none of those that stay, which the next one that asks has to know.
            seat.desk().apply(Event::Retire);
            self.dispatch(&mut state);
            return Turn::Retire;
        }
        while let Some(job) = state.assigned.pop_front() {
            if let Err(why) = seat.give(job, state.is_nearby(seat), state.now()) {
                self.give_up(&mut state, why);
                continue;
            }
            state.watch(seat);
            state.after.write(Arc::clone(seat));
            // Tasks that were given up in between have freed their slots.
            self.dispatch(&mut state);
            // And those that waited for this one's start, because others had failed, need wait no longer.
            self.open_seats(&mut state);
            self.send_ahead(state, seat);
            return Turn::Busy;
        }
        state.drop_unwanted();
        if state.waiting.is_empty() && state.sent_ahead {
            Self::unload_busiest(&mut state);
        }
        state.idle.push(Arc::clone(seat));
        self.dispatch(&mut state);
        if !state.idle.iter().any(|idle| Arc::ptr_eq(idle, seat)) {
            self.send_ahead(state, seat);
            return Turn::Busy;
        }
        // What waits does so for a slot that is reserved, and may need this worker when that is free.
        if state.phase == Phase::Closing && state.waiting.is_empty() {
            state.take_idle(seat);
            return Turn::Retire;
        }
        state.after.changed = true;
        Turn::Idle
    }

    /// Sends a busy worker as many of the waiting tasks as keep it busy for a moment, in one write.
    ///
    /// Never more than its share: what one worker has ahead, another would have to wait for.
    ///
    /// They are put into its outbox without the pool's lock, for which whoever submits tasks meanwhile would have to wait, once for each
    /// batch. Its desk is locked all the while, so that nobody finds them in neither place.
    fn send_ahead(self: &Arc<Self>, mut state: Locked<'_>, seat: &Arc<Seat>) {
        // Older tasks go first whose workers are not needed any more: they go to whoever has nothing.
        if state.waiting.is_empty() || !state.assigned.is_empty() && state.assigned.len() > state.starting() {
            return;
        }
        let mut desk = seat.desk();
        let mut room = desk.room(state.waiting.len().div_ceil(2 * state.target));
        if let Some(most) = desk.max_tasks {
            room = room
                .min(usize::try_from(most.saturating_sub(desk.done)).unwrap_or(usize::MAX).saturating_sub(desk.load()));
        }
        let mut batch = std::mem::take(&mut desk.batch);
        state.waiting.pop_ahead(room, &mut batch);
        if batch.is_empty() {
            desk.batch = batch;
            return;
        }
        state.watch_ahead();
        let rest = state.unlock();
        let mut unsent = Vec::new();
        for job in batch.drain(..) {
            unsent.extend(desk.send(job, seat).err());
        }
        desk.batch = batch;
        drop(desk);
        // Before all else that is left to do, as the worker waits for it.
        seat.write();
        if !unsent.is_empty() {
            let mut state = self.state();
            for why in unsent {
                state.unsent(why);
            }
        }
        rest.carry_out();
    }
}

/// Panics in a runtime without time or I/O, as tokio does: here, in the caller's task, and not later where nobody sees it.
fn needs_drivers() {
    drop(tokio::time::sleep(Duration::ZERO));
    // If there is no fd to be had, that is no fault of the runtime's.
    drop(UnixStream::pair());
}
