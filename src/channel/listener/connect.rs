//! The other side of a listener.

use std::io;
use std::path::{Path, PathBuf};

use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Peer;
use super::greeting::{Admit, PATIENCE, expect_hello, hello, is_admitted};
use super::place::split;
use crate::channel::block::block_on;
use crate::channel::duplex::Sides;
use crate::channel::{Duplex, background};
use crate::sys::rendezvous::Directory;
use crate::wire::frame::MAX_FDS;

/// Connects to a [`Listener`](crate::Listener) of this user: the end sends `A` and receives `B`, so the listener is a
/// `Listener<B, A>`.
///
/// It resolves when the listener's process has admitted this one, which may be before its `accept` takes it.
///
/// # Errors
///
/// `NotFound` and `ConnectionRefused` if nobody listens there, `PermissionDenied` if the listener is another user's or
/// refuses this process, `TimedOut` if it has not admitted it after 5 seconds. Others as the system gives them.
///
/// # Cancel safety
///
/// Dropping it gives up the connection.
///
/// # Examples
///
/// See [`Listener`](crate::Listener).
pub async fn connect<A, B>(path: impl AsRef<Path>) -> io::Result<Duplex<A, B>> {
    reach(path.as_ref().to_owned(), None).await
}

/// As [`connect`], to a listener that `admit` accepts, of whatever user. `admit` runs on a thread of its own, and within the
/// 5 seconds that all of it has. Until it has decided, nothing is said to the listener: where more than 128 come there at a time,
/// this one may be dropped as one that is silent, which is `ConnectionAborted`.
///
/// # Errors
///
/// As for [`connect`].
///
/// # Cancel safety
///
/// As for [`connect`].
pub async fn connect_to<A, B>(
    path: impl AsRef<Path>,
    admit: impl Fn(&Peer) -> bool + Send + Sync + 'static,
) -> io::Result<Duplex<A, B>> {
    reach(path.as_ref().to_owned(), Some(Admit::new(admit))).await
}

/// As [`connect`], on this thread, which it blocks; not for async code.
///
/// # Errors
///
/// As for [`connect`].
pub fn blocking_connect<A, B>(path: impl AsRef<Path>) -> io::Result<Duplex<A, B>> {
    block_on(reach(path.as_ref().to_owned(), None))
}

/// Connects on the background thread, which has timers.
async fn reach<A, B>(path: PathBuf, admit: Option<Admit>) -> io::Result<Duplex<A, B>> {
    let task = background::runtime()?.spawn(async move {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the listener has not answered");
        timeout(PATIENCE, shake_hands(&path, admit)).await.map_err(late)?
    });
    let _abort = Abort(task.abort_handle());
    task.await.map_err(io::Error::other)?.map(Duplex::over)
}

async fn shake_hands(path: &Path, admit: Option<Admit>) -> io::Result<Sides> {
    let (dir, name) = split(path)?;
    let dir = Directory::open_to_pass(dir)?;
    let socket = loop {
        match dir.connect(name) {
            // As many wait there as may.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(background::PAUSE).await,
            connected => break connected?,
        }
    };
    if !is_admitted(Peer::of(&socket)?, admit).await {
        let why = format!("whoever listens at {} is another user", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut sides = Sides::new(socket);
    // A listener that refuses may have gone before it is told anything; what it said is still there.
    let _ = sides.sending.post(hello());
    // Behind its hello may be messages: it is through with us then.
    expect_hello(&mut sides, MAX_FDS).await?;
    Ok(sides)
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
