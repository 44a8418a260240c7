//! Who waits until something is known of a pool: that it has closed, say, or that its workers are ready.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::state::{Shared, State};

/// Tells that something has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    changed: Notify,
    /// How many wait for that. Mostly nobody does, and each task that leaves its worker idle is a change.
    waiting: AtomicUsize,
}

impl Changes {
    /// Something has changed, under the pool's lock, which is gone by now. Whoever had looked before that has been counted.
    pub(super) fn tell(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.changed.notify_waiters();
        }
    }
}

/// One who waits.
struct Waiting<'a>(&'a Changes);

impl<'a> Waiting<'a> {
    fn begin(changes: &'a Changes) -> Self {
        changes.waiting.fetch_add(1, Ordering::Relaxed);
        Self(changes)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Waits until something is known of the state.
    pub(super) async fn when<R>(self: &Arc<Self>, mut known: impl FnMut(&State) -> Option<R>) -> R {
        let waiting = Waiting::begin(&self.changes);
        loop {
            let mut changed = pin!(waiting.0.changed.notified());
            // Listen before looking, or a change in between would be missed.
            changed.as_mut().enable();
            if let Some(known) = known(&self.state()) {
                return known;
            }
            changed.await;
        }
    }
}
