//! Which process threads are in: fork(2) copies none of them, and a lock that one of them held is held for good in the copy. Or
//! which has made something that it shares with its copies, a connection, say.
//!
//! It is asked at each task, so it costs no system call: a copy finds a page of zeros where its original keeps its number;
//! `madvise(2)` with `MADV_WIPEONFORK`. Also one that was made behind the C library's back, where no handler of `pthread_atfork(3)`
//! would run.

use std::process;
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The process that some of our threads are in; 0 before there are any.
#[derive(Debug)]
pub(crate) struct Home(AtomicU32);

impl Home {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// This process, of something that it makes.
    pub(crate) fn here() -> Self {
        Self(AtomicU32::new(here()))
    }

    /// Whether this is a copy of the process that they are in.
    #[inline]
    pub(crate) fn is_elsewhere(&self) -> bool {
        let home = self.0.load(Ordering::Relaxed);
        home != 0 && home != here()
    }

    /// Says that they are here. If this is a copy of the process that they are in, gives the number of that one.
    pub(crate) fn settle(&self) -> Result<(), u32> {
        let here = here();
        match self.0.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
            Err(home) if home != here => Err(home),
            _ => Ok(()),
        }
    }
}

/// In the page, where there is one by now.
static KEPT: AtomicPtr<AtomicU32> = AtomicPtr::new(null_mut());
/// In its place where there is no such page: not every sandbox knows that advice. Nothing is kept here.
static NOWHERE: AtomicU32 = AtomicU32::new(0);

/// The number of this process.
#[inline]
fn here() -> u32 {
    let kept = KEPT.load(Ordering::Relaxed);
    if !kept.is_null() {
        // SAFETY: `keep` has set it to a static, or to a page that is never unmapped, in a copy neither.
        let here = unsafe { &*kept }.load(Ordering::Relaxed);
        if here != 0 {
            return here;
        }
    }
    keep()
}

/// As [`here`], and keeps it.
#[cold]
fn keep() -> u32 {
    let here = process::id();
    let mut kept = KEPT.load(Ordering::Relaxed);
    if kept.is_null() {
        // Of two threads that come here at once each makes one, and one of these stays unused.
        kept = page().unwrap_or((&raw const NOWHERE).cast_mut());
        KEPT.store(kept, Ordering::Relaxed);
    }
    if !ptr::eq(kept, &raw const NOWHERE) {
        // SAFETY: as in `here`.
        unsafe { &*kept }.store(here, Ordering::Relaxed);
    }
    here
}

fn page() -> Option<*mut AtomicU32> {
    // All of a page, however long that is.
    let len = size_of::<AtomicU32>();
    // SAFETY: it is a new mapping where the kernel likes, which is never unmapped: aligned for anything, and zeroed, which is a
    // valid `AtomicU32`.
    let page =
        unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: the range is the mapping that was just made, and nothing refers to it yet.
    unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.ok()?;
    Some(page.cast())
}
