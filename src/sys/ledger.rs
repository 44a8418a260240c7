//! The ledger: a little memory that a parent and one worker share, so that tasks can be sent ahead and answers gathered
//! without costing a promise.
//!
//! ```text
//!  byte 0     claimed: the number of the last task that was begun, or taken back
//!       64    written: bytes of answers that the worker has put into the ring, ever
//!       128   read:    bytes of answers that the parent has taken out, ever
//!       192   stop:    the number of the task that is to stop by itself
//!       256   stops:   how often the parent has said so; a futex
//!       320   kept for: the number of the task whose parts are kept
//!       384   kept:    how many of its parts have a result, and how many bytes those take
//!       448   began:   when the worker began the first task after it had had none; CLOCK_MONOTONIC, in nanoseconds
//!       456   runs on: the processor on which the worker was when it last had nothing more to do
//!       512   sent on: the processor on which the parent was when it last gave the worker a task after it had had none
//!       520   wanted:  what who gave the worker its only task wants besides its answer: that he need not be told of it, or that the
//!                      worker leaves his processor
//!       4096  the ring of answers: a stream of frames, 64 KiB of it at a time
//!      69632  the results that are kept, up to 128 KiB
//! ```
//!
//! A task is begun by moving `claimed` from the number before it to its own; the parent takes back what was not begun by
//! moving `claimed` past it. Whoever comes second fails, so nothing runs twice, and the parent knows without asking, and
//! after the worker's death too. An answer is in the ring before the next task is begun, so no death can lose it. A task of many
//! parts keeps the result of each before it begins the next; those are only looked at if it never answers.
//!
//! Both sides touch the memory with atomics only, and the parent believes nothing in it: a length that can't be is an
//! error, and bytes are copied out before they are looked at. What the frames say is not this file's business.

mod ring;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

pub(crate) use self::ring::{Reader, Writer};
use super::affinity::processor;
use super::clock::monotonic_nanos;
use super::memory::memfd;

/// How many bytes of answers the ring holds.
pub(crate) const RING: usize = 64 * 1024;

/// How many of them may be unread. Words are written whole, so the one that is being filled must never be the one in which
/// the oldest unread bytes lie.
const CAPACITY: usize = RING - 8;

/// How many bytes of results of a task's parts can be kept.
pub(crate) const KEPT: usize = 128 * 1024;

const RING_START: usize = 4096;
const KEPT_START: usize = RING_START + RING;
const LEN: usize = KEPT_START + KEPT;
const CLAIMED: usize = 0;
const WRITTEN: usize = 64;
const READ: usize = 128;
const STOP: usize = 192;
const STOPS: usize = 256;
const KEPT_FOR: usize = 320;
const KEPT_SO_FAR: usize = 384;
const BEGAN: usize = 448;
const RUNS_ON: usize = 456;
const SENT_ON: usize = 512;
const WANTED: usize = 520;

/// What can be wanted: nothing, that is.
const NOTHING: u64 = 0;
/// He looks for the answer.
const LOOKED_FOR: u64 = 1;
/// The worker is to go to another processor.
const LEAVE: u64 = 2;

/// The shared memory, mapped.
#[derive(Debug)]
pub(crate) struct Ledger {
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process and not to a thread, and is only touched through atomics.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// Makes one, and the fd that gives it to a worker; memfd_create(2).
    ///
    /// It is sealed against a change of its size: a worker that truncated it would turn the parent's reads into SIGBUS.
    pub(crate) fn create() -> io::Result<(Self, OwnedFd)> {
        let fd = memfd(LEN, MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, LEN as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Opens the one that came from the parent.
    pub(crate) fn open(fd: impl AsFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        if !seals.contains(SealFlags::SHRINK) || u64::try_from(rustix::fs::fstat(&fd)?.st_size) != Ok(LEN as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a ledger"));
        }
        Self::map(&fd)
    }

    fn map(fd: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory that anything else uses. The
        // file is LEN bytes long and sealed against shrinking, which both callers have made sure of.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)?
        };
        NonNull::new(start.cast()).map(|start| Self { start }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < LEN);
        // SAFETY: the mapping is LEN bytes long, page-aligned and lives as long as `self`; the offset is a multiple of 8
        // inside it (asserted above). Nobody touches the memory but through atomics.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    fn stops_word(&self) -> &AtomicU32 {
        // SAFETY: STOPS is a multiple of 4 inside the mapping, which lives as long as `self`; nothing else touches these
        // four bytes.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(STOPS).cast()) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves less than RING")]
    fn ring(&self, position: u64) -> &AtomicU64 {
        self.word(RING_START + (position & (RING as u64 - 1) & !7) as usize)
    }

    fn kept_word(&self, position: usize) -> &AtomicU64 {
        self.word(KEPT_START + (position & !7))
    }

    /// How many of a task's parts have a result that is kept, and how many bytes those take, in the parent.
    fn kept_so_far(&self, number: u64) -> (u32, usize) {
        if self.word(KEPT_FOR).load(Ordering::Acquire) != number {
            return (0, 0);
        }
        let kept = self.word(KEPT_SO_FAR).load(Ordering::Acquire);
        // The halves of one word.
        #[expect(clippy::cast_possible_truncation, reason = "each half fits")]
        ((kept >> 32) as u32, kept as u32 as usize)
    }

    /// How many parts of task `number` have a result that is kept, in the parent.
    pub(crate) fn kept_parts(&self, number: u64) -> u32 {
        self.kept_so_far(number).0
    }

    /// The results of parts of task `number` that are kept, and how many they are, in the parent.
    pub(crate) fn kept(&self, number: u64) -> Result<(u32, Bytes), Corrupt> {
        let (parts, len) = self.kept_so_far(number);
        if len > KEPT {
            return Err(Corrupt);
        }
        let mut results = BytesMut::with_capacity(len + 8);
        for position in (0..len).step_by(8) {
            results.put_u64_le(self.kept_word(position).load(Ordering::Relaxed));
        }
        results.truncate(len);
        Ok((parts, results.freeze()))
    }

    /// Begins task `number`, in the worker. `false`: it was taken back.
    pub(crate) fn claim(&self, number: u64) -> bool {
        let before = number.wrapping_sub(1);
        self.word(CLAIMED).compare_exchange(before, number, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Says that a task is begun now, for which the worker had waited, in the worker; before it is claimed.
    pub(crate) fn note_began(&self) -> u64 {
        let now = monotonic_nanos();
        self.word(BEGAN).store(now, Ordering::Release);
        now
    }

    /// How long ago the worker began the first task after it had had none, by what it says, in the parent.
    pub(crate) fn began_ago(&self) -> Duration {
        Duration::from_nanos(monotonic_nanos().saturating_sub(self.word(BEGAN).load(Ordering::Acquire)))
    }

    /// Says on which processor this thread is, which is about to send a task, for whose answer nobody looks yet, in the parent.
    /// Gives whether the worker was on another one.
    pub(crate) fn note_sender(&self) -> bool {
        self.word(WANTED).store(NOTHING, Ordering::Relaxed);
        let here = processor() as u64;
        self.word(SENT_ON).store(here, Ordering::Relaxed);
        self.word(RUNS_ON).load(Ordering::Relaxed) != here
    }

    /// Says on which processor this thread is, which has nothing to do, and whether the parent was on that one, too, in the worker.
    pub(crate) fn shares_processor(&self) -> bool {
        let here = processor() as u64;
        self.word(RUNS_ON).store(here, Ordering::Relaxed);
        self.word(SENT_ON).load(Ordering::Relaxed) == here
    }

    /// Whether this thread is on another one, in the parent.
    pub(crate) fn is_sender_apart(&self) -> bool {
        self.word(SENT_ON).load(Ordering::Relaxed) != processor() as u64
    }

    /// Whether the worker was on another one than this thread is, in the parent.
    pub(crate) fn is_apart(&self) -> bool {
        self.word(RUNS_ON).load(Ordering::Relaxed) != processor() as u64
    }

    /// Says whether somebody looks for the answer to the worker's only task just now, who need not be told of it, in the parent.
    pub(crate) fn look_for_answer(&self, looks: bool) {
        self.word(WANTED).store(if looks { LOOKED_FOR } else { NOTHING }, Ordering::Relaxed);
    }

    /// Whether somebody does, in the worker. It may be over by now: it is for the worker to see that what it says is taken in.
    pub(crate) fn is_looked_for(&self) -> bool {
        self.word(WANTED).load(Ordering::Relaxed) == LOOKED_FOR
    }

    /// Asks the worker to go to another processor once it has done its only task, in the parent.
    pub(crate) fn ask_to_leave(&self) {
        self.word(WANTED).store(LEAVE, Ordering::Relaxed);
    }

    /// Whether it is to, in the worker.
    pub(crate) fn is_to_leave(&self) -> bool {
        self.word(WANTED).load(Ordering::Relaxed) == LEAVE
    }

    /// Takes back every task up to `last` that was not begun, in the parent. Gives the last one that was.
    pub(crate) fn take_back(&self, last: u64) -> u64 {
        let claimed = self.word(CLAIMED);
        let mut begun = claimed.load(Ordering::Acquire);
        while begun < last {
            match claimed.compare_exchange_weak(begun, last, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => begun = now,
            }
        }
        begun
    }

    /// The last task that was begun or taken back.
    pub(crate) fn begun(&self) -> u64 {
        self.word(CLAIMED).load(Ordering::Acquire)
    }

    /// Whether there may be answers that were not taken yet, in the parent.
    pub(crate) fn has_answers(&self) -> bool {
        self.word(WRITTEN).load(Ordering::Acquire) != self.word(READ).load(Ordering::Relaxed)
    }

    /// Says that task `number` is to stop by itself, in the parent; futex(2) wakes who waits for that.
    pub(crate) fn ask_to_stop(&self, number: u64) {
        self.word(STOP).store(number, Ordering::Release);
        self.stops_word().fetch_add(1, Ordering::Release);
        // It can only fail on bad arguments. Nobody may be waiting.
        let _ = futex::wake(self.stops_word(), futex::Flags::empty(), i32::MAX.unsigned_abs());
    }

    /// Whether task `number` is to stop by itself, in the worker. 0 is none, and so are both numbers at the beginning.
    pub(crate) fn is_to_stop(&self, number: u64) -> bool {
        number != 0 && self.word(STOP).load(Ordering::Acquire) == number
    }

    /// How often the parent has asked a task to stop.
    pub(crate) fn stops(&self) -> u32 {
        self.stops_word().load(Ordering::Acquire)
    }

    /// Waits until that has been more often than `seen`, or for no reason; futex(2).
    pub(crate) fn wait_for_stop(&self, seen: u32) {
        // An interruption is no reason, and another number than `seen` an error that says so.
        let _ = futex::wait(self.stops_word(), futex::Flags::empty(), seen, None);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, LEN bytes long, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), LEN) };
    }
}

/// What a worker keeps of a task of many parts while it goes on.
#[derive(Debug)]
pub(crate) struct Keeper {
    ledger: Arc<Ledger>,
    number: u64,
    parts: u32,
    len: u64,
    /// As in the [`Writer`].
    partial: u64,
}

impl Keeper {
    /// Forgets what is kept; from now on it is task `number`'s.
    pub(crate) fn begin(ledger: Arc<Ledger>, number: u64) -> Self {
        ledger.word(KEPT_SO_FAR).store(0, Ordering::Relaxed);
        ledger.word(KEPT_FOR).store(number, Ordering::Release);
        Self { ledger, number, parts: 0, len: 0, partial: 0 }
    }

    /// Whether the task is to stop by itself.
    pub(crate) fn is_to_stop(&self) -> bool {
        self.ledger.is_to_stop(self.number)
    }

    /// Keeps the next part's result. `false`: there is no room for it.
    #[inline]
    pub(crate) fn keep(&mut self, result: &[u8]) -> bool {
        if result.len() as u64 > KEPT as u64 - self.len {
            return false;
        }
        let Self { ledger, parts, len, partial, .. } = self;
        #[expect(clippy::cast_possible_truncation, reason = "it is at most KEPT")]
        store(result, len, partial, |position| ledger.kept_word(position as usize));
        *parts += 1;
        // The bytes before the numbers that say they are there.
        ledger.word(KEPT_SO_FAR).store(u64::from(*parts) << 32 | *len, Ordering::Release);
        true
    }
}

/// Stores bytes behind those that are there, word by word; `partial` is what the word at `position` holds so far.
///
/// With shifts and not with copies of a few bytes each: it is done for each of millions of tiny results.
#[inline]
fn store<'a>(bytes: &[u8], position: &mut u64, partial: &mut u64, word_at: impl Fn(u64) -> &'a AtomicU64) {
    let filled = 8 * (*position % 8);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        word_at(*position).store(*partial | word << filled, Ordering::Relaxed);
        *partial = if filled == 0 { 0 } else { word >> (64 - filled) };
        *position += 8;
    }
    for &byte in rest {
        *partial |= u64::from(byte) << (8 * (*position % 8));
        *position += 1;
        if position.is_multiple_of(8) {
            word_at(*position - 8).store(*partial, Ordering::Relaxed);
            *partial = 0;
        }
    }
    if !position.is_multiple_of(8) {
        word_at(*position).store(*partial, Ordering::Relaxed);
    }
}

/// The worker wrote what can't be into the ledger.
#[derive(Debug)]
pub(crate) struct Corrupt;

#[cfg(test)]
mod tests;
