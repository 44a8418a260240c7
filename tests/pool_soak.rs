//! The soak: ten thousand tasks, while a random worker is killed every 50 ms. It counts what the whole process has open,
//! so it is the only test of this binary.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use multiproc::{ProcessPool, TaskError, task};
use pool_support::proc::{children, open_fds, threads};
use pool_support::{Ledger, kill, note, until, within};

multiproc::test_support!();

const TASKS: u64 = 10_000;

/// Notes that it runs, works for a while, and gives its number back.
fn work(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    std::thread::sleep(Duration::from_micros(200 + id % 1000));
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tasks_survive_a_kill_every_50_ms() {
    // The keeper's thread, its fds and the runtime's threads are there before and after.
    let warm = ProcessPool::new(1);
    within(warm.submit(task!(std::process::id()))).await.unwrap();
    within(warm.close()).await;
    drop(warm);
    let before = (open_fds(), threads());
    assert_eq!(children(), []);

    let begun = Instant::now();
    let ledger = Ledger::new();
    let pool = ProcessPool::new(4);
    let tasks: Vec<_> = (0..TASKS)
        .map(|id| {
            // Every tenth may be run again, and then has to give a result unless it is killed four times.
            let submit = pool.submit(task!(work(ledger.place(), id)));
            tokio::spawn(if id % 10 == 0 { submit.retries(3) } else { submit })
        })
        .collect();
    let killer = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut random = 88_172_645_463_325_252_u64;
            let mut every = tokio::time::interval(Duration::from_millis(50));
            let mut killed = 0_u64;
            loop {
                every.tick().await;
                let workers: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if !workers.is_empty() {
                    // It may have ended in this moment; the number is not another process's so soon.
                    kill(workers[random as usize % workers.len()], libc::SIGKILL);
                    killed += 1;
                }
                if pool.status().queued == 0 && pool.status().busy == 0 {
                    return killed;
                }
            }
        }
    });

    let (mut done, mut died) = (Vec::new(), Vec::new());
    for (id, task) in tasks.into_iter().enumerate() {
        match within(task).await.unwrap() {
            Ok(result) => {
                assert_eq!(result, id as u64, "another task's result");
                done.push(result);
            }
            Err(TaskError::Died { .. }) => died.push(id as u64),
            Err(other) => panic!("{id}: {other:?}"),
        }
    }
    let kills = within(killer).await.unwrap();
    let counts = pool.status().counts;
    within(pool.close()).await;
    let took = begun.elapsed();

    assert_eq!(done.len() + died.len(), TASKS as usize, "each resolved once");
    assert_eq!((counts.done, counts.died), (done.len() as u64, died.len() as u64));
    assert!(died.len() as u64 <= kills, "{} deaths by {kills} kills", died.len());
    assert!(died.iter().all(|id| id % 10 != 0), "those that may be run again are done");
    let mut runs = vec![0_u32; TASKS as usize];
    for id in ledger.entries() {
        runs[id as usize] += 1;
    }
    for (id, &runs) in runs.iter().enumerate() {
        let most = if id % 10 == 0 { 4 } else { 1 };
        assert!(runs <= most, "{id} was run {runs} times");
        assert!(runs >= 1 || died.contains(&(id as u64)), "{id} has a result and was never run");
    }
    assert!(took < Duration::from_secs(20), "{took:?}");

    // Nothing is left: no process, no zombie, no fd, no thread.
    drop((pool, ledger));
    assert_eq!(children(), []);
    until(|| (open_fds(), threads()) == before).await;
    eprintln!("{kills} kills, {} died, {took:?}", died.len());
}
