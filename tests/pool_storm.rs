//! Everything at once: tasks of all kinds, callers that lose interest, workers that are killed and stopped at any moment, and
//! a pool that is resized, closed and cancelled meanwhile. Whatever happens, each future resolves, nothing runs twice, and
//! nothing is left.
//!
//! It counts what the whole process has, so it is the only test of this binary. `STORM_SEED` repeats a run's choices, though
//! not what the scheduler makes of them.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use multiproc::{ProcessPool, TaskError, TrySubmitError, call, task};
use pool_support::proc::{children, open_fds, threads};
use pool_support::{Ledger, is_pending, kill, note, until, within};

multiproc::test_support!();

/// Pseudo-random numbers, xorshift.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX) | 1)
    }

    async fn pause(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_micros(self.below(most))).await;
    }
}

/// Notes that it runs, and does something for a while.
fn work(place: PathBuf, id: u64, micros: u64) -> u64 {
    note(&place, id);
    std::thread::sleep(Duration::from_micros(micros));
    id
}

fn die(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    std::process::exit(7)
}

fn fail(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    panic!("{id}")
}

/// What a task may come to in such a weather, beside its own result.
#[track_caller]
fn expect(result: Result<u64, TaskError>, id: u64) {
    match result {
        Ok(result) => assert_eq!(result, id, "another task's result"),
        Err(
            TaskError::Died { .. }
            | TaskError::TimedOut
            | TaskError::Cancelled
            | TaskError::Closed
            | TaskError::Panicked(_),
        ) => {}
        Err(other) => panic!("{id}: {other:?}"),
    }
}

/// One caller: a task, or a few, and then perhaps a change of mind.
async fn caller(pool: ProcessPool, place: PathBuf, id: u64, mut random: Random) {
    let micros = random.below(3_000);
    let work = || task!(work(place.clone(), id, micros));
    match random.below(9) {
        0 => expect(within(pool.submit(work())).await, id),
        1 => expect(within(pool.submit(work()).timeout(Duration::from_micros(micros))).await, id),
        2 => expect(within(pool.submit(task!(die(place.clone(), id)))).await, id),
        3 => expect(within(pool.submit(task!(fail(place.clone(), id)))).await, id),
        4 => {
            let mut submit = Box::pin(pool.submit(work()));
            let _ = is_pending(&mut submit).await;
            random.pause(2_000).await;
        }
        5 => match within(pool.spawn(work())).await {
            Ok(mut handle) => {
                random.pause(2_000).await;
                handle.abort();
                expect(within(&mut handle).await, id);
            }
            Err(error) => expect(Err(error), id),
        },
        6 => match pool.try_submit(work()) {
            Ok(handle) if random.below(2) == 0 => handle.detach(),
            Ok(handle) => expect(within(handle).await, id),
            Err(TrySubmitError::Full(_) | TrySubmitError::Closed(_)) => {}
            Err(other) => panic!("{other:?}"),
        },
        7 => {
            // These have numbers of their own.
            let inputs = (0..20).map(|n| (place.clone(), 1_000_000 + id * 20 + n));
            let call = |(place, id): (PathBuf, u64)| {
                note(&place, id);
                if id % 13 == 0 { std::process::exit(7) } else { id }
            };
            let chunk = 1 + random.below(20) as usize;
            let mut results = pool.map(inputs, call).chunk(chunk);
            let most = random.below(25) as usize;
            let mut taken = 0;
            while taken < most
                && let Some(result) = within(results.next()).await
            {
                expect(result, 1_000_000 + id * 20 + taken as u64);
                taken += 1;
            }
        }
        _ => {
            let large = call(|bytes: Vec<u8>| bytes.len() as u64, vec![7; random.below(300_000) as usize]);
            let _ = within(pool.submit(large)).await;
        }
    }
}

/// Kills, stops and continues workers, and resizes the pool, until it is told to end.
async fn disturb(pool: ProcessPool, mut random: Random, mut end: tokio::sync::oneshot::Receiver<()>) {
    let mut stopped = Vec::new();
    while end.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        random.pause(15_000).await;
        let workers: Vec<u32> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
        if workers.is_empty() {
            continue;
        }
        let worker = workers[random.below(workers.len() as u64) as usize];
        // The number of one that has ended in this moment is not another process's so soon.
        match random.below(6) {
            0 | 1 => kill(worker, libc::SIGKILL),
            2 => kill(worker, libc::SIGTERM),
            3 => {
                kill(worker, libc::SIGSTOP);
                stopped.push(worker);
            }
            4 => pool.resize(1 + random.below(5) as usize),
            _ => {}
        }
        // One that is stopped in the middle of a task has to go on some day.
        if random.below(2) == 0
            && let Some(worker) = stopped.pop()
        {
            kill(worker, libc::SIGCONT);
        }
    }
    for worker in stopped {
        kill(worker, libc::SIGCONT);
    }
}

async fn storm(mut random: Random) {
    let ledger = Ledger::new();
    let mut builder = ProcessPool::builder().workers(1 + random.below(4) as usize);
    if random.below(2) == 0 {
        builder = builder.max_tasks_per_worker(1 + random.below(30));
    }
    if random.below(3) == 0 {
        builder = builder.idle_timeout(Duration::from_micros(random.below(20_000)));
    }
    if random.below(3) == 0 {
        builder = builder.cancel_grace(Duration::from_micros(random.below(20_000)));
    }
    if random.below(3) == 0 {
        builder = builder.on_worker_start(call(|()| (), ())).on_worker_exit(call(|()| (), ()));
    }
    let pool = builder.restart_limit(u32::MAX, Duration::from_secs(1)).build().unwrap();
    let (ended, end) = tokio::sync::oneshot::channel();
    let disturber = tokio::spawn(disturb(pool.clone(), random.fork(), end));
    let mut callers = Vec::new();
    for id in 0..150 {
        callers.push(tokio::spawn(caller(pool.clone(), ledger.place(), id, random.fork())));
        if random.below(4) == 0 {
            random.pause(2_000).await;
        }
    }
    let ending = random.below(4);
    if ending == 0 {
        for caller in callers.drain(..) {
            within(caller).await.unwrap();
        }
    }
    let last = tokio::spawn({
        let (pool, mut random) = (pool.clone(), random.fork());
        async move {
            match ending {
                2 => within(pool.cancel()).await,
                3 => {
                    let _ = is_pending(pool.close()).await;
                    random.pause(20_000).await;
                    within(pool.cancel()).await;
                }
                _ => {}
            }
        }
    });
    for caller in callers {
        within(caller).await.unwrap();
    }
    within(last).await.unwrap();
    let _ = ended.send(());
    within(disturber).await.unwrap();
    if ending == 1 {
        // Dropping the last handle is an end, too.
        drop(pool);
    } else {
        within(pool.close()).await;
        assert!(pool.status().details.is_empty());
    }
    until(|| children().is_empty()).await;
    let mut entries = ledger.entries();
    let before = entries.len();
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), before, "nothing runs twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_together_each_future_resolves_and_nothing_is_left() {
    // The crate's own threads and fds are there before and after.
    let warm = ProcessPool::new(1);
    within(warm.submit(task!(std::process::id()))).await.unwrap();
    within(warm.close()).await;
    drop(warm);
    let seed: u64 = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20);
    let storms: u64 = std::env::var("STORMS").ok().and_then(|storms| storms.parse().ok()).unwrap_or(12);
    let before = (open_fds(), threads());
    for seed in seed..seed + storms {
        eprintln!("seed {seed}");
        within(storm(Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))).await;
    }
    // Threads that were there for a while may have gone since.
    until(|| open_fds() == before.0 && threads() <= before.1).await;
}
