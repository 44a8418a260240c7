//! A bounded pool of worker processes.
//!
//! ```text
//!  caller's task                  the pool's one lock              a supervisor a worker
//!  Submit: encode ──▶ waiting ──▶ a permit ──▶ idle worker: written at once ──▶ its socket
//!                                          └─▶ none idle: assigned, and a worker is started
//!  Submit ◀── decode ◀── Job: resolved once ◀── answer, death, timeout or cancellation
//! ```
//!
//! Encoding and decoding run in the caller's task, so they run in parallel and an error hurts one task only.

mod after;
mod answers;
mod apart;
mod builder;
mod changes;
mod chore;
mod chunk;
mod counts;
mod dispatch;
mod drive;
mod ending;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub(crate) mod fuzz;
mod glance;
mod handle;
mod job;
mod life;
mod lifecycle;
mod look;
mod map;
mod output;
mod parts;
mod queue;
mod recall;
mod seat;
mod serving;
mod starting;
mod state;
mod status;
mod submit;
mod supervisor;
mod times;
mod trace;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::thread::available_parallelism;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use builder::PoolBuilder;
use builder::Settings;
pub use counts::Counts;
pub use handle::TaskHandle;
pub use life::WorkerState;
pub use map::Map;
use state::{Phase, Shared};
pub use status::{PoolStatus, WorkerStatus};
pub use submit::Submit;
pub use times::Quantiles;

use crate::error::SpawnError;
use crate::process::keeper::is_forked_copy;
use crate::process::start;
use crate::task::Task;

/// A bounded pool of worker processes that run tasks, each one at a time.
///
/// Workers are started when there is work for them and kept for the next task; the one that worked last is taken first.
/// At most as many tasks run at once as there are workers; the others wait in the order in which they came.
///
/// - A task that panics, or whose result can't be encoded, fails alone, and its worker goes on.
/// - A worker that dies fails the one task that it was running, and is replaced. A task that was begun is never begun
///   again unless [`retries`](Submit::retries) allows it.
/// - Whatever happens, each future resolves.
///
/// Clones share the pool. When the last one is dropped the pool is cancelled: tasks that are under way resolve with
/// [`TaskError::Cancelled`], and the workers are killed and reaped in the background: at once, or those that have tasks after
/// the [`cancel_grace`](PoolBuilder::cancel_grace).
///
/// # Runtimes
///
/// A pool works in any number of runtimes, one after the other or at once. Each worker is looked after in the runtime of the
/// task that it was started for. With the end of that runtime the worker ends, and the tasks that it had begun resolve with
/// [`TaskError::Cancelled`]. What it had not begun goes on where the last task came from, if that is another runtime, or else
/// in the workers that are left in others; where there are none, it is cancelled too.
///
/// A runtime that is alive and stands still, as one of the current-thread kind does outside `block_on`, keeps what its
/// workers answer from everybody, and ends no task that is given up: drive it or drop it before the pool is used from another
/// one. In a worker, the runtime that drives async tasks (`task!(f().await)`) is kept for the next one and stands still in
/// between: a pool in a `static` that they use is not for plain tasks with a runtime of their own.
///
/// # Forks
///
/// In a copy that fork(2) makes of the process, a pool that had workers by then takes no task: that is a [`TaskError::Spawn`]. To close,
/// to cancel or to resize it there has no effect, and ends at once; the original's goes on.
///
/// [`TaskError::Cancelled`]: crate::TaskError::Cancelled
/// [`TaskError::Spawn`]: crate::TaskError::Spawn
///
/// # Examples
///
/// ```
/// use multiproc::{ProcessPool, task};
///
/// fn fib(n: u64) -> u64 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let pool = ProcessPool::new(2);
/// let (a, b) = tokio::try_join!(pool.submit(task!(fib(10))), pool.submit(task!(fib(20))))?;
/// assert_eq!((a, b), (55, 6765));
/// pool.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ProcessPool {
    owner: Arc<Owner>,
}

/// Cancels the pool when the last handle is gone; futures and supervisors hold the shared state, not this.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        // In a forked copy of this process the workers are the original's, and a lock may be held for good.
        if !is_forked_copy() {
            self.0.begin_cancel();
        }
    }
}

impl ProcessPool {
    /// A pool of up to `workers` processes, with the default settings. No process is started yet.
    ///
    /// # Panics
    ///
    /// If `workers` is 0. [`builder`](Self::builder) gives an error instead.
    #[track_caller]
    pub fn new(workers: usize) -> Self {
        assert!(workers > 0, "a pool needs at least one worker");
        Self::with(Settings::new(workers))
    }

    /// Prepares a pool with other settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use multiproc::{ProcessPool, TaskError, call};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let pool = ProcessPool::builder().workers(1).name("slow").task_timeout(Duration::from_millis(50)).build()?;
    /// let endless = pool.submit(call(|()| loop { std::hint::spin_loop() }, ()));
    /// let endless: Result<(), _> = endless.await;
    /// assert!(matches!(endless, Err(TaskError::TimedOut)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    fn with(settings: Settings) -> Self {
        Self { owner: Arc::new(Owner(Shared::new(settings))) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// Submits a task: a future that waits for a free slot, and then for the result.
    ///
    /// It does nothing until it is polled. A hundred thousand of them at once are fine: each holds its own encoded task,
    /// and they are sent to workers in the order in which they were first polled. Small ones are sent some at a time, so with more
    /// than one worker a task may begin some milliseconds after one that was polled later.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`TaskError`](crate::TaskError): `Panicked`, `Died`, `TimedOut`, `Cancelled`, `Encode`, `Decode` and
    /// `TooLarge` concern this task alone; `Closed` after [`close`](Self::close); `Spawn` if no process can be started
    /// by this program at all, or it is polled outside a runtime, `Broken` if starts failed past the
    /// [restart limit](PoolBuilder::restart_limit).
    ///
    /// # Panics
    ///
    /// When it is polled in a runtime without time or I/O, as tokio's own types do: `enable_all` has both.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the task: queued, it never runs; running, its worker is killed and replaced.
    pub fn submit<T: Task>(&self, task: T) -> Submit<T> {
        Submit::new(Arc::clone(self.shared()), task)
    }

    /// Runs a function on each input and streams the results, in the order of the inputs.
    ///
    /// The function captures nothing, as for [`call`](crate::call). Inputs are taken only so far ahead of the consumer
    /// as [`read_ahead`](Map::read_ahead) says, so they may be endless. A failure is an item of the stream; the others
    /// go on. On a pool that is closed the stream ends: the inputs that find it so are [`Closed`](crate::TaskError::Closed), and no
    /// more are taken.
    ///
    /// # Panics
    ///
    /// When it is polled in a runtime without time or I/O.
    ///
    /// # Cancel safety
    ///
    /// Dropping the stream cancels what is under way and takes no more inputs.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use multiproc::ProcessPool;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// multiproc::init();
    /// let pool = ProcessPool::new(2);
    /// let squares: Vec<u64> = pool.map(1..=4, |n: u64| n * n).map(|result| result.unwrap()).collect().await;
    /// assert_eq!(squares, [1, 4, 9, 16]);
    /// # }
    /// ```
    pub fn map<I, F, R>(&self, inputs: I, function: F) -> Map<I::IntoIter, F, R>
    where
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(I::Item) -> R + Copy + Send + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        Map::new(self.clone(), inputs.into_iter(), function)
    }

    /// Takes no more tasks, waits until all that were submitted have ended, and then until every worker has.
    ///
    /// It may be called again, also at the same time. A future of [`submit`](Self::submit) that was never polled has
    /// not been submitted.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the pool goes on closing; call it again to wait for the end.
    pub async fn close(&self) {
        self.end(Shared::begin_close).await;
    }

    /// Ends the pool now: what waits or runs resolves with [`TaskError::Cancelled`](crate::TaskError::Cancelled), every worker is
    /// killed. Resolves when they are reaped.
    ///
    /// With a [`cancel_grace`](PoolBuilder::cancel_grace) that takes until tasks that run have stopped by themselves or it is
    /// over: they are asked to stop for half of it, then comes SIGTERM, and SIGKILL at the end. With [`Duration::MAX`] only
    /// the task ends it.
    ///
    /// [`Duration::MAX`]: std::time::Duration::MAX
    ///
    /// # Cancel safety
    ///
    /// As for [`close`](Self::close).
    pub async fn cancel(&self) {
        self.end(Shared::begin_cancel).await;
    }

    async fn end(&self, begin: fn(&Arc<Shared>)) {
        // In a forked copy nothing of it is the copy's to end, or to wait for.
        if is_forked_copy() {
            return;
        }
        begin(self.shared());
        self.shared()
            .when(|state| {
                (state.phase != Phase::Open
                    && state.reserved == 0
                    && state.supervisors == 0
                    && state.assigned.is_empty()
                    && state.waiting.is_empty())
                .then_some(())
            })
            .await;
    }

    /// Starts all workers, and waits until they are ready: so that the first tasks need not. One that is about to end is waited for,
    /// too, and for the one in its place.
    ///
    /// # Errors
    ///
    /// The first failure of a start, as `Worker`; the pool goes on trying within its restart limit. `Cancelled` if the pool is
    /// closed; `InitMissing`, `TooDeep`, and `Io` outside a runtime, before anything is started.
    ///
    /// # Panics
    ///
    /// In a runtime without time or I/O.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the workers go on starting.
    pub async fn start(&self) -> Result<(), SpawnError> {
        start::permitted()?;
        self.shared().warm_up()?;
        self.shared()
            .when(|state| {
                if state.phase != Phase::Open {
                    Some(Err(SpawnError::Cancelled))
                } else if let Some(cause) = &state.last_cause {
                    Some(Err(SpawnError::Worker(Arc::clone(cause))))
                } else {
                    state.is_settled().then_some(Ok(()))
                }
            })
            .await
    }

    /// How many workers there may be.
    fn limit(&self) -> usize {
        // In a forked copy its lock may be held for good, and there will be none anyway.
        if is_forked_copy() { self.shared().settings.workers } else { self.shared().state().target }
    }

    /// What the pool is doing at the moment.
    pub fn status(&self) -> PoolStatus {
        PoolStatus::of(self.shared())
    }

    /// Sets how many workers there may be. More take waiting tasks at once; of fewer, idle ones end now and busy ones
    /// after their task.
    ///
    /// # Panics
    ///
    /// If `workers` is 0.
    #[track_caller]
    pub fn resize(&self, workers: usize) {
        assert!(workers > 0, "a pool needs at least one worker");
        if !is_forked_copy() {
            self.shared().resize(workers);
        }
    }
}

/// A pool with a worker for each CPU that this process may use.
impl Default for ProcessPool {
    fn default() -> Self {
        Self::new(usable_cpus())
    }
}

impl fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPool").field("name", &self.shared().settings.name).finish_non_exhaustive()
    }
}

/// The CPUs that this process may use, by affinity and cgroup quota.
fn usable_cpus() -> usize {
    available_parallelism().map_or(1, usize::from)
}
