//! Turns of the tasks that wait for one socket: who has waited longest goes first.
//!
//! tokio wakes everyone who waits for a readiness, the latest first. Without turns, the task that comes back soonest would
//! get all. Nobody waits for the one whose turn it is, as that one may never be polled again: the others let it go first,
//! by one trip through the scheduler for each time they are woken. That is fair on the whole, not in each case.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::yield_now;

/// The tasks of this process that wait, by when they came.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<Line>);

#[derive(Debug, Default)]
struct Line {
    tickets: u64,
    waiting: BTreeSet<u64>,
    /// How often somebody found nothing.
    failures: u64,
}

/// A place in the line, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    pub(crate) fn enter(&self) -> Turn<'_> {
        let mut line = self.line();
        line.tickets += 1;
        let ticket = line.tickets;
        line.waiting.insert(ticket);
        Turn { turns: self, ticket }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Whether nobody came before.
    pub(crate) fn is_first(&self) -> bool {
        self.turns.line().waiting.first() == Some(&self.ticket)
    }

    /// Lets those who came before try before us. Says whether there may still be something after that.
    pub(crate) async fn give_way(&self) -> bool {
        let before = self.turns.line().failures;
        self.is_first() || {
            yield_now().await;
            self.turns.line().failures == before
        }
    }

    /// Tells the others that a try failed.
    pub(crate) fn found_nothing(&self) {
        self.turns.line().failures += 1;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.line().waiting.remove(&self.ticket);
    }
}
