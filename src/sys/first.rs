//! For tests that must be in the first process of a pid namespace, where numbers can be chosen and nobody else minds.

use std::panic::{self, AssertUnwindSafe};
use std::process::{self, Command};

use super::socket::stream_pair;

/// Whether the calling test is in such a process. If not, it has been run again in one, alone, where this user may make one; who is
/// not root may not. Its stdin is a socket that was made outside.
pub(crate) fn is_first_process() -> bool {
    const MARK: &str = "MULTIPROC_TEST_FIRST_PROCESS";
    if std::env::var_os(MARK).is_some() {
        assert_eq!(process::id(), 1);
        return true;
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc"]);
        unshare
    };
    let can = unshare().arg("true").output();
    if can.as_ref().is_ok_and(|output| output.status.success()) {
        let name = std::thread::current().name().unwrap().to_owned();
        let mut again = unshare();
        again.arg(std::env::current_exe().unwrap()).args([&*name, "--exact", "--nocapture"]).env(MARK, "");
        let (_here, there) = stream_pair().unwrap();
        let output = again.stdin(there).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    } else {
        eprintln!("skipped: no pid namespace can be made here: {can:?}");
    }
    false
}

/// Whether something holds in a copy of the first process that is the first process of a namespace of its own. What the copy drops
/// is there all the same in the original.
pub(crate) fn holds_in_a_namesake(holds: impl FnOnce() -> bool) -> bool {
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: as fork(2), which touches no memory of ours. The one other thread is the harness, which waits for this one, so the
    // copy needs no lock that it holds; and it ends without anything of ours being dropped.
    unsafe {
        let copy = i32::try_from(libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0)).unwrap();
        if copy == 0 {
            let holds = panic::catch_unwind(AssertUnwindSafe(holds)).is_ok_and(|holds| holds);
            libc::_exit(i32::from(process::id() != 1 || !holds));
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(copy, &raw mut status, 0), copy);
        status == 0
    }
}
