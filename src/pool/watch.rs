//! A look at the workers from time to time, while they have tasks. It finds what no event tells of: a worker that does
//! nothing, and one that has answered some of its tasks and is busy with the next, which may take long.
//!
//! It only rings; what follows is decided in `serving.rs` and `dispatch.rs`. Looks at who does nothing are counted and no
//! times taken, so that a pause of the whole machine, or of this process, is held against nobody.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::state::{Phase, Shared, State};
use crate::process::keeper::Ticks;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);

/// The same while some worker has tasks ahead; only answers are looked for each time.
pub(super) const LOOK_AHEAD: Duration = Duration::from_millis(1);

/// After so many looks at which no worker had a task there are no more, until one gets a task.
const QUIET: u32 = 5;

/// Starts looking. Without a runtime there is nobody to do anything about what would be seen.
pub(super) fn spawn(runtime: Option<&Handle>, shared: &Arc<Shared>) {
    let watch = Watch { shared: Arc::downgrade(shared), on: true, looked: Instant::now(), quiet: 0 };
    if let Some(runtime) = runtime {
        drop(runtime.spawn(watch.run()));
    }
}

/// It does not keep the pool alive.
struct Watch {
    shared: Weak<Shared>,
    on: bool,
    /// When it was last looked who does nothing.
    looked: Instant,
    /// How many looks in a row have found no task.
    quiet: u32,
}

impl Watch {
    async fn run(mut self) {
        // It is there: somebody has started a worker.
        let Some(ticks) = Ticks::start(LOOK).map(Arc::new) else { return };
        {
            let Some(shared) = self.shared.upgrade() else { return };
            let mut state = shared.state();
            state.ticks = Some(Arc::clone(&ticks));
            if state.hurried {
                ticks.set(LOOK_AHEAD);
            }
        }
        while self.on {
            ticks.tick().await;
            let Some(shared) = self.shared.upgrade() else { return };
            self.look(&mut shared.state(), &ticks);
        }
    }

    fn look(&mut self, state: &mut State, ticks: &Ticks) {
        // A slow tick is a look, however early it seems to be.
        let all = !state.hurried || self.looked.elapsed() >= LOOK;
        let (mut any, mut ahead) = (false, false);
        for seat in &state.seats {
            let mut desk = seat.desk();
            any |= desk.is_to_be_watched();
            ahead |= desk.has_tasks_ahead();
            if desk.has_been_silent(LOOK_AHEAD) || all && desk.look() {
                seat.bell.notify_one();
            }
        }
        if state.hurried && !ahead {
            state.hurried = false;
            ticks.set(LOOK);
        }
        if all {
            self.looked = Instant::now();
            self.quiet = if any { 0 } else { self.quiet + 1 };
            // Under the same lock as the look, or a task that is given now would have nobody who looks.
            self.on = self.quiet < QUIET && state.phase != Phase::Cancelled;
            if !self.on {
                stop(state);
            }
        }
    }
}

fn stop(state: &mut State) {
    state.watched = false;
    state.hurried = false;
    state.ticks = None;
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its runtime has ended; the next task may come from another one.
        if self.on
            && let Some(shared) = self.shared.upgrade()
        {
            stop(&mut shared.state());
        }
    }
}
