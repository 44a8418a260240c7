//! Where children live that are not waited for, until they are their programs.

use std::cell::{OnceCell, UnsafeCell};
use std::ffi::c_char;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::order::{Order, Pointers};
use super::{Child, Exec, Strings, Waiting, clone_child};
use crate::sys::process::{SignalMask, signal};
use crate::sys::raw::Stack;

/// What has become of a start that nobody waited for.
#[derive(Debug)]
pub(crate) struct Fate(Arc<AtomicI32>);

impl Fate {
    /// Why the child never was its program. Final once the child has ended; `None` before, too.
    pub(crate) fn error(&self) -> Option<io::Error> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            error => Some(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Where a child lives until it is its program, or has ended, with the stack of the same number.
struct Place {
    /// Not zero while somebody is in here. The kernel clears it when the child leaves (`CLONE_CHILD_CLEARTID` in clone(2)).
    taken: AtomicI32,
    contents: UnsafeCell<Option<Arc<Contents>>>,
}

/// All that the child reads and writes.
struct Contents {
    order: Order,
    /// This process's environment, where the child gets that, and the pointers to what it gets.
    env: OnceCell<(Option<Strings>, Vec<*const c_char>)>,
    exec: Box<Exec>,
    _pointers: Pointers,
    _failed: Arc<AtomicI32>,
}

impl Contents {
    /// Gives the child its environment, which it waits for.
    fn give_environment(&self) {
        let (_, pointers) = self.env.get_or_init(|| self.exec.environment());
        self.order.env.give(pointers);
    }
}

// SAFETY: who has changed `taken` from zero has it for himself, until the child that he puts there has left; the pointers in it
// are to memory that it owns. Who has put a child there has the contents, too, until he has given it its environment, which is
// his alone to set; and they can be dropped anywhere.
unsafe impl Sync for Place {}

/// More children at once would only be in each other's way. They hold copies of this process's fds meanwhile, too.
const COUNT: usize = 8;

/// Side by side, as all are looked at for each child.
static PLACES: [Place; COUNT] = [const { Place { taken: AtomicI32::new(0), contents: UnsafeCell::new(None) } }; COUNT];

static STACKS: [Stack; COUNT] = [const { Stack::new() }; COUNT];

/// A free place for one child.
pub(crate) struct Cradle(&'static Place, &'static Stack);

/// Whether the kernel has made such a child before.
static WORKS: AtomicBool = AtomicBool::new(false);

impl Cradle {
    /// `None` where as many children are on their way as may be, and under a debugger: that takes such a child for one with a
    /// copy of this memory, and has it run without its breakpoints, which are this process's, too.
    pub(crate) fn free() -> Option<Self> {
        if is_traced() { None } else { free_places().next() }
    }

    /// Whether [`spawn`](Self::spawn) is known to work here.
    pub(crate) fn works() -> bool {
        WORKS.load(Ordering::Relaxed)
    }

    /// As [`spawn`](super::spawn), of what needs nothing done in the child; but returns before it is the program, and whether it
    /// ever was says the fate. This process's environment is copied while the child comes to life.
    pub(crate) fn spawn(self, exec: Exec, stdio: [Option<BorrowedFd<'_>>; 3]) -> io::Result<(Child, Fate)> {
        let fate = Arc::new(AtomicI32::new(0));
        let exec = Box::new(exec);
        let pointers = Pointers::into(&exec);
        // As in `spawn`.
        let before = SignalMask::full().install();
        let order = pointers.order(stdio, ptr::null(), before, &fate);
        let contents = Contents { order, env: OnceCell::new(), exec, _pointers: pointers, _failed: Arc::clone(&fate) };
        #[expect(clippy::arc_with_non_send_sync, reason = "a place is Sync, and says why")]
        let contents = Arc::new(contents);
        // SAFETY: it was free and is ours, so no child and no other thread is in it. Nobody replaces what it holds until the
        // kernel has cleared `taken`, when the child has become a program or has ended; so all that the order points to
        // outlives what the child does with it: it does not move with the lists or the `Arc`s.
        let child = unsafe {
            *self.0.contents.get() = Some(Arc::clone(&contents));
            clone_child(&raw const contents.order, self.1, Waiting::Nowhere(&self.0.taken))
        };
        if child.is_ok() {
            // By now it may have ended, and the place be another's.
            contents.give_environment();
        }
        drop(contents);
        before.install();
        WORKS.store(child.is_ok(), Ordering::Relaxed);
        let child = child?;
        // It is the child's now.
        let place = self.0;
        mem::forget(self);
        lead(&child);
        // A program that blocks it would find it there.
        if !before.contains(libc::SIGCONT) {
            go_on(&child, place);
        }
        Ok((child.above_stdio()?, Fate(fate)))
    }
}

/// Makes it the leader of its group. The child does so, too: whichever is first. Nobody shall find it in this process's group.
fn lead(child: &Child) {
    // SAFETY: takes numbers. Of what is not our child, or has become a program, it changes nothing.
    unsafe { libc::setpgid(child.pid.cast_signed(), 0) };
}

/// Undoes a SIGSTOP that came for the group that the child was born in, which can't be blocked: it may have left that group before
/// it stopped, and then the SIGCONT that goes there would not reach it. It leads its own group, so no other such stop is to come.
/// Once it has left the place it was not stopped, and the program may do something at a SIGCONT.
fn go_on(child: &Child, place: &Place) {
    if place.taken.load(Ordering::Relaxed) != 0 {
        let _ = signal(&child.pidfd, child.pid, libc::SIGCONT);
    }
}

/// Frees what children that have left have left behind: arguments and environments.
pub(crate) fn empty_cradles() {
    // What is taken and dropped is emptied.
    free_places().for_each(drop);
}

/// Takes one free place after the other.
fn free_places() -> impl Iterator<Item = Cradle> {
    PLACES.iter().zip(&STACKS).filter_map(|(place, stack)| {
        let taken = place.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        // Not made in any other case: it would be dropped.
        taken.is_ok().then(|| Cradle(place, stack))
    })
}

impl fmt::Debug for Cradle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cradle")
    }
}

impl Drop for Cradle {
    fn drop(&mut self) {
        // SAFETY: as in `spawn`; that no child was made, or has left.
        drop(unsafe { (*self.0.contents.get()).take() });
        self.0.taken.store(0, Ordering::Release);
    }
}

/// Whether a debugger or strace(1) follows this process, as of a second ago at the most; `TracerPid` in proc(5).
fn is_traced() -> bool {
    static LOOKED: Mutex<Option<(Instant, bool)>> = Mutex::new(None);
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    match *looked {
        Some((when, traced)) if when.elapsed() < Duration::from_secs(1) => traced,
        _ => {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
            let by = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
            let traced = by.is_some_and(|pid| pid.trim() != "0");
            *looked = Some((Instant::now(), traced));
            traced
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::sys::process::reap;

    fn free() -> Option<Cradle> {
        loop {
            match Cradle::free() {
                None if is_traced() => {
                    eprintln!("skipped: there is no place while this is traced");
                    return None;
                }
                None => std::thread::yield_now(),
                free => return free,
            }
        }
    }

    #[test]
    fn what_a_child_was_given_goes_with_it() {
        let mut paths = Strings::default();
        paths.push(&[b"/no/such/program"]).unwrap();
        let exec =
            Exec { paths, args: Strings::default(), env: Some(Strings::default()), current_dir: None, worker: false };
        let Some(cradle) = free() else { return };
        let Ok((child, fate)) = cradle.spawn(exec, [None; 3]) else { return eprintln!("skipped: no clone3 here") };
        poll(&mut [PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN)], None).unwrap();
        reap(&child.pidfd).unwrap();
        assert!(fate.error().is_some());
        let start = Instant::now();
        // Another test may have its place for a moment, and empties it then.
        while Arc::strong_count(&fate.0) > 1 {
            empty_cradles();
            assert!(start.elapsed() < Duration::from_secs(10), "its place still holds what it was given");
        }
    }

    /// A SIGSTOP for the host's group that came at its start left it stopped for good, as the SIGCONT after that did not reach it.
    #[test]
    fn a_child_that_was_stopped_in_its_place_goes_on() {
        loop {
            let mut paths = Strings::default();
            // It takes its time.
            for _ in 0..20_000 {
                paths.push(&[b"/no/such/program"]).unwrap();
            }
            let exec = Exec {
                paths,
                args: Strings::default(),
                env: Some(Strings::default()),
                current_dir: None,
                worker: false,
            };
            let Some(cradle) = free() else { return };
            let place = cradle.0;
            let Ok((child, fate)) = cradle.spawn(exec, [None; 3]) else { return eprintln!("skipped: no clone3 here") };
            signal(&child.pidfd, child.pid, libc::SIGSTOP).unwrap();
            // SAFETY: all-zero is a valid siginfo, which is a struct of integers, and the call writes into a live one.
            let was_stopped = unsafe {
                let mut info: libc::siginfo_t = mem::zeroed();
                let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
                assert_eq!(libc::waitid(libc::P_PID, child.pid, &raw mut info, flags), 0);
                info.si_code == libc::CLD_STOPPED
            };
            go_on(&child, place);
            let mut ended = [PollFd::from_borrowed_fd(child.pidfd.as_fd(), PollFlags::IN)];
            let within = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(poll(&mut ended, Some(&within)).unwrap(), 1, "it is stopped for good");
            reap(&child.pidfd).unwrap();
            assert!(fate.error().is_some());
            if was_stopped {
                return;
            }
        }
    }
}
