//! How a worker process starts, seen from its parent; `worker/` is the other side.
//!
//! ```text
//!  Hello and the first task are written into a socketpair ── they wait there until the worker reads
//!  /proc/self/exe, arg0 = marker, fd 0 = one end of a socketpair, its own process group ── no fork
//!  Ready ── or the worker's exit, or the deadline, whichever is first
//! ```

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::keeper::{self, Terms};
use super::kept::KillOnDrop;
use super::program::{Born, EnvChange, Launch, Plain, Program, is_env_name, spawn_std};
use crate::channel::background;
use crate::channel::flusher::is_fd_congestion;
use crate::channel::inbox::Inbox;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
pub(crate) use crate::error::EXIT_NO_PARENT;
use crate::error::SpawnError;
use crate::sys::image;
use crate::sys::in_child::InChild;
use crate::sys::ledger::Ledger;
use crate::sys::limits::Limits;
use crate::sys::socket;
use crate::sys::worker::{Slot, program_name};
use crate::wire::frame::{self, DEFAULT_MAX_BODY, Frame};
use crate::wire::message::{self, Hello, Kind, Life, Seat};

/// What a worker is: this very file, even when it has been replaced or removed.
const EXECUTABLE: &str = "/proc/self/exe";

/// What a worker's arg0 begins with.
const MARKER: &str = "multiproc-worker";

/// The exit code after a task that has no result; what Rust's runtime uses for a panic.
pub(crate) const EXIT_PANICKED: i32 = 101;

/// How deep workers may be nested.
const MAX_DEPTH: u32 = 8;

/// How long a new worker may take until it says Ready. A start takes about a millisecond; this is for a machine that
/// does a thousand other things.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(10);

/// Whether `init` ran, so that a new worker will find it too.
static ALLOWED: AtomicBool = AtomicBool::new(false);
static DEPTH: AtomicU32 = AtomicU32::new(0);

/// Lets this process start workers: `init` has run.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// How deep this process is nested.
pub(crate) fn set_depth(depth: u32) {
    DEPTH.store(depth, Ordering::Relaxed);
}

/// Where a process whose arg0 bears the marker finds its socket.
pub(crate) fn slot_of(arg0: &OsStr) -> Option<Slot> {
    let rest = arg0.as_bytes().strip_prefix(MARKER.as_bytes())?;
    let (slot, rest) = match rest {
        [b'<', b'1', rest @ ..] => (Slot::Stdout, rest),
        [b'<', b'2', rest @ ..] => (Slot::Stderr, rest),
        [b'<', b'3', rest @ ..] => (Slot::Extra, rest),
        rest => (Slot::Stdin, rest),
    };
    (rest.is_empty() || rest.starts_with(b": ")).then_some(slot)
}

fn arg0(slot: Slot, name: &str) -> OsString {
    let slot = match slot {
        Slot::Stdin => "",
        Slot::Stdout => "<1",
        Slot::Stderr => "<2",
        Slot::Extra => "<3",
    };
    if name.is_empty() { format!("{MARKER}{slot}") } else { format!("{MARKER}{slot}: {}", name.replace('\0', "")) }
        .into()
}

/// What new workers are to be like. One plan may start many.
#[derive(Debug)]
pub(crate) struct Plan {
    program: Program,
    /// Holds the stdio that the caller has set, if any: a `Stdio` can't be copied, but a command can be spawned again and
    /// again.
    template: Option<Arc<Mutex<Command>>>,
    /// Which of stdin, stdout and stderr that is.
    taken: [bool; 3],
    pub(crate) limits: Limits,
    pub(crate) life: Life,
    pub(crate) max_body: usize,
    pub(crate) busy_poll: Duration,
}

impl Plan {
    pub(crate) fn new(life: Life) -> Self {
        Self {
            program: Program { worker: true, ..Program::new(EXECUTABLE) },
            template: None,
            taken: [false; 3],
            limits: Limits::default(),
            life,
            max_body: DEFAULT_MAX_BODY,
            busy_poll: Duration::ZERO,
        }
    }

    pub(crate) fn env(&mut self, change: EnvChange) {
        self.program.env.push(change);
    }

    /// Sets an environment variable, or says why it can't be.
    pub(crate) fn set_env(&mut self, name: &OsStr, value: &OsStr) -> Result<(), &'static str> {
        if !is_env_name(name) {
            return Err("an environment variable's name is empty or has a `=`");
        }
        if name.as_bytes().contains(&0) || value.as_bytes().contains(&0) {
            return Err("an environment variable has a NUL");
        }
        self.env(EnvChange::Set(name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Sets the working directory, or says why it can't be.
    pub(crate) fn current_dir(&mut self, directory: &Path) -> Result<(), &'static str> {
        if directory.as_os_str().as_bytes().contains(&0) {
            return Err("the working directory has a NUL");
        }
        self.program.current_dir = Some(directory.to_owned());
        Ok(())
    }

    pub(crate) fn stdio(&mut self, place: Slot, stdio: Stdio) {
        self.taken[place as usize] = true;
        let template = self.template.get_or_insert_with(|| {
            let mut command = Command::new(EXECUTABLE);
            command.process_group(0);
            Arc::new(Mutex::new(command))
        });
        place_stdio(&mut lock(template), place, stdio);
    }

    /// The stdio fd that the caller has no use for, if there is one. What the host has there goes along with Hello.
    pub(crate) fn slot(&self) -> Slot {
        let unused = [Slot::Stdin, Slot::Stderr, Slot::Stdout].into_iter().find(|&slot| !self.taken[slot as usize]);
        unused.unwrap_or(Slot::Extra)
    }

    /// Says which of several causes a failed start has.
    pub(super) fn explain(&self, error: io::Error) -> SpawnError {
        if let Some(path) = &self.program.current_dir
            && (!path.is_dir() || rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_err())
        {
            return SpawnError::Directory { path: path.clone(), source: error };
        }
        match error.kind() {
            io::ErrorKind::NotFound => SpawnError::Executable(error),
            _ => SpawnError::Io(error),
        }
    }
}

fn place_stdio(command: &mut Command, place: Slot, stdio: Stdio) {
    match place {
        Slot::Stdin => command.stdin(stdio),
        Slot::Stdout => command.stdout(stdio),
        Slot::Stderr => command.stderr(stdio),
        Slot::Extra => command,
    };
}

fn lock(template: &Mutex<Command>) -> MutexGuard<'_, Command> {
    template.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One start of a plan with a template.
struct Starting {
    template: Arc<Mutex<Command>>,
    program: Program,
    slot: Slot,
    theirs: OwnedFd,
}

impl Launch for Starting {
    fn launch(&mut self) -> io::Result<Born> {
        let theirs = socket::duplicate(&self.theirs)?;
        let mut command = lock(&self.template);
        self.program.configure(&mut command);
        place_stdio(&mut command, self.slot, theirs.into());
        let born = spawn_std(&mut command);
        // The command must not hold the worker's end of the socket open: its end is the end of the conversation.
        place_stdio(&mut command, self.slot, Stdio::null());
        born
    }
}

/// A worker that has said Ready, or will: its process, the conversation with it, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) child: KillOnDrop,
    pub(crate) socket: Socket,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<Arc<OwnedFd>>,
    pub(crate) stderr: Option<Arc<OwnedFd>>,
    /// For a worker that lives until the end.
    pub(crate) ledger: Option<Ledger>,
}

/// Whether this process may start workers, and how deep they would be.
pub(crate) fn permitted() -> Result<u32, SpawnError> {
    if keeper::is_forked_copy() {
        // It says so.
        keeper::no_forked_copy()?;
    }
    if !ALLOWED.load(Ordering::Relaxed) {
        return Err(SpawnError::InitMissing);
    }
    let depth = DEPTH.load(Ordering::Relaxed);
    if depth >= MAX_DEPTH { Err(SpawnError::TooDeep { depth }) } else { Ok(depth + 1) }
}

/// Starts a worker and shakes hands. `first` is sent along with the first words, so it costs no round trip, and wholly, so that
/// the worker can begin whatever becomes of us.
///
/// # Cancel safety
/// Dropping it kills what has been started by then.
pub(crate) async fn start(plan: &Plan, name: &str, first: Option<Frame>) -> Result<Worker, SpawnError> {
    let words = first_words(plan, name, None, first).await?;
    let mut worker = launch(plan, name, words).await?;
    worker.shake_hands(plan).await?;
    worker.send_rest().await?;
    Ok(worker)
}

/// What a worker will find in its socket.
#[must_use]
pub(crate) struct FirstWords {
    ours: Socket,
    theirs: OwnedFd,
    /// What is left of them.
    outbox: Outbox,
    ledger: Option<Ledger>,
}

/// The first step of [`start`]: there is no process yet. It waits only while too many fds are under way for one more, and
/// not for long.
///
/// # Cancel safety
/// Dropping it leaves nothing.
pub(crate) async fn first_words(
    plan: &Plan,
    name: &str,
    seat: Option<Seat>,
    first: Option<Frame>,
) -> Result<FirstWords, SpawnError> {
    let depth = permitted()?;
    if image::runs_as_its_loader() {
        let reason =
            "this program was started as an argument of its loader, which is what would be run; start it by itself";
        return Err(SpawnError::Executable(io::Error::other(reason)));
    }
    let hello = Hello {
        image: image::id(),
        depth,
        max_body: plan.max_body as u64,
        name: if name.is_empty() { program_name() } else { name }.to_owned(),
        seat,
        limits: plan.limits,
        ledger: plan.life == Life::UntilEnd,
        life: plan.life,
        busy_poll: plan.busy_poll,
    };
    let mut hello = message::frame(Kind::Hello, 0, &hello);
    let ledger = match plan.life {
        Life::OneTask => None,
        Life::UntilEnd => {
            let (ledger, fd) = Ledger::create()?;
            hello.fds.push(fd.into());
            Some(ledger)
        }
    };
    let slot = plan.slot();
    if matches!(slot, Slot::Stdout | Slot::Stderr) {
        // A host that has closed it has nothing to pass on.
        if let Ok(stream) = socket::duplicate(slot.fd()) {
            hello.fds.push(stream.into());
        }
    }
    let (ours, theirs) = socket::stream_pair()?;
    let ours = Socket::new(ours);
    let mut outbox = Outbox::default();
    outbox.push(hello);
    if let Some(first) = first {
        outbox.push(first);
    }
    write_ahead(&mut outbox, &ours).await?;
    Ok(FirstWords { ours, theirs, outbox, ledger })
}

/// Writes what the socket takes. Before the start, so that a worker whose parent dies at once still knows what it was meant to be;
/// what is large may have to wait for its reader.
async fn write_ahead(outbox: &mut Outbox, socket: &Socket) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match outbox.flush(socket) {
            // Whoever is to take them in may wait for this very start.
            Err(error) if is_fd_congestion(&error) && outbox.sent() == 0 && begun.elapsed() < READY_WITHIN => {
                background::pause().await?;
            }
            Err(error)
                if error.kind() != io::ErrorKind::WouldBlock && (outbox.sent() == 0 || !is_fd_congestion(&error)) =>
            {
                return Err(error);
            }
            // The rest is sent when its worker is there and reads.
            _ => return Ok(()),
        }
    }
}

/// The second step of [`start`]: the process is there, and has yet to [shake hands](Worker::shake_hands).
///
/// # Cancel safety
/// As for `start`.
pub(crate) async fn launch(plan: &Plan, name: &str, words: FirstWords) -> Result<Worker, SpawnError> {
    let FirstWords { ours, theirs, outbox, ledger } = words;
    let slot = plan.slot();
    let mut program = plan.program.clone();
    program.arg0 = Some(arg0(slot, name));
    let launch: Box<dyn Launch> = match &plan.template {
        None => Box::new(Plain::new(Arc::new(program), [Some(theirs), None, None], InChild::default())?.ahead()),
        Some(template) => {
            if slot == Slot::Extra {
                // Only one process has all three set. The command goes with its plan, and with it its copy of the socket.
                let inherited = vec![(socket::duplicate(&theirs)?, Slot::EXTRA)];
                InChild { inherited, ..InChild::default() }.install(&mut lock(template))?;
            }
            Box::new(Starting { template: Arc::clone(template), program, slot, theirs })
        }
    };
    let started = keeper::spawn_async(launch, Terms::default()).await;
    let started = started.map_err(|error| plan.explain(error))?;
    let worker = Worker {
        child: started.child,
        socket: ours,
        inbox: Inbox::new(frame::Limits::default().with_body(plan.max_body)),
        outbox,
        stdin: started.stdin,
        stdout: started.stdout,
        stderr: started.stderr,
        ledger,
    };
    Ok(worker)
}
