//! What became of tasks, in numbers.

/// How many tasks ended in which way, since the pool was made.
///
/// Each counts once, at its end: one that ran again, for its [`retries`](crate::Submit::retries), as what it came to at last. A
/// chunk of a [`map`](crate::ProcessPool::map)'s inputs is one task, and `done` when all of its calls were made, whatever they gave.
/// But a call that loses its worker counts at once, as `died`, and one that runs too long as `timed_out`; where it was not the
/// chunk's last, the rest goes on and counts at its own end. So a chunk of four calls of which the first two abort is two `died`
/// and one `done`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Gave a result.
    pub done: u64,
    /// Panicked, had a result that could not be sent, or found no worker that could be started. What is refused where it is
    /// submitted (it can't be encoded, the pool is closed) is not counted.
    pub failed: u64,
    /// Lost their worker.
    pub died: u64,
    /// Ran too long.
    pub timed_out: u64,
    /// Were cancelled after they were submitted.
    pub cancelled: u64,
    /// Processes that were started in the place of one that ended.
    pub restarts: u64,
}

impl Counts {
    /// Adds what was counted elsewhere, which is none from then on.
    pub(super) fn take_in(&mut self, others: &mut Self) {
        let Self { done, failed, died, timed_out, cancelled, restarts } = std::mem::take(others);
        self.done += done;
        self.failed += failed;
        self.died += died;
        self.timed_out += timed_out;
        self.cancelled += cancelled;
        self.restarts += restarts;
    }

    pub(super) fn add(&mut self, ending: Ending) {
        *match ending {
            Ending::Done => &mut self.done,
            Ending::Failed => &mut self.failed,
            Ending::Died => &mut self.died,
            Ending::TimedOut => &mut self.timed_out,
            Ending::Cancelled => &mut self.cancelled,
        } += 1;
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done,
    Failed,
    Died,
    TimedOut,
    Cancelled,
}
