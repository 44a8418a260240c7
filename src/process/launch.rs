//! From a `Command` to running programs: who gets which end of which pipe, what std is told, and whose fault a failure is.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Access;
use rustix::pipe::{PipeFlags, pipe_with};

use super::command::{Command, EnvChange, Stage};
use super::keeper::{self, DRAIN, Started, Terms};
use super::kept::KillOnDrop;
use crate::error::CommandError;
use crate::sys::in_child::InChild;
use crate::sys::socket::above_stdio;

/// What a verb wants of the streams that the command says nothing about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unset {
    Inherit,
    /// Output is captured, and stdin is empty.
    Capture,
}

/// Programs that run, first to last, and our ends of their pipes.
pub(super) struct Launched {
    pub(super) members: Vec<(String, KillOnDrop)>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<Arc<OwnedFd>>,
    pub(super) stderr: Option<Arc<OwnedFd>>,
}

/// Starts all programs on this thread.
pub(super) fn launch_here(command: &mut Command, unset: Unset) -> Result<Launched, CommandError> {
    let mut launched = Launched::nothing();
    for ready in prepare(command, unset)? {
        let started = keeper::spawn(ready.command, ready.terms).map_err(|error| ready.place.explain(error))?;
        launched.add(&ready.place, started)?;
    }
    Ok(launched)
}

/// Starts all programs on the keeper's thread. Dropping it leaves none of them.
pub(super) async fn launch(command: &mut Command, unset: Unset) -> Result<Launched, CommandError> {
    let mut launched = Launched::nothing();
    for ready in prepare(command, unset)? {
        let started = keeper::spawn_async(ready.command, ready.terms).await;
        launched.add(&ready.place, started.map_err(|error| ready.place.explain(error))?)?;
    }
    Ok(launched)
}

impl Launched {
    fn nothing() -> Self {
        Self { members: Vec::new(), stdin: None, stdout: None, stderr: None }
    }

    fn add(&mut self, place: &Place, started: Started) -> Result<(), CommandError> {
        if !place.last && started.stderr.is_some() {
            let reason =
                "the stderr of a program within a pipeline can't be piped alone; leave it to be captured".into();
            return Err(CommandError::Invalid { reason });
        }
        self.members.push((place.program.display().to_string(), started.child));
        self.stdin = self.stdin.take().or(started.stdin);
        self.stdout = started.stdout;
        self.stderr = started.stderr;
        Ok(())
    }
}

/// A program that std can start.
struct Ready {
    place: Place,
    command: std::process::Command,
    terms: Terms,
}

/// What has to be known of a program to say why it did not start.
struct Place {
    program: OsString,
    /// Where a bare name is looked for, if that is not our own `PATH`.
    path: Option<OsString>,
    current_dir: Option<PathBuf>,
    last: bool,
}

fn prepare(command: &mut Command, unset: Unset) -> Result<Vec<Ready>, CommandError> {
    check(command)?;
    let count = command.stages.len();
    // One pipe for the stderr of all; each program gets a copy of its write end.
    let shared_stderr = if count > 1 && unset == Unset::Capture { Some(pipe(&command.stages[0])?) } else { None };
    let mut upstream: Option<OwnedFd> = None;
    let mut all = Vec::with_capacity(count);
    for (index, stage) in command.stages.iter_mut().enumerate() {
        let last = index + 1 == count;
        let place = Place {
            program: stage.program.clone(),
            path: stage.changed_path(),
            current_dir: stage.current_dir.clone(),
            last,
        };
        let fail = |error| place.explain(error);
        let mut std = stage.to_std(place.path.as_deref());
        let mut merge_in_child = false;
        let mut terms = Terms {
            // Only the last one's output comes to us.
            drain: if last { DRAIN } else { Duration::ZERO },
            spare_group: !command.kill_on_drop,
            ..Terms::default()
        };

        std.stdin(match (upstream.take(), stage.stdin.take()) {
            (Some(pipe), _) => Stdio::from(pipe),
            (None, Some(given)) => given,
            (None, None) if command.input.is_some() => Stdio::piped(),
            (None, None) if unset == Unset::Inherit => Stdio::inherit(),
            (None, None) => Stdio::null(),
        });
        // Our own pipe, where one write end is not enough or does not come to us.
        let mut written = None;
        let given = stage.stdout.take();
        if !last || (stage.stderr_to_stdout && given.is_none() && unset == Unset::Capture) {
            let (read, write) = pipe(stage)?;
            if last {
                terms.stdout = Some(read);
            } else {
                upstream = Some(read);
            }
            std.stdout(write.try_clone().map_err(fail)?);
            written = Some(write);
        } else if let Some(given) = given {
            merge_in_child = stage.stderr_to_stdout;
            std.stdout(given);
        } else {
            std.stdout(if unset == Unset::Inherit { Stdio::inherit() } else { Stdio::piped() });
        }

        match (stage.stderr_to_stdout, stage.stderr.take()) {
            (true, _) if merge_in_child => {}
            (true, _) => _ = std.stderr(written.map_or_else(|| Stdio::from(io::stdout()), Stdio::from)),
            (false, Some(given)) => _ = std.stderr(given),
            (false, None) => match (&shared_stderr, unset) {
                (Some((_, write)), _) => _ = std.stderr(write.try_clone().map_err(fail)?),
                (None, Unset::Capture) => _ = std.stderr(Stdio::piped()),
                (None, Unset::Inherit) => {}
            },
        }
        let in_child = InChild {
            new_session: stage.new_session,
            stderr_to_stdout: merge_in_child,
            inherited: std::mem::take(&mut stage.inherited),
            umask: stage.umask,
            limits: stage.limits,
        };
        in_child.install(&mut std).map_err(fail)?;
        all.push(Ready { place, command: std, terms });
    }
    if let (Some((read, _)), Some(last)) = (shared_stderr, all.last_mut()) {
        last.terms.stderr = Some(read);
    }
    Ok(all)
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

impl Stage {
    fn to_std(&self, changed_path: Option<&OsStr>) -> std::process::Command {
        // std leaves posix_spawn to search a changed PATH; an absolute path needs no search.
        let found = changed_path.and_then(|path| find(&self.program, path));
        let mut std = std::process::Command::new(found.as_deref().map_or(self.program.as_os_str(), Path::as_os_str));
        if let Some(arg0) = self.arg0.as_ref().or(found.is_some().then_some(&self.program)) {
            std.arg0(arg0);
        }
        std.args(&self.args);
        for change in &self.env {
            match change {
                EnvChange::Clear => std.env_clear(),
                EnvChange::Set(name, value) => std.env(name, value),
                EnvChange::Remove(name) => std.env_remove(name),
            };
        }
        if let Some(dir) = &self.current_dir {
            std.current_dir(dir);
        }
        if let Some(uid) = self.uid {
            std.uid(uid);
        }
        if let Some(gid) = self.gid {
            std.gid(gid);
        }
        if !self.new_session {
            std.process_group(0);
        }
        std
    }

    /// The `PATH` that the program gets, if that is not ours.
    fn changed_path(&self) -> Option<OsString> {
        self.env.iter().fold(None, |path, change| match change {
            EnvChange::Set(name, value) if name == "PATH" => Some(value.clone()),
            EnvChange::Remove(name) if name != "PATH" => path,
            EnvChange::Set(..) => path,
            // What exec(3) searches where there is no PATH.
            EnvChange::Clear | EnvChange::Remove(_) => Some("/bin:/usr/bin".into()),
        })
    }
}

/// Looks a bare name up in a `PATH`; `None` also where that depends on the working directory.
fn find(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return None;
    }
    for dir in std::env::split_paths(path) {
        if !dir.is_absolute() {
            return None;
        }
        let file = dir.join(program);
        if file.is_file() && rustix::fs::access(&file, Access::EXEC_OK).is_ok() {
            return Some(file);
        }
    }
    None
}

impl Place {
    /// Names what is at fault: the working directory, the interpreter of a script, or the program.
    fn explain(&self, error: io::Error) -> CommandError {
        let program = self.program.display().to_string();
        let vague = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
        );
        if !vague {
            return CommandError::Spawn { program, source: error };
        }
        if let Some(dir) = &self.current_dir
            && let Err(source) = can_enter(dir)
        {
            return CommandError::Spawn { program: dir.display().to_string(), source };
        }
        // Searching stops nowhere, and says "permission denied" if that's what one of the directories said.
        if error.kind() == io::ErrorKind::PermissionDenied && !self.program.as_bytes().contains(&b'/') {
            let path = self.path.clone().or_else(|| std::env::var_os("PATH")).unwrap_or_default();
            if !std::env::split_paths(&path).any(|dir| dir.join(&self.program).exists()) {
                return CommandError::Spawn { program, source: rustix::io::Errno::NOENT.into() };
            }
        }
        let file = self.current_dir.as_deref().unwrap_or(Path::new("")).join(&self.program);
        if error.kind() == io::ErrorKind::NotFound && self.program.as_bytes().contains(&b'/') && file.exists() {
            let source = io::Error::new(io::ErrorKind::NotFound, "the interpreter that it needs does not exist");
            return CommandError::Spawn { program, source };
        }
        CommandError::Spawn { program, source: error }
    }
}

fn can_enter(dir: &Path) -> io::Result<()> {
    if !std::fs::metadata(dir)?.is_dir() {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    Ok(rustix::fs::access(dir, Access::EXEC_OK)?)
}
