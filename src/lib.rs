//! Your own functions in other processes, and other programs as subprocesses, for async Rust on tokio.

mod channel;
mod error;
mod process;
mod sys;
mod task;
mod wire;
mod worker;

pub use channel::{
    Duplex, QueueReceiver, QueueSender, Receiver, Sender, SharedBytes, SharedBytesMut, channel, duplex, queue,
};
pub use error::{
    BoxError, CommandError, Panic, RecvError, SendError, SpawnError, TaskError, TryRecvError, TrySendError,
    TrySubmitError,
};
pub use process::{Process, ProcessBuilder, spawn_process};
pub use std::process::{ExitStatus, Output, Stdio};
pub use task::{Call, Task, call};
pub use worker::{init, is_worker};

#[doc(hidden)]
pub mod __private {
    pub use crate::task::{CallAsync, call, call_async};
}
