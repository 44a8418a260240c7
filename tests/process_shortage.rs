//! When there are no more processes or threads to be had: an error that says so, and no harm done. And when there is no call
//! for the usual way to start one: another way.

#![allow(unsafe_code, reason = "to become a user that has limits, and to forbid system calls")]

mod support;

use std::fs::Permissions;
use std::io::{ErrorKind, PipeWriter, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use futures::FutureExt as _;
use multiproc::sync::Semaphore;
use multiproc::{
    AckedQueue, AckedReceiver, Command, CommandError, Fd, Listener, ProcessPool, Receiver, RecvError, SendError,
    SharedBytes, SharedBytesMut, SpawnError, TaskError, call, channel, queue, spawn_process, task,
};
use rustix::process::{Resource, Rlimit};
use support::proc::{children, open_fds};
use support::{alone, block_on, eventually};

multiproc::test_support!();

/// A worker that could have no thread panicked, and the error blamed a missing `init()`.
#[test]
fn a_worker_that_can_have_no_thread_says_so() {
    alone("a_worker_that_can_have_no_thread_says_so", || {
        // Root has no such limit.
        if rustix::process::geteuid().is_root() {
            // SAFETY: it takes any numbers.
            assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        }
        if let Err(error) = std::fs::File::open(std::env::current_exe().unwrap()) {
            eprintln!("skipped: that user can't run this test: {error}");
            return;
        }
        block_on(async {
            let add = || async { spawn_process(call(|n: u32| n + 1, 1)).await };
            assert_eq!(add().await.unwrap().join().await.unwrap(), 2);
            // Others of this user count, too, so what is just too little has to be found.
            let old = rustix::process::getrlimit(Resource::Nproc);
            for limit in 1.. {
                let new = Rlimit { current: Some(limit), maximum: old.maximum };
                rustix::process::setrlimit(Resource::Nproc, new).unwrap();
                match add().await {
                    Ok(child) => {
                        assert_eq!(child.join().await.unwrap(), 2);
                        break;
                    }
                    Err(SpawnError::Io(error)) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN)),
                    Err(SpawnError::Handshake { reason, .. }) => {
                        assert!(reason.starts_with("cannot start its watch thread: "), "{reason}");
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            assert!(eventually(Duration::from_secs(5), || children().is_empty()));
        });
    });
}

/// The thread that sends what a full socket could not take has a runtime, which has fds.
#[test]
fn a_message_that_fills_its_socket_while_no_fd_is_free_arrives_all_the_same() {
    alone("a_message_that_fills_its_socket_while_no_fd_is_free_arrives_all_the_same", || {
        block_on(async {
            let limit = Rlimit { current: Some(64), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
            rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
            let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
            let taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
            {
                let mut sending = std::pin::pin!(tx.send(vec![1; 2_000_000]));
                assert!(sending.as_mut().now_or_never().is_none(), "it is more than the socket takes");
                assert_eq!(rx.recv().await.unwrap().unwrap().len(), 2_000_000);
                sending.await.unwrap();
            }
            drop(taken);
            tx.send(vec![2; 1_000_000]).now_or_never();
            drop(tx);
            assert_eq!(rx.recv().await.unwrap().unwrap().len(), 1_000_000);
            assert!(rx.recv().await.unwrap().is_none());
        });
    });
}

/// From now on this call fails so.
fn forbid(call: libc::c_long, error: i32) {
    answer(call, libc::SECCOMP_RET_ERRNO | error.unsigned_abs());
}

/// From now on this is what this call comes to; seccomp(2).
fn answer(call: libc::c_long, answer: u32) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let call = u32::try_from(call).unwrap();
    let mut filter = [
        // The number of the call is what `seccomp_data` begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, answer),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: the program is whole and live, and only read.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program), 0);
    }
}

/// It was a panic, and the channel that had asked for the thread waited for it for good.
#[test]
fn where_there_can_be_no_thread_channels_fail_and_do_not_hang() {
    alone("where_there_can_be_no_thread_channels_fail_and_do_not_hang", || {
        let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
        forbid(libc::SYS_clone3, libc::EAGAIN);
        forbid(libc::SYS_clone, libc::EAGAIN);
        let is_shortage = |error: &std::io::Error| error.raw_os_error() == Some(libc::EAGAIN);
        block_on(async {
            let before = open_fds();
            for _ in 0..2 {
                let (tx, mut rx) = channel::<Vec<u8>>().unwrap();
                // More than the socket takes, so the rest needs that thread.
                for len in [2_000_000, 1] {
                    let sent =
                        tokio::time::timeout(Duration::from_secs(10), tx.send(vec![1; len])).await.expect("it hangs");
                    assert!(matches!(&sent, Err(SendError::Io(error)) if is_shortage(error)), "{sent:?}");
                }
                assert!(matches!(tx.blocking_send(vec![1]), Err(SendError::Io(error)) if is_shortage(&error)));
                let received = tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.expect("it hangs");
                assert!(matches!(received, Err(RecvError::Truncated)), "{received:?}");
            }
            assert!(is_shortage(&Semaphore::new(1).unwrap_err()));
            assert!(is_shortage(&AckedQueue::<u8>::new().receiver().unwrap_err()));
            // It says where, too.
            let refused = Listener::<u8, u8>::bind(dir.path().join("socket")).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{refused}");
            assert_eq!(open_fds(), before);
        });
    });
}

/// A service of systemd's that may use no `@resources` is ended by it. A worker used it for a quicker start alone.
#[test]
fn where_nobody_may_change_his_processors_workers_start_all_the_same() {
    alone("where_nobody_may_change_his_processors_workers_start_all_the_same", || {
        answer(libc::SYS_sched_setaffinity, libc::SECCOMP_RET_KILL_PROCESS);
        block_on(async {
            let add = || call(|n: u32| n + 1, 1);
            assert_eq!(spawn_process(add()).await.unwrap().join().await.unwrap(), 2);
            let pool = ProcessPool::new(1);
            assert_eq!(pool.submit(add()).await.unwrap(), 2);
            pool.close().await;
        });
    });
}

/// Some sandboxes and older kernels have none.
#[test]
fn where_there_is_no_clone3_programs_and_processes_start_all_the_same() {
    alone("where_there_is_no_clone3_programs_and_processes_start_all_the_same", || {
        forbid(libc::SYS_clone3, libc::ENOSYS);
        block_on(async {
            for _ in 0..3 {
                let shell = || Command::shell("cat; echo $0 $A; umask; ulimit -n; echo err >&2; kill -TERM $$");
                let run = shell().env("A", "b").input("in\n").umask(0o27).open_files_limit(99).output().await.unwrap();
                assert_eq!(String::from_utf8(run.stdout).unwrap(), "in\n/bin/sh b\n0027\n99\n");
                assert_eq!((&*run.stderr, run.status.code()), (&b"err\n"[..], None));
            }
            assert!(Command::new("true").new_session().status().await.unwrap().success());
            match Command::new("/no/such/program").status().await {
                Err(CommandError::Spawn { source, .. }) => assert_eq!(source.kind(), ErrorKind::NotFound),
                other => panic!("{other:?}"),
            }
            assert_eq!(spawn_process(call(|n: u32| n + 1, 1)).await.unwrap().join().await.unwrap(), 2);
            let pool = multiproc::ProcessPool::new(2);
            assert_eq!(pool.submit(call(|n: u32| n + 1, 1)).await.unwrap(), 2);
            pool.close().await;
            assert!(eventually(Duration::from_secs(5), || children().is_empty()));
        });
    });
}

/// It was a panic, and in a worker's panic hook an abort.
#[test]
fn where_limits_cannot_be_asked_for_none_are_taken_to_be() {
    alone("where_limits_cannot_be_asked_for_none_are_taken_to_be", || {
        forbid(libc::SYS_prlimit64, libc::EPERM);
        block_on(async {
            assert_eq!(SharedBytes::copy_from_slice(&vec![1; 1 << 20]).unwrap().len(), 1 << 20);
            let pool = ProcessPool::new(1);
            assert_eq!(pool.submit(call(|n: u32| n + 1, 1)).await.unwrap(), 2);
            let panicked = pool.submit(call(|n: u32| assert_ne!(n, 1), 1)).await;
            assert!(matches!(&panicked, Err(TaskError::Panicked(_))), "{panicked:?}");
            pool.close().await;
        });
    });
}

/// Then kill(2) does.
#[test]
fn where_nothing_can_be_signalled_through_its_pidfd_all_ends_nevertheless() {
    alone("where_nothing_can_be_signalled_through_its_pidfd_all_ends_nevertheless", || {
        block_on(async {
            // One more filter each time, and what the last one says counts.
            for error in [libc::ENOSYS, libc::EPERM] {
                forbid(libc::SYS_pidfd_send_signal, error);
                let mut child = Command::shell("sleep 1000 & sleep 1000").spawn().unwrap();
                let stop = tokio::time::timeout(Duration::from_secs(10), child.stop(Duration::from_secs(5)));
                assert!(!stop.await.expect("it lives on").unwrap().success());
                let late = Command::new("sleep").arg("1000").timeout(Duration::from_millis(1)).status();
                let late = tokio::time::timeout(Duration::from_secs(10), late).await.expect("it lives on");
                assert!(matches!(late, Err(CommandError::TimedOut { .. })), "{late:?}");
                let child = spawn_process(call(|()| std::thread::sleep(Duration::from_secs(1000)), ())).await.unwrap();
                child.signal(libc::SIGCONT).unwrap();
                drop(child);
                assert!(eventually(Duration::from_secs(5), || children().is_empty()), "{:?}", children());
            }
        });
    });
}

/// What one user's processes may listen to is bounded, by `fs.epoll.max_user_watches`.
#[test]
fn where_nothing_can_be_listened_to_ends_are_seen_all_the_same() {
    alone("where_nothing_can_be_listened_to_ends_are_seen_all_the_same", || {
        block_on(async {
            assert!(Command::new("true").status().await.unwrap().success());
            forbid(libc::SYS_epoll_ctl, libc::ENOSPC);
            let mut waited_for = Command::shell("exit 3").spawn().unwrap();
            let status = tokio::time::timeout(Duration::from_secs(10), waited_for.wait()).await.expect("it hangs");
            assert_eq!(status.unwrap().code(), Some(3));
            drop(Command::new("sleep").arg("1000").spawn().unwrap());
            assert!(eventually(Duration::from_secs(5), || children().is_empty()));
        });
    });
}

/// As a task: uses a semaphore of its parent's until that fails, and writes how. What is asked before the parent has to wait for it
/// is answered.
fn ask(mut semaphores: Receiver<Semaphore>, mut said: Fd<PipeWriter>) {
    let semaphore = semaphores.blocking_recv().unwrap().unwrap();
    let refused = std::iter::repeat_with(|| semaphore.blocking_acquire().map(drop)).find_map(Result::err);
    write!(said, "{:?}", refused.unwrap()).unwrap();
}

/// They were told that this process had ended.
#[test]
fn where_a_holder_cannot_be_listened_to_it_is_told_why() {
    alone("where_a_holder_cannot_be_listened_to_it_is_told_why", || {
        block_on(async {
            let semaphore = Semaphore::new(1).unwrap();
            let (semaphores, theirs) = channel().unwrap();
            let (mut said, writer) = std::io::pipe().unwrap();
            let child = spawn_process(task!(ask(theirs, writer.into()))).await.unwrap();
            forbid(libc::SYS_epoll_ctl, libc::ENOSPC);
            semaphores.blocking_send(semaphore.clone()).unwrap();
            let mut text = String::new();
            said.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("Refused {") && text.contains("No space left on device"), "{text}");
            drop(child);
        });
    });
}

/// As a task: takes an item of a queue of its parent's, and writes how that went.
fn consume(mut receivers: Receiver<AckedReceiver<u8>>, mut said: Fd<PipeWriter>) {
    let mut items = receivers.blocking_recv().unwrap().unwrap();
    write!(said, "{:?}", items.blocking_recv().map(drop)).unwrap();
}

/// It was told that the process of the queue had ended.
#[test]
fn where_a_consumer_cannot_be_listened_to_it_is_told_why() {
    alone("where_a_consumer_cannot_be_listened_to_it_is_told_why", || {
        block_on(async {
            let queue = AckedQueue::new();
            let (receivers, theirs) = channel().unwrap();
            let (mut said, writer) = std::io::pipe().unwrap();
            let child = spawn_process(task!(consume(theirs, writer.into()))).await.unwrap();
            // With it begins the thread that listens.
            drop(queue.receiver().unwrap());
            forbid(libc::SYS_epoll_ctl, libc::ENOSPC);
            receivers.blocking_send(queue.receiver().unwrap()).unwrap();
            let mut text = String::new();
            said.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("Err(Io(") && text.contains("No space left on device"), "{text}");
            drop(child);
        });
    });
}

/// Memory that is shared is a file to the kernel, and to exceed the limit would be the end of this process.
#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    alone("a_limit_on_file_sizes_is_an_error_and_no_signal", || {
        block_on(async {
            let limit = |bytes| {
                let new = Rlimit { current: Some(bytes), maximum: rustix::process::getrlimit(Resource::Fsize).maximum };
                rustix::process::setrlimit(Resource::Fsize, new).unwrap();
            };
            let is_too_big = |error: &std::io::Error| error.raw_os_error() == Some(libc::EFBIG);
            limit(1 << 20);
            assert!(is_too_big(&SharedBytesMut::new((1 << 20) + 1).unwrap_err()));
            assert!(is_too_big(&SharedBytes::copy_from_slice(&vec![1; (1 << 20) + 1]).unwrap_err()));
            assert_eq!(SharedBytes::copy_from_slice(&vec![1; 1 << 20]).unwrap().len(), 1 << 20);
            let (tx, rx) = queue::<Vec<u8>>().unwrap();
            assert!(matches!(tx.send(vec![1; 2 << 20]).await, Err(SendError::Io(error)) if is_too_big(&error)));
            tx.send(vec![1; 100_000]).await.unwrap();
            assert_eq!(rx.recv().await.unwrap().unwrap().len(), 100_000);
            let pool = ProcessPool::new(1);
            assert_eq!(pool.submit(call(|n: u32| n + 1, 1)).await.unwrap(), 2);
            pool.close().await;

            limit(1000);
            let refused = ProcessPool::new(1).submit(call(|n: u32| n + 1, 1)).await;
            assert!(matches!(&refused, Err(TaskError::Broken(_) | TaskError::Spawn(_))), "{refused:?}");
            assert_eq!(spawn_process(call(|n: u32| n + 1, 1)).await.unwrap().join().await.unwrap(), 2);
            assert_eq!(Command::new("echo").arg("hi").input("x").read().await.unwrap(), "hi");
        });
    });
}
