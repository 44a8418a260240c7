//! The pool's lock, and what an access leaves to be done once it is gone: writes, and all that runs other people's code.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, MutexGuard};
use std::task::Waker;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::job::Job;
use super::seat::Seat;
use super::state::{Shared, State};
use super::{supervisor, watch};
use crate::error::TaskError;
use crate::task::unheeded;

/// What would run other people's code, which must not happen under the lock.
#[derive(Debug, Default)]
pub(super) struct After {
    pub(super) supervise: Vec<Arc<Seat>>,
    pub(super) resolve: Vec<(Arc<Job>, TaskError)>,
    pub(super) wake: Vec<Waker>,
    /// What was to be sent to workers that are gone.
    pub(super) spent: Vec<Bytes>,
    /// Where somebody is to look at the workers from now on.
    pub(super) watch: Vec<Handle>,
    pub(super) watch_ahead: bool,
    /// Whether something changed that somebody may wait for, see [`Shared::when`].
    pub(super) changed: bool,
    /// Whose outbox is to be written. One place is enough: few accesses give tasks to more than one worker.
    write: Option<Arc<Seat>>,
}

impl After {
    pub(super) fn write(&mut self, seat: Arc<Seat>) {
        if let Some(other) = self.write.take_if(|other| !Arc::ptr_eq(other, &seat)) {
            other.write_into(&mut self.spent);
        }
        self.write = Some(seat);
    }

    fn is_empty(&self) -> bool {
        self.supervise.is_empty()
            && self.resolve.is_empty()
            && self.wake.is_empty()
            && self.spent.is_empty()
            && self.watch.is_empty()
            && !self.watch_ahead
    }
}

/// The state, locked. When it is dropped, the lock goes first and then what it left to do is [done](Rest::carry_out).
pub(super) struct Locked<'a> {
    shared: &'a Arc<Shared>,
    state: Option<MutexGuard<'a, State>>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, mut state: MutexGuard<'a, State>) -> Self {
        state.now = None;
        Self { shared, state: Some(state) }
    }

    /// Lets the lock go, and gives what is to be done then.
    pub(super) fn unlock(mut self) -> Rest<'a> {
        let state = self.state.take().expect("only this and drop take it");
        Rest::of(self.shared, state)
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("only `unlock` and drop take it")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("only `unlock` and drop take it")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            Rest::of(self.shared, state).carry_out();
        }
    }
}

/// What an access to the state has left to be done, now that the lock is gone.
#[must_use]
pub(super) struct Rest<'a> {
    shared: &'a Arc<Shared>,
    write: Option<Arc<Seat>>,
    changed: bool,
    /// Mostly there is nothing else.
    others: Option<Box<After>>,
}

impl<'a> Rest<'a> {
    fn of(shared: &'a Arc<Shared>, mut state: MutexGuard<'_, State>) -> Self {
        let write = state.after.write.take();
        let changed = mem::take(&mut state.after.changed);
        let others = if state.after.is_empty() { None } else { Some(Box::new(mem::take(&mut state.after))) };
        Self { shared, write, changed, others }
    }

    /// Does it, which takes locks, and runs other people's code.
    #[inline(always)]
    pub(super) fn carry_out(self) {
        // Before all else, as a worker waits for it; and without the lock, as it takes longer than all that the lock guards.
        if let Some(seat) = &self.write {
            seat.write();
        }
        if self.changed || self.others.is_some() {
            self.carry_out_others();
        }
    }

    fn carry_out_others(self) {
        let Self { shared, changed, others, .. } = self;
        if changed {
            unheeded(|| shared.changes.tell());
        }
        let Some(After { supervise, resolve, wake, spent, watch, watch_ahead, .. }) = others.map(|others| *others)
        else {
            return;
        };
        for waker in wake {
            unheeded(|| waker.wake());
        }
        for (job, error) in resolve {
            job.resolve(Err(error.into()));
        }
        if watch_ahead {
            watch::look_ahead(shared);
        }
        for runtime in watch {
            watch::spawn(&runtime, shared);
        }
        for seat in supervise {
            supervisor::spawn(Arc::clone(shared), seat);
        }
        unheeded(|| drop(spent));
    }
}
