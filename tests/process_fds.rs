//! What a worker has open: stdio, its socket and its watch on the parent, and nothing that depends on anybody else.

#![allow(unsafe_code, reason = "to close stdio under a host's feet, and to leak fds into children")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use multiproc::{Process, TaskError, call, spawn_process, task};
use rustix::io::FdFlags;
use support::proc::{status, threads};
use support::{Other, alone, block_on, eventually, running};

multiproc::test_support!();

/// Far longer than anything here takes. Only what never comes meets it.
const SOON: Duration = Duration::from_mins(1);

/// What this process has open: numbers, and what /proc says of them, without inode numbers.
fn open() -> BTreeMap<u32, String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let fds = entries.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        let kind = target.split_once(":[").filter(|(kind, _)| *kind != "anon_inode").map(|(kind, _)| kind.to_owned());
        let kind = kind.unwrap_or(target);
        // The one that looks.
        (!kind.ends_with("/fd")).then(|| (entry.file_name().to_str().unwrap().parse().unwrap(), kind))
    });
    fds.collect()
}

fn idle() {
    println!("running");
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn they_do_not_depend_on_siblings() {
    let first = spawn_process(task!(open())).await.unwrap().join().await.unwrap();
    let mut siblings = Vec::new();
    for _ in 0..20 {
        siblings.push(running(Process::builder(), task!(idle())).await);
    }
    let last = spawn_process(task!(open())).await.unwrap().join().await.unwrap();
    assert_eq!(first, last);
    assert_eq!(first[&0], "/dev/null");
    for (number, kind) in first.iter().filter(|(number, _)| **number > 2) {
        assert!(["socket", "anon_inode:[pidfd]", "pidfd"].contains(&kind.as_str()), "{number}: {kind}");
    }
}

#[test]
fn a_plain_fd_of_the_parent_is_not_open_there() {
    alone("a_plain_fd_of_the_parent_is_not_open_there", || {
        let (file, _other) = std::io::pipe().unwrap();
        let plain = rustix::io::fcntl_dupfd_cloexec(file.as_fd(), 500).unwrap();
        rustix::io::fcntl_setfd(&plain, FdFlags::empty()).unwrap();
        let theirs = block_on(async { spawn_process(task!(open())).await.unwrap().join().await.unwrap() });
        assert!(!theirs.contains_key(&500), "{theirs:?}");
        assert_eq!(theirs.keys().filter(|number| **number > 20).count(), 0, "{theirs:?}");
        // Not even while a command of ours runs over there.
        assert!(open().contains_key(&500));
    });
}

#[tokio::test]
async fn stdin_is_at_its_end() {
    let read = |()| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        (text, std::io::stdin().lines().count())
    };
    assert_eq!(spawn_process(call(read, ())).await.unwrap().join().await.unwrap(), (String::new(), 0));
}

/// The one thread of a worker that does not run its tasks: the watch's.
fn another_thread_of(pid: u32) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().file_name().to_str().unwrap().parse().unwrap());
    threads.find(|thread| *thread != pid).unwrap()
}

/// How often a thread has gone to sleep, while there is one.
fn sleeps(thread: u32) -> Option<u64> {
    status(thread, "voluntary_ctxt_switches")?.parse().ok()
}

/// A worker whose task closed all fds, the watch's too, took the end of the watch for its parent's, and killed itself.
#[tokio::test]
async fn a_task_that_closes_every_fd_of_its_worker_goes_on_to_its_own_end() {
    let close_all = |end: PathBuf| -> () {
        for fd in 3..100 {
            // SAFETY: close(2) takes any number, and nothing in this process uses its fds after this.
            unsafe { libc::close(fd) };
        }
        println!("running");
        while !end.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::process::exit(7)
    };
    let folder = tempfile::tempdir().unwrap();
    let end = folder.path().join("end");
    let (child, _) = running(Process::builder(), call(close_all, end.clone())).await;
    let other = Other::new(child.id().unwrap());
    let watch = another_thread_of(other.pid);
    let before = sleeps(watch).unwrap();
    child.signal(libc::SIGSTOP).unwrap();
    assert!(eventually(Duration::from_secs(5), || other.state() == 'T'));
    // Continued, the watch looks at its fd anew, and goes on to look now and then: it sleeps again and again, where until then it
    // slept once, and stood still once.
    child.signal(libc::SIGCONT).unwrap();
    assert!(eventually(SOON, || sleeps(watch).is_none_or(|now| now >= before + 4)));
    std::fs::write(end, "").unwrap();
    match child.join().await {
        Err(TaskError::Died { status: Some(status), .. }) => assert_eq!(status.code(), Some(7), "{status}"),
        other => panic!("{other:?}"),
    }
}

/// Opens a file, prints, and gives the file's number and what is in it.
fn open_and_print(path: String) -> (i32, String) {
    use std::os::fd::AsRawFd as _;
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"mine").unwrap();
    println!("printed");
    eprintln!("printed");
    (file.as_raw_fd(), std::fs::read_to_string(&path).unwrap())
}

#[test]
fn a_host_without_stdio_has_workers_that_cannot_mistake_a_file_for_it() {
    alone("a_host_without_stdio_has_workers_that_cannot_mistake_a_file_for_it", || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file").to_str().unwrap().to_owned();
        for closed in [vec![1], vec![2], vec![0], vec![0, 1, 2]] {
            // SAFETY: takes a number.
            let kept: Vec<_> = (0..3).map(|fd| unsafe { libc::dup(fd) }).collect();
            for fd in &closed {
                // SAFETY: stdio has no owner.
                unsafe { libc::close(*fd) };
            }
            let result =
                block_on(async { spawn_process(task!(open_and_print(path.clone()))).await.unwrap().join().await });
            for (fd, kept) in (0..).zip(kept) {
                // SAFETY: both numbers are this test's.
                unsafe {
                    libc::dup2(kept, fd);
                    libc::close(kept);
                }
            }
            let (number, text) = result.unwrap();
            assert!(number > 2, "closed {closed:?}: a file became {number}");
            assert_eq!(text, "mine");
        }
    });
}

#[test]
fn two_hundred_starts_leave_no_fd_and_no_thread_behind() {
    alone("two_hundred_starts_leave_no_fd_and_no_thread_behind", || {
        let add = |n: u32| async move { spawn_process(call(|n: u32| n + 1, n)).await.unwrap().join().await.unwrap() };
        block_on(async {
            add(0).await;
            let before = (support::proc::open_fds(), threads());
            for n in 0..200 {
                assert_eq!(add(n).await, n + 1);
            }
            assert_eq!((support::proc::open_fds(), threads()), before);
            assert_eq!(support::proc::children(), []);
        });
    });
}

#[test]
fn without_a_free_fd_a_start_is_an_error_and_works_again_later() {
    alone("without_a_free_fd_a_start_is_an_error_and_works_again_later", || {
        let add = || async { spawn_process(call(|n: u32| n + 1, 1)).await?.join().await };
        block_on(async {
            assert_eq!(add().await.unwrap(), 2);
            let mut hoard = Vec::new();
            while let Ok(fd) = rustix::io::dup(std::io::stdin()) {
                hoard.push(fd);
            }
            let before = hoard.len();
            // Each step of a start fails once for want of an fd.
            let mut failures = 0;
            let result = loop {
                match add().await {
                    Ok(result) => break result,
                    Err(error) => {
                        failures += 1;
                        assert!(matches!(error, multiproc::TaskError::Spawn(_)), "{error:?}");
                        assert!(hoard.pop().is_some(), "it does not recover: {error:?}");
                    }
                }
            };
            assert_eq!(result, 2);
            assert!((1..20).contains(&failures), "{failures} of {before}");
            assert!(eventually(Duration::from_secs(5), || { support::proc::children().is_empty() }));
            // What failed has given back all that it took.
            let mut again = Vec::new();
            while let Ok(fd) = rustix::io::dup(std::io::stdin()) {
                again.push(fd);
            }
            assert_eq!(hoard.len() + again.len(), before);
        });
    });
}
