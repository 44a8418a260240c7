//! Watched values: everybody gets the newest version, and nobody's death or slowness is another's affair.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use multiproc::sync::{Semaphore, WatchReceiver, WatchSender, watch};
use multiproc::{QueueSender, Receiver, RecvError, SendError, Sender, channel, queue, spawn_process, task};

multiproc::test_support!();

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

#[tokio::test]
async fn a_reader_gets_the_newest_version_and_each_once() {
    let (tx, mut rx) = watch("first".to_owned()).unwrap();
    assert_eq!(rx.recv().await.unwrap().unwrap(), "first");
    let mut other = rx.clone();
    let mut waiting = Box::pin(rx.recv());
    assert!(poll_once(&mut waiting).await.is_pending());
    for n in 2..10 {
        tx.send(format!("version {n}")).await.unwrap();
        assert_eq!(other.latest().await.unwrap(), format!("version {n}"));
    }
    waiting.await.unwrap().unwrap();
    assert_eq!(other.recv().await.unwrap().unwrap(), "version 9");
    drop(tx);
    assert_eq!(other.recv().await.unwrap(), None);
    assert_eq!(other.latest().await.unwrap(), "version 9");
}

fn follow(mut rx: WatchReceiver<u64>, seen: Sender<u64>) -> u64 {
    let mut last = 0;
    while let Some(version) = rx.blocking_recv().unwrap() {
        assert!(version > last, "never an old one");
        last = version;
        seen.blocking_send(version).unwrap();
    }
    last
}

async fn follow_async(mut rx: WatchReceiver<u64>, seen: Sender<u64>) -> u64 {
    let mut last = 0;
    while let Some(version) = rx.recv().await.unwrap() {
        assert!(version > last, "never an old one");
        last = version;
        seen.send(version).await.unwrap();
    }
    last
}

async fn send_all(tx: WatchSender<u64>) {
    for version in 1001..=2000 {
        tx.send(version).await.unwrap();
    }
}

async fn many_readers() {
    let (tx, rx) = watch(1).unwrap();
    let (one, mut of_one) = channel().unwrap();
    let (two, mut of_two) = channel().unwrap();
    let first = spawn_process(task!(follow(rx.clone(), one))).await.unwrap();
    let second = spawn_process(task!(follow_async(rx, two).await)).await.unwrap();
    assert_eq!(of_one.recv().await.unwrap(), Some(1));
    assert_eq!(of_two.recv().await.unwrap(), Some(1));
    let drain = |mut seen: Receiver<u64>| tokio::spawn(async move { while seen.recv().await.unwrap().is_some() {} });
    let drains = [drain(of_one), drain(of_two)];
    for version in 2..=1000 {
        tx.send(version).await.unwrap();
    }
    let sender = spawn_process(task!(send_all(tx).await)).await.unwrap();
    sender.join().await.unwrap();
    assert_eq!(first.join().await.unwrap(), 2000);
    assert_eq!(second.join().await.unwrap(), 2000);
    for drain in drains {
        drain.await.unwrap();
    }
}

#[tokio::test]
async fn readers_and_senders_in_any_process_see_the_last_version_and_the_end() {
    many_readers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_senders_in_any_process_see_the_last_version_and_the_end_on_many_threads() {
    many_readers().await;
}

fn follow_large(mut rx: WatchReceiver<(u64, Vec<u8>)>, seen: Sender<u64>) {
    while let Some((version, _)) = rx.blocking_recv().unwrap() {
        seen.blocking_send(version).unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_is_killed_or_stopped_holds_up_nobody() {
    let (tx, mut rx) = watch((0, vec![0; 1 << 20])).unwrap();
    let unread = rx.clone();
    let mut version = 0;
    for round in 0..10 {
        let (say, mut said) = channel().unwrap();
        let mut child = spawn_process(task!(follow_large(unread.clone(), say))).await.unwrap();
        said.recv().await.unwrap().unwrap();
        if round % 2 == 0 {
            child.signal(19).unwrap();
        }
        for n in 0..20 {
            version += 1;
            tx.send((version, vec![0; 1 << 20])).await.unwrap();
            assert_eq!(rx.recv().await.unwrap().unwrap().0, version);
            if n == round {
                child.kill().unwrap();
            }
        }
        child.wait().await.unwrap();
    }
}

#[tokio::test]
async fn a_recv_dropped_at_any_moment_loses_no_version() {
    let (tx, mut rx) = watch(0).unwrap();
    let mut last = None;
    for n in 1..300 {
        tx.send(n).await.unwrap();
        {
            let mut recv = Box::pin(rx.recv());
            for _ in 0..n % 5 {
                if let Poll::Ready(version) = poll_once(&mut recv).await {
                    last = version.unwrap();
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        if last != Some(n) {
            last = rx.recv().await.unwrap();
        }
        assert_eq!(last, Some(n));
    }
}

fn make() -> (WatchSender<u8>, WatchReceiver<u8>) {
    watch(7).unwrap()
}

#[tokio::test]
async fn the_end_of_the_process_that_made_it_is_the_end() {
    let (tx, mut rx) = spawn_process(task!(make())).await.unwrap().join().await.unwrap();
    assert_eq!(rx.recv().await.unwrap(), None);
    assert!(matches!(rx.latest().await, Err(RecvError::Truncated)));
    assert!(matches!(tx.send(8).await, Err(SendError::Closed)));
}

#[tokio::test]
async fn ends_of_a_queue_travel_in_versions_and_each_reader_has_its_own() {
    let (news, received) = queue::<u32>().unwrap();
    let (_tx, rx) = watch(news).unwrap();
    let one: QueueSender<u32> = rx.latest().await.unwrap();
    let other: QueueSender<u32> = rx.latest().await.unwrap();
    one.send(1).await.unwrap();
    drop(one);
    other.send(2).await.unwrap();
    assert_eq!(received.recv().await.unwrap(), Some(1));
    assert_eq!(received.recv().await.unwrap(), Some(2));
}

/// Each reader once got the same one, so that two had one permit, or wrote into each other's messages.
#[tokio::test]
async fn what_is_for_one_process_can_not_be_watched_and_stays_where_it_is() {
    let is_refused = |result: Result<(), SendError>| match result {
        Err(SendError::Encode(why)) => why.to_string().contains("everyone who watches"),
        _ => false,
    };
    let lock = Semaphore::new(1).unwrap();
    assert!(is_refused(watch(lock.clone()).map(drop)));
    let (ours, mut theirs) = channel().unwrap();
    assert!(is_refused(watch(&ours).map(drop)));
    let (tx, _rx) = watch(None).unwrap();
    assert!(is_refused(tx.send(Some((&lock, &ours))).await));
    assert!(is_refused(tx.blocking_send(Some((&lock, &ours)))));
    tx.send(None).await.unwrap();
    drop(lock.acquire().await.unwrap());
    ours.send(7).await.unwrap();
    assert_eq!(theirs.recv().await.unwrap(), Some(7));
}

#[test]
fn it_is_made_and_used_without_a_runtime() {
    let (tx, mut rx) = watch(1).unwrap();
    assert_eq!(rx.blocking_recv().unwrap(), Some(1));
    tx.blocking_send(2).unwrap();
    assert_eq!(rx.blocking_latest().unwrap(), 2);
    assert_eq!(rx.blocking_recv().unwrap(), Some(2));
}
