// The front page is the README. Of two definitions of a link the first one counts, so that here the pages below are meant.
#![doc = "[choosing]: guide::choosing\n[failure]: guide::failure\n"]
#![doc = include_str!("../README.md")]

mod channel;
mod error;
mod pool;
mod process;
pub mod sync;
mod sys;
mod task;
pub mod wire;
mod worker;

pub use channel::{
    AckedQueue, AckedReceiver, Client, Delivery, Duplex, Fd, Listener, Peer, QueueReceiver, QueueSender, Receiver,
    Sender, SharedBytes, SharedBytesMut, SharedSlice, SharedSliceMut, blocking_connect, blocking_serve, channel,
    connect, connect_to, duplex, from_parent, queue, serve,
};
pub use error::{
    BoxError, CallError, CommandError, Panic, ParentError, RecvError, SendError, SpawnError, SyncError, TaskError,
    TryRecvError, TrySendError, TrySubmitError,
};
pub use pool::{
    Counts, Map, PoolBuilder, PoolStatus, ProcessPool, Quantiles, Submit, TaskHandle, WorkerState, WorkerStatus,
};
pub use process::{
    Child, ChildStderr, ChildStdin, ChildStdout, Command, Process, ProcessBuilder, Source, spawn_process,
};
pub use std::process::{ExitStatus, Output, Stdio};
pub use sys::process::Usage;
pub use task::{Call, Task, call};
pub use worker::{Worker, init, is_worker, worker};

#[doc(hidden)]
pub mod __private {
    pub use crate::task::{CallAsync, call_async, call_named};
}

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz {
    pub use crate::channel::fuzz::{moved_ends, queue_packets, stream_fds};
    pub use crate::pool::fuzz::{chunk_answers, ring_answers};
}

/// Pages to read, beside the reference.
pub mod guide {
    #[doc = include_str!("../docs/choosing.md")]
    pub mod choosing {}

    #[doc = include_str!("../docs/failure.md")]
    pub mod failure {}
}
