//! However a process ends, whoever waits learns how, at once and once; and nothing of it is left.

#![allow(unsafe_code, reason = "to crash on purpose")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::FutureExt as _;
use multiproc::sync::Semaphore;
use multiproc::{AckedQueue, Process, SpawnError, SyncError, TaskError, spawn_process, task};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::proc::processes_with;
use support::{Other, alone, block_on, died, kernel::has_group_signals, running};

multiproc::test_support!();

fn exit(code: i32) -> u8 {
    std::process::exit(code)
}

fn abort() -> u8 {
    std::process::abort()
}

fn raise(signal: i32) -> u8 {
    // SAFETY: no handler of ours runs.
    unsafe { libc::raise(signal) };
    unreachable!()
}

fn segfault() -> u8 {
    // SAFETY: there is none: this is a crash. The address is aligned, not null, and never mapped.
    unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
    0
}

#[expect(unconditional_recursion, reason = "until the stack is full")]
fn overflow() -> u64 {
    fn deeper(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 1024]);
        deeper(depth + 1) + frame[0]
    }
    // Where the stack has no limit, all memory would go before it overflows.
    let limit = Rlimit { current: Some(8 << 20), ..getrlimit(Resource::Stack) };
    setrlimit(Resource::Stack, limit).unwrap();
    deeper(1)
}

fn spin() -> u8 {
    println!("{}", std::process::id());
    loop {
        std::hint::spin_loop();
    }
}

fn idle() -> u8 {
    println!("{}", std::process::id());
    loop {
        std::thread::park();
    }
}

/// Ignores SIGTERM, and has a child of its own in the same group, which it names.
#[expect(clippy::zombie_processes, reason = "left behind on purpose")]
fn stubborn_with_child() -> u8 {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    println!("{}", child.id());
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn an_exit_in_a_task_is_a_death_with_its_code() {
    for code in [8, 0, 255] {
        let status = died(spawn_process(task!(exit(code))).await.unwrap().join().await).unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

#[tokio::test]
async fn a_signal_is_named() {
    assert_eq!(died(spawn_process(task!(abort())).await.unwrap().join().await).unwrap().signal(), Some(6));
    assert_eq!(died(spawn_process(task!(raise(15))).await.unwrap().join().await).unwrap().signal(), Some(15));
    assert_eq!(died(spawn_process(task!(raise(10))).await.unwrap().join().await).unwrap().signal(), Some(10));
    let error = spawn_process(task!(segfault())).await.unwrap().join().await.unwrap_err();
    let TaskError::Died { pid, .. } = error else { panic!("{error:?}") };
    // Where the limit on core files is not 0, the status says that one was written, too.
    let text = error.to_string().replace(" (core dumped)", "");
    assert_eq!(text, format!("worker process {pid} died while it ran segfault: signal: 11 (SIGSEGV)"));
    assert_eq!(died::<()>(Err(error)).unwrap().signal(), Some(libc::SIGSEGV));
}

#[tokio::test]
async fn a_stack_overflow_is_a_death() {
    let child = Process::builder().stderr(Stdio::null()).spawn(task!(overflow())).await.unwrap();
    let signal = died(child.join().await).unwrap().signal().unwrap();
    // Where std's runtime has set up its guard, it says so and aborts.
    assert!([libc::SIGSEGV, libc::SIGABRT].contains(&signal), "{signal}");
}

#[tokio::test]
async fn terminate_is_15_and_kill_is_9_on_spinning_and_idle_ones() {
    for _ in 0..2 {
        let (child, _) = running(Process::builder(), task!(spin())).await;
        child.terminate().unwrap();
        assert_eq!(died(child.join().await).unwrap().signal(), Some(15));
        // Also one that is stopped.
        let (child, _) = running(Process::builder(), task!(spin())).await;
        child.signal(libc::SIGSTOP).unwrap();
        child.terminate().unwrap();
        assert_eq!(died(child.join().await).unwrap().signal(), Some(15));
        let (child, _) = running(Process::builder(), task!(idle())).await;
        child.kill().unwrap();
        match child.join().await {
            Err(TaskError::Died { status, unexplained_kill, .. }) => {
                assert_eq!(status.unwrap().signal(), Some(9));
                assert!(!unexplained_kill);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_kill_that_was_not_ours_is_called_possibly_out_of_memory() {
    let (child, _) = running(Process::builder(), task!(idle())).await;
    Other::new(child.id().unwrap()).signal(Signal::KILL);
    let error = child.join().await.unwrap_err();
    assert!(matches!(error, TaskError::Died { unexplained_kill: true, .. }), "{error:?}");
    assert!(error.to_string().contains("possibly out of memory"), "{error}");
}

#[tokio::test]
async fn any_signal_after_the_end_is_ok() {
    let mut child = spawn_process(task!(exit(3))).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
    assert_eq!(child.id(), None);
    for _ in 0..2 {
        child.terminate().unwrap();
        child.kill().unwrap();
        child.signal(libc::SIGUSR1).unwrap();
        assert_eq!(child.stop(Duration::ZERO).await.unwrap().code(), Some(3));
        assert_eq!(child.wait().await.unwrap().code(), Some(3));
    }
    assert_eq!(died(child.join().await).unwrap().code(), Some(3));
}

#[tokio::test]
async fn a_number_that_is_no_signal_is_invalid_input() {
    let (child, _) = running(Process::builder(), task!(idle())).await;
    for signal in [-1, 65, 1000] {
        assert_eq!(child.signal(signal).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    child.signal(0).unwrap();
    child.signal(libc::SIGUSR1).unwrap();
    assert_eq!(died(child.join().await).unwrap().signal(), Some(libc::SIGUSR1));
}

#[tokio::test]
async fn stop_is_sigterm_where_that_is_enough() {
    let (mut child, _) = running(Process::builder(), task!(idle())).await;
    assert_eq!(child.stop(Duration::from_secs(100)).await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn stop_kills_what_ignores_sigterm_after_the_grace_with_its_group() {
    let (mut child, grandchild) = running(Process::builder(), task!(stubborn_with_child())).await;
    let (leader, grandchild) = (Other::new(child.id().unwrap()), Other::new(grandchild.parse().unwrap()));
    let begin = std::time::Instant::now();
    let status = child.stop(Duration::from_millis(50)).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert!(leader.is_reaped());
    grandchild.ends_within(Duration::from_secs(1));
}

/// Has a child in its group that does this at a SIGTERM and then cleans up.
#[expect(clippy::zombie_processes, reason = "left behind on purpose")]
fn with_a_server(first: String) -> u8 {
    let script = format!("trap '{first}; echo cleaned; exit' TERM; echo up; while :; do sleep 0.01; done");
    let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    std::hint::black_box(child);
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn the_grace_of_a_stop_is_the_whole_groups() {
    if !has_group_signals() {
        return;
    }
    let until_it_is_gone = "while kill -0 $PPID 2>&-; do :; done".to_owned();
    let (mut child, mut lines) = serving(until_it_is_gone).await;
    assert_eq!(child.stop(Duration::from_mins(1)).await.unwrap().signal(), Some(libc::SIGTERM));
    assert_eq!(lines.next().unwrap(), "cleaned");
    assert!(lines.next().is_none());
}

#[tokio::test]
async fn a_join_after_a_stop_that_was_dropped_leaves_the_group_its_grace() {
    if !has_group_signals() {
        return;
    }
    // Longer than one that has answered may take to end.
    let (mut child, mut lines) = serving("sleep 5.5".to_owned()).await;
    assert!(child.stop(Duration::from_mins(1)).now_or_never().is_none());
    assert_eq!(died(child.join().await).unwrap().signal(), Some(libc::SIGTERM));
    assert_eq!(lines.next().unwrap(), "cleaned");
    assert!(lines.next().is_none());
}

/// A process with such a server that is up, and what they say.
async fn serving(first: String) -> (Process<u8>, impl Iterator<Item = String>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = Process::builder().stdout(writer).spawn(task!(with_a_server(first))).await.unwrap();
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "up");
    (child, lines)
}

#[tokio::test]
async fn a_stop_that_was_dropped_kills_after_its_grace_all_the_same() {
    let (mut child, _) = running(Process::builder(), task!(stubborn_with_child())).await;
    assert!(child.stop(Duration::from_millis(50)).now_or_never().is_none());
    let joined = tokio::time::timeout(Duration::from_secs(10), child.join()).await.expect("nobody kills it");
    assert_eq!(died(joined).unwrap().signal(), Some(libc::SIGKILL));
}

#[tokio::test]
async fn a_stop_that_was_dropped_can_be_called_again() {
    let (mut child, _) = running(Process::builder(), task!(stubborn_with_child())).await;
    tokio::select! {
        biased;
        _ = child.stop(Duration::from_secs(100)) => unreachable!("it ignores SIGTERM"),
        () = tokio::task::yield_now() => {}
    }
    assert!(child.id().is_some());
    assert_eq!(child.stop(Duration::ZERO).await.unwrap().signal(), Some(9));
}

#[tokio::test]
async fn dropping_kills_and_reaps_it_and_its_group() {
    let (child, grandchild) = running(Process::builder(), task!(stubborn_with_child())).await;
    let (leader, grandchild) = (Other::new(child.id().unwrap()), Other::new(grandchild.parse().unwrap()));
    drop(child);
    leader.is_reaped_within(Duration::from_secs(1));
    grandchild.ends_within(Duration::from_secs(1));
}

#[tokio::test]
async fn dropping_a_stopped_one_kills_and_reaps_it() {
    let (child, _) = running(Process::builder(), task!(spin())).await;
    let other = Other::new(child.id().unwrap());
    child.signal(libc::SIGSTOP).unwrap();
    drop(child);
    other.is_reaped_within(Duration::from_secs(1));
}

#[tokio::test]
async fn a_group_ends_with_its_leader_however_that_ends() {
    #[expect(clippy::zombie_processes, reason = "left behind on purpose")]
    fn leave_a_child(ending: u8) -> u8 {
        let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        println!("{}", child.id());
        match ending {
            0 => ending,
            1 => std::process::exit(0),
            _ => panic!("as told"),
        }
    }
    for ending in 0..3 {
        let (mut child, left) = running(Process::builder(), task!(leave_a_child(ending))).await;
        // It may be gone by now, and its number with it.
        let left = Other::find(left.parse().unwrap()).filter(|left| left.command() == "sleep 1000");
        let _ = child.wait().await.unwrap();
        if let Some(left) = left {
            left.ends_within(Duration::from_secs(1));
        }
    }
}

#[test]
fn never_waited_for_is_still_no_zombie_without_any_runtime() {
    let (child, _) = block_on(running(Process::builder(), task!(idle())));
    let other = Other::new(child.id().unwrap());
    other.signal(Signal::TERM);
    other.is_reaped_within(Duration::from_secs(1));
    // The handle lives on, and knows.
    assert_eq!(child.id(), None);
    assert_eq!(died(block_on(child.join())).unwrap().signal(), Some(15));
}

#[tokio::test]
async fn a_hundred_are_terminated_at_once() {
    let all: Vec<_> = (0..100).map(|_| tokio::spawn(spawn_process(task!(idle())))).collect();
    let mut children = Vec::new();
    for child in all {
        let child = child.await.unwrap().unwrap();
        child.terminate().unwrap();
        children.push(child);
    }
    for child in children {
        assert_eq!(died(child.join().await).unwrap().signal(), Some(15));
    }
}

#[test]
fn those_that_are_terminated_before_their_main_are_a_clean_start_error() {
    alone("those_that_are_terminated_before_their_main_are_a_clean_start_error", || {
        let name = format!("early-{}", std::process::id());
        let arg0 = format!("multiproc-worker: {name}");
        let seen = block_on(async {
            let spawn = || Process::builder().name(&*name).stdout(Stdio::null()).spawn(task!(idle()));
            let all: Vec<_> = (0..100).map(|_| tokio::spawn(spawn())).collect();
            let killer = tokio::task::spawn_blocking(move || {
                let mut killed = std::collections::HashSet::new();
                while killed.len() < 100 {
                    for pid in processes_with(&arg0).into_iter().filter_map(Other::find) {
                        if killed.insert(pid.pid) {
                            pid.signal(Signal::TERM);
                        }
                    }
                }
            });
            let mut seen = [0; 2];
            for child in all {
                let status = match child.await.unwrap() {
                    Ok(child) => {
                        seen[0] += 1;
                        died(child.join().await)
                    }
                    Err(SpawnError::Exited { status, .. }) => {
                        seen[1] += 1;
                        status
                    }
                    Err(other) => panic!("{other:?}"),
                };
                assert_eq!(status.unwrap().signal(), Some(15));
            }
            killer.await.unwrap();
            seen
        });
        eprintln!("{} ran, {} were terminated before", seen[0], seen[1]);
    });
}

async fn leave_asynchronously(code: i32) {
    tokio::task::yield_now().await;
    std::process::exit(code)
}

/// It once aborted: its runtime was dropped while it drove the task.
#[tokio::test]
async fn an_exit_in_an_async_task_is_that_exit() {
    let child = spawn_process(task!(leave_asynchronously(8).await)).await.unwrap();
    match child.join().await {
        Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.code(), Some(8)),
        other => panic!("{other:?}"),
    }
}

/// Writes what is no frame into every socket that there is, and goes on, as does a process that it started.
#[expect(clippy::zombie_processes, reason = "both end by a signal")]
fn write_nonsense() -> u8 {
    Command::new("sleep").arg("1000").spawn().unwrap();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Some(fd) = entry.unwrap().file_name().to_str().and_then(|fd| fd.parse().ok()) else { continue };
        // SAFETY: the bytes are live; what is no socket does not take them.
        unsafe { libc::send(fd, [0xff_u8; 1000].as_ptr().cast(), 1000, libc::MSG_NOSIGNAL) };
    }
    idle()
}

fn end_thread() {
    // SAFETY: it ends this thread, whose stack nobody else looks at.
    unsafe { libc::syscall(libc::SYS_exit, 3) };
}

/// Both waited for ever.
#[tokio::test]
async fn one_whose_task_ends_its_own_thread_has_died() {
    let mut waited = spawn_process(task!(end_thread())).await.unwrap();
    let joined = spawn_process(task!(end_thread())).await.unwrap();
    let other = Other::new(joined.id().unwrap());
    let wait = async {
        // Who waits in small steps gets there, too.
        while tokio::time::timeout(Duration::from_millis(100), waited.wait()).await.is_err() {}
        waited.wait().await
    };
    let (status, result) = tokio::time::timeout(Duration::from_mins(1), async { tokio::join!(wait, joined.join()) })
        .await
        .expect("it hangs");
    assert_eq!(status.unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(died(result).unwrap().signal(), Some(libc::SIGKILL));
    assert!(other.is_reaped());
}

/// It was left 5 s to exit by itself, and the cause was lost.
#[tokio::test]
async fn one_that_writes_nonsense_into_our_socket_is_killed_and_the_error_says_what_came() {
    let process = spawn_process(task!(write_nonsense())).await.unwrap();
    let other = Other::new(process.id().unwrap());
    let error = process.join().await.unwrap_err();
    let TaskError::Decode(source) = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("not a multiproc frame"), "{source}");
    assert!(other.is_reaped());
}

/// It waited for ever for threads that had not come along.
#[test]
fn a_forked_copy_of_the_host_gets_an_error_at_once() {
    alone("a_forked_copy_of_the_host_gets_an_error_at_once", || {
        async fn refused() -> bool {
            let function = spawn_process(task!(exit(0))).await;
            let SpawnError::Io(function) = function.unwrap_err() else { return false };
            let command = multiproc::Command::new("true").status().await.unwrap_err();
            let spawned = multiproc::Command::new("true").spawn().unwrap_err();
            [function.to_string(), format!("{command:?}"), format!("{spawned:?}")].iter().all(|e| e.contains("forked"))
        }
        assert_eq!(
            died(block_on(async { spawn_process(task!(exit(8))).await.unwrap().join().await })).unwrap().code(),
            Some(8)
        );
        let mut program = block_on(async { multiproc::Command::new("sleep").arg("1000").spawn().unwrap() });
        let runtime = support::runtime();
        let pool = multiproc::ProcessPool::new(1);
        runtime.block_on(pool.start()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("own/socket");
        let listener = runtime.block_on(async { multiproc::Listener::<u8, u8>::bind(&place).unwrap() });
        // SAFETY: no other thread of this process holds a lock that the copy needs: all of them wait for something to do.
        match unsafe { libc::fork() } {
            0 => {
                // It is no child of the copy's, which must not take it for one that somebody else has reaped, and sweep up.
                let is_left_alone = matches!(program.try_wait(), Ok(None));
                drop((program, pool, listener));
                let code = i32::from(!is_left_alone || !block_on(refused()));
                // SAFETY: it ends this process, and runs nothing of the original's.
                unsafe { libc::_exit(code) }
            }
            copy => {
                Other::new(copy.try_into().unwrap()).ends_within(Duration::from_secs(30));
                let mut status = 0;
                // SAFETY: `status` is live.
                assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
                assert_eq!(std::process::ExitStatus::from_raw(status).code(), Some(0));
                assert!(program.try_wait().unwrap().is_none(), "it still runs");
                let sum = pool.submit(multiproc::call(|n: u32| n + 1, 1));
                assert_eq!(runtime.block_on(sum).unwrap(), 2);
                assert_eq!((pool.status().counts.died, pool.status().counts.restarts), (0, 0));
                assert!(place.exists());
                drop(listener);
                assert!(!place.exists());
            }
        }
    });
}

/// They waited for a thread that was not there.
#[test]
fn in_a_copy_of_this_process_what_needs_its_thread_is_an_error_that_says_so() {
    alone("in_a_copy_of_this_process_what_needs_its_thread_is_an_error_that_says_so", || {
        let lock = Semaphore::new(1).unwrap();
        let held = lock.blocking_acquire().unwrap();
        let says_so = |error: &std::io::Error| error.to_string().contains("forked");
        // SAFETY: no other thread of this process holds a lock that the copy needs: all of them wait for something to do.
        match unsafe { libc::fork() } {
            0 => {
                let are_refused = Semaphore::new(1).is_err_and(|error| says_so(&error))
                    && AckedQueue::<u8>::new().receiver().is_err_and(|error| says_so(&error))
                    && matches!(lock.blocking_acquire(), Err(SyncError::Io(error)) if says_so(&error));
                // It is the original's.
                drop(held);
                // SAFETY: it ends this process, and runs nothing of the original's.
                unsafe { libc::_exit(i32::from(!are_refused)) }
            }
            copy => {
                Other::new(copy.try_into().unwrap()).ends_within(Duration::from_secs(30));
                let mut status = 0;
                // SAFETY: `status` is live.
                assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
                assert_eq!(std::process::ExitStatus::from_raw(status).code(), Some(0));
                assert!(block_on(lock.try_acquire()).unwrap().is_none(), "the copy has given it back");
                drop(held);
                drop(lock.blocking_acquire().unwrap());
            }
        }
    });
}

/// As a daemon makes itself before it begins.
#[test]
fn a_copy_of_a_process_that_had_started_nothing_is_as_good_as_that() {
    alone("a_copy_of_a_process_that_had_started_nothing_is_as_good_as_that", || {
        drop(multiproc::ProcessPool::new(1));
        // SAFETY: no other thread of this process holds a lock that the copy needs: all of them wait for something to do.
        match unsafe { libc::fork() } {
            0 => {
                let status = block_on(async { multiproc::Command::new("true").status().await });
                // SAFETY: it ends this process, and runs nothing of the original's.
                unsafe { libc::_exit(i32::from(!status.is_ok_and(|status| status.success()))) }
            }
            copy => {
                let mut status = 0;
                // SAFETY: `status` is live.
                assert_eq!(unsafe { libc::waitpid(copy, &raw mut status, 0) }, copy);
                assert_eq!(std::process::ExitStatus::from_raw(status).code(), Some(0));
            }
        }
    });
}
