//! A look at the workers from time to time, while they have tasks: it finds those that do nothing, which no event tells of.
//!
//! It only rings; what follows is decided in `dispatch.rs`. Looks are counted and no times taken, so that a pause of the whole
//! machine, or of this process, is held against nobody.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::state::{Phase, Shared};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

/// After so many looks at which no worker had a task there are no more, until one gets a task.
const QUIET: u32 = 5;

/// Starts looking. Without a runtime there is nobody to do anything about what would be seen.
pub(super) fn spawn(runtime: Option<&Handle>, shared: &Arc<Shared>) {
    let watch = Watch { shared: Arc::downgrade(shared), on: true };
    if let Some(runtime) = runtime {
        drop(runtime.spawn(watch.run()));
    }
}

/// It does not keep the pool alive.
struct Watch {
    shared: Weak<Shared>,
    on: bool,
}

impl Watch {
    async fn run(mut self) {
        let mut quiet = 0;
        while self.on {
            tokio::time::sleep(LOOK).await;
            let Some(shared) = self.shared.upgrade() else { return };
            let mut state = shared.state();
            let mut any = false;
            for seat in &state.seats {
                let mut desk = seat.desk();
                any |= desk.is_to_be_watched();
                if desk.look() {
                    seat.bell.notify_one();
                }
            }
            quiet = if any { 0 } else { quiet + 1 };
            // Under the same lock as the look, or a task that is given now would have nobody who looks.
            self.on = quiet < QUIET && state.phase != Phase::Cancelled;
            state.watched = self.on;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its runtime has ended; the next task may come from another one.
        if self.on
            && let Some(shared) = self.shared.upgrade()
        {
            shared.state().watched = false;
        }
    }
}
