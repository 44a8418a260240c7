//! Channels: a dropped future loses nothing and tears nothing.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures::FutureExt as _;
use multiproc::{Receiver, RecvError, Sender, channel, spawn_process, task};

multiproc::test_support!();

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Polls it so many times with nothing else in between than what other tasks do, and then drops it.
async fn some_polls<F: Future>(future: F, polls: u64) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

fn message(n: u32) -> (u32, Vec<u8>) {
    // From a few bytes to more than the socket holds.
    (n, vec![n.to_le_bytes()[0]; [0, 10, 1000, 70_000, 600_000][n as usize % 5]])
}

fn numbers(tx: Sender<(u32, Vec<u8>)>, count: u32) {
    for n in 0..count {
        tx.blocking_send(message(n)).unwrap();
    }
}

#[tokio::test]
async fn recv_dropped_at_random_points_1000_times_loses_doubles_and_splits_nothing() {
    const COUNT: u32 = 300;
    let (tx, mut rx) = channel().unwrap();
    let child = spawn_process(task!(numbers(tx, COUNT))).await.unwrap();
    let mut dice = Dice(7);
    let (mut next, mut dropped) = (0, 0);
    while next < COUNT || dropped < 1000 {
        let polls = dice.below(3);
        match some_polls(rx.recv(), polls).await {
            None => dropped += 1,
            Some(received) => match received.unwrap() {
                Some(received) => {
                    assert!(received == message(next), "message {next}");
                    next += 1;
                }
                None => assert_eq!(next, COUNT),
            },
        }
    }
    assert_eq!(rx.recv().await.unwrap(), None);
    child.join().await.unwrap();
}

fn strictly_rising(mut rx: Receiver<(u32, Vec<u8>)>) -> u32 {
    let mut last = None;
    let mut count = 0;
    while let Some(received) = rx.blocking_recv().unwrap() {
        assert!(Some(received.0) > last, "{} after {last:?}", received.0);
        assert!(received == message(received.0), "message {} is whole", received.0);
        last = Some(received.0);
        count += 1;
    }
    count
}

#[tokio::test]
async fn a_send_dropped_half_way_never_tears_a_frame() {
    let (tx, rx) = channel().unwrap();
    let child = spawn_process(task!(strictly_rising(rx))).await.unwrap();
    let mut dice = Dice(11);
    let mut certain = 0;
    for n in 0..1000 {
        let polls = if n % 10 == 0 { u64::MAX } else { dice.below(3) };
        if let Some(sent) = some_polls(tx.send(message(n)), polls).await {
            sent.unwrap();
            certain += 1;
        }
    }
    drop(tx);
    let received = child.join().await.unwrap();
    assert!(certain >= 100 && certain <= received && received <= 1000, "{certain} <= {received}");
}

/// One that its task had no more budget for was not let in, for all the room there was.
#[tokio::test]
async fn a_send_polled_once_while_there_is_room_is_sent_whatever_its_task_did_before() {
    let (tx, mut rx) = channel::<u32>().unwrap();
    for n in 0..300 {
        assert!(tx.send(n).now_or_never().is_none_or(|sent| sent.is_ok()));
    }
    drop(tx);
    for n in 0..300 {
        assert_eq!(rx.recv().await.unwrap(), Some(n));
    }
    assert_eq!(rx.recv().await.unwrap(), None);
}

/// What always has room lets this thread's other tasks come all the same.
#[tokio::test]
async fn sends_without_end_give_way_to_others() {
    let (tx, rx) = channel::<u32>().unwrap();
    let reader = std::thread::spawn(move || {
        let mut rx = rx;
        while rx.blocking_recv().unwrap().is_some() {}
    });
    let stop = Arc::new(AtomicBool::new(false));
    let other = Arc::clone(&stop);
    tokio::spawn(async move { other.store(true, Ordering::Relaxed) });
    while !stop.load(Ordering::Relaxed) {
        tx.send(1).await.unwrap();
    }
    drop(tx);
    reader.join().unwrap();
}

#[tokio::test]
async fn a_send_dropped_before_it_was_let_in_is_not_sent_and_after_that_it_is() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    assert!(some_polls(tx.send(vec![1; 4 << 20]), 1).await.is_none(), "it is let in, and does not fit");
    assert!(some_polls(tx.send(vec![2; 10]), 5).await.is_none(), "there is no room");
    let third = async {
        tx.send(vec![3; 10]).await.unwrap();
        drop(tx);
    };
    let receive = async {
        assert!(rx.recv().await.unwrap() == Some(vec![1; 4 << 20]));
        assert_eq!(rx.recv().await.unwrap(), Some(vec![3; 10]));
        assert_eq!(rx.recv().await.unwrap(), None);
    };
    tokio::join!(third, receive);
}

/// A future that is kept and not polled must not be what the others wait for.
#[tokio::test]
async fn a_send_that_is_never_polled_again_holds_nobody_up() {
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    let mut kept: Vec<Pin<Box<dyn Future<Output = _>>>> =
        vec![Box::pin(tx.send(vec![1; 4 << 20])), Box::pin(tx.send(vec![2]))];
    for send in &mut kept {
        assert!(send.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let receive = async {
        for n in [1, 3] {
            assert_eq!(rx.recv().await.unwrap().unwrap()[0], n);
        }
    };
    tokio::join!(async { tx.send(vec![3]).await.unwrap() }, receive);
}

#[test]
fn a_message_that_was_let_in_leaves_whole_though_its_sender_and_its_runtime_are_gone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
    runtime.block_on(async {
        assert!(some_polls(tx.send(vec![5; 4 << 20]), 3).await.is_none());
        drop(tx);
    });
    drop(runtime);
    assert!(rx.blocking_recv().unwrap() == Some(vec![5; 4 << 20]));
    assert_eq!(rx.blocking_recv().unwrap(), None);
}

fn first_byte(mut rx: Receiver<Vec<u8>>, mut ready: Receiver<()>, seen: Sender<u32>) {
    ready.blocking_recv().unwrap();
    let mut count = 0;
    while let Some(message) = rx.blocking_recv().unwrap() {
        assert_eq!(message, vec![message[0]; 1000]);
        count += 1;
    }
    seen.blocking_send(count).unwrap();
}

/// Memory is bounded by what waits to be let in being refused: one frame beyond 64 KiB and the socket's buffer.
#[tokio::test]
async fn with_a_stalled_receiver_send_waits_and_little_is_under_way() {
    let (tx, rx) = channel::<Vec<u8>>().unwrap();
    let (go, ready) = channel().unwrap();
    let (seen, mut counted) = channel().unwrap();
    let child = spawn_process(task!(first_byte(rx, ready, seen))).await.unwrap();
    let mut let_in = 0;
    while some_polls(tx.send(vec![7; 1000]), 1).await.is_some() {
        let_in += 1;
        assert!(let_in < 1000);
    }
    // Those that are dropped now were let in or not; at the end nothing more is.
    for _ in 0..1000 {
        assert!(some_polls(tx.send(vec![8; 1000]), 1).await.is_none());
    }
    go.send(()).await.unwrap();
    drop(tx);
    let count = counted.recv().await.unwrap().unwrap();
    assert!(count <= let_in + 66, "{count} <= {let_in} and the 64 KiB behind them");
    child.join().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_and_threads_send_through_one_reference() {
    const EACH: u32 = 500;
    let (tx, mut rx) = channel::<(u32, u32, Vec<u8>)>().unwrap();
    let tx = std::sync::Arc::new(tx);
    for who in 0..4 {
        let tx = std::sync::Arc::clone(&tx);
        tokio::spawn(async move {
            for n in 0..EACH {
                tx.send((who, n, vec![0; 1000])).await.unwrap();
            }
        });
    }
    for who in 4..8 {
        let tx = std::sync::Arc::clone(&tx);
        std::thread::spawn(move || {
            for n in 0..EACH {
                tx.blocking_send((who, n, vec![0; 1000])).unwrap();
            }
        });
    }
    drop(tx);
    let mut next = [0; 8];
    while let Some((who, n, _)) = rx.recv().await.unwrap() {
        assert_eq!(n, next[who as usize], "each sender's own order is kept");
        next[who as usize] += 1;
    }
    assert_eq!(next, [EACH; 8]);
}

/// What had come was received or not, depending on whether the receive before it had emptied the socket.
#[test]
fn outside_a_runtime_what_is_there_is_received_and_waiting_is_an_error() {
    let (tx, mut rx) = channel::<u32>().unwrap();
    for n in 0..3 {
        assert!(matches!(rx.recv().now_or_never(), Some(Err(RecvError::Io(_)))), "there is no reactor to wait with");
        tx.blocking_send(n).unwrap();
        assert!(matches!(rx.recv().now_or_never(), Some(Ok(Some(got))) if got == n));
    }
    drop(tx);
    assert!(matches!(rx.recv().now_or_never(), Some(Ok(None))));
}
