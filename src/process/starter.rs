//! The starter: one thread that starts programs for async callers.
//!
//! A start takes about a millisecond, and as long as it pleases where a program lies on a slow file system: too long for a
//! runtime's thread, and too long for the keeper, which has everybody else's exits to look at. Keeping what was started is
//! the keeper's business.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::keeper::{Launch, Refused, Request, Started, Terms, start};
use crate::sys::process::SignalMask;

/// Starts a program on a thread of its own, with the calling thread's signal mask.
///
/// What is only a passing shortage (`EAGAIN`), or a file that somebody is still writing (`ETXTBSY`), is tried again for a
/// while; that needs a tokio runtime with time.
///
/// # Cancel safety
///
/// Dropping it leaves no child: one that has been started by then is killed.
pub(crate) async fn spawn_async(command: impl Launch + 'static, terms: Terms) -> io::Result<Started> {
    let mut refused = match ask(Request { command: Box::new(command), terms }).await? {
        Ok(started) => return Ok(started),
        Err(refused) => refused,
    };
    for pause in [1, 2, 5, 10, 25, 50, 100] {
        if !matches!(refused.error.raw_os_error(), Some(libc::EAGAIN | libc::ETXTBSY)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        refused = match ask(refused.request).await? {
            Ok(started) => return Ok(started),
            Err(refused) => refused,
        };
    }
    Err(refused.error)
}

struct Order {
    request: Request,
    mask: SignalMask,
    reply: oneshot::Sender<Result<Started, Box<Refused>>>,
}

async fn ask(request: Request) -> io::Result<Result<Started, Box<Refused>>> {
    let (reply, answer) = oneshot::channel();
    let lost = || io::Error::other("the thread that starts programs is lost");
    orders()?.send(Order { request, mask: SignalMask::current(), reply }).map_err(|_| lost())?;
    answer.await.map_err(|_| lost())
}

/// The way to the thread. What waits there is bounded by the number of `spawn_async` futures that somebody holds.
fn orders() -> io::Result<&'static Sender<Order>> {
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    // The thread is started under this lock, so that two first users don't start two.
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(orders) = ORDERS.get() {
        return Ok(orders);
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(orders) = ORDERS.get() {
        return Ok(orders);
    }
    let (sender, receiver) = channel();
    thread::Builder::new().name("multiproc-starter".into()).stack_size(512 << 10).spawn(move || run(receiver))?;
    Ok(ORDERS.get_or_init(|| sender))
}

#[expect(clippy::needless_pass_by_value, reason = "the thread owns it")]
fn run(orders: Receiver<Order>) {
    // A signal for the host must not be handled here, let alone kill it because this thread has not blocked it.
    SignalMask::full().install();
    for Order { request, mask, reply } in &orders {
        if reply.is_closed() {
            // Its future was dropped while it waited here.
            continue;
        }
        let before = mask.install();
        let result = start(request);
        before.install();
        // If nobody takes it, it is dropped here, and so killed. What can panic is somebody else's waker.
        let _ = catch_unwind(AssertUnwindSafe(|| reply.send(result)));
    }
}
