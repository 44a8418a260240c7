//! A bound on how long something may take, in real time.
//!
//! A runtime's clock may run ahead of that: where it is paused, as in tests, it jumps to the next timer whenever all tasks
//! wait, and a process is nothing that tokio knows to wait for.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time;

use super::keeper::call_in;
use super::timer::Timer;

/// The future's output, unless that takes longer.
///
/// # Cancel safety
///
/// Dropping it drops the future.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let begun = Instant::now();
    let mut future = pin!(future);
    tokio::select! {
        biased;
        output = &mut future => return Some(output),
        () = Timer::new(time::Instant::now() + limit) => {}
    }
    let left = limit.saturating_sub(begun.elapsed());
    if left.is_zero() {
        return None;
    }
    // The keeper's clock is nobody's to pause.
    let over = Arc::new(Notify::new());
    let ring = Arc::clone(&over);
    let is_told = call_in(
        left,
        Arc::new(move || {
            ring.notify_one();
            false
        }),
    );
    if !is_told {
        return None;
    }
    tokio::select! {
        biased;
        output = &mut future => Some(output),
        () = over.notified() => None,
    }
}
