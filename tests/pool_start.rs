//! Workers that start, start again, and can't start.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

mod pool_support;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use multiproc::{ProcessPool, SharedBytes, SpawnError, TaskError, call, task};
use pool_support::{
    Ledger, Meeting, busy, endless, folder, is_gone, is_pending, kill, meet, meet_and_give_pid, note, pid, until,
    within,
};

multiproc::test_support!();

static LOADED: AtomicU64 = AtomicU64::new(0);

fn load(place: PathBuf, what: u64) {
    note(&place, u64::from(pid()));
    LOADED.store(what, Ordering::Relaxed);
}

fn loaded() -> (u64, u32) {
    (LOADED.load(Ordering::Relaxed), pid())
}

#[tokio::test]
async fn the_initializer_runs_once_in_every_worker_and_in_replacements() {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder().workers(2).on_worker_start(task!(load(ledger.place(), 17))).build().unwrap();
    within(pool.start()).await.unwrap();
    assert_eq!(ledger.entries().len(), 2);
    for _ in 0..5 {
        let (what, worker) = within(pool.submit(task!(loaded()))).await.unwrap();
        assert_eq!(what, 17);
        kill(worker, libc::SIGKILL);
        until(|| pool.status().details.iter().all(|detail| detail.pid.is_some_and(|pid| pid != worker))).await;
        until(|| pool.status().workers == 2).await;
    }
    let started = ledger.entries();
    assert_eq!(started.len(), 7);
    assert_eq!(started.iter().collect::<std::collections::HashSet<_>>().len(), 7, "once each");
    assert_eq!(LOADED.load(Ordering::Relaxed), 0, "and not here");
    within(pool.close()).await;
}

static SHARED: OnceLock<SharedBytes> = OnceLock::new();

#[tokio::test]
async fn the_initializer_may_bring_shared_memory_to_every_worker_and_replacement() {
    let shared = SharedBytes::copy_from_slice(&[7; 10_000]).unwrap();
    let keep = call(|bytes: SharedBytes| drop(SHARED.set(bytes)), shared.clone());
    let pool = ProcessPool::builder().workers(2).on_worker_start(keep).build().unwrap();
    drop(shared);
    for _ in 0..5 {
        within(pool.start()).await.unwrap();
        let read = || call(|()| (SHARED.get().is_some_and(|bytes| **bytes == [7; 10_000]), pid()), ());
        let (is_there, worker) = within(pool.submit(read())).await.unwrap();
        assert!(is_there);
        kill(worker, libc::SIGKILL);
        until(|| pool.status().details.iter().all(|detail| detail.pid != Some(worker))).await;
    }
    within(pool.close()).await;
}

fn fail(place: PathBuf, how: u8) {
    note(&place, 0);
    match how {
        0 => panic!("cannot load"),
        1 => std::process::exit(3),
        _ => std::process::abort(),
    }
}

#[tokio::test]
async fn a_failing_initializer_breaks_the_pool_with_its_cause_after_bounded_attempts() {
    for (how, said) in [(0, "cannot load"), (1, "exit status: 3"), (2, "SIGABRT")] {
        let ledger = Ledger::new();
        let pool = ProcessPool::builder()
            .workers(2)
            .restart_limit(3, Duration::from_mins(10))
            .on_worker_start(task!(fail(ledger.place(), how)))
            .build()
            .unwrap();
        let results = within(join_all((0..50).map(|_| pool.submit(task!(pid()))))).await;
        for result in results {
            let error = result.unwrap_err();
            assert!(matches!(error, TaskError::Broken(_)), "{error:?}");
            let mut chain = error.to_string();
            let mut source = std::error::Error::source(&error);
            assert!(source.unwrap().is::<SpawnError>(), "{error:?}");
            while let Some(cause) = source {
                chain = format!("{chain}: {cause}");
                source = cause.source();
            }
            assert!(chain.contains(said), "{chain}");
        }
        let attempts = ledger.entries().len();
        assert!((4..=5).contains(&attempts), "three may fail, one more breaks it, one was under way: {attempts}");
        // While it is broken, tasks fail at once.
        assert!(matches!(within(pool.submit(task!(pid()))).await, Err(TaskError::Broken(_))));
        assert!(matches!(within(pool.spawn(task!(pid()))).await, Err(TaskError::Broken(_))));
        within(pool.start()).await.unwrap_err();
        assert_eq!(ledger.entries().len(), attempts);
        within(pool.close()).await;
    }
}

#[tokio::test]
async fn workers_that_cannot_start_break_the_pool_with_the_cause() {
    let missing = folder().path().join("missing");
    let pools = [
        ProcessPool::builder().current_dir(&missing),
        ProcessPool::builder()
            .memory_limit(256 << 20)
            .on_worker_start(call(|()| std::hint::black_box(vec![1_u8; 512 << 20]).len(), ())),
    ];
    for (number, builder) in pools.into_iter().enumerate() {
        let pool = builder.workers(2).restart_limit(2, Duration::from_mins(10)).build().unwrap();
        let begun = Instant::now();
        let error = within(pool.submit(task!(pid()))).await.unwrap_err();
        assert!(matches!(error, TaskError::Broken(_)), "{number}: {error:?}");
        if number == 0 {
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("missing"), "{source}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(matches!(within(pool.submit(task!(pid()))).await, Err(TaskError::Broken(_))));
        until(|| pool.status().details.is_empty()).await;
        within(pool.close()).await;
    }
}

fn fail_without(file: PathBuf) {
    assert!(file.exists(), "not yet");
}

#[tokio::test]
async fn a_pool_that_was_broken_is_tried_again_after_its_window() {
    let parent = folder();
    let file = parent.path().join("later");
    let pool = ProcessPool::builder()
        .workers(1)
        .on_worker_start(task!(fail_without(file.clone())))
        .restart_limit(1, Duration::from_millis(500))
        .build()
        .unwrap();
    assert!(matches!(within(pool.submit(task!(pid()))).await, Err(TaskError::Broken(_))));
    std::fs::write(&file, "").unwrap();
    until(|| pool.try_submit(task!(pid())).is_ok()).await;
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

fn fail_slowly(place: PathBuf, pause: Duration) {
    note(&place, 0);
    std::thread::sleep(pause);
    panic!("cannot load");
}

/// There was never more than one failure within the window, and the task waited for ever.
#[tokio::test]
async fn starts_that_fail_slowly_break_the_pool_too() {
    let ledger = Ledger::new();
    let window = Duration::from_millis(10);
    let pool = ProcessPool::builder()
        .workers(1)
        .on_worker_start(task!(fail_slowly(ledger.place(), 2 * window)))
        .restart_limit(2, window)
        .build()
        .unwrap();
    assert!(matches!(within(pool.submit(task!(pid()))).await, Err(TaskError::Broken(_))));
    assert_eq!(ledger.entries().len(), 3);
    within(pool.close()).await;
}

/// Nothing has failed in a process that never was: the next task is a new try, long before the window has passed.
#[tokio::test]
async fn a_pool_whose_workers_had_no_directory_works_as_soon_as_there_is_one() {
    let parent = folder();
    let directory = parent.path().join("later");
    let pool = ProcessPool::builder()
        .workers(2)
        .current_dir(&directory)
        .restart_limit(1, Duration::from_mins(10))
        .build()
        .unwrap();
    for _ in 0..3 {
        let results = within(join_all((0..10).map(|_| pool.submit(task!(pid()))))).await;
        assert!(results.iter().all(|result| matches!(result, Err(TaskError::Broken(_)))), "{results:?}");
    }
    until(|| pool.status().details.is_empty()).await;
    std::fs::create_dir(&directory).unwrap();
    let meeting = Meeting::new();
    let two: Vec<_> =
        (0..2).map(|id| tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), id))))).collect();
    drop([meeting.guest().await, meeting.guest().await]);
    for task in two {
        within(task).await.unwrap().expect("also two at once, though the limit is still reached");
    }
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn start_says_what_failed_and_may_be_repeated() {
    let parent = folder();
    let directory = parent.path().join("later");
    let builder = ProcessPool::builder().workers(2).current_dir(&directory);
    let pool = builder.restart_limit(0, Duration::from_mins(10)).build().unwrap();
    match within(pool.start()).await {
        Err(SpawnError::Worker(cause)) => assert!(matches!(*cause, SpawnError::Directory { .. })),
        other => panic!("{other:?}"),
    }
    until(|| pool.status().details.is_empty()).await;
    std::fs::create_dir(&directory).unwrap();
    within(pool.start()).await.expect("an old failure is no failure of this start");
    assert_eq!(pool.status().workers, 2);
    within(pool.close()).await;
}

fn only_first(place: PathBuf) {
    let before = note(&place, 0);
    assert!(before == 0, "only one may live");
}

/// One worker lives and the others can't be started: the work goes on with the one, and starts are not tried for ever.
#[tokio::test]
async fn with_one_worker_alive_the_others_are_not_started_without_end() {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder()
        .workers(4)
        .restart_limit(3, Duration::from_mins(10))
        .on_worker_start(task!(only_first(ledger.place())))
        .build()
        .unwrap();
    let first = within(pool.submit(task!(pid()))).await.unwrap();
    let results = within(join_all((0..2000).map(|_| pool.submit(task!(pid()))))).await;
    assert!(results.into_iter().all(|result| result.unwrap() == first));
    let attempts = ledger.entries().len();
    assert!(attempts <= 10, "{attempts} starts");
    within(pool.close()).await;
}

fn note_and_fail_without(place: PathBuf, file: PathBuf) {
    let is_there = file.exists();
    note(&place, 0);
    assert!(is_there, "not yet");
}

/// Others had to wait for the long task: nobody came back to those whose starts had failed.
#[tokio::test]
async fn a_task_whose_starts_failed_does_not_wait_for_a_long_one_once_the_window_has_passed() {
    let (parent, ledger) = (folder(), Ledger::new());
    let file = parent.path().join("needed");
    std::fs::write(&file, "").unwrap();
    let pool = ProcessPool::builder()
        .workers(2)
        .on_worker_start(task!(note_and_fail_without(ledger.place(), file.clone())))
        .restart_limit(1, Duration::from_millis(100))
        .build()
        .unwrap();
    let (long, guest) = busy(&pool).await;
    std::fs::remove_file(&file).unwrap();
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    until(|| ledger.entries().len() >= 3).await;
    std::fs::write(&file, "").unwrap();
    assert_ne!(within(waiting).await.unwrap().unwrap(), guest.pid);
    assert!(!long.is_finished());
    guest.go_on().await;
    within(long).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_for_which_there_was_no_process_does_not_wait_for_a_long_one_once_there_can_be() {
    let parent = folder();
    let directory = parent.path().join("needed");
    std::fs::create_dir(&directory).unwrap();
    let pool = ProcessPool::builder()
        .workers(2)
        .current_dir(&directory)
        .restart_limit(1, Duration::from_mins(10))
        .build()
        .unwrap();
    let (long, guest) = busy(&pool).await;
    std::fs::remove_dir(&directory).unwrap();
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    let is_given_up = || {
        let status = pool.status();
        status.queued == 1 && status.details.len() == 1
    };
    until(is_given_up).await;
    std::fs::create_dir(&directory).unwrap();
    assert_ne!(within(waiting).await.unwrap().unwrap(), guest.pid);
    assert!(!long.is_finished());
    guest.go_on().await;
    within(long).await.unwrap();
    within(pool.close()).await;
}

fn doom() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(2));
        std::process::abort();
    });
}

/// A process that is ready, and dies before it has anything to do, again and again: each start comes later than the last.
#[tokio::test]
async fn workers_that_die_as_soon_as_they_are_ready_are_not_started_without_a_pause() {
    let ledger = Ledger::new();
    let start = |place: PathBuf| {
        note(&place, 0);
        doom();
    };
    let pool = ProcessPool::builder().workers(2).on_worker_start(call(start, ledger.place())).build().unwrap();
    // Most often one has died before the other is ready, and then it says so instead of waiting for ever.
    let _ = within(pool.start()).await;
    let before = ledger.entries().len();
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let starts = ledger.entries().len() - before;
    // Without a pause it would be hundreds.
    assert!(starts as u64 <= 30 * (1 + begun.elapsed().as_secs()), "{starts} starts");
    // Tasks have an outcome all the same.
    let outcome = within(pool.submit(task!(pool_support::endless()))).await;
    assert!(matches!(outcome, Err(TaskError::Died { .. } | TaskError::Broken(_))), "{outcome:?}");
    within(pool.close()).await;
}

#[tokio::test]
async fn start_makes_all_workers_ready_and_a_pool_is_lazy_without_it() {
    let pool = ProcessPool::new(3);
    assert!(pool.status().details.is_empty());
    within(pool.submit(task!(pid()))).await.unwrap();
    assert_eq!(pool.status().details.len(), 1, "no more than are needed");
    within(pool.start()).await.unwrap();
    assert_eq!(pool.status().workers, 3);
    within(pool.start()).await.unwrap();
    within(pool.close()).await;
}

/// It heard of a failure only when the last try had failed.
#[tokio::test]
async fn start_says_what_failed_though_it_is_tried_again_without_end() {
    let ledger = Ledger::new();
    let pool = ProcessPool::builder()
        .workers(2)
        .restart_limit(u32::MAX, Duration::from_mins(10))
        .on_worker_start(task!(fail(ledger.place(), 0)))
        .build()
        .unwrap();
    match within(pool.start()).await {
        Err(SpawnError::Worker(cause)) => assert!(matches!(*cause, SpawnError::StartTask(_)), "{cause:?}"),
        other => panic!("{other:?}"),
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_start_that_is_given_up_goes_on() {
    let pool = ProcessPool::new(2);
    assert!(is_pending(pool.start()).await);
    until(|| pool.status().workers == 2).await;
    within(pool.close()).await;
}

fn meet_and_hang(place: PathBuf) {
    meet(&place, 0);
    endless();
}

#[tokio::test]
async fn an_initializer_that_hangs_is_ended_with_its_pool() {
    let meeting = Meeting::new();
    let pool =
        || ProcessPool::builder().workers(1).on_worker_start(task!(meet_and_hang(meeting.place()))).build().unwrap();

    let cancelled = pool();
    let waits = tokio::spawn(cancelled.submit(task!(pid())).timeout(Duration::from_millis(1)));
    let guest = meeting.guest().await;
    within(cancelled.cancel()).await;
    assert!(is_gone(guest.pid));
    assert!(matches!(within(waits).await.unwrap(), Err(TaskError::Cancelled)), "its own clock had not begun");

    let dropped = pool();
    let waits = tokio::spawn(dropped.submit(task!(pid())));
    let guest = meeting.guest().await;
    drop(dropped);
    assert!(matches!(within(waits).await.unwrap(), Err(TaskError::Cancelled)));
    until(|| is_gone(guest.pid)).await;

    let closed = pool();
    let starts = tokio::spawn({
        let pool = closed.clone();
        async move { pool.start().await }
    });
    let guest = meeting.guest().await;
    within(closed.close()).await;
    assert!(is_gone(guest.pid), "no task waits for it");
    assert!(matches!(within(starts).await.unwrap(), Err(SpawnError::Cancelled)));
}

/// Field 19 of stat in proc(5); the second one may hold anything in its parentheses.
fn nice_value() -> i32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
}

#[tokio::test]
async fn settings_reach_the_workers() {
    let directory = folder();
    let pool = ProcessPool::builder()
        .workers(1)
        .name("thumbs")
        .env("COLOUR", "green")
        .current_dir(directory.path())
        .nice(13)
        .build()
        .unwrap();
    let seen = call(
        |()| {
            let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
            (std::env::var("COLOUR").unwrap(), std::env::current_dir().unwrap(), comm, nice_value())
        },
        (),
    );
    let (colour, cwd, comm, nice) = within(pool.submit(seen)).await.unwrap();
    assert_eq!(colour, "green");
    assert_eq!(cwd, directory.path().canonicalize().unwrap());
    assert_eq!(comm.trim(), "thumbs-0");
    assert_eq!(nice, 13);
    within(pool.close()).await;
}

#[tokio::test]
async fn the_builder_refuses_what_cannot_be() {
    assert!(matches!(ProcessPool::builder().workers(0).build(), Err(SpawnError::Invalid { .. })));
    let bad = call(|_: Unencodable| (), Unencodable);
    assert!(matches!(ProcessPool::builder().on_worker_start(bad).build(), Err(SpawnError::Encode(_))));
    for (key, value) in [("A\0B", "c"), ("A", "b\0c"), ("", "a"), ("A=B", "c")] {
        let built = ProcessPool::builder().env(key, value).on_worker_start(call(|()| (), ())).build();
        assert!(matches!(built, Err(SpawnError::Invalid { .. })), "{key:?}={value:?}: {built:?}");
    }
    let built = ProcessPool::builder().current_dir("a\0b").build();
    assert!(matches!(built, Err(SpawnError::Invalid { .. })), "{built:?}");
    // A number of workers that no machine has is only a bound.
    let pool = ProcessPool::builder().workers(usize::MAX).build().unwrap();
    within(pool.submit(task!(pid()))).await.unwrap();
    pool.resize(usize::MAX);
    pool.resize(1);
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[derive(serde::Deserialize)]
struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("not this one"))
    }
}

/// A worker's death while its pool is starting others leaves no slot behind.
#[tokio::test]
async fn slots_come_back_whatever_happens_at_starts() {
    let ledger = Ledger::new();
    let flaky = |place: PathBuf| {
        let before = note(&place, 0);
        assert!(before % 3 != 1, "every third start fails");
    };
    let pool = ProcessPool::builder()
        .workers(3)
        .restart_limit(1000, Duration::from_mins(10))
        .on_worker_start(call(flaky, ledger.place()))
        .build()
        .unwrap();
    for _ in 0..20 {
        let dead = within(join_all((0..3).map(|_| pool.submit(call(|()| std::process::exit(1), ()))))).await;
        let dead: Vec<Result<(), _>> = dead;
        assert!(dead.iter().all(|result| matches!(result, Err(TaskError::Died { .. }))));
    }
    let meeting = Meeting::new();
    let three: Vec<_> =
        (0..3).map(|id| tokio::spawn(pool.submit(task!(meet_and_give_pid(meeting.place(), id))))).collect();
    drop([meeting.guest().await, meeting.guest().await, meeting.guest().await]);
    for task in three {
        within(task).await.unwrap().unwrap();
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_that_is_given_up_while_its_worker_starts_gives_its_slot_back() {
    fn meet_first(place: PathBuf) {
        meet(&place, 0);
    }
    let meeting = Meeting::new();
    let pool = ProcessPool::builder().workers(1).on_worker_start(call(meet_first, meeting.place())).build().unwrap();
    let first = pool.try_submit(task!(pid())).unwrap();
    let guest = meeting.guest().await;
    assert!(pool.try_submit(task!(pid())).is_err());
    first.abort();
    assert!(matches!(within(first).await, Err(TaskError::Cancelled)));
    assert_eq!(pool.status().queued, 0);
    let second = pool.try_submit(task!(pid())).unwrap();
    assert_eq!(pool.status().counts.cancelled, 1);
    drop(second);
    let third = within(pool.spawn(task!(pid()))).await.unwrap();
    guest.go_on().await;
    within(third).await.unwrap();
    assert_eq!(pool.status().counts.cancelled, 2);
    within(pool.close()).await;
}
