//! What a task can ask about itself and its worker, while it runs.
//!
//! The loop in `serve.rs` says which task that is; whether it is to stop stands in the ledger.

use std::fmt;
use std::process;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use tokio::sync::Notify;

use crate::process::start;
use crate::sys::ledger::{Keeper, Ledger};
use crate::sys::original;
use crate::sys::process::SignalMask;
use crate::task::unheeded;
use crate::wire::message::Seat;

/// What a worker knows from its start on.
struct Place {
    seat: Option<Seat>,
    ledger: Option<Arc<Ledger>>,
}

static PLACE: OnceLock<Place> = OnceLock::new();
/// The number of the task that runs, or ran last.
static RUNNING: AtomicU64 = AtomicU64::new(0);
static ATTEMPT: AtomicU32 = AtomicU32::new(1);
/// Rings when some task is to stop, once somebody waits for that.
static STOP: Notify = Notify::const_new();

/// Notes where this worker sits.
pub(super) fn set_place(seat: Option<Seat>, ledger: Option<Arc<Ledger>>) {
    let _ = PLACE.set(Place { seat, ledger });
}

/// A task begins.
pub(super) fn begin(task: u64, attempt: u32) {
    RUNNING.store(task, Ordering::Relaxed);
    ATTEMPT.store(attempt, Ordering::Relaxed);
}

/// The progress of a task that has many parts.
pub(crate) struct Progress {
    made: u32,
    keeper: Option<Keeper>,
}

impl Progress {
    /// The running task begins with its parts.
    pub(crate) fn begin() -> Self {
        let keeper = ledger().map(|ledger| Keeper::begin(Arc::clone(ledger), running()));
        Self { made: 0, keeper }
    }

    /// How many parts have a result.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// One more part has a result, which is kept, if it can be. `false`: it can't, or no other part is to be begun; the task is
    /// to answer with what it has.
    #[inline]
    pub(crate) fn made_one(&mut self, result: Option<&[u8]>) -> bool {
        // One whose call has panicked.
        original::end_copy(start::EXIT_PANICKED);
        self.made += 1;
        let (Some(keeper), Some(result)) = (&mut self.keeper, result) else { return false };
        keeper.keep(result) && !keeper.is_to_stop()
    }
}

/// The number of the task that runs.
pub(super) fn running() -> u64 {
    RUNNING.load(Ordering::Relaxed)
}

/// What the running task can know about itself and its worker; see [`Worker`].
///
/// It may be called anywhere, so that a task's function can be tested as it is: outside a worker it belongs to no pool, and
/// is never cancelled.
///
/// # Examples
///
/// A task that stops by itself when nobody wants it any more:
///
/// ```
/// use std::time::Duration;
/// use multiproc::{ProcessPool, TaskError, task};
///
/// fn count() -> u64 {
///     let mut n = 0;
///     while !multiproc::worker().is_cancelled() {
///         n += 1;
///     }
///     n // Here it may tidy up.
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_secs(10)).build()?;
/// let counted = pool.submit(task!(count())).timeout(Duration::from_millis(20)).await;
/// assert!(matches!(counted, Err(TaskError::TimedOut)));
/// assert_eq!(pool.status().counts.restarts, 0); // Its worker lives on.
/// # pool.close().await;
/// # Ok(())
/// # }
/// ```
pub fn worker() -> Worker {
    Worker { task: running(), attempt: ATTEMPT.load(Ordering::Relaxed) }
}

/// A task's view of itself and of the worker that runs it, from [`worker()`].
///
/// It belongs to the task that was running when it was made: a thread that outlives its task isn't told of the next one's
/// cancellation.
#[derive(Clone, Copy)]
pub struct Worker {
    task: u64,
    attempt: u32,
}

impl Worker {
    /// The name of the pool that this process works for; `None` in a process of its own, or outside a worker.
    pub fn pool(&self) -> Option<&'static str> {
        Some(&*seat()?.pool)
    }

    /// The worker's number in its pool: the lowest one, from 0, that no other had when it was wanted. So it is below the number
    /// of workers that there may be. After a [`resize`](crate::ProcessPool::resize) to fewer, those that stay keep theirs.
    ///
    /// A replacement has the number of the worker that it replaces, so no two tasks that run at the same time see the same
    /// one. `None` as for [`pool`](Self::pool).
    pub fn index(&self) -> Option<usize> {
        usize::try_from(seat()?.index).ok()
    }

    /// This process's id.
    pub fn pid(&self) -> u32 {
        process::id()
    }

    /// Which attempt at this task this is: 1, and one more for each worker that died while it ran the task. Only
    /// [`retries`](crate::Submit::retries) allows more than one.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the task is to stop: it was cancelled, or ran into its timeout, and the pool grants a
    /// [`cancel_grace`](crate::PoolBuilder::cancel_grace).
    ///
    /// What the task then returns is thrown away, and its worker goes on with the next task. It costs a look into memory.
    ///
    /// A process of its own, from [`spawn_process`](crate::spawn_process), is never asked like this: it has no pool that could.
    /// What ends it is a signal, which it may handle: [`Process::stop`](crate::Process::stop) begins with SIGTERM.
    pub fn is_cancelled(&self) -> bool {
        ledger().is_some_and(|ledger| ledger.is_to_stop(self.task))
    }

    /// Waits until [`is_cancelled`](Self::is_cancelled): for ever, if the task is never cancelled.
    ///
    /// # Panics
    ///
    /// If no thread can be started, which the first call in a process needs.
    ///
    /// # Cancel safety
    ///
    /// Holds nothing; dropping it has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// async fn poll_a_server() {
    ///     let worker = multiproc::worker();
    ///     loop {
    ///         tokio::select! {
    ///             () = worker.cancelled() => return,
    ///             () = tokio::time::sleep(Duration::from_secs(1)) => {} // Ask it.
    ///         }
    ///     }
    /// }
    /// ```
    pub async fn cancelled(&self) {
        let Some(ledger) = ledger() else { return std::future::pending().await };
        watch(ledger);
        loop {
            let mut stop = std::pin::pin!(STOP.notified());
            // Listen before looking, or a change in between would be missed.
            stop.as_mut().enable();
            if self.is_cancelled() {
                return;
            }
            stop.await;
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("pool", &self.pool())
            .field("index", &self.index())
            .field("attempt", &self.attempt)
            .field("is_cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

fn seat() -> Option<&'static Seat> {
    PLACE.get()?.seat.as_ref()
}

fn ledger() -> Option<&'static Arc<Ledger>> {
    PLACE.get()?.ledger.as_ref()
}

/// Starts the thread that waits for the parent's word, unless it is there.
fn watch(ledger: &'static Arc<Ledger>) {
    static STARTED: Mutex<bool> = Mutex::new(false);
    // A task that found no thread has panicked here; the next one may find one.
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return;
    }
    thread::Builder::new()
        .name("cancel-watch".into())
        .stack_size(64 << 10)
        .spawn(move || {
            SignalMask::full().install();
            loop {
                let seen = ledger.stops();
                unheeded(|| STOP.notify_waiters());
                ledger.wait_for_stop(seen);
            }
        })
        .expect("waiting for a cancellation needs a thread");
    *started = true;
}
