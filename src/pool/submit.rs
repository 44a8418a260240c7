//! Submitted tasks seen from their callers: how they get into the pool, the `Submit` future, and who waits for an outcome.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::ProcessPool;
use super::glance;
use super::handle::TaskHandle;
use super::job::{Awaits, Job, Outcome, Wishes};
use super::look::Look;
use super::state::Shared;
use crate::error::{TaskError, TrySubmitError};
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
    /// `true`: it is to be looked for when this is polled next.
    Sent(Claim, bool),
    Over,
}

impl<T: Task> Submit<T> {
    pub(super) fn new(shared: Arc<Shared>, task: T) -> Self {
        Self { shared, wishes: Wishes::default(), stage: Stage::Unsent(task) }
    }

    /// Bounds how long the task may run, counted from its start in a worker: waiting for a slot takes none of it. After
    /// that its worker is killed, and this resolves to [`TimedOut`](TaskError::TimedOut).
    ///
    /// Zero is over as soon as the task is seen to run, which is some time later: a short one may be done by then, and has its result.
    ///
    /// Once it has been polled this has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use multiproc::{TaskError, call};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// multiproc::init();
    /// let pool = multiproc::ProcessPool::new(1);
    /// let endless = call(|()| loop { std::thread::park() }, ());
    /// let result: Result<(), _> = pool.submit(endless).timeout(Duration::from_millis(20)).await;
    /// assert!(matches!(result, Err(TaskError::TimedOut)));
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let pool = multiproc::ProcessPool::new(1);
    /// let fragile = multiproc::call(|()| match multiproc::worker().attempt() {
    ///     1 => std::process::abort(),
    ///     attempt => attempt,
    /// }, ());
    /// assert_eq!(pool.submit(fragile).retries(1).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
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
        let this = &mut *self;
        if let Stage::Unsent(task) = &this.stage {
            let wishes = std::mem::take(&mut this.wishes);
            let job = prepare(&this.shared, task, wishes, Awaits::Outcome(Some(cx.waker().clone())));
            // Its task goes before it is known to anybody.
            this.stage = Stage::Over;
            let job = job?;
            let glances = this.shared.submit(Arc::clone(&job))? && glance::begin(&job);
            this.stage = Stage::Sent(Claim::looking(&this.shared, job), glances);
            if let Stage::Sent(claim, false) = &mut this.stage {
                // However soon it has an outcome, we are woken for it.
                claim.look_again();
            }
            return Poll::Pending;
        }
        let Stage::Sent(claim, glances) = &mut this.stage else { return Poll::Ready(Err(TaskError::Cancelled)) };
        if std::mem::take(glances)
            && let Some(job) = claim.job()
        {
            this.shared.glance(job);
        }
        match &mut claim.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => Poll::Ready(result_of(outcome)),
        }
    }
}

impl<T: Task> fmt::Debug for Submit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submit").field("task", &std::any::type_name::<T>()).finish_non_exhaustive()
    }
}

impl ProcessPool {
    /// Submits a task and waits until it has a slot: this is the backpressure for callers that don't wait for results
    /// one by one.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Self::submit), as far as they occur before the task has a slot.
    ///
    /// # Panics
    ///
    /// As for `submit`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the task.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let pool = multiproc::ProcessPool::new(2);
    /// let mut handles = Vec::new();
    /// for n in 0..10_u64 {
    ///     // No more than two of them run, and the loop is no further ahead than that.
    ///     handles.push(pool.spawn(multiproc::call(|n| n * n, n)).await?);
    /// }
    /// assert_eq!(handles.pop().unwrap().await?, 81);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spawn<T: Task>(&self, task: T) -> Result<TaskHandle<T::Output>, TaskError> {
        let job = prepare(self.shared(), &task, Wishes::default(), Awaits::Slot)?;
        drop(task);
        self.shared().submit(Arc::clone(&job))?;
        let claim = Claim::looking(self.shared(), Arc::clone(&job));
        std::future::poll_fn(|cx| job.poll_assigned(cx)).await.map_err(|error| *error)?;
        Ok(TaskHandle::new(claim))
    }

    /// Submits a task if there is a free slot for it and nobody waits for one.
    ///
    /// # Errors
    ///
    /// `Full` and `Closed` give the task back; `Refused` says why it can't be sent at all.
    ///
    /// # Panics
    ///
    /// In a runtime without time or I/O.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::{TrySubmitError, call};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let pool = multiproc::ProcessPool::new(1);
    /// let task = || call(|n: u64| n + 1, 41);
    /// let running = pool.try_submit(task())?;
    /// // The only slot is taken.
    /// assert!(matches!(pool.try_submit(task()), Err(TrySubmitError::Full(_))));
    /// assert_eq!(running.await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit<T: Task>(&self, task: T) -> Result<TaskHandle<T::Output>, TrySubmitError<T>> {
        start::permitted().map_err(|error| TrySubmitError::Refused(error.into()))?;
        match self.shared().try_reserve() {
            Ok(true) => {}
            Ok(false) => return Err(TrySubmitError::Full(task)),
            Err(TaskError::Closed) => return Err(TrySubmitError::Closed(task)),
            Err(error) => return Err(TrySubmitError::Refused(error)),
        }
        let slot = Reserved(self.shared());
        let job = prepare(self.shared(), &task, Wishes::default(), Awaits::Slot);
        let job = job.map_err(TrySubmitError::Refused)?;
        std::mem::forget(slot);
        self.shared().submit_reserved(&job);
        Ok(TaskHandle::new(Claim::looking(self.shared(), job)))
    }
}

/// A slot for a task that is being encoded; other people's code may panic there.
struct Reserved<'a>(&'a Arc<Shared>);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.unreserve();
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
        // Once it has ended nobody else has it any more, mostly, and no lock is needed.
        if let Some(job) = self.job.take_if(|job| !job.is_wanted()) {
            match Arc::try_unwrap(job) {
                Ok(job) => {
                    self.look = None;
                    return Poll::Ready(job.into_outcome());
                }
                Err(job) => self.job = Some(job),
            }
        }
        let Some(job) = &self.job else { return Poll::Ready(Err(TaskError::Cancelled.into())) };
        // Passed on where it lies.
        let outcome = job.poll_outcome(cx);
        if outcome.is_ready() {
            (self.job, self.look) = (None, None);
        } else if let Err(error) = start::permitted() {
            // In a forked copy: it is the original that gets it.
            return Poll::Ready(Err(TaskError::from(error).into()));
        } else {
            self.look_again();
        }
        outcome
    }

    fn look_again(&mut self) {
        if let (Some(job), Some(look)) = (&self.job, &self.look)
            && !look.again(job)
        {
            self.look = None;
        }
    }

    /// Gives the claim up and lets the job go on. The queue and the worker hold it for as long as they need.
    pub(super) fn forget(&mut self) {
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

/// What a task came to, by its outcome. That is left where it lies: to move what was just written takes long.
pub(super) fn result_of<R: DeserializeOwned>(outcome: &mut Outcome) -> Result<R, TaskError> {
    match outcome {
        Ok(answer) => task::unpack(answer),
        Err(error) => Err(std::mem::replace(&mut **error, TaskError::Cancelled)),
    }
}
