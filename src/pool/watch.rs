//! Looks at the workers from time to time, while they have tasks, for what no event tells of.
//!
//! They only ring; what follows is decided in `serving.rs` and `recall.rs`. The keeper has the clock for them. That starts may
//! be tried again is no event either.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use super::state::{Phase, Shared};
use crate::process::keeper::{call_in, is_forked_copy};

/// From one look to the next at workers that may do nothing.
const LOOK: Duration = Duration::from_millis(20);

/// From one look to the next at workers that have tasks ahead.
const LOOK_AHEAD: Duration = Duration::from_millis(1);

/// After so many looks at which no worker had a task there are no more, until one gets a task.
const QUIET: u32 = 5;

/// Starts looking for workers of a runtime that do nothing.
pub(super) fn spawn(runtime: &Handle, shared: &Arc<Shared>) {
    let watch = Watch { shared: Arc::downgrade(shared), runtime: runtime.id(), on: true };
    drop(runtime.spawn(watch.run()));
}

/// Looks at the workers whose supervisors are in the same runtime. It does not keep the pool alive.
struct Watch {
    shared: Weak<Shared>,
    runtime: Id,
    on: bool,
}

impl Watch {
    /// Looks are counted and no times taken, and they are made in the runtime that would have to do something, so that no
    /// pause of the whole machine, of this process or of that runtime is held against anybody.
    async fn run(mut self) {
        let mut quiet = 0;
        let time = Arc::new(Notify::new());
        let ring = {
            let time = Arc::clone(&time);
            // Once each time: in a runtime that stands still nobody asks again, and nobody is rung for.
            Arc::new(move || {
                time.notify_one();
                false
            })
        };
        while self.on {
            if !call_in(LOOK, Arc::clone(&ring)) {
                return;
            }
            time.notified().await;
            let Some(shared) = self.shared.upgrade() else { return };
            let mut state = shared.state();
            let mut any = false;
            for seat in state.seats.iter().filter(|seat| seat.is_in(self.runtime)) {
                let mut desk = seat.desk();
                any |= desk.is_to_be_watched();
                if desk.look() {
                    seat.bell.notify_one();
                }
            }
            // Where starts had failed, or their runtime has ended, those that live may be busy for long.
            state.runtime.get_or_insert_with(Handle::current);
            shared.open_seats(&mut state);
            quiet = if any { 0 } else { quiet + 1 };
            // Under the same lock as the look, or a task that is given now would have nobody who looks.
            self.on = quiet < QUIET && state.phase != Phase::Cancelled;
            if !self.on {
                state.unwatch(self.runtime);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its runtime has ended, and with it its workers. In a forked copy of this process a lock may be held for good.
        if self.on
            && !is_forked_copy()
            && let Some(shared) = self.shared.upgrade()
        {
            shared.state().unwatch(self.runtime);
        }
    }
}

/// Looks, until nobody has tasks ahead, for workers that are busy with a task which takes long: what they have answered
/// before it they say nothing of, and what they have ahead has to go elsewhere. Whichever runtime a worker's supervisor is in, it is rung.
pub(super) fn look_ahead(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    let look = move || {
        let Some(shared) = shared.upgrade() else { return false };
        let mut state = shared.state();
        let mut any = false;
        for seat in &state.seats {
            let desk = seat.desk();
            any |= desk.has_tasks_ahead();
            if desk.has_been_silent(LOOK_AHEAD) || desk.is_late() {
                seat.bell.notify_one();
            }
        }
        state.watched_ahead = any;
        any
    };
    let looks = call_in(LOOK_AHEAD, Arc::new(look));
    debug_assert!(looks, "whoever has tasks was started by the keeper");
}
