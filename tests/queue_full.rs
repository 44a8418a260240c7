//! Queues that are full: whoever waits for room gets it when there is some, and not only when most of the queue is free.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::FutureExt as _;
use multiproc::{QueueReceiver, QueueSender, queue};

/// Small ones, some that fill the queue with a dozen, and some with four.
const LENS: [usize; 4] = [100, 10_000, 30_000, 65_000];

type Ends = (QueueSender<Vec<u8>>, QueueReceiver<Vec<u8>>);

fn full(len: usize) -> Ends {
    let (tx, rx) = queue().unwrap();
    while tx.try_send(vec![1; len]).is_ok() {}
    (tx, rx)
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it waits although there is room")
}

/// It waited until three quarters were free: for good, if the receiver takes the next one only when that has come.
#[tokio::test]
async fn a_send_that_waits_goes_on_when_there_is_room_for_it() {
    for len in LENS {
        let (tx, rx) = full(len);
        for _ in 0..3 {
            let mut sending = pin!(tx.send(vec![2; len]));
            assert!((&mut sending).now_or_never().is_none());
            rx.recv().await.unwrap().unwrap();
            within(sending).await.unwrap();
        }
    }
}

#[test]
fn a_blocking_send_goes_on_when_there_is_room_for_it() {
    for len in LENS {
        let (tx, rx) = full(len);
        let (told, sent) = mpsc::channel();
        let sender = thread::spawn(move || {
            for _ in 0..10 {
                tx.blocking_send(vec![2; len]).unwrap();
                told.send(()).unwrap();
            }
        });
        for _ in 0..10 {
            rx.blocking_recv().unwrap().unwrap();
            sent.recv_timeout(Duration::from_secs(20)).expect("it waits although there is room");
        }
        sender.join().unwrap();
    }
}

#[tokio::test]
async fn of_many_that_wait_each_goes_on_and_nobody_waits_for_one_that_is_not_polled() {
    for len in LENS {
        let (tx, rx) = full(len);
        let mut idle = pin!(tx.send(vec![3; len]));
        assert!((&mut idle).now_or_never().is_none());
        let sending: Vec<_> = (0..3_u8)
            .map(|_| {
                let tx = tx.clone();
                tokio::spawn(async move { tx.send(vec![2; len]).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for _ in 0..3 {
            rx.recv().await.unwrap().unwrap();
        }
        for sent in sending {
            within(sent).await.unwrap().unwrap();
        }
        rx.recv().await.unwrap().unwrap();
        within(idle).await.unwrap();
    }
}

/// Each send after that waited 100 ms, as it was the other one's turn.
#[tokio::test]
async fn once_the_one_whose_turn_it_is_does_not_come_what_has_room_is_sent_at_once() {
    for len in LENS {
        let (tx, rx) = full(len);
        let mut idle = pin!(tx.send(vec![3; len]));
        assert!((&mut idle).now_or_never().is_none());
        rx.recv().await.unwrap().unwrap();
        // It has a while to come.
        let sent = async {
            while tx.send(vec![2; len]).now_or_never().is_none() {
                tokio::task::yield_now().await;
            }
        };
        within(sent).await;
        rx.recv().await.unwrap().unwrap();
        assert!(tx.send(vec![2; len]).now_or_never().is_some(), "it takes no turns any more");
        rx.recv().await.unwrap().unwrap();
        within(idle).await.unwrap();
    }
}

/// What waits to send need not be in the runtime that it began in.
#[test]
fn a_send_that_waits_for_room_goes_on_in_another_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let (tx, rx) = full(30_000);
    let mut sending = pin!(tx.send(vec![2; 30_000]));
    runtime().block_on(async { assert!((&mut sending).now_or_never().is_none()) });
    rx.blocking_recv().unwrap().unwrap();
    runtime().block_on(sending).unwrap();
}
