//! When a send waits for others, so that they leave in one write: never for a time, only for those that can run at once.
//!
//! ```text
//!  one task, one send after the other:   push write   push write   push write
//!  sends of several tasks, or at once:   push push push … ─ all have run ─▶ write, by the first that comes back
//! ```
//!
//! A send that has reason to expect others lets its frame in and wakes itself, which puts it behind all that is ready. Each does
//! that for itself, and whoever comes back first writes for all: so none waits for another one's future, which may never be
//! polled again. This file only says when; see `departure.rs`.

use std::task::Waker;

/// After one that gathered nobody, so many sends are not tempted again.
const SOBER: u8 = 16;

/// Who sends at the moment, as far as it can be told.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// How many frames wait for the others.
    gathered: usize,
    /// Whose send was the last one. An address that is used again is a wrong guess, and no harm.
    last: usize,
    /// How many sends are still not tempted.
    sober: u8,
}

impl Gathering {
    /// A frame was let in, by a send with this waker, when so many others were begun and had not let theirs in. Says whether
    /// it is to wait for others.
    pub(super) fn join(&mut self, waker: &Waker, due: usize) -> bool {
        let last = std::mem::replace(&mut self.last, waker.data().addr());
        if self.gathered == 0 {
            let several = due > 0 || (last != 0 && last != self.last);
            if !several || self.sober > 0 {
                self.sober -= u8::from(several);
                return false;
            }
        }
        self.gathered += 1;
        true
    }

    /// All that has gathered is being written.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.gathered) == 1 {
            self.sober = SOBER;
        }
    }
}
