//! Queues: each item goes to exactly one receiver, in order, and the end comes when all senders are gone.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures::{FutureExt as _, SinkExt, StreamExt as _};
use multiproc::{
    Client, Duplex, QueueReceiver, QueueSender, Receiver, RecvError, SendError, Sender, TryRecvError, TrySendError,
    channel, duplex, queue, serve, spawn_process, task,
};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

#[tokio::test]
async fn items_arrive_in_order_and_then_the_end() {
    let (tx, rx) = queue().unwrap();
    for text in ["a", "", "c"] {
        tx.send(text.to_owned()).await.unwrap();
    }
    drop(tx);
    for text in ["a", "", "c"] {
        assert_eq!(rx.recv().await.unwrap(), Some(text.to_owned()));
    }
    for _ in 0..3 {
        assert_eq!(rx.recv().await.unwrap(), None);
        assert!(matches!(rx.try_recv(), Err(TryRecvError::Closed)));
    }
}

#[test]
fn it_needs_no_runtime_and_items_may_be_of_no_length() {
    let (tx, rx) = queue::<()>().unwrap();
    tx.blocking_send(()).unwrap();
    drop(tx);
    assert_eq!(rx.blocking_recv().unwrap(), Some(()));
    assert_eq!(rx.blocking_recv().unwrap(), None);
}

fn item(len: usize) -> Vec<u8> {
    (0..len).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect()
}

#[tokio::test]
async fn items_of_every_size_arrive_and_large_ones_wait_for_the_receiver() {
    let (tx, rx) = queue::<Vec<u8>>().unwrap();
    let lens = [0, 1, 65_500, 65_515, 65_516, 65_517, 65_520, 65_536, 65_537, 1 << 20, 16 << 20, 3];
    let send = async {
        for len in lens {
            tx.send(item(len)).await.unwrap();
        }
    };
    let receive = async {
        for len in lens {
            assert!(rx.recv().await.unwrap() == Some(item(len)), "{len}");
        }
    };
    tokio::join!(send, receive);
    let mut held = 0;
    while tx.try_send(item(1 << 20)).is_ok() {
        held += 1;
        assert!(held < 10, "memory is bounded");
    }
    assert!(held > 0);
}

#[tokio::test]
async fn try_send_and_try_recv_do_not_wait() {
    let (tx, rx) = queue().unwrap();
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    let mut sent = 0u32;
    let back = loop {
        match tx.try_send(sent) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(item)) => break item,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(back, sent);
    for n in 0..sent {
        assert_eq!(rx.try_recv().unwrap(), n);
    }
    assert!(matches!(rx.try_recv(), Err(TryRecvError::Empty)));
    drop(rx);
    assert!(matches!(tx.try_send(1), Err(TrySendError::Closed(1))));
    assert!(matches!(tx.send(1).await, Err(SendError::Closed)));
    assert!(matches!(tx.blocking_send(1), Err(SendError::Closed)));
}

type Ends = (Option<Sender<u8>>, Option<Receiver<u8>>, Option<Duplex<u8, u8>>, Option<Client<u8, u8>>);

/// Encoding it moves its ends, so they refused to go on though they had gone nowhere.
#[tokio::test]
async fn an_item_that_try_send_gives_back_is_as_it_was() {
    let (tx, mut heard) = channel().unwrap();
    let (told, mut rx) = channel().unwrap();
    let (both, mut other) = duplex().unwrap();
    let (calls, called) = duplex().unwrap();
    let doubling = tokio::spawn(serve(called, |n: u8| async move { 2 * n }));
    // What is received and not yet given out stays, too.
    for n in 0..3 {
        told.send(n).await.unwrap();
    }
    assert_eq!(rx.recv().await.unwrap(), Some(0));

    let (queue_tx, queue_rx) = queue::<Ends>().unwrap();
    while queue_tx.try_send((None, None, None, None)).is_ok() {}
    let mut item = (Some(tx), Some(rx), Some(both), Some(Client::new(calls)));
    for _ in 0..2 {
        item = match queue_tx.try_send(item) {
            Err(TrySendError::Full(item)) => item,
            other => panic!("{other:?}"),
        };
    }
    let (closed, _) = queue::<Ends>().unwrap();
    item = match closed.try_send(item) {
        Err(TrySendError::Closed(item)) => item,
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        let (Some(tx), Some(rx), Some(both), Some(client)) = &mut item else { panic!("it arrives whole") };
        tx.send(7).await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), Some(7));
        let next = rx.recv().await.unwrap().unwrap();
        both.send(next).await.unwrap();
        assert_eq!(other.recv().await.unwrap(), Some(next));
        other.send(8).await.unwrap();
        assert_eq!(both.recv().await.unwrap(), Some(8));
        assert_eq!(client.call(next).await.unwrap(), 2 * next);
        if next == 1 {
            while queue_rx.try_recv().is_ok() {}
            queue_tx.try_send(item).unwrap();
            item = queue_rx.try_recv().unwrap();
        }
    }
    drop((item, told));
    doubling.await.unwrap().unwrap();
}

struct Kept(Arc<Sender<u8>>);

impl Serialize for Kept {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Sender::serialize(&self.0, serializer)
    }
}

#[tokio::test]
async fn an_end_in_an_item_that_try_send_has_sent_refuses_to_go_on() {
    let (tx, _rx) = queue().unwrap();
    let kept = Arc::new(channel().unwrap().0);
    tx.try_send(Kept(Arc::clone(&kept))).unwrap();
    assert!(matches!(kept.send(1).await, Err(SendError::Io(_))));
    assert!(matches!(tx.try_send(Kept(kept)), Err(TrySendError::Refused(SendError::Encode(_)))));
}

#[tokio::test]
async fn a_send_that_waits_is_told_when_the_last_receiver_goes() {
    let (tx, rx) = queue().unwrap();
    while tx.try_send(0).is_ok() {}
    let other = rx.clone();
    let send = async { assert!(matches!(tx.send(1).await, Err(SendError::Closed))) };
    tokio::join!(send, async {
        drop(rx);
        tokio::task::yield_now().await;
        drop(other);
    });
}

#[tokio::test]
async fn timeouts_are_tokios_and_take_nothing() {
    let (tx, rx) = queue::<u32>().unwrap();
    let moment = Duration::from_millis(5);
    assert!(tokio::time::timeout(moment, rx.recv()).await.is_err());
    let mut sent = 0;
    while tokio::time::timeout(moment, tx.send(sent)).await.is_ok() {
        sent += 1;
    }
    drop(tx);
    for n in 0..sent {
        assert_eq!(rx.recv().await.unwrap(), Some(n));
    }
    assert_eq!(rx.recv().await.unwrap(), None, "what timed out was not sent");
}

#[tokio::test]
async fn they_are_sinks_and_streams() {
    let (mut tx, rx) = queue().unwrap();
    let (one, other) = (rx.clone(), rx);
    let send = async move {
        tx.send_all(&mut futures::stream::iter((0..5_000u64).map(Ok))).await.unwrap();
        tx.close().await.unwrap();
    };
    let (one, other, ()) =
        tokio::join!(one.map(Result::unwrap).collect::<Vec<_>>(), other.map(Result::unwrap).collect::<Vec<_>>(), send);
    assert!(one.is_sorted() && other.is_sorted());
    assert_eq!(one.iter().chain(&other).copied().collect::<BTreeSet<_>>(), (0..5_000).collect());
    assert_eq!(one.len() + other.len(), 5_000);
}

/// It did nothing once, and a receiver waited for a sender that was done.
#[tokio::test]
async fn closing_a_sink_counts_as_dropping_that_sender() {
    let (mut tx, rx) = queue().unwrap();
    let mut other = tx.clone();
    tx.send(1).await.unwrap();
    SinkExt::close(&mut tx).await.unwrap();
    SinkExt::close(&mut tx).await.unwrap();
    assert!(matches!(tx.send(2).await, Err(SendError::Closed)));
    assert!(matches!(tx.feed(2).await, Err(SendError::Closed)));
    assert!(matches!(tx.clone().blocking_send(2), Err(SendError::Closed)));
    assert!(matches!(tx.try_send(2), Err(TrySendError::Closed(2))));
    other.send(3).await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), Some(1));
    assert_eq!(rx.recv().await.unwrap(), Some(3));
    SinkExt::close(&mut other).await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), None, "both senders are here, and closed");
}

/// Their wait was bound to the runtime that had polled them first, and so never ended where that one stood still.
#[test]
fn streams_and_sinks_go_on_in_another_runtime() {
    for first_is_dropped in [false, true] {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let (mut tx, mut rx) = queue::<usize>().unwrap();
        let mut fed = 0;
        first.block_on(async {
            assert!(rx.next().now_or_never().is_none());
            while tx.feed(fed).now_or_never().is_some_and(|result| result.is_ok()) {
                fed += 1;
            }
        });
        let first = Some(first).filter(|_| !first_is_dropped);
        second.block_on(async {
            let (flushed, received) = tokio::join!(tx.flush(), rx.by_ref().take(fed).collect::<Vec<_>>());
            flushed.unwrap();
            assert!(received.into_iter().map(Result::unwrap).eq(0..fed));
            assert!(rx.next().now_or_never().is_none());
            let (sent, received) = tokio::join!(SinkExt::send(&mut tx, 7), rx.next());
            sent.unwrap();
            assert_eq!(received.unwrap().unwrap(), 7);
        });
        drop(first);
    }
}

#[tokio::test]
async fn of_the_tasks_that_wait_on_one_handle_none_starves() {
    let (tx, rx) = queue::<u32>().unwrap();
    let (seen, mut order) = tokio::sync::mpsc::unbounded_channel();
    for who in 0..3 {
        let (rx, seen) = (rx.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(n) = rx.recv().await.unwrap() {
                seen.send((who, n)).unwrap();
            }
        });
    }
    drop(seen);
    let mut by = [0; 3];
    for n in 0..300 {
        tx.send(n).await.unwrap();
        let (who, got) = order.recv().await.unwrap();
        assert_eq!(got, n);
        by[who] += 1;
    }
    assert!(by.iter().all(|count| *count >= 50), "{by:?}");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Even(#[serde(deserialize_with = "even")] u32);

fn even<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let n = u32::deserialize(deserializer)?;
    if n % 2 == 0 { Ok(n) } else { Err(serde::de::Error::custom("odd")) }
}

#[tokio::test]
async fn one_undecodable_item_is_an_error_and_the_next_is_fine() {
    let (tx, mut rx) = queue().unwrap();
    for n in 0..4 {
        tx.send(Even(n)).await.unwrap();
    }
    drop(tx);
    assert_eq!(rx.recv().await.unwrap(), Some(Even(0)));
    assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
    assert_eq!(rx.next().await.unwrap().unwrap(), Even(2));
    assert!(matches!(rx.next().await, Some(Err(RecvError::Decode(_)))));
    assert!(rx.next().await.is_none());
}

#[tokio::test]
async fn an_item_over_the_limit_is_refused_by_both_sides() {
    let (tx, rx) = queue::<Vec<u8>>().unwrap();
    let small = tx.clone().max_message(1000);
    assert!(matches!(small.send(vec![0; 1000]).await, Err(SendError::TooLarge { max: 1000, .. })));
    assert!(matches!(small.try_send(vec![0; 1000]), Err(TrySendError::Refused(SendError::TooLarge { .. }))));
    tx.send(vec![0; 1000]).await.unwrap();
    tx.send(vec![0; 100_000]).await.unwrap();
    tx.send(vec![1]).await.unwrap();
    let rx = rx.max_message(100);
    for _ in 0..2 {
        assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
    }
    assert_eq!(rx.recv().await.unwrap(), Some(vec![1]));
}

fn produce(tx: QueueSender<(u32, u32)>, who: u32, count: u32) {
    for n in 0..count {
        tx.blocking_send((who, n)).unwrap();
    }
}

async fn consume(rx: QueueReceiver<(u32, u32)>) -> Vec<(u32, u32)> {
    rx.map(Result::unwrap).collect().await
}

/// What was sent just before a producer's exit arrives too.
#[tokio::test]
async fn each_item_of_four_producers_goes_to_one_of_four_consumers_in_its_producers_order() {
    const EACH: u32 = 1000;
    let (tx, rx) = queue().unwrap();
    let mut producers = Vec::new();
    let mut consumers = Vec::new();
    for who in 0..4 {
        consumers.push(spawn_process(task!(consume(rx.clone()).await)).await.unwrap());
        producers.push(spawn_process(task!(produce(tx.clone(), who, EACH))).await.unwrap());
    }
    drop((tx, rx));
    for producer in producers {
        producer.join().await.unwrap();
    }
    let mut all = Vec::new();
    for consumer in consumers {
        let seen = consumer.join().await.unwrap();
        for who in 0..4 {
            assert!(seen.iter().filter(|(by, _)| *by == who).is_sorted(), "FIFO for each sender");
        }
        all.extend(seen);
    }
    all.sort_unstable();
    let expected: Vec<_> = (0..4).flat_map(|who| (0..EACH).map(move |n| (who, n))).collect();
    assert!(all == expected, "{} of {}", all.len(), expected.len());
}

#[derive(Serialize, Deserialize)]
struct Job {
    n: u32,
    payload: Vec<u8>,
    answer: QueueSender<(u32, usize)>,
}

fn answer_all(jobs: QueueReceiver<Job>) {
    while let Some(job) = jobs.blocking_recv().unwrap() {
        job.answer.blocking_send((job.n, job.payload.len())).unwrap();
    }
}

#[tokio::test]
async fn ends_travel_in_items_beside_a_large_body_too() {
    let (jobs, theirs) = queue().unwrap();
    let child = spawn_process(task!(answer_all(theirs))).await.unwrap();
    for (n, len) in [(0, 0), (1, 1 << 20)] {
        let (answer, answers) = queue().unwrap();
        jobs.send(Job { n, payload: vec![0; len], answer }).await.unwrap();
        assert_eq!(answers.recv().await.unwrap(), Some((n, len)));
        assert_eq!(answers.recv().await.unwrap(), None, "all senders are gone");
    }
    drop(jobs);
    child.join().await.unwrap();
}

#[tokio::test]
async fn the_ends_in_an_unread_item_are_closed_with_it() {
    let (jobs, unread) = queue().unwrap();
    let (answer, answers) = queue::<(u32, usize)>().unwrap();
    jobs.send(Job { n: 0, payload: Vec::new(), answer }).await.unwrap();
    assert!(pin!(answers.recv()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(unread);
    assert_eq!(answers.recv().await.unwrap(), None);
}

/// Leaves as the end of a channel, and is read as the end of a queue.
struct Disguised(Option<Sender<u8>>);

impl Serialize for Disguised {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().unwrap().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Disguised {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        QueueSender::<u8>::deserialize(deserializer).map(|_| Self(None))
    }
}

#[tokio::test]
async fn the_end_of_a_channel_is_refused_as_the_end_of_a_queue() {
    let (tx, rx) = queue().unwrap();
    let (end, _other) = channel().unwrap();
    tx.send(Disguised(Some(end))).await.unwrap();
    assert!(matches!(rx.recv().await, Err(RecvError::Decode(_))));
}
