//! Large values, there and back.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use bytes::Bytes;
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::{pid, within};

multiproc::test_support!();

const BIG: usize = 100 << 20;

fn flip(value: Bytes) -> Bytes {
    value.iter().rev().copied().collect::<Vec<u8>>().into()
}

fn patterned(len: usize) -> Bytes {
    (0..len).map(|n| (n % 251) as u8).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn a_hundred_mebibytes_there_and_back() {
    let pool = ProcessPool::new(1);
    let value = patterned(BIG);
    let flipped = within(pool.submit(task!(flip(value.clone())))).await.unwrap();
    assert!(flipped == flip(value));
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn every_size_around_the_limits_of_buffers() {
    let pool = ProcessPool::new(2);
    for size in [0, 1, 127, 128, 8191, 8192, 8193, 65_535, 65_536, 65_537, 212_992, 1 << 20, (4 << 20) + 1] {
        let value = patterned(size);
        assert!(within(pool.submit(task!(flip(value.clone())))).await.unwrap() == flip(value), "{size}");
    }
    within(pool.close()).await;
}

/// A worker that dies in the middle of a large argument or result, and one whose task is dropped meanwhile.
#[tokio::test]
async fn a_large_value_that_is_cut_off_hurts_only_its_task() {
    let pool = ProcessPool::new(1);
    for millis in [0, 1, 2, 5, 10, 20] {
        let cut = pool.submit(task!(flip(patterned(BIG / 4))));
        let cut = tokio::time::timeout(std::time::Duration::from_millis(millis), cut).await;
        if let Ok(value) = cut {
            assert_eq!(value.unwrap().len(), BIG / 4);
        }
        within(pool.submit(task!(pid()))).await.unwrap();
    }
    let dying = call(|_: Bytes| std::process::exit(5), patterned(BIG / 4));
    let dying: Result<(), _> = within(pool.submit(dying)).await;
    assert!(matches!(dying, Err(TaskError::Died { .. })));
    let panicking = call(|_: Bytes| panic!("{}", "long ".repeat(1 << 20)), Bytes::new());
    let panicking: Result<(), _> = within(pool.submit(panicking)).await;
    assert!(matches!(panicking, Err(TaskError::Panicked(panic)) if panic.message.starts_with("long long")));
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

/// Arguments that don't fit into the socket, for workers that don't read.
#[tokio::test]
async fn workers_that_stop_reading_are_timed_out_and_cancelled() {
    let pool = ProcessPool::new(2);
    let stop_all = || {
        for pid in pool.status().details.iter().filter_map(|worker| worker.pid) {
            pool_support::kill(pid, libc::SIGSTOP);
        }
    };
    within(pool.start()).await.unwrap();
    let stopped: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
    stop_all();
    let stuck = || pool.submit(task!(flip(patterned(BIG / 4)))).timeout(std::time::Duration::from_millis(100));
    let (one, two) = within(async { tokio::join!(stuck(), stuck()) }).await;
    // Neither was begun, so the one or the other may have had the time to run in a replacement.
    for result in [one, two] {
        assert!(matches!(result, Ok(_) | Err(TaskError::TimedOut)), "{:?}", result.map(|value| value.len()));
    }
    assert!(stopped.into_iter().all(pool_support::is_gone), "their workers are replaced");
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.start()).await.unwrap();
    stop_all();
    let pids: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
    let hanging = within(pool.spawn(task!(flip(patterned(BIG / 4))))).await.unwrap();
    within(pool.cancel()).await;
    assert!(matches!(within(hanging).await, Err(TaskError::Cancelled)));
    assert!(pids.len() == 2 && pids.into_iter().all(pool_support::is_gone));
}
