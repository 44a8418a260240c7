//! On which processor a thread runs, and on which ones it may; sched_setaffinity(2).

use std::mem::MaybeUninit;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processor that runs this thread, or did a moment ago; sched_getcpu(3).
pub(super) fn processor() -> usize {
    // SAFETY: it takes nothing. glibc reads it from where the kernel keeps it for the thread; rustix's asks the vDSO, for which a
    // process has to look where that is.
    let processor = unsafe { libc::sched_getcpu() };
    // It fails where there is no getcpu(2), since Linux 2.6.19.
    usize::try_from(processor).unwrap_or(0)
}

/// On how many processors this thread may run. `None`: on more than 1,024, or that can't be said.
pub(crate) fn allowed() -> Option<usize> {
    usize::try_from(sched_getaffinity(None).ok()?.count()).ok()
}

/// Whether this thread's system calls are filtered; prctl(2).
fn is_filtered() -> bool {
    // SAFETY: it takes nothing.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) > 0 }
}

/// Has this thread go on on another one of its processors, for now: it may come back. `false`: it has one only, or can't be moved.
///
/// As for [`Pinned`], not where system calls are filtered.
pub(super) fn leave() -> bool {
    if is_filtered() {
        return false;
    }
    let Some(before) = sched_getaffinity(None).ok().filter(|before| before.count() > 1) else { return false };
    let mut others = before;
    others.unset(processor());
    let _lets_it_go = Pinned { before };
    sched_setaffinity(None, &others).is_ok()
}

/// A thread that stays on the processor that runs it, as do those that it makes meanwhile, until this is dropped.
#[derive(Debug)]
pub(super) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Keeps this thread where it is. `None`: it may run on one processor only, or can't be kept.
    ///
    /// Nor where system calls are filtered, which may be to end who changes his processors: systemd counts that among what a
    /// service with a filter has no business with.
    pub(super) fn here() -> Option<Self> {
        if is_filtered() {
            return None;
        }
        // The call knows no more than 1,024 processors, and fails where there may be more.
        let before = sched_getaffinity(None).ok().filter(|before| before.count() > 1)?;
        let mut here = CpuSet::new();
        here.set(processor());
        sched_setaffinity(None, &here).ok().map(|()| Self { before })
    }

    /// Lets a thread that was made meanwhile go where this one was allowed to before.
    pub(super) fn let_go(&self, thread: u32) {
        // It fails for one that is over.
        let _ = sched_setaffinity(Pid::from_raw(thread.cast_signed()), &self.before);
    }
}

impl Drop for Pinned {
    /// Lets this thread go where it was allowed to before.
    ///
    /// What a thread asks for stays with it: if that were the processors which its cpuset has today, it would never use those that
    /// the cpuset gets tomorrow. So it asks for all, and only where it was restricted to fewer than its cpuset has, for those.
    fn drop(&mut self) {
        let is_as_before = allow_all() && sched_getaffinity(None) == Ok(self.before);
        if !is_as_before {
            // It fails if the cpuset has none of these any more, in which case this thread may go where that lets it.
            let _ = sched_setaffinity(None, &self.before);
        }
    }
}

/// Lets this thread run on all processors that its cpuset has. Says whether it could be.
fn allow_all() -> bool {
    let mut all = MaybeUninit::<libc::cpu_set_t>::uninit();
    // SAFETY: it is all written, and a set is valid whatever its bits are; the call reads as many of them as it is told.
    unsafe {
        all.as_mut_ptr().write_bytes(0xff, 1);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), all.as_ptr()) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(processor: usize) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(processor);
        set
    }

    #[test]
    fn a_pinned_thread_and_those_that_it_makes_stay_until_that_ends() {
        let before = sched_getaffinity(None).unwrap();
        let Some(pinned) = Pinned::here() else {
            assert!(before.count() == 1 || is_filtered());
            return eprintln!("skipped: one processor, or a filter");
        };
        let here = only(processor());
        assert_eq!(sched_getaffinity(None), Ok(here));
        assert_eq!(std::thread::spawn(|| sched_getaffinity(None)).join().unwrap(), Ok(here));
        drop(pinned);
        assert_eq!(sched_getaffinity(None), Ok(before));
    }

    #[test]
    fn a_thread_that_leaves_its_processor_may_come_back() {
        let before = sched_getaffinity(None).unwrap();
        if before.count() == 1 || is_filtered() {
            assert!(!leave());
            return eprintln!("skipped: one processor, or a filter");
        }
        // It may have been moved just before, or may be right after that.
        let left = (0..1000).any(|_| {
            let here = processor();
            leave() && processor() != here
        });
        assert!(left);
        assert_eq!(sched_getaffinity(None), Ok(before));
        sched_setaffinity(None, &only(processor())).unwrap();
        assert!(!leave());
    }

    #[test]
    fn a_thread_that_was_restricted_is_so_again() {
        let before = sched_getaffinity(None).unwrap();
        let fewer = {
            let mut fewer = before;
            fewer.unset(processor());
            fewer
        };
        // It takes three processors to be restricted to two.
        if fewer.count() > 1 && !is_filtered() {
            sched_setaffinity(None, &fewer).unwrap();
            drop(Pinned::here().unwrap());
            assert_eq!(sched_getaffinity(None), Ok(fewer));
        }
        let one = only(processor());
        sched_setaffinity(None, &one).unwrap();
        assert!(Pinned::here().is_none(), "it is as good as pinned");
        assert_eq!(sched_getaffinity(None), Ok(one));
    }
}
