//! Your own functions in other processes, and other programs as subprocesses, for async Rust on tokio.

mod error;
mod process;
mod sys;

pub use error::{BoxError, CommandError, Panic, RecvError, SendError, SpawnError, TaskError, TrySubmitError};
pub use process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Source};
pub use sys::process::Usage;

pub use std::process::{ExitStatus, Output, Stdio};
