use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;

use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use super::*;

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Counts how often it is polled, and does then what it is told.
#[derive(Clone, Default)]
struct Probe(Arc<AtomicUsize>);

impl Probe {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn on(&self, seat: &Arc<Seat>, mut then: impl FnMut(usize) -> Poll<()> + Send + 'static) {
        let count = Arc::clone(&self.0);
        let work = poll_fn(move |_| then(count.fetch_add(1, Ordering::Relaxed) + 1));
        seat.drive(seat.runtime.as_ref().unwrap(), work);
    }
}

fn seat(runtime: &Runtime) -> Arc<Seat> {
    Seat::new(0, Some(runtime.handle().clone()))
}

fn is_over(seat: &Seat) -> bool {
    matches!(*seat.drive.place(), Place::Empty)
}

#[test]
fn a_visitor_polls_for_the_task_and_only_if_something_has_happened() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        probe.on(&seat, |_| Poll::Pending);
        yield_now().await;
        assert_eq!((probe.count(), seat.has_news()), (1, false));
        seat.drive_here();
        assert_eq!(probe.count(), 1, "nothing has happened");
        Waker::from(Arc::clone(&seat)).wake();
        assert!(seat.has_news());
        seat.drive_here();
        assert_eq!((probe.count(), seat.has_news()), (2, false));
        yield_now().await;
        assert_eq!(probe.count(), 2, "it is done");
    });
}

#[test]
fn what_no_visitor_does_the_task_does() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        probe.on(&seat, |_| Poll::Pending);
        yield_now().await;
        seat.ear().wake();
        yield_now().await;
        assert_eq!(probe.count(), 2);
    });
    // In another runtime its sockets and timers would be that one's.
    seat.ear().wake();
    self::runtime().block_on(async { seat.drive_here() });
    seat.drive_here();
    assert_eq!(probe.count(), 2);
    runtime.block_on(yield_now());
    assert_eq!(probe.count(), 3);
}

#[test]
fn a_supervisor_of_a_runtime_with_many_threads_has_no_visitors() {
    let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let seat = seat(&runtime);
    seat.drive.wake();
    assert!(!seat.has_news());
}

#[test]
fn a_visitor_does_not_see_a_panic_and_the_task_ends_with_it() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        probe.on(&seat, |count| if count == 2 { panic!("at the visit") } else { Poll::Pending });
        yield_now().await;
        Waker::from(Arc::clone(&seat)).wake();
        seat.drive_here();
        assert_eq!((probe.count(), is_over(&seat)), (2, true));
        yield_now().await;
    });
    drop(runtime);
    assert_eq!(Arc::strong_count(&seat), 1, "nobody holds it any more");
}

#[test]
fn a_visitor_sees_it_to_its_end_and_the_task_ends_too() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        probe.on(&seat, |count| if count == 2 { Poll::Ready(()) } else { Poll::Pending });
        yield_now().await;
        Waker::from(Arc::clone(&seat)).wake();
        seat.drive_here();
        yield_now().await;
        assert_eq!((probe.count(), is_over(&seat)), (2, true));
        assert_eq!(Arc::strong_count(&seat), 1, "the task has ended");
    });
}

#[test]
fn what_is_given_up_while_it_is_polled_is_not_put_back() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    let its_seat = Arc::downgrade(&seat);
    runtime.block_on(async {
        probe.on(&seat, move |count| {
            if count == 2 {
                // As the end of its task would.
                drop(Driven(its_seat.upgrade().unwrap()));
            }
            Poll::Pending
        });
        yield_now().await;
        Waker::from(Arc::clone(&seat)).wake();
        seat.drive_here();
        assert!(is_over(&seat));
    });
}

#[test]
fn what_comes_while_it_is_lent_is_done_by_the_task() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    let its_seat = Arc::downgrade(&seat);
    runtime.block_on(async {
        probe.on(&seat, move |count| {
            if count == 2 {
                let seat = its_seat.upgrade().unwrap();
                seat.drive.wake();
                assert!(seat.drive.poll().is_pending(), "somebody polls it");
            }
            Poll::Pending
        });
        yield_now().await;
        Waker::from(Arc::clone(&seat)).wake();
        seat.drive_here();
        assert_eq!(probe.count(), 2);
        yield_now().await;
        assert_eq!(probe.count(), 3);
    });
}

#[test]
fn the_rest_is_the_tasks_once_a_visitor_has_his_outcome() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        let (its_seat, rest) = (Arc::downgrade(&seat), probe.clone());
        seat.drive(runtime.handle(), async move {
            let seat = || its_seat.upgrade().unwrap();
            seat().drive.see_off().await;
            rest.0.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
            seat().drive.see_off().await;
            rest.0.fetch_add(1, Ordering::Relaxed);
        });
        seat.drive_here();
        assert_eq!(probe.count(), 0, "he is seen off first");
        yield_now().await;
        assert_eq!(probe.count(), 1);
        yield_now().await;
        assert_eq!(probe.count(), 2, "without a visitor at once");
    });
}

/// With one thread in `block_on` and another in the handle's.
#[test]
fn the_task_goes_on_though_it_takes_a_visitor_who_finds_it_lent_for_its_own() {
    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    runtime.block_on(async {
        let (its_seat, rest) = (Arc::downgrade(&seat), probe.clone());
        seat.drive.visited.store(true, Ordering::Relaxed);
        seat.drive(runtime.handle(), async move {
            its_seat.upgrade().unwrap().drive.see_off().await;
            rest.0.fetch_add(1, Ordering::Relaxed);
        });
        yield_now().await;
        yield_now().await;
        assert_eq!(probe.count(), 1);
    });
}

#[test]
fn a_thread_that_unwinds_polls_it_as_any_other() {
    struct Unwinding<F: FnMut()>(F);

    impl<F: FnMut()> Drop for Unwinding<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    let runtime = runtime();
    let (seat, probe) = (seat(&runtime), Probe::default());
    probe.on(&seat, |_| Poll::Pending);
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _guard = Unwinding(|| runtime.block_on(yield_now()));
        panic!("somebody's");
    }));
    assert!(unwound.is_err());
    assert_eq!((probe.count(), is_over(&seat)), (1, false));
}

/// Whoever else it waits for is asked only then, and holds locks.
#[test]
fn what_its_worker_says_is_no_other_news_and_all_else_is_once() {
    let runtime = runtime();
    let seat = seat(&runtime);
    let is_news = || seat.drive.take_other_news();
    assert!(!is_news());
    seat.ear().wake();
    assert!(!is_news());
    Waker::from(Arc::clone(&seat)).wake();
    assert!(is_news() && !is_news());
    seat.drive.note_other_news();
    assert!(is_news() && !is_news());
}
