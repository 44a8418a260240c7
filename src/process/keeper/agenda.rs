//! What the keeper has to come back to: dead children whose pipes are still held. What is then done is in the keeper.

use std::time::{Duration, Instant};

/// For how long those who wait are left waiting when a dead child's pipes are still held by something.
///
/// Most often that is another thread of ours between clone and exec of its own child, which is over in a moment; so
/// nearly always a child is reaped by the time that somebody learns of its end.
const HOLD_BACK: Duration = Duration::from_millis(5);

/// A dead child whose pipes are still held.
pub(super) struct Linger {
    pub(super) key: u64,
    pub(super) tell_at: Option<Instant>,
    pub(super) until: Instant,
}

/// What the keeper has to come back to.
#[derive(Default)]
pub(super) struct Agenda {
    pub(super) lingering: Vec<Linger>,
}

impl Agenda {
    pub(super) fn is_empty(&self) -> bool {
        self.lingering.is_empty()
    }

    /// When something is due.
    pub(super) fn next(&self) -> impl Iterator<Item = Instant> {
        self.lingering.iter().map(|linger| linger.tell_at.unwrap_or(linger.until).min(linger.until))
    }

    /// Lets what a dead child left behind write on for its drain grace.
    pub(super) fn let_linger(&mut self, key: u64, drain: Duration) {
        let now = Instant::now();
        self.lingering.push(Linger { key, tell_at: Some(now + HOLD_BACK), until: now + drain });
    }

    pub(super) fn lingers(&self, key: u64) -> bool {
        self.lingering.iter().any(|linger| linger.key == key)
    }
}
