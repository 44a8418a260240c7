//! A running program, or pipeline: its pipes, its end, and its signals. How the talk with it goes is in `exchange`.

use std::io;
use std::process::{ExitStatus, Output};
use std::time::Duration;

use tokio::time::Instant;

use super::command::{Command, GRACE};
use super::exchange::{Exchange, Pipes, Want};
use super::kept::{Exit, Kept, KillOnDrop};
use super::launch::{Launched, Place};
use super::phase::{Event, Phase, Signal, Why};
use super::pipes::{ChildStderr, ChildStdin, ChildStdout};
use crate::error::CommandError;
use crate::sys::process::Usage;

/// A running program, or pipeline, that [`Command::spawn`](crate::Command::spawn) started.
///
/// Dropping it kills its whole process group, without waiting; it is reaped in any case, whether somebody waits for it or
/// not, and whatever becomes of the runtime. See [`Command::kill_on_drop`](crate::Command::kill_on_drop), and
/// [`Command::grace`](crate::Command::grace) for SIGTERM first.
///
/// Its end and the end of its pipes are two things: [`wait`](Self::wait) returns when the program has ended, although
/// something that it started may still hold its pipes. What it left running has 100 ms then to finish writing, and is killed.
///
/// # Panics
///
/// Its async methods panic in a tokio runtime without I/O, or where there is something to wait for with a time, in one without
/// time.
///
/// # Examples
///
/// ```
/// use std::process::Stdio;
/// use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut child = multiproc::Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
/// let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
/// stdin.write_all(b"ping").await?;
/// let mut answer = [0; 4];
/// stdout.read_exact(&mut answer).await?;
/// assert_eq!(&answer, b"ping");
/// drop(stdin);
/// assert!(child.wait().await?.success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it kills the program"]
pub struct Child {
    /// The first to be dropped: a program that is killed must not take the end of its stdin for the end of its input.
    pub(super) members: Vec<Member>,
    /// Its stdin, if that is a pipe.
    pub stdin: Option<ChildStdin>,
    /// Its stdout, if that is a pipe.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, if that is a pipe.
    pub stderr: Option<ChildStderr>,
    pub(super) exchange: Exchange,
    pub(super) started: Instant,
    pub(super) timeout: Option<Duration>,
    /// Whose fault it is that it was not left to its own end, as an index.
    pub(super) at_fault: usize,
    /// Why it could not be killed, although it was to be, and is left behind.
    pub(super) refused: Option<i32>,
    /// The longest line that is read, in bytes.
    pub(super) max_line: usize,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) place: Place,
    pub(super) kept: Kept,
    _killer: Option<KillOnDrop>,
}

impl Child {
    pub(super) fn new(command: &mut Command, launched: Launched, started: Instant) -> io::Result<Self> {
        let kill_on_drop = command.kill_on_drop;
        let members = launched.members.into_iter().map(|(place, mut child)| {
            // Without a grace that somebody asked for it is killed at once, which nothing can prevent: not even that this
            // process ends, too.
            child.ask_first(command.grace.unwrap_or(Duration::ZERO));
            let kept = child.kept().clone();
            let killer = if kill_on_drop {
                Some(child)
            } else {
                _ = child.disarm();
                None
            };
            Member { place, kept, _killer: killer }
        });
        Ok(Self {
            stdin: launched.stdin.map(ChildStdin::new).transpose()?,
            stdout: launched.stdout.map(ChildStdout::new).transpose()?,
            stderr: launched.stderr.map(ChildStderr::new).transpose()?,
            members: members.collect(),
            exchange: Exchange {
                input: command.input.take(),
                stdout: Vec::new(),
                stderr: Vec::new(),
                discard: false,
                max_output: command.max_output,
                total: 0,
                ended: [false; 2],
                cut_off: false,
                phase: Phase::Running,
                // A timeout past the end of time is none.
                deadline: command.timeout.and_then(|timeout| started.checked_add(timeout)),
                grace: command.grace.unwrap_or(GRACE),
            },
            started,
            timeout: command.timeout,
            at_fault: 0,
            refused: None,
            max_line: command.max_line,
        })
    }

    /// Its process id; `None` once it has ended. Of the last program in a pipeline.
    ///
    /// The first call gives it even if the program has just ended, unless another call has told so already.
    pub fn id(&self) -> Option<u32> {
        self.members.last().and_then(|member| member.kept.id())
    }

    /// Waits until it has ended, feeding its [`input`](crate::Command::input) if there is any; of a pipeline, all programs.
    ///
    /// Without an input, stdin is closed first if it is still here, or a program that reads it would wait for us. Output is
    /// not read: a program that writes more than a pipe holds (64 KiB) waits until somebody reads it.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](CommandError::TimedOut) if it was ended by its timeout, [`StatusUnknown`](CommandError::StatusUnknown) if
    /// something else in this process reaped it. [`Io`](CommandError::Io) if the input fails (its
    /// [`reader`](crate::Command::input_from), say), but once: call it again, and it waits on, with stdin closed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost; call it again, any number of times, also after the end.
    pub async fn wait(&mut self) -> Result<ExitStatus, CommandError> {
        self.close_unfed_stdin();
        while !self.exchange.phase.has_exited() {
            self.step(Want::Exit).await?;
        }
        if let Some(why @ (Why::TimedOut | Why::TooLarge)) = self.exchange.phase.why() {
            return Err(self.cut_short(why));
        }
        self.status()
    }

    /// Its status if it has ended, without waiting.
    ///
    /// # Errors
    ///
    /// [`StatusUnknown`](CommandError::StatusUnknown) if something else in this process reaped it.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, CommandError> {
        if self.exits().any(|exit| exit.is_none()) {
            return Ok(None);
        }
        self.status().map(Some)
    }

    /// Feeds its [`input`](crate::Command::input), reads what is piped, all at once, and waits for its end.
    ///
    /// Without an input, stdin is closed first if it is still here. When the program has ended, reading goes on until
    /// nothing can write into the pipes any more, but for 100 ms at most, for what it left running.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](CommandError::TimedOut) and [`TooLarge`](CommandError::TooLarge) with what was read,
    /// [`StatusUnknown`](CommandError::StatusUnknown), or an I/O error of a pipe, or of the input's
    /// [`reader`](crate::Command::input_from). The input's is told once: call it again, and it goes on with stdin closed, and
    /// returns what was read before, too.
    ///
    /// # Cancel safety
    ///
    /// What was fed and read is kept in the `Child`: call it again and it goes on, with nothing lost. Nothing is fed or
    /// read in the meantime.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::process::Stdio;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), multiproc::CommandError> {
    /// let sort = multiproc::Command::new("sort").input("b\na\n").stdout(Stdio::piped());
    /// let output = sort.spawn()?.communicate().await?;
    /// assert_eq!(output.stdout, b"a\nb\n");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn communicate(&mut self) -> Result<Output, CommandError> {
        self.close_unfed_stdin();
        while !matches!(self.exchange.phase, Phase::Finished { .. }) {
            let reads = self.stdout.is_some() || self.stderr.is_some();
            let want = if reads || self.exchange.phase.has_exited() { Want::Output } else { Want::Exit };
            self.step(want).await?;
        }
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
        // What may not be killed may run on for ever.
        if self.exits().all(|exit| exit.is_some()) {
            for member in &self.members {
                member.kept.reaped().await;
            }
        }
        if let Some(why @ (Why::TimedOut | Why::TooLarge)) = self.exchange.phase.why() {
            return Err(self.cut_short(why));
        }
        let status = self.status()?;
        Ok(self.take_output(status))
    }

    /// Asks its group to end, with SIGTERM, and kills the group if it has not ended within `grace`; see
    /// [`Command::grace`](crate::Command::grace). The status is the program's. From now on this `grace` counts, and the
    /// command's timeout only if that is over already.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), for an input that fails, too: it is asked to end all the same, and is killed after `grace`, and
    /// another call waits for that. Also if it may not be signalled, because it runs as another user.
    ///
    /// # Cancel safety
    ///
    /// It goes on with the next call of any async method, and dropping the `Child` kills it.
    pub async fn stop(&mut self, grace: Duration) -> Result<ExitStatus, CommandError> {
        // Nobody may have waited in the meantime. Its own end counts first, as for who waits.
        if self.exchange.is_overdue() && !have_ended(&self.members) {
            self.react(Event::Due)?;
        }
        self.react(Event::Stop { grace })?;
        self.wait().await
    }

    /// Sends a signal to the program, and to it alone; of a pipeline, to each. kill(2), but never to a stranger.
    ///
    /// # Errors
    ///
    /// `InvalidInput` (`EINVAL`) for what is no signal's number, `EPERM` for a program of another user; the others get it all the same. A program that
    /// has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.each(|kept| kept.signal(signal))
    }

    /// Sends SIGTERM to its process group, and SIGCONT, so that what is stopped comes to it. At the program's end what is left of
    /// the group is killed; [`stop`](Self::stop) gives it time.
    ///
    /// # Errors
    ///
    /// `EPERM` for a program of another user. A program that has ended is no error.
    pub fn terminate(&self) -> io::Result<()> {
        self.each(Kept::terminate_group)
    }

    /// Sends SIGKILL to its process group.
    ///
    /// # Errors
    ///
    /// `EPERM` for a program of another user. A program that has ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.each(|kept| kept.signal_group(libc::SIGKILL))
    }

    /// What it used, once it has ended; of a pipeline, the times' sum and the largest memory. `None` before.
    ///
    /// All zero if something else in this process reaped it.
    pub fn usage(&self) -> Option<Usage> {
        self.exits().try_fold(Usage::default(), |sum, exit| {
            let usage = exit?.usage;
            Some(Usage {
                max_rss: sum.max_rss.max(usage.max_rss),
                user_time: sum.user_time + usage.user_time,
                system_time: sum.system_time + usage.system_time,
            })
        })
    }

    /// The status of each program, first to last; `None` while it runs, or if it is unknown.
    pub fn statuses(&self) -> Vec<Option<ExitStatus>> {
        self.exits().map(|exit| exit.and_then(|exit| exit.status)).collect()
    }

    fn status(&self) -> Result<ExitStatus, CommandError> {
        for Member { place, kept, .. } in &self.members {
            if let Some(error) = kept.start_error() {
                return Err(place.explain(error));
            }
        }
        self.verdict().map(|(_, status)| status).ok_or(CommandError::StatusUnknown)
    }

    fn exits(&self) -> impl Iterator<Item = Option<Exit>> {
        self.members.iter().map(|member| member.kept.try_exit())
    }

    fn each(&self, signal: impl Fn(&Kept) -> io::Result<()>) -> io::Result<()> {
        // Every program gets it, whatever becomes of one.
        let results: Vec<_> = self.members.iter().map(|member| signal(&member.kept)).collect();
        results.into_iter().collect()
    }

    fn close_unfed_stdin(&mut self) {
        if self.exchange.input.is_none() {
            self.stdin = None;
        }
    }

    /// Waits for the next thing to happen, and does what follows from it.
    pub(super) async fn step(&mut self, want: Want) -> Result<Event, CommandError> {
        let Self { stdin, stdout, stderr, members, exchange, .. } = self;
        let exited = all_exited(members, want);
        let has_exited = || have_ended(members);
        let event = exchange.event(want, Pipes { stdin, stdout, stderr }, exited, has_exited).await?;
        if event == Event::PipesEnded && self.stderr.is_some() {
            // Who wants stdout alone is at its end. The rest of stderr is still to be collected.
            return Ok(event);
        }
        let reacted = self.react(event);
        if event == Event::Overflow || self.refused.is_some() {
            // Nobody reads on, and what has left the group gets to know it. After the kill, which is what the program is to end of.
            (self.stdout, self.stderr) = (None, None);
        }
        reacted?;
        Ok(event)
    }

    fn react(&mut self, event: Event) -> io::Result<()> {
        let before = self.exchange.phase;
        let send = self.exchange.change(event);
        let phase = self.exchange.phase;
        if phase.why() != before.why() {
            self.at_fault = self.find_fault();
        }
        if let Phase::Terminating { kill_at, .. } = phase
            && phase != before
        {
            // Also if nobody asks any more.
            let left = kill_at.saturating_duration_since(Instant::now());
            self.members.iter().for_each(|member| member.kept.kill_group_in(left));
        }
        let result = match send {
            Signal::Nothing => Ok(()),
            Signal::Term => self.each(Kept::ask_group),
            Signal::Kill => self.kill(),
        };
        match (result, self.exchange.phase.why()) {
            // Nobody has asked for the signal, but for the time or the output to be kept to.
            (Err(error), Some(Why::TimedOut | Why::TooLarge)) => {
                self.exchange.change(Event::Refused);
                if self.exchange.phase.is_finished() {
                    self.refused = error.raw_os_error();
                }
                Ok(())
            }
            (result, _) => result,
        }
    }
}

/// Whether all have, for who has no time to wait until it is told.
fn have_ended(members: &[Member]) -> bool {
    members.iter().all(|member| member.kept.learn_end())
}

async fn all_exited(members: &[Member], want: Want) {
    for Member { kept, .. } in members {
        match want {
            Want::Exit => _ = kept.exited_watched().await,
            // Its pipes end together with it, mostly, and then it is watched.
            Want::Output | Want::Stdout | Want::Either => _ = kept.exited().await,
        }
    }
}
