//! Pipelines: no shell, every status kept, the first failure named.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use futures::TryStreamExt as _;
use multiproc::{Command, CommandError};

#[tokio::test]
async fn output_flows_from_one_to_the_next() {
    let pipeline = || {
        Command::new("tr").args(["a-z", "A-Z"]).input("c\nb\na\n").pipe(Command::new("sort")).pipe(Command::new("cat"))
    };
    assert_eq!(pipeline().read().await.unwrap(), "A\nB\nC");
    assert_eq!(pipeline().to_string(), "tr a-z A-Z | sort | cat");
    let mut child = pipeline().stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<_> = child.lines().try_collect().await.unwrap();
    assert_eq!(lines, ["A", "B", "C"]);
    assert!(child.wait().await.unwrap().success());
    assert_eq!(child.statuses().len(), 3);
}

#[tokio::test]
async fn large_input_goes_through_many() {
    let input = vec![7_u8; 1 << 20];
    let cat = || Command::new("cat");
    let output = cat().input(input.clone()).pipe(cat()).pipe(cat()).pipe(cat()).output().await.unwrap();
    assert!(output.stdout == input);
}

#[tokio::test]
async fn the_first_failure_is_named_and_every_status_kept() {
    let pipeline = Command::shell("echo one >&2; exit 0")
        .pipe(Command::shell("cat; echo two >&2; exit 5").arg0("second"))
        .pipe(Command::new("false"))
        .pipe(Command::new("cat"));
    let error = pipeline.run().await.unwrap_err();
    let CommandError::Failed { program, output, statuses, .. } = &error else { panic!("{error}") };
    assert_eq!(program, "/bin/sh");
    assert_eq!(output.status.code(), Some(5));
    let codes: Vec<_> = statuses.iter().map(|status| status.unwrap().code()).collect();
    assert_eq!(codes, [Some(0), Some(5), Some(1), Some(0)]);
    let stderr = str::from_utf8(&output.stderr).unwrap();
    assert!(stderr.contains("one") && stderr.contains("two"), "{stderr}");
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_failure() {
    let output = Command::new("yes").pipe(Command::new("head").args(["-n", "3"])).run().await.unwrap();
    assert_eq!(output.stdout, b"y\ny\ny\n");
    // But for the last one nobody asked to stop.
    let last = Command::new("true").pipe(Command::shell("kill -PIPE $$"));
    assert_eq!(last.status().await.unwrap().signal(), Some(libc::SIGPIPE));
}

#[tokio::test]
async fn a_member_that_cannot_start_starts_none() {
    let (mut read, write) = std::io::pipe().unwrap();
    let first = Command::new("sleep").arg("1000").stderr(write);
    let error = first.pipe(Command::new("/no/such/program")).output().await.unwrap_err();
    assert!(matches!(error, CommandError::Spawn { program, .. } if program == "/no/such/program"));
    // It ends when the first one, which holds it, is gone.
    std::io::Read::read_to_end(&mut read, &mut Vec::new()).unwrap();
}

#[tokio::test]
async fn a_timeout_ends_all_of_it() {
    let sleep = || Command::new("sleep").arg("1000");
    let error = sleep().pipe(sleep()).timeout(Duration::from_millis(50)).output().await.unwrap_err();
    assert!(matches!(error, CommandError::TimedOut { .. }));
    let mut child = sleep().pipe(sleep()).spawn().unwrap();
    assert_eq!(child.stop(Duration::from_mins(1)).await.unwrap().signal(), Some(libc::SIGTERM));
    assert!(child.statuses().iter().all(|status| status.unwrap().signal() == Some(libc::SIGTERM)));
}

#[tokio::test]
async fn stderr_of_one_member_can_flow_on() {
    let first = Command::shell("echo out; echo err >&2").stderr_to_stdout();
    assert_eq!(first.pipe(Command::new("cat")).read().await.unwrap(), "out\nerr");
}

/// The first that failed was named, which may have ended long before.
#[tokio::test]
async fn who_still_runs_is_named_for_a_timeout_and_who_writes_for_too_much_output() {
    let first_has_ended = async |child: &multiproc::Child| {
        while child.statuses()[0].is_none() {
            tokio::task::yield_now().await;
        }
    };
    let sleep = Command::new("false").pipe(Command::new("sleep").arg("1000")).timeout(Duration::from_millis(20));
    let mut child = sleep.spawn().unwrap();
    first_has_ended(&child).await;
    let CommandError::TimedOut { program, output, .. } = child.wait().await.unwrap_err() else { panic!() };
    assert_eq!((&*program, output.status.signal()), ("sleep", Some(libc::SIGTERM)));

    let yes = Command::new("false").pipe(Command::new("yes")).stdout(Stdio::piped()).max_output(1000);
    let mut child = yes.spawn().unwrap();
    first_has_ended(&child).await;
    let CommandError::TooLarge { program, output, .. } = child.communicate().await.unwrap_err() else { panic!() };
    assert_eq!((&*program, output.status.signal()), ("yes", Some(libc::SIGKILL)));
}
