//! A copy that fork(2) makes of a process with a pool has none of what drives that pool: what it drops there and what it asks for
//! hurts no task of the original's.

mod support;

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use multiproc::{ProcessPool, SpawnError, TaskError, TrySubmitError, task};
use rustix::process::Signal;
use support::copies::{is_copy, leave};
use support::{Other, alone, eventually, runtime};
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
        assert!(eventually(Duration::from_secs(10), || worker.state() == 'T'));
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

/// Its task had the number of the original's next one, whose result was then the copy's.
#[test]
fn what_a_copy_asks_of_a_pool_is_an_error_and_the_originals_results_are_its_own() {
    alone("what_a_copy_asks_of_a_pool_is_an_error_and_the_originals_results_are_its_own", || {
        let original = runtime();
        let pool = ProcessPool::new(1);
        assert_eq!(soon_in(&original, pool.submit(task!(same(1)))).unwrap(), 1);
        let mut sent = Box::pin(pool.submit(task!(same(7))));
        assert!(soon_in(&original, async { (&mut sent).now_or_never() }).is_none());
        if is_copy() {
            let own = runtime();
            assert!(matches!(soon_in(&own, sent), Err(TaskError::Spawn(_))));
            assert!(matches!(soon_in(&own, pool.submit(task!(same(2)))), Err(TaskError::Spawn(_))));
            assert!(matches!(soon_in(&own, pool.spawn(task!(same(3)))), Err(TaskError::Spawn(_))));
            let tried = soon_in(&own, async { pool.try_submit(task!(same(4))) });
            assert!(matches!(tried, Err(TrySubmitError::Refused(TaskError::Spawn(_)))));
            let mapped = soon_in(&own, pool.map(5..7_u32, |n| n).collect::<Vec<_>>());
            assert!(matches!(mapped[..], [Err(TaskError::Spawn(_)), Err(TaskError::Spawn(_))]));
            assert!(matches!(soon_in(&own, pool.start()), Err(SpawnError::Io(_))));
            leave();
        }
        assert_eq!(soon_in(&original, sent).unwrap(), 7);
        assert_eq!(soon_in(&original, pool.submit(task!(same(8)))).unwrap(), 8);
        soon_in(&original, pool.close());
    });
}

/// They waited for ever, and had the original's workers end.
#[test]
fn a_pool_that_a_copy_closes_or_cancels_goes_on() {
    alone("a_pool_that_a_copy_closes_or_cancels_goes_on", || {
        let original = runtime();
        let pool = ProcessPool::new(1);
        let worker = soon_in(&original, pool.submit(task!(pid()))).unwrap();
        if is_copy() {
            let own = runtime();
            pool.resize(2);
            soon_in(&own, pool.close());
            soon_in(&own, pool.cancel());
            leave();
        }
        assert_eq!(soon_in(&original, pool.submit(task!(pid()))).unwrap(), worker);
        soon_in(&original, pool.close());
    });
}

/// As a daemon makes itself.
#[test]
fn a_pool_that_had_done_nothing_before_is_the_copys_own() {
    alone("a_pool_that_had_done_nothing_before_is_the_copys_own", || {
        let pool = ProcessPool::new(1);
        if is_copy() {
            let own = runtime();
            assert_eq!(soon_in(&own, pool.submit(task!(same(1)))).unwrap(), 1);
            soon_in(&own, pool.close());
            leave();
        }
    });
}
