//! What the keeper has to come back to: dead children that are left to their watchers, or whose pipes are still held. What is
//! then done is in the keeper.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// For how long those who wait are left waiting when a dead child's pipes are still held by something.
///
/// Most often that is another thread of ours between clone and exec of its own child, which is over in a moment; so
/// nearly always a child is reaped by the time that somebody learns of its end.
const HOLD_BACK: Duration = Duration::from_millis(5);

/// For how long a dead child is left to somebody who watches it.
const LEFT_TO_WATCHER: Duration = Duration::from_millis(5);

/// A dead child whose pipes are still held.
pub(super) struct Linger {
    pub(super) key: u64,
    pub(super) tell_at: Option<Instant>,
    pub(super) until: Instant,
}

/// A dead child that somebody watches, whose look at it the keeper awaits.
struct Deferred {
    key: u64,
    until: Instant,
}

/// What the keeper has to come back to.
#[derive(Default)]
pub(super) struct Agenda {
    pub(super) lingering: Vec<Linger>,
    /// Oldest first.
    deferred: VecDeque<Deferred>,
}

impl Agenda {
    pub(super) fn is_empty(&self) -> bool {
        self.lingering.is_empty() && self.deferred.is_empty()
    }

    /// When something is due.
    pub(super) fn next(&self) -> impl Iterator<Item = Instant> {
        let lingering = self.lingering.iter().map(|linger| linger.tell_at.unwrap_or(linger.until).min(linger.until));
        lingering.chain(self.deferred.front().map(|deferred| deferred.until))
    }

    /// Leaves a dead child for a while to who watches it.
    pub(super) fn defer(&mut self, key: u64) {
        self.deferred.push_back(Deferred { key, until: Instant::now() + LEFT_TO_WATCHER });
    }

    /// Takes one whose watcher has had its time.
    pub(super) fn pop_deferred(&mut self, now: Instant) -> Option<u64> {
        self.deferred.pop_front_if(|deferred| deferred.until <= now).map(|deferred| deferred.key)
    }

    /// Drops those whose watchers have looked, as far as they are the oldest.
    pub(super) fn skip_forgotten(&mut self, is_kept: impl Fn(u64) -> bool) {
        while self.deferred.pop_front_if(|deferred| !is_kept(deferred.key)).is_some() {}
    }

    /// Lets what a dead child left behind write on for its drain grace.
    pub(super) fn let_linger(&mut self, key: u64, drain: Duration) {
        let now = Instant::now();
        self.lingering.push(Linger { key, tell_at: Some(now + HOLD_BACK), until: now + drain });
    }

    pub(super) fn lingers(&self, key: u64) -> bool {
        self.lingering.iter().any(|linger| linger.key == key)
    }
}
