//! What the keeper is given with a child to start, and what comes of that.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::channel::ChildEnd;
use crate::process::kept::KillOnDrop;
use crate::process::program::Launch;

/// How long what a child started may go on writing into its pipes after its end, unless said otherwise.
pub(crate) const DRAIN: Duration = Duration::from_millis(100);

/// A child that was started, and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: KillOnDrop,
    pub(crate) stdin: Option<OwnedFd>,
    /// Shared, so that the keeper can see (weakly) whether something still writes; it never keeps a pipe open.
    pub(crate) stdout: Option<Arc<OwnedFd>>,
    pub(crate) stderr: Option<Arc<OwnedFd>>,
}

/// What the keeper has to know about a child beyond its command.
#[derive(Debug)]
pub(crate) struct Terms {
    /// How long what it started may go on writing after its end; zero kills it at once.
    pub(crate) drain: Duration,
    /// Whether what it leaves running lives on after its end.
    pub(crate) spare_group: bool,
    /// Our ends of pipes that the caller made, and whose other ends become the child's stdin, stdout or stderr.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// The channel that ends with it.
    pub(crate) channel: Option<ChildEnd>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { drain: DRAIN, spare_group: false, stdin: None, stdout: None, stderr: None, channel: None }
    }
}

/// What to start.
pub(in crate::process) struct Request {
    pub(in crate::process) command: Box<dyn Launch>,
    pub(in crate::process) terms: Terms,
}

/// The error, and the request, where it can be tried again.
pub(in crate::process) struct Refused {
    pub(in crate::process) error: io::Error,
    pub(in crate::process) request: Option<Request>,
}
