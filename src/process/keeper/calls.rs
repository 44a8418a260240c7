//! What the keeper is asked to do later, on its own thread, for what has to be looked at now and then.
//!
//! A runtime has timers of its own; but while one of them is set, each wait of its reactor sets a timer of the kernel's and
//! takes it back, and where a hypervisor is asked for that, it takes longer than most other things that a task needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{KEEPER, Keeper};

/// Makes a call that long from now, and again after as long each time that it says so. It must not take long. Past the end of
/// time is never.
///
/// `false`: this process has no keeper, as it has started nothing yet.
pub(crate) fn call_in(after: Duration, call: Arc<impl Fn() -> bool + Send + Sync + 'static>) -> bool {
    let Some(keeper) = KEEPER.get() else { return false };
    if let Some(at) = Instant::now().checked_add(after) {
        keeper.desk().calls.push(Call { at, every: after, make: call });
        keeper.ring();
    }
    true
}

/// A call that is to be made.
pub(super) struct Call {
    pub(super) at: Instant,
    every: Duration,
    /// Shared, so that who asks for the same call each time allocates nothing for that.
    make: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Keeper {
    /// Makes the calls that are due, without the lock, which what is called may want.
    pub(super) fn make_calls(&self) {
        let mut desk = self.desk();
        if desk.calls.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(due) = desk.calls.iter().position(|call| call.at <= now) {
            let mut call = desk.calls.swap_remove(due);
            drop(desk);
            let again = (call.make)();
            desk = self.desk();
            if again {
                call.at = Instant::now() + call.every;
                desk.calls.push(call);
            }
        }
    }
}
