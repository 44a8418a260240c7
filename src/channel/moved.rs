//! Whether an end has gone to another process. Encoding it is what moves it, before the message has left: one that can't be
//! sent, or is given up before it leaves, calls the move off, and its ends are as they were; see `wire/passenger.rs`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::wire::fds;
use crate::wire::passenger::Move;

/// Whether an end was moved. It can be said by `Serialize`, which has only `&self`.
#[derive(Debug, Default)]
pub(super) struct Moved {
    is_set: AtomicBool,
    /// What may yet call it off.
    by: Mutex<Option<Move>>,
}

/// What an end says that was moved.
pub(super) fn away() -> io::Error {
    io::Error::other("this end was sent to another process")
}

impl Moved {
    /// Its fd was just put down.
    pub(super) fn set(&self) {
        *self.by.lock().unwrap_or_else(PoisonError::into_inner) = fds::moved();
        self.is_set.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed) && !self.was_called_off()
    }

    #[cold]
    fn was_called_off(&self) -> bool {
        let by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        let is_off = by.as_ref().is_some_and(Move::is_off);
        if is_off {
            self.is_set.store(false, Ordering::Relaxed);
        }
        is_off
    }
}
