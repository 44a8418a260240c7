//! What a worker asks of the kernel about itself, once, when it starts, and when its parent is gone.

use std::ffi::{CString, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal};

use crate::sys::socket;

/// The fd in which a worker finds the socket to its parent.
///
/// It is stdin unless the caller wants that for something else: a `std::process::Command` can place no other fds than
/// 0, 1 and 2 without a fork. So the extra one is for who wants all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Stdin,
    Stdout,
    Stderr,
    Extra,
}

impl Slot {
    /// The number of the extra one.
    pub(crate) const EXTRA: RawFd = 3;

    pub(crate) fn fd(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdin => rustix::stdio::stdin(),
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
            // SAFETY: as for stdio, the number is another process's promise, made by the marker in arg0. What is there is
            // only asked what it is, by calls that fail with EBADF if nothing is, until that promise has proved true.
            Self::Extra => unsafe { BorrowedFd::borrow_raw(Self::EXTRA) },
        }
    }

    /// Whether it is a Unix stream socket.
    pub(crate) fn is_socket(self) -> bool {
        rustix::net::sockopt::socket_domain(self.fd()).is_ok_and(|domain| domain == rustix::net::AddressFamily::UNIX)
            && rustix::net::sockopt::socket_type(self.fd()).is_ok_and(|kind| kind == rustix::net::SocketType::STREAM)
    }

    /// Whether the socket was made by this process's parent; `SO_PEERCRED` in unix(7).
    ///
    /// For one end of a socketpair the kernel names the process that made the pair.
    pub(crate) fn is_from_parent(self) -> bool {
        self.maker().is_some_and(|maker| Some(maker) == rustix::process::getppid())
    }

    /// The process that made the socket; `SO_PEERCRED` in unix(7).
    fn maker(self) -> Option<Pid> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = libc::socklen_t::try_from(mem::size_of::<libc::ucred>()).unwrap_or(0);
        // SAFETY: `credentials` and `len` are valid for the call and say their true size.
        let result = unsafe {
            libc::getsockopt(
                self.fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut len,
            )
        };
        // The number is 0 for a process that has none in our PID namespace.
        if result == 0 { Pid::from_raw(credentials.pid) } else { None }
    }

    /// The first bytes that wait in the socket, which stay there; recv(2) with `MSG_PEEK`.
    pub(crate) fn peek(self) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (len, _) = rustix::net::recv(self.fd(), bytes.as_mut_slice(), flags).unwrap_or_default();
        bytes.truncate(len);
        bytes
    }

    /// Moves the socket away; /dev/null takes its place.
    pub(crate) fn take(self) -> io::Result<OwnedFd> {
        let taken = socket::duplicate(self.fd())?;
        self.put(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)?;
        Ok(taken)
    }

    /// Puts an fd here; dup2(2).
    pub(crate) fn put(self, fd: OwnedFd) -> io::Result<()> {
        Ok(match self {
            Self::Stdin => rustix::stdio::dup2_stdin(fd),
            Self::Stdout => rustix::stdio::dup2_stdout(fd),
            Self::Stderr => rustix::stdio::dup2_stderr(fd),
            // Nobody looks for anything there; `close_inherited` closes it.
            Self::Extra => Ok(()),
        }?)
    }
}

/// Whether this process inherited nothing but stdio, because who started it has seen to that; `spawn::Exec` says how.
pub(crate) fn has_inherited_nothing() -> bool {
    rustix::process::parent_process_death_signal() == Ok(Some(Signal::CONT))
}

/// Closes what this process inherited beside stdio.
///
/// An fd that came through execve(2) has no close-on-exec flag, whereas all that Rust code has opened since has one.
pub(crate) fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd > 2)
        .collect();
    for fd in open {
        // SAFETY: fcntl and close take any number; an fd without the flag is inherited, so nothing in this process owns
        // it yet: `init` runs first in main.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::close(fd);
            }
        }
    }
    Ok(())
}

/// Unblocks all signals and gives those that the parent ignored their default back; sigaction(2), signal(7).
///
/// SIGPIPE stays as Rust's runtime has it (ignored), and so do handlers: none survives execve(2), so they are this
/// program's own.
pub(crate) fn reset_signals() {
    // SAFETY: all calls get valid pointers to initialised or to-be-filled structs on this stack; a signal number that
    // can't be changed (SIGKILL, SIGSTOP, glibc's own) only makes them fail.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in (1..=libc::SIGRTMAX()).filter(|&signal| signal != libc::SIGPIPE) {
            let mut action: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    }
}

/// Ignores SIGPIPE, as Rust's runtime does: a worker may run before that.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Blocks every signal on the calling thread, so that the others take them; pthread_sigmask(3).
pub(crate) fn block_signals() {
    // SAFETY: `set` is initialised by sigfillset before it is read.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// How often a worker whose task has closed the watch's fd asks who its parent is.
const PARENT_LOOK: Duration = Duration::from_millis(200);

/// The stack of the thread that watches the parent, in bytes.
const WATCH_STACK: usize = 64 << 10;

/// Where the parent's end will be seen.
#[derive(Debug)]
pub(crate) struct ParentWatch {
    sign: Sign,
    /// Who the parent was; with its end this process gets another one.
    parent: Option<Pid>,
}

#[derive(Debug)]
enum Sign {
    Pidfd(OwnedFd),
    /// For a kernel that has no pidfd to give: the socket's other end is closed, which may be before.
    HangUp,
    /// It has ended already.
    Gone,
}

impl ParentWatch {
    /// Watches the process that made the socket's other end: by `SO_PEERPIDFD`, else by pidfd_open(2) of the parent.
    pub(crate) fn new(socket: impl AsFd) -> Self {
        let maker = rustix::net::sockopt::socket_peercred(&socket).ok().map(|maker| maker.pid);
        let sign = match peer_pidfd(&socket) {
            Some(pidfd) => Sign::Pidfd(pidfd),
            None => Sign::of_parent(maker),
        };
        Self { sign, parent: maker }
    }

    /// Starts a thread that ends this process and its group when the parent is gone; pthread_create(3).
    ///
    /// It is none of std's: a Rust thread begins with an allocation, for which the C library reserves an arena of 64 MiB of
    /// address space. That takes time, in a process that may live for a moment, and counts against `RLIMIT_AS`.
    pub(crate) fn start<S: AsFd + Sync + 'static>(self, socket: &'static S) -> io::Result<()> {
        extern "C" fn run<S: AsFd + Sync + 'static>(watch: *mut c_void) -> *mut c_void {
            block_signals();
            // `top` shows it; whether it could be set does not matter.
            let _ = rustix::thread::set_name(c"parent-watch");
            // SAFETY: it is the leaked box below, which nobody else has, and its type was made with this same `S`.
            let (watch, socket) = unsafe { ptr::read(watch.cast::<(ParentWatch, &'static S)>()) };
            watch.wait(socket);
            kill_own_group()
        }
        let watch = Box::into_raw(Box::new((self, socket)));
        // SAFETY: `attributes` is initialised before it is used, and only a size is set in it; `thread` is live. `run` takes
        // what it is given, which may go to another thread: a watch is made of fds and numbers, and `S` is Sync. It never
        // returns or unwinds.
        let result = unsafe {
            let mut attributes: libc::pthread_attr_t = mem::zeroed();
            let mut thread: libc::pthread_t = mem::zeroed();
            libc::pthread_attr_init(&raw mut attributes);
            // Refused where it is below what the C library needs; the default is large, and fine.
            libc::pthread_attr_setstacksize(&raw mut attributes, WATCH_STACK);
            let result = libc::pthread_create(&raw mut thread, &raw const attributes, run::<S>, watch.cast());
            libc::pthread_attr_destroy(&raw mut attributes);
            result
        };
        if result == 0 {
            return Ok(());
        }
        // SAFETY: no thread was started, so it is still ours.
        drop(unsafe { Box::from_raw(watch) });
        Err(io::Error::from_raw_os_error(result))
    }

    /// Waits until the parent is gone; poll(2).
    ///
    /// A task may close all fds that it finds, as daemons do, and open others under their numbers. So an fd's word is not
    /// enough: the kernel gives a process its new parent before it says that the old one has ended.
    fn wait(self, socket: impl AsFd) {
        let (fd, events) = match &self.sign {
            Sign::Pidfd(pidfd) => (pidfd.as_fd(), PollFlags::IN),
            // An empty set still reports HUP.
            Sign::HangUp => (socket.as_fd(), PollFlags::empty()),
            Sign::Gone => return,
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, events)];
        while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
        if matches!(self.sign, Sign::HangUp) && fds[0].revents().contains(PollFlags::HUP) {
            return;
        }
        while self.parent.is_some() && rustix::process::getppid() == self.parent {
            std::thread::sleep(PARENT_LOOK);
        }
        // Not ours to close any more: the task may have put an fd of its own in this one's place, or nothing.
        mem::forget(self);
    }
}

impl Sign {
    fn of_parent(maker: Option<Pid>) -> Self {
        let Some(maker) = maker else { return Self::HangUp };
        let pidfd = rustix::process::pidfd_open(maker, rustix::process::PidfdFlags::empty());
        // While it is our parent nobody else has its number, so the pidfd is its own. Else it has ended.
        match pidfd {
            _ if rustix::process::getppid() != Some(maker) => Self::Gone,
            Ok(pidfd) => Self::Pidfd(pidfd),
            Err(_) => Self::HangUp,
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

/// Ends this process and its group at once.
fn kill_own_group() -> ! {
    // A group whose leader lives outside this pid namespace is 0, which is no `Pid`.
    // SAFETY: getpgrp(2) takes nothing and returns a number.
    let group = unsafe { libc::getpgrp() };
    if group == rustix::process::getpid().as_raw_nonzero().get() {
        let _ = rustix::process::kill_current_process_group(Signal::KILL);
    }
    // SAFETY: _exit(2) is always safe; it runs no destructors and no handlers.
    unsafe { libc::_exit(1) }
}

/// Names this process, as `ps` and `top` show it, whichever thread calls; the first 15 bytes count. Without a name it is
/// the program's: the kernel took "exe" from `/proc/self/exe`.
pub(crate) fn name_process(name: &str) {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bytes = name.bytes().filter(|&byte| byte != 0).collect::<Vec<_>>();
    if name.is_empty() {
        let Ok(path) = std::fs::read_link("/proc/self/exe") else { return };
        bytes.extend(path.file_name().unwrap_or_default().as_bytes());
    }
    // The process has its first thread's name.
    if super::process::is_main_thread() {
        let _ = CString::new(bytes).map(|name| rustix::thread::set_name(&name));
    } else {
        let _ = std::fs::write("/proc/self/comm", bytes);
    }
}

/// Opens /dev/null wherever stdin, stdout or stderr is closed, or the next file that a task opens would be taken for it.
pub(crate) fn fill_stdio() -> io::Result<()> {
    // SAFETY: F_GETFD on a number that may be no open fd is harmless: it fails with EBADF, which is the question here.
    while (0..3).any(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0) {
        let fd = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        // It is stdio now, which nothing owns.
        let _ = fd.into_raw_fd();
    }
    Ok(())
}
