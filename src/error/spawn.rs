//! Why a process could not be started.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use super::ending::{Ending, init_hint};
use super::{BoxError, TaskError};

/// Why a process could not be started.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The task's arguments could not be encoded. No process was started.
    #[error("task cannot be encoded")]
    Encode(#[source] BoxError),
    /// The encoded task is larger than a frame may be. No process was started.
    #[error("encoded task of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The size in bytes, or the least that it would have been.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The function is not part of this program's executable, so another process could not find it.
    #[error("{task} is not in the main executable (a shared library's function cannot be sent to another process)")]
    #[non_exhaustive]
    ForeignCode {
        /// The name of the task's type.
        task: &'static str,
    },
    /// Workers are nested too deeply: workers that start workers that start workers, and so on.
    #[error("worker processes are nested {depth} deep, which is the limit")]
    TooDeep {
        /// How deep this process is nested; a program started by hand has depth 0.
        depth: u32,
    },
    /// This program never called [`init`](crate::init), or only on another thread than the main one.
    #[error(
        "multiproc is not initialised: add `multiproc::init();` as the first line of `fn main` \
         (in tests, doctests and benches: `multiproc::test_support!();` once at the crate's root); \
         a call on another thread than the main one does not count"
    )]
    InitMissing,
    /// The setting is not valid.
    #[error("invalid setting: {reason}")]
    #[non_exhaustive]
    Invalid {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// This program's executable could not be run again.
    #[error("cannot run this program's own executable through /proc/self/exe (is /proc mounted?)")]
    Executable(#[source] io::Error),
    /// The working directory of the new process does not exist or cannot be entered.
    #[error("cannot enter the working directory {}", .path.display())]
    #[non_exhaustive]
    Directory {
        /// The directory that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new process ended before it was ready.
    #[error(
        "worker process {pid} ended before it was ready: {}{}",
        Ending { status: *.status, unexplained_kill: false },
        init_hint(*.status)
    )]
    #[non_exhaustive]
    Exited {
        /// How it ended; `None` if somebody else in this program reaped it first.
        status: Option<ExitStatus>,
        /// The process id that it had.
        pid: u32,
    },
    /// The new process was not ready in time; it was killed.
    #[error(
        "worker process {pid} was not ready within {} s; \
         `multiproc::init();` must be the first line of `fn main`", .after.as_secs_f32()
    )]
    #[non_exhaustive]
    NotReady {
        /// The process id that it had.
        pid: u32,
        /// How long was waited.
        after: Duration,
    },
    /// The new process does not speak this program's protocol, is another executable, or can't set itself up, for want of fds say.
    #[error("worker process {pid} failed the handshake: {reason}")]
    #[non_exhaustive]
    Handshake {
        /// The process id that it had.
        pid: u32,
        /// What did not fit.
        reason: String,
    },
    /// A worker of the pool could not be started.
    #[error(transparent)]
    Worker(Arc<SpawnError>),
    /// The pool's `on_worker_start` task failed in the new process.
    #[error("worker's start task failed")]
    StartTask(#[source] Box<TaskError>),
    /// The runtime or the pool ended while the process was being started.
    #[error("start was cancelled: the pool is closed, or the runtime has ended")]
    Cancelled,
    /// The system refused: no memory, no process slot, no fd.
    #[error("cannot start a process")]
    Io(#[from] io::Error),
}

impl SpawnError {
    /// The same once more, for another task that ended with it, as far as it can be told twice.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Worker(cause) => Self::Worker(Arc::clone(cause)),
            Self::InitMissing => Self::InitMissing,
            &Self::ForeignCode { task } => Self::ForeignCode { task },
            Self::Cancelled => Self::Cancelled,
            &Self::TooDeep { depth } => Self::TooDeep { depth },
            Self::Io(error) if let Some(code) = error.raw_os_error() => Self::Io(io::Error::from_raw_os_error(code)),
            error => Self::Io(io::Error::other(error.to_string())),
        }
    }
}

/// As `io::Error`'s, with the message: where `main` gives the error back, this is all that is shown of it.
impl fmt::Debug for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Worker(cause) => return f.debug_tuple("Worker").field(cause).finish(),
            Self::Encode(_) => "Encode",
            Self::TooLarge { .. } => "TooLarge",
            Self::ForeignCode { .. } => "ForeignCode",
            Self::TooDeep { .. } => "TooDeep",
            Self::InitMissing => "InitMissing",
            Self::Invalid { .. } => "Invalid",
            Self::Executable(_) => "Executable",
            Self::Directory { .. } => "Directory",
            Self::Exited { .. } => "Exited",
            Self::NotReady { .. } => "NotReady",
            Self::Handshake { .. } => "Handshake",
            Self::StartTask(_) => "StartTask",
            Self::Cancelled => "Cancelled",
            Self::Io(_) => "Io",
        };
        let mut shown = f.debug_struct(kind);
        shown.field("message", &self.to_string());
        if let Some(source) = self.source() {
            shown.field("source", &source);
        }
        shown.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_message_and_the_source() {
        let text = |error| format!("{error:?}");
        let io = SpawnError::Io(io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(text(io).starts_with("Io { message: \"cannot start a process\", source: Os { code: 12, "));
        let shared = SpawnError::Worker(Arc::new(SpawnError::TooDeep { depth: 8 }));
        assert!(text(shared).starts_with("Worker(TooDeep { message: \"worker processes are nested 8 deep"));
    }
}
