//! What messages cost in system calls, counted: all of it runs on this thread. Never seconds.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::SinkExt as _;
use futures::future::join_all;

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

/// At once, from one task or from several: one call for all of them, or few.
#[tokio::test]
async fn sends_that_wait_together_leave_together() {
    let (tx, rx) = channel::<u64>().unwrap();
    let at_once = calls(async {
        for sent in join_all((0..1_000).map(|n| tx.send(n))).await {
            sent.unwrap();
        }
    });
    assert_eq!(at_once.await, 1);
    let two = calls(async {
        let _ = tokio::try_join!(tx.send(1), tx.send(2)).unwrap();
    });
    assert_eq!(two.await, 1);

    let tx = Arc::new(tx);
    let tasks = calls(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let tx = Arc::clone(&tx);
            tasks.spawn(async move {
                for n in 0..20 {
                    tx.send(n).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
    let count = tasks.await;
    assert!(count <= 100, "{count} calls for 1280 messages of 64 tasks");
    drop(rx);
}

/// Who sends one after the other does not wait for others, even if another task does so too, at other times.
#[tokio::test]
async fn a_send_that_gathers_nobody_is_not_put_off_often() {
    let (tx, _rx) = channel::<u64>().unwrap();
    let mut put_off = 0;
    // In turns from two tasks, as far as can be seen.
    let tasks = [(); 2].map(|()| futures::task::waker(Arc::new(Nobody(7))));
    for (n, task) in (0..120).zip(tasks.iter().cycle()) {
        let mut sending = Box::pin(tx.send(n));
        match sending.as_mut().poll(&mut Context::from_waker(task)) {
            Poll::Ready(sent) => sent.unwrap(),
            Poll::Pending => {
                put_off += 1;
                sending.await.unwrap();
            }
        }
    }
    assert!(put_off <= 120 / 16, "{put_off} were put off");
}

/// Not of size zero: two of those could have one address.
struct Nobody(#[expect(dead_code)] u8);

impl futures::task::ArcWake for Nobody {
    fn wake_by_ref(_: &Arc<Self>) {}
}

/// What has gathered counts on nobody.
#[tokio::test]
async fn a_send_that_gathered_and_is_dropped_or_kept_holds_no_other_up() {
    for kept in [false, true] {
        let (tx, mut rx) = channel::<u64>().unwrap();
        let mut first = Box::pin(tx.send(1));
        let mut second = Box::pin(tx.send(2));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(first.as_mut().poll(&mut cx).is_pending(), "it waits for the other");
        if kept {
            second.await.unwrap();
        } else {
            assert!(second.as_mut().poll(&mut cx).is_pending());
            drop(second);
        }
        assert_eq!(rx.recv().await.unwrap(), Some(1));
        assert_eq!(rx.recv().await.unwrap(), Some(2));
    }
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
