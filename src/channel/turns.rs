//! Turns of the tasks that wait for one socket: who has waited longest goes first.
//!
//! tokio wakes everyone who waits for a readiness, the latest first. Without turns, the task that comes back soonest would
//! get all. Nobody waits for the one whose turn it is, as that one may never be polled again: the others let it go first,
//! by one trip through the scheduler for each time they are woken. Who has not come for two rings of the clock is no longer
//! waited for, until he does. That is fair on the whole, not in each case.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::task::yield_now;

use super::background;
use crate::task::unheeded;

/// Each so many rings are for all that wait, and not for the first alone.
const ALL: u32 = 20;

/// The tasks of this process that wait, by when they came.
#[derive(Debug, Default)]
pub(super) struct Turns(Arc<Mutex<Line>>);

#[derive(Debug, Default)]
struct Line {
    tickets: u64,
    waiting: BTreeMap<u64, Wait>,
    /// How often somebody found nothing.
    failures: u64,
    /// Whether there is a clock that rings.
    is_rung: bool,
}

/// Whether somebody is to try again, and who is to be woken for that.
#[derive(Debug, Default)]
struct Wait {
    tries: bool,
    waker: Option<Waker>,
    rung: Rung,
}

/// What has become of the last ring that was for somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rung {
    /// He has come since, or there was none.
    #[default]
    Heard,
    Called,
    /// He had not come by the next one: the others have their turns without him.
    Missed,
}

/// A place in the line, for as long as it is held.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turns {
    pub(super) fn enter(&self) -> Turn<'_> {
        let mut line = self.line();
        line.tickets += 1;
        let ticket = line.tickets;
        line.waiting.insert(ticket, Wait::default());
        Turn { turns: self, ticket }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.0)
    }

    /// Has a clock ring from now on, for as long as anybody waits, unless there is one. Without one, those who wait learn what the
    /// kernel tells.
    fn ring(&self) {
        let line = Arc::clone(&self.0);
        let mut rings = 0;
        let rung = background::repeat(move || {
            rings += 1;
            let mut line = lock(&line);
            line.is_rung = !line.waiting.is_empty();
            let goes_on = line.is_rung;
            let count = if rings % ALL == 0 { line.waiting.len() } else { 1 };
            let called = line.waiting.values_mut().filter_map(|wait| wait.call().then(|| wait.try_again()));
            let wakers: Vec<_> = called.take(count).flatten().collect();
            drop(line);
            for waker in wakers {
                unheeded(|| waker.wake());
            }
            goes_on
        });
        if rung.is_err() {
            self.line().is_rung = false;
        }
    }
}

impl Line {
    /// Whose turn it is.
    fn first(&self) -> Option<u64> {
        self.waiting.iter().find(|(_, wait)| wait.rung != Rung::Missed).map(|(ticket, _)| *ticket)
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wait {
    /// Whether a ring is for this one, who has heard the last one.
    fn call(&mut self) -> bool {
        self.rung = if self.rung == Rung::Heard { Rung::Called } else { Rung::Missed };
        self.rung == Rung::Called
    }

    fn try_again(&mut self) -> Option<Waker> {
        self.tries = true;
        self.waker.take()
    }
}

impl Turn<'_> {
    /// Whether nobody came before who is waited for.
    pub(super) fn is_first(&self) -> bool {
        self.turns.line().first().is_none_or(|first| first >= self.ticket)
    }

    /// Waits until it is time to try again, although nobody has said that there is anything: at once for who is the first by now, and
    /// then every few milliseconds. Who came before may never be polled again, so now and then it is everybody's time.
    pub(super) async fn when_again(&self) {
        poll_fn(|cx| {
            // Other people's code, as it is to drop one: not under the lock.
            let waker = cx.waker().clone();
            let mut line = self.turns.line();
            let wait = line.waiting.entry(self.ticket).or_default();
            wait.rung = Rung::Heard;
            if mem::take(&mut wait.tries) {
                return Poll::Ready(());
            }
            let former = wait.waker.replace(waker);
            let is_rung = mem::replace(&mut line.is_rung, true);
            drop(line);
            drop(former);
            if !is_rung {
                self.turns.ring();
            }
            Poll::Pending
        })
        .await;
    }

    /// Lets those who came before try before us. Says whether there may still be something after that.
    pub(super) async fn give_way(&self) -> bool {
        let before = self.turns.line().failures;
        self.is_first() || {
            yield_now().await;
            self.turns.line().failures == before
        }
    }

    /// Tells the others that a try failed.
    pub(super) fn found_nothing(&self) {
        self.turns.line().failures += 1;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        let was_first = line.first().is_none_or(|first| first >= self.ticket);
        let own = line.waiting.remove(&self.ticket);
        let next = line.first().filter(|_| was_first).and_then(|next| line.waiting.get_mut(&next)?.try_again());
        drop(line);
        if let Some(next) = next {
            unheeded(|| next.wake());
        }
        unheeded(|| drop(own));
    }
}
