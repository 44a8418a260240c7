//! The pool's everyday promises.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, task};

multiproc::test_support!();

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn pid_after(time: Duration) -> u32 {
    std::thread::sleep(time);
    std::process::id()
}

#[tokio::test]
async fn tasks_come_back_with_their_results() {
    let pool = ProcessPool::new(2);
    assert_eq!(pool.status().workers, 0, "lazy");
    assert_eq!(pool.submit(task!(add(40, 2))).await.unwrap(), 42);
    let sums = join_all((0..100).map(|n| pool.submit(task!(add(n, n))))).await;
    for (n, sum) in sums.into_iter().enumerate() {
        assert_eq!(sum.unwrap(), 2 * n as u64);
    }
    pool.close().await;
    assert!(matches!(pool.submit(task!(add(1, 1))).await, Err(TaskError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_one_second_tasks_on_four_workers_the_fifth_waits() {
    let pool = ProcessPool::new(4);
    let begun = Instant::now();
    let pids = join_all((0..5).map(|_| pool.submit(task!(pid_after(Duration::from_secs(1)))))).await;
    let pids: HashSet<u32> = pids.into_iter().map(Result::unwrap).collect();
    assert!(pids.len() <= 4);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    pool.close().await;
}

#[tokio::test]
async fn a_death_costs_one_task_and_the_pool_heals() {
    let pool = ProcessPool::new(2);
    let dead = pool.submit(call(|()| std::process::exit(0), ()));
    let dead: Result<(), _> = dead.await;
    assert!(matches!(dead, Err(TaskError::Died { status: Some(status), .. }) if status.code() == Some(0)));
    assert_eq!(pool.submit(task!(add(1, 2))).await.unwrap(), 3);
    pool.cancel().await;
}

#[tokio::test]
async fn a_dropped_task_is_killed_and_the_next_one_is_not() {
    let pool = ProcessPool::new(1);
    let endless = pool
        .spawn(call(
            |()| loop {
                std::hint::spin_loop();
            },
            (),
        ))
        .await
        .unwrap();
    let queued = tokio::spawn(pool.submit(task!(add(2, 2))));
    let endless: multiproc::TaskHandle<()> = endless;
    drop(endless);
    assert_eq!(queued.await.unwrap().unwrap(), 4);
}

#[tokio::test]
async fn map_keeps_the_order_for_every_chunk_size() {
    let pool = ProcessPool::new(2);
    for chunk in [1, 2, 3, 7, 100] {
        let results: Vec<_> =
            pool.map(0..20, |n: u32| if n == 13 { panic!("unlucky") } else { n * 2 }).chunk(chunk).collect().await;
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Ok(double) => assert_eq!(double, 2 * n as u32),
                Err(TaskError::Panicked(panic)) => assert_eq!((n, panic.message.as_str()), (13, "unlucky")),
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}
