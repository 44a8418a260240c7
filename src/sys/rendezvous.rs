//! Unix sockets with a place in the file system: listening, accepting, connecting, and who is at the other end.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::sys::socket::above_stdio;

/// How many connections wait to be accepted; listen(2).
const BACKLOG: i32 = 128;

/// A directory, however long its path is, and wherever that leads later on.
#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

/// What a name in a directory means at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    device: u64,
    inode: u64,
    pub(crate) is_socket: bool,
}

impl Directory {
    /// Opens a directory; open(2).
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OFlags::RDONLY)
    }

    /// Opens one that need not be readable: it can only be passed through.
    pub(crate) fn open_to_pass(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OFlags::PATH)
    }

    fn open_with(path: &Path, flags: OFlags) -> io::Result<Self> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(above_stdio(rustix::fs::open(path, flags, Mode::empty())?)?))
    }

    /// Its owner, and its permission bits; stat(2).
    pub(crate) fn owner_and_mode(&self) -> io::Result<(u32, u32)> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok((stat.st_uid, stat.st_mode & 0o777))
    }

    /// Locks a file that only our user can open, made for this: the directory itself can be locked by all who may read it. Until
    /// it is dropped; flock(2). `WouldBlock` if somebody has the lock.
    pub(crate) fn try_lock(&self, name: &OsStr) -> io::Result<Lock<'_>> {
        let name = [b".", name.as_bytes(), b".lock"].concat();
        let name = OsString::from_vec(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, &name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        // Whoever had it before has removed the file, and another one may have been made since.
        let (ours, there) = (Entry::of(&rustix::fs::fstat(&file)?), self.entry(&name));
        if there.is_ok_and(|there| there == ours) {
            Ok(Lock { dir: self, name, file })
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// What the name means; statat(2).
    pub(crate) fn entry(&self, name: &OsStr) -> io::Result<Entry> {
        Ok(Entry::of(&rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Removes the name; unlinkat(2).
    pub(crate) fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Lets everybody connect whom the directory lets through; chmod(2).
    pub(crate) fn open_to_all(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::chmodat(&self.0, name, Mode::from_raw_mode(0o666), AtFlags::empty())?)
    }

    /// Binds a new socket to the name, and does not listen yet. Nobody else gets this socket: it never blocks.
    pub(crate) fn bind(&self, name: &OsStr) -> io::Result<OwnedFd> {
        let socket = new()?;
        rustix::net::bind(&socket, &self.address(name)?)?;
        Ok(socket)
    }

    /// Connects a new socket to whoever listens at the name. `WouldBlock` if too many wait there already; connect(2).
    pub(crate) fn connect(&self, name: &OsStr) -> io::Result<OwnedFd> {
        let socket = new()?;
        rustix::net::connect(&socket, &self.address(name)?)?;
        // The flag is the description's, which others will share.
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(socket)
    }

    /// An address has room for 107 bytes; this one is short for every directory.
    fn address(&self, name: &OsStr) -> io::Result<SocketAddrUnix> {
        let place = format!("/proc/self/fd/{}/", self.0.as_raw_fd());
        let path = [place.as_bytes(), name.as_bytes()].concat();
        Ok(SocketAddrUnix::new(OsStr::from_bytes(&path))?)
    }
}

impl Entry {
    fn of(stat: &Stat) -> Self {
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        Self { device: stat.st_dev, inode: stat.st_ino, is_socket }
    }
}

/// Keeps others of our user from locking the same name.
#[must_use]
#[derive(Debug)]
pub(crate) struct Lock<'a> {
    dir: &'a Directory,
    name: OsString,
    file: OwnedFd,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Only who has the lock removes its file. A forked copy of this process may have a copy of the fd, and keep it open.
        let _ = self.dir.remove(&self.name);
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn new() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    above_stdio(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Begins to listen; listen(2).
pub(crate) fn listen(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

/// Takes a connection that waits; accept4(2).
pub(crate) fn accept(socket: impl AsFd) -> io::Result<OwnedFd> {
    loop {
        match rustix::net::accept_with(&socket, SocketFlags::CLOEXEC) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            result => return above_stdio(result?),
        }
    }
}

/// The process id, user and group at the other end when the connection was made; of one end of a socketpair, of who made the
/// pair. `SO_PEERCRED` in unix(7).
///
/// There is no process id for a process of another PID namespace: the kernel says 0 then, which is no `Pid` (and what rustix has for
/// this takes the number for one that is not 0).
pub(crate) fn peer_credentials(socket: impl AsFd) -> io::Result<(Option<Pid>, u32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(mem::size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: `credentials` and `len` are valid for the call and say their true size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((Pid::from_raw(credentials.pid), credentials.uid, credentials.gid))
}

/// The user in whose name this process acts; geteuid(2).
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::first::is_first_process;
    use crate::sys::socket::stream_pair;

    #[test]
    fn who_is_at_the_other_end_has_a_number_unless_it_is_in_another_pid_namespace() {
        let (here, _there) = stream_pair().unwrap();
        assert_eq!(peer_credentials(here).unwrap().0, Some(rustix::process::getpid()));
        if is_first_process() {
            let (pid, user, _) = peer_credentials(rustix::stdio::stdin()).unwrap();
            assert_eq!((pid, user), (None, own_user()));
        }
    }
}
