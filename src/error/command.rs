//! What can go wrong with other people's programs.

use std::fmt;
use std::io;
use std::process::{ExitStatus, Output};
use std::time::Duration;

use super::ending::Ending;

/// Why an external program did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The command can't be run as it is described.
    #[error("invalid command: {reason}")]
    #[non_exhaustive]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The program could not be started.
    #[error("cannot start {}", if .program.is_empty() { "a program without a name" } else { .program })]
    Spawn {
        /// The program, or the working directory if that is what is missing.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The program ended with a status other than 0.
    #[error("{program} failed: {}{}", Ending { status: Some(.output.status), unexplained_kill: false }, Tail(&.output.stderr))]
    #[non_exhaustive]
    Failed {
        /// The program.
        program: String,
        /// Its status, and what was read of its output.
        output: Output,
        /// How long it ran.
        elapsed: Duration,
        /// The status of every program in the pipeline, first to last.
        statuses: Vec<Option<ExitStatus>>,
    },
    /// The program ran longer than its timeout; its process group was killed, unless `source` says why it could not be. A status
    /// that is not known shows as SIGKILL.
    #[error("{program} timed out after {} s{}", .after.as_secs_f32(), Tail(&.output.stderr))]
    #[non_exhaustive]
    TimedOut {
        /// The program.
        program: String,
        /// Its status, and what was read of its output.
        output: Output,
        /// The timeout.
        after: Duration,
        /// Why it could not be killed, and runs on: it runs as another user.
        source: Option<io::Error>,
    },
    /// The program wrote more than was allowed; its process group was killed.
    #[error("{program} wrote more than {max} bytes")]
    #[non_exhaustive]
    TooLarge {
        /// The program.
        program: String,
        /// Its status, and what was read of its output.
        output: Output,
        /// The limit in bytes.
        max: u64,
    },
    /// The program ended, but somebody else in this process took its status.
    #[error("status is unknown: something else in this process waited for the child, or SIGCHLD is ignored")]
    StatusUnknown,
    /// The system refused.
    #[error("cannot talk to the child process")]
    Io(#[from] io::Error),
}

impl CommandError {
    /// What was read of the program's output before the error, where there is any.
    pub fn output(&self) -> Option<&Output> {
        match self {
            Self::Failed { output, .. } | Self::TimedOut { output, .. } | Self::TooLarge { output, .. } => Some(output),
            _ => None,
        }
    }
}

/// Why [`from_parent`](crate::from_parent) gave no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParentError {
    /// This program was not started with a channel.
    #[error(
        "this program was started without a channel: its parent has to start it with `Command::duplex` of multiproc"
    )]
    NotConnected,
    /// This program was started with a channel of another version of this library, so neither would understand the other.
    #[error("the channel to the parent speaks version {theirs} of multiproc's protocol, and this program {ours}")]
    #[non_exhaustive]
    OtherVersion {
        /// The parent's version.
        theirs: u8,
        /// This program's version.
        ours: u8,
    },
    /// This program has taken its channel already.
    #[error("the channel to the parent was taken before")]
    Taken,
    /// The system refused.
    #[error("cannot take the channel to the parent")]
    Io(#[from] io::Error),
}

/// The last lines of stderr, for an error's text.
struct Tail<'a>(&'a [u8]);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 1024;
        let start = self.0.len().saturating_sub(LONGEST);
        let text = String::from_utf8_lossy(&self.0[start..]);
        let text = text.trim();
        if text.is_empty() { Ok(()) } else { write!(f, "; stderr: {}{text}", if start > 0 { "…" } else { "" }) }
    }
}
