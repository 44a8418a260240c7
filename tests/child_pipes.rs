//! Pipes: no order of reading and writing blocks, nothing is lost, and memory stays bounded.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use multiproc::{Child, Command, CommandError};
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

const MIB: usize = 1 << 20;

fn pattern(len: usize) -> Bytes {
    (0..251).cycle().take(len).collect()
}

fn piped(script: &str) -> Command {
    Command::shell(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

#[tokio::test]
async fn a_mebibyte_on_all_three_pipes_is_no_deadlock() {
    // stderr is filled before stdin is read.
    let script = "head -c 1048576 /dev/zero >&2; cat";
    let output = Command::shell(script).input(pattern(MIB)).output().await.unwrap();
    assert!(output.stdout == pattern(MIB));
    assert!(output.stderr == vec![0; MIB]);
}

#[tokio::test]
async fn every_order_of_using_three_pipes_works() {
    const LEN: usize = 256 << 10;
    let steps = ["cat >/dev/null", "head -c 262144 /dev/zero", "head -c 262144 /dev/zero >&2"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let script = order.map(|step| steps[step]).join("; ");
        let output = Command::shell(&script).input(pattern(LEN)).output().await.unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (LEN, LEN), "{script}");
    }
}

#[tokio::test]
async fn input_that_nobody_reads_is_no_error() {
    assert!(Command::new("true").input(pattern(MIB)).output().await.unwrap().status.success());
    assert!(Command::shell("exec <&-; exit 0").input(pattern(MIB)).status().await.unwrap().success());
    let mut child = Command::new("true").input(pattern(MIB)).spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn input_can_come_from_a_reader() {
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, &pattern(MIB)).unwrap();
    std::io::Seek::rewind(&mut &file).unwrap();
    let output = Command::new("cat").input_from(tokio::fs::File::from_std(file)).output().await.unwrap();
    assert!(output.stdout == pattern(MIB));
    // One that never ends, to a program that has read enough.
    let endless = tokio::io::repeat(b'x');
    assert_eq!(Command::new("head").args(["-c", "5"]).input_from(endless).read().await.unwrap(), "xxxxx");
    // The output of another child.
    let mut first = Command::new("echo").arg("through").stdout(Stdio::piped()).spawn().unwrap();
    let stdout = first.stdout.take().unwrap();
    assert_eq!(Command::new("cat").input_from(stdout).read().await.unwrap(), "through");
}

/// Always has more, a little slower than who takes it; so much is left.
struct Slow(Arc<AtomicU32>);

impl AsyncRead for Slow {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(200) {
                std::hint::spin_loop();
            }
            buf.put_slice(b"more\n");
        }
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_input_that_always_has_more_keeps_nothing_else_waiting() {
    // Some ten seconds for each.
    let left = [(); 3].map(|()| Arc::new(AtomicU32::new(50_000)));
    let fed = |script, number: usize| Command::shell(script).input_from(Slow(Arc::clone(&left[number])));
    let taken = fed("trap '' TERM; while read line; do :; done", 0).timeout(Duration::from_millis(100));
    let error = taken.grace(Duration::from_millis(50)).status().await.unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    let error = fed("exec cat", 1).max_output(100).output().await.unwrap_err();
    assert!(matches!(error, CommandError::TooLarge { .. }), "{error}");
    let mut child = fed("exec cat", 2).stdout(Stdio::piped()).spawn().unwrap();
    // Others have their turn.
    let ticks = async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = child.wait() => panic!("it has been fed all"),
        () = ticks => {}
    }
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "more");
    assert!(left.iter().all(|left| left.load(Ordering::Relaxed) > 0), "first all was fed");
}

/// Gives one line, if any, and then fails each time it is read, as a connection does that was reset.
struct Broken(Option<&'static [u8]>);

impl AsyncRead for Broken {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let line = self.0.take().ok_or(std::io::ErrorKind::ConnectionReset)?;
        buf.put_slice(line);
        Poll::Ready(Ok(()))
    }
}

fn is_reset<T>(result: Result<T, CommandError>) -> bool {
    matches!(result, Err(CommandError::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Whatever was asked of the child gave the error again and again: it could not be waited for, stopped, or read.
#[tokio::test]
async fn an_input_that_fails_is_told_once_and_the_rest_goes_on() {
    let fed = |script| Command::shell(script).input_from(Broken(Some(b"half\n")));
    assert!(is_reset(fed("exec cat").output().await));

    let mut child = fed("cat >/dev/null; exit 3").spawn().unwrap();
    assert!(is_reset(child.wait().await));
    assert_eq!(child.wait().await.unwrap().code(), Some(3));

    let mut child = fed("cat; echo end; exit 3").stdout(Stdio::piped()).spawn().unwrap();
    assert!(is_reset(child.communicate().await));
    let output = child.communicate().await.unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"half\nend\n"[..]));

    let mut child = fed("cat; echo end").stdout(Stdio::piped()).spawn().unwrap();
    let items: Vec<_> = child.lines().collect().await;
    assert_eq!(items.len(), 1);
    assert!(items[0].is_err());
    let lines: Vec<_> = child.lines().map(Result::unwrap).collect().await;
    assert_eq!(lines, ["half", "end"]);

    let mut child = Command::new("sleep").arg("1000").input_from(Broken(None)).spawn().unwrap();
    assert!(is_reset(child.stop(Duration::from_mins(1)).await));
    assert_eq!(child.stop(Duration::from_mins(1)).await.unwrap().signal(), Some(libc::SIGTERM));

    let sleep = Command::new("sleep").arg("1000").timeout(Duration::from_millis(20));
    let mut child = sleep.input_from(Broken(None)).spawn().unwrap();
    assert!(is_reset(child.wait().await));
    assert!(matches!(child.wait().await, Err(CommandError::TimedOut { .. })));
}

#[tokio::test]
async fn half_an_input_is_not_taken_for_all_of_it_if_the_program_is_killed_at_the_error() {
    let mut child = Command::shell("cat; echo end").input_from(Broken(None)).stdout(Stdio::piped()).spawn().unwrap();
    assert!(is_reset(child.communicate().await));
    child.kill().unwrap();
    let output = child.communicate().await.unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGKILL));
    assert!(!output.stdout.ends_with(b"end\n"));
}

#[tokio::test]
async fn communicate_can_be_cancelled_anywhere_and_goes_on() {
    let input = pattern(MIB);
    let mut child =
        Command::shell("tee /dev/stderr").input(input.clone()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child = child.grace(Duration::ZERO);
    let mut child = child.spawn().unwrap();
    let mut cancelled = 0;
    let output = loop {
        // One poll, then it is dropped.
        let communicate = child.communicate();
        tokio::select! {
            biased;
            output = communicate => break output.unwrap(),
            () = tokio::task::yield_now() => cancelled += 1,
        }
    };
    assert!(cancelled > 0);
    assert!(output.stdout == input && output.stderr == input);
    // Once it is over, it is over.
    assert_eq!(child.communicate().await.unwrap().stdout, b"");
}

#[tokio::test]
async fn waiting_does_not_depend_on_pipes_and_can_be_cancelled() {
    let mut child = piped("read line; echo $line; exit 9").spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for _ in 0..10 {
        tokio::select! {
            biased;
            _ = child.wait() => panic!("it still reads"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.id().is_some());
    stdin.write_all(b"hello\n").await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(9));
    assert_eq!(child.wait().await.unwrap().code(), Some(9));
    assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(9));
    assert_eq!(child.id(), None);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello\n");
}

/// The child's stdout, to write into it as the child does in packet mode; made wider.
fn packets(child: &Child) -> File {
    let path = format!("/proc/{}/fd/1", child.id().unwrap());
    let stdout = File::options().write(true).open(path).unwrap();
    rustix::pipe::fcntl_setpipe_size(&stdout, MIB).unwrap();
    rustix::fs::fcntl_setfl(&stdout, OFlags::DIRECT | OFlags::NONBLOCK).unwrap();
    stdout
}

/// A program that has ended, whose pipe is looked at long after that, and then for the first time.
async fn ended_long_ago(mut child: Child) -> Child {
    child.stdin = None;
    assert!(child.wait().await.unwrap().success());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    child
}

/// Of hundreds of packets the first 32 were read, and the rest was lost without an error.
#[tokio::test]
async fn many_packets_that_a_program_leaves_in_its_pipe_are_read_also_later() {
    async fn left() -> (Child, usize) {
        let child = piped("read line; exit 0").spawn().unwrap();
        let (mut stdout, mut count) = (packets(&child), 0);
        // As many as it takes, which is one a page.
        while stdout.write_all(b"packet\n").is_ok() {
            count += 1;
        }
        drop(stdout);
        (ended_long_ago(child).await, count)
    }
    let (mut child, count) = left().await;
    assert_eq!(child.communicate().await.unwrap().stdout.len(), count * b"packet\n".len());
    let (mut child, count) = left().await;
    assert_eq!(child.lines().count().await, count);
    let (mut child, count) = left().await;
    assert_eq!(child.tagged_lines().count().await, count);
}

#[tokio::test]
async fn packets_without_end_from_what_a_program_left_running_hold_nobody_up() {
    let child = piped("read line; exit 0").spawn().unwrap();
    let mut stdout = packets(&child);
    rustix::fs::fcntl_setfl(&stdout, OFlags::DIRECT).unwrap();
    let writes = std::thread::spawn(move || while stdout.write_all(b"x").is_ok() {});
    let output = ended_long_ago(child).await.communicate().await.unwrap();
    assert!(output.status.success());
    writes.join().unwrap();
}

#[tokio::test]
async fn shutting_stdin_down_is_the_end_of_input() {
    let mut child = piped("cat").spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"all").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(stdin.write(b"more").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "all");
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let mut child = Command::new("cat").arg("/dev/zero").stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // What the kernel says that it has written: it stops at what the pipe holds and what was read.
    let written = |pid: u32| {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<usize>().unwrap()
    };
    let pid = child.id().unwrap();
    let mut read = 0;
    let mut buf = vec![0; 4096];
    for _ in 0..200 {
        read += stdout.read(&mut buf).await.unwrap();
        assert!(written(pid) <= read + (256 << 10));
    }
}

#[tokio::test]
async fn dropping_stdout_ends_its_writer() {
    let mut child = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    child.stdout = None;
    assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGPIPE));
}

#[tokio::test]
async fn a_pipe_can_be_handed_on() {
    let mut first = Command::new("echo").arg("through").stdout(Stdio::piped()).spawn().unwrap();
    let stdout = first.stdout.take().unwrap().into_owned_fd().unwrap();
    assert_eq!(Command::new("cat").stdin(stdout).read().await.unwrap(), "through");
    assert!(first.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_status_wanted_alone_does_not_wait_for_a_reader() {
    let command = Command::shell("head -c 1048576 /dev/zero; exit 4").stdout(Stdio::piped());
    assert_eq!(command.status().await.unwrap().code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_keep_apart() {
    let tasks: Vec<_> = (0..64)
        .map(|index| tokio::spawn(async move { Command::new("cat").input(format!("input {index}")).read().await }))
        .collect();
    for (index, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().unwrap(), format!("input {index}"));
    }
}
