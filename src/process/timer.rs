//! A timer of whichever runtime polls it: tokio's own belongs to the one in which it was made, and panics when that has ended.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::{Handle, Id};
use tokio::task::coop;
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    #[derive(Debug)]
    pub(super) struct Timer {
        runtime: Option<Id>,
        #[pin]
        sleep: Sleep,
    }
}

impl Timer {
    /// Ready from then on.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time.
    pub(super) fn new(until: Instant) -> Self {
        Self { runtime: runtime(), sleep: sleep_until(until) }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let here = runtime();
        if here.is_some() && here != *this.runtime {
            let until = this.sleep.deadline();
            this.sleep.set(sleep_until(until));
            *this.runtime = here;
        }
        // Where the task has used up its share of the runtime, the time is over all the same.
        pin!(coop::unconstrained(this.sleep)).poll(cx)
    }
}

fn runtime() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}
