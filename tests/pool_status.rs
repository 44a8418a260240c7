//! What a pool shows of itself: workers, counts, and how long tasks waited and ran.

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::future::{FutureExt as _, join_all};
use multiproc::{ProcessPool, TaskError, WorkerState, call, task};
use pool_support::{Meeting, endless, meet, until, within};

multiproc::test_support!();

fn keep(bytes: usize) {
    static KEPT: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    *KEPT.lock().unwrap() = vec![1; bytes];
}

#[tokio::test]
async fn each_worker_is_shown_with_its_process_task_and_memory() {
    let pool = ProcessPool::new(2);
    within(pool.start()).await.unwrap();
    let status = pool.status();
    assert_eq!((status.workers, status.busy, status.queued, status.limit), (2, 0, 0, 2));
    let before: Vec<u64> = status.details.iter().map(|worker| worker.memory.unwrap()).collect();
    assert!(before.iter().all(|&bytes| bytes > 100 << 10), "{before:?}");

    within(pool.submit(task!(keep(64 << 20)))).await.unwrap();
    let meeting = Meeting::new();
    let place = meeting.place();
    let running = tokio::spawn(pool.submit(call(|place: PathBuf| meet(&place, 0), place)).name("a meeting"));
    let guest = meeting.guest().await;
    let status = pool.status();
    assert_eq!((status.workers, status.busy, status.queued), (2, 1, 0));
    let busy = status.details.iter().find(|worker| worker.state == WorkerState::Busy).unwrap();
    let (name, age) = busy.task.as_ref().unwrap();
    assert_eq!((busy.pid, name.as_ref()), (Some(guest.pid), "a meeting"));
    assert!(*age < Duration::from_mins(1));
    // The one that worked last works again.
    assert!(busy.memory.unwrap() > 64 << 20 && busy.done == 1, "{busy:?}");
    guest.go_on().await;
    within(running).await.unwrap().unwrap();
    until(|| pool.status().busy == 0).await;
    within(pool.close()).await;
    assert_eq!(pool.status().details.len(), 0);
}

fn nap(time: Duration) {
    std::thread::sleep(time);
}

#[tokio::test]
async fn waits_and_runs_are_measured() {
    let pool = ProcessPool::new(1);
    within(pool.start()).await.unwrap();
    let time = Duration::from_millis(20);
    within(join_all((0..10).map(|_| pool.submit(task!(nap(time)))))).await;
    let status = pool.status();
    assert_eq!((status.run.count, status.wait.count), (10, 10));
    // A histogram's values are exact to one percent.
    let least = time * 98 / 100;
    assert!(status.run.p50 >= least && status.run.p50 <= status.run.p99 && status.run.p99 <= status.run.max);
    // The last ones waited for nine others, half of them for four or more; the first for nobody.
    assert!(status.wait.p50 >= least * 4 && status.wait.p99 >= least * 9, "{:?}", status.wait);
    assert!(matches!(within(pool.submit(task!(endless())).timeout(time * 20)).await, Err(TaskError::TimedOut)));
    assert!(pool.status().run.max >= least * 20, "what was ended counts, too");
    within(pool.close()).await;
}

/// In a long queue only some look at the clock, and stand for the others.
#[tokio::test]
async fn a_sample_stands_for_all() {
    let pool = ProcessPool::new(2);
    let results = within(join_all((0..20_000_u32).map(|n| pool.submit(call(|n: u32| n, n))))).await;
    assert!(results.into_iter().all(|result| result.is_ok()));
    let status = pool.status();
    assert_eq!(status.run.count, 20_000);
    assert!((18_000..=22_000).contains(&status.wait.count), "{:?}", status.wait);
    assert!(status.wait.p50 > Duration::ZERO && status.wait.p50 <= status.wait.p99);

    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_that_is_given_up_before_its_worker_is_ready_counts_as_cancelled() {
    let pool = ProcessPool::new(1);
    // A slot is free, so it has that, and no worker yet.
    let mut given_up = pool.submit(call(|n: u32| n + 1, 1));
    assert!((&mut given_up).now_or_never().is_none());
    drop(given_up);
    assert_eq!(within(pool.submit(call(|n: u32| n + 1, 2))).await.unwrap(), 3);
    let counts = pool.status().counts;
    assert_eq!((counts.done, counts.cancelled), (1, 1));
}
