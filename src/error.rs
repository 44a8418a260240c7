//! Every public error, one enum a family.
//!
//! Who is at fault can be read off the variant: the caller (`Encode`, `TooLarge`), the task (`Panicked`), the other
//! process (`Died`, `Truncated`), or the system (`Io`). Nothing here decides what happens after an error.

mod call;
mod command;
mod ending;
mod spawn;
mod sync;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitStatus;

pub use call::CallError;
pub use command::{CommandError, ParentError};
pub(crate) use ending::EXIT_NO_PARENT;
use ending::Ending;
use serde::{Deserialize, Serialize};
pub use spawn::SpawnError;
pub use sync::SyncError;

/// A boxed source error, as the `Encode`, `Decode` and `Broken` variants carry it.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// What a panic in another process said, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Panic {
    /// The panic's message; for a payload that is not a string, a text that says so.
    pub message: String,
    /// Where it panicked, as `file:line:column`.
    pub location: Option<String>,
    /// The backtrace, where `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` asks for one in the worker.
    ///
    /// There is none where a hard limit (`ulimit -v`) leaves the worker less than 512 MiB of address space: making one could
    /// take that. Nor is a panic hook called there that the program installed before [`init`](crate::init), which gets the
    /// panics of other threads than the task's: they are printed without a backtrace. A
    /// [`memory_limit`](crate::PoolBuilder::memory_limit) is lifted meanwhile. The task's timeout counts on: the first backtrace
    /// in a process can take some 100 ms.
    pub backtrace: Option<String>,
}

impl Panic {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), location: None, backtrace: None }
    }
}

impl Error for Panic {}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.location {
            Some(location) => write!(f, " at {location}"),
            None => Ok(()),
        }
    }
}

/// Why a task has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The task panicked. Its process may live on and take the next task.
    #[error("task panicked: {0}")]
    Panicked(Panic),
    /// The process that ran the task ended before the task did.
    #[error("worker process {pid} died while it ran {task}: {}", Ending { status: *.status, unexplained_kill: *.unexplained_kill })]
    #[non_exhaustive]
    Died {
        /// How it ended; `None` if somebody else in this program reaped it first.
        status: Option<ExitStatus>,
        /// The process id that it had.
        pid: u32,
        /// The task's name: what [`Submit::name`](crate::Submit::name) says, or its function's.
        task: Cow<'static, str>,
        /// It got a SIGKILL that this library did not send: on Linux most often the out-of-memory killer.
        unexplained_kill: bool,
    },
    /// The task ran longer than its timeout. Its process was killed, unless it ended the task within the pool's
    /// [`cancel_grace`](crate::PoolBuilder::cancel_grace).
    #[error("task timed out")]
    TimedOut,
    /// The task was cancelled before it had a result, or its pool or its runtime ended.
    #[error("task was cancelled, or its pool or its runtime ended")]
    Cancelled,
    /// The task's arguments, or its result, could not be encoded; one that nests deeper than 128 levels, say.
    #[error("task or its result cannot be encoded")]
    Encode(#[source] BoxError),
    /// The task's arguments could not be decoded in the worker, or its result could not be decoded here.
    ///
    /// Each may become values of 16 MiB and 256 bytes for each of its encoded bytes, which only lists exceed whose elements are
    /// far larger in memory than on the wire: `None`s of a large type, say, which is to be boxed then. Elements that take no
    /// memory, `()` say, count as a byte each.
    #[error("task or its result cannot be decoded")]
    Decode(#[source] BoxError),
    /// The encoded task, or its encoded result, is larger than a frame may be.
    #[error("encoded value of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The size in bytes, or the least that it would have been.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// No process could be started for the task.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The pool is closed, or is being closed.
    #[error("pool is closed")]
    Closed,
    /// The pool's workers could not be kept alive. The source is the last reason, a [`SpawnError`].
    #[error("pool is broken: its workers cannot be started")]
    Broken(#[source] BoxError),
}

impl TaskError {
    /// Its variant's name, for traces.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Panicked(_) => "panicked",
            Self::Died { .. } => "died",
            Self::TimedOut => "timed out",
            Self::Cancelled => "cancelled",
            Self::Encode(_) => "cannot be encoded",
            Self::Decode(_) => "cannot be decoded",
            Self::TooLarge { .. } => "too large",
            Self::Spawn(_) => "no worker",
            Self::Closed => "closed",
            Self::Broken(_) => "broken",
        }
    }

    /// The same once more, for another task that ended with it; sources become their text.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Panicked(panic) => Self::Panicked(panic.clone()),
            &Self::Died { status, pid, ref task, unexplained_kill } => {
                Self::Died { status, pid, task: task.clone(), unexplained_kill }
            }
            Self::TimedOut => Self::TimedOut,
            Self::Cancelled => Self::Cancelled,
            Self::Encode(source) => Self::Encode(source.to_string().into()),
            Self::Decode(source) => Self::Decode(source.to_string().into()),
            &Self::TooLarge { len, max } => Self::TooLarge { len, max },
            Self::Spawn(error) => Self::Spawn(error.again()),
            Self::Closed => Self::Closed,
            Self::Broken(source) => Self::Broken(match source.downcast_ref::<SpawnError>() {
                Some(cause) => cause.again().into(),
                None => source.to_string().into(),
            }),
        }
    }
}

/// Why [`try_submit`](crate::ProcessPool::try_submit) took no task. `Full` and `Closed` give it back.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TrySubmitError<T> {
    /// Every slot is taken.
    #[error("pool has no free slot")]
    Full(T),
    /// The pool is closed, or is being closed.
    #[error("pool is closed")]
    Closed(T),
    /// The task can't be sent at all.
    #[error("task is refused")]
    Refused(#[source] TaskError),
}

impl<T> fmt::Debug for TrySubmitError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody can receive it any more, or this end was closed as a `Sink`.
    #[error("channel is closed: no receiver is left, or this end was closed")]
    Closed,
    /// The message could not be encoded; nothing was sent and the channel goes on. One that nests deeper than 128 levels, say.
    #[error("message cannot be encoded")]
    Encode(#[source] BoxError),
    /// The encoded message is larger than a frame may be; nothing was sent and the channel goes on.
    #[error("encoded message of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The size in bytes, or the least that it would have been.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The system refused.
    #[error("cannot send")]
    Io(#[from] io::Error),
}

/// Why no message was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The sender ended in the middle of a message.
    #[error("sender ended in the middle of a message")]
    Truncated,
    /// This one message could not be decoded; the next one can be received.
    ///
    /// A message may become as much as a task's arguments: see [`TaskError::Decode`].
    #[error("message cannot be decoded")]
    Decode(#[source] BoxError),
    /// The sender announced a message over the limit; nothing was taken in, and the channel is unusable.
    #[error("announced message of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The announced size in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// What arrived is not this protocol; the channel is unusable.
    #[error("not a multiproc frame: {reason}")]
    #[non_exhaustive]
    Protocol {
        /// What did not fit.
        reason: &'static str,
    },
    /// The system refused.
    #[error("cannot receive")]
    Io(#[from] io::Error),
}

/// Why [`try_send`](crate::QueueSender::try_send) sent nothing. `Full` and `Closed` give the item back.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError<T> {
    /// There is no room now.
    #[error("queue is full")]
    Full(T),
    /// No receiver is left, or this clone was closed as a `Sink`.
    #[error("queue is closed: no receiver is left, or this sender was closed")]
    Closed(T),
    /// The item can't be sent at all.
    #[error("item is refused")]
    Refused(#[source] SendError),
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Closed(_) => f.write_str("Closed(..)"),
            Self::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
        }
    }
}

/// Why [`try_recv`](crate::QueueReceiver::try_recv) took nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// There is no item now.
    #[error("queue is empty")]
    Empty,
    /// There is no item, and no sender is left.
    #[error("queue is closed: no sender is left")]
    Closed,
    /// There was one, and it could not be taken.
    #[error("item cannot be received")]
    Failed(#[source] RecvError),
}
