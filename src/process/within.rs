//! A bound on how long something may take, in real time.
//!
//! A runtime's clock may run ahead of that: where it is paused, as in tests, it jumps to the next timer whenever all tasks
//! wait, and a process is nothing that tokio knows to wait for.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time;

use super::keeper::call_in;
use super::timer::Timer;

/// The longest stretch of time that is measured in one piece.
const STEP: Duration = Duration::from_secs(1);

/// The future's output, unless that takes longer.
///
/// Steps are counted, and little more is measured than one of them: a pause of the whole machine, or of this process, costs one,
/// and is held against nobody.
///
/// # Cancel safety
///
/// Dropping it drops the future.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    // No less than one.
    let steps = u32::try_from(limit.as_secs() / STEP.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    for _ in 0..steps {
        let output = step(limit / steps, future.as_mut()).await;
        if output.is_some() {
            return output;
        }
    }
    None
}

async fn step<F: Future>(limit: Duration, mut future: Pin<&mut F>) -> Option<F::Output> {
    let begun = Instant::now();
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
        output = future => Some(output),
        () = over.notified() => None,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A start of which the whole machine, or this process alone, was paused for as long as it may take failed for that.
    #[tokio::test]
    async fn a_pause_is_held_against_nobody() {
        const LIMIT: Duration = Duration::from_millis(1500);
        let slow = async {
            thread::sleep(LIMIT);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(within(LIMIT, slow).await, Some(()));
        assert_eq!(within(Duration::from_millis(1), std::future::pending::<()>()).await, None);
    }
}
