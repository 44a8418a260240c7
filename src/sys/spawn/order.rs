//! What a child does in this process's memory until it is its program: it makes system calls, and nothing else.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::{mem, ptr};

use rustix::thread::futex;

use super::Exec;
use crate::sys::in_child::InChild;
use crate::sys::process::SignalMask;
use crate::sys::raw::{call, check};

/// What the child has to do, and where it says that it could not. All of it outlives the child's stay in this memory.
pub(super) struct Order {
    stdio: [c_int; 3],
    /// Null if there is nothing to do.
    in_child: *const InChild,
    current_dir: *const c_char,
    worker: bool,
    paths: *const *const c_char,
    args: *const *const c_char,
    pub(super) env: Late,
    mask: SignalMask,
    /// Gets the error number when the child has failed.
    failed: *const AtomicI32,
}

/// The strings of an `Exec` as exec(3) takes them; the pointers are good until it changes or goes.
pub(super) struct Pointers {
    paths: Vec<*const c_char>,
    args: Vec<*const c_char>,
    current_dir: *const c_char,
    worker: bool,
}

impl Pointers {
    pub(super) fn into(exec: &Exec) -> Self {
        Self {
            paths: exec.paths.pointers(),
            args: exec.args.pointers(),
            current_dir: exec.current_dir.as_deref().map_or(ptr::null(), CStr::as_ptr),
            worker: exec.worker,
        }
    }

    pub(super) fn order(
        &self,
        stdio: [Option<BorrowedFd<'_>>; 3],
        in_child: *const InChild,
        mask: SignalMask,
        failed: &AtomicI32,
    ) -> Order {
        debug_assert!(stdio.iter().flatten().all(|fd| fd.as_raw_fd() > 2));
        Order {
            stdio: stdio.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())),
            in_child,
            current_dir: self.current_dir,
            worker: self.worker,
            paths: self.paths.as_ptr(),
            args: self.args.as_ptr(),
            env: Late::from_here(),
            mask,
            failed,
        }
    }
}

/// A list of strings for the child that need not be there yet when it is made: to copy an environment takes as long as a child takes
/// to come to where it needs that, on another processor.
#[derive(Debug)]
pub(super) struct Late {
    list: AtomicPtr<*const c_char>,
    /// A futex: one of the three below.
    step: AtomicU32,
    /// Who will give it.
    parent: libc::pid_t,
}

const EXPECTED: u32 = 0;
/// The child sleeps until it is there.
const AWAITED: u32 = 1;
const GIVEN: u32 = 2;

impl Late {
    /// This process will give it.
    pub(super) fn from_here() -> Self {
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        Self { list: AtomicPtr::default(), step: AtomicU32::new(EXPECTED), parent }
    }

    /// Gives the child the list, which must end with a null pointer. It and its strings must outlive the child's stay.
    pub(super) fn give(&self, list: &[*const c_char]) {
        self.list.store(list.as_ptr().cast_mut(), Ordering::Relaxed);
        if self.step.swap(GIVEN, Ordering::Release) == AWAITED {
            let _ = futex::wake(&self.step, futex::Flags::PRIVATE, 1);
        }
    }

    /// Waits until it is there, in the child; futex(2). Fails where its parent has ended in the middle of the start, and some time
    /// after it should have been there: the parent may have become another program.
    fn wait(&self) -> Result<*const *const c_char, c_int> {
        const WAIT: usize = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
        /// A hundred times makes ten seconds.
        static LOOK: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let (step, look) = ((&raw const self.step).expose_provenance(), (&raw const LOOK).expose_provenance());
        let _ = self.step.compare_exchange(EXPECTED, AWAITED, Ordering::Relaxed, Ordering::Relaxed);
        for _ in 0..100 {
            if self.step.load(Ordering::Acquire) == GIVEN {
                return Ok(self.list.load(Ordering::Relaxed));
            }
            // SAFETY: takes nothing.
            if self.is_not(unsafe { call(libc::SYS_getppid, [0; 4]) }) {
                break;
            }
            // SAFETY: reads a live word and a live timespec.
            unsafe { call(libc::SYS_futex, [step, WAIT, AWAITED as usize, look]) };
        }
        Err(libc::ECANCELED)
    }

    /// Whether a parent is not the one who will give it. 0 is one outside of the child's pid namespace, and may be.
    fn is_not(&self, parent: i64) -> bool {
        parent != i64::from(self.parent) && parent != 0
    }
}

/// The child's whole life here. It shares this process's memory, and everything in it but the order is somebody else's.
pub(super) extern "C" fn become_program(order: *const Order) -> ! {
    // SAFETY: whoever made the child keeps the order as it is until the child has left.
    let order = unsafe { &*order };
    let error = order.carry_out();
    // SAFETY: the same holds for all that it points to.
    unsafe { &*order.failed }.store(error, Ordering::Release);
    loop {
        // SAFETY: ends this process alone, and runs nothing of the parent's.
        unsafe { call(libc::SYS_exit_group, [127, 0, 0, 0]) };
    }
}

impl Order {
    /// Returns only if something fails, with the error number. It makes system calls, and nothing else: no allocation, no
    /// lock, no panic, no errno.
    fn carry_out(&self) -> c_int {
        self.prepare().err().unwrap_or_else(|| self.exec())
    }

    fn prepare(&self) -> Result<(), c_int> {
        // SAFETY: who gave the order keeps what it points to.
        let in_child = unsafe { self.in_child.as_ref() };
        // The leader of a group can't open a session, which has a group of its own anyway.
        if in_child.is_none_or(|in_child| !in_child.new_session) {
            // SAFETY: takes numbers.
            check(unsafe { call(libc::SYS_setpgid, [0; 4]) })?;
            forget_group_signals();
        }
        for (place, &fd) in (0..).zip(&self.stdio) {
            if let Ok(fd) = usize::try_from(fd) {
                // The copy stays open when the program starts.
                // SAFETY: changes this process's descriptors, which are copies of the parent's.
                check(unsafe { call(libc::SYS_dup3, [fd, place, 0, 0]) })?;
            }
        }
        if !self.current_dir.is_null() {
            // SAFETY: a string; the directory is this process's own.
            check(unsafe { call(libc::SYS_chdir, [self.current_dir.expose_provenance(), 0, 0, 0]) })?;
        }
        if self.worker {
            const CLOEXEC: usize = 4;
            // A kernel before 5.11 can't; then the worker does both.
            // SAFETY: changes this process's descriptors, which are copies of the parent's, and a setting of its own.
            unsafe {
                if call(libc::SYS_close_range, [3, c_int::MAX as usize, CLOEXEC, 0]) == 0 {
                    call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGCONT as usize, 0, 0]);
                }
            }
        }
        if let Some(in_child) = in_child {
            in_child.apply()?;
            if in_child.new_session {
                forget_group_signals();
            }
        }
        Ok(())
    }

    /// Becomes the program, with SIGPIPE at its default: Rust programs ignore it, and what is ignored stays so.
    fn exec(&self) -> c_int {
        const SET: usize = 8;
        /// The kernel's struct sigaction, with its four words: `SIG_DFL`, no flags, no restorer, an empty mask.
        static DEFAULT: [usize; 4] = [0; 4];
        let default = (&raw const DEFAULT).expose_provenance();
        let mask = (&raw const self.mask).expose_provenance();
        let env = match self.env.wait() {
            Ok(env) => env.expose_provenance(),
            Err(error) => return error,
        };
        let args = self.args.expose_provenance();
        // SAFETY: these change this process's own signals. What is passed has the kernel's layout: its set of signals is the
        // beginning of libc's.
        unsafe {
            call(libc::SYS_rt_sigaction, [libc::SIGPIPE as usize, default, 0, SET]);
            call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, mask, 0, SET]);
        }
        let (mut path, mut last, mut denied) = (self.paths, libc::ENOENT, false);
        loop {
            // SAFETY: a list of strings that ends with a null pointer, at or before which `path` points.
            let candidate = unsafe { *path };
            if candidate.is_null() {
                return if denied { libc::EACCES } else { last };
            }
            // SAFETY: a string, and lists of strings that end with a null pointer.
            let Err(error) = check(unsafe { call(libc::SYS_execve, [candidate.expose_provenance(), args, env, 0]) })
            else {
                return libc::EINVAL;
            };
            last = error;
            match error {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return error,
            }
            // SAFETY: it was not at the end.
            path = unsafe { path.add(1) };
        }
    }
}

/// Throws away what has come for the group that this process was born in: its parent's. It is blocked so far, and would strike
/// later, in the program: a Ctrl-C that was for others, or a Ctrl-Z, after which no `fg` would reach it here. What the parent sent
/// is for this process, and stays.
fn forget_group_signals() {
    const SET: usize = 8;
    static ALL: u64 = !0;
    static AT_ONCE: [usize; 2] = [0; 2];
    let (all, at_once) = ((&raw const ALL).expose_provenance(), (&raw const AT_ONCE).expose_provenance());
    // SAFETY: all-zero is a valid siginfo, which is a struct of integers; the kernel has a set of eight bytes, and writes the siginfo
    // before the call returns. The others take numbers.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let parent = call(libc::SYS_getppid, [0; 4]);
        let mut kept = 0_u64;
        loop {
            let place = (&raw mut info).expose_provenance();
            // Also where a sandbox refuses it, there is none.
            let signal = call(libc::SYS_rt_sigtimedwait, [all, place, at_once, SET]);
            if signal < 1 {
                break;
            }
            if i64::from(info.si_pid()) == parent && info.si_code <= libc::SI_USER {
                kept |= 1 << (signal - 1);
            }
        }
        let Ok(own) = usize::try_from(call(libc::SYS_getpid, [0; 4])) else { return };
        for signal in (1..=64).filter(|signal| kept >> (signal - 1) & 1 == 1) {
            call(libc::SYS_kill, [own, signal, 0, 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn from(parent: u32) -> Late {
        Late { parent: parent.cast_signed(), ..Late::from_here() }
    }

    #[test]
    fn what_comes_late_is_waited_for() {
        let (late, list) = (from(std::os::unix::process::parent_id()), [ptr::null()]);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| late.wait().map(<*const _>::addr));
            while late.step.load(Ordering::Relaxed) != AWAITED {
                thread::yield_now();
            }
            late.give(&list);
            assert_eq!(waiting.join().unwrap(), Ok(list.as_ptr().addr()));
        });
        assert_eq!(late.wait().map(<*const _>::addr), Ok(list.as_ptr().addr()), "it is there");
    }

    #[test]
    fn what_nobody_is_left_to_give_is_not_waited_for() {
        assert_eq!(from(std::process::id()).wait(), Err(libc::ECANCELED), "no parent of this process");
        // A host that makes its children in a namespace of their own is 0 for them.
        let late = from(7);
        assert!([7, 0].into_iter().all(|parent| !late.is_not(parent)) && late.is_not(1));
    }
}
