//! What the process tests share: a process of one's own, a child that says when it runs, and looks at other processes
//! through pidfds and /proc.

#![allow(dead_code, reason = "each test crate uses its own part of this")]

pub(crate) mod copies;
pub(crate) mod kernel;
pub(crate) mod proc;

use std::io::{BufRead as _, BufReader, PipeReader};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use multiproc::{ExitStatus, Process, ProcessBuilder, Task, TaskError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const ALONE: &str = "MULTIPROC_TEST_ALONE";

/// Runs a test's body in a process that runs nothing else: it changes or counts what belongs to the whole process.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return body();
    }
    let output = alone_command(test).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "alone, {test}: {}\n{out}{err}", output.status);
}

/// This test crate again, for one test alone.
pub(crate) fn alone_command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(ALONE, test).stdin(Stdio::null());
    command
}

/// Whether this is the process that [`alone_command`] started.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn block_on<R>(future: impl Future<Output = R>) -> R {
    runtime().block_on(future)
}

/// Starts a task, and waits until it has printed a line: until it runs.
pub(crate) async fn running<T: Task>(builder: ProcessBuilder, task: T) -> (Process<T::Output>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let process = builder.stdout(writer).spawn(task).await.unwrap();
    let said = line(reader);
    (process, said)
}

fn line(reader: PipeReader) -> String {
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "it ended before it said that it runs: {line:?}");
    line.truncate(line.len() - 1);
    line
}

/// How a task's process ended, of an error that says so.
#[track_caller]
pub(crate) fn died<T: std::fmt::Debug>(result: Result<T, TaskError>) -> Option<ExitStatus> {
    match result {
        Err(TaskError::Died { status, .. }) => status,
        other => panic!("expected a death: {other:?}"),
    }
}

/// Another process, which its number may outlive.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

impl Other {
    pub(crate) fn new(pid: u32) -> Self {
        Self::find(pid).unwrap_or_else(|| panic!("no process {pid}"))
    }

    pub(crate) fn find(pid: u32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ends_within(&self, limit: Duration) {
        assert!(self.has_ended_within(limit), "process {} goes on: {:?} {}", self.pid, self.command(), self.state());
    }

    pub(crate) fn has_ended_within(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap();
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).unwrap() == 1
    }

    /// Waits for its end and until nothing is left of it, not even a zombie.
    #[track_caller]
    pub(crate) fn is_reaped_within(&self, limit: Duration) {
        self.ends_within(limit);
        assert!(eventually(limit, || self.is_reaped()), "process {} is a zombie", self.pid);
    }

    pub(crate) fn is_reaped(&self) -> bool {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd())).unwrap();
        info.lines().any(|line| line.strip_prefix("Pid:").is_some_and(|pid| pid.trim() == "-1"))
    }

    pub(crate) fn state(&self) -> char {
        proc::state(self.pid)
    }

    pub(crate) fn command(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
    }
}

/// Looks again and again until something holds that nobody announces, for so long at most.
pub(crate) fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn exists(path: impl AsRef<Path>) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Bytes that do something when the last of them is gone.
pub(crate) struct Owner<F: Fn()>(pub(crate) Vec<u8>, pub(crate) F);

impl<F: Fn()> AsRef<[u8]> for Owner<F> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<F: Fn()> Drop for Owner<F> {
    fn drop(&mut self) {
        (self.1)();
    }
}
