//! Semaphores, events and barriers across processes: whoever dies, the others go on, and the next one is told.

#![expect(clippy::needless_pass_by_value, reason = "a task owns its arguments")]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use multiproc::sync::{Barrier, BarrierWait, Event, Semaphore, SemaphorePermit};
use multiproc::{QueueSender, Receiver, Sender, SyncError, channel, queue, spawn_process, task};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod support;

multiproc::test_support!();

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// Goes through the broker's thread and back: what it had been told before has been done.
async fn settle() {
    let event = Event::new().unwrap();
    for _ in 0..5 {
        assert!(!event.is_set().await.unwrap());
    }
}

fn enter_and_leave(lock: Semaphore, log: QueueSender<(u32, bool)>, who: u32) {
    for _ in 0..50 {
        let permit = lock.blocking_acquire().unwrap();
        log.blocking_send((who, true)).unwrap();
        log.blocking_send((who, false)).unwrap();
        drop(permit);
    }
}

async fn enter_and_leave_async(lock: Semaphore, log: QueueSender<(u32, bool)>, who: u32) {
    for _ in 0..50 {
        let permit = lock.acquire().await.unwrap();
        log.send((who, true)).await.unwrap();
        log.send((who, false)).await.unwrap();
        drop(permit);
    }
}

async fn one_at_a_time() {
    let lock = Semaphore::new(1).unwrap();
    let (log, entries) = queue().unwrap();
    let mut children = Vec::new();
    for who in 0..2 {
        children.push(spawn_process(task!(enter_and_leave(lock.clone(), log.clone(), who))).await.unwrap());
        let waiting = task!(enter_and_leave_async(lock.clone(), log.clone(), who + 2).await);
        children.push(spawn_process(waiting).await.unwrap());
    }
    drop(log);
    for _ in 0..200 {
        let (who, entered) = entries.recv().await.unwrap().unwrap();
        assert!(entered);
        assert_eq!(entries.recv().await.unwrap(), Some((who, false)), "nobody was let in meanwhile");
    }
    for child in children {
        child.join().await.unwrap();
    }
    assert!(!lock.acquire().await.unwrap().after_death());
}

#[tokio::test]
async fn a_semaphore_of_one_lets_in_one_process_at_a_time() {
    one_at_a_time().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_semaphore_of_one_lets_in_one_process_at_a_time_on_many_threads() {
    one_at_a_time().await;
}

fn hold(lock: Semaphore, held: Sender<()>, mut forever: Receiver<()>) {
    let _permit = lock.blocking_acquire().unwrap();
    held.blocking_send(()).unwrap();
    let _ = forever.blocking_recv();
}

#[tokio::test]
async fn a_killed_holder_s_permit_is_free_and_the_next_holder_alone_is_told() {
    let lock = Semaphore::new(1).unwrap();
    for _ in 0..5 {
        let (held, mut holds) = channel().unwrap();
        let (_open, forever) = channel().unwrap();
        let mut child = spawn_process(task!(hold(lock.clone(), held, forever))).await.unwrap();
        holds.recv().await.unwrap().unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none());
        let mut next = Box::pin(lock.acquire());
        assert!(poll_once(&mut next).await.is_pending());
        child.kill().unwrap();
        child.wait().await.unwrap();
        let permit = next.await.unwrap();
        assert!(permit.after_death());
        drop(permit);
        assert!(!lock.acquire().await.unwrap().after_death());
    }
}

fn wait_in_line(lock: Semaphore, running: Sender<()>, got: Sender<()>) {
    running.blocking_send(()).unwrap();
    let _permit = lock.blocking_acquire().unwrap();
    got.blocking_send(()).unwrap();
}

#[tokio::test]
async fn a_process_killed_in_the_line_takes_no_permit_with_it() {
    let lock = Semaphore::new(1).unwrap();
    for _ in 0..5 {
        let permit = lock.acquire().await.unwrap();
        let (running, mut started) = channel().unwrap();
        let (got, _nothing) = channel().unwrap();
        let mut child = spawn_process(task!(wait_in_line(lock.clone(), running, got))).await.unwrap();
        started.recv().await.unwrap().unwrap();
        child.kill().unwrap();
        child.wait().await.unwrap();
        settle().await;
        drop(permit);
        let permit = lock.acquire().await.unwrap();
        assert!(!permit.after_death());
    }
}

fn take_and_give_back(lock: Semaphore, turns: Sender<u32>) {
    for turn in 0.. {
        let permit = lock.blocking_acquire().unwrap();
        drop(permit);
        turns.blocking_send(turn).unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_at_any_moment_loses_no_permit() {
    let lock = Semaphore::new(2).unwrap();
    for turns in 0..20 {
        let (say, mut said) = channel().unwrap();
        let mut child = spawn_process(task!(take_and_give_back(lock.clone(), say))).await.unwrap();
        for _ in 0..=turns {
            said.recv().await.unwrap().unwrap();
        }
        child.kill().unwrap();
        let both = (lock.acquire().await.unwrap(), lock.acquire().await.unwrap());
        child.wait().await.unwrap();
        drop(both);
    }
}

#[tokio::test]
async fn an_acquire_dropped_at_any_moment_loses_no_permit() {
    let lock = Semaphore::new(1).unwrap();
    for n in 0..500 {
        let mut acquire = Box::pin(lock.acquire());
        for _ in 0..n % 7 {
            if poll_once(&mut acquire).await.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(acquire);
    }
    let permit = lock.acquire().await.unwrap();
    assert!(!permit.after_death());
    assert!(lock.try_acquire().await.unwrap().is_none());
    drop(permit);
    assert!(lock.acquire().await.is_ok());
}

/// The release must not wait behind those who wait for it.
#[tokio::test]
async fn more_may_wait_than_calls_can_be_open() {
    let lock = Semaphore::new(1).unwrap();
    let permit = lock.acquire().await.unwrap();
    let mut waiting = Box::pin(join_all((0..1500).map(|_| async { drop(lock.acquire().await.unwrap()) })));
    assert!(poll_once(&mut waiting).await.is_pending());
    settle().await;
    drop(permit);
    waiting.await;
}

fn pass_through(lock: Semaphore) -> Semaphore {
    drop(lock.blocking_acquire().unwrap());
    lock
}

fn make() -> Semaphore {
    Semaphore::new(1).unwrap()
}

#[tokio::test]
async fn it_travels_on_and_is_closed_when_the_process_that_made_it_ends() {
    let lock = Semaphore::new(1).unwrap();
    let back = spawn_process(task!(pass_through(lock.clone()))).await.unwrap().join().await.unwrap();
    let permit = back.acquire().await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none(), "the same one");
    drop(permit);
    drop(lock.acquire().await.unwrap());
    let orphan = spawn_process(task!(make())).await.unwrap().join().await.unwrap();
    assert!(matches!(orphan.acquire().await, Err(SyncError::Closed)));
    assert!(matches!(orphan.blocking_acquire(), Err(SyncError::Closed)));
}

fn wait_and_say(event: Event, running: Sender<()>, told: Sender<()>) {
    running.blocking_send(()).unwrap();
    event.blocking_wait().unwrap();
    told.blocking_send(()).unwrap();
}

#[tokio::test]
async fn an_event_tells_all_who_wait_and_all_who_come_until_it_is_cleared() {
    let event = Event::new().unwrap();
    let mut children = Vec::new();
    for _ in 0..3 {
        let (running, mut started) = channel().unwrap();
        let (tell, told) = channel::<()>().unwrap();
        children.push((spawn_process(task!(wait_and_say(event.clone(), running, tell))).await.unwrap(), told));
        started.recv().await.unwrap().unwrap();
    }
    let (mut victim, _) = children.pop().unwrap();
    victim.kill().unwrap();
    victim.wait().await.unwrap();
    assert!(!event.is_set().await.unwrap());
    event.set().await.unwrap();
    for (child, mut told) in children {
        told.recv().await.unwrap().unwrap();
        child.join().await.unwrap();
    }
    event.wait().await.unwrap();
    event.blocking_wait().unwrap();
    assert!(event.is_set().await.unwrap());
    event.clear().await.unwrap();
    let mut wait = Box::pin(event.wait());
    assert!(poll_once(&mut wait).await.is_pending());
    settle().await;
    let (set, cleared) = tokio::join!(event.set(), event.clear());
    set.and(cleared).unwrap();
    wait.await.unwrap();
    assert!(!event.is_set().await.unwrap());
}

fn meet(barrier: Barrier, rounds: u32) -> u32 {
    (0..rounds).map(|_| u32::from(barrier.blocking_wait().unwrap().is_leader())).sum()
}

#[tokio::test]
async fn a_barrier_lets_all_go_on_together_round_after_round_with_one_leader_each() {
    let barrier = Barrier::new(3).unwrap();
    let one = spawn_process(task!(meet(barrier.clone(), 50))).await.unwrap();
    let other = spawn_process(task!(meet(barrier.clone(), 50))).await.unwrap();
    let mut leads = 0;
    for _ in 0..50 {
        let met = barrier.wait().await.unwrap();
        assert!(!met.after_death());
        leads += u32::from(met.is_leader());
    }
    assert_eq!(leads + one.join().await.unwrap() + other.join().await.unwrap(), 50);
}

async fn come_and_say(barrier: Barrier, running: Sender<()>) {
    let mut wait = Box::pin(barrier.wait());
    assert!(poll_once(&mut wait).await.is_pending());
    running.send(()).await.unwrap();
    wait.await.unwrap();
}

#[tokio::test]
async fn one_who_dies_or_gives_up_before_a_barrier_is_waited_for_again_and_deaths_are_told() {
    let barrier = Barrier::new(2).unwrap();
    for dies in [true, false, true] {
        if dies {
            let (running, mut started) = channel().unwrap();
            let mut child = spawn_process(task!(come_and_say(barrier.clone(), running).await)).await.unwrap();
            started.recv().await.unwrap().unwrap();
            child.kill().unwrap();
            child.wait().await.unwrap();
        } else {
            let mut wait = Box::pin(barrier.wait());
            assert!(poll_once(&mut wait).await.is_pending());
        }
        let mut first = Box::pin(barrier.wait());
        assert!(poll_once(&mut first).await.is_pending());
        settle().await;
        assert!(poll_once(&mut first).await.is_pending(), "the one who has gone does not count");
        let (first, second): (Result<BarrierWait, _>, _) = tokio::join!(first, barrier.wait());
        assert_eq!(first.unwrap().after_death(), dies);
        assert_eq!(second.unwrap().after_death(), dies);
    }
}

/// As it came to another process.
async fn travelled<T: Serialize + DeserializeOwned + Send + 'static>(value: T) -> T {
    let (tx, mut rx) = channel().unwrap();
    tx.send(value).await.unwrap();
    rx.recv().await.unwrap().unwrap()
}

/// What one says first, the broker may read last: half of those who came were let go on, by one who had left.
#[tokio::test]
async fn one_who_has_given_up_before_a_barrier_is_not_there_for_who_comes_then() {
    let barrier = Barrier::new(2).unwrap();
    let other = travelled(barrier.clone()).await;
    for _ in 0..100 {
        // It has the broker read what comes through this one first.
        assert!(poll_once(&mut Box::pin(barrier.wait())).await.is_pending());
        let mut left = Box::pin(other.wait());
        assert!(poll_once(&mut left).await.is_pending());
        drop(left);
        let mut first = Box::pin(barrier.wait());
        assert!(poll_once(&mut first).await.is_pending());
        settle().await;
        assert!(poll_once(&mut first).await.is_pending(), "there is nobody else");
        let both = async { tokio::join!(first, other.wait()) };
        let (first, second) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("they meet");
        assert_ne!(first.unwrap().is_leader(), second.unwrap().is_leader());
    }
}

/// The same, of what was given back, and of who asked first.
#[tokio::test]
async fn a_semaphore_knows_of_what_came_before_through_whomever() {
    let lock = Semaphore::new(1).unwrap();
    let other = travelled(lock.clone()).await;
    for _ in 0..100 {
        let permit = other.acquire().await.unwrap();
        assert!(poll_once(&mut Box::pin(lock.acquire())).await.is_pending());
        drop(permit);
        let permit = lock.try_acquire().await.unwrap().expect("it was given back");
        assert!(poll_once(&mut Box::pin(lock.acquire())).await.is_pending());
        let mut first = Box::pin(other.acquire());
        assert!(poll_once(&mut first).await.is_pending());
        let mut second = Box::pin(lock.acquire());
        assert!(poll_once(&mut second).await.is_pending());
        settle().await;
        drop(permit);
        let permit = tokio::time::timeout(Duration::from_secs(20), first).await.expect("it asked first").unwrap();
        assert!(poll_once(&mut second).await.is_pending());
        drop(permit);
        drop(second.await.unwrap());
    }
}

#[test]
fn they_are_made_and_used_without_a_runtime() {
    let (lock, event, barrier) = (Semaphore::new(1).unwrap(), Event::new().unwrap(), Barrier::new(2).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let permit = lock.blocking_acquire().unwrap();
                drop(permit);
                barrier.blocking_wait().unwrap();
                event.blocking_set().unwrap();
            });
        }
        event.blocking_wait().unwrap();
    });
    event.blocking_clear().unwrap();
}

/// Past 1024 waits, the call that was to end them waited behind them.
#[tokio::test]
async fn three_thousand_tasks_of_a_process_wait_for_one_event_and_are_told() {
    let event = Event::new().unwrap();
    let mut waits: Vec<_> = (0..3000).map(|_| Box::pin(event.wait())).collect();
    for wait in &mut waits {
        assert!(poll_once(wait).await.is_pending());
    }
    tokio::time::timeout(Duration::from_mins(1), event.set()).await.expect("it waits behind them").unwrap();
    for told in join_all(waits).await {
        told.unwrap();
    }
}

#[tokio::test]
async fn three_thousand_tasks_of_a_process_meet_at_one_barrier() {
    let barrier = Barrier::new(3000).unwrap();
    let all = join_all((0..3000).map(|_| barrier.wait()));
    for met in tokio::time::timeout(Duration::from_mins(1), all).await.expect("the last ones wait behind the first") {
        met.unwrap();
    }
}

/// Its reader went before it, and then nobody told the broker that it was not wanted any more.
#[test]
fn an_acquire_whose_runtime_has_ended_leaves_the_line() {
    for is_kept in [false, true] {
        let lock = Semaphore::new(1).unwrap();
        let permit = lock.blocking_acquire().unwrap();
        let runtime = support::runtime();
        let theirs = lock.clone();
        let mut acquire = Box::pin(async move { theirs.acquire().await });
        assert!(runtime.block_on(poll_once(&mut acquire)).is_pending());
        if is_kept {
            drop(runtime);
            assert!(matches!(support::block_on(acquire), Err(SyncError::Io(_))));
        } else {
            // It is a younger task than the reader, which goes first.
            drop(runtime.spawn(acquire));
            drop(runtime);
        }
        drop(permit);
        let next = async { tokio::time::timeout(Duration::from_secs(20), lock.acquire()).await };
        assert!(!support::block_on(next).expect("a permit that nobody has").unwrap().after_death());
    }
}

#[test]
fn one_whose_runtime_has_ended_is_not_before_a_barrier_any_more_and_has_not_died() {
    let barrier = Barrier::new(2).unwrap();
    let (tx, mut rx) = channel().unwrap();
    tx.blocking_send(barrier.clone()).unwrap();
    let other = rx.blocking_recv().unwrap().unwrap();
    let runtime = support::runtime();
    let mut wait = Box::pin(other.wait());
    assert!(runtime.block_on(poll_once(&mut wait)).is_pending());
    drop(runtime);
    assert!(matches!(support::block_on(wait), Err(SyncError::Io(_))));
    drop(other);
    support::block_on(async {
        settle().await;
        let mut first = Box::pin(barrier.wait());
        assert!(poll_once(&mut first).await.is_pending());
        settle().await;
        assert!(poll_once(&mut first).await.is_pending(), "it does not count");
        let (first, second): (Result<BarrierWait, _>, _) = tokio::join!(first, barrier.wait());
        assert!(!first.unwrap().after_death() && !second.unwrap().after_death());
    });
}

/// It panicked where that is an abort: what it is encoded in ends before it.
#[test]
fn a_permit_that_its_thread_keeps_to_its_end_is_given_back() {
    support::alone("a_permit_that_its_thread_keeps_to_its_end_is_given_back", || {
        thread_local! {
            static KEPT: RefCell<Option<SemaphorePermit>> = const { RefCell::new(None) };
        }
        let lock = Semaphore::new(1).unwrap();
        let theirs = lock.clone();
        let keep = move || KEPT.with_borrow_mut(|kept| *kept = Some(theirs.blocking_acquire().unwrap()));
        std::thread::spawn(keep).join().unwrap();
        assert!(!lock.blocking_acquire().unwrap().after_death());
    });
}
