//! From a `Command` to running programs: who gets which end of which pipe, who starts it, and whose fault a failure is.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getegid, geteuid};

use super::command::{Command, Stage};
use super::keeper::{self, DRAIN, Started, Terms};
use super::kept::KillOnDrop;
use super::program::{Launch, Plain, Program};
use crate::error::CommandError;
use crate::sys::in_child::InChild;
use crate::sys::socket::{above_stdio, duplicate};

/// What a verb wants of the streams that the command says nothing about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unset {
    Inherit,
    /// Output is captured, and stdin is empty.
    Capture,
}

/// Whether a start's failure is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    UntilStarted,
    /// It is known once the child has ended, if there was anything to go ahead with.
    NotAtAll,
}

/// Programs that run, first to last, and our ends of their pipes.
pub(super) struct Launched {
    pub(super) members: Vec<(Place, KillOnDrop)>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<Arc<OwnedFd>>,
    pub(super) stderr: Option<Arc<OwnedFd>>,
}

/// Starts all programs on this thread.
pub(super) fn launch_here(command: &mut Command, unset: Unset) -> Result<Launched, CommandError> {
    let mut launched = Launched::nothing();
    for ready in prepare(command, unset, Wait::UntilStarted)? {
        let started = keeper::spawn(ready.launch, ready.terms).map_err(|error| ready.place.explain(error))?;
        launched.add(ready.place, started)?;
    }
    Ok(launched)
}

/// Starts all programs, and holds up no thread of a runtime. Dropping it leaves none of them.
pub(super) async fn launch(command: &mut Command, unset: Unset, wait: Wait) -> Result<Launched, CommandError> {
    let mut launched = Launched::nothing();
    for ready in prepare(command, unset, wait)? {
        let started =
            keeper::spawn_async(ready.launch, ready.terms).await.map_err(|error| ready.place.explain(error))?;
        launched.add(ready.place, started)?;
    }
    Ok(launched)
}

impl Launched {
    fn nothing() -> Self {
        Self { members: Vec::new(), stdin: None, stdout: None, stderr: None }
    }

    fn add(&mut self, place: Place, started: Started) -> Result<(), CommandError> {
        if !place.last && started.stderr.is_some() {
            let reason =
                "the stderr of a program within a pipeline can't be piped alone; leave it to be captured".into();
            return Err(CommandError::Invalid { reason });
        }
        self.members.push((place, started.child));
        self.stdin = self.stdin.take().or(started.stdin);
        self.stdout = started.stdout;
        self.stderr = started.stderr;
        Ok(())
    }
}

/// A program that can be started.
struct Ready {
    place: Place,
    launch: Box<dyn Launch>,
    terms: Terms,
}

/// What has to be known of a program to say why it did not start.
#[derive(Debug)]
pub(super) struct Place {
    program: Arc<Program>,
    /// The user and the group that it is to run as.
    user: (Option<u32>, Option<u32>),
    last: bool,
}

/// What becomes of one of a program's streams.
enum Stream {
    Inherited,
    Fd(OwnedFd),
    /// What the caller gave; only std can tell what it is.
    Given(Stdio),
}

fn prepare(command: &mut Command, unset: Unset, wait: Wait) -> Result<Vec<Ready>, CommandError> {
    check(command)?;
    let count = command.stages.len();
    // One pipe for the stderr of all; each program gets a copy of its write end.
    let shared_stderr = if count > 1 && unset == Unset::Capture { Some(pipe(&command.stages[0])?) } else { None };
    let mut upstream: Option<OwnedFd> = None;
    let mut all = Vec::with_capacity(count);
    for (index, stage) in command.stages.iter_mut().enumerate() {
        let last = index + 1 == count;
        let place = Place { program: Arc::clone(&stage.program), user: (stage.uid, stage.gid), last };
        let fail = |error| place.explain(error);
        let mut terms = Terms {
            // Only the last one's output comes to us.
            drain: if last { DRAIN } else { Duration::ZERO },
            spare_group: !command.kill_on_drop,
            channel: if index == 0 { command.channel.clone() } else { None },
            ..Terms::default()
        };

        let stdin = match (upstream.take(), stage.stdin.take()) {
            (Some(pipe), _) => Stream::Fd(pipe),
            (None, Some(given)) => Stream::Given(given),
            (None, None) if command.input.is_some() => {
                let (read, write) = pipe(stage)?;
                terms.stdin = Some(write);
                Stream::Fd(read)
            }
            (None, None) if unset == Unset::Inherit => Stream::Inherited,
            (None, None) => Stream::Fd(null().map_err(fail)?),
        };
        let stdout = match stage.stdout.take() {
            Some(given) if last => Stream::Given(given),
            None if last && unset == Unset::Inherit => Stream::Inherited,
            _ => {
                let (read, write) = pipe(stage)?;
                if last {
                    terms.stdout = Some(read);
                } else {
                    upstream = Some(read);
                }
                Stream::Fd(write)
            }
        };
        let mut merge_in_child = false;
        let stderr = match (stage.stderr_to_stdout, stage.stderr.take()) {
            (true, _) => match &stdout {
                Stream::Inherited => Stream::Fd(stdout_or_null().map_err(fail)?),
                Stream::Fd(write) => Stream::Fd(duplicate(write).map_err(fail)?),
                Stream::Given(_) => {
                    merge_in_child = true;
                    Stream::Inherited
                }
            },
            (false, Some(given)) => Stream::Given(given),
            (false, None) => match (&shared_stderr, unset) {
                (Some((_, write)), _) => Stream::Fd(duplicate(write).map_err(fail)?),
                (None, Unset::Capture) => {
                    let (read, write) = pipe(stage)?;
                    terms.stderr = Some(read);
                    Stream::Fd(write)
                }
                (None, Unset::Inherit) => Stream::Inherited,
            },
        };
        let in_child = InChild {
            new_session: stage.new_session,
            stderr_to_stdout: merge_in_child,
            inherited: std::mem::take(&mut stage.inherited),
            umask: stage.umask,
            limits: stage.limits,
        };
        let launch = stage.launch([stdin, stdout, stderr], in_child, wait).map_err(fail)?;
        all.push(Ready { place, launch, terms });
    }
    if let (Some((read, _)), Some(last)) = (shared_stderr, all.last_mut()) {
        last.terms.stderr = Some(read);
    }
    Ok(all)
}

impl Stage {
    /// Chooses who starts it: std, if it wants something that only std can do.
    fn launch(&self, streams: [Stream; 3], in_child: InChild, wait: Wait) -> io::Result<Box<dyn Launch>> {
        let other_user = self.uid.is_some() || self.gid.is_some();
        if !other_user && !streams.iter().any(|stream| matches!(stream, Stream::Given(_))) {
            let stdio = streams.map(|stream| if let Stream::Fd(fd) = stream { Some(fd) } else { None });
            let plain = Plain::new(Arc::clone(&self.program), stdio, in_child)?;
            return Ok(Box::new(if wait == Wait::NotAtAll { plain.ahead() } else { plain }));
        }
        let stdio = streams.map(|stream| match stream {
            Stream::Inherited => Stdio::inherit(),
            Stream::Fd(fd) => fd.into(),
            Stream::Given(given) => given,
        });
        let mut std = self.program.to_std(stdio, in_child)?;
        if let Some(uid) = self.uid {
            std.uid(uid);
        }
        if let Some(gid) = self.gid {
            std.gid(gid);
        }
        Ok(Box::new(std))
    }
}

/// A copy of our stdout. Where that is closed there is none, and what is written goes nowhere.
fn stdout_or_null() -> io::Result<OwnedFd> {
    match duplicate(io::stdout()) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => null(),
        copy => copy,
    }
}

fn null() -> io::Result<OwnedFd> {
    above_stdio(rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn check(command: &Command) -> Result<(), CommandError> {
    let invalid = |reason: &str| Err(CommandError::Invalid { reason: reason.into() });
    for stage in &command.stages {
        if let Some(wrong) = &stage.wrong {
            return invalid(&format!("{}: {wrong}", stage.name()));
        }
        if stage.stderr_to_stdout && stage.stderr.is_some() {
            return invalid(&format!("{}: its stderr goes to stdout and elsewhere", stage.name()));
        }
    }
    if command.input.is_some() && command.stages[0].stdin.is_some() {
        return invalid("it has both an input and another stdin");
    }
    Ok(())
}

fn pipe(stage: &Stage) -> Result<(OwnedFd, OwnedFd), CommandError> {
    let make = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((above_stdio(read)?, above_stdio(write)?))
    };
    make().map_err(|source| CommandError::Spawn { program: stage.name(), source })
}

impl Place {
    pub(super) fn name(&self) -> String {
        self.program.name.display().to_string()
    }

    /// Names what is at fault: the working directory, the interpreter of a script, or the program.
    pub(super) fn explain(&self, mut error: io::Error) -> CommandError {
        let program = self.name();
        let vague = [libc::ENOENT, libc::ENOTDIR, libc::EACCES, libc::ELOOP, libc::ENAMETOOLONG];
        if !error.raw_os_error().is_some_and(|code| vague.contains(&code)) {
            return CommandError::Spawn { program, source: error };
        }
        if let Some(dir) = &self.program.current_dir
            && let Err(source) = self.can_enter(dir)
        {
            let nameless = dir.as_os_str().is_empty();
            let dir = if nameless { "a working directory without a name".into() } else { dir.display().to_string() };
            return CommandError::Spawn { program: dir, source };
        }
        // Searching stops nowhere, and says "permission denied" if that's what one of the directories said.
        let exists = self.program.exists();
        if error.kind() == io::ErrorKind::PermissionDenied && !self.program.name.as_bytes().contains(&b'/') && !exists {
            error = rustix::io::Errno::NOENT.into();
        }
        if error.kind() == io::ErrorKind::NotFound && exists {
            let source = io::Error::new(io::ErrorKind::NotFound, "the interpreter that it needs does not exist");
            return CommandError::Spawn { program, source };
        }
        if error.kind() == io::ErrorKind::NotFound && program.contains(' ') {
            let reason =
                "no program has that name (arguments are given by `.arg(..)`, and `Command::shell` takes a whole line)";
            return CommandError::Spawn { program, source: io::Error::new(io::ErrorKind::NotFound, reason) };
        }
        CommandError::Spawn { program, source: error }
    }

    fn can_enter(&self, dir: &Path) -> io::Result<()> {
        if !std::fs::metadata(dir)?.is_dir() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
        rustix::fs::access(dir, Access::EXEC_OK)?;
        match self.user {
            (None, None) => Ok(()),
            (uid, gid) if lets_in(dir, uid, gid)? => Ok(()),
            _ => Err(rustix::io::Errno::ACCESS.into()),
        }
    }
}

/// Whether permissions let another user into a folder, and into those above it; access(2) does not tell.
fn lets_in(dir: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<bool> {
    let (uid, gid) = (uid.unwrap_or(geteuid().as_raw()), gid.unwrap_or(getegid().as_raw()));
    for folder in dir.canonicalize()?.ancestors() {
        let found = folder.metadata()?;
        let (owner, group) = (found.uid() == uid, found.gid() == gid);
        let bit = if owner {
            0o100
        } else if group {
            0o010
        } else {
            0o001
        };
        if uid != 0 && found.mode() & bit == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
