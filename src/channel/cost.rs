//! What messages cost in system calls, counted: all of it runs on this thread. Never seconds.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use futures::SinkExt as _;

use super::{Duplex, channel, duplex};
use crate::sys::socket::calls;

async fn calls(work: impl Future<Output = ()>) -> u32 {
    let before = calls::count();
    work.await;
    calls::count() - before
}

#[tokio::test]
async fn a_send_is_one_call_and_what_has_gathered_is_received_with_one() {
    let (tx, mut rx) = channel::<u64>().unwrap();
    let sent = calls(async {
        for n in 0..100 {
            tx.send(n).await.unwrap();
        }
    });
    assert_eq!(sent.await, 100);
    let received = calls(async {
        for n in 0..100 {
            assert_eq!(rx.recv().await.unwrap(), Some(n));
        }
        assert!(poll_fn(|cx| Poll::Ready(pin!(rx.recv()).poll(cx))).await.is_pending());
    });
    assert_eq!(received.await, 1);
}

#[tokio::test]
async fn fed_messages_leave_with_one_call() {
    let (mut tx, _rx) = channel::<u64>().unwrap();
    let fed = calls(async {
        for n in 0..1_000 {
            tx.feed(n).await.unwrap();
        }
        tx.flush().await.unwrap();
    });
    assert_eq!(fed.await, 1);
}

#[tokio::test]
async fn a_message_that_is_waited_for_takes_one_call_on_each_side() {
    let (mut ours, mut theirs) = duplex::<u64, u64>().unwrap();
    let mut rounds = async |count: u64| {
        for n in 0..count {
            Duplex::send(&ours, n).await.unwrap();
            assert_eq!(theirs.recv().await.unwrap(), Some(n));
            Duplex::send(&theirs, n).await.unwrap();
            assert_eq!(ours.recv().await.unwrap(), Some(n));
        }
    };
    rounds(2).await;
    assert_eq!(calls(rounds(100)).await, 400);
}
