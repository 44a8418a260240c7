//! The one handle whose drop ends a child. What that sends, and when it is reaped, is the business of `kept` and the keeper.

use std::time::Duration;

use super::{Kept, keeper};

/// Ends a child and its group when it is dropped. It never blocks: the keeper kills after a grace, and reaps.
#[must_use = "dropping it kills the child"]
#[derive(Debug)]
pub(crate) struct KillOnDrop {
    kept: Kept,
    armed: bool,
    grace: Duration,
}

impl KillOnDrop {
    pub(in crate::process) fn new(kept: Kept) -> Self {
        Self { kept, armed: true, grace: Duration::ZERO }
    }

    /// Leaves it so long between SIGTERM and SIGKILL; without this it is killed at once.
    pub(in crate::process) fn ask_first(&mut self, grace: Duration) {
        self.grace = grace;
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The child itself, which nothing kills any more.
    pub(crate) fn disarm(mut self) -> Kept {
        self.armed = false;
        self.kept.leave_to_keeper();
        self.kept.clone()
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // A forked copy of this process has a copy of the handle, and no child.
        if self.armed && keeper::no_forked_copy().is_ok() {
            self.kept.end(self.grace);
        }
    }
}

impl Kept {
    /// Kills its group, at once or, if there is a grace, after a SIGTERM and that.
    fn end(&self, grace: Duration) {
        if grace.is_zero() {
            let _ = self.signal_group(libc::SIGKILL);
        } else {
            let _ = self.ask_group();
            self.kill_group_in(grace);
        }
        self.leave_to_keeper();
    }

    /// Nobody waits for it any more.
    fn leave_to_keeper(&self) {
        if self.pidfd().is_some() {
            keeper::listen_to(self.0.key);
        }
    }
}
