//! File descriptors inside values: serde has no word for them, so they travel beside the bytes.
//!
//! While a value is encoded, each fd in it is put onto a stack of this thread and its place there goes into the bytes;
//! while it is decoded, the place is traded for the fd that came with the frame. Whose part of the stack that is says a
//! scope, and its part is gone on every exit, by error and by panic too, so no fd can slip into another message. Most
//! values have no fd: for them a scope is a number.
//!
//! To encode an end of a channel moves it, in the same breath as its fd is put down. What calls that off lies on the stack with
//! the fd, and rides along; see `passenger.rs`. And it is how whoever has something decoded more than once, from one encoding,
//! knows that it must not: an end is a conversation, and a second process would go on in the middle of the first one's.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

use crate::sys::socket;
use crate::wire::extra::Extra;
use crate::wire::frame::MAX_FDS;
use crate::wire::passenger::{Move, Passenger};

/// Why a value can't be decoded whose fds this process had no room for.
pub(crate) const LOST: &str = "file descriptors of the message could not be taken in: too many are open here";

/// What this thread is doing with fds at the moment, and which part of the stack that is about: in one word, as it is written and
/// read again with each value, and a processor waits where a value is read in larger pieces than it was just written in.
///
/// The work is in the lowest two bits, then come the begin and the end, with 31 bits each: fds have no larger numbers.
#[derive(Clone, Copy)]
struct Scope(u64);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    None,
    Encoding,
    Decoding,
}

thread_local! {
    static SCOPE: Cell<Scope> = const { Cell::new(Scope::new(Work::None, 0, 0)) };
    static STACK: RefCell<Vec<Place>> = const { RefCell::new(Vec::new()) };
}

/// Works on the stack. A thread that ends drops it, and then no value has fds there: what else it keeps for itself may send or
/// receive something when it is dropped, and a panic there would be an abort.
fn stack<R>(work: impl FnOnce(&mut Vec<Place>) -> R) -> Option<R> {
    STACK.try_with(|stack| work(&mut stack.borrow_mut())).ok()
}

/// An fd's place on the stack: empty once somebody has claimed it. What is dropped here does not travel.
type Place = Option<Passenger>;

impl Scope {
    #[inline]
    const fn new(work: Work, begin: usize, end: usize) -> Self {
        Self(work as u64 | (begin as u64) << 2 | (end as u64) << 33)
    }

    #[inline]
    fn is(self, work: Work) -> bool {
        self.0 & 0b11 == work as u64
    }

    #[inline]
    fn begin(self) -> usize {
        (self.0 << 31 >> 33) as usize
    }

    #[inline]
    fn end(self) -> usize {
        (self.0 >> 33) as usize
    }

    #[inline]
    fn held(self) -> usize {
        self.end() - self.begin()
    }

    /// The same, with so many.
    #[inline]
    fn holding(self, count: usize) -> Self {
        Self(self.0 << 31 >> 31 | ((self.begin() + count) as u64) << 33)
    }
}

/// Puts a scope in place, and the former one back when it ends in whatever way: a value may encode another inside.
struct Guard {
    outer: Scope,
}

impl Guard {
    #[inline]
    fn enter(work: Work) -> Self {
        let outer = SCOPE.get();
        SCOPE.set(Scope::new(work, outer.end(), outer.end()));
        Self { outer }
    }

    /// Enters a decoder's scope that holds these.
    fn holding(places: impl ExactSizeIterator<Item = Place>) -> Self {
        let guard = Self::enter(Work::Decoding);
        let (scope, count) = (SCOPE.get(), places.len());
        if stack(|stack| stack.extend(places)).is_some() {
            SCOPE.set(scope.holding(count));
        }
        guard
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if SCOPE.get().held() > 0 {
            drop(take(0));
        }
        SCOPE.set(self.outer);
    }
}

/// Takes all that the scope holds but the first `count`.
#[cold]
fn take(count: usize) -> Vec<Place> {
    let scope = SCOPE.get();
    SCOPE.set(scope.holding(count));
    stack(|stack| stack.split_off(scope.begin() + count)).unwrap_or_default()
}

/// Runs an encoder, and gives the fds that its values put down. If it fails or panics they are closed, and the ends that they
/// are of have not moved.
pub(crate) fn collect<R, E>(encode: impl FnOnce() -> Result<R, E>) -> Result<(R, Extra<Passenger>), E> {
    let _guard = Guard::enter(Work::Encoding);
    let result = encode()?;
    let fds = if held() == 0 { Extra::default() } else { take(0).into_iter().flatten().collect() };
    Ok((result, fds))
}

/// How many fds were put down so far.
pub(crate) fn held() -> usize {
    let scope = SCOPE.get();
    if scope.is(Work::Encoding) { scope.held() } else { 0 }
}

/// Whether an end has moved with what was put down behind the first `count`.
#[cold]
pub(crate) fn have_moved(count: usize) -> bool {
    let scope = SCOPE.get();
    scope.is(Work::Encoding)
        && stack(|stack| stack.iter().skip(scope.begin() + count).flatten().any(Passenger::has_moved)) == Some(true)
}

/// Takes back all but the first `count`, of a value that does not travel after all.
pub(crate) fn keep(count: usize) {
    let scope = SCOPE.get();
    if scope.is(Work::Encoding) && count < scope.held() {
        drop(take(count));
    }
}

/// Runs a decoder whose values may claim `fds`; what they leave is closed.
pub(crate) fn provide<R>(fds: Extra<Passenger>, decode: impl FnOnce() -> R) -> R {
    let _guard = if fds.is_empty() {
        Guard::enter(Work::Decoding)
    } else {
        Guard::holding(fds.into_vec().into_iter().map(Some))
    };
    decode()
}

/// Fds that came with several values, which are decoded one by one. What they leave is closed when it is dropped.
pub(crate) struct Arrived(Vec<Place>);

impl Arrived {
    pub(crate) fn new(fds: Extra<Passenger>) -> Self {
        Self(fds.into_vec().into_iter().map(Some).collect())
    }

    /// Runs the decoder of one of them.
    #[inline]
    pub(crate) fn decode<R>(&mut self, decode: impl FnOnce() -> R) -> R {
        /// Puts the fds back, after a panic too.
        struct Lent<'a> {
            lender: &'a mut Arrived,
            _guard: Guard,
        }

        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                self.lender.0 = take(0);
            }
        }

        if self.0.is_empty() {
            return decode();
        }
        let guard = Guard::holding(std::mem::take(&mut self.0).into_iter());
        let _lent = Lent { lender: self, _guard: guard };
        decode()
    }
}

/// Encodes an fd: a duplicate of it travels, so the value may be dropped at once.
///
/// For `#[serde(with = …)]` and hand-written impls; fails outside a message of this library, past 64 fds, and with one
/// that the kernel carries in no message.
pub(crate) fn serialize<S: Serializer>(fd: impl AsFd, serializer: S) -> Result<S::Ok, S::Error> {
    put_down(fd).map_err(serde::ser::Error::custom)?.serialize(serializer)
}

fn put_down(fd: impl AsFd) -> Result<u32, String> {
    let scope = SCOPE.get();
    if !scope.is(Work::Encoding) {
        return Err(text("a file descriptor can only be sent in a task, a result or a message of multiproc"));
    }
    if scope.held() == MAX_FDS {
        return Err(text("more than 64 file descriptors in one message"));
    }
    let place = u32::try_from(scope.held()).map_err(text)?;
    // Later it would be the end of the stream, with all that is to be sent besides.
    if !socket::travels(&fd) {
        return Err(text("a file descriptor that the kernel carries in no message, as of an io_uring"));
    }
    let fd = socket::duplicate(fd).map_err(text)?;
    stack(|stack| stack.push(Some(fd.into()))).ok_or_else(|| text("a thread that ends can send no file descriptor"))?;
    SCOPE.set(scope.holding(scope.held() + 1));
    Ok(place)
}

/// Says that an end has moved, whose fd was the last to be put down. Gives what may call that off.
pub(crate) fn moved() -> Option<Move> {
    if held() == 0 {
        return None;
    }
    stack(|stack| Some(stack.last_mut()?.as_mut()?.moved())).flatten()
}

/// Decodes an fd: claims the one that came with the frame.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedFd, D::Error> {
    let place = u32::deserialize(deserializer)?;
    claim(place as usize)
        .ok_or_else(|| serde::de::Error::custom("a file descriptor that did not come with the message"))
}

fn claim(place: usize) -> Option<OwnedFd> {
    let scope = SCOPE.get();
    let is_here = scope.is(Work::Decoding) && place < scope.held();
    if is_here {
        stack(|stack| stack.get_mut(scope.begin() + place)?.take()).flatten().map(Passenger::into_fd)
    } else {
        None
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::panic::catch_unwind;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Handle(#[serde(with = "super")] OwnedFd);

    fn handle() -> Handle {
        Handle(socket::stream_pair().unwrap().0)
    }

    fn is_open(fd: i32) -> bool {
        std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
    }

    #[test]
    fn a_scope_is_what_it_was_made_of() {
        const MOST: usize = i32::MAX as usize;
        for work in [Work::None, Work::Encoding, Work::Decoding] {
            for (begin, end) in [(0, 0), (0, 1), (1, 3), (0, MOST), (MOST, MOST)] {
                let scope = Scope::new(work, begin, end);
                assert!(
                    [Work::None, Work::Encoding, Work::Decoding]
                        .into_iter()
                        .all(|other| scope.is(other) == (work == other))
                );
                assert_eq!((scope.begin(), scope.end(), scope.held()), (begin, end, end - begin));
                let more = scope.holding(MOST - begin);
                assert_eq!((more.begin(), more.end(), more.is(work)), (begin, MOST, true));
                assert_eq!(more.holding(end - begin).0, scope.0);
            }
        }
    }

    #[test]
    fn fds_travel_by_their_place_and_each_is_claimed_once() {
        let (bytes, fds) = collect(|| postcard::to_allocvec(&(handle(), 7u8, handle()))).unwrap();
        assert_eq!(bytes, [0, 7, 1]);
        assert_eq!(fds.len(), 2);
        let twice = provide(vec![socket::stream_pair().unwrap().0.into()].into(), || {
            postcard::from_bytes::<(Handle, Handle)>(&[0, 0])
        });
        assert!(twice.is_err());
        let (a, seven, b) = provide(fds, || postcard::from_bytes::<(Handle, u8, Handle)>(&bytes).unwrap());
        assert_eq!(seven, 7);
        assert_ne!(a.0.as_raw_fd(), b.0.as_raw_fd());
    }

    /// Encodes another message of its own in the middle.
    struct Nested(Handle, Handle);

    impl Serialize for Nested {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let (inner, fds) = collect(|| postcard::to_allocvec(&(handle(), handle(), handle()))).unwrap();
            assert_eq!((&*inner, fds.len()), (&[0, 1, 2][..], 3));
            (&self.0, &self.1).serialize(serializer)
        }
    }

    #[test]
    fn a_message_within_a_message_keeps_its_fds_to_itself() {
        let value = (handle(), Nested(handle(), handle()));
        let (bytes, fds) = collect(|| postcard::to_allocvec(&value)).unwrap();
        assert_eq!((&*bytes, fds.len()), (&[0, 1, 2][..], 3));
        provide(fds, || {
            let inner =
                provide(vec![socket::stream_pair().unwrap().0.into()].into(), || postcard::from_bytes::<Handle>(&[0]));
            assert!(inner.is_ok() && postcard::from_bytes::<Handle>(&[2]).is_ok());
            assert!(postcard::from_bytes::<Handle>(&[3]).is_err() && postcard::from_bytes::<Handle>(&[2]).is_err());
        });
    }

    #[test]
    fn outside_a_message_an_fd_is_an_error() {
        assert!(postcard::to_allocvec(&handle()).is_err());
        assert!(postcard::from_bytes::<Handle>(&[0]).is_err());
    }

    #[test]
    fn a_panic_or_an_error_leaves_nothing_for_the_next_message() {
        catch_unwind(|| {
            collect::<(), ()>(|| {
                postcard::to_allocvec(&handle()).unwrap();
                panic!("in an encoder")
            })
        })
        .unwrap_err();
        assert!(postcard::to_allocvec(&handle()).is_err(), "the scope is gone");
        let failed = collect(|| {
            postcard::to_allocvec(&handle()).unwrap();
            Err::<(), _>("in an encoder")
        });
        assert_eq!(failed.err(), Some("in an encoder"));
        assert!(collect(|| Ok::<_, ()>(())).unwrap().1.is_empty());
    }

    #[test]
    fn fds_that_no_value_claims_are_closed() {
        let fd = socket::stream_pair().unwrap().0;
        let number = fd.as_raw_fd();
        let inode = rustix::fs::fstat(&fd).unwrap().st_ino;
        provide(vec![fd.into()].into(), || ());
        let reused = is_open(number)
            && std::fs::metadata(format!("/proc/self/fd/{number}")).is_ok_and(|now| {
                use std::os::unix::fs::MetadataExt as _;
                now.ino() == inode
            });
        assert!(!reused);
    }
}
