//! How a worker process starts, seen from its parent; `worker/` is the other side.
//!
//! ```text
//!  /proc/self/exe, arg0 = marker, fd 0 = one end of a socketpair, its own process group ── posix_spawn(3), no fork
//!  Hello and the first task are written at once ── they wait in the socket until the worker reads
//!  Ready ── or the worker's exit, or the deadline, whichever is first
//! ```

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::keeper::{self, Terms};
use super::kept::KillOnDrop;
use crate::channel::inbox::Inbox;
use crate::channel::outbox::Outbox;
use crate::channel::socket::Socket;
use crate::error::{RecvError, SpawnError};
use crate::sys::image;
use crate::sys::socket::{self, Ready};
use crate::sys::worker::Slot;
use crate::wire::frame::{DEFAULT_MAX_BODY, Frame};
use crate::wire::message::{self, FromWorker, Hello, Kind, Life};

/// What a worker's arg0 begins with.
const MARKER: &str = "multiproc-worker";

/// A worker's exit code when it has no parent to work for.
pub(crate) const EXIT_NO_PARENT: i32 = 70;

/// The exit code after a task that has no result; what Rust's runtime uses for a panic.
pub(crate) const EXIT_PANICKED: i32 = 101;

/// How deep workers may be nested.
const MAX_DEPTH: u32 = 8;

/// How long a new worker may take until it says Ready. A start takes about a millisecond; this is for a machine that
/// does a thousand other things.
const READY_WITHIN: Duration = Duration::from_secs(10);

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
        rest => (Slot::Stdin, rest),
    };
    (rest.is_empty() || rest.starts_with(b": ")).then_some(slot)
}

fn arg0(slot: Slot, name: &str) -> OsString {
    let slot = match slot {
        Slot::Stdin => "",
        Slot::Stdout => "<1",
        Slot::Stderr => "<2",
    };
    if name.is_empty() { format!("{MARKER}{slot}") } else { format!("{MARKER}{slot}: {}", name.replace('\0', "")) }
        .into()
}

/// What a new worker is to be like.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    /// Applied in order; a variable without a value is removed.
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stdin: Option<Stdio>,
    pub(crate) stdout: Option<Stdio>,
    pub(crate) stderr: Option<Stdio>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) life: Life,
    pub(crate) max_body: usize,
}

impl Plan {
    pub(crate) fn new(life: Life) -> Self {
        Self {
            name: String::new(),
            env: Vec::new(),
            env_clear: false,
            current_dir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            memory_limit: None,
            life,
            max_body: DEFAULT_MAX_BODY,
        }
    }

    /// The stdio fd that the caller has no use for. What the host has there goes along with Hello.
    fn slot(&self) -> Result<Slot, SpawnError> {
        match (&self.stdin, &self.stderr, &self.stdout) {
            (None, _, _) => Ok(Slot::Stdin),
            (_, None, _) => Ok(Slot::Stderr),
            (_, _, None) => Ok(Slot::Stdout),
            _ => Err(SpawnError::Invalid {
                reason: "of stdin, stdout and stderr at most two can be set: one carries the socket",
            }),
        }
    }

    fn command(&mut self, slot: Slot, theirs: OwnedFd) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(arg0(slot, &self.name)).process_group(0);
        if self.env_clear {
            command.env_clear();
        }
        for (key, value) in self.env.drain(..) {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(directory) = &self.current_dir {
            command.current_dir(directory);
        }
        let mut places =
            [(Slot::Stdin, self.stdin.take()), (Slot::Stdout, self.stdout.take()), (Slot::Stderr, self.stderr.take())];
        for (place, stdio) in &mut places {
            if *place == slot {
                *stdio = None;
            }
        }
        let [(_, stdin), (_, stdout), (_, stderr)] = places;
        let mut theirs = Some(theirs);
        let mut fill = |place: Slot, stdio: Option<Stdio>| {
            if place == slot { theirs.take().map(Stdio::from) } else { stdio }
        };
        if let Some(stdin) = fill(Slot::Stdin, stdin) {
            command.stdin(stdin);
        }
        if let Some(stdout) = fill(Slot::Stdout, stdout) {
            command.stdout(stdout);
        }
        if let Some(stderr) = fill(Slot::Stderr, stderr) {
            command.stderr(stderr);
        }
        command
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
}

/// Whether this process may start workers, and how deep they would be.
pub(crate) fn permitted() -> Result<u32, SpawnError> {
    if !ALLOWED.load(Ordering::Relaxed) {
        return Err(SpawnError::InitMissing);
    }
    let depth = DEPTH.load(Ordering::Relaxed);
    if depth >= MAX_DEPTH { Err(SpawnError::TooDeep { depth }) } else { Ok(depth + 1) }
}

/// Starts a worker and shakes hands. `first` is sent along with the first words, so it costs no round trip.
///
/// # Cancel safety
/// Dropping it kills what has been started by then.
pub(crate) async fn start(mut plan: Plan, first: Option<Frame>) -> Result<Worker, SpawnError> {
    let depth = permitted()?;
    let slot = plan.slot()?;
    let hello = Hello {
        image: image::id().map_err(SpawnError::Executable)?,
        depth,
        max_body: plan.max_body as u64,
        name: plan.name.clone(),
        memory_limit: plan.memory_limit,
        life: plan.life,
    };
    let mut hello = message::frame(Kind::Hello, 0, &hello);
    if slot != Slot::Stdin {
        // A host that has closed it has nothing to pass on.
        hello.fds.extend(socket::duplicate(slot.fd()).ok());
    }
    let (ours, theirs) = socket::stream_pair()?;
    let directory = plan.current_dir.clone();
    let max_body = plan.max_body;
    let command = plan.command(slot, theirs);
    let started = keeper::spawn_async(command, Terms::default()).await.map_err(|error| explain(error, directory))?;
    let mut worker = Worker {
        child: started.child,
        socket: Socket::new(ours),
        inbox: Inbox::new(max_body),
        outbox: Outbox::default(),
        stdin: started.stdin,
        stdout: started.stdout,
        stderr: started.stderr,
    };
    worker.outbox.push(hello);
    if let Some(first) = first {
        worker.outbox.push(first);
    }
    worker.shake_hands().await?;
    Ok(worker)
}

impl Worker {
    /// Waits for Ready, while what is left of the first words is written.
    async fn shake_hands(&mut self) -> Result<(), SpawnError> {
        let pid = self.child.kept().pid();
        let ready = async {
            let (socket, outbox) = (&self.socket, &mut self.outbox);
            // A worker that can't be written to is about to end, which the read will see.
            let mut writing = std::pin::pin!(socket.when(Ready::Write, || outbox.flush(socket)));
            let mut written = false;
            loop {
                tokio::select! {
                    biased;
                    _ = &mut writing, if !written => written = true,
                    frame = self.inbox.frame(socket) => return frame,
                }
            }
        };
        let exited = self.child.kept().exited();
        let frame = tokio::select! {
            biased;
            frame = ready => frame,
            exit = exited => return Err(SpawnError::Exited { status: exit.status, pid }),
            () = tokio::time::sleep(READY_WITHIN) => return Err(SpawnError::NotReady { pid, after: READY_WITHIN }),
        };
        let refused = |reason: String| SpawnError::Handshake { pid, reason };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            // The socket ends before the process does.
            Ok(None) | Err(RecvError::Truncated) => {
                let exit = self.child.kept().exited();
                return match tokio::time::timeout(READY_WITHIN, exit).await {
                    Ok(exit) => Err(SpawnError::Exited { status: exit.status, pid }),
                    Err(_) => Err(SpawnError::NotReady { pid, after: READY_WITHIN }),
                };
            }
            Err(error) => return Err(refused(error.to_string())),
        };
        match FromWorker::parse(frame) {
            Ok(FromWorker::Ready(_)) => Ok(()),
            Ok(FromWorker::Refused(reason)) => Err(refused(reason)),
            Ok(_) => Err(refused("it did not answer Hello".into())),
            Err(error) => Err(refused(error.to_string())),
        }
    }
}

/// Says which of several causes a failed start has.
fn explain(error: std::io::Error, directory: Option<PathBuf>) -> SpawnError {
    if let Some(path) = directory
        && !path.is_dir()
    {
        return SpawnError::Directory { path, source: error };
    }
    match error.kind() {
        std::io::ErrorKind::NotFound => SpawnError::Executable(error),
        _ => SpawnError::Io(error),
    }
}
