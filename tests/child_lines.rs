//! Lines: of any length, none lost or torn, from two streams with where they came from.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::process::Stdio;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use multiproc::{Command, Source};
use tokio::io::AsyncWriteExt as _;

fn piped(script: &str) -> Command {
    Command::shell(script).stdout(Stdio::piped())
}

/// Has any time be over that a child's reader was given so far, without waiting for it.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(1)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_line_of_any_length_is_one_line() {
    let script = "head -c 70000 /dev/zero | tr '\\0' x; echo; head -c 5000000 /dev/zero | tr '\\0' y; echo; echo end";
    let lines: Vec<_> = piped(script).spawn().unwrap().lines().try_collect().await.unwrap();
    assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [70_000, 5_000_000, 3]);
}

#[tokio::test]
async fn line_ends_are_cut_and_the_last_line_needs_none() {
    let mut child = piped("printf 'unix\\ndos\\r\\n\\nrest'").spawn().unwrap();
    let lines: Vec<_> = child.lines().try_collect().await.unwrap();
    assert_eq!(lines, ["unix", "dos", "", "rest"]);
    assert!(child.wait().await.unwrap().success());
    assert_eq!(child.lines().count().await, 0);
    assert_eq!(piped("true").spawn().unwrap().lines().count().await, 0);
}

#[tokio::test]
async fn lines_of_what_was_read_to_its_end_are_none_and_no_error_also_where_there_never_were_any() {
    let mut child = piped("true").spawn().unwrap();
    for _ in 0..2 {
        assert_eq!(child.lines().count().await, 0);
    }
    let mut child = Command::new("true").stderr(Stdio::piped()).spawn().unwrap();
    child.communicate().await.unwrap();
    assert_eq!(child.tagged_lines().count().await, 0);
    assert!(child.lines().next().await.unwrap().is_err(), "its stdout never was piped");
}

#[tokio::test]
async fn a_line_that_is_not_utf_8_is_an_error_and_the_next_is_fine() {
    let mut child = piped("printf 'a\\n\\377\\nb\\n'").spawn().unwrap();
    let lines: Vec<_> = child.lines().map(|line| line.map_err(|error| error.kind())).collect().await;
    assert_eq!(lines, [Ok("a".into()), Err(ErrorKind::InvalidData), Ok("b".into())]);
}

#[tokio::test]
async fn dropping_the_stream_anywhere_loses_nothing() {
    let mut child = piped("seq 20000").spawn().unwrap();
    let mut lines = Vec::new();
    'all: loop {
        let mut stream = child.lines();
        for _ in 0..7 {
            tokio::select! {
                biased;
                line = stream.next() => match line {
                    Some(line) => lines.push(line.unwrap()),
                    None => break 'all,
                },
                () = tokio::task::yield_now() => break,
            }
        }
    }
    assert!(lines.iter().map(|line| line.parse::<usize>().unwrap()).eq(1..=20_000));
}

#[tokio::test]
async fn input_is_fed_and_stderr_collected_while_lines_are_read() {
    let input = "one line\n".repeat(100_000);
    let command = piped("head -c 1000000 /dev/zero >&2; cat").input(input).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(child.lines().count().await, 100_000);
    let output = child.communicate().await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 1_000_000));
}

#[tokio::test]
async fn what_was_not_read_as_lines_is_the_output() {
    let mut child = piped("echo one; echo two; echo three").spawn().unwrap();
    assert_eq!(child.lines().next().await.unwrap().unwrap(), "one");
    assert_eq!(child.communicate().await.unwrap().stdout, b"two\nthree\n");
}

/// The time that is left for what a program leaves running was over, and what the pipe still held was taken for the end.
#[tokio::test]
async fn lines_can_be_read_long_after_the_end() {
    let mut child = piped("echo one; echo two").spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
    later().await;
    assert_eq!(child.lines().try_collect::<Vec<_>>().await.unwrap(), ["one", "two"]);
    assert_eq!(child.communicate().await.unwrap().stdout, b"");
}

/// The end of stdout was taken for the end of both pipes, and what one of lines' small reads had left was lost.
#[tokio::test]
async fn stderr_is_collected_to_its_end_though_the_lines_end_first() {
    let mut child = piped("printf 'a\\nb\\n'; head -c 60000 /dev/zero >&2").stderr(Stdio::piped()).spawn().unwrap();
    // Then its pipes are read while they drain.
    assert!(child.wait().await.unwrap().success());
    assert_eq!(child.lines().try_collect::<Vec<_>>().await.unwrap(), ["a", "b"]);
    assert_eq!(child.communicate().await.unwrap().stderr.len(), 60_000);
}

/// Where stdout had nothing to give, what stderr still held was not read before the pipes were given up.
#[tokio::test]
async fn stderr_is_collected_to_its_end_though_its_time_is_over() {
    let script = "setsid sleep 10 2>/dev/null & head -c 60000 /dev/zero >&2";
    let mut child = piped(script).stderr(Stdio::piped()).spawn().unwrap();
    assert!(child.wait().await.unwrap().success());
    later().await;
    assert_eq!(child.lines().count().await, 0);
    assert_eq!(child.communicate().await.unwrap().stderr.len(), 60_000);
}

#[test]
fn lines_go_on_in_another_runtime() {
    for first_is_dropped in [false, true] {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let mut child = piped("echo one; read x; echo $x").stdin(Stdio::piped()).spawn().unwrap();
        first.block_on(async { assert_eq!(child.lines().next().await.unwrap().unwrap(), "one") });
        let first = Some(first).filter(|_| !first_is_dropped);
        let output = second.block_on(async {
            child.stdin.take().unwrap().write_all(b"two\n").await.unwrap();
            child.communicate().await.unwrap()
        });
        assert_eq!(output.stdout, b"two\n");
        drop(first);
    }
}

#[tokio::test]
async fn lines_of_both_streams_know_where_they_came_from() {
    // Each line is written when the one before has been seen.
    let script = "echo a; read x; echo b >&2; read x; echo c; echo d >&2";
    let mut child = piped(script).stderr(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = child.tagged_lines();
    assert_eq!(lines.next().await.unwrap().unwrap(), (Source::Stdout, "a".into()));
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\n").await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), (Source::Stderr, "b".into()));
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\n").await.unwrap();
    let mut rest: Vec<_> = lines.try_collect().await.unwrap();
    rest.sort_by_key(|(_, line)| line.clone());
    assert_eq!(rest, [(Source::Stdout, "c".into()), (Source::Stderr, "d".into())]);
}

#[tokio::test]
async fn the_end_does_not_wait_for_what_was_left_running() {
    let mut child = piped("setsid sleep 5 & echo hi").spawn().unwrap();
    let start = std::time::Instant::now();
    let lines: Vec<_> = child.lines().try_collect().await.unwrap();
    assert_eq!(lines, ["hi"]);
    assert!(start.elapsed() < std::time::Duration::from_secs(4));
}

/// With nothing that could wake who waited, it waited for as long as something held the pipe.
#[tokio::test]
async fn lines_that_are_asked_for_after_the_end_end_at_once_though_something_holds_the_pipe() {
    let mut child = piped("setsid sleep 20 & echo hi").stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(child.lines().try_collect::<Vec<_>>().await.unwrap(), ["hi"]);
    let again = async {
        for _ in 0..2 {
            assert_eq!(child.lines().count().await, 0);
            assert_eq!(child.tagged_lines().count().await, 0);
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.unwrap();
}

#[tokio::test]
async fn limits_on_lines_and_output_are_errors() {
    let mut child = piped("echo short; head -c 100000 /dev/zero").max_line(1000).spawn().unwrap();
    let lines: Vec<_> = child.lines().map(|line| line.map_err(|error| error.kind())).collect().await;
    assert_eq!(lines, [Ok("short".into()), Err(ErrorKind::InvalidData)]);
    let mut child = piped("echo short; yes").max_output(1000).spawn().unwrap();
    let last = child.lines().collect::<Vec<_>>().await.pop().unwrap().unwrap_err();
    assert_eq!(last.kind(), ErrorKind::FileTooLarge);
}

#[tokio::test]
async fn lines_without_a_pipe_are_an_error() {
    let mut child = Command::new("true").spawn().unwrap();
    let lines: Vec<_> = child.lines().collect().await;
    assert_eq!(lines.len(), 1);
    let error = lines[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("`.stdout(Stdio::piped())`"), "{error}");
}

/// It was a panic.
#[tokio::test]
async fn lines_stay_at_their_end_as_a_select_in_a_loop_needs() {
    let mut child = piped("echo one; echo two >&2").stderr(Stdio::piped()).spawn().unwrap();
    let (mut lines, mut seen, mut after) = (child.lines(), Vec::new(), 0);
    while after < 3 {
        tokio::select! {
            Some(line) = lines.next() => seen.push(line.unwrap()),
            else => after += 1,
        }
    }
    drop(lines);
    assert_eq!(seen, ["one"]);
    for both in 0..2 {
        let mut lines = child.tagged_lines();
        let first = lines.next().await.map(Result::unwrap);
        assert_eq!(first, (both == 0).then(|| (Source::Stderr, "two".into())));
        for _ in 0..3 {
            assert!(lines.next().await.is_none());
        }
    }
    let output = child.communicate().await.unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b""[..], &b""[..]), "all of it was handed out");

    let mut child = piped("echo a line that is too long; echo rest").max_line(5).spawn().unwrap();
    let mut lines = child.lines();
    assert_eq!(lines.next().await.unwrap().unwrap_err().kind(), ErrorKind::InvalidData);
    for _ in 0..3 {
        assert!(lines.next().await.is_none());
    }
    drop(lines);
    assert_eq!(child.communicate().await.unwrap().stdout, b"a line that is too long\nrest\n", "none of it was");
}

#[tokio::test]
async fn lines_that_are_there_let_other_tasks_have_a_turn() {
    let mut child = piped("seq 1000; exec sleep 1000").spawn().unwrap();
    let mut lines = child.lines();
    let mut seen = usize::from(lines.next().await.is_some());
    while seen < 1000 {
        let at_once = poll_fn(|cx| {
            let mut count = 0;
            while lines.poll_next_unpin(cx).is_ready() {
                count += 1;
            }
            Poll::Ready(count)
        });
        let at_once: usize = at_once.await;
        assert!(at_once <= 200, "{at_once} in one turn");
        seen += at_once;
        tokio::task::yield_now().await;
    }
}

/// What of a line was left when its rest was cut off was given as a line.
#[tokio::test]
async fn a_line_that_is_cut_off_is_not_handed_out() {
    for script in ["printf 'first\\n1234567890'", "printf 'first\\n12345\\303\\244'"] {
        let command = || piped(script).stderr(Stdio::piped()).max_output(12);
        let expected = |lines: &[Result<String, ErrorKind>]| {
            assert_eq!(lines, [Ok("first".into()), Err(ErrorKind::FileTooLarge)], "{script}");
        };
        let lines: Vec<_> =
            command().spawn().unwrap().lines().map(|line| line.map_err(|error| error.kind())).collect().await;
        expected(&lines);
        let mut child = command().spawn().unwrap();
        let lines: Vec<_> =
            child.tagged_lines().map(|line| line.map(|(_, line)| line).map_err(|error| error.kind())).collect().await;
        expected(&lines);
    }
    // Nor where another reason came first.
    let script = "trap 'printf 1234567890; exit' TERM; echo first; while :; do sleep 0.01; done";
    let mut child = piped(script).max_output(12).timeout(Duration::from_secs(1)).spawn().unwrap();
    let lines: Vec<_> = child.lines().map(|line| line.map_err(|error| error.kind())).collect().await;
    assert_eq!(lines, [Ok("first".into()), Err(ErrorKind::TimedOut)]);
}

#[tokio::test]
async fn a_line_end_does_not_count_for_the_longest_line() {
    // In pieces, so that half a line end is looked at.
    let script = "printf 'aaaaa\\r'; read x; printf '\\nbbbbb\\nccccc\\r\\n'; read x; printf 'ddddd\\re'";
    let mut child = piped(script).stdin(Stdio::piped()).max_line(5).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = child.lines();
    let pending = poll_fn(|cx| Poll::Ready(lines.poll_next_unpin(cx).is_pending()));
    assert!(pending.await);
    stdin.write_all(b"\n\n").await.unwrap();
    for line in ["aaaaa", "bbbbb", "ccccc"] {
        assert_eq!(lines.next().await.unwrap().unwrap(), line);
    }
    assert_eq!(lines.next().await.unwrap().unwrap_err().kind(), ErrorKind::InvalidData);
}

/// Where there was always more to read nobody looked at the clock.
#[tokio::test]
async fn its_time_and_its_end_come_although_there_is_always_another_line() {
    let begun = Instant::now();
    let mut child = piped("exec yes").timeout(Duration::from_millis(100)).spawn().unwrap();
    let error = loop {
        match child.lines().next().await.unwrap() {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20), "it has no timeout"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    // What it left running is out of reach.
    let mut child = piped("setsid yes & echo began").spawn().unwrap();
    let (begun, mut lines) = (Instant::now(), child.lines());
    while let Some(line) = lines.next().await {
        line.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "it never ends");
    }
}
