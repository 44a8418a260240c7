//! The pool, channels and starts beside what the kernel allows, in one run: `cargo bench --bench limits [one-core | two-cores]`.
//!
//! What counts is the ratio of figures that were taken in turns. `one-core` leaves out what needs two; it is for `taskset -c 0`.
//! `two-cores` puts this side on the first core and each other side on the second.

#[path = "support/bare.rs"]
mod bare;
#[path = "support/batches.rs"]
mod batches;
#[path = "support/messages.rs"]
mod messages;
mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bare::{Bare, POLLED, Role, ask_once, ask_once_async, be_other_side};
use batches::Batches;
use futures::future::join_all;
use messages::channels;
use multiproc::{ProcessPool, call, spawn_process};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use support::{Each, cpu_time, each, line, mean, median, micros, order, summary};

fn main() {
    multiproc::init();
    be_other_side();
    if std::env::args().any(|arg| arg == "nothing") {
        return;
    }
    let is_asked = |mode: &str| std::env::args().any(|arg| arg == mode);
    let (one_core, two_cores) = (is_asked("one-core"), is_asked("two-cores"));
    let place = match (one_core, two_cores) {
        (true, _) => "one core",
        (_, true) => "two cores",
        _ => "free",
    };
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (name, runtime) in [("current_thread", &current), ("multi_thread", &multi)] {
        if one_core || two_cores {
            runtime.block_on(there_and_back(&format!("{place}, {name}"), two_cores));
        } else {
            runtime.block_on(there_and_back_freely(&format!("free, {FREE_PAIRS} pairs, {name}")));
            runtime.block_on(many(name));
        }
    }
    if two_cores {
        return;
    }
    if one_core {
        current.block_on(channels(place, 1));
        current.block_on(starts("one core, host as it is"));
    } else {
        current.block_on(channels(place, MESSAGE_PAIRS));
        current.block_on(starts("host as it is"));
        let touched = vec![1_u8; 4 << 30];
        current.block_on(starts("host with 4 GiB touched"));
        drop(std::hint::black_box(touched));
    }
}

async fn one_by_one(pool: &ProcessPool, rounds: u32) {
    for n in 0..rounds {
        assert_eq!(pool.submit(call(|n: u32| n + 1, n)).await.unwrap(), n + 1);
    }
}

/// Puts a process, or a thread, on these cores.
fn put(pid: u32, cores: &[usize]) {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    sched_setaffinity(Pid::from_raw(pid.cast_signed()), &set).unwrap();
}

/// Puts this process on these cores.
fn be_on(cores: &[usize]) {
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        put(thread.unwrap().file_name().to_str().unwrap().parse().unwrap(), cores);
    }
}

/// How many pairs of processes are drawn where the scheduler may put them anywhere.
const FREE_PAIRS: usize = 100;

/// How many of these for messages, each of which takes longer.
const MESSAGE_PAIRS: usize = 20;

/// One task after the other, by two pairs of processes that stay where they are put.
async fn there_and_back(place: &str, apart: bool) {
    const ROUNDS: u32 = 2_000;
    let pool = warm_pool(Duration::ZERO, ROUNDS).await;
    let busy = warm_pool(POLLED, ROUNDS).await;
    let mut raw = Bare::start(Role::GiveBack(40));
    let mut polling = Bare::start(Role::GiveBackPolling(40));
    if apart {
        // They have seen by now that there is more than one.
        let workers = [&pool, &busy].map(|pool| pool.status().details[0].pid.unwrap());
        workers.into_iter().chain([raw.id(), polling.id()]).for_each(|pid| put(pid, &[1]));
        be_on(&[0]);
    }
    let taken = in_turns!(
        11;
        raw.ping(40, ROUNDS),
        polling.ping(40, ROUNDS),
        each(ROUNDS, one_by_one(&pool, ROUNDS)),
        each(ROUNDS, one_by_one(&busy, ROUNDS)),
    );
    if apart {
        be_on(&[0, 1]);
    }
    pool.close().await;
    busy.close().await;
    say_there_and_back(place, &[taken]);
}

/// As [`there_and_back`], where the scheduler may put them anywhere. What it does with a pair is a matter of luck, which stays with
/// it for a while: so many pairs are drawn, and the mean is what counts. And it is a matter of what ran before, and of which of
/// them was started last: so each is alone while it is measured.
async fn there_and_back_freely(place: &str) {
    const ROUNDS: u32 = 300;
    const TURNS: usize = 4;
    async fn bare(role: Role) -> Vec<Each> {
        let mut bare = Bare::start(role);
        bare.ping(40, ROUNDS).await;
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(bare.ping(40, ROUNDS).await);
        }
        taken
    }
    async fn ours(busy_poll: Duration) -> Vec<Each> {
        let pool = warm_pool(busy_poll, ROUNDS).await;
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(each(ROUNDS, one_by_one(&pool, ROUNDS)).await);
        }
        pool.close().await;
        taken
    }
    let mut drawn = Vec::new();
    for _ in 0..FREE_PAIRS {
        let mut taken = [Each::default(); 4];
        for who in order(taken.len()) {
            let rounds = match who {
                0 => bare(Role::GiveBack(40)).await,
                1 => bare(Role::GiveBackPolling(40)).await,
                2 => ours(Duration::ZERO).await,
                _ => ours(POLLED).await,
            };
            taken[who] = summary(&rounds);
        }
        drawn.push(taken.to_vec());
    }
    say_there_and_back(place, &drawn);
}

/// One worker that has done so many tasks.
async fn warm_pool(busy_poll: Duration, rounds: u32) -> ProcessPool {
    let pool = ProcessPool::builder().workers(1).busy_poll(busy_poll).build().unwrap();
    one_by_one(&pool, rounds).await;
    pool
}

fn say_there_and_back(place: &str, drawn: &[Vec<Each>]) {
    let row = format!("one task, {place}");
    let whom = ["limit: bare socket", "limit: the other side polls, too", "multiproc", "multiproc, busy_poll(50 µs)"];
    for (who, name) in whom.into_iter().enumerate() {
        line(&row, name, mean(drawn.iter().map(|each| micros(each[who].time))), "µs");
        line(&row, name, mean(drawn.iter().map(|each| each[who].halts)), "halts");
    }
}

/// Many tasks, for two workers.
async fn many(runtime: &str) {
    let pool = ProcessPool::new(2);
    pool.start().await.unwrap();
    // One for each worker.
    let limit = Arc::new([Batches::start(), Batches::start()]);
    at_once(runtime, &pool, &limit).await;
    in_a_loop(runtime, &pool, &limit).await;
    jobs(runtime, &pool).await;
    pool.close().await;
}

/// How many a second, and how much CPU all of that takes, here and in the workers.
async fn at_once(runtime: &str, pool: &ProcessPool, limit: &[Batches; 2]) {
    const TASKS: u32 = 100_000;
    let workers: Vec<_> = pool.status().details.iter().filter_map(|worker| worker.pid).collect();
    // As they are submitted by who awaits one after the other then, and by `join_all`.
    let mut cpu = [Cpu::default(), Cpu::default()];
    let mut ours = async |joined: bool| {
        let before = used(&workers);
        let tasks = (0..TASKS).map(|n| pool.submit(call(|n: u32| n + 1, n)));
        let took = if joined {
            each(TASKS, async {
                let results = join_all(tasks).await;
                assert!(results.into_iter().zip(1..).all(|(result, n)| result.unwrap() == n));
            })
            .await
        } else {
            each(TASKS, async {
                let mut tasks: Vec<_> = tasks.collect();
                submit(&mut tasks).await;
                for (task, n) in tasks.into_iter().zip(1..) {
                    assert_eq!(task.await.unwrap(), n);
                }
            })
            .await
        };
        cpu[usize::from(joined)].note(before, used(&workers), TASKS);
        took
    };
    let blocking = async || {
        each(TASKS, async {
            let tasks: Vec<_> = (0..TASKS).map(|n| tokio::task::spawn_blocking(move || n + 1)).collect();
            for (task, n) in tasks.into_iter().zip(1..) {
                assert_eq!(task.await.unwrap(), n);
            }
        })
        .await
    };
    let others = [limit[0].pid, limit[1].pid];
    let mut limit_cpu = [Cpu::default(), Cpu::default()];
    let mut batches = async |joined: bool| {
        let before = used(&others);
        let took = if joined {
            each(TASKS, async {
                let results = join_all((0..TASKS).map(|n| limit[n as usize % 2].submit(n))).await;
                assert!(results.into_iter().zip(1..).all(|(result, n)| result == n));
            })
            .await
        } else {
            each(TASKS, async {
                let tasks: Vec<_> = (0..TASKS).map(|n| limit[n as usize % 2].begin(n)).collect();
                for (task, n) in tasks.into_iter().zip(1..) {
                    assert_eq!(task.await, n);
                }
            })
            .await
        };
        limit_cpu[usize::from(joined)].note(before, used(&others), TASKS);
        took
    };
    let times = in_turns!(5; batches(false), ours(false), batches(true), ours(true), blocking());
    for (joined, name) in [(0, "100,000 tasks at once"), (1, "100,000 tasks by join_all")] {
        let row = format!("{name}, {runtime}");
        line(&row, "limit: mpsc, batches, oneshot", 1e6 / micros(times[2 * joined]), "/s");
        if joined == 0 {
            line(&row, "in-process: spawn_blocking", 1e6 / micros(times[4]), "/s");
        }
        line(&row, "multiproc", 1e6 / micros(times[2 * joined + 1]), "/s");
        for (whose, cpu) in [("limit: CPU", &limit_cpu[joined]), ("multiproc: CPU", &cpu[joined])] {
            line(&row, whose, cpu.median(|(host, others)| host + others), "µs of both sides");
            line(&row, whose, cpu.median(|(host, _)| host), "µs of the host");
        }
    }
}

/// 256 callers, each of whom submits its next task when it has the result of the one before.
async fn in_a_loop(runtime: &str, pool: &ProcessPool, limit: &Arc<[Batches; 2]>) {
    let looping = async |rounds: u32| {
        each(256 * rounds, async {
            let callers = (0..256).map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { one_by_one(&pool, rounds).await })
            });
            join_all(callers).await.into_iter().for_each(|caller| caller.unwrap());
        })
        .await
    };
    let limiting = async |rounds: u32| {
        each(256 * rounds, async {
            let callers = (0..256).map(|caller| {
                let limit = Arc::clone(limit);
                tokio::spawn(async move {
                    for n in 0..rounds {
                        assert_eq!(limit[caller % 2].submit(n).await, n + 1);
                    }
                })
            });
            join_all(callers).await.into_iter().for_each(|caller| caller.unwrap());
        })
        .await
    };
    let times = in_turns!(5; limiting(1_000), looping(1_000));
    let row = format!("256 callers in a loop, {runtime}");
    line(&row, "limit: mpsc, batches, oneshot", 1e6 / micros(times[0]), "/s");
    line(&row, "multiproc", 1e6 / micros(times[1]), "/s");
}

async fn jobs(runtime: &str, pool: &ProcessPool) {
    let ours = async || {
        each(1, async {
            for result in join_all((0..400).map(|_| pool.submit(call(|()| spin(), ())))).await {
                result.unwrap();
            }
        })
        .await
    };
    let in_process = async || {
        each(1, async {
            let threads = (0..2).map(|_| {
                tokio::task::spawn_blocking(|| {
                    for _ in 0..200 {
                        spin();
                    }
                })
            });
            join_all(threads).await;
        })
        .await
    };
    let times = in_turns!(5; in_process(), ours());
    let row = format!("400 jobs of 1 ms, {runtime}");
    line(&row, "limit: two threads", micros(times[0]) / 1e3, "ms");
    line(&row, "multiproc", micros(times[1]) / 1e3, "ms");
}

/// Polls each of them for the first time, which submits it.
async fn submit<F: Future + Unpin>(tasks: &mut [F]) {
    poll_fn(|cx| {
        for task in &mut *tasks {
            assert!(pin!(task).poll(cx).is_pending());
        }
        Poll::Ready(())
    })
    .await;
}

/// How much CPU this process has used, and those.
fn used(others: &[u32]) -> (Duration, Duration) {
    (cpu_time("self"), others.iter().map(|pid| cpu_time(&pid.to_string())).sum())
}

/// How much CPU a task took, here and in the others, of each round.
#[derive(Default)]
struct Cpu(Vec<(Duration, Duration)>);

impl Cpu {
    fn note(&mut self, before: (Duration, Duration), after: (Duration, Duration), tasks: u32) {
        self.0.push((after.0.saturating_sub(before.0) / tasks, after.1.saturating_sub(before.1) / tasks));
    }

    fn median(&self, of: impl Fn((Duration, Duration)) -> Duration) -> f64 {
        micros(median(self.0.iter().copied().map(of).collect()))
    }
}

/// A millisecond of work.
fn spin() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

async fn starts(host: &str) {
    let bare = async || {
        each(1, async {
            let mut command = std::process::Command::new("/proc/self/exe");
            assert!(command.arg("nothing").status().unwrap().success());
        })
        .await
    };
    let asked = async || each(1, async { ask_once() }).await;
    let asked_async = async || each(1, ask_once_async()).await;
    let function = async || {
        each(1, async { assert_eq!(spawn_process(call(|n: u32| n + 1, 1)).await.unwrap().join().await.unwrap(), 2) })
            .await
    };
    let first_result = async || {
        let pool = ProcessPool::new(2);
        let took = each(1, async { assert_eq!(pool.submit(call(|n: u32| n + 1, 1)).await.unwrap(), 2) }).await;
        pool.close().await;
        took
    };
    let times = in_turns!(101; bare(), asked(), asked_async(), function(), first_result());
    let row = format!("start to end, {host}");
    let whom = [
        "limit: this executable, bare",
        "limit: it answers and watches",
        "limit: the same, with tokio",
        "multiproc: spawn_process and join",
        "multiproc: new pool to first result",
    ];
    for (name, each) in whom.into_iter().zip(times) {
        line(&row, name, micros(each.time), "µs");
        line(&row, name, each.halts, "halts");
    }
}
