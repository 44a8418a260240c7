//! Signals to a child or its group, and what is remembered of them: that it was asked to end, that it was killed.

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Kept, Life, keeper};
use crate::sys::process;

impl Kept {
    /// Signals the process alone. `Ok` if it has ended already; `EINVAL` for what is no signal number.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let life = self.life_for(signal)?;
        match &*life {
            Life::Running(pidfd) => {
                self.note(signal, false);
                ok_if_gone(process::signal(pidfd, self.0.pid, signal))
            }
            Life::Lingering { .. } | Life::Outlived { .. } | Life::Reaped(_) => Ok(()),
        }
    }

    /// Signals its whole process group, also what is left of it after its own end, until that is killed.
    pub(crate) fn signal_group(&self, signal: i32) -> io::Result<()> {
        let life = self.life_for(signal)?;
        match &*life {
            Life::Running(pidfd) => {
                self.note(signal, true);
                // First, while its number is surely its own: after its end, which somebody else may have seen by then, an old
                // kernel could not reach the rest of the group.
                let group = process::signal_group(pidfd, self.0.pid, signal);
                // It may have moved to another group.
                let alone = if signal == libc::SIGKILL { process::signal(pidfd, self.0.pid, signal) } else { Ok(()) };
                ok_if_gone(group).and(ok_if_gone(alone))
            }
            Life::Outlived { exit, .. } if signal == libc::SIGKILL => {
                let exit = *exit;
                self.bury(life, exit);
                Ok(())
            }
            Life::Lingering { pidfd, .. } | Life::Outlived { pidfd, .. } => {
                ok_if_gone(process::signal_group(pidfd, self.0.pid, signal))
            }
            Life::Reaped(_) => Ok(()),
        }
    }

    /// Kills its whole process group in so long, if it has not ended by then, whatever becomes of those who wait for it.
    pub(crate) fn kill_group_in(&self, grace: Duration) {
        keeper::kill_in(self.0.key, grace);
    }

    /// Sends SIGTERM to its whole process group. What is stopped goes on for that: it would not come to it before somebody has it
    /// go on, which may be never.
    pub(crate) fn terminate_group(&self) -> io::Result<()> {
        self.signal_group(libc::SIGTERM)?;
        self.signal_group(libc::SIGCONT)
    }

    /// Asks its group to end, with a SIGTERM. It then lives as long as anybody is left in it, until a SIGKILL.
    ///
    /// With a kernel before 6.9 the child's own end is the end of its group all the same: with a reaped leader such a kernel
    /// can't reach it, and with a zombie can't tell whether there is one.
    pub(crate) fn ask_group(&self) -> io::Result<()> {
        self.0.asked.store(true, Ordering::Relaxed);
        self.terminate_group()
    }

    /// Whether its group was asked to end: then a SIGKILL comes in its time, or never.
    pub(crate) fn was_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// Whether we sent it a SIGKILL: otherwise a death by one is unexplained, most often the out-of-memory killer.
    pub(crate) fn kill_sent(&self) -> bool {
        self.0.kill_sent.load(Ordering::Relaxed)
    }

    /// Its state, for one that is to be sent this signal.
    fn life_for(&self, signal: i32) -> io::Result<MutexGuard<'_, Life>> {
        process::check_signal(signal)?;
        // It is no child of a copy.
        keeper::no_forked_copy()?;
        Ok(self.life())
    }

    fn note(&self, signal: i32, to_group: bool) {
        if signal == libc::SIGKILL {
            self.0.kill_sent.store(true, Ordering::Relaxed);
            self.0.group_killed.fetch_or(to_group, Ordering::Relaxed);
        }
    }
}

fn ok_if_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}
