//! Anything that is a file descriptor, as a value: files, sockets, pipes.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::fds;

/// A file, a socket, a pipe, or anything else that is a file descriptor, as a value: put it into a task's arguments, its
/// result or a message, and it arrives in that process.
///
/// It derefs to what it holds. What travels is a duplicate, made when the message is encoded, so the sender's own may be
/// dropped at once. Sender and receiver then share one open file: its offset, and whether it is non-blocking; see dup(2).
/// It is close-on-exec on arrival.
///
/// `T` is any type of std with a `From<OwnedFd>`, such as [`File`](std::fs::File), `UnixStream`, `TcpListener`,
/// `PipeReader` or [`OwnedFd`] itself. tokio's types need their runtime, so they travel as std's: `into_std` before,
/// `from_std` after. That a `T` arrives is the sender's word: the kernel says what kind of file it is only when it is
/// used. Ends of this crate's channels need no wrapper.
///
/// # Limits
///
/// A message carries up to 64 fds, those of channel ends and shared bytes in it included; one more is an `Encode` error. So is
/// an io_uring(7), which the kernel carries in no message.
/// An fd fits into messages of this crate only: any other serde format refuses it. Those in a message that is never
/// received, or not asked for by its type, are closed. A receiver that may open no more files loses that message
/// (`Decode`), and the channel goes on. Fds that have been sent and not yet received count against the user's
/// `RLIMIT_NOFILE` (unix(7), `ETOOMANYREFS`): past that a send waits until some are received.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Seek, Write};
/// use std::fs::File;
/// use multiproc::{Fd, spawn_process, task};
///
/// fn shout(mut file: Fd<File>) {
///     let mut text = String::new();
///     file.read_to_string(&mut text).unwrap();
///     file.write_all(text.to_uppercase().as_bytes()).unwrap();
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// multiproc::init();
/// let mut file = tempfile::tempfile()?;
/// file.write_all(b"hello")?;
/// file.rewind()?;
/// let file = Fd::from(file);
/// spawn_process(task!(shout(file))).await?.join().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Fd<T = OwnedFd>(T);

impl<T> Fd<T> {
    /// What it holds.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T: AsFd> From<T> for Fd<T> {
    fn from(fd: T) -> Self {
        Self(fd)
    }
}

impl<T> Deref for Fd<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Fd<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsFd> AsFd for Fd<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsFd> Serialize for Fd<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fds::serialize(&self.0, serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Fd<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fds::deserialize(deserializer).map(|fd| Self(fd.into()))
    }
}
