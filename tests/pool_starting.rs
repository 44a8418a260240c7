//! Workers that are still starting: what waits for them, what need not, and what is shown of them.

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use multiproc::{Fd, ProcessPool, SpawnError, TaskError, TrySubmitError, WorkerState, call, task, worker};
use pool_support::kernel::io_uring;
use pool_support::{FOREVER, Meeting, endless, is_gone, is_pending, meet, pid, until, within};

multiproc::test_support!();

/// The first worker is ready at once; each other one waits to be told to go on.
fn meet_unless_first(place: PathBuf) {
    if worker().index() != Some(0) {
        meet(&place, 0);
    }
}

fn meet_once(place: PathBuf) {
    meet(&place, 0);
}

/// The one that was ready was told to end, and what came then waited for the other one without limit.
#[tokio::test]
async fn a_pool_that_shrinks_keeps_the_worker_that_lives_and_not_the_one_that_starts() {
    let meeting = Meeting::new();
    let pool =
        ProcessPool::builder().workers(2).on_worker_start(task!(meet_unless_first(meeting.place()))).build().unwrap();
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    let starts = tokio::spawn({
        let pool = pool.clone();
        async move { pool.start().await }
    });
    let guest = meeting.guest().await;
    until(|| pool.status().busy == 0).await;
    pool.resize(1);
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), first);
    until(|| is_gone(guest.pid) && pool.status().details.len() == 1).await;
    within(starts).await.unwrap().expect("all that there may be are ready");
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), first);
    assert_eq!(pool.status().counts.restarts, 0);
    within(pool.close()).await;
}

#[tokio::test]
async fn of_a_pool_that_shrinks_while_all_start_the_first_that_is_ready_stays() {
    let meeting = Meeting::new();
    let pool = ProcessPool::builder().workers(2).on_worker_start(task!(meet_once(meeting.place()))).build().unwrap();
    assert!(is_pending(pool.start()).await);
    let guests = [meeting.guest().await, meeting.guest().await];
    pool.resize(1);
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    let [slow, quick] = guests;
    let kept = quick.pid;
    quick.go_on().await;
    assert_eq!(within(waiting).await.unwrap().unwrap(), kept);
    until(|| is_gone(slow.pid) && pool.status().details.len() == 1).await;
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), kept);
    within(pool.close()).await;
}

/// It is no failed start, and no reason to wait before the next one.
#[tokio::test]
async fn a_start_that_was_given_up_breaks_nothing() {
    let meeting = Meeting::new();
    let pool = ProcessPool::builder()
        .workers(2)
        .restart_limit(0, FOREVER)
        .on_worker_start(task!(meet_unless_first(meeting.place())))
        .build()
        .unwrap();
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    for _ in 0..3 {
        assert!(is_pending(pool.start()).await);
        let guest = meeting.guest().await;
        pool.resize(1);
        until(|| is_gone(guest.pid) && pool.status().details.len() == 1).await;
        pool.resize(2);
    }
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), first);
    let starts = tokio::spawn({
        let pool = pool.clone();
        async move { pool.start().await }
    });
    meeting.guest().await.go_on().await;
    within(starts).await.unwrap().unwrap();
    within(pool.close()).await;
}

/// With one idle too long while the other one starts, nobody would be there for the next task.
#[tokio::test]
async fn the_idle_timeout_leaves_workers_that_live() {
    let meeting = Meeting::new();
    let pool = ProcessPool::builder()
        .workers(2)
        .min_workers(1)
        .idle_timeout(Duration::from_millis(50))
        .on_worker_start(task!(meet_unless_first(meeting.place())))
        .build()
        .unwrap();
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    assert!(is_pending(pool.start()).await);
    let guest = meeting.guest().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!is_gone(first));
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), first);
    guest.go_on().await;
    until(|| pool.status().workers == 2).await;
    until(|| pool.status().workers == 1).await;
    within(pool.close()).await;
}

/// Those that waited were done a moment later.
#[tokio::test]
async fn a_task_is_taken_for_as_long_as_some_worker_may_get_ready() {
    let fail_unless_first = |place: PathBuf| {
        assert!(worker().index() == Some(0), "only the first may live");
        meet(&place, 0);
    };
    let meeting = Meeting::new();
    let pool = ProcessPool::builder()
        .workers(2)
        .restart_limit(1, FOREVER)
        .on_worker_start(call(fail_unless_first, meeting.place()))
        .build()
        .unwrap();
    let mut tasks: Vec<_> = (0..2).map(|_| tokio::spawn(pool.submit(task!(pid())))).collect();
    let guest = meeting.guest().await;
    until(|| pool.status().details.len() == 1).await;
    let mut third = pool.submit(task!(pid()));
    assert!(is_pending(&mut third).await, "it waits with the others");
    assert!(matches!(pool.try_submit(task!(pid())), Err(TrySubmitError::Full(_))));
    tasks.push(tokio::spawn(third));
    // Nor are the others started again and again for whoever asks for all of them.
    for _ in 0..3 {
        assert!(matches!(within(pool.start()).await, Err(SpawnError::Worker(_))));
        assert_eq!(pool.status().details.len(), 1);
    }
    let first = guest.pid;
    guest.go_on().await;
    for task in tasks {
        assert_eq!(within(task).await.unwrap().unwrap(), first);
    }
    within(pool.close()).await;
}

/// A pool that was closed before its first worker had begun to start once said that this start had failed.
#[tokio::test]
async fn start_says_that_the_pool_is_closed() {
    let pool = ProcessPool::new(1);
    assert!(is_pending(pool.submit(task!(pid()))).await);
    within(pool.close()).await;
    let started = within(pool.start()).await;
    assert!(matches!(started, Err(SpawnError::Cancelled)), "{started:?}");
}

/// It counted as ready while it ended, and the first task had to wait for another one.
#[tokio::test]
async fn start_waits_for_the_worker_in_the_place_of_one_that_ends() {
    let pool = ProcessPool::builder().workers(1).max_tasks_per_worker(1).build().unwrap();
    for _ in 0..5 {
        let worn = within(pool.submit(task!(pid()))).await.unwrap();
        within(pool.start()).await.unwrap();
        let only = pool.status().details.remove(0);
        assert!(only.state == WorkerState::Idle && only.pid.is_some_and(|pid| pid != worn), "{only:?} after {worn}");
        let spinning = pool.submit(task!(endless())).timeout(Duration::from_millis(10));
        assert!(matches!(within(spinning).await, Err(TaskError::TimedOut)));
        within(pool.start()).await.unwrap();
        let next = pool.status().details.remove(0);
        assert!(
            next.state == WorkerState::Idle && next.pid.is_some() && next.pid != only.pid,
            "{next:?} after {only:?}"
        );
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn no_process_is_shown_of_a_worker_that_is_not_ready() {
    let meeting = Meeting::new();
    let meet_and_fail = |place: PathBuf| {
        meet(&place, 0);
        assert!(place.as_os_str().is_empty(), "cannot load");
    };
    let pool = ProcessPool::builder()
        .workers(1)
        .restart_limit(u32::MAX, FOREVER)
        .on_worker_start(call(meet_and_fail, meeting.place()))
        .build()
        .unwrap();
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    for _ in 0..4 {
        let guest = meeting.guest().await;
        let details = pool.status().details;
        assert_eq!((details[0].pid, details[0].memory, details[0].state), (None, None, WorkerState::Starting));
        let dead = guest.pid;
        guest.go_on().await;
        until(|| is_gone(dead)).await;
        let details = pool.status().details;
        assert_eq!((details[0].pid, details[0].memory, details[0].state), (None, None, WorkerState::Starting));
    }
    within(pool.cancel()).await;
    assert!(matches!(within(waiting).await.unwrap(), Err(TaskError::Cancelled)));
}

/// It was once waited for without limit: nobody wrote it again, and a start task has no deadline.
#[test]
fn a_start_task_with_an_fd_that_no_message_carries_is_refused_when_the_pool_is_built() {
    let Some(fd) = io_uring() else { return };
    let refused = ProcessPool::builder().on_worker_start(call(drop::<Fd>, fd)).build();
    assert!(matches!(refused, Err(SpawnError::Encode(_))), "{refused:?}");
}
