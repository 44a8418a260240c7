//! Hosts that make it hard: no fds, SIGCHLD ignored, a thread that reaps everybody, and a host that is killed.
//!
//! Each host is a process of its own, so that what it does to itself hits no other test.

#![allow(unsafe_code, reason = "resource limits, signal dispositions and wait(2)")]

mod pool_support;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use multiproc::{Process, ProcessPool, TaskError, call, spawn_process, task};
use pool_support::{Meeting, endless, is_gone, kill, meet, pid, until, within};

multiproc::test_support!();

fn in_a_runtime(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// What a pool has to do in such a host: work, heal, and end.
async fn works_and_heals() {
    let pool = ProcessPool::new(2);
    for _ in 0..5 {
        let worker = within(pool.submit(task!(pid()))).await.unwrap();
        let dead: Result<(), _> = within(pool.submit(call(|()| std::process::exit(3), ()))).await;
        // Somebody else may have the status.
        match dead {
            Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.code(), Some(3)),
            Err(TaskError::Died { status: None, .. }) => {}
            other => panic!("{other:?}"),
        }
        let late = within(pool.submit(task!(endless())).timeout(Duration::from_millis(10))).await;
        assert!(matches!(late, Err(TaskError::TimedOut)), "{late:?}");
        drop(within(pool.spawn(task!(endless()))).await.unwrap());
        until(|| is_gone(worker) || pool.status().workers == 2).await;
    }
    within(pool.close()).await;
    assert_eq!(pool_support::children(), []);
}

#[tokio::test]
async fn a_host_that_ignores_sigchld() {
    let host = call(
        |()| {
            // SAFETY: SIG_IGN is a valid disposition.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            in_a_runtime(works_and_heals());
        },
        (),
    );
    within(within(spawn_process(host)).await.unwrap().join()).await.unwrap();
}

#[tokio::test]
async fn a_host_with_a_thread_that_reaps_everybody() {
    let host = call(
        |()| {
            std::thread::spawn(|| {
                loop {
                    // SAFETY: it touches no memory.
                    if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            });
            in_a_runtime(works_and_heals());
        },
        (),
    );
    within(within(spawn_process(host)).await.unwrap().join()).await.unwrap();
}

#[tokio::test]
async fn a_host_without_fds_gets_errors_and_works_again_once_there_are_some() {
    let host = call(
        |()| {
            in_a_runtime(async {
                // The limit's window has nothing to do with it: it is longer than the test may take.
                let pool = ProcessPool::builder().workers(2).restart_limit(1, Duration::from_mins(10)).build().unwrap();
                within(pool.submit(task!(pid()))).await.unwrap();
                // SAFETY: the limit is a live struct.
                unsafe {
                    let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few);
                }
                let mut held = Vec::new();
                while let Ok(file) = File::open("/dev/null") {
                    held.push(file);
                }
                // The worker that lives needs none, but for the caller's own. After its death there is no other.
                let worker = within(pool.submit(task!(pid()))).await.unwrap();
                kill(worker, libc::SIGKILL);
                until(|| pool.status().details.is_empty()).await;
                for _ in 0..3 {
                    let error = within(pool.submit(task!(pid()))).await.unwrap_err();
                    assert!(matches!(error, TaskError::Broken(_)), "{error:?}");
                    let cause = std::error::Error::source(&error).and_then(|cause| cause.source()).unwrap();
                    let cause = cause.downcast_ref::<std::io::Error>().unwrap();
                    assert_eq!(cause.raw_os_error(), Some(libc::EMFILE));
                }
                drop(held);
                within(pool.submit(task!(pid()))).await.unwrap();
                within(pool.close()).await;
            });
        },
        (),
    );
    within(within(spawn_process(host)).await.unwrap().join()).await.unwrap();
}

fn block_all_signals_and_meet(place: PathBuf) {
    // SAFETY: the set is initialised by sigfillset before it is read.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    meet(&place, 1);
    endless();
}

fn stop_and_never_go_on(place: PathBuf) {
    meet(&place, 2);
    kill(pid(), libc::SIGSTOP);
    endless();
}

#[tokio::test]
async fn a_killed_host_takes_its_workers_with_it() {
    let meeting = Meeting::new();
    let host = call(
        |place: PathBuf| {
            in_a_runtime(async {
                let pool = ProcessPool::new(3);
                let idle = within(pool.submit(task!(pid()))).await.unwrap();
                let busy = [
                    tokio::spawn(pool.submit(task!(block_all_signals_and_meet(place.clone())))),
                    tokio::spawn(pool.submit(task!(stop_and_never_go_on(place.clone())))),
                ];
                until(|| pool.status().busy == 2).await;
                let other = within(pool.submit(task!(pid()))).await.unwrap();
                tokio::task::spawn_blocking(move || {
                    meet(&place, u64::from(other));
                    meet(&place, u64::from(idle));
                });
                for task in busy {
                    let _ = task.await;
                }
            });
        },
        meeting.place(),
    );
    let host = within(Process::builder().name("host").spawn(host)).await.unwrap();
    let host_pid = host.id().unwrap();
    let mut workers = Vec::new();
    for _ in 0..4 {
        let guest = meeting.guest().await;
        workers.push(if guest.id < 3 { guest.pid } else { u32::try_from(guest.id).unwrap() });
        if guest.id != 1 {
            guest.go_on().await;
        }
    }
    let stopped =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
    until(|| workers.iter().any(|&pid| stopped(pid))).await;
    kill(host_pid, libc::SIGKILL);
    let runs = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    };
    until(|| !workers.iter().any(|&pid| runs(pid))).await;
    drop(host);
}

#[tokio::test]
async fn ctrl_c_reaches_the_host_alone() {
    let pool = ProcessPool::new(1);
    // The terminal signals the group in its foreground.
    // SAFETY: it touches no memory.
    let group = || unsafe { libc::getpgrp() };
    let theirs = within(pool.submit(call(|()| (unsafe { libc::getpgrp() }, pid()), ()))).await.unwrap();
    assert_eq!(u32::try_from(theirs.0).unwrap(), theirs.1, "a group of its own");
    assert_ne!(theirs.0, group());
    within(pool.close()).await;
}
