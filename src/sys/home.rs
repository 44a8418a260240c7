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

/// None that a kernel knows.
const NO_ADVICE: libc::c_int = -1;

fn page() -> Option<*mut AtomicU64> {
    // All of a page, however long that is.
    let len = size_of::<AtomicU64>();
    // SAFETY: it is a new mapping where the kernel likes, which is never unmapped: aligned for anything, and zeroed, which is a
    // valid `AtomicU64`.
    let page =
        unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
    // Where advice that there is none of is taken, too, as by qemu's user mode before 8.1, its word is worth nothing.
    // SAFETY: the range is the mapping that was just made, and nothing refers to it yet.
    let is_kept =
        unsafe { libc::madvise(page, len, NO_ADVICE) != 0 && madvise(page, len, Advice::LinuxWipeOnFork).is_ok() };
    is_kept.then_some(page.cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::first;

    /// From now on this call is answered with 0 in this thread, and does nothing; seccomp(2).
    fn pretend(call: libc::c_long) {
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
        let mut filter = [
            // The number of the call is what `seccomp_data` begins with.
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::try_from(call).unwrap()),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
        // SAFETY: the program is whole and live, and only read.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program), 0);
        }
    }

    /// A copy was taken for its original, as the page came along.
    #[test]
    fn where_any_advice_is_taken_there_is_no_page() {
        assert!(page().is_some());
        let pretends = std::thread::spawn(|| {
            pretend(libc::SYS_madvise);
            page().is_none()
        });
        assert!(pretends.join().unwrap());
    }

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
