//! Signals around a worker: what its host ignores or blocks is default there, and a host that takes exits away from us
//! gets "status unknown" and no more.

#![allow(unsafe_code, reason = "to ignore and block signals, and to wait for any child")]

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use multiproc::{Process, SpawnError, TaskError, call, spawn_process, task};
use support::{Other, alone, block_on, died, eventually, running};

multiproc::test_support!();

fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

fn block(signal: i32) {
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Blocked and ignored signals of the task's thread, as sets of bits.
fn signals() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let set = |field| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    (set("SigBlk:"), set("SigIgn:"))
}

fn idle() {
    println!("running");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_worker_blocks_nothing_and_ignores_only_sigpipe() {
    alone("a_worker_blocks_nothing_and_ignores_only_sigpipe", || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGRTMIN() + 3] {
            ignore(signal);
        }
        block(libc::SIGUSR1);
        block_on(async {
            let (blocked, ignored) = spawn_process(task!(signals())).await.unwrap().join().await.unwrap();
            // glibc's posix_spawn leaves its own two, 32 and 33, ignored.
            assert_eq!((blocked, ignored & !(3 << 31)), (0, 1 << (libc::SIGPIPE - 1)));
            // What this process takes on later is no different: the keeper's thread is not the one that asks.
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
                let (child, _) = running(Process::builder(), task!(idle())).await;
                let other = Other::new(child.id().unwrap());
                child.signal(signal).unwrap();
                other.ends_within(Duration::from_secs(5));
            }
        });
        let (blocked, ignored) = signals();
        assert_eq!(blocked, 1 << (libc::SIGUSR1 - 1), "the host's own mask is as it was");
        assert_ne!(ignored & 1 << (libc::SIGTERM - 1), 0);
    });
}

#[tokio::test]
async fn a_worker_has_a_process_group_of_its_own_in_our_session() {
    let ids = |()| {
        // A session whose leader lives outside this pid namespace, as in a container, is 0, which rustix takes for none.
        // SAFETY: these take and return numbers.
        unsafe { (libc::getpid(), libc::getpgrp(), libc::getsid(0)) }
    };
    let (pid, group, session) = spawn_process(call(ids, ())).await.unwrap().join().await.unwrap();
    assert_eq!(pid, group);
    assert_eq!(session, ids(()).2);
}

#[test]
fn a_host_that_ignores_sigchld_gets_results_and_an_unknown_status() {
    alone("a_host_that_ignores_sigchld_gets_results_and_an_unknown_status", || {
        ignore(libc::SIGCHLD);
        block_on(async {
            let mut child = spawn_process(call(|n: u8| n + 1, 1)).await.unwrap();
            let unknown = child.wait().await.unwrap_err();
            assert!(unknown.to_string().contains("SIGCHLD"), "{unknown}");
            assert_eq!(child.id(), None);
            child.terminate().unwrap();
            assert_eq!(child.join().await.unwrap(), 2);
            let (child, _) = running(Process::builder(), task!(idle())).await;
            child.kill().unwrap();
            let error = child.join().await.unwrap_err();
            assert!(error.to_string().contains("exit status unknown"), "{error}");
            assert_eq!(died::<()>(Err(error)), None);
            let (mut child, _) = running(Process::builder(), task!(idle())).await;
            assert!(child.stop(Duration::from_secs(10)).await.is_err());
            let missing = Process::builder().current_dir("/nowhere").spawn(task!(idle())).await;
            assert!(matches!(missing, Err(SpawnError::Directory { .. })), "{missing:?}");
        });
    });
}

#[test]
fn a_host_that_waits_for_any_child_gets_results_and_a_known_or_unknown_status() {
    alone("a_host_that_waits_for_any_child_gets_results_and_a_known_or_unknown_status", || {
        static DONE: AtomicBool = AtomicBool::new(false);
        let thief = std::thread::spawn(|| {
            while !DONE.load(Ordering::Relaxed) {
                // SAFETY: a null status is allowed.
                unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
            }
        });
        block_on(async {
            for n in 0..100u32 {
                let child = spawn_process(call(|n: u32| n + 1, n)).await.unwrap();
                assert_eq!(child.join().await.unwrap(), n + 1);
                let child = spawn_process(call(|n: i32| -> () { std::process::exit(n) }, 3)).await;
                let status = match child {
                    Ok(child) => died(child.join().await),
                    Err(other) => panic!("{other:?}"),
                };
                assert!(status.is_none_or(|status| status.code() == Some(3)), "{status:?}");
            }
            let (child, _) = running(Process::builder(), task!(idle())).await;
            let other = Other::new(child.id().unwrap());
            drop(child);
            other.is_reaped_within(Duration::from_secs(1));
        });
        DONE.store(true, Ordering::Relaxed);
        thief.join().unwrap();
    });
}

#[tokio::test]
async fn a_worker_that_was_stopped_for_a_while_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wait").to_str().unwrap().to_owned();
    std::fs::write(&path, "").unwrap();
    let until_removed = |path: String| {
        println!("running");
        while support::exists(&path) {
            std::hint::spin_loop();
        }
        "went on".to_owned()
    };
    let (child, _) = running(Process::builder(), call(until_removed, path.clone())).await;
    let other = Other::new(child.id().unwrap());
    child.signal(libc::SIGSTOP).unwrap();
    assert!(eventually(Duration::from_secs(5), || other.state() == 'T'));
    std::fs::remove_file(&path).unwrap();
    child.signal(libc::SIGCONT).unwrap();
    assert_eq!(child.join().await.unwrap(), "went on");
}

#[tokio::test]
async fn a_task_may_handle_sigterm_and_still_give_a_result() {
    let task = |()| {
        let runtime = support::runtime();
        runtime.block_on(async {
            let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            println!("running");
            term.recv().await;
            "tidied up".to_owned()
        })
    };
    let (mut child, _) = running(Process::builder(), call(task, ())).await;
    let status = child.stop(Duration::from_secs(100)).await.unwrap();
    assert!(status.success() && status.signal().is_none());
    let result: Result<String, TaskError> = child.join().await;
    assert_eq!(result.unwrap(), "tidied up");
}
