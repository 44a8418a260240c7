//! Unix sockets: pairs, and sending and receiving bytes together with fds.
//!
//! Everything is born close-on-exec, nothing raises SIGPIPE, and no description is ever switched to `O_NONBLOCK`: that
//! flag is shared with every process that holds the socket, so each call says for itself whether it may wait.
//!
//! A processor notes where the functions that are under way will return to, and a system call makes it forget: each of them
//! returns some 20 ns later than it would, all the way up to who goes on for long. So what stands between those and the kernel is
//! inlined, as far as that is often called: an awaited message of a channel went through six functions that a write of tokio's does
//! not, which was a twelfth of its time.

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;

use super::raw::{call, check};
use super::reactor::Registered;

/// The most fds that the kernel carries with one send (`SCM_MAX_FD`).
pub(crate) const MAX_FDS_PER_CALL: usize = 253;

/// A connected pair of stream sockets; socketpair(2).
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SocketType::STREAM)
}

/// A connected pair of sockets that keep message boundaries; socketpair(2).
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SocketType::SEQPACKET)
}

fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok((above_stdio(a)?, above_stdio(b)?))
}

/// Moves an fd out of 0, 1 and 2, where a host that closed those gets its new fds.
///
/// A socket there would be mistaken for stdio, and std's file actions for a child would overwrite it.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { duplicate(&fd) }
}

/// A close-on-exec duplicate that is not 0, 1 or 2; fcntl(2), `F_DUPFD_CLOEXEC`.
pub(crate) fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// Sends what fits without waiting, with `fds` on the first byte; send(2) for a single piece, sendmsg(2) for more.
///
/// Returns how many bytes left; the fds left with the first of them. `WouldBlock` says that nothing did.
#[inline(always)]
pub(crate) fn send(socket: impl AsFd, bufs: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    match (bufs, fds) {
        ([buf], []) => sent(|| rustix::net::send(&socket, buf, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)),
        _ => send_message(socket.as_fd(), bufs, fds),
    }
}

fn send_message(socket: BorrowedFd<'_>, bufs: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_PER_CALL))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let is_too_many =
        fds.len() > MAX_FDS_PER_CALL || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)));
    if is_too_many {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many file descriptors for one message"));
    }
    sent(|| rustix::net::sendmsg(socket, bufs, &mut control, flags))
}

/// Whether the kernel carries it in a message: it refuses an io_uring(7), and says so of nothing but a message.
///
/// Only what fstat(2) knows no type of is tried. What can't be tried, for want of fds say, is taken for what travels.
pub(crate) fn travels(fd: impl AsFd) -> bool {
    let has_type = |stat: &rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) != FileType::Unknown;
    if rustix::fs::fstat(&fd).as_ref().is_ok_and(has_type) {
        return true;
    }
    let tried = stream_pair().and_then(|(a, _b)| send(a, &[IoSlice::new(&[0])], &[fd.as_fd()]));
    !tried.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// Sends until no signal interrupts it.
#[inline(always)]
fn sent(send: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    #[cfg(test)]
    calls::add();
    Ok(retry_on_intr(send)?)
}

/// What one receive gave.
#[derive(Debug)]
pub(crate) struct Received {
    /// How many leading bytes of the buffer are now initialised; 0 is the end of the stream.
    pub(crate) len: usize,
    /// The fds that came with one of these bytes. A stream's receive ends behind the bytes of the send that had them, so
    /// they never belong to two sends.
    pub(crate) fds: Vec<OwnedFd>,
    /// More fds came than could be taken in (`MSG_CTRUNC`), most often because this process has no free fd.
    pub(crate) fds_lost: bool,
}

impl Received {
    /// Whether a receive of at most `limit` bytes from a stream took all that was there. One that gives fds ends behind
    /// them, whatever is there; one that gives none ends only at the limit or where there is nothing more.
    pub(crate) fn has_drained(&self, limit: usize) -> bool {
        self.len < limit && self.fds.is_empty() && !self.fds_lost
    }
}

/// Receives what is there without waiting into `buf`; recvmsg(2).
///
/// Fds are owned from the moment they exist here, on errors too. A packet that is longer than `buf` is an error
/// (`EMSGSIZE`, from `MSG_TRUNC`), never a part of one.
#[inline(always)]
fn receive(socket: impl AsFd, buf: &mut [MaybeUninit<u8>], flags: libc::c_int) -> io::Result<Received> {
    let flags = libc::MSG_CMSG_CLOEXEC | flags;
    let mut control = ControlBuffer::new();
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // The C libraries do not agree on the type.
    message.msg_controllen = mem::size_of_val(&control.0) as _;
    // Not by recvmsg(3), where a thread could be cancelled, which takes two atomic instructions in a process that has several.
    let [fd, flags] = [socket.as_fd().as_raw_fd(), flags].map(|number| number.cast_unsigned() as usize);
    let place = (&raw mut message).expose_provenance();
    let received = loop {
        #[cfg(test)]
        calls::add();
        // SAFETY: `message` points at `buf` and `control` with their true lengths, and both outlive the call.
        let result = unsafe { call(libc::SYS_recvmsg, [fd, place, flags, 0]) };
        if let Ok(received) = usize::try_from(result) {
            break received;
        }
        if let Err(error) = check(result)
            && error != libc::EINTR
        {
            return Err(io::Error::from_raw_os_error(error));
        }
    };
    let (fds, lost) = collect(&message);
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(Received { len: received, fds, fds_lost: lost || message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Whether a receive may wait until something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Only for the one reader of a socket: see [`wait`].
    Yes,
    No,
}

impl Wait {
    fn flags(self) -> libc::c_int {
        match self {
            Self::Yes => 0,
            Self::No => libc::MSG_DONTWAIT,
        }
    }
}

/// Receives into the room that `buf` has, or into `limit` bytes of it if that is less; see [`receive`].
#[inline(always)]
pub(crate) fn recv_into(socket: impl AsFd, buf: &mut impl BufMut, limit: usize, wait: Wait) -> io::Result<Received> {
    // SAFETY: `receive` only writes bytes that are initialised.
    let room = unsafe { buf.chunk_mut().as_uninit_slice_mut() };
    let limit = limit.min(room.len());
    let received = receive(socket, &mut room[..limit], wait.flags())?;
    // SAFETY: recv initialised the first `received.len` bytes of the room.
    unsafe { buf.advance_mut(received.len) };
    Ok(received)
}

/// Ends the direction in which `socket` sends: its peer reads the end once it has read what came before; shutdown(2).
pub(crate) fn end_sending(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?)
}

/// Ends the direction in which `socket` receives, and throws away what has come: its peer's sends fail; shutdown(2).
///
/// The shutdown alone does not wake a peer that waits for room in a socket whose other direction goes on.
pub(crate) fn end_receiving(socket: impl AsFd) -> io::Result<()> {
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Read)?;
    let mut buf = [MaybeUninit::<u8>::uninit(); 8 * 1024];
    // Nothing can be added any more, so this comes to an end.
    while receive(&socket, &mut buf, libc::MSG_DONTWAIT)?.len > 0 {}
    Ok(())
}

/// Ends both directions. What has come is still there to be received; shutdown(2).
pub(crate) fn end_both(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Both)?)
}

/// Whether it is a Unix socket of a stream; `SO_DOMAIN` and `SO_TYPE` in socket(7).
pub(crate) fn is_stream(fd: impl AsFd) -> bool {
    is_unix(fd, SocketType::STREAM)
}

/// Whether it is a Unix socket that keeps message boundaries.
pub(crate) fn is_packet(fd: impl AsFd) -> bool {
    is_unix(fd, SocketType::SEQPACKET)
}

fn is_unix(fd: impl AsFd, kind: SocketType) -> bool {
    use rustix::net::sockopt::{socket_domain, socket_type};
    socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX) && socket_type(&fd).is_ok_and(|is| is == kind)
}

/// Registers a socket with the current runtime's reactor. Fails outside a runtime.
pub(crate) fn register(socket: Arc<OwnedFd>, interest: Interest) -> io::Result<Registered> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(io::Error::other("not in a tokio runtime: use the blocking methods, or enter one"));
    }
    Registered::new(socket, interest)
}

/// Takes ownership of every fd in a received control buffer, and gives those that were sent. Says whether some of them are
/// lost, as there was no place for them but 0, 1 or 2.
fn collect(message: &libc::msghdr) -> (Vec<OwnedFd>, bool) {
    let (mut fds, mut lost) = (Vec::new(), false);
    // SAFETY: the kernel filled `message` in, so msg_control and msg_controllen describe initialised headers; the CMSG_*
    // functions stay within them.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR only return null or a whole header inside the buffer; checked above.
        let (level, kind, len) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        if level == libc::SOL_SOCKET && matches!(kind, libc::SCM_RIGHTS | SCM_PIDFD) {
            // As above.
            let len: usize = len as _;
            // SAFETY: only computes a length.
            let data_len = len - unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..data_len / mem::size_of::<RawFd>() {
                // SAFETY: `index` is below the number of fds that the kernel wrote behind this header.
                let number = unsafe {
                    #[expect(clippy::cast_ptr_alignment, reason = "it is read unaligned")]
                    let data = libc::CMSG_DATA(header).cast::<RawFd>();
                    data.add(index).read_unaligned()
                };
                if number < 0 {
                    // Where there was no free fd for a pidfd, the error is in its place.
                    continue;
                }
                // SAFETY: it is an open fd that nobody else in this process owns yet.
                let fd = unsafe { OwnedFd::from_raw_fd(number) };
                if kind == libc::SCM_RIGHTS {
                    match above_stdio(fd) {
                        // After one that is missing each would be taken for another.
                        Ok(fd) if !lost => fds.push(fd),
                        _ => lost = true,
                    }
                }
            }
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    (fds, lost)
}

/// The kind of a header with a pidfd of the sender, since Linux 6.5. Whoever shares a socket can have one come with each
/// message (`SO_PASSPIDFD`).
const SCM_PIDFD: libc::c_int = 4;

/// Room for one `SCM_RIGHTS` header with the most fds that the kernel sends, aligned for a `cmsghdr`, and for what somebody who
/// shares the socket may have come along: the sender's credentials, and its pidfd.
///
/// Less room would make the kernel drop fds of a peer that sends more.
struct ControlBuffer([MaybeUninit<u64>; ControlBuffer::WORDS]);

impl ControlBuffer {
    const WORDS: usize = Self::words(MAX_FDS_PER_CALL * mem::size_of::<RawFd>())
        + Self::words(mem::size_of::<libc::ucred>())
        + Self::words(mem::size_of::<RawFd>());

    /// What a header with so many bytes of data takes; `CMSG_SPACE` in cmsg(3).
    const fn words(data: usize) -> usize {
        (mem::size_of::<libc::cmsghdr>() + data).div_ceil(8)
    }

    fn new() -> Self {
        Self([MaybeUninit::uninit(); Self::WORDS])
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Read,
    Write,
}

impl From<Ready> for Interest {
    fn from(ready: Ready) -> Self {
        match ready {
            Ready::Read => Self::READABLE,
            Ready::Write => Self::WRITABLE,
        }
    }
}

/// Waits on this thread until the socket can be read or written, or has ended; poll(2).
///
/// Blocking calls wait here and not in recvmsg: a reader that is killed inside a blocking recvmsg can take the wake-up
/// of another process with it, one that is killed inside poll can't.
pub(crate) fn wait(socket: impl AsFd, ready: Ready) -> io::Result<()> {
    Ok(retry_on_intr(|| poll_for(&socket, ready, None))?)
}

/// As [`wait`], for so long at the most, or until a signal comes: to wait anew for all of the time at each would have no end.
pub(crate) fn wait_within(socket: impl AsFd, ready: Ready, time: Duration) -> io::Result<()> {
    match poll_for(socket, ready, Timespec::try_from(time).ok()) {
        Err(rustix::io::Errno::INTR) => Ok(()),
        result => Ok(result?),
    }
}

fn poll_for(socket: impl AsFd, ready: Ready, time: Option<Timespec>) -> rustix::io::Result<()> {
    let events = match ready {
        Ready::Read => PollFlags::IN,
        Ready::Write => PollFlags::OUT,
    };
    poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), events)], time.as_ref()).map(drop)
}

/// Whether the peer has read all that was sent; `SIOCOUTQ` in unix(7).
pub(crate) fn is_read(socket: impl AsFd) -> bool {
    let mut unread: libc::c_int = 0;
    // SAFETY: the call writes one int, into a live one.
    let asked = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    asked == 0 && unread == 0
}

/// Whether nothing more can come into the socket besides what is in it: `POLLRDHUP` in poll(2).
pub(crate) fn has_ended(socket: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP)];
    // Even a call that does not wait is ended by a signal.
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))?;
    Ok(!fds[0].revents().is_empty())
}

/// Whether nothing is in the socket that has bytes.
pub(crate) fn is_drained(socket: impl AsFd) -> io::Result<bool> {
    Ok(unread(socket)? == 0)
}

/// How many bytes have come that nobody has read; `SIOCINQ` in unix(7).
pub(crate) fn unread(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// How often this thread has called sendmsg and recvmsg, so that a test can say what something costs.
#[cfg(test)]
pub(crate) mod calls {
    use std::cell::Cell;

    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
    }

    pub(super) fn add() {
        CALLS.set(CALLS.get() + 1);
    }

    pub(crate) fn count() -> u32 {
        CALLS.get()
    }
}

#[cfg(test)]
mod tests;
