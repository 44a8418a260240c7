//! What becomes of the other calls of a chunk when one of them ends its worker, runs for ever, or has a result that can't be
//! kept: nothing.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]
#![allow(unsafe_code, reason = "a worker that closes its ears")]

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use multiproc::{ProcessPool, Sender, TaskError, channel, task};
use pool_support::{Ledger, endless, is_pending, kill, note, pid, until, within};
use serde::{Deserialize, Deserializer, Serialize};

multiproc::test_support!();

/// Each number has been noted once, whatever the order.
fn assert_each_once(ledger: &Ledger, count: u64) {
    let mut entries = ledger.entries();
    entries.sort_unstable();
    assert_eq!(entries, (0..count).collect::<Vec<_>>());
}

fn inputs(ledger: &Ledger, count: u64) -> Vec<(PathBuf, u64)> {
    (0..count).map(|n| (ledger.place(), n)).collect()
}

#[tokio::test]
async fn a_death_costs_the_call_that_ran_and_no_other_of_its_chunk() {
    let pool = ProcessPool::new(2);
    for chunk in [1, 2, 3, 8, usize::MAX] {
        let ledger = Ledger::new();
        let deadly = |(place, n): (PathBuf, u64)| {
            note(&place, n);
            if n % 7 == 3 {
                std::process::abort();
            }
            n * 10
        };
        let results: Vec<_> = within(pool.map(inputs(&ledger, 24), deadly).chunk(chunk).collect()).await;
        assert_eq!(results.len(), 24);
        for (n, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert!(n % 7 != 3 && value == n * 10),
                Err(TaskError::Died { .. }) => assert_eq!(n % 7, 3),
                Err(other) => panic!("{n} in {chunk}: {other:?}"),
            }
        }
        assert_each_once(&ledger, 24);
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn at_either_end_of_a_chunk_too_and_when_all_are_deadly() {
    let pool = ProcessPool::new(1);
    for deadly in [&[0][..], &[4], &[0, 4], &[0, 1, 2, 3, 4]] {
        let inputs = (0..5).map(|n| (n, deadly.contains(&n)));
        let call = |(n, deadly): (u32, bool)| if deadly { std::process::exit(0) } else { n };
        let results: Vec<_> = within(pool.map(inputs, call).chunk(5).collect()).await;
        for (n, result) in (0..5).zip(&results) {
            match result {
                Ok(value) => assert!(*value == n && !deadly.contains(&n)),
                Err(TaskError::Died { .. }) => assert!(deadly.contains(&n)),
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(results.len(), 5);
    }
    within(pool.close()).await;
}

/// Ends the worker that decodes it.
#[derive(Serialize)]
struct Deadly(bool);

impl<'de> Deserialize<'de> for Deadly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let deadly = bool::deserialize(deserializer)?;
        if deadly && multiproc::is_worker() {
            std::process::abort();
        }
        Ok(Self(deadly))
    }
}

#[tokio::test]
async fn a_death_while_an_input_is_decoded_costs_that_one_alone() {
    let pool = ProcessPool::new(2);
    let inputs = (0..10).map(|n| Deadly(n == 4));
    let results: Vec<_> = within(pool.map(inputs, |_| pid()).chunk(10).collect()).await;
    for (n, result) in results.into_iter().enumerate() {
        assert!(if n == 4 { matches!(result, Err(TaskError::Died { .. })) } else { result.is_ok() }, "{n}");
    }
    within(pool.close()).await;
}

/// More than can be kept for the case of a death: the chunk answers in between, and goes on.
#[tokio::test]
async fn large_results_survive_a_death_behind_them() {
    let pool = ProcessPool::new(1);
    for len in [1_000, 50_000, 200_000] {
        let ledger = Ledger::new();
        let inputs = (0..10).map(|n| (ledger.place(), n, len));
        let call = |(place, n, len): (PathBuf, u64, usize)| {
            note(&place, n);
            if n == 6 {
                std::process::abort();
            }
            vec![n as u8; len]
        };
        let results: Vec<_> = within(pool.map(inputs, call).chunk(10).collect()).await;
        assert_eq!(results.len(), 10);
        for (n, result) in (0..10_u64).zip(results) {
            match result {
                Ok(bytes) => assert!(n != 6 && bytes == vec![n as u8; len]),
                Err(error) => assert!(n == 6 && matches!(error, TaskError::Died { .. }), "{n}: {error:?}"),
            }
        }
        assert_each_once(&ledger, 10);
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn what_travels_beside_the_bytes_stays_with_its_input_and_its_result() {
    let pool = ProcessPool::new(2);
    let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..8).map(|_| channel::<u32>().unwrap()).unzip();
    let call = |(n, tx): (u32, Sender<u32>)| {
        tx.blocking_send(n).unwrap();
        match n {
            2 => std::process::abort(),
            5 => panic!("five"),
            n if n % 2 == 0 => Some(tx),
            _ => None,
        }
    };
    let results: Vec<_> = within(pool.map((0..).zip(senders), call).chunk(8).collect()).await;
    assert_eq!(results.len(), 8);
    for ((n, result), rx) in (0..).zip(results).zip(&mut receivers) {
        assert_eq!(within(rx.recv()).await.unwrap(), Some(n));
        match result {
            Err(TaskError::Died { .. }) => assert_eq!(n, 2),
            Err(TaskError::Panicked(_)) => assert_eq!(n, 5),
            Ok(Some(tx)) => {
                assert_eq!(n % 2, 0);
                within(tx.send(n + 100)).await.unwrap();
                assert_eq!(within(rx.recv()).await.unwrap(), Some(n + 100));
            }
            Ok(None) => assert_eq!(n % 2, 1),
            Err(other) => panic!("{n}: {other:?}"),
        }
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_call_that_runs_too_long_is_timed_out_alone() {
    let pool = ProcessPool::builder().workers(2).task_timeout(Duration::from_millis(300)).build().unwrap();
    let ledger = Ledger::new();
    let call = |(place, n): (PathBuf, u64)| {
        note(&place, n);
        if n == 3 {
            endless();
        }
        n
    };
    let results: Vec<_> = within(pool.map(inputs(&ledger, 8), call).chunk(8).collect()).await;
    for (n, result) in (0..8).zip(&results) {
        match result {
            Ok(value) => assert!(*value == n && n != 3),
            Err(error) => assert!(n == 3 && matches!(error, TaskError::TimedOut), "{n}: {error:?}"),
        }
    }
    assert_each_once(&ledger, 8);
    within(pool.close()).await;
}

/// The time of a task is each call's, not the chunk's.
#[tokio::test]
async fn a_chunk_may_take_longer_than_each_of_its_calls() {
    let pool = ProcessPool::builder().workers(1).task_timeout(Duration::from_secs(1)).build().unwrap();
    let slow = |n: u32| {
        std::thread::sleep(Duration::from_millis(300));
        n
    };
    let results: Vec<_> = within(pool.map(0..8, slow).chunk(8).map(Result::unwrap).collect()).await;
    assert_eq!(results, (0..8).collect::<Vec<_>>());
    within(pool.close()).await;
}

#[tokio::test]
async fn a_call_that_stops_when_its_time_is_up_keeps_its_worker_and_the_others_run() {
    let pool = ProcessPool::builder()
        .workers(1)
        .task_timeout(Duration::from_millis(300))
        .cancel_grace(Duration::from_mins(2))
        .build()
        .unwrap();
    let call = |n: u32| {
        while n == 3 && !multiproc::worker().is_cancelled() {
            std::thread::yield_now();
        }
        pid()
    };
    let results: Vec<_> = within(pool.map(0..6, call).chunk(6).collect()).await;
    let mut pids = Vec::new();
    for (n, result) in (0..6).zip(results) {
        match result {
            Ok(pid) => pids.push(pid),
            Err(error) => assert!(n == 3 && matches!(error, TaskError::TimedOut), "{n}: {error:?}"),
        }
    }
    assert!(pids.len() == 5 && pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    within(pool.close()).await;
}

/// A chunk that has answered in part has been submitted.
#[tokio::test]
async fn close_finishes_chunks_that_go_on() {
    let pool = ProcessPool::new(1);
    let mut map = Box::pin(pool.map(0..10_u8, |n| vec![n; 100_000]).chunk(usize::MAX));
    assert!(is_pending(map.next()).await);
    let (results, ()) = within(async { tokio::join!(map.collect::<Vec<_>>(), pool.close()) }).await;
    assert_eq!(results.len(), 10);
    for (n, result) in (0..).zip(results) {
        assert_eq!(result.unwrap(), vec![n; 100_000]);
    }
}

#[tokio::test]
async fn cancel_resolves_chunks_wherever_they_are() {
    for round in 0..50 {
        let pool = ProcessPool::new(2);
        let mut map = Box::pin(pool.map(0..40_u8, |n| vec![n; 100_000]).chunk(10));
        assert!(is_pending(map.next()).await);
        let collected = tokio::spawn(map.collect::<Vec<_>>());
        let begun = pool.status().counts.done;
        tokio::time::sleep(Duration::from_micros(round * 200)).await;
        within(pool.cancel()).await;
        let results = within(collected).await.unwrap();
        assert!(begun == 0 && results.len() >= 10, "each input that was taken has an outcome");
        for result in results {
            assert!(matches!(result, Ok(_) | Err(TaskError::Cancelled | TaskError::Closed)), "{result:?}");
        }
    }
}

/// The first workers end as soon as they are to read a task: none of them begins a call.
fn stop_hearing(place: PathBuf) {
    if note(&place, 0) < 4 {
        for fd in 3..64 {
            // SAFETY: it takes any number, and nothing else uses the socket's reading end while this task runs.
            unsafe { libc::shutdown(fd, libc::SHUT_RD) };
        }
    }
}

/// It was taken for the reason, and all of its calls with it, though none had been begun.
#[tokio::test]
async fn a_chunk_that_no_worker_gets_to_begin_loses_one_call() {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder()
        .workers(1)
        .restart_limit(u32::MAX, Duration::from_secs(1))
        .on_worker_start(task!(stop_hearing(ledger.place())))
        .build()
        .unwrap();
    let results: Vec<_> = within(pool.map(0..5, |n| n).chunk(5).collect()).await;
    assert!(matches!(results[..], [Err(TaskError::Died { .. }), Ok(1), Ok(2), Ok(3), Ok(4)]), "{results:?}");
    within(pool.close()).await;
}

/// As the soak of tasks: each input is run once and has one outcome, and a kill costs one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_kills_workers_at_whatever_moment_hits_one_call_each() {
    const INPUTS: u64 = 20_000;
    for chunk in [None, Some(100)] {
        let ledger = Ledger::new();
        let pool = ProcessPool::new(3);
        let call = |(place, n): (PathBuf, u64)| {
            note(&place, n);
            n
        };
        let map = pool.map(inputs(&ledger, INPUTS), call);
        let map = if let Some(inputs) = chunk { map.chunk(inputs) } else { map };
        let collected = tokio::spawn(map.collect::<Vec<_>>());
        let mut kills = 0;
        let mut random = 88_172_645_463_325_252_u64;
        while !collected.is_finished() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            tokio::time::sleep(Duration::from_micros(random % 20_000)).await;
            let workers: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
            if !workers.is_empty() {
                kill(workers[random as usize % workers.len()], libc::SIGKILL);
                kills += 1;
            }
        }
        let results = within(collected).await.unwrap();
        let mut runs = vec![0_u32; INPUTS as usize];
        for n in ledger.entries() {
            runs[n as usize] += 1;
        }
        let mut died = 0;
        assert_eq!(results.len() as u64, INPUTS);
        for (n, result) in (0..).zip(results) {
            assert!(runs[n as usize] <= 1, "{n} was run twice");
            match result {
                Ok(value) => assert!(value == n && runs[n as usize] == 1),
                Err(TaskError::Died { .. }) => died += 1,
                Err(other) => panic!("{n}: {other:?}"),
            }
        }
        assert!(died <= kills, "{died} deaths by {kills} kills");
        eprintln!("{kills} kills, {died} died");
        until(|| pool.status().busy == 0).await;
        within(pool.close()).await;
    }
}
