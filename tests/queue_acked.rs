//! Queues with acknowledgement: whatever becomes of a consumer, its items are done by another one.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::fs::File;
use std::io::{PipeWriter, Read as _, Write as _};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use multiproc::sync::Event;
use multiproc::{AckedQueue, AckedReceiver, Fd, RecvError, SendError, Sender, channel, spawn_process, task};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Deserializer, Serialize};

mod support;

multiproc::test_support!();

/// Polls it once, and drops it.
fn now<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn items_come_in_order_and_the_end_comes_when_all_are_done() {
    let queue = AckedQueue::new();
    let mut rx = queue.receiver().unwrap();
    for n in 0..100u32 {
        queue.send(n).await.unwrap();
    }
    for n in 0..100 {
        let delivery = rx.recv().await.unwrap().unwrap();
        assert!(*delivery == n && !delivery.is_redelivered());
        delivery.ack().unwrap();
    }
    queue.finished().await;
    drop(queue);
    for _ in 0..3 {
        assert!(rx.recv().await.unwrap().is_none());
    }
}

#[test]
fn it_needs_no_runtime() {
    let queue = AckedQueue::new();
    let mut rx = queue.receiver().unwrap();
    queue.blocking_send("hello".to_owned()).unwrap();
    let delivery = rx.blocking_recv().unwrap().unwrap();
    assert_eq!(*delivery, "hello");
    delivery.ack().unwrap();
    drop(queue);
    assert!(rx.blocking_recv().unwrap().is_none());
}

#[tokio::test]
async fn what_is_dropped_without_an_ack_is_delivered_again_and_marked() {
    let queue = AckedQueue::new();
    let (mut one, mut other) = (queue.receiver().unwrap(), queue.receiver().unwrap());
    for n in 0..3u32 {
        queue.send(n).await.unwrap();
    }
    let first = one.recv().await.unwrap().unwrap();
    let second = other.recv().await.unwrap().unwrap();
    assert_eq!((*first, *second), (0, 1));
    drop(first);
    let again = one.recv().await.unwrap().unwrap();
    assert!(*again == 0 && again.is_redelivered(), "before those that were sent after it");
    again.ack().unwrap();
    second.ack().unwrap();
    let third = one.recv().await.unwrap().unwrap();
    assert!(*third == 2 && !third.is_redelivered());
    // The queue does not end while somebody may give an item back.
    drop(queue);
    drop(third);
    let third = other.recv().await.unwrap().unwrap();
    assert!(*third == 2 && third.is_redelivered());
    third.ack().unwrap();
    assert!(one.recv().await.unwrap().is_none());
    assert!(other.recv().await.unwrap().is_none());
}

#[tokio::test]
async fn a_receiver_that_goes_gives_back_what_nobody_has_looked_at_and_keeps_what_is_worked_on() {
    let queue = AckedQueue::new();
    let mut one = queue.receiver().unwrap();
    queue.send(1u32).await.unwrap();
    let delivery = one.recv().await.unwrap().unwrap();
    // Asks for the next, which comes and is not taken.
    assert!(now(one.recv()).is_pending());
    queue.send(2).await.unwrap();
    drop(one);
    let mut other = queue.receiver().unwrap();
    let second = other.recv().await.unwrap().unwrap();
    assert_eq!(*second, 2);
    second.ack().unwrap();
    delivery.ack().unwrap();
    queue.finished().await;
}

fn take_and_wait(mut rx: AckedReceiver<u32>, took: Sender<u32>) {
    while let Some(delivery) = rx.blocking_recv().unwrap() {
        if *delivery == 0 {
            delivery.ack().unwrap();
            continue;
        }
        took.blocking_send(*delivery).unwrap();
        loop {
            std::thread::park();
        }
    }
}

#[tokio::test]
async fn an_item_whose_holder_was_killed_is_delivered_again() {
    let queue = AckedQueue::new();
    let (took, mut taken) = channel().unwrap();
    let mut child = spawn_process(task!(take_and_wait(queue.receiver().unwrap(), took))).await.unwrap();
    for n in [0, 0, 7, 8] {
        queue.send(n).await.unwrap();
    }
    assert_eq!(taken.recv().await.unwrap(), Some(7));
    child.kill().unwrap();
    child.wait().await.unwrap();
    let mut rx = queue.receiver().unwrap();
    let mut delivered = Vec::new();
    for _ in 0..2 {
        let delivery = rx.recv().await.unwrap().unwrap();
        delivered.push((*delivery, delivery.is_redelivered()));
        delivery.ack().unwrap();
    }
    // The queue may hear of the death after it has answered the new receiver for the first time.
    delivered.sort_unstable();
    assert_eq!(delivered, [(7, true), (8, false)]);
    queue.finished().await;
}

async fn work(mut rx: AckedReceiver<u32>, done: multiproc::QueueSender<u32>) {
    while let Some(delivery) = rx.next().await {
        let delivery = delivery.unwrap();
        // One in ten kills its consumer the first time: before its work, or between its work and its ack.
        if *delivery % 10 == 3 && !delivery.is_redelivered() {
            std::process::abort();
        }
        done.send(*delivery).await.unwrap();
        if *delivery % 10 == 7 && !delivery.is_redelivered() {
            std::process::abort();
        }
        delivery.ack().unwrap();
    }
}

#[tokio::test]
async fn consumers_are_killed_and_nothing_is_lost() {
    const ITEMS: u32 = 100;
    let queue = AckedQueue::new();
    let (done, results) = multiproc::queue().unwrap();
    let queue = std::sync::Arc::new(queue);
    let mut consumers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (queue, done) = (std::sync::Arc::clone(&queue), done.clone());
        consumers.spawn(async move {
            loop {
                let rx = queue.receiver().unwrap();
                let child = spawn_process(task!(work(rx, done.clone()).await)).await.unwrap();
                let _ = child.join().await;
            }
        });
    }
    for n in 0..ITEMS {
        queue.send(n).await.unwrap();
    }
    queue.finished().await;
    consumers.shutdown().await;
    drop(done);
    let mut seen = std::collections::BTreeMap::new();
    while let Some(n) = results.recv().await.unwrap() {
        *seen.entry(n).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), ITEMS as usize);
    for (n, times) in seen {
        assert_eq!(times, if n % 10 == 7 { 2 } else { 1 }, "{n}");
    }
}

#[tokio::test]
async fn large_items_and_fds_are_delivered_again_too() {
    let queue = AckedQueue::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    queue.send((vec![7u8; 3 << 20], Fd::from(writer))).await.unwrap();
    for round in 0..3 {
        let mut rx: AckedReceiver<(Vec<u8>, Fd<PipeWriter>)> = queue.receiver().unwrap();
        let mut delivery = rx.recv().await.unwrap().unwrap();
        assert!(delivery.0 == vec![7; 3 << 20] && delivery.is_redelivered() == (round > 0));
        delivery.1.write_all(b"x").unwrap();
        if round == 2 {
            delivery.ack().unwrap();
        }
    }
    queue.finished().await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "xxx", "and then they are closed here");
}

#[tokio::test]
async fn a_sender_waits_while_too_many_items_wait() {
    let queue = AckedQueue::new();
    let mut sent = 0u32;
    while now(queue.send(sent)).is_ready() {
        sent += 1;
    }
    assert_eq!(sent, 1024);
    let mut rx = queue.receiver().unwrap();
    let (result, ()) = tokio::join!(queue.send(sent), async {
        rx.recv().await.unwrap().unwrap().ack().unwrap();
    });
    result.unwrap();
}

fn even<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let n: u32 = serde::Deserialize::deserialize(deserializer)?;
    if n.is_multiple_of(2) { Ok(n) } else { Err(serde::de::Error::custom("odd")) }
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Even(#[serde(deserialize_with = "even")] u32);

#[tokio::test]
async fn an_item_that_nobody_can_decode_is_an_error_once() {
    let queue = AckedQueue::new();
    let mut rx = queue.receiver().unwrap();
    queue.send(Even(1)).await.unwrap();
    queue.send(Even(2)).await.unwrap();
    assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
    let delivery = rx.recv().await.unwrap().unwrap();
    assert_eq!(delivery.0, 2);
    delivery.ack().unwrap();
    queue.finished().await;
    assert!(matches!(queue.max_message(0).send(Even(2)).await, Err(SendError::TooLarge { .. })));
}

fn make_and_exit() -> AckedReceiver<u32> {
    let queue = AckedQueue::new();
    queue.blocking_send(7).unwrap();
    let rx = queue.receiver().unwrap();
    std::mem::forget(queue);
    rx
}

#[tokio::test]
async fn a_queue_whose_process_ended_is_no_clean_end() {
    let mut rx = spawn_process(task!(make_and_exit())).await.unwrap().join().await.unwrap();
    loop {
        match rx.recv().await {
            Ok(Some(delivery)) => assert_eq!(*delivery, 7),
            Ok(None) => panic!("an end that nobody said"),
            Err(error) => {
                assert!(matches!(error, RecvError::Truncated));
                break;
            }
        }
    }
}

/// One whose second item can't be read without a panic, once.
#[derive(Debug, PartialEq, Serialize)]
struct Odd(u32);

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static PANICKED: AtomicBool = AtomicBool::new(false);
        let n = u32::deserialize(deserializer)?;
        assert!(n != 2 || PANICKED.swap(true, Ordering::Relaxed), "not yet");
        Ok(Self(n))
    }
}

#[tokio::test]
async fn an_item_whose_decoder_panics_goes_back() {
    let queue = AckedQueue::new();
    let mut rx = queue.receiver().unwrap();
    for n in 1..=3 {
        queue.send(Odd(n)).await.unwrap();
    }
    rx.recv().await.unwrap().unwrap().ack().unwrap();
    AssertUnwindSafe(rx.recv()).catch_unwind().await.unwrap_err();
    for (n, redelivered) in [(2, true), (3, false)] {
        let delivery = rx.recv().await.unwrap().unwrap();
        assert_eq!((&*delivery, delivery.is_redelivered()), (&Odd(n), redelivered));
        delivery.ack().unwrap();
    }
    queue.finished().await;
}

/// It waited for what happens next in the queue, and nothing does.
#[test]
fn an_item_that_was_asked_for_while_no_fd_was_free_comes_when_there_are_some() {
    support::alone("an_item_that_was_asked_for_while_no_fd_was_free_comes_when_there_are_some", || {
        support::block_on(async {
            let limit = Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum };
            setrlimit(Resource::Nofile, limit).unwrap();
            let null = || File::open("/dev/null");
            let (queue, witness) = (AckedQueue::new(), Event::new().unwrap());
            let mut rx = queue.receiver().unwrap();
            queue.send(Fd::from(null().unwrap())).await.unwrap();
            // The runtime's own fds for both sockets, and the thread.
            assert!(!witness.is_set().await.unwrap());
            let taken: Vec<_> = std::iter::from_fn(|| null().ok()).collect();
            let mut asks = pin!(rx.recv());
            assert!(asks.as_mut().now_or_never().is_none());
            // The same thread answers these, after it has heard that.
            for _ in 0..5 {
                assert!(!witness.is_set().await.unwrap());
            }
            drop(taken);
            let got = tokio::time::timeout(Duration::from_mins(1), asks).await.expect("it never comes");
            got.unwrap().unwrap().ack().unwrap();
        });
    });
}

/// The stream's end was taken for the queue's, so the item stayed with a receiver that was gone.
#[tokio::test]
async fn an_item_that_was_too_large_for_the_stream_goes_back_while_another_is_worked_on() {
    let queue = AckedQueue::new();
    let mut small = queue.receiver().unwrap().max_message(50);
    queue.send("a".to_owned()).await.unwrap();
    queue.send("b".repeat(100)).await.unwrap();
    let first = small.next().await.unwrap().unwrap();
    assert!(matches!(small.next().await, Some(Err(RecvError::TooLarge { len: 101, max: 50 }))));
    assert!(small.next().await.is_none());
    drop(small);
    let mut other = queue.receiver().unwrap();
    let got = tokio::time::timeout(Duration::from_mins(1), other.recv()).await.expect("it never comes");
    let second = got.unwrap().unwrap();
    assert!(second.len() == 100 && second.is_redelivered());
    second.ack().unwrap();
    first.ack().unwrap();
    queue.finished().await;
}

/// It counted as done, and was lost. The consumer has few fds, and uses them up.
async fn poor(mut rx: AckedReceiver<Fd<File>>, by_stream: bool) -> bool {
    let limit = Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let (runs, ran) = channel::<()>().unwrap();
    drop(runs);
    assert!({ ran }.recv().await.unwrap().is_none(), "the runtime has its own fds");
    let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let refused = if by_stream { rx.next().await.unwrap() } else { rx.recv().await.map(Option::unwrap) };
    assert!(matches!(&refused, Err(RecvError::Io(error)) if error.to_string().contains("it went back")), "{refused:?}");
    // Else it would come and go back for ever.
    assert!(!by_stream || rx.next().await.is_none(), "the stream goes on");
    drop(taken);
    let delivery = rx.recv().await.unwrap().unwrap();
    let is_redelivered = delivery.is_redelivered();
    delivery.ack().unwrap();
    is_redelivered
}

#[tokio::test]
async fn an_item_whose_consumer_has_no_fd_free_goes_back() {
    for by_stream in [false, true] {
        let queue = AckedQueue::new();
        let consumer = spawn_process(task!(poor(queue.receiver().unwrap(), by_stream).await)).await.unwrap();
        queue.send(Fd::from(File::open("/dev/zero").unwrap())).await.unwrap();
        assert!(consumer.join().await.unwrap());
        queue.finished().await;
    }
}

/// What became of the item could not be said any more, and the queue waited for it for good.
#[tokio::test]
async fn a_receiver_does_not_travel_while_a_delivery_of_its_own_is_out() {
    let queue = AckedQueue::<u32>::new();
    let (tx, mut moved) = channel::<AckedReceiver<u32>>().unwrap();
    queue.send(1).await.unwrap();
    queue.send(2).await.unwrap();
    for n in [1, 2] {
        let mut rx = queue.receiver().unwrap();
        let delivery = rx.recv().await.unwrap().unwrap();
        let refused = tx.send(rx).await;
        assert!(
            matches!(&refused, Err(SendError::Encode(why)) if why.to_string().contains("still out")),
            "{refused:?}"
        );
        assert_eq!(*delivery, n);
        delivery.ack().unwrap();
    }
    queue.finished().await;
    let mut rx = queue.receiver().unwrap();
    queue.send(3).await.unwrap();
    drop(rx.recv().await.unwrap().unwrap());
    tx.send(rx).await.unwrap();
    let mut rx = moved.recv().await.unwrap().unwrap();
    let delivery = rx.recv().await.unwrap().unwrap();
    assert!(*delivery == 3 && delivery.is_redelivered());
    delivery.ack().unwrap();
    queue.finished().await;
}

/// They were dropped by the thread that it waited for, and that everything else of this process waits for, too.
#[tokio::test]
async fn the_owner_of_an_items_bytes_may_wait_when_they_are_done_with() {
    for is_left in [false, true] {
        let queue = AckedQueue::<Bytes>::new();
        let mut rx = queue.receiver().unwrap();
        let event = Event::new().unwrap();
        let theirs = event.clone();
        let owner = support::Owner(vec![1; 1 << 17], move || theirs.blocking_set().unwrap());
        queue.send(Bytes::from_owner(owner)).await.unwrap();
        if is_left {
            drop(queue);
            // Its end alone is what the queue waits for.
            drop(rx);
        } else {
            rx.recv().await.unwrap().unwrap().ack().unwrap();
        }
        tokio::time::timeout(Duration::from_secs(20), event.wait()).await.expect("it waits for itself").unwrap();
    }
}

/// They were dropped while the queue was locked, and it waited for itself for good.
#[tokio::test]
async fn the_owner_of_an_items_bytes_may_use_the_queue_when_they_are_done_with_and_panic() {
    let queue = Arc::new(AckedQueue::<Bytes>::new());
    let mut rx = queue.receiver().unwrap();
    let weak = Arc::downgrade(&queue);
    let owner = support::Owner(vec![1; 1 << 17], move || {
        if let Some(queue) = weak.upgrade() {
            queue.blocking_send(Bytes::from_static(b"again")).unwrap();
        }
        panic!("not the receiver's fault");
    });
    queue.send(Bytes::from_owner(owner)).await.unwrap();
    // What comes next finds the receiver as it was.
    for len in [1 << 17, 5] {
        let got = tokio::time::timeout(Duration::from_mins(1), rx.recv()).await.expect("the queue is locked");
        let delivery = got.unwrap().unwrap();
        assert_eq!(delivery.len(), len);
        delivery.ack().unwrap();
    }
    queue.finished().await;
}
