//! How cost grows: with the bytes of a task, the workers, the tasks that wait; and what an idle pool holds.
//! `cargo bench --bench growth`.

#[path = "support/bare.rs"]
mod bare;
mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use bare::{Bare, Role, be_other_side};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use multiproc::{ProcessPool, Receiver, SharedBytes, SharedBytesMut, call, channel, task};
use support::{cpu_time, each, line, micros, proc_field};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    multiproc::init();
    be_other_side();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        idle().await;
        bytes().await;
        shared().await;
        items().await;
        workers().await;
        waiting().await;
    });
}

/// What a pool with nothing to do holds and does.
async fn idle() {
    let pool = ProcessPool::new(1);
    pool.submit(call(|n: u32| n + 1, 1)).await.unwrap();
    let pid = pool.status().details[0].pid.unwrap().to_string();
    let rollup = format!("/proc/{pid}/smaps_rollup");
    let unique = proc_field(&rollup, "Private_Clean:") + proc_field(&rollup, "Private_Dirty:");
    line("idle worker", "USS", unique / 1024.0, "MiB");
    line("idle worker", "PSS", proc_field(&rollup, "Pss:") / 1024.0, "MiB");
    let threads = proc_field(&format!("/proc/{pid}/status"), "Threads:");
    line("idle worker", "threads", threads, "");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = (cpu_time("self"), cpu_time(&pid));
    tokio::time::sleep(Duration::from_secs(1)).await;
    line("idle for a second", "CPU of the worker", micros(cpu_time(&pid).saturating_sub(before.1)), "µs");
    // The sleep itself is some of this.
    line("idle for a second", "CPU of the host", micros(cpu_time("self").saturating_sub(before.0)), "µs");
    pool.close().await;
}

/// Bytes to a worker and back, beside the same through a bare socket into warm memory.
async fn bytes() {
    let pool = ProcessPool::new(1);
    for power in (4..=28).step_by(4).chain([26, 30]) {
        let len = 1_usize << power;
        let rounds = (1 << 27 >> power).clamp(1, 300);
        let runs = if power >= 26 { 1 } else { 3 };
        let payload = Bytes::from(vec![7_u8; len]);
        let mut bare = Bare::start(Role::GiveBack(len));
        let mut warm = vec![1_u8; len];
        let mut limit = async || {
            let socket = bare.socket();
            each(rounds, async {
                for _ in 0..rounds {
                    socket.write_all(&payload).await.unwrap();
                    socket.read_exact(&mut warm).await.unwrap();
                }
            })
            .await
        };
        let echo = async || {
            each(rounds, async {
                for _ in 0..rounds {
                    let back = pool.submit(call(|bytes: Bytes| bytes, payload.clone())).await.unwrap();
                    assert_eq!(back.len(), len);
                }
            })
            .await
        };
        // Memory that this machine has not had for a while costs many times as much as any message, whoever touches it first.
        if rounds == 1 || runs == 1 {
            echo().await;
        }
        let times = in_turns!(runs; limit(), echo());
        let row = format!("echo of {len} B");
        line(&row, "limit: bare socket", micros(times[0]), "µs");
        line(&row, "multiproc", micros(times[1]), "µs");
    }
    pool.close().await;
}

/// In a worker: what it was sent and keeps.
static KEPT: OnceLock<SharedBytes> = OnceLock::new();

/// 64 MiB written in place and looked at there, beside one memcpy.
async fn shared() {
    const LEN: usize = 64 << 20;
    let pool = ProcessPool::new(1);
    let source = vec![7_u8; LEN];
    let mut target = vec![1_u8; LEN];
    let mut copy = async || {
        each(1, async {
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&mut target);
        })
        .await
    };
    let share = async || {
        each(1, async {
            let mut bytes = SharedBytesMut::new(LEN).unwrap();
            bytes.copy_from_slice(&source);
            let last = call(|bytes: SharedBytes| bytes[bytes.len() - 1], bytes.freeze().unwrap());
            assert_eq!(pool.submit(last).await.unwrap(), 7);
        })
        .await
    };
    // The same value once more, which is mapped anew each time, and wholly read over there.
    let bytes = SharedBytes::copy_from_slice(&source).unwrap();
    let again = async || {
        each(1, async {
            let read = call(|bytes: SharedBytes| std::hint::black_box(&*bytes).contains(&1), bytes.clone());
            assert!(!pool.submit(read).await.unwrap());
        })
        .await
    };
    // And one that the worker has kept.
    pool.submit(call(|bytes: SharedBytes| KEPT.set(bytes).is_ok(), bytes.clone())).await.unwrap();
    let kept = async || {
        each(1, async {
            let read = call(|()| std::hint::black_box(&**KEPT.get().unwrap()).contains(&1), ());
            assert!(!pool.submit(read).await.unwrap());
        })
        .await
    };
    let times = in_turns!(7; copy(), share(), again(), kept());
    for (who, time) in [
        ("limit: one memcpy", times[0]),
        ("multiproc: a new value", times[1]),
        ("multiproc: sent again, all of it read", times[2]),
        ("multiproc: kept there, all of it read", times[3]),
    ] {
        line("64 MiB of SharedBytes one way", who, micros(time), "µs");
    }
    pool.close().await;
}

async fn items() {
    const ITEMS: u32 = 1_000_000;
    let pool = ProcessPool::new(2);
    pool.start().await.unwrap();
    let map = async || {
        each(ITEMS, async {
            let mut results = pool.map(0..ITEMS, |n: u32| n + 1);
            let mut sum = 0_u64;
            while let Some(result) = results.next().await {
                sum += u64::from(result.unwrap());
            }
            assert_eq!(sum, u64::from(ITEMS) * u64::from(ITEMS + 1) / 2);
        })
        .await
    };
    let times = in_turns!(5; map());
    line("map over 1,000,000 numbers", "multiproc", 1e6 / micros(times[0]), "/s");
    pool.close().await;
}

async fn workers() {
    const TASKS: u32 = 20_000;
    for workers in [1, 2, 4, 8, 16, 32, 64] {
        let pool = ProcessPool::new(workers);
        pool.start().await.unwrap();
        let all = async || {
            each(TASKS, async {
                for result in join_all((0..TASKS).map(|n| pool.submit(call(|n: u32| n + 1, n)))).await {
                    result.unwrap();
                }
            })
            .await
        };
        let times = in_turns!(3; all());
        line(&format!("a task of 20,000 at once, {workers} workers"), "multiproc", micros(times[0]), "µs");
        pool.close().await;
    }
}

fn wait(mut gate: Receiver<()>) {
    let _ = gate.blocking_recv();
}

async fn waiting() {
    // What was freed before would be used again, and not be seen.
    for count in [1_000_000, 100_000, 10_000, 1_000_u32] {
        let pool = ProcessPool::new(1);
        let (open, gate) = channel::<()>().unwrap();
        let blocker = pool.spawn(task!(wait(gate))).await.unwrap();
        let mut submits: Vec<_> = (0..count).map(|n| pool.submit(call(|n: u32| n + 1, n))).collect();
        let before = proc_field("/proc/self/status", "VmRSS:");
        let begun = Instant::now();
        for submit in &mut submits {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut *submit).poll(cx))).await.is_pending());
        }
        let queued = begun.elapsed() / count;
        let row = format!("a task of {count} that wait");
        if count == 1_000_000 {
            let held = proc_field("/proc/self/status", "VmRSS:") - before;
            line(&row, "memory besides its future", held * 1024.0 / f64::from(count), "B");
        }
        drop(open);
        blocker.await.unwrap();
        for submit in submits {
            submit.await.unwrap();
        }
        let all = begun.elapsed() / count;
        line(&row, "to queue it", micros(queued), "µs");
        line(&row, "from queue to result", micros(all), "µs");
        pool.close().await;
    }
}
