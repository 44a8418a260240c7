//! How fast a worker is with its tasks, and what follows from that: how many it is sent ahead, and who looks for an answer.

use std::time::{Duration, Instant};

use super::Desk;
use crate::pool::glance::GLANCE;
use crate::pool::life::WorkerState;

/// A worker gets tasks ahead for about so long, by the time that its last ones took.
pub(super) const AHEAD: Duration = Duration::from_millis(1);

/// One whose tasks take no longer than this has the next one at hand when it is done with one. And what lies behind a task that
/// takes longer goes elsewhere: others that were submitted later would overtake it.
pub(super) const LATE: Duration = Duration::from_millis(5);

/// What takes no longer than this is not shared: to wake another worker would take as long.
pub(super) const UNSHARED: Duration = Duration::from_micros(50);

/// No task takes less than this, whatever its worker says.
pub(super) const LEAST: Duration = Duration::from_nanos(200);

/// How many bytes may wait, besides those that somebody is writing, before no more tasks are sent ahead.
const MOST_UNWRITTEN: usize = 64 * 1024;

/// The most tasks that a worker has, the running one included.
pub(in crate::pool) const MOST_SENT: usize = 1024;

impl Desk {
    /// How many more tasks it is to be sent: as many as keep it busy for a moment, and at most `share`, unless they are tiny.
    ///
    /// None while it still has more than half of that: the more tasks go at once, the fewer writes, reads and wake-ups
    /// each of them costs on both sides.
    pub(in crate::pool) fn room(&self, share: usize) -> usize {
        let Some(pace) = self.pace else { return 0 };
        if self.outbox.len() > MOST_UNWRITTEN || self.state != WorkerState::Busy {
            return 0;
        }
        let within = |time: Duration| (time.as_nanos() / pace.as_nanos().max(1)).clamp(1, MOST_SENT as u128) as usize;
        let most = within(AHEAD).max(if pace <= LATE { 2 } else { 1 });
        let share = share.max(within(UNSHARED));
        if self.sent.len() > most.min(share).div_ceil(2) { 0 } else { most.saturating_sub(self.sent.len()).min(share) }
    }

    /// Whether a task that it is given while it has none will be answered sooner than who waits for that could sleep and be woken.
    pub(super) fn is_prompt(&self) -> bool {
        self.last.is_some_and(|last| last <= GLANCE)
    }

    /// Notes that `count` tasks were answered just now, and gives how long each took, as it looks from here. `own` is what
    /// the worker says, who does not count how long they waited for it, nor it for a processor before it began them.
    pub(in crate::pool) fn answered(&mut self, count: usize, own: Option<Duration>) -> Duration {
        let now = Instant::now();
        let each = now.duration_since(self.clock.since) / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let own = own.or_else(|| self.ledger.as_ref().filter(|_| count == 1).map(|ledger| ledger.began_ago()));
        let new = own.map_or(each, |own| own.max(LEAST).min(each));
        // Half old, half new: one long task must not end the sending ahead, and three must.
        self.pace = Some(self.pace.map_or(new, |pace| (pace + new) / 2));
        self.clock.since = now;
        self.last = Some(each);
        each
    }
}
