//! An fd that travels in a message, and with it what calls off the move of the end that it is of.
//!
//! To encode an end of a channel moves it, and that is before its message leaves. So the move rides with the fd: one that is
//! dropped here before its message has left has gone nowhere, for whatever reason that is, and its end is as it was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::extra::Extra;

/// An fd in a message.
#[derive(Debug)]
pub(crate) struct Passenger {
    // Closed before its move is called off.
    fd: OwnedFd,
    its_move: Riding,
}

/// The move of an end that has not left yet, if it is one.
#[derive(Debug, Default)]
struct Riding(Option<Move>);

impl Drop for Riding {
    fn drop(&mut self) {
        if let Some(its_move) = &self.0 {
            its_move.call_off();
        }
    }
}

impl Passenger {
    /// It has left, or somebody sees to its move in another way: that stands.
    pub(crate) fn into_fd(self) -> OwnedFd {
        let Self { fd, mut its_move } = self;
        its_move.0 = None;
        fd
    }

    /// It is of an end that has moved with it. Gives what may call that off.
    pub(super) fn moved(&mut self) -> Move {
        self.its_move.0.get_or_insert_default().clone()
    }

    pub(super) fn has_moved(&self) -> bool {
        self.its_move.0.is_some()
    }
}

impl From<OwnedFd> for Passenger {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, its_move: Riding::default() }
    }
}

impl AsFd for Passenger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Extra<Passenger> {
    /// They have left with their message, so what is here of them is closed, and the moves stand.
    pub(crate) fn leave(self) {
        drop(self.into_fds());
    }

    /// For whoever sees to their [moves](Self::moves) in another way.
    pub(crate) fn into_fds(self) -> Extra<OwnedFd> {
        self.into_vec().into_iter().map(Passenger::into_fd).collect()
    }

    pub(crate) fn moves(&self) -> Moves {
        if self.is_empty() {
            return Moves::default();
        }
        Moves(self.iter().filter_map(|passenger| passenger.its_move.0.clone()).collect())
    }

    /// Whether an end that moves with them still exists here, and refuses to go on. One that was made for the message does not.
    pub(crate) fn leave_ends_here(&self) -> bool {
        let moves = self.iter().filter_map(|passenger| passenger.its_move.0.as_ref());
        moves.into_iter().any(|its_move| Arc::strong_count(&its_move.is_off) > 1)
    }
}

/// That an end has gone to another process with a message, if that is sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Move {
    is_off: Arc<AtomicBool>,
}

impl Move {
    fn call_off(&self) {
        self.is_off.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_off(&self) -> bool {
        self.is_off.load(Ordering::Relaxed)
    }
}

/// The moves of all ends in one message, for whoever knows better than its fds whether it counts as sent.
#[derive(Debug, Default)]
#[must_use = "they stand, unless they are called off"]
pub(crate) struct Moves(Extra<Move>);

impl Moves {
    /// Whether there is one: then the message is for one process, and once.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// For a message that nobody has and nobody will have: with it go the duplicates of the ends.
    pub(crate) fn call_off(&self) {
        self.0.iter().for_each(Move::call_off);
    }
}
