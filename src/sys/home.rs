//! Which process threads are in: fork(2) copies none of them, and a lock that one of them held is held for good in the copy. Or
//! which has made something that it shares with its copies, a connection, say.
//!
//! It is asked at each task, so it costs no system call: a copy finds a page of zeros where its original keeps its number;
//! `madvise(2)` with `MADV_WIPEONFORK`. Also one that was made behind the C library's back, where no handler of `pthread_atfork(3)`
//! would run.

use std::io;
use std::process;
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The process that some of our threads are in; 0 before there are any.
#[derive(Debug)]
pub(crate) struct Home(AtomicU64);

impl Home {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// This process, of something that it makes.
    pub(crate) fn here() -> Self {
        Self(AtomicU64::new(here()))
    }

    /// Whether this is a copy of the process that they are in.
    #[inline]
    pub(crate) fn is_elsewhere(&self) -> bool {
        let home = self.0.load(Ordering::Relaxed);
        home != 0 && home != here()
    }

    /// Says that they are here, if nobody has said where they are.
    pub(crate) fn settle(&self) {
        let _ = self.0.compare_exchange(0, here(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Refuses to go on in a copy of the process that they are in. `lacks` ends the sentence that says so.
    #[inline]
    pub(crate) fn check(&self, lacks: &str) -> io::Result<()> {
        if self.is_elsewhere() { Err(self.refusal(lacks)) } else { Ok(()) }
    }

    #[cold]
    fn refusal(&self, lacks: &str) -> io::Error {
        #[expect(clippy::cast_possible_truncation, reason = "the process's number is the lower half")]
        let home = self.0.load(Ordering::Relaxed) as u32;
        io::Error::other(format!("this process is a copy that process {home} forked, {lacks}"))
    }
}

/// In the page, where there is one by now.
static KEPT: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// In its place where there is no such page: not every sandbox knows that advice. Nothing is kept here.
static NOWHERE: AtomicU64 = AtomicU64::new(0);

/// This process among its copies and those that it is a copy of, and in the lower half its number: in a pid namespace of its own a
/// copy may have the number of its original.
#[inline]
fn here() -> u64 {
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
fn keep() -> u64 {
    /// How often a process among those that this one is a copy of has come here, this one included: copied with everything else.
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    let mut kept = KEPT.load(Ordering::Relaxed);
    if kept.is_null() {
        let new = page().unwrap_or((&raw const NOWHERE).cast_mut());
        // Of two threads that come here at once each makes one, and one of these stays unused.
        kept =
            KEPT.compare_exchange(kept, new, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|first| first, |_| new);
    }
    let number = u64::from(process::id());
    if ptr::eq(kept, &raw const NOWHERE) {
        return number;
    }
    let here = u64::from(GENERATION.fetch_add(1, Ordering::Relaxed) + 1) << 32 | number;
    // SAFETY: as in `here`.
    let kept = unsafe { &*kept };
    kept.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|first| first, |_| here)
}

fn page() -> Option<*mut AtomicU64> {
    // All of a page, however long that is.
    let len = size_of::<AtomicU64>();
    // SAFETY: it is a new mapping where the kernel likes, which is never unmapped: aligned for anything, and zeroed, which is a
    // valid `AtomicU64`.
    let page =
        unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: the range is the mapping that was just made, and nothing refers to it yet.
    unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.ok()?;
    Some(page.cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::first;

    /// It was taken for its original.
    #[test]
    fn a_copy_with_the_number_of_its_original_is_a_copy_all_the_same() {
        if !first::is_first_process() {
            return;
        }
        let home = Home::here();
        assert!(process::id() == 1 && !home.is_elsewhere());
        assert!(first::holds_in_a_namesake(
            || home.is_elsewhere() && home.check("").is_err_and(|error| error.to_string().contains(" 1 "))
        ));
    }
}
