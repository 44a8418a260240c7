//! Whether this is still the worker that was started, or a copy that a task's fork(2) made of it.
//!
//! It is asked at each task, so it costs no system call: a copy finds a page of zeros where the original has its mark; `madvise(2)`
//! with `MADV_WIPEONFORK`. Also one that was made behind the C library's back, where no handler of `pthread_atfork(3)` would run.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use super::home::Home;

static MARK: AtomicPtr<AtomicBool> = AtomicPtr::new(null_mut());
/// Where there is no such page: not every sandbox knows that advice.
static HOME: Home = Home::new();

/// Marks this process as the original of all copies that are made of it.
pub(crate) fn mark() {
    // All of a page, however long that is.
    let len = size_of::<AtomicBool>();
    // SAFETY: it is a new mapping where the kernel likes, which is never unmapped.
    let page = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    if let Ok(page) = page
        // SAFETY: the range is the mapping that was just made, and nothing refers to it yet.
        && unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.is_ok()
    {
        let mark = page.cast::<AtomicBool>();
        // SAFETY: the page is aligned for anything, zeroed, which is a valid `AtomicBool`, and stays.
        unsafe { &*mark }.store(true, Ordering::Relaxed);
        MARK.store(mark, Ordering::Relaxed);
    } else {
        // It is the first time, so this is the original.
        let _ = HOME.settle();
    }
}

/// Whether this is a copy of the process that was marked.
#[inline]
pub(crate) fn is_copy() -> bool {
    let mark = MARK.load(Ordering::Relaxed);
    if mark.is_null() {
        return HOME.is_elsewhere();
    }
    // SAFETY: `mark` has set it to a page that is never unmapped, in a copy neither.
    !unsafe { &*mark }.load(Ordering::Relaxed)
}

/// Ends this process, with that exit code, if it is a copy of the one that was marked: at once, so that nothing that it shares
/// with the original is touched, neither by a destructor nor by an exit handler; `_exit(2)`.
#[inline]
pub(crate) fn end_copy(code: i32) {
    if is_copy() {
        // SAFETY: it ends the process; nothing of it runs after that.
        unsafe { libc::_exit(code) }
    }
}
