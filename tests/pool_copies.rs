//! A copy that fork(2) makes of a process with a pool has none of what drives that pool: what it drops there and what it asks for
//! hurts no task of the original's.

mod support;

use std::time::Duration;

use futures::FutureExt as _;
use multiproc::{ProcessPool, task};
use rustix::process::Signal;
use support::copies::{is_copy, leave};
use support::{Other, alone, eventually, runtime, within};
use tokio::runtime::Runtime;

multiproc::test_support!();

fn soon_in<R>(runtime: &Runtime, future: impl Future<Output = R>) -> R {
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), future).await.expect("it never came") })
}

fn same(n: u32) -> u32 {
    n
}

fn pid() -> u32 {
    std::process::id()
}

/// It was taken back from its worker, which both have, and nobody gave it to another one.
#[test]
fn a_task_that_is_to_begin_does_though_a_copy_drops_the_pools_runtime() {
    alone("a_task_that_is_to_begin_does_though_a_copy_drops_the_pools_runtime", || {
        let runtime = runtime();
        let pool = ProcessPool::new(1);
        let worker = Other::new(soon_in(&runtime, pool.submit(task!(pid()))).unwrap());
        worker.signal(Signal::STOP);
        assert!(eventually(within(Duration::from_secs(10)), || worker.state() == 'T'));
        let mut sent = Box::pin(pool.submit(task!(same(7))));
        assert!(soon_in(&runtime, async { (&mut sent).now_or_never() }).is_none());
        if is_copy() {
            drop(runtime);
            leave();
        }
        worker.signal(Signal::CONT);
        assert_eq!(soon_in(&runtime, sent).unwrap(), 7);
        soon_in(&runtime, pool.close());
    });
}
