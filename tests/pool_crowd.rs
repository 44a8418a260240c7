//! A pool with many more workers than processors: where most are busy, those that come to a task are told of it by their supervisors.
//! All of them work at once all the same, and what is given up before they are told is not begun.

mod pool_support;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::{Guest, Ledger, Meeting, endless, is_pending, meet_and_give_pid, note, until, within};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

multiproc::test_support!();

const WORKERS: usize = 8;

/// A pool that has one processor, and so do its workers, which are ready.
async fn crowded() -> ProcessPool {
    let all = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&processor| all.is_set(processor)).unwrap());
    sched_setaffinity(None, &one).unwrap();
    let pool = ProcessPool::new(WORKERS);
    within(pool.start()).await.unwrap();
    pool
}

async fn all_work_at_once() {
    let pool = crowded().await;
    let meeting = Meeting::new();
    let come = |id| pool.spawn(task!(meet_and_give_pid(meeting.place(), id)));
    let handles = within(try_join_all((0..WORKERS as u64).map(come))).await.unwrap();
    let mut guests = Vec::new();
    for _ in 0..WORKERS {
        guests.push(meeting.guest().await);
    }
    let mut met: Vec<_> = guests.iter().map(|guest| guest.pid).collect();
    join_all(guests.into_iter().map(Guest::go_on)).await;
    let mut pids: Vec<_> = within(join_all(handles)).await.into_iter().map(Result::unwrap).collect();
    pids.sort_unstable();
    met.sort_unstable();
    assert_eq!(met, pids);
    within(pool.close()).await;
}

#[tokio::test]
async fn all_workers_of_a_crowded_pool_work_at_once() {
    all_work_at_once().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_workers_of_a_crowded_pool_work_at_once_in_a_runtime_of_several_threads() {
    all_work_at_once().await;
}

#[tokio::test]
async fn what_does_not_fit_into_a_socket_comes_whole_to_a_crowd() {
    let pool = crowded().await;
    let values: Vec<_> = (0_u8..).take(WORKERS).map(|n| Bytes::from(vec![n; (3 << 20) + usize::from(n)])).collect();
    let echoes = values.iter().map(|value| pool.submit(call(|bytes: Bytes| bytes, value.clone())));
    let echoes: Vec<_> = within(join_all(echoes)).await.into_iter().map(Result::unwrap).collect();
    assert!(echoes == values);
    within(pool.close()).await;
}

fn note_it(place: std::path::PathBuf, id: u64) {
    note(&place, id);
}

/// The runtime has one thread, so nobody tells a worker before this task waits.
#[tokio::test]
async fn what_is_given_up_before_its_worker_is_told_is_not_begun() {
    let pool = crowded().await;
    let ledger = Ledger::new();
    let mut submits: Vec<_> =
        (0..WORKERS as u64).map(|id| Box::pin(pool.submit(task!(note_it(ledger.place(), id))))).collect();
    for submit in &mut submits {
        assert!(is_pending(submit.as_mut()).await);
    }
    // Of these the last were left to the supervisors.
    let kept = submits.drain(..4).collect::<Vec<_>>();
    drop(submits);
    within(join_all(kept)).await.into_iter().for_each(|result| result.unwrap());
    until(|| pool.status().busy == 0).await;
    let mut noted = ledger.entries();
    noted.sort_unstable();
    assert_eq!(noted, [0, 1, 2, 3]);
    within(pool.close()).await;
}

#[tokio::test]
async fn a_crowds_tasks_are_cancelled_with_their_pool() {
    let pool = crowded().await;
    let handles = within(try_join_all((0..WORKERS).map(|_| pool.spawn(task!(endless()))))).await.unwrap();
    within(pool.cancel()).await;
    for handle in handles {
        assert!(matches!(within(handle).await, Err(TaskError::Cancelled)));
    }
}
