//! Tasks that wait for a slot, oldest first.
//!
//! A task in it was last written by who submitted it, mostly on another processor, and to look at it there takes longer than all
//! else that is done with it here, under the pool's lock. So it is looked at only where that decides something.

use std::collections::VecDeque;
use std::sync::Arc;

use super::job::Job;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order of their numbers.
    jobs: VecDeque<Arc<Job>>,
    /// How many of them may not go [ahead](Job::may_go_ahead).
    staying: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.iter()
    }

    /// Puts in a task that was submitted just now.
    pub(super) fn push(&mut self, job: Arc<Job>) {
        self.staying += usize::from(!job.may_go_ahead);
        self.jobs.push_back(job);
    }

    /// Puts a task where it was: before all that were submitted later.
    pub(super) fn put_back(&mut self, job: Arc<Job>) {
        let place = self.jobs.partition_point(|other| other.number() < job.number());
        self.staying += usize::from(!job.may_go_ahead);
        self.jobs.insert(place, job);
    }

    /// Takes the oldest one.
    pub(super) fn pop(&mut self) -> Option<Arc<Job>> {
        let job = self.jobs.pop_front()?;
        self.note_gone(&job);
        Some(job)
    }

    /// Takes the oldest one, if nobody wants it any more.
    pub(super) fn pop_unwanted(&mut self) -> Option<Arc<Job>> {
        let job = self.jobs.pop_front_if(|job| !job.is_wanted())?;
        self.note_gone(&job);
        Some(job)
    }

    /// Takes up to so many of the oldest ones, for as long as these may be sent to a worker that is still busy with another, or
    /// nobody wants them any more.
    pub(super) fn pop_ahead(&mut self, most: usize, batch: &mut Vec<Arc<Job>>) {
        if self.staying == 0 {
            return batch.extend(self.jobs.drain(..most.min(self.jobs.len())));
        }
        for _ in 0..most {
            let Some(job) = self.jobs.pop_front_if(|job| job.may_go_ahead || !job.is_wanted()) else { return };
            self.note_gone(&job);
            batch.push(job);
        }
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> VecDeque<Arc<Job>> {
        self.staying = 0;
        std::mem::take(&mut self.jobs)
    }

    /// Drops those that nobody wants any more. Gives how many there were.
    pub(super) fn sweep(&mut self) -> usize {
        let before = self.jobs.len();
        self.jobs.retain(|job| {
            let is_wanted = job.is_wanted();
            self.staying -= usize::from(!is_wanted && !job.may_go_ahead);
            is_wanted
        });
        before - self.jobs.len()
    }

    fn note_gone(&mut self, job: &Job) {
        if self.staying > 0 {
            self.staying -= usize::from(!job.may_go_ahead);
        }
    }
}

#[cfg(test)]
mod tests;
