//! Child processes: pidfds, exit status without reaping, reaping with resource usage, signals to a process or its group.
//!
//! A pidfd names one process for good, so nothing here can hit a stranger that got a recycled number, except by `kill_group` and
//! `kill_and_reap`, which say what their callers must know. Where a kernel or a sandbox knows no signal to a pidfd, its number is
//! used, and only as long as the child, or its zombie, is there to hold that. Who may reap, and when, is the keeper's business.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, waitpid};

use super::socket::above_stdio;

/// What a finished process used, itself and the children that it waited for; getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The most physical memory that it (or the largest of its children) held at once, in bytes.
    pub max_rss: u64,
    /// Processor time in user mode.
    pub user_time: Duration,
    /// Processor time in the kernel.
    pub system_time: Duration,
}

/// Whether the calling thread is the one that the process began with.
pub(crate) fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

/// Opens a pidfd for a process, close-on-exec; `pidfd_open(2)`.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    above_stdio(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Looks whether a child has ended and leaves its zombie in place; waitid(2) with `WNOWAIT`.
///
/// `ECHILD` says that it is no child of ours, or that somebody else has reaped it.
pub(crate) fn peek_exit(pidfd: impl AsFd) -> io::Result<Option<(ExitStatus, Usage)>> {
    wait_exited(pidfd.as_fd(), libc::WNOHANG | libc::WNOWAIT)
}

/// Takes the status of a child that has ended, after which its number may be recycled; waitid(2).
pub(crate) fn reap(pidfd: impl AsFd) -> io::Result<Option<(ExitStatus, Usage)>> {
    wait_exited(pidfd.as_fd(), libc::WNOHANG)
}

/// Waits for the end of a child and takes its status, as [`reap`]. To wait for the pidfd is not enough: while somebody traces the
/// child, its end is shown to that one first.
pub(crate) fn reap_at_end(pidfd: impl AsFd) {
    let interrupted = |error: io::Error| error.kind() == io::ErrorKind::Interrupted;
    while wait_exited(pidfd.as_fd(), 0).is_err_and(interrupted) {}
}

/// Ends a child that nobody knows yet, and its group, and reaps it. It must be unreaped: then its number is its own.
pub(crate) fn kill_and_reap(pid: u32) {
    let _ = kill_group(pid, libc::SIGKILL);
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let _ = kill_process(pid, Signal::KILL);
    // The signal makes the wait short.
    while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
}

fn wait_exited(pidfd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<Option<(ExitStatus, Usage)>> {
    // SAFETY: both are plain C structs of integers (and a union of them), for which all-zero is valid.
    let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // SAFETY: the raw call is used because libc's waitid has no rusage argument. `info` and `usage` are live, writable and
    // of the kernel's layout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            libc::WEXITED | flags,
            &raw mut usage,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `info` is either still zeroed or filled in for SIGCHLD, which has these fields.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    // The encoding of wait(2): what `ExitStatus` is made from.
    let raw = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Ok(Some((ExitStatus::from_raw(raw), usage_of(&usage))))
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let time = |time: libc::timeval| {
        Duration::new(time.tv_sec.try_into().unwrap_or(0), u32::try_from(time.tv_usec).unwrap_or(0) * 1000)
    };
    Usage {
        // Linux counts in KiB.
        max_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        user_time: time(usage.ru_utime),
        system_time: time(usage.ru_stime),
    }
}

/// Refuses what is no signal number; 0 is one, it only checks.
pub(crate) fn check_signal(signal: i32) -> io::Result<()> {
    if (0..=libc::SIGRTMAX()).contains(&signal) { Ok(()) } else { Err(rustix::io::Errno::INVAL.into()) }
}

/// Signals the process behind a pidfd, which had that number; `pidfd_send_signal(2)`, else kill(2). `ESRCH` says that it has been
/// reaped.
pub(crate) fn signal(pidfd: impl AsFd, pid: u32, signal: i32) -> io::Result<()> {
    let Err(error) = send(pidfd.as_fd(), signal, 0) else { return Ok(()) };
    if !is_refused(&error) || peek_exit(&pidfd).is_err() {
        return Err(error);
    }
    let pid = i32::try_from(pid).map_err(|_| error)?;
    kill(pid, signal)
}

/// Signals the process group that has the number of the child behind `pidfd`; `pidfd_send_signal(2)`, else kill(2).
///
/// With a kernel before 6.9 only kill(2) reaches a group, by `pid`; it is used only while the child, or its zombie, is
/// there to hold that number. Otherwise a pidfd names the group for good, too, also when its leader is reaped.
pub(crate) fn signal_group(pidfd: impl AsFd, pid: u32, signal: i32) -> io::Result<()> {
    check_signal(signal)?;
    let Err(error) = send(pidfd.as_fd(), signal, libc::PIDFD_SIGNAL_PROCESS_GROUP) else { return Ok(()) };
    // The number is valid (checked above), so it's the flag that this kernel does not know.
    let is_old = error.raw_os_error() == Some(libc::EINVAL);
    if !is_old && !is_refused(&error) {
        return Err(error);
    }
    if peek_exit(&pidfd).is_err() {
        return Err(if is_old { rustix::io::Errno::SRCH.into() } else { error });
    }
    kill_group(pid, signal)
}

/// Whether a sandbox may have refused the call, or it is unknown here. `EPERM` may as well be about who is signalled, which kill(2)
/// then says, too.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

/// Signals a process group by its number; kill(2). The caller knows that an unreaped child of ours holds the number.
pub(crate) fn kill_group(pid: u32, signal: i32) -> io::Result<()> {
    // 1 would mean "everybody" as a negative number, and is nobody's group that we could have made.
    let Some(group) = i32::try_from(pid).ok().filter(|group| *group > 1) else {
        return Err(rustix::io::Errno::SRCH.into());
    };
    kill(-group, signal)
}

/// kill(2).
fn kill(target: libc::pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory.
    if unsafe { libc::kill(target, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn send(pidfd: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> io::Result<()> {
    let info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo is allowed and means what kill(2) would say; nothing else is a pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether anybody can still write into the pipe whose read end this is; poll(2).
pub(crate) fn has_writer(pipe: impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Even a call that does not wait is ended by a signal.
    matches!(retry_on_intr(|| poll(&mut fds, Some(&now))), Ok(0))
}

/// Writes into a pipe; write(2). A pipe that nobody reads is `EPIPE` and never a SIGPIPE.
///
/// Rust ignores that signal at its start, but a host may have put its default back, to end well in a pipeline of its own. A
/// pipe has no `MSG_NOSIGNAL`, so the signal, which comes to the writing thread, is held back and taken.
pub(crate) fn write_pipe(pipe: impl AsFd, buf: &[u8]) -> io::Result<usize> {
    let before = SignalMask::block(libc::SIGPIPE);
    let result = rustix::io::write(pipe, buf);
    if result == Err(rustix::io::Errno::PIPE) && !before.contains(libc::SIGPIPE) {
        SignalMask::take_pending(libc::SIGPIPE);
    }
    before.install();
    Ok(result?)
}

/// A thread's set of blocked signals; `pthread_sigmask(3)`.
#[derive(Clone, Copy)]
pub(crate) struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// Every signal.
    pub(crate) fn full() -> Self {
        // SAFETY: all-zero is a valid sigset_t, and sigfillset only writes into it.
        unsafe {
            let mut set = mem::zeroed();
            libc::sigfillset(&raw mut set);
            Self(set)
        }
    }

    /// What the calling thread blocks.
    pub(crate) fn current() -> Self {
        // SAFETY: with a null new mask the call only writes the old one into `set`, a live sigset_t.
        unsafe {
            let mut set = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
            Self(set)
        }
    }

    /// Blocks one more signal in the calling thread and returns the mask before.
    fn block(signal: libc::c_int) -> Self {
        let set = Self::only(signal);
        // SAFETY: `set` is an initialised set and `before` a live one.
        unsafe {
            let mut before = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set.0, &raw mut before);
            Self(before)
        }
    }

    fn only(signal: libc::c_int) -> Self {
        // SAFETY: all-zero is a valid, empty sigset_t, and sigaddset only writes into it.
        unsafe {
            let mut set = mem::zeroed();
            libc::sigaddset(&raw mut set, signal);
            Self(set)
        }
    }

    pub(crate) fn contains(&self, signal: libc::c_int) -> bool {
        // SAFETY: `self.0` is an initialised set.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }

    /// Takes a pending signal that is blocked, if there is one, so that it never arrives; sigtimedwait(2).
    fn take_pending(signal: libc::c_int) {
        let set = Self::only(signal);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `set` and `now` are initialised, and a null siginfo is allowed.
        unsafe { libc::sigtimedwait(&raw const set.0, ptr::null_mut(), &raw const now) };
    }

    /// Makes this the calling thread's mask and returns the one before.
    pub(crate) fn install(self) -> Self {
        // SAFETY: `self.0` is an initialised set and `before` a live one.
        unsafe {
            let mut before = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, &raw mut before);
            Self(before)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::storm::Storm;
    use std::process::{Command, Stdio};

    fn ended(pidfd: &OwnedFd) {
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).unwrap();
    }

    #[test]
    fn an_exit_can_be_looked_at_before_it_is_reaped() {
        #[expect(clippy::zombie_processes, reason = "reaped through the pidfd")]
        let child = Command::new("sh").args(["-c", "exit 47"]).spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        ended(&pidfd);
        for _ in 0..2 {
            assert_eq!(peek_exit(&pidfd).unwrap().unwrap().0.code(), Some(47));
        }
        let (status, usage) = reap(&pidfd).unwrap().unwrap();
        assert_eq!(status.code(), Some(47));
        assert!(usage.max_rss > 100 << 10, "{usage:?}");
        assert_eq!(reap(&pidfd).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert_eq!(signal(&pidfd, child.id(), libc::SIGTERM).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_group_is_signalled_through_its_leader() {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & exec sleep 100"]).process_group(0).stdout(Stdio::piped());
        #[expect(clippy::zombie_processes, reason = "reaped through the pidfd")]
        let child = command.spawn().unwrap();
        let out = child.stdout.as_ref().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        assert!(has_writer(out));
        signal_group(&pidfd, child.id(), libc::SIGTERM).unwrap();
        ended(&pidfd);
        assert_eq!(reap(&pidfd).unwrap().unwrap().0.signal(), Some(libc::SIGTERM));
        // Only once the background sleep is gone, too, has the pipe no writer.
        poll(&mut [PollFd::new(out, PollFlags::IN)], None).unwrap();
        assert!(!has_writer(out));
    }

    #[test]
    fn a_signal_is_no_answer_to_whether_a_writer_is_left_or_a_socket_has_ended() {
        let (read, _write) = io::pipe().unwrap();
        let (socket, _peer) = crate::sys::socket::stream_pair().unwrap();
        let _storm = Storm::new();
        let mut interrupted = 0;
        while interrupted < 500 {
            let mut fds = [PollFd::new(&read, PollFlags::empty())];
            interrupted += u32::from(poll(&mut fds, Some(&Timespec::default())).is_err());
            assert!(has_writer(&read));
            assert!(!crate::sys::socket::has_ended(&socket).unwrap());
        }
    }

    #[test]
    fn a_bad_signal_number_is_refused() {
        let me = open_pidfd(std::process::id()).unwrap();
        assert_eq!(signal(&me, std::process::id(), 1000).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(check_signal(-1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        signal(&me, std::process::id(), 0).unwrap();
    }
}
