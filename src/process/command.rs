//! What to run: the builder for external programs. Settings that a child makes itself are in `in_child`, starting it is in
//! `launch`, its verbs are in `verbs`.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::input::Input;
use super::program::{EnvChange, Program, is_env_name};
use crate::channel::{ChildEnd, Duplex, for_child};
use crate::sys::limits::Limits;

/// How long a program that was asked to end may take before it is killed, unless [`Command::grace`] says otherwise.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// An external program to run, or a pipeline of several.
///
/// It is built by value and used up by one of its verbs: [`status`](Self::status), [`output`](Self::output),
/// [`run`](Self::run), [`read`](Self::read), or [`spawn`](Self::spawn) for a [`Child`](crate::Child) to talk to.
///
/// The program runs in a process group of its own, with the signal mask of the thread that starts it, as with std; what else
/// belongs to a thread (its priority, its processors, its namespaces, capabilities and seccomp filter) may also be that of a thread
/// of this library's. Its end is the end of its whole group: what it leaves running is killed (see
/// [`kill_on_drop`](Self::kill_on_drop)). Where this process ends without dropping it, by `process::exit` or a signal, say, it goes on.
/// As its group is not the terminal's foreground group, Ctrl-C does not reach it, and the terminal stops it when it reads from there,
/// changes settings, or writes after `stty tostop`.
///
/// Programs are started as `posix_spawn(3)` and `vfork(2)` do it, which costs the same however much memory this process
/// uses; what [needs a fork](#settings-that-need-a-fork) says so.
///
/// # Examples
///
/// ```
/// use multiproc::Command;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), multiproc::CommandError> {
/// let text = Command::new("tr").args(["a-z", "A-Z"]).input("no deadlock").read().await?;
/// assert_eq!(text, "NO DEADLOCK");
/// # Ok(())
/// # }
/// ```
#[must_use = "a command does nothing until one of its verbs runs it"]
#[derive(Debug)]
pub struct Command {
    /// First to last; never empty.
    pub(super) stages: Vec<Stage>,
    pub(super) input: Option<Input>,
    pub(super) timeout: Option<Duration>,
    pub(super) grace: Option<Duration>,
    pub(super) max_output: Option<usize>,
    pub(super) max_line: usize,
    pub(super) kill_on_drop: bool,
    /// Where its stdin is a channel.
    pub(super) channel: Option<ChildEnd>,
}

/// One program.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) program: Arc<Program>,
    pub(super) stdin: Option<Stdio>,
    pub(super) stdout: Option<Stdio>,
    pub(super) stderr: Option<Stdio>,
    pub(super) stderr_to_stdout: bool,
    pub(super) inherited: Vec<(OwnedFd, i32)>,
    pub(super) new_session: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) umask: Option<u32>,
    pub(super) limits: Limits,
    /// What was found wrong with it while it was built.
    pub(super) wrong: Option<String>,
}

impl Command {
    /// A program, by its path, or by a name that is looked up in the `PATH` that it is given.
    ///
    /// A script begins with `#!`. Without that its start fails with `ENOEXEC`, but where it [needs a
    /// fork](#settings-that-need-a-fork): there `/bin/sh` runs it, as with std and `execvp(3)`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let stage = Stage {
            program: Arc::new(Program::new(program.as_ref())),
            stdin: None,
            stdout: None,
            stderr: None,
            stderr_to_stdout: false,
            inherited: Vec::new(),
            new_session: false,
            uid: None,
            gid: None,
            umask: None,
            limits: Limits::default(),
            wrong: None,
        };
        Self {
            stages: vec![stage],
            input: None,
            timeout: None,
            grace: None,
            max_output: None,
            max_line: usize::MAX,
            kill_on_drop: true,
            channel: None,
        }
    }

    /// A script for the shell: `/bin/sh -c script`.
    pub fn shell(script: impl AsRef<OsStr>) -> Self {
        Self::new("/bin/sh").arg("-c").arg(script)
    }

    /// Adds an argument. It arrives as it is: no shell is involved.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.program().args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.program().args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The name that the program finds as its own, instead of what it was started as.
    pub fn arg0(mut self, arg0: impl AsRef<OsStr>) -> Self {
        self.program().arg0 = Some(arg0.as_ref().to_owned());
        self
    }

    /// Sets an environment variable. A name that is empty or has a `=` in it makes every verb fail.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref();
        if !is_env_name(name) {
            self.wrong(format!("\"{}\" can't be the name of an environment variable", name.display()));
        }
        self.program().env.push(EnvChange::Set(name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Removes an environment variable that it would inherit, or that was set before.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.program().env.push(EnvChange::Remove(name.as_ref().to_owned()));
        self
    }

    /// Inherits no environment variable, and forgets those set before.
    pub fn env_clear(mut self) -> Self {
        self.program().env.push(EnvChange::Clear);
        self
    }

    /// The working directory. A program with a relative path is looked for from there.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.program().current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Where stdin comes from; of the first program in a pipeline.
    ///
    /// Otherwise [`spawn`](Self::spawn) and [`status`](Self::status) inherit it, the other verbs give it `/dev/null`.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        if self.channel.is_some() {
            self.wrong("its stdin is a channel and something else".into());
        }
        self.stages[0].stdin = Some(stdin.into());
        self
    }

    /// Where stdout goes; of the last program in a pipeline.
    ///
    /// Otherwise [`spawn`](Self::spawn) and [`status`](Self::status) inherit it, the other verbs capture it.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.last().stdout = Some(stdout.into());
        self
    }

    /// Where stderr goes; as [`stdout`](Self::stdout). A pipeline's programs share what captures it.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.last().stderr = Some(stderr.into());
        self
    }

    /// Sends stderr where stdout goes, with the order of all writes kept.
    ///
    /// Together with an explicit [`stdout`](Self::stdout) this [needs a fork](#settings-that-need-a-fork).
    pub fn stderr_to_stdout(mut self) -> Self {
        self.last().stderr_to_stdout = true;
        self
    }

    /// Feeds this to stdin, then closes it; to the first program's in a pipeline.
    ///
    /// A program that ends, or closes stdin, before it has read everything is no error.
    pub fn input(mut self, input: impl Into<Bytes>) -> Self {
        self.input = Some(Input::bytes(input.into()));
        self
    }

    /// Feeds to stdin what this reader gives, as the program takes it, at most 64 KiB ahead; otherwise as
    /// [`input`](Self::input).
    ///
    /// An error of the reader is the verb's error, and ends the program. Of a [`Child`](crate::Child) it is the error of
    /// whichever method is awaited when it comes: `wait`, `stop`, `communicate`, or an item of `lines`. It is told once, and the
    /// program runs on; the next such call closes stdin and goes on without the rest. A program that must not take what it got for
    /// all of it is to be killed before that, by [`kill`](crate::Child::kill) or by dropping the `Child`.
    pub fn input_from(mut self, reader: impl AsyncRead + Send + Sync + 'static) -> Self {
        self.input = Some(Input::reader(reader));
        self
    }

    /// Gives the program a typed channel as its stdin, and gives us the other end.
    ///
    /// It is for a Rust program that takes its end with [`from_parent::<B, A>()`](crate::from_parent), types the other way
    /// round; it need not be this executable. In a pipeline it is the first program's. What is sent before the start
    /// waits for it. The end of the program and its group, or of this command if nothing runs it, is the end of the channel, once
    /// what it has sent is received; also where a daemon has the other end from it, as long as our end is in this process. What it
    /// leaves running with [`kill_on_drop(false)`](Self::kill_on_drop) keeps the channel.
    ///
    /// # Errors
    ///
    /// If the system gives no sockets, most often because this process has as many open files as it may.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let (plugin, mut requests) = multiproc::Command::new("my-plugin").duplex::<String, u64>()?;
    /// let plugin = plugin.spawn()?;
    /// requests.send("how many?".into()).await?;
    /// let answer: Option<u64> = requests.recv().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn duplex<A, B>(self) -> io::Result<(Self, Duplex<A, B>)> {
        let (ours, theirs, end) = for_child()?;
        let mut command = self.stdin(theirs);
        command.channel = Some(end);
        Ok((command, ours))
    }

    /// How long it may take, from the call of the verb that starts it: what the start takes counts, too, and so does the wait for
    /// others' starts where hundreds come at once. Then its group gets SIGTERM, and after the [`grace`](Self::grace) SIGKILL, and
    /// the verb fails with [`CommandError::TimedOut`](crate::CommandError::TimedOut), which has the output until then.
    ///
    /// A spawned [`Child`](crate::Child) keeps to it while one of its async methods is awaited. A program that runs as another
    /// user and may not be killed, `sudo` say, is left behind when it is due to be; the error then has the reason.
    /// It is a timer of tokio's: where that clock is paused, as in tests, it jumps to the timeout although the program runs.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long it may take to end after a SIGTERM, before it is killed; zero kills at once.
    ///
    /// It is for a program that runs into its [`timeout`](Self::timeout), and for one whose [`Child`](crate::Child) or verb's future
    /// is dropped. Default: 1 s after a timeout, and none after a drop.
    ///
    /// After a drop, the pipes that captured output are gone: a program that still prints gets a SIGPIPE. And if this process ends
    /// within the grace, nobody kills the program any more.
    ///
    /// The grace is the whole group's. If the program ends sooner, it goes on until nobody is left in the group, and what the verb
    /// gives comes then. Where /proc does not show every process, a zombie that nobody reaps counts as one that is left. With a
    /// kernel before Linux 6.9 the program's end is the end of the grace.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// How much it may write to captured stdout and stderr together, in bytes. At one more its group is killed, and the verb
    /// fails with [`CommandError::TooLarge`](crate::CommandError::TooLarge), which has what was read.
    ///
    /// Without it only memory bounds what `output` and its kin collect.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = Some(bytes);
        self
    }

    /// The longest line, in bytes and without its end, that [`Child::lines`](crate::Child::lines) and its kin take in; only memory
    /// bounds it otherwise.
    pub fn max_line(mut self, bytes: usize) -> Self {
        self.max_line = bytes;
        self
    }

    /// Whether the end of its [`Child`](crate::Child), or of a verb's future, and its own end kill its group; `true` unless
    /// set.
    ///
    /// With `false`, what it starts in the background outlives it, too. A `Child` that is dropped in a copy of this process, made
    /// by fork(2), kills nothing.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kill_on_drop = kill;
        self
    }

    /// Sends this command's stdout into `next`'s stdin.
    ///
    /// The settings of a single program (arguments, environment, stderr, and so on) are those that it had before; what is
    /// set afterwards is the last program's, but for `stdin` and `input`, which are the first's. Each program has a process
    /// group of its own; signals go to all of them. `timeout`, `grace` and `max_output` are the whole pipeline's, and
    /// `next`'s count where this one has none. What a program but the last leaves running is killed at that program's end: it has
    /// no time to write on.
    ///
    /// Its status is 0 if every program's is; otherwise that of the first that failed. To be ended by SIGPIPE, because the
    /// next one has read enough, is no failure but for the last.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::Command;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), multiproc::CommandError> {
    /// let top = Command::new("yes").arg("so on").pipe(Command::new("head").args(["-n", "2"])).read().await?;
    /// assert_eq!(top, "so on\nso on");
    /// # Ok(())
    /// # }
    /// ```
    pub fn pipe(mut self, next: Self) -> Self {
        if self.last().stdout.is_some() {
            self.wrong("its stdout goes into a pipe and elsewhere".into());
        }
        if next.stages[0].stdin.is_some() || next.input.is_some() {
            self.wrong("what reads from a pipe has another stdin".into());
        }
        self.stages.extend(next.stages);
        self.timeout = self.timeout.or(next.timeout);
        self.grace = self.grace.or(next.grace);
        self.max_output = self.max_output.or(next.max_output);
        self.max_line = self.max_line.min(next.max_line);
        self.kill_on_drop &= next.kill_on_drop;
        self
    }

    pub(super) fn last(&mut self) -> &mut Stage {
        self.stages.last_mut().expect("a command has at least one program")
    }

    fn program(&mut self) -> &mut Program {
        Arc::make_mut(&mut self.last().program)
    }

    pub(super) fn wrong(&mut self, reason: String) {
        self.last().wrong.get_or_insert(reason);
    }
}

impl Stage {
    /// Whether a start takes nothing from it that another would need.
    pub(super) fn can_start_again(&self) -> bool {
        self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none() && self.inherited.is_empty()
    }

    pub(super) fn name(&self) -> String {
        self.program.name.display().to_string()
    }
}

impl fmt::Display for Command {
    /// Its programs and their arguments, for people: not quoted for a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, stage) in self.stages.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{}", stage.program.name.display())?;
            for arg in &stage.program.args {
                write!(f, " {}", arg.display())?;
            }
        }
        Ok(())
    }
}
