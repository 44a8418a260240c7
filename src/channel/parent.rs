//! A channel between two programs that need not be the same executable: one starts the other, with the channel as its
//! stdin. Here are both ends; the start is `process/`'s business.
//!
//! Any program may find a socket as its stdin. This one is known by the greeting that lies in it: a frame without a body,
//! which the parent writes before all else.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::BytesMut;

use super::duplex::Duplex;
use super::socket::Socket;
use crate::error::ParentError;
use crate::sys::socket as sys;
use crate::sys::worker::Slot;
use crate::wire::frame::{GREETING, HEAD_LEN, Head, VERSION};

const GREETING_HEAD: Head = Head { len: 0, kind: GREETING, fds: 0, id: 0 };

/// Takes the channel with which [`Command::duplex`](crate::Command::duplex) started this program.
///
/// This end sends what the parent's end receives: if that is a `Duplex<A, B>`, take `from_parent::<B, A>()`. The two
/// programs need not be the same; what they share is the definition of the messages. The channel was this program's stdin,
/// which is `/dev/null` afterwards. When the parent is gone, however it ended, [`recv`](Duplex::recv) gives `None`.
///
/// # Errors
///
/// [`ParentError::NotConnected`] if this program was started in another way, [`ParentError::OtherVersion`] if its parent
/// uses a version of this library that speaks another protocol, [`ParentError::Taken`] at the second call.
///
/// # Examples
///
/// Here the other program is this one, too.
///
/// ```standalone_crate
/// use multiproc::{Command, from_parent};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     if let Ok(mut parent) = from_parent::<String, u32>() {
///         while let Some(number) = parent.recv().await? {
///             parent.send(format!("{number}!")).await?;
///         }
///         return Ok(());
///     }
///     let (program, mut ours) = Command::new(std::env::current_exe()?).duplex::<u32, String>()?;
///     let mut child = program.spawn()?;
///     ours.send(7).await?;
///     assert_eq!(ours.recv().await?.as_deref(), Some("7!"));
///     drop(ours); // The program reads the end of the stream, and returns.
///     assert!(child.wait().await?.success());
///     Ok(())
/// }
/// ```
pub fn from_parent<A, B>() -> Result<Duplex<A, B>, ParentError> {
    // Two threads must not take one stdin.
    static TAKEN: Mutex<bool> = Mutex::new(false);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if *taken {
        return Err(ParentError::Taken);
    }
    if !Slot::Stdin.is_socket() {
        return Err(ParentError::NotConnected);
    }
    let first = Slot::Stdin.peek();
    if let Some((theirs, head)) = Head::peek_other_version(&first)
        && head == GREETING_HEAD
    {
        return Err(ParentError::OtherVersion { theirs, ours: VERSION });
    }
    if Head::peek(&first).is_none_or(|head| head.kind != GREETING) {
        return Err(ParentError::NotConnected);
    }
    let socket = Slot::Stdin.take()?;
    *taken = true;
    // No more than that: behind it the messages begin.
    sys::recv_into(&socket, &mut BytesMut::with_capacity(HEAD_LEN), HEAD_LEN, sys::Wait::No)?;
    Ok(Duplex::new(socket))
}

/// A channel whose other end is to be the stdin of a program that calls [`from_parent`].
pub(crate) fn for_child<A, B>() -> io::Result<(Duplex<A, B>, OwnedFd, ChildEnd)> {
    let (ours, theirs) = sys::stream_pair()?;
    let mut greeting = BytesMut::with_capacity(HEAD_LEN);
    GREETING_HEAD.put(&mut greeting);
    // An empty socket has room for it.
    sys::send(&ours, &[IoSlice::new(&greeting)], &[])?;
    let ours = Duplex::new(ours);
    let end = ChildEnd(Arc::downgrade(ours.socket()));
    Ok((ours, theirs, end))
}

/// Ends a channel whose other end a program had. It keeps neither open.
#[derive(Clone, Debug)]
pub(crate) struct ChildEnd(Weak<Socket>);

impl ChildEnd {
    /// The program has ended, whoever else may have the other end from it. What came before is still received.
    pub(crate) fn end(&self) {
        // Whoever has our end now, it is in this process, or on its way to another one.
        if let Some(socket) = self.0.upgrade() {
            let _ = sys::end_both(&*socket);
        }
    }
}
