//! Taking tasks off a worker's desk again: those that it has not begun, and at its end all; and which of them may be the reason
//! for that end. Where they go is decided in `recall.rs` and `lifecycle.rs`.

use std::sync::Arc;

use super::{Desk, Sent};
use crate::pool::job::Job;
use crate::pool::life::{Event, WorkerState};

impl Desk {
    /// Takes back every task that was not begun, oldest first. They can't be begun any more.
    pub(in crate::pool) fn take_back(&mut self) -> Vec<Arc<Job>> {
        let Some(ledger) = &self.ledger else { return Vec::new() };
        if self.sent.is_empty() {
            return Vec::new();
        }
        let begun = ledger.take_back(self.last_id);
        let first = self.sent.partition_point(|sent| sent.id <= begun);
        self.sent.drain(first..).map(|sent| sent.job).collect()
    }

    /// Whether it says to have begun what it was never sent. Of that nothing could be taken back.
    pub(in crate::pool) fn claims_too_much(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.begun() > self.last_id)
    }

    /// As [`take_back`](Self::take_back), from a worker that has had time enough. If it has begun none it gets no other until it
    /// is heard of; the first may be what it is dying of, see [`suspect`](Self::suspect).
    pub(in crate::pool) fn recall(&mut self) -> Vec<Arc<Job>> {
        let back = self.take_back();
        if self.sent.is_empty() {
            self.recalled = back.first().map(|job| (Arc::downgrade(job), job.bounces()));
            self.apply(Event::Overdue);
        }
        back
    }

    /// It has died by itself, or is stuck: it may take long to die. If it was not heard of any more after its tasks had been taken
    /// back, the first of them is as suspect as if it still lay here.
    ///
    /// Only a task that is suspect again and again is ever ended for it, and of those that are stuck at the same time just one
    /// counts: whatever stops all workers, but not us, would have to do so again to each that is started in their place.
    pub(in crate::pool) fn suspect(&mut self, is_stuck: bool) {
        if self.state == WorkerState::Stalled
            && let Some((job, before)) = self.recalled.take()
            && let Some(job) = job.upgrade()
            && (!is_stuck || job.bounces() == before)
        {
            job.suspect();
        }
    }

    /// Keeps what a chunk has done, which ends without an answer of its own.
    pub(in crate::pool) fn keep_parts(&self, id: u64, job: &Job) {
        if job.is_chunk
            && let Some(ledger) = &self.ledger
            && let Ok((count, results)) = ledger.kept(id)
        {
            job.keep(count, results);
        }
    }

    /// Takes everything off the desk, because the process has ended: what was begun and not answered, then what was not
    /// begun. What a chunk had done is kept.
    pub(in crate::pool) fn take_all(&mut self) -> (Vec<Arc<Job>>, Vec<Arc<Job>>) {
        let rest = self.take_back();
        if let Some(Sent { id, job }) = self.sent.front() {
            self.keep_parts(*id, job);
        }
        (self.sent.drain(..).map(|sent| sent.job).collect(), rest)
    }
}
