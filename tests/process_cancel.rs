//! Futures dropped half-way, at each point where they wait: no stray process, no leaked fd.

mod support;

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use multiproc::{Process, call, spawn_process, task};
use support::proc::{children, open_fds};
use support::{alone, block_on, eventually};

multiproc::test_support!();

fn idle() {
    loop {
        std::thread::park();
    }
}

/// Polls a future at most `polls` times, each time that it asks for it.
async fn poll_at_most<F: Future>(mut future: Pin<&mut F>, polls: usize) -> Option<F::Output> {
    let mut polled = 0;
    std::future::poll_fn(|cx| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops the future of `make` after no poll, after one, and so on until it completes; gives what `done` is.
async fn drop_at_each_point<F: Future, R>(make: impl Fn() -> F, done: impl Fn(F::Output) -> R) -> R {
    for polls in 0.. {
        let output = {
            let mut future = std::pin::pin!(make());
            poll_at_most(future.as_mut(), polls).await
        };
        if let Some(output) = output {
            return done(output);
        }
    }
    unreachable!()
}

#[test]
fn a_start_that_is_dropped_leaves_no_process_and_no_fd() {
    alone("a_start_that_is_dropped_leaves_no_process_and_no_fd", || {
        block_on(async {
            let large = bytes::Bytes::from(vec![0; 8 << 20]);
            assert_eq!(spawn_process(call(|n: u8| n, 1)).await.unwrap().join().await.unwrap(), 1);
            let before = open_fds();
            for _ in 0..20 {
                drop_at_each_point(|| spawn_process(task!(idle())), |child| drop(child.unwrap())).await;
                // Its arguments don't fit into the socket at once.
                let task = || spawn_process(call(|bytes: bytes::Bytes| bytes, large.clone()));
                drop_at_each_point(task, |child| drop(child.unwrap())).await;
                let piped = || {
                    let piped = std::process::Stdio::piped;
                    Process::builder().stdout(piped()).stderr(piped()).spawn(task!(idle()))
                };
                drop_at_each_point(piped, |child| drop(child.unwrap())).await;
            }
            assert!(eventually(Duration::from_secs(5), || children().is_empty()), "{:?}", children());
            assert!(eventually(Duration::from_secs(5), || open_fds() == before), "{} fds", open_fds());
        });
    });
}

#[test]
fn starts_that_are_dropped_from_many_threads_leave_nothing_either() {
    alone("starts_that_are_dropped_from_many_threads_leave_nothing_either", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(spawn_process(call(|n: u8| n, 1)).await.unwrap().join().await.unwrap(), 1);
            let before = open_fds();
            for round in 0..10 {
                let all: Vec<_> = (0..20).map(|_| tokio::spawn(spawn_process(task!(idle())))).collect();
                for (n, start) in all.into_iter().enumerate() {
                    if n % 3 == round % 3 {
                        let _ = start.await.unwrap().unwrap();
                    } else {
                        start.abort();
                    }
                }
            }
            assert!(eventually(Duration::from_secs(5), || children().is_empty()), "{:?}", children());
            assert!(eventually(Duration::from_secs(5), || open_fds() == before), "{} fds", open_fds());
        });
    });
}

#[test]
fn a_runtime_that_ends_during_a_start_leaves_nothing() {
    alone("a_runtime_that_ends_during_a_start_leaves_nothing", || {
        assert_eq!(block_on(async { spawn_process(call(|n: u8| n, 1)).await.unwrap().join().await.unwrap() }), 1);
        let before = open_fds();
        for polls in 0..6 {
            block_on(async {
                for _ in 0..5 {
                    tokio::spawn(spawn_process(task!(idle())));
                }
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
            });
        }
        assert!(eventually(Duration::from_secs(5), || children().is_empty()), "{:?}", children());
        assert!(eventually(Duration::from_secs(5), || open_fds() == before), "{} fds", open_fds());
    });
}

#[test]
fn a_join_that_is_dropped_kills_and_leaves_nothing() {
    alone("a_join_that_is_dropped_kills_and_leaves_nothing", || {
        block_on(async {
            let quick = || async { spawn_process(call(|n: u8| n, 1)).await.unwrap().join().await };
            assert_eq!(quick().await.unwrap(), 1);
            let before = open_fds();
            for _ in 0..20 {
                let child = spawn_process(call(|n: u8| n, 2)).await.unwrap();
                let mut join = Box::pin(child.join());
                let _ = poll_at_most(join.as_mut(), 1).await;
                drop(join);
                assert_eq!(drop_at_each_point(quick, Result::unwrap).await, 1);
            }
            assert!(eventually(Duration::from_secs(5), || children().is_empty()), "{:?}", children());
            assert!(eventually(Duration::from_secs(5), || open_fds() == before), "{} fds", open_fds());
        });
    });
}
