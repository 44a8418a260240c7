//! A typed channel to another program: `Command::duplex` here, `from_parent` there.
//!
//! The other program is this test, run again.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt as _;
use multiproc::{Command, Duplex, ParentError, SendError, Sender, channel, from_parent};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

const MARK: &str = "CHILD_DUPLEX_TEST";

/// This test, to be run as the other program.
fn other(test: &str) -> Command {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .stdout(Stdio::null())
}

fn is_other() -> bool {
    std::env::var_os(MARK).is_some()
}

#[tokio::test]
async fn messages_go_both_ways_until_this_end_is_dropped() {
    if is_other() {
        let mut parent: Duplex<String, u32> = from_parent().unwrap();
        while let Some(number) = parent.recv().await.unwrap() {
            parent.send(format!("{number}!")).await.unwrap();
        }
        return;
    }
    let (program, mut ours) = other("messages_go_both_ways_until_this_end_is_dropped").duplex::<u32, String>().unwrap();
    // What is sent before there is a program waits for it.
    ours.send(1).await.unwrap();
    let mut child = program.spawn().unwrap();
    ours.send(2).await.unwrap();
    assert_eq!(ours.recv().await.unwrap().as_deref(), Some("1!"));
    assert_eq!(ours.recv().await.unwrap().as_deref(), Some("2!"));
    drop(ours);
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn ends_of_channels_travel_in_messages_and_stdin_is_empty_afterwards() {
    if is_other() {
        let mut parent: Duplex<u8, Sender<String>> = from_parent().unwrap();
        let texts = parent.blocking_recv().unwrap().unwrap();
        assert_eq!(std::io::stdin().read(&mut [0]).unwrap(), 0);
        texts.blocking_send("through a channel that came in a message".into()).unwrap();
        return;
    }
    let (program, ours) = other("ends_of_channels_travel_in_messages_and_stdin_is_empty_afterwards")
        .duplex::<Sender<String>, u8>()
        .unwrap();
    let (sender, mut receiver) = channel().unwrap();
    ours.send(sender).await.unwrap();
    let status = program.status();
    let (status, text) = tokio::join!(status, receiver.recv());
    assert!(status.unwrap().success());
    assert_eq!(text.unwrap().as_deref(), Some("through a channel that came in a message"));
}

#[tokio::test]
async fn it_is_taken_once() {
    if is_other() {
        let parent = from_parent::<bool, ()>().unwrap();
        let again = from_parent::<bool, ()>();
        parent.send(matches!(again, Err(ParentError::Taken))).await.unwrap();
        return;
    }
    let (program, mut ours) = other("it_is_taken_once").duplex::<(), bool>().unwrap();
    let mut child = program.spawn().unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(true));
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_program_that_was_started_without_it_gets_an_error_that_says_so_and_keeps_its_stdin() {
    const NAME: &str = "a_program_that_was_started_without_it_gets_an_error_that_says_so_and_keeps_its_stdin";
    if is_other() {
        let error = from_parent::<(), ()>().unwrap_err();
        assert!(matches!(error, ParentError::NotConnected), "{error:?}");
        assert!(error.to_string().contains("Command::duplex"), "{error}");
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        assert_eq!(text, std::env::var("EXPECTED").unwrap());
        return;
    }
    assert!(other(NAME).env("EXPECTED", "").stdin(Stdio::null()).status().await.unwrap().success());
    assert!(other(NAME).env("EXPECTED", "text").input("text").status().await.unwrap().success());
    // A socket alone is not enough, whatever lies in it.
    let text = "a stream that means nothing to this library, and which is longer than a header";
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut ours, text.as_bytes()).unwrap();
    drop(ours);
    let status = other(NAME).env("EXPECTED", text).stdin(OwnedFd::from(theirs)).status().await.unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_parent_of_another_version_is_named_as_such() {
    if is_other() {
        let error = from_parent::<(), ()>().unwrap_err();
        assert!(matches!(error, ParentError::OtherVersion { theirs: 9, ours: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("version 9"), "{error}");
        return;
    }
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // A greeting, but for its version.
    std::io::Write::write_all(&mut ours, &[0, 0, 0, 0, 9, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let other = other("a_parent_of_another_version_is_named_as_such");
    assert!(other.stdin(OwnedFd::from(theirs)).status().await.unwrap().success());
}

#[tokio::test]
async fn a_program_that_does_not_take_it_is_the_end_of_it() {
    let (program, mut ours) = Command::new("true").duplex::<u32, u32>().unwrap();
    ours.send(1).await.unwrap();
    assert!(program.status().await.unwrap().success());
    assert_eq!(ours.recv().await.unwrap(), None);
    assert!(matches!(ours.send(2).await, Err(SendError::Closed)));

    let (program, mut ours) = Command::new("/no/such/program").duplex::<u32, u32>().unwrap();
    program.status().await.unwrap_err();
    assert_eq!(ours.recv().await.unwrap(), None);

    let (program, mut ours) = Command::new("true").duplex::<u32, u32>().unwrap();
    drop(program);
    assert_eq!(ours.recv().await.unwrap(), None);
}

#[tokio::test]
async fn a_killed_program_is_the_end_of_it() {
    if is_other() {
        let parent = from_parent::<u32, ()>().unwrap();
        parent.send(std::process::id()).await.unwrap();
        std::future::pending::<()>().await;
    }
    let (program, mut ours) = other("a_killed_program_is_the_end_of_it").duplex::<(), u32>().unwrap();
    let child = program.spawn().unwrap();
    assert_eq!(ours.recv().await.unwrap(), child.id());
    drop(child);
    assert_eq!(ours.recv().await.unwrap(), None);
}

#[tokio::test]
async fn it_belongs_to_the_first_of_a_pipeline_and_other_pipes_stay_free() {
    if is_other() {
        let mut parent = from_parent::<(), String>().unwrap();
        while let Some(line) = parent.blocking_recv().unwrap() {
            eprintln!("{line}");
        }
        return;
    }
    let other = other("it_belongs_to_the_first_of_a_pipeline_and_other_pipes_stay_free");
    let (program, ours) = other.stderr(Stdio::piped()).duplex::<String, ()>().unwrap();
    let mut child = program.spawn().unwrap();
    ours.send("heard".into()).await.unwrap();
    drop(ours);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "heard\n");

    let (program, ours) = Command::new("true").duplex::<(), ()>().unwrap();
    let refused = Command::new("true").pipe(program).status().await.unwrap_err();
    assert!(refused.to_string().contains("another stdin"), "{refused}");
    drop(ours);
}

/// The daemon, which has left the group and is not killed, kept the socket open for as long as it lived.
#[tokio::test]
async fn the_end_of_the_program_is_the_end_of_it_also_where_a_daemon_has_it() {
    const NAME: &str = "the_end_of_the_program_is_the_end_of_it_also_where_a_daemon_has_it";
    if is_other() {
        let mut parent: Duplex<u32, u32> = from_parent().unwrap();
        let number = parent.blocking_recv().unwrap().unwrap();
        parent.blocking_send(number + 1).unwrap();
        return;
    }
    // It says its number, and has left the group by then.
    let daemon = "setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' <&3";
    let test = format!("\"$0\" --exact {NAME} --nocapture <&3 >/dev/null");
    let program = |script: &str| {
        let exe = std::env::current_exe().unwrap();
        Command::shell(format!("exec 3<&0; {script}")).arg(exe).env(MARK, NAME).stdout(Stdio::piped())
    };
    let (command, mut ours) = program(&format!("{daemon} & {test}")).duplex::<u32, u32>().unwrap();
    let mut child = command.spawn().unwrap();
    let daemon: i32 = child.lines().next().await.unwrap().unwrap().parse().unwrap();
    ours.send(1).await.unwrap();
    assert!(child.wait().await.unwrap().success());
    // What it has sent before its end is there.
    assert_eq!(ours.recv().await.unwrap(), Some(2));
    let end = tokio::time::timeout(Duration::from_secs(20), ours.recv()).await;
    let sent = ours.send(3).await;
    let daemon = Pid::from_raw(daemon).unwrap();
    kill_process(daemon, Signal::KILL).expect("the daemon lives");
    assert_eq!(end.expect("the end").unwrap(), None);
    assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");

    // What it may leave running keeps it.
    let command = program(&format!("{test} &")).stdout(Stdio::null()).kill_on_drop(false);
    let (command, mut ours) = command.duplex::<u32, u32>().unwrap();
    assert!(command.spawn().unwrap().wait().await.unwrap().success());
    ours.send(1).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(2));
    assert_eq!(ours.recv().await.unwrap(), None);
}
