//! How a process ended, in the words of an error.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// A worker's exit code when it has no parent to work for, or can't talk to it.
pub(crate) const EXIT_NO_PARENT: i32 = 70;

/// Says how a process ended, with the signal's name.
pub(super) struct Ending {
    pub(super) status: Option<ExitStatus>,
    pub(super) unexplained_kill: bool,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // std's own Display of an ExitStatus names the signal: "signal: 9 (SIGKILL)".
        match self.status {
            None => f.write_str("exit status unknown"),
            Some(status) => {
                write!(f, "{status}")?;
                if self.unexplained_kill && status.signal() == Some(libc::SIGKILL) {
                    f.write_str(", possibly out of memory")?;
                }
                Ok(())
            }
        }
    }
}

/// What an exit before `init` looks like. A signal says for itself what it was, and this library's own code comes after `init`.
pub(super) fn init_hint(status: Option<ExitStatus>) -> &'static str {
    if status.and_then(|status| status.code()).is_some_and(|code| code != EXIT_NO_PARENT) {
        "; `multiproc::init();` must be the first line of `fn main`, before anything that can end the program"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SpawnError;

    #[test]
    fn init_is_asked_for_only_after_an_exit() {
        let text = |status| SpawnError::Exited { status: Some(ExitStatus::from_raw(status)), pid: 7 }.to_string();
        assert!(text(3 << 8).contains("`multiproc::init();`"));
        assert_eq!(text(9), "worker process 7 ended before it was ready: signal: 9 (SIGKILL)");
        assert_eq!(text(EXIT_NO_PARENT << 8), "worker process 7 ended before it was ready: exit status: 70");
    }
}
