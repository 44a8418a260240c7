//! The starters: a few threads that start programs for async callers.
//!
//! A start takes about a millisecond, and as long as it pleases where a program lies on a slow file system: too long for a
//! runtime's thread, and too long for the keeper, which has everybody else's exits to look at. For most of that time the
//! starter itself waits, for the child to become the program; so there are several. A start that waits for nothing is theirs,
//! too, for the reason that follows.
//! Keeping what was started is the keeper's business.
//!
//! A starter never ends. A program may ask the kernel for a signal at its parent's end (`PR_SET_PDEATHSIG` in prctl(2); our own
//! workers do, and sandboxes that are to die with their parent), and takes the end of the thread that started it for that.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::keeper::{Refused, Request, Started, Terms, is_forked_copy, no_forked_copy, start};
use super::program::Launch;
use crate::sys::exit::at_exit;
use crate::sys::process::{SignalMask, is_main_thread};

/// Starts a program, with the calling thread's signal mask; on another thread, unless this one will do.
///
/// What is only a passing shortage (`EAGAIN`), or a file that somebody is still writing (`ETXTBSY`), is tried again for a
/// while; that needs a tokio runtime with time.
///
/// # Cancel safety
///
/// Dropping it leaves no child: one that has been started by then is killed, also where this process exits at once.
pub(super) async fn spawn_async(command: Box<dyn Launch>, terms: Terms) -> io::Result<Started> {
    let mut refused = match ask(Request { command, terms }).await? {
        Ok(started) => return Ok(started),
        Err(refused) => refused,
    };
    for pause in [1, 2, 5, 10, 25, 50, 100] {
        let Some(request) = refused.request.filter(|_| may_pass(&refused.error)) else { break };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        refused = match ask(request).await? {
            Ok(started) => return Ok(started),
            Err(refused) => refused,
        };
    }
    Err(refused.error)
}

/// Whether a start that failed so may not do so a little later.
pub(super) fn may_pass(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ETXTBSY))
}

struct Order {
    request: Request,
    mask: SignalMask,
    reply: oneshot::Sender<Result<Started, Box<Refused>>>,
}

async fn ask(mut request: Request) -> io::Result<Result<Started, Box<Refused>>> {
    // First: to ask whether it is quick takes a lock, which in a copy may be held for good.
    no_forked_copy()?;
    // The main thread does not end before the process does either. Whether it can be quick, a starter finds out
    // with the first start.
    if is_main_thread() && request.command.is_quick() {
        return Ok(start(request));
    }
    let (reply, answer) = oneshot::channel();
    if let Err(refused) = order(Order { request, mask: SignalMask::current(), reply }) {
        return Ok(Err(refused));
    }
    answer.await.map_err(|_| io::Error::other("the thread that starts programs is lost"))
}

/// What waits to be started. It is bounded by the number of `spawn_async` futures that somebody holds.
static DESK: Mutex<Desk> = Mutex::new(Desk { orders: VecDeque::new(), threads: 0, free: 0, busy: 0, closed: false });

/// Rings when there is an order.
static BELL: Condvar = Condvar::new();

struct Desk {
    orders: VecDeque<Order>,
    threads: usize,
    /// How many of them start nothing just now.
    free: usize,
    /// How many of them have an order, or what came of it, in their hands.
    busy: usize,
    /// Whether an exit waits for them to have none: nothing is begun meanwhile.
    closed: bool,
}

/// Gives an order to a free thread, to a new one, or to whichever is free first. Where there is none the request comes back.
fn order(order: Order) -> Result<(), Box<Refused>> {
    let mut desk = desk();
    // All of them at the first order, and the missing ones when they are needed: so a burst of starts leaves a host with as
    // many threads as it had.
    let short = desk.free <= desk.orders.len();
    while short && desk.threads < most() {
        let thread = thread::Builder::new().name("multiproc-starter".into()).stack_size(512 << 10);
        match thread.spawn(run) {
            Ok(_) => {
                if desk.threads == 0 {
                    at_exit(settle);
                }
                desk.threads += 1;
                desk.free += 1;
            }
            Err(error) if desk.threads == 0 => return Err(Box::new(Refused { error, request: Some(order.request) })),
            // Those that there are have to do.
            Err(_) => break,
        }
    }
    desk.orders.push_back(order);
    drop(desk);
    BELL.notify_one();
    Ok(())
}

/// How many threads there are: enough to keep processors busy, and for some that hang in a slow file system.
fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| thread::available_parallelism().map_or(4, |count| count.get().clamp(4, 8)))
}

/// Waits for an order.
fn next() -> Order {
    let mut desk = desk();
    loop {
        if !desk.closed
            && let Some(order) = desk.orders.pop_front()
        {
            desk.free -= 1;
            desk.busy += 1;
            return order;
        }
        desk = BELL.wait(desk).unwrap_or_else(PoisonError::into_inner);
    }
}

fn desk() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run() {
    // A signal for the host must not be handled here, let alone kill it because this thread has not blocked it.
    let own = SignalMask::full();
    own.install();
    loop {
        let Order { request, mask, reply } = next();
        // Its future may have been dropped while it waited here. And should std panic, that is this one's trouble alone.
        let result = (!reply.is_closed()).then(|| {
            mask.install();
            let result = catch_unwind(AssertUnwindSafe(|| start(request)));
            own.install();
            result
        });
        // Before the answer, so that whoever starts one after the other has one thread do it.
        desk().free += 1;
        if let Some(Ok(result)) = result {
            // If nobody takes it, it is dropped here, and so killed. What can panic is somebody else's waker.
            let _ = catch_unwind(AssertUnwindSafe(|| reply.send(result)));
        }
        desk().busy -= 1;
    }
}

/// For how long an exit waits for starts under way. Only one that hangs takes longer.
const SETTLE_WITHIN: Duration = Duration::from_millis(500);

/// How often it looks whether they are done.
const LOOK: Duration = Duration::from_micros(100);

/// At exit: waits for the starts under way. Those that nobody waits for any more are killed by their starters, which this process's
/// end would take from them in the middle of it.
extern "C" fn settle() {
    // None of them is in a copy, where the desk may be locked for good.
    if is_forked_copy() {
        return;
    }
    let until = Instant::now() + SETTLE_WITHIN;
    let close = || {
        let mut desk = desk_in_time()?;
        desk.closed = true;
        Some(desk.busy == 0)
    };
    while close() == Some(false) && Instant::now() < until {
        thread::sleep(LOOK);
    }
    open_again();
}

/// What else is done at exit may start something, and wait for that.
fn open_again() {
    if let Some(mut desk) = desk_in_time() {
        desk.closed = false;
    }
    BELL.notify_all();
}

/// As [`desk`], at exit: whoever exits may have it locked, by a signal's handler say, so that is not waited for without end.
fn desk_in_time() -> Option<MutexGuard<'static, Desk>> {
    let until = Instant::now() + SETTLE_WITHIN;
    loop {
        match DESK.try_lock() {
            Ok(desk) => return Some(desk),
            Err(TryLockError::Poisoned(desk)) => return Some(desk.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing was started any more, and an exit handler waited for it without end.
    #[test]
    fn an_exit_lets_starts_go_on_also_where_somebody_is_at_the_desk_just_then() {
        let mut busy = desk();
        busy.closed = true;
        let exit = thread::spawn(open_again);
        let begun = Instant::now();
        while !exit.is_finished() && begun.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
        drop(busy);
        exit.join().unwrap();
        assert!(!desk().closed);
    }
}
