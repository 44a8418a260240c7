//! How fast the pool is, beside the limit that the kernel sets, in one run.
//!
//! Plain `std::time`: what counts is the ratio of two figures that were taken in turns, not either of them.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use multiproc::{ProcessPool, call};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    multiproc::init();
    for (name, runtime) in [
        ("current_thread", tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()),
        ("multi_thread", tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()),
    ] {
        println!("{name}");
        let raw = median((0..5).map(|_| runtime.block_on(raw_round_trip())));
        let one = median((0..5).map(|_| runtime.block_on(one_task())));
        println!("  one task there and back  {one:>10.2?}   raw socket {raw:>10.2?}   ratio {:.2}", ratio(one, raw));
        let all = median((0..5).map(|_| runtime.block_on(many_at_once(100_000))));
        let local = median((0..3).map(|_| runtime.block_on(many_blocking(100_000))));
        println!(
            "  100,000 at once          {:>8.0}/s   spawn_blocking {:>8.0}/s   ratio {:.2}",
            100_000.0 / all.as_secs_f64(),
            100_000.0 / local.as_secs_f64(),
            ratio(local, all)
        );
        let mapped = median((0..5).map(|_| runtime.block_on(map_tiny(1_000_000))));
        println!("  map, 1,000,000 tiny      {:>8.1} M items/s", 1.0 / mapped.as_secs_f64());
        let loops = median((0..5).map(|_| runtime.block_on(looping_callers(256, 1_000))));
        println!("  256 looping callers      {:>8.0}/s", 256_000.0 / loops.as_secs_f64());
    }
}

/// Echoes bytes between this process and a thread that blocks on its end.
async fn raw_round_trip() -> Duration {
    const ROUNDS: u32 = 2_000;
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let echo = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut bytes = [0; 40];
        while theirs.read_exact(&mut bytes).is_ok() {
            theirs.write_all(&bytes).unwrap();
        }
    });
    ours.set_nonblocking(true).unwrap();
    let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
    let begun = Instant::now();
    let mut bytes = [7; 40];
    for _ in 0..ROUNDS {
        ours.write_all(&bytes).await.unwrap();
        ours.read_exact(&mut bytes).await.unwrap();
    }
    let took = begun.elapsed() / ROUNDS;
    drop(ours);
    echo.join().unwrap();
    took
}

async fn one_task() -> Duration {
    const ROUNDS: u32 = 2_000;
    let pool = ProcessPool::new(1);
    pool.start().await.unwrap();
    let begun = Instant::now();
    for n in 0..ROUNDS {
        assert_eq!(pool.submit(call(|n: u32| n + 1, n)).await.unwrap(), n + 1);
    }
    let took = begun.elapsed() / ROUNDS;
    pool.close().await;
    took
}

async fn many_at_once(count: u32) -> Duration {
    let pool = ProcessPool::new(2);
    pool.start().await.unwrap();
    let begun = Instant::now();
    let results = join_all((0..count).map(|n| pool.submit(call(|n: u32| n + 1, n)))).await;
    let took = begun.elapsed();
    assert!(results.into_iter().zip(1..).all(|(result, n)| result.unwrap() == n));
    pool.close().await;
    took
}

/// A stream of results, with the default settings.
async fn map_tiny(count: u32) -> Duration {
    let pool = ProcessPool::new(2);
    pool.start().await.unwrap();
    let begun = Instant::now();
    let mut results = pool.map(0..count, |n: u32| n + 1);
    let mut next = 0;
    while let Some(result) = results.next().await {
        next += 1;
        assert_eq!(result.unwrap(), next);
    }
    let took = begun.elapsed();
    assert_eq!(next, count);
    pool.close().await;
    took
}

async fn many_blocking(count: u32) -> Duration {
    let begun = Instant::now();
    let results = join_all((0..count).map(|n| tokio::task::spawn_blocking(move || n + 1))).await;
    assert!(results.into_iter().zip(1..).all(|(result, n)| result.unwrap() == n));
    begun.elapsed()
}

async fn looping_callers(callers: u32, rounds: u32) -> Duration {
    let pool = ProcessPool::new(2);
    pool.start().await.unwrap();
    let begun = Instant::now();
    let callers = (0..callers).map(|_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 0..rounds {
                assert_eq!(pool.submit(call(|n: u32| n + 1, n)).await.unwrap(), n + 1);
            }
        })
    });
    join_all(callers).await.into_iter().for_each(Result::unwrap);
    let took = begun.elapsed();
    pool.close().await;
    took
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort();
    times[times.len() / 2]
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
