//! Odd hosts: closed or swapped stdio, no free fds, SIGCHLD ignored, somebody else who reaps; and that nothing leaks.
//!
//! What these do to their process would break every other test, so each runs in a process of its own.

#![expect(unsafe_code, reason = "closing stdio and ignoring SIGCHLD is what is tested")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/proc.rs"]
mod proc;

use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use kernel::has_group_signals;
use multiproc::{Command, CommandError};
use proc::{open_fds, threads};
use rustix::process::{Resource, Rlimit, WaitId, WaitIdOptions};

/// Runs this test again, alone in its own process, and there the body.
fn alone(test: &str, body: impl AsyncFnOnce()) {
    const MARK: &str = "CHILD_HOST_TEST_ALONE";
    if std::env::var_os(MARK).is_some_and(|name| name == test) {
        // The body may close stderr.
        let stderr = File::from(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
        std::panic::set_hook(Box::new(move |panic| {
            let _ = writeln!(&stderr, "{panic}");
        }));
        run(body());
        std::process::exit(0);
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
}

fn run<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

/// Neither running nor a zombie.
fn has_no_child() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::All, options), Err(rustix::io::Errno::CHILD))
}

#[test]
fn a_thousand_children_leave_nothing() {
    alone("a_thousand_children_leave_nothing", async || {
        Command::new("true").output().await.unwrap();
        let before = (open_fds(), threads());
        for _ in 0..250 {
            assert_eq!(Command::new("cat").input("x").read().await.unwrap(), "x");
            let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
            child.wait().await.unwrap();
            drop(child);
            drop(Command::new("sleep").arg("1000").stderr(Stdio::piped()).spawn().unwrap());
            Command::new("sleep").arg("1000").spawn().unwrap().stop(Duration::ZERO).await.unwrap();
        }
        // The dropped ones are reaped by the keeper in its own time, which is short.
        while !has_no_child() {
            tokio::task::yield_now().await;
        }
        while open_fds() > before.0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((open_fds(), threads()), before);
    });
}

#[test]
fn a_verb_dropped_at_any_point_leaves_nothing() {
    alone("a_verb_dropped_at_any_point_leaves_nothing", async || {
        Command::new("true").output().await.unwrap();
        let before = (open_fds(), threads());
        let mut finished = 0;
        for polls in 0..400 {
            let command = Command::shell("cat; echo more >&2").input(vec![0; 100_000]);
            let output = command.pipe(Command::new("cat")).output();
            tokio::pin!(output);
            for _ in 0..polls {
                tokio::select! {
                    biased;
                    result = &mut output => {
                        assert_eq!(result.unwrap().stdout.len(), 100_000);
                        finished += 1;
                        break;
                    }
                    // Lets time pass, so that it is dropped in the middle, too.
                    () = tokio::task::yield_now() => std::thread::yield_now(),
                }
            }
        }
        while !has_no_child() || open_fds() > before.0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((open_fds(), threads()), before, "{finished} finished");
    });
}

#[test]
fn many_starts_at_once_leave_no_more_threads_than_one() {
    alone("many_starts_at_once_leave_no_more_threads_than_one", async || {
        Command::new("true").output().await.unwrap();
        let before = threads();
        for _ in 0..5 {
            for result in futures::future::join_all((0..64).map(|_| Command::new("true").output())).await {
                assert!(result.unwrap().status.success());
            }
            assert_eq!(threads(), before);
        }
    });
}

/// For the kernel the parent is the thread that started it. Threads that had been needed for a moment ended, and so did what
/// they had started.
#[test]
fn a_program_that_is_to_die_with_its_parent_lives_as_long_as_the_host() {
    alone("a_program_that_is_to_die_with_its_parent_lives_as_long_as_the_host", async || {
        if Command::new("setpriv").arg("--help").output().await.is_err() {
            eprintln!("skipped: there is no setpriv(1)");
            return;
        }
        let sleeps = || Command::new("setpriv").args(["--pdeathsig", "KILL", "sleep", "0.5"]).status();
        for status in futures::future::join_all((0..32).map(|_| sleeps())).await {
            assert!(status.as_ref().unwrap().success(), "{status:?}");
        }
    });
}

#[test]
fn children_that_were_waited_for_are_no_zombies() {
    alone("children_that_were_waited_for_are_no_zombies", async || {
        for _ in 0..200 {
            Command::new("true").status().await.unwrap();
            assert!(has_no_child());
            Command::shell("echo x >&2").output().await.unwrap();
            assert!(has_no_child());
            let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
            child.wait().await.unwrap();
            assert!(has_no_child());
        }
    });
}

#[test]
fn failed_starts_leave_nothing() {
    alone("failed_starts_leave_nothing", async || {
        Command::new("/no/such/program").output().await.unwrap_err();
        let before = (open_fds(), threads());
        for index in 0..1024 {
            let command = match index % 4 {
                0 => Command::new("/no/such/program").input("x"),
                1 => Command::new("true").current_dir("/no/such/dir"),
                2 => Command::new("/no/such/program").new_session(),
                _ => Command::new("true").pipe(Command::new("/no/such/program")),
            };
            let result = if index % 8 < 4 { command.output().await.map(drop) } else { command.spawn().map(drop) };
            assert!(matches!(result, Err(CommandError::Spawn { .. })), "{result:?}");
        }
        while !has_no_child() || open_fds() > before.0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((open_fds(), threads()), before);
    });
}

#[test]
fn without_free_fds_it_is_an_error_and_works_again() {
    alone("without_free_fds_it_is_an_error_and_works_again", async || {
        Command::new("true").output().await.unwrap();
        let old = rustix::process::getrlimit(Resource::Nofile);
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: old.maximum }).unwrap();
        let mut taken = Vec::new();
        while let Ok(fd) = File::open("/dev/null") {
            taken.push(fd);
        }
        let all = taken.len();
        // Each number of free fds fails at another place, until it is enough.
        let mut enough = None;
        for free in 0..30 {
            taken.truncate(all - free);
            let result = Command::shell("cat; echo x >&2").input("y").output().await;
            match (result, enough) {
                (Ok(output), _) => {
                    assert_eq!((&*output.stdout, &*output.stderr), (&b"y"[..], &b"x\n"[..]));
                    enough = enough.or(Some(free));
                }
                (Err(error), Some(_)) => panic!("{error:?} with {free} free"),
                (Err(CommandError::Spawn { source, .. } | CommandError::Io(source)), None) => {
                    assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "with {free} free");
                }
                (Err(error), None) => panic!("{error:?}"),
            }
            while !has_no_child() {
                tokio::task::yield_now().await;
            }
        }
        assert!(enough.is_some());
    });
}

#[test]
fn a_shortage_of_processes_is_waited_for_and_then_an_error() {
    alone("a_shortage_of_processes_is_waited_for_and_then_an_error", async || {
        Command::new("true").output().await.unwrap();
        // Root has no such limit.
        if rustix::process::geteuid().is_root() {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        }
        let old = rustix::process::getrlimit(Resource::Nproc);
        rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: old.maximum }).unwrap();
        let refused = |result: Result<(), CommandError>| match result {
            Err(CommandError::Spawn { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EAGAIN)),
            other => panic!("{other:?}"),
        };
        let start = std::time::Instant::now();
        refused(Command::new("cat").input("x").output().await.map(drop));
        assert!(start.elapsed() >= Duration::from_millis(193), "it was tried again for a while");
        refused(Command::new("true").spawn().map(drop));
        refused(Command::new("true").new_session().spawn().map(drop));
        rustix::process::setrlimit(Resource::Nproc, old).unwrap();
        assert!(Command::new("true").status().await.unwrap().success());
    });
}

#[test]
fn a_shortage_of_threads_at_the_very_first_start_is_waited_for_too() {
    alone("a_shortage_of_threads_at_the_very_first_start_is_waited_for_too", async || {
        if rustix::process::geteuid().is_root() {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        }
        let old = rustix::process::getrlimit(Resource::Nproc);
        rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: old.maximum }).unwrap();
        let mut first = std::pin::pin!(Command::new("true").status());
        assert!(first.as_mut().now_or_never().is_none(), "it gave up at once");
        rustix::process::setrlimit(Resource::Nproc, old).unwrap();
        assert!(first.await.unwrap().success());
    });
}

#[test]
fn a_shortage_of_memory_is_an_error_that_says_so() {
    alone("a_shortage_of_memory_is_an_error_that_says_so", async || {
        // std starts these, and posix_spawn(3) begins with memory for a stack. All threads that start programs have done it.
        let command = || Command::new("true").stdin(Stdio::null());
        for result in futures::future::join_all((0..32).map(|_| command().status())).await {
            assert!(result.unwrap().success());
        }
        let none = |result: Result<(), CommandError>| match result {
            Err(CommandError::Spawn { source, .. } | CommandError::Io(source)) => {
                assert_eq!(source.kind(), std::io::ErrorKind::OutOfMemory, "{source}");
            }
            other => panic!("{other:?}"),
        };
        let old = rustix::process::getrlimit(Resource::As);
        // No more than there is. What was freed can still be had.
        drop((0..64).map(|_| vec![1_u8; 1 << 10]).collect::<Vec<_>>());
        rustix::process::setrlimit(Resource::As, Rlimit { current: Some(0), maximum: old.maximum }).unwrap();
        let (asynchronous, here) = (command().status().await, command().spawn());
        rustix::process::setrlimit(Resource::As, old).unwrap();
        none(asynchronous.map(drop));
        none(here.map(drop));
        assert!(Command::new("true").status().await.unwrap().success());
    });
}

#[test]
fn fds_above_a_lowered_limit_are_no_trouble() {
    alone("fds_above_a_lowered_limit_are_no_trouble", async || {
        let high: Vec<_> = (0..40).map(|_| File::open("/dev/null").unwrap()).collect();
        let limit = Rlimit { current: Some(30), ..rustix::process::getrlimit(Resource::Nofile) };
        // Above it are the fds that are open already.
        let spare: Vec<_> = high.into_iter().skip(20).collect();
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(Command::new("cat").input("x").read().await.unwrap(), "x");
        drop(spare);
    });
}

#[test]
fn any_of_stdio_may_be_closed_in_the_host() {
    alone("any_of_stdio_may_be_closed_in_the_host", async || {
        // No child first, so that the keeper, too, is born into it.
        for closed in (0..8).rev() {
            // Fill all three, inheritable, then close some.
            loop {
                let null = File::options().read(true).write(true).open("/dev/null").unwrap();
                if null.as_raw_fd() > 2 {
                    break;
                }
                rustix::io::fcntl_setfd(&null, rustix::io::FdFlags::empty()).unwrap();
                std::mem::forget(null);
            }
            for fd in (0..3).filter(|fd| closed & (1 << fd) != 0) {
                // SAFETY: stdio has no owner.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
            let output = Command::shell("cat; echo err >&2").input("in").output().await.unwrap();
            assert_eq!((&*output.stdout, &*output.stderr), (&b"in"[..], &b"err\n"[..]), "{closed:03b}");
            let merged = Command::shell("cat; echo err >&2").input("in").stderr_to_stdout().output().await.unwrap();
            assert_eq!(&*merged.stdout, b"inerr\n", "{closed:03b}");
            let merged = Command::shell("echo err >&2; exit 47").stderr_to_stdout().status().await.unwrap();
            assert_eq!(merged.code(), Some(47), "{closed:03b}");
            let command = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            tokio::io::AsyncWriteExt::write_all(child.stdin.as_mut().unwrap(), b"x").await.unwrap();
            assert_eq!(child.communicate().await.unwrap().stdout, b"x", "{closed:03b}");
            // What the host has closed is closed in a child that inherits it.
            let list = "for fd in 0 1 2; do [ -e /proc/$$/fd/$fd ] && echo $fd >&9; done; exit 0";
            let (mut read, write) = std::io::pipe().unwrap();
            Command::shell(list).inherit_fd(write, 9).status().await.unwrap();
            let mut open = String::new();
            read.read_to_string(&mut open).unwrap();
            let expected =
                (0..3).filter(|fd| closed & (1 << fd) == 0).map(|fd| ["0\n", "1\n", "2\n"][fd]).collect::<String>();
            assert_eq!(open, expected, "{closed:03b}");
        }
    });
}

#[test]
fn stdio_may_be_swapped_in_any_way() {
    alone("stdio_may_be_swapped_in_any_way", async || {
        for [input, out, err] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            // Out of the way of 0, 1 and 2, which the command of the last turn has closed.
            let high = |file: File| File::from(rustix::io::fcntl_dupfd_cloexec(&file, 10).unwrap());
            let mut files = [(); 3].map(|()| high(tempfile::tempfile().unwrap()));
            files[input].write_all(b"in").unwrap();
            files[input].rewind().unwrap();
            for (fd, file) in (0..).zip(&files) {
                // SAFETY: stdio has no owner.
                assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
            }
            // SAFETY: as above, and each is taken once.
            let stdio = |fd: usize| unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
            let command = Command::shell("cat; echo err >&2").stdin(stdio(input)).stdout(stdio(out)).stderr(stdio(err));
            assert!(command.status().await.unwrap().success());
            let mut texts = files.map(|mut file| {
                let mut text = String::new();
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            });
            assert_eq!([input, out, err].map(|fd| std::mem::take(&mut texts[fd])), ["in", "in", "err\n"]);
        }
    });
}

#[test]
fn a_host_that_ignores_sigchld_gets_no_status_and_no_trouble() {
    alone("a_host_that_ignores_sigchld_gets_no_status_and_no_trouble", async || {
        // SAFETY: no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        for _ in 0..50 {
            assert!(matches!(Command::new("true").status().await, Err(CommandError::StatusUnknown)));
            assert!(matches!(Command::new("cat").input("x").output().await, Err(CommandError::StatusUnknown)));
            let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            assert!(child.try_wait().unwrap().is_none());
            child.terminate().unwrap();
            assert!(matches!(child.wait().await, Err(CommandError::StatusUnknown)));
            assert!(matches!(child.try_wait(), Err(CommandError::StatusUnknown)));
            child.kill().unwrap();
            let failed = Command::new("/no/such/program").status().await;
            assert!(matches!(failed, Err(CommandError::Spawn { program, .. }) if program == "/no/such/program"));
            // Here std itself panics, as it can't wait for the fork whose exec failed.
            let forked = Command::new("/no/such/program").new_session().status().await;
            assert!(matches!(forked, Err(CommandError::Spawn { .. })));
        }
        let endless = Command::shell("sleep 1000 & echo $!; exec sleep 1000").timeout(Duration::from_millis(300));
        let error = endless.output().await.unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error:?}");
        let pid = String::from_utf8(error.output().unwrap().stdout.clone()).unwrap();
        while std::path::Path::new(&format!("/proc/{}", pid.trim())).exists() {
            tokio::task::yield_now().await;
        }
        // What is left of a group when its leader has gone has its grace.
        if has_group_signals() {
            let clean_up = "trap 'while kill -0 $$ 2>&-; do :; done; echo cleaned; exit' TERM";
            let script = format!("({clean_up}; echo up; while :; do sleep 0.01; done); true");
            let (mut read, write) = std::io::pipe().unwrap();
            let mut child = Command::shell(script).stdout(write).spawn().unwrap();
            read.read_exact(&mut [0; 3]).unwrap();
            assert!(matches!(child.stop(Duration::from_mins(1)).await, Err(CommandError::StatusUnknown)));
            let mut rest = String::new();
            read.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "cleaned\n");
        }
        // And when it no longer does, the status is back.
        // SAFETY: no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        assert_eq!(Command::shell("exit 47").status().await.unwrap().code(), Some(47));
    });
}

#[test]
fn a_host_that_waits_for_everybody_costs_a_status_at_most() {
    alone("a_host_that_waits_for_everybody_costs_a_status_at_most", async || {
        static STOP: AtomicBool = AtomicBool::new(false);
        let thief = std::thread::spawn(|| {
            let mut stolen = 0;
            while !STOP.load(Ordering::Relaxed) {
                match rustix::process::wait(rustix::process::WaitOptions::empty()) {
                    Ok(Some(_)) => stolen += 1,
                    _ => std::thread::yield_now(),
                }
            }
            stolen
        });
        let mut known = 0;
        for index in 0..300 {
            let result = if index % 2 == 0 {
                Command::shell("exit 3").status().await
            } else {
                Command::shell("exec 3<&-; exit 3").output().await.map(|output| output.status)
            };
            match result {
                Ok(status) => {
                    assert_eq!(status.code(), Some(3));
                    known += 1;
                }
                Err(CommandError::StatusUnknown) => {}
                Err(error) => panic!("{error:?}"),
            }
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            match child.stop(Duration::from_mins(1)).await {
                Ok(status) => assert_eq!(status.signal(), Some(libc::SIGTERM)),
                Err(CommandError::StatusUnknown) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        STOP.store(true, Ordering::Relaxed);
        let stolen = thief.join().unwrap();
        assert!(stolen + known > 0);
    });
}

/// How much processor time the keeper's thread has used, in ticks of 10 ms.
fn keepers_time() -> u64 {
    let mut threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let is_keeper = |name: String| name.starts_with("multiproc-keepe");
    let keeper = threads.find(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(is_keeper)).unwrap();
    let stat = std::fs::read_to_string(keeper.join("stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(2).map(|time| time.parse::<u64>().unwrap()).sum()
}

/// The kernel says that it has ended, and gives it to nobody else until the debugger has had it.
#[test]
fn a_dead_child_that_a_debugger_holds_costs_no_processor_time() {
    const TO_TRACE: &str = "CHILD_HOST_TEST_TO_TRACE";
    if let Some(pid) = std::env::var_os(TO_TRACE) {
        let pid: libc::pid_t = pid.to_str().unwrap().parse().unwrap();
        // SAFETY: touches no memory of this process.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) }, 0, "{}", std::io::Error::last_os_error());
        eprintln!("traced");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        std::process::exit(0);
    }
    alone("a_dead_child_that_a_debugger_holds_costs_no_processor_time", async || {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut debugger = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_dead_child_that_a_debugger_holds_costs_no_processor_time", "--nocapture"])
            .env(TO_TRACE, child.id().unwrap().to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 7];
        debugger.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
        if &said != b"traced\n" {
            eprintln!("skipped: nobody may trace here");
            debugger.wait().unwrap();
            return;
        }
        child.kill().unwrap();
        let before = keepers_time();
        std::thread::sleep(Duration::from_millis(400));
        let took = keepers_time() - before;
        assert!(child.try_wait().unwrap().is_none());
        drop(debugger.stdin.take());
        assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGKILL));
        assert!(debugger.wait().unwrap().success());
        assert!(took < 10, "{took} ticks in 400 ms");
    });
}

#[test]
fn a_host_that_minds_sigpipe_gets_none_from_us() {
    alone("a_host_that_minds_sigpipe_gets_none_from_us", async || {
        // SAFETY: no code of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        for _ in 0..20 {
            assert!(Command::new("true").input(vec![0; 1 << 20]).output().await.unwrap().status.success());
        }
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        child.wait().await.unwrap();
        let error = tokio::io::AsyncWriteExt::write_all(&mut stdin, b"x").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        // It still gets its own.
        // SAFETY: this test is alone in its process; the copy writes into a pipe, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let (read, write) = std::io::pipe().unwrap();
            drop(read);
            let _ = (&write).write(b"x");
            // SAFETY: it ends the copy.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: `status` is live.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGPIPE);
    });
}

#[test]
fn a_mask_of_blocked_signals_is_the_callers_as_with_std() {
    alone("a_mask_of_blocked_signals_is_the_callers_as_with_std", async || {
        let blocked = || async {
            let status = Command::new("cat").arg("/proc/self/status").read().await.unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned();
            u64::from_str_radix(&mask, 16).unwrap()
        };
        assert_eq!(blocked().await, 0);
        // SAFETY: all-zero is a valid, empty set, and it is live.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        assert_eq!(blocked().await, 1 << (libc::SIGUSR1 - 1));
    });
}

/// What came before a program had left its parent's group struck when it was in its own: there a Ctrl-Z stopped it for good, and
/// whoever was starting it with it, and it died of a Ctrl-C that its parent takes for a question.
#[test]
fn a_program_that_is_being_started_has_nothing_of_what_its_parents_group_is_sent() {
    alone("a_program_that_is_being_started_has_nothing_of_what_its_parents_group_is_sent", async || {
        extern "C" fn ignore(_: libc::c_int) {}
        // A handler, as what is ignored stays so in the program.
        for signal in [libc::SIGTSTP, libc::SIGINT] {
            // SAFETY: the handler does nothing, which may be done at any time.
            unsafe { libc::signal(signal, ignore as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        }
        let group = rustix::process::setsid().unwrap().as_raw_nonzero();
        let script = format!("while kill -TSTP -{group} && kill -INT -{group}; do :; done 2>/dev/null");
        let mut sender = std::process::Command::new("sh");
        sender.args(["-c", &script]).process_group(0).stdout(Stdio::null());
        let mut sender = sender.spawn().unwrap();
        let starts = std::thread::spawn(|| {
            for _ in 0..100 {
                for command in [Command::new("true"), Command::new("true").new_session(), Command::new("true").umask(0)]
                {
                    let status = run(command.status()).unwrap();
                    assert!(status.success(), "{status}");
                }
            }
        });
        let begun = std::time::Instant::now();
        while !starts.is_finished() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        sender.kill().unwrap();
        sender.wait().unwrap();
        // What hangs ends with this process's session.
        assert!(starts.is_finished(), "a start hangs");
        starts.join().unwrap();
    });
}

/// What is sent to a program right after its start is for it, however far it has come by then.
#[test]
fn what_the_host_sends_to_a_program_at_once_reaches_it() {
    alone("what_the_host_sends_to_a_program_at_once_reaches_it", async || {
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1];
        for signal in signals {
            // What is ignored here is so in the program, too.
            // SAFETY: the default, which is no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        for signal in signals.into_iter().cycle().take(200) {
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            child.signal(signal).unwrap();
            assert_eq!(child.wait().await.unwrap().signal(), Some(signal));
        }
    });
}

/// How often this process has found a page to be not ready for it; getrusage(2).
fn faults() -> i64 {
    // SAFETY: all-zero is a valid rusage, and it is live.
    unsafe {
        let mut usage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage.ru_minflt
    }
}

/// After a fork(2) each page is copied, or at least looked at, when one of both writes to it.
#[test]
fn starting_a_program_does_not_touch_the_memory_of_the_host() {
    alone("starting_a_program_does_not_touch_the_memory_of_the_host", async || {
        const PAGES: usize = 8 << 10;
        let mut memory = vec![0_u8; PAGES * 4096];
        // SAFETY: it only says how the pages of this live buffer are to be laid out.
        unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_NOHUGEPAGE) };
        let mut touched = async |command: Command| {
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            let before = faults();
            assert!(command.status().await.unwrap().success());
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
            usize::try_from(faults() - before).unwrap()
        };
        for _ in 0..2 {
            assert!(touched(Command::new("true")).await < PAGES / 8);
            assert!(
                touched(Command::new("true").current_dir("/").env("A", "b").stdin(Stdio::null())).await < PAGES / 8
            );
        }
        let limited = || Command::new("true").umask(0o22).nice(19).open_files_limit(64).memory_limit(1 << 30);
        assert!(touched(limited()).await < PAGES / 8);
        assert!(touched(limited().new_session().inherit_fd(std::fs::File::open("/").unwrap(), 9)).await < PAGES / 8);
        // What says so in its docs.
        assert!(touched(limited().stdin(Stdio::null())).await >= PAGES);
        if rustix::process::geteuid().is_root() {
            assert!(touched(Command::new("true").uid(65534)).await >= PAGES);
        }
    });
}

#[test]
fn the_highest_numbers_that_there_are_can_be_given_to_open_files() {
    alone("the_highest_numbers_that_there_are_can_be_given_to_open_files", async || {
        let limit = Rlimit { current: Some(64), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            file
        };
        let read = ["/proc/self/fd/63", "/proc/self/fd/62"];
        let command = || Command::new("cat").args(read).inherit_fd(file("a"), 63).inherit_fd(file("b"), 62);
        assert_eq!(command().read().await.unwrap(), "ab");
        // By fork(2), where std is needed.
        assert_eq!(command().new_session().stdin(Stdio::null()).read().await.unwrap(), "ab");
    });
}
