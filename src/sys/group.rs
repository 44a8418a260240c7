//! A process group whose leader has gone: whether it can be reached, whether anybody is left in it, and reaping those of it who have
//! become our children. Signals to a group are in `process`.

use std::collections::HashMap;
use std::fs;
use std::mem;
use std::os::fd::AsFd;
use std::path::Path;
use std::process;

use rustix::process::{Pid, child_subreaper, getpgid};

use super::proc::is_ours;
use super::process::{open_pidfd, peek_exit, reap, send};

/// Whether a group can be reached through the pidfd of its leader although that is reaped; Linux 6.9. `pidfd` names a child
/// that is not reaped, or has been by somebody else: then somebody is left in the group, too.
pub(crate) fn outlives_leader(pidfd: impl AsFd) -> bool {
    send(pidfd.as_fd(), 0, libc::PIDFD_SIGNAL_PROCESS_GROUP).is_ok()
}

/// Whether anybody is left in the group of a leader that is reaped. A zombie of another process counts.
pub(crate) fn has_group(pidfd: impl AsFd) -> bool {
    // If they are all another user's, they are there.
    send(pidfd.as_fd(), 0, libc::PIDFD_SIGNAL_PROCESS_GROUP)
        .map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |()| true)
}

/// Whether what loses its parent may become a child of this process: it is the first one of its pid namespace, or a child subreaper;
/// `PR_GET_CHILD_SUBREAPER` in prctl(2).
pub(crate) fn adopts() -> bool {
    process::id() == 1 || child_subreaper().is_ok_and(|is_one| is_one.is_some())
}

/// Reaps those of a group who have ended and are children of this process, by the pidfd of its leader, which is reaped. Whether
/// anybody is left in it; not where it can't be reached so, with a kernel before 6.9.
pub(crate) fn reap_members(leader: impl AsFd, group: u32) -> bool {
    while let Some(member) = ended_child_in(group) {
        // There may be no fd now.
        let Ok(pidfd) = open_pidfd(member) else { break };
        // By its number alone it could be anybody: when the last one of a group has gone, the number is free, and the next child that
        // the host starts may have it and lead a group of that name; and whom we have just seen, somebody else in this process may
        // have reaped. Read from its end: the leader's pidfd says that the group still is, so its number never was another's. The
        // one behind `pidfd` is a child that nobody has reaped, so its number was no other's since that was opened. So what is
        // said of both numbers in between is said of these two.
        let is_in_it = pgid_of(member) == Some(group) && peek_exit(&pidfd).is_ok() && outlives_leader(&leader);
        if !is_in_it || !matches!(reap(&pidfd), Ok(Some(_))) {
            break;
        }
    }
    outlives_leader(leader)
}

fn pgid_of(pid: u32) -> Option<u32> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    getpgid(Some(pid)).ok()?.as_raw_pid().try_into().ok()
}

/// A child that has ended and is in the group of that number, and is left as it is; waitid(2) with `WNOWAIT`.
fn ended_child_in(group: u32) -> Option<u32> {
    // SAFETY: a plain C struct of integers (and a union of them), for which all-zero is valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is live and writable.
    let result = unsafe { libc::waitid(libc::P_PGID, group, &raw mut info, flags) };
    // SAFETY: if the call succeeded, `info` is either still zeroed or filled in for SIGCHLD, which has this field.
    let pid = if result == 0 { unsafe { info.si_pid() } } else { 0 };
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// Whether those in a group have ended. Of those that have, some wait for a parent to reap them, which may never come to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    SomeLive,
    AllEnded,
}

/// Every process group by its number, from a look at every process that there is; proc_pid_stat(5). `None` where they can't be
/// seen, be it for now.
///
/// A group that is not among them is one that it could not see, or that has just gone.
pub(crate) fn all_groups() -> Option<HashMap<u32, Members>> {
    groups_in(Path::new("/proc"))
}

fn groups_in(proc: &Path) -> Option<HashMap<u32, Members>> {
    // One with `hidepid` hides others' processes.
    if !is_ours(proc) || !proc.join("1").exists() {
        return None;
    }
    let mut groups = HashMap::new();
    for entry in fs::read_dir(proc).ok()? {
        let entry = entry.ok()?;
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let stat = match fs::read(entry.path().join("stat")) {
            Ok(stat) => stat,
            // It is gone by now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            // There is no fd for it, say, or it is a stranger's.
            Err(_) => return None,
        };
        let (group, members) = parse(&stat)?;
        // One that is just being reaped has none.
        let Ok(group) = group.parse() else { continue };
        let known = groups.entry(group).or_insert(members);
        if members == Members::SomeLive {
            *known = members;
        }
    }
    Some(groups)
}

/// A process's group and whether it has ended, from its `stat`.
fn parse(stat: &[u8]) -> Option<(&str, Members)> {
    // The name, which may be anything, is in parentheses.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<_> = str::from_utf8(&stat[end..]).ok()?.split_ascii_whitespace().skip(1).collect();
    let [state, _parent, group, ..] = fields[..] else { return None };
    // Where the first thread has ended, others may live.
    let has_ended = matches!(state, "Z" | "X") && fields.get(17).is_none_or(|count| matches!(*count, "0" | "1"));
    Some((group, if has_ended { Members::AllEnded } else { Members::SomeLive }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::process::CommandExt as _;
    use std::process::{self, Command, Stdio};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::sys::first::is_first_process;
    use crate::sys::process::{kill_group, open_pidfd, reap, signal_group};

    #[test]
    fn a_group_is_reached_through_a_leader_that_is_reaped() {
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
        let lives = || all_groups().unwrap().get(&child.id()) == Some(&Members::SomeLive);
        assert!(!can || lives());
        if can {
            signal_group(&pidfd, child.id(), libc::SIGKILL).unwrap();
        }
        while lives() {
            std::thread::yield_now();
        }
        // Until somebody has reaped it.
        while has_group(&pidfd) {
            std::thread::yield_now();
        }
        assert_eq!(signal_group(&pidfd, child.id(), libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    /// A child that led a group of its own, and is a zombie.
    fn ended_leader() -> process::Child {
        let child = Command::new("true").process_group(0).spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        child
    }

    /// Where numbers can be chosen, and nobody else minds.
    #[test]
    fn the_next_child_with_a_groups_number_is_not_reaped_for_it() {
        if !is_first_process() {
            return;
        }
        let mut first = ended_leader();
        let (pid, pidfd) = (first.id(), open_pidfd(first.id()).unwrap());
        first.wait().unwrap();
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut next = ended_leader();
        assert_eq!((next.id(), ended_child_in(pid)), (pid, Some(pid)));
        assert!(!reap_members(&pidfd, pid));
        assert!(next.wait().unwrap().success());
    }

    #[test]
    fn a_groups_members_have_ended_when_all_have() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        assert_eq!(all_groups().unwrap().get(&child.id()), Some(&Members::SomeLive));
        let pidfd = open_pidfd(child.id()).unwrap();
        drop(child.stdin.take());
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert_eq!(all_groups().unwrap().get(&child.id()), Some(&Members::AllEnded));
        child.wait().unwrap();
        assert_eq!(all_groups().unwrap().get(&child.id()), None);

        assert_eq!(parse(b"1 (a) Z 2 3) S 4 5 6"), Some(("5", Members::SomeLive)));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn where_processes_cannot_be_seen_nothing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        assert_eq!(groups_in(proc), None);
        // Of another pid namespace.
        symlink((process::id() + 1).to_string(), proc.join("self")).unwrap();
        fs::create_dir(proc.join("1")).unwrap();
        assert_eq!(groups_in(proc), None);
        fs::remove_file(proc.join("self")).unwrap();
        symlink(process::id().to_string(), proc.join("self")).unwrap();
        // It is gone by now.
        assert_eq!(groups_in(proc), Some(HashMap::new()));
        fs::write(proc.join("1/stat"), "1 (init) S 0 1 1").unwrap();
        assert_eq!(groups_in(proc), Some(HashMap::from([(1, Members::SomeLive)])));
        // What can't be read, whoever asks.
        fs::create_dir_all(proc.join("2/stat")).unwrap();
        assert_eq!(groups_in(proc), None);
        // `hidepid`.
        fs::remove_dir_all(proc.join("1")).unwrap();
        fs::remove_dir_all(proc.join("2")).unwrap();
        assert_eq!(groups_in(proc), None);
    }
}
