//! A worker that talks without end, and says nothing: it keeps neither its host's thread nor its memory.

#![allow(unsafe_code, reason = "tasks that write where they must not")]

mod pool_support;

use std::future::Future;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use multiproc::{ProcessPool, SpawnError, TaskError, call, task};
use pool_support::{FOREVER, Meeting, endless, is_gone, meet, pid, until, within};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

multiproc::test_support!();

/// What it says again and again; see the frame's drawing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Word {
    /// That there are answers.
    Bell,
    /// That it has begun a task.
    Begun,
    /// A result of a task that it never had.
    Done,
}

impl Word {
    const ALL: [Self; 3] = [Self::Bell, Self::Begun, Self::Done];

    /// A frame without a body. The number is no task's.
    fn frame(self) -> [u8; 16] {
        let kind = match self {
            Self::Bell => 28,
            Self::Begun => 29,
            Self::Done => 26,
        };
        [0, 0, 0, 0, 1, kind, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Says it over any socket that the worker has.
fn say(sockets: &[i32], bytes: &[u8]) {
    for &fd in sockets {
        // SAFETY: the bytes are live.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    }
}

fn sockets() -> Vec<i32> {
    let is_socket = |fd: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(is_socket).collect()
}

/// From some threads, so that there is always more to be read.
fn flood(word: Word) {
    let (sockets, much) = (sockets(), word.frame().repeat(4096));
    let say_on = move || {
        loop {
            say(&sockets, &much);
        }
    };
    for _ in 0..3 {
        thread::spawn(say_on.clone());
    }
    say_on();
}

fn threads_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Runs it in both kinds of runtime. Whoever waits is on a thread of its own: in the runtime no clock might have its turn.
fn in_both_runtimes<F: Future<Output = ()>>(body: impl Fn() -> F + Copy + Send + 'static) {
    for is_multi in [false, true] {
        let (over, is_over) = mpsc::channel();
        thread::spawn(move || {
            let mut builder = if is_multi { Builder::new_multi_thread() } else { Builder::new_current_thread() };
            builder.worker_threads(2).enable_all().build().unwrap().block_on(body());
            over.send(()).unwrap();
        });
        assert_eq!(is_over.recv_timeout(FOREVER / 4), Ok(()), "on more than one thread: {is_multi}");
    }
}

#[test]
fn a_task_whose_worker_talks_without_end_is_ended_in_time() {
    in_both_runtimes(|| async {
        let pool = ProcessPool::new(1);
        for word in Word::ALL {
            let outcome = pool.submit(task!(flood(word))).timeout(Duration::from_millis(100)).await;
            assert!(matches!(outcome, Err(TaskError::TimedOut | TaskError::Died { .. })), "{word:?}: {outcome:?}");
            pool.submit(task!(pid())).await.unwrap();
        }
        pool.close().await;
    });
}

#[test]
fn a_pool_whose_worker_talks_without_end_can_be_cancelled() {
    in_both_runtimes(|| async {
        for word in Word::ALL {
            let pool = ProcessPool::new(1);
            let flooding = pool.spawn(task!(flood(word))).await.unwrap();
            until(|| flooding.worker_id().is_some()).await;
            pool.cancel().await;
            let outcome = flooding.await;
            assert!(matches!(outcome, Err(TaskError::Cancelled | TaskError::Died { .. })), "{word:?}: {outcome:?}");
        }
    });
}

#[test]
fn a_worker_that_talks_without_end_while_it_starts_is_ended_with_its_pool() {
    in_both_runtimes(|| async {
        for word in [Word::Bell, Word::Begun] {
            let meeting = Meeting::new();
            let meet_and_flood = call(
                |(place, word): (PathBuf, Word)| {
                    meet(&place, 0);
                    flood(word);
                },
                (meeting.place(), word),
            );
            let pool = ProcessPool::builder().workers(1).on_worker_start(meet_and_flood).build().unwrap();
            let waiting = tokio::spawn(pool.submit(task!(pid())));
            let guest = meeting.guest().await;
            let flooding = guest.pid;
            guest.go_on().await;
            // It has begun to, by all that can be known.
            until(|| threads_of(flooding) > 3 || is_gone(flooding)).await;
            pool.cancel().await;
            assert!(matches!(waiting.await.unwrap(), Err(TaskError::Cancelled)), "{word:?}");
        }
    });
}

/// Such answers were once gathered, for as long as the right one had not come.
#[tokio::test]
async fn a_start_task_that_answers_for_others_is_a_failed_start() {
    let lie = call(
        |()| {
            say(&sockets(), &Word::Done.frame());
            endless();
        },
        (),
    );
    let pool = ProcessPool::builder().workers(1).restart_limit(0, FOREVER).on_worker_start(lie).build().unwrap();
    match within(pool.start()).await {
        Err(SpawnError::Worker(cause)) => assert!(matches!(*cause, SpawnError::StartTask(_)), "{cause:?}"),
        other => panic!("{other:?}"),
    }
    within(pool.close()).await;
}
