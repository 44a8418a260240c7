//! When a worker sleeps, and when whoever waits for it does; `busy_poll`.

mod pool_support;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use multiproc::{ProcessPool, Receiver, channel, spawn_process, task};
use pool_support::proc::{state, status};
use pool_support::wakers::{InPlace, Touchy};
use pool_support::{Meeting, is_gone, meet_and_give_pid, pid, until, within};
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

multiproc::test_support!();

/// How often a process, or a thread, has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    status(pid, "voluntary_ctxt_switches").unwrap().parse().unwrap()
}

/// Whether nobody looks here before he sleeps. Where that is so it is said, for who asks skips something then.
fn has_one_processor() -> bool {
    let has = sched_getaffinity(None).unwrap().count() == 1;
    if has {
        eprintln!("skipped: with one processor everybody sleeps at once");
    }
    has
}

#[tokio::test]
async fn a_busy_worker_does_not_sleep_between_tasks() {
    if has_one_processor() {
        return;
    }
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let before = sleeps(worker);
    for _ in 0..100 {
        assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    }
    let slept = sleeps(worker) - before;
    assert!(slept < 50, "{slept} times in 100 tasks");
    within(pool.close()).await;
    assert!(is_gone(worker), "it saw the end, too");
}

/// How often a worker sleeps in 200 tasks on its host's processor, where both are put before it is started, or after.
fn sleeps_on_its_hosts_processor(before_start: bool) -> u64 {
    let mine = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&processor| mine.is_set(processor)).unwrap());
    if before_start {
        sched_setaffinity(None, &one).unwrap();
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let pool = ProcessPool::new(1);
        let worker = pool.submit(task!(pid())).await.unwrap();
        for who in [None, Pid::from_raw(worker.cast_signed())] {
            sched_setaffinity(who, &one).unwrap();
        }
        // It has yet to see where this one comes from.
        pool.submit(task!(pid())).await.unwrap();
        let before = sleeps(worker);
        for _ in 0..200 {
            assert_eq!(pool.submit(task!(pid())).await.unwrap(), worker);
        }
        let slept = sleeps(worker) - before;
        pool.close().await;
        slept
    })
}

#[tokio::test]
async fn a_worker_on_its_hosts_processor_wakes_once_a_task() {
    for before_start in [true, false] {
        let host = within(spawn_process(task!(sleeps_on_its_hosts_processor(before_start)))).await.unwrap();
        let slept = within(host.join()).await.unwrap();
        // When its host reads an answer it does not.
        assert!(slept <= 201, "{slept} times in 200 tasks");
    }
}

async fn sleep_little_while_they_wait() {
    if has_one_processor() {
        return;
    }
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let this_thread = gettid().as_raw_nonzero().get().unsigned_abs();
    let before = sleeps(this_thread);
    for _ in 0..50 {
        assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
        assert_eq!(within(pool.try_submit(task!(pid())).unwrap()).await.unwrap(), worker);
    }
    let slept = sleeps(this_thread) - before;
    assert!(slept < 50, "{slept} times in 100 tasks");
    within(pool.close()).await;
}

#[tokio::test]
async fn the_callers_of_a_busy_pool_do_not_sleep_while_they_wait() {
    sleep_little_while_they_wait().await;
}

/// Their thread is not the one that reads the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_callers_of_a_busy_pool_do_not_sleep_while_they_wait_outside_the_runtimes_threads_neither() {
    sleep_little_while_they_wait().await;
}

fn wait_for_the_end(mut end: Receiver<()>) {
    let _ = end.blocking_recv();
}

#[tokio::test]
async fn the_callers_of_a_busy_pool_sleep_when_their_time_is_over() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_millis(1)).build().unwrap();
    within(pool.start()).await.unwrap();
    let (tx, rx) = channel::<()>().unwrap();
    let this_thread = gettid().as_raw_nonzero().get().unsigned_abs();
    let watch = std::thread::spawn(move || {
        while state(this_thread) != 'S' {
            std::thread::yield_now();
        }
        drop(tx);
    });
    within(pool.submit(task!(wait_for_the_end(rx)))).await.unwrap();
    watch.join().unwrap();
}

#[tokio::test]
async fn a_busy_worker_sleeps_when_its_time_is_over() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_millis(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    within(until(|| state(worker) == 'S')).await;
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker, "and wakes");
}

async fn one_whose_waker_panics() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let mut own = Box::pin(pool.submit(task!(pid())));
    assert!(own.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Touchy)))).is_pending());
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    assert_eq!(within(own).await.unwrap(), worker);
    within(pool.close()).await;
}

/// It ended the runtime, whose scheduler called it: with threads, the whole process.
#[tokio::test]
async fn in_a_busy_pool_too_a_waker_that_panics_is_its_own_affair() {
    one_whose_waker_panics().await;
    within(tokio::spawn(one_whose_waker_panics())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn in_a_busy_pool_too_a_waker_that_panics_is_its_own_affair_on_a_runtimes_threads() {
    within(tokio::spawn(one_whose_waker_panics())).await.unwrap();
}

/// tokio's list of what is to be polled again was in use.
#[tokio::test]
async fn in_a_busy_pool_too_a_waker_may_poll_at_once() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let future = Box::pin(pool.submit(task!(pid())));
    assert_eq!(within(InPlace::run(future)).await.unwrap(), worker);
    within(pool.close()).await;
}

/// Each looked, and gave way to other processes each time: sixteen times while this thread had something else to do.
#[tokio::test]
async fn of_all_who_wait_for_a_busy_pool_one_looks() {
    if has_one_processor() {
        return;
    }
    let pool = ProcessPool::builder().workers(3).busy_poll(Duration::from_mins(1)).build().unwrap();
    within(pool.start()).await.unwrap();
    let meeting = Meeting::new();
    let polls: [_; 3] = std::array::from_fn(|_| Arc::new(AtomicU32::new(0)));
    let mut waits = Vec::new();
    for (id, polls) in (0..).zip(polls.clone()) {
        let mut task = pool.submit(task!(meet_and_give_pid(meeting.place(), id)));
        waits.push(tokio::spawn(poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut task).poll(cx)
        })));
    }
    let guests = [meeting.guest().await, meeting.guest().await, meeting.guest().await];
    let count = || polls.each_ref().map(|polls| polls.load(Ordering::Relaxed));
    within(until(|| count().into_iter().any(|polls| polls > 1000))).await;
    let mut counts = count();
    counts.sort_unstable();
    assert!(counts[1] < 10, "{counts:?}");
    for guest in guests {
        guest.go_on().await;
    }
    for task in waits {
        within(task).await.unwrap().unwrap();
    }
    within(pool.close()).await;
}
