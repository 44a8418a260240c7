//! What a worker asks of the kernel about itself, once, when it starts, and when its parent is gone.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::net::RecvFlags;
use rustix::process::Signal;

use crate::sys::affinity;
use crate::sys::rendezvous::peer_credentials;
use crate::sys::socket;
use crate::sys::stdio::has_stdio;

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

    /// Whether the socket was made by this process's parent.
    pub(crate) fn is_from_parent(self) -> bool {
        let maker = peer_credentials(self.fd()).ok().and_then(|(maker, ..)| maker);
        maker.is_some_and(|maker| Some(maker) == rustix::process::getppid())
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

/// Has this thread go on on another processor. `false`: it may not, or nobody can say where it may.
pub(crate) fn leave_processor() -> bool {
    affinity::leave()
}

/// Whether all that this thread does is done by one processor; sched_getaffinity(2).
pub(crate) fn has_one_processor() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|processors| processors.count() == 1)
}

/// Runs a test on the last processor that it may use, which is not the one that a ledger's word says which was never written: not
/// at all, where there is no other.
#[cfg(test)]
pub(crate) fn on_last_processor(test: impl FnOnce()) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let all = sched_getaffinity(None).unwrap();
    let last = (1..CpuSet::MAX_CPU).rfind(|&processor| all.is_set(processor));
    let Some(last) = last else { return };
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).unwrap();
    test();
    sched_setaffinity(None, &all).unwrap();
}

/// What `ps` and `top` show of a worker that was given no name: this program's. The kernel would take "exe", from
/// `/proc/self/exe`.
pub(crate) fn program_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let path = std::fs::read_link("/proc/self/exe").unwrap_or_default();
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    })
}

/// Names this process, as `ps` and `top` show it, whichever thread calls; the first 15 bytes count. No name changes nothing.
pub(crate) fn name_process(name: &str) {
    let bytes = name.bytes().filter(|&byte| byte != 0).collect::<Vec<_>>();
    if bytes.is_empty() {
        return;
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
    while !has_stdio() {
        let fd = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        // It is stdio now, which nothing owns.
        let _ = fd.into_raw_fd();
    }
    Ok(())
}
