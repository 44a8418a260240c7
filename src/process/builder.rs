//! What a process that runs one function is to be like, and its start. Its handle is in `spawn.rs`.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::runtime::Handle;

use super::program::EnvChange;
use super::spawn::Process;
use super::start::{self, Plan};
use crate::error::SpawnError;
use crate::sys::worker::Slot;
use crate::task::{self, Task};
use crate::wire::message::Life;

/// How a process is to start; made by [`Process::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it spawns"]
pub struct ProcessBuilder {
    plan: Plan,
    name: String,
    /// What was found wrong with it while it was built.
    wrong: Option<&'static str>,
}

impl ProcessBuilder {
    pub(super) fn new() -> Self {
        Self { plan: Plan::new(Life::OneTask), name: String::new(), wrong: None }
    }

    /// Names the process, as `ps` (in the command line) and `top` (the first 15 bytes) show it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets an environment variable. A name that is empty or has a `=` in it, or a NUL in either, makes
    /// [`spawn`](Self::spawn) fail.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        if let Err(reason) = self.plan.set_env(key.as_ref(), value.as_ref()) {
            self.wrong = Some(reason);
        }
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.plan.env(EnvChange::Remove(key.as_ref().into()));
        self
    }

    /// Starts with an empty environment; forgets what was set here before.
    pub fn env_clear(mut self) -> Self {
        self.plan.env(EnvChange::Clear);
        self
    }

    /// The working directory. A relative one is relative to this process's.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        if let Err(reason) = self.plan.current_dir(directory.as_ref()) {
            self.wrong = Some(reason);
        }
        self
    }

    /// Where stdin comes from; /dev/null by default.
    ///
    /// One that is not set carries the socket until the process has started. With all three set the process is forked, which
    /// takes the longer the more memory this process uses.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.plan.stdio(Slot::Stdin, stdin.into());
        self
    }

    /// Where stdout goes; to this process's own by default.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.plan.stdio(Slot::Stdout, stdout.into());
        self
    }

    /// Where stderr goes; to this process's own by default.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.plan.stdio(Slot::Stderr, stderr.into());
        self
    }

    /// Bounds the process's address space, in bytes; `RLIMIT_AS` in setrlimit(2).
    ///
    /// The program's own code and stacks count too, so leave some tens of MiB for them. An allocation past the limit
    /// fails, which for most Rust code is an abort: the task is then `Died`, with SIGABRT. So it is where its arguments don't fit.
    ///
    /// It is the soft limit. While the backtrace of a panic is made it is lifted, and the symbols that this keeps in memory
    /// don't count, nor does what other threads allocate meanwhile. Processes that the task starts inherit it, but for those
    /// that another thread starts in that time: they have the hard limit. That stays this process's, and up to it they as well
    /// as the task may raise their own.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.plan.limits.memory = Some(bytes);
        self
    }

    /// Bounds the processor time that the process may use, rounded up to seconds; `RLIMIT_CPU` in setrlimit(2).
    ///
    /// Over it, it gets SIGXCPU, and a second later SIGKILL: the task is `Died` with that signal.
    pub fn cpu_time_limit(mut self, time: Duration) -> Self {
        self.plan.limits.cpu_time = Some(time);
        self
    }

    /// Bounds how many fds the process may have open; `RLIMIT_NOFILE` in setrlimit(2). About ten are its own.
    pub fn open_files_limit(mut self, count: u64) -> Self {
        self.plan.limits.open_files = Some(count);
        self
    }

    /// The process's scheduling priority, from -20 (most) to 19 (least); setpriority(2). Values below ours need a privilege.
    pub fn nice(mut self, nice: i32) -> Self {
        self.plan.limits.nice = Some(nice);
        self
    }

    /// Starts the process and sends it the task; see [`spawn_process`](crate::spawn_process).
    ///
    /// # Errors
    ///
    /// As for [`spawn_process`](crate::spawn_process); `Invalid` for what can't be an environment variable or a directory,
    /// `Directory` if the working directory can't be entered, `Handshake` if a limit can't be set.
    ///
    /// # Cancel safety
    ///
    /// As for [`spawn_process`](crate::spawn_process).
    pub fn spawn<T: Task>(
        self,
        task: T,
    ) -> impl Future<Output = Result<Process<T::Output>, SpawnError>> + Send + use<T> {
        // Encoded here, so that the future holds bytes and not a task that may not be Sync.
        let valid = self.wrong.map_or(Ok(()), |reason| Err(SpawnError::Invalid { reason }));
        let packed = valid.and_then(|()| start::permitted()).and_then(|_| Ok(task::pack(&task, self.plan.max_body)?));
        drop(task);
        async move {
            let parcel = packed?;
            let (name, moves) = (parcel.name, parcel.fds.moves());
            let run = parcel.into_frame(1);
            let start = async {
                // All that is waited for from here on would panic.
                if Handle::try_current().is_err() {
                    return Err(SpawnError::Io(io::Error::other("not in a tokio runtime")));
                }
                let worker = start::start(&self.plan, &self.name, Some(run)).await?;
                Ok(Process::new(worker, name)?)
            };
            // Without a process nobody has the ends in the task, though it may have left: one that was ready when this failed is
            // being killed.
            start.await.inspect_err(|_| moves.call_off())
        }
    }
}
