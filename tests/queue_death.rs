//! Queues: a holder that is killed, at whatever moment, harms nobody else.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

#[path = "support/proc.rs"]
mod proc;

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt as _;

use bytes::Bytes;
use multiproc::{Process, QueueReceiver, QueueSender, RecvError, Sender, channel, queue, spawn_process, task};
use proc::{state, until_it_waits};

multiproc::test_support!();

fn wait_for_items(rx: QueueReceiver<u32>, running: Sender<()>, got: Sender<u32>) {
    running.blocking_send(()).unwrap();
    while let Some(n) = rx.blocking_recv().unwrap() {
        got.blocking_send(n).unwrap();
    }
}

async fn wait_for_items_async(rx: QueueReceiver<u32>, running: Sender<()>, got: Sender<u32>) {
    running.send(()).await.unwrap();
    while let Some(n) = rx.recv().await.unwrap() {
        got.send(n).await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_killed_inside_recv_takes_nothing_with_it() {
    let (tx, rx) = queue().unwrap();
    let (got, mut all) = channel().unwrap();
    for round in 0..10 {
        let (running, mut started) = channel().unwrap();
        let (nothing, mut none) = channel::<u32>().unwrap();
        let mut victim = if round % 2 == 0 {
            spawn_process(task!(wait_for_items(rx.clone(), running, nothing))).await.unwrap()
        } else {
            spawn_process(task!(wait_for_items_async(rx.clone(), running, nothing).await)).await.unwrap()
        };
        started.recv().await.unwrap().unwrap();
        until_it_waits(victim.id().unwrap()).await;
        victim.kill().unwrap();
        assert_eq!(victim.wait().await.unwrap().signal(), Some(9));
        assert_eq!(none.recv().await.unwrap(), None);
    }
    let (running, mut started) = channel().unwrap();
    let survivor = spawn_process(task!(wait_for_items(rx, running, got))).await.unwrap();
    started.recv().await.unwrap().unwrap();
    for n in 0..1000 {
        tx.send(n).await.unwrap();
        assert_eq!(all.recv().await.unwrap(), Some(n));
    }
    drop(tx);
    survivor.join().await.unwrap();
}

/// Two wait; one is stopped, so that it is woken and can't take anything, and then killed.
#[tokio::test]
async fn a_wake_up_that_a_dying_reader_got_is_not_lost_for_the_others() {
    for _ in 0..20 {
        let (tx, rx) = queue().unwrap();
        let mut readers = Vec::new();
        for _ in 0..2 {
            let (running, mut started) = channel().unwrap();
            let (got, items) = channel().unwrap();
            let child = spawn_process(task!(wait_for_items(rx.clone(), running, got))).await.unwrap();
            started.recv().await.unwrap().unwrap();
            until_it_waits(child.id().unwrap()).await;
            readers.push((child, items));
        }
        drop(rx);
        let (survivor, mut items) = readers.pop().unwrap();
        let (victim, _) = readers.pop().unwrap();
        victim.signal(19).unwrap();
        while state(victim.id().unwrap()) != 'T' {
            tokio::task::yield_now().await;
        }
        tx.send(1).await.unwrap();
        assert_eq!(items.recv().await.unwrap(), Some(1));
        victim.kill().unwrap();
        tx.send(2).await.unwrap();
        assert_eq!(items.recv().await.unwrap(), Some(2));
        drop(tx);
        survivor.join().await.unwrap();
    }
}

fn send_without_end(tx: QueueSender<(u32, Vec<u8>)>, who: u32, len: usize) {
    loop {
        tx.blocking_send((who, vec![7; len])).unwrap();
    }
}

async fn send_without_end_async(tx: QueueSender<(u32, Vec<u8>)>, who: u32, len: usize) {
    loop {
        tx.send((who, vec![7; len])).await.unwrap();
    }
}

/// Kills writers while they send, the small and the large items, and items come whole, from the others too.
#[tokio::test]
async fn a_writer_killed_inside_send_harms_nobody() {
    for len in [10, 60_000, 300_000] {
        let (tx, rx) = queue().unwrap();
        let mut writers = std::collections::VecDeque::new();
        for who in 0..12 {
            let writer = if who % 2 == 0 {
                spawn_process(task!(send_without_end(tx.clone(), who, len))).await.unwrap()
            } else {
                spawn_process(task!(send_without_end_async(tx.clone(), who, len).await)).await.unwrap()
            };
            writers.push_back(writer);
            // Until the newest has sent something, and then some more.
            loop {
                let (by, bytes) = rx.recv().await.unwrap().unwrap();
                assert!(bytes == vec![7; len]);
                if by == who {
                    break;
                }
            }
            if writers.len() == 3 {
                let mut victim = writers.pop_front().unwrap();
                victim.kill().unwrap();
                assert_eq!(victim.wait().await.unwrap().signal(), Some(9));
            }
        }
        drop(tx);
        for victim in &writers {
            victim.kill().unwrap();
        }
        while let Some((_, bytes)) = rx.recv().await.unwrap() {
            assert!(bytes == vec![7; len]);
        }
    }
}

/// One waits in poll(2) or epoll(7), with the queue full.
#[tokio::test]
async fn a_writer_killed_while_it_waits_for_room_has_sent_nothing_more() {
    let (tx, rx) = queue().unwrap();
    let mut held = 0;
    while tx.try_send((0, Vec::new())).is_ok() {
        held += 1;
    }
    let mut victims = Vec::new();
    for who in 1..=4 {
        let victim = if who % 2 == 0 {
            spawn_process(task!(send_without_end(tx.clone(), who, 0))).await.unwrap()
        } else {
            spawn_process(task!(send_without_end_async(tx.clone(), who, 0).await)).await.unwrap()
        };
        until_it_waits(victim.id().unwrap()).await;
        victims.push(victim);
    }
    for mut victim in victims {
        victim.kill().unwrap();
        victim.wait().await.unwrap();
    }
    drop(tx);
    for _ in 0..held {
        assert_eq!(rx.recv().await.unwrap().unwrap().0, 0);
    }
    assert_eq!(rx.recv().await.unwrap(), None, "all writers are gone, and that is the end");
}

async fn relay(from: QueueReceiver<u32>, to: QueueSender<u32>) {
    while let Some(n) = from.recv().await.unwrap() {
        to.send(n).await.unwrap();
    }
}

/// Eight processes wait on one queue, so most wake-ups find nothing.
#[tokio::test]
async fn with_many_waiting_processes_no_wake_up_is_lost() {
    const COUNT: u32 = 2000;
    let (tx, theirs) = queue().unwrap();
    let (to, rx) = queue().unwrap();
    let mut relays = Vec::new();
    for _ in 0..8 {
        relays.push(spawn_process(task!(relay(theirs.clone(), to.clone()).await)).await.unwrap());
    }
    drop((theirs, to));
    // One at a time, and then in bursts.
    for n in 0..100 {
        tx.send(n).await.unwrap();
        assert_eq!(rx.recv().await.unwrap(), Some(n));
    }
    let send = async {
        for n in 0..COUNT {
            tx.send(n).await.unwrap();
        }
        drop(tx);
    };
    let receive = async {
        let mut seen = Vec::new();
        while let Some(n) = rx.recv().await.unwrap() {
            seen.push(n);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
    };
    tokio::join!(send, receive);
    for relay in relays {
        relay.join().await.unwrap();
    }
}

/// How many bytes the items have, of which it gets those that it has memory for.
fn sizes(rx: QueueReceiver<Bytes>) -> Vec<Option<usize>> {
    let next = || match rx.blocking_recv() {
        Ok(item) => item.map(|item| Some(item.len())),
        Err(RecvError::Io(error)) if error.kind() == ErrorKind::OutOfMemory => Some(None),
        Err(error) => panic!("{error}"),
    };
    std::iter::from_fn(next).collect()
}

/// It aborted.
#[tokio::test]
async fn an_item_that_a_receiver_has_no_memory_for_is_an_error_and_not_its_end() {
    let (tx, rx) = queue().unwrap();
    let receiver = Process::builder().memory_limit(192 << 20).spawn(task!(sizes(rx))).await.unwrap();
    for len in [1, 256 << 20, 8 << 20] {
        tx.send(Bytes::from(vec![1; len])).await.unwrap();
    }
    drop(tx);
    assert_eq!(receiver.join().await.unwrap(), [Some(1), None, Some(8 << 20)]);
}
