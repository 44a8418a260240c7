//! In which order a broker does what its holders ask: what was asked before comes before, and what was said before, or has ended
//! before, is known.
//!
//! Each holder's socket is read by a task of its own, whenever that is woken, so what comes last may well be read first. But whoever
//! asks because of something, as a message told of it or a process was waited for, asks after that had come to the broker's sockets.
//! So a question that was read has its turn once what had come by then has been read, too. That is one or two turns of the thread:
//! nobody waits for somebody else to say something.
//!
//! It knows nothing of what is asked.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::task::{coop, yield_now};

use crate::sys::clock::monotonic_nanos;

/// How many turns of the thread a question waits at the most for holders of whom there is always more to read. In each, over a
/// hundred of their messages are: in all, more than a socket holds.
const MOST_TURNS: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct Order {
    line: Mutex<Line>,
    /// How many holders are busy; see [`Attendance`].
    busy: AtomicUsize,
}

#[derive(Debug, Default)]
struct Line {
    /// The questions whose turn has not come.
    waiting: BTreeMap<Key, Option<Waker>>,
    /// How many have come.
    number: u64,
    /// Nobody who comes from now on goes before what was asked then.
    since: u64,
}

/// When a question was asked, and which it is in the order in which they came.
type Key = (u64, u64);

impl Order {
    /// Whoever comes from now on comes behind this one, whatever they say.
    fn close_before(&self, (asked, _): Key) {
        let mut line = self.line();
        line.since = line.since.max(asked);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That one holder is attended to, by a task of this thread.
#[derive(Debug)]
pub(super) struct Attendance {
    order: Arc<Order>,
    /// It has something to be read of which the reactor will not tell: its task has never run, or had no budget left.
    is_busy: AtomicBool,
}

impl Attendance {
    pub(super) fn new(order: &Arc<Order>) -> Arc<Self> {
        order.busy.fetch_add(1, Ordering::AcqRel);
        Arc::new(Self { order: Arc::clone(order), is_busy: AtomicBool::new(true) })
    }

    /// Notes how its task stands, in which this is called when it was polled.
    pub(super) fn polled(&self) {
        self.set_busy(!coop::has_budget_remaining());
    }

    fn set_busy(&self, busy: bool) {
        match (self.is_busy.swap(busy, Ordering::AcqRel), busy) {
            (false, true) => _ = self.order.busy.fetch_add(1, Ordering::AcqRel),
            (true, false) => _ = self.order.busy.fetch_sub(1, Ordering::AcqRel),
            _ => {}
        }
    }

    fn are_others_busy(&self) -> bool {
        self.order.busy.load(Ordering::Acquire) > usize::from(self.is_busy.load(Ordering::Acquire))
    }

    /// Enters a question of this holder that has just come, and was asked then: what holders say is all that is known of it.
    pub(super) fn enter(self: &Arc<Self>, asked: u64) -> Turn {
        let mut line = self.order.line();
        line.number += 1;
        // Another clock, of another time namespace or none, must not put everybody else in front of it or behind.
        let key = (asked.min(monotonic_nanos()).max(line.since), line.number);
        line.waiting.insert(key, None);
        Turn { holder: Arc::clone(self), key }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

/// A question's place in the order, which it has until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    holder: Arc<Attendance>,
    key: Key,
}

impl Turn {
    /// Waits until it is its turn.
    pub(super) async fn comes(&self) {
        for turn in 0..MOST_TURNS {
            // It comes back when the reactor has woken those who have something to read.
            yield_now().await;
            // The first time perhaps before they run, as it is in one task with what else its holder asks; then behind them.
            if turn > 0 && !self.holder.are_others_busy() {
                break;
            }
        }
        self.holder.order.close_before(self.key);
        poll_fn(|cx| {
            let mut line = self.holder.order.line();
            if line.waiting.first_key_value().is_some_and(|(first, _)| *first == self.key) {
                return Poll::Ready(());
            }
            line.waiting.insert(self.key, Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = self.holder.order.line();
        line.waiting.remove(&self.key);
        let next = line.waiting.first_entry().and_then(|mut first| first.get_mut().take());
        drop(line);
        if let Some(next) = next {
            next.wake();
        }
    }
}
