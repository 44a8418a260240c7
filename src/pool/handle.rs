//! The handle of a task that has its slot.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::de::DeserializeOwned;

use super::job::Job;
use super::submit::{Claim, result_of};
use crate::error::TaskError;

/// A task that has its slot: from [`ProcessPool::spawn`](crate::ProcessPool::spawn) and
/// [`try_submit`](crate::ProcessPool::try_submit). Await it for the result.
///
/// # Cancel safety
///
/// Dropping it cancels the task, as [`abort`](Self::abort) does; [`detach`](Self::detach) doesn't. A pending
/// `(&mut handle).await` may be dropped and taken up again.
///
/// Polled again after it gave its result, it gives [`Cancelled`](TaskError::Cancelled).
///
/// # Examples
///
/// ```
/// use multiproc::{TaskError, call};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let pool = multiproc::ProcessPool::new(2);
/// let mut endless = pool.spawn(call(|()| -> () { loop { std::thread::park() } }, ())).await?;
/// let other = pool.spawn(call(|n: u64| n * 2, 21)).await?;
/// tokio::select! {
///     _ = &mut endless => unreachable!(),
///     result = other => assert_eq!(result?, 42),
/// }
/// endless.abort();
/// assert!(matches!(endless.await, Err(TaskError::Cancelled)));
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it cancels the task"]
pub struct TaskHandle<R> {
    claim: Claim,
    result: PhantomData<fn() -> R>,
}

impl<R> TaskHandle<R> {
    pub(super) fn new(claim: Claim) -> Self {
        Self { claim, result: PhantomData }
    }

    /// Cancels the task: awaiting it gives [`Cancelled`](TaskError::Cancelled), unless it has ended already. If it runs,
    /// its worker is killed and replaced.
    pub fn abort(&self) {
        if let Some(seat) = self.claim.job().and_then(Job::cancel) {
            seat.bell.notify_one();
        }
    }

    /// Lets the task run on; its result is thrown away.
    pub fn detach(mut self) {
        self.claim.forget();
    }

    /// The id of the process that runs it; `None` before a worker has begun it, and after it has ended.
    pub fn worker_id(&self) -> Option<u32> {
        self.claim.job().and_then(Job::worker_id)
    }

    /// Whether it has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.claim.job().is_none_or(|job| !job.is_wanted())
    }
}

impl<R: DeserializeOwned> Future for TaskHandle<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.claim.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => Poll::Ready(result_of(outcome)),
        }
    }
}

impl<R> fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("worker_id", &self.worker_id()).finish_non_exhaustive()
    }
}
