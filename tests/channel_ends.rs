//! Channels: what is sent arrives, and ends are told apart from deaths.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::future::Future;
use std::task::{Context, Waker};

use futures::{SinkExt, StreamExt as _};
use multiproc::{Receiver, RecvError, SendError, Sender, channel, duplex, spawn_process, task};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

#[tokio::test]
async fn three_sends_are_three_receives_and_then_the_end() {
    let (tx, mut rx) = channel().unwrap();
    for text in ["a", "", "c"] {
        tx.send(text.to_owned()).await.unwrap();
    }
    drop(tx);
    for text in ["a", "", "c"] {
        assert_eq!(rx.recv().await.unwrap(), Some(text.to_owned()));
    }
    for _ in 0..3 {
        assert_eq!(rx.recv().await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_empty_message_and_one_of_16_mib_arrive() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    let large: Vec<u8> = (0..16 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let send = async {
        tx.send(Vec::new()).await.unwrap();
        tx.send(large.clone()).await.unwrap();
        tx.send(vec![7]).await.unwrap();
    };
    let receive = async {
        assert_eq!(rx.recv().await.unwrap(), Some(Vec::new()));
        assert!(rx.recv().await.unwrap().unwrap() == large);
        assert_eq!(rx.recv().await.unwrap(), Some(vec![7]));
    };
    tokio::join!(send, receive);

    let (tx, mut rx) = channel::<()>().unwrap();
    tx.send(()).await.unwrap();
    drop(tx);
    assert_eq!(rx.recv().await.unwrap(), Some(()));
    assert_eq!(rx.recv().await.unwrap(), None);
}

#[test]
fn it_needs_no_runtime() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    let writer = std::thread::spawn(move || {
        for n in 0..100 {
            tx.blocking_send(vec![n; 100_000]).unwrap();
        }
    });
    for n in 0..100 {
        assert_eq!(rx.blocking_recv().unwrap(), Some(vec![n; 100_000]));
    }
    assert_eq!(rx.blocking_recv().unwrap(), None);
    writer.join().unwrap();
}

#[test]
fn ends_work_in_one_runtime_after_another() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (tx, mut rx) = channel().unwrap();
    for n in 0..5 {
        runtime().block_on(async {
            // It waits for a moment, so it is registered here.
            tokio::join!(rx.recv(), async { tx.send(n).await.unwrap() }).0.unwrap();
        });
    }
    tx.blocking_send(5).unwrap();
    assert_eq!(rx.blocking_recv().unwrap(), Some(5));
}

#[tokio::test]
async fn sending_to_a_closed_receiver_is_an_error_and_no_signal() {
    let (tx, rx) = channel().unwrap();
    drop(rx);
    for _ in 0..2 {
        assert!(matches!(tx.send(1).await, Err(SendError::Closed)));
        assert!(matches!(tx.blocking_send(1), Err(SendError::Closed)));
    }
}

#[tokio::test]
async fn a_send_that_waits_is_told_when_the_receiver_goes() {
    let (tx, rx) = channel().unwrap();
    let mut send = Box::pin(tx.send(vec![0u8; 8 << 20]));
    assert!(send.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut behind = Box::pin(tx.send(vec![0u8; 8]));
    assert!(behind.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(rx);
    assert!(matches!(send.await, Err(SendError::Closed)));
    assert!(matches!(behind.await, Err(SendError::Closed)));
}

#[tokio::test]
async fn both_directions_of_a_duplex_work_at_once() {
    let (mut ours, mut theirs) = duplex::<u32, String>().unwrap();
    for n in 0..100 {
        ours.send(n).await.unwrap();
        theirs.send(n.to_string()).await.unwrap();
    }
    for n in 0..100 {
        assert_eq!(theirs.recv().await.unwrap(), Some(n));
        assert_eq!(ours.recv().await.unwrap(), Some(n.to_string()));
    }
    drop(ours);
    assert_eq!(theirs.recv().await.unwrap(), None);
    assert!(matches!(theirs.send(String::new()).await, Err(SendError::Closed)));
}

#[tokio::test]
async fn a_duplex_that_is_closed_for_sending_still_receives() {
    let (mut ours, mut theirs) = duplex::<u32, u32>().unwrap();
    ours.send(1).await.unwrap();
    SinkExt::close(&mut ours).await.unwrap();
    assert!(matches!(ours.send(2).await, Err(SendError::Closed)));
    assert_eq!(theirs.recv().await.unwrap(), Some(1));
    assert_eq!(theirs.recv().await.unwrap(), None);
    theirs.send(3).await.unwrap();
    assert_eq!(ours.recv().await.unwrap(), Some(3));
}

#[tokio::test]
async fn they_are_sinks_and_streams() {
    let (mut tx, rx) = channel().unwrap();
    let send = async {
        tx.send_all(&mut futures::stream::iter((0..10_000u64).map(Ok))).await.unwrap();
        SinkExt::close(&mut tx).await.unwrap();
        assert!(matches!(tx.feed(0).await, Err(SendError::Closed)));
    };
    let receive = rx.map(Result::unwrap).collect::<Vec<_>>();
    let (received, ()) = tokio::join!(receive, send);
    assert_eq!(received, (0..10_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_only_fed_is_sent_when_the_sender_is_dropped() {
    let (mut tx, mut rx) = channel().unwrap();
    tx.feed(1).await.unwrap();
    drop(tx);
    assert_eq!(rx.recv().await.unwrap(), Some(1));
    assert_eq!(rx.recv().await.unwrap(), None);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_both_sides() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    let tx = tx.max_message(1000);
    match tx.send(vec![0; 1000]).await {
        Err(SendError::TooLarge { len, max: 1000 }) => assert!(len > 1000),
        other => panic!("{other:?}"),
    }
    tx.send(vec![1; 10]).await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), Some(vec![1; 10]), "the channel goes on");

    let mut rx = rx.max_message(100);
    tx.send(vec![0; 500]).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(rx.recv().await, Err(RecvError::TooLarge { len: 502, max: 100 })));
    }
    assert!(rx.next().await.unwrap().is_err());
    assert!(rx.next().await.is_none(), "the stream ends after it");
}

#[derive(Debug)]
struct Fussy;

impl Serialize for Fussy {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not today"))
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_encoded_is_the_senders_error() {
    let (tx, rx) = channel::<Fussy>().unwrap();
    for _ in 0..2 {
        let error = tx.send(Fussy).await.unwrap_err();
        assert!(matches!(error, SendError::Encode(_)), "{error:?}");
    }
    drop(rx);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Even(#[serde(deserialize_with = "even")] u32);

fn even<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let n = u32::deserialize(deserializer)?;
    if n % 2 == 0 { Ok(n) } else { Err(serde::de::Error::custom("odd")) }
}

#[tokio::test]
async fn one_undecodable_message_is_an_error_and_the_next_is_fine() {
    let (tx, mut rx) = channel().unwrap();
    for n in 0..4 {
        tx.send(Even(n)).await.unwrap();
    }
    drop(tx);
    assert_eq!(rx.recv().await.unwrap(), Some(Even(0)));
    assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
    assert_eq!(rx.recv().await.unwrap(), Some(Even(2)));
    assert!(matches!(rx.next().await, Some(Err(RecvError::Decode(_)))));
    assert!(rx.next().await.is_none());
}

fn writer(tx: Sender<char>) {
    for letter in ['A', 'B', 'C'] {
        tx.blocking_send(letter).unwrap();
    }
}

fn reader(mut rx: Receiver<char>, printed: Sender<char>) {
    while let Some(letter) = rx.blocking_recv().unwrap() {
        printed.blocking_send(letter).unwrap();
    }
}

/// The sender stays open here, so the reader never sees the end.
#[tokio::test]
async fn the_tutorials_pair_a_writer_is_joined_and_an_endless_reader_terminated() {
    use std::os::unix::process::ExitStatusExt as _;
    let (mut relay, rx) = channel().unwrap();
    let (tx, mut from_writer) = channel().unwrap();
    let (printed, mut seen) = channel().unwrap();
    let mut reader = spawn_process(task!(reader(rx, printed))).await.unwrap();
    let writer = spawn_process(task!(writer(tx))).await.unwrap();
    writer.join().await.unwrap();
    relay.send_all(&mut (&mut from_writer).map(Result::unwrap).map(Ok)).await.unwrap();
    for letter in ['A', 'B', 'C'] {
        assert_eq!(seen.recv().await.unwrap(), Some(letter));
    }
    reader.terminate().unwrap();
    assert_eq!(reader.wait().await.unwrap().signal(), Some(15));
    assert_eq!(seen.recv().await.unwrap(), None);
    assert!(matches!(relay.send('D').await, Err(SendError::Closed)));
}
