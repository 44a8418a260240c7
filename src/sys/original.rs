//! Whether this is still the worker that was started, or a copy that a task's fork(2) made of it.

use super::home::Home;

static HOME: Home = Home::new();

/// Marks this process as the original of all copies that are made of it.
pub(crate) fn mark() {
    HOME.settle();
}

/// Whether this is a copy of the process that was marked.
#[inline]
pub(crate) fn is_forked_copy() -> bool {
    HOME.is_elsewhere()
}

/// Ends this process, with that exit code, if it is a copy of the one that was marked: at once, so that nothing that it shares
/// with the original is touched, neither by a destructor nor by an exit handler; `_exit(2)`.
#[inline]
pub(crate) fn end_copy(code: i32) {
    if is_forked_copy() {
        // SAFETY: it ends the process; nothing of it runs after that.
        unsafe { libc::_exit(code) }
    }
}
