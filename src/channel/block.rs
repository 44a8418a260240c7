//! Waiting for a future on a plain thread, with no runtime. Whatever the future waits for must move without this thread.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::task::unconstrained;

/// Runs a future to its end on this thread, which it blocks.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    // The budget of a task that blocks its thread is never renewed.
    let mut future = pin!(unconstrained(future));
    let waker = unparker();
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Wakes this thread when it is parked.
pub(super) fn unparker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
