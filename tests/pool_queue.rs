//! Slots and the queue: backpressure, order, and callers of every kind.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, TrySubmitError, call, task};
use pool_support::{Ledger, Meeting, busy, is_pending, kill, meet_and_give_pid, note, pid, until, within};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

fn note_it(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    id
}

/// A task that is a type of its own, so that it can be looked at when it comes back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named(String);

impl multiproc::Task for Named {
    type Output = usize;

    fn run(self) -> usize {
        self.0.len()
    }
}

#[tokio::test]
async fn try_submit_gives_a_task_back_that_has_no_slot() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let first = pool.try_submit(task!(meet_and_give_pid(meeting.place(), 0))).unwrap();
    match pool.try_submit(Named("again".into())) {
        Err(TrySubmitError::Full(task)) => assert_eq!(task, Named("again".into())),
        other => panic!("{other:?}"),
    }
    meeting.guest().await.go_on().await;
    within(first).await.unwrap();
    let mut named = Named("again".into());
    let length = loop {
        match pool.try_submit(named) {
            Ok(handle) => break within(handle).await.unwrap(),
            Err(TrySubmitError::Full(back)) => named = back,
            Err(other) => panic!("{other:?}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(length, 5);
    within(pool.close()).await;
    match pool.try_submit(Named("late".into())) {
        Err(TrySubmitError::Closed(task)) => assert_eq!(task, Named("late".into())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn try_submit_does_not_overtake_those_that_wait() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let first = within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 0)))).await.unwrap();
    let waiting = tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), 1))));
    until(|| pool.status().queued == 1).await;
    assert_eq!(meeting.guest().await.id, 0);
    within(first).await.unwrap();
    assert!(matches!(pool.try_submit(task!(pid())), Err(TrySubmitError::Full(_))));
    assert_eq!(meeting.guest().await.id, 1);
    within(waiting).await.unwrap().unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn spawn_waits_for_a_slot() {
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let one = within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 0)))).await.unwrap();
    let two = within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 1)))).await.unwrap();
    let guests = [meeting.guest().await, meeting.guest().await];
    let mut third = pin!(pool.spawn(task!(pid())));
    for _ in 0..100 {
        assert!(is_pending(&mut third).await);
    }
    let [first, second] = guests;
    first.go_on().await;
    let third = within(third).await.unwrap();
    assert!([one.worker_id(), two.worker_id()].iter().filter(|id| id.is_some()).count() >= 1);
    within(third).await.unwrap();
    second.go_on().await;
    within(one).await.unwrap();
    within(two).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn tasks_start_in_the_order_in_which_they_were_submitted() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let results = within(join_all((0..500).map(|id| pool.submit(task!(note_it(ledger.place(), id)))))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(ledger.entries(), (0..500).collect::<Vec<_>>());
    within(pool.close()).await;
}

#[tokio::test]
async fn a_hundred_thousand_at_once() {
    let pool = ProcessPool::new(2);
    let tasks: Vec<_> = (0..100_000_u32).map(|n| tokio::spawn(pool.submit(call(|n: u32| n + 1, n)))).collect();
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(within(task).await.unwrap().unwrap(), n as u32 + 1);
    }
    assert_eq!(pool.status().counts.done, 100_000);
    within(pool.close()).await;
}

/// A waker that looks at the pool, and how often it was called.
struct Nosy(ProcessPool, AtomicUsize);

impl Wake for Nosy {
    fn wake(self: Arc<Self>) {
        self.0.status();
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whoever is woken may use the pool at once, from inside its waker: nothing is woken under the pool's lock.
#[tokio::test]
async fn a_waker_may_use_the_pool() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let first = within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 0)))).await.unwrap();
    let nosy = Arc::new(Nosy(pool.clone(), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&nosy));
    let mut cx = Context::from_waker(&waker);
    let mut spawned = Box::pin(pool.spawn(task!(pid())));
    let mut submitted = Box::pin(pool.submit(task!(pid())));
    assert!(spawned.as_mut().poll(&mut cx).is_pending());
    assert!(submitted.as_mut().poll(&mut cx).is_pending());
    meeting.guest().await.go_on().await;
    within(first).await.unwrap();
    until(|| nosy.1.load(Ordering::Relaxed) >= 1).await;
    within(within(spawned).await.unwrap()).await.unwrap();
    until(|| nosy.1.load(Ordering::Relaxed) >= 2).await;
    within(submitted).await.unwrap();
    drop(nosy);
    within(pool.close()).await;
}

/// As above, for who waits until the pool has started, and until it has ended. It waited for the lock that its waker was called under.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waker_of_who_waits_for_the_pool_may_use_it() {
    let pool = ProcessPool::new(1);
    let nosy = Arc::new(Nosy(pool.clone(), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&nosy));
    let mut cx = Context::from_waker(&waker);
    let mut started = Box::pin(pool.start());
    assert!(started.as_mut().poll(&mut cx).is_pending());
    within(until(|| nosy.1.load(Ordering::Relaxed) >= 1)).await;
    within(started).await.unwrap();

    let (busy, guest) = busy(&pool).await;
    let (other, before) = (pool.clone(), nosy.1.load(Ordering::Relaxed));
    let mut closed = Box::pin(other.close());
    assert!(closed.as_mut().poll(&mut cx).is_pending());
    guest.go_on().await;
    within(until(|| nosy.1.load(Ordering::Relaxed) > before)).await;
    within(closed).await;
    within(busy).await.unwrap();
}

/// Idle workers die in the moment in which they are given a task. Whatever comes of it, every future resolves: a task
/// that was put before a worker whose end was being noticed once vanished with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_given_to_a_dying_worker_resolves() {
    let pool = ProcessPool::new(2);
    let (mut died, mut warm_up) = (0, 0);
    for _ in 0..500 {
        within(pool.start()).await.unwrap();
        // Those that die without having done anything are replaced more and more slowly.
        for result in within(join_all((0..2).map(|_| pool.submit(task!(pid()))))).await {
            warm_up += u64::from(result.is_ok());
        }
        for worker in pool.status().details {
            if let Some(pid) = worker.pid {
                kill(pid, libc::SIGKILL);
            }
        }
        let tasks = (0..4).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.submit(task!(pid())).await })
        });
        for result in within(join_all(tasks)).await {
            match result.unwrap() {
                Ok(_) => {}
                Err(TaskError::Died { .. }) => died += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    let counts = pool.status().counts;
    assert_eq!((counts.done + counts.died, counts.died), (2000 + warm_up, died));
    within(pool.close()).await;
}

fn usually_tiny(place: PathBuf, id: u64, long: u64) -> u64 {
    if id == long {
        pool_support::meet(&place, id);
    }
    id
}

/// Tasks are sent ahead to a worker whose tasks are short. If one of them turns out to be long, those behind it run elsewhere.
#[tokio::test]
async fn no_short_task_waits_behind_a_long_one() {
    const LONG: u64 = 1000;
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let mut tasks: Vec<_> =
        (0..5000).map(|id| tokio::spawn(pool.submit(task!(usually_tiny(meeting.place(), id, LONG))))).collect();
    let long = tasks.remove(LONG as usize);
    let guest = meeting.guest().await;
    let results = within(join_all(tasks)).await;
    assert_eq!(results.into_iter().filter(|result| matches!(result, Ok(Ok(_)))).count(), 4999);
    assert!(!long.is_finished(), "it is still at the meeting");
    guest.go_on().await;
    assert_eq!(within(long).await.unwrap().unwrap(), LONG);
    within(pool.close()).await;
}

/// Nor until there is nothing else to do: others are submitted all the time.
#[tokio::test]
async fn no_short_task_is_overtaken_for_ever_by_what_was_submitted_later() {
    const LONG: u64 = 1000;
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let mut tasks: Vec<_> =
        (0..2000).map(|id| tokio::spawn(pool.submit(task!(usually_tiny(meeting.place(), id, LONG))))).collect();
    let long = tasks.remove(LONG as usize);
    let over = Arc::new(AtomicBool::new(false));
    let others = (0..3000).map(|_| {
        let (pool, over) = (pool.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                pool.submit(task!(pid())).await.unwrap();
            }
        })
    });
    let others: Vec<_> = others.collect();
    let guest = meeting.guest().await;
    for result in within(join_all(tasks)).await {
        result.unwrap().unwrap();
    }
    over.store(true, Ordering::Relaxed);
    guest.go_on().await;
    assert_eq!(within(long).await.unwrap().unwrap(), LONG);
    for other in within(join_all(others)).await {
        other.unwrap();
    }
    within(pool.close()).await;
}

/// Each test has a thread of its own, so that nobody else is bound to that CPU.
#[tokio::test]
async fn by_default_there_is_a_worker_for_each_usable_cpu() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let cpus = |pool: &ProcessPool| pool.status().limit;
    let all = sched_getaffinity(None).unwrap();
    // By affinity and by the quota of a cgroup: std asks for both.
    assert_eq!(cpus(&ProcessPool::default()), std::thread::available_parallelism().unwrap().get());
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).unwrap());
    sched_setaffinity(None, &one).unwrap();
    assert_eq!(cpus(&ProcessPool::default()), 1);
    assert_eq!(cpus(&ProcessPool::builder().build().unwrap()), 1);
}
