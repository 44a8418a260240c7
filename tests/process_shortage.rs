//! When there are no more processes or threads to be had: an error that says so, and no harm done.

#![allow(unsafe_code, reason = "to become a user that has limits")]

mod support;

use multiproc::{SpawnError, call, spawn_process};
use rustix::process::{Resource, Rlimit};
use support::{alone, block_on, children, eventually, within};

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
            assert!(eventually(within(std::time::Duration::from_secs(5)), || children().is_empty()));
        });
    });
}
