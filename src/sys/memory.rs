//! Memory that processes share by an fd: memfds and their seals.
//!
//! What a seal promises, and to whom, is said where it is set. See `memfd_create(2)` and `F_ADD_SEALS` in fcntl(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::BytesMut;
use rustix::fs::{MemfdFlags, fcntl_get_seals, fstat, memfd_create};

use super::socket::above_stdio;

/// Puts bytes into a new memfd.
pub(crate) fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = above_stdio(memfd_create(c"multiproc", MemfdFlags::CLOEXEC)?)?;
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::pwrite(&fd, &bytes[written..], written as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(fd)
}

/// Appends the first `len` bytes of a memfd to `out`. Anything but a memfd of just that length is an error: another kind
/// of file could keep us waiting.
pub(crate) fn read(fd: impl AsFd, len: usize, out: &mut BytesMut) -> io::Result<()> {
    if fcntl_get_seals(&fd).is_err() || u64::try_from(fstat(&fd)?.st_size) != Ok(len as u64) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not the shared memory that was announced"));
    }
    let start = out.len();
    out.resize(start + len, 0);
    let mut read = 0;
    while read < len {
        match rustix::io::pread(&fd, &mut out[start + read..], read as u64) {
            // It was cut meanwhile.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => read += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
