//! Cancelling: by drop, by abort, while queued, while running, and in the moment in which the task ends.

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, TaskHandle, task};
use pool_support::{
    Ledger, Meeting, busy, endless, is_gone, is_pending, meet, meet_and_give_pid, note, pid, until, within,
};

multiproc::test_support!();

fn note_it(place: PathBuf, id: u64) -> u64 {
    note(&place, id);
    id
}

#[tokio::test]
async fn cancelled_while_queued_it_never_runs() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let (running, guest) = busy(&pool).await;
    let dropped: Vec<_> = (0..10).map(|id| tokio::spawn(pool.submit(task!(note_it(ledger.place(), id))))).collect();
    let kept = tokio::spawn(pool.submit(task!(note_it(ledger.place(), 99))));
    until(|| pool.status().queued == 11).await;
    for submit in dropped {
        submit.abort();
        assert!(submit.await.unwrap_err().is_cancelled());
    }
    assert_eq!(pool.status().queued, 1);
    guest.go_on().await;
    assert_eq!(within(kept).await.unwrap().unwrap(), 99);
    within(running).await.unwrap();
    assert_eq!(ledger.entries(), [99]);
    assert_eq!(pool.status().counts.cancelled, 10);
    within(pool.close()).await;
}

#[tokio::test]
async fn never_polled_it_is_not_submitted() {
    let pool = ProcessPool::new(1);
    drop(pool.submit(task!(pid())));
    let unpolled = pool.submit(task!(pid()));
    assert!(pool.status().details.is_empty());
    within(pool.close()).await;
    assert!(matches!(within(unpolled).await, Err(TaskError::Closed)));
}

fn meet_and_hang(place: PathBuf, id: u64) {
    meet(&place, id);
    endless();
}

#[tokio::test]
async fn cancelled_while_running_its_worker_is_killed_and_replaced() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    for by_drop in [true, false, true, false] {
        let handle = within(pool.spawn(task!(meet_and_hang(meeting.place(), 0)))).await.unwrap();
        let guest = meeting.guest().await;
        assert_eq!(handle.worker_id(), Some(guest.pid));
        assert!(!handle.is_finished());
        if by_drop {
            drop(handle);
        } else {
            handle.abort();
            assert!(handle.is_finished());
            assert!(matches!(within(handle).await, Err(TaskError::Cancelled)));
        }
        let next = within(pool.submit(task!(pid()))).await.unwrap();
        assert_ne!(next, guest.pid);
        until(|| is_gone(guest.pid)).await;
    }
    assert_eq!(pool.status().counts.cancelled, 4);
    within(pool.close()).await;
}

#[tokio::test]
async fn a_dropped_submit_kills_its_running_task() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let running = tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place(), 0))));
    let guest = meeting.guest().await;
    running.abort();
    until(|| is_gone(guest.pid)).await;
    within(pool.close()).await;
}

#[tokio::test]
async fn a_detached_task_runs_to_its_end() {
    let pool = ProcessPool::new(1);
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    within(pool.spawn(task!(meet_and_give_pid(meeting.place(), 0)))).await.unwrap().detach();
    let guest = meeting.guest().await;
    let queued = tokio::spawn({
        let pool = pool.clone();
        let place = ledger.place();
        async move { pool.spawn(task!(note_it(place, 5))).await.unwrap().detach() }
    });
    until(|| pool.status().queued == 1).await;
    guest.go_on().await;
    within(queued).await.unwrap();
    within(pool.close()).await;
    assert_eq!(ledger.entries(), [5], "close waited for it");
    assert_eq!(pool.status().counts.done, 2);
}

fn delay(micros: u64) -> u32 {
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_micros(micros) {}
    std::process::id()
}

/// The moment of the cancellation sweeps over the moment of the answer; the task behind it must never be hit.
async fn cancel_races_completion(rounds: u64) {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    for round in 0..rounds {
        let doomed: TaskHandle<u32> = within(pool.spawn(task!(delay(round % 50)))).await.unwrap();
        let next = tokio::spawn(pool.submit(task!(note_it(ledger.place(), round))));
        if round % 3 == 0 {
            // On one thread: the answer and the cancellation then lie before the supervisor together.
            tokio::task::yield_now().await;
        }
        delay(round * 7 % 150);
        if round % 2 == 0 {
            drop(doomed);
        } else {
            doomed.abort();
        }
        assert_eq!(within(next).await.unwrap().unwrap(), round, "the next task was hit");
    }
    assert_eq!(ledger.entries(), (0..rounds).collect::<Vec<_>>());
    within(pool.close()).await;
}

#[tokio::test]
async fn cancel_racing_completion_never_hits_the_next_task_on_one_thread() {
    cancel_races_completion(300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_racing_completion_never_hits_the_next_task_on_many_threads() {
    cancel_races_completion(1000).await;
}

#[tokio::test]
async fn an_answer_before_the_cancellation_is_kept() {
    let pool = ProcessPool::new(1);
    let handle = within(pool.spawn(task!(pid()))).await.unwrap();
    until(|| handle.is_finished()).await;
    handle.abort();
    let worker = within(handle).await.unwrap();
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker, "the worker lives on");
    within(pool.close()).await;
}

#[tokio::test]
async fn a_handle_that_gave_its_result_gives_cancelled_afterwards() {
    let pool = ProcessPool::new(1);
    let mut handle = within(pool.spawn(task!(pid()))).await.unwrap();
    within(&mut handle).await.unwrap();
    assert!(handle.is_finished());
    assert_eq!(handle.worker_id(), None);
    assert!(matches!(within(&mut handle).await, Err(TaskError::Cancelled)));
    within(pool.close()).await;
}

#[tokio::test]
async fn a_wait_for_a_handle_that_is_given_up_loses_nothing() {
    let pool = ProcessPool::new(1);
    let (mut handle, guest) = busy(&pool).await;
    for _ in 0..10 {
        assert!(is_pending(&mut handle).await);
    }
    let pid = guest.pid;
    guest.go_on().await;
    assert_eq!(within(handle).await.unwrap(), pid);
    within(pool.close()).await;
}

/// A caller that gives up after a while, again and again, in front of a worker that is stuck: what was given up must not
/// pile up until the worker comes back.
#[tokio::test]
async fn tasks_that_were_given_up_do_not_pile_up_in_the_queue() {
    let pool = ProcessPool::new(1);
    let (stuck, guest) = busy(&pool).await;
    let patient = tokio::spawn(pool.submit(task!(pid())));
    until(|| pool.status().queued == 1).await;
    for _ in 0..10_000 {
        let submit = pool.submit(task!(pid()));
        assert!(is_pending(submit).await);
    }
    let forgotten = pool.status().counts.cancelled;
    assert!(forgotten > 9_000, "only {forgotten} of 10,000 have left the queue");
    guest.go_on().await;
    within(stuck).await.unwrap();
    within(patient).await.unwrap().unwrap();
    within(pool.close()).await;
    assert_eq!(pool.status().counts.cancelled, 10_000);
}

#[tokio::test]
async fn many_cancelled_among_many_leave_the_others_alone() {
    let pool = ProcessPool::new(2);
    let ledger = Ledger::new();
    let submits = (0..1000_u64).map(|id| {
        let submit = tokio::spawn(pool.submit(task!(note_it(ledger.place(), id))));
        if id % 3 == 0 {
            submit.abort();
        }
        submit
    });
    for (id, result) in within(join_all(submits)).await.into_iter().enumerate() {
        if id % 3 != 0 {
            assert_eq!(result.unwrap().unwrap(), id as u64);
        }
    }
    let mut entries = ledger.entries();
    entries.sort_unstable();
    entries.retain(|id| id % 3 != 0);
    assert_eq!(entries, (0..1000).filter(|id| id % 3 != 0).collect::<Vec<_>>());
    within(pool.close()).await;
}

fn spin(time: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The worker has just answered another task, and says so together with what comes next.
#[tokio::test]
async fn a_task_that_has_just_begun_behind_another_is_cancelled_with_its_pool() {
    for _ in 0..10 {
        let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_millis(50)).build().unwrap();
        let meeting = Meeting::new();
        within(join_all((0..4).map(|_| pool.submit(task!(spin(Duration::from_micros(20))))))).await;
        // The other two are sent together once this one is answered.
        let before = tokio::spawn(pool.submit(task!(spin(Duration::from_micros(300)))));
        let first = tokio::spawn(pool.submit(task!(spin(Duration::from_micros(20)))));
        let second = tokio::spawn(pool.submit(task!(meet_and_hang(meeting.place(), 0))));
        let _guest = meeting.guest().await;
        within(pool.cancel()).await;
        within(before).await.unwrap().unwrap();
        assert!(matches!(within(first).await.unwrap(), Ok(()) | Err(TaskError::Cancelled)));
        assert!(matches!(within(second).await.unwrap(), Err(TaskError::Cancelled)));
    }
}

/// As when `block_on` has returned, or where a task blocks: the supervisors, whose runtime it is, can't count the grace.
#[test]
fn with_a_grace_too_a_pool_that_is_dropped_while_nothing_drives_its_runtime_ends_its_processes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = |pids: &[u32]| {
        // In a runtime of its own, which drives no supervisor.
        let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        other.block_on(until(|| pids.iter().copied().all(is_gone)));
    };
    let pids = |pool: &ProcessPool| pool.status().details.iter().filter_map(|worker| worker.pid).collect::<Vec<_>>();

    let idle = ProcessPool::builder().workers(2).cancel_grace(Duration::MAX).build().unwrap();
    runtime.block_on(within(idle.start())).unwrap();
    let workers = pids(&idle);
    assert_eq!(workers.len(), 2);
    drop(idle);
    ended(&workers);

    let busy = ProcessPool::builder().workers(1).cancel_grace(Duration::from_millis(50)).build().unwrap();
    let meeting = runtime.block_on(async { Meeting::new() });
    let task = runtime.block_on(within(busy.spawn(task!(meet_and_hang(meeting.place(), 0))))).unwrap();
    runtime.block_on(async { meeting.guest().await.go_on().await });
    let workers = pids(&busy);
    assert_eq!(workers.len(), 1);
    drop(busy);
    ended(&workers);
    assert!(matches!(runtime.block_on(within(task)), Err(TaskError::Cancelled)));
}
