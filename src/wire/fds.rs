//! File descriptors inside values: serde has no word for them, so they travel beside the bytes.
//!
//! While a value is encoded, each fd in it is put into a list of this thread and its place in the list goes into the
//! bytes; while it is decoded, the place is traded for the fd that came with the frame. Both lists live in a scope that
//! is emptied on every exit, by error and by panic too, so no fd can slip into another message.

use std::cell::RefCell;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

use crate::sys::socket;
use crate::wire::frame::MAX_FDS;

/// What this thread is doing with fds at the moment.
enum Scope {
    None,
    Encoding(Vec<OwnedFd>),
    Decoding(Vec<Option<OwnedFd>>),
}

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::None) };
}

/// Puts a scope in place, and the former one back when it ends in whatever way: a value may encode another inside.
struct Guard {
    outer: Option<Scope>,
}

impl Guard {
    fn enter(scope: Scope) -> Self {
        Self { outer: Some(SCOPE.replace(scope)) }
    }

    /// Ends the scope and gives what it holds.
    fn leave(mut self) -> Scope {
        SCOPE.replace(self.outer.take().unwrap_or(Scope::None))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            SCOPE.replace(outer);
        }
    }
}

/// Runs an encoder, and gives the fds that its values put down.
pub(crate) fn collect<R>(encode: impl FnOnce() -> R) -> (R, Vec<OwnedFd>) {
    let guard = Guard::enter(Scope::Encoding(Vec::new()));
    let result = encode();
    match guard.leave() {
        Scope::Encoding(fds) => (result, fds),
        Scope::None | Scope::Decoding(_) => (result, Vec::new()),
    }
}

/// How many fds were put down so far.
pub(crate) fn held() -> usize {
    SCOPE.with_borrow(|scope| if let Scope::Encoding(fds) = scope { fds.len() } else { 0 })
}

/// Takes back all but the first `count`, of a value that does not travel after all.
pub(crate) fn keep(count: usize) {
    SCOPE.with_borrow_mut(|scope| {
        if let Scope::Encoding(fds) = scope {
            fds.truncate(count);
        }
    });
}

/// Runs a decoder whose values may claim `fds`; what they leave is closed.
pub(crate) fn provide<R>(fds: Vec<OwnedFd>, decode: impl FnOnce() -> R) -> R {
    let _guard = Guard::enter(Scope::Decoding(fds.into_iter().map(Some).collect()));
    decode()
}

/// Fds that came with several values, which are decoded one by one. What they leave is closed when it is dropped.
pub(crate) struct Arrived(Vec<Option<OwnedFd>>);

impl Arrived {
    pub(crate) fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Runs the decoder of one of them.
    #[inline]
    pub(crate) fn decode<R>(&mut self, decode: impl FnOnce() -> R) -> R {
        /// Puts the fds back, after a panic too.
        struct Lent<'a>(&'a mut Arrived, Option<Guard>);

        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                if let Some(Scope::Decoding(fds)) = self.1.take().map(Guard::leave) {
                    self.0.0 = fds;
                }
            }
        }

        if self.0.is_empty() {
            return decode();
        }
        let guard = Guard::enter(Scope::Decoding(std::mem::take(&mut self.0)));
        let _lent = Lent(self, Some(guard));
        decode()
    }
}

/// Encodes an fd: a duplicate of it travels, so the value may be dropped at once.
///
/// For `#[serde(with = …)]` and hand-written impls; fails outside a message of this library, and past 64 fds.
pub(crate) fn serialize<S: Serializer>(fd: impl AsFd, serializer: S) -> Result<S::Ok, S::Error> {
    let place = SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Encoding(fds) if fds.len() == MAX_FDS => Err(text("more than 64 file descriptors in one message")),
        Scope::Encoding(fds) => {
            let place = u32::try_from(fds.len()).map_err(text)?;
            fds.push(socket::duplicate(fd).map_err(text)?);
            Ok(place)
        }
        Scope::None | Scope::Decoding(_) => {
            Err(text("a file descriptor can only be sent in a task, a result or a message of multiproc"))
        }
    });
    place.map_err(serde::ser::Error::custom)?.serialize(serializer)
}

/// Decodes an fd: claims the one that came with the frame.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedFd, D::Error> {
    let place = u32::deserialize(deserializer)?;
    SCOPE
        .with_borrow_mut(|scope| match scope {
            Scope::Decoding(fds) => fds.get_mut(place as usize).and_then(Option::take),
            Scope::None | Scope::Encoding(_) => None,
        })
        .ok_or_else(|| serde::de::Error::custom("a file descriptor that did not come with the message"))
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
    fn fds_travel_by_their_place_and_each_is_claimed_once() {
        let (bytes, fds) = collect(|| postcard::to_allocvec(&(handle(), 7u8, handle())).unwrap());
        assert_eq!(bytes, [0, 7, 1]);
        assert_eq!(fds.len(), 2);
        let twice =
            provide(vec![socket::stream_pair().unwrap().0], || postcard::from_bytes::<(Handle, Handle)>(&[0, 0]));
        assert!(twice.is_err());
        let (a, seven, b) = provide(fds, || postcard::from_bytes::<(Handle, u8, Handle)>(&bytes).unwrap());
        assert_eq!(seven, 7);
        assert_ne!(a.0.as_raw_fd(), b.0.as_raw_fd());
    }

    #[test]
    fn outside_a_message_an_fd_is_an_error() {
        assert!(postcard::to_allocvec(&handle()).is_err());
        assert!(postcard::from_bytes::<Handle>(&[0]).is_err());
    }

    #[test]
    fn a_panic_or_an_error_leaves_nothing_for_the_next_message() {
        catch_unwind(|| {
            collect(|| {
                postcard::to_allocvec(&handle()).unwrap();
                panic!("in an encoder")
            })
        })
        .unwrap_err();
        assert!(postcard::to_allocvec(&handle()).is_err(), "the scope is gone");
        assert!(collect(|| ()).1.is_empty());
    }

    #[test]
    fn fds_that_no_value_claims_are_closed() {
        let fd = socket::stream_pair().unwrap().0;
        let number = fd.as_raw_fd();
        let inode = rustix::fs::fstat(&fd).unwrap().st_ino;
        provide(vec![fd], || ());
        let reused = is_open(number)
            && std::fs::metadata(format!("/proc/self/fd/{number}")).is_ok_and(|now| {
                use std::os::unix::fs::MetadataExt as _;
                now.ino() == inode
            });
        assert!(!reused);
    }
}
