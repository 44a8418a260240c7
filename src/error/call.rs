//! Why a call to a service has no answer.

use std::io;

use super::{BoxError, SendError};

/// Why a [`Client`](crate::Client)'s call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server had ended before it got the request.
    #[error("service is closed: no server is left")]
    Closed,
    /// The server ended before it answered; it may have acted on the request.
    #[error("server ended before it answered")]
    Unanswered,
    /// The server could not read the request, panicked while it handled it, or could not send its answer.
    #[error("server refused: {reason}")]
    #[non_exhaustive]
    Refused {
        /// What the server says.
        reason: String,
    },
    /// The request could not be encoded; nothing was sent.
    #[error("request cannot be encoded")]
    Encode(#[source] BoxError),
    /// This one answer could not be decoded.
    #[error("answer cannot be decoded")]
    Decode(#[source] BoxError),
    /// The request is over the limit, and was not sent; or the server announced an answer over it, after which the client
    /// is unusable.
    #[error("encoded request or answer of {len} bytes is over the limit of {max} bytes")]
    TooLarge {
        /// The size in bytes, or the least that it would have been.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// What arrived is no answer; the client is unusable.
    #[error("not a multiproc server: {reason}")]
    #[non_exhaustive]
    Protocol {
        /// What did not fit.
        reason: &'static str,
    },
    /// The system refused.
    #[error("cannot call")]
    Io(#[from] io::Error),
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed => Self::Closed,
            SendError::Encode(source) => Self::Encode(source),
            SendError::TooLarge { len, max } => Self::TooLarge { len, max },
            SendError::Io(error) => Self::Io(error),
        }
    }
}
