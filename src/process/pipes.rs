//! Our ends of a child's pipes, as tokio I/O. What is read and when is the business of whoever holds them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::runtime::{Handle, Id};

use crate::sys::process::write_pipe;
use crate::sys::reactor::Registered;
use crate::sys::socket::duplicate;

/// The writing end of a child's stdin.
///
/// Dropping it, or [`shutdown`](tokio::io::AsyncWriteExt::shutdown), is the end of input for the child. A child that no
/// longer reads makes writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe). See pipe(7).
///
/// # Panics
///
/// Its first use panics outside a tokio runtime with I/O enabled.
#[derive(Debug)]
pub struct ChildStdin(Pipe);

/// The reading end of a child's stdout.
///
/// It ends when nobody can write into it any more: neither the child, nor anything that it started. A child whose output
/// nobody reads is stopped by the full pipe (64 KiB, and 256 KiB once it has carried a lot), so reading slowly bounds the
/// memory on both sides. See pipe(7).
///
/// # Panics
///
/// Its first use panics outside a tokio runtime with I/O enabled.
#[derive(Debug)]
pub struct ChildStdout(Pipe);

/// The reading end of a child's stderr; as [`ChildStdout`].
///
/// # Panics
///
/// Its first use panics outside a tokio runtime with I/O enabled.
#[derive(Debug)]
pub struct ChildStderr(Pipe);

/// One end of a pipe that is ours alone, so `O_NONBLOCK` on it is seen by nobody else.
#[derive(Debug)]
pub(super) enum Pipe {
    /// Not registered with a runtime until it is first used, so that it can be made anywhere.
    Unregistered(Arc<OwnedFd>),
    Registered {
        fd: Registered,
        runtime: Id,
        /// How much went through it until it got wider.
        carried: usize,
    },
    Closed,
}

type InUse<'a> = (&'a Registered, &'a mut usize);

/// The most that is read at once, in bytes, where whoever writes has put the pipe into packet mode, in which a read gives no more
/// than was written at once, however much there is; `O_DIRECT` in pipe(2).
const PACKET: usize = 4096;

/// After so many bytes a pipe gets wider: what carries little is not worth it.
const BUSY: usize = 1 << 20;

/// How wide, in bytes. A user may have 64 MiB of pipes before the kernel makes new ones smaller; see pipe(7).
const WIDE: usize = 256 << 10;

impl Pipe {
    pub(super) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK)?;
        Ok(Self::Unregistered(fd))
    }

    /// Reads once into the spare capacity of `buf`; 0 is the end, if there is any capacity.
    pub(super) fn poll_read_buf(&mut self, cx: &mut Context<'_>, buf: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        let capacity = buf.capacity() - buf.len();
        self.poll_read_with(cx, capacity, |fd| Ok(rustix::io::read(fd, spare_capacity(buf))?))
    }

    /// Reads what is there now, as [`poll_read_buf`](Self::poll_read_buf) does, whatever the reactor has heard of it: an end that
    /// is new to one is said to be empty at first. Wakes nobody.
    pub(super) fn read_now(&self, buf: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        match retry(|| Ok(rustix::io::read(self.borrow()?, spare_capacity(buf))?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            result => Poll::Ready(result),
        }
    }

    /// How much it can hold, in bytes; and in packets, each of which takes up a page.
    pub(super) fn holds(&self) -> (usize, usize) {
        let bytes = self.borrow().ok().and_then(|fd| rustix::pipe::fcntl_getpipe_size(fd).ok()).unwrap_or(0);
        (bytes, bytes / PACKET)
    }

    fn poll_read_with(
        &mut self,
        cx: &mut Context<'_>,
        capacity: usize,
        mut read: impl FnMut(&OwnedFd) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let Some((fd, carried)) = self.registered(Interest::READABLE)? else { return Poll::Ready(Ok(0)) };
        loop {
            let mut guard = ready!(fd.poll_read_ready(cx))?;
            match guard.try_io(|fd| retry(|| read(fd.get_ref()))) {
                Ok(Ok(count)) => {
                    if PACKET < count && count < capacity {
                        // The pipe is empty: spares the next call a read that would only say so. Its end is not forgotten.
                        guard.clear_ready();
                    }
                    widen(fd.get_ref(), carried, count);
                    return Poll::Ready(Ok(count));
                }
                Ok(error) => return Poll::Ready(error),
                Err(_would_block) => {}
            }
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some((fd, carried)) = self.registered(Interest::WRITABLE)? else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            let mut guard = ready!(fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| retry(|| write_pipe(fd.get_ref(), buf))) {
                let count = *result.as_ref().unwrap_or(&0);
                let has_room = widen(fd.get_ref(), carried, count);
                if 0 < count && count < buf.len() && !has_room {
                    // The pipe was full. A child that has made room since then may soon wait for its output to be read, which
                    // may be up to who is polled next here.
                    guard.clear_ready();
                }
                return Poll::Ready(result);
            }
        }
    }

    fn registered(&mut self, interest: Interest) -> io::Result<Option<InUse<'_>>> {
        let here = Handle::try_current().ok().map(|handle| handle.id());
        // It may be used in one runtime after another, and the former one may be gone.
        let (fd, carried) = match self {
            Self::Unregistered(fd) => (&*fd, 0),
            Self::Registered { fd, runtime, carried } if here.is_some_and(|here| here != *runtime) => {
                (fd.get_ref(), *carried)
            }
            Self::Registered { fd, carried, .. } => return Ok(Some((fd, carried))),
            Self::Closed => return Ok(None),
        };
        let fd = Registered::new(Arc::clone(fd), interest)?;
        *self = Self::Registered { fd, runtime: Handle::current().id(), carried };
        self.registered(interest)
    }

    fn borrow(&self) -> io::Result<BorrowedFd<'_>> {
        match self {
            Self::Unregistered(fd) => Ok(fd.as_fd()),
            Self::Registered { fd, .. } => Ok(fd.get_ref().as_fd()),
            Self::Closed => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// A duplicate in blocking mode, which the mode of this end then is, too; so this end is closed.
    fn into_blocking(self) -> io::Result<OwnedFd> {
        let fd = duplicate(self.borrow()?)?;
        rustix::fs::fcntl_setfl(&fd, OFlags::empty())?;
        Ok(fd)
    }
}

/// Makes a pipe that has carried a lot wider, once. Says whether it has more room for that: pipe(7) does not say that whoever waits for
/// room is told of it.
fn widen(pipe: &OwnedFd, carried: &mut usize, count: usize) -> bool {
    if *carried >= BUSY {
        return false;
    }
    *carried += count;
    *carried >= BUSY
        && rustix::pipe::fcntl_getpipe_size(pipe).is_ok_and(|size| size < WIDE)
        // Refused to a user that has too many of them; it works as it is.
        && rustix::pipe::fcntl_setpipe_size(pipe, WIDE).is_ok()
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl ChildStdin {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Pipe::new(Arc::new(fd)).map(Self)
    }

    pub(super) fn pipe(&mut self) -> &mut Pipe {
        &mut self.0
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, buf)
    }

    /// Does nothing: what was written is in the pipe.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Closes the pipe: the end of input for the child.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = Pipe::Closed;
        Poll::Ready(Ok(()))
    }
}

macro_rules! reading_end {
    ($name:ident) => {
        impl $name {
            pub(crate) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
                Pipe::new(fd).map(Self)
            }

            pub(super) fn pipe(&mut self) -> &mut Pipe {
                &mut self.0
            }
        }

        impl AsyncRead for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let capacity = buf.remaining();
                let unfilled = buf.initialize_unfilled();
                let count =
                    ready!(self.0.poll_read_with(cx, capacity, |fd| Ok(rustix::io::read(fd, &mut *unfilled)?)))?;
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    };
}

reading_end!(ChildStdout);
reading_end!(ChildStderr);

macro_rules! into_owned {
    ($($name:ident)*) => {$(
        impl $name {
            /// Takes the pipe's end out, in blocking mode and close-on-exec, to hand it to another program, say.
            ///
            /// # Errors
            ///
            /// If it is closed already, or there is no free fd.
            pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
                self.0.into_blocking()
            }
        }
    )*};
}

into_owned!(ChildStdin ChildStdout ChildStderr);

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};
    use std::{fs, thread};

    use futures::FutureExt as _;
    use rustix::net::sockopt::set_socket_linger;
    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::Command;

    /// It was closed first, so a program that was quick did with half an input what it does with all of it.
    #[tokio::test]
    async fn a_child_that_is_dropped_is_killed_before_its_stdin_is_closed() {
        // The close of this one takes as long as nobody reads what was written: time to see what has been done before.
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut full = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        set_socket_linger(&full, Some(Duration::from_mins(1))).unwrap();
        full.set_nonblocking(true).unwrap();
        let much = vec![0; 1 << 16];
        while full.write(&much).is_ok() {}

        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id().unwrap());
        child.stdin = Some(ChildStdin::new(full.into()).unwrap());
        let dropping = thread::spawn(|| drop(child));
        let begun = Instant::now();
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it lives");
            tokio::task::yield_now().await;
        }
        drop(reader);
        dropping.join().unwrap();
    }

    fn pipe() -> (ChildStdin, std::fs::File) {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (ChildStdin::new(ours).unwrap(), theirs.into())
    }

    /// It wrote on as soon as there was room, and the child, whose output nobody read meanwhile, slept at each turn.
    #[tokio::test]
    async fn who_has_filled_a_pipe_lets_others_have_their_turn_whatever_room_there_is_by_then() {
        let (mut stdin, mut theirs) = pipe();
        let much = vec![7; 1 << 20];
        let count = stdin.write(&much).await.unwrap();
        assert!(count < much.len());
        theirs.read_exact(&mut vec![0; count]).unwrap();
        let mut write = std::pin::pin!(stdin.write(&much));
        assert!(write.as_mut().now_or_never().is_none());
        let written = tokio::time::timeout(Duration::from_mins(1), write).await;
        assert_eq!(written.expect("it was never told").unwrap(), count);
    }

    #[tokio::test]
    async fn a_pipe_that_was_full_and_is_wider_now_has_room() {
        let (mut stdin, mut theirs) = pipe();
        let much = vec![7; 2 * BUSY];
        let mut carried = 0;
        loop {
            let written = tokio::time::timeout(Duration::from_mins(1), stdin.write(&much)).await;
            let count = written.expect("it was never told").unwrap();
            carried += count;
            if carried >= BUSY {
                break;
            }
            theirs.read_exact(&mut vec![0; count]).unwrap();
        }
        // Nobody reads, as a child that wants more at once than a small pipe holds.
        let written = tokio::time::timeout(Duration::from_mins(1), stdin.write(&much)).await;
        assert!(written.expect("it waits").unwrap() > 0);
    }

    /// What lay behind the first packet was not read before another one came.
    #[tokio::test]
    async fn packets_that_are_there_are_read_one_after_the_other() {
        let (ours, theirs) = pipe_with(PipeFlags::DIRECT | PipeFlags::CLOEXEC).unwrap();
        let mut theirs = std::fs::File::from(theirs);
        for packet in [&[1; 10][..], &[2; PACKET], &[3; 1]] {
            theirs.write_all(packet).unwrap();
        }
        let mut stdout = ChildStdout::new(Arc::new(ours)).unwrap();
        for (byte, len) in [(1, 10), (2, PACKET), (3, 1)] {
            let mut buf = vec![0; 3 * PACKET];
            let read = tokio::time::timeout(Duration::from_mins(1), stdout.read(&mut buf)).await;
            assert_eq!(read.expect("it waits").unwrap(), len);
            assert_eq!(buf[..len], vec![byte; len]);
        }
    }
}
