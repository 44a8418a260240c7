//! What a pool is to be like: its settings and their defaults.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::ProcessPool;
use super::chore::Chore;
use super::output::Listener;
use crate::error::SpawnError;
use crate::process::start::Plan;
use crate::sys::worker::Slot;
use crate::task::Task;
use crate::wire::message::Life;

/// A pool's settings, checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) plan: Plan,
    pub(super) name: String,
    pub(super) workers: usize,
    pub(super) min_workers: usize,
    pub(super) on_start: Option<Chore>,
    pub(super) on_exit: Option<Chore>,
    pub(super) max_tasks: Option<u64>,
    pub(super) max_memory: Option<u64>,
    pub(super) task_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) restart_limit: (u32, Duration),
    pub(super) cancel_grace: Duration,
    pub(super) on_stdout_line: Option<Listener>,
    pub(super) on_stderr_line: Option<Listener>,
}

impl Settings {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            plan: Plan::new(Life::UntilEnd),
            name: "pool".into(),
            workers,
            min_workers: 0,
            on_start: None,
            on_exit: None,
            max_tasks: None,
            max_memory: None,
            task_timeout: None,
            idle_timeout: None,
            restart_limit: (5, Duration::from_secs(10)),
            cancel_grace: Duration::ZERO,
            on_stdout_line: None,
            on_stderr_line: None,
        }
    }
}

/// Prepares a [`ProcessPool`]; made by [`ProcessPool::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct PoolBuilder {
    settings: Settings,
    /// The first setting that can't be.
    refused: Option<SpawnError>,
}

impl PoolBuilder {
    pub(super) fn new() -> Self {
        Self { settings: Settings::new(super::usable_cpus()), refused: None }
    }

    /// How many workers there may be, and so how many tasks run at once. Default: the CPUs that this process may use.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = workers;
        self
    }

    /// Names the pool; its workers are called `NAME-0`, `NAME-1`, … in `ps` and `top`. Default: `pool`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// A task that runs in every new worker before any other: to load what all tasks need. Its result is dropped.
    ///
    /// State that it leaves in a `static` or a thread-local is there for the tasks: they run on the same thread. If it
    /// fails, the start has failed; see [`restart_limit`](Self::restart_limit).
    ///
    /// It has no deadline. As long as it runs, its worker is starting, and tasks wait: no
    /// [`task_timeout`](Self::task_timeout) counts for either. [`cancel`](ProcessPool::cancel) and dropping the pool end it;
    /// [`close`](ProcessPool::close) does if no task waits, and [`resize`](ProcessPool::resize) to as many workers as are ready.
    ///
    /// It is encoded here, to see whether that can be done, which [`build`](Self::build) says. One in which there are file
    /// descriptors, as in ends of channels, sync objects and shared bytes, is kept, and encoded anew for each worker before its
    /// process is started; of any other the same bytes go to all.
    ///
    /// - A [sync object](crate::sync), such as a lock that all workers are to share, and an end of a [`queue`](crate::queue())
    ///   is in each worker as if it had been sent to that one alone.
    /// - An end that moves when it is sent ([`Sender`](crate::Sender), [`Receiver`](crate::Receiver),
    ///   [`Duplex`](crate::Duplex), [`Client`](crate::Client), [`AckedReceiver`](crate::AckedReceiver)) goes to the first
    ///   worker. The start of any other, and of the one that takes its place, fails with [`SpawnError::Encode`]: make one for
    ///   each task, or use a queue.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::OnceLock;
    /// use multiproc::{ProcessPool, call};
    ///
    /// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let load = call(|len: u64| TABLE.set((0..len).map(|n| n * n).collect()).unwrap(), 100);
    /// let pool = ProcessPool::builder().workers(2).on_worker_start(load).build()?;
    /// assert_eq!(pool.submit(call(|n: usize| TABLE.get().unwrap()[n], 9)).await?, 81);
    /// # pool.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_worker_start<T: Task>(mut self, task: T) -> Self {
        self.settings.on_start = self.chore(task);
        self
    }

    /// A task that runs in every worker that ends in order: on close, recycled, or idle for too long. Its result is
    /// dropped. A worker that is killed or dies doesn't run it. It has 10 s; then its worker is killed.
    ///
    /// It is encoded as the task of [`on_worker_start`](Self::on_worker_start) is, anew for each worker that ends. One for
    /// which that fails, as an end in the task has gone to another worker, ends without it.
    pub fn on_worker_exit<T: Task>(mut self, task: T) -> Self {
        self.settings.on_exit = self.chore(task);
        self
    }

    /// Replaces a worker after so many tasks, at least 1: a remedy for code that leaks. Default: never. A chunk of a map's inputs is
    /// one task.
    ///
    /// Each worker's own limit is up to a tenth lower, so that workers that started together are not replaced together.
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.settings.max_tasks = Some(tasks.max(1));
        self
    }

    /// Replaces a worker that holds more resident memory than this, in bytes, when it has finished a task. Default: never. It is
    /// looked up in /proc, and where that is missing or another pid namespace's, it is not known.
    ///
    /// Each worker's own limit is up to a tenth lower, as for [`max_tasks_per_worker`](Self::max_tasks_per_worker).
    pub fn max_worker_memory(mut self, bytes: u64) -> Self {
        self.settings.max_memory = Some(bytes);
        self
    }

    /// Bounds each worker's address space, in bytes; `RLIMIT_AS` in setrlimit(2). Default: no bound.
    ///
    /// An allocation past it fails, which for most Rust code is an abort: that task is then `Died`, with SIGABRT. So it is where its
    /// arguments don't fit. What holds for backtraces and for processes that tasks start is said
    /// [there](crate::ProcessBuilder::memory_limit).
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.plan.limits.memory = Some(bytes);
        self
    }

    /// The workers' scheduling priority, from -20 (most) to 19 (least); setpriority(2). Values below ours need a privilege;
    /// without it workers fail to start. Default: this process's own.
    pub fn nice(mut self, nice: i32) -> Self {
        self.settings.plan.limits.nice = Some(nice);
        self
    }

    /// How long a task may run, from its start, where [`Submit::timeout`](crate::Submit::timeout) says nothing else.
    /// Default: for ever. What zero means is said there.
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.settings.task_timeout = Some(timeout);
        self
    }

    /// How long a worker that has finished a task looks for the next one before it sleeps, and whoever awaits a task that an idle
    /// worker was given looks for its result: 50 µs, say.
    ///
    /// Without it both do so for up to 40 µs, where it costs less than to sleep and to be woken: while the pool has one task at a time, the
    /// last answer and the last task were there within that, and the worker is on another processor than who waits. In a runtime with
    /// threads one that stays on his goes to another for that, now and then; sched_setaffinity(2), which is undone at once. That is
    /// enough for tiny tasks in a chain, each made from the result of the one before. This is for longer ones, and for where both
    /// share a processor: to wake one that sleeps takes some 20 µs in a virtual machine, and a task there and back wakes two. Where
    /// many tasks are under way, a worker finds the next one there already.
    ///
    /// The price is CPU time: up to `window` for each task in its worker, and as much here, for one at a time of all who wait. Between
    /// two looks both call sched_yield(2), so whoever else has work for that processor goes first, and so do this runtime's other
    /// tasks. Where this runtime's clock is paused, it stands still meanwhile.
    ///
    /// With only one processor when a worker starts, see sched_setaffinity(2), neither looks: it would keep the other from its work.
    pub fn busy_poll(mut self, window: Duration) -> Self {
        self.settings.plan.busy_poll = window;
        self
    }

    /// Ends a worker that had nothing to do for so long; a later task starts a new one. Default: never. With zero it ends as soon as
    /// there is no task for it, and [`start`](ProcessPool::start) starts workers that end at once.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = Some(timeout);
        self
    }

    /// How many workers the idle timeout leaves; of as many as there may be, or more, it ends none. Default: 0.
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.settings.min_workers = workers;
        self
    }

    /// How many failed starts in a row are tried again, however long each takes. One more, and tasks fail with
    /// [`TaskError::Broken`](crate::TaskError::Broken), unless a worker lives or starts that can do them: those that wait, and those
    /// that are submitted until `window` has passed since the last failure. Then starts count anew. Default: 5, and 10 s.
    ///
    /// Where the starts failed before there was a process (no fd, no memory, no such directory), only the tasks that waited
    /// fail. The next one is a new try at once, and the pool works again as soon as the shortage is over. Where they wait for a
    /// worker that lives, one start a second is tried for them.
    ///
    /// The death of a worker that had started is no failed start: it costs the task that it was running.
    pub fn restart_limit(mut self, failures: u32, window: Duration) -> Self {
        self.settings.restart_limit = (failures, window);
        self
    }

    /// How long a task that is cancelled or timed out has to end. Default: no time; its worker gets SIGKILL at once.
    ///
    /// For the first half the task is asked to stop by itself: see [`Worker::is_cancelled`](crate::Worker::is_cancelled). If
    /// it does, its worker lives on. Otherwise the worker gets SIGTERM, and SIGKILL when the other half has passed too. A task
    /// that is timed out has its outcome at the end of that; one that is cancelled is
    /// [`Cancelled`](crate::TaskError::Cancelled) at once.
    ///
    /// [`ProcessPool::cancel`] and the drop of the pool grant it, too: workers that have tasks may live on for so long, and with
    /// [`Duration::MAX`] for ever. Those without are killed at once. Where nothing drives their runtime, tasks are not asked:
    /// SIGKILL comes at the end.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.settings.cancel_grace = grace;
        self
    }

    /// Sets an environment variable of the workers. A name that is empty or has a `=` in it, or a NUL in either, makes
    /// [`build`](Self::build) fail.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        if let Err(reason) = self.settings.plan.set_env(key.as_ref(), value.as_ref()) {
            self.refuse(reason);
        }
        self
    }

    /// The workers' working directory. Default: this process's. A NUL in it makes [`build`](Self::build) fail.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        if let Err(reason) = self.settings.plan.current_dir(directory.as_ref()) {
            self.refuse(reason);
        }
        self
    }

    /// Where the workers' stdout goes. Default: to this process's own. A pipe has no reader here: see
    /// [`on_stdout_line`](Self::on_stdout_line).
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.settings.on_stdout_line = None;
        self.settings.plan.stdio(Slot::Stdout, stdout.into());
        self
    }

    /// Where the workers' stderr goes. Default: to this process's own. A pipe has no reader here: see
    /// [`on_stderr_line`](Self::on_stderr_line).
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.settings.on_stderr_line = None;
        self.settings.plan.stdio(Slot::Stderr, stderr.into());
        self
    }

    /// Calls a function with each line that a worker prints, and with that worker's process id, instead of passing it on to
    /// this process's stdout.
    ///
    /// Lines come without their end, and in the order in which that worker wrote them; bytes that are not UTF-8 are replaced,
    /// and a line of more than 64 KiB comes in pieces. All that a worker has printed has come when the pool is closed. The
    /// function runs on the runtime, so it should not block: while it does, a worker that prints waits as soon as the pipe
    /// is full, and whoever closes the pool waits, too; whoever cancels it waits for a moment at most, and lines that were not told by
    /// then are lost. It may be called for several workers at once, also for one and those that it has taken the place of.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use multiproc::{ProcessPool, call};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let log = Arc::new(Mutex::new(Vec::new()));
    /// let lines = Arc::clone(&log);
    /// let pool = ProcessPool::builder()
    ///     .workers(1)
    ///     .on_stdout_line(move |worker, line| lines.lock().unwrap().push(format!("{worker}: {line}")))
    ///     .build()?;
    /// let worker = pool.submit(call(|()| { println!("hello"); std::process::id() }, ())).await?;
    /// pool.close().await;
    /// assert_eq!(*log.lock().unwrap(), [format!("{worker}: hello")]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_stdout_line(mut self, listen: impl Fn(u32, &str) + Send + Sync + 'static) -> Self {
        self = self.stdout(Stdio::piped());
        self.settings.on_stdout_line = Some(Listener::new(listen));
        self
    }

    /// As [`on_stdout_line`](Self::on_stdout_line), for what workers write to stderr.
    pub fn on_stderr_line(mut self, listen: impl Fn(u32, &str) + Send + Sync + 'static) -> Self {
        self = self.stderr(Stdio::piped());
        self.settings.on_stderr_line = Some(Listener::new(listen));
        self
    }

    /// Makes the pool. No process is started yet; see [`ProcessPool::start`].
    ///
    /// # Errors
    ///
    /// `Invalid` for zero workers, or an environment or directory that can't be; `Encode`, `TooLarge` or `ForeignCode` if the start or
    /// exit task can't be sent.
    pub fn build(self) -> Result<ProcessPool, SpawnError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        if self.settings.workers == 0 {
            return Err(SpawnError::Invalid { reason: "a pool needs at least one worker" });
        }
        Ok(ProcessPool::with(self.settings))
    }

    fn chore<T: Task>(&mut self, task: T) -> Option<Chore> {
        let chore = Chore::new(task, self.settings.plan.max_body);
        chore.map_err(|error| self.refused = self.refused.take().or(Some(error.into()))).ok()
    }

    fn refuse(&mut self, reason: &'static str) {
        self.refused = self.refused.take().or(Some(SpawnError::Invalid { reason }));
    }
}
