//! For how long a worker's first task has run, and whether that is too long.

use std::time::{Duration, Instant};

use super::Desk;
use super::pace::LATE;

/// From one look whether a task that has a timeout is begun to the next, at least.
const LEAST_LOOK: Duration = Duration::from_millis(1);

/// The time of the first task on a desk.
#[derive(Debug)]
pub(in crate::pool) struct Clock {
    /// Since when it has been the first, or has run, as far as that is known.
    pub(in crate::pool) since: Instant,
    /// The task for which its worker was asked when it began it, which is done once.
    asked: u64,
    /// The task that was said to have ended although its answer had not come, which is believed once.
    excused: u64,
    /// Of the chunk of this number so many calls had been made when somebody looked.
    call: (u64, u32, Instant),
}

impl Clock {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { since: now, asked: 0, excused: 0, call: (0, 0, now) }
    }

    /// The task with this number has ended, so the next one's time begins. `false`: that has been said of it before.
    fn excuse(&mut self, task: u64) -> bool {
        let is_new = self.excused != task;
        self.excused = task;
        self.since = Instant::now();
        self.call.0 = 0;
        is_new
    }

    /// What is not begun doesn't run: to be looked at again when that time is over, but not all the time.
    fn put_off(&mut self, timeout: Duration) {
        self.call.0 = 0;
        self.since = Instant::now() + LEAST_LOOK.saturating_sub(timeout);
    }

    /// The task with this number was begun so long ago, as its worker says, who is asked once and can't go on saying so.
    fn note_begun(&mut self, task: u64, ago: impl FnOnce() -> Option<Duration>) {
        if self.asked != task {
            self.asked = task;
            let began = ago().and_then(|ago| Instant::now().checked_sub(ago));
            self.since = self.since.max(began.unwrap_or(self.since));
        }
    }

    /// Since when the task with this number runs; if it is a chunk, the call of it that runs, at the latest.
    fn runs_since(&self, task: u64) -> Instant {
        if self.call.0 == task { self.call.2 } else { self.since }
    }

    /// So many calls of the chunk with this number have been made. `true`: more than when somebody looked last, so it is another
    /// call that has to be waited for, from now on.
    fn note_calls(&mut self, chunk: u64, made: u32) -> bool {
        let before = if self.call.0 == chunk { self.call.1 } else { 0 };
        if made > before {
            self.call = (chunk, made, Instant::now());
        }
        made > before
    }
}

impl Desk {
    /// Whether tasks wait behind one that has run for long.
    pub(in crate::pool) fn is_late(&self) -> bool {
        self.has_tasks_ahead() && self.clock.since.elapsed() >= LATE && !self.is_before_first()
    }

    /// The first task has ended, and its answer is on its way, so the next one's time begins. That can be said once of each task;
    /// `false`: it has been.
    pub(in crate::pool) fn excuse(&mut self) -> bool {
        self.clock.excuse(self.sent.front().map_or(0, |first| first.id))
    }

    /// Whether its first task, whose time was up if it began when it was sent, has run for too long.
    pub(in crate::pool) fn is_too_long(&mut self, timeout: Duration) -> bool {
        let Some(first) = self.sent.front().map(|first| first.id) else { return false };
        if self.is_before_first() {
            self.clock.put_off(timeout);
            return false;
        }
        self.clock.note_begun(first, || self.ledger.as_ref().map(|ledger| ledger.began_ago()));
        self.runs_since().elapsed() >= timeout && !self.has_come_on()
    }

    /// Since when the first task runs; if it is a chunk, the call of it that runs, at the latest.
    pub(in crate::pool) fn runs_since(&self) -> Instant {
        self.sent.front().map_or(self.clock.since, |first| self.clock.runs_since(first.id))
    }

    /// A chunk's time is up. `true`: it has come on since it was looked at last.
    fn has_come_on(&mut self) -> bool {
        let Some((first, ledger)) = self.sent.front().zip(self.ledger.as_ref()) else { return false };
        self.clock.note_calls(first.id, if first.job.is_chunk { ledger.kept_parts(first.id) } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    /// One whose task has been the first for long.
    fn clock() -> Clock {
        Clock { since: Instant::now().checked_sub(LONG).unwrap(), ..Clock::new() }
    }

    #[test]
    fn a_task_is_excused_once() {
        let mut clock = clock();
        assert!(clock.excuse(1) && clock.since.elapsed() < LONG);
        assert!(!clock.excuse(1));
        assert!(clock.excuse(2));
    }

    #[test]
    fn a_worker_says_once_when_it_began_a_task_and_not_before_it_was_sent() {
        let mut clock = clock();
        let sent = clock.since;
        clock.note_begun(1, || Some(2 * LONG));
        assert_eq!(clock.since, sent);
        clock.note_begun(1, || unreachable!("it was asked"));
        clock.note_begun(2, || Some(LONG / 2));
        assert!(clock.since > sent);
    }

    #[test]
    fn a_call_of_a_chunk_has_its_own_time() {
        let mut clock = clock();
        assert!(!clock.note_calls(1, 0));
        assert!(clock.runs_since(1).elapsed() >= LONG);
        assert!(clock.note_calls(1, 3));
        assert!(!clock.note_calls(1, 3), "it has not come on since");
        assert!(clock.runs_since(1).elapsed() < LONG);
        assert!(clock.runs_since(2).elapsed() >= LONG, "which is no other task's");
    }

    #[test]
    fn what_is_not_begun_is_looked_at_again_but_not_all_the_time() {
        for timeout in [Duration::ZERO, LEAST_LOOK / 2, LONG] {
            let mut clock = clock();
            let before = Instant::now();
            clock.put_off(timeout);
            assert!(clock.runs_since(1) + timeout >= before + LEAST_LOOK, "{timeout:?}");
        }
    }
}
