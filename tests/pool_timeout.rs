//! Timeouts: they count from a task's start, they end a task whatever it does, and they end no other.

mod pool_support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::{Ledger, Meeting, busy, endless, is_gone, is_pending, kill, meet, note, pid, until, within};
use serde::{Deserialize, Serialize};

multiproc::test_support!();

/// Generous: the promise is 0.2 s after the timeout, on a machine that does nothing else.
const SLACK: Duration = Duration::from_secs(3);

fn nap(time: Duration) -> u32 {
    std::thread::sleep(time);
    pid()
}

#[tokio::test]
async fn a_task_that_runs_too_long_is_timed_out() {
    let pool = ProcessPool::new(1);
    within(pool.start()).await.unwrap();
    let begun = Instant::now();
    let late = within(pool.submit(task!(nap(Duration::from_secs(100)))).timeout(Duration::from_millis(100))).await;
    let took = begun.elapsed();
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
    assert!(took >= Duration::from_millis(100) && took < SLACK, "{took:?}");
    assert_eq!(pool.status().counts.timed_out, 1);
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn the_clock_starts_when_the_task_starts() {
    let pool = ProcessPool::new(1);
    let (first, guest) = busy(&pool).await;
    // It waits for longer than its timeout, and then runs for less.
    let second = tokio::spawn(pool.submit(task!(pid())).timeout(Duration::from_millis(300)));
    until(|| pool.status().queued == 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let pid = guest.pid;
    guest.go_on().await;
    assert_eq!(within(first).await.unwrap(), pid);
    assert_eq!(within(second).await.unwrap().unwrap(), pid);
    within(pool.close()).await;
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Stubborn {
    Spins,
    BlocksAllSignals,
    IgnoresSigterm,
    StopsItself,
    HoldsStdout,
}

#[allow(unsafe_code, reason = "signal masks and dispositions")]
fn hang_on(how: Stubborn, place: PathBuf) {
    match how {
        Stubborn::Spins => {
            meet(&place, 0);
            loop {
                std::hint::spin_loop();
            }
        }
        Stubborn::BlocksAllSignals => {
            // SAFETY: the set is initialised by sigfillset before it is read.
            unsafe {
                let mut all = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            }
        }
        // SAFETY: SIG_IGN is a valid disposition.
        Stubborn::IgnoresSigterm => _ = unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) },
        Stubborn::StopsItself => {
            meet(&place, 0);
            pool_support::kill(pid(), libc::SIGSTOP);
        }
        Stubborn::HoldsStdout => std::mem::forget(std::io::stdout().lock()),
    }
    meet(&place, 0);
    endless();
}

#[tokio::test]
async fn a_timeout_works_on_a_worker_that_resists() {
    use Stubborn::{BlocksAllSignals, HoldsStdout, IgnoresSigterm, Spins, StopsItself};
    for grace in [Duration::ZERO, Duration::from_millis(50)] {
        let pool = ProcessPool::builder().workers(1).cancel_grace(grace).build().unwrap();
        let meeting = Meeting::new();
        for how in [Spins, BlocksAllSignals, IgnoresSigterm, StopsItself, HoldsStdout] {
            let timeout = Duration::from_millis(500);
            let late = tokio::spawn(pool.submit(task!(hang_on(how, meeting.place()))).timeout(timeout));
            let guest = meeting.guest().await;
            let pid = guest.pid;
            guest.go_on().await;
            let late = within(late).await.unwrap();
            assert!(matches!(late, Err(TaskError::TimedOut)), "{how:?}: {late:?}");
            until(|| is_gone(pid)).await;
        }
        within(pool.close()).await;
    }
}

#[allow(unsafe_code, reason = "a signal handler")]
fn note_sigterm(place: PathBuf, meeting: PathBuf) {
    static PLACE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    extern "C" fn on_sigterm(_: i32) {
        // Not what a handler should do, but this process is doing nothing else at the moment.
        note(PLACE.get().unwrap(), 15);
        std::process::exit(0);
    }
    PLACE.set(place).unwrap();
    let handler: extern "C" fn(i32) = on_sigterm;
    // SAFETY: the handler has the signature that signal(2) wants.
    unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
    meet(&meeting, 0);
    endless();
}

#[tokio::test]
async fn in_its_grace_a_task_can_clean_up() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_secs(2)).build().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let handle = within(pool.spawn(task!(note_sigterm(ledger.place(), meeting.place())))).await.unwrap();
    let guest = meeting.guest().await;
    let pid = guest.pid;
    guest.go_on().await;
    handle.abort();
    until(|| is_gone(pid)).await;
    assert_eq!(ledger.entries(), [15]);
    within(pool.close()).await;
}

#[tokio::test]
async fn the_pools_timeout_holds_where_a_task_has_none() {
    let pool = ProcessPool::builder().workers(1).task_timeout(Duration::from_millis(50)).build().unwrap();
    assert!(matches!(within(pool.submit(task!(endless()))).await, Err(TaskError::TimedOut)));
    let handle = within(pool.spawn(task!(endless()))).await.unwrap();
    assert!(matches!(within(handle).await, Err(TaskError::TimedOut)));
    let handle = pool.try_submit(task!(endless()));
    assert!(matches!(within(handle.unwrap()).await, Err(TaskError::TimedOut)));
    let patient = pool.submit(task!(nap(Duration::from_millis(200)))).timeout(FAR);
    within(patient).await.unwrap();
    within(pool.close()).await;
}

/// So far away that an `Instant` can't hold it.
const FAR: Duration = Duration::MAX;

#[tokio::test]
async fn a_timeout_of_nothing_is_a_timeout() {
    let pool = ProcessPool::new(1);
    for _ in 0..20 {
        let nothing = within(pool.submit(task!(endless())).timeout(Duration::ZERO)).await;
        assert!(matches!(nothing, Err(TaskError::TimedOut)));
    }
    within(pool.submit(task!(pid()))).await.unwrap();
    within(pool.close()).await;
}

#[tokio::test]
async fn a_timed_out_task_is_not_retried() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let late = pool.submit(task!(note_and_hang(ledger.place()))).timeout(Duration::from_millis(300)).retries(5);
    assert!(matches!(within(late).await, Err(TaskError::TimedOut)));
    assert_eq!(ledger.entries().len(), 1);
    within(pool.close()).await;
}

fn note_and_hang(place: PathBuf) {
    note(&place, 0);
    endless();
}

/// The timeout's moment sweeps over the answer's. Each task has one outcome, and the next one is never hit.
#[tokio::test]
async fn a_timeout_racing_completion_never_hits_the_next_task() {
    let pool = ProcessPool::new(1);
    within(pool.start()).await.unwrap();
    let mut late = 0;
    for round in 0..300_u64 {
        let racing =
            pool.submit(task!(nap(Duration::from_micros(900)))).timeout(Duration::from_micros(800 + 2 * round));
        let racing = tokio::spawn(racing);
        let next = tokio::spawn(pool.submit(task!(pid())));
        match within(racing).await.unwrap() {
            Ok(_) => {}
            Err(TaskError::TimedOut) => late += 1,
            other => panic!("{other:?}"),
        }
        within(next).await.unwrap().unwrap();
    }
    let counts = pool.status().counts;
    assert_eq!((counts.timed_out, counts.died, counts.done), (late, 0, 600 - late));
    within(pool.close()).await;
}

/// Ends its process when it is asked to stop.
fn gives_up(ledger: PathBuf) {
    note(&ledger, multiproc::worker().attempt().into());
    while !multiproc::worker().is_cancelled() {
        std::thread::yield_now();
    }
    std::process::exit(3);
}

#[tokio::test]
async fn a_task_that_ends_its_process_in_its_grace_has_timed_out_and_has_no_other_try() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_mins(2)).build().unwrap();
    let ledger = Ledger::new();
    let late = pool.submit(task!(gives_up(ledger.place()))).timeout(Duration::from_millis(50)).retries(3);
    let late = within(late).await;
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
    assert_eq!(ledger.entries(), [1]);
    let counts = pool.status().counts;
    assert_eq!((counts.timed_out, counts.died), (1, 0));
    within(pool.cancel()).await;
}

/// Stops when it is asked to.
fn stops(ledger: PathBuf) {
    note(&ledger, 0);
    while !multiproc::worker().is_cancelled() {
        std::thread::yield_now();
    }
}

fn dies(ledger: PathBuf) {
    note(&ledger, multiproc::worker().attempt().into());
    std::process::exit(3);
}

#[tokio::test]
async fn a_task_that_dies_right_behind_one_that_stopped_in_its_grace_has_died_and_has_its_other_try() {
    let add = |n: u32| call(|n: u32| n + 1, n);
    for _ in 0..5 {
        let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_mins(2)).build().unwrap();
        let ledger = Ledger::new();
        // So that it is sent tasks ahead.
        within(join_all((0..400).map(|n| pool.submit(add(n))))).await;
        let before = join_all((0..20).map(|n| pool.submit(add(n))));
        let late = pool.submit(task!(stops(ledger.place()))).timeout(Duration::from_millis(50));
        let dead = pool.submit(task!(dies(ledger.place()))).retries(1);
        let behind = join_all((0..200).map(|n| pool.submit(add(n))));
        let (_, late, dead, behind) = within(async { tokio::join!(before, late, dead, behind) }).await;
        assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
        assert!(matches!(dead, Err(TaskError::Died { .. })), "{dead:?}");
        assert_eq!(ledger.entries(), [0, 1, 2]);
        assert!(behind.iter().all(Result::is_ok));
        let counts = pool.status().counts;
        assert_eq!(counts.timed_out, 1);
        within(pool.cancel()).await;
    }
}

fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The first task ends, of its own or for its timeout, at all moments around that; the others are sent ahead behind it.
#[tokio::test]
async fn a_task_that_is_behind_one_that_times_out_is_not_ended_for_it() {
    const TIMEOUT: Duration = Duration::from_millis(1);
    for grace in [Duration::ZERO, Duration::from_millis(2)] {
        let pool = ProcessPool::builder().workers(1).cancel_grace(grace).build().unwrap();
        let mut timed_out = 0;
        for round in 0..1000 {
            let warm = (0..4).map(|_| pool.submit(task!(spin(Duration::from_micros(20)))));
            within(join_all(warm)).await;
            let before = pool.submit(task!(spin(Duration::from_micros(300))));
            let close = pool.submit(task!(spin(Duration::from_micros(950 + round % 100))));
            let behind = (0..3).map(|_| pool.submit(task!(pid())));
            let (before, close, behind) =
                within(async { tokio::join!(before, close.timeout(TIMEOUT), join_all(behind)) }).await;
            before.unwrap();
            for behind in behind {
                behind.unwrap();
            }
            match close {
                Ok(()) => {}
                Err(TaskError::TimedOut) => timed_out += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(pool.status().counts.timed_out, timed_out);
        within(pool.close()).await;
    }
}

/// Its worker does not come to it, as it is stopped; nobody looks for its end all the time meanwhile.
#[tokio::test]
async fn a_time_of_nothing_begins_with_the_task_too() {
    let pool = ProcessPool::new(1);
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    kill(worker, libc::SIGSTOP);
    let late = pool.submit(task!(endless())).timeout(Duration::ZERO);
    let mut late = std::pin::pin!(late);
    // It is with the worker, or waits for one that comes to it.
    for _ in 0..100 {
        assert!(is_pending(&mut late).await);
        tokio::task::yield_now().await;
    }
    kill(worker, libc::SIGCONT);
    assert!(matches!(within(late).await, Err(TaskError::TimedOut)));
    within(pool.close()).await;
}

/// Says when it has been asked to stop, and goes on until it is told not to.
fn is_asked_and_meets(place: PathBuf) {
    while !multiproc::worker().is_cancelled() {
        std::thread::yield_now();
    }
    meet(&place, 0);
}

#[tokio::test]
async fn a_grace_without_end_lets_a_task_stop_by_itself() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::MAX).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let meeting = Meeting::new();
    let late = tokio::spawn(pool.submit(task!(is_asked_and_meets(meeting.place()))).timeout(Duration::from_millis(10)));
    let guest = meeting.guest().await;
    // Its grace has begun in this runtime. If it had an end, that timer would be over before this one, and SIGTERM sent.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!late.is_finished());
    guest.go_on().await;
    assert!(matches!(within(late).await.unwrap(), Err(TaskError::TimedOut)));
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}
