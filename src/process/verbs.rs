//! What a `Command` can be told to do: the verbs, each one a start and what is wanted of the child afterwards.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Output};

use tokio::time::Instant;

use super::child::Child;
use super::command::Command;
use super::launch::{Launched, Unset, Wait, launch, launch_here};
use super::starter::may_pass;
use super::timer::Timer;
use crate::error::CommandError;

/// # Running it
///
/// No async verb holds up its thread until the program runs, which takes about a millisecond and on a slow file system more.
/// It tries again for a while where the system says that it can't be started just now (`EAGAIN`, `ETXTBSY`). Where a program could
/// not be started, the error is [`CommandError::Spawn`], which names the program or the working directory, whichever is at fault,
/// and whose source has the system's reason: `NotFound`, `PermissionDenied`, or `InvalidInput` for a NUL byte in an argument, say. What can't be
/// meant, such as two places for stdout, is [`CommandError::Invalid`].
impl Command {
    /// Runs it and returns its status, whatever that is. Streams that were not set are inherited.
    ///
    /// # Errors
    ///
    /// If it can't be started, runs into its timeout or limit, or its status is unknown.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O and time enabled; as all async verbs.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program and its process group.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), multiproc::CommandError> {
    /// let status = multiproc::Command::shell("exit 47").status().await?;
    /// assert_eq!(status.code(), Some(47));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn status(self) -> Result<ExitStatus, CommandError> {
        Ok(self.complete(Unset::Inherit).await?.1.status)
    }

    /// Runs it and returns its status, whatever that is, and its output.
    ///
    /// Streams that were not set are captured; stdin is the [`input`](Self::input), or empty. Memory bounds what is
    /// captured, unless [`max_output`](Self::max_output) does.
    ///
    /// # Errors
    ///
    /// If it can't be started, runs into its timeout or limit, or its status is unknown.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program and its process group.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), multiproc::CommandError> {
    /// let output = multiproc::Command::shell("echo out; echo err >&2; exit 3").output().await?;
    /// assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(3), &b"out\n"[..], &b"err\n"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn output(self) -> Result<Output, CommandError> {
        Ok(self.complete(Unset::Capture).await?.1)
    }

    /// As [`output`](Self::output), but a status other than 0 is an error.
    ///
    /// # Errors
    ///
    /// As `output`, and [`CommandError::Failed`], which has the status, the output and the time it took, and shows the last
    /// 1,024 bytes of stderr.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program and its process group.
    pub async fn run(self) -> Result<Output, CommandError> {
        let (child, output) = self.complete(Unset::Capture).await?;
        if output.status.success() { Ok(output) } else { Err(child.failed(output)) }
    }

    /// As [`run`](Self::run), and returns stdout as text without its last newline.
    ///
    /// # Errors
    ///
    /// As `run`, and an I/O error of the kind `InvalidData` if stdout is not UTF-8.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program and its process group.
    pub async fn read(self) -> Result<String, CommandError> {
        let stdout = self.run().await?.stdout;
        let mut text = String::from_utf8(stdout)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error()))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }

    /// Starts it, on this thread, and returns it running. Streams that were not set are inherited.
    ///
    /// # Errors
    ///
    /// If it can't be started. Unlike the async verbs it does not try again.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), multiproc::CommandError> {
    /// let mut child = multiproc::Command::new("sleep").arg("1000").spawn()?;
    /// let status = child.stop(Duration::from_secs(1)).await?;
    /// assert!(!status.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn(mut self) -> Result<Child, CommandError> {
        let started = Instant::now();
        let launched = launch_here(&mut self, Unset::Inherit)?;
        Ok(Child::new(&mut self, launched, started)?)
    }

    /// Starts it and stays with it to its end.
    async fn complete(mut self, unset: Unset) -> Result<(Child, Output), CommandError> {
        let started = Instant::now();
        let mut wait = if self.can_start_again() { Wait::NotAtAll } else { Wait::UntilStarted };
        loop {
            let launched = self.launch(unset, wait, started).await?;
            let mut child = Child::new(&mut self, launched, started)?;
            // A pipe that nobody reads, because nobody can, must not block it.
            child.exchange.discard = unset == Unset::Inherit;
            match child.communicate().await {
                // Nothing of it ever ran. What may pass is tried again where the start is waited for.
                Err(CommandError::Spawn { source, .. }) if wait == Wait::NotAtAll && may_pass(&source) => {
                    wait = Wait::UntilStarted;
                }
                output => return Ok((child, output?)),
            }
        }
    }

    /// Whether a failed start uses nothing up, and needs no watching: then nobody waits for its outcome.
    fn can_start_again(&self) -> bool {
        let [stage] = &*self.stages else { return false };
        self.input.is_none() && self.timeout.is_none() && stage.can_start_again()
    }

    async fn launch(&mut self, unset: Unset, wait: Wait, started: Instant) -> Result<Launched, CommandError> {
        match self.timeout.and_then(|timeout| started.checked_add(timeout)) {
            None => launch(self, unset, wait).await,
            // A program on a file system that does not answer: its start can only be left behind, to be killed if it ends.
            Some(deadline) => {
                tokio::select! {
                    biased;
                    launched = launch(self, unset, wait) => return launched,
                    () = Timer::new(deadline) => {}
                }
                Err(self.never_started())
            }
        }
    }

    fn never_started(&self) -> CommandError {
        let status = ExitStatus::from_raw(libc::SIGKILL);
        CommandError::TimedOut {
            program: self.stages[0].name(),
            output: Output { status, stdout: Vec::new(), stderr: Vec::new() },
            after: self.timeout.unwrap_or_default(),
            source: None,
        }
    }
}
