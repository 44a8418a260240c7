//! How long workers live: tasks, memory, idleness, and a pool that grows and shrinks under load.

mod pool_support;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{join, join_all};
use futures::stream::FuturesUnordered;
use multiproc::{ProcessPool, WorkerState, call, task, worker};
use pool_support::proc::state;
use pool_support::{Ledger, Meeting, Slow, busy, is_gone, meet, note, pid, try_submit, until, within};

multiproc::test_support!();

#[tokio::test]
async fn workers_are_replaced_after_so_many_tasks() {
    for (workers, each, tasks) in [(1, 2, 6), (2, 2, 8), (2, 1, 9), (3, 2, 100)] {
        let pool = ProcessPool::builder().workers(workers).max_tasks_per_worker(each).build().unwrap();
        let pids = within(join_all((0..tasks).map(|_| pool.submit(task!(pid()))))).await;
        let mut ran = std::collections::HashMap::new();
        for pid in pids {
            *ran.entry(pid.unwrap()).or_insert(0) += 1;
        }
        assert!(ran.values().all(|&count| count <= each), "{ran:?}");
        assert!(ran.len() as u64 >= tasks / each);
        within(pool.close()).await;
        assert!(ran.into_keys().all(is_gone));
    }
}

fn nothing() {}

/// Whoever gave a worker its last task may still be writing it, on another thread, when the worker has answered and is sent its
/// exit task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_task_and_the_caller_of_the_last_task_do_not_get_into_each_others_way() {
    let builder = ProcessPool::builder().workers(2).max_tasks_per_worker(3).on_worker_exit(task!(nothing()));
    let pool = builder.build().unwrap();
    for _ in 0..500 {
        let task = pool.submit(task!(pid()));
        within(tokio::spawn(task)).await.unwrap().unwrap();
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn recycled_one_by_one_too() {
    let pool = ProcessPool::builder().workers(1).max_tasks_per_worker(2).build().unwrap();
    let mut pids = Vec::new();
    for _ in 0..6 {
        pids.push(within(pool.submit(task!(pid()))).await.unwrap());
    }
    assert!(pids[0] == pids[1] && pids[2] == pids[3] && pids[4] == pids[5]);
    assert_eq!(pids.into_iter().collect::<HashSet<_>>().len(), 3);
    within(pool.close()).await;
}

/// Those that started together are not to be replaced together; nobody does more than was allowed.
#[tokio::test]
async fn workers_limits_differ_a_little() {
    let pool = ProcessPool::builder().workers(1).max_tasks_per_worker(100).build().unwrap();
    let mut ran = std::collections::HashMap::new();
    for pid in within(join_all((0..2000).map(|_| pool.submit(task!(pid()))))).await {
        *ran.entry(pid.unwrap()).or_insert(0) += 1;
    }
    let mut counts: Vec<u32> = ran.into_values().collect();
    counts.sort_unstable();
    // The last one was not replaced.
    let counts: Vec<u32> = counts.into_iter().filter(|&count| count >= 90).collect();
    assert!(counts.len() >= 19 && counts.iter().all(|&count| count <= 100), "{counts:?}");
    assert_ne!(counts.first(), counts.last(), "{counts:?}");
    within(pool.close()).await;
}

fn keep(bytes: usize) -> u32 {
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<Vec<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| kept.push(vec![1; bytes]));
    pid()
}

#[tokio::test]
async fn a_worker_that_holds_too_much_memory_is_replaced_between_tasks() {
    let pool = ProcessPool::builder().workers(1).max_worker_memory(200 << 20).build().unwrap();
    let modest = within(pool.submit(task!(keep(1 << 20)))).await.unwrap();
    assert_eq!(within(pool.submit(task!(keep(1 << 20)))).await.unwrap(), modest);
    let greedy = within(pool.submit(task!(keep(300 << 20)))).await.unwrap();
    assert_eq!(greedy, modest, "the task itself is not hit");
    assert_ne!(within(pool.submit(task!(keep(1)))).await.unwrap(), greedy);
    until(|| is_gone(greedy)).await;
    within(pool.close()).await;
}

#[tokio::test]
async fn idle_workers_end_and_the_least_number_stays() {
    for least in [0, 1, 2] {
        let pool = ProcessPool::builder()
            .workers(4)
            .min_workers(least)
            .idle_timeout(Duration::from_millis(20))
            .build()
            .unwrap();
        for _ in 0..3 {
            within(pool.start()).await.unwrap();
            // They all become idle at about the same time.
            until(|| pool.status().details.len() == least).await;
            // That this time passes is the thing under test, here and below.
            tokio::time::sleep(Duration::from_millis(60)).await;
            assert_eq!(pool.status().details.len(), least, "and so it stays");
        }
        within(pool.submit(task!(pid()))).await.unwrap();
        within(pool.close()).await;
    }
}

/// The last worker ends while the only slot belongs to a task that is being encoded.
#[tokio::test]
async fn a_task_that_waits_for_a_slot_is_not_cancelled_by_the_end_of_an_idle_worker() {
    let exits = Meeting::new();
    let pool = ProcessPool::builder()
        .workers(1)
        .idle_timeout(Duration::from_millis(20))
        .on_worker_exit(task!(hold_on(exits.place())))
        .build()
        .unwrap();
    within(pool.start()).await.unwrap();
    let (slow, mut encoding) = Slow::new();
    let submitter = try_submit(&pool, slow);
    encoding.begins().await;
    let ending = exits.guest().await;
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    until(|| pool.status().queued == 1).await;
    // From now on workers do not wait at their end.
    drop(exits);
    ending.go_on().await;
    until(|| waiting.is_finished() || pool.status().counts.restarts > 0).await;
    encoding.go_on();
    within(within(submitter).await.unwrap().unwrap()).await.unwrap();
    within(waiting).await.unwrap().unwrap();
    within(pool.close()).await;
}

fn index() -> usize {
    worker().index().unwrap()
}

/// Or `GPUS[worker().index()]` would be out of bounds after a while.
#[tokio::test]
async fn a_new_worker_has_the_lowest_number_that_no_other_has() {
    let pool = ProcessPool::builder().workers(2).idle_timeout(Duration::from_millis(1)).build().unwrap();
    for _ in 0..3 {
        let (long, guest) = busy(&pool).await;
        for _ in 0..3 {
            until(|| pool.status().details.len() == 1).await;
            // Usually 0, but it may have been slow and the task have gone to the other one.
            let taken = pool.status().details[0].index;
            assert_eq!(within(pool.submit(task!(index()))).await.unwrap(), 1 - taken);
        }
        guest.go_on().await;
        within(long).await.unwrap();
        until(|| pool.status().details.is_empty()).await;
    }
    within(pool.close()).await;
}

#[tokio::test]
async fn a_busy_worker_is_not_idle() {
    let pool = ProcessPool::builder().workers(1).idle_timeout(Duration::from_millis(10)).build().unwrap();
    let (running, guest) = busy(&pool).await;
    // That its idle time passes, ten times, is the thing under test.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let pid = guest.pid;
    guest.go_on().await;
    assert_eq!(within(running).await.unwrap(), pid);
    until(|| is_gone(pid)).await;
    within(pool.close()).await;
}

/// The idle timeout's moment sweeps over the next task's: a task is never lost to a worker that is just ending.
#[tokio::test]
async fn idleness_racing_a_task_loses_no_task() {
    let pool = ProcessPool::builder().workers(1).idle_timeout(Duration::from_millis(2)).build().unwrap();
    for round in 0..200_u64 {
        within(pool.submit(task!(pid()))).await.unwrap();
        tokio::time::sleep(Duration::from_micros(1000 + round * 10)).await;
    }
    let counts = pool.status().counts;
    assert_eq!((counts.done, counts.died), (200, 0));
    within(pool.close()).await;
}

/// Workers that stay because of the least number must not be asked again and again.
#[tokio::test]
async fn workers_that_stay_cost_nothing() {
    let pool = ProcessPool::builder().workers(1).min_workers(1).idle_timeout(Duration::ZERO).build().unwrap();
    let worker = within(pool.submit(task!(pid()))).await.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let polls = || metrics.worker_park_count(0);
    let before = polls();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let spent = polls() - before;
    assert!(spent < 50, "the runtime woke {spent} times for nothing");
    assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), worker);
    within(pool.close()).await;
}

#[tokio::test]
async fn an_exit_task_runs_in_every_worker_that_ends_in_order() {
    let ledger = Ledger::new();
    let exit = |place: PathBuf| _ = note(&place, u64::from(pid()));
    let pool = ProcessPool::builder()
        .workers(2)
        .max_tasks_per_worker(3)
        .on_worker_exit(call(exit, ledger.place()))
        .build()
        .unwrap();
    let pids: HashSet<u64> = within(join_all((0..10).map(|_| pool.submit(task!(pid())))))
        .await
        .into_iter()
        .map(|pid| u64::from(pid.unwrap()))
        .collect();
    let killed = within(pool.spawn(task!(pool_support::endless()))).await.unwrap();
    drop(killed);
    within(pool.close()).await;
    let left: Vec<u64> = ledger.entries();
    assert_eq!(left.iter().collect::<HashSet<_>>().len(), left.len(), "once each");
    let answered = left.iter().filter(|pid| pids.contains(pid)).count();
    assert!(answered >= 3, "{left:?} of {pids:?}");
}

/// What a worker says of a task that was taken back from it is no answer of its exit task, and no reason to kill it.
#[tokio::test]
async fn an_exit_task_runs_behind_a_task_that_was_taken_back() {
    let ledger = Ledger::new();
    for id in 0..100 {
        let exit = |(place, id): (PathBuf, u64)| {
            // Longer than it takes to be heard.
            std::thread::sleep(Duration::from_millis(2));
            note(&place, id);
        };
        let pool = ProcessPool::builder().workers(1).on_worker_exit(call(exit, (ledger.place(), id))).build().unwrap();
        within(pool.start()).await.unwrap();
        // A worker that is stopped can't begin it.
        let worker = pool.status().details[0].pid.unwrap();
        pool_support::kill(worker, libc::SIGSTOP);
        until(|| state(worker) == 'T').await;
        assert!(pool_support::is_pending(pool.submit(task!(pid()))).await);
        until(|| pool.status().busy == 0).await;
        pool_support::kill(worker, libc::SIGCONT);
        within(pool.close()).await;
        assert_eq!(ledger.entries().last(), Some(&id));
    }
}

fn meet_and_pid(place: PathBuf, id: u64) -> u32 {
    meet(&place, id);
    pid()
}

#[tokio::test]
async fn growing_takes_waiting_tasks_at_once() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    let tasks: Vec<_> = (0..4).map(|id| tokio::spawn(pool.submit(task!(meet_and_pid(meeting.place(), id))))).collect();
    let first = meeting.guest().await;
    until(|| pool.status().queued == 3).await;
    pool.resize(4);
    let others = [meeting.guest().await, meeting.guest().await, meeting.guest().await];
    assert_eq!(pool.status().busy, 4);
    drop((first, others));
    let pids: HashSet<_> = within(join_all(tasks)).await.into_iter().map(|pid| pid.unwrap().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    within(pool.close()).await;
}

/// After tiny tasks a worker is sent all that waits, which nobody else would then come for.
#[tokio::test]
async fn growing_shares_what_had_been_sent_ahead() {
    let pool = ProcessPool::new(1);
    let meeting = Meeting::new();
    for _ in 0..3 {
        within(join_all((0..1000).map(|_| pool.submit(task!(pid()))))).await;
    }
    // In one go, so that they are there when the first is answered.
    let tiny = (0..3).map(|_| pool.submit(task!(pid())));
    let long = (0..4).map(|id| pool.submit(task!(meet_and_pid(meeting.place(), id))));
    let tasks = tokio::spawn(join(join_all(tiny), join_all(long)));
    let first = meeting.guest().await;
    pool.resize(4);
    let others = [meeting.guest().await, meeting.guest().await, meeting.guest().await];
    drop((first, others));
    let (tiny, long) = within(tasks).await.unwrap();
    assert!(tiny.iter().chain(&long).all(Result::is_ok));
    within(pool.close()).await;
}

#[tokio::test]
async fn shrinking_ends_idle_workers_now_and_busy_ones_after_their_task() {
    let pool = ProcessPool::new(4);
    within(pool.start()).await.unwrap();
    let meeting = Meeting::new();
    let tasks: Vec<_> = (0..2).map(|id| tokio::spawn(pool.submit(task!(meet_and_pid(meeting.place(), id))))).collect();
    let guests = [meeting.guest().await, meeting.guest().await];
    let busy = guests.each_ref().map(|guest| guest.pid);
    pool.resize(1);
    until(|| pool.status().details.len() == 2).await;
    assert_eq!(pool.status().busy, 2, "nobody is interrupted");
    let waiting = tokio::spawn(pool.submit(task!(pid())));
    drop(guests);
    for task in tasks {
        assert!(busy.contains(&within(task).await.unwrap().unwrap()));
    }
    assert!(busy.contains(&within(waiting).await.unwrap().unwrap()), "one of them stays");
    until(|| pool.status().details.len() == 1).await;
    within(pool.close()).await;
}

fn hold_on(place: PathBuf) {
    meet(&place, 77);
}

/// Idle workers that are on their way out must not be counted: a busy one that ends its task in that time stays.
#[tokio::test]
async fn shrinking_keeps_live_workers_while_others_are_ending() {
    let exits = Meeting::new();
    let pool = ProcessPool::builder().workers(4).on_worker_exit(task!(hold_on(exits.place()))).build().unwrap();
    within(pool.start()).await.unwrap();
    let meeting = Meeting::new();
    let tasks: Vec<_> = (0..2).map(|id| tokio::spawn(pool.submit(task!(meet_and_pid(meeting.place(), id))))).collect();
    let guests = [meeting.guest().await, meeting.guest().await];
    let busy: HashSet<u32> = guests.iter().map(|guest| guest.pid).collect();
    pool.resize(2);
    let ending = [exits.guest().await, exits.guest().await];
    drop(guests);
    for task in tasks {
        assert!(busy.contains(&within(task).await.unwrap().unwrap()));
    }
    for _ in 0..10 {
        let used = within(pool.submit(task!(pid()))).await.unwrap();
        assert!(busy.contains(&used), "a live worker was replaced");
    }
    until(|| pool.status().details.iter().filter(|worker| worker.state == WorkerState::Idle).count() == 2).await;
    drop(ending);
    until(|| pool.status().details.len() == 2).await;
    let closing = tokio::spawn(async move { pool.close().await });
    drop([exits.guest().await, exits.guest().await]);
    within(closing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resizing_under_load_loses_nothing_and_never_deadlocks() {
    let pool = ProcessPool::new(2);
    let ledger = Ledger::new();
    let mut tasks: FuturesUnordered<_> = (0..2000_u64)
        .map(|id| tokio::spawn(pool.submit(call(|(place, id): (PathBuf, u64)| note(&place, id), (ledger.place(), id)))))
        .collect();
    let mut done = 0;
    for size in [1, 5, 2, 8, 1, 1, 3, 7, 2, 6, 1, 4].into_iter().cycle() {
        pool.resize(size);
        for _ in 0..50 {
            let Some(task) = within(tasks.next()).await else { break };
            task.unwrap().unwrap();
            done += 1;
        }
        if tasks.is_empty() {
            break;
        }
    }
    assert_eq!(done, 2000);
    let mut entries = ledger.entries();
    entries.sort_unstable();
    assert_eq!(entries, (0..2000).collect::<Vec<_>>());
    pool.resize(3);
    within(pool.start()).await.unwrap();
    until(|| pool.status().workers == 3 && pool.status().details.len() == 3).await;
    // All slots are there again: as many tasks run at once as there are workers.
    let meeting = Meeting::new();
    let tasks: Vec<_> = (0..3).map(|id| tokio::spawn(pool.submit(task!(meet_and_pid(meeting.place(), id))))).collect();
    drop([meeting.guest().await, meeting.guest().await, meeting.guest().await]);
    within(join_all(tasks)).await;
    within(pool.close()).await;
}
