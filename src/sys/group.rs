//! A process group whose leader has gone: whether it can be reached, and whether anybody is left in it. Signals to a group are in
//! `process`.

use std::fs::{self, DirEntry};
use std::os::fd::AsFd;

use super::process::send;

/// Whether a group can be reached through the pidfd of its leader although that is reaped; Linux 6.9. `pidfd` names a child
/// that is not reaped.
pub(crate) fn outlives_leader(pidfd: impl AsFd) -> bool {
    send(pidfd.as_fd(), 0, libc::PIDFD_SIGNAL_PROCESS_GROUP).is_ok()
}

/// Whether anybody is left in the group of a leader that is reaped. A zombie of another process counts.
pub(crate) fn has_group(pidfd: impl AsFd) -> bool {
    // If they are all another user's, they are there.
    send(pidfd.as_fd(), 0, libc::PIDFD_SIGNAL_PROCESS_GROUP)
        .map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |()| true)
}

/// Whether anybody in a group has not ended: of those that have, some wait for a parent to reap them, which may never come to it.
/// It looks at every process that there is; proc_pid_stat(5).
///
/// Where they can't be seen, somebody is.
pub(crate) fn has_living_member(group: u32) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return true };
    let group = group.to_string();
    let is_process = |entry: &DirEntry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
    entries.flatten().filter(is_process).any(|process| {
        // It may be gone by now.
        let stat = fs::read(process.path().join("stat")).unwrap_or_default();
        // The name, which may be anything, is in parentheses.
        let end = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
        let fields = String::from_utf8_lossy(&stat[end..]);
        let fields: Vec<_> = fields.split_ascii_whitespace().skip(1).collect();
        let [state, _parent, its_group, ..] = fields[..] else { return false };
        // Where the first thread has ended, others may live.
        let has_ended = matches!(state, "Z" | "X") && fields.get(17).is_none_or(|count| matches!(*count, "0" | "1"));
        its_group == group && !has_ended
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::sys::process::{kill_group, open_pidfd, reap, signal_group};

    #[test]
    fn a_group_is_reached_through_a_leader_that_is_reaped() {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & exit"]).process_group(0).stdout(Stdio::piped());
        #[expect(clippy::zombie_processes, reason = "reaped through the pidfd")]
        let child = command.spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        let can = outlives_leader(&pidfd);
        if !can {
            kill_group(child.id(), libc::SIGKILL).unwrap();
        }
        reap(&pidfd).unwrap();
        assert_eq!(has_group(&pidfd), can);
        assert!(!can || has_living_member(child.id()));
        if can {
            signal_group(&pidfd, child.id(), libc::SIGKILL).unwrap();
        }
        while has_living_member(child.id()) {
            std::thread::yield_now();
        }
        // Until somebody has reaped it.
        while has_group(&pidfd) {
            std::thread::yield_now();
        }
        assert_eq!(signal_group(&pidfd, child.id(), libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
