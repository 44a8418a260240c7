//! Your own functions in other processes, and other programs as subprocesses, for async Rust on tokio.

mod channel;
mod error;
mod pool;
mod process;
mod sys;
mod task;
mod wire;
mod worker;

pub use error::{BoxError, CommandError, Panic, RecvError, SendError, SpawnError, TaskError, TrySubmitError};
pub use pool::{Counts, Map, PoolBuilder, PoolStatus, ProcessPool, Submit, TaskHandle, WorkerState, WorkerStatus};
pub use process::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, Process, ProcessBuilder, Source, spawn_process,
};
pub use std::process::{ExitStatus, Output, Stdio};
pub use sys::process::Usage;
pub use task::{Call, Task, call};
pub use worker::{init, is_worker};

#[doc(hidden)]
pub mod __private {
    pub use crate::task::{CallAsync, call, call_async};
}
