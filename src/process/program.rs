//! A program to start, its arguments, environment and directory; and the two ways to start one: our own, and std's where only
//! std knows what a stream is to be. How the streams are to be connected is for others to say, and keeping what was started is
//! the keeper's business.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::Access;

use crate::sys::in_child::InChild;
use crate::sys::spawn::{self, Cradle, Exec, Fate, Strings};
use crate::sys::stdio::StdioHeld;

#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    pub(super) name: OsString,
    /// What it is told its name is, if that is not the name.
    pub(super) arg0: Option<OsString>,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<EnvChange>,
    pub(super) current_dir: Option<PathBuf>,
    /// Whether it is a worker of ours.
    pub(super) worker: bool,
}

/// How its environment differs from ours, one step after the other.
#[derive(Clone, Debug)]
pub(crate) enum EnvChange {
    Clear,
    Set(OsString, OsString),
    Remove(OsString),
}

/// Whether something can be the name of an environment variable. What is none would get lost on the way, or mean another.
pub(super) fn is_env_name(name: &OsStr) -> bool {
    !name.is_empty() && !name.as_bytes().contains(&b'=')
}

/// What exec(3) searches where there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Program {
    pub(super) fn new(name: impl Into<OsString>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// For std to start it, in a process group of its own.
    pub(super) fn to_std(&self, [stdin, stdout, stderr]: [Stdio; 3], in_child: InChild) -> io::Result<Command> {
        // std leaves posix_spawn to search a changed PATH; an absolute path needs no search.
        let found = self.changed_path().and_then(|path| find(&self.name, &path));
        let mut std = Command::new(found.as_deref().map_or(self.name.as_os_str(), Path::as_os_str));
        if found.is_some() {
            std.arg0(&self.name);
        }
        std.args(&self.args).stdin(stdin).stdout(stdout).stderr(stderr);
        self.configure(&mut std);
        // The leader of a group can't open a session.
        if !in_child.new_session {
            std.process_group(0);
        }
        in_child.install(&mut std)?;
        Ok(std)
    }

    /// Sets all but its name and arguments; once or again.
    pub(super) fn configure(&self, std: &mut Command) {
        if let Some(arg0) = &self.arg0 {
            std.arg0(arg0);
        }
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
    }

    /// The `PATH` that the program gets, if that is not ours.
    pub(super) fn changed_path(&self) -> Option<OsString> {
        self.env.iter().fold(None, |path, change| match change {
            EnvChange::Set(name, value) if name == "PATH" => Some(value.clone()),
            EnvChange::Remove(name) if name != "PATH" => path,
            EnvChange::Set(..) => path,
            EnvChange::Clear | EnvChange::Remove(_) => Some(DEFAULT_PATH.into()),
        })
    }

    /// All of it as exec(3) takes it. A NUL in it is `InvalidInput`.
    fn to_exec(&self) -> io::Result<Exec> {
        let mut args = Strings::default();
        for arg in [self.arg0.as_ref().unwrap_or(&self.name)].into_iter().chain(&self.args) {
            args.push(&[arg.as_bytes()])?;
        }
        let current_dir = self.current_dir.as_ref().map(|dir| CString::new(dir.as_os_str().as_bytes())).transpose()?;
        Ok(Exec { paths: self.paths()?, args, env: self.environment()?, current_dir, worker: self.worker })
    }

    /// Where it may be. A bare name is looked for along the `PATH`, of which an empty piece is the working directory.
    fn paths(&self) -> io::Result<Strings> {
        let mut paths = Strings::default();
        let name = self.name.as_bytes();
        if name.is_empty() || name.contains(&b'/') {
            paths.push(&[name])?;
            return Ok(paths);
        }
        for dir in self.path().as_bytes().split(|byte| *byte == b':') {
            if dir.is_empty() { paths.push(&[name]) } else { paths.push(&[dir, b"/", name]) }?;
        }
        Ok(paths)
    }

    /// Whether there is such a file, in the one place where it may be or along the path.
    pub(super) fn exists(&self) -> bool {
        let dir = self.current_dir.as_deref().unwrap_or(Path::new(""));
        match self.name.as_bytes() {
            b"" => false,
            name if name.contains(&b'/') => dir.join(&self.name).exists(),
            _ => std::env::split_paths(&self.path()).any(|folder| dir.join(folder).join(&self.name).exists()),
        }
    }

    /// The `PATH` that it is looked for along.
    fn path(&self) -> OsString {
        self.changed_path().or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into())
    }

    /// `None`: ours.
    fn environment(&self) -> io::Result<Option<Strings>> {
        if self.env.is_empty() {
            return Ok(None);
        }
        let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for change in &self.env {
            match change {
                EnvChange::Clear => env.clear(),
                EnvChange::Set(name, value) => _ = env.insert(name.clone(), value.clone()),
                EnvChange::Remove(name) => _ = env.remove(name),
            }
        }
        let mut strings = Strings::default();
        strings.reserve(env.len());
        env.iter().try_for_each(|(name, value)| strings.push_var(name, value))?;
        Ok(Some(strings))
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

/// How a child is started: a command, or something that owns one.
pub(super) trait Launch: Send {
    /// Starts it. It may be asked again after an error.
    fn launch(&mut self) -> io::Result<Born>;

    /// Whether the next start takes microseconds, because it waits for nothing.
    fn is_quick(&mut self) -> bool {
        false
    }
}

impl Launch for Command {
    fn launch(&mut self) -> io::Result<Born> {
        spawn_std(self)
    }
}

/// A child that nobody keeps yet.
pub(super) struct Born {
    pub(super) pid: u32,
    /// Where it was born with one.
    pub(super) pidfd: Option<OwnedFd>,
    /// Whether it ever was its program, where that was not waited for.
    pub(super) fate: Option<Fate>,
    /// Our ends of the pipes that were made for its stdin, stdout and stderr.
    pub(super) ends: [Option<OwnedFd>; 3],
}

impl Born {
    fn new(child: spawn::Child, fate: Option<Fate>) -> Self {
        Self { pid: child.pid, pidfd: Some(child.pidfd), fate, ends: [None, None, None] }
    }
}

/// Has std start a program.
pub(super) fn spawn_std(command: &mut Command) -> io::Result<Born> {
    let _held = StdioHeld::new()?;
    // Where it can't stay on posix_spawn, std asserts that it could wait for a child whose exec failed, which is not so
    // when SIGCHLD is ignored.
    let child = catch_unwind(AssertUnwindSafe(|| command.spawn()))
        .unwrap_or_else(|_| Err(io::Error::other("the program could not be started, and why is lost")))?;
    let pid = child.id();
    let ends = [child.stdin.map(OwnedFd::from), child.stdout.map(OwnedFd::from), child.stderr.map(OwnedFd::from)];
    Ok(Born { pid, pidfd: None, fate: None, ends })
}

/// A program whose streams are all inherited or files that are known here.
#[derive(Debug)]
pub(super) struct Plain {
    program: Arc<Program>,
    /// What becomes 0, 1 and 2; `None` is inherited.
    stdio: [Option<OwnedFd>; 3],
    in_child: InChild,
    /// Whether to wait until it is the program.
    waits: bool,
    /// For a start that waits for nothing.
    cradle: Option<Cradle>,
    /// Where it has turned out that only std can start it.
    std: Option<Command>,
}

impl Plain {
    /// None of `stdio` may be 0, 1 or 2.
    pub(super) fn new(program: Arc<Program>, stdio: [Option<OwnedFd>; 3], mut in_child: InChild) -> io::Result<Self> {
        in_child.move_sources()?;
        Ok(Self { program, stdio, in_child, waits: true, cradle: None, std: None })
    }

    /// Lets it be started without waiting until it is the program: that it could not is then known once it has ended, from
    /// [`Kept::start_error`](super::kept::Kept::start_error).
    pub(super) fn ahead(self) -> Self {
        let waits = !self.in_child.is_empty();
        Self { waits, ..self }
    }

    fn take_cradle(&mut self) -> bool {
        if !self.waits && self.std.is_none() && self.cradle.is_none() {
            self.cradle = Cradle::free();
        }
        self.cradle.is_some()
    }

    fn spawn(&mut self) -> io::Result<Born> {
        self.take_cradle();
        let stdio = self.stdio.each_ref().map(|fd| fd.as_ref().map(|fd| fd.as_fd()));
        let exec = self.program.to_exec()?;
        Ok(match self.cradle.take() {
            Some(cradle) => {
                let (child, fate) = cradle.spawn(exec, stdio)?;
                Born::new(child, Some(fate))
            }
            None => Born::new(spawn::spawn(&exec, stdio, &self.in_child)?, None),
        })
    }
}

impl Launch for Plain {
    fn launch(&mut self) -> io::Result<Born> {
        if let Some(std) = &mut self.std {
            return spawn_std(std);
        }
        match self.spawn() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let stdio = mem::take(&mut self.stdio).map(|fd| fd.map_or_else(Stdio::inherit, Stdio::from));
                let std = self.program.to_std(stdio, mem::take(&mut self.in_child))?;
                spawn_std(self.std.insert(std))
            }
            result => result,
        }
    }

    fn is_quick(&mut self) -> bool {
        Cradle::works() && self.take_cradle()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn texts(strings: io::Result<Strings>) -> Vec<String> {
        strings.unwrap().iter().map(|string| string.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_bare_name_is_looked_for_along_the_path_that_the_program_gets() {
        let mut program = Program::new("prog");
        let ours = std::env::var("PATH").unwrap();
        assert_eq!(texts(program.paths()).len(), ours.split(':').count());
        program.env.push(EnvChange::Set("PATH".into(), "/a:/b/::c".into()));
        assert_eq!(texts(program.paths()), ["/a/prog", "/b//prog", "prog", "c/prog"]);
        program.env.push(EnvChange::Clear);
        assert_eq!(texts(program.paths()), ["/bin/prog", "/usr/bin/prog"]);
        for name in ["dir/prog", "/prog", "./prog", ""] {
            assert_eq!(texts(Program { name: name.into(), ..program.clone() }.paths()), [name]);
        }
    }

    #[test]
    fn the_environment_changes_step_by_step() {
        let mut program = Program::new("prog");
        assert!(program.environment().unwrap().is_none());
        let set = |name: &str, value: &str| EnvChange::Set(name.into(), value.into());
        program.env = vec![set("LOST", "1"), EnvChange::Clear, set("B", "1"), set("A", "x=y"), set("C", "3")];
        program.env.extend([set("B", ""), EnvChange::Remove("C".into()), EnvChange::Remove("D".into())]);
        assert_eq!(texts(program.environment().map(Option::unwrap)), ["A=x=y", "B="]);
    }

    #[test]
    fn a_nul_is_invalid_input_wherever_it_is() {
        let nul = || OsString::from_vec(b"a\0b".to_vec());
        let with = |change: fn(&mut Program, OsString)| {
            let mut program = Program::new("prog");
            change(&mut program, nul());
            program.to_exec().unwrap_err().kind()
        };
        assert_eq!(with(|program, nul| program.name = nul), io::ErrorKind::InvalidInput);
        assert_eq!(with(|program, nul| program.arg0 = Some(nul)), io::ErrorKind::InvalidInput);
        assert_eq!(with(|program, nul| program.args.push(nul)), io::ErrorKind::InvalidInput);
        assert_eq!(with(|program, nul| program.env.push(EnvChange::Set("A".into(), nul))), io::ErrorKind::InvalidInput);
        assert_eq!(with(|program, nul| program.current_dir = Some(nul.into())), io::ErrorKind::InvalidInput);
    }
}
