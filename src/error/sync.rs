//! Why processes could not wait for each other.

use std::io;

use super::CallError;

/// Why a [`Semaphore`](crate::sync::Semaphore), an [`Event`](crate::sync::Event) or a [`Barrier`](crate::sync::Barrier)
/// failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The process that made it has ended.
    #[error("the process that made it has ended")]
    Closed,
    /// The process that made it does not serve this one: other processes have made as many of it as they may, or the system
    /// does not let it.
    #[error("the process that made it refused: {reason}")]
    #[non_exhaustive]
    Refused {
        /// What it says.
        reason: String,
    },
    /// The system refused, or the runtime that waited for the answer has ended.
    #[error("cannot ask the process that made it")]
    Io(#[from] io::Error),
}

impl From<CallError> for SyncError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Closed | CallError::Unanswered => Self::Closed,
            CallError::Refused { reason } => Self::Refused { reason },
            CallError::Io(error) => Self::Io(error),
            other => Self::Io(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }
}
