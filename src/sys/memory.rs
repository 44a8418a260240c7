//! Memory that processes share by an fd: memfds, their seals, and their mappings.
//!
//! A slice of bytes may only lie over pages that nobody can write or take away. What makes that true is a set of seals that
//! the kernel keeps, whoever made the memfd; see `memfd_create(2)` and `F_ADD_SEALS` in `fcntl(2)`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;

use bytes::BufMut;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::process::Resource;

use super::limits;
use super::socket::above_stdio;

/// Up to so many bytes nobody asks whether they are free: it is a system call more, of a slow kind.
const UNASKED: usize = 64 << 20;

/// Makes a memfd that is to have `len` bytes.
///
/// Memory is a file to `RLIMIT_FSIZE`, and to exceed that is not just an error: SIGXFSZ would end this process; setrlimit(2).
/// And of a memfd nothing is taken before it is written, when it is too late for an error: the out-of-memory killer would end
/// this process, or another one.
pub(super) fn memfd(len: usize, flags: MemfdFlags) -> io::Result<OwnedFd> {
    if limits::get(Resource::Fsize).current.is_some_and(|most| len as u64 > most) {
        return Err(Errno::FBIG.into());
    }
    if len > UNASKED && fs::read_to_string("/proc/meminfo").is_ok_and(|info| !has_free(&info, len as u64)) {
        return Err(Errno::NOMEM.into());
    }
    above_stdio(memfd_create(c"multiproc", MemfdFlags::CLOEXEC | flags)?)
}

/// Whether so many bytes are free by the text of `/proc/meminfo`, swap included; proc_meminfo(5). One that doesn't say is
/// believed to have them.
fn has_free(info: &str, len: u64) -> bool {
    let kib = |field: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    kib("MemAvailable").is_none_or(|memory| len / 1024 < memory.saturating_add(kib("SwapFree").unwrap_or(0)))
}

/// Puts bytes into a new memfd, one piece behind the other.
pub(crate) fn write<T: AsRef<[u8]>>(pieces: impl Iterator<Item = T> + Clone) -> io::Result<OwnedFd> {
    let len = pieces.clone().map(|piece| piece.as_ref().len()).sum();
    let mut file = File::from(memfd(len, MemfdFlags::empty())?);
    for piece in pieces {
        file.write_all(piece.as_ref())?;
    }
    Ok(file.into())
}

/// Puts the bytes of a memfd of just that length behind those of `out`, which has room for them. Anything else is an error: another
/// kind of file could keep us waiting, and what nobody has written would cost memory here that it has cost nobody there.
pub(crate) fn read(fd: impl AsFd, len: usize, out: &mut impl BufMut) -> io::Result<()> {
    /// In bytes; inode(7).
    const BLOCK: u64 = 512;
    let is_written = |len: u64| {
        let stat = fstat(&fd)?;
        let has = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
        Ok::<_, io::Error>(u64::try_from(stat.st_size) == Ok(len) && has >= len)
    };
    if fcntl_get_seals(&fd).is_err() || !is_written(len as u64)? {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not the shared memory that was announced"));
    }
    let mut read = 0;
    while read < len {
        // SAFETY: pread only writes bytes that are initialised.
        let room = unsafe { out.chunk_mut().as_uninit_slice_mut() };
        let limit = room.len().min(len - read);
        match rustix::io::pread(&fd, &mut room[..limit], read as u64) {
            // It was cut meanwhile.
            Ok(([], _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((filled, _)) => {
                let count = filled.len();
                // SAFETY: pread initialised so many bytes of the room.
                unsafe { out.advance_mut(count) };
                read += count;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Memory of a memfd that is still being written, zeroed at first.
#[derive(Debug)]
pub(crate) struct Draft {
    fd: OwnedFd,
    mapping: Mapping,
}

impl Draft {
    /// Makes a memfd of `len` bytes and maps it.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let fd = memfd(len, MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        let mapping = Mapping::new(&fd, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
        // All pages at once, and huge ones if there are such: one fault a page later would cost more than writing them.
        mapping.advise(Advice::LinuxHugepage);
        mapping.advise(Advice::LinuxPopulateWrite);
        Ok(Self { fd, mapping })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: nobody else has the fd, which leaves this process only when `seal` has taken the whole draft; so the
        // pages are written through `bytes_mut` alone, which excludes this borrow.
        unsafe { slice::from_raw_parts(self.mapping.start.as_ptr(), self.mapping.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the mapping is writable (made so in `new`).
        unsafe { slice::from_raw_parts_mut(self.mapping.start.as_ptr(), self.mapping.len) }
    }

    /// Makes it unchangeable for everyone and for good.
    pub(crate) fn seal(self) -> io::Result<Sealed> {
        let Self { fd, mapping } = self;
        let len = mapping.len;
        // The kernel refuses the seal while anything can write.
        drop(mapping);
        match fcntl_add_seals(&fd, SEALS | SealFlags::SEAL) {
            // A process that another thread forked has a copy of the mapping until it executes its program. To keep it from
            // having one (`MADV_DONTFORK`) would end a copy of this program that goes on and looks there.
            Err(Errno::BUSY) => Sealed::written(len, |file| io::copy(&mut File::from(fd), file).map(drop)),
            sealed => {
                sealed?;
                Sealed::new(fd, len)
            }
        }
    }
}

/// What must be sealed before memory is read in place: its bytes can't change, and it can't be cut, which would raise
/// SIGBUS here.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Memory that nobody can write any more, mapped.
#[derive(Debug)]
pub(crate) struct Sealed {
    fd: OwnedFd,
    mapping: Mapping,
}

impl Sealed {
    /// Makes one of bytes that are here already. They are written into the file, whose pages the kernel then neither clears
    /// first nor maps: that is half the price of a draft that they are copied into.
    pub(crate) fn copy(bytes: &[u8]) -> io::Result<Self> {
        Self::written(bytes.len(), |file| file.write_all(bytes))
    }

    /// Makes one of what is written into the file.
    fn written(len: usize, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Self> {
        let mut file = File::from(memfd(len, MemfdFlags::ALLOW_SEALING)?);
        write(&mut file)?;
        let fd = file.into();
        fcntl_add_seals(&fd, SEALS | SealFlags::SEAL)?;
        Self::new(fd, len)
    }

    /// Maps a memfd of just `len` bytes. Its seals and its size are looked at first: it may come from anybody.
    pub(crate) fn new(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        match fcntl_get_seals(&fd) {
            Ok(seals) if seals.contains(SEALS) => {}
            _ => return Err(invalid("memory that is not sealed: somebody could still write it")),
        }
        // It stays so, by `SHRINK` and `GROW`.
        if u64::try_from(fstat(&fd)?.st_size) != Ok(len as u64) {
            return Err(invalid("not as much memory as was announced"));
        }
        // Before Linux 6.7 memory with this seal can't be mapped as shared. Nothing is ever written to it, so a private
        // mapping shows the same pages.
        let mapping = Mapping::new(&fd, len, ProtFlags::READ, MapFlags::PRIVATE)?;
        mapping.advise(Advice::LinuxHugepage);
        Ok(Self { fd, mapping })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable and has `len` bytes that exist (the size was checked, and `SHRINK` keeps it);
        // nobody can write them, by `WRITE`, which `new` checked and which can't be undone.
        unsafe { slice::from_raw_parts(self.mapping.start.as_ptr(), self.mapping.len) }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Where memory of no length lies: at a multiple of a page, and nowhere.
const NO_PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A range of addresses that a file lies under; mmap(2). Of no length, it is no range at all.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is a plain range of memory, which is bound to no thread; who may access it is up to its owner.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; a shared reference to it allows nothing but to look at its address and length.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, len: usize, protection: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        if len == 0 {
            // mmap refuses this; a slice of no length may lie anywhere but at null. Whoever views it as plain data expects a
            // page's alignment, as of any other.
            return Ok(Self { start: NonNull::without_provenance(NO_PAGE), len });
        }
        // SAFETY: without MAP_FIXED the kernel chooses a range that is free, so no memory in use is changed.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, flags, fd, 0) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at null"))?;
        Ok(Self { start, len })
    }

    /// Says something that may be ignored.
    fn advise(&self, advice: Advice) {
        if self.len > 0 {
            // SAFETY: the range is ours, and none of the advices that are given changes its bytes.
            let _ = unsafe { madvise(self.start.as_ptr().cast(), self.len, advice) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is ours (`new` got it from mmap), and no slice of it outlives its owner, by their borrows.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_neither_be_written_nor_cut() {
        let mut draft = Draft::new(10_000).unwrap();
        assert_eq!(draft.bytes(), [0; 10_000]);
        draft.bytes_mut().fill(7);
        let writer = draft.fd.try_clone().unwrap();
        let sealed = draft.seal().unwrap();
        assert_eq!(sealed.bytes(), [7; 10_000]);
        assert!(rustix::io::pwrite(&writer, b"x", 0).is_err());
        assert!(ftruncate(&writer, 1).is_err());
        assert!(ftruncate(&writer, 20_000).is_err());
        assert!(Mapping::new(&writer, 10_000, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED).is_err());
        assert!(fcntl_add_seals(&writer, SealFlags::FUTURE_WRITE).is_err());
        assert_eq!(sealed.bytes(), [7; 10_000]);
    }

    #[test]
    fn what_a_forked_copy_could_still_write_is_sealed_as_a_copy() {
        for len in [1, 10_000, 5 << 20] {
            let mut draft = Draft::new(len).unwrap();
            draft.bytes_mut().fill(7);
            // As a process has it that was forked, until it executes its program.
            let theirs = Mapping::new(&draft.fd, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED).unwrap();
            let sealed = draft.seal().unwrap();
            // SAFETY: the mapping is writable and has a byte, and nobody else looks at it.
            unsafe { theirs.start.as_ptr().write_volatile(1) };
            assert!(sealed.bytes().iter().all(|byte| *byte == 7));
            assert_eq!(sealed.bytes().len(), len);
            assert!(fcntl_get_seals(&sealed.fd).unwrap().contains(SEALS));
        }
    }

    #[test]
    fn what_is_more_than_the_free_memory_is_known_before_it_is_taken() {
        let info =
            "MemTotal:  9000 kB\nMemFree:   100 kB\nMemAvailable:  3000 kB\nSwapTotal:  7000 kB\nSwapFree:  1000 kB\n";
        assert!(has_free(info, 3999 << 10));
        assert!(!has_free(info, 4000 << 10));
        assert!(!has_free(info, u64::MAX));
        assert!(!has_free("MemAvailable: 1 kB", 1024));
        assert!(has_free("MemTotal: 1 kB", u64::MAX), "a kernel before 3.14");
        assert_eq!(Draft::new(1 << 50).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn only_sealed_memory_of_the_right_size_is_mapped() {
        let whole = SEALS;
        let made = |seals: SealFlags, len: u64| {
            let fd = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&fd, len).unwrap();
            fcntl_add_seals(&fd, seals).unwrap();
            fd
        };
        assert!(Sealed::new(made(whole, 100), 100).is_ok());
        assert!(Sealed::new(made(whole, 0), 0).is_ok());
        for missing in [SealFlags::WRITE, SealFlags::SHRINK, SealFlags::GROW] {
            assert!(Sealed::new(made(whole.difference(missing), 100), 100).is_err(), "{missing:?}");
        }
        let future = whole.difference(SealFlags::WRITE).union(SealFlags::FUTURE_WRITE);
        assert!(Sealed::new(made(future, 100), 100).is_err(), "who mapped it before can still write");
        assert!(Sealed::new(made(whole, 100), 101).is_err());
        assert!(Sealed::new(made(whole, 100), 99).is_err());
        assert!(Sealed::new(made(whole, 100), usize::MAX).is_err());
        let null = std::fs::File::open("/dev/zero").unwrap();
        assert!(Sealed::new(null.into(), 0).is_err(), "no memfd");
    }
}
