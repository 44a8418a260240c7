//! Ends: timeouts, stop, signals and drops take the whole process group along, and leave nothing.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/proc.rs"]
mod proc;

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use kernel::has_group_signals;
use multiproc::{Child, Command, CommandError};
use proc::lives;
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;

/// A program with a child in the background, both running by the time this returns, and both holding stdout.
async fn tree(script: &str) -> (Child, u32, u32) {
    let script = format!("{script} sleep 1000 & echo $!; exec sleep 1000");
    let mut child = Command::shell(script).stdout(Stdio::piped()).spawn().unwrap();
    let line = child.lines().next().await.unwrap().unwrap();
    let pid = child.id().unwrap();
    (child, pid, line.parse().unwrap())
}

/// Waits until every process that has the pipe is gone.
async fn until_closed(child: &mut Child) {
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).await.unwrap();
}

async fn until_gone(pids: [u32; 2]) {
    let start = Instant::now();
    while pids.into_iter().any(lives) {
        assert!(start.elapsed() < Duration::from_secs(10), "still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_timeout_kills_the_group_and_returns_what_was_read() {
    let start = Instant::now();
    let script = "sleep 1000 & echo $! $$; echo bad >&2; exec sleep 1000";
    let error = Command::shell(script).timeout(Duration::from_secs(1)).run().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(1000 + 1500), "{:?}", start.elapsed());
    let CommandError::TimedOut { output, .. } = &error else { panic!("{error}") };
    let pids: Vec<u32> =
        str::from_utf8(&output.stdout).unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(output.stderr, b"bad\n");
    assert_eq!(output.status.signal(), Some(libc::SIGTERM));
    until_gone([pids[0], pids[1]]).await;
}

#[tokio::test]
async fn a_timeout_that_is_ignored_ends_in_a_kill() {
    let start = Instant::now();
    let script = "trap '' TERM; echo up; while :; do sleep 1000; done";
    let command = Command::shell(script).timeout(Duration::from_millis(100));
    let error = command.output().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(100 + 1500), "{:?}", start.elapsed());
    assert_eq!(error.output().unwrap().status.signal(), Some(libc::SIGKILL));
}

#[tokio::test]
async fn a_timeout_ends_a_program_that_never_stops_writing() {
    let start = Instant::now();
    let command = Command::new("yes").timeout(Duration::from_millis(50)).grace(Duration::ZERO);
    let error = command.output().await.unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_timeout_counts_for_a_spawned_child_too() {
    let mut child = Command::new("sleep").arg("1000").timeout(Duration::from_millis(20)).spawn().unwrap();
    assert!(matches!(child.wait().await, Err(CommandError::TimedOut { .. })));
    assert_eq!(child.try_wait().unwrap().unwrap().signal(), Some(libc::SIGTERM));
    let command = Command::new("sleep").arg("1000").stdout(Stdio::piped()).timeout(Duration::from_millis(20));
    let mut child = command.spawn().unwrap();
    let items: Vec<_> = child.lines().collect().await;
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].as_ref().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn no_time_at_all_is_a_timeout() {
    let error = Command::new("sleep").arg("1000").timeout(Duration::ZERO).output().await.unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }));
    let forever = Command::new("true").timeout(Duration::MAX).grace(Duration::MAX);
    assert!(forever.status().await.unwrap().success());
}

#[tokio::test]
async fn last_words_after_sigterm_are_read() {
    let script = "trap 'head -c 1048576 /dev/zero; exit 3' TERM; echo up; while :; do sleep 0.01; done";
    let command = Command::shell(script).stdout(Stdio::piped()).timeout(Duration::from_secs(1));
    let mut child = command.grace(Duration::from_mins(1)).spawn().unwrap();
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "up");
    let error = child.communicate().await.unwrap_err();
    let output = error.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 1 << 20));
}

#[tokio::test]
async fn dropping_a_child_kills_its_group() {
    let (child, pid, grandchild) = tree("").await;
    drop(child);
    until_gone([pid, grandchild]).await;
}

#[tokio::test]
async fn dropping_a_verb_kills_its_group() {
    let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
    let script = "sleep 1000 & echo up; exec sleep 1000";
    {
        let command = Command::shell(script).stdout(write.into_blocking_fd().unwrap());
        let status = command.status();
        tokio::pin!(status);
        let mut up = [0; 3];
        tokio::select! {
            status = &mut status => panic!("{status:?}"),
            result = read.read_exact(&mut up) => { result.unwrap(); }
        }
    }
    // The end comes when neither of them holds the pipe any more.
    assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_dropped_child_with_a_grace_is_asked_first_and_killed_after_it() {
    let script = "trap 'echo last words; exit' TERM; echo up; while :; do sleep 0.01; done";
    let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
    let command = Command::shell(script).stdout(write.into_blocking_fd().unwrap()).grace(Duration::from_mins(1));
    let child = command.spawn().unwrap();
    read.read_exact(&mut [0; 3]).await.unwrap();
    drop(child);
    let mut rest = String::new();
    read.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last words\n");

    let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
    let stubborn = Command::shell("trap '' TERM; sleep 1000 & echo up; sleep 1000");
    let child = stubborn.stdout(write.into_blocking_fd().unwrap()).grace(Duration::from_millis(50)).spawn().unwrap();
    read.read_exact(&mut [0; 3]).await.unwrap();
    let start = Instant::now();
    drop(child);
    assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn the_end_of_the_runtime_leaves_the_grace_too() {
    let (mut read, write) = std::io::pipe().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let script = "trap 'echo last words >&9; exit' TERM; echo up; while :; do sleep 0.01; done";
        let command = Command::shell(script).inherit_fd(write, 9).stdout(Stdio::piped()).grace(Duration::from_mins(1));
        let mut child = command.spawn().unwrap();
        assert_eq!(child.lines().next().await.unwrap().unwrap(), "up");
        tokio::spawn(async move { child.wait().await });
    });
    drop(runtime);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut read, &mut text).unwrap();
    assert_eq!(text, "last words\n");
}

#[test]
fn the_end_of_the_runtime_kills_what_it_ran() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pids = runtime.block_on(async {
        let (mut child, pid, grandchild) = tree("").await;
        tokio::spawn(async move { child.wait().await });
        [pid, grandchild]
    });
    drop(runtime);
    let start = Instant::now();
    while pids.into_iter().any(lives) {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_child_that_is_kept_on_drop_lives_on() {
    let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
    let command = Command::shell("read line; echo $line").stdin(Stdio::piped()).kill_on_drop(false);
    let mut child = command.stdout(write.into_blocking_fd().unwrap()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child);
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"alive\n").await.unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "alive\n");
}

#[tokio::test]
async fn stop_asks_first_and_kills_after_the_grace() {
    let (mut child, _, _) = tree("").await;
    assert_eq!(child.stop(Duration::from_mins(1)).await.unwrap().signal(), Some(libc::SIGTERM));
    until_closed(&mut child).await;

    let (mut child, pid, grandchild) = tree("trap '' TERM;").await;
    assert_eq!(child.stop(Duration::from_millis(50)).await.unwrap().signal(), Some(libc::SIGKILL));
    until_gone([pid, grandchild]).await;
    // Again, and on a child that has ended.
    assert_eq!(child.stop(Duration::ZERO).await.unwrap().signal(), Some(libc::SIGKILL));
}

/// Nobody waited, so nobody saw that it was over.
#[tokio::test]
async fn a_timeout_that_is_over_counts_in_a_stop() {
    let timeout = Duration::from_millis(20);
    let mut child = Command::new("sleep").arg("1000").timeout(timeout).spawn().unwrap();
    // That this time passes is the thing under test, here and below.
    std::thread::sleep(timeout);
    let error = child.stop(Duration::from_mins(1)).await.unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");

    // It ended in time, whoever saw it: so much that it does so on a busy machine, too.
    let timeout = Duration::from_secs(1);
    let mut child = Command::new("true").timeout(timeout).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    std::thread::sleep(timeout);
    assert!(child.stop(Duration::from_mins(1)).await.unwrap().success());
}

#[tokio::test]
async fn signals_arrive_and_are_fine_after_the_end() {
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1] {
        let (mut child, _, _) = tree("").await;
        child.signal(signal).unwrap();
        assert_eq!(child.wait().await.unwrap().signal(), Some(signal));
        child.signal(signal).unwrap();
        child.terminate().unwrap();
        child.kill().unwrap();
        assert_eq!(child.signal(1000).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    let mut stopped = Command::new("sleep").arg("1000").spawn().unwrap();
    stopped.signal(libc::SIGSTOP).unwrap();
    stopped.kill().unwrap();
    assert_eq!(stopped.wait().await.unwrap().signal(), Some(libc::SIGKILL));
}

/// It came to nothing before somebody had it go on.
#[tokio::test]
async fn what_is_stopped_goes_on_to_do_as_it_is_asked() {
    let stopped = || {
        let child = Command::shell("trap 'exit 3' TERM; kill -STOP $$").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id().unwrap());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::yield_now();
        }
        child
    };
    assert_eq!(stopped().stop(Duration::from_mins(1)).await.unwrap().code(), Some(3));
    let mut child = stopped();
    child.terminate().unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn terminated_at_once_is_terminated() {
    let mut children: Vec<_> = (0..100).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    for child in &children {
        child.terminate().unwrap();
    }
    for child in &mut children {
        assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGTERM));
    }
}

#[tokio::test]
async fn reaped_whether_waited_for_or_not() {
    let children: Vec<_> = (0..20).map(|_| Command::new("true").spawn().unwrap()).collect();
    let start = Instant::now();
    // `id` is none once it is reaped, and nobody waits.
    while children.iter().any(|child| child.id().is_some()) {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
}

/// Who waits may look at the end himself, and may then not come to it.
/// Each panicked: the first runtime's clock had gone with it.
#[test]
fn what_one_runtime_has_begun_to_wait_for_goes_on_in_another() {
    const HOUR: Duration = Duration::from_hours(1);
    fn moved<T>(future: impl Future<Output = T>, then: impl FnOnce()) -> T {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut future = std::pin::pin!(future);
        let (first, second) = (runtime(), runtime());
        for _ in 0..3 {
            assert!(first.block_on(async { future.as_mut().now_or_never() }).is_none());
        }
        drop(first);
        assert!(second.block_on(async { future.as_mut().now_or_never() }).is_none());
        then();
        second.block_on(future)
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.enter();
    let child = Command::shell("trap '' TERM; echo; read line").stdin(Stdio::piped());
    let mut child = child.stdout(Stdio::piped()).timeout(HOUR).spawn().unwrap();
    let stdin = child.stdin.take();
    drop(guard);
    // It minds SIGTERM no more by then.
    runtime.block_on(child.lines().next()).unwrap().unwrap();
    assert!(moved(child.stop(HOUR), || drop(stdin)).unwrap().code().is_some());

    let (reader, writer) = std::io::pipe().unwrap();
    let output = moved(Command::new("cat").stdin(reader).timeout(HOUR).output(), || drop(writer)).unwrap();
    assert!(output.status.success());
}

#[test]
fn reaped_although_nothing_drives_the_runtime_that_waits() {
    let asleep = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().unwrap();
    let mut wait = Box::pin(child.wait());
    asleep.block_on(async {
        let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx)));
        assert!(poll.await.is_pending());
    });
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "still there");
        std::thread::yield_now();
    }
    // That runtime may even be gone.
    drop(asleep);
    let another = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(another.block_on(wait).unwrap().signal(), Some(libc::SIGKILL));
}

/// A wait that was given up, in whatever runtime, is none.
#[tokio::test]
async fn a_wait_given_up_leaves_the_end_to_others() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().unwrap();
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(1), child.wait()).await.is_err());
    }
    child.kill().unwrap();
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "still there");
        std::thread::yield_now();
    }
    assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGKILL));
}

/// What was cut off was given as all that the program had written.
#[tokio::test]
async fn more_output_than_allowed_after_a_stop_is_an_error_too() {
    let script = "trap 'exec yes' TERM; echo up; while :; do sleep 0.01; done";
    let mut child = Command::shell(script).stdout(Stdio::piped()).max_output(1000).spawn().unwrap();
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "up");
    {
        let mut stop = Box::pin(child.stop(Duration::from_mins(1)));
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(stop.as_mut().poll(cx).is_pending())).await);
    }
    let error = child.communicate().await.unwrap_err();
    assert!(matches!(error, CommandError::TooLarge { max: 1000, .. }), "{error}");
}

/// A shell that SIGTERM ends at once, and what it waits for, which cleans up when the shell is gone.
fn outlived(and: &str) -> Command {
    Command::shell(format!("(trap '{and}' TERM; echo up; while :; do sleep 0.01; done); true"))
}

const CLEAN_UP: &str = "while kill -0 $$ 2>&-; do :; done; echo cleaned; exit";

/// What else there was of the group was killed as soon as its leader had ended.
#[tokio::test]
async fn the_grace_is_the_whole_groups() {
    if !has_group_signals() {
        return;
    }
    let patient = || outlived(CLEAN_UP).grace(Duration::from_mins(1));
    // Of a timeout.
    let mut child = patient().stdout(Stdio::piped()).timeout(Duration::from_millis(100)).spawn().unwrap();
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "up");
    let error = child.communicate().await.unwrap_err();
    let CommandError::TimedOut { output, .. } = error else { panic!("{error}") };
    assert_eq!((&*output.stdout, output.status.signal()), (&b"cleaned\n"[..], Some(libc::SIGTERM)));
    // Of a stop, and of a drop.
    for is_dropped in [false, true] {
        let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
        let mut child = patient().stdout(write.into_blocking_fd().unwrap()).spawn().unwrap();
        read.read_exact(&mut [0; 3]).await.unwrap();
        if is_dropped {
            drop(child);
        } else {
            assert_eq!(child.stop(Duration::from_mins(1)).await.unwrap().signal(), Some(libc::SIGTERM));
            assert_eq!(child.id(), None);
        }
        let mut rest = String::new();
        read.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cleaned\n");
    }
}

#[tokio::test]
async fn the_grace_of_a_group_has_an_end() {
    if !has_group_signals() {
        return;
    }
    for is_dropped in [false, true] {
        let grace = Duration::from_millis(50);
        let (write, mut read) = tokio::net::unix::pipe::pipe().unwrap();
        let command = outlived("").stdout(write.into_blocking_fd().unwrap()).grace(grace);
        let mut child = command.spawn().unwrap();
        read.read_exact(&mut [0; 3]).await.unwrap();
        let start = Instant::now();
        if is_dropped {
            drop(child);
        } else {
            assert_eq!(child.stop(grace).await.unwrap().signal(), Some(libc::SIGTERM));
        }
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(start.elapsed() >= grace, "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_stop_that_was_dropped_kills_after_its_grace_all_the_same() {
    if !has_group_signals() {
        return;
    }
    let mut child = outlived("").stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "up");
    assert!(child.stop(Duration::from_millis(50)).now_or_never().is_none());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nobody kills it");
        tokio::task::yield_now().await;
    };
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    assert_eq!(child.id(), None);
}

#[tokio::test]
async fn what_a_program_left_running_has_its_time_once_however_often_somebody_begins_to_read() {
    let mut child = Command::shell("setsid sleep 1000 & echo $!").stdout(Stdio::piped()).spawn().unwrap();
    let mut begun = 0;
    let output = loop {
        begun += 1;
        assert!(begun < 100, "each time it has its time anew");
        tokio::select! {
            output = child.communicate() => break output.unwrap(),
            // Sooner than that time is over, which is the thing under test.
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    };
    let left = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
}
