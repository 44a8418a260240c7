//! What is known of a client's open calls: where each is waited for, its answer, and why there are no more answers. All of
//! it is behind one lock, in `calls.rs`.

use std::collections::HashMap;
use std::io;
use std::task::Waker;

use tokio::runtime::{Handle, Id};
use tokio::task::AbortHandle;

use crate::channel::background;
use crate::error::{CallError, RecvError};
use crate::wire::frame::Frame;

#[derive(Debug, Default)]
pub(super) struct Table {
    /// The number of the last call. It goes where the client goes: an answer to a call that was dropped may still come, and
    /// must find no new call with its number.
    pub(super) last: u64,
    pub(super) open: HashMap<u64, Slot>,
    pub(super) readers: Vec<Reader>,
    /// Why there are no more answers.
    pub(super) end: Option<End>,
}

#[derive(Debug)]
pub(super) enum Slot {
    Waiting {
        place: Place,
        waker: Option<Waker>,
    },
    Answered(Frame),
    /// Its answer was taken.
    Over,
    /// Its reader is gone, and its answer may be yet to come.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) place: Place,
    pub(super) task: Option<AbortHandle>,
}

/// Where a reader runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Runtime(Id),
    Background,
}

impl Place {
    /// The runtime that polls the caller, if there is one.
    pub(super) fn here() -> Self {
        Handle::try_current().map_or(Self::Background, |handle| Self::Runtime(handle.id()))
    }

    /// Where a call that has waited here waits when it is polled. The background thread always runs, and who waits for that one
    /// blocks the thread that polls.
    pub(super) fn or_here(self) -> Self {
        match self {
            Self::Runtime(_) => Self::here(),
            Self::Background => self,
        }
    }

    pub(super) fn handle(self) -> io::Result<Handle> {
        match self {
            Self::Runtime(_) => Handle::try_current().map_err(io::Error::other),
            Self::Background => background::runtime(),
        }
    }
}

/// How the answers ended, so that each call can be told.
#[derive(Debug)]
pub(super) enum End {
    Gone,
    Refused(String),
    TooLarge { len: u64, max: u64 },
    Protocol(&'static str),
    Failed(io::ErrorKind, String),
}

impl From<RecvError> for End {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Truncated => Self::Gone,
            RecvError::TooLarge { len, max } => Self::TooLarge { len, max },
            RecvError::Protocol { reason } => Self::Protocol(reason),
            RecvError::Io(error) => Self::Failed(error.kind(), error.to_string()),
            RecvError::Decode(source) => Self::Failed(io::ErrorKind::InvalidData, source.to_string()),
        }
    }
}

impl End {
    /// What a call is told; `gone` if the server simply is no more.
    pub(super) fn error(&self, gone: CallError) -> CallError {
        match self {
            Self::Gone => gone,
            Self::Refused(reason) => CallError::Refused { reason: reason.clone() },
            &Self::TooLarge { len, max } => CallError::TooLarge { len, max },
            &Self::Protocol(reason) => CallError::Protocol { reason },
            Self::Failed(kind, text) => CallError::Io(io::Error::new(*kind, text.clone())),
        }
    }
}

impl Table {
    pub(super) fn next(&mut self) -> u64 {
        // Where a client that came from another process begins, that process says.
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// Whether the caller is to start a reader at this place, which is in the table from now on.
    pub(super) fn needs_reader(&mut self, place: Place) -> bool {
        let needed = self.readers.iter().all(|reader| reader.place != place);
        if needed {
            self.readers.push(Reader { place, task: None });
        }
        needed
    }
}

impl Slot {
    pub(super) fn take_waker(&mut self) -> Option<Waker> {
        match self {
            Self::Waiting { waker, .. } => waker.take(),
            Self::Answered(_) | Self::Over | Self::Abandoned => None,
        }
    }

    pub(super) fn waits_at(&self, here: Place) -> bool {
        matches!(self, Self::Waiting { place, .. } if *place == here)
    }
}
