//! Starts that fail: which error, naming what, and how a start that is dropped half-way ends.

#![allow(unsafe_code, reason = "rustix has no leases on files")]

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use futures::FutureExt as _;
use multiproc::{Command, CommandError, spawn_process, task};

multiproc::test_support!();

/// Who is named, and the kind of the error; the same from every verb.
async fn refusal(command: impl Fn() -> Command) -> (String, ErrorKind) {
    let named = |error| match error {
        CommandError::Spawn { program, source } => (program, source.kind()),
        error => panic!("{error:?}"),
    };
    let named_here = named(command().spawn().unwrap_err());
    assert_eq!(named(command().status().await.unwrap_err()), named_here);
    assert_eq!(named(command().output().await.unwrap_err()), named_here);
    named_here
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let program = || Command::new("/no/such/program");
    assert_eq!(refusal(program).await, ("/no/such/program".into(), ErrorKind::NotFound));
    let searched = || Command::new("no-such-program");
    assert_eq!(refusal(searched).await, ("no-such-program".into(), ErrorKind::NotFound));
    let directory = || Command::new("true").current_dir("/no/such/dir");
    assert_eq!(refusal(directory).await, ("/no/such/dir".into(), ErrorKind::NotFound));
    let not_a_directory = || Command::new("true").current_dir("/dev/null");
    assert_eq!(refusal(not_a_directory).await, ("/dev/null".into(), ErrorKind::NotADirectory));
    let empty = || Command::new("");
    assert_eq!(refusal(empty).await.1, ErrorKind::NotFound);
    let nowhere = || Command::new("true").current_dir("");
    assert_eq!(refusal(nowhere).await, ("a working directory without a name".into(), ErrorKind::NotFound));

    let folder = tempfile::tempdir().unwrap();
    let endless = folder.path().join("loop");
    std::os::unix::fs::symlink(&endless, &endless).unwrap();
    let error = Command::new("true").current_dir(&endless).status().await.unwrap_err();
    let CommandError::Spawn { program, source } = error else { panic!("{error:?}") };
    assert_eq!((program, source.raw_os_error()), (endless.display().to_string(), Some(libc::ELOOP)));
}

/// As a task, which runs on its process's main thread.
fn main_thread_starts() -> i32 {
    // SAFETY: neither takes anything.
    assert_eq!(unsafe { libc::gettid() }, unsafe { libc::getpid() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let missing = || Command::new("/no/such/program");
        assert_eq!(refusal(missing).await, ("/no/such/program".into(), ErrorKind::NotFound));
        let directory = || Command::new("true").current_dir("/no/such/dir");
        assert_eq!(refusal(directory).await, ("/no/such/dir".into(), ErrorKind::NotFound));
        Command::shell("exit 3").status().await.unwrap().code().unwrap()
    })
}

#[tokio::test]
async fn the_main_thread_starts_programs_as_others_do() {
    assert_eq!(spawn_process(task!(main_thread_starts())).await.unwrap().join().await.unwrap(), 3);
}

#[tokio::test]
async fn what_cannot_be_executed_is_permission_denied() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain");
    std::fs::write(&file, "#!/bin/sh\nexit 3\n").unwrap();
    let name = file.display().to_string();
    assert_eq!(refusal(|| Command::new(&file)).await, (name.clone(), ErrorKind::PermissionDenied));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(Command::new(&file).status().await.unwrap().code(), Some(3));

    std::fs::write(&file, "#!/no/such/interpreter\n").unwrap();
    assert_eq!(refusal(|| Command::new(&file)).await, (name, ErrorKind::NotFound));
    let CommandError::Spawn { source, .. } = Command::new(&file).status().await.unwrap_err() else { panic!() };
    assert!(source.to_string().contains("interpreter"));
}

#[tokio::test]
async fn a_whole_line_as_a_name_is_not_found_and_the_error_says_where_arguments_go() {
    for line in ["ls -l", "/bin/ls -l"] {
        assert_eq!(refusal(|| Command::new(line)).await, (line.into(), ErrorKind::NotFound));
        let CommandError::Spawn { source, .. } = Command::new(line).status().await.unwrap_err() else { panic!() };
        assert!(source.to_string().contains("`.arg(..)`"), "{source}");
    }
}

#[tokio::test]
async fn a_nul_byte_is_invalid_input() {
    assert_eq!(refusal(|| Command::new("true").arg("a\0b")).await, ("true".into(), ErrorKind::InvalidInput));
    assert_eq!(refusal(|| Command::new("true").env("A", "a\0b")).await.1, ErrorKind::InvalidInput);
    assert_eq!(refusal(|| Command::new("tr\0ue")).await.1, ErrorKind::InvalidInput);
    assert_eq!(refusal(|| Command::new("true").current_dir("a\0b")).await.1, ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_folder_of_the_path_that_cannot_be_searched_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o000)).unwrap();
    let path = format!("{}:/dev/null:/bin:/usr/bin", locked.display());
    let missing = || Command::new("no-such-program").env("PATH", &path);
    assert_eq!(refusal(missing).await, ("no-such-program".into(), ErrorKind::NotFound));
    assert!(Command::new("true").env("PATH", &path).status().await.unwrap().success());
}

/// With a bare name it said that there was no such program.
#[tokio::test]
async fn a_missing_interpreter_is_named_as_such_however_its_script_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let above = folder.path().parent().unwrap();
    let below = folder.path().file_name().unwrap();
    let commands: [&dyn Fn() -> Command; 5] = [
        &|| Command::new(&script),
        &|| Command::new("./script").current_dir(folder.path()),
        &|| Command::new("script").env("PATH", folder.path()),
        &|| Command::new("script").env("PATH", below).current_dir(above),
        &|| Command::new("script").env("PATH", "/no/such/dir:").current_dir(folder.path()),
    ];
    for command in commands {
        let error = command().status().await.unwrap_err();
        let CommandError::Spawn { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), ErrorKind::NotFound);
        assert!(source.to_string().contains("interpreter"), "{:?}: {source}", command());
    }
    let nameless = || Command::new("").current_dir(folder.path());
    let CommandError::Spawn { source, .. } = nameless().status().await.unwrap_err() else { panic!() };
    assert!(!source.to_string().contains("interpreter"), "{source}");
    // A folder of that name is no script.
    let hidden = || Command::new(below).env("PATH", above);
    assert_eq!(refusal(hidden).await, (below.display().to_string(), ErrorKind::PermissionDenied));
}

#[tokio::test]
async fn too_many_arguments_are_an_error() {
    let long = "x".repeat(100 << 10);
    let kind = refusal(|| Command::new("true").args(vec![&long; 1000])).await.1;
    assert_eq!(kind, ErrorKind::ArgumentListTooLong);
}

#[tokio::test]
async fn a_file_that_is_still_written_is_tried_again() {
    use std::os::unix::fs::OpenOptionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("program");
    let mut write = std::fs::File::options().write(true).create_new(true).mode(0o755).open(&file).unwrap();
    write.write_all(&std::fs::read("/bin/true").unwrap()).unwrap();
    let error = Command::new(&file).status().await.unwrap_err();
    assert!(matches!(error, CommandError::Spawn { source, .. } if source.kind() == ErrorKind::ExecutableFileBusy));
    // The first poll begins the first try, and the later ones see to the other tries.
    let mut status = std::pin::pin!(Command::new(&file).status());
    let (mut write, mut polls) = (Some(write), 0);
    let status = std::future::poll_fn(|cx| {
        let polled = status.as_mut().poll(cx);
        polls += 1;
        if polls == 2 {
            assert!(polled.is_pending(), "nobody can start it yet");
            write = None;
        }
        polled
    });
    assert!(status.await.unwrap().success());
}

/// A program on a file system that does not answer, say. Here it is a lease on its file that keeps execve(2) waiting.
struct Slow(File);

impl Slow {
    /// `None` where there are no leases.
    fn program(path: &Path, script: &str) -> Option<Self> {
        /// The libc crate has no name for it.
        const F_SETSIG: i32 = 10;
        std::fs::write(path, script).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        let slow = Self(File::open(path).unwrap());
        // What says that somebody wants the file is then ignored by default.
        slow.fcntl(F_SETSIG, libc::SIGURG);
        if slow.fcntl(libc::F_SETLEASE, libc::F_WRLCK) != 0 {
            eprintln!("skipped: no leases here: {}", std::io::Error::last_os_error());
            return None;
        }
        Some(slow)
    }

    fn is_wanted(&self) -> bool {
        self.fcntl(libc::F_GETLEASE, 0) != libc::F_WRLCK
    }

    fn answer(&self) {
        assert_eq!(self.fcntl(libc::F_SETLEASE, libc::F_UNLCK), 0);
    }

    fn fcntl(&self, command: i32, what: i32) -> i32 {
        // SAFETY: none of these commands takes a pointer.
        unsafe { libc::fcntl(self.0.as_raw_fd(), command, what) }
    }
}

#[tokio::test]
async fn a_start_that_hangs_holds_up_neither_the_runtime_nor_other_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let Some(program) = Slow::program(&path, "#!/bin/sh\nexit 3\n") else { return };
    // Fewer than there are threads that start programs, for where those have to wait.
    let slow: Vec<_> = (0..3).map(|_| tokio::spawn(Command::new(&path).status())).collect();
    let start = std::time::Instant::now();
    while !program.is_wanted() {
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "it was never started");
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        assert!(Command::new("true").status().await.unwrap().success());
    }
    assert!(!slow.iter().any(tokio::task::JoinHandle::is_finished));
    let late = Command::new(&path).timeout(std::time::Duration::from_millis(10)).status().await.unwrap_err();
    assert!(matches!(late, CommandError::TimedOut { .. }), "{late:?}");
    program.answer();
    for slow in slow {
        assert_eq!(slow.await.unwrap().unwrap().code(), Some(3));
    }
}

#[tokio::test]
async fn a_dropped_start_leaves_no_child() {
    let (mut read, write) = std::io::pipe().unwrap();
    for polls in 0..50 {
        let command = Command::new("sleep").arg("1000").stdout(write.try_clone().unwrap());
        let status = command.status();
        tokio::pin!(status);
        for _ in 0..polls {
            tokio::select! {
                biased;
                status = &mut status => panic!("{status:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    drop(write);
    // It ends when every sleep is gone.
    read.read_to_end(&mut Vec::new()).unwrap();
}

/// Who was at it had ended with the host, and what it had started went on.
#[test]
fn a_dropped_start_leaves_no_child_where_the_host_exits_at_once() {
    static PROGRAM: OnceLock<Slow> = OnceLock::new();
    extern "C" fn answer() {
        PROGRAM.get().unwrap().answer();
    }
    if !support::is_alone() {
        let mut host = support::alone_command("a_dropped_start_leaves_no_child_where_the_host_exits_at_once");
        let dir = tempfile::tempdir().unwrap();
        let mut host = host.current_dir(&dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = host.stdin.take().unwrap();
        assert!(host.wait().unwrap().success());
        let _ = stdin.write_all(b"goes on");
        drop(stdin);
        let mut said = String::new();
        host.stdout.unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("goes on"), "{said}");
        return;
    }
    let path = Path::new("./program");
    let Some(program) = Slow::program(path, "#!/bin/sh\nexec cat\n") else { return };
    let program = PROGRAM.get_or_init(|| program);
    support::block_on(async {
        // What is set in the child is waited for.
        let mut status = Box::pin(Command::new(path).umask(0o22).status());
        assert!(status.as_mut().now_or_never().is_none());
        let limit = std::time::Duration::from_secs(10);
        assert!(support::eventually(limit, || program.is_wanted()), "it was never started");
    });
    // Now it can be started; and then there is the library's part of the exit.
    // SAFETY: it only makes a system call.
    assert_eq!(unsafe { libc::atexit(answer) }, 0);
    std::process::exit(0);
}

#[test]
fn a_child_can_be_spawned_outside_a_runtime_and_awaited_in_one() {
    let mut child = Command::new("cat").input("x").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(child.communicate()).unwrap().stdout, b"x");
}

#[test]
fn futures_can_be_sent_and_handles_shared() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    fn handle<T: Send + Sync + std::fmt::Debug>() {}
    handle::<multiproc::Child>();
    handle::<Command>();
    handle::<multiproc::ChildStdin>();
    handle::<multiproc::ChildStdout>();
    handle::<multiproc::ChildStderr>();
    handle::<CommandError>();
    drop(send(Command::new("true").status()));
    drop(send(Command::new("true").output()));
    drop(send(Command::new("true").run()));
    drop(send(Command::new("true").read()));
    let mut child = Command::new("true").spawn().unwrap();
    drop(send(child.wait()));
    drop(send(child.communicate()));
    drop(send(child.stop(std::time::Duration::ZERO)));
    drop(send(child.lines()));
    drop(send(child.tagged_lines()));
}

/// This process, which may be root, can enter it.
#[tokio::test]
async fn a_folder_that_another_user_cannot_enter_is_named() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: this takes root");
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("inner");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let pwd = || Command::new("pwd").uid(65534).current_dir(&dir);
    assert_eq!(refusal(pwd).await, (dir.display().to_string(), ErrorKind::PermissionDenied));
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    assert!(pwd().output().await.unwrap().status.success());
}
