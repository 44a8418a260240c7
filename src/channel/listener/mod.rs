//! Duplexes between processes that are no relatives: one listens at a path, others connect.
//!
//! ```text
//!  bind ── place.rs: the directory, the socket's name in it, what an earlier process left there
//!   └─ greeting.rs, on the background thread: accepts, checks who it is, shakes hands; each client by itself
//!       └─ accept() takes one that is ready
//! ```

mod connect;
mod greeting;
mod place;

use std::any::type_name;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use self::greeting::{Admit, Greeting};
use self::place::Place;
use super::block::block_on;
use super::{Duplex, background};
use crate::sys::rendezvous;

pub use connect::{blocking_connect, connect, connect_to};

/// Who is at the other end of a connection, as the kernel knew it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The process; `None` if it has no number here, in another PID namespace.
    pub pid: Option<u32>,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Peer {
    fn of(socket: impl std::os::fd::AsFd) -> io::Result<Self> {
        let (pid, uid, gid) = rendezvous::peer_credentials(socket)?;
        Ok(Self { pid: pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs()), uid, gid })
    }

    fn is_our_user(&self) -> bool {
        self.uid == rendezvous::own_user()
    }
}

/// Waits at a path for processes that are no relatives; each gives a [`Duplex`] that sends `A` and receives `B`.
///
/// The other process calls [`connect`].
///
/// Clients are accepted and shake hands in the background, each by itself, from the moment it is bound: one that says
/// nothing stalls no other, and is dropped after 5 seconds. At most 128 clients are shaking hands or waiting for
/// [`accept`](Self::accept); where one more comes, the one that has been silent longest is dropped for it, and if none is
/// silent, it waits in the kernel.
///
/// Both programs must mean the same types: what the other side sends as another type is a `Decode` error, or is taken for a
/// value if its bytes happen to be one. Names of types are not compared, as each program may have its own for one type.
///
/// Dropping it drops the clients that nobody has accepted, and removes the socket's file, unless there is no fd or no room for the
/// file that it locks for that: then the next one that binds there replaces it.
///
/// # Examples
///
/// ```
/// use multiproc::{Listener, connect};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("private/socket");
/// let listener = Listener::<String, u32>::bind(&path)?;
/// let mut client = connect::<u32, String>(&path).await?;
/// let (mut server, peer) = listener.accept().await?;
/// assert_eq!(peer.pid, Some(std::process::id()));
/// client.send(7).await?;
/// assert_eq!(server.recv().await?, Some(7));
/// server.send("seven".to_owned()).await?;
/// assert_eq!(client.recv().await?.as_deref(), Some("seven"));
/// # Ok(())
/// # }
/// ```
pub struct Listener<A, B> {
    /// Given back before the socket is closed, as fields are dropped in this order: a name to which nobody listens is stale, and
    /// the next one who binds there takes it, often with the very inode number by which it is known whose it is.
    place: Place,
    greeting: Greeting,
    messages: PhantomData<fn(A) -> B>,
}

impl<A, B> Listener<A, B> {
    /// Listens at a path, for processes of this user. It needs no runtime.
    ///
    /// If its directory is missing, it is made, with mode 0700; its parent must be there. If a process that listened at
    /// this path was killed, the file that it left is replaced.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` if the directory belongs to another user, or lets others in (mode 0700 does not). `AddrInUse` if
    /// somebody listens there. `AlreadyExists` if the path is something else than a socket. Others as the system gives them.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::listen(path.as_ref(), None)
    }

    /// As [`bind`](Self::bind), for those whom `admit` lets in, of whatever user.
    ///
    /// Others may be able to enter its directory, but not to write there. The socket has mode 0666. `admit` runs on a thread
    /// of its own. If it panics, the client is refused; a client for which it takes longer than the 5 seconds that each has is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Self::bind).
    pub fn bind_for(path: impl AsRef<Path>, admit: impl Fn(&Peer) -> bool + Send + Sync + 'static) -> io::Result<Self> {
        Self::listen(path.as_ref(), Some(Admit::new(admit)))
    }

    fn listen(path: &Path, admit: Option<Admit>) -> io::Result<Self> {
        // What may fail comes first: nothing closes the socket that has a place.
        let runtime = background::runtime()?;
        let (place, socket) = Place::take(path, admit.is_some())?;
        Ok(Self { place, greeting: Greeting::start(&runtime, socket, admit), messages: PhantomData })
    }

    /// Takes a client that was admitted and has shaken hands, and says who it is. Waits for one.
    ///
    /// # Errors
    ///
    /// If the system refuses; then the listener is of no more use. So it is in a copy that fork(2) has made of its process.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no client.
    pub async fn accept(&self) -> io::Result<(Duplex<A, B>, Peer)> {
        // Nobody greets clients there.
        background::no_forked_copy()?;
        let (sides, peer) = self.greeting.next().await?;
        Ok((Duplex::over(sides), peer))
    }

    /// As [`accept`](Self::accept), on this thread, which it blocks; not for async code.
    ///
    /// # Errors
    ///
    /// As for [`accept`](Self::accept).
    pub fn blocking_accept(&self) -> io::Result<(Duplex<A, B>, Peer)> {
        block_on(self.accept())
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

impl<A, B> fmt::Debug for Listener<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("path", &self.path())
            .field("sends", &type_name::<A>())
            .field("receives", &type_name::<B>())
            .finish_non_exhaustive()
    }
}
