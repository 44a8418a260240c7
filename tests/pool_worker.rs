//! What a task knows about itself, and how it stops by itself when nobody wants it any more.

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use multiproc::{
    Process, ProcessPool, Receiver, SendError, Sender, TaskError, WorkerState, call, channel, spawn_process, task,
};
use pool_support::{Ledger, Meeting, endless, is_gone, kill, meet, note, pid, until, within};
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

multiproc::test_support!();

/// Pool, index, process, attempt.
type Me = (Option<String>, Option<usize>, u32, u32);

fn me() -> Me {
    let me = multiproc::worker();
    (me.pool().map(str::to_owned), me.index(), me.pid(), me.attempt())
}

#[tokio::test]
async fn a_task_knows_its_pool_its_worker_and_its_process() {
    let pool = ProcessPool::builder().workers(2).name("thumbs").build().unwrap();
    let meeting = Meeting::new();
    let meet_me = |(place, id): (PathBuf, u64)| {
        meet(&place, id);
        (me(), pid())
    };
    let both = [0, 1].map(|id| tokio::spawn(pool.submit(call(meet_me, (meeting.place(), id)))));
    drop([meeting.guest().await, meeting.guest().await]);
    let mut indices = Vec::new();
    for one in both {
        let ((name, index, said, attempt), pid) = within(one).await.unwrap().unwrap();
        assert_eq!((name.as_deref(), said, attempt), (Some("thumbs"), pid, 1));
        indices.push(index.unwrap());
    }
    indices.sort_unstable();
    assert_eq!(indices, [0, 1]);
    within(pool.close()).await;

    let alone = within(Process::builder().name("alone").spawn(task!(me()))).await.unwrap();
    let pid = alone.id().unwrap();
    assert_eq!(within(alone.join()).await.unwrap(), (None, None, pid, 1));
    assert_eq!(me(), (None, None, std::process::id(), 1), "outside a worker, too");
    assert!(!multiproc::worker().is_cancelled());
}

fn attempt_after_deaths(ledger: PathBuf, deaths: u32) -> u32 {
    let attempt = multiproc::worker().attempt();
    note(&ledger, attempt.into());
    if attempt <= deaths {
        kill(pid(), libc::SIGKILL);
        endless();
    }
    attempt
}

#[tokio::test]
async fn a_task_knows_which_attempt_it_is_and_the_next_one_starts_anew() {
    let pool = ProcessPool::new(1);
    let ledger = Ledger::new();
    let retried = pool.submit(task!(attempt_after_deaths(ledger.place(), 2))).retries(5);
    let (retried, behind) =
        within(async { tokio::join!(retried, pool.submit(call(|()| multiproc::worker().attempt(), ()))) }).await;
    assert_eq!((retried.unwrap(), behind.unwrap()), (3, 1));
    assert_eq!(ledger.entries(), [1, 2, 3]);
    within(pool.close()).await;
}

#[tokio::test]
async fn errors_and_status_call_a_task_by_the_name_that_it_was_given() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let running = tokio::spawn(pool.submit(call(|place: PathBuf| meet(&place, 0), meeting.place())).name("cat.png"));
    let guest = meeting.guest().await;
    let status = pool.status();
    assert_eq!(status.details[0].task.as_ref().unwrap().0, "cat.png");
    kill(guest.pid, libc::SIGKILL);
    match within(running).await.unwrap() {
        Err(TaskError::Died { task, .. }) => assert_eq!(task, "cat.png"),
        other => panic!("{other:?}"),
    }
    within(pool.close()).await;
}

/// Far longer than the task takes to stop: if it did not stop by itself, the test would take so long.
const GRACE: Duration = Duration::from_secs(40);

fn until_cancelled(place: PathBuf, ledger: PathBuf) -> String {
    meet(&place, 0);
    let me = multiproc::worker();
    while !me.is_cancelled() {
        std::thread::sleep(Duration::from_micros(100));
    }
    note(&ledger, pid().into());
    "tidied up".to_owned()
}

async fn until_cancelled_async(place: PathBuf, ledger: PathBuf) -> String {
    let me = multiproc::worker();
    let early = tokio::spawn(async move { me.cancelled().await });
    meet(&place, 0);
    me.cancelled().await;
    early.await.unwrap();
    note(&ledger, pid().into());
    "tidied up".to_owned()
}

#[tokio::test]
async fn a_task_that_stops_when_it_is_cancelled_keeps_its_worker() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(GRACE).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    for round in 0..20 {
        let (meeting, ledger) = (Meeting::new(), Ledger::new());
        let running = if round % 2 == 0 {
            within(pool.spawn(task!(until_cancelled(meeting.place(), ledger.place())))).await.unwrap()
        } else {
            within(pool.spawn(task!(until_cancelled_async(meeting.place(), ledger.place()).await))).await.unwrap()
        };
        let behind = tokio::spawn(pool.submit(call(|()| multiproc::worker().is_cancelled(), ())));
        meeting.guest().await.go_on().await;
        running.abort();
        assert!(matches!(within(running).await, Err(TaskError::Cancelled)));
        assert!(!within(behind).await.unwrap().unwrap(), "the next task is not the one that was cancelled");
        assert_eq!(ledger.entries(), [u64::from(worker)]);
    }
    let counts = pool.status().counts;
    assert_eq!((counts.cancelled, counts.done, counts.restarts), (20, 21, 0));
    within(pool.close()).await;
}

#[tokio::test]
async fn a_task_that_stops_when_its_time_is_up_keeps_its_worker_and_is_timed_out() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(GRACE).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let task = task!(until_cancelled(meeting.place(), ledger.place()));
    let late = tokio::spawn(pool.submit(task).timeout(Duration::from_millis(50)));
    meeting.guest().await.go_on().await;
    let late = within(late).await.unwrap();
    assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
    assert_eq!(ledger.entries(), [u64::from(worker)], "it is over by then");
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    assert_eq!(pool.status().counts.timed_out, 1);
    within(pool.close()).await;
}

/// What stands behind a task in its grace is not lost, and not blamed.
#[tokio::test]
async fn a_task_that_does_not_stop_is_killed_after_its_grace() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(Duration::from_millis(100)).build().unwrap();
    let meeting = Meeting::new();
    let deaf = within(pool.spawn(call(|place: PathBuf| (meet(&place, 0), endless()), meeting.place()))).await.unwrap();
    let behind = tokio::spawn(pool.submit(task!(pid())));
    let guest = meeting.guest().await;
    let deaf_one = guest.pid;
    guest.go_on().await;
    drop(deaf);
    assert_ne!(within(behind).await.unwrap().unwrap(), deaf_one);
    until(|| is_gone(deaf_one)).await;
    let counts = pool.status().counts;
    assert_eq!((counts.cancelled, counts.restarts), (1, 1));
    within(pool.close()).await;
}

#[tokio::test]
async fn a_cancelled_pool_lets_tasks_stop_by_themselves() {
    let pool = ProcessPool::builder().workers(1).cancel_grace(GRACE).build().unwrap();
    let (meeting, ledger) = (Meeting::new(), Ledger::new());
    let running = tokio::spawn(pool.submit(task!(until_cancelled(meeting.place(), ledger.place()))));
    meeting.guest().await.go_on().await;
    assert_eq!(pool.status().details[0].state, WorkerState::Busy);
    within(pool.cancel()).await;
    assert!(matches!(within(running).await.unwrap(), Err(TaskError::Cancelled)));
    assert_eq!(ledger.entries().len(), 1);
}

/// How often a process, or a thread, has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap().trim().parse().unwrap()
}

fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap()..].chars().nth(2).unwrap()
}

#[tokio::test]
async fn a_busy_worker_does_not_sleep_between_tasks() {
    if sched_getaffinity(None).unwrap().count() == 1 {
        // There it does.
        return;
    }
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let before = sleeps(worker);
    for _ in 0..100 {
        assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    }
    let slept = sleeps(worker) - before;
    assert!(slept < 50, "{slept} times in 100 tasks");
    within(pool.close()).await;
    assert!(is_gone(worker), "it saw the end, too");
}

/// How often a worker sleeps in 200 tasks on its host's processor, where both are put before it is started, or after.
fn sleeps_on_its_hosts_processor(before_start: bool) -> u64 {
    let mine = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&processor| mine.is_set(processor)).unwrap());
    if before_start {
        sched_setaffinity(None, &one).unwrap();
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let pool = ProcessPool::new(1);
        let worker = pool.submit(task!(pid())).await.unwrap();
        for who in [None, Pid::from_raw(worker.cast_signed())] {
            sched_setaffinity(who, &one).unwrap();
        }
        // It has yet to see where this one comes from.
        pool.submit(task!(pid())).await.unwrap();
        let before = sleeps(worker);
        for _ in 0..200 {
            assert_eq!(pool.submit(task!(pid())).await.unwrap(), worker);
        }
        let slept = sleeps(worker) - before;
        pool.close().await;
        slept
    })
}

#[tokio::test]
async fn a_worker_on_its_hosts_processor_wakes_once_a_task() {
    for before_start in [true, false] {
        let host = within(spawn_process(task!(sleeps_on_its_hosts_processor(before_start)))).await.unwrap();
        let slept = within(host.join()).await.unwrap();
        // When its host reads an answer it does not.
        assert!(slept <= 201, "{slept} times in 200 tasks");
    }
}

async fn sleep_little_while_they_wait() {
    if sched_getaffinity(None).unwrap().count() == 1 {
        return;
    }
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_mins(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let this_thread = gettid().as_raw_nonzero().get().unsigned_abs();
    let before = sleeps(this_thread);
    for _ in 0..50 {
        assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
        assert_eq!(within(pool.try_submit(task!(pid())).unwrap()).await.unwrap(), worker);
    }
    let slept = sleeps(this_thread) - before;
    assert!(slept < 50, "{slept} times in 100 tasks");
    within(pool.close()).await;
}

#[tokio::test]
async fn the_callers_of_a_busy_pool_do_not_sleep_while_they_wait() {
    sleep_little_while_they_wait().await;
}

/// Their thread is not the one that reads the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_callers_of_a_busy_pool_do_not_sleep_while_they_wait_outside_the_runtimes_threads_neither() {
    sleep_little_while_they_wait().await;
}

fn wait_for_the_end(mut end: Receiver<()>) {
    let _ = end.blocking_recv();
}

#[tokio::test]
async fn the_callers_of_a_busy_pool_sleep_when_their_time_is_over() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_millis(1)).build().unwrap();
    within(pool.start()).await.unwrap();
    let (tx, rx) = channel::<()>().unwrap();
    let this_thread = gettid().as_raw_nonzero().get().unsigned_abs();
    let watch = std::thread::spawn(move || {
        while state(this_thread) != 'S' {
            std::thread::yield_now();
        }
        drop(tx);
    });
    within(pool.submit(task!(wait_for_the_end(rx)))).await.unwrap();
    watch.join().unwrap();
}

#[tokio::test]
async fn a_busy_worker_sleeps_when_its_time_is_over() {
    let pool = ProcessPool::builder().workers(1).busy_poll(Duration::from_millis(1)).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    within(until(|| state(worker) == 'S')).await;
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker, "and wakes");
}

/// Lets go of its end, and goes on until it is told to stop.
fn let_go<T>((end, mut stop): (T, Receiver<()>)) {
    drop(end);
    let _ = stop.blocking_recv();
}

#[tokio::test]
async fn what_a_running_task_does_with_its_end_of_a_channel_is_seen_at_once() {
    let pool = ProcessPool::new(2);
    // Alone, and behind another one.
    for before in [0, 1] {
        let (stop_one, one_stops) = channel::<()>().unwrap();
        let (stop_other, other_stops) = channel::<()>().unwrap();
        let (tx, mut rx) = channel::<u8>().unwrap();
        let (other_tx, other_rx) = channel::<Vec<u8>>().unwrap();
        for _ in 0..before {
            within(join_all((0..50).map(|n: u32| pool.submit(call(|n: u32| n + 1, n))))).await;
        }
        let one = tokio::spawn(pool.submit(call(let_go::<Sender<u8>>, (tx, one_stops))));
        let other = tokio::spawn(pool.submit(call(let_go::<Receiver<Vec<u8>>>, (other_rx, other_stops))));
        assert_eq!(within(rx.recv()).await.unwrap(), None);
        let refused = within(async {
            loop {
                if let Err(error) = other_tx.send(vec![0; 100_000]).await {
                    return error;
                }
            }
        });
        assert!(matches!(refused.await, SendError::Closed));
        assert!(!one.is_finished() && !other.is_finished());
        drop((stop_one, stop_other));
        within(one).await.unwrap().unwrap();
        within(other).await.unwrap().unwrap();
    }
    within(pool.close()).await;
}
