//! Which process threads are in: fork(2) copies none of them, and a lock that one of them held is held for good in the copy. Or
//! which has made something that it shares with its copies, a connection, say.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that some of our threads are in; 0 before there are any.
#[derive(Debug)]
pub(crate) struct Home(AtomicU32);

impl Home {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// This process, of something that it makes.
    pub(crate) fn here() -> Self {
        Self(AtomicU32::new(process::id()))
    }

    /// Whether this is a copy of the process that they are in.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let home = self.0.load(Ordering::Relaxed);
        home != 0 && home != process::id()
    }

    /// Says that they are here. If this is a copy of the process that they are in, gives the number of that one.
    pub(crate) fn settle(&self) -> Result<(), u32> {
        let here = process::id();
        match self.0.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
            Err(home) if home != here => Err(home),
            _ => Ok(()),
        }
    }
}
