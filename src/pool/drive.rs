//! Who polls a supervisor: its own task in the runtime, and now and then who waits for the only answer of its worker.
//!
//! Such a caller is woken for that answer before the supervisor's task is. In a current-thread runtime he is the next one to be
//! polled then, if he is what `block_on` drives, and polls the supervisor himself: that hands him his outcome, without a turn of the
//! runtime and a look at its reactor in between. Nothing depends on it: the task has been woken, too, and finds something to do if
//! he has not come. Who finds that answer in the ledger (`glance.rs`) polls the supervisor wherever he is, in a runtime with threads too.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::look::is_waking;
use super::seat::Seat;
use crate::process::keeper::is_forked_copy;
use crate::task::unheeded;

type Supervision = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A seat's supervisor, for whoever polls it.
#[derive(Default)]
pub(super) struct Drive {
    place: Mutex<Place>,
    /// Whether something has happened since it was polled last. Whoever polls it does so with one and the same waker, so nothing
    /// else tells it of anything.
    woken: AtomicBool,
    /// Whether something else has happened than that its worker has said something.
    has_other_news: AtomicBool,
    /// Whether it is polled by who waits for an answer, and its own task is polled by the same thread.
    visited: AtomicBool,
    /// Whether who waits for an answer has found it in the ledger.
    has_found: AtomicBool,
    /// Of its own task, which it wakes for as long as that lives.
    task: OnceLock<Waker>,
    /// Whether what comes next from its worker is more of a frame that has begun to come.
    amid_frame: AtomicBool,
}

#[derive(Default)]
enum Place {
    /// It is not there yet, or has come to its end.
    #[default]
    Empty,
    Here(Supervision, Waker),
    /// Somebody polls it.
    Lent,
}

impl Drive {
    /// Polls the supervisor if something has happened and nobody else is at it. Says whether it is over.
    #[inline(always)]
    fn poll(&self) -> Poll<()> {
        if !self.woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let mut place = self.place();
        let (supervision, waker) = match std::mem::replace(&mut *place, Place::Lent) {
            Place::Here(supervision, waker) => (supervision, waker),
            other => {
                let is_over = matches!(other, Place::Empty);
                *place = other;
                return if is_over { Poll::Ready(()) } else { Poll::Pending };
            }
        };
        drop(place);
        let mut lent = Lent { drive: self, supervision: Some((supervision, waker)), goes_on: false };
        // What happens from now on has it polled again.
        self.woken.swap(false, Ordering::AcqRel);
        lent.poll()
    }

    /// Something has happened that the supervisor waits for.
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// Something else has happened than that its worker has said something, or is to be waited for from now on.
    pub(super) fn note_other_news(&self) {
        self.has_other_news.store(true, Ordering::Release);
    }

    /// Whether something else has happened since this was asked last. To ask all whom it waits for instead takes locks.
    pub(super) fn take_other_news(&self) -> bool {
        self.has_other_news.load(Ordering::Relaxed) && self.has_other_news.swap(false, Ordering::AcqRel)
    }

    /// Whether somebody has found an answer in the ledger since this was asked last.
    pub(super) fn take_found(&self) -> bool {
        self.has_found.load(Ordering::Relaxed) && self.has_found.swap(false, Ordering::Relaxed)
    }

    /// Has its own task go on here with what need not be done before a visitor that has his outcome is gone.
    pub(super) async fn see_off(&self) {
        let mut seen_off = false;
        poll_fn(|_| {
            if seen_off || !self.visited.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            seen_off = true;
            // Here and now: it may be the task itself that polls it, while a visitor on another thread finds it lent.
            self.wake();
            Poll::Pending
        })
        .await;
    }

    /// Notes whether what comes next from its worker is more of what has begun to come, for which nobody is to be woken once more.
    pub(super) fn is_amid_frame(&self, is: bool) {
        if self.amid_frame.load(Ordering::Relaxed) != is {
            self.amid_frame.store(is, Ordering::Relaxed);
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A supervisor that somebody polls. It is put back after that, unless it is over, or given up meanwhile, or has panicked.
struct Lent<'a> {
    drive: &'a Drive,
    supervision: Option<(Supervision, Waker)>,
    /// Whether it was polled, and is not over.
    goes_on: bool,
}

impl Lent<'_> {
    #[inline(always)]
    fn poll(&mut self) -> Poll<()> {
        let Some((supervision, waker)) = &mut self.supervision else { return Poll::Ready(()) };
        let polled = supervision.as_mut().poll(&mut Context::from_waker(waker));
        self.goes_on = polled.is_pending();
        polled
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut place = self.drive.place();
        let is_given_up = matches!(*place, Place::Empty);
        let rest = match self.supervision.take() {
            Some((supervision, waker)) if self.goes_on && !is_given_up => {
                *place = Place::Here(supervision, waker);
                None
            }
            rest => {
                *place = Place::Empty;
                rest
            }
        };
        drop(place);
        // Its end takes locks, and tells others.
        drop(rest);
    }
}

/// A supervisor's own task.
struct Driven(Arc<Seat>);

impl Future for Driven {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.drive.task.get_or_init(|| cx.waker().clone());
        self.0.drive.poll()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        // In a forked copy of this process a lock may be held for good.
        if !is_forked_copy() {
            let place = std::mem::take(&mut *self.0.drive.place());
            drop(place);
        }
    }
}

/// What a supervisor waits with.
impl Wake for Seat {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.drive.note_other_news();
        self.drive.wake();
    }
}

/// What it waits with for its worker's words: who waits for the only answer hears of them first.
struct Ear(Arc<Seat>);

impl Wake for Ear {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before he can be polled: it is for him to go on with.
        self.0.drive.woken.store(true, Ordering::Release);
        if !self.0.drive.amid_frame.load(Ordering::Relaxed) {
            self.0.herald();
        }
        self.0.drive.wake();
    }
}

impl Seat {
    /// Has a supervisor run in its runtime.
    pub(super) fn drive(self: &Arc<Self>, runtime: &Handle, supervision: impl Future<Output = ()> + Send + 'static) {
        *self.drive.place() = Place::Here(Box::pin(supervision), Waker::from(Arc::clone(self)));
        self.drive.woken.store(true, Ordering::Release);
        drop(runtime.spawn(Driven(Arc::clone(self))));
    }

    /// What a supervisor waits with for its worker's words.
    pub(super) fn ear(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::new(Ear(Arc::clone(self))))
    }

    /// Polls the supervisor, for who [waits for what has come](Self::has_news), if he is where it runs.
    pub(super) fn drive_here(self: &Arc<Self>) {
        if !self.is_here() || is_waking() {
            return;
        }
        let mut goes_on = false;
        // Its panic is its end, and not his.
        self.drive.visited.store(self.has_one_thread, Ordering::Relaxed);
        unheeded(|| goes_on = self.drive.poll().is_pending());
        self.drive.visited.store(false, Ordering::Relaxed);
        // Its task is to end with it, and may have found it lent.
        if !goes_on || self.drive.woken.load(Ordering::Acquire) {
            self.drive.wake();
        }
    }

    /// As [`drive_here`](Self::drive_here), for who has found an answer in the ledger.
    pub(super) fn take_in_here(self: &Arc<Self>) {
        self.drive.has_found.store(true, Ordering::Relaxed);
        self.drive.woken.store(true, Ordering::Release);
        self.drive_here();
    }

    /// Whether something has happened since the supervisor was polled last, with which somebody else may go on.
    pub(super) fn has_news(&self) -> bool {
        self.has_one_thread && self.drive.woken.load(Ordering::Acquire)
    }

    /// Whether this is the current-thread runtime in which the supervisor runs.
    fn is_here(&self) -> bool {
        !is_forked_copy() && Handle::try_current().is_ok_and(|here| self.is_in(here.id()))
    }
}

/// Whether a runtime polls all that runs in it on one thread.
pub(super) fn has_one_thread(runtime: &Handle) -> bool {
    runtime.runtime_flavor() == RuntimeFlavor::CurrentThread
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive").field("woken", &self.woken).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
