//! One pool and many runtimes: of both kinds, one after the other, ended in the middle, and from plain threads.

mod pool_support;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::future::join_all;
use multiproc::{ProcessPool, TaskError, call, task};
use pool_support::proc::{lives, state};
use pool_support::{FOREVER, Meeting, endless, is_gone, is_pending, kill, meet, pid, until, within};
use tokio::runtime::{Builder, Runtime};

multiproc::test_support!();

fn runtime(threads: usize) -> Runtime {
    match threads {
        0 => Builder::new_current_thread().enable_all().build().unwrap(),
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap(),
    }
}

fn pids(pool: &ProcessPool) -> Vec<u32> {
    pool.status().details.iter().filter_map(|worker| worker.pid).collect()
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[test]
fn a_pool_works_in_one_runtime_after_another() {
    let pool = ProcessPool::new(2);
    for threads in [0, 2, 0, 1, 2, 0] {
        let runtime = runtime(threads);
        runtime.block_on(async {
            for n in 0..10 {
                assert_eq!(within(pool.submit(task!(add(n, 1)))).await.unwrap(), n + 1);
            }
            within(pool.start()).await.unwrap();
            assert_eq!(pool.status().workers, 2);
        });
        let pids = pids(&pool);
        drop(runtime);
        let checker = self::runtime(0);
        checker.block_on(until(|| pids.iter().copied().all(is_gone)));
    }
    runtime(0).block_on(within(pool.close()));
}

/// Who waits in a current-thread runtime is woken before the answer is read, to read it himself.
#[tokio::test]
async fn an_answer_is_taken_in_though_who_was_woken_for_it_does_not_come() {
    let pool = ProcessPool::new(1);
    pool.start().await.unwrap();
    let meeting = Meeting::new();
    let mut one = Box::pin(pool.submit(call(|place: PathBuf| meet(&place, 1), meeting.place())));
    assert!(is_pending(&mut one).await);
    meeting.guest().await.go_on().await;
    // Nobody polls it while the next one gets the worker, and its answer.
    within(until(|| pool.status().counts.done == 1)).await;
    let mut other = Box::pin(pool.submit(task!(add(1, 2))));
    assert!(is_pending(&mut other).await);
    within(until(|| pool.status().counts.done == 2)).await;
    assert_eq!(within(other).await.unwrap(), 3);
    within(one).await.unwrap();
}

/// They are woken for one another's answers, and each may take in what is another's.
#[tokio::test]
async fn callers_of_one_runtime_that_wait_in_turn_for_few_workers_all_get_their_own() {
    for workers in [1, 2] {
        let pool = ProcessPool::new(workers);
        let callers = (0..4_u64).map(|caller| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    assert_eq!(pool.submit(task!(add(caller << 32, n))).await.unwrap(), caller << 32 | n);
                }
            })
        });
        let own = async {
            for n in 0..200 {
                assert_eq!(pool.submit(task!(add(7 << 32, n))).await.unwrap(), 7 << 32 | n);
            }
        };
        let (theirs, ()) = within(futures::future::join(join_all(callers), own)).await;
        assert!(theirs.into_iter().all(|caller| caller.is_ok()));
        assert_eq!(pool.status().counts.done, 1000);
    }
}

#[test]
fn the_end_of_one_runtime_takes_no_task_that_another_one_submitted_and_no_worker_has_begun() {
    for workers in [1, 2] {
        let (first, second) = (runtime(1), runtime(1));
        let _second = second.enter();
        let meeting = Meeting::new();
        let pool = ProcessPool::new(workers);
        for _ in 0..workers {
            first.spawn(pool.submit(call(|place: PathBuf| meet(&place, 0), meeting.place())));
        }
        let guests: Vec<_> = (0..workers).map(|_| second.block_on(meeting.guest())).collect();
        let waiting = second.spawn({
            let pool = pool.clone();
            async move { join_all((0..10).map(|n| pool.submit(task!(add(n, 1))))).await }
        });
        second.block_on(until(|| pool.status().queued == 10));
        drop(first);
        for (n, answer) in (0..).zip(second.block_on(within(waiting)).unwrap()) {
            assert_eq!(answer.unwrap(), n + 1);
        }
        second.block_on(until(|| guests.iter().all(|guest| is_gone(guest.pid))));
        second.block_on(within(pool.close()));
        assert_eq!((pool.status().workers, pool.status().counts.done), (0, 10));
    }
}

/// Where the last task came from there is no runtime any more by then, and the only worker that is left is busy.
#[test]
fn what_waits_when_runtimes_end_is_done_by_the_workers_that_are_left() {
    let (stays, ends, last) = (runtime(1), runtime(1), runtime(1));
    let _stays = stays.enter();
    let meeting = Meeting::new();
    let pool = ProcessPool::new(2);
    let running = |id| pool.submit(call(|(place, id): (PathBuf, u64)| meet(&place, id), (meeting.place(), id)));
    let long = stays.spawn(running(0));
    let guest = stays.block_on(meeting.guest());
    ends.spawn(running(1));
    let ended = stays.block_on(meeting.guest());
    let waiting = stays.spawn(pool.submit(task!(add(1, 2))));
    stays.block_on(until(|| pool.status().queued == 1));
    last.spawn(pool.submit(task!(add(1, 1))));
    stays.block_on(until(|| pool.status().queued == 2));
    drop(last);
    drop(ends);
    stays.block_on(until(|| is_gone(ended.pid)));
    stays.block_on(guest.go_on());
    stays.block_on(within(long)).unwrap().unwrap();
    assert_eq!(stays.block_on(within(waiting)).unwrap().unwrap(), 3);
    stays.block_on(within(pool.close()));
}

#[test]
fn answers_that_a_long_task_keeps_from_being_told_come_though_the_last_runtime_stands_still() {
    let pool = ProcessPool::new(1);
    let first = runtime(2);
    first.block_on(within(pool.start())).unwrap();
    let standing = runtime(0);
    assert_eq!(standing.block_on(within(pool.submit(task!(add(1, 1))))).unwrap(), 2);
    first.block_on(async {
        // So that it is sent tasks ahead.
        for answer in within(join_all((0..50).map(|n| pool.submit(task!(add(n, 1)))))).await {
            answer.unwrap();
        }
        let meeting = Meeting::new();
        let mut tiny: Vec<_> = (0..8).map(|n| Box::pin(pool.submit(task!(add(n, 1))))).collect();
        for task in &mut tiny {
            assert!(is_pending(task).await);
        }
        let mut long =
            Box::pin(pool.submit(call(|(place, id): (PathBuf, u64)| meet(&place, id), (meeting.place(), 0))));
        assert!(is_pending(&mut long).await);
        for (n, task) in (0..).zip(tiny) {
            assert_eq!(within(task).await.unwrap(), n + 1);
        }
        drop(meeting.guest().await);
        within(long).await.unwrap();
        within(pool.close()).await;
    });
}

/// Whatever becomes of the runtime where the first task came from: it stands still, and then it ends.
#[test]
fn a_worker_that_is_stopped_is_noticed_in_its_own_runtime() {
    for ends in [false, true] {
        let (other, own) = (runtime(0), runtime(1));
        let _own = own.enter();
        let (pool, meeting) = (ProcessPool::new(2), Meeting::new());
        let (long, _guest) = other.block_on(async {
            let long = call(|place: PathBuf| meet(&place, 0), meeting.place());
            (within(pool.spawn(long)).await.unwrap(), meeting.guest().await)
        });
        let stopped = own.block_on(within(pool.submit(task!(pid())))).unwrap();
        kill(stopped, libc::SIGSTOP);
        own.block_on(until(|| state(stopped) == 'T'));
        let task = own.spawn(pool.submit(task!(pid())));
        own.block_on(until(|| pool.status().busy == 2));
        let other = (!ends).then_some(other);
        assert_ne!(own.block_on(within(task)).unwrap().unwrap(), stopped);
        drop(other);
        assert!(matches!(own.block_on(within(long)), Err(TaskError::Cancelled)));
        own.block_on(within(pool.cancel()));
        assert!(is_gone(stopped));
    }
}

/// Its worker was to be started in the runtime that had ended, again and again.
#[test]
fn a_task_whose_runtime_has_ended_before_its_worker_was_ready_runs_in_one_of_another() {
    let (own, other) = (runtime(1), runtime(0));
    let _own = own.enter();
    let (pool, meeting) = (ProcessPool::new(2), Meeting::new());
    let meet = |id| call(|(place, id): (PathBuf, u64)| meet(&place, id), (meeting.place(), id));
    let long = own.block_on(within(pool.spawn(meet(1)))).unwrap();
    let guest = own.block_on(meeting.guest());
    other.block_on(async { within(pool.spawn(meet(2))).await.unwrap().detach() });
    drop(other);
    let next = own.block_on(meeting.guest());
    assert_eq!((guest.id, next.id), (1, 2));
    assert!(!long.is_finished());
    own.block_on(async {
        next.go_on().await;
        guest.go_on().await;
        within(long).await.unwrap();
        within(pool.close()).await;
    });
}

#[test]
fn the_end_of_a_runtime_resolves_its_tasks_and_ends_its_processes() {
    for threads in [0, 2] {
        let pool = ProcessPool::new(2);
        let first = runtime(threads);
        let futures = first.block_on(async {
            within(pool.start()).await.unwrap();
            let mut futures: Vec<_> = (0..2).map(|_| Box::pin(pool.submit(task!(endless())))).collect();
            for future in &mut futures {
                assert!(is_pending(future).await);
            }
            until(|| pool.status().busy == 2).await;
            futures
        });
        let mut queued = Box::pin(pool.submit(task!(pid())));
        first.block_on(async { assert!(is_pending(&mut queued).await) });
        let pids = pids(&pool);
        assert_eq!(pids.len(), 2);
        drop(first);
        let second = runtime(0);
        second.block_on(async {
            for future in futures {
                assert!(matches!(within(future).await, Err(TaskError::Cancelled)));
            }
            assert!(matches!(within(queued).await, Ok(_) | Err(TaskError::Cancelled)));
            until(|| pids.iter().copied().all(is_gone)).await;
            within(pool.submit(task!(pid()))).await.unwrap();
            within(pool.close()).await;
        });
    }
}

#[test]
fn close_and_cancel_work_after_the_runtime_has_ended() {
    for cancel in [false, true] {
        let pool = ProcessPool::new(2);
        let first = runtime(1);
        first.block_on(within(pool.start())).unwrap();
        drop(first);
        runtime(0).block_on(async {
            if cancel {
                within(pool.cancel()).await;
            } else {
                within(pool.close()).await;
            }
        });
        assert!(pool.status().details.is_empty());
    }
}

#[test]
fn a_pool_dropped_outside_any_runtime_ends_its_processes() {
    let runtime = runtime(1);
    let pool = ProcessPool::new(2);
    runtime.block_on(within(pool.start())).unwrap();
    let pids = pids(&pool);
    drop(pool);
    runtime.block_on(until(|| pids.iter().copied().all(is_gone)));
}

/// As when `block_on` has returned, or where a task blocks: the supervisors, whose runtime it is, can't do anything.
#[test]
fn a_pool_dropped_while_nothing_drives_its_runtime_ends_its_processes_all_the_same() {
    let runtime = runtime(0);
    let pool = ProcessPool::new(2);
    runtime.block_on(within(pool.start())).unwrap();
    let task = runtime.block_on(within(pool.spawn(task!(endless())))).unwrap();
    let pids = pids(&pool);
    assert_eq!(pids.len(), 2);
    drop(pool);
    let begun = Instant::now();
    while !pids.iter().copied().all(is_gone) {
        assert!(begun.elapsed() < FOREVER, "they go on: {pids:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(runtime.block_on(within(task)), Err(TaskError::Cancelled)));
}

#[test]
fn plain_threads_with_runtimes_of_their_own_share_a_pool() {
    static POOL: LazyLock<ProcessPool> = LazyLock::new(|| ProcessPool::new(3));
    // The pool's supervisors live in this one, which outlives the others.
    let home = runtime(1);
    home.block_on(within(POOL.start())).unwrap();
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            std::thread::spawn(move || {
                runtime(0).block_on(async {
                    let sums = within(join_all((0..100).map(|n| POOL.submit(task!(add(thread, n)))))).await;
                    for (n, sum) in sums.into_iter().enumerate() {
                        assert_eq!(sum.unwrap(), thread + n as u64);
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    home.block_on(within(POOL.close()));
}

/// As in a test binary: a pool in a static, and runtimes that come and go at the same time. A task may be cancelled
/// because the runtime ended that looked after its worker; none may hang.
#[test]
fn runtimes_that_come_and_go_leave_no_task_hanging() {
    static POOL: LazyLock<ProcessPool> = LazyLock::new(|| ProcessPool::new(2));
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            std::thread::spawn(move || {
                for round in 0..25 {
                    runtime(usize::from(round % 2 == 0)).block_on(async {
                        for n in 0..5 {
                            match within(POOL.submit(task!(add(thread, n)))).await {
                                Ok(sum) => assert_eq!(sum, thread + n),
                                Err(TaskError::Cancelled) => {}
                                Err(other) => panic!("{other:?}"),
                            }
                        }
                    });
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let last = runtime(0);
    assert_eq!(last.block_on(within(POOL.submit(task!(add(1, 2))))).unwrap(), 3);
    last.block_on(within(POOL.close()));
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let pool = ProcessPool::new(1);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let submit = std::pin::pin!(pool.submit(task!(pid())));
    assert!(matches!(submit.poll(&mut cx), std::task::Poll::Ready(Err(TaskError::Spawn(_)))));
    assert!(pool.try_submit(task!(pid())).is_err());
    drop(pool);
}

async fn later(n: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(1)).await;
    tokio::task::spawn_blocking(move || n + 1).await.unwrap()
}

#[tokio::test]
async fn async_tasks_have_a_runtime_of_their_own() {
    let pool = ProcessPool::new(1);
    for n in 0..3 {
        assert_eq!(within(pool.submit(task!(later(n).await))).await.unwrap(), n + 1);
    }
    within(pool.close()).await;
}

/// A pool inside a worker, in a runtime that the task makes; its workers go with it.
fn nested(depth: u32) -> Vec<u32> {
    runtime(0).block_on(async {
        let pool = ProcessPool::new(2);
        let mut pids = vec![pid()];
        if depth > 0 {
            let deeper = join_all((0..2).map(|_| pool.submit(task!(nested(depth - 1))))).await;
            pids.extend(deeper.into_iter().flat_map(Result::unwrap));
        }
        // Not closed: the drop, or the end of its runtime, or of this process, is enough.
        pids
    })
}

#[tokio::test]
async fn a_pool_works_inside_a_worker_of_another_pool() {
    let pool = ProcessPool::new(2);
    let results = within(join_all((0..2).map(|_| pool.submit(task!(nested(2)))))).await;
    let pids: Vec<u32> = results.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(pids.len(), 2 * (1 + 2 + 4));
    within(pool.close()).await;
    until(|| pids.iter().copied().all(is_gone)).await;
}

async fn nested_and_awaited() -> u64 {
    let pool = ProcessPool::new(1);
    let sum = pool.submit(task!(add(20, 22))).await.unwrap();
    pool.close().await;
    sum
}

#[tokio::test]
async fn a_pool_works_inside_an_async_task() {
    let pool = ProcessPool::new(1);
    for _ in 0..3 {
        assert_eq!(within(pool.submit(task!(nested_and_awaited().await))).await.unwrap(), 42);
    }
    // One that is killed takes its own workers with it.
    let inner = call(
        |()| {
            let runtime = runtime(1);
            let pool = ProcessPool::new(1);
            let worker = runtime.block_on(pool.submit(task!(pid()))).unwrap();
            std::mem::forget((runtime, pool));
            (pid(), worker)
        },
        (),
    );
    let (outer, inner) = within(pool.submit(inner)).await.unwrap();
    kill(outer, libc::SIGKILL);
    until(|| is_gone(outer)).await;
    until(|| !lives(inner)).await;
    within(pool.close()).await;
}

/// A supervisor would have panicked where nobody sees it, and the task would have been cancelled for no reason.
#[test]
fn a_runtime_without_time_or_io_is_told_so_at_once() {
    use tokio::runtime::Builder;
    for (missing, io) in [("timers are disabled", true), ("IO is disabled", false)] {
        let mut builder = Builder::new_current_thread();
        let builder = if io { builder.enable_io() } else { builder.enable_time() };
        let runtime = builder.build().unwrap();
        let pool = ProcessPool::new(1);
        for _ in 0..2 {
            let submit = std::panic::AssertUnwindSafe(|| runtime.block_on(pool.submit(task!(add(20, 22)))));
            let panic = std::panic::catch_unwind(submit).unwrap_err();
            let message = panic.downcast_ref::<String>().cloned();
            let message = message.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap();
            assert!(message.contains(missing), "{message}");
        }
        // It has harmed nothing.
        let good = self::runtime(0);
        assert_eq!(good.block_on(pool.submit(task!(add(20, 22)))).unwrap(), 42);
        good.block_on(pool.close());
    }
}

/// As in a test of somebody's who starts processes: the clock jumps to the next timer whenever all tasks wait.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_keeps_nothing_from_being_started_and_ended() {
    let slow = || std::thread::sleep(Duration::from_millis(20));
    let process = multiproc::spawn_process(call(move |n: u32| n + 1, 1)).await.unwrap();
    assert_eq!(process.join().await.unwrap(), 2);
    let pool = ProcessPool::builder().workers(1).on_worker_exit(call(move |()| slow(), ())).build().unwrap();
    assert_eq!(pool.submit(call(|n: u32| n + 1, 1)).await.unwrap(), 2);
    for code in 1..20 {
        let died = pool.submit(call(|code: i32| -> u8 { std::process::exit(code) }, code)).await;
        assert!(
            matches!(died, Err(TaskError::Died { status: Some(status), .. }) if status.code() == Some(code)),
            "{died:?}"
        );
    }
    let pids = pids(&pool);
    pool.close().await;
    assert!(pids.into_iter().all(is_gone));
}

/// Something that has left the worker's group holds its stdout, so its end takes a while, in which its runtime ends, too.
#[test]
fn what_a_worker_answered_before_its_death_is_not_lost_with_a_runtime() {
    fn hold_stdout() {
        let mut sleep = std::process::Command::new("setsid");
        drop(sleep.args(["sleep", "1"]).stdin(std::process::Stdio::null()).spawn().unwrap());
    }
    let lasting = runtime(1);
    for round in 0..10 {
        let passing = runtime(1);
        let pool = ProcessPool::builder().workers(1).on_stdout_line(|_, _| {}).build().unwrap();
        passing.block_on(async {
            within(pool.submit(task!(hold_stdout()))).await.unwrap();
            for n in 0..8 {
                within(pool.submit(task!(add(n, 1)))).await.unwrap();
            }
        });
        let tasks = {
            let pool = pool.clone();
            lasting.spawn(async move {
                let answered = join_all((0..3).map(|n| pool.submit(task!(add(n, 1)))));
                tokio::join!(answered, pool.submit(call(|()| std::process::abort(), ())))
            })
        };
        // At one moment after the other.
        std::thread::sleep(Duration::from_millis(5 * round));
        passing.shutdown_background();
        let (answered, died): (Vec<_>, Result<(), _>) = lasting.block_on(within(tasks)).unwrap();
        for result in answered {
            assert!(matches!(result, Ok(_) | Err(TaskError::Cancelled)), "{result:?}");
        }
        assert!(matches!(died, Err(TaskError::Died { .. } | TaskError::Cancelled)), "{died:?}");
        let counts = pool.status().counts;
        assert_eq!(counts.done + counts.died + counts.cancelled, 13, "{counts:?}");
        lasting.block_on(within(pool.cancel()));
    }
}
