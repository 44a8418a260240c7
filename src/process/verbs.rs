//! What a `Command` can be told to do: the verbs, each one a start and what is wanted of the child afterwards.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Output};

use tokio::time::{Instant, timeout_at};

use super::child::Child;
use super::command::Command;
use super::launch::{Unset, launch, launch_here};
use crate::error::CommandError;

/// # Running it
///
/// Every async verb starts the program on a thread of its own, as that takes about a millisecond, and tries again for a
/// while where the system says that it can't just now (`EAGAIN`, `ETXTBSY`). Where a program could not be started, the error
/// is [`CommandError::Spawn`], which names the program or the working directory, whichever is at fault, and whose source has
/// the system's reason: `NotFound`, `PermissionDenied`, or `InvalidInput` for a NUL byte in an argument, say. What can't be
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
        let mut child = self.start(Unset::Inherit).await?;
        // A pipe that nobody reads, because nobody can, must not block it.
        child.exchange.discard = true;
        Ok(child.communicate().await?.status)
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
        self.start(Unset::Capture).await?.communicate().await
    }

    /// As [`output`](Self::output), but a status other than 0 is an error.
    ///
    /// # Errors
    ///
    /// As `output`, and [`CommandError::Failed`], which has the status, the output and the time it took, and shows the end of
    /// stderr.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the program and its process group.
    pub async fn run(self) -> Result<Output, CommandError> {
        let mut child = self.start(Unset::Capture).await?;
        let output = child.communicate().await?;
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

    async fn start(mut self, unset: Unset) -> Result<Child, CommandError> {
        let started = Instant::now();
        let launched = match self.timeout.and_then(|timeout| started.checked_add(timeout)) {
            None => launch(&mut self, unset).await?,
            // A program on a file system that does not answer: its start can only be left behind, to be killed if it ends.
            Some(deadline) => match timeout_at(deadline, launch(&mut self, unset)).await {
                Ok(launched) => launched?,
                Err(_) => return Err(self.never_started()),
            },
        };
        Ok(Child::new(&mut self, launched, started)?)
    }

    fn never_started(&self) -> CommandError {
        let status = ExitStatus::from_raw(libc::SIGKILL);
        CommandError::TimedOut {
            program: self.stages[0].name(),
            output: Output { status, stdout: Vec::new(), stderr: Vec::new() },
            after: self.timeout.unwrap_or_default(),
        }
    }
}
