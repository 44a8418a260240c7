//! One function in one process: `spawn_process`, and its handle; its builder is in `builder.rs`.
//!
//! The process is a worker that runs a single task; how it starts is in `start.rs`.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::builder::ProcessBuilder;
use super::kept::{Exit, Kept};
use super::lost::Looks;
use super::pipes::{ChildStderr, ChildStdin, ChildStdout};
use super::start::Worker;
use super::within::within;
use crate::error::{RecvError, SpawnError, TaskError};
use crate::task::{self, Task};
use crate::wire::frame::Frame;
use crate::wire::message::FromWorker;

/// How long a process may take to exit once its task's result is here.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

/// Runs a task in a new process.
///
/// Resolves once the process has started, has been sent the whole task and is about to run it; [`Process::join`] waits for the
/// result. Use
/// [`Process::builder`] for a name, an environment, limits or pipes, and a [`ProcessPool`](crate::ProcessPool) for many
/// tasks: starting a process takes about a millisecond.
///
/// # Errors
///
/// [`SpawnError`]; among them `Encode` before any process exists, `InitMissing` if [`init`](crate::init) never ran,
/// `TooDeep` past eight nested workers, `Io` outside a tokio runtime.
///
/// # Panics
///
/// In a tokio runtime without I/O or time.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing: a process that was started by then is killed and reaped.
///
/// # Examples
///
/// ```
/// use multiproc::{spawn_process, task};
///
/// fn add(a: u32, b: u32) -> u32 { a + b }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let child = spawn_process(task!(add(1, 2))).await?;
/// assert_ne!(child.id(), Some(std::process::id()));
/// assert_eq!(child.join().await?, 3);
/// # Ok(())
/// # }
/// ```
pub async fn spawn_process<T: Task>(task: T) -> Result<Process<T::Output>, SpawnError> {
    Process::builder().spawn(task).await
}

/// A process that runs one task.
///
/// Dropping it kills the process and its process group (what it started itself), and reaps it in the background; see
/// [`detach`](Self::detach). The process also ends when this one does, however that ends.
///
/// It exits with 0 when its task has returned, and with 101 when it panicked, as a Rust program does.
///
/// # Panics
///
/// Its async methods panic outside a tokio runtime with I/O and time, which need not be the one that it was started in.
#[must_use = "dropping it kills the process"]
pub struct Process<T> {
    /// The first to be dropped: a task that is killed must not take the end of its stdin for the end of its input.
    running: Running,
    /// The writing end of its stdin, if that is [`piped`](std::process::Stdio::piped). Waiting for the process closes what is
    /// still here: take it out to write meanwhile.
    pub stdin: Option<ChildStdin>,
    /// The reading end of its stdout, if that is piped. A process whose output nobody reads waits when the pipe is full.
    pub stdout: Option<ChildStdout>,
    /// The reading end of its stderr, if that is piped.
    pub stderr: Option<ChildStderr>,
    output: PhantomData<fn() -> T>,
}

/// The process and its one task, free of the result's type.
struct Running {
    worker: Worker,
    name: &'static str,
    reply: Reply,
    looks: Looks,
}

/// What has come of the task.
enum Reply {
    Awaited,
    Done(Frame),
    Failed(TaskError),
    /// The stream ended without one.
    None,
}

impl Process<()> {
    /// Prepares a process: its name, environment, directory, stdio and limits.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::{Process, call};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// multiproc::init();
    /// let child = Process::builder()
    ///     .name("indexer")
    ///     .env("LEVEL", "3")
    ///     .current_dir("/")
    ///     .spawn(call(|()| std::env::var("LEVEL").unwrap(), ()))
    ///     .await?;
    /// assert_eq!(child.join().await?, "3");
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::new()
    }
}

impl<T> Process<T> {
    /// The process that a worker with one task is, whose pipes this runtime drives.
    pub(super) fn new(mut worker: Worker, name: &'static str) -> io::Result<Self> {
        Ok(Self {
            stdin: worker.stdin.take().map(ChildStdin::new).transpose()?,
            stdout: worker.stdout.take().map(ChildStdout::new).transpose()?,
            stderr: worker.stderr.take().map(ChildStderr::new).transpose()?,
            running: Running { worker, name, reply: Reply::Awaited, looks: Looks::new() },
            output: PhantomData,
        })
    }

    /// The process id; `None` once it has ended and is reaped.
    ///
    /// The first call gives it even if the process has just ended, unless another call has told so already.
    pub fn id(&self) -> Option<u32> {
        self.kept().id()
    }

    /// Waits for the task's result, and for the process's end.
    ///
    /// [`stdin`](Self::stdin) is closed first if it is still here, or a task that reads it to its end would wait for us. A process that
    /// has given its result, or has become another program (execve(2)), is killed if it has not ended after 5 s more.
    ///
    /// # Errors
    ///
    /// [`TaskError`]: `Panicked` with what the panic said; `Died` if the process ended without a result, whether by a
    /// signal or by an exit in the task; `Encode`, `Decode` and `TooLarge` for a result that can't be brought here. Bytes
    /// that are not an answer give `Decode`, and the process is killed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the process with it, which kills it. To wait and keep the process, use
    /// [`wait`](Self::wait) first.
    pub async fn join(mut self) -> Result<T, TaskError>
    where
        T: DeserializeOwned,
    {
        self.stdin = None;
        self.running.converse().await;
        // That it hangs up is no news any more.
        self.running.worker.socket.rest();
        if within(EXIT_WITHIN, self.kept().exited_watched()).await.is_none() && !self.kept().was_asked() {
            // It has answered, or closed its socket, and yet goes on.
            let _ = self.kept().signal_group(libc::SIGKILL);
        }
        let exit = self.kept().exited_watched().await;
        match std::mem::replace(&mut self.running.reply, Reply::None) {
            Reply::Done(frame) => task::unpack(&mut frame.into()),
            Reply::Failed(error) => Err(error),
            Reply::Awaited | Reply::None => Err(died(self.kept(), &exit, self.running.name.into())),
        }
    }

    /// Waits until the process has ended. It may be called again, and then gives the same.
    ///
    /// The task's result is taken in meanwhile, so a process with a large one can end; [`join`](Self::join) gives it
    /// afterwards. It waits for as long as the process lives, also one that has its result and does not end.
    /// [`stdin`](Self::stdin) is closed first, as by `join`.
    ///
    /// # Errors
    ///
    /// If something else in this program reaped the process (a `waitpid(-1)`, or an ignored SIGCHLD): its status is
    /// unknown then. It has ended all the same.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped; call it again.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.stdin = None;
        self.running.converse().await;
        self.kept().exited_watched().await.status.ok_or_else(unknown_status)
    }

    /// Asks the process and its group to end: SIGTERM, which ends a task at once unless it handles that signal. What of them is stopped
    /// goes on (SIGCONT), to come to it.
    ///
    /// # Errors
    ///
    /// What kill(2) reports: `EPERM` if this program has given up the right to, by setuid(2). `Ok` if the process has ended already.
    pub fn terminate(&self) -> io::Result<()> {
        self.kept().terminate_group()
    }

    /// Kills the process and its group: SIGKILL.
    ///
    /// # Errors
    ///
    /// As for [`terminate`](Self::terminate).
    pub fn kill(&self) -> io::Result<()> {
        self.kept().signal_group(libc::SIGKILL)
    }

    /// Sends a signal to the process alone; see signal(7) for the numbers.
    ///
    /// # Errors
    ///
    /// `InvalidInput` (`EINVAL`) for what is no signal's number, and what pidfd_send_signal(2) reports. `Ok` if the process has
    /// ended already: a recycled process id is never signalled.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.kept().signal(signal)
    }

    /// Ends the process and its group: SIGTERM, and SIGKILL for whatever of it has not ended after `grace`. Then it is reaped.
    ///
    /// With a kernel before Linux 6.9 the process's own end is the end of its group all the same.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait) and [`terminate`](Self::terminate).
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, it goes on: SIGKILL comes in its time.
    pub async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if grace.is_zero() {
            self.kill()?;
        } else {
            self.kept().ask_group()?;
            self.kept().kill_group_in(grace);
        }
        self.wait().await
    }

    /// Lets the process run on without a handle. Its result is thrown away; it is still reaped, and ends with this
    /// program at the latest.
    pub fn detach(self) {
        self.running.worker.child.disarm();
    }

    fn kept(&self) -> &Kept {
        self.running.worker.child.kept()
    }
}

impl Running {
    /// Talks with the process until its task has an answer, or can't have one any more. Cancel-safe.
    async fn converse(&mut self) {
        while matches!(self.reply, Reply::Awaited) {
            let Worker { child, socket, inbox, .. } = &mut self.worker;
            let socket = &*socket;
            let kept = child.kept();
            let frame = async {
                tokio::select! {
                    biased;
                    frame = inbox.frame(socket) => Some(frame),
                    // A process that it forked may hold the socket open after its end.
                    _ = kept.exited() => None,
                }
            };
            let frame = match self.looks.unless_lost(kept.pid(), frame).await {
                Some(Some(frame)) => frame,
                // It may have answered before it ended, all since that looked.
                Some(None) => match inbox.try_frame(socket) {
                    Ok(None) => {
                        self.reply = Reply::None;
                        return;
                    }
                    frame => frame,
                },
                None => {
                    let _ = kept.signal_group(libc::SIGKILL);
                    self.reply = Reply::None;
                    return;
                }
            };
            self.reply = match frame.and_then(|frame| frame.map(FromWorker::parse).transpose()) {
                Ok(Some(FromWorker::Done(frame))) => Reply::Done(frame),
                Ok(Some(FromWorker::Failed(_, failure))) => Reply::Failed(failure.into()),
                // It is about to end, and how says more.
                Ok(None) | Err(RecvError::Truncated | RecvError::Io(_)) => Reply::None,
                Ok(Some(_)) => self.nonsense(RecvError::Protocol { reason: "not an answer to a task" }),
                Err(error) => self.nonsense(error),
            };
        }
    }

    /// Something in there writes into our socket: it comes to no good end any more.
    fn nonsense(&self, error: RecvError) -> Reply {
        let _ = self.worker.child.kept().signal_group(libc::SIGKILL);
        Reply::Failed(TaskError::Decode(Box::new(error)))
    }
}

/// A task's end by its process's end.
pub(crate) fn died(kept: &Kept, exit: &Exit, task: Cow<'static, str>) -> TaskError {
    let killed = exit.status.is_some_and(|status| status.signal() == Some(libc::SIGKILL));
    TaskError::Died { status: exit.status, pid: kept.pid(), task, unexplained_kill: killed && !kept.kill_sent() }
}

fn unknown_status() -> io::Error {
    io::Error::other(
        "exit status unknown: something else in this program waited for the process, or SIGCHLD is ignored",
    )
}

impl<T> fmt::Debug for Process<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id()).field("task", &self.running.name).finish_non_exhaustive()
    }
}
