//! What a task knows about itself, and how it stops by itself when nobody wants it any more.

mod pool_support;

use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use multiproc::{Process, ProcessPool, Receiver, SendError, Sender, TaskError, WorkerState, call, channel, task};
use pool_support::{Ledger, Meeting, endless, is_gone, kill, meet, note, pid, until, within};

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
