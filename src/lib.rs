//! Your own functions in other processes, and other programs as subprocesses, for async Rust on tokio.

mod error;
mod sys;
pub mod wire;

pub use error::{BoxError, CommandError, Panic, RecvError, SendError, SpawnError, TaskError, TrySubmitError};
pub use std::process::{ExitStatus, Output, Stdio};
