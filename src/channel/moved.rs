//! Whether an end has gone to another process. Encoding it is what moves it, before the message has left: a message that is
//! given back to its sender calls the move off, and its ends are as they were.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    /// What is being encoded on this thread and may yet be given back.
    static UNDER_WAY: RefCell<Option<Move>> = const { RefCell::new(None) };
}

/// The move of all ends in one message.
#[derive(Clone, Debug, Default)]
pub(super) struct Move {
    is_off: Arc<AtomicBool>,
}

impl Move {
    /// Runs an encoder whose message may be given back, and gives what calls the move of its ends off.
    pub(super) fn begin<R>(encode: impl FnOnce() -> R) -> (R, Self) {
        /// Puts the former one back, after a panic too: a value may encode another inside.
        struct Outer(Option<Move>);

        impl Drop for Outer {
            fn drop(&mut self) {
                UNDER_WAY.replace(self.0.take());
            }
        }

        let this = Self::default();
        let _outer = Outer(UNDER_WAY.replace(Some(this.clone())));
        (encode(), this)
    }

    /// For a message that nobody has and nobody will have: with it go the duplicates of the ends.
    pub(super) fn call_off(self) {
        self.is_off.store(true, Ordering::Relaxed);
    }
}

/// Whether an end was moved. It can be said by `Serialize`, which has only `&self`.
#[derive(Debug, Default)]
pub(super) struct Moved {
    is_set: AtomicBool,
    /// What may yet call it off.
    by: Mutex<Option<Move>>,
}

impl Moved {
    pub(super) fn set(&self) {
        *self.by.lock().unwrap_or_else(PoisonError::into_inner) = UNDER_WAY.with_borrow(Clone::clone);
        self.is_set.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed) && !self.was_called_off()
    }

    #[cold]
    fn was_called_off(&self) -> bool {
        let by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        let is_off = by.as_ref().is_some_and(|by| by.is_off.load(Ordering::Relaxed));
        if is_off {
            self.is_set.store(false, Ordering::Relaxed);
        }
        is_off
    }
}
