//! A copy that fork(2) makes of a process has all that this had, and takes nothing of it from the original: what it drops, only it
//! has lost.

mod support;

use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::{FutureExt as _, SinkExt as _};
use multiproc::sync::{Barrier, Semaphore};
use multiproc::{
    AckedQueue, AckedReceiver, Client, Command, Delivery, Duplex, ProcessPool, Receiver, Sender, channel, duplex,
    serve, spawn_process, task,
};
use support::copies::{is_copy, leave};
use support::proc::open_fds;
use support::{alone, block_on};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

multiproc::test_support!();

/// In a runtime of its own.
fn soon<R>(future: impl Future<Output = R>) -> R {
    soon_in(&support::runtime(), future)
}

fn soon_in<R>(runtime: &Runtime, future: impl Future<Output = R>) -> R {
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("it never came") })
}

fn next<T: serde::de::DeserializeOwned>(rx: &mut AckedReceiver<T>) -> Delivery<T> {
    soon(rx.recv()).unwrap().unwrap()
}

/// It went back to the queue, and two had it at once.
#[test]
fn an_item_that_a_copy_drops_is_still_the_originals() {
    alone("an_item_that_a_copy_drops_is_still_the_originals", || {
        let queue = AckedQueue::<u32>::new();
        let (mut rx, mut other) = (queue.receiver().unwrap(), queue.receiver().unwrap());
        soon(queue.send(1)).unwrap();
        let item = next(&mut rx);
        if is_copy() {
            drop(item);
            leave();
        }
        item.ack().unwrap();
        // Behind whatever the copy has said.
        soon(queue.send(2)).unwrap();
        let second = next(&mut rx);
        assert_eq!((*second, second.is_redelivered()), (2, false));
        second.ack().unwrap();
        drop(queue);
        assert!(soon(other.recv()).unwrap().is_none(), "the first one was there once more");
    });
}

fn take_and_fork(mut rx: AckedReceiver<u32>) -> u32 {
    let item = rx.blocking_recv().unwrap().unwrap();
    // The copy ends as the task returns in it.
    if is_copy() {
        return 0;
    }
    let taken = *item;
    item.ack().unwrap();
    taken
}

#[test]
fn an_item_whose_task_forks_and_returns_twice_is_done_once() {
    let queue = AckedQueue::<u32>::new();
    let (rx, mut other) = (queue.receiver().unwrap(), queue.receiver().unwrap());
    let runtime = support::runtime();
    soon_in(&runtime, queue.send(1)).unwrap();
    let pool = ProcessPool::new(1);
    assert_eq!(soon_in(&runtime, pool.submit(task!(take_and_fork(rx)))).unwrap(), 1);
    drop(queue);
    assert!(soon_in(&runtime, other.recv()).unwrap().is_none(), "it was there once more");
    soon_in(&runtime, pool.close());
}

/// It left the queue for the original, too, which waited for ever.
#[test]
fn a_consumer_whose_copy_is_dropped_still_gets_what_it_has_asked_for() {
    alone("a_consumer_whose_copy_is_dropped_still_gets_what_it_has_asked_for", || {
        let queue = AckedQueue::<u32>::new();
        let mut rx = queue.receiver().unwrap();
        assert!(soon(async { rx.recv().now_or_never() }).is_none());
        if is_copy() {
            drop(rx);
            leave();
        }
        // From the same process, and behind what the copy has said: by now that is known.
        drop(soon(async { queue.receiver().unwrap().recv().now_or_never() }));
        soon(queue.send(1)).unwrap();
        assert_eq!(*next(&mut rx), 1);
    });
}

/// It was cancelled, and never resolved.
#[test]
fn a_call_whose_copy_is_dropped_is_still_answered() {
    alone("a_call_whose_copy_is_dropped_is_still_answered", || {
        let runtime = support::runtime();
        let (ours, theirs) = duplex::<u32, u32>().unwrap();
        let client: Client<u32, u32> = Client::new(ours);
        let go_on = Arc::new(tokio::sync::Semaphore::new(0));
        let lets_go_on = go_on.clone();
        let (running, runs) = mpsc::channel();
        let server = std::thread::spawn(move || {
            block_on(serve(theirs, |n: u32| {
                running.send(()).unwrap();
                let go_on = lets_go_on.clone();
                async move {
                    go_on.acquire().await.unwrap().forget();
                    n + 1
                }
            }))
        });
        let mut call = Box::pin(client.call(1));
        assert!(soon_in(&runtime, async { (&mut call).now_or_never() }).is_none());
        runs.recv().unwrap();
        if is_copy() {
            drop(call);
            leave();
        }
        // Behind what the copy has said.
        let mut second = Box::pin(client.call(2));
        assert!(soon_in(&runtime, async { (&mut second).now_or_never() }).is_none());
        runs.recv().unwrap();
        go_on.add_permits(2);
        assert_eq!(soon_in(&runtime, call).unwrap(), 2);
        assert_eq!(soon_in(&runtime, second).unwrap(), 3);
        drop(client);
        server.join().unwrap().unwrap();
    });
}

/// The permit went to nobody, for good.
#[test]
fn who_waits_for_a_permit_and_is_copied_still_gets_it() {
    alone("who_waits_for_a_permit_and_is_copied_still_gets_it", || {
        let runtime = support::runtime();
        let lock = Semaphore::new(1).unwrap();
        let held = lock.blocking_acquire().unwrap();
        let mut waits = Box::pin(lock.acquire());
        // At first it lets others come.
        let twice = async {
            assert!((&mut waits).now_or_never().is_none());
            tokio::task::yield_now().await;
            assert!((&mut waits).now_or_never().is_none());
        };
        soon_in(&runtime, twice);
        if is_copy() {
            drop(waits);
            leave();
        }
        // Behind what the copy has said.
        assert!(soon_in(&runtime, lock.try_acquire()).unwrap().is_none());
        drop(held);
        drop(soon_in(&runtime, waits).unwrap());
    });
}

async fn hold(lock: Semaphore, held: Sender<()>, mut end: Receiver<()>) {
    let permit = lock.acquire().await.unwrap();
    if is_copy() {
        drop(permit);
        leave();
    }
    held.send(()).await.unwrap();
    end.recv().await.unwrap();
    drop(permit);
}

/// It was given back, and two had it at once: in a process that has none of the library's threads.
#[test]
fn a_permit_that_a_copy_drops_is_still_the_originals() {
    let runtime = support::runtime();
    let lock = Semaphore::new(1).unwrap();
    let ((held, mut is_held), (end, ends)) = (channel().unwrap(), channel().unwrap());
    let holder = soon_in(&runtime, spawn_process(task!(hold(lock.clone(), held, ends).await))).unwrap();
    soon_in(&runtime, is_held.recv()).unwrap();
    // Behind what the copy has said.
    assert!(soon_in(&runtime, lock.try_acquire()).unwrap().is_none());
    soon_in(&runtime, end.send(())).unwrap();
    soon_in(&runtime, holder.join()).unwrap();
}

async fn meet(barrier: Barrier, waiting: Sender<()>) {
    let mut waits = Box::pin(barrier.wait());
    // At first it lets others come.
    assert!((&mut waits).now_or_never().is_none());
    tokio::task::yield_now().await;
    assert!((&mut waits).now_or_never().is_none());
    if is_copy() {
        drop(waits);
        leave();
    }
    waiting.send(()).await.unwrap();
    waits.await.unwrap();
}

/// It was not there any more, and all others waited for one in its place.
#[test]
fn who_waits_at_a_barrier_and_is_copied_is_still_there() {
    let runtime = support::runtime();
    let barrier = Barrier::new(2).unwrap();
    let (waiting, mut waits) = channel().unwrap();
    let other = soon_in(&runtime, spawn_process(task!(meet(barrier.clone(), waiting).await))).unwrap();
    soon_in(&runtime, waits.recv()).unwrap();
    soon_in(&runtime, barrier.wait()).unwrap();
    soon_in(&runtime, other.join()).unwrap();
}

/// It told the original's receivers, through the sockets that both have, that there will be no more.
#[test]
fn a_queue_that_a_copy_drops_goes_on() {
    alone("a_queue_that_a_copy_drops_goes_on", || {
        let queue = AckedQueue::<u32>::new();
        let mut rx = queue.receiver().unwrap();
        soon(queue.send(1)).unwrap();
        next(&mut rx).ack().unwrap();
        soon(queue.finished());
        if is_copy() {
            drop(queue);
            leave();
        }
        soon(queue.send(2)).unwrap();
        let second = next(&mut rx);
        assert_eq!(*second, 2);
        second.ack().unwrap();
        drop(queue);
        assert!(soon(rx.recv()).unwrap().is_none());
    });
}

/// It ended the direction to the original, on the socket that both have.
#[test]
fn a_duplex_whose_copy_is_dropped_while_something_is_to_leave_still_receives() {
    alone("a_duplex_whose_copy_is_dropped_while_something_is_to_leave_still_receives", || {
        let (mut ours, mut theirs) = duplex::<Vec<u8>, u32>().unwrap();
        // It was let in, and leaves in the background.
        assert!(soon(async { Duplex::send(&ours, vec![1; 4 << 20]).now_or_never() }).is_none());
        if is_copy() {
            drop(ours);
            leave();
        }
        assert_eq!(soon(theirs.recv()).unwrap().unwrap().len(), 4 << 20);
        soon(Duplex::send(&theirs, 7)).unwrap();
        assert_eq!(soon(ours.recv()).unwrap(), Some(7));
    });
}

/// The copy sent it, too.
#[test]
fn what_a_sender_was_fed_leaves_once_also_where_its_copy_is_dropped() {
    alone("what_a_sender_was_fed_leaves_once_also_where_its_copy_is_dropped", || {
        let (mut tx, mut rx) = channel::<u32>().unwrap();
        soon(tx.feed(1)).unwrap();
        if is_copy() {
            drop(tx);
            leave();
        }
        soon(tx.flush()).unwrap();
        drop(tx);
        assert_eq!(soon(rx.recv()).unwrap(), Some(1));
        assert_eq!(soon(rx.recv()).unwrap(), None);
    });
}

/// As a daemon makes itself: what is made after that is its own.
#[test]
fn what_a_copy_makes_itself_is_as_good_as_the_originals() {
    alone("what_a_copy_makes_itself_is_as_good_as_the_originals", || {
        let before = channel::<u32>().unwrap();
        if is_copy() {
            drop(before);
            let queue = AckedQueue::<u32>::new();
            let (mut rx, mut other) = (queue.receiver().unwrap(), queue.receiver().unwrap());
            soon(queue.send(1)).unwrap();
            drop(next(&mut rx));
            assert!(next(&mut other).is_redelivered());
            let (mut tx, mut rx) = channel::<u32>().unwrap();
            soon(tx.feed(1)).unwrap();
            drop(tx);
            assert_eq!(soon(rx.recv()).unwrap(), Some(1));
            leave();
        }
    });
}

/// The copy took the original's place in the reactor that both have, and nobody woke it any more.
#[test]
fn a_receiver_whose_copy_is_dropped_is_still_woken() {
    alone("a_receiver_whose_copy_is_dropped_is_still_woken", || {
        let runtime = support::runtime();
        let (tx, mut rx) = channel::<u32>().unwrap();
        assert!(runtime.block_on(async { rx.recv().now_or_never() }).is_none());
        if is_copy() {
            drop(rx);
            leave();
        }
        let received = runtime.block_on(async {
            let received = tokio::time::timeout(Duration::from_secs(10), rx.recv());
            tokio::join!(received, async { tx.send(1).await.unwrap() }).0
        });
        assert_eq!(received.expect("nobody woke it").unwrap(), Some(1));
    });
}

/// As it was with a receiver.
#[test]
fn who_reads_a_program_whose_handle_was_dropped_in_a_copy_is_still_woken() {
    alone("who_reads_a_program_whose_handle_was_dropped_in_a_copy_is_still_woken", || {
        let runtime = support::runtime();
        let command = || Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = runtime.block_on(async { command().spawn().unwrap() });
        let mut byte = [0];
        assert!(runtime.block_on(async { child.stdout.as_mut().unwrap().read(&mut byte).now_or_never() }).is_none());
        if is_copy() {
            drop(child);
            leave();
        }
        let (stdin, stdout) = (child.stdin.as_mut().unwrap(), child.stdout.as_mut().unwrap());
        let read = runtime.block_on(async {
            let read = tokio::time::timeout(Duration::from_secs(10), stdout.read(&mut byte));
            tokio::join!(read, async { stdin.write_all(b"x").await.unwrap() }).0
        });
        assert_eq!(read.expect("nobody woke it").unwrap(), 1);
        assert_eq!(byte, *b"x");
    });
}

/// The end was the copy's as soon as it had dropped its own, and no sooner.
#[test]
fn what_a_copy_drops_is_closed_there() {
    alone("what_a_copy_drops_is_closed_there", || {
        let runtime = support::runtime();
        let (tx, mut rx) = channel::<u32>().unwrap();
        assert!(runtime.block_on(async { rx.recv().now_or_never() }).is_none());
        if is_copy() {
            let before = open_fds();
            drop((tx, rx));
            assert_eq!(open_fds(), before - 2);
            leave();
        }
    });
}
