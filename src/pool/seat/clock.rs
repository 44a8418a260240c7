//! For how long a worker's first task has run, and whether that is too long.

use std::time::{Duration, Instant};

use super::{Desk, LATE, Sent};

/// From one look whether a task that has a timeout is begun to the next, at least.
const LEAST_LOOK: Duration = Duration::from_millis(1);

impl Desk {
    /// Whether tasks wait behind one that has run for long.
    pub(in crate::pool) fn is_late(&self) -> bool {
        self.has_tasks_ahead() && self.since.elapsed() >= LATE && !self.is_before_first()
    }

    /// Its first task's time begins now.
    fn restart_clock(&mut self) {
        self.since = Instant::now();
        self.call.0 = 0;
    }

    /// The first task has ended, and its answer is on its way, so the next one's time begins. That can be said once of each task;
    /// `false`: it has been.
    pub(in crate::pool) fn excuse(&mut self) -> bool {
        let first = self.sent.front().map_or(0, |first| first.id);
        let is_new = self.excused != first;
        self.excused = first;
        self.restart_clock();
        is_new
    }

    /// Whether its first task, whose time was up if it began when it was sent, has run for too long. What is not begun doesn't run.
    pub(in crate::pool) fn is_too_long(&mut self, timeout: Duration) -> bool {
        let now = Instant::now();
        let Some(first) = self.sent.front().map(|first| first.id) else { return false };
        if self.is_before_first() {
            // To be looked at again when that time is over, but not all the time.
            self.call.0 = 0;
            self.since = now + LEAST_LOOK.saturating_sub(timeout);
            return false;
        }
        if self.clocked != first {
            self.clocked = first;
            let began = self.ledger.as_ref().and_then(|ledger| now.checked_sub(ledger.began_ago()));
            self.since = self.since.max(began.unwrap_or(self.since));
        }
        self.runs_since().elapsed() >= timeout && !self.has_come_on()
    }

    /// Since when the first task runs; if it is a chunk, the call of it that runs, at the latest.
    pub(in crate::pool) fn runs_since(&self) -> Instant {
        let Some(first) = self.sent.front() else { return self.since };
        if self.call.0 == first.id { self.call.2 } else { self.since }
    }

    /// A chunk's time is up. `true`: it has come on since it was looked at last, so it is another call that has to be waited
    /// for, from now on.
    pub(in crate::pool) fn has_come_on(&mut self) -> bool {
        let Some((Sent { id, job }, ledger)) = self.sent.front().zip(self.ledger.as_ref()) else { return false };
        let before = if self.call.0 == *id { self.call.1 } else { 0 };
        let parts = if job.is_chunk { ledger.kept_parts(*id) } else { 0 };
        if parts > before {
            self.call = (*id, parts, Instant::now());
        }
        parts > before
    }
}
