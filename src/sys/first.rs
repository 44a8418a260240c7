//! For tests that must be in the first process of a pid namespace, where numbers can be chosen and nobody else minds.

use std::process::{self, Command};

/// Whether the calling test is in such a process. If not, it has been run again in one, alone, where this user may make one; who is
/// not root may not.
pub(super) fn is_first_process() -> bool {
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
    if unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        let name = std::thread::current().name().unwrap().to_owned();
        let mut again = unshare();
        again.arg(std::env::current_exe().unwrap()).args([&*name, "--exact", "--nocapture"]).env(MARK, "");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    false
}
