//! What the keeper is asked to do later, on its own thread, for what has to be looked at now and then.
//!
//! A runtime has timers of its own; but while one of them is set, each wait of its reactor sets a timer of the kernel's and
//! takes it back, and where a hypervisor is asked for that, it takes longer than most other things that a task needs.

use std::time::{Duration, Instant};

use super::{KEEPER, Keeper};

/// Makes a call that long from now, and again after as long each time that it says so. It must not take long.
///
/// `false`: this process has no keeper, as it has started nothing yet.
pub(crate) fn call_in(after: Duration, call: impl FnMut() -> bool + Send + 'static) -> bool {
    let Some(keeper) = KEEPER.get() else { return false };
    keeper.desk().calls.push(Call { at: Instant::now() + after, every: after, make: Box::new(call) });
    keeper.ring();
    true
}

/// A call that is to be made.
pub(super) struct Call {
    pub(super) at: Instant,
    every: Duration,
    make: Box<dyn FnMut() -> bool + Send>,
}

impl Keeper {
    /// Makes the calls that are due.
    pub(super) fn make_calls(&self) {
        let mut due: Vec<_> = {
            let mut desk = self.desk();
            if desk.calls.is_empty() {
                return;
            }
            let now = Instant::now();
            desk.calls.extract_if(.., |call| call.at <= now).collect()
        };
        // Without the lock, which what is called may want.
        due.retain_mut(|call| {
            let again = (call.make)();
            call.at = Instant::now() + call.every;
            again
        });
        self.desk().calls.append(&mut due);
    }
}
