//! Channels: a peer that is killed in the middle of something, or that gives up there.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use multiproc::sync::Event;
use multiproc::{Duplex, Receiver, RecvError, SendError, Sender, channel, duplex, spawn_process, task};

mod support;

use support::proc::until_it_waits;

multiproc::test_support!();

fn some_and_then_a_large_one(tx: Sender<Vec<u8>>) {
    for n in 0..3 {
        tx.blocking_send(vec![n; 10]).unwrap();
    }
    tx.blocking_send(vec![3; 64 << 20]).unwrap();
}

#[tokio::test]
async fn a_sender_killed_in_mid_message_is_truncated_and_stays_so() {
    let (tx, mut rx) = channel().unwrap();
    let mut child = spawn_process(task!(some_and_then_a_large_one(tx))).await.unwrap();
    for n in 0..3 {
        assert_eq!(rx.recv().await.unwrap(), Some(vec![n; 10]));
    }
    // There is not so much room on the way.
    until_it_waits(child.id().unwrap()).await;
    child.kill().unwrap();
    assert_eq!(child.wait().await.unwrap().signal(), Some(9));
    for _ in 0..3 {
        assert!(matches!(rx.recv().await, Err(RecvError::Truncated)));
    }
    assert!(matches!(rx.next().await, Some(Err(RecvError::Truncated))));
    assert!(rx.next().await.is_none());
    assert!(matches!(rx.blocking_recv(), Err(RecvError::Truncated)));
}

fn one_and_wait(tx: Sender<u32>, mut forever: Receiver<()>) {
    tx.blocking_send(1).unwrap();
    let _ = forever.blocking_recv();
}

#[tokio::test]
async fn a_sender_killed_between_two_messages_is_a_clean_end() {
    let (tx, mut rx) = channel().unwrap();
    let (_hold, forever) = channel().unwrap();
    let mut child = spawn_process(task!(one_and_wait(tx, forever))).await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), Some(1));
    child.kill().unwrap();
    child.wait().await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), None);
}

fn read_one_and_wait(mut rx: Receiver<Vec<u8>>, tx: Sender<()>, mut forever: Receiver<()>) {
    rx.blocking_recv().unwrap();
    tx.blocking_send(()).unwrap();
    let _ = forever.blocking_recv();
}

#[tokio::test]
async fn a_receiver_killed_while_a_send_waits_is_closed_to_the_sender() {
    for blocking in [false, true] {
        let (tx, theirs) = channel::<Vec<u8>>().unwrap();
        let (running, mut started) = channel().unwrap();
        let (_hold, forever) = channel().unwrap();
        let mut child = spawn_process(task!(read_one_and_wait(theirs, running, forever))).await.unwrap();
        tx.send(vec![0; 10]).await.unwrap();
        started.recv().await.unwrap().unwrap();
        let sending = async {
            if blocking {
                tokio::task::spawn_blocking(move || tx.blocking_send(vec![0; 8 << 20])).await.unwrap()
            } else {
                tx.send(vec![0; 8 << 20]).await
            }
        };
        let (sent, _) = tokio::join!(sending, async {
            child.kill().unwrap();
            child.wait().await.unwrap()
        });
        assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    }
}

/// The receiver is still there, and reads no more: the sender waited for room until it was dropped.
#[tokio::test]
async fn a_receiver_that_refuses_a_message_as_too_large_is_closed_to_the_sender() {
    let (tx, rx) = channel::<Vec<u8>>().unwrap();
    let mut rx = rx.max_message(1000);
    let (sent, received) = tokio::join!(tx.send(vec![0; 8 << 20]), rx.recv());
    assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    assert!(matches!(received, Err(RecvError::TooLarge { max: 1000, .. })), "{received:?}");
    assert!(matches!(rx.recv().await, Err(RecvError::TooLarge { max: 1000, .. })), "the same again");

    let (ours, theirs) = duplex::<Vec<u8>, Vec<u8>>().unwrap();
    let (mut ours, mut theirs) = (ours, theirs.max_message(1000));
    let (sent, received) = tokio::join!(ours.send(vec![0; 8 << 20]), theirs.recv());
    assert!(matches!(sent, Err(SendError::Closed)), "{sent:?}");
    assert!(matches!(received, Err(RecvError::TooLarge { max: 1000, .. })), "{received:?}");
    theirs.send(vec![1]).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(vec![1]), "the other direction goes on");
}

/// Both owe each other more than the socket holds. The one that is dropped still sends, and receives no more; the other one
/// waited for room for ever, and never came to receive.
#[tokio::test]
async fn a_duplex_dropped_with_a_message_under_way_is_closed_to_a_peer_that_sends() {
    let (ours, mut theirs) = duplex::<Vec<u8>, Vec<u8>>().unwrap();
    let leave = async move {
        assert!(ours.send(vec![1; 8 << 20]).now_or_never().is_none());
        drop(ours);
    };
    // The send waits before the other end goes.
    let (sent, ()) = tokio::join!(biased; theirs.send(vec![2; 8 << 20]), leave);
    assert!(matches!(sent, Err(SendError::Closed)));
    assert_eq!(theirs.recv().await.unwrap(), Some(vec![1; 8 << 20]));
    assert_eq!(theirs.recv().await.unwrap(), None);
}

async fn answer(mut end: Duplex<Vec<u8>, u32>) {
    while let Some(len) = end.recv().await.unwrap() {
        end.send(vec![1; 5]).await.unwrap();
        end.send(vec![2; len as usize]).await.unwrap();
    }
}

#[tokio::test]
async fn a_duplex_peer_killed_in_mid_answer_is_truncated_to_the_reader_and_closed_to_the_sender() {
    let (mut ours, theirs) = duplex::<u32, Vec<u8>>().unwrap();
    let mut child = spawn_process(task!(answer(theirs).await)).await.unwrap();
    ours.send(64 << 20).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(vec![1; 5]));
    until_it_waits(child.id().unwrap()).await;
    child.kill().unwrap();
    child.wait().await.unwrap();
    assert!(matches!(ours.recv().await, Err(RecvError::Truncated)));
    assert!(matches!(ours.send(1).await, Err(SendError::Closed)));
}

fn echo_and_exit(mut end: Duplex<Vec<u8>, Vec<u8>>, count: u32) {
    for _ in 0..count {
        let message = end.blocking_recv().unwrap().unwrap();
        end.blocking_send(message).unwrap();
    }
    std::process::exit(0);
}

/// An exit is no death in mid-message: what was sent has left.
#[tokio::test]
async fn what_was_sent_just_before_an_exit_arrives() {
    for _ in 0..20 {
        let (mut ours, theirs) = duplex::<Vec<u8>, Vec<u8>>().unwrap();
        let child = spawn_process(task!(echo_and_exit(theirs, 3))).await.unwrap();
        for n in 0..3 {
            ours.send(vec![n; 100_000]).await.unwrap();
        }
        for n in 0..3 {
            assert!(ours.recv().await.unwrap() == Some(vec![n; 100_000]));
        }
        assert_eq!(ours.recv().await.unwrap(), None);
        drop(child);
    }
}

/// Feeds until no more is let in: the socket is full, and the end has some of its own. Then it is dropped.
async fn feed_all(mut tx: Sender<Vec<u8>>, fed: Sender<u32>) -> u32 {
    let mut count = 0;
    while let Some(result) = tx.feed(vec![1; 32_751]).now_or_never() {
        result.unwrap();
        count += 1;
    }
    drop(tx);
    fed.send(count).await.unwrap();
    count
}

/// The process exited as soon as its task had returned, and what had not left was lost; the receiver read a clean end.
#[tokio::test]
async fn a_process_whose_task_has_returned_stays_until_what_it_fed_has_left() {
    let ((tx, mut rx), (fed, mut was_fed)) = (channel::<Vec<u8>>().unwrap(), channel().unwrap());
    let child = spawn_process(task!(feed_all(tx, fed).await)).await.unwrap();
    let process = support::Other::new(child.id().unwrap());
    let count = was_fed.recv().await.unwrap().unwrap();
    // Nothing tells that it stays, so it gets far longer than an exit takes.
    assert!(!process.has_ended_within(Duration::from_millis(300)), "it has gone, and what it owed with it");
    for n in 0..count {
        assert!(rx.recv().await.unwrap().is_some(), "{n} of {count}");
    }
    assert!(rx.recv().await.unwrap().is_none());
    assert_eq!(child.join().await.unwrap(), count);
}

/// What was fed had not left, and is nowhere.
#[tokio::test]
async fn a_flush_after_the_end_of_a_peer_that_has_not_read_all_is_an_error() {
    let (mut tx, rx) = channel::<Vec<u8>>().unwrap();
    tx.feed(vec![7; 4 << 20]).await.unwrap();
    assert!(tx.flush().now_or_never().is_none(), "it is more than the socket takes");
    drop(rx);
    // Somebody has seen the end by now.
    assert!(matches!(Sender::send(&tx, Vec::new()).await, Err(SendError::Closed)));
    for _ in 0..2 {
        assert!(matches!(tx.flush().await, Err(SendError::Closed)));
        assert!(matches!(tx.close().await, Err(SendError::Closed)));
    }
}

/// Two ends of which the one has sent what filled the socket, and what that had left to a thread: which has not noticed yet, as
/// it waits for more room than there is.
async fn with_a_rest_sent_by_others() -> (Duplex<Vec<u8>, Vec<u8>>, Duplex<Vec<u8>, Vec<u8>>) {
    let (ours, mut theirs) = duplex::<Vec<u8>, Vec<u8>>().unwrap();
    let mut pending = loop {
        let mut leaving = Box::pin(ours.send(vec![7; 40_000]));
        // The first time it may let others come.
        match leaving.as_mut().now_or_never().or_else(|| leaving.as_mut().now_or_never()) {
            Some(left) => left.unwrap(),
            None => break leaving,
        }
    };
    // It is that thread which answers.
    assert!(!Event::new().unwrap().is_set().await.unwrap());
    theirs.recv().await.unwrap().unwrap();
    assert!(pending.as_mut().now_or_never().is_some(), "there is room for the rest, but not much");
    drop(pending);
    (ours, theirs)
}

async fn has_nobody_at_the_other_end(end: Duplex<Vec<u8>, Vec<u8>>) {
    let sending = async { while end.send(vec![7; 40_000]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), sending).await.expect("it waits for room");
}

/// The thread kept the socket open.
#[tokio::test]
async fn an_end_that_goes_when_others_have_sent_its_rest_takes_nothing_more() {
    let (ours, theirs) = with_a_rest_sent_by_others().await;
    drop(ours);
    has_nobody_at_the_other_end(theirs).await;
}

/// Here, too, though the end was another's by then.
#[tokio::test]
async fn an_end_that_has_moved_when_others_had_sent_its_rest_is_open_nowhere_else() {
    let (ours, theirs) = with_a_rest_sent_by_others().await;
    let (tx, mut rx) = channel().unwrap();
    tx.send(ours).await.unwrap();
    drop(rx.recv().await.unwrap().unwrap());
    has_nobody_at_the_other_end(theirs).await;
}
