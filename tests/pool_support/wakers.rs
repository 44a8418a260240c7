//! Wakers that do what a waker may, and few do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use multiproc::TaskError;

use super::until;

pub(crate) struct Touchy;

impl Wake for Touchy {
    fn wake(self: Arc<Self>) {
        panic!("a waker's own fault");
    }
}

/// An executor of one future, which is polled wherever somebody wakes it.
pub(crate) struct InPlace {
    future: Mutex<Option<BoxFuture<'static, Result<u32, TaskError>>>>,
    woken: AtomicBool,
    result: Mutex<Option<Result<u32, TaskError>>>,
}

impl Wake for InPlace {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        while self.woken.load(Ordering::SeqCst) {
            // Else it is being polled, and is polled once more after that.
            let Ok(mut place) = self.future.try_lock() else { return };
            self.woken.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(&self));
            let Some(future) = &mut *place else { return };
            if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                *self.result.lock().unwrap() = Some(result);
                *place = None;
            }
        }
    }
}

impl InPlace {
    /// Runs it, and gives what it came to.
    pub(crate) async fn run(future: BoxFuture<'static, Result<u32, TaskError>>) -> Result<u32, TaskError> {
        let (woken, result) = (AtomicBool::new(false), Mutex::default());
        let executor = Arc::new(Self { future: Mutex::new(Some(future)), woken, result });
        Arc::clone(&executor).wake();
        until(|| executor.result.lock().unwrap().is_some()).await;
        executor.result.lock().unwrap().take().unwrap()
    }
}
