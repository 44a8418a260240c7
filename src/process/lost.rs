//! Processes that go on without the thread that ran their tasks, which native code may end by itself. Then no answer comes, and
//! no end either: the thread that watches the parent lives on.

use std::future::Future;
use std::mem;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::within::within;
use crate::sys::proc;

/// From one look to the next at a process whose answer somebody waits for. Nothing reports this, so it is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The looks at one process, which go on where the one who waited before has left off.
#[derive(Debug)]
pub(crate) struct Looks {
    last: Instant,
    lost: bool,
}

impl Looks {
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), lost: false }
    }

    /// The future's output; `None` if the process has lost its thread and the future is still not ready after that.
    ///
    /// Two looks in a row have to see it: for a moment, which is long where much memory is to be freed, an ending process looks
    /// the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the future.
    pub(crate) async fn unless_lost<F: Future>(&mut self, pid: u32, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        loop {
            let output = within(LOOK.saturating_sub(self.last.elapsed()), &mut future).await;
            if output.is_some() {
                return output;
            }
            self.last = Instant::now();
            let before = mem::replace(&mut self.lost, has_lost_its_thread(pid));
            if before && self.lost {
                return None;
            }
        }
    }
}

/// Whether a process goes on without its first thread: a zombie that has not exited; proc_pid_stat(5). Where /proc does not show
/// it nobody is taken for lost.
pub(crate) fn has_lost_its_thread(pid: u32) -> bool {
    let stat = proc::read(pid, "stat").unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
