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

/// The state, locked. When it is dropped, the lock goes first and then what it left to do is done.
pub(super) struct Locked<'a> {
    shared: &'a Arc<Shared>,
    state: Option<MutexGuard<'a, State>>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, mut state: MutexGuard<'a, State>) -> Self {
        state.now = None;
        Self { shared, state: Some(state) }
    }
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
        // Before all else, as a worker waits for it; and without the lock, as it takes longer than all that the lock guards.
        let write = state.after.write.take();
        let changed = mem::take(&mut state.after.changed);
        let notify = || {
            if changed {
                unheeded(|| self.shared.changes.tell());
            }
        };
        if state.after.is_empty() {
            drop(state);
            if let Some(seat) = write {
                seat.write();
            }
            notify();
            return;
        }
        let After { supervise, resolve, wake, mut spent, watch, watch_ahead, .. } = mem::take(&mut state.after);
        drop(state);
        if let Some(seat) = write {
            seat.write_into(&mut spent);
        }
        notify();
        for waker in wake {
            unheeded(|| waker.wake());
        }
        for (job, error) in resolve {
            job.resolve(Err(error.into()));
        }
        if watch_ahead {
            watch::look_ahead(self.shared);
        }
        for runtime in watch {
            watch::spawn(&runtime, self.shared);
        }
        for seat in supervise {
            supervisor::spawn(Arc::clone(self.shared), seat);
        }
        unheeded(|| drop(spent));
    }
}
