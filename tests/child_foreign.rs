//! Programs that may not be signalled, because they run as another user.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt as _;
use multiproc::{Command, CommandError};

const SETPRIV: &str = "CHILD_FOREIGN_TEST_SETPRIV";
const NOBODY: u32 = 65534;

/// Runs this test again as nobody, and there gives what runs a script as root; `None` here, and where that can't be.
fn as_root(test: &str) -> Option<impl Fn(&str) -> Command> {
    if let Some(setpriv) = std::env::var_os(SETPRIV) {
        return Some(move |script: &str| Command::new(&setpriv).args(["--reuid", "0", "sh", "-c", script]));
    }
    let original = Path::new("/usr/bin/setpriv");
    if !rustix::process::geteuid().is_root() || !original.exists() {
        eprintln!("skipped: this takes root, and setpriv(1)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (setpriv, this) = (folder.path().join("setpriv"), folder.path().join("test"));
    // Not written here: another test's child could hold the open file for a moment, and it could not be executed.
    for (mode, from, to) in [("4755", original, &setpriv), ("755", &std::env::current_exe().unwrap(), &this)] {
        let install = std::process::Command::new("install").args(["-m", mode]).args([from, to]).status().unwrap();
        assert!(install.success());
    }
    let mut again = std::process::Command::new(this);
    again.args(["--exact", test, "--nocapture"]).env(SETPRIV, setpriv).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = again.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    None
}

#[tokio::test]
async fn a_timeout_of_a_program_that_may_not_be_signalled_is_a_timeout_with_its_output() {
    let test = "a_timeout_of_a_program_that_may_not_be_signalled_is_a_timeout_with_its_output";
    let Some(as_root) = as_root(test) else { return };
    // It ends with its input, which is held open here.
    let (read, _write) = std::io::pipe().unwrap();
    let important = |grace| {
        let command = as_root("echo important; exec cat").stdin(read.try_clone().unwrap());
        command.timeout(Duration::from_secs(1)).grace(grace)
    };
    let error = important(Duration::from_millis(20)).output().await.unwrap_err();
    let CommandError::TimedOut { output, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(output.stdout, b"important\n");
    assert_eq!(source.as_ref().unwrap().raw_os_error(), Some(libc::EPERM));

    let mut child = important(Duration::ZERO).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<_> = child.lines().map(|line| line.map_err(|error| error.kind())).collect().await;
    assert_eq!(lines, [Ok("important".into()), Err(std::io::ErrorKind::TimedOut)]);
    assert!(matches!(child.wait().await, Err(CommandError::TimedOut { source: Some(_), .. })));
    assert_eq!(child.try_wait().unwrap(), None);
}

#[tokio::test]
async fn a_signal_reaches_each_of_a_pipeline_whatever_becomes_of_one() {
    let test = "a_signal_reaches_each_of_a_pipeline_whatever_becomes_of_one";
    let Some(as_root) = as_root(test) else { return };
    let (mut read, write) = std::io::pipe().unwrap();
    let first = as_root("echo up >&2; exec cat").stdin(Stdio::piped()).stderr(write);
    let pipeline = first.pipe(Command::new("sleep").arg("1000"));
    let mut child = pipeline.stdout(Stdio::null()).spawn().unwrap();
    read.read_exact(&mut [0; 3]).unwrap();
    assert_eq!(child.signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::EPERM));
    // The first ends with its input.
    child.stdin = None;
    _ = child.wait().await;
    assert_eq!(child.statuses()[1].unwrap().signal(), Some(libc::SIGKILL));
}
