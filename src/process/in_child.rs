//! The settings of a `Command` that only the child itself can make, between fork and exec. What they do there is in
//! `sys/in_child.rs`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::command::Command;

/// # Settings that need a fork
///
/// Most programs are started without a copy of this process. Not so with [`uid`](Self::uid) or [`gid`](Self::gid), and not
/// where one of the other settings below meets a [`stdin`](Self::stdin), [`stdout`](Self::stdout) or
/// [`stderr`](Self::stderr) that was set: only std knows what a `Stdio` is, and what it knows to do to a child beyond that
/// needs a fork. That copies this process's page tables, which takes the longer the more memory this process uses.
/// [`stderr_to_stdout`](Self::stderr_to_stdout) together with an explicit `stdout` is such a setting, too. A script without a
/// `#!` is run by `/bin/sh` then, which it is not otherwise.
impl Command {
    /// Runs it in a session of its own, with no controlling terminal; setsid(2).
    pub fn new_session(mut self) -> Self {
        self.last().new_session = true;
        self
    }

    /// Gives the program an open file under a number of its own; dup2(2).
    ///
    /// It inherits nothing else but 0, 1 and 2, and what this process has open without close-on-exec, as with std. A number
    /// below 3 or an impossible one makes every verb fail.
    pub fn inherit_fd(mut self, fd: impl Into<OwnedFd>, number: i32) -> Self {
        if number < 3 {
            self.wrong(format!("{number} can't be the number of an inherited fd"));
        }
        self.last().inherited.push((fd.into(), number));
        self
    }

    /// Runs it as another user; setuid(2). Where this process is root's, it is without supplementary groups then.
    ///
    /// The other settings are made as that user then: what takes a privilege, such as a negative `nice`, fails.
    pub fn uid(mut self, uid: u32) -> Self {
        self.last().uid = Some(uid);
        self
    }

    /// Runs it with another group; setgid(2).
    pub fn gid(mut self, gid: u32) -> Self {
        self.last().gid = Some(gid);
        self
    }

    /// The permissions that files it creates are denied; umask(2).
    pub fn umask(mut self, mask: u32) -> Self {
        self.last().umask = Some(mask);
        self
    }

    /// Its scheduling priority, from -20 (most) to 19 (least); setpriority(2).
    pub fn nice(mut self, nice: i32) -> Self {
        self.last().limits.nice = Some(nice);
        self
    }

    /// The most address space that it may take, in bytes (`RLIMIT_AS`); setrlimit(2).
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.last().limits.memory = Some(bytes);
        self
    }

    /// The most processor time that it may use, rounded up to seconds (`RLIMIT_CPU`); setrlimit(2). Over it, it gets
    /// SIGXCPU, and a second later SIGKILL.
    pub fn cpu_time_limit(mut self, time: Duration) -> Self {
        self.last().limits.cpu_time = Some(time);
        self
    }

    /// How many fds it may have open (`RLIMIT_NOFILE`); setrlimit(2).
    pub fn open_files_limit(mut self, count: u64) -> Self {
        self.last().limits.open_files = Some(count);
        self
    }
}
