//! Looking for a task's outcome before who awaits it sleeps, where a pool is to do that (`busy_poll`).
//!
//! Who looks has itself polled again, each time after whoever else has work for this processor, and after this thread's reactor
//! was looked at, which is where an outcome comes from. One at a time looks: that keeps the thread awake, and what all the others
//! wait for is found by that, too.

use std::cell::Cell;
use std::fmt;
use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Instant;

use tokio::task::yield_now;

use super::job::Job;
use super::serving::after;
use super::state::Shared;
use crate::task::unheeded;

/// The turn of who looks in a pool.
pub(super) struct Look {
    shared: Arc<Shared>,
    until: Instant,
}

impl Look {
    /// For a job that a worker has which had nothing else to do.
    pub(super) fn begin(shared: &Arc<Shared>, job: &Job) -> Option<Box<Self>> {
        if !shared.may_look.load(Ordering::Relaxed) || !job.is_sent() {
            return None;
        }
        let mut turn = turn(shared);
        // One that is over is that of somebody who was not polled any more.
        if turn.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let until = after(shared.settings.plan.busy_poll);
        *turn = Some(until);
        Some(Box::new(Self { shared: Arc::clone(shared), until }))
    }

    /// Has who waits for the job polled again soon. `false`: the time for that is over.
    pub(super) fn again(&self, job: &Arc<Job>) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        thread::yield_now();
        soon(job);
        true
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        turn(&self.shared).take_if(|until| *until == self.until);
    }
}

/// Until when somebody looks.
fn turn(shared: &Shared) -> MutexGuard<'_, Option<Instant>> {
    shared.look.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// Whether this thread is in a call of somebody's waker by tokio, which can't be asked for another one meanwhile.
    static WAKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in such a call. A supervisor is not to be polled there, which may ask tokio for one.
pub(super) fn is_waking() -> bool {
    WAKING.get()
}

/// Has who waits for a job polled again, once this thread's other tasks have had their turn. `false`: that can't be had just now, and
/// he is polled again all the same.
pub(super) fn soon(job: &Arc<Job>) -> bool {
    if is_waking() {
        return false;
    }
    let waker = Waker::from(Arc::clone(job));
    let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
    true
}

/// What tokio is given to wake: whoever waits for it. His waker may be anybody's code, which may panic, or poll at once, and neither is
/// for tokio's scheduler to see.
impl Wake for Job {
    fn wake(self: Arc<Self>) {
        let before = WAKING.replace(true);
        unheeded(move || {
            if let Some(waker) = self.take_waker() {
                waker.wake();
            }
            drop(self);
        });
        WAKING.set(before);
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("until", &self.until).finish_non_exhaustive()
    }
}
