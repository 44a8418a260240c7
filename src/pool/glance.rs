//! A glance at a worker's ledger, by who waits for its only task, before he sleeps.
//!
//! To sleep and to be woken takes a thread longer than a tiny task, and both sides would: the worker for its task, and he for
//! the answer. So where a worker's last answer was there soon, and it is on another processor, he looks for the next one for about as
//! long as he would sleep; if it was not there by then, he does not look for the one after it. The worker, which sees that he looks,
//! says nothing of its answer, and looks for its next task likewise (see `worker/serve.rs`). What is found here he takes in himself.
//!
//! Where both share a processor, one of them would have to let the other run, which may let anybody run, for milliseconds: that is for
//! pools with `busy_poll` alone, see `look.rs`.
//!
//! Only a pool's only task is looked for, once this thread's other tasks have had their turn. Nothing depends on it: a worker tells of an
//! answer that was not taken in before it sleeps.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::job::Job;
use super::look;
use super::state::Shared;
use crate::process::keeper::is_forked_copy;

/// For how long at most, and within which the last answer must have been there. A tiny task of a worker that has to be woken takes less,
/// in a virtual machine, too.
pub(super) const GLANCE: Duration = Duration::from_micros(40);

/// When the answer to a task that an idle worker was given is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Nobody knows.
    Sometime,
    /// Sooner than who waits for it could sleep and be woken.
    Soon,
    /// Soon, from a worker that needs his processor for that.
    SoonHere,
}

/// Has who waits for this task polled again soon, to look for its answer. `false`: he can't be just now.
pub(super) fn begin(job: &Arc<Job>) -> bool {
    if !look::soon(job) {
        return false;
    }
    if let Some(seat) = job.seat()
        && let Some(ledger) = seat.desk().ledger()
    {
        ledger.look_for_answer(true);
    }
    true
}

impl Shared {
    /// Looks for the answer to a task that is still the pool's only one, and takes it in.
    pub(super) fn glance(&self, job: &Job) {
        // There a lock may be held for good.
        if is_forked_copy() {
            return;
        }
        let Some(seat) = job.seat() else { return };
        let Some(ledger) = seat.desk().ledger().map(Arc::clone) else { return };
        // Where nobody can take it in, it comes by itself.
        let looks = !look::is_waking();
        let begin = Instant::now();
        // It may be taken in on another thread meanwhile.
        while looks && !ledger.has_answers() && job.is_wanted() && self.is_last(job) && begin.elapsed() < GLANCE {
            // It may have come to our processor meanwhile.
            if self.may_look.load(Ordering::Relaxed) && !ledger.is_apart() {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        ledger.look_for_answer(false);
        if looks && ledger.has_answers() {
            seat.take_in_here();
        }
    }

    /// Whether no task was submitted after it.
    pub(super) fn is_last(&self, job: &Job) -> bool {
        self.submitted() == job.number()
    }
}
