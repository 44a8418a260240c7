//! What a small task costs, counted: allocations on both sides. Never seconds.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use multiproc::{ProcessPool, call};

multiproc::test_support!();

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: it passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// The counter is the whole process's, so one test counts at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(test: impl Future<Output = ()>) {
    let _alone = alone();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn warm(workers: usize) -> ProcessPool {
    let pool = ProcessPool::new(workers);
    for n in 0..2_000 {
        assert_eq!(pool.submit(call(|n: u64| n + 1, n)).await.unwrap(), n + 1);
    }
    pool
}

/// The job, in which its encoded arguments lie, and in the end its encoded result.
#[test]
fn a_small_task_takes_one_allocation_at_most() {
    run(async {
        const TASKS: u64 = 1_000;
        let pool = warm(1).await;
        let before = allocations();
        for n in 0..TASKS {
            assert_eq!(pool.submit(call(|n: u64| n + 1, n)).await.unwrap(), n + 1);
        }
        let each = allocations() - before;
        assert!(each <= TASKS + 20, "{each} for {TASKS} tasks");
        // 20 bytes, there and back.
        let wide = (u64::MAX, u64::MAX);
        let before = allocations();
        for _ in 0..TASKS {
            assert_eq!(pool.submit(call(|wide: (u64, u64)| wide, wide)).await.unwrap(), wide);
        }
        let each = allocations() - before;
        assert!(each <= TASKS + 20, "{each} for {TASKS} tasks");
        pool.close().await;
    });
}

/// The keeper looks at the worker every 20 ms, and every millisecond while another task is with it.
#[test]
fn a_task_that_takes_long_costs_no_more_allocations_than_a_short_one() {
    run(async {
        let pool = warm(1).await;
        let before = allocations();
        let long = pool.submit(call(|()| std::thread::sleep(Duration::from_millis(500)), ()));
        let next = pool.submit(call(|n: u64| n + 1, 1));
        let (long, next) = tokio::join!(long, next);
        let each = allocations() - before;
        long.unwrap();
        assert_eq!(next.unwrap(), 2);
        assert!(each <= 10, "{each} for 2 tasks");
        pool.close().await;
    });
}

#[test]
fn many_tasks_at_once_take_no_more_than_one_allocation_each() {
    run(async {
        const TASKS: u64 = 10_000;
        let pool = warm(2).await;
        let mut all: Vec<_> = (0..TASKS).map(|n| pool.submit(call(|n: u64| n + 1, n))).collect();
        let before = allocations();
        for submit in &mut all {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut *submit).poll(cx))).await.is_pending());
        }
        for (submit, n) in all.into_iter().zip(1..) {
            assert_eq!(submit.await.unwrap(), n);
        }
        // Buffers and queues grow while they are filled for the first time.
        let each = allocations() - before;
        assert!(each <= TASKS + TASKS / 20, "{each} for {TASKS} tasks");
        pool.close().await;
    });
}

#[test]
fn a_warm_worker_allocates_nothing_for_a_small_task() {
    run(async {
        let pool = warm(1).await;
        let before = pool.submit(call(|()| allocations(), ())).await.unwrap();
        for n in 0..1_000 {
            assert_eq!(pool.submit(call(|n: u64| n + 1, n)).await.unwrap(), n + 1);
        }
        let after = pool.submit(call(|()| allocations(), ())).await.unwrap();
        assert!(after - before <= 2, "{} for 1000 tasks", after - before);
        pool.close().await;
    });
}
