//! Copies of this process that fork(2) makes: none of our threads is in them.

use std::io;

use crate::sys::home::Home;

static HOME: Home = Home::new();

/// Whether this is a copy of a process that our threads are in: see [`no_forked_copy`].
pub(crate) fn is_forked_copy() -> bool {
    HOME.is_elsewhere()
}

/// Refuses to go on in a copy of the process that our threads are in: nobody would ever start or reap anything there.
pub(in crate::process) fn no_forked_copy() -> io::Result<()> {
    HOME.settle();
    HOME.check("without the threads that start and reap children")
}
