//! Workers that are alive and do nothing: stopped, or without the thread that runs tasks.

#![allow(unsafe_code, reason = "a thread that ends as native code may end it")]

mod pool_support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use multiproc::{ProcessPool, SpawnError, TaskError, WorkerState, call, task};
use pool_support::proc::state;
use pool_support::{Ledger, Meeting, busy, endless, is_gone, kill, meet_and_give_pid, note, pid, until, within};

multiproc::test_support!();

async fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    until(|| state(pid) == 'T').await;
}

/// A pool of so many workers, only one of which has been started, and that is stopped.
async fn only_one_and_it_is_stopped(workers: usize) -> (ProcessPool, u32) {
    let pool = ProcessPool::new(workers);
    let stopped = within(pool.submit(task!(pid()))).await.unwrap();
    until(|| pool.status().busy == 0).await;
    stop(stopped).await;
    assert_eq!(pool.status().details.len(), 1);
    (pool, stopped)
}

/// A pool of two workers, one of which is stopped and next in line for a task.
async fn one_of_two_is_stopped() -> (ProcessPool, u32) {
    let pool = ProcessPool::new(2);
    within(pool.start()).await.unwrap();
    // The one that worked last is taken first.
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    until(|| pool.status().busy == 0).await;
    stop(first).await;
    (pool, first)
}

fn note_and_give_pid(place: PathBuf, id: u64) -> u32 {
    note(&place, id);
    pid()
}

#[tokio::test]
async fn a_task_given_to_a_stopped_worker_runs_in_another_one() {
    let (pool, stopped) = one_of_two_is_stopped().await;
    let ledger = Ledger::new();
    for id in 0..5 {
        let ran = within(pool.submit(task!(note_and_give_pid(ledger.place(), id)))).await.unwrap();
        assert_ne!(ran, stopped);
    }
    assert_eq!(ledger.entries(), [0, 1, 2, 3, 4], "each once");
    assert_eq!(pool.status().counts.died, 0);
    within(pool.cancel()).await;
    assert!(is_gone(stopped));
}

#[tokio::test]
async fn a_large_task_given_to_a_stopped_worker_runs_in_another_one() {
    let (pool, stopped) = one_of_two_is_stopped().await;
    let large = call(|bytes: Bytes| (bytes.len(), pid()), Bytes::from(vec![7; 20 << 20]));
    let (len, ran) = within(pool.submit(large)).await.unwrap();
    assert!(len == 20 << 20 && ran != stopped);
    within(pool.cancel()).await;
}

#[tokio::test]
async fn a_task_given_to_a_stopped_worker_runs_in_one_that_is_started_for_it() {
    let (pool, stopped) = only_one_and_it_is_stopped(2).await;
    assert_ne!(within(pool.submit(task!(pid()))).await.unwrap(), stopped);
    within(pool.cancel()).await;
}

/// It was only slow: what was taken from it is not run by it, and the next task is.
#[tokio::test]
async fn a_stopped_worker_that_goes_on_works_again_and_runs_nothing_twice() {
    let (pool, stopped) = one_of_two_is_stopped().await;
    let (ledger, meeting) = (Ledger::new(), Meeting::new());
    let ran = tokio::spawn(pool.submit(task!(note_and_give_pid(ledger.place(), 7))));
    // Where this machine is too slow for what follows, it has been replaced, and that is as good.
    until(|| pool.status().details.iter().any(|worker| worker.state == WorkerState::Stalled) || is_gone(stopped)).await;
    assert_ne!(within(ran).await.unwrap().unwrap(), stopped);
    kill(stopped, libc::SIGCONT);
    until(|| pool.status().details.iter().filter(|worker| worker.state == WorkerState::Idle).count() == 2).await;
    let two: Vec<_> =
        (0..2).map(|id| tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), id))))).collect();
    drop([meeting.guest().await, meeting.guest().await]);
    for task in two {
        within(task).await.unwrap().unwrap();
    }
    assert_eq!(ledger.entries(), [7]);
    assert_eq!(pool.status().counts.died, 0);
    within(pool.close()).await;
}

#[tokio::test]
async fn a_stopped_sole_worker_is_replaced_and_its_tasks_run_once() {
    let (pool, stopped) = only_one_and_it_is_stopped(1).await;
    let ledger = Ledger::new();
    let ran = within(join_all((0..20).map(|id| pool.submit(task!(note_and_give_pid(ledger.place(), id)))))).await;
    assert!(ran.into_iter().all(|ran| ran.unwrap() != stopped));
    assert_eq!(ledger.entries(), (0..20).collect::<Vec<_>>());
    assert!(is_gone(stopped));
    assert_eq!(pool.status().counts.died, 0, "no task was lost");
    within(pool.close()).await;
}

/// Those that a worker has ahead behind the one that it runs are not what it does not come to.
#[tokio::test]
async fn a_worker_that_is_stopped_while_it_runs_a_task_keeps_that_one() {
    let pool = ProcessPool::new(3);
    within(pool.start()).await.unwrap();
    let (one, guest) = busy(&pool).await;
    stop(guest.pid).await;
    let others = within(join_all((0..100).map(|_| pool.submit(task!(pid()))))).await;
    assert!(others.into_iter().all(|ran| ran.unwrap() != guest.pid));
    // The same looks come to another one that has not begun its task, and not as often: that one is found out, and replaced.
    until(|| pool.status().busy == 1).await;
    let stuck = within(pool.submit(task!(pid()))).await.unwrap();
    until(|| pool.status().busy == 1).await;
    stop(stuck).await;
    let ran = within(pool.submit(task!(pid()))).await.unwrap();
    assert!(ran != stuck && ran != guest.pid);
    until(|| is_gone(stuck)).await;
    assert!(!one.is_finished());
    kill(guest.pid, libc::SIGCONT);
    let pid = guest.pid;
    guest.go_on().await;
    assert_eq!(within(one).await.unwrap(), pid);
    within(pool.close()).await;
}

/// Closing does not wait for a task that no worker comes to.
#[tokio::test]
async fn a_pool_with_a_stopped_worker_closes() {
    let (pool, stopped) = one_of_two_is_stopped().await;
    let last = tokio::spawn(pool.submit(task!(pid())));
    until(|| pool.status().details.iter().any(|worker| worker.pid == Some(stopped) && worker.task.is_some())).await;
    within(pool.close()).await;
    assert_ne!(within(last).await.unwrap().unwrap(), stopped);
    assert!(is_gone(stopped));
}

/// Native code may end its thread behind Rust's back; the process lives on, and can never answer.
#[tokio::test]
async fn a_stopped_worker_goes_on_to_end_in_order_when_its_pool_closes() {
    let ledger = Ledger::new();
    let pool =
        ProcessPool::builder().workers(1).on_worker_exit(task!(note_and_give_pid(ledger.place(), 7))).build().unwrap();
    let stopped = within(pool.submit(task!(pid()))).await.unwrap();
    until(|| pool.status().busy == 0).await;
    stop(stopped).await;
    within(pool.close()).await;
    assert_eq!(ledger.entries(), [7], "its exit task ran");
    assert!(is_gone(stopped));
}

#[tokio::test]
async fn a_worker_whose_thread_has_ended_fails_its_task_and_is_replaced() {
    let pool = ProcessPool::new(1);
    let lost = call(
        |()| {
            std::thread::spawn(endless);
            // SAFETY: it ends this thread, whose stack nobody else looks at.
            unsafe { libc::syscall(libc::SYS_exit, 3) };
        },
        (),
    );
    let (lost, next) = within(async { tokio::join!(pool.submit(lost), pool.submit(task!(pid()))) }).await;
    let Err(TaskError::Died { status: Some(status), pid, .. }) = lost else { panic!("{lost:?}") };
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert_ne!(next.unwrap(), pid);
    within(pool.close()).await;
}

/// It was waited for without end, and all tasks behind it.
#[tokio::test]
async fn a_start_task_that_ends_its_thread_is_a_failed_start() {
    let lost = call(
        |()| {
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_exit, 3) };
        },
        (),
    );
    let pool = ProcessPool::builder()
        .workers(1)
        .restart_limit(1, Duration::from_mins(10))
        .on_worker_start(lost)
        .build()
        .unwrap();
    let (started, task) = within(async { tokio::join!(pool.start(), pool.submit(task!(pid()))) }).await;
    let Err(SpawnError::Worker(cause)) = started else { panic!("{started:?}") };
    let SpawnError::StartTask(cause) = &*cause else { panic!("{cause:?}") };
    assert!(matches!(**cause, TaskError::Died { .. }), "{cause:?}");
    assert!(matches!(task, Err(TaskError::Broken { .. } | TaskError::Spawn(_))), "{task:?}");
    within(pool.close()).await;
}
