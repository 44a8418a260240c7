//! The end of a pool: every future resolves, every process is reaped; by close, cancel and drop.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, TrySubmitError, WorkerState, call, task};
use pool_support::{
    Ledger, Meeting, Slow, busy, endless, is_gone, is_pending, meet, meet_and_give_pid, note, pid, try_submit, until,
    within,
};

multiproc::test_support!();

fn note_it(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    id
}

/// The processes of the pool's workers.
fn pids(pool: &ProcessPool) -> Vec<u32> {
    pool.status().details.iter().filter_map(|worker| worker.pid).collect()
}

fn meet_and_hang(place: PathBuf) {
    meet(&place, 0);
    endless();
}

#[tokio::test]
async fn close_finishes_all_that_was_submitted() {
    let pool = ProcessPool::new(2);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let running = tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), 0))));
    let queued: Vec<_> = (0..100).map(|id| tokio::spawn(pool.submit(task!(note_it(ledger.place(), id))))).collect();
    let guest = meeting.guest().await;
    let other = tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), 0))));
    tokio::task::yield_now().await;
    let pids = pids(&pool);
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    until(|| matches!(pool.try_submit(task!(pid())), Err(TrySubmitError::Closed(_)))).await;
    assert!(!closing.is_finished());
    guest.go_on().await;
    meeting.guest().await.go_on().await;
    within(running).await.unwrap().unwrap();
    within(other).await.unwrap().unwrap();
    for (id, result) in within(join_all(queued)).await.into_iter().enumerate() {
        assert_eq!(result.unwrap().unwrap(), id as u64);
    }
    within(closing).await.unwrap();
    assert!(pids.into_iter().all(is_gone), "reaped when close is over");
    assert_eq!(ledger.entries().len(), 100);
    assert!(pool.status().details.is_empty());
}

#[tokio::test]
async fn close_refuses_what_comes_later() {
    let pool = ProcessPool::new(1);
    let waits = pool.submit(task!(pid()));
    within(pool.close()).await;
    assert!(matches!(within(waits).await, Err(TaskError::Closed)));
    assert!(matches!(within(pool.submit(task!(pid()))).await, Err(TaskError::Closed)));
    assert!(matches!(within(pool.spawn(task!(pid()))).await, Err(TaskError::Closed)));
    match pool.try_submit(call(|n: u32| n, 17)) {
        Err(TrySubmitError::Closed(_)) => {}
        other => panic!("{other:?}"),
    }
    within(pool.start()).await.unwrap_err();
    pool.resize(5);
    assert!(pool.status().details.is_empty());
}

/// It gave a handle, as for one that has its slot.
#[tokio::test]
async fn who_waits_for_a_slot_is_told_that_there_will_be_none() {
    let (meeting, pool) = (Meeting::new(), ProcessPool::new(1));
    let running = tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place()))));
    let _guest = within(meeting.guest()).await;
    let mut waits = pin!(pool.spawn(task!(pid())));
    assert!(is_pending(&mut waits).await);
    within(pool.cancel()).await;
    assert!(matches!(within(waits).await, Err(TaskError::Cancelled)));
    assert!(matches!(within(running).await.unwrap(), Err(TaskError::Cancelled)));
}

#[tokio::test]
async fn closing_and_cancelling_may_be_repeated_and_mixed_and_need_no_worker() {
    for round in 0..20 {
        let pool = ProcessPool::new(2);
        if round % 4 == 1 {
            within(pool.start()).await.unwrap();
        } else if round % 4 == 2 {
            // Workers that are being started.
            assert!(is_pending(pool.start()).await);
        } else if round % 4 == 3 {
            within(pool.submit(task!(pid()))).await.unwrap();
        }
        within(async {
            tokio::join!(pool.close(), pool.close(), pool.cancel(), pool.close(), pool.cancel());
        })
        .await;
        within(pool.close()).await;
        within(pool.cancel()).await;
        assert!(pool.status().details.is_empty());
    }
}

#[tokio::test]
async fn cancel_resolves_ten_thousand_queued_tasks_at_once() {
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let running: Vec<_> = (0..2).map(|_| tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place()))))).collect();
    let guests = [meeting.guest().await, meeting.guest().await];
    let queued: Vec<_> = (0..10_000).map(|_| tokio::spawn(pool.submit(task!(pid())))).collect();
    until(|| pool.status().queued == 10_000).await;
    let begun = Instant::now();
    within(pool.cancel()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(guests.iter().all(|guest| is_gone(guest.pid)));
    for task in running {
        assert!(matches!(within(task).await.unwrap(), Err(TaskError::Cancelled)));
    }
    for task in queued {
        assert!(matches!(within(task).await.unwrap(), Err(TaskError::Cancelled)));
    }
    assert_eq!(pool.status().counts.cancelled, 10_002);
    assert_eq!(pool.status().queued, 0);
}

#[tokio::test]
async fn cancel_overtakes_close() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let running = tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place()))));
    let guest = meeting.guest().await;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    until(|| matches!(pool.try_submit(task!(pid())), Err(TrySubmitError::Closed(_)))).await;
    within(pool.cancel()).await;
    within(closing).await.unwrap();
    assert!(is_gone(guest.pid));
    assert!(matches!(within(running).await.unwrap(), Err(TaskError::Cancelled)));
}

/// A future that was polled once and is then left alone still holds its task; close must not wait for its next poll.
#[tokio::test]
async fn close_does_not_wait_for_a_future_that_nobody_polls() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let submit = |id| Box::pin(pool.submit(task!(note_it(ledger.place(), id))));
    let (mut left, mut behind) = (submit(1), submit(2));
    for submit in [&mut left, &mut behind] {
        assert!(is_pending(submit).await);
    }
    within(pool.close()).await;
    assert_eq!(ledger.entries(), [1, 2]);
    assert_eq!(within(left).await.unwrap(), 1, "its result waits for it");
    assert_eq!(within(behind).await.unwrap(), 2);
}

#[tokio::test]
async fn a_closing_that_is_given_up_goes_on() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let running = tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), 0))));
    let guest = meeting.guest().await;
    assert!(tokio::time::timeout(Duration::from_millis(1), pool.close()).await.is_err());
    let pid = guest.pid;
    guest.go_on().await;
    within(running).await.unwrap().unwrap();
    until(|| is_gone(pid)).await;
}

#[tokio::test]
async fn a_dropped_pool_resolves_its_futures_and_ends_its_processes() {
    let pool = ProcessPool::new(2);
    let meeting = Meeting::new();
    let running: Vec<_> = (0..2).map(|_| tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place()))))).collect();
    let queued: Vec<_> = (0..100).map(|_| tokio::spawn(pool.submit(task!(pid())))).collect();
    let guests = [meeting.guest().await, meeting.guest().await];
    until(|| pool.status().queued == 100).await;
    let clone = pool.clone();
    drop(pool);
    assert_eq!(clone.status().busy, 2, "a clone keeps it");
    drop(clone);
    for task in running {
        assert!(matches!(within(task).await.unwrap(), Err(TaskError::Cancelled)));
    }
    for task in queued {
        assert!(matches!(within(task).await.unwrap(), Err(TaskError::Cancelled)));
    }
    until(|| guests.iter().all(|guest| is_gone(guest.pid))).await;
}

#[tokio::test]
async fn a_dropped_idle_pool_ends_its_processes() {
    let pool = ProcessPool::new(2);
    within(pool.start()).await.unwrap();
    let pids = pids(&pool);
    assert_eq!(pids.len(), 2);
    drop(pool);
    until(|| pids.iter().copied().all(is_gone)).await;
}

fn hang_at_exit(place: PathBuf) {
    note(&place, 1);
    endless();
}

#[tokio::test]
async fn cancel_does_not_wait_for_an_exit_task() {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder().workers(1).on_worker_exit(task!(hang_at_exit(ledger.place()))).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    until(|| ledger.entries() == [1]).await;
    let begun = Instant::now();
    within(pool.cancel()).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    within(closing).await.unwrap();
    assert!(is_gone(worker));
}

/// A start task that never ends must not hold up the end of a pool that has nothing to do.
#[tokio::test]
async fn close_does_not_wait_for_workers_that_nobody_needs() {
    let meeting = Meeting::new();
    let pool =
        ProcessPool::builder().workers(2).on_worker_start(task!(meet_and_hang(meeting.place()))).build().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(1), pool.start()).await.is_err());
    let guests = [meeting.guest().await, meeting.guest().await];
    let pids = guests.map(|guest| guest.pid);
    within(pool.close()).await;
    assert!(pids.into_iter().all(is_gone));
}

/// As before, where a task was waiting and is given up while the pool closes.
#[tokio::test]
async fn close_does_not_wait_for_workers_whose_tasks_were_given_up() {
    let meeting = Meeting::new();
    let pool =
        ProcessPool::builder().workers(1).on_worker_start(task!(meet_and_hang(meeting.place()))).build().unwrap();
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    let guest = meeting.guest().await;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    until(|| matches!(pool.try_submit(task!(pid())), Err(TrySubmitError::Closed(_)))).await;
    waiting.abort();
    within(closing).await.unwrap();
    assert!(is_gone(guest.pid));
}

#[tokio::test]
async fn close_waits_for_a_task_that_is_being_encoded() {
    let pool = ProcessPool::new(1);
    within(pool.start()).await.unwrap();
    let (slow, mut encoding) = Slow::new();
    let submitter = try_submit(&pool, slow);
    encoding.begins().await;
    let mut close = std::pin::pin!(pool.close());
    assert!(is_pending(&mut close).await);
    until(|| pool.status().workers == 0).await;
    assert!(is_pending(&mut close).await, "a task has been taken that has not ended");
    encoding.go_on();
    let task = within(submitter).await.unwrap().unwrap();
    within(close).await;
    assert!(task.is_finished());
    within(task).await.unwrap();
}

/// An idle worker was left over, for the task that was being encoded.
#[tokio::test]
async fn close_ends_when_a_task_that_had_a_slot_cannot_be_encoded() {
    let pool = ProcessPool::new(2);
    within(pool.start()).await.unwrap();
    let (running, guest) = busy(&pool).await;
    let (slow, mut encoding) = Slow::new();
    let submitter = try_submit(&pool, slow);
    encoding.begins().await;
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    until(|| pool.status().queued == 1).await;
    let mut close = std::pin::pin!(pool.close());
    assert!(is_pending(&mut close).await);
    guest.go_on().await;
    within(running).await.unwrap();
    within(waiting).await.unwrap().unwrap();
    encoding.fail();
    within(submitter).await.unwrap().unwrap_err();
    within(close).await;
}

/// It would have waited for the end of another one's grace.
#[tokio::test]
async fn a_task_that_is_encoded_when_its_pool_is_cancelled_is_cancelled_too() {
    let pool = ProcessPool::builder().workers(2).cancel_grace(Duration::MAX).build().unwrap();
    let (running, guest) = busy(&pool).await;
    let (slow, mut encoding) = Slow::new();
    let submitter = try_submit(&pool, slow);
    encoding.begins().await;
    let mut cancel = std::pin::pin!(pool.cancel());
    assert!(is_pending(&mut cancel).await);
    encoding.go_on();
    let task = within(submitter).await.unwrap().unwrap();
    assert!(matches!(within(task).await, Err(TaskError::Cancelled)));
    assert_eq!(pool.status().counts.cancelled, 1, "the other one still runs");
    guest.go_on().await;
    assert!(matches!(within(running).await, Err(TaskError::Cancelled)));
    within(cancel).await;
}

/// With nothing to do at the moment it retired, and as something waited it was started again, on and on.
#[tokio::test]
async fn a_worker_that_gets_ready_while_the_only_slot_is_reserved_stays_for_what_waits() {
    let starts = Meeting::new();
    let start = call(|place: PathBuf| meet(&place, 0), starts.place());
    let pool = ProcessPool::builder().workers(1).on_worker_start(start).build().unwrap();
    let (slow, mut encoding) = Slow::new();
    let submitter = try_submit(&pool, slow);
    encoding.begins().await;
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    until(|| pool.status().queued == 1).await;
    assert!(is_pending(pool.start()).await);
    let guest = starts.guest().await;
    let mut close = std::pin::pin!(pool.close());
    assert!(is_pending(&mut close).await);
    let worker = guest.pid;
    guest.go_on().await;
    // It either stays, or ends and is started again.
    tokio::select! {
        again = starts.guest() => panic!("{again:?}"),
        () = until(|| pool.status().details.iter().any(|worker| worker.state == WorkerState::Idle)) => {}
    }
    encoding.go_on();
    assert_eq!(within(within(submitter).await.unwrap().unwrap()).await.unwrap(), worker);
    assert_eq!(within(waiting).await.unwrap().unwrap(), worker);
    within(close).await;
    assert_eq!(pool.status().counts.restarts, 0);
}
