//! Hosts that make it hard: no fds, SIGCHLD ignored, a thread that reaps everybody, and a host that is killed.
//!
//! Each host is a process of its own, so that what it does to itself hits no other test.

#![allow(unsafe_code, reason = "resource limits, signal dispositions and wait(2)")]

mod pool_support;

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use multiproc::{Fd, Process, ProcessPool, TaskError, call, spawn_process, task};
use pool_support::proc::{lives, state};
use pool_support::{Ledger, Meeting, Slow, endless, is_gone, is_pending, kill, meet, pid, until, within};

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
    assert_eq!(pool_support::proc::children(), []);
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

/// Sets a low limit for this process's fds, and holds as many as there can be.
fn use_up_fds() -> Vec<File> {
    // SAFETY: the limit is a live struct.
    unsafe {
        let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few);
    }
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[tokio::test]
async fn a_host_without_fds_gets_errors_and_works_again_once_there_are_some() {
    let host = call(
        |()| {
            in_a_runtime(async {
                // The limit's window has nothing to do with it: it is longer than the test may take.
                let pool = ProcessPool::builder().workers(2).restart_limit(1, Duration::from_mins(10)).build().unwrap();
                within(pool.submit(task!(pid()))).await.unwrap();
                let held = use_up_fds();
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

#[tokio::test]
async fn a_task_whose_fds_cannot_be_sent_has_failed_and_was_not_cancelled() {
    let host = call(
        |()| {
            in_a_runtime(async {
                let pool = ProcessPool::new(1);
                within(pool.submit(task!(pid()))).await.unwrap();
                // The one waits for the other's slot, as nobody hears of an answer before this waits.
                let mut first = pool.submit(task!(pid()));
                let mut second = pool.submit(call(|_: Fd<File>| (), Fd::from(File::open("/dev/null").unwrap())));
                assert!(is_pending(&mut first).await && is_pending(&mut second).await);
                let held = use_up_fds();
                within(first).await.unwrap();
                let error = within(second).await.unwrap_err();
                assert!(matches!(error, TaskError::Encode(_)), "{error:?}");
                let counts = pool.status().counts;
                assert_eq!((counts.failed, counts.cancelled), (1, 0));
                drop(held);
                within(pool.submit(task!(pid()))).await.unwrap();
                within(pool.close()).await;
            });
        },
        (),
    );
    within(within(spawn_process(host)).await.unwrap().join()).await.unwrap();
}

/// The slot that it did not need was once nobody's, so that who waited for it waited for ever.
#[tokio::test]
async fn the_slot_of_a_task_whose_fds_cannot_be_sent_goes_to_the_next_one_and_the_pool_closes() {
    let host = call(
        |()| {
            in_a_runtime(async {
                let pool = ProcessPool::new(1);
                within(pool.start()).await.unwrap();
                let (slow, mut encoding) = Slow::new();
                let submitter = tokio::task::spawn_blocking({
                    let pool = pool.clone();
                    let fd = Fd::from(File::open("/dev/null").unwrap());
                    move || pool.try_submit(call(|_: (Fd<File>, Slow)| (), (fd, slow))).map_err(drop)
                });
                encoding.begins().await;
                let mut waiting = pool.submit(task!(pid()));
                assert!(is_pending(&mut waiting).await);
                let mut close = std::pin::pin!(pool.close());
                assert!(is_pending(&mut close).await);
                let held = use_up_fds();
                encoding.go_on();
                let error = within(within(submitter).await.unwrap().unwrap()).await.unwrap_err();
                assert!(matches!(error, TaskError::Encode(_)), "{error:?}");
                drop(held);
                within(waiting).await.unwrap();
                within(close).await;
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
    until(|| workers.iter().any(|&pid| state(pid) == 'T')).await;
    kill(host_pid, libc::SIGKILL);
    until(|| !workers.iter().any(|&pid| lives(pid))).await;
    drop(host);
}

fn note_sigint(ledger: PathBuf) {
    static NOTED: OnceLock<CString> = OnceLock::new();
    extern "C" fn note(_: i32) {
        // SAFETY: open and write may be called in a signal handler, and the path is a C string that stays.
        unsafe {
            let file = libc::open(NOTED.get().unwrap().as_ptr(), libc::O_WRONLY | libc::O_APPEND);
            libc::write(file, [0_u8; 8].as_ptr().cast(), 8);
        }
    }
    NOTED.set(CString::new(ledger.into_os_string().into_encoded_bytes()).unwrap()).unwrap();
    // SAFETY: the handler does only what a handler may.
    unsafe { libc::signal(libc::SIGINT, note as *const () as libc::sighandler_t) };
}

fn meet_without_sigint(place: PathBuf, id: u64, ledger: PathBuf) {
    note_sigint(ledger);
    meet(&place, id);
    endless();
}

const TERMINAL: &str = "MULTIPROC_TEST_TERMINAL";

/// The host of the next test: it has a terminal, and two workers with a task each.
fn host_with_a_terminal(places: &str) {
    let (meeting, ledger) = places.split_once(':').unwrap();
    in_a_runtime(async {
        let pool = ProcessPool::new(2);
        let both = [1, 2].map(|id| pool.submit(task!(meet_without_sigint(meeting.into(), id, ledger.into()))));
        futures::future::join_all(both).await;
    });
}

/// A real terminal signals the group in its foreground, which is the host's; and when the host goes, so do the workers.
#[test]
fn ctrl_c_reaches_the_host_alone_and_the_workers_go_with_it() {
    if let Ok(places) = std::env::var(TERMINAL) {
        return host_with_a_terminal(&places);
    }
    in_a_runtime(async {
        let (meeting, ledger) = (Meeting::new(), Ledger::new());
        let (mut ours, mut theirs) = (-1, -1);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: both numbers are written, and nothing is read from the null pointers.
        assert_eq!(unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) }, 0);
        // SAFETY: they have just been opened, and belong to nobody else.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let mut host = std::process::Command::new(std::env::current_exe().unwrap());
        host.args(["ctrl_c_reaches_the_host_alone_and_the_workers_go_with_it", "--exact", "--nocapture"]);
        host.env(TERMINAL, format!("{}:{}", meeting.place().display(), ledger.place().display()));
        host.stdin(theirs).stdout(Stdio::null());
        // SAFETY: the calls may be made between fork and exec. It leads a session of its own, whose terminal is its stdin, and
        // it does not inherit that SIGINT is ignored, as it is in what a shell runs in the background.
        unsafe {
            host.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut host = host.spawn().unwrap();
        let guests = [meeting.guest().await, meeting.guest().await];
        File::from(ours.try_clone().unwrap()).write_all(b"\x03").unwrap();
        let status = tokio::task::spawn_blocking(move || host.wait().unwrap());
        assert_eq!(within(status).await.unwrap().signal(), Some(libc::SIGINT));
        for guest in &guests {
            until(|| !lives(guest.pid)).await;
        }
        assert!(ledger.entries().is_empty(), "a worker got the signal");
    });
}

const STRANGERS: &str = "MULTIPROC_TEST_STRANGERS";

/// The host of the next test: where it is, the /proc is another pid namespace's. There one of these numbers is a process that has
/// memory, and one a zombie.
async fn host_among_strangers(live: u32, zombie: u32) {
    let next_is = |pid: u32| std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
    // What this starts is there for what comes next, which would take the number otherwise.
    within(within(spawn_process(task!(pid()))).await.unwrap().join()).await.unwrap();
    let mut pool = ProcessPool::new(1);
    for _ in 0..20 {
        pool = ProcessPool::builder().workers(1).max_worker_memory(1).build().unwrap();
        if let Err(error) = next_is(live) {
            return eprintln!("skipped: numbers can't be chosen here: {error}");
        }
        within(pool.start()).await.unwrap();
        if pool.status().details[0].pid == Some(live) {
            break;
        }
    }
    for _ in 0..3 {
        assert_eq!(within(pool.submit(task!(pid()))).await.unwrap(), live, "it was replaced for another's memory");
    }
    assert_eq!(pool.status().details[0].memory, None);

    let meeting = Meeting::new();
    for _ in 0..20 {
        next_is(zombie).unwrap();
        let process = within(spawn_process(call(|place: PathBuf| meet(&place, 0), meeting.place()))).await.unwrap();
        if process.id() == Some(zombie) {
            let guest = meeting.guest().await;
            // In this time it is looked at twice.
            let mut joined = std::pin::pin!(process.join());
            let killed = tokio::time::timeout(Duration::from_millis(2500), &mut joined).await;
            assert!(killed.is_err(), "it was taken for lost: {killed:?}");
            guest.go_on().await;
            return within(joined).await.unwrap();
        }
    }
    panic!("numbers can be chosen and have not been got");
}

/// A worker was replaced for the memory of the process that has its number there, and killed where that was a zombie.
#[test]
fn nobody_is_judged_by_the_process_that_has_its_number_in_another_pid_namespace() {
    if let Ok(strangers) = std::env::var(STRANGERS) {
        let (live, zombie) = strangers.split_once(':').unwrap();
        return in_a_runtime(host_among_strangers(live.parse().unwrap(), zombie.parse().unwrap()));
    }
    let unshare = || {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--pid", "--fork"]);
        unshare
    };
    let can = unshare().arg("true").output();
    if !can.as_ref().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: no pid namespace can be made here: {can:?}");
    }
    // A zombie until it is waited for.
    let mut zombie = std::process::Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    in_a_runtime(until(|| !lives(zombie.id())));
    let mut host = unshare();
    host.arg(std::env::current_exe().unwrap());
    host.args([
        "nobody_is_judged_by_the_process_that_has_its_number_in_another_pid_namespace",
        "--exact",
        "--nocapture",
    ]);
    host.env(STRANGERS, format!("{}:{}", std::process::id(), zombie.id()));
    let output = host.output().unwrap();
    zombie.wait().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
