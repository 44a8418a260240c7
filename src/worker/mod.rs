//! What runs inside a worker: how a process finds out that it is one, its handshake, its loop and its end.
//!
//! The parent's side of all this is `process/start.rs`.

mod context;
mod serve;

pub(crate) use context::Progress;
pub use context::{Worker, worker};

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::channel::flusher;
use crate::channel::inbox::Inbox;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::error::RecvError;
use crate::process::start;
use crate::sys::image;
use crate::sys::ledger::Ledger;
use crate::sys::original;
use crate::sys::process::is_main_thread;
use crate::sys::socket::Ready;
use crate::sys::watch;
use crate::sys::worker::{self as sys, Slot};
use crate::wire::body;
use crate::wire::fds::LOST;
use crate::wire::frame::{DEFAULT_MAX_BODY, Frame, Limits};
use crate::wire::message::{self, Hello, Kind, Run};

/// Whether this process turned out to be a worker.
static WORKER: AtomicBool = AtomicBool::new(false);

/// Turns this process into a worker if it was started as one; call it first in `main`.
///
/// In a normal process it returns at once. In a worker it never returns: it runs the tasks that the parent sends, and
/// ends the process when the parent is done with it or gone. What stands before it in `main` runs in every worker too.
///
/// It works as the first line of a plain `fn main`, which is the cheapest, and inside `#[tokio::main]`; tasks then run on
/// a thread outside that runtime. Tests, doctests without a `main` and benches call [`test_support!`](crate::test_support)
/// instead. Starting a process in a program that never called it fails with
/// [`SpawnError::InitMissing`](crate::SpawnError::InitMissing).
///
/// It belongs to the main thread. A call on another one, as in a `#[test]`, does not count: a worker would run whatever else the
/// program does until it comes to that. A worker that comes to it there all the same is a failed start, and so is one that can't set
/// itself up (no memory for a thread, no fd): it ends, and its parent is told why.
///
/// A worker has /dev/null as stdin, the parent's stdout and stderr, no other fd of the parent, no blocked signal and
/// no ignored one but SIGPIPE, and is in a process group of its own. It ends with its parent, however that ends: a thread
/// of its own watches. A parent that becomes another program by execve(2) has not ended: a busy worker goes on until its task ends.
///
/// # Examples
///
/// ```
/// #[tokio::main]
/// async fn main() {
///     multiproc::init();
///     // The program proper.
/// }
/// ```
pub fn init() {
    if let Some((socket, slot)) = take_seat() {
        WORKER.store(true, Ordering::Relaxed);
        work(socket, slot)
    }
    // Where it is not first in `main`, each worker would be this program once more, and do what it does until it comes here.
    if is_main_thread() {
        start::allow();
    }
}

/// Whether this process is a worker: whether it is running a task for another one.
pub fn is_worker() -> bool {
    WORKER.load(Ordering::Relaxed)
}

/// Runs [`init`](crate::init) before `main`, for programs whose `main` is not yours: test crates, benches, doctests.
///
/// Write it once, at the root of the test crate (each file in `tests/` is one). [`init`](crate::init) in a test does not count: a worker
/// starts as the test program does, and would run the other tests until it comes to that.
///
/// Each `#[tokio::test]` has a runtime of its own, with which a pool's workers end: make a pool in each test that uses one, or keep
/// one runtime for all of them.
///
/// # Examples
///
/// ```
/// multiproc::test_support!();
///
/// # /*
/// #[tokio::test]
/// # */
/// async fn adds() {
///     let child = multiproc::spawn_process(multiproc::call(|(a, b)| a + b, (1, 2))).await.unwrap();
///     assert_eq!(child.join().await.unwrap(), 3);
/// }
/// # tokio::runtime::Runtime::new().unwrap().block_on(adds());
/// ```
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            extern "C" fn multiproc_init() {
                $crate::init();
            }

            // The loader calls what stands here before `main`.
            #[used]
            #[unsafe(link_section = ".init_array")]
            static MULTIPROC_INIT: extern "C" fn() = multiproc_init;
        };
    };
}

/// The socket to the parent and where it lay, if this process was started as a worker.
///
/// A marker alone, forged or leaked, is not enough: the socket must be there, with the Hello that is written into it
/// before the worker is started.
fn take_seat() -> Option<(Socket, Slot)> {
    let slot = start::slot_of(&arg0()?)?;
    if !slot.is_socket() || !message::begins_with_hello(&slot.peek()) {
        return None;
    }
    if !slot.is_from_parent() {
        // It was for us, and our parent died before we got here. Going on would run the host program once more. That the
        // socket hangs up says it too late: a dying host's children get their new parent before its fds are closed.
        process::exit(start::EXIT_NO_PARENT);
    }
    match slot.take() {
        Ok(socket) => Some((Socket::new(socket), slot)),
        Err(error) => refuse(slot.fd(), &format!("it needs an fd for its socket, and /dev/null: {error}")),
    }
}

/// What this process was called as.
fn arg0() -> Option<OsString> {
    // Before `main`, which is where `test_support!` runs, only glibc has told std the arguments.
    std::env::args_os().next().or_else(|| {
        let line = std::fs::read("/proc/self/cmdline").ok()?;
        Some(OsString::from_vec(line.split(|&byte| byte == 0).next()?.to_owned()))
    })
}

/// The whole life of a worker.
fn work(socket: Socket, slot: Slot) -> ! {
    if !is_main_thread() {
        // Other threads are at work, and what is inherited may be theirs by now.
        let reason = "it came to `multiproc::init();` on another thread than the main thread: that must be the first \
                      line of `fn main` (in tests: `multiproc::test_support!();` once at the crate's root)";
        refuse(&socket, reason)
    }
    sys::reset_signals();
    sys::ignore_broken_pipes();
    original::mark();
    if let Err(error) = sys::fill_stdio() {
        refuse(&socket, &format!("it needs /dev/null where its parent had no stdio: {error}"))
    }
    if !sys::has_inherited_nothing() {
        if let Err(error) = sys::close_inherited() {
            refuse(&socket, &format!("it needs /proc to see what it inherited: {error}"))
        }
        watch::continue_at_parents_end();
    }
    // For as long as the process lives, which is as long as this.
    let socket: &Socket = Box::leak(Box::new(socket));
    if let Err(error) = watch_parent(socket) {
        refuse(socket, &format!("cannot start its watch thread: {error}"))
    }
    if tokio::runtime::Handle::try_current().is_ok() {
        // Inside a runtime a task could not block, nor drive one of its own.
        let thread = thread::Builder::new().name("task".into()).stack_size(8 << 20);
        match thread.spawn(move || serve(socket, slot)) {
            Ok(thread) => drop(thread.join()),
            Err(error) => refuse(socket, &format!("cannot start its task thread: {error}")),
        }
        process::abort()
    }
    serve(socket, slot)
}

/// Ends a worker that is not able to serve, for want of fds say, and tells the parent why.
fn refuse(socket: impl AsFd, reason: &str) -> ! {
    let mut outbox = Outbox::default();
    outbox.push(message::frame(Kind::Refused, 0, &reason));
    // The socket has room: it is the first that is said there.
    let _ = outbox.flush(socket);
    process::exit(start::EXIT_NO_PARENT)
}

/// Starts the thread that ends this process and its group when the parent is gone.
fn watch_parent(socket: &'static Socket) -> io::Result<()> {
    // Opened here, so that a task finds the same fds each time, and can't be quicker than the watch.
    watch::ParentWatch::new(socket).start()
}

/// Shakes hands, serves, and ends the process.
fn serve(socket: &Socket, slot: Slot) -> ! {
    let mut inbox = Inbox::new(Limits { body: DEFAULT_MAX_BODY + Run::HEAD_LEN, ..Limits::default() });
    let hello = match inbox.blocking_frame(socket) {
        Ok(Some(frame)) if frame.kind == Kind::Hello as u8 => frame,
        Err(RecvError::Io(error)) => refuse(socket, &format!("it cannot read from its parent: {error}")),
        // The parent gave up, or is none.
        _ => process::exit(start::EXIT_NO_PARENT),
    };
    let (hello, ledger) = greet(hello, slot).unwrap_or_else(|reason| refuse(socket, &reason));
    let mut outbox = Outbox::default();
    outbox.push(Frame { kind: Kind::Ready as u8, ..Frame::default() });
    // At once, not with the first reply: the first task may never give one.
    if socket.block_when(Ready::Write, || outbox.flush(socket)).is_err() {
        process::exit(start::EXIT_NO_PARENT)
    }
    let code = serve::Server::new(socket, inbox, &hello, ledger).run();
    // What the task's ends were left with; the thread that sends it ends with the process.
    flusher::finish();
    process::exit(code)
}

/// Checks that the parent is this same program, and takes on what it asks.
fn greet(frame: Frame, slot: Slot) -> Result<(Hello, Option<Arc<Ledger>>), String> {
    let hello: Hello = body::decode(&frame.body).map_err(|error| format!("hello cannot be read: {error}"))?;
    if image::id() != hello.image {
        return Err("the worker runs another executable than its parent".into());
    }
    if frame.fds_lost {
        return Err(LOST.into());
    }
    let mut fds = frame.fds.into_fds().into_vec().into_iter();
    let ledger = if hello.ledger { Some(fds.next().ok_or("no ledger came")?) } else { None };
    let ledger = ledger.map(Ledger::open).transpose().map_err(|error| format!("cannot open the ledger: {error}"))?;
    if let Some(fd) = fds.next() {
        slot.put(fd).map_err(|error| format!("cannot take stdio: {error}"))?;
    }
    sys::name_process(&hello.name);
    let ledger = ledger.map(Arc::new);
    context::set_place(hello.seat.clone(), ledger.clone());
    start::set_depth(hello.depth);
    start::allow();
    hello.limits.apply_to_worker().map_err(|(what, error)| {
        let error = io::Error::from_raw_os_error(error);
        format!("cannot limit its {what}: {error}")
    })?;
    Ok((hello, ledger))
}
