//! What a panic says: message, place and backtrace are only there while the panic hook runs, so it notes them.
//!
//! std makes backtraces under a lock that it wants again, to say so, when an allocation fails: under it one must not. So there
//! is a backtrace only where there is memory to spare.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};

use crate::error::Panic;
use crate::sys::limits::with_memory_to_spare;
use crate::task::panic_message;

/// How many panics are noted at most; a task may catch any number of its own.
const NOTES: usize = 8;

/// What std says when a panic cannot go on unwinding, just before it aborts: it left an `extern "C"` function, or came
/// out of a drop while another one was unwinding.
const CANNOT_UNWIND: [&str; 2] = ["panic in a function that cannot unwind", "panic in a destructor during cleanup"];

thread_local! {
    /// Whether this thread runs a task at the moment.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    /// The latest panics of the task, the last one behind.
    static NOTED: RefCell<Vec<Panic>> = const { RefCell::new(Vec::new()) };
}

/// Installs the hook. `before_abort` tells the parent, where a panic ends the process.
///
/// A task's panic is reported to whoever awaits the task and not printed here; any other thread's goes to the hook that
/// was there.
pub(super) fn install(before_abort: impl Fn(&Panic) + Send + Sync + 'static) {
    let other = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !RUNNING.get() {
            // std's own makes a backtrace, too.
            return with_memory_to_spare(|| other(info)).unwrap_or_else(|| _ = writeln!(io::stderr(), "{info}"));
        }
        NOTED.with_borrow_mut(|noted| {
            if info.payload_as_str().is_some_and(|message| CANNOT_UNWIND.contains(&message))
                && let Some(cause) = noted.last()
            {
                return before_abort(cause);
            }
            let panic = note(info);
            if cfg!(panic = "abort") {
                before_abort(&panic);
            }
            if noted.len() == NOTES {
                noted.remove(0);
            }
            noted.push(panic);
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
        // Those that the task caught itself, before this one or while it unwound, are noted too.
        noted.into_iter().rfind(|panic| panic.message == message).unwrap_or_else(|| Panic::new(message))
    });
    RUNNING.set(was_running);
    result
}

fn note(info: &PanicHookInfo<'_>) -> Panic {
    let message =
        info.payload_as_str().map_or_else(|| "a panic payload that is not a string".to_owned(), str::to_owned);
    let location = info.location().map(ToString::to_string);
    let backtrace = with_memory_to_spare(|| {
        // Honours RUST_BACKTRACE and RUST_LIB_BACKTRACE, as std's own hook does.
        let backtrace = Backtrace::capture();
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string())
    });
    Panic { message, location, backtrace: backtrace.flatten() }
}
