//! Tiny tasks one at a time, of which each side finds the next thing before it would have slept: what holds all the same.

mod pool_support;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::wakers::{InPlace, Touchy};
use pool_support::{is_pending, pid, until, within};
use rustix::process::{Pid, Signal, kill_process};

multiproc::test_support!();

/// A pool whose worker has answered some tiny tasks in a row.
async fn quick(workers: usize) -> ProcessPool {
    let pool = ProcessPool::new(workers);
    quicken(&pool).await;
    pool
}

async fn quicken(pool: &ProcessPool) {
    for n in 0..50 {
        assert_eq!(within(pool.submit(call(|n: u32| n + 1, n))).await.unwrap(), n + 1);
    }
}

fn in_both_runtimes<F: Future<Output = ()>>(body: impl Fn() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(body());
}

#[test]
fn an_answer_that_is_not_looked_for_after_all_comes_by_itself() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for n in 0..200 {
            let done = pool.status().counts.done;
            let mut task = pool.submit(call(|n: u32| n + 1, n));
            // He says that he will look, and is not polled any more.
            let _ = is_pending(&mut task).await;
            within(until(|| pool.status().counts.done > done)).await;
            assert_eq!(within(task).await.unwrap(), n + 1);
            within(pool.submit(call(|n: u32| n, n))).await.unwrap();
        }
        within(pool.close()).await;
    });
}

#[test]
fn a_task_that_is_given_up_while_its_answer_is_looked_for_costs_no_other_anything() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for n in 0..50 {
            let mut task = pool.submit(call(|n: u32| n + 1, n));
            let _ = is_pending(&mut task).await;
            drop(task);
            assert_eq!(within(pool.submit(call(|n: u32| n + 2, n))).await.unwrap(), n + 2);
            assert_eq!(within(pool.submit(call(|n: u32| n + 3, n))).await.unwrap(), n + 3);
        }
        within(pool.close()).await;
    });
}

fn die() {
    std::process::abort();
}

#[test]
fn a_worker_that_dies_where_its_answer_is_looked_for_is_seen() {
    in_both_runtimes(|| async {
        let pool = ProcessPool::new(1);
        for _ in 0..10 {
            quicken(&pool).await;
            let died = within(pool.submit(task!(die()))).await;
            assert!(matches!(died, Err(TaskError::Died { .. })), "{died:?}");
        }
        within(pool.close()).await;
    });
}

/// At whatever point it is.
#[test]
fn a_worker_that_is_killed_among_tiny_tasks_loses_the_one_that_it_has_and_no_other() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for round in 0..20 {
            let worker = within(pool.submit(task!(pid()))).await.unwrap();
            let killer = std::thread::spawn(move || {
                for _ in 0..round * 997 {
                    std::hint::spin_loop();
                }
                kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
            });
            // Until one is lost, or comes to the next worker.
            loop {
                match within(pool.submit(task!(pid()))).await {
                    Ok(pid) if pid == worker => {}
                    Ok(_) | Err(TaskError::Died { .. }) => break,
                    Err(error) => panic!("{error:?}"),
                }
            }
            killer.join().unwrap();
            quicken(&pool).await;
        }
        within(pool.close()).await;
    });
}

#[test]
fn a_task_that_takes_long_after_tiny_ones_is_waited_for() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for n in 0..10 {
            let slow = call(|n: u32| (std::thread::sleep(Duration::from_millis(5)), n + 1).1, n);
            assert_eq!(within(pool.submit(slow)).await.unwrap(), n + 1);
            quicken(&pool).await;
        }
        within(pool.close()).await;
    });
}

#[test]
fn results_of_all_sizes_come_one_at_a_time() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for len in [0, 1, 100, 4_000, 5_000, 70_000, 2_000_000] {
            for _ in 0..10 {
                let bytes = within(pool.submit(call(|len: usize| vec![7_u8; len], len))).await.unwrap();
                assert_eq!(bytes.len(), len);
                within(pool.submit(call(|n: u32| n, 1))).await.unwrap();
            }
        }
        within(pool.close()).await;
    });
}

#[test]
fn callers_that_come_and_go_all_have_their_results() {
    in_both_runtimes(|| async {
        let pool = quick(2).await;
        let callers = (0..6).map(|caller: u32| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    assert_eq!(pool.submit(call(|n: u32| n * 2, n)).await.unwrap(), n * 2);
                    if n % (10 + caller) == 0 {
                        tokio::time::sleep(Duration::from_micros(300)).await;
                    }
                }
            })
        });
        for caller in within(join_all(callers)).await {
            caller.unwrap();
        }
        within(pool.close()).await;
    });
}

/// What else runs in a runtime has its turn between two tasks, where it has one thread, too.
#[tokio::test]
async fn who_looks_for_answers_lets_others_run() {
    let pool = quick(1).await;
    let turns = Arc::new(Mutex::new(0_u32));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                *turns.lock().unwrap() += 1;
                tokio::task::yield_now().await;
            }
        }
    });
    let before = *turns.lock().unwrap();
    for n in 0..1_000 {
        assert_eq!(pool.submit(call(|n: u32| n, n)).await.unwrap(), n);
    }
    let turns = *turns.lock().unwrap() - before;
    other.abort();
    assert!(turns >= 1_000, "{turns} in 1000 tasks");
    within(pool.close()).await;
}

#[test]
fn a_waker_that_panics_is_its_own_affair() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        for n in 0..20 {
            let mut own = Box::pin(pool.submit(call(|n: u32| n, n)));
            let _ = own.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Touchy))));
            assert_eq!(within(pool.submit(call(|n: u32| n + 1, n))).await.unwrap(), n + 1);
            assert_eq!(within(own).await.unwrap(), n);
        }
        within(pool.close()).await;
    });
}

/// While tokio has its list of what is to be polled again in use.
#[test]
fn a_waker_may_poll_at_once() {
    in_both_runtimes(|| async {
        let pool = quick(1).await;
        let worker = within(pool.submit(task!(pid()))).await.unwrap();
        for _ in 0..20 {
            let both = {
                let pool = pool.clone();
                async move {
                    pool.submit(task!(pid())).await?;
                    pool.submit(task!(pid())).await
                }
            };
            assert_eq!(within(InPlace::run(Box::pin(both))).await.unwrap(), worker);
        }
        within(pool.close()).await;
    });
}
