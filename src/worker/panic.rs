//! What a panic says: message, place and backtrace are only there while the panic hook runs, so it notes them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};

use crate::error::Panic;
use crate::task::panic_message;

thread_local! {
    /// Whether this thread runs a task at the moment.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    static NOTED: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Installs the hook. `before_abort` tells the parent, where a panic ends the process.
///
/// A task's panic is reported to whoever awaits the task and not printed here; any other thread's goes to the hook that
/// was there.
pub(super) fn install(before_abort: impl Fn(&Panic) + Send + Sync + 'static) {
    let other = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !RUNNING.get() {
            return other(info);
        }
        let panic = note(info);
        if cfg!(panic = "abort") {
            before_abort(&panic);
        }
        // A panic in a drop during unwinding aborts: the first one is the cause.
        NOTED.with_borrow_mut(|noted| {
            noted.get_or_insert(panic);
        });
    }));
}

/// Runs a task, and gives its panic as a value. Whatever the payload is, this does not panic.
pub(crate) fn catch<R>(task: impl FnOnce() -> R) -> Result<R, Panic> {
    NOTED.take();
    let was_running = RUNNING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(task)).map_err(|payload| {
        let noted = NOTED.take();
        let message = panic_message(payload);
        noted.unwrap_or_else(|| Panic::new(message))
    });
    RUNNING.set(was_running);
    result
}

fn note(info: &PanicHookInfo<'_>) -> Panic {
    let message =
        info.payload_as_str().map_or_else(|| "a panic payload that is not a string".to_owned(), str::to_owned);
    let location = info.location().map(ToString::to_string);
    // Honours RUST_BACKTRACE and RUST_LIB_BACKTRACE, as std's own hook does.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    Panic { message, location, backtrace }
}
