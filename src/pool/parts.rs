//! How far a chunk of `map` has come: the results that its workers gave, part by part, and the calls that failed with a
//! worker's end or ran out of time.
//!
//! A chunk is a task that may go on: what was done is never done again, and what was not begun runs in the next free worker.
//! What the results mean is known to `chunk.rs` and `map.rs` alone.

use bytes::Bytes;

use super::chunk;
use crate::error::TaskError;
use crate::task::Answer;
use crate::wire::extra::Extra;
use crate::wire::passenger::Passenger;

/// A chunk's progress.
#[derive(Debug)]
pub(super) struct Parts {
    /// How many calls it is.
    calls: u32,
    /// How many of them have an outcome.
    known: u32,
    /// How many had when it went on last.
    before: u32,
    so_far: Vec<Part>,
}

/// What became of calls that follow each other.
#[derive(Debug)]
pub(super) enum Part {
    Results {
        count: u32,
        bytes: Bytes,
        fds: Extra<Passenger>,
        nanos: u64,
    },
    /// The one call that ran when its worker ended.
    Failed(TaskError),
    /// What the last call came to in place of its result, because its time was up.
    Instead(TaskError),
}

impl Parts {
    pub(super) fn new(calls: u32) -> Self {
        Self { calls, known: 0, before: 0, so_far: Vec::new() }
    }

    /// Whether it is one call, which goes on never.
    pub(super) fn is_one(&self) -> bool {
        self.calls == 1
    }

    /// How many have got one since this was asked last.
    pub(super) fn take_progress(&mut self) -> usize {
        let before = std::mem::replace(&mut self.before, self.known);
        (self.known - before) as usize
    }

    pub(super) fn is_whole(&self) -> bool {
        self.known == self.calls
    }

    /// Takes what was done by a worker that has ended. It is believed as far as it can be true.
    pub(super) fn keep(&mut self, count: u32, bytes: Bytes) {
        if (1..=self.calls - self.known).contains(&count) {
            self.known += count;
            self.so_far.push(Part::Results { count, bytes, fds: Extra::default(), nanos: 0 });
        }
    }

    /// The next call failed.
    pub(super) fn fail(&mut self, error: TaskError) {
        if !self.is_whole() {
            self.known += 1;
            self.so_far.push(Part::Failed(error));
        }
    }

    /// Takes a worker's answer. With `stopped` its last call was asked to stop, and has that outcome. `None`: it can't be true.
    pub(super) fn answer(&mut self, answer: Answer, stopped: Option<TaskError>) -> Option<()> {
        let Answer { body, fds, .. } = answer;
        let mut bytes = body.into_bytes();
        let (count, nanos) = chunk::take_head(&mut bytes)?;
        if !(1..=self.calls - self.known).contains(&count) {
            return None;
        }
        self.known += count;
        self.so_far.push(Part::Results { count, bytes, fds, nanos });
        if let Some(error) = stopped {
            self.so_far.push(Part::Instead(error));
        }
        Some(())
    }

    pub(super) fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.so_far)
    }
}
