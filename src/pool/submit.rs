//! Submitted tasks seen from their callers: the `Submit` future and the `TaskHandle`.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::job::{Awaits, Job, Outcome, Wishes};
use super::look::Look;
use super::state::Shared;
use crate::error::TaskError;
use crate::process::keeper::is_forked_copy;
use crate::process::start;
use crate::task::{self, Task};

/// A task's way through the pool, from [`ProcessPool::submit`](crate::ProcessPool::submit): a future of its result.
///
/// Nothing happens before it is polled for the first time: then the task is encoded and takes its place in the queue,
/// and from there on it makes progress whether it is polled or not.
///
/// # Cancel safety
///
/// Dropping it cancels the task: queued, it never runs; running, its worker is killed and replaced. No other task is hit.
#[must_use = "a submitted task does nothing unless it is awaited"]
pub struct Submit<T: Task> {
    shared: Arc<Shared>,
    wishes: Wishes,
    stage: Stage<T>,
}

enum Stage<T> {
    Unsent(T),
    Sent(Claim),
    Over,
}

impl<T: Task> Submit<T> {
    pub(super) fn new(shared: Arc<Shared>, task: T) -> Self {
        Self { shared, wishes: Wishes::default(), stage: Stage::Unsent(task) }
    }

    /// Bounds how long the task may run, counted from its start in a worker: waiting for a slot takes none of it. After
    /// that its worker is killed, and this resolves to [`TimedOut`](TaskError::TimedOut).
    ///
    /// Once it has been polled this has no effect.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.wishes.timeout = Some(timeout);
        self
    }

    /// Lets the task run again, up to so many times, when its worker dies while it runs. Without it a task that was begun
    /// is never begun again.
    ///
    /// Only deaths count: a panic is an answer, and a timeout is final. The pool keeps the task's file descriptors for as long
    /// as it may run again, so what they are the other end of sees none of it let go of before that.
    ///
    /// A task that holds an end of a channel, a client, or an object of [`sync`](crate::sync) is not begun again: nobody knows how
    /// far the conversation had come that its first run had on it. Files, shared bytes and ends of a
    /// [`queue`](crate::queue) are no such thing.
    pub fn retries(mut self, retries: u32) -> Self {
        self.wishes.retries = retries;
        self
    }

    /// Names the task in errors, in [`status`](crate::ProcessPool::status) and in traces, instead of its function: say, by
    /// what it works on.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// multiproc::init();
    /// let pool = multiproc::ProcessPool::new(1);
    /// let died = pool.submit(multiproc::call(|()| -> u8 { std::process::exit(3) }, ())).name("cat.png").await;
    /// assert!(died.unwrap_err().to_string().contains("while it ran cat.png"));
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.wishes.name = Some(name.into());
        self
    }
}

/// The task is moved out before anything is polled in place.
impl<T: Task> Unpin for Submit<T> {}

impl<T: Task> Future for Submit<T> {
    type Output = Result<T::Output, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Stage::Unsent(_) = self.stage
            && let Stage::Unsent(task) = std::mem::replace(&mut self.stage, Stage::Over)
        {
            let wishes = std::mem::take(&mut self.wishes);
            let job = prepare(&self.shared, &task, wishes, Awaits::Outcome(Some(cx.waker().clone())))?;
            drop(task);
            self.shared.submit(Arc::clone(&job))?;
            let mut claim = Claim::looking(&self.shared, job);
            // However soon it has an outcome, we are woken for it.
            claim.look_again(cx);
            self.stage = Stage::Sent(claim);
            return Poll::Pending;
        }
        let Stage::Sent(claim) = &mut self.stage else { return Poll::Ready(Err(TaskError::Cancelled)) };
        let outcome = ready!(claim.poll(cx));
        Poll::Ready(result_of(outcome))
    }
}

impl<T: Task> fmt::Debug for Submit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submit").field("task", &std::any::type_name::<T>()).finish_non_exhaustive()
    }
}

/// Encodes a task into a job that is not in the queue yet.
pub(super) fn prepare<T: Task>(
    shared: &Shared,
    task: &T,
    mut wishes: Wishes,
    awaits: Awaits,
) -> Result<Arc<Job>, TaskError> {
    start::permitted()?;
    let parcel = task::pack(task, shared.settings.plan.max_body)?;
    wishes.timeout = wishes.timeout.or(shared.settings.task_timeout);
    Ok(Job::new(&shared.settings.name, parcel, wishes, awaits, None))
}

/// A job that somebody waits for; dropping it cancels the job.
#[derive(Debug)]
pub(super) struct Claim {
    job: Option<Arc<Job>>,
    /// Whether whoever waits looks for the outcome before he sleeps.
    look: Option<Box<Look>>,
}

impl Claim {
    pub(super) fn new(job: Arc<Job>) -> Self {
        Self { job: Some(job), look: None }
    }

    /// One of a job that was given to a pool just now, whose outcome is looked for if it has to be.
    pub(super) fn looking(shared: &Arc<Shared>, job: Arc<Job>) -> Self {
        let look = Look::begin(shared, &job);
        Self { job: Some(job), look }
    }

    pub(super) fn shared_job(&self) -> Option<Arc<Job>> {
        self.job.clone()
    }

    pub(super) fn job(&self) -> Option<&Job> {
        self.job.as_deref()
    }

    /// Waits for the outcome; afterwards there is nothing left to cancel.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(job) = &self.job else { return Poll::Ready(Err(TaskError::Cancelled.into())) };
        // Passed on where it lies.
        let outcome = job.poll_outcome(cx);
        if outcome.is_ready() {
            (self.job, self.look) = (None, None);
        } else if let Err(error) = start::permitted() {
            // In a forked copy: it is the original that gets it.
            return Poll::Ready(Err(TaskError::from(error).into()));
        } else {
            self.look_again(cx);
        }
        outcome
    }

    fn look_again(&mut self, cx: &mut Context<'_>) {
        if self.look.as_mut().is_some_and(|look| !look.again(cx)) {
            self.look = None;
        }
    }

    /// Gives the claim up and lets the job go on. The queue and the worker hold it for as long as they need.
    fn forget(&mut self) {
        if let Some(job) = self.job.take() {
            job.detach();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In a forked copy of this process it is the original that waits for it, and a lock may be held for good.
        if let Some(job) = self.job.take()
            && !is_forked_copy()
            && let Some(seat) = job.abandon()
        {
            seat.bell.notify_one();
        }
    }
}

fn result_of<R: DeserializeOwned>(outcome: Outcome) -> Result<R, TaskError> {
    match outcome {
        Ok(mut frame) => task::unpack(&mut frame),
        Err(error) => Err(*error),
    }
}

/// A task that has its slot: from [`ProcessPool::spawn`](crate::ProcessPool::spawn) and
/// [`try_submit`](crate::ProcessPool::try_submit). Await it for the result.
///
/// # Cancel safety
///
/// Dropping it cancels the task, as [`abort`](Self::abort) does; [`detach`](Self::detach) doesn't. A pending
/// `(&mut handle).await` may be dropped and taken up again.
///
/// Polled again after it gave its result, it gives [`Cancelled`](TaskError::Cancelled).
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
        let outcome = ready!(self.claim.poll(cx));
        Poll::Ready(result_of(outcome))
    }
}

impl<R> fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("worker_id", &self.worker_id()).finish_non_exhaustive()
    }
}
