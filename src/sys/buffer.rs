//! Memory for large bodies: huge pages, and used again.
//!
//! To have a page given by the kernel costs about as much as to fill it: a fault, and zeros that nobody reads. So memory
//! of a body that is no longer needed is kept for the next one, and but for a little marked so that the kernel may take the pages
//! back when it is short of them (`MADV_FREE` in madvise(2)).

use std::io;
use std::mem;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, PoisonError};

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// From this size on a body gets memory of its own, in bytes.
pub(crate) const LARGE: usize = 1 << 20;

/// A huge page, in bytes.
const HUGE: usize = 2 << 20;

/// How much is kept for later, in bytes.
const KEPT: usize = 128 << 20;

/// How much of that is not marked, in bytes, where it is smaller than a huge page. Small pages are marked one by one, and each is noted
/// to be written then when it is used again, which a hypervisor may have to see to: that took as long as to fill them.
const WARM: usize = 8 << 20;

/// Memory of whole pages, which is filled from its beginning.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    capacity: usize,
    /// So many bytes were written since it was taken. What is behind them is not even arbitrary: the kernel may take a page back at
    /// any time until it is written.
    filled: usize,
    /// Whether it is kept, and not marked.
    is_warm: bool,
}

// SAFETY: it is a plain range of memory that it alone owns.
unsafe impl Send for Buffer {}
// SAFETY: a shared reference to it only reads, and whoever writes has it mutably.
unsafe impl Sync for Buffer {}

static SPARE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

impl Buffer {
    /// Takes at least `len` bytes of addresses; what the kernel gives are the pages that are used.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is far too large is left for a body that needs it.
        let fits = |buffer: &Self| buffer.capacity >= len && buffer.capacity / 2 <= len;
        if let Some(found) = spare.iter().rposition(fits) {
            let mut buffer = spare.remove(found);
            buffer.is_warm = false;
            return Ok(buffer);
        }
        drop(spare);
        Self::map(len).or_else(|_| {
            // It may be the spare ones that are in the way.
            let kept = mem::take(&mut *SPARE.lock().unwrap_or_else(PoisonError::into_inner));
            drop(kept);
            Self::map(len)
        })
    }

    /// A copy of these bytes.
    pub(crate) fn copy(bytes: &[u8]) -> io::Result<Bytes> {
        let mut buffer = Self::new(bytes.len())?;
        buffer.put_slice(bytes);
        Ok(buffer.into_bytes())
    }

    /// What it is filled with.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped, and its first `filled` bytes were written since it was last given back (`advance_mut`), so
        // the kernel doesn't take them any more; nobody writes them while it is borrowed.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.filled) }
    }

    /// What it is filled with; the memory comes back when the last of their clones is gone.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(Kept(Some(self)))
    }

    fn map(len: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let capacity = len.max(1).checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let whole = capacity.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses a range that is free, so no memory in use is changed.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), whole, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        // Huge pages lie at multiples of their size, and the kernel doesn't begin there by itself.
        let before = mapped.cast::<u8>().align_offset(HUGE);
        // SAFETY: `before < HUGE`, so `before + capacity < whole`, all of it ours, and nothing points into what is given back.
        let start = unsafe {
            let start = mapped.cast::<u8>().add(before);
            if before > 0 {
                munmap(mapped, before)?;
            }
            munmap(start.add(capacity).cast(), HUGE - before)?;
            start
        };
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at null"))?;
        let buffer = Self { start, capacity, filled: 0, is_warm: false };
        buffer.advise(Advice::LinuxHugepage);
        Ok(buffer)
    }

    /// Says something that may be ignored.
    fn advise(&self, advice: Advice) {
        // SAFETY: the range is ours, and none of the advices that are given changes bytes that anybody may still read: `MADV_FREE`
        // is given to a buffer that holds none, and no borrow of it is left.
        let _ = unsafe { madvise(self.start.as_ptr().cast(), self.capacity, advice) };
    }
}

// SAFETY: a chunk is all that is not filled of the range, which is mapped writable, so a chunk is empty only where nothing remains;
// and it stays where it is, as nothing but `advance_mut` changes `filled` in one that is not kept.
unsafe impl BufMut for Buffer {
    fn remaining_mut(&self) -> usize {
        self.capacity - self.filled
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        assert!(count <= self.remaining_mut());
        self.filled += count;
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        // SAFETY: `filled <= capacity`, by `advance_mut`, so it is the rest of the range, which is borrowed mutably; nobody is told
        // that it is initialised.
        unsafe { UninitSlice::from_raw_parts_mut(self.start.as_ptr().add(self.filled), self.remaining_mut()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and no slice of it outlives its owner, by their borrows.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.capacity) };
    }
}

/// Keeps its memory for the next one when it is dropped.
struct Kept(Option<Buffer>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Buffer::bytes)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(mut buffer) = self.0.take().filter(|buffer| buffer.capacity <= KEPT) else { return };
        buffer.filled = 0;
        buffer.is_warm = buffer.capacity < HUGE;
        if !buffer.is_warm {
            buffer.advise(Advice::LinuxFree);
        }
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = buffer.capacity + spare.iter().map(|buffer| buffer.capacity).sum::<usize>();
        let mut oldest = 0;
        while total > KEPT {
            total -= spare[oldest].capacity;
            oldest += 1;
        }
        let gone: Vec<_> = spare.drain(..oldest).collect();
        spare.push(buffer);
        cool(&mut spare);
        drop(spare);
        drop(gone);
    }
}

/// Marks what has been kept for longest of what is too much to stay warm.
fn cool(spare: &mut [Buffer]) {
    let mut warm = 0;
    for buffer in spare.iter_mut().rev().filter(|buffer| buffer.is_warm) {
        warm += buffer.capacity;
        if warm > WARM {
            buffer.is_warm = false;
            buffer.advise(Advice::LinuxFree);
        }
    }
}

/// A copy of large bytes for somebody who wants to own it as a `Vec`, on huge pages where it has room for them.
pub(crate) fn copy_to_vec(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::new();
    copy.reserve_exact(bytes.len());
    advise_huge(&mut copy);
    copy.extend_from_slice(bytes);
    copy
}

/// As [`Vec::reserve`], on huge pages where that is much.
pub(crate) fn reserve(buf: &mut Vec<u8>, additional: usize) {
    if buf.capacity() - buf.len() < additional {
        buf.reserve(additional);
        advise_huge(buf);
    }
}

/// Asks for huge pages for a large vector.
///
/// It is all of its pages that are advised, with the part of the first and the last one that are others': an allocator that
/// mapped the vector's memory by itself can then still move it when it grows (mremap(2) takes no mapping that is divided).
fn advise_huge(buf: &mut Vec<u8>) {
    if buf.capacity() < 2 * HUGE {
        return;
    }
    let page = rustix::param::page_size();
    let before = buf.as_ptr().addr() % page;
    let whole = (before + buf.capacity()).next_multiple_of(page);
    // SAFETY: the pages that the vector has bytes on, so they are mapped; the advice changes none, whoever they belong to.
    let _ = unsafe { madvise(buf.as_mut_ptr().wrapping_sub(before).cast(), whole, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_holds_what_was_put_into_it_and_is_aligned_for_huge_pages() {
        for len in [0, 1, LARGE, HUGE - 1, HUGE, 5 * HUGE + 4097] {
            let buffer = Buffer::map(len).unwrap();
            assert!(buffer.start.as_ptr().addr().is_multiple_of(HUGE));
            assert!(buffer.capacity >= len && buffer.capacity < len + 8192);
            assert!(buffer.bytes().is_empty() && buffer.remaining_mut() == buffer.capacity);
            let bytes = vec![len.to_le_bytes()[0] | 1; len];
            assert!(Buffer::copy(&bytes).unwrap() == bytes);
            assert!(copy_to_vec(&bytes) == bytes);
        }
    }

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        // A size that no other test has.
        let len = 7 * HUGE + 12_345;
        let is_used_again = || {
            let first = Buffer::copy(&vec![1; len]).unwrap();
            let (place, part) = (first.as_ptr(), first.slice(5..10));
            drop(first);
            let second = Buffer::copy(&vec![2; len]).unwrap();
            assert_ne!(second.as_ptr(), place, "a part of it is still read");
            assert_eq!(part[..], [1; 5]);
            drop(part);
            let third = Buffer::copy(&vec![3; len]).unwrap();
            assert!(third[..] == vec![3; len][..] && second[..] == vec![2; len][..]);
            let is_used_again = third.as_ptr() == place;
            drop(third);
            assert!(Buffer::new(len).unwrap().bytes().is_empty(), "what was in it may turn to zeros");
            is_used_again
        };
        // What is kept belongs to the whole process, and a test beside this one may give all of it up in between.
        assert!((0..50).any(|_| is_used_again()));
    }

    /// How many bytes of it the kernel may take back, by `LazyFree` in proc_pid_smaps(5).
    fn marked(buffer: &Buffer) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", buffer.start.as_ptr().addr());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let line = lines.find_map(|line| line.strip_prefix("LazyFree:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    }

    #[test]
    fn of_what_is_smaller_than_a_huge_page_the_newest_stays_as_it_is() {
        let count = 2 * WARM / LARGE;
        let mut spare: Vec<_> = (0..count)
            .map(|_| {
                // With nothing else in their mappings.
                let mut buffer = Buffer::map(LARGE).unwrap();
                buffer.put_slice(&vec![1; LARGE]);
                buffer.is_warm = true;
                buffer
            })
            .collect();
        cool(&mut spare);
        let is_warm: Vec<_> = spare.iter().map(|buffer| buffer.is_warm).collect();
        assert_eq!(is_warm, [[false; WARM / LARGE], [true; WARM / LARGE]].concat());
        assert!(spare.iter().all(|buffer| buffer.is_warm == (marked(buffer) == 0)));
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(Buffer::new(usize::MAX).is_err());
        assert!(Buffer::new(1 << 50).is_err());
    }
}
