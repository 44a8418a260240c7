//! A worker's watch on its parent: a thread that ends the worker and its group when the parent has gone.
//!
//! It is no thread as the C library knows them, but one of the kernel's alone, which makes a few system calls and nothing else
//! (see `raw`). To start one and to end it takes half as long, in a process that may live for a moment; it maps no stack,
//! which would count against `RLIMIT_AS`; and for the C library the worker has one thread, so that its locks cost nothing.
//! Where there is no clone3(2), the watch is an ordinary thread that does the same.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::process::{Pid, Signal};

use super::affinity::Pinned;
use super::process::SignalMask;
use super::raw::{Stack, call, clone3, no_clone_args};
use super::rendezvous::peer_credentials;

/// How often a worker whose task has closed the watch's fd asks who its parent is, in nanoseconds.
const PARENT_LOOK: i64 = 200_000_000;

/// The stack of the thread where it is an ordinary one, in bytes.
const THREAD_STACK: usize = 64 << 10;

/// Where the parent's end will be seen. It lives as long as the process.
#[derive(Debug)]
pub(crate) struct ParentWatch {
    /// What to wait for; none if the parent has ended already.
    sign: Option<Sign>,
    /// Who the parent was, with whose end this process gets another one; 0 if that is not known.
    parent: libc::pid_t,
    /// The thread's own.
    poll: UnsafeCell<libc::pollfd>,
    pause: UnsafeCell<libc::timespec>,
}

// SAFETY: once the thread has it, nobody else touches what can change.
unsafe impl Sync for ParentWatch {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Pidfd(RawFd),
    /// For a kernel that has no pidfd to give: the socket's other end is closed, which may be before.
    HangUp(RawFd),
}

impl ParentWatch {
    /// Watches the process that made the socket's other end: by `SO_PEERPIDFD`, else by pidfd_open(2) of the parent.
    pub(crate) fn new(socket: &'static impl AsFd) -> Self {
        let maker = peer_credentials(socket).ok().and_then(|(maker, ..)| maker);
        let hang_up = Sign::HangUp(socket.as_fd().as_raw_fd());
        let sign = match peer_pidfd(socket) {
            Some(pidfd) => Some(Sign::Pidfd(pidfd.into_raw_fd())),
            None => Sign::of_parent(maker, hang_up),
        };
        let (fd, events) = match sign {
            Some(Sign::Pidfd(fd)) => (fd, libc::POLLIN),
            // An empty set still reports HUP.
            Some(Sign::HangUp(fd)) => (fd, 0),
            None => (-1, 0),
        };
        Self {
            sign,
            parent: maker.map_or(0, |maker| maker.as_raw_nonzero().get()),
            poll: UnsafeCell::new(libc::pollfd { fd, events, revents: 0 }),
            pause: UnsafeCell::new(libc::timespec { tv_sec: 0, tv_nsec: 0 }),
        }
    }

    /// Starts the thread that ends this process and its group when the parent is gone.
    ///
    /// A new thread is put on another processor if one is idle, where most workers are over before it has slept again: to wake
    /// that processor, to fault in the same pages on both, and to have the last of the process taken down by the thread that has
    /// none of it at hand takes up to a tenth of a short worker's life. So it begins on this processor, unless another one takes it.
    ///
    /// A task may forbid system calls to all threads of its process, which then ends at one that is none of its own: so the watch
    /// waits, and calls for nothing before its parent's end. What else it is to have it has from this thread.
    pub(crate) fn start(self) -> io::Result<()> {
        let name = rustix::thread::name();
        // `top` shows it; whether it could be set does not matter.
        let _ = rustix::thread::set_name(c"parent-watch");
        let started = self.start_named();
        let _ = name.map(|name| rustix::thread::set_name(&name));
        started
    }

    fn start_named(self) -> io::Result<()> {
        // For good, as the thread's stack is.
        let watch: &Self = Box::leak(Box::new(self));
        let stack = Box::leak(Box::new(Stack::new()));
        let mut args = no_clone_args();
        let shared = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_SYSVSEM;
        args.flags = u64::from((shared | libc::CLONE_THREAD).cast_unsigned());
        // It blocks what this thread blocks when it makes it.
        let before = SignalMask::full().install();
        let pinned = Pinned::here();
        // SAFETY: the thread has its stack and the watch for itself, and for ever. It has this thread's thread-local memory, too,
        // and `run` uses none: it only makes system calls.
        let made = unsafe { clone3(args, stack, run, watch) };
        if let (Some(pinned), Ok(thread)) = (&pinned, made) {
            pinned.let_go(thread);
        }
        drop(pinned);
        before.install();
        match made {
            Ok(_) => Ok(()),
            Err(libc::ENOSYS | libc::EINVAL | libc::EPERM) => watch.start_thread(),
            Err(error) => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// As an ordinary thread; pthread_create(3).
    ///
    /// It is none of std's: a Rust thread begins with an allocation, for which the C library reserves an arena of 64 MiB of
    /// address space.
    fn start_thread(&'static self) -> io::Result<()> {
        extern "C" fn run_thread(watch: *mut c_void) -> *mut c_void {
            SignalMask::full().install();
            run(watch.cast_const().cast())
        }
        // SAFETY: `attributes` is initialised before it is used, and only a size is set in it; `thread` is live. `run_thread`
        // gets a watch that lives for ever. It never returns or unwinds.
        let result = unsafe {
            let mut attributes: libc::pthread_attr_t = mem::zeroed();
            let mut thread: libc::pthread_t = mem::zeroed();
            libc::pthread_attr_init(&raw mut attributes);
            // Refused where it is below what the C library needs; the default is large, and fine.
            libc::pthread_attr_setstacksize(&raw mut attributes, THREAD_STACK);
            let watch = ptr::from_ref(self).cast_mut().cast();
            let result = libc::pthread_create(&raw mut thread, &raw const attributes, run_thread, watch);
            libc::pthread_attr_destroy(&raw mut attributes);
            result
        };
        if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
    }

    /// Waits until the parent is gone; poll(2).
    ///
    /// A task may close all fds that it finds, as daemons do, and open others under their numbers. So an fd's word is not
    /// enough: the kernel gives a process its new parent before it says that the old one has ended.
    fn wait(&self) {
        let Some(sign) = self.sign else { return };
        let poll = self.poll.get();
        // SAFETY: the kernel writes into `poll`, which is this thread's own.
        while unsafe { call(libc::SYS_ppoll, [poll.expose_provenance(), 1, 0, 0]) } == -i64::from(libc::EINTR) {}
        // SAFETY: as above.
        let hangs_up = unsafe { (*poll).revents } & libc::POLLHUP != 0;
        if matches!(sign, Sign::HangUp(_)) && hangs_up {
            return;
        }
        // SAFETY: takes nothing.
        while self.parent != 0 && unsafe { call(libc::SYS_getppid, [0; 4]) } == i64::from(self.parent) {
            let pause = self.pause.get();
            // SAFETY: the kernel reads and writes `pause`, which is this thread's own. There is nothing else to wait for.
            unsafe {
                *pause = libc::timespec { tv_sec: 0, tv_nsec: PARENT_LOOK };
                call(libc::SYS_ppoll, [0, 0, pause.expose_provenance(), 0]);
            }
        }
    }
}

/// The thread. It makes system calls and nothing else: it has no thread-local memory of its own, no errno, no way to panic.
extern "C" fn run(watch: *const ParentWatch) -> ! {
    // SAFETY: it lives as long as the process.
    unsafe { &*watch }.wait();
    // SAFETY: these take numbers. Without a group of our own, there may be others in it, and this process ends alone.
    unsafe {
        if call(libc::SYS_getpgid, [0; 4]) == call(libc::SYS_getpid, [0; 4]) {
            call(libc::SYS_kill, [0, libc::SIGKILL as usize, 0, 0]);
        }
        loop {
            call(libc::SYS_exit_group, [1, 0, 0, 0]);
        }
    }
}

impl Sign {
    fn of_parent(maker: Option<Pid>, hang_up: Self) -> Option<Self> {
        let Some(maker) = maker else { return Some(hang_up) };
        let pidfd = rustix::process::pidfd_open(maker, rustix::process::PidfdFlags::empty());
        // While it is our parent nobody else has its number, so the pidfd is its own. Else it has ended.
        match pidfd {
            _ if rustix::process::getppid() != Some(maker) => None,
            Ok(pidfd) => Some(Self::Pidfd(pidfd.into_raw_fd())),
            Err(_) => Some(hang_up),
        }
    }
}

/// A pidfd of the process that made the other end; `SO_PEERPIDFD`, since Linux 6.5.
fn peer_pidfd(socket: impl AsFd) -> Option<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    const LEN: libc::socklen_t = 4;
    const { assert!(mem::size_of::<RawFd>() == LEN as usize) };
    let mut fd: RawFd = -1;
    let mut len = LEN;
    // SAFETY: `fd` and `len` are valid for the call and say their true size.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if result == 0 && fd >= 0 {
        // SAFETY: the kernel has just made this fd for us.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    } else {
        None
    }
}

/// Asks for SIGCONT when the parent's thread ends, so that a stopped worker wakes and can see that its parent is gone;
/// `PR_SET_PDEATHSIG` in prctl(2).
pub(crate) fn continue_at_parents_end() {
    // Without it a stopped worker stays until somebody continues it; nothing else depends on it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::CONT));
}
