//! What a panic says: message, place and backtrace are only there while the panic hook runs, so it notes them.
//!
//! Who catches one takes its note, and gives it to whom it concerns. What is left when the task has returned or panicked was caught
//! by the task, or by a runtime in it: nobody else hears of that, so it is printed then.
//!
//! std makes backtraces under a lock that it wants again, to say so, when an allocation fails: under it one must not. So there
//! is a backtrace only where there is memory to spare.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::thread;

use crate::error::Panic;
use crate::sys::limits::with_memory_to_spare;
use crate::sys::original;

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
/// A task's panic is reported to whoever awaits the task and not printed here, unless the task goes on; any other thread's goes to
/// the hook that was there.
pub(crate) fn install(before_abort: impl Fn(&Panic) + Send + Sync + 'static) {
    let other = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !RUNNING.get() {
            // std's own makes a backtrace, too.
            return with_memory_to_spare(|| other(info)).unwrap_or_else(|| _ = writeln!(Stderr, "{info}"));
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
            if noted.len() >= NOTES {
                print(&noted.remove(0));
            }
            noted.push(panic);
        });
    }));
}

/// Runs a task, and gives its panic as a value. Whatever the payload is, this does not panic.
pub(crate) fn catch<R>(task: impl FnOnce() -> R) -> Result<R, Panic> {
    // Where this is inside a task, what that has noted is its own.
    let before = NOTED.take();
    let was_running = RUNNING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(task)).map_err(caught);
    RUNNING.set(was_running);
    let survived = NOTED.replace(before);
    // A copy that the task forked has the notes of the original, which prints them.
    if !survived.is_empty() && !original::is_forked_copy() {
        survived.iter().for_each(print);
    }
    result
}

/// What a panic said that has just been caught. Whatever the payload is, this does not panic.
pub(crate) fn caught(payload: Box<dyn Any + Send>) -> Panic {
    // Before the payload is dropped, which may be one more panic.
    let mut noted = NOTED.take();
    let message = message(payload);
    // Those that were caught before, or while this one unwound, are noted too.
    let place = noted.iter().rposition(|panic| panic.message == message);
    let panic = place.map_or_else(|| Panic::new(message), |place| noted.remove(place));
    NOTED.with_borrow_mut(|since| noted.append(since));
    NOTED.set(noted);
    panic
}

/// The text of a panic's payload. Never panics, even if the payload does when it is dropped.
pub(super) fn message(payload: Box<dyn Any + Send>) -> String {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic payload that is not a string".to_owned()
    };
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Its drop might panic again and again.
        std::mem::forget(second);
    }
    message
}

/// Runs what may be other people's code where its panic is nobody's concern, and must not keep us from the rest.
pub(crate) fn unheeded(work: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
        message(payload);
    }
}

/// Where it is printed. Not by way of std, whose lock a thread that a task has left may hold for good.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says it as std's own hook does, piece by piece: the task may have left no memory for a text.
fn print(Panic { message, location, backtrace }: &Panic) {
    let thread = thread::current();
    let (name, place) = (thread.name().unwrap_or("<unnamed>"), location.as_deref().unwrap_or("an unknown place"));
    let _ = writeln!(Stderr, "\nthread '{name}' panicked at {place}:\n{message}");
    if let Some(backtrace) = backtrace {
        let _ = writeln!(Stderr, "stack backtrace:\n{backtrace}");
    }
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
